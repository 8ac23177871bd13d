"""Names of relations."""

import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.social import RELATIONS, format_relation, parse_relation


def test_round_trip():
  assert len(set(RELATIONS)) == 4
  for name in RELATIONS:
    assert format_relation(parse_relation(name)) == name


def test_meaning():
  assert parse_relation("blood,equal").tolist() == [1, 1]
  assert parse_relation("non_blood, unequal").tolist() == [0, 0]
  assert parse_relation("non_blood,equal").tolist() == [0, 1]


def test_unknown_axes():
  for name, value in (("unknown", [-1, -1]), ("blood,unknown", [1, -1]), ("unknown,unequal", [-1, 0])):
    assert parse_relation(name).tolist() == value and format_relation(parse_relation(name)) == name
  assert format_relation(parse_relation("unknown, unknown")) == "unknown"


@pytest.mark.parametrize("text", ["", "blood", "friends", "equal,blood", "blood,equal,old", "Blood,Equal", "unknown,unknown,unknown"])
def test_unknown_relation(text):
  with pytest.raises(InputError) as error:
    parse_relation(text, source="labels.csv:7")
  message = str(error.value)
  assert "labels.csv:7" in message and repr(text) in message and "non_blood,unequal | unknown" in message and "\n" not in message
