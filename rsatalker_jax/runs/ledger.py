"""Where a run's time went: <workdir>/ledger.jsonl, which `training.ledger` writes, read back.

Each line is an object with "start", the number of the start of train.py that it tells of, and "kind":

  start  "begin": when its process began, in seconds since 1970, imports included; "host", "pid", "processes".
  span   what happened from "begin" to "end", by cause, in "seconds"; "stage", None outside of stages, which went from step
         "first" to "step", None while it is made; and the most memory that was in use so far, "peak_memory_bytes" of the process and
         "peak_device_memory_bytes" of the fullest device, where devices tell. A start's last span was written while it went on:
         it ends where the process was last seen alive.
  end    "how": "finished", or why it ended before; a start without this line was killed.
"""

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_text

_IMPORTED = time.monotonic()
FILE = "ledger.jsonl"
FINISHED = "finished"

# What a start does, as spans have it …
PHASES = {
    "step": "steps",
    "data": "waiting for data",
    "hooks": "density control",
    "compile": "compiling",
    "evaluate": "scores of held-out data",
    "pictures": "pictures",
    "checkpoint": "checkpoints",
    "profile": "profiles",
    "initialise": "starting",
    "hang": "hanging",
}
# … and what comes of reading them: what was done once more later on, and the time between starts.
CAUSES = PHASES | {"lost": "done again after a restart", "down": "between starts"}
# What a restart has to do again from the last checkpoint on.
_REPEATED = ("step", "data", "hooks", "evaluate", "pictures", "checkpoint", "profile")


def process_age() -> float:
  """Seconds since this process began; where the system does not tell, since this module was imported."""
  try:
    fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
  except (OSError, ValueError, IndexError, AttributeError):
    return time.monotonic() - _IMPORTED


@dataclasses.dataclass
class Start:
  """One start of train.py.

  Attributes:
    number: from 1.
    host: where process 0 ran.
    begin, end: of what is known of it, in seconds since 1970.
    how: it ended; "killed" where it could not say so, or is still running.
    steps: that it took in all its stages, those that were lost included.
    seconds: by cause; "down" is the time before it.
  """

  number: int
  host: str
  begin: float
  end: float
  how: str
  steps: int
  seconds: dict[str, float]


@dataclasses.dataclass
class Account:
  """What a run's time went to.

  Attributes:
    starts: in their order.
    stages: seconds by stage ("" outside of stages) and cause.
    wall: seconds from the first start's beginning to the last one's end, but for the time after a run that had finished.
  """

  starts: list[Start]
  stages: dict[str, dict[str, float]]
  wall: float

  @property
  def seconds(self) -> dict[str, float]:
    """By cause, over all starts."""
    return {cause: sum(start.seconds.get(cause, 0.0) for start in self.starts) for cause in CAUSES}

  @property
  def accounted(self) -> float:
    """Share of the wall time whose cause is known."""
    return sum(self.seconds.values()) / self.wall if self.wall else 1.0


def read_account(workdir: str | os.PathLike) -> Account:
  """The account of a run's ledger.

  Raises:
    InputError: there is none, or a line is none of a ledger.
  """
  starts: dict[int, Start] = {}
  spans: list[dict[str, Any]] = []
  for line in _read_lines(pathlib.Path(workdir) / FILE):
    number = line["start"]
    if line["kind"] == "start":
      starts[number] = Start(number, line["host"], line["begin"], line["begin"], "killed", 0, {})
    elif line["kind"] == "span":
      starts[number].end = max(starts[number].end, line["end"])
      starts[number].steps += (line["step"] or 0) - (line["first"] or 0)
      _find_lost(line, spans)
      spans.append(line)
    else:
      starts[number].how = line["how"]
  stages: dict[str, dict[str, float]] = {}
  for span in spans:
    for cause, seconds in span["seconds"].items():
      cause = "lost" if span.get("lost") and cause in _REPEATED else cause
      for sums in (starts[span["start"]].seconds, stages.setdefault(span["stage"] or "", {})):
        sums[cause] = sums.get(cause, 0.0) + seconds
  wall, before = 0.0, None
  for start in starts.values():
    if before is not None and before.how != FINISHED:
      start.seconds["down"] = max(0.0, start.begin - before.end)
    wall += start.end - start.begin + start.seconds.get("down", 0.0)
    before = start
  return Account(list(starts.values()), stages, wall)


def _find_lost(span: Mapping[str, Any], earlier: list[dict[str, Any]]) -> None:
  """Marks the earlier spans of a stage whose steps come after the one that this span begins from: they are done again."""
  for other in earlier:
    if span["first"] is not None and other["stage"] == span["stage"] and other["first"] is not None:
      if span["first"] <= other["first"] < other["step"]:
        other["lost"] = True


def read_usage(workdir: str | os.PathLike) -> dict[str, dict[str, float]]:
  """What each stage has taken, by stage: "seconds" of all starts, "starts" and the most memory, as spans have it. Nothing for
  a run without a ledger.

  Raises:
    InputError: see `read_account`.
  """
  path = pathlib.Path(workdir) / FILE
  if not path.exists():
    return {}
  usage: dict[str, dict[str, float]] = {}
  counted = set()
  for span in _read_lines(path):
    if span["kind"] != "span" or span["stage"] is None:
      continue
    of_stage = usage.setdefault(span["stage"], {"seconds": 0.0, "starts": 0})
    of_stage["seconds"] += sum(span["seconds"].values())
    of_stage["starts"] += (span["start"], span["stage"]) not in counted
    counted.add((span["start"], span["stage"]))
    for name in ("peak_memory_bytes", "peak_device_memory_bytes"):
      if name in span:
        of_stage[name] = max(of_stage.get(name, 0), span[name])
  return usage


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """Its lines; the last may be cut off.

  Raises:
    InputError: see `read_account`.
  """
  texts = read_text(path, "the ledger that train.py writes").split("\n")
  lines, begun = [], set()
  for number, text in enumerate(texts[:-1], 1):
    try:
      line = json.loads(text)
      if not _is_line(line) or (line["kind"] != "start" and line["start"] not in begun):
        raise ValueError(text)
    except (ValueError, RecursionError):
      raise InputError(path, f"line {number}", text.strip()[:80], "a line of a ledger, as train.py writes it") from None
    begun.add(line["start"])
    lines.append(line)
  return lines


def _is_line(line: Any) -> bool:
  number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
  if not isinstance(line, dict) or not number(line.get("start")):
    return False
  if line.get("kind") == "start":
    return number(line.get("begin")) and isinstance(line.get("host"), str)
  if line.get("kind") == "end":
    return isinstance(line.get("how"), str)
  seconds, stage = line.get("seconds"), line.get("stage", 0)
  steps = [line.get("first"), line.get("step")]
  at_steps = steps == [None, None] or (stage is not None and all(map(number, steps)))
  return (
      line.get("kind") == "span"
      and number(line.get("begin"))
      and number(line.get("end"))
      and isinstance(seconds, dict)
      and all(cause in PHASES and number(x) for cause, x in seconds.items())
      and (stage is None or isinstance(stage, str))
      and at_steps
      and all(number(line[name]) for name in ("peak_memory_bytes", "peak_device_memory_bytes") if name in line)
  )
