"""Pickles: whatever numpy and scipy write is read, in every protocol; whatever else is one line, and cheap."""

import pickle
import struct
import tracemalloc

import hostile_pickle as hostile
import numpy as np
import pytest
import scipy.sparse

from rsatalker_jax import pickles
from rsatalker_jax.errors import InputError

MATRIX = np.where(np.random.default_rng(0).random((4, 6)) < 0.4, np.random.default_rng(1).normal(size=(4, 6)), 0)
ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    np.arange(5, dtype=">i4"),
    np.uint8([[1], [2]]),
    np.array([True, False]),
    np.array(["ab", "é"]),
    np.zeros((0, 3), np.float16),
    np.array(3.5),
    np.matrix([[1, 2], [3, 4]]),
    np.float32(2),
    np.int64(-7),
    [1, 2.5],
    [[1, 2], (3, 4)],
    [np.arange(3), np.arange(3) + 1],
    [np.float32(1), 2],
    7,
    True,
]


def load(tmp_path, content: bytes):
  (tmp_path / "a.pkl").write_bytes(content)
  return pickles.load_pickle(tmp_path / "a.pkl")


def load_array(tmp_path, content: bytes):
  return pickles.to_array(load(tmp_path, content))


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_are_read_as_python_reads_them(tmp_path, protocol):
  for value in ARRAYS:
    got = load_array(tmp_path, pickle.dumps(value, protocol))
    assert got.dtype == np.asarray(value).dtype
    np.testing.assert_array_equal(got, value)
  plain = {"a": [1, (2.5, None)], "b": {"c": "text", "d": b"bytes"}, "e": 2**70, "f": False}
  assert load(tmp_path, pickle.dumps(plain, protocol))["a"] == plain["a"]
  assert sorted(load(tmp_path, pickle.dumps({3, 4}, protocol))) == [3, 4]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("kind", ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"])
def test_sparse_matrices_are_read_as_scipy_reads_them(tmp_path, kind, protocol):
  for form in ("matrix", "array"):
    matrix = getattr(scipy.sparse, f"{kind}_{form}")(MATRIX)
    np.testing.assert_array_equal(load_array(tmp_path, pickle.dumps(matrix, protocol)), MATRIX)
  old_names = pickle.dumps(matrix, protocol).replace(b"scipy.sparse._%s\n" % kind.encode(), b"scipy.sparse.%s\n" % kind.encode())
  np.testing.assert_array_equal(load_array(tmp_path, old_names), MATRIX)


def test_sparse_matrices_with_blocks_doubles_and_old_fields(tmp_path):
  blocks = scipy.sparse.bsr_matrix(np.kron(np.eye(2, 3), MATRIX[:2, :3]), blocksize=(2, 3))
  np.testing.assert_array_equal(load_array(tmp_path, pickle.dumps(blocks)), blocks.toarray())
  doubles = scipy.sparse.csr_matrix(([1.0, 2.0, 4.0], [1, 1, 0], [0, 2, 3]), shape=(2, 3))
  np.testing.assert_array_equal(load_array(tmp_path, pickle.dumps(doubles)), [[0, 3, 0], [4, 0, 0]])
  doubles = scipy.sparse.coo_matrix(([1.0, 2.0], ([1, 1], [2, 2])), shape=(2, 3))
  state = doubles.__dict__ | {"row": doubles.row, "col": doubles.col, "shape": (2, 3)}
  doubles.__dict__.clear()  # scipy's fields of before 1.13.
  doubles.__dict__.update({key: state[key] for key in ("row", "col", "data", "shape")})
  np.testing.assert_array_equal(load_array(tmp_path, pickle.dumps(doubles)), [[0, 0, 0], [0, 0, 3]])
  np.testing.assert_array_equal(load_array(tmp_path, pickle.dumps(scipy.sparse.coo_array(np.array([0.0, 2])))), [0, 2])
  shifted = scipy.sparse.dia_matrix(([[1.0, 2, 3], [4, 5, 6]], [-1, 1]), shape=(3, 2))
  np.testing.assert_array_equal(load_array(tmp_path, pickle.dumps(shifted)), shifted.toarray())


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("kind", ["bsr", "coo", "csc", "csr", "dia", "lil"])
def test_any_number_of_a_sparse_matrix_may_be_wrong(tmp_path, kind, protocol):
  """Every index, pointer and size replaced: another matrix, or one line; never beyond the matrix."""
  refused = 0
  for value in (-1, 3, 4, 6, 60, 2**31 - 1):
    matrix = getattr(scipy.sparse, f"{kind}_matrix")(MATRIX)
    names = [name for name in ("indices", "indptr", "offsets", "coords", "rows") if name in matrix.__dict__]
    for name in (*names, "_shape"):
      for place in range(2):
        state = dict(matrix.__dict__)
        if name in ("coords", "_shape"):
          changed = [np.atleast_1d(part) for part in state[name]]
          changed[place] = np.where(np.arange(changed[place].size) == 0, value, changed[place])
          state[name] = tuple(changed) if name == "coords" else tuple(int(part[0]) for part in changed)
        elif name == "rows":
          state[name] = np.array([[value, *row[1:]] if k == place else row for k, row in enumerate(state[name])] + [None], object)[:-1]
        else:
          state[name] = state[name].copy()
          state[name].reshape(-1)[min(place, state[name].size - 1)] = value
        other = matrix.copy()
        other.__dict__.clear()
        other.__dict__.update(state)
        try:
          got = load_array(tmp_path, pickle.dumps(other, protocol))
          assert got.shape == tuple(state["_shape"]) and got.size < 400 and np.isfinite(got).all()
        except ValueError:
          refused += 1
  assert refused >= (4 if kind == "dia" else 6)  # Any place of a diagonal is one.


@pytest.mark.parametrize("kind", ["csr", "csc", "bsr", "coo"])
def test_each_check_of_a_sparse_matrix(tmp_path, kind):
  matrix = getattr(scipy.sparse, f"{kind}_matrix")(np.arange(1.0, 7).reshape(2, 3))

  def refused(**changes):
    other = matrix.copy()
    other.__dict__.update(changes)
    with pytest.raises(ValueError, match="indices|runs"):
      load_array(tmp_path, pickle.dumps(other))

  length = 2 if kind == "csc" else 3
  if kind == "coo":
    rows, columns = matrix.coords
    for wrong in (-1, 2):
      refused(coords=(np.where(rows == 1, wrong, rows), columns))
    for wrong in (-1, 3):
      refused(coords=(rows, np.where(columns == 2, wrong, columns)))
    refused(coords=(rows[1:], columns[1:]))
    return
  indices, starts = matrix.indices.copy(), matrix.indptr.copy()
  for wrong in (-1, length):
    refused(indices=np.append(indices[:-1], wrong))
  refused(indices=indices[:-1])
  refused(data=matrix.data[:-1])
  refused(indptr=starts[:-1])
  refused(indptr=np.append(starts, starts[-1]))
  refused(indptr=np.append(1, starts[1:]))
  refused(indptr=np.append(starts[:-1], starts[-1] + 1))
  refused(indptr=np.concatenate([[0, starts[-1]], starts[2:-1], [starts[-1] - 1]])[-len(starts):])


def test_line_ends_of_windows(tmp_path):
  value = {"a": np.arange(300, dtype=np.uint8), "b": "one\ntwo\r\nthree", "c": [1, 2]}
  got = load(tmp_path, pickle.dumps(value, 0).replace(b"\n", b"\r\n"))
  np.testing.assert_array_equal(pickles.to_array(got["a"]), value["a"])
  assert got["b"] == value["b"] and got["c"] == [1, 2]
  # In binary protocols these bytes are numbers.
  content = pickle.dumps({"a": 8.571428571428571, "b": 0}, 1).replace(b"\x21\x24\x92\x49\x24\x92\x49", b"\x21\0\x0d\x0a\1\1\1")
  assert load(tmp_path, content) == {"a": struct.unpack(">d", b"\x40\x21\0\x0d\x0a\1\1\1")[0], "b": 0}
  with pytest.raises(InputError, match="not on the allow-list .with line ends of Windows: copy the file in binary"):
    load(tmp_path, pickle.dumps(np.arange(3), 2).replace(b"\n", b"\r\n"))


FLOATS = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    "instructions, message",
    [
        (hostile.call(hostile.SCALAR, hostile.pointer_dtype(), hostile.raw(b"A" * 8)), "no plain type"),
        (b"]" + hostile.call(hostile.SCALAR, hostile.pointer_dtype(), hostile.raw(b"A" * 8)) + b"a", "no plain type"),
        (hostile.array(FLOATS, dtype=hostile.pointer_dtype()), "no plain type"),
        (hostile.old_array(FLOATS, dtype=hostile.pointer_dtype()), "no plain type"),
        (hostile.array(FLOATS, dtype=hostile.dtype("O8")), "Python objects"),
        # A plain type whose state has fields, or a type within it.
        *(
            (hostile.array(FLOATS, dtype=hostile.dtype("f4", hostile.row(*state))), "no plain type")
            for state in (
                [hostile.number(3), hostile.text("<"), hostile.row(), hostile.NONE, hostile.NONE],
                [hostile.number(3), hostile.text("<"), hostile.NONE, hostile.row(hostile.text("a")), hostile.NONE],
                [hostile.number(3), hostile.text("<"), hostile.NONE, hostile.NONE, b"}"],
                [hostile.number(3), hostile.text("f4,<"), hostile.NONE, hostile.NONE, hostile.NONE],
            )
        ),
        (hostile.array(FLOATS, dtype=hostile.text("f4")), "type is a str"),
        (hostile.array(FLOATS, shape=hostile.row(hostile.number(2), hostile.number(4))), "24 bytes for float32 of shape (2, 4)"),
        (hostile.old_array(FLOATS, shape=hostile.row(hostile.number(2), hostile.number(2))), "24 bytes for float32"),
        (hostile.array(FLOATS, shape=hostile.row(hostile.number(-2), hostile.number(-3))), "(-2, -3)"),
        (hostile.array(FLOATS, shape=hostile.row(*[hostile.number(1)] * 33)), "32 dimensions"),
        (hostile.array(FLOATS, shape=hostile.row(hostile.TRUE)), "not of whole numbers"),
        (hostile.array(FLOATS, shape=hostile.text("ab")), "not of whole numbers"),
        (hostile.array(FLOATS, raw=hostile.number(24)), "made of a int"),
        (hostile.array(FLOATS, raw=hostile.text("\u0141" * 24)), "encode"),
        (hostile.array(FLOATS, order=hostile.text("K"), axes=hostile.row(hostile.number(0), hostile.number(0))), "axis"),
        (hostile.array(np.array([True]), raw=hostile.raw(b"\7")), "truth of 7"),
        (hostile.array(np.array(["a"]), raw=hostile.raw(b"\xff" * 4)), "characters"),
        (hostile.call(hostile.NDARRAY, hostile.row(hostile.number(10**8)), hostile.text("f4")), "no array of numbers"),
        (hostile.call(hostile.RECONSTRUCT, hostile.NDARRAY, hostile.row(hostile.number(0)), hostile.raw(b"b")), "incomplete"),
        (hostile.NDARRAY, "no array"),
        (hostile.name("chumpy.ch", "Ch") + b")\x81", "incomplete Ch"),
        # A chumpy array and a list that hold themselves.
        (hostile.name("chumpy.ch", "Ch") + b")\x81q\0}" + hostile.text("x") + b"h\0sb", "nested more than 32"),
        (b"]q\0h\0a", "nested more than 32"),
        (hostile.number(1) + b"\x8a\x09" + b"\1" * 9 + b"\x86", "64 bits"),
        (b"(" + hostile.text("a") + hostile.number(1) + b"t", "a str that is no array"),
        (b"(](" + hostile.number(1) + b"e](" + hostile.number(1) * 2 + b"et", "same shape"),
        (hostile.name("scipy.sparse.bsr", "bsr_matrix") + b")\x81" + hostile.items(
            _shape=hostile.row(hostile.number(2), hostile.number(2)), data=hostile.array(np.zeros((1, 0, 0)))) + b"b", "incomplete"),
        (hostile.name("scipy.sparse.csc", "csc_matrix") + b")\x81" + hostile.items(
            _shape=hostile.row(*[hostile.number(2**31 - 1)] * 2)) + b"b", "more than"),
    ],
)
def test_records_that_make_no_array(tmp_path, instructions, message):
  with pytest.raises(ValueError) as error:
    load_array(tmp_path, hostile.program(instructions))
  assert message in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (hostile.program(b"r\xff\xff\xff\x7f"), ""),  # Something nowhere, remembered in place 2^31 - 1.
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 36) + b"abc.", "cut off"),  # 64 GB of bytes.
        (b"\x80\x05\x8e" + struct.pack("<Q", 1 << 36) + b"abc.", "cut off"),
        (hostile.program(b"(" * 100 + b"t" * 101), ""),
        (hostile.program(b"}" + b")\x85" * 1 + b"\x85" * 100_000 + b"Ns"), "nested tuples"),  # Hashing it would end Python.
        (hostile.program(b"\x8f(" + b")" + b"\x85" * 100_000 + b"\x90") + b"x", None),  # As a set's element.
        (hostile.program(hostile.name("collections", "OrderedDict") + hostile.row(b"](" + b"(K\1K\2t" * 2 + b"e") + b"R"), None),
        (hostile.program(hostile.call(hostile.number(1), hostile.number(2))), "a call of a int"),
        (hostile.program(hostile.fill(hostile.DTYPE, b"}")), "a state for a _Name"),
        (hostile.program(hostile.fill(hostile.name("_codecs", "encode"), b"}" + hostile.text("__name__") + b"K\1s")), "a state for"),
        (hostile.program(hostile.NDARRAY + b"K\1K\2s"), "items for a"),
        (hostile.program(b"i__builtin__\nset\n"), ""),
        (hostile.program(b"\x82\1"), "no pickle of arrays needs"),
        (hostile.program(b"P1\n"), "persistent"),
        (hostile.program(hostile.name("numpy.core.multiarray\r", "scalar")), "line ends"),
        (b"", "cut off"),
        (b"\xff", ""),
        (b"PK\3\4", ""),
        (b"\x80\x09.", "protocol"),
    ],
)
def test_programs_that_make_nothing(tmp_path, content, message):
  tracemalloc.start()
  try:
    if message is None:
      load(tmp_path, content)
    else:
      with pytest.raises(InputError) as error:
        load(tmp_path, content)
      assert message in str(error.value) and "\n" not in str(error.value) and "a.pkl" in str(error.value)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
  finally:
    tracemalloc.stop()


