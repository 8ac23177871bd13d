"""The ledger: every second has a cause, also those of starts that were killed, whatever was cut off."""

import errno
import json
import os
import time

import psutil
import pytest

from rsatalker_jax.commands.goodput import describe_goodput
from rsatalker_jax.errors import InputError
from rsatalker_jax.runs import ledger as ledgers
from rsatalker_jax.training import ledger as ledger_lib
from rsatalker_jax.training.ledger import Ledger


class Clock:
  """A clock that goes when it is told to."""

  def __init__(self, monkeypatch):
    self.now = 0.0
    monkeypatch.setattr(ledger_lib.time, "perf_counter", lambda: self.now)
    monkeypatch.setattr(ledger_lib.time, "time", lambda: 1000 + self.now)
    monkeypatch.setattr(ledger_lib.threading.Thread, "start", lambda thread: None)  # Nothing is written but when asked.

  def pass_in(self, ledger, phase, seconds):
    with ledger.phase(phase):
      self.now += seconds


@pytest.fixture
def clock(monkeypatch):
  return Clock(monkeypatch)


def write_killed_start(clock, workdir, first, steps):
  """A start that takes `steps` steps of a second each, with a checkpoint after every third, and is killed."""
  ledger = Ledger(workdir, age=2).__enter__()
  clock.now += 1
  stage = ledger.stage("motion")
  stage.__enter__()
  clock.now += 3
  ledger.begin_span(first)
  clock.pass_in(ledger, "compile", 5)
  for done in range(first + 1, first + steps + 1):
    with ledger.phase("step"):
      clock.pass_in(ledger, "data", 0.25)
      clock.now += 0.75
    ledger.count_step(done)
    if done % 3 == 0:
      clock.pass_in(ledger, "checkpoint", 0.5)
      ledger.begin_span(done)
  ledger._write()
  return ledger, stage  # Alive, so that what follows it does not run.


def test_every_second_has_a_cause(clock, tmp_path):
  with Ledger(tmp_path, age=7) as ledger:
    clock.now += 1
    assert ledger.total("initialise") == 8
    with ledger.stage("motion"):
      clock.now += 2
      ledger.begin_span(0)
      clock.pass_in(ledger, "data", 4)
      ledger.move(3, "step", source="data")
      ledger.count_step(5)
      with ledger.phase("step"):
        clock.now += 8
        clock.pass_in(ledger, "evaluate", 16)
        clock.now += 32
      assert ledger.total("step", "data") == 8 + 32 + 4
    clock.now += 64
  account = ledgers.read_account(tmp_path)
  expected = {"initialise": 7 + 1 + 2 + 64, "data": 1, "step": 3 + 8 + 32, "evaluate": 16}
  assert {cause: x for cause, x in account.seconds.items() if x} == expected
  assert account.stages == {"": {"initialise": 72}, "motion": {"initialise": 2, "data": 1, "step": 43, "evaluate": 16}}
  assert account.wall == sum(expected.values()) and account.accounted == 1.0
  (start,) = account.starts
  assert (start.how, start.steps, start.begin) == ("finished", 5, 1000 - 7)


def test_steps_that_are_done_again_are_lost_and_time_between_starts_is_down(clock, tmp_path):
  kept = [write_killed_start(clock, tmp_path, first=0, steps=8)]  # To step 8, from checkpoints at 3 and 6.
  clock.now += 20
  kept.append(write_killed_start(clock, tmp_path, first=6, steps=1))
  clock.now += 40
  kept.append(write_killed_start(clock, tmp_path, first=3, steps=4))  # That of step 6 was damaged.
  account = ledgers.read_account(tmp_path)
  assert [start.steps for start in account.starts] == [8, 1, 4]
  # Of the first start steps 4 to 8, and the checkpoint at 6, were lost in the end; all of the second's.
  assert [start.seconds.get("lost", 0) for start in account.starts] == [5 + 0.5, 1, 0]
  assert account.seconds["step"] == (3 + 4) * 0.75 and account.seconds["data"] == (3 + 4) * 0.25
  assert account.seconds["checkpoint"] == 2 * 0.5  # At steps 3 and, of the last start, 6.
  # A start's process is two seconds older than its ledger.
  assert [start.seconds.get("down", 0) for start in account.starts] == [0, 18, 38]
  assert account.seconds["compile"] == 15 and account.seconds["initialise"] == 3 * 6
  assert account.accounted == pytest.approx(1)
  text = describe_goodput(str(tmp_path))
  assert "3 starts, 2 of them killed" in text and "100.00% accounted for" in text
  share = (3 + 4) * 0.75 / account.wall
  assert f"{share:.1%} of it were steps that count" in text


def test_what_a_kill_has_cut_off_is_not_read_and_dropped_by_the_next_start(clock, tmp_path):
  kept = write_killed_start(clock, tmp_path, first=0, steps=2)
  path = tmp_path / "ledger.jsonl"
  whole = path.read_bytes()
  path.write_bytes(whole + b'{"start": 1, "kind": "sp' + b" " * 2000)
  assert ledgers.read_account(tmp_path).starts[0].steps == 2
  with Ledger(tmp_path):
    assert path.read_bytes().startswith(whole + b'{"start": 2, "kind": "start"')
    assert b" " * 2000 not in path.read_bytes()
  assert [start.how for start in ledgers.read_account(tmp_path).starts] == ["killed", "finished"]
  del kept


