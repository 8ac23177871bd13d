"""Log-mel features behind the interface that Wav2Vec 2.0 has: `apply(params, wav (S,)) -> (T50, D)` at 50 Hz."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rsatalker_jax.types import SAMPLE_RATE


class LogMel(nn.Module):
  """Log energies of a mel filter bank in 25 ms windows; nothing to train, so `params` is empty.

  Features begin as Wav2Vec 2.0's receptive fields do (400 samples every 320, no padding: T50 = (S - 400) // 320 + 1), so
  the two encoders can be exchanged without shifting the lips; each stacks several windows, `hop` samples apart.

  Of whole frames at 25 fps (S = 640 T) there are 2T - 1 features, and `to_frames` takes every other one unchanged: frame
  j is feature 2j, whose windows begin at sample 640 j, whatever the length. Four windows every 160 samples end 240
  samples (15 ms) after frame j does. `causal` moves all windows back by so much, with zeros before the first sample:
  frame j then sees samples 640 j - 240 … 640 (j + 1) and nothing later.

  Attributes:
    num_mels: filters, evenly spaced in mel from 0 to 8 kHz.
    hop: samples between windows, a divisor of 320. Lips that close for a P are closed for two frames at most: it takes
      10 ms to tell it from a T.
    context: consecutive windows stacked into one feature. 640 / hop keep everything when features are taken at 25 Hz.
    causal: whether the windows of frame j end with it (see above).
  """

  num_mels: int = 64
  hop: int = 160
  context: int = 4
  causal: bool = False

  WINDOW = 400
  STRIDE = 320  # Samples between features.
  FFT = 1024
  FLOOR = 1e-8  # Quiet speech in one filter has about 1e-6, a full-scale sine 0.25; below the floor is noise.

  def num_frames(self, samples: int) -> int:
    """T50 for a clip of so many samples."""
    return (samples - self.WINDOW) // self.STRIDE + 1

  @property
  def features(self) -> int:
    return self.num_mels * self.context

  @property
  def overhang(self) -> int:
    """How many samples beyond the end of frame j its windows reach."""
    return max(0, self.WINDOW + (self.context - 1) * self.hop - 2 * self.STRIDE)

  @nn.compact
  def __call__(self, wav: Float[Array, "S"], past: Float[Array, "P"] | None = None) -> Float[Array, "T50 D"]:
    """Args: `past`, if causal, holds the `overhang` samples before `wav` when it is a piece of a longer voice."""
    frames = self.num_frames(wav.shape[0])
    if self.causal:
      wav = jnp.concatenate([jnp.zeros(self.overhang) if past is None else past, wav])
    step = self.STRIDE // self.hop
    wanted = (frames - 1) * step + self.context
    count = min(wanted, (wav.shape[0] - self.WINDOW) // self.hop + 1)
    windows = wav[np.arange(count)[:, None] * self.hop + np.arange(self.WINDOW)]
    taper = np.hanning(self.WINDOW + 1)[:-1]  # Periodic Hann.
    spectrum = jnp.fft.rfft(windows * taper, self.FFT)
    power = (jnp.abs(spectrum) / taper.sum()) ** 2
    energy = power @ mel_filters(self.num_mels, self.FFT).T.astype(np.float32)
    # Fixed, so that a stream and a whole file agree: silence is -2, quiet speech about -0.7, loud speech 1.5.
    level = (jnp.log10(energy + self.FLOOR) + 5.0) / 1.5
    stacked = jnp.pad(level, ((0, wanted - count), (0, 0)), mode="edge")
    last = (frames - 1) * step + 1
    return jnp.concatenate([stacked[i : i + last : step] for i in range(self.context)], axis=-1)


def encode_locally(module: nn.Module, params: PyTree, wav: Float[np.ndarray, "S"]) -> Float[np.ndarray, "T50 D"]:
  """Features of an encoder whose frames depend on their own windows alone, such as `LogMel`.

  Voices are padded to multiples of five seconds and the features cut back: few lengths, few compilations.
  """
  padded = np.pad(wav, (0, -len(wav) % (5 * SAMPLE_RATE)))
  return np.asarray(_apply(module, params, padded), np.float32)[: module.num_frames(len(wav))]


_apply = jax.jit(lambda module, params, wav: module.apply(params, wav), static_argnums=0)


def mel_filters(num_mels: int, fft: int, *, rate: int = SAMPLE_RATE) -> Float[np.ndarray, "M R"]:
  """Triangular filters (M, fft // 2 + 1), peak 1, centres evenly spaced on the HTK mel scale up to rate / 2."""
  mel_top = 2595.0 * np.log10(1.0 + rate / 2 / 700.0)
  edges = 700.0 * (10.0 ** (np.linspace(0.0, mel_top, num_mels + 2) / 2595.0) - 1.0)
  return triangles(edges, fft, rate=rate)


def triangles(edges: Float[np.ndarray, "M2"], fft: int, *, rate: int = SAMPLE_RATE) -> Float[np.ndarray, "M R"]:
  """Triangular filters (M, fft // 2 + 1), peak 1 at each inner edge (hertz), zero at its neighbours."""
  hertz = np.arange(fft // 2 + 1) * rate / fft
  low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
  return np.maximum(0.0, np.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre)))


def to_frames(features: Float[Array | np.ndarray, "T50 D"], num_frames: int) -> Float[Array | np.ndarray, "T D"]:
  """Resamples features to so many frames at 25 fps, linearly, first on first and last on last, as DualTalk does."""
  low, high, weight = find_sources(features.shape[0], num_frames)
  return features[low] * (1.0 - weight) + features[high] * weight


def find_sources(
    count: int, num_frames: int
) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "T"], Float[np.ndarray, "T 1"]]:
  """Of which of `count` features `to_frames` makes each frame: the lower one, the upper one, and its weight."""
  position = np.linspace(0.0, count - 1.0, num_frames)
  low = np.minimum(position.astype(np.int64), max(count - 2, 0))
  high = np.minimum(low + 1, count - 1)
  return low, high, (position - low).astype(np.float32)[:, None]
