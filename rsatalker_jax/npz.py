"""Reading .npz and .npy files made by others: plain arrays, and nothing that a damaged or hostile file says is believed.

numpy's own reader allocates what a header asks for, evaluates the header as Python, and lets a dozen kinds of errors
through. Here a header is matched against the one form that writers use, and its shape and type have to fill the bytes
that are there before any memory is taken. Threads may read at the same time: `ast.literal_eval`, with which numpy parses
headers, breaks off with a SystemError now and then when threads do that (seen with Python 3.11.7).
"""

import contextlib
import math
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO, Literal

import numpy as np
from jaxtyping import Float

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import open_regular

# Of one array. FLAME's largest has 48 MB; vertex offsets of FLAME over 8,000 frames have this.
MAX_BYTES = 1 << 29
_MAX_HEADER = 1 << 14  # numpy's own are below 200 bytes, and it refuses more than 10,000.
_MAX_DIMENSIONS = 32
_MAX_DEFLATION = 1032  # Of zlib's format: no stream unpacks to more times its size.
_CHUNK = 1 << 20
_MAGIC = b"\x93NUMPY"
_ENTRY = re.compile(
    r"\s*'(?P<key>descr|fortran_order|shape)'\s*:\s*"
    r"(?:'(?P<descr>[^']*)'|(?P<order>True|False)|\((?P<shape>[0-9L, ]*)\))\s*(?:,|(?=\}))"
)
# Truth, whole numbers, floats, text and bytes: no objects, records, dates, or types whose size depends on the machine.
_TYPE = re.compile(r"[<>|=]?(?:b1|\?|[iu][1248]|f[248]|[US][1-9][0-9]{0,5})")
_PLAIN = "numbers or text"


