"""The people table: as written by hand, back and forth, and one line for every mistake."""

import pytest

from rsatalker_jax.data.people import Speakers, read_people, write_people
from rsatalker_jax.errors import InputError


def test_columns_and_round_trip(tmp_path):
  path = tmp_path / "people.csv"
  path.write_text("source,speaker2,conversation,speaker1\nV0,ben,a,ann\n,,b,ben\n,,c,\n")
  people = read_people(path, {"a", "b", "c"})
  assert people == {"a": Speakers("ann", "ben", "V0"), "b": Speakers("ben", "", ""), "c": Speakers("", "", "")}
  assert people["a"].names == {"ann", "ben"} and people["b"].names == {"ben"}
  write_people(path, people)
  assert path.read_text() == "conversation,speaker1,speaker2,source\na,ann,ben,V0\nb,ben,,\nc,,,\n" and read_people(path) == people
  write_people(path, {"b": Speakers("b, c", "d")})
  assert path.read_text() == 'conversation,speaker1,speaker2\nb,"b, c",d\n'


@pytest.mark.parametrize(
    "text, message",
    [
        ("conversation,speaker1\na,b\n", r":1: columns: found conversation,speaker1, expected conversation,speaker1,speaker2\[,source\]"),
        ("conversation,speaker1,speaker2\nc,x,y\n", ":2: conversation: found 'c', expected a conversation that has files under"),
        ("conversation,speaker1,speaker2\na,x,y\na,x,y\n", ":3: conversation: found 'a' a second time"),
        ("conversation,speaker1,speaker2\na,x,x\n", ":2: speaker2: found x, who is speaker1 too, expected two people"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, message):
  path = tmp_path / "people.csv"
  path.write_text(text)
  with pytest.raises(InputError, match=message):
    read_people(path, {"a"})
