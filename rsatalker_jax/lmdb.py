"""Reading LMDB files made by others: values by key, and nothing that a damaged file says of itself is believed.

The library that writes them maps the file into memory and goes where its page numbers point: of a file that was cut off,
the process ends by a signal (seen with lmdb 3.0.0, SIGBUS). Here every page, node and value is compared with the size of the
file before it is read. The format is version 1, which LMDB 0.9 writes on all machines of 64 bits and little-endian order:
pages of one size, two pages that say where the tree begins (the younger holds), branches and leaves with sorted keys, and
values that do not fit a page in a run of pages of their own. Several processes and threads may read at once; nothing is
locked or written.
"""

import io
import os
import pathlib
import struct
import weakref
from collections.abc import Iterator
from typing import NamedTuple

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import FilePart, open_regular

_EXPECTED = "an LMDB environment (a folder with data.mdb, or that file)"
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEADER = 16  # Of a page: its number (8 bytes), padding (2), kind (2), and the ends of its free space (2, 2) or a count (4).
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
_KINDS = _BRANCH | _LEAF | _OVERFLOW | _META | 0x20  # 0x20: a leaf of values of one size, which a plain database has not.
_NODE = struct.Struct("<HHHH")  # Size or page number, low and high; flags; length of the key, which follows.
_BIG = 1  # Of a node: its value lies in pages of its own.
_NO_PAGE = (1 << 64) - 1
_MAX_DEPTH = 32  # The library's own.


class Span(NamedTuple):
  """Where a value lies in the file, in bytes."""

  offset: int
  size: int


