"""Wav2Vec 2.0 (Baevski et al. 2020) in Linen, frozen.

Module and parameter names are Hugging Face's, so that checkpoints are read by renaming (checkpoints.py). Both families are here:
base (group norm in the first convolution, norms after each block) and large-lv60 (layer norm in every convolution, norms
before each block).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rsatalker_jax.speech.logmel import to_frames

Params = dict[str, Any]

@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
  """Sizes and switches, named as in `transformers.Wav2Vec2Config`.

  Attributes:
    conv_dim, conv_kernel, conv_stride: of the convolutions on the waveform; their strides multiply to 320, hence 50 Hz.
    conv_bias: whether they have biases.
    feat_extract_norm: "group" (first convolution alone, per channel over time) or "layer" (every one, over channels).
    do_stable_layer_norm: norms before the blocks instead of after them.
    hidden_size: D.
    num_hidden_layers, num_attention_heads, intermediate_size: of the Transformer.
    num_conv_pos_embeddings, num_conv_pos_embedding_groups: kernel and groups of the convolution that encodes positions.
    layer_norm_eps: of all norms but those between the convolutions.
    normalize: whether the waveform is brought to mean 0 and variance 1 first (the checkpoint's feature extractor says).
    dtype: of the arithmetic, "float32" or "bfloat16"; norms and the softmax are float32, and so is the output.
  """

  conv_dim: tuple[int, ...] = (512,) * 7
  conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
  conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
  conv_bias: bool = False
  feat_extract_norm: str = "group"
  do_stable_layer_norm: bool = False
  hidden_size: int = 768
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  intermediate_size: int = 3072
  num_conv_pos_embeddings: int = 128
  num_conv_pos_embedding_groups: int = 16
  layer_norm_eps: float = 1e-5
  normalize: bool = True
  dtype: str = "float32"

  def num_frames(self, samples: int | Array) -> int | Array:
    """Frames that the convolutions make of so many samples: about 50 a second."""
    for kernel, stride in zip(self.conv_kernel, self.conv_stride):
      samples = (samples - kernel) // stride + 1
    return samples


class Wav2Vec2(nn.Module):
  """The encoder: a voice to hidden states of the last layer. Batches by `jax.vmap`.

  Attributes:
    config: sizes and switches.
  """

  config: Wav2Vec2Config

  def setup(self):
    self.feature_extractor = _FeatureExtractor(self.config)
    self.feature_projection = _FeatureProjection(self.config)
    self.encoder = _Encoder(self.config)

  def __call__(self, wav: Float[Array, "S"], num_samples: int | Int[Array, ""] | None = None) -> Float[Array, "T50 D"]:
    """Hidden states at 50 Hz.

    Args:
      wav: samples at 16 kHz.
      num_samples: how many of them are the voice; the rest is padding, which is kept out of the attention. None: all.
        Checkpoints with group norm were trained without attention masks. To pad for them as `transformers` does, give
        `normalize_wav(wav, num_samples)` to `extract` and what comes of it to `contextualize`, both without a count.
    """
    if self.config.normalize:
      wav = normalize_wav(wav, num_samples)
    features = self.extract(wav)
    frames = None if num_samples is None else self.config.num_frames(num_samples)
    return self.contextualize(features, frames)

  def extract(self, wav: Float[Array, "S"]) -> Float[Array, "T50 C"]:
    """The convolutions' features of a normalised voice."""
    return self.feature_extractor(wav)

  def contextualize(self, features: Float[Array, "T C"], num_frames: Int[Array, ""] | None = None) -> Float[Array, "T D"]:
    """The Transformer's hidden states of the convolutions' features, of which the first `num_frames` are no padding."""
    visible = None if num_frames is None else jnp.arange(features.shape[0]) < num_frames
    return self.encoder(self.feature_projection(features), visible).astype(jnp.float32)


def normalize_wav(wav: Float[Array, "S"], num_samples: int | Int[Array, ""] | None = None) -> Float[Array, "S"]:
  """Mean 0 and variance 1 over the voice, zeros behind it (`transformers.Wav2Vec2FeatureExtractor`)."""
  used = jnp.ones(wav.shape, bool) if num_samples is None else jnp.arange(wav.shape[0]) < num_samples
  mean = jnp.mean(wav, where=used)
  variance = jnp.mean((wav - mean) ** 2, where=used)
  return jnp.where(used, (wav - mean) / jnp.sqrt(variance + 1e-7), 0)


# Parameters are only ever loaded; their initial values matter to tests alone.


class _ConvLayer(nn.Module):
  config: Wav2Vec2Config
  layer: int

  @nn.compact
  def __call__(self, x):
    c, i = self.config, self.layer
    conv = nn.Conv(
        c.conv_dim[i], (c.conv_kernel[i],), c.conv_stride[i], "VALID", use_bias=c.conv_bias, dtype=c.dtype, name="conv"
    )
    x = conv(x)
    if c.feat_extract_norm == "layer":
      x = nn.LayerNorm(epsilon=1e-5, name="layer_norm")(x)
    elif i == 0:  # Group norm with a group per channel: each channel over time.
      norm = nn.GroupNorm(num_groups=None, group_size=1, epsilon=1e-5, use_fast_variance=False, name="layer_norm")
      x = norm(x[None])[0]
    return nn.gelu(x.astype(c.dtype), approximate=False)


class _FeatureExtractor(nn.Module):
  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, wav: Float[Array, "S"]) -> Float[Array, "T50 C"]:
    x = wav[:, None]
    for i in range(len(self.config.conv_dim)):
      x = _ConvLayer(self.config, i, name=f"conv_layers_{i}")(x)
    return x


