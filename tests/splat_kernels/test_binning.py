"""Lists of (Gaussian, tile) pairs, against a loop over all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splat_kernels import Config, Projected, binning, project
from splat_kernels.specs import SPECS, make_scene


@pytest.fixture(scope="module")
def projected() -> Projected:
  scene = make_scene(SPECS["odd_size"])
  arrays = {key: scene[key][0] for key in ("means", "quats", "scales", "opacities")}
  return project(**arrays, camera=scene["camera"], config=Config(tile_size=8))


def list_pairs(projected: Projected, capacity: int = 1021, mask=None) -> binning.Bins:
  shape = dict(width=37, height=53, config=Config(tile_size=8), capacity=capacity)
  return binning.make_bins(projected, tile_mask=None if mask is None else jnp.asarray(mask), **shape)


def touched_tiles(p: Projected) -> list[list[int]]:
  """Of each of the 5 x 7 tiles the Gaussians whose alpha reaches 1/255 in it, near to far, on a grid of 1/8 px."""
  grid = (np.arange(64) + 0.5) / 8
  order = np.argsort(np.asarray(p.depths), kind="stable")
  lists = []
  for tile in range(35):
    x, y = np.meshgrid(tile % 5 * 8 + grid, tile // 5 * 8 + grid)
    dx, dy = x - np.asarray(p.means2d)[:, 0, None, None], y - np.asarray(p.means2d)[:, 1, None, None]
    a, b, c = np.asarray(p.conics).T[..., None, None]
    alpha = np.asarray(p.opacities)[:, None, None] * np.exp(-0.5 * (a * dx * dx + 2 * b * dx * dy + c * dy * dy))
    seen = (alpha.max(axis=(1, 2)) >= 1 / 255) & (np.asarray(p.radii) > 0)
    lists.append([i for i in order if seen[i]])
  return lists


def as_lists(bins: binning.Bins) -> list[list[int]]:
  starts = np.asarray(bins.starts)
  return [list(np.asarray(bins.gaussians)[starts[t] : starts[t + 1]]) for t in range(len(starts) - 1)]


def test_tiles_list_what_touches_them_in_depth_order(projected):
  lists = as_lists(list_pairs(projected))
  for listed, touched in zip(lists, touched_tiles(projected)):
    assert [i for i in listed if i in touched] == touched  # A grid of pixels may miss a corner that is touched.
    assert len(listed) <= len(touched) + 2
  assert sum(map(len, lists)) > 150


def test_masked_tiles_list_nothing(projected):
  mask = np.random.default_rng(0).uniform(size=(7, 5)) < 0.5
  lists, all_lists = as_lists(list_pairs(projected, mask=mask)), as_lists(list_pairs(projected))
  for tile, (listed, everything) in enumerate(zip(lists, all_lists)):
    assert listed == (everything if mask.reshape(-1)[tile] else [])
  assert list_pairs(projected, mask=np.zeros((7, 5), bool)).intersections == 0


def test_a_full_list_loses_the_farthest(projected):
  whole = list_pairs(projected)
  needed = int(whole.intersections)
  cut = list_pairs(projected, capacity=needed - 40)
  assert cut.intersections == needed and cut.overflow == 40
  for listed, everything in zip(as_lists(cut), as_lists(whole)):
    assert listed == everything[: len(listed)]


@pytest.mark.parametrize("num", [2000, 2100, 6000])
def test_more_pairs_than_int32_counts_saturate(num):
  # Every Gaussian covers 4096 x 4096 pixels in tiles of 4: 2^20 tiles each. Counted in 64 bits by hand.
  everywhere = Projected(
      means2d=jnp.full((num, 2), 2048.0),
      conics=jnp.tile(jnp.array([1e-9, 0, 1e-9]), (num, 1)),
      depths=jnp.ones(num),
      opacities=jnp.ones(num),
      extents=jnp.full((num, 2), 5000.0),
      radii=jnp.full(num, 5000, jnp.int32),
  )
  capacity = num * 1024 + 1000  # Room for all rows of tiles.
  shape = dict(width=4096, height=4096, config=Config(tile_size=4), capacity=capacity)
  bins = jax.jit(lambda p: binning.make_bins(p, **shape))(everywhere)
  needed = num * 2**20
  assert int(bins.intersections) == min(needed, binning.SATURATED)
  assert int(bins.overflow) == min(needed, binning.SATURATED) - capacity


@pytest.mark.parametrize("num_tiles", [35, 2**17])  # The second fits no tile and slot into one number.
def test_gpus_sort_in_another_way_to_the_same_lists(projected, monkeypatch, num_tiles):
  tiles = np.random.default_rng(0).integers(0, num_tiles + 1, 2**16 - 7).astype(np.int32)
  tiles = np.where(tiles == 3, 4, tiles)  # One without slots.
  ties = jax.tree.map(lambda a: jnp.concatenate([a, a]), projected)
  expected = *binning.sort_slots(jnp.asarray(tiles), num_tiles), binning.depth_order(ties)
  whole = list_pairs(projected)
  monkeypatch.setattr(binning, "current_platform", lambda: "gpu")
  found = *binning.sort_slots(jnp.asarray(tiles), num_tiles), binning.depth_order(ties)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  np.testing.assert_array_equal(found[0], np.argsort(tiles, kind="stable"))
  np.testing.assert_array_equal(found[1], np.searchsorted(np.sort(tiles), np.arange(num_tiles + 1)))
  jax.tree.map(np.testing.assert_array_equal, list_pairs(projected), whole)


def test_positions_in_ranges():
  ends = np.array([0, 3, 3, 4, 9, 9, 9])
  expected = np.searchsorted(ends, np.arange(12), side="right")
  np.testing.assert_array_equal(binning._expand(jnp.asarray(ends), 12), np.minimum(expected, 6))
  np.testing.assert_array_equal(binning._expand(jnp.asarray(ends), 12, end=7), expected)
  np.testing.assert_array_equal(binning._expand(jnp.asarray(ends), 8), expected[:8])