class Archive:
  """The arrays of an open .npz by name; each is read, and its checksum compared, when it is asked for."""

  def __init__(self, path: object, file: BinaryIO, size: int, expected: str):
    self._path, self._expected, self._size = path, expected, size
    self._zip = zipfile.ZipFile(file)
    self._members: dict[str, zipfile.ZipInfo] = {}
    for member in self._zip.infolist():
      name = member.filename.removesuffix(".npy")
      if name in self._members:
        raise InputError(path, name, "two arrays of this name", expected)
      if name != member.filename:
        self._members[name] = member

  def __contains__(self, key: str) -> bool:
    return key in self._members

  def __iter__(self) -> Iterator[str]:
    return iter(self._members)

  def __len__(self) -> int:
    return len(self._members)

  def __getitem__(self, key: str) -> np.ndarray:
    """Raises InputError where there is no such array, or it is damaged or no plain array."""
    with self._open(key) as (file, size):
      return _read_array(self._path, key, file, size)

  def describe(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape of an array, of which its header alone is read.

    Raises:
      InputError: see `__getitem__`; numbers that are damaged are not noticed.
    """
    with self._open(key) as (file, size):
      dtype, _, shape = _read_header(self._path, key, file, size)
    return dtype, shape

  @contextlib.contextmanager
  def _open(self, key: str) -> Iterator[tuple[IO[bytes], int]]:
    if key not in self._members:
      raise InputError(self._path, key, f"no such key (there are {', '.join(sorted(self)) or 'none'})", self._expected)
    member = self._members[key]
    check_member(self._path, key, member, self._size)
    with _one_line(self._path, key, self._expected), self._zip.open(member) as file:
      yield file, member.file_size


@contextlib.contextmanager
def open_npz(path: str | os.PathLike, expected: str = "an .npz of plain arrays") -> Iterator[Archive]:
  """Opens an .npz; its arrays are read as they are asked for, each of 512 MB at most.

  Args:
    path: a regular file; a pipe, which might never end, is refused.
    expected: what the line of an error says there should be.

  Raises:
    InputError: the file is missing, no archive, damaged or encrypted; an array that is asked for is not there, not plain
      numbers or text, or not of the size that its header says.
  """
  with open_regular(path, expected) as file:
    yield open_archive(path, file, os.fstat(file.fileno()).st_size, expected)


def open_archive(path: object, file: BinaryIO, size: int, expected: str = "an .npz of plain arrays") -> Archive:
  """The arrays of an .npz that is open already, or lies in another file; see `open_npz`.

  Args:
    path: what errors call it.
    file, size: it, at its start, and how many bytes it has.
    expected: what the line of an error says there should be.
  """
  with _one_line(path, "", expected):
    start = file.read(len(_MAGIC))
    if start == _MAGIC:
      raise InputError(path, "", "a single array (.npy)", expected)
    if not start.startswith(b"PK"):
      found = f"an unreadable file, which begins with {start!r}" if start else "an empty file"
      raise InputError(path, "", found, expected)
    return Archive(path, file, size, expected)


def read_npy(path: str | os.PathLike, expected: str = "an .npy of a plain array") -> np.ndarray:
  """Reads an .npy of up to 512 MB.

  Raises:
    InputError: the file is missing, not regular, damaged, or not of plain numbers or text.
  """
  with open_regular(path, expected) as file, _one_line(path, "", expected):
    return _read_array(path, "", file, os.fstat(file.fileno()).st_size)


def to_float32(file: object, key: str, array: np.ndarray, row: str = "") -> Float[np.ndarray, "..."]:
  """Numbers of any plain type as float32.

  Args:
    file, key: where they come from.
    array: the numbers.
    row: what the first axis counts, for the line of the error ("frame").

  Raises:
    InputError: no numbers, or one that is not finite or beyond what float32 holds.
  """
  if array.dtype.kind not in "fiu":
    raise InputError(file, key, f"{array.dtype} of shape {array.shape}", "numbers")
  with np.errstate(over="ignore"):
    values = np.asarray(array, np.float32)
  if not np.isfinite(values).all():
    place = np.unravel_index(np.argmin(np.isfinite(values)), values.shape)
    where = f"{key}, {row} {place[0]}" if row else key
    raise InputError(file, where, array[place], "finite numbers, up to 3.4e38")
  return values


def check_member(path: str | os.PathLike, key: str, member: zipfile.ZipInfo, archive_size: int) -> None:
  """Whether a file in an archive can be what the directory says; nothing is read.

  Args:
    path, key: the archive and what the member is called in an error's line.
    member: the directory's entry.
    archive_size: in bytes.

  Raises:
    InputError: it is encrypted, in a compression that numpy does not use, or its sizes cannot be true.
  """
  if member.flag_bits & 0x1:
    raise InputError(path, key, "an encrypted array", "one that is not")
  if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    found = f"an array in compression method {member.compress_type}"
    raise InputError(path, key, found, "one stored or deflated, as numpy does it")
  most = member.compress_size * (1 if member.compress_type == zipfile.ZIP_STORED else _MAX_DEFLATION)
  if member.compress_size > archive_size or member.file_size > most:
    found = f"{member.file_size} bytes in {min(member.compress_size, archive_size)}, by the archive's directory"
    raise InputError(path, key, found, "sizes that a whole archive has")


def plain_dtype(name: str) -> np.dtype | None:
  """The type of a name such as "<f4"; None for what is neither truth, number nor text."""
  return np.dtype(name) if _TYPE.fullmatch(name) else None


def array_size(dtype: np.dtype, shape: tuple[int, ...]) -> int:
  """Bytes of an array.

  Raises:
    ValueError: more than 512 MB, or no shape that numpy has.
  """
  # An axis of length 0 makes any other fit.
  if len(shape) > _MAX_DIMENSIONS or min(shape, default=0) < 0 or math.prod(max(n, 1) for n in shape) * dtype.itemsize > MAX_BYTES:
    raise ValueError(f"{dtype} of shape {shape}, beyond {_MAX_DIMENSIONS} dimensions or {MAX_BYTES >> 20} MB")
  return math.prod(shape) * dtype.itemsize


def array_from_bytes(data: np.ndarray, dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
  """An array over bytes (uint8), as many as `array_size` says.

  Raises:
    ValueError: truth that is neither 0 nor 1, or characters that do not exist: numpy believes them and Python does not.
  """
  if dtype.kind == "b" and (data > 1).any():
    raise ValueError(f"a truth of {data.max()}")
  if dtype.kind == "U" and (data.view(dtype.byteorder + "u4") > sys.maxunicode).any():
    raise ValueError("characters that do not exist")
  return data.view(dtype).reshape(shape, order=order)


@contextlib.contextmanager
def _one_line(path: object, key: str, expected: str) -> Iterator[None]:
  """Makes an InputError of whatever a damaged archive raises."""
  try:
    yield
  except InputError:
    raise
  except zlib.error as error:
    raise InputError(path, key, f"unreadable: damaged compression ({error})", expected) from None
  except MemoryError:
    raise InputError(path, key, "more than this machine's memory holds", expected) from None
  except Exception as error:  # zipfile raises a dozen kinds: BadZipFile, struct.error, NotImplementedError, EOFError, ...
    raise InputError(path, key, f"unreadable: {str(error) or type(error).__name__}", expected) from None


def _read_header(path: object, key: str, file: IO[bytes], size: int) -> tuple[np.dtype, bool, tuple[int, ...]]:
  """Type, order and shape of an array in numpy's format, which fill its `size` bytes."""
  start = file.read(8)
  if len(start) < 8 or start[:6] != _MAGIC or start[6] not in (1, 2, 3):
    raise InputError(path, key, f"unreadable: begins with {start!r}", "an array in numpy's format")
  width = 2 if start[6] == 1 else 4
  length = int.from_bytes(file.read(width), "little")
  if length > _MAX_HEADER:
    raise InputError(path, key, f"a header of {length} bytes", f"{_MAX_HEADER} at most")
  header = file.read(length)
  dtype, fortran_order, shape = _parse_header(path, key, header.decode("latin1"))
  room = size - 8 - width - length
  try:
    needed = array_size(dtype, shape)
  except ValueError as error:
    raise InputError(path, key, error, "an array within bounds") from None
  if needed != room:
    raise InputError(path, key, f"{max(room, 0)} bytes of numbers", f"{needed}: {dtype} of shape {shape}")
  return dtype, fortran_order, shape


def _read_array(path: object, key: str, file: IO[bytes], size: int) -> np.ndarray:
  """One array in numpy's format, of `size` bytes with its header."""
  dtype, fortran_order, shape = _read_header(path, key, file, size)
  needed = array_size(dtype, shape)
  data = np.empty(needed, np.uint8)
  position = 0
  while position < needed:
    chunk = file.read(min(_CHUNK, needed - position))
    if not chunk:
      raise InputError(path, key, f"{position} bytes of numbers (cut off)", needed)
    data[position : position + len(chunk)] = np.frombuffer(chunk, np.uint8)
    position += len(chunk)
  file.read(1)  # An empty array's checksum is compared, too.
  return array_from_bytes(data, dtype, shape, "F" if fortran_order else "C")


def _parse_header(path: object, key: str, header: str) -> tuple[np.dtype, bool, tuple[int, ...]]:
  """Type, order and shape from {'descr': '<f4', 'fortran_order': False, 'shape': (60, 50), }."""
  text = header.strip()
  found: dict[str, str] = {}
  position = 1
  while text.startswith("{") and (entry := _ENTRY.match(text, position)):
    value = entry[{"descr": "descr", "fortran_order": "order", "shape": "shape"}[entry["key"]]]
    if value is None or entry["key"] in found:
      break
    found[entry["key"]] = value
    position = entry.end()
  if len(found) != 3 or text[position:].strip() != "}":
    expected = f"numpy's description of an array of {_PLAIN}"
    raise InputError(path, key, f"unreadable: the header {text[:100]!r}", expected)
  dtype = plain_dtype(found["descr"])
  if dtype is None:
    raise InputError(path, key, f"unreadable: an array of type {found['descr'][:20]!r}", _PLAIN)
  lengths = [length.strip().removesuffix("L") for length in found["shape"].split(",")]  # Python 2 wrote 5L.
  if lengths[-1] == "":
    lengths.pop()
  if not all(length.isdecimal() and len(length) < 20 for length in lengths):
    raise InputError(path, key, f"unreadable: the shape ({found['shape'][:100]})", "whole numbers")
  return dtype, found["fortran_order"] == "True", tuple(map(int, lengths))
