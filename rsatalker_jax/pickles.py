"""Reading pickles made by others, without running or believing anything they say.

A pickle is a program: plain `pickle.load` calls whatever it names, and numpy's own types believe what they are filled
with (a type's pickled state may call eight bytes of the file a pointer to an object). Here a name outside a short list
ends the reading, and what an allowed name would have made becomes an inert record. `to_array` builds arrays of plain
numbers from these records, once their shapes, sizes and indices are checked. scipy and chumpy need not be there.
"""

import dataclasses
import functools
import io
import math
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from rsatalker_jax import npz
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import open_regular, read_whole

_SPARSE = {
    f"scipy.sparse.{kind}.{kind}_{form}": kind
    for kind in ("bsr", "coo", "csc", "csr", "dia", "dok", "lil")
    for form in ("matrix", "array")
}
_ALLOWED = frozenset({
    "numpy.ndarray",
    "numpy.matrix",
    "numpy.matrixlib.defmatrix.matrix",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer",
    "_codecs.encode",
    "copyreg._reconstructor",
    "builtins.object",
    "builtins.bytes",
    "builtins.dict",
    "builtins.set",
    "collections.OrderedDict",
    "chumpy.ch.Ch",
    *_SPARSE,
})
# Today's and Python 2's names of the same modules.
_RENAMED = {
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "copy_reg": "copyreg",
    "__builtin__": "builtins",
    **{name.rsplit(".", 1)[0].replace(kind, f"_{kind}", 1): name.rsplit(".", 1)[0] for name, kind in _SPARSE.items()},
}
_MAX_NUMBERS = 1 << 26  # In one value: 512 MB as float64. FLAME's largest has 6 million.
_MAX_PAIRS = 1 << 20
_MAX_DEPTH = 32
_COST_OF_A_VALUE = 16  # In numbers: four million lists, or numpy's single numbers, take ten seconds.


@dataclasses.dataclass(frozen=True, slots=True)
class _Name:
  """A class or function on the allow-list, by its full name."""

  name: str


@dataclasses.dataclass(slots=True, eq=False)
class _Record:
  """What a pickle says of an object: whom it calls to make it, with what, and the state it gives it."""

  kind: str
  arguments: tuple
  state: Any = None


