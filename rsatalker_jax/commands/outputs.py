"""Where a command will write, looked at before the work that would be lost."""

import os
import pathlib
from collections.abc import Mapping

from rsatalker_jax.errors import InputError


def check_output(flag: str, path: str | os.PathLike, inputs: Mapping[str, str | os.PathLike | None] = {}) -> None:
  """Looks whether a file can be written.

  Args:
    flag: the flag that names it, for errors.
    path: the file; its folder is made when it is written.
    inputs: by flag, files that are read and must not be written over; None where a flag is not given.

  Raises:
    InputError: it is a folder or another thing than a file, one of the inputs, below a file, or in a folder that may not be
      written.
  """
  path = pathlib.Path(path)
  if "\0" in str(path):
    raise InputError(flag, "", repr(str(path)), "a name without a null character")
  try:
    for name, given in inputs.items():
      if given is not None and _same_place(path, pathlib.Path(given)):
        raise InputError(flag, "", path, f"another file than {name}, which would be lost")
    if path.exists() and not path.is_file():
      raise InputError(flag, "", f"{path}, {'a folder' if path.is_dir() else 'no plain file'}", "the name of a file")
    folder = path.parent
    while not folder.exists():
      folder = folder.parent
    if not folder.is_dir():
      raise InputError(flag, "", f"{path}, below {folder}, a file", "a file in a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
      raise InputError(flag, "", f"{path}, in {folder}, which may not be written", "a file in a folder that may be")
  except OSError as error:
    raise InputError(flag, "", path, f"a file that can be written ({error.strerror or error})") from error


def _same_place(path: pathlib.Path, other: pathlib.Path) -> bool:
  """Whether writing the one changes the other: the same file, or a file in the other, which is a folder of inputs."""
  if path.exists() and other.exists() and path.samefile(other):
    return True
  return other.is_dir() and other.resolve() in path.resolve().parents and path.exists()
