"""What DualTalk and SelfTalk share: PyTorch's Transformer layers over a whole clip, without masks or positions."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rsatalker_jax.motion.layers import FrameCount

_MASKED = -1e9


class ClipLayer(nn.Module):
  """PyTorch's encoder layer, with memory its decoder layer, without masks: norms behind the sums, ReLU.

  Attributes:
    features, heads: width and attention heads.
    hidden: width of the MLP.
    dropout: on attention's weights, on branches and in the MLP.
    dtype: of the arithmetic.
  """

  features: int
  heads: int
  hidden: int
  dropout: float
  dtype: DTypeLike

  @nn.compact
  def __call__(
      self,
      x: Float[Array, "*b T D"],
      memory: Float[Array, "*b T D"] | None = None,
      *,
      num_frames: FrameCount = None,
      deterministic: bool = True,
  ) -> Float[Array, "*b T D"]:
    drop = nn.Dropout(self.dropout, deterministic=deterministic)
    norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
    attend = functools.partial(ClipAttention, self.features, self.heads, self.dropout, self.dtype)
    options = dict(num_frames=num_frames, deterministic=deterministic)
    x = norm(name="attention_norm")(x + drop(attend(name="self_attention")(x, x, **options)))
    if memory is not None:
      x = norm(name="memory_norm")(x + drop(attend(name="memory_attention")(x, memory, **options)))
    hidden = drop(nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="mlp_hidden")(x)))
    return norm(name="mlp_norm")(x + drop(nn.Dense(self.features, dtype=self.dtype, name="mlp_out")(hidden)))


class ClipAttention(nn.Module):
  """Attention to all frames of a clip. Time grows with the square of its length, memory in generating does not."""

  features: int
  heads: int
  dropout: float
  dtype: DTypeLike

  BLOCK = 256  # Queries that are answered at once in generating.

  @nn.compact
  def __call__(
      self,
      queries: Float[Array, "*b T D"],
      context: Float[Array, "*b T D"],
      *,
      num_frames: FrameCount = None,
      deterministic: bool = True,
  ) -> Float[Array, "*b T D"]:
    split = lambda x: x.reshape(*x.shape[:-1], self.heads, -1)
    project = lambda x, name: split(nn.Dense(self.features, dtype=self.dtype, name=name)(x))
    query, key, value = project(queries, "query"), project(context, "key"), project(context, "value")
    frames = queries.shape[-2]
    seen = jnp.arange(frames) < (frames if num_frames is None else num_frames)
    drop = nn.Dropout(self.dropout, deterministic=deterministic)

    def attend(query):
      logits = jnp.einsum("...qhd,...khd->...hqk", query, key).astype(jnp.float32) * query.shape[-1] ** -0.5
      weights = drop(nn.softmax(jnp.where(seen, logits, _MASKED))).astype(self.dtype)
      return jnp.einsum("...hqk,...khd->...qhd", weights, value)

    if deterministic and frames > self.BLOCK:
      blocks = -(-frames // self.BLOCK)
      padded = jnp.pad(query, [(0, 0)] * (query.ndim - 3) + [(0, blocks * self.BLOCK - frames), (0, 0), (0, 0)])
      parts = padded.reshape(*query.shape[:-3], blocks, self.BLOCK, *query.shape[-2:])
      mixed = jnp.moveaxis(jax.lax.map(attend, jnp.moveaxis(parts, -4, 0)), 0, -4)
      mixed = mixed.reshape(padded.shape)[..., :frames, :, :]
    else:
      mixed = attend(query)
    return nn.Dense(self.features, dtype=self.dtype, name="out")(mixed.reshape(queries.shape))
