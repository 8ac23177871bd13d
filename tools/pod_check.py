"""What the train steps of all stages take on pods, without a pod: make pod-check, or

    .venv-aot/bin/python tools/pod_check.py [--config configs/pod.py:ours] [--stages motion avatar joint] [--targets v5e:16x16 ...] [--out FILE]

Compiles the steps that train.py would run, at the paper's size and over all chips of each target, with the targets' own compilers
(requirements-aot.txt), which need none of the chips. Data are not needed either (stages_without_data.py). Prints tables in Markdown:
memory of a chip against what it has, what a step computes and moves, collectives, and a roofline estimate of its time and
of its scaling (roofline.py). Ends with an exit status of 1 and a line for each step that does not fit or compile.
"""

import argparse
import concurrent.futures
import importlib.util
import os
import pathlib
import subprocess
import sys
import time
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# Before JAX: it itself runs on the CPU; libtpu is to look for no TPU host around this machine.
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ |= {"TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
if (_cuda := importlib.util.find_spec("nvidia")) is not None:
  _toolkit = pathlib.Path(next(iter(_cuda.submodule_search_locations))) / "cu13"
  # Which Triton tiles fit a product is tried out on the GPU; without one products are cuBLAS's.
  _flags = f"--xla_gpu_cuda_data_dir={_toolkit} --xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"
  os.environ.setdefault("XLA_FLAGS", _flags)

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from rsatalker_jax import sharding  # noqa: E402
from rsatalker_jax.commands.train import make_stage  # noqa: E402
from rsatalker_jax.training import loop  # noqa: E402
from tools import pod_tables, roofline  # noqa: E402
from tools.flops import count_flops  # noqa: E402
from tools.hlo_traffic import read_traffic  # noqa: E402
from tools.pod_tables import Step  # noqa: E402
from tools.stages_without_data import DataSizes, make_blank_inputs  # noqa: E402

STAGES = ("motion", "avatar", "joint")
TARGETS = ("v5e:16x16", "v5p:8x8x8", "v6e:16x16", "h200:8")
_COMPILERS = {"tpu": "libtpu", "cuda": "jax_cuda13_plugin"}


class CannotCompile(Exception):
  """A step does not compile, or there is no compiler: a line for the user."""


def find_devices(target: str) -> list:
  """The chips of a target such as "v5e:16x16", or "h200:8", a node of so many GPUs.

  Raises:
    CannotCompile: no such target, or its compiler is not installed.
  """
  kind, _, size = target.partition(":")
  if kind not in roofline.CHIPS or not all(part.isdigit() for part in size.split("x")):
    raise CannotCompile(f"--targets: found {target!r}, expected one of {', '.join(TARGETS)}, or these with other sizes")
  config = ROOT / f"tests_aot/targets/{kind}.txtpb"
  platform = "cuda" if config.is_file() else "tpu"
  if importlib.util.find_spec(_COMPILERS[platform]) is None:
    raise CannotCompile(f"{target}: found no {_COMPILERS[platform]}, expected requirements-aot.txt to be installed")
  if platform == "cuda":
    options = dict(target_config=config.read_text(), topology=f"1x1x{size}")
  else:
    options = dict(topology_name=target)
  try:
    return topologies.get_topology_desc(platform=platform, **options).devices
  except Exception as error:  # Whatever a compiler raises for a slice that there is not.
    raise CannotCompile(f"{target}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def compile_step(
    config: ConfigDict, name: str, target: str, *, effort: float = -1.0, sizes: DataSizes = DataSizes()
) -> Step:
  """Compiles a stage's train step for a target.

  Args:
    effort: of XLA for the program's speed, -1 to 0, its own choice; on GPUs always its own.

  Raises:
    CannotCompile: it does not, or its compiler is not installed.
  """
  devices = find_devices(target)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
  started = time.process_time()
  # As if each chip had a process of its own, which draws its part of each batch: so little of it has to be made.
  with mock.patch.object(jax, "process_count", lambda: len(devices)):
    stage = make_stage(make_blank_inputs(config, mesh, sizes), name)
    share = next(iter(stage.batches))
  spread = sharding.batch_sharding(stage.mesh)
  abstract = lambda x: jax.ShapeDtypeStruct((len(x) * len(devices), *x.shape[1:]), x.dtype, sharding=spread)
  batch, key, found = jax.tree.map(abstract, share), jax.random.key(0), []

  def init(key):
    state, described = loop.init_state(stage, stage.mesh, key)
    found.append(described)
    return state

  with jax.set_mesh(stage.mesh):
    jax.eval_shape(init, key)
    (state,) = found
    shardings = jax.tree.map(lambda x: x.sharding, state)
    with jax.default_device(devices[0]):  # Also what makes the rasterizer take its implementation for these chips.
      traced = loop.compile_step(stage, key, shardings).trace(state, batch, 0)
      try:
        compiled = traced.lower(**_platform(devices)).compile(_options(devices, effort))
      except Exception as error:  # Whatever a compiler raises, of which being out of memory is one kind.
        raise CannotCompile(f"{target}, {name}: {_first_line(error)}") from None
  memory, traffic = compiled.memory_analysis(), read_traffic(compiled.as_text(), mesh.size)
  return Step(
      stage=name,
      target=target,
      devices=stage.mesh.size,
      batch=_describe_batch(config, name),
      arguments=memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
      temporaries=memory.temp_size_in_bytes,
      code=memory.generated_code_size_in_bytes,
      cost=roofline.Cost(
          flops=count_flops(traced.jaxpr, mesh.size) / mesh.size,
          least=memory.argument_size_in_bytes + memory.output_size_in_bytes,
          memory=traffic.memory,
          collectives=traffic.collectives,
      ),
      endless=traffic.endless,
      seconds=time.process_time() - started,
  )


def _platform(devices: list) -> dict:
  return {"lowering_platforms": ("cuda",)} if devices[0].platform in ("gpu", "cuda") else {}


def _options(devices: list, effort: float) -> dict | None:
  return None if _platform(devices) else {"exec_time_optimization_effort": effort}


def _describe_batch(config: ConfigDict, name: str) -> str:
  section = config[name]
  if name == "motion":
    return f"{section.batch} windows of {section.window}"
  if name == "avatar":
    return f"{section.batch} frames"
  others = f" and {section.motion_batch} others" if section.motion_batch else ""
  return f"{section.batch} windows of {section.frames} frames{others}"


def load_config(path: str) -> ConfigDict:
  name, _, variant = path.partition(":")
  spec = importlib.util.spec_from_file_location("config", name)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def _run_one(arguments: list[str]) -> tuple[Step | None, str]:
  """A step compiled in a process of its own: a compiler that fails may abort it. Returns the step, or a line about why not."""
  done = subprocess.run([sys.executable, __file__, *arguments, "--one"], capture_output=True, text=True, check=False)
  if done.returncode == 0:
    return pod_tables.from_json(done.stdout.splitlines()[-1]), ""
  lines = (done.stdout + done.stderr).strip().splitlines() or [f"ended with status {done.returncode}"]
  return None, lines[-1]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default=f"{ROOT}/configs/pod.py:ours", help="a file, and a variant behind a colon")
  parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
  parser.add_argument("--targets", nargs="+", default=TARGETS)
  parser.add_argument("--effort", type=float, default=-1.0, help="of XLA for the program's speed: -1, quick, to 0, as in training")
  parser.add_argument("--jobs", type=int, default=2, help="steps that are compiled at a time")
  parser.add_argument("--out", help="a file for the tables; without one they are printed alone")
  parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    try:
      print(pod_tables.to_json(compile_step(load_config(args.config), args.stages[0], args.targets[0], effort=args.effort)))
    except CannotCompile as error:
      print(error, file=sys.stderr)
      return 1
    return 0
  started = time.perf_counter()
  common = ["--config", args.config, "--effort", str(args.effort)]
  asked = [[*common, "--stages", stage, "--targets", target] for stage in args.stages for target in args.targets]
  with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
    results = list(pool.map(_run_one, asked))
  steps = [step for step, _ in results if step is not None]
  faults = [line for _, line in results if line] + [line for line in map(pod_tables.check_fits, steps) if line]
  tables = [pod_tables.memory_table(steps), pod_tables.work_table(steps), pod_tables.scaling_table(steps), pod_tables.notes(steps)]
  text = "\n\n".join(filter(None, tables)) if steps else ""
  took = f"{time.perf_counter() - started:.0f} s, {sum(step.seconds for step in steps):.0f} s of CPU; jax {jax.__version__}"
  print(text, took, sep="\n\n")
  if args.out and text:
    temporary = pathlib.Path(f"{args.out}.partial")
    temporary.write_text(text + "\n")
    temporary.replace(args.out)
  for line in faults:
    print(line, file=sys.stderr)
  return 1 if faults else 0


if __name__ == "__main__":
  sys.exit(main())
