"""Whether the loaders keep the training steps fed: rates of each stage's loader alone, of its step alone, and of both.

    python benchmarks/input_speed.py [--size demo|paper] [--stages motion avatar joint] [--rounds 3] [--seconds 5]
                                     [--loader_only] [--hours 0.5] [--folder DIR]

demo: configs/demo.py on its embedded data. paper: configs/rsatalker.py:ours on data of the real sizes with 1024-wide features that
lie in files (`paper_size.write_world`); its steps are for accelerators, and take minutes on a CPU: --loader_only leaves them out.

Loader, step on one batch, and both as in training take turns, round by round; numbers are medians of the rounds. The loader
reads ahead, so that before each of its turns as many batches are taken, uncounted, as it can hold ready. "Fed" is the loader's
rate over the step's: below 1 the step waits. "Waits" is the share of the time in which it did, of both together, where on a
CPU both want the same cores. A row counts windows, or for the avatar frames of film, and the frames in them.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
import configs.demo
import configs.rsatalker
from benchmarks.paper_size import write_world
from rsatalker_jax import sharding
from rsatalker_jax.commands import command_line
from rsatalker_jax.commands.train import make_stage
from rsatalker_jax.data.conversations import data_path, unpack_embedded
from rsatalker_jax.evaluation.tables import markdown_table
from rsatalker_jax.talker import make_encoder, make_talker
from rsatalker_jax.training import loop
from rsatalker_jax.training.stage_inputs import StageInputs

AHEAD = 32  # Batches that a loader may have ready: more than its threads and buffers hold.


@dataclasses.dataclass(frozen=True)
class Rates:
  """Batches a second of the loader and of the step alone, and of both together with the share of time spent waiting for data."""

  loader: float
  step: float | None = None
  both: float | None = None
  waits: float | None = None


def count_examples(batch: Mapping[str, Any]) -> tuple[int, int]:
  """Examples of a batch, and frames in them: (windows, their frames of motion), (pictures, pictures), or the sums of its parts."""
  parts = [value for value in batch.values() if isinstance(value, Mapping) and "motion_a" in value]
  if parts:
    counts = [count_examples(part) for part in parts]
    return sum(windows for windows, _ in counts), sum(frames for _, frames in counts)
  if "motion_a" in batch:
    windows, frames = batch["motion_a"].shape[:2]
    return windows, windows * frames
  return len(batch["image"]), len(batch["image"])


def measure(
    batches: Iterator,
    take_step: Callable[[Any], object] | None,
    *,
    rounds: int,
    seconds: float,
    ahead: int = AHEAD,
    clock: Callable[[], float] = time.perf_counter,
) -> Rates:
  """Rates of a loader and of a step, in turns.

  Args:
    batches: of the loader, without end.
    take_step: takes a step on a batch and waits for it; None: the loader alone.
    rounds, seconds: how often each is measured, and how long at least.
    ahead: batches that are taken uncounted before a turn of the loader.
    clock: seconds.
  """

  def turn(*work: Callable[[Any], Any]) -> tuple[float, float]:
    """Turns a second, and the share of the first part of the work."""
    began, first, count = clock(), 0.0, 0
    while not count or clock() - began < seconds:
      value, start = None, clock()
      for number, part in enumerate(work):
        value = part(value)
        if number == 0:
          first += clock() - start
      count += 1
    took = clock() - began
    return count / took, first / took

  load = lambda _: next(batches)
  kept = next(batches)
  if take_step is not None:
    take_step(kept)  # Compiles.
  found = []
  for _ in range(rounds):
    for _ in range(ahead):
      next(batches)
    loader, _ = turn(load)
    if take_step is None:
      found.append((loader,))
      continue
    step, _ = turn(lambda _: take_step(kept))
    both, waits = turn(load, take_step)
    found.append((loader, step, both, waits))
  return Rates(*map(statistics.median, zip(*found)))


def make_step(stage: loop.Stage) -> Callable[[Any], object]:
  """The stage's compiled step from its start, as training takes it."""
  key = jax.random.key(0)
  with jax.set_mesh(stage.mesh):
    state, abstract = loop.init_state(stage, stage.mesh, key)
    step = loop.compile_step(stage, key, jax.tree.map(lambda x: x.sharding, abstract))
  held = {"state": state, "number": 0}

  def take_step(batch):
    with jax.set_mesh(stage.mesh):
      held["state"], terms = step(held["state"], sharding.put_batch(stage.mesh, batch), held["number"])
    held["number"] += 1
    return jax.block_until_ready(terms)

  return take_step


def make_inputs(args, folder: pathlib.Path) -> StageInputs:
  if args.size == "demo":
    config = configs.demo.get_config()
    unpack_embedded(config.data)
  else:
    config = configs.rsatalker.get_config("ours")
    write_world(config, folder, args.hours)
  command_line.use_devices(config.mesh)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  encode = make_encoder(config.speech, data_path(config.data, "features"), encode_missing=args.size == "demo").open
  return StageInputs(config, make_talker(config), encode, mesh, say=lambda line: print(line, file=sys.stderr))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", choices=("demo", "paper"), default="demo")
  parser.add_argument("--stages", nargs="*", default=("motion", "avatar", "joint"))
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--seconds", type=float, default=5, help="of a turn, at least")
  parser.add_argument("--loader_only", action="store_true")
  parser.add_argument("--hours", type=float, default=0.5, help="of conversation, for --size paper")
  parser.add_argument("--folder", help="where a folder for the data of --size paper is made and removed again")
  args = parser.parse_args()
  rows = {}
  with tempfile.TemporaryDirectory(dir=args.folder) if args.size == "paper" else contextlib.nullcontext() as folder:
    inputs = make_inputs(args, pathlib.Path(folder or "."))
    before = os.getloadavg()[0]
    for name in args.stages:
      stage = make_stage(inputs, name)
      batches = iter(stage.batches)
      examples, frames = count_examples(next(batches))
      take_step = None if args.loader_only else make_step(stage)
      rates = measure(batches, take_step, rounds=args.rounds, seconds=args.seconds)
      row = [str(examples), f"{rates.loader * examples:.1f}", f"{rates.loader * frames:.0f}"]
      if take_step is not None:
        row += [f"{rates.step * examples:.1f}", f"{rates.loader / rates.step:.1f}"]
        row += [f"{rates.both * examples:.1f}", f"{100 * rates.waits:.1f} %"]
      rows[name] = row
  device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}"
  print(f"{args.size}; {device}; load {before:.1f} before, {os.getloadavg()[0]:.1f} after\n")
  columns = ["batch", "loader, windows/s", "loader, frames/s", "step, windows/s", "fed", "both, windows/s", "waits"]
  print(markdown_table(columns[: len(row)], rows))


if __name__ == "__main__":
  main()
