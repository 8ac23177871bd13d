"""What a batch of frames costs on one CPU device and on one device per core.

    python benchmarks/cpu_devices.py [--devices 2] [--runs 12]

Draws frames of 10k Gaussians at 512x512 (spec head10k_batch4): one alone, the batch on one device, and the batch spread
over the devices with `jax.shard_map`. All take turns; prints milliseconds per frame, medians after warm-up and the least.
"""

import argparse
import dataclasses
import os
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from splat_kernels import Config, rasterize, round_capacity
from splat_kernels.bench import time_in_turns
from splat_kernels.specs import SPECS, make_scene

ARRAYS = ("means", "quats", "scales", "opacities", "colors")


def make_draws(devices: int) -> dict:
  """By name: (forward, forward and backward, arguments, number of frames)."""
  spec = SPECS["head10k_batch4"]
  scene = jax.tree.map(jnp.asarray, make_scene(spec), is_leaf=lambda a: isinstance(a, np.ndarray))
  camera = scene["camera"]
  per_frame = lambda a: jnp.broadcast_to(a, (spec.batch, *a.shape))
  arrays = per_frame(camera.world_to_camera), per_frame(camera.intrinsics), *(scene[name] for name in ARRAYS)
  needed = int(rasterize(**{name: scene[name] for name in ARRAYS}, camera=camera).intersections.max())
  config = Config(with_depth=False, max_intersections=round_capacity(needed))

  def losses(world_to_camera, intrinsics, *arrays):
    view = dataclasses.replace(camera, world_to_camera=world_to_camera, intrinsics=intrinsics)
    return jnp.sum(rasterize(*arrays, view, config=config).image ** 2, axis=(1, 2, 3))

  def compile_both(losses):
    gradient = jax.grad(lambda *arrays: jnp.sum(losses(*arrays)), argnums=tuple(range(2, 2 + len(ARRAYS))))
    return jax.jit(losses), jax.jit(gradient)

  mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  frames = jax.sharding.PartitionSpec("data")
  spread = jax.shard_map(losses, mesh=mesh, in_specs=frames, out_specs=frames, check_vma=False)
  placed = jax.device_put(arrays, jax.sharding.NamedSharding(mesh, frames))
  return {
      "one frame, one device": (*compile_both(losses), [a[:1] for a in arrays], 1),
      f"{spec.batch} frames, one device": (*compile_both(losses), arrays, spec.batch),
      f"{spec.batch} frames, {devices} devices": (*compile_both(spread), placed, spec.batch),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--devices", type=int, choices=(1, 2, 4), default=2)
  parser.add_argument("--runs", type=int, default=12)
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", args.devices)
  draws = make_draws(args.devices)
  calls = {
      (name, which): lambda function=function, arguments=arguments: jax.block_until_ready(function(*arguments))
      for name, (*functions, arguments, _) in draws.items()
      for which, function in enumerate(functions)
  }
  times = {key: times.wall for key, times in time_in_turns(calls, args.runs).items()}
  show = lambda ms, count: f"{statistics.median(ms) / count:.1f} ({min(ms) / count:.1f})"
  print("| ms per frame, median (least) | forward | forward + backward |\n|---|---|---|")
  for name, (*_, count) in draws.items():
    print(f"| {name} | {show(times[name, 0], count)} | {show(times[name, 1], count)} |")


if __name__ == "__main__":
  main()
