"""The csv tables of Seamless Interaction: how people of a session are related, prompts, participants, the list of files.

    relationships.csv   vendor_id, session_id, relationship, relationship_detail
    interactions.csv    prompt_hash (the interaction's number), ipc_a, ipc_b, interaction_type
    participants.csv    vendor_id, participant_id
    filelist.csv        file_id, label (improvised | naturalistic), split (train | dev | test)

and other columns, which are not read. Numbers come with or without leading zeros, letters (V00, S0809) and decimals (809.0,
as a table goes through a program that takes ids for measurements; 809,0 from a spreadsheet with decimal commas, whose columns
are separated by semicolons).
"""

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rsatalker_jax.data.csv_tables import read_lines, read_table
from rsatalker_jax.data.relations import AXES, VALUES
from rsatalker_jax.data.seamless.names import Session, Skip, parse_file_id
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_text
from rsatalker_jax.social.relation import UNKNOWN

_NUMBER = re.compile(r"[VSIPvsip]?(\d{1,15})(?:[.,]0+)?", re.ASCII)
_SEPARATORS = ",;\t"

# relationship_detail (lower case, words joined by _) as blood and equal, -1 for unknown: this project's reading, and the one
# place where it stands. Rank within a family or among coworkers is not said. Strangers have no relation that the two axes
# could name: "not of one blood" would make them one of the paper's four kinds of couples.
RELATIONS: dict[str, tuple[int, int]] = {
    "siblings": (1, 1),
    "parent_child": (1, 0),
    "family_generic": (1, UNKNOWN),
    "friends": (0, 1),
    "classmates": (0, 1),
    "roommates": (0, 1),
    "neighbors": (0, 1),
    "dating": (0, 1),
    "spouse": (0, 1),
    "partner": (0, 1),
    "dating_spouse_partner": (0, 1),
    "coworkers": (0, UNKNOWN),
    "familiar_generic": (UNKNOWN, UNKNOWN),
    "stranger": (UNKNOWN, UNKNOWN),
    "strangers": (UNKNOWN, UNKNOWN),
}


class Related(NamedTuple):
  """What relationships.csv says of a session.

  Attributes:
    relation: [blood, equal]; -1 for unknown.
    detail: the table's word, or several.
  """

  relation: Int[np.ndarray, "2"]
  detail: str


@dataclasses.dataclass(frozen=True)
class Tables:
  """Attributes:
    related: by session.
    prompts: by number: ipc_a, ipc_b, interaction_type.
    files: by file id: label and split.
    people: (vendor, person) of participants.csv; None without that table.
    skipped: lines that cannot be read.
    notes: a line for each table that is missing or is another.
  """

  related: Mapping[Session, Related] = dataclasses.field(default_factory=dict)
  prompts: Mapping[int, Mapping[str, str]] = dataclasses.field(default_factory=dict)
  files: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
  people: frozenset[tuple[int, int]] | None = None
  skipped: Sequence[Skip] = ()
  notes: Sequence[str] = ()


def read_mapping(path: str | os.PathLike) -> dict[str, tuple[int, int]]:
  """The user's own reading of relationship_detail: a csv relationship_detail,blood,equal of true, false and unknown.

  Raises:
    InputError: names the line that is another.
  """
  mapping: dict[str, tuple[int, int]] = {}
  for row in read_table(path, ("relationship_detail", *AXES)):
    detail = _normalise(row["relationship_detail"])
    for axis in AXES:
      if row[axis].lower() not in VALUES:
        raise InputError(row.place, axis, f"{row[axis]!r}", " | ".join(VALUES))
    if not detail or detail in mapping:
      raise InputError(row.place, "relationship_detail", f"{row['relationship_detail']!r}", "each word of relationships.csv once")
    mapping[detail] = (VALUES[row["blood"].lower()], VALUES[row["equal"].lower()])
  return mapping


