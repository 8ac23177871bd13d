"""Where the answers are kept: one SQLite file, which belongs to one study.

A call that stores something returns when it is on the disk (write-ahead log, synchronous=FULL): whatever ends the process
after that, nothing that was acknowledged is lost. Several processes may use the file at the same time.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

from rsatalker_jax.errors import InputError
from rsatalker_jax.study import criteria, design
from rsatalker_jax.study.materials import Materials
from rsatalker_jax.web import Refused

FILE = "study.sqlite"
LONGEST_COMMENT = 2000
_APPLICATION = 0x52535453  # "RSTS": whose file it is, in SQLite's header.
_SCHEMA_VERSION = 1
_SCORES = ", ".join(
    f"{key} INTEGER NOT NULL CHECK ({key} BETWEEN {criteria.LEAST} AND {criteria.MOST})" for key in criteria.KEYS
)
_SCHEMA = f"""
CREATE TABLE study (identity TEXT NOT NULL, title TEXT NOT NULL, secret BLOB NOT NULL) STRICT;
CREATE TABLE participants (number INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, consented_at TEXT) STRICT;
CREATE TABLE trials (
  participant INTEGER NOT NULL REFERENCES participants, position INTEGER NOT NULL,
  conversation TEXT NOT NULL, method TEXT NOT NULL,
  PRIMARY KEY (participant, position), UNIQUE (participant, conversation, method)
) STRICT;
CREATE TABLE answers (
  participant INTEGER NOT NULL, position INTEGER NOT NULL, client TEXT NOT NULL,
  {_SCORES}, comment TEXT NOT NULL, answered_at TEXT NOT NULL,
  PRIMARY KEY (participant, position), FOREIGN KEY (participant, position) REFERENCES trials
) STRICT;
"""


@dataclasses.dataclass(frozen=True)
class Trial:
  """One video for one participant.

  Attributes:
    position: its place in the participant's order, from 0.
    conversation, method: which video.
  """

  position: int
  conversation: str
  method: str


@dataclasses.dataclass(frozen=True)
class Participant:
  """Attributes:
    number: from 1.
    token: of the personal link.
    has_consented: whether the first page was agreed to.
    trials: in order.
    answered: how many of them have an answer; the next is `trials[answered]`.
  """

  number: int
  token: str
  has_consented: bool
  trials: tuple[Trial, ...]
  answered: int


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a page sends.

  Attributes:
    client: chosen by the page for this answer, so that an answer that is sent again is known to be the same.
    scores: by criterion, from 0 to 100.
    comment: may be empty.
  """

  client: str
  scores: Mapping[str, int]
  comment: str

  @classmethod
  def parse(cls, data: Any) -> "Answer":
    """Checks what came over the network.

    Raises:
      InputError: it is not {"client": ..., "scores": {all nine, 0 to 100}, "comment": ...}.
    """
    _check_object("answer", data, ("client", "scores", "comment"))
    _check_object("answer: scores", data["scores"], criteria.KEYS)
    for key, score in data["scores"].items():
      if type(score) is not int or not criteria.LEAST <= score <= criteria.MOST:
        raise InputError("answer", f"scores.{key}", repr(score), f"a whole number from {criteria.LEAST} to {criteria.MOST}")
    for key, least, most in (("client", 8, 64), ("comment", 0, LONGEST_COMMENT)):
      text = data[key]
      if not isinstance(text, str) or not least <= len(text) <= most:
        found = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
        raise InputError("answer", key, found, f"text of {least} to {most} characters")
      if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("answer", key, "a zero or half a character", "text")
    return cls(data["client"], {key: data["scores"][key] for key in criteria.KEYS}, data["comment"])


def _check_object(where: str, data: Any, keys: tuple[str, ...]) -> None:
  if not isinstance(data, dict):
    raise InputError(where, "", type(data).__name__, "an object")
  if difference := sorted(set(keys) ^ data.keys()):
    raise InputError(where, difference[0], "an unknown key" if difference[0] in data else "no such key", ", ".join(keys))


