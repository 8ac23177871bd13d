"""What `goodput` does: where a run's time went, as tables."""

import datetime
from collections.abc import Sequence

from rsatalker_jax.runs.ledger import CAUSES, Account, read_account
from rsatalker_jax.types import STAGES


def describe_goodput(workdir: str) -> str:
  """The shares of all causes over all starts, by stage and by start, as text.

  Raises:
    InputError: the run has no ledger, or it is damaged.
  """
  account = read_account(workdir)
  count = len(account.starts)
  killed = sum(start.how == "killed" for start in account.starts[:-1])
  first, last = (
      datetime.datetime.fromtimestamp(x).strftime("%Y-%m-%d %H:%M:%S") for x in (account.starts[0].begin, account.starts[-1].end)
  )
  lines = [
      f"{workdir}: {count} start{'s' * (count != 1)}, {killed} of them killed, from {first} to {last}",
      "",
      *_describe_causes(account),
      "",
      f"{account.wall:.1f} s in all, {account.accounted:.2%} accounted for",
      f"{_share(account.seconds['step'], account.wall)} of it were steps that count",
      "",
      *_describe_starts(account),
  ]
  return "\n".join(lines)


def _describe_causes(account: Account) -> list[str]:
  stages = [stage for stage in (*STAGES, "") if stage in account.stages]
  rows = [["", "seconds", "share", *(f"{stage or 'no stage'}, s" for stage in stages)]]
  for cause, words in CAUSES.items():
    if seconds := account.seconds[cause]:
      by_stage = [f"{account.stages[stage].get(cause, 0.0):.1f}" for stage in stages]
      rows.append([words, f"{seconds:.1f}", _share(seconds, account.wall), *by_stage])
  return _align(rows)


def _describe_starts(account: Account) -> list[str]:
  rows = [["start", "host", "down before, s", "starting, s", "compiling, s", "steps", "done again, s", "seconds", "end"]]
  for number, start in enumerate(account.starts, 1):
    how = start.how if start.how != "killed" or number < len(account.starts) else "killed, or still running"
    seconds = [f"{start.seconds.get(cause, 0.0):.1f}" for cause in ("down", "initialise", "compile")]
    rows.append([
        str(start.number), start.host, *seconds, str(start.steps), f"{start.seconds.get('lost', 0.0):.1f}",
        f"{start.end - start.begin:.1f}", how[:70],
    ])
  return _align(rows)


def _share(seconds: float, wall: float) -> str:
  return f"{seconds / wall:.1%}" if wall else "-"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(*rows)]
  align = lambda i, cell: cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i])
  return ["  ".join(align(i, cell) for i, cell in enumerate(row)) for row in rows]
