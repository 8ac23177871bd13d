"""The database: what is stored is whole, durable, of one study, and no more than was promised."""

import dataclasses
import sqlite3
import stat

import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.study import criteria, design, store
from rsatalker_jax.study.store import Answer, Refused
from study.world import CONVERSATIONS, METHODS


@pytest.fixture
def answer(scores):
  return Answer("client-1", scores, "fine")


def first(opened, number=1):
  return opened.participant(opened.tokens()[number])


def test_participants_have_links_and_orders_of_their_own(answers_store):
  tokens = answers_store.tokens()
  assert list(tokens) == [1, 2, 3] and len(set(tokens.values())) == 3 and min(map(len, tokens.values())) >= 22
  for number, token in tokens.items():
    participant = answers_store.participant(token)
    trials = [(trial.conversation, trial.method) for trial in participant.trials]
    assert trials == design.order_trials(number - 1, CONVERSATIONS, METHODS)
    assert [trial.position for trial in participant.trials] == list(range(6))
    assert (participant.number, participant.has_consented, participant.answered) == (number, False, 0)
  assert answers_store.participant("nobody") is None and answers_store.participant("") is None


def test_more_participants_leave_the_first_as_they_are(answers_store):
  before = answers_store.tokens()
  answers_store.add_participants(3)
  assert answers_store.tokens() == before
  answers_store.add_participants(5)
  assert list(answers_store.tokens()) == [1, 2, 3, 4, 5] and answers_store.tokens().items() >= before.items()
  with pytest.raises(InputError, match="--links: found 4, expected 5 or more"):
    answers_store.add_participants(4)


def test_answers_come_in_order_after_consent(answers_store, answer):
  with pytest.raises(Refused, match="participant 1: consent: found none"):
    answers_store.record_answer(1, 0, answer)
  answers_store.record_consent(1)
  with pytest.raises(Refused, match="found an answer to video 2, expected video 1, which is next"):
    answers_store.record_answer(1, 1, answer)
  for position in range(6):
    answers_store.record_answer(1, position, answer)
  with pytest.raises(Refused, match="found an answer to video 7, expected no more"):
    answers_store.record_answer(1, 6, answer)
  with pytest.raises(Refused):
    answers_store.record_answer(9, 0, answer)
  assert first(answers_store).answered == 6 and first(answers_store, 2).answered == 0


def test_the_same_again_changes_nothing_and_another_is_refused(answers_store, answer):
  answers_store.record_consent(1)
  answers_store.record_answer(1, 0, answer)
  stored = answers_store.answers()
  answers_store.record_answer(1, 0, answer)
  others = [
      dataclasses.replace(answer, client="client-2"),
      dataclasses.replace(answer, comment="better"),
      *(dataclasses.replace(answer, scores=answer.scores | {key: 99}) for key in criteria.KEYS),
  ]
  for other in others:
    with pytest.raises(Refused, match="video 1: found an answer already"):
      answers_store.record_answer(1, 0, other)
  assert answers_store.answers() == stored and len(stored) == 1
  trial = first(answers_store).trials[0]
  expected = {"participant": 1, "position": 0, "conversation": trial.conversation, "method": trial.method, "comment": "fine"}
  assert {key: value for key, value in stored[0].items() if key != "answered_at"} == expected | answer.scores


def test_consent_is_given_once(answers_store, monkeypatch):
  assert not first(answers_store).has_consented
  for time in ("first", "second"):
    monkeypatch.setattr(store, "_now", lambda time=time: time)
    answers_store.record_consent(1)
  row = answers_store._connection.execute("SELECT consented_at FROM participants WHERE number = 1").fetchone()
  assert row == ("first",)
  assert first(answers_store).has_consented and not first(answers_store, 2).has_consented
  assert answers_store.progress() == {"participants": 3, "consented": 1, "answers": 0, "trials": 18}


