"""Whisper's encoder (Radford et al. 2022) in Linen, frozen: what hundreds of thousands of hours of voices have taught it of speech.

Module and parameter names are Hugging Face's, so that checkpoints are read by renaming (checkpoints.py). The log-mel spectrogram
is the published one (`transformers.WhisperFeatureExtractor`).
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rsatalker_jax.speech.logmel import triangles
from rsatalker_jax.types import SAMPLE_RATE, SAMPLES_PER_FRAME

Params = dict[str, Any]

_WINDOW, _HOP = 400, 160  # Samples of the spectrogram's windows, and between them.
_STRIDE = 2 * _HOP  # Samples between hidden states: 50 Hz.


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
  """Sizes, named as in `transformers.WhisperConfig`.

  Attributes:
    num_mel_bins: of the spectrogram.
    d_model: D.
    encoder_layers, encoder_attention_heads, encoder_ffn_dim: of the Transformer.
    max_source_positions: hidden states of a window, and no more are encoded at once: 30 s.
    dtype: of the arithmetic, "float32" or "bfloat16"; norms and the softmax are float32, and so is the output.
  """

  num_mel_bins: int = 80
  d_model: int = 384
  encoder_layers: int = 4
  encoder_attention_heads: int = 6
  encoder_ffn_dim: int = 1536
  max_source_positions: int = 1500
  dtype: str = "float32"


class Whisper(nn.Module):
  """The encoder: a voice of at most `max_source_positions` to hidden states. Batches by `jax.vmap`.

  Attributes:
    config: sizes.
  """

  config: WhisperConfig

  @nn.compact
  def __call__(self, wav: Float[Array, "S"]) -> Float[Array, "T50 D"]:
    """Hidden states of the last layer, normalised, at 50 Hz: number i belongs to the 20 ms around sample 320 i.

    Args:
      wav: samples at 16 kHz, a multiple of 320.
    """
    c = self.config
    x = log_mel_spectrogram(wav, c.num_mel_bins)
    conv = functools.partial(nn.Conv, c.d_model, (3,), padding=1, dtype=c.dtype)
    x = nn.gelu(conv(name="conv1")(x), approximate=False)
    x = nn.gelu(conv(strides=2, name="conv2")(x), approximate=False)
    x = x + nn.Embed(c.max_source_positions, c.d_model, dtype=c.dtype, name="embed_positions")(jnp.arange(x.shape[0]))
    for i in range(c.encoder_layers):
      x = _EncoderLayer(c, name=f"layers_{i}")(x)
    return nn.LayerNorm(epsilon=1e-5, name="layer_norm")(x).astype(jnp.float32)


class _EncoderLayer(nn.Module):
  config: WhisperConfig

  @nn.compact
  def __call__(self, x):
    c = self.config
    norm = lambda name: nn.LayerNorm(epsilon=1e-5, name=name)
    dense = lambda name, width, inputs: nn.Dense(width, dtype=c.dtype, name=name)(inputs)
    x = x + _Attention(c, name="self_attn")(norm("self_attn_layer_norm")(x))
    hidden = nn.gelu(dense("fc1", c.encoder_ffn_dim, norm("final_layer_norm")(x)), approximate=False)
    return x + dense("fc2", c.d_model, hidden)


class _Attention(nn.Module):
  config: WhisperConfig

  @nn.compact
  def __call__(self, x):
    c = self.config
    size = c.d_model // c.encoder_attention_heads
    project = lambda name: nn.Dense(c.d_model, use_bias=name != "k_proj", dtype=c.dtype, name=name)(x).reshape(x.shape[0], -1, size)
    query, key, value = project("q_proj") * size**-0.5, project("k_proj"), project("v_proj")
    weights = nn.softmax(jnp.einsum("qhd,khd->hqk", query, key).astype(jnp.float32)).astype(c.dtype)
    mixed = jnp.einsum("hqk,khd->qhd", weights, value)
    return nn.Dense(c.d_model, dtype=c.dtype, name="out_proj")(mixed.reshape(x.shape))


def sinusoids(length: int, width: int) -> Float[np.ndarray, "L D"]:
  """Whisper's encodings of positions, which are not learnt: sines, then cosines, of wavelengths from 2 pi to 20000 pi."""
  rates = np.exp(-np.log(10000) / (width // 2 - 1) * np.arange(width // 2))
  angles = np.arange(length)[:, None] * rates
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def log_mel_spectrogram(wav: Float[Array, "S"], num_mels: int) -> Float[Array, "T100 M"]:
  """The published features: log10 of mel energies, of which the quietest are at most 8 below the loudest, (x + 4) / 4."""
  padded = jnp.pad(wav, _WINDOW // 2, mode="reflect")
  windows = padded[np.arange(wav.shape[0] // _HOP)[:, None] * _HOP + np.arange(_WINDOW)]
  spectrum = jnp.fft.rfft(windows * np.hanning(_WINDOW + 1)[:-1].astype(np.float32))  # Periodic Hann.
  energy = jnp.log10(jnp.maximum(jnp.abs(spectrum) ** 2 @ _slaney_filters(num_mels).T, 1e-10))
  return (jnp.maximum(energy, energy.max() - 8) + 4) / 4


@functools.cache
def _slaney_filters(num_mels: int) -> Float[np.ndarray, "M R"]:
  """Triangles of area 1 on Slaney's mel scale up to 8 kHz: 15 mel to 1 kHz, linear; 27 from there to 6.4 kHz, logarithmic."""
  step = np.log(6.4) / 27
  to_mel = lambda hertz: hertz * 3 / 200 if hertz < 1000 else 15 + np.log(hertz / 1000) / step
  mel = np.linspace(0.0, to_mel(SAMPLE_RATE / 2), num_mels + 2)
  edges = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(step * (mel - 15)))
  return (triangles(edges, _WINDOW) * 2 / (edges[2:] - edges[:-2])[:, None]).astype(np.float32)


# ---- Whole voices ----

_encode = jax.jit(lambda module, params, wav: module.apply(params, wav), static_argnums=0)

# Windows are as long as multiples of so many hidden states, 5 s: few lengths, few compilations.
_GRAIN = 250


def encode_frames(
    module: Whisper, params: Params, wav: Float[np.ndarray, "S"], num_frames: int, *, margin: int = 100
) -> Float[np.ndarray, "T H"]:
  """Hidden states of a voice of any length at 25 fps: of frame j numbers 2 j and 2 j + 1, one behind the other (H = 2 D).

  A voice that is longer than a window is encoded in several that overlap, all of one length. Silence stands behind it as far as
  the last window reaches; it is not filled up to 30 s as for transcription.

  Args:
    module, params: of `checkpoints.load_whisper`.
    wav: samples at 16 kHz.
    num_frames: T; the voice is cut, or filled up with zeros, to 640 T samples.
    margin: hidden states at the ends of a window that are not kept, but at the ends of the voice.

  Raises:
    ValueError: if the margins leave nothing of a window.
  """
  longest = module.config.max_source_positions
  if not 0 <= 2 * margin < longest:
    raise ValueError(f"{margin=} must be less than half of {longest} hidden states")
  total = 2 * num_frames
  count = max(1, -(-(total - 2 * margin) // (longest - 2 * margin)))
  kept = -(-(total - 2 * margin) // count)  # Of each window, but for the margins.
  length = min(longest, -(-(kept + 2 * margin) // _GRAIN) * _GRAIN)
  wav = np.pad(wav[: num_frames * SAMPLES_PER_FRAME], (0, max(0, (total + length) * _STRIDE - len(wav))))
  hidden = np.empty((total, module.config.d_model), np.float32)
  for i in range(count):
    first = i * kept
    states = np.asarray(_encode(module, params, wav[first * _STRIDE : (first + length) * _STRIDE]))
    begin = first + margin if i else 0
    hidden[begin : first + length] = states[begin - first :][: total - begin]
  return hidden.reshape(num_frames, -1)
