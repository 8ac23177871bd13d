"""Density control with a fixed budget: "3D Gaussian Splatting as Markov Chain Monte Carlo", Kheradmand et al. 2024.

No thresholds on gradients: Gaussians that have become transparent move to where opaque ones are, in a way that leaves
the image as it was, and noise lets nearly transparent ones look around. Bindings: who moves, moves to the other's
triangle, and no triangle loses its last Gaussian, as in `density`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rsatalker_jax.avatar.binding import rotate_by_quaternion
from rsatalker_jax.avatar.density import Change, Interval, spare_last
from rsatalker_jax.avatar.gaussians import FREE, Gaussians

# As many copies of one Gaussian at most as the published code makes.
MAX_COPIES = 51
# C(m, k + 1) for m copies.
_BINOMIALS = np.array([[math.comb(m, k + 1) for k in range(MAX_COPIES)] for m in range(MAX_COPIES + 1)], np.float32)


@dataclasses.dataclass(frozen=True)
class McmcConfig(Interval):
  """When Gaussians move, and how much they look around. The values, with the published ones beside them, are the config's.

  Attributes:
    start, stop, every: they move every so many steps, later than `start` and before `stop`.
    growth: by which factor their number grows each time, up to the capacity.
    min_opacity: what is less opaque moves.
    noise: of positions, times their learning rate and the Gaussian's covariance.
    opacity_weight, scale_weight: of the penalties on mean opacity and mean scale.
  """

  growth: float
  min_opacity: float
  noise: float
  opacity_weight: float
  scale_weight: float


def relocate(
    gaussians: Gaussians, binding: Int[Array, "N"], num_faces: int, key: jax.Array, config: McmcConfig
) -> Change:
  """Moves transparent Gaussians, and as many free slots as `config.growth` allows, to opaque ones drawn by opacity.

  The one drawn and its n copies share its place; opacity and scale change (the paper's Eq. 9) such that together they
  look as it did alone.

  Args:
    gaussians, binding: with free slots.
    num_faces: of the head.
    key: draws.
    config: see there.

  Returns:
    See `Change`; counts are "moved", "born" and "live".
  """
  count = len(binding)
  live = binding != FREE
  opacity = jax.nn.sigmoid(gaussians.opacity_logits)
  faint = spare_last(opacity < config.min_opacity, opacity, binding, num_faces)
  chance = jnp.where(live & ~faint, opacity, 0.0)
  # Rounded up, or a few Gaussians would never grow.
  most_born = jnp.ceil((config.growth - 1) * jnp.sum(live)).astype(jnp.int32)
  born = ~live & (jnp.cumsum(~live) <= most_born)
  filled = (faint | born) & jnp.any(chance > 0)
  source = draw_indices(key, chance, count)
  copies = 1 + jax.ops.segment_sum(filled.astype(jnp.int32), source, count)
  shared = _share(gaussians, copies)
  drawn = copies > 1
  choose = lambda mask, a, b: jnp.where(mask.reshape((-1,) + (1,) * (b.ndim - 1)), a, b)
  gaussians = jax.tree.map(
      lambda one, old: choose(filled, one[source], choose(drawn, one, old)), shared, gaussians
  )
  binding = jnp.where(filled, binding[source], binding)
  counts = {"moved": jnp.sum(filled & live), "born": jnp.sum(filled & born), "live": jnp.sum(binding != FREE)}
  return Change(gaussians, binding, filled | drawn, counts)


def draw_indices(key: jax.Array, weights: Float[Array, "N"], count: int) -> Int[Array, "count"]:
  """Indices drawn in proportion to `weights`, which are not negative, by the inverse of their cumulative distribution.

  Memory is linear in N. What has weight 0 is never drawn; if everything has, the indices mean nothing.
  """
  # Whole numbers that add up to about 2^31, whose sums are exact: in float32 the sum of 100,000 opacities comes in steps
  # larger than the faintest of them, and sums taken in parallel need not even rise.
  total = jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)
  cumulative = jnp.cumsum(jnp.round(weights / total * 2.0**31).astype(jnp.uint32))
  drawn = jax.random.randint(key, (count,), 0, cumulative[-1], jnp.uint32)
  return jnp.minimum(jnp.searchsorted(cumulative, drawn, side="right"), len(weights) - 1)


def _share(gaussians: Gaussians, copies: Int[Array, "N"]) -> Gaussians:
  """One of so many equal Gaussians that together look like the given one."""
  copies = jnp.minimum(copies, MAX_COPIES)
  opacity = jax.nn.sigmoid(gaussians.opacity_logits)
  one = -jnp.expm1(jnp.log1p(-opacity) / copies)  # 1 - (1 - o)^(1/m)
  power = jnp.arange(1, MAX_COPIES + 1)
  # The double sum of the paper's Eq. 9, its inner sum over i taken first: sum_i C(i - 1, k) = C(m, k + 1).
  terms = jnp.asarray(_BINOMIALS)[copies] * jnp.where(power % 2, 1.0, -1.0) * one[:, None] ** power / jnp.sqrt(power)
  ratio = opacity / jnp.sum(terms, axis=-1)
  return gaussians.replace(
      opacity_logits=jax.scipy.special.logit(jnp.clip(one, 1e-6, 1 - 1e-6)),
      log_scales=gaussians.log_scales + jnp.log(ratio)[:, None],
  )


def position_noise(gaussians: Gaussians, key: jax.Array, amount: Float[Array, ""]) -> Float[Array, "N 3"]:
  """Noise for the means (the paper's Eq. 8): along each Gaussian's covariance, next to none for opaque ones."""
  opacity = jax.nn.sigmoid(gaussians.opacity_logits)
  gate = jax.nn.sigmoid(100 * (0.005 - opacity))  # k = 100 and t = 0.005, the published code's.
  inverse = gaussians.quats * jnp.array([1.0, -1.0, -1.0, -1.0])
  local = rotate_by_quaternion(inverse, jax.random.normal(key, gaussians.means.shape))
  along = rotate_by_quaternion(gaussians.quats, jnp.exp(2 * gaussians.log_scales) * local)
  return amount * gate[:, None] * along