def test_time_after_the_end_of_a_run_is_not_down(clock, tmp_path):
  with Ledger(tmp_path) as ledger, ledger.stage("motion"):
    clock.now += 1
  clock.now += 1000
  with Ledger(tmp_path):
    clock.now += 1
  account = ledgers.read_account(tmp_path)
  assert account.wall == 2 and account.seconds["down"] == 0
  # But that after an error is.
  with pytest.raises(RuntimeError), Ledger(tmp_path):
    raise RuntimeError("broken\nin two lines")
  clock.now += 5
  with Ledger(tmp_path):
    pass
  account = ledgers.read_account(tmp_path)
  assert account.seconds["down"] == 5 and account.starts[2].how.startswith("RuntimeError: broken")


def test_a_start_that_fails_before_its_first_stage_leaves_a_new_folder_free(clock, tmp_path):
  with pytest.raises(InputError), Ledger(tmp_path / "run"):
    raise InputError("config", "", 1, 2)
  assert not (tmp_path / "run").exists()


def test_a_full_disk_ends_nothing_and_loses_nothing(clock, tmp_path, monkeypatch):
  write, full = os.pwrite, [False]

  def maybe_write(file, content, offset):
    if full[0]:
      raise OSError(errno.ENOSPC, "No space left on device")
    return write(file, content, offset)

  monkeypatch.setattr(ledger_lib.os, "pwrite", maybe_write)
  with Ledger(tmp_path) as ledger, ledger.stage("motion"):
    ledger.begin_span(0)
    full[0] = True
    clock.pass_in(ledger, "step", 3)
    ledger.begin_span(1)
    clock.pass_in(ledger, "step", 4)
    full[0] = False
    ledger.begin_span(2)
  assert ledgers.read_account(tmp_path).seconds["step"] == 7


def test_a_line_is_written_over_by_a_shorter_one(clock, tmp_path):
  with Ledger(tmp_path) as ledger, ledger.stage("motion"):
    ledger.begin_span(0)
    clock.pass_in(ledger, "step", 1.0)
    clock.pass_in(ledger, "data", 0.2345)
    ledger._write()
    ledger.move(0.2345, "step", source="data")  # One of two causes is none any more.
    ledger._write()
    assert [json.loads(x)["kind"] for x in (tmp_path / "ledger.jsonl").read_text().splitlines()] == ["start", *["span"] * 3]


def test_the_last_line_is_written_while_a_phase_goes_on(tmp_path):
  """By a thread: whoever is killed has told what it was doing."""
  with Ledger(tmp_path) as ledger, ledger.stage("motion"):
    ledger.begin_span(0)
    with ledger.phase("compile"):
      deadline = time.monotonic() + 60
      while ledgers.read_account(tmp_path).seconds["compile"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_usage_is_of_all_starts(clock, tmp_path):
  kept = [write_killed_start(clock, tmp_path, first=0, steps=4), write_killed_start(clock, tmp_path, first=3, steps=1)]
  usage = ledgers.read_usage(tmp_path)["motion"]
  assert usage["seconds"] == (3 + 5 + 4 + 0.5) + (3 + 5 + 1) and usage["starts"] == 2
  assert usage["peak_memory_bytes"] > 2**20
  assert ledgers.read_usage(tmp_path / "none") == {}
  del kept


def test_the_age_of_the_process():
  assert ledgers.process_age() == pytest.approx(time.time() - psutil.Process().create_time(), abs=2)


@pytest.mark.parametrize(
    "line",
    [
        "[]", "{}", "{", '{"start": 1, "kind": "span"}', '{"start": 9, "kind": "end", "how": "finished"}',
        '{"start": 1, "kind": "end"}', '{"start": "x", "kind": "start", "begin": 0, "host": ""}',
        '{"start": 1, "kind": "start", "begin": NaN, "host": ""}',
        '{"start": 1, "kind": "span", "stage": null, "first": null, "step": null, "begin": 0, "end": 1, "seconds": {"sleep": 1}}',
        '{"start": 1, "kind": "span", "stage": "motion", "first": null, "step": 3, "begin": 0, "end": 1, "seconds": {}}',
        '{"start": 1, "kind": "span", "stage": 3, "first": 0, "step": 3, "begin": 0, "end": 1, "seconds": {}}',
    ],
)
def test_what_is_no_ledger_is_one_line(tmp_path, line):
  path = tmp_path / "ledger.jsonl"
  path.write_text('{"start": 1, "kind": "start", "begin": 0, "host": "here"}\n' + line + "\n")
  with pytest.raises(InputError, match="ledger.jsonl: line 2: found .*, expected a line of a ledger"):
    ledgers.read_account(tmp_path)


def test_a_run_without_a_ledger_is_one_line(tmp_path):
  with pytest.raises(InputError, match="ledger.jsonl: found No such file or directory, expected the ledger that train.py writes"):
    describe_goodput(str(tmp_path))
