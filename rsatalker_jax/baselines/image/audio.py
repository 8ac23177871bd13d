"""How image-based talking heads hear: a window of features about each frame, and attention over neighbouring windows.

Shared by GaussianTalker, ER-NeRF and SyncTalk, which have it from AD-NeRF (Guo et al. 2021): 0.32 s of features become one
code, and 8 such codes of neighbouring frames are averaged by attention. Here features come at 25 fps, so that 0.32 s are 8
of them and not 16; their width is whatever the run's speech encoder gives.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rsatalker_jax.data.pipeline import Features

NEIGHBOURS = 8  # Windows, of the frames i − 4 … i + 3.
WINDOW = 8  # Features of a window: of the frames i − 4 … i + 3.
SPEECH_FRAMES = NEIGHBOURS + WINDOW - 1
_BEFORE = NEIGHBOURS // 2 + WINDOW // 2


def speech_around(features: Features, frames: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k 15 D"]:
  """The features of frames i − 8 … i + 6 for each frame i; zeros beyond both ends.

  Args:
    features: of a voice at 25 fps; may lie on disk, of which only what is needed is read.
    frames: numbers of frames.
  """
  frames = np.asarray(frames)
  first, last = max(int(frames.min()) - _BEFORE, 0), int(frames.max()) - _BEFORE + SPEECH_FRAMES
  near = np.asarray(features[first:last], np.float32)
  numbers = frames[:, None] + np.arange(-_BEFORE, SPEECH_FRAMES - _BEFORE) - first
  inside = (numbers >= 0) & (numbers < len(near))
  return np.where(inside[..., None], near[np.where(inside, numbers, 0)], np.float32(0))


def audio_windows(speech: Float[Array, "*b 15 D"]) -> Float[Array, "*b 8 8 D"]:
  """The windows of the 8 frames about each frame, of what `speech_around` gives."""
  return speech[..., np.arange(NEIGHBOURS)[:, None] + np.arange(WINDOW), :]


def leaky(x: Array) -> Array:
  """The networks' rectifier, of slope 0.02 below zero."""
  return nn.leaky_relu(x, 0.02)


class AudioNet(nn.Module):
  """A window of features as one code.

  Attributes:
    features: of the code.
  """

  features: int = 32

  @nn.compact
  def __call__(self, windows: Float[Array, "*b 8 D"]) -> Float[Array, "*b features"]:
    x = windows.reshape(-1, *windows.shape[-2:])
    for width in (32, 32, 64, 64):
      x = leaky(nn.Conv(width, (3,), strides=2, padding=1)(x))
    x = jnp.mean(x, axis=-2)  # Of one: the four strides have made one of eight.
    x = leaky(nn.Dense(64)(x))
    return nn.Dense(self.features)(x).reshape(*windows.shape[:-2], self.features)


class AudioAttention(nn.Module):
  """The mean of the codes of neighbouring windows, by weights that the codes themselves give."""

  @nn.compact
  def __call__(self, codes: Float[Array, "*b 8 C"]) -> Float[Array, "*b C"]:
    x = codes.reshape(-1, *codes.shape[-2:])
    for width in (16, 8, 4, 2, 1):
      x = leaky(nn.Conv(width, (3,), padding=1)(x))
    weights = jax.nn.softmax(nn.Dense(NEIGHBOURS)(x[..., 0]), axis=-1)
    return jnp.sum(weights.reshape(*codes.shape[:-1], 1) * codes, axis=-2)


class SpeechCode(nn.Module):
  """What is heard about a frame, as one code.

  Parameters lie under "windows" (`AudioNet`) and "attention" (`AudioAttention`, whose rate is five times the others').

  Attributes:
    features: of the code.
  """

  features: int = 32

  @nn.compact
  def __call__(self, speech: Float[Array, "*b 15 D"]) -> Float[Array, "*b features"]:
    return AudioAttention(name="attention")(AudioNet(self.features, name="windows")(audio_windows(speech)))
