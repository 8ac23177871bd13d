"""The lattice renderer against marching written out, dense quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsatalker_jax.baselines.image.nerf_rendering import (
    Lattice,
    cell_centres,
    composite,
    enter_box,
    find_occupied,
    keep_first,
    look_up,
    make_rays,
    sample_rays,
    update_occupancy,
)

_HALF = (0.6, 1.0, 0.8)
_LATTICE = Lattice(_HALF, 0.05, 60, 6)


def _rays(count: int, seed: int = 0):
  """From points on a sphere about the box to points near its middle."""
  rng = np.random.default_rng(seed)
  origins = rng.normal(size=(count, 3))
  origins *= 3 / np.linalg.norm(origins, axis=-1, keepdims=True)
  directions = rng.uniform(-0.7, 0.7, (count, 3)) - origins
  return origins.astype(np.float32), (directions / np.linalg.norm(directions, axis=-1, keepdims=True)).astype(np.float32)


def _cell(point, size: int):
  place = np.floor((np.asarray(point, np.float64) / _HALF + 1) * size / 2).astype(int)
  return tuple(place) if np.all((place >= 0) & (place < size)) else None


def _march(origin, direction, near, occupied, shift):
  """The published renderer's way: step by step, until enough samples are found."""
  kept, t = [], near + shift * _LATTICE.step
  for _ in range(_LATTICE.points):
    cell = _cell(origin + t * direction, len(occupied))
    if cell is not None and occupied[cell] and len(kept) < _LATTICE.samples:
      kept.append(origin + t * direction)
    t += _LATTICE.step
  return kept


def test_rays_meet_what_the_camera_sees():
  rng = np.random.default_rng(1)
  rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
  rotation *= np.linalg.det(rotation)
  camera_to_head = np.eye(4)
  camera_to_head[:3, :3], camera_to_head[:3, 3] = rotation, [0.3, -0.2, 5.0]
  intrinsics = np.array([[300.0, 0, 70], [0, 250.0, 40], [0, 0, 1]])
  points = rng.uniform(-1, 1, (9, 3)) + [0, 0, 4]  # Before the camera.
  seen = points @ intrinsics.T
  origins, directions = make_rays(*(jnp.asarray(x, jnp.float32) for x in (camera_to_head, intrinsics, seen[:, :2] / seen[:, 2:])))
  in_head = points @ rotation.T + camera_to_head[:3, 3]
  np.testing.assert_allclose(origins + np.linalg.norm(points, axis=-1, keepdims=True) * directions, in_head, atol=1e-4)


def test_box_is_entered_where_it_begins():
  origins, directions = _rays(200)
  near = np.asarray(enter_box(origins, directions, _HALF))
  t = np.linspace(0, 6, 6001)
  inside = np.all(np.abs(origins[:, None] + t[:, None] * directions[:, None]) <= _HALF, axis=-1)
  meets = inside.any(axis=1)
  assert 0 < meets.sum() < 200
  np.testing.assert_allclose(near[meets], t[inside.argmax(axis=1)][meets], atol=2e-3)


def test_box_from_inside_and_along_its_sides():
  origins = np.array([[0, 0, 0], [0.1, 0, -3], [0.7, 0, -3], [0, 0, 3]], np.float32)
  directions = np.tile(np.array([0, 0, 1], np.float32), (4, 1))
  near = np.asarray(enter_box(origins, directions, _HALF))
  np.testing.assert_allclose(near[:2], [0, 2.2], atol=1e-6)
  beyond = origins[2:] + near[2:, None] * directions[2:]
  assert np.all(np.isfinite(near)) and np.all(np.abs(beyond).max(axis=-1) > 0.6)  # Beside the box, and behind the origin.
  _, kept = sample_rays(origins, directions, jnp.ones((4, 4, 4), bool), _LATTICE, 0.5)
  assert np.asarray(kept).all(axis=1).tolist() == [True, True, False, False] and not np.asarray(kept)[2:].any()


