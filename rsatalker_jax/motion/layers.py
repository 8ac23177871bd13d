"""Attention blocks that see a fixed reach of frames to each side, whatever the length of the conversation.

Memory grows with T, not T², and a clip of minutes is treated as the short windows of training were: positions enter only
as distances (a learned bias per head and distance), and no distance is larger than the reach.

With `causal` a layer sees the past alone. Such a layer can be given a conversation in pieces: applied with the
collection "history" mutable, it takes from there what it still needs of the frames before and leaves there what the next
piece will need, always as much. `motion.streaming` does so.

A clip may be padded at its end, so that clips of many lengths share a program (`motion.clips`): layers that are told its
`num_frames` give those frames what they give the clip alone, whatever finite numbers the padding holds. The frames beyond
mean nothing.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

# Frames of the clip in an array that is padded behind them; None: all frames are the clip's.
FrameCount = int | Int[Array, ""] | None

_MASKED = -1e9


def past_frames(
    module: nn.Module, name: str, x: Shaped[Array, "*b T D"], frames: int
) -> Shaped[Array, "*b T2 D"]:
  """x behind the `frames` frames before it: those of the piece before where "history" is kept, else zeros (False).

  Args:
    module: the causal layer whose input x is.
    name: of its variable in "history"; a layer that is applied to two inputs has two.
  """
  if not frames:
    return x
  start = jnp.zeros((*x.shape[:-2], frames, x.shape[-1]), x.dtype)
  if not keeps_history(module):
    return jnp.concatenate([start, x], axis=-2)
  history = module.variable("history", name, lambda: start)
  joined = jnp.concatenate([history.value, x], axis=-2)
  history.value = joined[..., x.shape[-2] :, :]
  return joined


def keeps_history(module: nn.Module) -> bool:
  """Whether this is a piece of a longer conversation; not so in `init`, where every collection is mutable."""
  return module.is_mutable_collection("history") and not module.is_initializing()


def frame_times(module: nn.Module, frames: int, *, period: int) -> Float[Array, "T"]:
  """Numbers of this piece's frames since the conversation began, or since a multiple of `period` frames after that."""
  if not keeps_history(module):
    return jnp.arange(frames, dtype=jnp.float32)
  time = module.variable("history", "time_passed", lambda: jnp.zeros((), jnp.int32))
  times = (time.value + jnp.arange(frames)).astype(jnp.float32)
  time.value = (time.value + frames) % period
  return times


def clear_padding(x: Float[Array, "*b T D"], num_frames: FrameCount) -> Float[Array, "*b T D"]:
  """x with zeros behind the clip."""
  return x if num_frames is None else jnp.where(jnp.arange(x.shape[-2])[:, None] < num_frames, x, 0)


