"""Speech features on disk. The encoder is frozen, so each voice needs to be encoded only once.

A file is named after the sound and the encoder, so a changed encoder or a changed wav can never meet stale features. An
encoder is known by its key, which for Wav2Vec 2.0 is a digest of the checkpoint's files: where all features are there,
its weights are never loaded, and where `encoder_ids` remembers the key, not even read.
"""

import functools
import hashlib
import logging
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Literal, Protocol

import flax.linen as nn
import numpy as np
from jaxtyping import Float, PyTree

from rsatalker_jax.errors import InputError, MissingFeatures
from rsatalker_jax.files import whole_file
from rsatalker_jax.speech import level as levels
from rsatalker_jax.speech.checkpoints import checkpoint_id, load_wav2vec2, load_whisper
from rsatalker_jax.speech.encoder_ids import EncoderId, EncoderIds
from rsatalker_jax.speech.logmel import LogMel, encode_locally, find_sources, to_frames
from rsatalker_jax.speech.wav2vec2 import Wav2Vec2, encode_voice
from rsatalker_jax.speech.whisper import Whisper, encode_frames
from rsatalker_jax.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

logger = logging.getLogger(__name__)

# How features were come by: read; computed; computed because their file was damaged.
Origin = Literal["cached", "encoded", "rebuilt"]

_MEMBER = "features.npy"
_DTYPE = np.dtype("<f4")
# What numpy writes before an array of rows; nothing else is read, so that no damage can pass for another shape.
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(rb"\{'descr': '<f4', 'fortran_order': False, 'shape': \(([1-9]\d*), ([1-9]\d*)\), \} *\n")
_CHUNK = 1 << 20


class Degrade(Protocol):
  """What is done to a voice before it is encoded (`data.sound.Degradation`).

  Attributes:
    key: digest of all that decides what becomes of a voice, but for the voice.
  """

  @property
  def key(self) -> str: ...

  def __call__(self, wav: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]: ...


class DamagedFile(ValueError):
  """A cache file that is not what was written."""


class StoredFeatures:
  """Features of one voice on disk, (T, D) float32: an array whose slices of frames are read when they are asked for.

  No file stays open and nothing is mapped: a set of conversations has more voices than a process may have open files, and
  a file that is cut off under a map kills the process. Opening believes the file's header only if it fills the file
  exactly; the checksum of the contents is compared when they are first read.

  Args:
    path: a cache file.
    num_frames: T, to which the file's rows are resampled (`to_frames`); None takes them as they are.

  Raises:
    DamagedFile: it is not a whole cache file.
  """

  ndim = 2
  dtype = np.dtype(np.float32)

  def __init__(self, path: pathlib.Path, num_frames: int | None = None):
    self._path = path
    try:
      with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        (member,) = archive.infolist()
        if member.filename != _MEMBER or member.compress_type != zipfile.ZIP_STORED:
          raise DamagedFile(f"holds {member.filename!r}")
        file.seek(member.header_offset)
        name_length, extra_length = struct.unpack("<26xHH", file.read(30))
        self._member = member.header_offset + 30 + name_length + extra_length, member.file_size
        self._checksum = member.CRC
        file.seek(self._member[0])
        start = file.read(len(_MAGIC) + 2)
        header = file.read(int.from_bytes(start[len(_MAGIC) :], "little"))
    except DamagedFile:
      raise
    except Exception as error:  # zipfile raises a dozen kinds for a damaged archive.
      raise DamagedFile(str(error) or type(error).__name__) from None
    shape = _HEADER.fullmatch(header)
    if not start.startswith(_MAGIC) or shape is None:
      raise DamagedFile(f"its header begins with {(start + header)[:80]!r}")
    self._rows, width = map(int, shape.groups())
    self._offset = self._member[0] + len(start) + len(header)
    numbers = self._member[1] - len(start) - len(header)
    if self._rows * width * _DTYPE.itemsize != numbers:
      raise DamagedFile(f"{numbers} bytes of numbers for {self._rows} rows of {width}")
    self.shape = (self._rows if num_frames is None else num_frames, width)
    self._checked = False

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, frames: slice) -> Float[np.ndarray, "t D"]:
    """Frames in a fresh array.

    Raises:
      InputError: the file is damaged, or has gone since it was opened.
    """
    wanted = np.arange(len(self))[frames]
    if not wanted.size:
      return np.zeros((0, self.shape[1]), np.float32)
    if not self._checked:
      try:
        self.check()
      except DamagedFile as error:
        raise InputError(self._path, "", f"damaged ({error})", "whole speech features; encode_speech.py makes them anew") from None
    if len(self) == self._rows:
      first = wanted.min()
      return self._read(first, wanted.max() + 1)[wanted - first]
    low, high, weight = (x[wanted] for x in find_sources(self._rows, len(self)))
    first = low.min()
    rows = self._read(first, high.max() + 1)
    return rows[low - first] * (1.0 - weight) + rows[high - first] * weight

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    del copy  # There is no array yet that could be shared.
    return self[:].astype(dtype or np.float32, copy=False)

  def check(self) -> None:
    """Reads the file once and compares its checksum.

    Raises:
      DamagedFile: it is another, or the file cannot be read.
    """
    start, left = self._member
    checksum = 0
    try:
      with self._path.open("rb") as file:
        file.seek(start)
        while left and (chunk := file.read(min(_CHUNK, left))):
          checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
    except OSError as error:
      raise DamagedFile(error.strerror or error) from None
    if checksum != self._checksum:
      raise DamagedFile("its checksum is another")
    self._checked = True

  def _read(self, first: int, stop: int) -> Float[np.ndarray, "r D"]:
    width = self.shape[1]
    try:
      with self._path.open("rb") as file:
        file.seek(self._offset + int(first) * width * _DTYPE.itemsize)
        rows = np.fromfile(file, _DTYPE, int(stop - first) * width)
    except OSError as error:
      raise InputError(self._path, "", error.strerror or error, "speech features that stay while they are used") from None
    if len(rows) != (stop - first) * width:
      raise InputError(self._path, "", "a file that was cut off meanwhile", "speech features that stay while they are used")
    return rows.reshape(-1, width).astype(np.float32, copy=False)