def test_first_occupied_points_are_kept_in_order():
  occupied = np.random.default_rng(0).random((40, 11)) < np.linspace(0, 1, 40)[:, None]
  number, kept = map(np.asarray, keep_first(jnp.asarray(occupied), 4))
  for row, numbers, there in zip(occupied, number, kept):
    expected = np.flatnonzero(row)[:4]
    assert there.tolist() == [True] * len(expected) + [False] * (4 - len(expected))
    np.testing.assert_array_equal(numbers[there], expected)


def test_cells_of_points():
  rng = np.random.default_rng(0)
  cells = rng.random((5, 5, 5)) < 0.5
  points = rng.uniform(-1.2, 1.2, (300, 3)).astype(np.float32)
  expected = [cell is not None and cells[cell] for cell in (_cell(point, 5) for point in points)]
  np.testing.assert_array_equal(look_up(jnp.asarray(cells), points, _HALF), expected)
  centres = cell_centres(5, _HALF)
  np.testing.assert_array_equal(look_up(jnp.asarray(cells), centres, _HALF), cells.reshape(-1))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_samples_are_those_of_marching(share):
  occupied = np.random.default_rng(2).random((8, 8, 8)) < share
  origins, directions = _rays(60)
  shift = np.random.default_rng(3).random(60).astype(np.float32)
  points, kept = map(np.asarray, sample_rays(origins, directions, jnp.asarray(occupied), _LATTICE, shift))
  near = np.asarray(enter_box(origins, directions, _HALF))
  counts = []
  for i in range(60):
    expected = _march(origins[i], directions[i], near[i], occupied, shift[i])
    counts.append(len(expected))
    assert kept[i].tolist() == [k < len(expected) for k in range(_LATTICE.samples)]
    np.testing.assert_allclose(points[i][kept[i]], np.reshape(expected, (-1, 3)), atol=1e-5)
    assert not points[i][~kept[i]].any()
  if share == 0.3:
    assert 0 < np.mean(np.array(counts) == 6) < 1  # Some rays have more occupied points than are kept.


def test_weights_are_those_of_the_rendering_equation():
  density = np.random.default_rng(0).uniform(0, 30, (7, 9))
  density[:, 4] = 0.0
  expected = np.zeros_like(density)
  for i, row in enumerate(density):
    transmittance = 1.0
    for j, sigma in enumerate(row):
      alpha = 1 - np.exp(-sigma * 0.05)
      expected[i, j] = transmittance * alpha
      transmittance *= 1 - alpha
  np.testing.assert_allclose(composite(jnp.asarray(density, jnp.float32), 0.05), expected, atol=1e-6)


def test_slab_of_one_density_has_its_closed_form():
  # Along z the box is 1.6 deep: of a lattice that ends with it, alpha is exactly that of Beer and Lambert.
  lattice = Lattice(_HALF, 0.1, 40, 40)
  origin, direction = np.array([[0.2, 0.3, -4]], np.float32), np.array([[0, 0, 1]], np.float32)
  points, kept = sample_rays(origin, direction, jnp.ones((4, 4, 4), bool), lattice, 0.5)
  assert int(kept.sum()) == 16
  np.testing.assert_allclose(points[0, 0], [0.2, 0.3, -0.75], atol=1e-6)
  weights = composite(jnp.where(kept, 1.3, 0.0), lattice.step)
  np.testing.assert_allclose(weights.sum(), 1 - np.exp(-1.3 * 1.6), atol=1e-6)


