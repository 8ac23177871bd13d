"""Adaptive density control: Gaussians are cloned, split and pruned, in arrays that keep their length.

Sources: Kerbl et al. 2023 (3DGS), Sec. 5.2, for what is cloned, split and pruned; Qian et al. 2024 (GaussianAvatars),
Sec. 3.3: copies inherit the triangle, and no triangle loses its last Gaussian; Ye et al. 2024 (AbsGS) for absolute
gradients; docs/avatar.md lists where it is not their code. Gaussians are in the frames of their triangles, lengths in
units of the triangle's size.

Arrays have room for `capacity` Gaussians. Those bound to `FREE` are free slots; growing fills the first of them.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rsatalker_jax.avatar.gaussians import FREE, Gaussians
from splat_kernels import densification

# Names of a Gaussian's trained arrays.
ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Gaussians))


@dataclasses.dataclass(frozen=True)
class Interval:
  """After how many steps density control acts: after every so many, later than `start` and before `stop` (3DGS's rule)."""

  start: int
  stop: int
  every: int

  def acts_after(self, step: int) -> bool:
    """Whether Gaussians come, move or go after so many steps."""
    return self.start < step < self.stop and step % self.every == 0


@dataclasses.dataclass(frozen=True)
class DensityConfig(Interval):
  """When density control acts and on what. The values, with the published ones beside them, are the config's.

  Attributes:
    start, stop, every: it acts every so many steps, later than `start` and before `stop`.
    gradient_threshold: mean length of the gradient of a Gaussian's place on screen, in normalised device coordinates,
      over the frames in which it is visible; above this it is cloned or split.
    absolute: absolute gradients, which do not cancel within a Gaussian.
    dense_size: metres; what is larger than this is split, what is smaller is cloned.
    split_shrink: by what the halves of a split are smaller.
    min_opacity: what is less opaque is pruned.
    max_size: metres; what is larger is pruned, once opacities have been reset; 0 for no limit.
    max_radius: pixels; what has been larger than this on screen since density control acted last is pruned, once
      opacities have been reset; 0 for no limit.
    reset_every: steps between resets of opacity; 0 for none.
    reset_opacity: what a reset leaves at most.
  """

  gradient_threshold: float
  absolute: bool
  dense_size: float
  split_shrink: float
  min_opacity: float
  max_size: float
  max_radius: float
  reset_every: int
  reset_opacity: float

  def resets_after(self, step: int) -> bool:
    """Whether opacities are reset after so many steps."""
    return bool(self.reset_every) and step < self.stop and step % self.reset_every == 0

  def prunes_large_after(self, step: int) -> bool:
    """Whether size counts after so many steps: what hides behind opaque Gaussians grows large before the first reset."""
    return step > self.reset_every


@flax.struct.dataclass
class Change:
  """Gaussians after density control.

  Attributes:
    gaussians, binding: as they are now.
    fresh: slots whose optimizer moments mean nothing any more.
    counts: what happened, by name: "pruned", "cloned", "split", "refused" (wanted to grow, found no free slot), "live".
  """

  gaussians: Gaussians
  binding: Int[Array, "N"]
  fresh: Bool[Array, "N"]
  counts: dict[str, Int[Array, ""]]


def densify_and_prune(
    gaussians: Gaussians,
    binding: Int[Array, "N"],
    statistics: densification.ScreenStatistics,
    sizes: Float[Array, "F"],
    key: jax.Array,
    prune_large: bool | Bool[Array, ""],
    config: DensityConfig,
) -> Change:
  """Prunes what is nearly transparent or too large; clones small and splits large Gaussians that the loss pulls on.

  If there are fewer free slots than Gaussians that want one, those with the largest gradients get them.

  Args:
    gaussians, binding: with free slots.
    statistics: since density control acted last.
    sizes: of the triangles at rest, metres.
    key: places the halves of splits.
    prune_large: whether size counts (`DensityConfig.prunes_large_after`).
    config: see there.
  """
  count = binding.shape[0]
  largest = sizes[binding] * jnp.exp(jnp.max(gaussians.log_scales, axis=-1))
  large = jnp.zeros(count, bool)
  if config.max_size:
    large |= largest > config.max_size
  if config.max_radius:
    large |= statistics.radius > config.max_radius
  opacity = jax.nn.sigmoid(gaussians.opacity_logits)
  pruned = spare_last((opacity < config.min_opacity) | (prune_large & large), opacity, binding, len(sizes))
  binding = jnp.where(pruned, FREE, binding)

  wanted = (binding != FREE) & (statistics.mean_gradient > config.gradient_threshold)
  splits = wanted & (largest > config.dense_size)
  params, source, fresh = densification.grow(
      key,
      dict(vars(gaussians)),
      binding != FREE,
      duplicated=wanted & ~splits,
      split=splits,
      priority=statistics.mean_gradient,
      shrink=config.split_shrink,
  )
  binding = binding[source]
  born = source != jnp.arange(count)
  counts = {
      "pruned": jnp.sum(pruned),
      "cloned": jnp.sum(born & ~splits[source]),
      "split": jnp.sum(born & splits[source]),
      "refused": jnp.sum(wanted) - jnp.sum(born),
      "live": jnp.sum(binding != FREE),
  }
  return Change(Gaussians(**params), binding, pruned | fresh, counts)


def spare_last(
    unwanted: Bool[Array, "N"], opacity: Float[Array, "N"], binding: Int[Array, "N"], num_faces: int
) -> Bool[Array, "N"]:
  """Live Gaussians that are unwanted and may go: of a triangle that has no other, the most opaque stays."""
  live = binding != FREE
  rank = jnp.where(live, opacity + 2.0 * ~unwanted, -1.0)  # What is wanted ranks above what is not.
  at = jnp.where(live, binding, num_faces)  # Free slots: a segment of their own.
  best = jax.ops.segment_max(rank, at, num_faces + 1)
  index = jnp.arange(len(binding))
  first = jax.ops.segment_min(jnp.where(rank == best[at], index, len(binding)), at, num_faces + 1)
  return live & unwanted & (index != first[at])


def reset_opacities(gaussians: Gaussians, most: float) -> Gaussians:
  """No Gaussian more opaque than `most`: what the images need becomes opaque again, the rest is pruned."""
  return dataclasses.replace(gaussians, opacity_logits=jnp.minimum(gaussians.opacity_logits, jax.scipy.special.logit(most)))


def forget_moments(opt_state: Any, fresh: Bool[Array, "*P N"], attributes: Iterable[str] = ATTRIBUTES) -> Any:
  """An optimizer state with zero moments where `fresh`, of these attributes of Gaussians; everything else as it was."""

  def forget(path, x):
    # Moments have the paths of their parameters; other arrays may happen to be as long as the Gaussians.
    if getattr(path[-1], "key", None) not in attributes:
      return x
    return jnp.where(fresh.reshape(fresh.shape + (1,) * (x.ndim - fresh.ndim)), jnp.zeros((), x.dtype), x)

  return jax.tree_util.tree_map_with_path(forget, opt_state)
