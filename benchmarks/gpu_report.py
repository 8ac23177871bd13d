"""Everything that a machine with an NVIDIA GPU can tell about the kernels, in one call of a few minutes:

    python benchmarks/gpu_report.py [--out FOLDER]

  1. Parity: image, alpha and all gradients of `pallas_triton`, compiled for the GPU, against `reference` and `xla` on the
     same GPU, for the cases of the shared test class; and whether two runs give the same bits. On Hopper and later, of
     `pallas_mosaic_gpu`, too, for the cases whose tiles it can draw.
  2. Time: forward and forward + backward, by `splat_kernels.bench`, of these and, on the smallest scene, of `xla`, with
     gsplat's and splax's rows beside them where these are installed.

Prints Markdown and writes it to FOLDER/gpu_report.md, and the numbers to FOLDER/gpu_report.json. Needs
requirements.txt and a jax with CUDA, e.g. pip install "jax[cuda13]".
"""

import argparse
import json
import pathlib
import sys
import time

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "splat_kernels")]

from splat_kernels.testing import CASES, draw_and_differentiate  # noqa: E402

from splat_kernels import Config, bench  # noqa: E402
from splat_kernels.specs import SPECS  # noqa: E402

# Implementations to time on each spec. On a GPU `xla` starts several kernels for every 8 Gaussians of a tile: seconds a
# frame where there are many.
TIMED = {"head10k": ("xla",), "head50k": (), "head100k": ()}  # Beside the kernels.


def kernels_here() -> tuple[str, ...]:
  hopper = float(jax.devices()[0].compute_capability) >= 9
  return ("pallas_triton", "pallas_mosaic_gpu") if hopper else ("pallas_triton",)


def compare(case: str, name: str) -> list[dict]:
  """Largest differences of the images and relative ones of the gradients from each of the others, for one case."""
  output, gradients = first = draw_and_differentiate(case, CASES[case], name)
  again = draw_and_differentiate(case, CASES[case], name)
  same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), first, again)
  rows = []
  for other in ("reference", "xla"):
    expected, expected_gradients = draw_and_differentiate(case, CASES[case], other)
    difference = np.abs(np.asarray(output.image - expected.image))
    row = {"case": case, "name": name, "against": other, "bit_equal_reruns": all(jax.tree.leaves(same))}
    row["image_max"] = float(difference.max())
    row["share_above_1e-4"] = float(np.mean(difference > 1e-4))
    row["alpha_max"] = float(np.abs(output.alpha - expected.alpha).max())
    errors = {
        key: float(np.linalg.norm(gradients[key] - value) / max(np.linalg.norm(value), 1e-30))
        for key, value in expected_gradients.items()
    }
    row["worst_gradient"] = max(errors, key=errors.get)
    row["worst_gradient_error"] = errors[row["worst_gradient"]]
    rows.append(row | {"gradients": errors})
  return rows


def time_specs(runs: int) -> list[dict]:
  config = Config(with_depth=False)
  floors = {config.tile_size: bench.measure_floor(config.tile_size, runs)}
  rows = []
  for name, others in TIMED.items():
    candidates = bench.make_candidates(SPECS[name], (*kernels_here(), *others), [config])
    rows += bench.measure(name, candidates, runs, floors)
    print(f"{name} done", file=sys.stderr)
  return rows


def format_parity(rows: list[dict]) -> str:
  head = ["case", "name", "against", "image_max", "share_above_1e-4", "alpha_max", "worst_gradient"]
  head += ["worst_gradient_error", "bit_equal_reruns"]
  show = lambda value: f"{value:.1e}" if isinstance(value, float) else str(value)
  lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  return "\n".join(lines + ["| " + " | ".join(show(row[key]) for key in head) + " |" for row in rows])


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="folder for the results")
  parser.add_argument("--runs", type=int, default=21, help="rounds that count")
  args = parser.parse_args(argv)
  if jax.default_backend() != "gpu":
    print(f"no NVIDIA GPU: jax {jax.__version__} sees {jax.devices()[0].device_kind} only", file=sys.stderr)
    sys.exit(1)
  begin = time.perf_counter()
  parity = []
  for name in kernels_here():
    cases = [case for case in CASES if name == "pallas_triton" or CASES[case].tile_size >= 16]
    parity += [row for case in cases for row in compare(case, name)]
  device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
  report = f"{device}\n\n{format_parity(parity)}\n"
  print(report, flush=True)  # What follows may fail; this is worth having.
  times = time_specs(args.runs)
  table = f"milliseconds per frame, medians of {args.runs}\n\n{bench.format_table(times)}\n"
  print(table)
  args.out.mkdir(parents=True, exist_ok=True)
  result = {"device": device, "parity": parity, "times": times, "seconds": time.perf_counter() - begin}
  (args.out / "gpu_report.json").write_text(json.dumps(result, indent=2) + "\n")
  (args.out / "gpu_report.md").write_text(f"{report}\n{table}")


if __name__ == "__main__":
  main()
