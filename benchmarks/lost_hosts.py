"""Whether processes that train together survive each other: none hangs, none trains on alone, and no number changes.

    python benchmarks/lost_hosts.py [--faults 20] [--steps 300] [--seed 0] [--folder FOLDER]

Two processes train the motion stage on the tests' tiny world, once undisturbed and once with as many faults, each after a
random step: SIGKILL or SIGSTOP to one of them, SIGTERM to one or, 0.3 s apart, to both; after each the same command is
given again. How long the other process needed to end is told. In the end all lines of metrics and all parameters must be the same to the
bit. Exits with 1 if not, or if a process was left over for a minute.
"""

import argparse
import collections
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

import jax
import kills

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]
import several_processes  # noqa: E402
import tiny_world  # noqa: E402

_FAULTS = ("SIGKILL to process 0", "SIGKILL to process 1", "SIGSTOP to process 1", "SIGTERM to one", "SIGTERM to both")
_PATIENCE = 60.0


def disturb(processes: list, fault: str, choice: random.Random) -> int:
  """Does what the words say; returns the number of the process whose end counts: one that is left."""
  if fault.startswith("SIGTERM"):
    first = choice.randrange(2)
    processes[first].send_signal(signal.SIGTERM)
    if fault.endswith("both"):
      time.sleep(0.3)
      processes[1 - first].send_signal(signal.SIGTERM)
    return 1 - first
  gone = int(fault[-1])
  processes[gone].send_signal(signal.SIGKILL if "KILL" in fault else signal.SIGSTOP)
  return 1 - gone


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--faults", type=int, default=20)
  parser.add_argument("--steps", type=int, default=300)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", type=pathlib.Path, help="where everything is kept; a folder that is removed if not given")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    sys.exit(_run(args, (args.folder or pathlib.Path(temporary)).resolve()))


def _run(args: argparse.Namespace, folder: pathlib.Path) -> bool:
  if not (folder / "data").exists():
    tiny_world.write_world(folder / "data")
  config = tiny_world.tiny_config(folder / "data")
  config.mesh.cpu_devices, config.motion.steps = 1, args.steps
  config.logging.update(dict(log_every=1, checkpoint_every=3, slow_factor=0.0))
  flag = several_processes.write_config(folder / "lost_hosts_config.py", config)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  start = lambda name: several_processes.start(2, ["train.py", flag, f"--workdir={folder / name}", "--stage=motion"])
  for status, _, err in several_processes.finish(start("whole"), 3600):
    if status:
      raise RuntimeError(err[-2000:])

  choice, seconds, wrong, statuses = random.Random(args.seed), collections.defaultdict(list), [], collections.Counter()
  plan = [_FAULTS[number % len(_FAULTS)] for number in range(args.faults)]
  choice.shuffle(plan)
  marks = sorted(choice.sample(range(1, args.steps - 30), args.faults))
  metrics = folder / "lost/motion/metrics.jsonl"
  # Lines that were left by the start before do not count: a process that is ended before it has joined is waited for.
  reached = lambda begin, mark: metrics.exists() and metrics.stat().st_mtime > begin and len(metrics.read_text().splitlines()) >= mark
  for fault, mark in zip(plan, marks):
    begin = time.time()
    processes = start("lost")
    while not reached(begin, mark) and all(process.poll() is None for process in processes):
      time.sleep(0.02)
    time.sleep(choice.random() * 0.3)
    left = disturb(processes, fault, choice)
    begin = time.monotonic()
    while processes[left].poll() is None and time.monotonic() - begin < _PATIENCE:
      time.sleep(0.1)
    if processes[left].poll() is None:
      wrong.append(f"{fault}: process {left} was still there after {_PATIENCE:g} s")
    else:
      seconds[fault].append(time.monotonic() - begin)
      statuses[f"{fault}: {processes[left].returncode}"] += 1
    for process in processes:
      if "SIGTERM" not in fault:
        process.kill()
    last = [err.replace("\r", "\n").strip().splitlines()[-1:] for _, _, err in several_processes.finish(processes)][left]
    if "SIGTERM" not in fault and not (last and last[0].startswith("error: process ") and ("gone" in last[0] or "sign of life" in last[0])):
      wrong.append(f"{fault}: the last line is {last}")
  for status, _, err in several_processes.finish(start("lost"), 3600):
    if status:
      wrong.append(f"the last start ended with {status}: {err[-300:]}")
  wrong += kills.find_differences(folder / "whole", folder / "lost", ["motion"])
  for fault in _FAULTS:
    if taken := seconds[fault]:
      print(f"{fault}: {len(taken)} times, the other process ended after {min(taken):.1f} to {max(taken):.1f} s")
  print(", ".join(f"{what} ({count})" for what, count in sorted(statuses.items())))
  print(f"{args.steps} steps, {args.faults} faults: {len(wrong)} things wrong{': ' if wrong else ''}{'; '.join(wrong)}")
  return bool(wrong)


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  main()
