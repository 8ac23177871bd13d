"""The TPU kernels compile for every generation of TPU, within its memories and in as few bundles as they did."""

import functools
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from splat_kernels import Camera, Config, rasterize
from splat_kernels.pallas_mosaic_tpu import CHUNK, IMPLEMENTATION
from splat_kernels.tile_lists import TileLists

TOPOLOGIES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
# What Mosaic gives a kernel unless asked for more, on every generation: above it compilation would fail.
SCOPED_VMEM = 16 * 2**20
NUM, SIDE, CAPACITY = 256, 64, 1024  # XLA's sorts and prefix sums of more than 4096 numbers take it long to compile.
# Instruction bundles, of which each takes a cycle or more, with jax 0.10.2 (libtpu 0.0.42) for v5e, 4 channels, tiles of
# 16. With jax 0.12.0.1 (libtpu 0.0.50) they are 403 and 49, 424 and 149, 725 and 137, 1096 and 137.
BUNDLES = {
    "forward": {"per chunk": 387, "per tile": 49},
    "forward, saving": {"per chunk": 411, "per tile": 150},
    "backward": {"per chunk": 738, "per tile": 135},
    "backward, absolute": {"per chunk": 1110, "per tile": 135},
}


@functools.cache
def devices(topology: str):
  return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def spread(sharding, *shape: int, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def vmem_of_kernels(compiled) -> dict[str, int]:
  """Bytes of vector memory of each kernel, from the compiled program."""
  calls = re.findall(r"%(splat_\w+?)(?:\.\d+)? = .*\"used_scoped_memory_configs\":\[(.*?)\]", compiled.as_text())
  sizes = lambda used: map(int, re.findall(r'"memory_space":"1".*?"size":"(\d+)"', used))
  return {name: sum(sizes(used)) for name, used in calls}


def compile_walks(topology: str, config: Config, channels: int, tiles: int, chunks: int):
  """Both walks, backward with absolute gradients."""
  device = devices(topology)[0]
  here = functools.partial(spread, jax.sharding.SingleDeviceSharding(device))
  ints = functools.partial(here, dtype=jnp.int32)
  lists = TileLists(ints(chunks, CHUNK), ints(chunks), ints(tiles), ints(tiles))
  table, gradient = here(7 + channels, chunks * CHUNK), here(tiles, channels + 1, config.tile_size**2)

  def both(table, lists, gradient):
    sums, saved = IMPLEMENTATION.forward(table, lists, tiles, config, save=True, interpret=False)
    return sums, IMPLEMENTATION.backward(table, lists, gradient, saved, config, absolute=True, interpret=False)

  with jax.default_device(device):
    return jax.jit(both).lower(table, lists, gradient).compile()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_rasterize_and_its_gradient_compile(topology):
  device = devices(topology)[0]
  here = functools.partial(spread, jax.sharding.SingleDeviceSharding(device))

  def loss(arrays, pose, intrinsics):
    output = rasterize(*arrays, Camera(pose, intrinsics, SIDE, SIDE), config=Config(max_intersections=CAPACITY))
    return jnp.sum(output.image) + jnp.sum(output.alpha) + jnp.sum(output.depth)

  arrays = (here(NUM, 3), here(NUM, 4), here(NUM, 3), here(NUM), here(NUM, 3))
  with jax.default_device(device):  # Also what makes `rasterize` take the implementation for TPUs.
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(arrays, here(4, 4), here(3, 3)).compile()
  vmem = vmem_of_kernels(compiled)
  assert sorted(vmem) == ["splat_backward", "splat_forward"]
  assert all(0 < size < SCOPED_VMEM / 4 for size in vmem.values()), vmem
  # Everything the program holds at a time: the 39 chunks' parameters and moments, 16 tiles and the Gaussians come to
  # under 3 MB even if XLA keeps everything twice; one array in an unfortunate layout would fill up rows to 128 columns.
  assert compiled.memory_analysis().temp_size_in_bytes < 8 * 2**20


# The generations differ by a tenth; v4 needs most of those with 16 MB.
@pytest.mark.parametrize("topology, tile_size", [("v5e:2x2", 4), ("v4:2x2x1", 8), ("v5e:2x2", 16), ("v4:2x2x1", 32)])
def test_the_most_channels_fit(topology, tile_size):
  config = Config(tile_size=tile_size)
  vmem = vmem_of_kernels(compile_walks(topology, config, IMPLEMENTATION.most_channels(config), tiles=9, chunks=20))
  assert len(vmem) == 2 and SCOPED_VMEM / 2 < max(vmem.values()) < SCOPED_VMEM * 0.95, vmem


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_most_tiles_fit(topology):
  compile_walks(topology, Config(), channels=4, tiles=IMPLEMENTATION.most_tiles(Config()), chunks=20)


def test_the_compiler_is_told_what_kernels_cost():
  config, channels, tiles, chunks = Config(), 4, 9, 20
  text = compile_walks("v5e:2x2", config, channels, tiles, chunks).as_text()
  costs = dict(re.findall(r"%(splat_\w+?)(?:\.\d+)? = .*\"cost_estimate\":(\{.*?\})", text))
  assert sorted(costs) == ["splat_backward", "splat_forward"]
  alphas, rows = chunks * CHUNK * config.tile_size**2, 48  # 24 of the shape, 3 for each of 8 channels.
  products = {"splat_forward": 1 + 3, "splat_backward": 1 + 3 * 3 + 2 + 6}  # The last two are of absolute gradients.
  for name, text in costs.items():
    cost = {key: int(value) for key, value in json.loads(text).items()}
    assert cost["transcendentals"] == alphas
    assert cost["flops"] == 2 * products[name] * rows * alphas
    # Parameters, 2 bytes each, and the tiles in float32.
    assert cost["bytes_accessed"] > chunks * CHUNK * rows * 2 + 4 * tiles * (channels + 1) * config.tile_size**2


def test_kernels_take_no_more_bundles():
  tool = pathlib.Path(__file__).parent.parent / "tools/tpu_schedule.py"
  done = subprocess.run([sys.executable, tool], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-4000:]
  counted = json.loads(done.stdout[done.stdout.index("{") :])
  assert counted.keys() == BUNDLES.keys()
  for kernel, stored in BUNDLES.items():
    for where, number in stored.items():
      # A number that has become smaller is to be stored, so that it is not lost again.
      assert 0.9 * number <= counted[kernel][where] <= 1.05 * number, (kernel, where, counted)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_frames_spread_over_devices_without_communication(dtype):
  # With `check_vma`, which is `shard_map`'s default: JAX follows through the kernels what varies over the devices.
  mesh = jax.sharding.Mesh(devices("v5e:2x2"), ("data",))
  spec = jax.sharding.PartitionSpec("data")
  frames = functools.partial(spread, jax.sharding.NamedSharding(mesh, spec), mesh.size, dtype=dtype)

  def draw(arrays, pose, intrinsics):
    return rasterize(*arrays, Camera(pose, intrinsics, SIDE, SIDE), config=Config(max_intersections=CAPACITY)).image

  arrays = (frames(NUM, 3), frames(NUM, 4), frames(NUM, 3), frames(NUM), frames(NUM, 3))
  sharded = jax.shard_map(draw, mesh=mesh, in_specs=spec, out_specs=spec)
  loss = lambda *arguments: jnp.sum(sharded(*arguments) ** 2)
  with jax.default_device(devices("v5e:2x2")[0]):
    drawn = jax.jit(sharded).lower(arrays, frames(4, 4), frames(3, 3)).compile()
    pulled = jax.jit(jax.grad(loss)).lower(arrays, frames(4, 4), frames(3, 3)).compile()
  assert "splat_forward" in drawn.as_text() and "splat_backward" in pulled.as_text()
  for compiled in (drawn, pulled):
    assert not re.search(r"all-(reduce|gather|to-all)|collective-permute", compiled.as_text())
  image = SIDE * SIDE * 3 * dtype.dtype.itemsize
  # A device gives its own one of the four frames; TPUs fill rows of 64 pixels up to 128.
  assert image <= drawn.memory_analysis().output_size_in_bytes <= 2 * image


def test_gradients_of_what_devices_share_are_summed_over_them():
  mesh = jax.sharding.Mesh(devices("v5e:2x2"), ("data",))
  spec = jax.sharding.PartitionSpec("data")
  frames = functools.partial(spread, jax.sharding.NamedSharding(mesh, spec), mesh.size)
  shared = functools.partial(spread, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

  def pull(arrays, pose, intrinsics):
    def loss(arrays):
      camera = Camera(pose, intrinsics, SIDE, SIDE)
      return jnp.sum(rasterize(*arrays, camera, config=Config(max_intersections=CAPACITY)).image ** 2)

    return jax.grad(loss)(arrays)

  arrays = (shared(NUM, 3), shared(NUM, 4), shared(NUM, 3), shared(NUM), shared(NUM, 3))
  whole = jax.sharding.PartitionSpec()
  sharded = jax.shard_map(pull, mesh=mesh, in_specs=(whole, spec, spec), out_specs=whole)
  with jax.default_device(devices("v5e:2x2")[0]):
    text = jax.jit(sharded).lower(arrays, frames(4, 4), frames(3, 3)).compile().as_text()
  assert "splat_backward" in text and "all-reduce" in text
