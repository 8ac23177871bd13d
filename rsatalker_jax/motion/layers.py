"""Attention blocks that see a fixed reach of frames to each side, whatever the length of the conversation.

Memory grows with T, not T², and a clip of minutes is treated as the short windows of training were: positions enter only
as distances (a learned bias per head and distance), and no distance is larger than the reach.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_MASKED = -1e9


class WindowAttention(nn.Module):
  """Multi-head attention in which frame t of the queries sees frames t - reach … t + reach of the context.

  Attributes:
    features: width of queries and output; a multiple of `heads`.
    heads: attention heads.
    reach: frames to each side.
    dtype: of the arithmetic; parameters and the softmax are float32.
  """

  features: int
  heads: int
  reach: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, queries: Float[Array, "*b T D"], context: Float[Array, "*b T C"]) -> Float[Array, "*b T D"]:
    head_dim = self.features // self.heads
    frames, block = queries.shape[-2], self.reach
    blocks = -(-frames // block)

    def project(x, name):
      x = nn.Dense(self.features, dtype=self.dtype, name=name)(x)
      x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, blocks * block - frames), (0, 0)])
      return x.reshape(*x.shape[:-2], blocks, block, self.heads, head_dim)

    # Blocks as long as the reach: all that a query may see lies in its own block and the two beside it.
    query = project(queries, "query")
    key = _with_neighbours(project(context, "key"))
    value = _with_neighbours(project(context, "value"))
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key) * head_dim**-0.5

    bias = self.param("distance_bias", _init_distance_bias, (self.heads, 2 * self.reach + 1))
    distance = np.arange(3 * block)[None] - block - np.arange(block)[:, None]  # Key frame minus query frame.
    logits = logits.astype(jnp.float32) + bias[:, np.clip(distance, -self.reach, self.reach) + self.reach]
    key_frame = np.arange(blocks)[:, None] * block + np.arange(3 * block)[None] - block
    inside = (key_frame >= 0) & (key_frame < frames)
    visible = (np.abs(distance) <= self.reach)[None] & inside[:, None]  # (blocks, block, 3 * block)
    weights = nn.softmax(jnp.where(visible[:, None], logits, _MASKED)).astype(self.dtype)

    mixed = jnp.einsum("...hqk,...khd->...qhd", weights, value)
    mixed = mixed.reshape(*mixed.shape[:-4], blocks * block, self.features)[..., :frames, :]
    return nn.Dense(self.features, dtype=self.dtype, name="out")(mixed)


def _with_neighbours(x: Float[Array, "*b n k h d"]) -> Float[Array, "*b n 3k h d"]:
  """Each block with the one before it and the one after it; zeros beyond the ends."""
  empty = jnp.zeros_like(x[..., :1, :, :, :])
  before = jnp.concatenate([empty, x[..., :-1, :, :, :]], axis=-4)
  after = jnp.concatenate([x[..., 1:, :, :, :], empty], axis=-4)
  return jnp.concatenate([before, x, after], axis=-3)


def _init_distance_bias(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> Float[Array, "heads distances"]:
  """Starts as ALiBi's penalty on distance: from heads that look at a few frames to heads that look at all of them."""
  del key
  heads, distances = shape
  slopes = 2.0 ** -np.linspace(1.0, 6.0, heads)
  return jnp.asarray(-slopes[:, None] * np.abs(np.arange(distances) - distances // 2), dtype)


class FeedForward(nn.Module):
  """Two-layer MLP applied to each frame."""

  features: int
  hidden: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b T D"]) -> Float[Array, "*b T E"]:
    x = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(x))
    return nn.Dense(self.features, dtype=self.dtype, name="out")(x)


class AdaptiveNorm(nn.Module):
  """LayerNorm whose scale and shift follow a condition (adaLN; Perez et al. 2018, Peebles & Xie 2023).

  Starts as a plain LayerNorm, whatever the condition; without a condition it stays one.
  """

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b T D"], condition: Float[Array, "*b C"] | None = None) -> Float[Array, "*b T D"]:
    normed = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
    if condition is None:
      return normed
    modulation = nn.Dense(2 * x.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype, name="modulation")
    scale, shift = jnp.split(modulation(condition)[..., None, :], 2, axis=-1)
    return normed * (1 + scale) + shift


class TransformerLayer(nn.Module):
  """Pre-norm self-attention and MLP, each on a residual path; both norms follow the condition, if there is one."""

  features: int
  heads: int
  reach: int
  mlp_ratio: int = 2
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
      self,
      x: Float[Array, "*b T D"],
      condition: Float[Array, "*b C"] | None = None,
      *,
      deterministic: bool = True,
  ) -> Float[Array, "*b T D"]:
    drop = nn.Dropout(self.dropout, deterministic=deterministic)
    normed = AdaptiveNorm(self.dtype, name="attention_norm")(x, condition)
    x += drop(WindowAttention(self.features, self.heads, self.reach, self.dtype, name="attention")(normed, normed))
    normed = AdaptiveNorm(self.dtype, name="mlp_norm")(x, condition)
    x += drop(FeedForward(self.features, self.mlp_ratio * self.features, self.dtype, name="mlp")(normed))
    return x


class FrameConv(nn.Module):
  """Convolution over frames, zeros beyond the ends: one matmul on the frames' neighbourhoods (fast on CPUs).

  Attributes:
    features: width of the output.
    kernel: frames seen, an odd number; 1 is a layer per frame.
    stride: frames between those seen (dilation).
  """

  features: int
  kernel: int
  dtype: jnp.dtype = jnp.float32
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "*b T C"]) -> Float[Array, "*b T D"]:
    half, frames = self.kernel // 2 * self.stride, x.shape[-2]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(half, half), (0, 0)])
    starts = range(0, 2 * half + 1, self.stride)
    neighbourhood = jnp.concatenate([padded[..., i : i + frames, :] for i in starts], axis=-1)
    return nn.Dense(self.features, dtype=self.dtype, name="taps")(neighbourhood)