def test_a_few_bytes_cannot_ask_for_much_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(pickles, "_MAX_NUMBERS", 1 << 16)
  monkeypatch.setattr(pickles, "_MAX_PAIRS", 1 << 14)
  laughs = b"](K\1K\1e" + b"q\0](h\0h\0e" * 30  # 2^31 numbers.
  repeated = b"(" + hostile.array(np.zeros(10_000)) + b"q\0" + b"h\0" * 1000 + b"l"
  rows = b"(](" + b"K\1" * 1000 + b"eq\0" + b"h\0" * 200 + b"l"
  empties = b"(]q\0" + b"h\0" * 8000 + b"l"
  scalars = b"(" + hostile.call(hostile.SCALAR, hostile.dtype("f4"), hostile.raw(bytes(4))) + b"q\0" + b"h\0" * 8000 + b"l"
  pairs = b"](" + b"(K\1K\2t" * 1000 + b"eq\0" + (hostile.call(hostile.name("collections", "OrderedDict"), b"h\0") + b"0") * 20
  tracemalloc.start()
  try:
    for value in (laughs, repeated, rows, empties, scalars):
      with pytest.raises(ValueError, match="more than 65536 numbers"):
        load_array(tmp_path, hostile.program(value))
    with pytest.raises(InputError, match="more than 16384 items"):
      load(tmp_path, hostile.program(pairs))
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
  finally:
    tracemalloc.stop()