class _RecordUnpickler(pickle._Unpickler):
  """Python's own reader of pickles (the one in C believes sizes and positions), with everything that calls replaced.

  Whatever it gives is made of None, bool, int, float, str, bytes, list, tuple, dict and records.
  """

  allowed = _ALLOWED
  dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)
  # Of Python's own reader, in which types know nothing of them.
  stack: list[Any]
  append: Callable[[Any], None]
  pop_mark: Callable[[], list]
  load_appends: Callable[[], None]
  load_binbytes8: Callable[[], None]
  load_list: Callable[[], None]

  def __init__(self, data: bytes, **options):
    super().__init__(io.BytesIO(data), **options)
    self._copied = 0

  def find_class(self, module, name):
    full = f"{_RENAMED.get(module, module)}.{name}"
    if full not in self.allowed:
      hint = " (with line ends of Windows: copy the file in binary)" if "\r" in full else ""
      raise pickle.UnpicklingError(f"the name {module}.{name}, which is not on the allow-list{hint}")
    return _Name(full)

  def make(self, name: str, arguments: tuple) -> object:
    """What a call becomes."""
    if name == "builtins.set":  # chumpy's arrays have some; a list spares the hashing of what may be nested without end.
      return arguments[0] if arguments else []
    if name == "builtins.bytes" and not arguments:  # No bytes, in protocols 0 to 2.
      return b""
    if name == "collections.OrderedDict":
      pairs = arguments[0] if arguments else []
      self._copied += len(pairs)
      if self._copied > _MAX_PAIRS:
        raise pickle.UnpicklingError(f"more than {_MAX_PAIRS} items of dicts, copied from lists")
      return _plain_dict([item for key, value in pairs for item in (key, value)])
    if name == "copyreg._reconstructor":  # Objects in protocols 0 and 1.
      return _Record(arguments[0].name, arguments[2:])
    return _Record(name, arguments)

  def load_reduce(self):
    arguments, function = self.stack.pop(), self.stack.pop()
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
      raise pickle.UnpicklingError(f"a call of a {type(function).__name__}")
    self.append(self.make(function.name, arguments))

  def load_newobj(self):
    self.load_reduce()

  def load_build(self):
    state, record = self.stack.pop(), self.stack[-1]
    if isinstance(record, _Record):
      record.state = state
    elif not isinstance(record, dict):  # An OrderedDict's attributes, which nobody needs.
      raise pickle.UnpicklingError(f"a state for a {type(record).__name__}")

  def load_bytearray8(self):
    self.load_binbytes8()

  def load_empty_set(self):
    self.append([])

  def load_additems(self):
    self.load_appends()

  def load_frozenset(self):
    self.load_list()

  def load_dict(self):
    items = self.pop_mark()  # This changes what `append` appends to.
    self.append(_plain_dict(items))

  def load_setitems(self):
    items = _plain_dict(self.pop_mark())
    # Of a matrix that once was a subclass of dict, the items are arguments.
    if isinstance(record := self.stack[-1], _Record):
      record.arguments += (items,)
    else:
      _check_dict(record).update(items)

  def load_setitem(self):
    value, key = self.stack.pop(), self.stack.pop()
    _check_dict(self.stack[-1]).update(_plain_dict([key, value]))

  def refuse(self):
    raise pickle.UnpicklingError("an instruction that no pickle of arrays needs")

  dispatch |= {
      pickle.REDUCE[0]: load_reduce,
      pickle.NEWOBJ[0]: load_newobj,
      pickle.BUILD[0]: load_build,
      pickle.BYTEARRAY8[0]: load_bytearray8,
      pickle.EMPTY_SET[0]: load_empty_set,
      pickle.ADDITEMS[0]: load_additems,
      pickle.FROZENSET[0]: load_frozenset,
      pickle.DICT[0]: load_dict,
      pickle.SETITEMS[0]: load_setitems,
      pickle.SETITEM[0]: load_setitem,
  }
  dispatch |= dict.fromkeys((code[0] for code in (pickle.NEWOBJ_EX, pickle.INST, pickle.OBJ)), refuse)
  dispatch |= dict.fromkeys((code[0] for code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER)), refuse)


def _check_dict(value: object) -> dict:
  if not isinstance(value, dict):
    raise pickle.UnpicklingError(f"items for a {type(value).__name__}")
  return value


def _plain_dict(items: list) -> dict:
  """A dict of alternating keys and values. Hashing tuples within tuples without end would end Python itself."""
  for key in items[::2]:
    for part in key if isinstance(key, tuple) else (key,):
      if isinstance(part, tuple):
        raise pickle.UnpicklingError("a key of nested tuples")
  return dict(zip(items[::2], items[1::2], strict=True))


def is_pickle_name(path: str | os.PathLike) -> bool:
  """Whether a file is a pickle by its name."""
  return pathlib.Path(path).suffix.lower() in (".pkl", ".pickle")


def load_pickle(path: str | os.PathLike) -> object:
  """Reads a pickle of plain containers, numbers, strings, numpy arrays, scipy sparse matrices and chumpy arrays.

  Python 2's pickles are read as latin1, as FLAME's files need. Arrays are not built yet: use `to_array` on what it
  returns. Sets come as lists.

  Raises:
    InputError: the file is missing, cut off, no pickle, or names anything else (nothing of it has been executed).
  """
  expected = "a pickle of numpy, scipy.sparse and chumpy arrays in plain containers"
  data = read_whole(path, expected)
  if not data.startswith(b"\x80") and b"\0" not in data and 0 < data.count(b"\n") == data.count(b"\r\n"):
    data = data.replace(b"\r\n", b"\n")  # Protocol 0 is text without zeros, in which strings have no line ends.
  try:
    return _RecordUnpickler(data, encoding="latin1").load()
  except EOFError:
    raise InputError(path, "", "the end of the file within a pickle (the file is cut off)", expected) from None
  except Exception as error:  # A malformed pickle can raise almost anything.
    raise InputError(path, "", str(error) or type(error).__name__, expected) from None