class Store:
  """The database of a study. For one thread at a time.

  Raises:
    InputError: from all methods, where the disk is full or the file may not be written.
  """

  def __init__(self, path: pathlib.Path, connection: sqlite3.Connection):
    self._path, self._connection = path, connection
    row = connection.execute("SELECT identity, title, secret FROM study").fetchone()
    self._identity: str = row[0]
    self.title: str = row[1]
    self.secret: bytes = row[2]

  @property
  def identity(self) -> dict[str, Any]:
    """`Materials.identity` of the study that the file belongs to."""
    return json.loads(self._identity)

  @property
  def methods(self) -> list[str]:
    return self.identity["methods"]

  @property
  def conversations(self) -> list[str]:
    return sorted(self.identity["conversations"])

  def close(self) -> None:
    self._connection.close()

  @contextlib.contextmanager
  def _transaction(self) -> Iterator[sqlite3.Connection]:
    """Everything or nothing, and durable when it ends."""
    try:
      self._connection.execute("BEGIN IMMEDIATE")
      try:
        yield self._connection
        self._connection.execute("COMMIT")
      except BaseException:
        if self._connection.in_transaction:
          self._connection.execute("ROLLBACK")
        raise
    except sqlite3.Error as error:
      raise InputError(self._path, "", error, "a database that can be written") from error

  def add_participants(self, count: int) -> None:
    """Makes sure that there are participants 1 to `count`, each with a link and an order of their own.

    Raises:
      InputError: there are more already.
    """
    with self._transaction() as connection:
      there = {number for (number,) in connection.execute("SELECT number FROM participants")}
      if there and max(there) > count:
        raise InputError("--links", "", count, f"{max(there)} or more, as there are participants; --forget removes one")
      for number in sorted(set(range(1, count + 1)) - there):
        connection.execute("INSERT INTO participants VALUES (?, ?, NULL)", (number, secrets.token_urlsafe(16)))
        trials = design.order_trials(number - 1, self.conversations, self.methods)
        rows = [(number, position, *trial) for position, trial in enumerate(trials)]
        connection.executemany("INSERT INTO trials VALUES (?, ?, ?, ?)", rows)

  def tokens(self) -> dict[int, str]:
    """By the participant's number."""
    return dict(self._connection.execute("SELECT number, token FROM participants ORDER BY number"))

  def participant(self, token: str) -> Participant | None:
    """Whose link it is; None if nobody's."""
    row = self._connection.execute("SELECT number, consented_at FROM participants WHERE token = ?", (token,)).fetchone()
    if row is None:
      return None
    number, consented_at = row
    query = "SELECT position, conversation, method FROM trials WHERE participant = ? ORDER BY position"
    trials = tuple(Trial(*row) for row in self._connection.execute(query, (number,)))
    (answered,) = self._connection.execute("SELECT count(*) FROM answers WHERE participant = ?", (number,)).fetchone()
    return Participant(number, token, consented_at is not None, trials, answered)

  def record_consent(self, number: int) -> None:
    with self._transaction() as connection:
      query = "UPDATE participants SET consented_at = ? WHERE number = ? AND consented_at IS NULL"
      connection.execute(query, (_now(), number))

  def record_answer(self, number: int, position: int, answer: Answer) -> None:
    """Stores an answer. The same answer again is no mistake and changes nothing.

    Raises:
      Refused: consent was not given; the trial has another answer; or those before it have none, or there is no such.
    """
    with self._transaction() as connection:
      who = f"participant {number}"
      row = connection.execute("SELECT consented_at FROM participants WHERE number = ?", (number,)).fetchone()
      if row is None or row[0] is None:
        raise Refused(who, "consent", "none", "consent, before the first answer")
      columns = f"client, {', '.join(criteria.KEYS)}, comment"
      values = (answer.client, *(answer.scores[key] for key in criteria.KEYS), answer.comment)
      place = (number, position)
      stored = connection.execute(f"SELECT {columns} FROM answers WHERE participant = ? AND position = ?", place).fetchone()
      if stored is not None:
        if stored != values:
          raise Refused(who, f"video {position + 1}", "an answer already", "one answer to each video; the first is kept")
        return
      (answered,) = connection.execute("SELECT count(*) FROM answers WHERE participant = ?", (number,)).fetchone()
      (trials,) = connection.execute("SELECT count(*) FROM trials WHERE participant = ?", (number,)).fetchone()
      if position != answered or position >= trials:
        expected = f"video {answered + 1}, which is next" if answered < trials else "no more: all have answers"
        raise Refused(who, "", f"an answer to video {position + 1}", expected)
      marks = ", ".join("?" * (len(values) + 3))
      connection.execute(
          f"INSERT INTO answers (participant, position, {columns}, answered_at) VALUES ({marks})", (*place, *values, _now())
      )

  def forget(self, number: int) -> int:
    """Removes all that a participant has left, also from the file's free space. The number's link ends to work.

    Returns:
      How many answers there were.

    Raises:
      InputError: there is no such participant.
    """
    with self._transaction() as connection:
      if connection.execute("SELECT 1 FROM participants WHERE number = ?", (number,)).fetchone() is None:
        raise InputError("--forget", "", number, f"a participant of {self._path}")
      count = connection.execute("DELETE FROM answers WHERE participant = ?", (number,)).rowcount
      connection.execute("DELETE FROM trials WHERE participant = ?", (number,))
      connection.execute("DELETE FROM participants WHERE number = ?", (number,))
    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # The log has the old pages.
    return count

  def answers(self) -> list[dict[str, Any]]:
    """All answers, by participant and in their order: participant, position, conversation, method, the nine scores by
    key, comment, answered_at (UTC)."""
    columns = ["participant", "position", "conversation", "method", *criteria.KEYS, "comment", "answered_at"]
    query = f"SELECT {', '.join(columns)} FROM answers JOIN trials USING (participant, position) ORDER BY 1, 2"
    return [dict(zip(columns, row, strict=True)) for row in self._connection.execute(query)]

  def progress(self) -> dict[str, int]:
    """Counts: participants, those who consented, answers, and answers wanted."""
    count = lambda query: self._connection.execute(f"SELECT count(*) FROM {query}").fetchone()[0]
    return {
        "participants": count("participants"),
        "consented": count("participants WHERE consented_at IS NOT NULL"),
        "answers": count("answers"),
        "trials": count("trials"),
    }


