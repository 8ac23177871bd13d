"""Density control with a fixed budget: "3D Gaussian Splatting as Markov Chain Monte Carlo", Kheradmand et al. 2024.

No thresholds on gradients: Gaussians that have become transparent move to where opaque ones are, in a way that leaves
the image as it was, and noise lets nearly transparent ones look around. Bindings: who moves, moves to the other's
triangle, and no triangle loses its last Gaussian, as in `density`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from rsatalker_jax.avatar.density import Change, Interval, spare_last
from rsatalker_jax.avatar.gaussians import FREE, Gaussians
from splat_kernels import densification

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
  live = binding != FREE
  opacity = jax.nn.sigmoid(gaussians.opacity_logits)
  faint = spare_last(opacity < config.min_opacity, opacity, binding, num_faces)
  chance = jnp.where(live & ~faint, opacity, 0.0)
  # Rounded up, or a few Gaussians would never grow.
  most_born = jnp.ceil((config.growth - 1) * jnp.sum(live)).astype(jnp.int32)
  born = ~live & (jnp.cumsum(~live) <= most_born)
  params, source, fresh = densification.refill(key, dict(vars(gaussians)), faint | born, chance)
  filled = source != jnp.arange(len(source))
  binding = binding[source]
  counts = {"moved": jnp.sum(filled & live), "born": jnp.sum(filled & ~live), "live": jnp.sum(binding != FREE)}
  return Change(Gaussians(**params), binding, fresh, counts)
