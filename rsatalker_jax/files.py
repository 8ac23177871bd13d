"""Files that are whole or not there."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """A file to write that gets its name when it is complete; what had that name before stays until then.

  Its folder must exist. Libraries that want a name instead of a file get `file.name`.
  """
  path = pathlib.Path(path)
  # A name of its own: processes on different hosts, at the same file, may have the same process id.
  temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
  try:
    with temporary.open("wb") as file:
      yield file
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
