"""What CodeTalker and Learning to Listen (L2L) share: a quantiser, and the network around it.

The Transformer layer is L2L's, which CodeTalker's codes use too. Nothing of it knows an order of frames: who uses it adds
positions.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int

# Keys and values of the last frames, that of frame t in slot t mod R.
Cache = tuple[Float[Array, "*b R D"], Float[Array, "*b R D"]]

_MASKED = -1e9


class Quantizer(nn.Module):
  """A codebook, and what is nearest in it (van den Oord et al. 2017); trained by gradients alone, without moving averages.

  Attributes:
    size: codes.
    features: width C of each.
  """

  size: int
  features: int

  COMMITMENT = 0.25
  # Of the pull on codes that no token of a batch is nearest to.
  IDLE = 0.25
  # Codes move by so many times the learning rate. They begin near zero and have far to go, and steps are few here.
  PACE = 10.0

  def setup(self):
    bound = 1 / (self.PACE * self.size)
    start = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    self.codebook = self.PACE * self.param("codebook", start, (self.size, self.features))

  def nearest(self, tokens: Float[Array, "*b C"]) -> Int[Array, "*b"]:
    """Numbers of the nearest codes, by Euclid."""
    return jnp.argmin(self._distances(tokens), axis=-1)

  def vectors(self, codes: Int[Array, "*b"]) -> Float[Array, "*b C"]:
    """The codes of these numbers."""
    return self.codebook[codes]

  def __call__(self, tokens: Float[Array, "*b C"]) -> Float[Array, "*b C"]:
    """The nearest codes. Gradients pass to the tokens as if nothing had been changed, and none to the codes."""
    tokens = tokens.astype(jnp.float32)
    return tokens + jax.lax.stop_gradient(self.vectors(self.nearest(tokens)) - tokens)

  def terms(self, tokens: Float[Array, "*b C"]) -> dict[str, Float[Array, ""]]:
    """What trains the codebook, and holds tokens to it, by terms; each is weighted.

    "codebook" and "commitment" are the published. They move a code that is nearest to some token, and no other, so that codes
    which begin far from all tokens are lost; "idle" draws those to the token that each is nearest to.
    """
    tokens = tokens.astype(jnp.float32)
    fixed = jax.lax.stop_gradient(tokens).reshape(-1, self.features)
    distances = self._distances(fixed)
    codes = jnp.argmin(distances, axis=-1)
    idle = jnp.zeros(self.size).at[codes].add(1) == 0
    towards = fixed[jnp.argmin(distances, axis=0)]
    chosen = self.vectors(codes)
    held = jax.lax.stop_gradient(chosen).reshape(tokens.shape)
    return {
        "codebook": jnp.mean((chosen - fixed) ** 2),
        "commitment": self.COMMITMENT * jnp.mean((tokens - held) ** 2),
        "idle": self.IDLE * jnp.mean(idle[:, None] * (self.codebook - towards) ** 2),
    }

  def _distances(self, tokens: Float[Array, "*b C"]) -> Float[Array, "*b K"]:
    """Squared, of each token from each code."""
    tokens = tokens.astype(jnp.float32)
    squares = jnp.sum(tokens**2, axis=-1, keepdims=True) + jnp.sum(self.codebook**2, axis=-1)
    return squares - 2 * tokens @ self.codebook.T


class EdgeConv(nn.Module):
  """Convolution over five steps, the ends repeated beyond themselves; one matmul, as `motion.layers.FrameConv`.

  Attributes:
    features: width of the output.
    stride: steps between those of the output.
    causal: whether the five end with step t, instead of lying around it.
  """

  features: int
  stride: int = 1
  causal: bool = False
  dtype: DTypeLike = jnp.float32

  KERNEL = 5

  def setup(self):
    self.taps = nn.Dense(self.features, dtype=self.dtype)

  def __call__(self, x: Float[Array, "*b T C"]) -> Float[Array, "*b T2 D"]:
    frames, others = x.shape[-2], self.KERNEL - 1
    before = others if self.causal else others // 2
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(before, others - before), (0, 0)], mode="edge")
    return self.taps(jnp.concatenate([padded[..., i : i + frames : self.stride, :] for i in range(self.KERNEL)], axis=-1))

  def step(
      self, x: Float[Array, "*b C"], past: Float[Array, "*b 4 C"], t: Int[ArrayLike, ""]
  ) -> tuple[Float[Array, "*b D"], Float[Array, "*b 4 C"]]:
    """Step t of a causal one alone, and what was before the next; before step 0 nothing is looked at."""
    seen = jnp.concatenate([jnp.where(t == 0, x[..., None, :], past), x[..., None, :]], axis=-2)
    return self.taps(seen.reshape(*x.shape[:-1], -1)), seen[..., 1:, :]


class PreNormLayer(nn.Module):
  """L2L's Transformer layer: norms before, no dropout, and logits scaled by the whole width, not by that of a head.

  Attributes:
    features: width; a multiple of `heads`.
    heads: attention heads.
    hidden: width of the MLP.
    dtype: of the arithmetic; parameters and the softmax are float32.
  """

  features: int
  heads: int
  hidden: int
  dtype: DTypeLike = jnp.float32

  def setup(self):
    dense = functools.partial(nn.Dense, dtype=self.dtype)
    self.query, self.key, self.value = (dense(self.features, use_bias=False) for _ in range(3))
    self.out = dense(self.features)
    self.mlp_hidden, self.mlp_out = dense(self.hidden), dense(self.features)
    norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
    self.attention_norm, self.mlp_norm = norm(), norm()

  def __call__(
      self,
      x: Float[Array, "*b T D"],
      *,
      asking: Float[Array, "*b T D"] | None = None,
      visible: Bool[ArrayLike, "T T"] | None = None,
  ) -> Float[Array, "*b T D"]:
    """All frames at once.

    Args:
      asking: whose frames ask those of x, as they are; x itself, behind its norm, without.
      visible: which frames (second) each frame (first) sees; all without.
    """
    normed = self.attention_norm(x)
    query = self.query(normed if asking is None else asking)
    return self._finish(x, self._attend(query, self.key(normed), self.value(normed), visible))

  def step(
      self, x: Float[Array, "*b D"], cache: Cache, t: Int[ArrayLike, ""]
  ) -> tuple[Float[Array, "*b D"], Cache]:
    """Frame t alone, which sees itself and those before it that the cache has room for; frames come in order, from 0 on."""
    normed = self.attention_norm(x)
    t, slots = jnp.asarray(t), cache[0].shape[-2]
    keys, values = (
        kept.at[..., t % slots, :].set(project(normed)) for kept, project in zip(cache, (self.key, self.value))
    )
    seen = self._attend(self.query(normed)[..., None, :], keys, values, jnp.arange(slots)[None] <= t)
    return self._finish(x, seen[..., 0, :]), (keys, values)

  def init_cache(self, batch: tuple[int, ...], slots: int) -> Cache:
    """An empty cache for so many frames."""
    ring = jnp.zeros((*batch, slots, self.features), self.dtype)
    return ring, ring

  def _attend(self, query, key, value, visible):
    query, key, value = (x.reshape(*x.shape[:-1], self.heads, -1) for x in (query, key, value))
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key).astype(jnp.float32) * self.features**-0.5
    if visible is not None:
      logits = jnp.where(visible, logits, _MASKED)
    mixed = jnp.einsum("...hqk,...khd->...qhd", nn.softmax(logits).astype(self.dtype), value)
    return mixed.reshape(*mixed.shape[:-2], self.features)

  def _finish(self, x, seen):
    x += self.out(seen)
    return x + self.mlp_out(nn.gelu(self.mlp_hidden(self.mlp_norm(x))))
