"""What `seamless` does: UniLS-Talk joined with Seamless Interaction, written in the project's own layout."""

import pathlib
import sys
from collections.abc import Callable, Sequence

import tqdm

from rsatalker_jax.data.dualtalk import SPLITS
from rsatalker_jax.data.seamless import Selection, describe_report, join_conversations, write_conversations
from rsatalker_jax.errors import InputError


def prepare_conversations(
    *,
    talk: str,
    seamless: str | None,
    out: str,
    splits: Sequence[str],
    subset: Sequence[str],
    count: int,
    mapping: str | None,
    videos: str,
    arrays: Sequence[str],
    say: Callable[[str], None] = print,
) -> None:
  """Joins, writes, and says what was made of it; see `join_conversations` and `write_conversations`.

  Raises:
    InputError: nothing can be served, a flag is wrong, or a file cannot be written.
  """
  for flag, value in {"--mapping": mapping, "--videos": None if videos == "none" else videos, "--arrays": arrays}.items():
    if value and seamless is None:
      raise InputError(flag, "", value, "--seamless, the folder that it is about")
  for split in splits:
    if split not in SPLITS:
      raise InputError("--splits", "", repr(split), ", ".join(SPLITS))
  inputs = {"--talk": talk, "--seamless": seamless}
  for flag, folder in inputs.items():
    if folder is not None and pathlib.Path(out).resolve().is_relative_to(pathlib.Path(folder).resolve()):
      raise InputError("--out", "", out, f"a folder that is not in {flag}")
  # In a terminal a bar that moves, in a log a line now and then.
  bar = lambda title, unit: lambda items: tqdm.tqdm(items, desc=title, unit=unit, mininterval=0.5 if sys.stderr.isatty() else 15)
  join = join_conversations(
      talk,
      seamless,
      splits=splits or SPLITS,
      selection=Selection(tuple(subset), count),
      mapping=mapping,
      find_recordings=True,
      progress=bar("looking", "pair"),
  )
  report = write_conversations(join, out, videos=videos, arrays=arrays, progress=bar("writing", "conversation"))
  for line in describe_report(report):
    say(line)
  say(f"conversations are in {out}, all that was skipped in {pathlib.Path(out) / 'report.json'}")
