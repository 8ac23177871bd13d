"""UniLS-Talk: pairs of recordings, and the voice and FLAME motion of each in an LMDB.

    SeamlessInteractionTalk/seamless_interaction_pairs.json   {split: {key: [path of A, path of B, frames]}}
    SeamlessInteractionTalk/data_lmdb                         base name of a path -> the bytes of an .npz

An .npz has `audio` (S,) at 16 kHz, `motioncode` (T, 111 or more) at 25 fps, and in val and test `speech_mask`, which is not
read. Of a motioncode's columns [:104], [106:108] and [109:111] are used, as UniLS's own code does:

    0:100    expression of FLAME 2020; a motion here keeps the first 50
    100:103  rotation of the head, axis-angle, with zero mean over each clip: where the face points on average is lost
    103      rotation of the jaw about x, the first of its three axes; the others are 0 here
    106:108, 109:111   rotations of both eyes about x and y, which a motion here does not have
"""

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from rsatalker_jax import npz
from rsatalker_jax.data.audio import MAX_SECONDS, MIN_SECONDS
from rsatalker_jax.data.dualtalk import MAX_FRAME_DIFFERENCE
from rsatalker_jax.data.seamless.names import FileId, Skip, parse_file_id
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_text
from rsatalker_jax.lmdb import Database
from rsatalker_jax.types import FPS, MOTION_DIM, MOTION_GROUPS, SAMPLE_RATE, Motion

