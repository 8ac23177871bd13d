"""Files that are whole or not there, and files from outside that may be anything."""

import codecs
import contextlib
import io
import os
import pathlib
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

from rsatalker_jax.errors import InputError


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """A file to write that gets its name when it is complete; what had that name before stays until then.

  Its folder is made if it does not exist. Libraries that want a name instead of a file get `file.name`.

  Raises:
    InputError: it cannot be written: its folder may not be, or the disk is full.
  """
  path = pathlib.Path(path)
  # A name of its own: processes on different hosts, at the same file, may have the same process id.
  temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb") as file:
      yield file
    os.replace(temporary, path)
  except OSError as error:
    ours = (None, str(temporary), str(path), *map(str, path.parents))
    if error.filename not in ours:  # Of another file that is read meanwhile.
      raise
    raise InputError(path, "", error.strerror or error, "a file that can be written") from error
  finally:
    with contextlib.suppress(OSError):  # What never came to be.
      temporary.unlink(missing_ok=True)


def link_or_copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
  """Gives a file another name: a hard link, or a copy on another disk and where the file system has no links."""
  try:
    os.link(source, target)
  except OSError:
    shutil.copyfile(source, target)


def open_regular(path: str | os.PathLike, expected: str) -> BinaryIO:
  """Opens a file to read; a pipe or a device, which might block or never end, is refused.

  Args:
    path: the file.
    expected: what the line of the error says there should be.

  Raises:
    InputError: it is missing, a folder, not readable or not a regular file.
  """
  try:
    # Without O_NONBLOCK, opening a pipe waits for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except (OSError, ValueError) as error:  # ValueError: a name with a null character.
    raise InputError(path, "", getattr(error, "strerror", None) or error, expected) from None
  mode = os.fstat(descriptor).st_mode
  if not stat.S_ISREG(mode):
    os.close(descriptor)
    raise InputError(path, "", "a folder" if stat.S_ISDIR(mode) else "a pipe or a device", f"a regular file: {expected}")
  return os.fdopen(descriptor, "rb")


def read_whole(path: str | os.PathLike, expected: str, max_bytes: int = 1 << 30) -> bytes:
  """The bytes of a regular file.

  Raises:
    InputError: see `open_regular`; or it has more than `max_bytes`.
  """
  with open_regular(path, expected) as file:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:  # A sparse file takes no disk and all memory.
      raise InputError(path, "", f"{size} bytes", f"{expected}, of {max_bytes >> 20} MB at most")
    try:
      return file.read()
    except OSError as error:
      raise InputError(path, "", error.strerror or error, expected) from None


def read_text(path: str | os.PathLike, expected: str) -> str:
  """The text of a file in UTF-8, or in UTF-16 with a byte order mark, as Windows' programs write it.

  Raises:
    InputError: see `read_whole`; or it is in another encoding.
  """
  data = read_whole(path, expected)
  encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
  try:
    text = data.decode(encoding)
  except UnicodeDecodeError as error:
    found = f"{data[error.start : error.start + 4]!r}, which is not {encoding.removesuffix('-sig').upper()}"
    raise InputError(path, f"byte {error.start}", found, f"{expected}, saved as UTF-8") from None
  if "\0" in text:
    raise InputError(path, f"character {text.index(chr(0))}", "a zero, which no text has", f"{expected}, saved as UTF-8")
  return text


class FilePart(io.RawIOBase):
  """Part of a file as a file of its own, to read.

  Args:
    read_at: from an offset in the whole file and a number of bytes to these bytes; to fewer where the file ends.
    offset, size: of the part.
  """

  def __init__(self, read_at: Callable[[int, int], bytes], offset: int, size: int):
    self._read_at, self._offset, self._size, self._position = read_at, offset, size, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
    if position < 0:
      raise ValueError(f"{position=} before the start")
    self._position = position
    return position

  def readinto(self, buffer) -> int:
    data = self._read_at(self._offset + self._position, max(0, min(len(buffer), self._size - self._position)))
    buffer[: len(data)] = data
    self._position += len(data)
    return len(data)
