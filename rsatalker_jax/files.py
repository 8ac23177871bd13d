"""Files that are whole or not there."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator
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
    temporary.unlink(missing_ok=True)
