"""The benchmark of the loaders, by a clock that only loading and stepping move."""

import itertools

import numpy as np
import pytest

from benchmarks import input_speed


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


def loader(clock, seconds, ready=0):
  """Batches 0, 1, …, each some seconds after the one before; the first `ready` at once."""
  for number in itertools.count():
    clock.now += seconds if number >= ready else 0.0
    yield number


def test_rates_are_batches_by_time_and_waits_a_share():
  clock, steps = Clock(), []

  def take_step(batch):
    clock.now += 0.3
    steps.append(batch)

  rates = input_speed.measure(loader(clock, 0.1), take_step, rounds=2, seconds=6, ahead=3, clock=clock)
  assert rates.loader == pytest.approx(10, rel=0.01)
  assert rates.step == pytest.approx(10 / 3, rel=0.01)
  assert rates.both == pytest.approx(2.5, rel=0.01)
  assert rates.waits == pytest.approx(0.25, rel=0.01)
  assert steps.count(0) > 20 and len(set(steps)) > 15  # One batch for the step alone, new ones for both.


def test_what_was_read_ahead_is_not_counted():
  clock = Clock()
  rates = input_speed.measure(loader(clock, 0.5, ready=30), None, rounds=1, seconds=5, ahead=40, clock=clock)
  assert rates.loader == pytest.approx(2) and rates.step is rates.both is rates.waits is None


def test_a_turn_is_one_batch_at_least_and_numbers_are_medians():
  clock = Clock()
  times = iter([0, 1, 100, 3])  # One batch kept, then one a round.

  def batches():
    for seconds in times:
      clock.now += seconds
      yield seconds

  rates = input_speed.measure(batches(), None, rounds=3, seconds=0.5, ahead=0, clock=clock)
  assert rates.loader == pytest.approx(1 / 3)


def test_windows_and_frames_are_counted():
  motion = {"motion_a": np.zeros((4, 20, 56)), "speech_a": np.zeros((4, 20, 8))}
  assert input_speed.count_examples(motion) == (4, 80)
  assert input_speed.count_examples({"image": np.zeros((3, 8, 8, 3)), "identity": np.zeros(3)}) == (3, 3)
  assert input_speed.count_examples({"filmed": motion | {"image": np.zeros((4, 2, 8, 8, 3))}, "others": motion}) == (8, 160)
