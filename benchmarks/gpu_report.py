"""Everything that a machine with an NVIDIA GPU can tell about the kernels, in one call of a few minutes:

    python benchmarks/gpu_report.py [--out FOLDER] [--seconds N] [--only PATTERN]

Of `pallas_triton` and, on Hopper and later, `pallas_mosaic_gpu`, compiled for the GPU:

  1. Gradients of each Gaussian against `reference` in float64 on the same GPU, from Gaussians one behind the other: as
     they are, behind something 100,000 times brighter, with absolute gradients, and with many channels.
  2. Image, alpha and all gradients against `reference` and `xla` for the cases of the shared test class and for a batch;
     and whether two runs give the same bits.
  3. Device time of each kernel in one step of training, by jax.profiler, whose trace stays in FOLDER/profile.
  4. Times of projection, binning, sorts, rasterization and backward pass, by `splat_kernels.bench`, with gsplat's and
     splax's rows beside them where these are installed, and with `xla` on the smallest scene.

A part that fails says so, and the others go on. FOLDER/gpu_report.md and FOLDER/gpu_report.json are written anew after
each part; after N seconds no further part begins. Parts whose title PATTERN (a regular expression) is not in are left out:
several processes may share what is compiled for minutes and timed by nobody. Needs requirements.txt and a jax with CUDA, e.g. pip install
"jax[cuda13]".
"""

import argparse
import collections
import functools
import json
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "splat_kernels")]

import layered_scene  # noqa: E402
from splat_kernels.testing import CASES, draw_and_differentiate, of  # noqa: E402

from splat_kernels import Config, bench, peers  # noqa: E402
from splat_kernels.pallas_triton import CHANNELS, CHUNK  # noqa: E402
from splat_kernels.specs import SPECS  # noqa: E402

BRIGHT = 1e5
PROFILED = "head100k"

Part = tuple[str, Callable[[], tuple[str, object]]]  # Title; what gives Markdown, and the same for JSON.


def kernels_here() -> tuple[str, ...]:
  hopper = float(jax.devices()[0].compute_capability) >= 9
  return ("pallas_triton", "pallas_mosaic_gpu") if hopper else ("pallas_triton",)


# ---- Parts ----


def layered_scenes() -> dict[str, dict]:
  """Gaussians one behind the other, in more than one chunk."""
  plain = layered_scene.layers(2 * CHUNK + 10, 4, opacity=0.03)
  bright = layered_scene.layers(2 * CHUNK + 10, 1, opacity=0.03)
  bright["features"][[0, CHUNK + 3]] = BRIGHT
  absolute = layered_scene.layers(CHUNK + 20, CHANNELS + 3, opacity=0.3)
  many = {key: value for key, value in absolute.items() if key != "means2d_abs_offset"}
  return {"layers": plain, "bright": bright, "many channels": many, "many channels, absolute": absolute}


def check_gaussians(name: str, scenes: dict[str, dict]) -> tuple[str, list[dict]]:
  """Worst relative error of any Gaussian's gradients, for each scene."""
  rows = []
  for scene, arrays in scenes.items():
    expected = layered_scene.gradients(arrays, "reference", jnp.float64)
    found, again = (layered_scene.gradients(arrays, **of(name), dtype=jnp.float32) for _ in range(2))
    error = layered_scene.worst_error(found, expected)
    rows.append({"scene": scene, "name": name, "worst_of_a_gaussian": error, "bit_equal_reruns": equal(found, again)})
  return format_rows(rows), rows


def compare(case: str, name: str) -> tuple[str, list[dict]]:
  """Largest differences of the images and relative ones of the gradients from each of the others, for one case."""
  config = CASES.get(case, Config())
  output, gradients = first = draw_and_differentiate(case, config, name)
  same = equal(first, draw_and_differentiate(case, config, name))
  rows = []
  for other in ("reference", "xla"):
    expected, expected_gradients = draw_and_differentiate(case, config, other)
    difference = np.abs(np.asarray(output.image - expected.image))
    errors = {
        key: float(np.linalg.norm(gradients[key] - value) / max(np.linalg.norm(value), 1e-30))
        for key, value in expected_gradients.items()
    }
    worst = max(errors, key=errors.get)
    row = {"case": case, "name": name, "against": other, "image_max": float(difference.max())}
    row["share_above_1e-4"] = float(np.mean(difference > 1e-4))
    row["alpha_max"] = float(np.abs(output.alpha - expected.alpha).max())
    row |= {"worst_gradient": worst, "worst_gradient_error": errors[worst], "bit_equal_reruns": same}
    rows.append(row | {"gradients": errors})
  return format_rows(rows), rows


def profile(step: Callable[[], object], folder: pathlib.Path, plane: str = "/device:GPU", runs: int = 10):
  """Device time of every kernel in a step, the mean of some; the trace goes to a folder."""
  step()
  with jax.profiler.trace(str(folder)):
    for _ in range(runs):
      step()
  times = device_times(folder, plane)
  if not times:
    raise ValueError(f"the trace in {folder} has nothing on {plane}")
  rows = [
      {"kernel": kernel, "us": 1e-3 * sum(spent) / runs, "launches": len(spent) / runs}
      for kernel, spent in sorted(times.items(), key=lambda item: -sum(item[1]))
  ]
  total = {"kernel": "all", "us": sum(row["us"] for row in rows), "launches": sum(row["launches"] for row in rows)}
  return format_rows([total, *rows[:30]]), [total, *rows]


