"""The official files of Seamless Interaction: folders and WebDataset shards, found once and read in place.

    <label>/<split>/<batch>/<archive>/<file id>.{wav,mp4,json,npz}    as its downloader lays them out
    <label>/<split>/<batch>/<archive>.tar                             shards of the same four
    <label>/<split>/{audio,video}/<file id>.{wav,mp4}                 the bucket's own tree,
    <label>/<split>/{vad,transcript}/<file id>.jsonl                  below metadata/ or not

Of a shard the headers are read, one after another, and where each file lies; nothing is unpacked, and what is asked for later
is read from its place. So a shard takes no memory and no disk, whatever its size. Files whose names lead out of the folder are
passed over, and so are links out of it.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float

from rsatalker_jax import npz
from rsatalker_jax.data.audio import read_wav
from rsatalker_jax.data.seamless.names import FileId, Skip, parse_file_id
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import FilePart, open_regular, whole_file

_SHARD = "a WebDataset shard (.tar)"
_KINDS = {".wav": "wav", ".mp4": "mp4", ".json": "json", ".npz": "npz"}
_LINES = {"vad": "vad", "transcript": "transcript", "transcription": "transcript"}  # Folders of .jsonl files.
_MAX_HEADER = 1 << 20  # A tar's headers, names of any length among them.
_MAX_JSON = 64 << 20
_MAX_WAV = 2 << 30  # In a shard; `read_wav` has its own bounds for files.
_MAX_DEPTH = 12  # Of folders; the deepest layout has 6.


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a file's bytes lie.

  Attributes:
    path: the file, or the shard that it lies in.
    member: its name in the shard; empty where it is a file of its own.
    offset, size: in bytes, within `path`.
  """

  path: pathlib.Path
  member: str
  offset: int
  size: int

  def __str__(self) -> str:
    return f"{self.path}: {self.member}" if self.member else str(self.path)


@dataclasses.dataclass(frozen=True)
class Speech:
  """What is known of when a person speaks, and what.

  Attributes:
    vad, transcript: as the file has them; None where there is none. Times are seconds of the recording.
    skipped: what is there and damaged.
  """

  vad: list[dict[str, Any]] | None
  transcript: list[dict[str, Any]] | None
  skipped: Sequence[Skip] = ()