def load_dict(path: str | os.PathLike, expected: str) -> dict[str, Any]:
  """Reads a pickled dict; see `load_pickle`.

  Args:
    path: the file.
    expected: what the line of an error says there should be.

  Raises:
    InputError: see `load_pickle`; no dict, or one whose keys are not words.
  """
  content = load_pickle(path)
  if not isinstance(content, dict):
    raise InputError(path, "", f"a pickled {_kind(content)}", expected)
  for key in content:
    if not isinstance(key, str):
      raise InputError(path, "", f"a pickled dict with a key that is a {_kind(key)}", expected)
  return content


def to_array(value: object) -> np.ndarray:
  """The dense numpy array inside one value of a pickle read here.

  Raises:
    ValueError: there is none, or what should make it is not whole.
  """
  try:
    return _Builder().build(value)
  except (AttributeError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
    raise ValueError(f"an incomplete {_kind(value)}: {str(error) or type(error).__name__}") from None


def _kind(value: object) -> str:
  if not isinstance(value, _Record):
    return type(value).__name__
  if value.kind.startswith(("numpy.core", "numpy.ndarray")):
    return "ndarray"
  return value.kind.rsplit(".", 1)[-1]


class _Builder:
  """Makes one array, within bounds: a few bytes of a pickle can name one list a thousand times, and lists of lists."""

  def __init__(self):
    self._left = _MAX_NUMBERS

  def build(self, value: object, depth: int = 0) -> np.ndarray:
    if depth > _MAX_DEPTH:
      raise ValueError(f"a {_kind(value)} that is nested more than {_MAX_DEPTH} times")
    self._spend(_COST_OF_A_VALUE)
    match value:
      case bool() | int() | float():
        return self._numbers([value]).reshape(())
      case list() | tuple():
        if all(isinstance(item, (bool, int, float)) for item in value):
          return self._numbers(value)
        return np.stack([self.build(item, depth + 1) for item in value])
      case _Record(kind="chumpy.ch.Ch"):
        return self.build(value.state["x"], depth + 1)
      case _Record(kind=kind) if kind in _SPARSE:
        return self._densify(_SPARSE[kind], value, depth + 1)
      case _Record(kind="numpy.core.multiarray._reconstruct"):
        shape, dtype, fortran_order, raw = value.state[-4:]
        return self._array(raw, dtype, shape, "F" if fortran_order else "C")
      case _Record(kind="numpy.core.multiarray.scalar"):
        dtype, raw = value.arguments
        return self._array(raw, dtype, (), "C")
      case _Record(kind="numpy.core.numeric._frombuffer"):
        raw, dtype, shape, order, *axes = value.arguments
        array = self._array(raw, dtype, shape, "F" if order == "F" else "C")
        return array.transpose(axes[0]) if order == "K" else array
    raise ValueError(f"a {_kind(value)} that is no array of numbers")

  def _spend(self, count: int) -> None:
    self._left -= count
    if self._left < 0:
      raise ValueError(f"more than {_MAX_NUMBERS} numbers")

  def _numbers(self, values: list | tuple) -> np.ndarray:
    self._spend(len(values))
    array = np.array(values)
    if array.dtype.kind not in "biuf":
      raise ValueError("whole numbers beyond 64 bits")
    return array

  def _array(self, raw: object, dtype: object, shape: object, order: str) -> np.ndarray:
    """An array from the bytes, the type and the shape that a pickle gives, none of which is believed."""
    dtype = _plain_dtype(dtype)
    if not isinstance(shape, tuple) or not all(type(n) is int for n in shape):
      raise ValueError("an array whose shape is not of whole numbers")
    if isinstance(raw, _Record) and raw.kind == "_codecs.encode" and raw.arguments[1:] == ("latin1",):
      raw = raw.arguments[0]
    if isinstance(raw, str):
      raw = raw.encode("latin1")
    if not isinstance(raw, bytes):
      raise ValueError(f"an array made of a {_kind(raw)}")
    size = npz.array_size(dtype, shape)
    if size != len(raw):
      raise ValueError(f"{len(raw)} bytes for {dtype} of shape {shape}")
    self._spend(size // 8)
    return npz.array_from_bytes(np.frombuffer(raw, np.uint8), dtype, shape, order)

  def _densify(self, kind: str, matrix: _Record, depth: int) -> np.ndarray:
    state = matrix.state
    shape = tuple(self._indices(state["_shape"] if "_shape" in state else state["shape"], 1 << 62).tolist())
    self._spend(math.prod(shape))
    field = lambda name: self.build(state[name], depth)
    places = lambda values, length: self._indices(values, length, depth)
    if kind == "coo":
      coordinates = state["coords"] if "coords" in state else (state["row"], state["col"])
      data = field("data")
      coordinates = tuple(places(axis, length) for axis, length in zip(coordinates, shape, strict=True))
    elif kind == "dia":
      diagonals, offsets = field("data"), field("offsets")
      if offsets.shape != diagonals.shape[:1]:
        raise ValueError("diagonals without a place")
      columns = np.arange(diagonals.shape[1])
      rows = columns - offsets.reshape(-1, 1)
      inside = (rows >= 0) & (rows < shape[0]) & (columns < shape[1])
      data, coordinates = diagonals[inside], (rows[inside], np.broadcast_to(columns, rows.shape)[inside])
    elif kind == "dok":
      items = state["_dict"] if "_dict" in state else matrix.arguments[-1]
      data = self.build(list(items.values()), depth)
      coordinates = tuple(places(list(axis), length) for axis, length in zip(zip(*items), shape, strict=True))
    elif kind == "lil":
      rows, values = (_object_list(state[name]) for name in ("rows", "data"))
      data = np.concatenate([self.build(row, depth) for row in values])
      lengths = [len(row) for row in rows]
      if len(rows) != shape[0] or lengths != [len(row) for row in values]:
        raise ValueError("rows of other lengths than their numbers")
      columns = [places(row, shape[1]) for row in rows]
      coordinates = np.repeat(np.arange(shape[0]), lengths), np.concatenate(columns)
    else:  # csc, csr, bsr: runs of indices.
      data = field("data")
      block = data.shape[1:] if kind == "bsr" else (1, 1)
      major, minor = (shape[1], shape[0]) if kind == "csc" else (shape[0] // block[0], shape[1] // block[1])
      starts, indices = places(state["indptr"], len(data) + 1), places(state["indices"], minor)
      lengths = np.diff(starts)
      if len(lengths) != major or starts[0] != 0 or (lengths < 0).any() or starts[-1] > min(len(data), len(indices)):
        raise ValueError("runs that its indices do not have")
      data, indices = data[: starts[-1]], indices[: starts[-1]]
      coordinates = np.repeat(np.arange(major), lengths), indices
      if kind == "csc":
        coordinates = coordinates[::-1]
      elif kind == "bsr":
        inside = np.meshgrid(*map(np.arange, block), indexing="ij")
        coordinates = tuple(
            np.broadcast_to(axis[:, None, None] * size + within, data.shape).reshape(-1)
            for axis, size, within in zip(coordinates, block, inside)
        )
        data = data.reshape(-1)
    if data.ndim != 1 or any(axis.shape != data.shape for axis in coordinates):
      raise ValueError("indices and numbers of different lengths")
    dense = np.zeros(shape, data.dtype)
    np.add.at(dense, coordinates, data)  # What stands twice is added, as scipy does it.
    return dense

  def _indices(self, values: object, length: int, depth: int = 0) -> np.ndarray:
    """Whole numbers from 0 to below `length`."""
    array = self.build(values, depth)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
      raise ValueError(f"indices of {array.dtype} {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= length):
      raise ValueError(f"indices {array.min()} to {array.max()}, where 0 to {length - 1} are possible")
    return array.astype(np.int64)


def _plain_dtype(record: object) -> np.dtype:
  """The type that numpy's pickles give as a name ("f4"), a byte order, and, for records and objects, much more."""
  if not isinstance(record, _Record) or record.kind != "numpy.dtype":
    raise ValueError(f"an array whose type is a {_kind(record)}")
  order, nested = "=", ()
  if record.state is not None:
    order, nested = record.state[1], record.state[2:5]
  name = record.arguments[0]
  dtype = npz.plain_dtype(order + name)
  if dtype is None or any(part is not None for part in nested):
    raise ValueError("an array of type 'O', Python objects" if name in ("O", "O8") else "an array of no plain type")
  return dtype


def _object_list(record: object) -> list[list]:
  """The lists in an array of lists (scipy's lil_matrix)."""
  if isinstance(record, _Record) and record.kind == "numpy.core.multiarray._reconstruct":
    lists = record.state[-1]
    if isinstance(lists, list) and all(isinstance(row, list) for row in lists):
      return lists
  raise ValueError("rows that are no lists")


_TORCH_STORAGES = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.BoolStorage": np.bool_,
}


class _TorchUnpickler(_RecordUnpickler):
  """Reads the pickle inside a PyTorch archive; the numbers lie in files beside it."""

  allowed = frozenset({
      "collections.OrderedDict",
      "torch._utils._rebuild_tensor_v2",
      "torch._utils._rebuild_parameter",
      *_TORCH_STORAGES,
  })

  def __init__(self, data: bytes, read: Callable[[str], bytes]):
    super().__init__(data)
    self._read = read

  def make(self, name, arguments):
    if name == "torch._utils._rebuild_tensor_v2":
      return _strided(*arguments[:4])
    return arguments[0] if name == "torch._utils._rebuild_parameter" else super().make(name, arguments)

  def persistent_load(self, pid):
    _, storage, key, _, count = pid
    return np.frombuffer(self._read(f"data/{key}"), _TORCH_STORAGES[storage.name], count)


def _strided(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
  """A strided view of a storage; numpy's own checks would not notice one that leaves it."""
  if not isinstance(storage, np.ndarray) or not all(type(n) is int for n in (offset, *size, *stride)):
    raise pickle.UnpicklingError("a tensor that is not made of numbers")
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  beyond = 0 not in size and (last >= len(storage) or math.prod(size) > len(storage))
  if min(offset, *size, *stride) < 0 or beyond:
    raise pickle.UnpicklingError(f"a tensor {tuple(size)} that reaches beyond its {len(storage)} numbers")
  strides = [step * storage.itemsize for step in stride]
  return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def load_torch_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads a state dict that PyTorch (1.6 or newer) saved, `pytorch_model.bin`, without PyTorch: tensors by name.

  The arrays cannot be written to.

  Raises:
    InputError: the file is missing, cut off, of another kind, or names anything but tensors.
  """
  expected = "a state dict saved by PyTorch 1.6 or newer"
  try:
    with open_regular(path, expected) as file, zipfile.ZipFile(file) as archive:
      left = os.fstat(file.fileno()).st_size
      (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))

      @functools.cache
      def read(name: str) -> bytes:
        nonlocal left
        member = archive.getinfo(index.removesuffix("data.pkl") + name)
        npz.check_member(path, name, member, left)  # No two lie in the same place.
        left -= member.compress_size
        if member.compress_type != zipfile.ZIP_STORED:
          raise pickle.UnpicklingError(f"{name}, which is compressed")
        return archive.read(member)

      tensors = _TorchUnpickler(read("data.pkl"), read).load()
    if not isinstance(tensors, dict) or not all(isinstance(value, np.ndarray) for value in tensors.values()):
      raise pickle.UnpicklingError(f"a {_kind(tensors)} of other things than tensors")
    if not all(isinstance(name, str) for name in tensors):
      raise pickle.UnpicklingError("tensors without names")
  except InputError:
    raise
  except Exception as error:  # A malformed archive or pickle can raise almost anything.
    raise InputError(path, "", str(error) or type(error).__name__, expected) from None
  return tensors
