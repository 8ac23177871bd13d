"""Times rasterizers: python -m splat_kernels.bench [--spec NAME …] [--implementation NAME …] [--json FILE]

What is compared takes turns, run by run, so that a busy machine slows all of it alike; the first run of each is not
counted. Milliseconds are per frame. docs/rasterizer.md says what the columns mean.
The command is public, the functions are not.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from splat_kernels import Config, binning, implementations, peers, project, rasterize, round_capacity, xla
from splat_kernels.platforms import current_device
from splat_kernels.specs import SPECS, Spec, make_scene
from splat_kernels.tiled import Tiled
from splat_kernels.tiles import count_tiles

# A few minutes on a laptop. The others by name, or all of them as "all".
DEFAULT_SPECS = ("head10k", "head50k", "head10k_batch4")
BENCHMARKS = tuple(name for name in SPECS if name.startswith("head"))

# Of the table: key, heading, format.
COLUMNS = (
    ("spec", "spec", "{}"),
    ("name", "rasterizer", "{}"),
    ("intersections", "pairs", "{}"),
    ("project_ms", "project", "{:.2f}"),
    ("bin_ms", "bin", "{:.2f}"),
    ("sort_ms", "sort", "{:.2f}"),
    ("raster_ms", "raster", "{:.2f}"),
    ("forward_ms", "forward (least)", "{:.2f}"),
    ("forward_cpu_ms", "forward, CPU", "{:.2f}"),
    ("backward_ms", "backward", "{:.2f}"),
    ("forward_backward_ms", "forward + backward (least)", "{:.2f}"),
    ("forward_backward_cpu_ms", "forward + backward, CPU", "{:.2f}"),
    ("ratio", "ratio", "{:.2f}"),
    ("evaluations_per_s", "evaluations/s", "{:.2e}"),
    ("share_of_floor", "of floor", "{:.0%}"),
    ("memory_mb", "memory MB", "{:.1f}"),
    ("compile_s", "compile s", "{:.1f}"),
    ("image_difference", "image difference", "{:.1e}"),
)


@dataclasses.dataclass
class Candidate:
  """Something to time on one spec.

  Attributes:
    row: what is known before timing: name, tile_size, intersections (pairs of Gaussian and tile of all frames),
      memory_mb (what the program of forward + backward takes: arguments, results and temporaries), compile_s (of that
      program).
    parts: calls that return when their result is there: "forward" and "forward_backward", and "project", "bins" (with
      the sorts) and "sort" where there are such.
    image: (B, H, W, 3).
  """

  row: dict
  parts: dict[str, Callable[[], object]]
  image: np.ndarray


def make_candidate(name: str, spec: Spec, config: Config) -> Candidate:
  """Compiles an implementation for a spec, with a list that just holds what is needed."""
  scene = make_scene(spec)
  camera, sh_degree = scene.pop("camera"), scene.pop("sh_degree")
  scene = jax.tree.map(jnp.asarray, scene)
  interpret = implementations.load(name).unsupported(current_device(), config) is not None
  draw = lambda config, **arrays: rasterize(
      **arrays, camera=camera, sh_degree=sh_degree, config=config, implementation=name, interpret=interpret
  )
  output = draw(config, **scene)  # Outside jit: the list grows to what is needed.
  config = dataclasses.replace(config, max_intersections=round_capacity(int(output.intersections.max())))

  arrays = {key: value for key, value in scene.items() if key != "colors"}
  fit = lambda arrays: project(**arrays, camera=camera, config=config)
  projected = jax.jit(fit)(arrays)

  tiled = implementations.load(name)

  def list_tiles(p):
    shape = dict(width=spec.width, height=spec.height, config=config, capacity=config.max_intersections)
    with tiled.around_stages(p.radii) if isinstance(tiled, Tiled) else contextlib.nullcontext():
      return jax.vmap(functools.partial(binning.make_bins, **shape))(p)

  loss = lambda arrays: jnp.sum(draw(config, **arrays).image ** 2)

  parts = {"project": _compile(fit, arrays)}
  if name != "reference":
    parts["bins"] = _compile(list_tiles, projected)
    tiles = _unsorted_slots(jax.jit(list_tiles)(projected), projected)
    sort_again = functools.partial(_sort_again, num_tiles=count_tiles(1, spec.width, spec.height, config.tile_size))
    parts["sort"] = _compile(sort_again, projected, tiles)
  parts["forward"] = _compile(lambda arrays: draw(config, **arrays).image, scene)
  parts["forward_backward"] = _compile(jax.grad(loss), scene)
  row = {
      "name": name,
      "tile_size": config.tile_size,
      "intersections": int(output.intersections.sum()),
      "memory_mb": parts["forward_backward"].memory_mb,
      "compile_s": parts["forward_backward"].compile_s,
      "forward_compile_s": parts["forward"].compile_s,
  }
  return Candidate(row, parts, np.asarray(output.image))


def make_candidates(spec: Spec, implementations: Iterable[str], configs: Iterable[Config]) -> list[Candidate]:
  """All implementations under all configurations, and the peers that are here; says on stderr why others are not."""
  candidates = [make_candidate(name, spec, config) for config in configs for name in implementations]
  for peer, make in peers.PEERS.items():
    try:
      candidates.append(Candidate(*make(spec)))
    except peers.NotHere as e:
      print(f"{peer}: {e}", file=sys.stderr)
  return candidates


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled function with its arguments; calling it waits for the result."""

  run: Callable[[], object]
  compile_s: float
  memory_mb: float | None

  def __call__(self):
    return jax.block_until_ready(self.run())


