"""The people table: who speaks in each conversation, so that nobody is trained on and tested on.

    conversation,speaker1,speaker2,source
    V00_S0027_I00000377,P0061,P0072,V00

Names are any text; an empty one is a person who is not known. `source`, which may be left out, is where the conversation was
recorded: a vendor, a channel, a laboratory.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

from rsatalker_jax.data.csv_tables import read_table, write_table
from rsatalker_jax.errors import InputError

COLUMNS = ("conversation", "speaker1", "speaker2", "source")


@dataclasses.dataclass(frozen=True)
class Speakers:
  """Attributes:
    first, second: who is speaker 1, and 2; "" for somebody unknown.
    source: where it was recorded; "" if that is not known.
  """

  first: str
  second: str
  source: str = ""

  @property
  def names(self) -> set[str]:
    """Of those who are known."""
    return {self.first, self.second} - {""}


def read_people(path: str | os.PathLike, conversations: set[str] | None = None) -> dict[str, Speakers]:
  """Reads a people table.

  Args:
    path: the table.
    conversations: names that may occur; None allows any.

  Raises:
    InputError: names file and line of other columns, a conversation that does not exist or has a line already, or one of
      somebody with themselves.
  """
  path = pathlib.Path(path)
  people: dict[str, Speakers] = {}
  for row in read_table(path, COLUMNS[:3], COLUMNS[3:]):
    name, speakers = row["conversation"], Speakers(row["speaker1"], row["speaker2"], row["source"])
    if not name or (conversations is not None and name not in conversations):
      raise InputError(row.place, "conversation", f"{name!r}", f"a conversation that has files under {path.parent}")
    if name in people:
      raise InputError(row.place, "conversation", f"{name!r} a second time", "one line a conversation")
    if speakers.first and speakers.first == speakers.second:
      raise InputError(row.place, "speaker2", f"{speakers.second}, who is speaker1 too", "two people")
    people[name] = speakers
  return people


def write_people(path: str | os.PathLike, people: Mapping[str, Speakers]) -> None:
  """Writes a people table, whole or not at all, in the order of `people`; with the column source if one is known."""
  has_sources = any(speakers.source for speakers in people.values())
  columns = COLUMNS if has_sources else COLUMNS[:3]
  write_table(path, columns, [(name, *dataclasses.astuple(speakers))[: len(columns)] for name, speakers in people.items()])
