"""What FaceFormer, CodeTalker and EmoTalk share: a position code and a bias of attention with a period, and the decoder layer.

The layer is PyTorch's with its defaults: norms behind the sums (epsilon 1e-5), ReLU, dropout on attention's weights, in the MLP
and on each branch, biases everywhere. Weights begin as Flax has them.

Code and bias are closed forms, so no clip is too long (the published tables end at 600 frames, a longer clip is an error).
Attention sees `reach` frames back, where the published sees all since the clip began: for clips up to reach + 1 frames, as in
training, that is the same, and of longer ones it sees no more than it was trained with. Memory is then linear in the length.

A clip can be taken at once (`__call__`) or frame by frame (`step`), with the same result: as the layer is causal, keys and
values of the past never change, and are kept in a ring of reach + 1 frames.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from rsatalker_jax.motion.generator import MotionConfig, SpeechAdapter

# Keys and values of the last frames, that of frame t in slot t mod R.
Cache = tuple[Float[Array, "*b R H d"], Float[Array, "*b R H d"]]

_MASKED = -1e9


def make_speech_adapter(
    config: MotionConfig, features: int, layers: int, kernel: int, hidden: int, name: str | None = None
) -> SpeechAdapter:
  """The harness's speech adapter with a baseline's own sizes: `MotionConfig`'s speech_layers, speech_kernel, speech_hidden."""
  sizes = dict(features=features, speech_layers=layers, speech_kernel=kernel, speech_hidden=hidden)
  return SpeechAdapter(dataclasses.replace(config, **sizes, heads=1), name=name)


def encode_periodic(times: Int[ArrayLike, "*t"], features: int, period: int) -> Float[Array, "*t D"]:
  """FaceFormer's periodic position code: the sinusoids of t mod period, sine and cosine in turns."""
  frequencies = 10_000.0 ** -(np.arange(0, features, 2, dtype=np.float32) / features)
  angle = (jnp.asarray(times) % period)[..., None] * frequencies
  return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*angle.shape[:-1], -1)[..., :features]