class _FeatureProjection(nn.Module):
  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, x):
    c = self.config
    x = nn.LayerNorm(epsilon=c.layer_norm_eps, name="layer_norm")(x)
    return nn.Dense(c.hidden_size, dtype=c.dtype, name="projection")(x)


class _PositionalConv(nn.Module):
  """Encodes positions by a wide grouped convolution; for an even kernel the last frame is dropped."""

  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, x):
    c = self.config
    kernel = c.num_conv_pos_embeddings
    padding = [(kernel // 2, kernel // 2 - (kernel % 2 == 0))]
    groups = c.num_conv_pos_embedding_groups
    conv = nn.Conv(
        c.hidden_size, (kernel,), padding=padding, feature_group_count=groups, dtype=c.dtype, name="conv"
    )
    return nn.gelu(conv(x), approximate=False)


class _Attention(nn.Module):
  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, x, visible):
    c = self.config
    size = c.hidden_size // c.num_attention_heads
    project = lambda name: nn.Dense(c.hidden_size, dtype=c.dtype, name=name)(x).reshape(x.shape[0], -1, size)
    query, key, value = project("q_proj") * size**-0.5, project("k_proj"), project("v_proj")
    logits = jnp.einsum("qhd,khd->hqk", query, key).astype(jnp.float32)
    if visible is not None:
      logits = jnp.where(visible, logits, -1e9)
    mixed = jnp.einsum("hqk,khd->qhd", nn.softmax(logits).astype(c.dtype), value)
    return nn.Dense(c.hidden_size, dtype=c.dtype, name="out_proj")(mixed.reshape(x.shape))


class _FeedForward(nn.Module):
  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, x):
    c = self.config
    x = nn.Dense(c.intermediate_size, dtype=c.dtype, name="intermediate_dense")(x)
    return nn.Dense(c.hidden_size, dtype=c.dtype, name="output_dense")(nn.gelu(x, approximate=False))


class _EncoderLayer(nn.Module):
  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, x, visible):
    c = self.config
    norm = lambda name: nn.LayerNorm(epsilon=c.layer_norm_eps, name=name)
    attention, feed_forward = _Attention(c, name="attention"), _FeedForward(c, name="feed_forward")
    before, after = norm("layer_norm"), norm("final_layer_norm")
    if c.do_stable_layer_norm:
      x = x + attention(before(x), visible)
      return x + feed_forward(after(x))
    x = before(x + attention(x, visible))
    return after(x + feed_forward(x))


