"""Volume rendering of a head in its box, on a lattice of constant step, by static shapes (ER-NeRF's renderer).

Lengths are in units of the box: `HeadBox.unit` metres are 1, its centre is the origin. A ray's samples all lie at t0 + n step,
where t0 is where it enters the box, plus a random part of a step in training. So instead of marching, the cells of all lattice
points are looked up at once, and the first `samples` occupied ones are kept: the same samples, and no loop whose length depends
on the scene. All rays are rendered; the published renderer drops those beyond a running mean of samples.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# The grid's density falls by this share between two updates, and no density above `_SOLID` is asked for. The published grid keeps
# densities however high, and forgets one of 10⁵ in 180 updates, more than a short training has: cells that were filled at its
# beginning would use up the samples of rays for good, and what lies behind them is not drawn. Up to `_KEPT`, it takes 14.
_DECAY, _SOLID, _KEPT = 0.95, 10.0, 20.0


@dataclasses.dataclass(frozen=True)
class Lattice:
  """Where rays are sampled.

  Attributes:
    half: the box's half sides along x, y, z.
    step: between samples.
    points: lattice points of a ray that are looked up.
    samples: of those, how many occupied ones are kept, the first.
  """

  half: tuple[float, float, float]
  step: float
  points: int
  samples: int


def make_rays(
    camera_to_head: Float[Array, "4 4"], intrinsics: Float[Array, "3 3"], pixels: Float[Array, "n 2"]
) -> tuple[Float[Array, "n 3"], Float[Array, "n 3"]]:
  """Origins and unit directions of the rays through points of the picture, in head space.

  Args:
    camera_to_head: of OpenCV's axes: x right, y down, z forward.
    intrinsics: in pixels.
    pixels: x and y; a pixel's centre is at +0.5.
  """
  homogeneous = jnp.concatenate([pixels, jnp.ones_like(pixels[:, :1])], axis=-1)
  directions = homogeneous @ jnp.linalg.inv(intrinsics).T @ camera_to_head[:3, :3].T
  directions = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
  return jnp.broadcast_to(camera_to_head[:3, 3], directions.shape), directions


def enter_box(
    origins: Float[Array, "n 3"], directions: Float[Array, "n 3"], half: tuple[float, float, float]
) -> Float[Array, "n"]:
  """How far along their rays the box begins, 0 from within; a ray that misses it is outside from there on."""
  # A ray along a side of the box divides by almost zero, not by zero: 0/0 would be no number.
  along = jnp.where(jnp.abs(directions) < 1e-9, 1e-9, directions)
  sides = jnp.asarray(half)
  return jnp.maximum(jnp.max(jnp.minimum((-sides - origins) / along, (sides - origins) / along), axis=-1), 0.0)


def keep_first(occupied: Bool[Array, "n L"], samples: int) -> tuple[Int[Array, "n S"], Bool[Array, "n S"]]:
  """The numbers of the first `samples` occupied points of each ray in order, and which of those there are."""
  # The k-th occupied point, from 0, stands behind as many points as have at most k occupied ones up to themselves.
  up_to = jnp.cumsum(occupied.astype(jnp.int32), axis=-1)
  number = jnp.sum(up_to[:, None, :] <= jnp.arange(samples)[:, None], axis=-1)
  return number, number < occupied.shape[-1]


def sample_rays(
    origins: Float[Array, "n 3"],
    directions: Float[Array, "n 3"],
    occupied: Bool[Array, "R R R"],
    lattice: Lattice,
    shift: Float[Array, "n"] | float = 0.0,
) -> tuple[Float[Array, "n S 3"], Bool[Array, "n S"]]:
  """The first occupied lattice points of each ray, and which of them there are; what there is not lies at the origin.

  Args:
    origins, directions: of rays; directions of length 1.
    occupied: cells of the box.
    lattice: see there.
    shift: of each ray's lattice along it, in steps.
  """
  t = (enter_box(origins, directions, lattice.half) + lattice.step * shift)[:, None] + lattice.step * jnp.arange(lattice.points)
  points = origins[:, None] + t[..., None] * directions[:, None]
  number, kept = keep_first(look_up(occupied, points, lattice.half), lattice.samples)
  t = jnp.take_along_axis(t, jnp.minimum(number, lattice.points - 1), axis=-1)
  return jnp.where(kept[..., None], origins[:, None] + t[..., None] * directions[:, None], 0.0), kept


def composite(density: Float[Array, "n S"], step: float) -> Float[Array, "n S"]:
  """How much of each sample is seen: w_i = T_i (1 - exp(-density_i step)), T_i = exp(-sum of density_j step over j < i).

  Samples are in order along their ray; one that is not there has density 0. The sum of a ray's weights is its alpha. The published
  renderer stops where T is below 1e-4.
  """
  optical = density * step
  before = jnp.cumsum(optical, axis=-1) - optical
  return jnp.exp(-before) * -jnp.expm1(-optical)


# --- Occupancy


def look_up(
    cells: Bool[Array, "R R R"], points: Float[Array, "*n 3"], half: tuple[float, float, float]
) -> Bool[Array, "*n"]:
  """What is in the cells of points, along x, y, z; False outside the box."""
  size = cells.shape[0]
  place = jnp.floor((points / jnp.asarray(half) + 1) * (size / 2)).astype(jnp.int32)
  inside = jnp.all((place >= 0) & (place < size), axis=-1)
  x, y, z = jnp.moveaxis(jnp.clip(place, 0, size - 1), -1, 0)
  return cells.reshape(-1)[(x * size + y) * size + z] & inside


def cell_centres(size: int, half: tuple[float, float, float]) -> Float[np.ndarray, "RRR 3"]:
  """Of all cells, the last axis first."""
  axis = (np.arange(size) + 0.5) * (2 / size) - 1
  grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1) * np.asarray(half)
  return grid.reshape(-1, 3).astype(np.float32)


def update_occupancy(
    grid: Float[Array, "R R R"],
    density: Callable[[Float[Array, "k 3"]], Float[Array, "k"]],
    half: tuple[float, float, float],
    key: jax.Array,
) -> Float[Array, "R R R"]:
  """The density in each cell: the largest of the old one, faded, and of the new ones of the cell and of its six neighbours, up to `_KEPT`.

  Args:
    grid: the densities of the last update.
    density: of points, at one moment; it is asked for a layer of cells at a time.
    half: the box's.
    key: of where in its cell each point lies.
  """
  size = grid.shape[0]
  centres = jnp.asarray(cell_centres(size, half))
  jitter = jax.random.uniform(key, centres.shape, minval=-1.0, maxval=1.0) * jnp.asarray(half) / size
  new = jax.lax.map(density, (centres + jitter).reshape(size, -1, 3)).reshape(grid.shape)
  return jnp.maximum(_DECAY * grid, jnp.minimum(_neighbour_maximum(new), _KEPT))


def _neighbour_maximum(x: Float[Array, "R R R"]) -> Float[Array, "R R R"]:
  largest = x
  for axis in range(3):
    window = tuple(3 if i == axis else 1 for i in range(3))
    largest = jnp.maximum(largest, jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 1, 1), "SAME"))
  return largest


def find_occupied(grid: Float[Array, "R R R"]) -> Bool[Array, "R R R"]:
  """The cells denser than the mean, or than what hides everything within a few steps, if that is less."""
  return grid > jnp.minimum(jnp.mean(grid), _SOLID)
