"""The portable implementation: the shared contract, and what happens when its lists are full."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splat_kernels import Config, Projected, binning, composite, rasterize, round_capacity, xla
from splat_kernels.testing import ARRAYS, RasterizerContract, jax_scene
from splat_kernels.tiles import monomials, pixel_offsets


class TestXla(RasterizerContract):
  implementation = "xla"


def test_a_full_list_grows_outside_jit_and_is_reported_inside():
  scene = jax_scene("tiny")
  whole = rasterize(**scene, implementation="xla")
  needed = int(whole.intersections[0])
  # A sixth too small: every row of tiles still fits, so the count is exact.
  config = Config(max_intersections=needed - needed // 6, on_overflow="report")

  grown = rasterize(**scene, config=config, implementation="xla")
  np.testing.assert_array_equal(grown.image, whole.image)
  assert grown.overflow[0] == 0

  drawing = jax.jit(lambda arrays: rasterize(**arrays, camera=scene["camera"], config=config, implementation="xla"))
  cut = drawing({key: scene[key] for key in ARRAYS})
  assert cut.intersections[0] == needed and cut.overflow[0] == needed // 6
  assert np.all(cut.alpha <= whole.alpha + 1e-6)
  # The nearest Gaussians are still there: what was cut lies behind, so no pixel is off by more than its transmittance.
  assert np.mean(np.abs(cut.image - whole.image) < 1e-6) > 0.3

  exact = dataclasses.replace(config, max_intersections=needed)
  assert rasterize(**scene, config=exact, implementation="xla").overflow[0] == 0


def test_too_many_rows_still_report_overflow():
  # Capacity below even the number of tile rows: the count is then an upper bound, and growing once is enough.
  scene = jax_scene("large")
  config = Config(max_intersections=3, on_overflow="report")
  draw = jax.jit(lambda arrays: rasterize(**arrays, camera=scene["camera"], config=config, implementation="xla"))
  output = draw({key: scene[key] for key in ARRAYS})
  assert output.overflow[0] > 0 and np.all(np.isfinite(output.image))
  grown = rasterize(**scene, config=config, implementation="xla")
  assert 0 == grown.overflow[0] and grown.intersections[0] <= output.intersections[0]


def test_capacities_round_up_to_few_sizes():
  sizes = sorted({round_capacity(n) for n in range(1, 200_000, 97)})
  assert len(sizes) < 40
  assert all(n <= round_capacity(n) < n + max(1024, n / 4) for n in range(1, 200_000, 97))


def test_tile_size_does_not_change_the_image():
  scene = jax_scene("odd_size")
  large, small = (rasterize(**scene, config=Config(tile_size=size), implementation="xla").image for size in (16, 8))
  np.testing.assert_allclose(large, small, atol=1e-4)


# ---- Numbers ----


def layers(front: float) -> dict[str, np.ndarray]:
  """Twelve large Gaussians one behind the other, as `Projected` in float64, the first of another brightness."""
  rng = np.random.default_rng(0)
  features = rng.uniform(0.2, 1, (12, 1))
  features[0] = front
  return {
      "means2d": 8 + rng.uniform(-1, 1, (12, 2)),
      "conics": np.tile([0.1, 0.02, 0.08], (12, 1)),
      "opacities": np.full(12, 0.45),
      "features": features,
  }


def composite_layers(arrays, implementation: str, config: Config = Config()):
  dtype = arrays["features"].dtype
  projected = Projected(
      arrays["means2d"],
      arrays["conics"],
      jnp.arange(1, 13, dtype=dtype),
      arrays["opacities"],
      jnp.full((12, 2), 40, dtype),
      jnp.full(12, 40, jnp.int32),
  )
  config = dataclasses.replace(config, max_intersections=64)
  return composite(projected, arrays["features"], width=16, height=16, config=config, implementation=implementation)


def layer_gradients(arrays, implementation: str):
  weights = np.random.default_rng(1).normal(size=(16, 16, 1)).astype(arrays["features"].dtype)
  loss = lambda arrays: jnp.sum(weights * composite_layers(arrays, implementation).image)
  return jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, arrays))


def test_gradients_behind_something_bright_are_right_for_each_gaussian():
  arrays = layers(1e5)
  with jax.enable_x64(True):
    exact = jax.tree.map(np.asarray, layer_gradients(arrays, "reference"))
  gradients = layer_gradients({key: a.astype(np.float32) for key, a in arrays.items()}, "xla")
  for key, expected in exact.items():
    error = np.abs(gradients[key] - expected).reshape(12, -1).max(axis=1)
    assert np.all(error <= 1e-4 * np.abs(expected).reshape(12, -1).max(axis=1)), (key, error)


def test_float64_is_computed_in_float64():
  arrays = layers(3.0)
  with jax.enable_x64(True):
    image, expected = (composite_layers(arrays, name).image for name in ("xla", "reference"))
    gradients, expected_gradients = (layer_gradients(arrays, name) for name in ("xla", "reference"))
    assert image.dtype == jnp.float64
    np.testing.assert_allclose(image, expected, rtol=1e-13)
    for key, value in expected_gradients.items():
      assert gradients[key].dtype == jnp.float64
      np.testing.assert_allclose(gradients[key], value, rtol=1e-10, atol=1e-12 * np.abs(value).max(), err_msg=key)


def test_float64_depths_order_where_float32_would_not():
  with jax.enable_x64(True):
    depths = jnp.array([2.0 + 1e-12, 2.0, 2.0 + 2e-12, 2.0])
    np.testing.assert_array_equal(binning.depth_order(projected_at(depths)), [1, 3, 0, 2])


@pytest.mark.parametrize("alpha_min", [1 / 255, 1e-4, 1e-8, 1e-30])
def test_alphas_are_exponentials_for_any_alpha_min(alpha_min):
  config = Config(alpha_min=alpha_min, tile_size=4)
  log_alphas = np.linspace(np.log(alpha_min) * 0.999, -0.02, 64, dtype=np.float32)
  rows = np.zeros((64, 1, 8), np.float32)
  rows[:, 0, 5] = log_alphas / 8
  alphas = xla.chunk_alphas(config, jnp.asarray(rows))
  np.testing.assert_allclose(alphas[:, 0, 0], np.exp(8 * (rows[:, 0, 5]).astype(np.float64)), rtol=1e-5)
  np.testing.assert_array_equal(alphas, np.broadcast_to(alphas[..., :1], alphas.shape))


@pytest.mark.parametrize("channels", [0, 3, 4, 9])
def test_the_fold_in_registers_is_the_fold_in_turn(channels):
  # Nine channels are more than are summed at a time. The first pixels end before the chunk does.
  rng = np.random.default_rng(0)
  shape = (2, xla.CHUNK, 16)
  alphas = jnp.asarray(rng.uniform(0, 0.9, shape) * (rng.uniform(size=shape) < 0.6), jnp.float32)
  transmittance = jnp.asarray(np.linspace(2e-4, 1, 32).reshape(2, 16), jnp.float32)
  rows = jnp.asarray(rng.normal(size=(2, xla.CHUNK, 7 + channels)), jnp.float32)
  factor, weights, *summed = xla._fold(Config(), alphas, rows, transmittance)
  features = tuple(rows[..., 6 + c, None] for c in range(channels))
  in_turn = xla._fold_in_turn(Config(), alphas, transmittance, features)
  for got, expected in zip((factor, weights, *summed), in_turn, strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

  left, expected = np.asarray(transmittance, np.float64), 0  # And of a loop over Gaussians.
  for k in range(xla.CHUNK):
    weight = left * np.asarray(alphas[:, k], np.float64)
    left = left - weight
    expected = expected + np.where(left > 1e-4, weight, 0)
  np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)
  assert np.any(left < 1e-4)


@pytest.mark.parametrize("tile_size", [4, 16, 32])  # 32: two bands of rows.
def test_sums_of_bands_make_moments(tile_size):
  rng = np.random.default_rng(0)
  slopes, absolute_x, absolute_y, color = rng.normal(size=(4, 2, xla.CHUNK, tile_size**2)).astype(np.float32)
  y = pixel_offsets(tile_size)[1]
  sums = xla._sum_bands([slopes, slopes * y, slopes * y * y, absolute_x, absolute_y, color])
  moments = np.concatenate(sums, axis=-1) @ xla._moments_of_bands(tile_size, 1, True)
  expected = slopes @ monomials(tile_size)
  expected[..., 6], expected[..., 7] = absolute_x.sum(-1), absolute_y.sum(-1)
  expected = np.concatenate([expected, color.sum(-1)[..., None]], axis=-1)
  np.testing.assert_allclose(moments, expected, rtol=1e-3, atol=1e-2 * tile_size)


def test_few_lanes_walk_as_many_do(monkeypatch):
  # 3 lanes for 9 tiles, of which some have no chunk and others many: lanes change tiles, and the last ones run idle.
  rng = np.random.default_rng(0)
  config, chunks = Config(tile_size=4, with_depth=False), np.array([0, 3, 1, 0, 5, 2, 1, 1, 4])
  ends = np.cumsum(chunks)
  lists = xla.Chunks(
      gaussians=jnp.zeros((20, xla.CHUNK), jnp.int32),
      tiles=jnp.asarray(np.append(np.repeat(np.arange(9), chunks), [8, 8, 8]), jnp.uint32),
      starts=jnp.asarray(ends - chunks, jnp.int32),
      ends=jnp.asarray(ends, jnp.int32),
      order=jnp.asarray(np.argsort(-chunks, kind="stable"), jnp.int32),
  )
  table = rng.uniform(-0.05, 0.05, (20, xla.CHUNK, 9)).astype(np.float32)
  table[..., 5] -= 0.07
  table[..., 8] = 1
  table[4:7, :, 5] = np.log(0.9) / 8  # This tile, the longest, is finished before its list is.
  table = jnp.asarray(table)
  gradient = jnp.asarray(rng.normal(size=(9, 3, 16)), jnp.float32)

  @jax.jit
  def alone(rows, gradient):
    """Sums and moments of one list of chunks, one Gaussian after the other."""
    alphas = xla.chunk_alphas(config, rows.reshape(1, -1, 9))[0]
    features = rows.reshape(-1, 9)[:, 6:]

    def sums(slopes, features):
      def draw(state, gaussian):
        left, total = state
        alpha, slope, feature = gaussian
        weight = left * alpha * slope
        weight, left = jnp.where(left - weight > config.transmittance_min, weight, 0), left - weight
        return (left, total + weight * feature[:, None]), None

      return jax.lax.scan(draw, (jnp.ones(16), jnp.zeros((3, 16))), (alphas, slopes, features))[0][1]

    total, pull = jax.vjp(sums, jnp.ones_like(alphas), features)
    return total, *pull(gradient)

  def walk():
    implementation = xla.Xla()
    draw = jax.jit(lambda t: implementation.forward(t, lists, 9, config, save=True, interpret=False))
    sums, saved = draw(table)
    walk_back = lambda t, s: implementation.backward(t, lists, gradient, s, config, absolute=False, interpret=False)
    return sums, jax.jit(walk_back)(table, saved)

  many = walk()
  monkeypatch.setitem(xla.ROUND, "cpu", 3 * xla.CHUNK * 16)
  sums, moments = walk()
  np.testing.assert_array_equal(sums, many[0])
  np.testing.assert_array_equal(moments, many[1])
  for tile in range(9):
    rows = slice(ends[tile] - chunks[tile], ends[tile])
    if not chunks[tile]:
      np.testing.assert_array_equal(sums[tile], 0)
      continue
    padded = np.zeros((5, xla.CHUNK, 9), np.float32)
    padded[..., 5] = -100
    padded[: chunks[tile]] = table[rows]
    expected, slopes, of_features = alone(padded, gradient[tile])
    np.testing.assert_allclose(sums[tile], expected, rtol=1e-4, atol=1e-5)
    expected = np.concatenate([slopes @ monomials(4), of_features[:, :2]], axis=1)[: xla.CHUNK * chunks[tile]]
    np.testing.assert_allclose(moments[rows].reshape(-1, 10), expected, rtol=1e-3, atol=2e-5)
  np.testing.assert_array_equal(moments[17:], 0)


# ---- Lists ----


def projected_at(depths, radii=None) -> Projected:
  """Gaussians of which only depths and radii say something."""
  num = len(depths)
  zeros = lambda *shape: jnp.zeros((num, *shape))
  radii = jnp.ones(num, jnp.int32) if radii is None else jnp.asarray(radii, jnp.int32)
  return Projected(zeros(2), zeros(3), jnp.asarray(depths), zeros(), zeros(2), radii)


@pytest.mark.parametrize("num", [1, 2, 600, 70_000])
def test_depth_order_is_a_stable_sort_with_culled_ones_last(num):
  # From 2^16 on the digits are shorter and there are three of them.
  rng = np.random.default_rng(num)
  depths = np.exp(rng.normal(size=num) * 3).astype(np.float32)
  depths[rng.integers(0, num, num // 3)] = 2.5  # Ties.
  radii = rng.uniform(size=num) < 0.9
  expected = np.lexsort((np.arange(num), np.where(radii, depths, np.inf)))
  np.testing.assert_array_equal(binning.depth_order(projected_at(depths, radii)), expected)


@pytest.mark.parametrize("num, num_tiles", [(100, 7), (40_000, 50), (33_001, 3), (5000, 2**20)])
def test_slots_are_sorted_by_tile_and_keep_their_order(num, num_tiles):
  # In one part; in many, one of them not full; and with more tiles than fit into a key beside the slot.
  tiles = np.random.default_rng(num).integers(0, num_tiles + 1, num)  # The last number: unused.
  slots, starts = binning.sort_slots(jnp.asarray(tiles, jnp.int32), num_tiles)
  np.testing.assert_array_equal(slots, np.argsort(tiles, kind="stable"))
  np.testing.assert_array_equal(starts, np.searchsorted(np.sort(tiles), np.arange(num_tiles + 1)))


def test_prefix_sums_are_exact_until_they_saturate():
  counts = np.full(1000, 2**23, np.int32)
  counts[::7] = 3
  expected = np.minimum(np.cumsum(counts, dtype=np.int64), 2**30)
  assert expected[100] < 2**30 and np.sum(counts, dtype=np.int64) > 2**32
  np.testing.assert_array_equal(binning._saturating_sums(jnp.asarray(counts)), expected)


def test_more_pairs_than_int32_counts_overflow():
  num, corner = 2100, jnp.ones((2100, 2))
  everywhere = Projected(
      2048 * corner, jnp.tile(jnp.array([1e-8, 0, 1e-8]), (num, 1)), jnp.ones(num), jnp.full(num, 0.9),
      30000 * corner, jnp.full(num, 30000, jnp.int32),
  )
  make = functools.partial(binning.make_bins, width=4096, height=4096, config=Config(tile_size=4), capacity=2_200_000)
  bins = jax.jit(make)(everywhere)
  assert bins.intersections == 2**30 and bins.overflow == 2**30 - 2_200_000 and bins.starts[-1] == 2_200_000