class _Encoder(nn.Module):
  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, x, visible):
    c = self.config
    norm = nn.LayerNorm(epsilon=c.layer_norm_eps, name="layer_norm")
    if visible is not None:
      x = jnp.where(visible[:, None], x, 0)
    x = x + _PositionalConv(c, name="pos_conv_embed")(x)
    if not c.do_stable_layer_norm:
      x = norm(x)
    for i in range(c.num_hidden_layers):
      x = _EncoderLayer(c, name=f"layers_{i}")(x, visible)
    return norm(x) if c.do_stable_layer_norm else x


# ---- Whole voices ----

_extract = jax.jit(lambda module, params, wav: module.apply(params, wav, method="extract"), static_argnums=0)
_contextualize = jax.jit(
    lambda module, params, features, count: module.apply(params, features, count, method="contextualize"), static_argnums=0
)


def encode_voice(
    module: Wav2Vec2,
    params: Params,
    wav: Float[np.ndarray, "S"],
    *,
    num_frames: int | None = None,
    chunk: int = 1500,
    margin: int = 200,
) -> Float[np.ndarray, "T D"]:
  """Hidden states of a voice of any length: the convolutions over all of it, the Transformer in chunks that overlap.

  Memory of the Transformer is that of one chunk, where attention over the whole would grow with the square; what lies
  farther than the margin from a frame cannot reach it. How much that changes depends on how far a checkpoint attends:
  docs/speech.md has measurements on random weights. All chunks are padded to one length, behind an attention mask, so
  that all voices share one compilation (but for the convolutions of checkpoints with group norm, which take means over
  the whole voice and compile for each length).

  Args:
    module, params: of `checkpoints.load_wav2vec2`.
    wav: samples at 16 kHz.
    num_frames: the convolutions' features are first resampled to so many frames, linearly, first on first and last on
      last, as FaceFormer, CodeTalker and DualTalk do for 25 fps. None leaves them at 50 Hz.
    chunk: frames of a chunk.
    margin: frames at the ends of a chunk that are not kept, but at the ends of the voice.

  Raises:
    ValueError: if the margins leave nothing of a chunk, or the voice is too short for one frame.
  """
  if not 0 <= 2 * margin < chunk:
    raise ValueError(f"{margin=} must be less than half of {chunk=}")
  config = module.config
  if config.num_frames(len(wav)) < 1:
    raise ValueError(f"{len(wav)=} samples do not make a frame")
  if config.normalize:
    wav = np.asarray(normalize_wav(jnp.asarray(wav)))
  features = _extract_all(module, params, wav)
  if num_frames is not None:
    features = to_frames(features, num_frames)
  total = len(features)
  starts = [*range(0, max(total - chunk, 0), chunk - 2 * margin), max(total - chunk, 0)]
  parts, kept = [], 0
  for start in starts:
    part = features[start : start + chunk]
    padded = np.pad(part, ((0, chunk - len(part)), (0, 0)))
    hidden = np.asarray(_contextualize(module, params, padded, len(part)))
    end = total if start == starts[-1] else start + chunk - margin
    parts.append(hidden[kept - start : end - start])
    kept = end
  return np.concatenate(parts)


def _extract_all(module: Wav2Vec2, params: Params, wav: Float[np.ndarray, "S"]) -> Float[np.ndarray, "T50 C"]:
  config = module.config
  if config.feat_extract_norm == "group":
    return np.asarray(_extract(module, params, wav))
  # Without it a frame depends on its receptive field alone: pieces of one length give exactly the whole.
  hop, field = int(np.prod(config.conv_stride)), 1
  for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride)):
    field = (field - 1) * stride + kernel
  total, frames = config.num_frames(len(wav)), 500
  length = (frames - 1) * hop + field
  pieces = [wav[start * hop : start * hop + length] for start in range(0, total, frames)]
  padded = (np.pad(piece, (0, length - len(piece))) for piece in pieces)
  return np.concatenate([np.asarray(_extract(module, params, piece)) for piece in padded])[:total]
