"""Whose the captures of a config are: names of people, as the conversations' people table has them.

    capture,person
    capture,jonas
    capture_amara,amara

The table, `data.people`, need not be there: who has no line in it is called by the capture's folder. Captures are named
relative to the table's folder. `people.csv` in the conversations' folder (`data/people.py`) says by the same names who speaks.
"""

import dataclasses
import os
import pathlib

from ml_collections import ConfigDict

from rsatalker_jax.data.capture_collection import name_people
from rsatalker_jax.data.conversations import data_path, data_paths
from rsatalker_jax.data.csv_tables import read_table
from rsatalker_jax.data.people import Speakers, read_people
from rsatalker_jax.errors import InputError

COLUMNS = ("capture", "person")
SPEAKERS = "people.csv"  # In the conversations' folder.


@dataclasses.dataclass(frozen=True)
class CapturedPeople:
  """The people of a run, in the order of the config's captures.

  Attributes:
    names: all different.
    folders: of their captures.
  """

  names: tuple[str, ...]
  folders: tuple[pathlib.Path, ...]

  def number(self, name: str, flag: str = "--person") -> int:
    """Which of them somebody is. Raises: InputError: none of them, in the words of a command's flag."""
    if name not in self.names:
      raise InputError(flag, "", name, f"one of {', '.join(self.names)}")
    return self.names.index(name)


def find_captured_people(data: ConfigDict) -> CapturedPeople:
  """The people of `data.captures`, or the one of `data.capture` if there are none.

  Raises:
    InputError: a damaged table, or one that gives two captures of the run to one person.
  """
  folders = data_paths(data, "captures") if data.captures else [data_path(data, "capture")]
  table = data_path(data, "people") if data.get("people") else None
  whose = read_captured_people(table) if table is not None and table.is_file() else {}
  by_folder = name_people(folders)
  names = [whose.get(folder.resolve(), name) for folder, name in zip(folders, by_folder)]
  for number, name in enumerate(names):
    if name in names[:number]:
      raise InputError(table, "person", f"{name} of both {folders[names.index(name)]} and {folders[number]}", "one capture a person")
  return CapturedPeople(tuple(names), tuple(folders))


def read_captured_people(path: str | os.PathLike) -> dict[pathlib.Path, str]:
  """The person of each capture, by its folder as `pathlib.Path.resolve` gives it.

  Raises:
    InputError: names file and line of other columns, an empty value, or a capture that has a line already.
  """
  path = pathlib.Path(path)
  whose: dict[pathlib.Path, str] = {}
  for row in read_table(path, COLUMNS):
    for column in COLUMNS:
      if not row[column]:
        raise InputError(row.place, column, "nothing", "a capture's folder, relative to the table's, and a person's name")
    folder = (path.parent / row["capture"]).resolve()
    if folder in whose:
      raise InputError(row.place, "capture", f"{row['capture']!r} a second time", "one line a capture")
    whose[folder] = row["person"]
  return whose


def find_speakers(data: ConfigDict) -> dict[str, Speakers]:
  """Who speaks in the config's conversations, as far as people.csv beside them says; nothing where there is none."""
  path = data_path(data, "conversations") / SPEAKERS
  return read_people(path) if path.is_file() else {}
