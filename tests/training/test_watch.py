"""What watches a run: slow steps, waiting for data, heartbeats, hangs, profiles."""

import gzip
import json
import os
import threading
import time
import types

import pytest

from rsatalker_jax.training import watch as watch_lib
from rsatalker_jax.training import watchdog as watchdog_lib
from rsatalker_jax.training.ledger import Ledger
from rsatalker_jax.training.watch import StepTimes, Watch, Watching
from rsatalker_jax.training.watchdog import Watchdog
from training import test_loop


def test_a_slow_step_is_one_far_above_the_median():
  times = StepTimes(3.0)
  assert [times.add(x) for x in [9.0] * 5 + [1.0] * 15] == [None] * 20  # Of the first nothing is said.
  assert times.add(3.0) is None and times.add(3.1) == 1.0
  assert StepTimes(0.0).add(1.0) is None
  fast = StepTimes(3.0)
  assert [fast.add(x) for x in [0.001] * 30 + [0.05]] == [None] * 31  # Milliseconds are nobody's news.
  never = StepTimes(0.0)
  assert [never.add(x) for x in [1.0] * 30 + [100.0]] == [None] * 31


@pytest.fixture
def watch(tmp_path):
  """Of a stage of 60 steps, with a clock that goes when it is told to."""
  stage = types.SimpleNamespace(name="motion", steps=60, evaluate=None, pictures=None)
  said = []
  with Ledger(tmp_path) as ledger, ledger.stage("motion"):
    made = Watch(stage, str(tmp_path), Watching(log_every=10, slow_factor=3.0), 0, ledger, said.append)
    with ledger.phase("step"), made:
      yield made, ledger, said


def test_the_device_waits_for_what_comes_after_its_last_step(watch, monkeypatch):
  watch, ledger, _ = watch
  now = [time.perf_counter() + 1000]
  monkeypatch.setattr(watch_lib.time, "perf_counter", lambda: now[0])
  waited = []
  for idle_since, expected in [(now[0] - 5, 4), (now[0] + 5, 3), (None, 0)]:
    # Idle since before the batch was asked for; since three seconds before it came; still at work when it came.
    watch._finishes = types.SimpleNamespace(idle_since=idle_since)
    before = ledger.total("data")
    with watch.batch(0):
      now[0] += 4 if expected != 3 else 0
      if expected == 3:
        watch._finishes.idle_since = now[0] + 1
        now[0] += 4
    waited.append(ledger.total("data") - before)
  assert waited == pytest.approx([4, 3, 0], abs=1e-6)


class Terms:
  """What a device will have finished when it is told so."""

  def __init__(self):
    self.finished = threading.Event()

  def block_until_ready(self):
    self.finished.wait()
    return self


def test_when_the_device_finishes_steps():
  first, second, steps = Terms(), Terms(), []
  with watch_lib._Finishes(steps.append) as finishes:
    assert finishes.idle_since <= time.perf_counter()
    finishes.add(0, {"loss": first})
    finishes.add(1, {"loss": second})
    assert finishes.idle_since is None
    first.finished.set()
    wait_for(lambda: steps == [0])
    assert finishes.idle_since is None
    before = time.perf_counter()
    second.finished.set()
    wait_for(lambda: steps == [0, 1])
    assert before <= finishes.idle_since <= time.perf_counter()