class Recordings:
  """The files of a folder by file id.

  Attributes:
    places: by id and kind: wav, mp4, json, npz, vad, transcript.
    shards: how many there are.
    skipped: names that are none, lead out of the folder or stand twice, and shards that are damaged.
  """

  def __init__(self, root: str | os.PathLike, wanted: set[str] | None = None):
    """Looks through a folder and its shards.

    Args:
      root: the folder.
      wanted: which ids; of others nothing is kept. None: all.

    Raises:
      InputError: no such folder.
    """
    self.root = pathlib.Path(root)
    self.places: dict[str, dict[str, Place]] = {}
    self.skipped: list[Skip] = []
    self.shards = 0
    self._wanted = wanted
    if not self.root.is_dir():
      raise InputError(root, "", "no such folder", "folders or shards of Seamless Interaction")
    self._real_root = self.root.resolve()
    self._scan(self.root, 0)

  def _scan(self, folder: pathlib.Path, depth: int) -> None:
    try:
      entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
      self.skipped.append(Skip(str(folder), "a folder that cannot be read", error.strerror or str(error)))
      return
    for entry in entries:
      path = pathlib.Path(entry.path)
      if entry.name.startswith("."):
        continue
      if entry.is_symlink() and not path.resolve().is_relative_to(self._real_root):
        self.skipped.append(Skip(str(path), "a link that leads out of the folder"))
      elif entry.is_dir(follow_symlinks=False):
        if depth < _MAX_DEPTH:
          self._scan(path, depth + 1)
      elif entry.name.endswith(".tar"):
        self._scan_shard(path)
      elif (kind := _kind(path)) and (file_id := parse_file_id(entry.name)):
        with contextlib.suppress(OSError):  # A link to nothing, or removed meanwhile.
          status = path.stat()
          if stat.S_ISREG(status.st_mode):
            self._add(file_id, kind, Place(path, "", 0, status.st_size))

  def _scan_shard(self, path: pathlib.Path) -> None:
    self.shards += 1
    try:
      for member in _members(path):
        parts = pathlib.PurePosixPath(member.name).parts
        if member.name.startswith("/") or ".." in parts:
          self.skipped.append(Skip(f"{path}: {member.name}", "a name that leads out of the folder"))
        elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None:
          kind, file_id = _kind(pathlib.Path(member.name)), parse_file_id(member.name)
          if kind and file_id:
            self._add(file_id, kind, Place(path, member.name, member.offset_data, member.size))
        elif not member.isdir():
          self.skipped.append(Skip(f"{path}: {member.name}", "no plain file in a shard"))
    except InputError as error:
      self.skipped.append(Skip(str(path), "a damaged shard, read up to there", str(error)))

  def _add(self, file_id: FileId, kind: str, place: Place) -> None:
    if file_id.rest or (self._wanted is not None and file_id.name not in self._wanted):
      return
    known = self.places.setdefault(file_id.name, {}).setdefault(kind, place)
    if known is not place:
      self.skipped.append(Skip(str(place), "a file of a name that is there already", f"as {known}"))

  def find(self, file_id: FileId, kind: str) -> Place | None:
    """Where a recording's file of a kind lies; None where there is none."""
    return self.places.get(file_id.name, {}).get(kind)

  def read_speech(self, file_id: FileId) -> Speech:
    """Voice activity and transcript of a recording; what is missing or damaged is None."""
    found: dict[str, list[dict[str, Any]] | None] = {"vad": None, "transcript": None}
    skipped: list[Skip] = []
    if (place := self.find(file_id, "json")) is not None:
      try:
        content = _read_json(place)
        for key in found:
          if (value := content.get(f"metadata:{key}")) is not None:
            found[key] = _check_events(place, f"metadata:{key}", value, timed=key == "vad")
      except InputError as error:
        skipped.append(Skip(file_id.name, "speech that cannot be read", str(error)))
    for key in found:
      if found[key] is None and (place := self.find(file_id, key)) is not None:
        try:
          found[key] = _check_events(place, key, _read_lines(place), timed=key == "vad")
        except InputError as error:
          skipped.append(Skip(file_id.name, "speech that cannot be read", str(error)))
    return Speech(found["vad"], found["transcript"], skipped)

  def read_voice(self, file_id: FileId) -> Float[np.ndarray, "S"] | None:
    """A recording's voice at 16 kHz (the files have 48); None where there is no wav.

    Raises:
      InputError: it is no whole wav.
    """
    place = self.find(file_id, "wav")
    if place is None:
      return None
    if not place.member:
      return read_wav(place.path, allow_silent=True)[0]
    if place.size > _MAX_WAV:
      raise InputError(place, "", f"{place.size} bytes", f"a wav of {_MAX_WAV >> 20} MB at most")
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
      copy(place, file)
      file.flush()
      try:
        return read_wav(file.name, allow_silent=True)[0]
      except InputError as error:
        raise InputError(place, error.key, error.found, error.expected) from None

  def read_arrays(self, file_id: FileId, keys: Sequence[str]) -> tuple[dict[str, np.ndarray], list[Skip]]:
    """Arrays of a recording's .npz at 30 Hz ("movement:is_valid", "smplh:body_pose" …), those of the keys that are there.

    Returns:
      The arrays, and those that are no plain ones (pickled, damaged, too large).
    """
    place = self.find(file_id, "npz")
    arrays, skipped = {}, []
    if place is None:
      return arrays, skipped
    try:
      with open_regular(place.path, "an .npz") as file:
        read_at = lambda offset, size: os.pread(file.fileno(), size, offset)
        archive = npz.open_archive(place, io.BufferedReader(FilePart(read_at, place.offset, place.size)), place.size)
        for key in keys:
          if key in archive:
            try:
              arrays[key] = archive[key]
            except InputError as error:
              skipped.append(Skip(file_id.name, "an array that cannot be read", str(error)))
    except InputError as error:
      skipped.append(Skip(file_id.name, "an array that cannot be read", str(error)))
    return arrays, skipped


