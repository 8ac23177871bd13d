"""Whose captures are: the table, folders where it is silent, and who speaks in a conversation."""

import pytest
from ml_collections import ConfigDict

from rsatalker_jax.data.captured_people import find_captured_people, find_speakers, read_captured_people
from rsatalker_jax.data.people import Speakers
from rsatalker_jax.errors import InputError


def make_data(root, **overrides):
  paths = dict(embedded_root=str(root), conversations="conversations", capture="capture", captures=(), people="captures.csv")
  return ConfigDict(paths | overrides)


def test_the_table_names_people_and_folders_those_that_it_does_not(tmp_path):
  (tmp_path / "captures.csv").write_text("person,capture\nann,films/a\nzoe,films/z\n")
  people = find_captured_people(make_data(tmp_path, captures=("films/b", "films/a")))
  assert people.names == ("b", "ann") and people.folders == (tmp_path / "films/b", tmp_path / "films/a")
  assert people.number("ann") == 1
  with pytest.raises(InputError, match="^--person_a: found zoe, expected one of b, ann$"):
    people.number("zoe", "--person_a")
  # One person, and no table.
  assert find_captured_people(make_data(tmp_path, capture="x/../films/a")).names == ("ann",)
  assert find_captured_people(make_data(tmp_path, people="elsewhere.csv")).names == ("capture",)
  # Folders of one name are told apart by what is before it, as without a table.
  assert find_captured_people(make_data(tmp_path, captures=("x/film", "y/film"))).names == ("x/film", "y/film")


@pytest.mark.parametrize(("text", "message"), [
    ("capture,person\na,ann\n./a,bob\n", "captures.csv:3: capture: found './a' a second time, expected one line a capture"),
    ("capture,person\na,\n", "captures.csv:2: person: found nothing"),
    ("capture\na\n", "captures.csv"),
])
def test_a_damaged_table_is_one_line(tmp_path, text, message):
  (tmp_path / "captures.csv").write_text(text)
  with pytest.raises(InputError, match=message) as error:
    read_captured_people(tmp_path / "captures.csv")
  assert "\n" not in str(error.value)


def test_one_person_in_two_captures_is_one_line(tmp_path):
  (tmp_path / "captures.csv").write_text("capture,person\na,b\n")
  with pytest.raises(InputError, match="captures.csv: person: found b of both .*a and .*b, expected one capture a person"):
    find_captured_people(make_data(tmp_path, captures=("a", "b")))


def test_speakers_are_read_beside_the_conversations(tmp_path):
  assert find_speakers(make_data(tmp_path)) == {}
  (tmp_path / "conversations").mkdir()
  (tmp_path / "conversations" / "people.csv").write_text("conversation,speaker1,speaker2\nc,ann,\n")
  assert find_speakers(make_data(tmp_path)) == {"c": Speakers("ann", "")}
