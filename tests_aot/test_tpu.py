"""The TPU kernels compile for every generation of TPU, within its memories."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from splat_kernels import Camera, Config, pallas_tpu, rasterize
from splat_kernels.tile_lists import TileLists

TOPOLOGIES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
# What Mosaic gives a kernel unless asked for more, on every generation: above it compilation would fail.
SCOPED_VMEM = 16 * 2**20
NUM, SIDE, CAPACITY = 256, 64, 1024  # XLA's sorts and prefix sums of more than 4096 numbers take it long to compile.


@functools.cache
def devices(topology: str):
  return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def spread(sharding, *shape: int):
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def vmem_of_kernels(compiled) -> dict[str, int]:
  """Bytes of vector memory of each kernel, from the compiled program."""
  calls = re.findall(r"%(splat_\w+?)(?:\.\d+)? = .*\"used_scoped_memory_configs\":\[(.*?)\]", compiled.as_text())
  sizes = lambda used: map(int, re.findall(r'"memory_space":"1".*?"size":"(\d+)"', used))
  return {name: sum(sizes(used)) for name, used in calls}


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


@pytest.mark.parametrize("tile_size, channels", [(4, 3), (8, 3), (32, 3), (16, 40)])
def test_tile_sizes_and_many_channels_fit(tile_size, channels):
  device = devices("v5e:2x2")[0]
  here = jax.sharding.SingleDeviceSharding(device)
  tiles, chunks, pixels = 9, 20, tile_size**2
  whole = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=here)
  lists = TileLists(whole(chunks, 128), whole(chunks), whole(tiles + 1), whole(tiles))
  table = spread(here, 7 + channels, chunks * 128)
  gradient, total = spread(here, tiles, channels + 1, pixels), spread(here, tiles, pixels)
  config = Config(tile_size=tile_size)

  def both(table, lists, gradient, total):
    sums, saved = pallas_tpu.walk.forward(table, lists, tiles, config, save=True)
    return sums, pallas_tpu.walk.backward_absolute(table, lists, gradient, total, saved, config)

  with jax.default_device(device):
    compiled = jax.jit(both).lower(table, lists, gradient, total).compile()
  vmem = vmem_of_kernels(compiled)
  assert len(vmem) == 2 and max(vmem.values()) < SCOPED_VMEM, vmem


def test_frames_spread_over_devices_without_communication():
  mesh = jax.sharding.Mesh(devices("v5e:2x2"), ("data",))
  spec = jax.sharding.PartitionSpec("data")
  frames = functools.partial(spread, jax.sharding.NamedSharding(mesh, spec), mesh.size)

  def draw(arrays, pose, intrinsics):
    return rasterize(*arrays, Camera(pose, intrinsics, SIDE, SIDE), config=Config(max_intersections=CAPACITY)).image

  arrays = (frames(NUM, 3), frames(NUM, 4), frames(NUM, 3), frames(NUM), frames(NUM, 3))
  sharded = jax.shard_map(draw, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  with jax.default_device(devices("v5e:2x2")[0]):
    compiled = jax.jit(sharded).lower(arrays, frames(4, 4), frames(3, 3)).compile()
  text = compiled.as_text()
  assert "splat_forward" in text
  assert not re.search(r"all-(reduce|gather|to-all)|collective-permute", text)
  image = SIDE * SIDE * 3 * 4
  # A device gives its own one of the four frames; TPUs fill rows of 64 pixels up to 128.
  assert image <= compiled.memory_analysis().output_size_in_bytes <= 2 * image
