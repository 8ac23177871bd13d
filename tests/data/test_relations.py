"""The relations table: read as written by hand, merged by hand-counted votes, and one line for every mistake."""

import numpy as np
import pytest

from rsatalker_jax.data.relations import (
    RelationLabel, describe_disagreements, merge_labels, read_labels, read_relations, write_relations,
)
from rsatalker_jax.errors import InputError

HEADER = "conversation,blood,equal,annotator,confidence\n"


def write(tmp_path, text):
  path = tmp_path / "relations.csv"
  path.write_text(text)
  return path


def test_columns_and_values(tmp_path):
  path = write(tmp_path, HEADER + "a,true,false,ann,0.25\n\n,,,,\nb,FALSE, unknown ,,\nc,unknown,true\n")
  labels = read_labels(path)
  assert [(l.conversation, l.relation.tolist(), l.annotator, l.confidence) for l in labels] == [
      ("a", [1, 0], "ann", 0.25), ("b", [0, -1], "", None), ("c", [-1, 1], "", None)]  # fmt: skip
  assert labels[0].relation.dtype == np.int32
  path = write(tmp_path, "\nequal,conversation,blood\ntrue,a,false\n")
  assert read_relations(path)["a"].tolist() == [0, 1]


def test_round_trip(tmp_path):
  rows = [
      RelationLabel("ä, b", np.array([1, -1]), "ann", 0.1), RelationLabel("ä, b", np.array([0, 1]), "ben", 1 / 3),
      RelationLabel("c", np.array([-1, 0])),
  ]  # fmt: skip
  path = tmp_path / "deep" / "relations.csv"
  write_relations(path, rows)
  lines = ['"ä, b",true,unknown,ann,0.1', '"ä, b",false,true,ben,0.3333333333333333', "c,unknown,false,,"]
  assert path.read_bytes().decode("utf-8") == HEADER + "".join(line + "\n" for line in lines)
  again = read_labels(path)
  assert [(l.conversation, l.relation.tolist(), l.annotator, l.confidence) for l in again] == [
      (l.conversation, l.relation.tolist(), l.annotator, l.confidence) for l in rows]  # fmt: skip
  with pytest.raises(ValueError, match="1 labels"):
    write_relations(path, rows + rows[:1])
  assert len(read_labels(path)) == 3


def label(name, blood, equal, annotator):
  return RelationLabel(name, np.array([blood, equal], np.int32), annotator)


def test_majorities_hold_ties_and_contradictions_of_two_are_unknown():
  labels = [
      label("two", 1, 0, "ann"), label("two", 0, 0, "ben"),
      label("abstains", 1, -1, "ann"), label("abstains", -1, -1, "ben"),
      label("three", 0, 1, "ann"), label("three", 0, 0, "ben"), label("three", 1, 1, "cy"),
      label("four", 1, -1, "ann"), label("four", 0, 1, "ben"), label("four", 1, -1, "cy"), label("four", 0, 1, "di"),
      label("alone", -1, 0, "cy"),
  ]  # fmt: skip
  relations, disagreements = merge_labels(labels)
  assert {name: relation.tolist() for name, relation in relations.items()} == {
      "two": [-1, 0], "abstains": [1, -1], "three": [0, 1], "four": [-1, 1], "alone": [-1, 0]}  # fmt: skip
  assert [(d.conversation, d.axis, d.yes, d.no, d.value) for d in disagreements] == [
      ("two", "blood", 1, 1, -1), ("three", "blood", 1, 2, 0), ("three", "equal", 2, 1, 1), ("four", "blood", 2, 2, -1)]  # fmt: skip
  assert describe_disagreements(disagreements) == (
      "annotators contradict each other: blood 3 (1 by majority, 2 now unknown), equal 1 (1 by majority, 0 now unknown)")
  assert describe_disagreements([]) == "" and merge_labels([]) == ({}, [])
  assert all(relation.dtype == np.int32 for relation in relations.values())


@pytest.mark.parametrize(
    "text, parts",
    [
        ('conversation,relation\na,"blood,equal"\n', [":1: columns", "older form", "columns of their own"]),
        ("a,true,false\n", [":1: columns", "found a,true,false", "conversation,blood,equal[,annotator][,confidence]"]),
        ("conversation;blood;equal;annotator;confidence\na;true;false;ann;0,9\n", [":1: columns", "semicolons", "commas"]),
        ("conversation\tblood\tequal\na\ttrue\tfalse\n", [":1: columns", "tabs", "commas"]),
        ("conversation,blood,equal,notes\n", [":1: columns", "notes"]),
        ("conversation,blood,equal,equal\n", [":1: columns", "twice"]),
        ("conversation,blood\n", [":1: columns", "found conversation,blood,"]),
        ("", ["found nothing", "conversation,blood,equal"]),
        (HEADER + "a,true,false,ann,0,9\n", [":2", "6 values", "0,9", "decimals with a point"]),
        (HEADER + 'a,true,false,ann,"0,9"\n', [":2: confidence", "'0,9'", "decimal point"]),
        (HEADER + "a,true,false,ann,1.1\n", [":2: confidence", "'1.1'", "0 to 1"]),
        (HEADER + "a,true,false,ann,-0.1\n", [":2: confidence", "'-0.1'"]),
        (HEADER + "a,true,false,ann,nan\n", [":2: confidence", "'nan'"]),
        (HEADER + "a,true\n", [":2", "2 values"]),
        (HEADER + "a,yes,false,,\n", [":2: blood", "'yes'", "true | false | unknown"]),
        (HEADER + "a,true,,,\n", [":2: equal", "''", "true | false | unknown"]),
        (HEADER + ",true,true,,\n", [":2: conversation", "''"]),
        (HEADER + "zz,true,true,,\n", [":2: conversation", "'zz'", "has files under"]),
        (HEADER + "a,true,true,ann,\na,false,true,ann,\n", [":3: conversation", "'a' a second time by ann", "as ", "relations.csv:2"]),
        (HEADER + "a,true,true\na,true,true\n", [":3: conversation", "'a' a second time without an annotator's name"]),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, parts):
  path = write(tmp_path, text)
  with pytest.raises(InputError) as error:
    read_relations(path, {"a", "b"})
  message = str(error.value)
  assert message.startswith(str(path)) and "\n" not in message
  for part in parts:
    assert part in message, message