class Database:
  """The unnamed database of an LMDB environment, by key. It can be pickled: another process opens the file again.

  Args:
    path: the folder that holds data.mdb, or that file, whatever its name.

  Raises:
    InputError: no such file, no LMDB, of another version, or its first pages are damaged.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    with open_regular(self.path / "data.mdb" if self.path.is_dir() else self.path, _EXPECTED) as file:
      self._descriptor = os.dup(file.fileno())
      weakref.finalize(self, os.close, self._descriptor)
      self._size = os.fstat(file.fileno()).st_size
    first = self._read_meta(0, 4096)
    if first is None:
      raise InputError(self.path, "", "no LMDB: its first page is another", f"{_EXPECTED} of version {_VERSION}, as LMDB 0.9 writes it")
    page_size = first[1]
    if page_size not in (1 << n for n in range(9, 17)):
      raise InputError(self.path, "page size", page_size, "a power of 2 from 512 to 65536")
    second = self._read_meta(page_size, page_size)
    if second is None:  # The library writes both, always. The first alone may tell of the time before anything was written.
      raise self._damage(1, "not the second of the two first pages")
    _, _, flags, depth, entries, root, last_page = max(first, second)  # By the number of the transaction.
    if flags & 0x7E:  # Keys in another order, or several values of a key.
      raise InputError(self.path, "flags", hex(flags), "a plain database: a value for each key, in the order of their bytes")
    self._page_size, self._depth, self._entries, self._root = page_size, depth, entries, root
    self._pages = min(last_page + 1, self._size // page_size)
    if root != _NO_PAGE:
      if depth > _MAX_DEPTH:
        raise InputError(self.path, "depth", depth, f"{_MAX_DEPTH} at most")
      self._read_page(root)  # Of a file that was cut off it is often missing, as it is written last.

  def __reduce__(self):
    return Database, (self.path,)

  def __len__(self) -> int:
    """How many values there are, as the file says."""
    return self._entries if self._root != _NO_PAGE else 0

  def find(self, key: bytes) -> Span | None:
    """Where the value of a key lies; None where there is no such key.

    Raises:
      InputError: the pages on the way are damaged.
    """
    number = self._root
    if number == _NO_PAGE:
      return None
    for _ in range(self._depth):
      page, leaf = self._read_page(number)
      offsets = self._nodes(number, page)
      low, high = (0 if leaf else 1), len(offsets)  # The first key of a branch stands for all before it.
      while low < high:  # The first whose key is greater.
        middle = (low + high) // 2
        if self._key(number, page, offsets[middle]) <= key:
          low = middle + 1
        else:
          high = middle
      if leaf:
        if low == 0 or self._key(number, page, offsets[low - 1]) != key:
          return None
        return self._value(number, page, offsets[low - 1])
      if not offsets:
        raise self._damage(number, "a branch without keys")
      number = self._child(page, offsets[low - 1])
    raise self._damage(number, f"a tree deeper than {self._depth}")

  def items(self) -> Iterator[tuple[bytes, Span]]:
    """Keys in order, and where their values lie.

    Raises:
      InputError: at the first page that is damaged; what was yielded before is whole.
    """
    last = None
    for number, page in self._leaves():
      for offset in self._nodes(number, page):
        key = self._key(number, page, offset)
        if last is not None and key <= last:
          raise self._damage(number, "keys out of order")
        last = key
        yield key, self._value(number, page, offset)

  def open(self, span: Span) -> io.BufferedReader:
    """A value as a file to read."""
    return io.BufferedReader(FilePart(self.read_at, *span))

  def read(self, span: Span) -> bytes:
    """A value, whole."""
    return self.read_at(span.offset, span.size)

  def read_at(self, offset: int, size: int) -> bytes:
    """Bytes of the file.

    Raises:
      InputError: it ends before, or the disk does not give them.
    """
    try:
      data = os.pread(self._descriptor, size, offset)
    except OSError as error:
      raise InputError(self.path, f"byte {offset}", error.strerror or error, _EXPECTED) from None
    if len(data) < size:
      raise InputError(self.path, f"byte {offset}", f"{len(data)} bytes (the file is cut off)", size)
    return data

  def _read_meta(self, offset: int, page_size: int) -> tuple[int, ...] | None:
    """(transaction, page size, flags, depth, entries, root, last page) of one of the two first pages; None if it is none."""
    if self._size < offset + max(page_size, 512):
      return None
    page = self.read_at(offset, _HEADER + 136)
    (kind,) = struct.unpack_from("<H", page, 10)
    magic, version = struct.unpack_from("<II", page, _HEADER)
    if not kind & _META or (magic, version) != (_MAGIC, _VERSION):
      return None
    (size,) = struct.unpack_from("<I", page, _HEADER + 24)  # In the first database's record; the second is what is read.
    _, flags, depth, _, _, _, entries, root = struct.unpack_from("<IHHQQQQQ", page, _HEADER + 72)
    last_page, transaction = struct.unpack_from("<QQ", page, _HEADER + 120)
    return transaction, size, flags, depth, entries, root, last_page

  def _leaves(self) -> Iterator[tuple[int, bytes]]:
    stack = [] if self._root == _NO_PAGE else [(self._root, 1)]
    for _ in range(self._pages):
      if not stack:
        return
      number, depth = stack.pop()
      page, leaf = self._read_page(number)
      if leaf:
        yield number, page
      elif depth >= self._depth:
        raise self._damage(number, f"a tree deeper than {self._depth}")
      else:
        stack += [(self._child(page, offset), depth + 1) for offset in reversed(self._nodes(number, page))]
    if stack:  # A tree with more pages than the file points at some of them twice.
      raise self._damage(stack[-1][0], "a page of two branches")

  def _read_page(self, number: int) -> tuple[bytes, bool]:
    """A branch or a leaf, and whether it is a leaf."""
    if not 2 <= number < self._pages:
      raise InputError(self.path, f"page {number}", f"{self._pages} pages (the file is cut off or damaged)", "one of them")
    page = self.read_at(number * self._page_size, self._page_size)
    kind = struct.unpack_from("<H", page, 10)[0] & _KINDS
    if kind not in (_BRANCH, _LEAF):
      raise self._damage(number, f"a page of kind {kind}")
    return page, kind == _LEAF

  def _nodes(self, number: int, page: bytes) -> tuple[int, ...]:
    (end,) = struct.unpack_from("<H", page, 12)
    if not _HEADER <= end <= self._page_size or end % 2:
      raise self._damage(number, f"{end} bytes of header")
    offsets = struct.unpack_from(f"<{(end - _HEADER) // 2}H", page, _HEADER)
    if any(offset > self._page_size - _NODE.size for offset in offsets):
      raise self._damage(number, "a node beyond its page")
    return offsets

  def _key(self, number: int, page: bytes, offset: int) -> bytes:
    length = _NODE.unpack_from(page, offset)[3]
    start = offset + _NODE.size
    if start + length > self._page_size:
      raise self._damage(number, "a key beyond its page")
    return page[start : start + length]

  def _child(self, page: bytes, offset: int) -> int:
    low, high, highest, _ = _NODE.unpack_from(page, offset)
    return low | high << 16 | highest << 32

  def _value(self, number: int, page: bytes, offset: int) -> Span:
    low, high, flags, length = _NODE.unpack_from(page, offset)
    size, start = low | high << 16, offset + _NODE.size + length
    if flags & ~_BIG:  # A database within this one, or several values.
      raise self._damage(number, f"a node with flags {flags}")
    if not flags:
      if start + size > self._page_size:
        raise self._damage(number, "a value beyond its page")
      return Span(number * self._page_size + start, size)
    if start + 8 > self._page_size:
      raise self._damage(number, "a value beyond its page")
    (first,) = struct.unpack_from("<Q", page, start)
    if not 2 <= first < self._pages:
      raise self._damage(number, f"a value at page {first} of {self._pages}")
    header = self.read_at(first * self._page_size, _HEADER)
    kind, count = struct.unpack_from("<HI", header, 10)
    if kind & _KINDS != _OVERFLOW or first + count > self._pages or _HEADER + size > count * self._page_size:
      raise self._damage(first, f"a value of {size} bytes in {count} pages of kind {kind}")
    return Span(first * self._page_size + _HEADER, size)

  def _damage(self, page: int, found: str) -> InputError:
    return InputError(self.path, f"page {page}", f"{found} (the file is damaged)", _EXPECTED)