def wait_for(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_slow_steps_are_named(watch, tmp_path):
  watch, _, said = watch
  spent = [0.0]
  watch._spent = lambda: (0.0, spent[0])
  watch._begin_interval(0)
  watch._spent_at_step = 0.0
  for step in range(30):
    spent[0] += 5.0 if step == 24 else 1.0
    watch._waits[step] = 3.5 if step == 24 else 0.0
    watch._note_time(step)
  watch.report(30, watch.find_due(30, last=False), {"loss": 1.0}, None)
  (line,) = said
  assert line.startswith("motion: step 25 took 5 s, the median is 1 s; process 0 on ") and "waited 3.5 s" in line
  (event,) = map(json.loads, (tmp_path / "motion" / "events.jsonl").read_text().splitlines())
  assert {k: event[k] for k in ("step", "event", "seconds", "median", "data_wait", "process")} == {
      "step": 25, "event": "slow", "seconds": 5.0, "median": 1.0, "data_wait": 3.5, "process": 0,
  }
  metrics = json.loads((tmp_path / "motion" / "metrics.jsonl").read_text())
  assert metrics == {"step": 30, "loss": 1.0, "steps_per_second": 30 / 34, "data_wait": 0.0}


def test_the_share_of_time_that_steps_wait_is_in_the_metrics(watch, tmp_path):
  watch, ledger, _ = watch
  ledger._add("data", 300.0)  # Of which a real step takes nothing away.
  ledger._add("step", 100.0)
  watch.report(10, watch.find_due(10, last=False), {}, None)
  metrics = json.loads((tmp_path / "motion" / "metrics.jsonl").read_text())
  assert metrics["data_wait"] == pytest.approx(0.75, abs=0.1) and metrics["steps_per_second"] == pytest.approx(10 / 400, rel=0.2)


# --- Watchdog


def make_watchdog(folder, ledger, **options):
  return Watchdog(folder, "motion", 7, **(dict(hang_seconds=0.2, ends=False, ledger=ledger) | options))


def test_the_heartbeat_says_who_is_where(tmp_path):
  with Ledger(tmp_path) as ledger, ledger.stage("motion"), ledger.phase("data"):
    watchdog = make_watchdog(tmp_path, ledger, hang_seconds=0)
    watchdog.count_step(9)
    before = time.time()
    watchdog.beat()
    beat = json.loads((tmp_path / "heartbeat" / "0.json").read_text())
    assert before <= beat["time"] <= time.time() and beat["pid"] == os.getpid() and beat["host"]
    assert (beat["process"], beat["stage"], beat["phase"], beat["step"]) == (0, "motion", "data", 9)
    with watchdog:
      pass
    assert json.loads((tmp_path / "heartbeat" / "0.json").read_text())["phase"] == "ended"


def wait_for_words(capfd, words):
  text = [""]

  def has_come():
    text[0] += capfd.readouterr().err
    return words in text[0]

  wait_for(has_come)
  return text[0]


def hang_here(capfd, words):
  return wait_for_words(capfd, words)


def test_a_hang_prints_the_stacks_of_all_threads(tmp_path, capfd):
  with Ledger(tmp_path) as ledger, ledger.stage("motion"), ledger.phase("data"), make_watchdog(tmp_path, ledger):
    text = hang_here(capfd, "in hang_here")
    assert "motion: no step for 0 s, after step 7; process 0 on" in text and "hangs in the phase data. Stacks" in text
    wait_for(lambda: ledger.total("hang") >= 0.2)


def test_compiling_is_no_hang_and_said(tmp_path, capfd, monkeypatch):
  monkeypatch.setattr(watchdog_lib.os, "_exit", lambda status: pytest.fail("ended"))
  with Ledger(tmp_path) as ledger, ledger.stage("motion"), ledger.phase("compile"):
    with make_watchdog(tmp_path, ledger, ends=True) as watchdog:
      text = wait_for_words(capfd, "in the phase compile for")
      assert "which is not taken for a hang" in text and "Thread 0x" not in text
      assert ledger.total("hang") == 0
      # What comes next has its own time.
      watchdog._hang_seconds = 1000
  assert "hangs" not in capfd.readouterr().err


def test_a_hang_ends_the_process_if_it_is_to(tmp_path, capfd, monkeypatch):
  ended = []
  monkeypatch.setattr(watchdog_lib.os, "_exit", ended.append)
  with Ledger(tmp_path) as ledger, ledger.stage("motion"), ledger.phase("step"), make_watchdog(tmp_path, ledger, ends=True):
    wait_for(lambda: ended)
  assert ended[0] == watchdog_lib.HUNG == 75
  assert "hangs in the phase step; the process ends. Stacks" in capfd.readouterr().err


def test_steps_keep_the_watchdog_quiet(tmp_path, monkeypatch):
  now = [0.0]
  told = []
  monkeypatch.setattr(watchdog_lib.time, "perf_counter", lambda: now[0])
  monkeypatch.setattr(watchdog_lib.faulthandler, "dump_traceback", lambda *_, **__: told.append(now[0]))
  with Ledger(tmp_path) as ledger, ledger.stage("motion"):
    watchdog = make_watchdog(tmp_path, ledger, hang_seconds=10)
    monkeypatch.setattr(Ledger, "current", property(lambda _: ("step", now[0] - 3)))  # Since second 3.
    for now[0] in (9, 12.9, 13, 20, 23):
      watchdog._look()
    assert told == [13, 23]
    now[0] = 30
    watchdog.count_step(8)
    for now[0] in (39.9, 40):
      watchdog._look()
    assert told == [13, 23, 40]
    monkeypatch.setattr(Ledger, "current", property(lambda _: ("evaluate", 100)))
    for now[0] in (50, 60):
      watchdog._look()
    assert told == [13, 23, 40]


# --- Profile


def test_a_profile_has_the_steps_that_were_asked_for(tmp_path):
  said = []
  stage = test_loop.make_toy_stage(8)
  options = dict(mesh=test_loop.sharding.make_mesh(), workdir=str(tmp_path), seed=1, say=said.append)
  test_loop.loop.run_stage(stage, watching=Watching(profile=(4, 6)), **options)
  (trace,) = (tmp_path / "motion" / "profile").rglob("*.trace.json.gz")
  events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
  steps = {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"}
  assert steps == {4, 5, 6}
  assert said[0] == f"motion: a profile is in {tmp_path}/motion/profile"