class WindowAttention(nn.Module):
  """Multi-head attention in which frame t of the queries sees frames t - reach … t + reach of the context.

  Attributes:
    features: width of queries and output; a multiple of `heads`.
    heads: attention heads.
    reach: frames to each side.
    dtype: of the arithmetic; parameters and the softmax are float32.
    causal: whether frames t - reach … t alone are seen.
    ahead: of a causal one, frames by which queries come late: place u of the queries is frame u - ahead, so that frame t sees
      frames t - reach … t + ahead of the context.
  """

  features: int
  heads: int
  reach: int
  dtype: DTypeLike = jnp.float32
  causal: bool = False
  ahead: int = 0

  @nn.compact
  def __call__(
      self,
      queries: Float[Array, "*b T D"],
      context: Float[Array, "*b T C"],
      *,
      num_frames: FrameCount = None,
      known: Bool[Array, "T"] | None = None,
  ) -> Float[Array, "*b T D"]:
    """Args: `known`, of a causal one, which places of the context may be seen; None: those of the conversation."""
    head_dim, reach = self.features // self.heads, self.reach + self.ahead
    frames = queries.shape[-2]
    block = min(reach, frames) if self.causal else reach
    blocks = -(-frames // block)

    def split(x, before=0):
      x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, before + blocks * block - x.shape[-2]), (0, 0)])
      return x.reshape(*x.shape[:-1], self.heads, head_dim)

    def project(x, name):
      return nn.Dense(self.features, dtype=self.dtype, name=name)(x)

    # Blocks as long as the reach: all that a query may see lies in its own block and the two beside it (causal: the one
    # before it; the only block of a piece that is shorter than the reach is as long as the piece).
    query = _in_blocks(split(project(queries, "query")), blocks)
    key, value = project(context, "key"), project(context, "value")
    if self.causal:
      key = _with_past(split(past_frames(self, "keys", key, reach), reach), blocks, reach)
      value = _with_past(split(past_frames(self, "values", value, reach), reach), blocks, reach)
    else:
      key = _with_neighbours(_in_blocks(split(key), blocks))
      value = _with_neighbours(_in_blocks(split(value), blocks))
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key) * head_dim**-0.5

    front = 0 if self.causal else reach  # How far a query's place sees behind itself is the reach, and in front this.
    bias = self.param("distance_bias", _init_distance_bias, (self.heads, reach + 1 + front), self.reach)
    distance = np.arange(key.shape[-3])[None] - reach - np.arange(block)[:, None]  # Key's place minus query's.
    logits = logits.astype(jnp.float32) + bias[:, np.clip(distance, -reach, front) + reach]
    if known is None:
      key_frame = np.arange(blocks)[:, None] * block + np.arange(key.shape[-3])[None] - reach
      inside = (key_frame >= -self._frames_before(frames)) & (key_frame < (frames if num_frames is None else num_frames))
    else:  # It goes with the keys, whichever they are.
      seen = past_frames(self, "known", known[:, None], reach)
      seen = jnp.pad(seen, ((0, reach + blocks * block - len(seen)), (0, 0)))
      inside = _with_past(seen[..., None], blocks, reach)[..., 0, 0]
    visible = ((distance >= -reach) & (distance <= front))[None] & inside[:, None]  # (blocks, queries, keys of a block)
    weights = nn.softmax(jnp.where(visible[:, None], logits, _MASKED)).astype(self.dtype)

    mixed = jnp.einsum("...hqk,...khd->...qhd", weights, value)
    mixed = mixed.reshape(*mixed.shape[:-4], blocks * block, self.features)[..., :frames, :]
    return nn.Dense(self.features, dtype=self.dtype, name="out")(mixed)

  def _frames_before(self, frames: int) -> int | Int[Array, ""]:
    """How many of the frames before this piece there have been; no more are counted than can be seen."""
    if not (self.causal and keeps_history(self)):
      return 0
    count = self.variable("history", "count", lambda: jnp.zeros((), jnp.int32))
    before = count.value
    count.value = jnp.minimum(before + min(frames, self.reach), self.reach)
    return before


def _in_blocks(x: Shaped[Array, "*b T h d"], blocks: int) -> Shaped[Array, "*b n k h d"]:
  return x.reshape(*x.shape[:-3], blocks, x.shape[-3] // blocks, *x.shape[-2:])


def _with_past(x: Shaped[Array, "*b T h d"], blocks: int, reach: int) -> Shaped[Array, "*b n k h d"]:
  """Each block with the `reach` frames before it, with which x begins. Blocks have `reach` frames, or there is one."""
  before = _in_blocks(x[..., : blocks * reach, :, :], blocks)
  return jnp.concatenate([before, _in_blocks(x[..., reach:, :, :], blocks)], axis=-3)


def _with_neighbours(x: Float[Array, "*b n k h d"]) -> Float[Array, "*b n keys h d"]:
  """Each block with the one before it and the one after it (3k keys); zeros beyond the ends."""
  empty = jnp.zeros_like(x[..., :1, :, :, :])
  before = jnp.concatenate([empty, x[..., :-1, :, :, :]], axis=-4)
  after = jnp.concatenate([x[..., 1:, :, :, :], empty], axis=-4)
  return jnp.concatenate([before, x, after], axis=-3)


def _init_distance_bias(key: jax.Array, shape: tuple[int, int], reach: int) -> Float[Array, "heads distances"]:
  """Starts as ALiBi's penalty on distance: from heads that look at a few frames to heads that look at all of them."""
  del key
  heads, distances = shape
  slopes = 2.0 ** -np.linspace(1.0, 6.0, heads)
  return jnp.asarray(-slopes[:, None] * np.abs(np.arange(distances) - reach), jnp.float32)


class FeedForward(nn.Module):
  """Two-layer MLP applied to each frame."""

  features: int
  hidden: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b T D"]) -> Float[Array, "*b T E"]:
    x = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(x))
    return nn.Dense(self.features, dtype=self.dtype, name="out")(x)