def test_dicts_have_words_for_keys(tmp_path):
  path = tmp_path / "a.pkl"
  path.write_bytes(pickle.dumps({"exp": 1, "b": [2]}))
  assert pickles.load_dict(path, "a track") == {"exp": 1, "b": [2]}
  for value, message in (
      ([1], "a.pkl: found a pickled list, expected a track"),
      ({1: 2}, "a.pkl: found a pickled dict with a key that is a int, expected a track"),
      (np.zeros(3), "a.pkl: found a pickled ndarray, expected a track"),
      (scipy.sparse.csc_matrix(MATRIX), "a.pkl: found a pickled csc_matrix"),
  ):
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match=message):
      pickles.load_dict(path, "a track")


def test_names_of_pickles():
  assert [pickles.is_pickle_name(f"a{end}") for end in (".pkl", ".PKL", ".pickle", ".Pickle", ".npz", "pkl")] == [True] * 4 + [False] * 2


def test_diagonals_need_a_place_each(tmp_path):
  matrix = scipy.sparse.dia_matrix(MATRIX)
  matrix.offsets = np.arange(1000)  # Places for 1000 diagonals would be worked out for those that there are.
  with pytest.raises(ValueError, match="diagonals without a place"):
    load_array(tmp_path, pickle.dumps(matrix))