def _compile(function: Callable, *arguments) -> Program:
  lowered = jax.jit(function).lower(*arguments)
  begin = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - begin
  sizes = compiled.memory_analysis()  # None on some platforms.
  fields = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
  memory = None if sizes is None else sum(getattr(sizes, field) for field in fields) / 2**20
  return Program(functools.partial(compiled, *arguments), seconds, memory)


def _unsorted_slots(bins: binning.Bins, projected) -> Int[Array, "B M"]:
  """Tiles of all slots as they are before sorting, in depth order."""
  order = jax.vmap(binning.depth_order)(projected)
  frames = []
  for gaussians, tiles, starts, order_of_frame in zip(*map(np.asarray, (bins.gaussians, bins.tiles, bins.starts, order))):
    ranks = np.empty(len(order_of_frame), np.int64)
    ranks[order_of_frame] = np.arange(len(order_of_frame))
    used = np.arange(len(tiles)) < starts[-1]
    frames.append(tiles[np.lexsort((tiles, np.where(used, ranks[gaussians], len(ranks))))])  # Unused slots stay last.
  return jnp.asarray(np.stack(frames))


def _sort_again(projected, tiles, num_tiles: int):
  return jax.vmap(binning.depth_order)(projected), jax.vmap(lambda a: binning.sort_slots(a, num_tiles))(tiles)


@dataclasses.dataclass
class Times:
  """Milliseconds of a call, round by round: by the clock, and of CPU over all threads of this process."""

  wall: list[float] = dataclasses.field(default_factory=list)
  cpu: list[float] = dataclasses.field(default_factory=list)


def time_in_turns(calls: Mapping[Hashable, Callable[[], object]], runs: int) -> dict[Hashable, Times]:
  """Times of each call in each of `runs` rounds, after one round that is not counted."""
  times = {key: Times() for key in calls}
  for turn in range(runs + 1):
    for key, call in calls.items():
      wall, cpu = time.perf_counter(), time.process_time()
      call()
      wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
      if turn:
        times[key].wall.append(1e3 * wall)
        times[key].cpu.append(1e3 * cpu)
  return times


def measure_floor(tile_size: int, runs: int) -> float:
  """Alpha evaluations a second, (pixel, Gaussian) pairs, of loops that do nothing else: the machine's floor.

  One loop on a CPU device, which is one core (one fused reduction on a GPU or TPU), evaluates the alphas of a few
  Gaussians at all pixels of a tile, as `xla` does (`chunk_alphas`), and adds them to sums that stay in the cache. No
  order, no transmittance, no colour, no early exit. A rasterizer can be faster only by evaluating less, as one that
  leaves finished tiles does.
  """
  pixels, chunk, count = tile_size**2, 8, 8192
  rng = np.random.default_rng(0)
  table = jnp.asarray(-rng.uniform(0.01, 0.1, size=(count, chunk, 6)).astype(np.float32))
  alphas = functools.partial(xla.chunk_alphas, Config(tile_size=tile_size))

  def add(i, total):
    for k in range(chunk):
      total = total + alphas(table[i, k : k + 1])[0]
    return total

  def evaluate(table):
    if jax.default_backend() != "cpu":
      return jnp.sum(jax.vmap(alphas)(table), axis=(0, 1))
    return jax.lax.fori_loop(jnp.uint32(0), jnp.uint32(count), add, jnp.zeros(pixels))

  times = time_in_turns({"floor": _compile(evaluate, table)}, runs)["floor"].wall
  return count * chunk * pixels / (1e-3 * statistics.median(times))


