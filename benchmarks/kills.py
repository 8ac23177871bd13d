"""Whether a run that is killed again and again reaches the numbers of one that is not.

    python benchmarks/kills.py [--kills 20] [--steps 40 30 20] [--seed 0] [--folder FOLDER]

All three stages are trained twice on the tests' tiny world, by train.py, with a checkpoint every third step: once undisturbed, and
once with SIGKILL as often as is said: after a random step, while a checkpoint is being written, or at a random moment after
a start, be it still importing or compiling. In the end all lines of metrics and all parameters must be the same to the bit,
and the ledger must tell of the time as it was seen from outside. Exits with 1 if not.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]
from rsatalker_jax.runs import ledger, load_stage_state  # noqa: E402

STAGES = ("motion", "avatar", "joint")  # Of the demo.
# What says how fast a run was, and not what it computed.
_TIMES = ("steps_per_second", "data_wait")
_MOMENTS = ("step", "save", "start")
_CHECKPOINT_EVERY = 3
_CONFIG = """
import pathlib, sys
sys.path[:0] = [{root!r}, {tests!r}]
from tiny_world import tiny_config

def get_config():
  config = tiny_config(pathlib.Path({data!r}))
  config.motion.steps, config.avatar.steps, config.joint.steps = {steps!r}
  config.density.way, config.gaussians.capacity = "adaptive", 200
  config.density.adaptive.update(dict(start=0, stop={steps!r}[1] - 5, every=4))
  config.logging.update(dict(log_every=1, checkpoint_every={every}, pictures_every=1000, slow_factor=0.0))
  return config
"""


@dataclasses.dataclass
class Start:
  """One start, as seen from outside.

  Attributes:
    begin, end: in seconds since 1970.
    killed: when, of `_MOMENTS`; "" if it ended by itself.
    in_save: whether it left a checkpoint half written.
  """

  begin: float
  end: float = 0.0
  killed: str = ""
  in_save: bool = False


def count_steps(workdir: pathlib.Path) -> int:
  """Steps of all stages that stand in metrics.jsonl, a line each."""
  files = [workdir / stage / "metrics.jsonl" for stage in STAGES]
  return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


def train_with_kills(
    command: Sequence[str], workdir: pathlib.Path, *, total: int, kills: int, seed: int, log: pathlib.Path, moments=_MOMENTS
) -> list[Start]:
  """Runs a command, which trains into `workdir`, until it has ended by itself, with kills on the way.

  Args:
    command: what is started, again after each kill.
    workdir: where the steps are counted.
    total: how many steps there are in all.
    kills: how many of them to be cut short.
    seed: of the moments.
    log: gets what the command writes.
    moments: which there are, of `_MOMENTS`.

  Raises:
    RuntimeError: the command ended by itself, but not well.
  """
  choice = random.Random(seed)
  due = sorted(choice.sample(range(1, total - 1), kills))
  plan = [(step, choice.choice(moments), choice.random()) for step in due]
  starts = []
  while True:
    left = set(_unfinished(workdir))
    with log.open("ab") as output:
      process = subprocess.Popen(command, cwd=_ROOT, stdout=output, stderr=output)
    start = Start(time.time())
    starts.append(start)
    if plan:
      step, moment, share = plan[0]
      if _wait(process, workdir, step, moment, share):
        plan.pop(0)
        process.send_signal(signal.SIGKILL)
        start.killed = moment
    status = process.wait()
    start.end = time.time()
    start.in_save = bool(set(_unfinished(workdir)) - left)
    if status == 0:
      return starts
    if not start.killed:
      raise RuntimeError(f"{command} ended with status {status}: {log.read_text()[-2000:]}")


def _wait(process: subprocess.Popen, workdir: pathlib.Path, step: int, moment: str, share: float) -> bool:
  """Waits for the moment of a kill; False if the process has ended before."""
  begin = time.perf_counter()
  at_start = lambda: time.perf_counter() - begin > 20 * share  # Wherever it is by then.
  after_step = lambda: count_steps(workdir) >= step
  reached = at_start if moment == "start" else after_step
  while process.poll() is None:
    if reached():
      if moment == "save" and reached is after_step:
        seen = set(_unfinished(workdir))
        reached = lambda: set(_unfinished(workdir)) - seen
        continue
      time.sleep(share * {"step": 0.2, "save": 0.02, "start": 0.0}[moment])
      return process.poll() is None
    time.sleep(0.001)
  return False


def _unfinished(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
  """Checkpoints that are being written, or were when their process was killed."""
  return workdir.glob("*/checkpoints/*tmp*")


def read_trace(workdir: pathlib.Path, stage: str) -> list[dict[str, float]]:
  """The lines of a stage's metrics, without those that tell of time."""
  lines = map(json.loads, (workdir / stage / "metrics.jsonl").read_text().splitlines())
  return [{name: value for name, value in line.items() if name not in _TIMES} for line in lines]