def test_what_is_acknowledged_is_on_the_disk(answers_store, answer, tmp_path):
  """Another connection sees it; the log is flushed at each commit."""
  answers_store.record_consent(1)
  answers_store.record_answer(1, 0, answer)
  path = tmp_path / "study" / store.FILE
  with sqlite3.connect(path) as other:
    assert other.execute("SELECT client, comment FROM answers").fetchall() == [("client-1", "fine")]
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
  pragma = lambda name: answers_store._connection.execute(f"PRAGMA {name}").fetchone()[0]
  assert pragma("synchronous") == 2  # FULL.
  assert pragma("foreign_keys") == 1


def test_the_file_is_its_owners_and_holds_what_was_promised(answers_store, tmp_path):
  path = tmp_path / "study" / store.FILE
  assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
  with sqlite3.connect(path) as other:
    tables = other.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert {name for (name,) in tables} == {"study", "participants", "trials", "answers"}
    columns = {row[1] for row in other.execute("PRAGMA table_info(answers)")}
  assert columns == {"participant", "position", "client", *criteria.KEYS, "comment", "answered_at"}


def test_the_database_itself_refuses_what_is_out_of_range(answers_store, answer):
  answers_store.record_consent(1)
  for score in (-1, 101, "high"):
    with pytest.raises(InputError, match="a database that can be written"):
      answers_store.record_answer(1, 0, dataclasses.replace(answer, scores=answer.scores | {"lip_sync": score}))
  assert answers_store.answers() == []


def test_a_full_disk_is_one_line_and_stores_nothing(answers_store, answer):
  answers_store.record_consent(1)
  answers_store._connection.execute("PRAGMA max_page_count = 1")
  long = dataclasses.replace(answer, comment="x" * 2000)
  filled = 0
  with pytest.raises(InputError, match="study.sqlite: found database or disk is full"):
    for position in range(6):
      answers_store.record_answer(1, position, long)
      filled += 1
  answers_store._connection.execute("PRAGMA max_page_count = 100000")
  assert len(answers_store.answers()) == filled < 6
  answers_store.record_answer(1, filled, long)


def test_who_is_forgotten_leaves_nothing(answers_store, answer, tmp_path):
  answers_store.record_consent(1)
  answers_store.record_consent(2)
  secret = dataclasses.replace(answer, comment="a very private comment")
  answers_store.record_answer(1, 0, secret)
  answers_store.record_answer(2, 0, answer)
  token = answers_store.tokens()[1]
  assert answers_store.forget(1) == 1
  assert answers_store.participant(token) is None and [row["participant"] for row in answers_store.answers()] == [2]
  for path in (tmp_path / "study").iterdir():
    content = path.read_bytes()
    assert b"a very private comment" not in content and token.encode() not in content
  with pytest.raises(InputError, match="--forget: found 1, expected a participant"):
    answers_store.forget(1)
  answers_store.add_participants(3)  # Somebody else takes the place, and with it the order that balances.
  again = first(answers_store)
  assert again.token != token and not again.has_consented and again.answered == 0 and len(again.trials) == 6


def test_a_database_is_opened_again(answers_store, materials, tmp_path):
  for given in (None, materials):
    other = store.open_store(tmp_path / "study", given)
    assert other.tokens() == answers_store.tokens() and other.secret == answers_store.secret
    assert (other.methods, other.conversations, other.title) == (list(METHODS), list(CONVERSATIONS), "Faces")
    other.close()


def changed(materials, what):
  office = materials.conversations["office"]
  video = office.videos["ours"]
  edits = {
      "methods": {"methods": ("dualtalk", "ours")},
      "the video office/ours.mp4": {"videos": {**office.videos, "ours": dataclasses.replace(video, sha256="0" * 64)}},
      "what is said of office": {"role": "A listens."},
      "the conversation office": None,
  }
  edit = edits[what]
  if what == "methods":
    return dataclasses.replace(materials, **edit)
  conversations = dict(materials.conversations)
  if edit is None:
    del conversations["office"]
  else:
    conversations["office"] = dataclasses.replace(office, **edit)
  return dataclasses.replace(materials, conversations=conversations)