BASIS = "flame2020"
_CODE_DIM = 111  # As many columns at least.
_EXPRESSIONS = 100
_HEAD, _JAW_X = slice(100, 103), 103
_EYES = [106, 107, 109, 110]
_PAIRS = "seamless_interaction_pairs.json"
_EXPECTED = "the bytes of an .npz with audio (S,) and motioncode (T, 111)"
_MAX_PEAK = 16.0  # As for files (data.audio).
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test", "ood": "ood"}


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two people's recordings of one interaction, as the pairs' file has them.

  Attributes:
    name: of the conversation: V00_S0809_I00000582_P0947_P0948, and what follows in the names of pieces.
    split: train, val, test or ood.
    keys: of both in the LMDB.
    ids: of both.
    frames: as the pairs' file says.
  """

  name: str
  split: str
  keys: tuple[str, str]
  ids: tuple[FileId, FileId]
  frames: int

  @property
  def whole(self) -> bool:
    """Whether both are whole recordings, whose times are those of the official files."""
    return not (self.ids[0].rest or self.ids[1].rest)


@dataclasses.dataclass(frozen=True)
class Recording:
  """One person of a pair.

  Attributes:
    motion: [expression, jaw, head].
    expression: all 100 coefficients, of which a motion has 50.
    eyes: rotations about x and y of one eye and of the other, radians.
    voice: 16 kHz, in [-1, 1]; None where the file has none.
  """

  motion: Motion
  expression: Float[np.ndarray, "T 100"]
  eyes: Float[np.ndarray, "T 4"]
  voice: Float[np.ndarray, "S"] | None


def find_talk(folder: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path]:
  """The LMDB and the pairs' file of a folder, or of its folder SeamlessInteractionTalk.

  Raises:
    InputError: they are in neither.
  """
  folder = pathlib.Path(folder)
  for root in (folder, folder / "SeamlessInteractionTalk"):
    if (root / "data_lmdb").exists() and (root / _PAIRS).is_file():
      return root / "data_lmdb", root / _PAIRS
  found = "no such folder" if not folder.is_dir() else ", ".join(sorted(os.listdir(folder))[:10]) or "an empty folder"
  raise InputError(folder, "", found, f"UniLS-Talk's folder SeamlessInteractionTalk, with data_lmdb and {_PAIRS}")


def read_pairs(path: str | os.PathLike) -> tuple[list[Pair], list[Skip]]:
  """Reads the pairs' file.

  Returns:
    Pairs, each conversation once, and what is no pair of two people of one interaction.

  Raises:
    InputError: it is missing, or no JSON object.
  """
  text = read_text(path, f"UniLS-Talk's {_PAIRS}")
  try:
    # Pairs of key and value, in which a key that stands twice is seen; arrays are lists.
    splits = json.loads(text, object_pairs_hook=tuple, parse_constant=lambda _: None)
  except (ValueError, RecursionError) as error:
    raise InputError(path, "", f"damaged JSON ({error})", "{split: {key: [path of A, path of B, frames]}}") from None
  if not isinstance(splits, tuple):
    raise InputError(path, "", type(splits).__name__, "an object: {split: {key: [path of A, path of B, frames]}}")
  pairs: dict[frozenset[FileId], Pair] = {}
  skips: list[Skip] = []
  for split, entries in splits:
    if split.lower() not in _SPLITS or not isinstance(entries, tuple):
      count = f"{len(entries)} pairs" if isinstance(entries, tuple) else type(entries).__name__
      skips.append(Skip(f"split {split!r}", "a split that is none of train, val, test and ood", count))
      continue
    for key, entry in entries:
      pair = _parse_pair(key, _SPLITS[split.lower()], entry)
      if isinstance(pair, Skip):
        skips.append(pair)
        continue
      other = pairs.setdefault(frozenset(pair.ids), pair)
      if other is not pair and other.split != pair.split:
        skips.append(Skip(pair.name, "a conversation in two splits", f"{other.split}, where it stays, and {pair.split}"))
      elif other is not pair:
        skips.append(Skip(pair.name, "a conversation that is named twice", f"as {key!r}"))
  return sorted(pairs.values(), key=lambda pair: pair.name), skips


def _parse_pair(key: str, split: str, entry: object) -> Pair | Skip:
  shape = "an entry that is no [path, path, frames]"
  if not isinstance(entry, list) or len(entry) < 3:
    return Skip(key, shape, str(entry)[:100])
  *paths, frames = entry[:3]
  if not all(isinstance(path, str) for path in paths) or not isinstance(frames, int) or isinstance(frames, bool) or frames < 1:
    return Skip(key, shape, str(entry)[:100])
  a, b = map(parse_file_id, paths)
  if a is None or b is None:
    return Skip(key, "a name without an id of Seamless Interaction", ", ".join(repr(path[-100:]) for path in paths))
  if a.interaction != b.interaction or a.person == b.person:
    return Skip(key, "recordings that are not of two people of one interaction", f"{a.name}, {b.name}")
  name = f"{a.name}_{b.person}{a.rest}" if a.rest == b.rest else f"{a.name}{a.rest}_{b.person}{b.rest}"
  keys = [pathlib.PurePosixPath(path).name for path in paths]
  return Pair(name, split, (keys[0], keys[1]), (a, b), frames)


class Talk:
  """The recordings of UniLS-Talk by their keys. Threads may read at once, and it can be pickled.

  Args:
    path: the LMDB.

  Raises:
    InputError: see `lmdb.Database`.
  """

  def __init__(self, path: str | os.PathLike):
    self._database = Database(path)

  def keys(self) -> Iterator[str]:
    """In order; up to the first page that is damaged."""
    try:
      for key, _ in self._database.items():
        yield key.decode("utf-8", "replace")
    except InputError:
      return

  def measure(self, key: str) -> tuple[int, int | None]:
    """Frames of the motion and samples of the voice (None: there is none), by the headers of the arrays alone.

    Raises:
      InputError: no such key, or the value or its arrays are others.
    """
    archive, file = self._open(key)
    with file:
      return self._check_code(key, *archive.describe("motioncode")), self._check_voice(key, archive)

  def read(self, key: str) -> Recording:
    """A recording.

    Raises:
      InputError: see `measure`; or numbers are damaged or not finite.
    """
    archive, file = self._open(key)
    place = self._place(key)
    with file:
      self._check_code(key, *archive.describe("motioncode"))
      voice = None if self._check_voice(key, archive) is None else _to_voice(place, archive["audio"])
      code = npz.to_float32(place, "motioncode", archive["motioncode"], row="frame")
    motion = np.zeros((len(code), MOTION_DIM), np.float32)
    expression = motion[:, MOTION_GROUPS["expression"]]
    expression[:] = code[:, : expression.shape[1]]
    motion[:, MOTION_GROUPS["pose"]] = code[:, _HEAD]
    motion[:, MOTION_GROUPS["jaw"].start] = code[:, _JAW_X]
    return Recording(motion, code[:, :_EXPRESSIONS], code[:, _EYES], voice)

  def _place(self, key: str) -> str:
    return f"{self._database.path}: {key}"

  def _open(self, key: str) -> tuple[npz.Archive, io.BufferedReader]:
    span = self._database.find(key.encode())
    if span is None:
      raise InputError(self._database.path, key, "no such key", _EXPECTED)
    file = self._database.open(span)
    return npz.open_archive(self._place(key), file, span.size, _EXPECTED), file

  def _check_code(self, key: str, dtype: np.dtype, shape: tuple[int, ...]) -> int:
    if dtype.kind != "f" or len(shape) != 2 or shape[1] < _CODE_DIM or not 1 <= shape[0] <= MAX_SECONDS * FPS:
      raise InputError(self._place(key), "motioncode", f"{dtype} of shape {shape}", f"floats (T, {_CODE_DIM} or more)")
    return shape[0]

  def _check_voice(self, key: str, archive: npz.Archive) -> int | None:
    if "audio" not in archive:
      return None
    dtype, shape = archive.describe("audio")
    samples = int(np.prod(shape)) if len(shape) == 1 or (len(shape) == 2 and 1 in shape) else 0
    if dtype not in (np.float16, np.float32, np.float64, np.int16) or not MIN_SECONDS <= samples / SAMPLE_RATE <= MAX_SECONDS:
      expected = f"floats or 16-bit integers (S,), {MIN_SECONDS} s to {MAX_SECONDS // 3600} h at 16 kHz"
      raise InputError(self._place(key), "audio", f"{dtype} of shape {shape}", expected)
    return samples


def _to_voice(place: str, audio: np.ndarray) -> Float[np.ndarray, "S"]:
  scale = np.float32(32768) if audio.dtype.kind == "i" else np.float32(1)
  voice = npz.to_float32(place, "audio", audio).reshape(-1) / scale
  if np.abs(voice).max() > _MAX_PEAK:
    raise InputError(place, "audio", f"a peak of {np.abs(voice).max():.0f}", "floats in [-1, 1]")
  return voice


def check_lengths(frames: int, counts: dict[str, float]) -> tuple[int, int]:
  """The frames that all cover, and how many the longest has beyond them.

  Args:
    frames: what the pairs' file says.
    counts: frames by what has them.

  Raises:
    InputError: they differ by more than 12.
  """
  whole = {"the pairs' file": frames, **{name: int(np.ceil(count)) for name, count in counts.items()}}
  shortest, longest = min(whole, key=whole.__getitem__), max(whole, key=whole.__getitem__)
  kept, lost = whole[shortest], whole[longest] - whole[shortest]
  if lost > MAX_FRAME_DIFFERENCE:
    expected = f"{whole[longest]}, as in {longest} (up to {MAX_FRAME_DIFFERENCE} fewer are trimmed)"
    raise InputError(shortest, "frames", kept, expected)
  return kept, lost
