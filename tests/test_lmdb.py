"""LMDB files: what the library writes is what is read, and no damage does more than end in one line."""

import os
import pathlib
import pickle
import random
import shutil
import struct

import lmdb as library
import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.lmdb import Database

PAGE = 4096


def write(path: pathlib.Path, values: dict[bytes, bytes], remove: tuple[bytes, ...] = (), **options) -> pathlib.Path:
  """One transaction for values and, where there are any, one for what is removed again."""
  with library.open(str(path), map_size=1 << 26, **options) as environment:
    with environment.begin(write=True) as transaction:
      for key, value in values.items():
        transaction.put(key, value)
    if remove:
      with environment.begin(write=True) as transaction:
        for key in remove:
          transaction.delete(key)
  return path


def draw_values(count: int, seed: int = 0) -> dict[bytes, bytes]:
  """Empty, small, of about a page, and of many pages."""
  rng = random.Random(seed)
  keys = {bytes(rng.choices(range(256), k=rng.randint(1, 60))) for _ in range(count)}
  shuffled = rng.sample(sorted(keys), len(keys))  # Sorted first: a set's order is another in each process.
  return {key: rng.randbytes(rng.choice([0, 1, 50, 1900, 2100, 4080, 4096, 30_000])) for key in shuffled}


@pytest.mark.parametrize("count", [0, 1, 3, 40, 3000])
def test_values_are_those_that_the_library_wrote(tmp_path, count):
  values = draw_values(count)
  database = Database(write(tmp_path / "data", values))
  assert len(database) == len(values)
  assert {key: database.read(span) for key, span in database.items()} == values
  assert [key for key, _ in database.items()] == sorted(values)
  for key, value in values.items():
    assert database.read(database.find(key)) == value
  for key in (b"", b"\0", b"\xff" * 61, *(key + b"\0" for key in list(values)[:50]), *(key[:-1] + b"\x7f\x7f" for key in list(values)[:50])):
    assert (database.find(key) is not None) == (key in values)


def test_the_younger_transaction_holds_and_what_was_removed_is_gone(tmp_path):
  values = draw_values(300)
  removed = tuple(values)[:150]
  database = Database(write(tmp_path / "data", values, removed))
  assert {key for key, _ in database.items()} == set(values) - set(removed) and len(database) == len(values) - 150
  assert all(database.find(key) is None for key in removed)
  with library.open(str(tmp_path / "data"), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
    transaction.put(b"one more", b"x")
  assert Database(tmp_path / "data").find(b"one more") is not None  # The other of the two first pages is the younger now.


def test_a_file_without_a_folder(tmp_path):
  path = write(tmp_path / "data.lmdb", {b"a": b"1"}, subdir=False)
  database = Database(path)
  assert database.read(database.find(b"a")) == b"1"


def test_a_value_is_a_file_that_ends_where_it_ends(tmp_path):
  values = {b"a": bytes(range(256)) * 100, b"b": b"other"}
  database = Database(write(tmp_path / "data", values))
  with database.open(database.find(b"a")) as file:
    assert file.read() == values[b"a"] and file.read() == b""
    assert file.seek(-10, os.SEEK_END) == 25590 and file.read(100) == values[b"a"][-10:]
    assert file.seek(300) == 300 and file.seek(-1, os.SEEK_CUR) == 299 and file.read(2) == values[b"a"][299:301]
    with pytest.raises(ValueError):
      file.seek(-1)


def test_another_process_opens_it_again(tmp_path):
  database = pickle.loads(pickle.dumps(Database(write(tmp_path / "data", {b"a": b"1"}))))
  assert database.read(database.find(b"a")) == b"1"


def test_several_values_of_a_key_are_refused(tmp_path):
  with library.open(str(tmp_path / "data"), max_dbs=1) as environment, environment.begin(write=True) as transaction:
    named = environment.open_db(b"named", txn=transaction)
    transaction.put(b"a", b"1", db=named)
  database = Database(tmp_path / "data")
  with pytest.raises(InputError, match="flags 2"):
    database.find(b"named")
  data = bytearray((tmp_path / "data/data.mdb").read_bytes())
  for page in (0, 1):
    data[page * PAGE + 16 + 76] = 4
  (tmp_path / "dup.mdb").write_bytes(data)
  with pytest.raises(InputError, match="a plain database"):
    Database(tmp_path / "dup.mdb")


def test_what_is_no_lmdb_is_one_line(tmp_path):
  (tmp_path / "empty").write_bytes(b"")
  (tmp_path / "zeros").write_bytes(bytes(3 * PAGE))
  (tmp_path / "short").write_bytes(write(tmp_path / "data", {b"a": b"1"}).joinpath("data.mdb").read_bytes()[:100])
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "folder").mkdir()
  for name in ("empty", "zeros", "short", "pipe", "folder", "absent"):
    with pytest.raises(InputError, match=name) as error:
      Database(tmp_path / name)
    assert "LMDB" in str(error.value)