def read_tables(folder: str | os.PathLike, mapping: Mapping[str, tuple[int, int]] | None = None) -> Tables:
  """Reads the tables of a folder, or of its folder `assets`, where the official repository has them.

  Only relationships.csv may stop a run, by being another table. Without it relations are unknown.

  Args:
    folder: of the data set.
    mapping: what the user says of words of relationship_detail, before `RELATIONS`.

  Raises:
    InputError: no such folder, or relationships.csv is there and has other columns.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise InputError(folder, "", "no such folder", "the folder of Seamless Interaction: its csv tables, folders and shards")
  skipped: list[Skip] = []
  notes: list[str] = []
  places = {name: next((p for p in (folder / name, folder / "assets" / name) if p.is_file()), None)
            for name in ("relationships.csv", "interactions.csv", "participants.csv", "filelist.csv")}  # fmt: skip
  notes += [f"{folder}: no {name}" for name, place in places.items() if place is None]

  def optional(name: str, columns: Sequence[str]) -> list[dict[str, str]]:
    if places[name] is None:
      return []
    try:
      return [row for _, row in _read_rows(places[name], columns, skipped)]
    except InputError as error:
      notes.append(f"not used: {error}")
      places[name] = None
      return []

  related = {}
  if places["relationships.csv"] is not None:
    related = _read_related(places["relationships.csv"], RELATIONS | dict(mapping or {}), skipped, notes)
  prompts = {}
  for row in optional("interactions.csv", ("prompt_hash",)):
    if (number := _parse_number(row["prompt_hash"])) is not None:
      prompts.setdefault(number, {key: row.get(key, "") for key in ("ipc_a", "ipc_b", "interaction_type")})
  files = {}
  for row in optional("filelist.csv", ("file_id", "label", "split")):
    if (file_id := parse_file_id(row["file_id"])) is not None:
      files.setdefault(file_id.name, (row["label"], row["split"]))
  rows = optional("participants.csv", ("vendor_id", "participant_id"))
  people = frozenset(tuple(_parse_number(row[key]) for key in ("vendor_id", "participant_id")) for row in rows)
  return Tables(related, prompts, files, people if places["participants.csv"] is not None else None, skipped, notes)


def _read_related(
    path: pathlib.Path, mapping: Mapping[str, tuple[int, int]], skipped: list[Skip], notes: list[str]
) -> dict[Session, Related]:
  found: dict[Session, dict[str, tuple[int, int]]] = collections.defaultdict(dict)
  unknown = collections.Counter()
  for place, row in _read_rows(path, ("vendor_id", "session_id", "relationship_detail"), skipped):
    numbers = [_parse_number(row[key]) for key in ("vendor_id", "session_id")]
    if None in numbers:
      skipped.append(Skip(place, "a line of a table without its ids", f"{row['vendor_id']!r}, {row['session_id']!r}"))
      continue
    word = row["relationship_detail"] or row.get("relationship", "")
    detail = _normalise(word)
    unknown[word] += detail not in mapping
    found[Session(*numbers)][word] = mapping.get(detail, (UNKNOWN, UNKNOWN))
  if words := [f"{word!r} ({count})" for word, count in unknown.most_common() if count]:
    notes.append(f"{path}: {sum(unknown.values())} sessions' relationship_detail is no known word, so unknown: {', '.join(words[:10])}")
  related = {}
  several = 0
  for session, details in found.items():
    values = np.array(list(details.values()), np.int32)
    several += len(details) > 1
    relation = np.where((values == values[0]).all(axis=0), values[0], UNKNOWN).astype(np.int32)
    related[session] = Related(relation, " | ".join(details))
  if several:
    notes.append(f"{path}: {several} sessions have several relations; an axis on which they differ is unknown")
  return related


def _read_rows(path: pathlib.Path, required: Sequence[str], skipped: list[Skip]) -> Iterator[tuple[str, dict[str, str]]]:
  """Place and values of each line; those of another length than the header's are passed over.

  Raises:
    InputError: a column is missing, or it is no csv.
  """
  expected = f"a csv with the columns {', '.join(required)}"
  text = read_text(path, expected)
  header = text.lstrip().partition("\n")[0]
  separator = max(_SEPARATORS, key=header.count)
  columns: list[str] = []
  for place, values in read_lines(path, text, expected, separator):
    if not columns:
      columns = [value.lower() for value in values]
      if not set(required) <= set(columns):
        raise InputError(place, "columns", ",".join(values), expected)
    elif len(values) != len(columns):
      skipped.append(Skip(place, "a line of a table with another number of values", f"{len(values)}, not {len(columns)}"))
    else:
      yield place, dict(zip(columns, values))


def _parse_number(text: str) -> int | None:
  match = _NUMBER.fullmatch(text)
  return None if match is None else int(match[1])


def _normalise(detail: str) -> str:
  return re.sub(r"[^a-z0-9]+", "_", detail.lower()).strip("_")