def periodic_bias(distance: Int[ArrayLike, "*d"], heads: int, period: int, reach: int) -> Float[Array, "H *d"]:
  """FaceFormer's bias of attention's logits: each whole period back costs head h of H 2^(-8 (h + 1) / H).

  Args:
    distance: frame of the query minus that of the key. What lies ahead, or more than `reach` back, is masked.
  """
  distance = jnp.asarray(distance)
  slopes = 2.0 ** (-8.0 * np.arange(1, heads + 1, dtype=np.float32) / heads)
  bias = -slopes.reshape(-1, *[1] * distance.ndim) * (distance // period)
  return jnp.where((distance >= 0) & (distance <= reach), bias, _MASKED)


class PeriodicAttention(nn.Module):
  """Causal self-attention with `periodic_bias`.

  Attributes:
    features: width of input and output; a multiple of `heads`.
    heads: attention heads.
    period: frames of the bias's period.
    reach: frames that are seen besides the present one.
    dropout: on the attention's weights.
    dtype: of the arithmetic; parameters and the softmax are float32.
  """

  features: int
  heads: int
  period: int
  reach: int
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  def setup(self):
    dense = functools.partial(nn.Dense, self.features, dtype=self.dtype)
    self.query, self.key, self.value, self.out = dense(), dense(), dense(), dense()
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, x: Float[Array, "*b T D"], *, deterministic: bool = True) -> Float[Array, "*b T D"]:
    """All frames at once, in blocks as long as the reach: what a query may see lies in its own block and the one before."""
    frames = x.shape[-2]
    block = min(self.reach, frames) or 1
    blocks = -(-frames // block)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, blocks * block - frames), (0, 0)])
    split = lambda x: x.reshape(*x.shape[:-2], blocks, block, self.heads, -1)
    query, key, value = (split(project(padded)) for project in (self.query, self.key, self.value))
    if blocks > 1:
      key, value = (jnp.concatenate([jnp.zeros_like(x).at[..., 1:, :, :, :].set(x[..., :-1, :, :, :]), x], -3) for x in (key, value))
    before = key.shape[-3] - block
    key_frame = np.arange(before + block) - before  # Of the block's first frame on.
    bias = periodic_bias(np.arange(block)[:, None] - key_frame, self.heads, self.period, self.reach)
    begun = np.arange(blocks)[:, None] * block + key_frame >= 0
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key).astype(jnp.float32) * query.shape[-1] ** -0.5
    logits = jnp.where(begun[:, None, None], logits + bias, _MASKED)
    weights = self.drop(nn.softmax(logits), deterministic=deterministic).astype(self.dtype)
    mixed = jnp.einsum("...hqk,...khd->...qhd", weights, value)
    return self.out(mixed.reshape(*mixed.shape[:-4], blocks * block, self.features)[..., :frames, :])

  def init_cache(self, batch: tuple[int, ...], frames: int) -> Cache:
    """An empty cache for clips of `frames` frames."""
    ring = jnp.zeros((*batch, min(self.reach + 1, frames), self.heads, self.features // self.heads), self.dtype)
    return ring, ring

  def step(
      self, x: Float[Array, "*b D"], cache: Cache, t: Int[ArrayLike, ""], *, deterministic: bool = True
  ) -> tuple[Float[Array, "*b D"], Cache]:
    """Frame t alone; frames come in order, from 0 on."""
    split = lambda x: x.reshape(*x.shape[:-1], self.heads, -1)
    t, slots = jnp.asarray(t), cache[0].shape[-3]
    keys, values = (
        kept.at[..., t % slots, :, :].set(split(project(x))) for kept, project in zip(cache, (self.key, self.value))
    )
    distance = (t - jnp.arange(slots)) % slots
    distance = jnp.where(distance <= t, distance, -1)  # In the other slots nothing stands yet.
    query = split(self.query(x)) * (self.features // self.heads) ** -0.5
    logits = jnp.einsum("...hd,...khd->...hk", query, keys).astype(jnp.float32)
    weights = nn.softmax(logits + periodic_bias(distance, self.heads, self.period, self.reach))
    weights = self.drop(weights, deterministic=deterministic).astype(self.dtype)
    mixed = jnp.einsum("...hk,...khd->...hd", weights, values)
    return self.out(mixed.reshape(x.shape)), (keys, values)


class AlignedAttention(nn.Module):
  """Attention to memory in which frame t sees frame t alone: a softmax over one is 1, so that query and key do nothing.

  They are left out; what remains is linear. Dropout on the weights leaves out whole heads.
  """

  features: int
  heads: int
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, memory: Float[Array, "*b T M"], *, deterministic: bool = True) -> Float[Array, "*b T D"]:
    value = nn.Dense(self.features, dtype=self.dtype, name="value")(memory)
    heads = value.reshape(*value.shape[:-1], self.heads, -1)
    heads = nn.Dropout(self.dropout, broadcast_dims=(-1,), deterministic=deterministic)(heads)
    return nn.Dense(self.features, dtype=self.dtype, name="out")(heads.reshape(value.shape))


class DecoderLayer(nn.Module):
  """Attention to the past, to memory frame by frame, and an MLP.

  Attributes:
    hidden: width of the MLP.
    features, heads, period, reach, dropout, dtype: see `PeriodicAttention`; dropout is also on branches and in the MLP.
  """

  features: int
  heads: int
  hidden: int
  period: int
  reach: int
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  def setup(self):
    sizes = self.features, self.heads
    self.self_attention = PeriodicAttention(*sizes, self.period, self.reach, self.dropout, self.dtype)
    self.memory_attention = AlignedAttention(*sizes, self.dropout, self.dtype)
    norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
    self.attention_norm, self.memory_norm, self.mlp_norm = norm(), norm(), norm()
    self.mlp_hidden = nn.Dense(self.hidden, dtype=self.dtype)
    self.mlp_out = nn.Dense(self.features, dtype=self.dtype)
    self.drop = nn.Dropout(self.dropout)

  def __call__(
      self, x: Float[Array, "*b T D"], memory: Float[Array, "*b T M"], *, deterministic: bool = True
  ) -> Float[Array, "*b T D"]:
    """All frames at once; frame t sees frames of x up to t, and frame t of memory."""
    seen = self.self_attention(x, deterministic=deterministic)
    return self._finish(x, seen, self.align(memory, deterministic=deterministic), deterministic)

  def align(self, memory: Float[Array, "*b T M"], *, deterministic: bool = True) -> Float[Array, "*b T D"]:
    """What memory adds to each frame. `step` takes it, as it can be had for all frames before the first."""
    return self.drop(self.memory_attention(memory, deterministic=deterministic), deterministic=deterministic)

  def init_cache(self, batch: tuple[int, ...], frames: int) -> Cache:
    """See `PeriodicAttention.init_cache`."""
    return self.self_attention.init_cache(batch, frames)

  def step(
      self,
      x: Float[Array, "*b D"],
      aligned: Float[Array, "*b D"],
      cache: Cache,
      t: Int[ArrayLike, ""],
      *,
      deterministic: bool = True,
  ) -> tuple[Float[Array, "*b D"], Cache]:
    """Frame t alone; `aligned` is frame t of `align`."""
    seen, cache = self.self_attention.step(x, cache, t, deterministic=deterministic)
    return self._finish(x, seen, aligned, deterministic), cache

  def _finish(self, x, seen, aligned, deterministic: bool):
    drop = functools.partial(self.drop, deterministic=deterministic)
    x = self.attention_norm(x + drop(seen))
    x = self.memory_norm(x + aligned)
    return self.mlp_norm(x + drop(self.mlp_out(drop(nn.relu(self.mlp_hidden(x))))))
