"""Times the rasterizer: python -m splat_kernels.bench [--spec NAME …] [--implementation NAME …] [--json FILE]

Prints a Markdown table of milliseconds per frame: medians over runs after warm-up, of the parts (project, bin and sort,
rasterize = the rest of forward), of forward, and of forward and backward together, each including all before it.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from splat_kernels import Config, project, rasterize
from splat_kernels.api import IMPLEMENTATIONS, round_capacity
from splat_kernels.binning import make_bins
from splat_kernels.specs import SPECS, Spec, make_scene

BENCHMARKS = ("head10k", "head10k_256", "head10k_256_batch4", "head10k_batch4", "head50k")


def time_ms(function, argument, runs: int) -> tuple[float, float]:
  """Median milliseconds of a run after one to warm up, and seconds to compile."""
  begin = time.perf_counter()
  compiled = jax.jit(function).lower(argument).compile()
  compile_s = time.perf_counter() - begin
  jax.block_until_ready(compiled(argument))
  times = []
  for _ in range(runs):
    begin = time.perf_counter()
    jax.block_until_ready(compiled(argument))
    times.append(1e3 * (time.perf_counter() - begin))
  return statistics.median(times), compile_s


def measure(name: str, spec: Spec, implementation: str, config: Config, runs: int) -> dict:
  """One row of the table."""
  scene = jax.tree.map(jnp.asarray, make_scene(spec), is_leaf=lambda a: isinstance(a, np.ndarray))
  camera, sh_degree = scene.pop("camera"), scene.pop("sh_degree")
  draw = lambda scene, config: rasterize(
      **scene, camera=camera, sh_degree=sh_degree, config=config, implementation=implementation
  )
  output = draw(scene, config)  # Outside jit: the list grows to what is needed.
  needed = int(output.intersections.max())
  config = dataclasses.replace(config, max_intersections=round_capacity(needed))
  colors = scene["colors"]
  geometry = {key: value for key, value in scene.items() if key != "colors"}
  fit = lambda g: project(**g, camera=camera, config=config)
  always = jnp.array(True)
  list_tiles = lambda p: jax.vmap(
      lambda q: make_bins(
          q, always, width=spec.width, height=spec.height, config=config, capacity=config.max_intersections
      )
  )(p)
  loss = lambda scene: jnp.sum(draw(scene, config).image ** 2)

  row = {"spec": name, "implementation": implementation, "tile_size": config.tile_size, "intersections": needed}
  row["project_ms"], _ = time_ms(fit, geometry, runs)
  row["bin_ms"], _ = time_ms(list_tiles, fit(geometry), runs)
  row["forward_ms"], row["forward_compile_s"] = time_ms(
      lambda s: draw(s, config).image, {**geometry, "colors": colors}, runs
  )
  row["forward_backward_ms"], row["forward_backward_compile_s"] = time_ms(jax.grad(loss), scene, runs)
  for key in ("project_ms", "bin_ms", "forward_ms", "forward_backward_ms"):
    row[key] /= spec.batch
  row["rasterize_ms"] = row["forward_ms"] - row["project_ms"] - row["bin_ms"]
  return row


def format_table(rows: list[dict]) -> str:
  """Markdown, milliseconds per frame."""
  head = ["spec", "implementation", "tile_size", "intersections", "project_ms", "bin_ms", "rasterize_ms", "forward_ms"]
  head += ["forward_backward_ms", "forward_backward_compile_s"]
  show = lambda v: f"{v:.1f}" if isinstance(v, float) else str(v)
  lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  return "\n".join(lines + ["| " + " | ".join(show(row[key]) for key in head) + " |" for row in rows])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--spec", nargs="+", choices=SPECS, default=BENCHMARKS, metavar="NAME")
  parser.add_argument("--implementation", nargs="+", choices=IMPLEMENTATIONS, default=["xla"], metavar="NAME")
  parser.add_argument("--tile_size", type=int, nargs="+", default=[16])
  parser.add_argument("--loops", type=int, default=2)
  parser.add_argument("--runs", type=int, default=9)
  parser.add_argument("--json", help="file to write the rows to")
  args = parser.parse_args()
  rows = []
  for name in args.spec:
    for implementation in args.implementation:
      for tile_size in args.tile_size:
        config = Config(tile_size=tile_size, loops=args.loops, with_depth=False)
        rows.append(measure(name, SPECS[name], implementation, config, args.runs))
  device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}"
  print(f"{device}; milliseconds per frame, medians of {args.runs}\n\n{format_table(rows)}")
  if args.json:
    with open(args.json + ".tmp", "w") as f:
      json.dump({"device": device, "rows": rows}, f, indent=2)
    os.replace(args.json + ".tmp", args.json)


if __name__ == "__main__":
  main()
