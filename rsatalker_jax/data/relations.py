"""The relations table: who is related how in each conversation, as one person or several have labelled it.

    conversation,blood,equal,annotator,confidence
    7Dz0ONX_sub_video_3,false,true,ann,0.9
    7Dz0ONX_sub_video_3,false,unknown,ben,0.5

`blood` and `equal` are true, false or unknown. `annotator` and `confidence` (0 to 1) may be left out; an annotator has one line
a conversation, and lines without an annotator are one annotator's.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from rsatalker_jax.data.csv_tables import read_table, write_table
from rsatalker_jax.errors import InputError
from rsatalker_jax.social.relation import UNKNOWN, UNKNOWN_NAME

AXES = ("blood", "equal")  # In the order of a relation's values.
COLUMNS = ("conversation", *AXES, "annotator", "confidence")
# Of an axis, by its word in the table; and the words by value.
VALUES = {"true": 1, "false": 0, UNKNOWN_NAME: UNKNOWN}
WORDS = {value: word for word, value in VALUES.items()}
_OLD_FORM = "a table of the older form, conversation,relation; blood,unequal is now true,false in columns of their own"


@dataclasses.dataclass(frozen=True)
class RelationLabel:
  """What one annotator says of one conversation.

  Attributes:
    conversation: its name, without the speaker.
    relation: [blood, equal] as 0, 1 or -1, unknown.
    annotator: who says so; "" where there is but one.
    confidence: how sure they are, 0 to 1; None where they have not said.
  """

  conversation: str
  relation: Int[np.ndarray, "2"]
  annotator: str = ""
  confidence: float | None = None


@dataclasses.dataclass(frozen=True)
class Disagreement:
  """An axis of a conversation of which some annotators say true and others false.

  Attributes:
    conversation, axis: where; the axis is one of `AXES`.
    yes, no: how many say so.
    value: what is made of it: 1 or 0, or -1 where as many say yes as no.
  """

  conversation: str
  axis: str
  yes: int
  no: int
  value: int


def read_labels(path: str | os.PathLike, conversations: set[str] | None = None) -> list[RelationLabel]:
  """Reads a relations table, line by line.

  Args:
    path: the table.
    conversations: names that may occur; None allows any.

  Raises:
    InputError: names file and line of other columns, a value that is none, a confidence outside 0 to 1, a conversation that
      does not exist, or one that the same annotator has labelled twice.
  """
  path = pathlib.Path(path)
  labels, lines = [], {}
  for row in read_table(path, COLUMNS[:3], COLUMNS[3:], hints={"relation": _OLD_FORM}):
    name, annotator = row["conversation"], row["annotator"]
    if not name or (conversations is not None and name not in conversations):
      raise InputError(row.place, "conversation", f"{name!r}", f"a conversation that has files under {path.parent}")
    if (name, annotator) in lines:
      who = f"by {annotator}" if annotator else "without an annotator's name"
      expected = f"one line a conversation and annotator, as {lines[name, annotator]}"
      raise InputError(row.place, "conversation", f"{name!r} a second time {who}", expected)
    lines[name, annotator] = row.place
    relation = np.array([_parse_value(row.place, axis, row[axis]) for axis in AXES], np.int32)
    labels.append(RelationLabel(name, relation, annotator, _parse_confidence(row.place, row["confidence"])))
  return labels


def _parse_value(place: str, axis: str, text: str) -> int:
  if text.lower() not in VALUES:  # Spreadsheets write TRUE and FALSE.
    raise InputError(place, axis, f"{text!r}", " | ".join(VALUES))
  return VALUES[text.lower()]


def _parse_confidence(place: str, text: str) -> float | None:
  if not text:
    return None
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value <= 1:
    raise InputError(place, "confidence", f"{text!r}", "a number from 0 to 1, with a decimal point, or nothing")
  return value


def merge_labels(labels: Iterable[RelationLabel]) -> tuple[dict[str, Int[np.ndarray, "2"]], list[Disagreement]]:
  """One relation for each conversation, of all that annotators say of it.

  Axis by axis, who says unknown abstains, and of the others the majority holds; where as many say true as false, and so
  wherever two contradict each other, the axis is unknown. Confidences are no weights: how sure people call themselves differs
  more between people than between conversations, and an unsure label is better unknown than wrong, which would teach the
  other relation's behaviour.

  Returns:
    The relations, and all axes on which somebody contradicts somebody.
  """
  votes: dict[str, list[Int[np.ndarray, "2"]]] = collections.defaultdict(list)
  for label in labels:
    votes[label.conversation].append(label.relation)
  relations, disagreements = {}, []
  for name, given in votes.items():
    yes, no = ((np.stack(given) == value).sum(axis=0) for value in (1, 0))
    relations[name] = np.where(yes > no, 1, np.where(no > yes, 0, UNKNOWN)).astype(np.int32)
    disagreements += [
        Disagreement(name, axis, int(yes[i]), int(no[i]), int(relations[name][i])) for i, axis in enumerate(AXES) if yes[i] and no[i]
    ]
  return relations, disagreements


def read_relations(path: str | os.PathLike, conversations: set[str] | None = None) -> dict[str, Int[np.ndarray, "2"]]:
  """Reads a relations table and merges what annotators say (`merge_labels`).

  Args, Raises: see `read_labels`.
  """
  return merge_labels(read_labels(path, conversations))[0]


def write_relations(path: str | os.PathLike, rows: Sequence[RelationLabel]) -> None:
  """Writes a relations table with all columns, whole or not at all, in the order of `rows`."""
  keys = [(row.conversation, row.annotator) for row in rows]
  if len(set(keys)) < len(keys):
    raise ValueError(f"{len(keys) - len(set(keys))} labels are an annotator's second of a conversation")
  lines = [
      (row.conversation, *(WORDS[int(value)] for value in row.relation), row.annotator,
       "" if row.confidence is None else repr(float(row.confidence)))
      for row in rows
  ]  # fmt: skip
  write_table(path, COLUMNS, lines)


def describe_disagreements(disagreements: Sequence[Disagreement]) -> str:
  """One line: how many there are on each axis, and what was made of them; "" where there are none."""
  if not disagreements:
    return ""
  parts = []
  for axis in AXES:
    found = [one for one in disagreements if one.axis == axis]
    settled = sum(one.value != UNKNOWN for one in found)
    parts.append(f"{axis} {len(found)} ({settled} by majority, {len(found) - settled} now unknown)")
  return f"annotators contradict each other: {', '.join(parts)}"
