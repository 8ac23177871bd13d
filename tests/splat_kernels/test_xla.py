"""The portable implementation: the shared contract, and what happens when its lists are full."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from splat_kernels.testing import ARRAYS, RasterizerContract, jax_scene

from splat_kernels import Config, rasterize, round_capacity
from splat_kernels.specs import SPECS, make_scene


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


def test_devices_draw_their_own_frames():
  mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  spec = dataclasses.replace(SPECS["tiny"], batch=2)
  scene = jax.tree.map(jnp.asarray, make_scene(spec), is_leaf=lambda x: isinstance(x, np.ndarray))
  frames = lambda a, rank: jnp.broadcast_to(a, (2, *a.shape[-rank:]))
  camera = dataclasses.replace(
      scene["camera"],
      world_to_camera=frames(scene["camera"].world_to_camera, 2),
      intrinsics=frames(scene["camera"].intrinsics, 2),
  )
  arrays = [scene[key] for key in ARRAYS]
  config = Config(max_intersections=2048)
  draw = lambda *arrays: rasterize(*arrays, config=config, implementation="xla")
  frames = jax.sharding.PartitionSpec("data")
  spread = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=frames, out_specs=frames, check_vma=False))(*arrays, camera)
  assert spread.image.sharding.spec[0] == "data"
  alone = rasterize(*arrays, camera, config=config, implementation="xla")
  np.testing.assert_allclose(spread.image, alone.image, atol=1e-6)
  np.testing.assert_array_equal(spread.intersections, alone.intersections)