class SpeechFeatures:
  """Features of voices at 25 fps from a frozen 50 Hz encoder: `features(wav (S,), num_frames) -> (num_frames, D)`.

  Neither the key nor the weights are asked for before a voice needs them.

  Args:
    find_id: gives the encoder's key, of its settings and its weights, and its name.
    load: gives the encoder and its parameters: `LogMel`, `Wav2Vec2` or `Whisper`.
    resample_first: whether Wav2Vec 2.0's convolutional features are brought to 25 fps before its Transformer, as DualTalk
      has it, instead of the hidden states behind it.
    cache_dir: where features are kept from run to run; None keeps none. Several processes may share it.
    encode_missing: whether voices that are not in `cache_dir` are encoded; otherwise they raise `MissingFeatures`.
    whole_frames: whether voices are cut, or filled up, to whole frames at 25 fps first, as causal features need it (so
      that resampling takes every other window as it is), and Whisper's.
    level: whether voices are brought to one level before they are encoded (`speech.level`).
  """

  def __init__(
      self,
      find_id: Callable[[], EncoderId],
      load: Callable[[], tuple[nn.Module, PyTree]],
      *,
      resample_first: bool = False,
      cache_dir: str | os.PathLike | None = None,
      encode_missing: bool = True,
      whole_frames: bool = False,
      level: bool = False,
  ):
    self._find_id, self._load = find_id, load
    self._resample_first, self._encode_missing = resample_first, encode_missing
    self._whole_frames, self._level = whole_frames, level
    self._cache_dir = None if cache_dir is None else pathlib.Path(cache_dir)
    self._noted = False

  def __call__(
      self, wav: Float[np.ndarray, "S"], num_frames: int | None = None, degrade: Degrade | None = None
  ) -> Float[np.ndarray, "T D"]:
    """Features of one voice in memory, from the cache or from the encoder; arguments as of `open`.

    Raises:
      MissingFeatures: there is no whole file of them, and missing ones must not be encoded.
      InputError: the encoder's checkpoint cannot be loaded.
    """
    return np.asarray(self.open(wav, num_frames, degrade))

  def open(
      self, wav: Float[np.ndarray, "S"], num_frames: int | None = None, degrade: Degrade | None = None
  ) -> StoredFeatures | Float[np.ndarray, "T D"]:
    """Like a call, but features that are in the cache stay on disk until slices of them are read.

    A damaged file is rebuilt, for which it is read whole; where that is not allowed (`encode_missing`), only its header
    is looked at, and damage behind it found when it is first read.

    Args:
      wav: the voice.
      num_frames: T; as many as the voice fills if None.
      degrade: makes of the voice what is encoded.

    Raises:
      MissingFeatures, InputError: as a call does.
    """
    frames = round(len(wav) / SAMPLE_RATE * FPS) if num_frames is None else num_frames
    if self._cache_dir is not None:
      return self._store(wav, frames, degrade)[0]
    features = self._encode(wav, frames, degrade)
    return np.asarray(features if len(features) == frames else to_frames(features, frames), np.float32)

  def fill(self, wav: Float[np.ndarray, "S"], num_frames: int, degrade: Degrade | None = None) -> Origin:
    """Sees to it that a voice is in the cache, whole, and says how it came there."""
    return self._store(wav, num_frames, degrade)[1]

  def path(self, wav: Float[np.ndarray, "S"], num_frames: int, degrade: Degrade | None = None) -> pathlib.Path:
    """The cache file of a voice: named after the voice as it was recorded, whatever is made of it."""
    if self._cache_dir is None:
      raise ValueError("these features are not kept in files")
    wav = self._fit(wav, num_frames)
    # Before the Transformer, the number of frames matters to the features.
    encoder = f"{self.id.key} at {num_frames} frames" if self._resample_first else self.id.key
    encoder += f" at one level {levels.VERSION}" if self._level else ""
    encoder += f" degraded {degrade.key}" if degrade else ""
    return self._cache_dir / f"{content_key(wav, encoder)}.npz"

  @functools.cached_property
  def id(self) -> EncoderId:
    """The encoder's."""
    return self._find_id()

  def _store(self, wav: Float[np.ndarray, "S"], frames: int, degrade: Degrade | None) -> tuple[StoredFeatures, Origin]:
    path = self.path(wav, frames, degrade)
    compute = lambda: self._encode(wav, frames, degrade)
    found = cached(path, compute, num_frames=frames, check=self._encode_missing)
    if not self._noted:
      EncoderIds(self._cache_dir).add(self.id)
      self._noted = True
    return found

  def _fit(self, wav: Float[np.ndarray, "S"], frames: int) -> Float[np.ndarray, "S2"]:
    wav = np.ascontiguousarray(wav, np.float32)
    if not self._whole_frames:
      return wav
    samples = frames * SAMPLES_PER_FRAME
    return np.pad(wav[:samples], (0, max(0, samples - len(wav))))

  def _encode(self, wav: Float[np.ndarray, "S"], frames: int, degrade: Degrade | None) -> Float[np.ndarray, "T50 D"]:
    if not self._encode_missing:
      found = self._describe_missing() + ", at one level" * self._level + ", of the voice degraded" * (degrade is not None)
      raise MissingFeatures(self._cache_dir, found=found)
    module, params = self._encoder
    wav = self._fit(wav, frames)
    wav = degrade(wav) if degrade else wav
    wav = levels.level_voice(wav) if self._level else wav
    if isinstance(module, Wav2Vec2):
      return encode_voice(module, params, wav, num_frames=frames if self._resample_first else None)
    if isinstance(module, Whisper):
      return encode_frames(module, params, wav, frames)
    return encode_locally(module, params, wav)

  def _describe_missing(self) -> str:
    """For someone who has encoded: perhaps with another encoder, or on another kind of device."""
    others = [encoder for encoder in EncoderIds(self._cache_dir).all() if encoder.key != self.id.key]
    there = f", but files of {', '.join(map(str, others))}" if others else ""
    return f"no whole speech features of encoder {self.id}{there}"

  @functools.cached_property
  def _encoder(self) -> tuple[nn.Module, PyTree]:
    key, encoder = self.id.key, self._load()
    if self._find_id().key != key:
      raise InputError("speech encoder", "", "a checkpoint that has changed since the program began", "one that stays")
    return encoder


