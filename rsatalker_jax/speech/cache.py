"""Speech features on disk. The encoder is frozen, so each voice needs to be encoded only once.

A file is named after the sound and the encoder, so a changed encoder or a changed wav can never meet stale features.
"""

import hashlib
import logging
import os
import pathlib
import zipfile
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float, PyTree

from rsatalker_jax.speech.logmel import encode_locally, to_frames
from rsatalker_jax.speech.wav2vec2 import Wav2Vec2, encode_voice
from rsatalker_jax.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

logger = logging.getLogger(__name__)

def make_speech_encoder(
    module: nn.Module,
    params: PyTree,
    *,
    resample_first: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> Callable[[Float[np.ndarray, "S"], int], Float[np.ndarray, "T D"]]:
  """Makes `encode(wav (S,), num_frames) -> (num_frames, D)` at 25 fps from a frozen 50 Hz encoder.

  Args:
    module, params: a speech encoder: `LogMel`, or `Wav2Vec2`.
    resample_first: whether Wav2Vec 2.0's convolutional features are brought to 25 fps before its Transformer, as DualTalk
      has it, instead of the hidden states behind it.
    cache_dir: where features are kept from run to run; None keeps none. Several processes may share it.
  """
  name = encoder_key(module, params)

  def encode_all(wav: Float[np.ndarray, "S"], num_frames: int) -> Float[np.ndarray, "T D"]:
    if isinstance(module, Wav2Vec2):
      return encode_voice(module, params, wav, num_frames=num_frames if resample_first else None)
    return encode_locally(module, params, wav)

  def encode(wav: Float[np.ndarray, "S"], num_frames: int | None = None) -> Float[np.ndarray, "T D"]:
    wav = np.ascontiguousarray(wav, np.float32)
    frames = round(len(wav) / SAMPLE_RATE * FPS) if num_frames is None else num_frames
    if getattr(module, "causal", False):  # Whole frames, so that resampling takes every other window as it is.
      samples = frames * SAMPLES_PER_FRAME
      wav = np.pad(wav[:samples], (0, max(0, samples - len(wav))))
    if cache_dir is None:
      features = encode_all(wav, frames)
    else:
      key = content_key(wav, f"{name} at {frames} frames" if resample_first else name)
      features = cached(pathlib.Path(cache_dir) / f"{key}.npz", lambda: encode_all(wav, frames))
    return np.asarray(features if len(features) == frames else to_frames(features, frames), np.float32)

  return encode


def cached(path: pathlib.Path, compute: Callable[[], Float[np.ndarray, "T50 D"]]) -> Float[np.ndarray, "T50 D"]:
  """Reads an array from its cache file, or computes it and writes the file.

  An npz carries a checksum of its contents, which numpy verifies on reading: a cut-off or damaged file is noticed, said
  and rebuilt.
  """
  if path.is_file():
    try:
      with np.load(path, allow_pickle=False) as archive:
        return archive["features"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
      logger.warning("%s is damaged (%s); computing its features again", path, error)
  features = compute()
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("wb") as file:
      np.savez(file, features=features)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return features


def encoder_key(module: nn.Module, params: PyTree) -> str:
  """Digest of an encoder: its class, its settings and its weights."""
  digest = hashlib.sha256(repr(module).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def content_key(wav: Float[np.ndarray, "S"], encoder: str) -> str:
  """Digest of a voice and an encoder, short enough for a file name."""
  return hashlib.sha256(encoder.encode() + np.ascontiguousarray(wav).tobytes()).hexdigest()[:40]