def device_times(folder: pathlib.Path, plane: str) -> dict[str, list[float]]:
  """Nanoseconds of each event on a device in the newest trace of a folder, by name."""
  newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
  times = collections.defaultdict(list)
  for found in jax.profiler.ProfileData.from_file(str(newest)).planes:
    for line in found.lines if found.name.startswith(plane) else ():
      # What runs; other lines of the plane sum the same events up.
      for event in line.events if line.name.startswith(("Stream", "tf_XLA")) else ():
        times[event.name].append(event.duration_ns)
  return dict(times)


def time_spec(spec_name: str, names: Iterable[str], runs: int) -> tuple[str, list[dict]]:
  """The benchmark's rows for one scene. Who cannot draw it is named, and the others are timed."""
  config = Config(with_depth=False)
  spec, candidates, missing = SPECS[spec_name], [], []
  makers = {name: functools.partial(bench.make_candidate, name, spec, config) for name in names}
  makers |= {peer: lambda make=make: bench.Candidate(*make(spec)) for peer, make in peers.PEERS.items()}
  for name, make in makers.items():
    try:
      candidates.append(make())
    except Exception as e:
      missing.append(f"{name}: {one_line(e)}")
  floors = {config.tile_size: bench.measure_floor(config.tile_size, 3)}
  rows = bench.measure(spec_name, candidates, runs, floors)
  table = f"milliseconds per frame, medians of {runs}\n\n{bench.format_table(rows)}"
  return "\n\n".join([table, *missing]), {"rows": rows, "missing": missing}


def parts_here(out: pathlib.Path, runs: int) -> list[Part]:
  """All parts, what is most wanted first."""
  kernels = kernels_here()
  gaussians = lambda name: functools.partial(check_gaussians, name, layered_scenes())
  parts = [(f"gradients of each Gaussian: {name}", gaussians(name)) for name in kernels]
  for name in kernels:
    for case in CASES:
      if name == "pallas_triton" or CASES[case].tile_size >= 16:
        parts.append((f"parity: {name}, {case}", functools.partial(compare, case, name)))
  step = lambda: bench.make_candidate("pallas_triton", SPECS[PROFILED], Config(with_depth=False)).parts["forward_backward"]
  parts.append((f"kernels: one step of {PROFILED}", lambda: profile(step(), out / "profile")))
  for spec in ("head100k", "head10k", "head50k", "head10k_batch16", "head1m_1080p"):
    parts.append((f"times: {spec}", functools.partial(time_spec, spec, kernels, runs)))
  # On a GPU `xla` starts several kernels for every 8 Gaussians of a tile: seconds a frame.
  parts.append(("times with xla: head10k", functools.partial(time_spec, "head10k", ("pallas_triton", "xla"), 2)))
  return parts


# ---- Report ----


def run_parts(parts: Iterable[Part], out: pathlib.Path, head: dict, seconds: float) -> list[str]:
  """Runs parts one after the other, writing after each; returns the titles of those that failed."""
  begin = time.perf_counter()
  sections, results, failed = [f"{head['device']}, jax {head['jax']}"], dict(head), []
  for title, run in parts:
    spent = time.perf_counter() - begin
    if spent > seconds:
      text, result = f"not begun: {spent:.0f} s were over", {"not_begun": True}
    else:
      try:
        text, result = run()
      except Exception as e:
        traceback.print_exc()
        text, result = f"FAILED: {one_line(e)}", {"failed": one_line(e)}
        failed.append(title)
    sections.append(f"## {title}\n\n{text}")
    results[title] = result
    results["seconds"] = time.perf_counter() - begin
    print(f"{sections[-1]}\n", flush=True)
    write(out / "gpu_report.md", "\n\n".join(sections) + "\n")
    write(out / "gpu_report.json", json.dumps(results, indent=2) + "\n")
  return failed


def equal(a, b) -> bool:
  """Whether two trees have the same bits."""
  return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), a, b)))


def one_line(error: Exception) -> str:
  return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def format_rows(rows: list[dict]) -> str:
  """A table in Markdown of all that is not a table itself."""
  head = [key for key, value in rows[0].items() if not isinstance(value, dict)]
  show = lambda value: f"{value:.3g}" if isinstance(value, float) else str(value)
  lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  return "\n".join(lines + ["| " + " | ".join(show(row[key]) for key in head) + " |" for row in rows])


def write(path: pathlib.Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  whole = path.with_name(path.name + ".tmp")
  whole.write_text(text)
  os.replace(whole, path)


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="folder for the results")
  parser.add_argument("--runs", type=int, default=9, help="rounds that count")
  parser.add_argument("--only", default="", help="a regular expression: parts in whose titles it is found")
  parser.add_argument("--seconds", type=float, default=420, help="after which no further part begins")
  args = parser.parse_args(argv)
  if jax.default_backend() != "gpu":
    print(f"no NVIDIA GPU: jax {jax.__version__} sees {jax.devices()[0].device_kind} only", file=sys.stderr)
    sys.exit(1)
  head = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
  parts = [part for part in parts_here(args.out, args.runs) if re.search(args.only, part[0])]
  if not parts:
    parser.error(f"--only: {args.only!r} is in no part's title")
  failed = run_parts(parts, args.out, head, args.seconds)
  print(f"failed: {', '.join(failed) or 'nothing'}")


if __name__ == "__main__":
  main()
