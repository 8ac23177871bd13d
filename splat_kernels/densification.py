"""How many Gaussians there are and where: pure functions on arrays that keep their length.

Arrays have room for `N` Gaussians, of which `live` says which there are; the others are free slots. Free slots are not
drawn if their opacity is 0: `opacities=jnp.where(live, jax.nn.sigmoid(params["opacity_logits"]), 0)`. To prune is
`live &= opacities > 0.005`, or whatever else is to go. Coming and moving is `grow`, by the gradients on screen (Kerbl et
al., "3D Gaussian Splatting", 2023, Sec. 5.2), or `refill`, by opacity (Kheradmand et al., "3D Gaussian Splatting as
Markov Chain Monte Carlo", 2024). Both return `params, source, fresh`: `source` says of each slot whose copy lies there
now, so that `live[source]` are the live ones, and `fresh` which optimizer moments are no longer of use
(`adam.forget_moments`). All of it can be compiled; examples/fit_scene.py uses it.

`params` are a dictionary of arrays of length N, parametrised as is usual: "means", "quats", "log_scales" and
"opacity_logits", of which each function names those that it reads. What else there is, colours say, is copied along.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# As many copies of one Gaussian at most as Kheradmand et al.'s code makes.
MAX_COPIES = 51
# C(m, k + 1) for m copies.
_BINOMIALS = np.array([[math.comb(m, k + 1) for k in range(MAX_COPIES)] for m in range(MAX_COPIES + 1)], np.float32)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("gradient", "seen", "radius"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class ScreenStatistics:
  """What is known of each Gaussian since it was last decided which ones grow.

  Attributes:
    gradient: sum over frames of the length of the loss's gradient by its place on screen, per frame and in normalised
      device coordinates.
    seen: number of frames in which it was visible, be it behind others.
    radius: largest on screen, pixels.
  """

  gradient: Float[Array, "N"]
  seen: Float[Array, "N"]
  radius: Float[Array, "N"]

  @property
  def mean_gradient(self) -> Float[Array, "N"]:
    """Over the frames in which a Gaussian was visible. 3DGS lets grow what is above 2e-4."""
    return self.gradient / jnp.maximum(self.seen, 1)


def no_statistics(capacity: int) -> ScreenStatistics:
  """Nothing seen yet."""
  return ScreenStatistics(jnp.zeros(capacity), jnp.zeros(capacity), jnp.zeros(capacity))


def add_frames(
    statistics: ScreenStatistics,
    gradients: Float[Array, "B N 2"],
    radii: Float[Array, "B N"] | Int[Array, "B N"],
    width: int,
    height: int,
) -> ScreenStatistics:
  """Adds a step's frames.

  Args:
    statistics: of the steps before.
    gradients: by `means2d_offset` or `means2d_abs_offset` of `rasterize`, of a loss that is a mean over the B frames.
    radii: on screen, pixels; 0 where a Gaussian is not visible.
    width: of the frames, pixels.
    height: of the frames, pixels.
  """
  # Normalised device coordinates span 2 over the image; each frame's own loss is B times its share of the mean.
  lengths = len(gradients) * jnp.linalg.norm(gradients * jnp.array([width / 2, height / 2]), axis=-1)
  return ScreenStatistics(
      gradient=statistics.gradient + jnp.sum(lengths, axis=0),
      seen=statistics.seen + jnp.sum(radii > 0, axis=0),
      radius=jnp.maximum(statistics.radius, jnp.max(radii, axis=0)),
  )


def grow(
    key: jax.Array,
    params: Mapping[str, Array],
    live: Bool[Array, "N"],
    *,
    duplicated: Bool[Array, "N"],
    split: Bool[Array, "N"],
    priority: Float[Array, "N"],
    shrink: float = 1.6,
) -> tuple[dict[str, Array], Int[Array, "N"], Bool[Array, "N"]]:
  """Duplicates and splits Gaussians into free slots, as long as there are any: adaptive density control of 3DGS.

  Args:
    key: places the halves of splits.
    params: reads "means", "quats", "log_scales".
    live: which Gaussians there are.
    duplicated: which get an equal one beside them. 3DGS: those that the loss pulls on and that are small.
    split: which become two smaller ones, drawn from the Gaussian itself. 3DGS: those that are large. Where both are
      True it is split.
    priority: if there are fewer free slots than wanted, those with the largest get them. 3DGS knows no such limit; the
      gradient on screen is what one would take.
    shrink: by what the halves are smaller.

  Returns:
    params: as they are now.
    source: for each slot the Gaussian it is a copy of; itself where nothing has come.
    fresh: new ones and both halves of splits.
  """
  count = len(live)
  wanted = live & (duplicated | split)
  parents = jnp.argsort(jnp.where(wanted, -priority, jnp.inf))
  slots = jnp.argsort(live)  # Stable: free slots in order, then the others.
  granted = jnp.arange(count) < jnp.minimum(jnp.sum(wanted), jnp.sum(~live))
  splits = granted & split[parents]
  beyond = count  # An index that scatters drop.
  source = jnp.arange(count).at[jnp.where(granted, slots, beyond)].set(parents, mode="drop")
  stays, goes = jnp.where(splits, parents, beyond), jnp.where(splits, slots, beyond)

  quats, scales = params["quats"][parents], jnp.exp(params["log_scales"][parents])
  params = {name: a[source] for name, a in params.items()}
  halved = jnp.zeros(count, bool)
  for half, half_key in zip((stays, goes), jax.random.split(key), strict=True):
    offsets = rotate_by_quaternion(quats, scales * jax.random.normal(half_key, scales.shape, scales.dtype))
    params["means"] = params["means"].at[half].add(offsets, mode="drop")
    halved = halved.at[half].set(True, mode="drop")
  params["log_scales"] = jnp.where(halved[:, None], params["log_scales"] - jnp.log(shrink), params["log_scales"])
  return params, source, halved | (source != jnp.arange(count))


def refill(
    key: jax.Array, params: Mapping[str, Array], filled: Bool[Array, "N"], weights: Float[Array, "N"]
) -> tuple[dict[str, Array], Int[Array, "N"], Bool[Array, "N"]]:
  """Fills slots with copies of Gaussians drawn by weight, and leaves the image as it was: the moves of MCMC.

  The one drawn and its copies share its place; opacity and scale change as in `relocate`.

  Args:
    key: draws.
    params: reads "opacity_logits", "log_scales".
    filled: slots that get a copy: what has become transparent (Kheradmand et al.: opacity at most 0.005), and free ones.
    weights: chance of each other to be drawn: its opacity, or 0 where it is not live. If all are 0, nothing happens.

  Returns:
    params: as they are now.
    source: for each slot the Gaussian it is a copy of; itself where nothing has come.
    fresh: those that were drawn, and their copies.
  """
  count = len(filled)
  weights = jnp.where(filled, 0, weights)  # No copy is made of what moves away.
  filled &= jnp.any(weights > 0)
  drawn = draw_indices(key, weights, count)
  source = jnp.where(filled, drawn, jnp.arange(count))
  ratios = 1 + jax.ops.segment_sum(filled.astype(jnp.int32), drawn, count)
  opacities, growth = _share(jax.nn.sigmoid(params["opacity_logits"]), ratios)
  shared = {
      "opacity_logits": jax.scipy.special.logit(jnp.clip(opacities, 1e-6, 1 - 1e-6)),
      "log_scales": params["log_scales"] + jnp.log(growth)[:, None],
  }
  params = dict(params)
  for name, new in shared.items():
    params[name] = jnp.where((ratios > 1).reshape((-1,) + (1,) * (new.ndim - 1)), new, params[name])
  return {name: a[source] for name, a in params.items()}, source, filled | (ratios > 1)


def relocate(
    opacities: Float[Array, "N"], scales: Float[Array, "N 3"], ratios: Int[Array, "N"]
) -> tuple[Float[Array, "N"], Float[Array, "N 3"]]:
  """Opacity and scales of one of several equal Gaussians that together look like the given one.

  Kheradmand et al. 2024, Eq. 9: at the centre the composited opacity is the given one's, and so is its integral over a
  line through it. gsplat calls it `compute_relocation`.

  Args:
    opacities: in [0, 1].
    scales: standard deviations.
    ratios: how many stand for each, 1 to `MAX_COPIES`; of more, it is taken for so many.
  """
  opacities, growth = _share(opacities, ratios)
  return opacities, scales * growth[:, None]


def _share(opacities: Float[Array, "N"], ratios: Int[Array, "N"]) -> tuple[Float[Array, "N"], Float[Array, "N"]]:
  """`relocate`: opacities, and the factor of scales."""
  ratios = jnp.minimum(ratios, MAX_COPIES)
  one = -jnp.expm1(jnp.log1p(-opacities) / ratios)  # 1 - (1 - o)^(1/m)
  power = jnp.arange(1, MAX_COPIES + 1)
  # The double sum of the paper's Eq. 9, its inner sum over i taken first: sum_i C(i - 1, k) = C(m, k + 1).
  terms = jnp.asarray(_BINOMIALS)[ratios] * jnp.where(power % 2, 1.0, -1.0) * one[:, None] ** power / jnp.sqrt(power)
  return one, opacities / jnp.sum(terms, axis=-1)


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


def inject_noise(
    key: jax.Array,
    means: Float[Array, "N 3"],
    quats: Float[Array, "N 4"],
    scales: Float[Array, "N 3"],
    opacities: Float[Array, "N"],
    amount: float | Float[Array, ""],
) -> Float[Array, "N 3"]:
  """Means (or updates of them) with the noise of MCMC, which lets nearly transparent Gaussians look around.

  Kheradmand et al. 2024, Eq. 8: along each Gaussian's covariance, next to none for opaque ones.

  Args:
    key: of the noise.
    means: to which noise is added.
    quats: wxyz, of any length but 0.
    scales: standard deviations.
    opacities: in [0, 1].
    amount: the paper: 5e5 times the learning rate of the means.
  """
  gate = jax.nn.sigmoid(100 * (0.005 - opacities))  # k = 100 and t = 0.005, the published code's.
  # White noise is white in the Gaussian's axes, too, so that the covariance R S^2 R^T needs no R^T.
  local = scales**2 * jax.random.normal(key, means.shape, means.dtype)
  return means + amount * gate[:, None] * rotate_by_quaternion(quats, local)


def rotate_by_quaternion(quats: Float[Array, "*b 4"], x: Float[Array, "*b 3"]) -> Float[Array, "*b 3"]:
  """x turned by the rotation of a quaternion (wxyz) of any length but 0."""
  quats = quats / jnp.linalg.norm(quats, axis=-1, keepdims=True)
  twice = 2 * jnp.cross(quats[..., 1:], x)
  return x + quats[..., :1] * twice + jnp.cross(quats[..., 1:], twice)
