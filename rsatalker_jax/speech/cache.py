"""Speech features on disk. The encoder is frozen, so each voice needs to be encoded only once.

A file is named after the sound and the encoder, so a changed encoder or a changed wav can never meet stale features. An
encoder is known by its key, which for Wav2Vec 2.0 is a digest of the checkpoint's files: where all features are there,
its weights are never loaded.
"""

import functools
import hashlib
import logging
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import numpy as np
from jaxtyping import Float, PyTree

from rsatalker_jax.errors import InputError, MissingFeatures
from rsatalker_jax.files import whole_file
from rsatalker_jax.speech.checkpoints import checkpoint_key, load_wav2vec2
from rsatalker_jax.speech.logmel import LogMel, encode_locally, to_frames
from rsatalker_jax.speech.wav2vec2 import Wav2Vec2, encode_voice
from rsatalker_jax.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

logger = logging.getLogger(__name__)

# How features were come by: read; computed; computed because their file was damaged.
Origin = Literal["cached", "encoded", "rebuilt"]


class SpeechFeatures:
  """Features of voices at 25 fps from a frozen 50 Hz encoder: `features(wav (S,), num_frames) -> (num_frames, D)`.

  Neither the key nor the weights are asked for before a voice needs them.

  Args:
    find_key: gives a digest of the encoder, its settings and its weights.
    load: gives the encoder and its parameters: `LogMel`, or `Wav2Vec2`.
    resample_first: whether Wav2Vec 2.0's convolutional features are brought to 25 fps before its Transformer, as DualTalk
      has it, instead of the hidden states behind it.
    cache_dir: where features are kept from run to run; None keeps none. Several processes may share it.
    encode_missing: whether voices that are not in `cache_dir` are encoded; otherwise they raise `MissingFeatures`.
    whole_frames: whether voices are cut, or filled up, to whole frames at 25 fps first, as causal features need it (so
      that resampling takes every other window as it is).
  """

  def __init__(
      self,
      find_key: Callable[[], str],
      load: Callable[[], tuple[nn.Module, PyTree]],
      *,
      resample_first: bool = False,
      cache_dir: str | os.PathLike | None = None,
      encode_missing: bool = True,
      whole_frames: bool = False,
  ):
    self._find_key, self._load = find_key, load
    self._resample_first, self._encode_missing = resample_first, encode_missing
    self._whole_frames = whole_frames
    self._cache_dir = None if cache_dir is None else pathlib.Path(cache_dir)

  def __call__(self, wav: Float[np.ndarray, "S"], num_frames: int | None = None) -> Float[np.ndarray, "T D"]:
    """Features of one voice, from the cache or from the encoder.

    Raises:
      MissingFeatures: there is no whole file of them, and missing ones must not be encoded.
      InputError: the encoder's checkpoint cannot be loaded.
    """
    frames = round(len(wav) / SAMPLE_RATE * FPS) if num_frames is None else num_frames
    features, _ = self._find(wav, frames)
    return np.asarray(features if len(features) == frames else to_frames(features, frames), np.float32)

  def fill(self, wav: Float[np.ndarray, "S"], num_frames: int) -> Origin:
    """Sees to it that a voice is in the cache, whole, and says how it came there."""
    return self._find(wav, num_frames)[1]

  def path(self, wav: Float[np.ndarray, "S"], num_frames: int) -> pathlib.Path:
    """The cache file of a voice."""
    wav = self._fit(wav, num_frames)
    # Before the Transformer, the number of frames matters to the features.
    encoder = f"{self._key} at {num_frames} frames" if self._resample_first else self._key
    return self._cache_dir / f"{content_key(wav, encoder)}.npz"

  def _find(self, wav: Float[np.ndarray, "S"], frames: int) -> tuple[Float[np.ndarray, "T50 D"], Origin]:
    wav = self._fit(wav, frames)
    if self._cache_dir is None:
      return self._encode(wav, frames), "encoded"
    return cached(self.path(wav, frames), lambda: self._encode(wav, frames))

  def _fit(self, wav: Float[np.ndarray, "S"], frames: int) -> Float[np.ndarray, "S2"]:
    wav = np.ascontiguousarray(wav, np.float32)
    if not self._whole_frames:
      return wav
    samples = frames * SAMPLES_PER_FRAME
    return np.pad(wav[:samples], (0, max(0, samples - len(wav))))

  def _encode(self, wav: Float[np.ndarray, "S"], frames: int) -> Float[np.ndarray, "T50 D"]:
    if not self._encode_missing:
      raise MissingFeatures(self._cache_dir)
    module, params = self._encoder
    if isinstance(module, Wav2Vec2):
      return encode_voice(module, params, wav, num_frames=frames if self._resample_first else None)
    return encode_locally(module, params, wav)

  @functools.cached_property
  def _key(self) -> str:
    return self._find_key()

  @functools.cached_property
  def _encoder(self) -> tuple[nn.Module, PyTree]:
    key, encoder = self._key, self._load()
    if self._find_key() != key:
      raise InputError("speech encoder", "", "a checkpoint that has changed since the program began", "one that stays")
    return encoder


def logmel_features(module: LogMel, **options) -> SpeechFeatures:
  """`SpeechFeatures` of log-mel energies; options as there."""
  options["whole_frames"] = module.causal
  key = hashlib.sha256(repr(module).encode()).hexdigest()
  return SpeechFeatures(lambda: key, lambda: (module, {}), **options)


def wav2vec2_features(path_or_hub_id: str | os.PathLike, **options) -> SpeechFeatures:
  """`SpeechFeatures` of a Wav2Vec 2.0 checkpoint (see `load_wav2vec2`); options as there."""
  return SpeechFeatures(lambda: checkpoint_key(path_or_hub_id), lambda: load_wav2vec2(path_or_hub_id), **options)


def cached(
    path: pathlib.Path, compute: Callable[[], Float[np.ndarray, "T50 D"]]
) -> tuple[Float[np.ndarray, "T50 D"], Origin]:
  """Reads an array from its cache file, or computes it and writes the file.

  An npz carries a checksum of its contents, which numpy verifies on reading: a cut-off or damaged file is noticed, said
  and rebuilt.
  """
  origin: Origin = "encoded"
  if path.is_file():
    try:
      with np.load(path, allow_pickle=False) as archive:
        return archive["features"], "cached"
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
      origin = "rebuilt"
      logger.warning("%s is damaged (%s)", path, error)
  features = compute()
  path.parent.mkdir(parents=True, exist_ok=True)
  with whole_file(path) as file:
    np.savez(file, features=features)
  return features, origin


def content_key(wav: Float[np.ndarray, "S"], encoder: str) -> str:
  """Digest of a voice and an encoder, short enough for a file name."""
  return hashlib.sha256(encoder.encode() + np.ascontiguousarray(wav, np.float32).tobytes()).hexdigest()[:40]