def logmel_features(module: LogMel, **options) -> SpeechFeatures:
  """`SpeechFeatures` of log-mel energies; options as there."""
  options["whole_frames"] = module.causal
  encoder = EncoderId(" ".join(repr(module).split()), hashlib.sha256(repr(module).encode()).hexdigest())
  return SpeechFeatures(lambda: encoder, lambda: (module, {}), **options)


def wav2vec2_features(path_or_hub_id: str | os.PathLike, **options) -> SpeechFeatures:
  """`SpeechFeatures` of a Wav2Vec 2.0 checkpoint (see `load_wav2vec2`); options as there."""
  return _checkpoint_features(lambda: load_wav2vec2(path_or_hub_id), path_or_hub_id, **options)


def whisper_features(path_or_hub_id: str | os.PathLike, **options) -> SpeechFeatures:
  """`SpeechFeatures` of a Whisper checkpoint's encoder (see `load_whisper`); options as there."""
  return _checkpoint_features(lambda: load_whisper(path_or_hub_id), path_or_hub_id, **options | {"whole_frames": True})


def _checkpoint_features(
    load: Callable[[], tuple[nn.Module, PyTree]], path_or_hub_id: str | os.PathLike, **options
) -> SpeechFeatures:
  known = EncoderIds(options.get("cache_dir"))
  return SpeechFeatures(lambda: checkpoint_id(path_or_hub_id, known), load, **options)


def cached(
    path: pathlib.Path,
    compute: Callable[[], Float[np.ndarray, "T50 D"]],
    *,
    num_frames: int | None = None,
    check: bool = True,
) -> tuple[StoredFeatures, Origin]:
  """Opens a cache file, or computes its array and writes it first.

  An npz carries a checksum of its contents: a cut-off or damaged file is noticed, said and rebuilt.

  Args:
    path: the file.
    compute: gives the array.
    num_frames: of `StoredFeatures`.
    check: whether a file that is there is read to compare its checksum now, and not when its features are first read.
  """
  origin: Origin = "encoded"
  if path.is_file():
    try:
      stored = StoredFeatures(path, num_frames)
      if check:
        stored.check()
      return stored, "cached"
    except DamagedFile as error:
      origin = "rebuilt"
      logger.warning("%s is damaged (%s)", path, error)
  features = np.ascontiguousarray(compute(), _DTYPE)
  path.parent.mkdir(parents=True, exist_ok=True)
  with whole_file(path) as file:
    np.savez(file, features=features)
  return StoredFeatures(path, num_frames), origin


def content_key(wav: Float[np.ndarray, "S"], encoder: str) -> str:
  """Digest of a voice and an encoder, short enough for a file name."""
  return hashlib.sha256(encoder.encode() + np.ascontiguousarray(wav, np.float32).tobytes()).hexdigest()[:40]
