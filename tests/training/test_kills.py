"""A run that is killed reaches the numbers of one that is not, and its ledger tells of all its time.

A small form of benchmarks/kills.py, which docs/watching.md has the numbers of.
"""

import pathlib
import sys

from benchmarks import kills
from rsatalker_jax.runs import ledger
from rsatalker_jax.training.loop import Hook, Watching
from training import test_loop

STEPS = 40
# Steps take long enough to be killed between.
PROGRAM = f"""
import sys, time
sys.path[:0] = {[str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2])]!r}
import jax
jax.config.update("jax_num_cpu_devices", 2)
from rsatalker_jax import sharding
from rsatalker_jax.runs.ledger import process_age
from rsatalker_jax.training.ledger import Ledger
from rsatalker_jax.training.loop import Hook, Watching, run_stage
from training.test_loop import make_toy_stage

def wait(state, step):
  time.sleep(0.02)
  return state

stage = make_toy_stage({STEPS}, hooks=(Hook(lambda step: True, wait),))
with Ledger(sys.argv[1], process_age()) as ledger:
  watching = Watching(log_every=1, checkpoint_every=5)
  run_stage(stage, mesh=sharding.make_mesh(), workdir=sys.argv[1], seed=1, watching=watching, ledger=ledger)
"""


def test_nothing_is_lost_or_other_when_a_run_is_killed(tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  stage = test_loop.make_toy_stage(STEPS, hooks=(Hook(lambda step: True, lambda state, step: state),))
  test_loop.run(stage, whole, watching=Watching(log_every=1, checkpoint_every=5))
  command = [sys.executable, "-c", PROGRAM, str(killed)]
  options = dict(total=STEPS, kills=2, seed=1, log=tmp_path / "log", moments=("step", "save"))
  starts = kills.train_with_kills(command, killed, **options)
  assert [bool(start.killed) for start in starts] == [True, True, False]
  assert kills.find_differences(whole, killed, ["motion"]) == []
  account = ledger.read_account(killed)
  assert [start.how for start in account.starts] == ["killed", "killed", "finished"]
  assert account.accounted >= 0.99 and sum(start.steps for start in account.starts) >= STEPS
  for start, entry in zip(starts, account.starts, strict=True):
    # As seen from outside: no start begins before it was asked for or ends after its end; clocks of files and processes are
    # 10 ms apart at most. How late the last word comes depends on the machine; docs/watching.md has it measured.
    assert start.begin - 0.1 <= entry.begin and entry.end <= start.end + 0.1
  # The last word of a killed start comes after the last line of its metrics.
  assert account.seconds["down"] > 0 and account.seconds["lost"] >= 0


def test_a_difference_is_found(tmp_path):
  stage = test_loop.make_toy_stage(3)
  for name, seed in (("one", 1), ("same", 1), ("other", 2)):
    options = dict(watching=Watching(log_every=1), say=lambda _: None)
    test_loop.loop.run_stage(stage, mesh=test_loop.sharding.make_mesh(), workdir=str(tmp_path / name), seed=seed, **options)
  assert kills.find_differences(tmp_path / "one", tmp_path / "same", ["motion"]) == []
  found = kills.find_differences(tmp_path / "one", tmp_path / "other", ["motion"])
  assert found == ["motion/metrics.jsonl", "motion['params']['generator']['w']"]