def copy(place: Place, target: BinaryIO) -> None:
  """Writes a file's bytes, a piece at a time.

  Raises:
    InputError: there are fewer than there were.
  """
  with open_regular(place.path, "a file of Seamless Interaction") as file:
    file.seek(place.offset)
    left = place.size
    while left:
      chunk = file.read(min(left, 1 << 20))
      if not chunk:
        raise InputError(place, "", f"{place.size - left} bytes (cut off)", place.size)
      target.write(chunk)
      left -= len(chunk)


def _kind(path: pathlib.Path) -> str | None:
  if path.suffix == ".jsonl":
    return _LINES.get(path.parent.name)
  # Annotations lie beside as .json, in folders of their own (1P-IS, 3P-V …).
  return None if path.suffix == ".json" and path.parent.name[:2] in ("1P", "3P") else _KINDS.get(path.suffix)


def _members(path: pathlib.Path) -> Iterator[tarfile.TarInfo]:
  """The headers of a tar, without its contents.

  Raises:
    InputError: it is no tar, or damaged from some place on.
  """
  with open_regular(path, _SHARD) as file:
    size = os.fstat(file.fileno()).st_size
    position = -1
    try:
      with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # ty: ignore[no-matching-overload]
        while (member := archive.next()) is not None:
          archive.members.clear()  # Which it keeps of all that it has read.
          if member.offset <= position or member.size < 0 or member.offset_data + member.size > size:
            raise tarfile.ReadError(f"{member.name}: {member.size} bytes of {size}, cut off or damaged")
          position = member.offset
          yield member
        file.seek(archive.offset)  # `tarfile` takes a damaged header for the end, which is zeros to the end of the file.
        end = file.read(_MAX_HEADER)
        if len(end) < tarfile.BLOCKSIZE or any(end) or archive.offset + len(end) < size:
          raise tarfile.ReadError(f"no header at byte {archive.offset} of {size}, cut off or damaged")
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError, EOFError) as error:
      raise InputError(path, "", f"unreadable: {str(error) or type(error).__name__}", _SHARD) from None


class _Headers:
  """A tar as `tarfile` sees it: it may go anywhere, and read what headers need, whatever they say of themselves."""

  def __init__(self, file: BinaryIO):
    self._file = file

  def read(self, size: int = -1) -> bytes:
    if not 0 <= size <= _MAX_HEADER:
      raise tarfile.ReadError(f"a header of {size} bytes")
    return self._file.read(size)

  def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
    return self._file.seek(position, whence)

  def tell(self) -> int:
    return self._file.tell()


def _read_text(place: Place) -> str:
  if place.size > _MAX_JSON:
    raise InputError(place, "", f"{place.size} bytes", f"{_MAX_JSON >> 20} MB at most")
  with open_regular(place.path, "JSON") as file:
    file.seek(place.offset)
    data = file.read(place.size)
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise InputError(place, f"byte {error.start}", data[error.start : error.start + 4], "UTF-8") from None


def _load_json(place: Place, text: str) -> Any:
  try:
    return json.loads(text, parse_constant=lambda _: None)
  except (ValueError, RecursionError) as error:
    raise InputError(place, "", f"damaged JSON ({error})", "an object") from None


def _read_json(place: Place) -> Mapping[str, Any]:
  content = _load_json(place, _read_text(place))
  if not isinstance(content, dict):
    raise InputError(place, "", type(content).__name__, "an object with metadata:vad and metadata:transcript")
  return content


def _read_lines(place: Place) -> list[Any]:
  return [_load_json(place, line) for line in _read_text(place).splitlines() if line.strip()]


def _check_events(place: Place, key: str, events: Any, *, timed: bool) -> list[dict[str, Any]]:
  if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
    raise InputError(place, key, type(events).__name__, "a list of objects")
  number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool) and 0 <= x < 1e6
  for i, event in enumerate(events):
    start, end = event.get("start"), event.get("end")
    if timed and not (number(start) and number(end) and start <= end):
      raise InputError(place, f"{key}, {i}", f"{start!r} to {end!r}", "start and end in seconds")
  return events


def write_part(place: Place, path: pathlib.Path, *, link: bool) -> None:
  """Gives a file's bytes another name: a copy, whole or not at all, or a link to a file of its own.

  Raises:
    InputError: see `copy`.
  """
  if link and not place.member:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(place.path.resolve())
    return
  with whole_file(path) as file:
    copy(place, file)
