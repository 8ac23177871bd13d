"""How motion moves, against closed forms, scipy, and motions made by hand."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsatalker_jax.data.demo.expressions import COLUMN, EXPRESSION_NAMES
from rsatalker_jax.evaluation import dynamics_metrics
from rsatalker_jax.types import MOTION_GROUPS


def noise(seed, frames=80):
  return np.random.default_rng(seed).normal(size=(frames, 56)).astype(np.float32)


def test_ratios_are_of_sums_over_clips():
  ratios = dynamics_metrics.TimeRatios()
  pairs = [(noise(0), noise(1)), (3 * noise(2, 50) + 7, noise(3, 50))]
  for pair in pairs:
    ratios.add(*pair)
  scores = ratios.scores()
  for group, dims in MOTION_GROUPS.items():
    var, jerk = np.zeros(2), np.zeros(2)
    for pair in pairs:
      for side, x in enumerate(pair):
        x = x[:, dims].astype(float)
        var[side] += len(x) * x.var(axis=0).sum()
        jerk[side] += ((x[3:] - 3 * x[2:-1] + 3 * x[1:-2] - x[:-3]) ** 2).sum()
    assert scores[f"variation/{group}"] == pytest.approx(var[0] / var[1])
    assert scores[f"jerk/{group}"] == pytest.approx(np.sqrt(jerk[0] / jerk[1]))
  # What moves on a parabola has no jerk; what the truth never moves has no ratio.
  ratios = dynamics_metrics.TimeRatios()
  time = np.arange(40.0)[:, None] / 25
  truth = np.tile(time**3, (1, 56))
  truth[:, 50:53] = 0.1
  ratios.add(np.tile(time**2, (1, 56)), truth)
  assert ratios.scores()["jerk/pose"] == pytest.approx(0, abs=1e-9) and "variation/jaw" not in ratios.scores()


def test_collapse_is_below_a_tenth():
  lines = dynamics_metrics.find_collapse({"variation/expression": 0.101, "variation/jaw": 0.099, "variation/pose": np.nan})
  assert [line.split()[0] for line in lines] == ["jaw", "pose"] and "0.099 of the truth's variance (alarm below 0.1)" in lines[0]
  assert dynamics_metrics.find_collapse({}) == []


def test_deviations_are_of_standard_deviations_in_degrees_by_kind():
  pred, target = 0.1 * noise(0), 0.1 * noise(1)
  kinds = {"speaking": np.arange(80) < 30, "listening": np.arange(80) >= 50, "rare": np.arange(80) < 24}
  scores = dynamics_metrics.dynamics_deviation(pred, target, kinds)
  assert set(scores) == {"jdd/speaking", "jdd/listening", "pdd/speaking", "pdd/listening"}  # 24 frames are too few.
  for name, dims in (("jdd", slice(50, 53)), ("pdd", slice(53, 56))):
    for kind in ("speaking", "listening"):
      p, t = (np.std(x[kinds[kind], dims].astype(float), axis=0) for x in (pred, target))
      assert scores[f"{name}/{kind}"] == pytest.approx(np.degrees(np.abs(p - t).mean()))
  shifted = dynamics_metrics.dynamics_deviation(target + 0.5, target, kinds)
  assert list(shifted.values()) == pytest.approx([0.0] * 4, abs=1e-5)


def test_head_statistics():
  motion = np.zeros((101, 56), np.float32)
  motion[:, 54] = np.linspace(0, np.radians(40), 101)  # 40 degrees in 4 s about one axis.
  scores = dynamics_metrics.head_statistics(motion)
  assert scores["head/speed"] == pytest.approx(10, rel=1e-4) and scores["head/yaw"] == pytest.approx(36, rel=1e-4)
  assert scores["head/pitch"] == scores["head/tilt"] == 0
  # The speed is that of rotations, not of their vectors: a turn of 1 degree a frame about an axis of the turned head.
  turned = Rotation.from_rotvec([0, 2.0, 0]) * Rotation.from_rotvec(np.radians(np.arange(50))[:, None] * [1, 0, 0])
  motion = np.zeros((50, 56), np.float32)
  motion[:, 53:] = turned.as_rotvec()
  assert dynamics_metrics.head_statistics(motion)["head/speed"] == pytest.approx(25, rel=1e-4)


def test_blinks():
  lids = dynamics_metrics.find_lids(EXPRESSION_NAMES)
  assert lids == [COLUMN["eyeBlinkLeft"], COLUMN["eyeBlinkRight"]]
  blinks = dynamics_metrics.BlinkStatistics(lids)
  motion = np.zeros((750, 56), np.float32)  # Half a minute.
  for start, end, height in ((0, 2, 1.0), (100, 103, 0.6), (200, 205, 0.6), (300, 310, 0.4), (748, 750, 1.0)):
    motion[start:end, lids] = height
  motion[400:410, lids[0]] = 0.9  # A wink is no blink.
  blinks.add(motion)
  # Four, of which two are whole: 3 and 5 frames.
  assert blinks.scores() == pytest.approx({"blinks/rate": 8.0, "blinks/duration": 0.16})
  blinks.add(np.zeros((750, 56), np.float32))
  assert blinks.scores()["blinks/rate"] == pytest.approx(4.0)
  assert dynamics_metrics.BlinkStatistics(lids).scores() == {}
  assert dynamics_metrics.find_lids(("eyeBlinkLeft", "smile")) is None and dynamics_metrics.find_lids(()) is None
