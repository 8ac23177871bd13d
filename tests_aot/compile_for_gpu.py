"""Compiles the GPU kernels for a GPU that is not there: python compile_for_gpu.py TARGET DUMPS

TARGET names a file in targets/, DUMPS an empty folder that XLA_FLAGS tells XLA to dump to. Prints JSON: for each
program the number of atomic operations on floats, and the kernels of this library with registers per thread, bytes
spilled, threads and bytes of shared memory per block, and lines of PTX. A process of its own, as a compiler that fails
may abort it.
"""

import functools
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import nvidia
from jax.experimental import topologies

from splat_kernels import Camera, Config, implementations, rasterize
from splat_kernels.pallas_triton import CHANNELS, CHUNK
from splat_kernels.tile_lists import TileLists

NUM, SIDE, CAPACITY = 256, 64, 1024


def find_device(target: str):
  config = (pathlib.Path(__file__).parent / "targets" / f"{target}.txtpb").read_text()
  return topologies.get_topology_desc(platform="cuda", target_config=config, topology="1x1x1").devices[0]


def arrays_on(device, dtype):
  sharding = jax.sharding.SingleDeviceSharding(device)
  return lambda *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def gradient_of_rasterize(arrays, pose, intrinsics):
  def loss(arrays, pose, intrinsics):
    output = rasterize(*arrays, Camera(pose, intrinsics, SIDE, SIDE), config=Config(max_intersections=CAPACITY))
    return jnp.sum(output.image) + jnp.sum(output.alpha) + jnp.sum(output.depth)

  return jax.value_and_grad(loss, argnums=(0, 1, 2))(arrays, pose, intrinsics)


def compile_rasterize(device) -> None:
  def rasterize_and_gradient(*arguments):
    return gradient_of_rasterize(*arguments)

  floats = arrays_on(device, jnp.float32)
  arrays = (floats(NUM, 3), floats(NUM, 4), floats(NUM, 3), floats(NUM), floats(NUM, 3))
  with jax.default_device(device):  # Also what makes `rasterize` take the implementation for GPUs.
    jax.jit(rasterize_and_gradient).lower(arrays, floats(4, 4), floats(3, 3)).compile()


def compile_sharded(device) -> None:
  """Frames over a mesh, whose `check_vma` looks at what varies over it."""
  mesh = jax.sharding.Mesh(np.array([device]), ("data",))
  spec = jax.sharding.PartitionSpec("data")
  frames = lambda *shape: jax.ShapeDtypeStruct(
      (mesh.size, *shape), jnp.float32, sharding=jax.sharding.NamedSharding(mesh, spec)
  )

  def sharded(*arguments):
    draw = jax.vmap(gradient_of_rasterize)
    return jax.shard_map(draw, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=True)(*arguments)

  arrays = (frames(NUM, 3), frames(NUM, 4), frames(NUM, 3), frames(NUM), frames(NUM, 3))
  with jax.default_device(device):
    jax.jit(sharded).lower(arrays, frames(4, 4), frames(3, 3)).compile()


def compile_walks(device, size: int, channels: int, name: str = "pallas_triton", *, absolute: bool = False) -> None:
  floats, ints = arrays_on(device, jnp.float32), arrays_on(device, jnp.int32)
  implementation, tiles, chunks = implementations.load(name), 9, 20

  def walks(config, table, lists, gradient):
    sums, saved = implementation.forward(table, lists, tiles, config, save=True, interpret=False)
    moments = implementation.backward(table, lists, gradient, saved, config, absolute=absolute, interpret=False)
    slots = moments.reshape(-1, moments.shape[-1])
    return sums, implementation.sum_slots(slots, lists.gaussians.reshape(-1), NUM, interpret=False)

  lists = TileLists(ints(chunks, CHUNK), ints(chunks), ints(tiles), ints(tiles))
  table, gradient = floats(chunks, CHUNK, 7 + channels), floats(tiles, channels + 1, size**2)
  named = functools.wraps(walks)(functools.partial(walks, Config(tile_size=size)))
  named.__name__ = f"{name}_size{size}_channels{channels}{'_absolute' * absolute}"
  with jax.default_device(device):
    jax.jit(named).lower(table, lists, gradient).compile()


def read_programs(dumps: pathlib.Path) -> dict:
  ptxas = pathlib.Path(next(iter(nvidia.__path__))) / "cu13/bin/ptxas"
  programs = {}
  for path in dumps.glob("*.thunk_sequence.txt"):
    program = programs.setdefault(re.search(r"jit_(\w+)", path.name)[1], {"float_atomics": 0, "kernels": {}})
    for found in re.finditer(r" (splat_\w+) grid.*?threads: \[(\d+).*?shared_memory: (\d+)", path.read_text()):
      program["kernels"][found[1]] = {"threads": int(found[2]), "shared": int(found[3])}
  for path in dumps.glob("*.ptx"):
    text, program = path.read_text(), programs[re.search(r"jit_([^.]+)", path.name)[1]]
    program["float_atomics"] += len(re.findall(r"\b(?:atom|red)\.\S*f32", text))
    if "splat_" not in text:
      continue
    arch = re.search(r"\.target (\w+)", text)[1]
    command = [ptxas, "-v", f"-arch={arch}", "-o", path.with_suffix(".cubin"), path]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    for part in log.split("Compiling entry function")[1:]:
      kernel = program["kernels"].get(re.search(r"'(\w+)'", part)[1])
      if kernel is not None:
        kernel["arch"] = arch
        kernel["lines"] = text.count("\n")
        kernel["registers"] = int(re.search(r"Used (\d+) registers", part)[1])
        kernel["spilled"] = int(re.search(r"(\d+) bytes spill stores", part)[1])
  return programs


def main() -> None:
  target, dumps = sys.argv[1], pathlib.Path(sys.argv[2])
  device = find_device(target)
  compile_rasterize(device)
  if target == "h200":  # What `check_vma` refuses is the same for every target.
    compile_sharded(device)
  for size, channels in ((4, 3), (8, 3), (32, 3), (16, CHANNELS)):
    compile_walks(device, size, channels)
  for channels in (4, CHANNELS, 16):
    compile_walks(device, 16, channels, absolute=True)
  if target == "h200":
    compile_walks(device, 16, 32, absolute=True)  # The code of 16 channels, as the test says, with another end of its loop.
    # For an A100 Mosaic GPU would abort the process.
    for size, channels in ((16, 4), (32, 3)):
      compile_walks(device, size, channels, "pallas_mosaic_gpu")
  print(json.dumps(read_programs(dumps)))


if __name__ == "__main__":
  main()