class AdaptiveNorm(nn.Module):
  """LayerNorm whose scale and shift follow a condition (adaLN; Perez et al. 2018, Peebles & Xie 2023).

  Starts as a plain LayerNorm, whatever the condition; without a condition it stays one.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b T D"], condition: Float[Array, "*b C"] | None = None) -> Float[Array, "*b T D"]:
    normed = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
    if condition is None:
      return normed
    modulation = nn.Dense(2 * x.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype, name="modulation")
    scale, shift = jnp.split(modulation(condition)[..., None, :], 2, axis=-1)
    return normed * (1 + scale) + shift


# What a layer keeps of its forward pass for its gradients, by the config's word: everything; the results of its matrix
# products with weights; its input alone. What is not kept is computed again.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class TransformerLayer(nn.Module):
  """Pre-norm self-attention and MLP, each on a residual path; both norms follow the condition, if there is one.

  `remat` names what is kept for gradients (`REMAT`). A causal one may come `ahead` frames late, and see as many more: place u
  of its output is of frame u - ahead of x (`WindowAttention`).
  """

  features: int
  heads: int
  reach: int
  mlp_ratio: int = 2
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  causal: bool = False
  remat: str = "none"
  ahead: int = 0

  @nn.compact
  def __call__(
      self,
      x: Float[Array, "*b T D"],
      condition: Float[Array, "*b C"] | None = None,
      *,
      num_frames: FrameCount = None,
      known: Bool[Array, "T"] | None = None,
      deterministic: bool = True,
  ) -> Float[Array, "*b T D"]:
    """Args: `known`, of a causal one, which places of x may be seen; None: those of the conversation."""

    def transform(self, x, condition, num_frames, known):
      return self._transform(x, condition, num_frames, known, deterministic)

    if self.remat != "none":
      transform = nn.remat(transform, policy=REMAT[self.remat])
    return transform(self, x, condition, num_frames, known)

  def _transform(self, x, condition, num_frames, known, deterministic: bool) -> Float[Array, "*b T D"]:
    drop = nn.Dropout(self.dropout, deterministic=deterministic)
    norm = AdaptiveNorm(self.dtype, name="attention_norm")
    queries = normed = norm(x, condition)
    if self.ahead:
      x = past_frames(self, "late", x, self.ahead)[..., : x.shape[-2], :]
      queries = norm(x, condition)
    sizes = self.features, self.heads, self.reach
    attention = WindowAttention(*sizes, self.dtype, self.causal, self.ahead, name="attention")
    x += drop(attention(queries, normed, num_frames=num_frames, known=known))
    normed = AdaptiveNorm(self.dtype, name="mlp_norm")(x, condition)
    x += drop(FeedForward(self.features, self.mlp_ratio * self.features, self.dtype, name="mlp")(normed))
    return x


class FrameConv(nn.Module):
  """Convolution over frames, zeros beyond the ends: one matmul on the frames' neighbourhoods (fast on CPUs).

  Attributes:
    features: width of the output.
    kernel: frames seen, an odd number; 1 is a layer per frame.
    stride: frames between those seen (dilation).
    causal: whether the last of them is frame t, instead of the one in the middle.
  """

  features: int
  kernel: int
  dtype: DTypeLike = jnp.float32
  stride: int = 1
  causal: bool = False

  @nn.compact
  def __call__(
      self, x: Float[Array, "*b T C"], *, source: str = "input", num_frames: FrameCount = None
  ) -> Float[Array, "*b T D"]:
    """Args: `source` tells the inputs apart, each with a history of its own, where one layer is applied to several."""
    half, frames = self.kernel // 2 * self.stride, x.shape[-2]
    if self.causal:
      padded = past_frames(self, source, x, 2 * half)
    else:
      padded = jnp.pad(clear_padding(x, num_frames), [(0, 0)] * (x.ndim - 2) + [(half, half), (0, 0)])
    starts = range(0, 2 * half + 1, self.stride)
    neighbourhood = jnp.concatenate([padded[..., i : i + frames, :] for i in starts], axis=-1)
    return nn.Dense(self.features, dtype=self.dtype, name="taps")(neighbourhood)