def find_differences(whole: pathlib.Path, killed: pathlib.Path, stages: Sequence[str] = STAGES) -> list[str]:
  """What differs between two runs, of their traces and of their parameters and buffers."""
  found = []
  for stage in stages:
    if read_trace(whole, stage) != read_trace(killed, stage):
      found.append(f"{stage}/metrics.jsonl")
    leaves = [jax.tree_util.tree_leaves_with_path(load_stage_state(str(run), stage)) for run in (whole, killed)]
    if [path for path, _ in leaves[0]] != [path for path, _ in leaves[1]]:
      found.append(f"{stage}: the parameters' names")
      continue
    for (path, x), (_, y) in zip(*leaves):
      if np.asarray(x).tobytes() != np.asarray(y).tobytes():
        found.append(f"{stage}{jax.tree_util.keystr(path)}")
  return found


def find_unaccounted(workdir: pathlib.Path, starts: Sequence[Start]) -> tuple[float, list[float]]:
  """Seconds of starts, as seen from outside, that the ledger does not tell of; and those of the starts that were killed before they
  could open it, which it holds for time between starts."""
  told = ledger.read_account(workdir).starts
  missing, unknown = 0.0, []
  for start in starts:
    # Of the process's beginning /proc tells to 10 ms.
    inside = [entry for entry in told if start.begin - 0.05 < entry.begin < start.end]
    if inside:
      missing += abs(start.end - start.begin - sum(x for cause, x in inside[0].seconds.items() if cause != "down"))
    else:
      unknown.append(start.end - start.begin)
  return missing, unknown


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--steps", type=int, nargs=3, default=(40, 30, 20), metavar=("MOTION", "AVATAR", "JOINT"))
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", type=pathlib.Path, help="where everything is kept; a folder that is removed if not given")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    sys.exit(_run(args, args.folder or pathlib.Path(temporary)))


def _run(args: argparse.Namespace, folder: pathlib.Path) -> bool:
  import tiny_world  # Which imports pytest.

  folder = folder.resolve()
  data = folder / "data"
  if not data.exists():
    tiny_world.write_world(data)
  config = folder / "kills_config.py"
  settings = dict(root=str(_ROOT), tests=str(_ROOT / "tests"), data=str(data), steps=tuple(args.steps), every=_CHECKPOINT_EVERY)
  config.write_text(_CONFIG.format(**settings))
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  total = sum(args.steps)
  train = lambda name, kills: train_with_kills(
      [sys.executable, "train.py", f"--config={config}", f"--workdir={folder / name}"],
      folder / name, total=total, kills=kills, seed=args.seed, log=folder / f"{name}.log",
  )
  train("whole", 0)
  starts = train("killed", args.kills)
  differences = find_differences(folder / "whole", folder / "killed")
  account = ledger.read_account(folder / "killed")
  missing, unknown = find_unaccounted(folder / "killed", starts)
  wall = starts[-1].end - starts[0].begin
  counts = {moment: sum(start.killed == moment for start in starts) for moment in _MOMENTS}
  taken = sum(start.steps for start in account.starts)
  print(f"{total} steps of three stages, a checkpoint every {_CHECKPOINT_EVERY}; {len(starts)} starts, {sum(counts.values())} kills:")
  print(f"  {counts['step']} after a random step, {counts['save']} when a checkpoint was begun, {counts['start']} at a random moment of a start")
  print(f"  {sum(start.in_save for start in starts)} left a checkpoint half written")
  print(f"{taken - total} steps were taken twice")
  print(f"{len(differences)} differences to the run without kills{': ' if differences else ''}{', '.join(differences[:10])}")
  print(f"ledger: {account.accounted:.2%} of its {account.wall:.1f} s have a cause")
  print(f"  of {wall:.1f} s seen from outside it lacks {missing:.1f} s, {missing / wall:.2%};")
  print(f"  {len(unknown)} starts, of {sum(unknown):.1f} s, were killed while importing, which it holds for time between starts")
  return bool(differences or missing > 0.01 * wall)


if __name__ == "__main__":
  main()