@pytest.mark.parametrize(
    "what", ["methods", "the video office/ours.mp4", "what is said of office", "the conversation office", "what is asked"]
)
def test_another_studys_database_is_refused_in_a_line_that_names_both(answers_store, materials, tmp_path, what, monkeypatch):
  own = store.fingerprint(materials.identity())
  if what == "what is asked":
    monkeypatch.setattr(criteria, "VERSION", "another")
    other = materials
  else:
    other = changed(materials, what)
  with pytest.raises(InputError) as caught:
    store.open_store(tmp_path / "study", other)
  line = str(caught.value)
  assert f"study.sqlite: found study {own} (2 conversations of dualtalk, ours, truth), expected study " in line
  assert store.fingerprint(other.identity()) in line and store.fingerprint(other.identity()) != own
  assert str(materials.folder) in line and line.endswith(f"they differ in {what}")


def test_titles_and_consent_may_change(answers_store, materials, tmp_path):
  store.open_store(tmp_path / "study", dataclasses.replace(materials, title="New", consent=("Hello.",))).close()


def test_what_is_no_database_of_a_study(tmp_path, materials):
  with pytest.raises(InputError, match="study.sqlite: found no such file"):
    store.open_store(tmp_path)
  path = tmp_path / store.FILE
  path.write_bytes(b"")
  with pytest.raises(InputError, match="found an empty file"):
    store.open_store(tmp_path)
  path.write_text("no database " * 100)
  with pytest.raises(InputError, match="file is not a database, expected the database of a study"):
    store.open_store(tmp_path, materials)
  path.unlink()
  with sqlite3.connect(path) as other:
    other.execute("CREATE TABLE study (identity)")
  with pytest.raises(InputError, match="found another program's database"):
    store.open_store(tmp_path, materials)
  with sqlite3.connect(path) as other:
    other.execute(f"PRAGMA application_id = {store._APPLICATION}")
    other.execute("PRAGMA user_version = 7")
  with pytest.raises(InputError, match="found a study's database of version 7, expected .* version 1"):
    store.open_store(tmp_path, materials)


def test_a_folder_that_cannot_be_made(tmp_path, materials):
  (tmp_path / "file").write_text("x")
  with pytest.raises(InputError, match="file/study.sqlite"):
    store.open_store(tmp_path / "file", materials)


def test_a_begun_file_that_never_got_its_tables_is_begun_again(tmp_path, materials):
  (tmp_path / store.FILE).write_bytes(b"")
  opened = store.open_store(tmp_path, materials)
  opened.add_participants(1)
  assert list(opened.tokens()) == [1]
  opened.close()


@pytest.mark.parametrize(
    "edit, message",
    [
        ({"comment": None}, "answer: comment: found NoneType"),
        ({"comment": "x" * 2001}, "comment: found 2001 characters"),
        ({"comment": "a\0b"}, "comment: found a zero"),
        ({"comment": "\ud83d"}, "comment: found a zero or half"),
        ({"client": "short"}, "client: found 5 characters"),
        ({"client": "x" * 65}, "client: found 65 characters"),
        ({"client": 12345678}, "client: found int"),
        ({"extra": 1}, "answer: extra: found an unknown key"),
        ({"scores": []}, "answer: scores: found list"),
        ({"scores": {}}, "answer: scores: emotional_tone: found no such key"),
    ],
)
def test_answers_of_another_form_are_refused(scores, edit, message):
  with pytest.raises(InputError, match=message):
    Answer.parse({"client": "client-1", "scores": scores, "comment": ""} | edit)


@pytest.mark.parametrize("score", [-1, 101, 50.0, "50", True, None, [50], float("nan"), 10**30])
@pytest.mark.parametrize("key", [criteria.KEYS[0], criteria.KEYS[-1]])
def test_scores_are_whole_numbers_from_0_to_100(scores, key, score):
  with pytest.raises(InputError, match=f"answer: scores.{key}: found .* expected a whole number from 0 to 100"):
    Answer.parse({"client": "client-1", "scores": scores | {key: score}, "comment": ""})


def test_an_answer_is_read_as_it_is(scores):
  backwards = dict(reversed((scores | {criteria.KEYS[0]: 0, criteria.KEYS[8]: 100}).items()))
  answer = Answer.parse({"client": "client-1", "scores": backwards, "comment": "ä 😀\n"})
  assert answer.scores == backwards and tuple(answer.scores) == criteria.KEYS and answer.comment == "ä 😀\n"