def open_store(folder: str | os.PathLike, materials: Materials | None = None) -> Store:
  """Opens the database of a study.

  Args:
    folder: where it is.
    materials: the study; the database is made if there is none. Without it, there must be one.

  Raises:
    InputError: it is no such database, of another version, or belongs to another study.
  """
  path = pathlib.Path(folder) / FILE
  if materials is None:
    if not path.is_file():
      raise InputError(path, "", "no such file", "a study that --videos and --links have begun")
  else:
    try:
      path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
      # Links and comments are nobody else's.
      os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
      raise InputError(path, "", error.strerror or error, "a database that can be written") from None
  connection = None
  try:
    # Threads take turns (server.py): there is one that writes and reads.
    connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    _prepare(path, connection, materials)
    store = Store(path, connection)
    if materials is not None:
      _check_identity(path, store, materials)
    return store
  except BaseException as error:
    if connection is not None:
      connection.close()
    if isinstance(error, sqlite3.Error):
      raise InputError(path, "", error, "the database of a study") from None
    raise


def _prepare(path: pathlib.Path, connection: sqlite3.Connection, materials: Materials | None) -> None:
  application, version = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
  is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
  if not (is_empty and application == 0) and (application, version) != (_APPLICATION, _SCHEMA_VERSION):
    found = f"a study's database of version {version}" if application == _APPLICATION else "another program's database"
    raise InputError(path, "", found, f"a study's database of version {_SCHEMA_VERSION}")
  (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
  if mode != "wal":
    raise InputError(path, "", f"a disk on which SQLite can only keep a journal of mode {mode}", "a local disk")
  for name, value in (("synchronous", "FULL"), ("foreign_keys", "ON"), ("secure_delete", "ON")):
    connection.execute(f"PRAGMA {name} = {value}")
  connection.execute("BEGIN IMMEDIATE")
  if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
    if materials is None:
      raise InputError(path, "", "an empty file", "a study that --videos and --links have begun")
    for statement in _SCHEMA.split(";\n"):
      connection.execute(statement)
    row = (_canonical(materials.identity()), materials.title, secrets.token_bytes(32))
    connection.execute("INSERT INTO study VALUES (?, ?, ?)", row)
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
  connection.execute("COMMIT")


def _check_identity(path: pathlib.Path, store: Store, materials: Materials) -> None:
  identity = materials.identity()
  if store._identity == _canonical(identity):
    return
  difference = _first_difference(store.identity, identity)
  expected = f"{_name(identity)}, as {materials.folder} has; they differ in {difference}"
  raise InputError(path, "", _name(store.identity), expected)


def fingerprint(identity: Mapping[str, Any]) -> str:
  """Eight digits that another study does not have."""
  return hashlib.sha256(_canonical(identity).encode()).hexdigest()[:8]


def _name(identity: Mapping[str, Any]) -> str:
  return f"study {fingerprint(identity)} ({len(identity['conversations'])} conversations of {', '.join(identity['methods'])})"


def _first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
  if old["methods"] != new["methods"]:
    return "methods"
  if old["criteria"] != new["criteria"]:
    return "what is asked"
  names = old["conversations"].keys() | new["conversations"].keys()
  name = min(name for name in names if old["conversations"].get(name) != new["conversations"].get(name))
  was, now = (x["conversations"].get(name) for x in (old, new))
  if was is None or now is None:
    return f"the conversation {name}"
  if was["videos"] != now["videos"]:
    changed = min(method for method in new["methods"] if was["videos"][method] != now["videos"][method])
    return f"the video {name}/{changed}.mp4"
  return f"what is said of {name}"


def _canonical(identity: Mapping[str, Any]) -> str:
  return json.dumps(identity, sort_keys=True, ensure_ascii=False)


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