def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes_or_refused(tmp_path):
  values = draw_values(60)
  whole = write(tmp_path / "data", values).joinpath("data.mdb").read_bytes()
  refused = 0
  for size in (*range(0, 3 * PAGE, PAGE // 2), *range(3 * PAGE, len(whole), len(whole) // 40)):
    (tmp_path / "cut").write_bytes(whole[:size])
    try:
      database = Database(tmp_path / "cut")
    except InputError:
      refused += 1
      continue
    for key, value in values.items():
      try:
        span = database.find(key)
      except InputError as error:
        assert "cut off" in str(error) or "damaged" in str(error)
        refused += 1
        continue
      assert database.read(span) == value
  assert refused > 40


def pages_of(data: bytes, kind: int) -> list[int]:
  return [p for p in range(2, len(data) // PAGE) if struct.unpack_from("<H", data, p * PAGE + 10)[0] == kind]


def test_page_numbers_and_sizes_that_lie_are_refused(tmp_path):
  """Each by hand, in the place where the format has it."""
  values = {b"%04d" % i: b"x" * (9000 if i % 50 == 0 else 400) for i in range(200)}
  whole = write(tmp_path / "data", values).joinpath("data.mdb").read_bytes()
  branch, leaf, run = (pages_of(whole, kind)[0] for kind in (1, 2, 4))
  meta = max((0, 1), key=lambda page: struct.unpack_from("<Q", whole, page * PAGE + 16 + 128)[0]) * PAGE + 16
  node = struct.unpack_from("<H", whole, leaf * PAGE + 16)[0] + leaf * PAGE
  root = struct.unpack_from("<Q", whole, meta + 72 + 40)[0]

  def damaged(*changes: tuple[int, bytes]) -> Database:
    data = bytearray(whole)
    for place, value in changes:
      data[place : place + len(value)] = value
    (tmp_path / "x").write_bytes(data)
    return Database(tmp_path / "x")

  number = lambda x: struct.pack("<Q", x)
  assert root == branch
  for place, value, words in [
      (meta + 112, number(1 << 40), "cut off"),  # The root.
      (meta + 112, number(1), "cut off"),  # A root where a first page is.
      (meta + 112, number(run), "a page of kind 4"),
      (meta + 24, struct.pack("<I", 1000), "page size|LMDB"),
      (meta + 78, struct.pack("<H", 33), "depth"),
  ]:
    with pytest.raises(InputError, match=words):
      damaged((place, value), *([(16 + 24, value)] if "page size" in words else []))
  child = branch * PAGE + struct.unpack_from("<H", whole, branch * PAGE + 16)[0]
  for place, value, words in [
      (leaf * PAGE + 12, b"\xff\xff", "bytes of header"),
      (leaf * PAGE + 12, b"\x13\x00", "bytes of header"),
      (leaf * PAGE + 16, b"\xff\xff", "node beyond"),
      (node + 6, b"\xff\xff", "key beyond"),
      (node + 4, b"\x02\x00", "flags 2"),
      (child, b"\xff\xff\xff", "cut off"),
      (child + 4, b"\x01\x00", "page 4294967"),  # The highest of three parts of a page's number.
      (child, struct.pack("<H", branch), "deeper"),
      (leaf * PAGE + 16, whole[leaf * PAGE + 18 : leaf * PAGE + 20] + whole[leaf * PAGE + 16 : leaf * PAGE + 18], "out of order"),
      (leaf * PAGE + 10, b"\x21\x00", "deeper|kind|cut off|out of order"),
      (run * PAGE + 12, struct.pack("<I", 2), "9000 bytes in 2 pages"),
      (run * PAGE + 12, struct.pack("<I", 1 << 31), "9000 bytes in"),
      (run * PAGE + 10, b"\x02\x00", "of kind 2"),
  ]:
    database = damaged((place, value))
    with pytest.raises(InputError, match=words):
      for _, span in database.items():
        database.read(span)
    outcomes = set()
    for key in values:
      try:
        outcomes.add(database.find(key) is not None)
      except InputError as error:
        outcomes.add(str(error).count("\n"))
    assert outcomes <= {True, False}
  big = next(struct.unpack_from("<H", whole, leaf * PAGE + 16 + 2 * i)[0] + leaf * PAGE for i in range(3)
             if whole[struct.unpack_from("<H", whole, leaf * PAGE + 16 + 2 * i)[0] + leaf * PAGE + 4] == 1)
  with pytest.raises(InputError, match=r"a value at page \d+ of"):
    damaged((big + 8 + 4, number(1 << 60))).find(b"0000")
  with pytest.raises(InputError, match="a value beyond its page"):
    small = next(struct.unpack_from("<H", whole, leaf * PAGE + 16 + 2 * i)[0] + leaf * PAGE for i in range(3)
                 if whole[struct.unpack_from("<H", whole, leaf * PAGE + 16 + 2 * i)[0] + leaf * PAGE + 4] == 0)
    list(damaged((small, struct.pack("<HH", 0xFFFF, 0xFF))).items())


def test_no_damage_does_more_than_end_in_a_line(tmp_path):
  whole = write(tmp_path / "data", draw_values(150)).joinpath("data.mdb").read_bytes()
  heads = [page * PAGE for page in range(len(whole) // PAGE) if page < 2 or struct.unpack_from("<H", whole, page * PAGE + 10)[0] in (1, 2)]
  refused = 0
  for seed in range(300):
    rng = random.Random(seed)
    data = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
      place = rng.choice(heads) + rng.randrange(60 if rng.random() < 0.7 else PAGE)
      data[place : place + 2] = rng.choice([rng.randbytes(2), b"\xff\xff", b"\0\0", rng.randrange(200).to_bytes(2, "little")])
    (tmp_path / "x").write_bytes(data)
    try:
      database = Database(tmp_path / "x")
      total = sum(len(database.read(span)) for _, span in database.items())
      assert total <= 4 * len(whole)
    except InputError as error:
      assert "\n" not in str(error) and str(tmp_path / "x") in str(error)
      refused += 1
  assert refused > 30
  shutil.rmtree(tmp_path / "data")