def test_occupied_lattice_is_a_dense_quadrature():
  """A smooth ball, rendered on a fine lattice with empty cells skipped, is what quadrature along the whole ray gives."""
  radiance = lambda x: jnp.stack([0.5 + 0.5 * x[..., 0], 0.5 - 0.3 * x[..., 1], jnp.cos(x[..., 2])], axis=-1)
  density = lambda x: 40 * jnp.maximum(0.16 - jnp.sum(x**2, axis=-1), 0.0)
  size = 24
  centres = cell_centres(size, _HALF)
  near_ball = np.linalg.norm(centres, axis=-1) < 0.4 + np.linalg.norm(_HALF) * 2 / size
  lattice = Lattice(_HALF, 0.004, 700, 400)
  origins, directions = _rays(40)
  points, kept = sample_rays(origins, directions, jnp.asarray(near_ball.reshape((size,) * 3)), lattice, 0.5)
  weights = composite(jnp.where(kept, density(points), 0.0), lattice.step)
  image = np.einsum("ns,nsc->nc", weights, radiance(points))

  t = np.linspace(1.5, 4.5, 6001)
  x = origins[:, None].astype(np.float64) + t[:, None] * directions[:, None]
  sigma = 40 * np.maximum(0.16 - (x**2).sum(-1), 0)
  optical = np.concatenate([np.zeros((40, 1)), np.cumsum((sigma[:, 1:] + sigma[:, :-1]) / 2 * (t[1] - t[0]), axis=1)], axis=1)
  expected = np.trapezoid((np.exp(-optical) * sigma)[..., None] * np.asarray(radiance(x)), t, axis=1)
  assert (np.asarray(weights).sum(1) > 0.5).any() and (np.asarray(weights).sum(1) == 0).any()
  np.testing.assert_allclose(image, expected, atol=2e-3)


# --- Occupancy


def _number_cells(points, size: int):
  """The number of a point's cell, which is any point's within it."""
  place = jnp.floor((points / jnp.asarray(_HALF) + 1) * (size / 2))
  return (place[:, 0] * size + place[:, 1]) * size + place[:, 2]


def test_update_asks_within_each_cell_and_takes_its_neighbours_largest():
  size = 6
  number = np.arange(size**3, dtype=np.float32).reshape((size,) * 3)
  asked = []

  def density(points):
    jax.debug.callback(lambda x: asked.append(np.asarray(x)), points)
    return _number_cells(points, size) / 1024  # So that none is above what is kept.

  grid = update_occupancy(jnp.zeros((size,) * 3), density, _HALF, jax.random.key(0))
  jax.effects_barrier()
  expected = number.copy()  # The neighbour ahead along x has the largest number, at the box's end that along y, then z.
  expected[:-1] = number[1:]
  expected[-1, :-1] = number[-1, 1:]
  expected[-1, -1, :-1] = number[-1, -1, 1:]
  np.testing.assert_array_equal(1024 * grid, expected)
  assert len(np.unique(np.concatenate(asked)[:, 0])) > size  # They are not all in the middle of their cells.


def test_old_density_fades():
  old = jnp.full((3, 3, 3), 2.0).at[0, 0, 0].set(8.0)
  grid = update_occupancy(old, lambda points: jnp.full(len(points), 3.0), _HALF, jax.random.key(0))
  np.testing.assert_allclose(grid[0, 0, 0], 0.95 * 8)
  np.testing.assert_allclose(np.asarray(grid).reshape(-1)[1:], 3.0)


def test_what_was_dense_once_is_forgotten():
  """However dense, it is below what counts as solid after 20 updates, and is not yet after 10."""
  update = lambda grid, value: update_occupancy(grid, lambda points: jnp.full(len(points), value), _HALF, jax.random.key(0))
  grid = update(jnp.zeros((3, 3, 3)), 1e5)
  for _ in range(10):
    grid = update(grid, 0.0)
  assert grid.min() > 10
  for _ in range(10):
    grid = update(grid, 0.0)
  assert 0 < grid.max() < 10


def test_occupied_is_what_is_denser_than_the_mean_or_than_ten():
  thin = jnp.asarray(np.arange(27.0).reshape(3, 3, 3) / 10)
  np.testing.assert_array_equal(find_occupied(thin), np.arange(27).reshape(3, 3, 3) > 13)
  thick = jnp.asarray(np.arange(27.0).reshape(3, 3, 3) * 10)
  np.testing.assert_array_equal(find_occupied(thick), np.arange(27).reshape(3, 3, 3) > 1)