def measure(spec_name: str, candidates: list[Candidate], runs: int, floors: Mapping[int, float]) -> list[dict]:
  """Rows of the table for one spec: all candidates timed in turns; ratios and image differences are to the first."""
  spec = SPECS[spec_name]
  calls = {(i, part): call for i, c in enumerate(candidates) for part, call in c.parts.items()}
  times = time_in_turns(calls, runs)
  rows = []
  for i, candidate in enumerate(candidates):
    of = lambda part: [t / spec.batch for t in times[i, part].wall] if (i, part) in times else None
    row = {"spec": spec_name, **candidate.row, "runs": runs}
    for part in ("project", "forward", "forward_backward"):
      if of(part):
        row[f"{part}_ms"], row[f"{part}_ms_least"] = statistics.median(of(part)), min(of(part))
    for part in ("forward", "forward_backward"):  # The least: neighbours on the machine can only add to it.
      row[f"{part}_cpu_ms"] = min(times[i, part].cpu) / spec.batch
    row["backward_ms"] = row["forward_backward_ms"] - row["forward_ms"]
    if of("bins"):
      bins, row["sort_ms"] = statistics.median(of("bins")), statistics.median(of("sort"))
      row["bin_ms"] = bins - row["sort_ms"]
      row["raster_ms"] = row["forward_ms"] - row["project_ms"] - bins
      evaluations = row["intersections"] / spec.batch * row["tile_size"] ** 2
      if row["raster_ms"] > 0:  # A difference: in tiny scenes it drowns in noise.
        row["evaluations_per_s"] = evaluations / (1e-3 * row["raster_ms"])
        row["share_of_floor"] = row["evaluations_per_s"] / floors[row["tile_size"]]
    row["ratio"] = statistics.median(
        mine / first for mine, first in zip(times[i, "forward_backward"].wall, times[0, "forward_backward"].wall)
    )
    row["image_difference"] = float(np.abs(candidate.image - candidates[0].image).max())
    rows.append(row)
  return rows


def format_table(rows: Iterable[Mapping]) -> str:
  """Markdown; a dash where a rasterizer has no such number."""
  show = lambda row, key, form: form.format(row[key]) if row.get(key) is not None else "–"

  def cell(row, key, form):
    least = f" ({form.format(row[f'{key}_least'])})" if key in ("forward_ms", "forward_backward_ms") else ""
    return show(row, key, form) + least

  lines = ["| " + " | ".join(heading for _, heading, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
  return "\n".join(lines + ["| " + " | ".join(cell(row, key, form) for key, _, form in COLUMNS) + " |" for row in rows])


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(prog="python -m splat_kernels.bench", description=__doc__.splitlines()[0])
  parser.add_argument("--spec", nargs="+", default=DEFAULT_SPECS, help=f"of {', '.join(BENCHMARKS)}; or all")
  known = implementations.names()
  default = [implementations.choose(None, current_device(), jnp.dtype("float32"), Config()).name]
  parser.add_argument("--implementation", nargs="+", default=default, help=f"of {', '.join(known)}")
  parser.add_argument("--tile_size", type=int, nargs="+", default=[16])
  parser.add_argument("--runs", type=int, default=9, help="rounds that count")
  parser.add_argument("--json", help="file to write the rows to")
  parser.add_argument("--markdown", help="file to write the table to")
  args = parser.parse_args(argv)
  specs = BENCHMARKS if list(args.spec) == ["all"] else args.spec
  for flag, given, choices in (("spec", specs, SPECS), ("implementation", args.implementation, known)):
    if wrong := [name for name in given if name not in choices]:
      print(f"--{flag}={wrong[0]}: not one of {', '.join(choices)}", file=sys.stderr)
      sys.exit(2)
  try:
    configs = [Config(tile_size=size) for size in args.tile_size]
  except ValueError as e:
    print(e, file=sys.stderr)
    sys.exit(2)

  device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}"
  floors = {size: measure_floor(size, args.runs) for size in args.tile_size}
  rows = []
  for name in specs:
    rows += measure(name, make_candidates(SPECS[name], args.implementation, configs), args.runs, floors)
    print(f"{name} done", file=sys.stderr)
  floor = ", ".join(f"{floors[size]:.2e} evaluations/s at tile size {size}" for size in floors)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  caption = f"{device}; ms per frame, medians of {args.runs}; floor {floor}; process at most {peak:.0f} MB"
  table = f"{caption}\n\n{format_table(rows)}\n"
  print(table)
  if args.json:
    result = {"device": device, "floor_evaluations_per_s": floors, "process_peak_mb": peak, "rows": rows}
    _write(args.json, json.dumps(result, indent=2) + "\n")
  if args.markdown:
    _write(args.markdown, table)


def _write(path: str, text: str) -> None:
  with open(path + ".tmp", "w") as f:
    f.write(text)
  os.replace(path + ".tmp", path)


if __name__ == "__main__":
  main()
