"""Scores of the runs that stand beside a run: kept as long as nothing has changed, and of samples the mean, the best and their average."""

import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.ablations import COMPARED, VARIANTS
from rsatalker_jax.commands import compared_runs
from rsatalker_jax.evaluation.scoring import MotionScores
from training.stand_ins import make_clip

CLIPS = [make_clip("one", seed=1), make_clip("two", seed=2)]
STD = np.r_[np.full(50, 2.0), np.full(3, 0.1), np.full(3, 0.5)].astype(np.float32)


def make_run(samples=False, title="A", stages="motion:8"):
  """Sample n of a clip is the truth, off by its number in the groups that ERRORS names."""

  def generate(clip, *, sample=0):
    return clip.motion_b + ERRORS[clip.name][sample]

  config = ConfigDict({"evaluation": {"title": title}, "motion": {"steps": 8}})
  talker = types.SimpleNamespace(generator=types.SimpleNamespace(samples=samples))
  return types.SimpleNamespace(config=config, talker=talker, generate=generate, stages=stages, buffers={"generator": {"motion_std": STD}})


# Jaw counts for more than expression: 0.3 / 0.1 against 1 / 2.
_FACE = np.where(np.arange(56) < 50, 1.0, 0.0)
_JAW = np.where((np.arange(56) >= 50) & (np.arange(56) < 53), 0.3, 0.0)
ERRORS = {"one": [_JAW, _FACE, 3 * _FACE], "two": [_FACE, 0 * _FACE, _JAW]}


class Counting:
  """Scores by the mean squared error over all, and counts how often."""

  def __init__(self):
    self.calls = 0

  def __call__(self, generate):
    self.calls += 1
    each = {clip.name: {"mse": float(np.mean((generate(clip) - clip.motion_b) ** 2))} for clip in CLIPS}
    return MotionScores({"mse": float(np.mean([row["mse"] for row in each.values()])), "only": 1.0 * self.calls}, each, [], ["jaw"])


@pytest.fixture
def folder(tmp_path):
  checkpoint = tmp_path / "run/motion/checkpoints/4"
  checkpoint.mkdir(parents=True)
  (checkpoint / "sha256.json").write_text("{}")
  return tmp_path / "run"


def test_scores_are_kept_until_something_changes(folder, monkeypatch):
  score, run, scored = Counting(), make_run(), {"split": "test"}
  get = lambda **changes: compared_runs.score_compared(folder, run, score, 3, scored | changes)
  first = get()
  assert score.calls == 1 and get() == first and score.calls == 1
  assert list(first) == ["A"] and first["A"].means["mse"] == pytest.approx(0.5 * (np.mean(_JAW**2) + np.mean(_FACE**2)), rel=1e-5)
  get(split="val")
  assert score.calls == 2
  get(split="val")
  (folder / "motion/checkpoints/4/sha256.json").write_text('{"a": 1}')
  get(split="val")
  assert score.calls == 3
  monkeypatch.setattr(compared_runs, "_code", lambda: "other")
  get(split="val")
  assert score.calls == 4
  run = make_run(title="B")
  assert list(get(split="val")) == ["B"]
  kept = folder / "evaluation/compared.json"
  for content in ("[]", "{", json.dumps({"key": 1})):
    kept.write_text(content)
    assert list(get(split="val")) == ["B"]
  assert score.calls == 8


def test_of_samples_the_mean_the_best_and_the_average(folder):
  """The best is chosen clip by clip, by errors in units of the groups' variance: what is smaller in numbers may be worse."""
  score = Counting()
  rows = compared_runs.score_compared(folder, make_run(samples=True), score, 3, {})
  mean, best, averaged = rows.values()
  assert list(rows) == ["A, mean of 3 samples", "A, best of 3 by the truth", "A, average motion of 3 samples"]
  each = [np.mean([np.mean(ERRORS[name][i] ** 2) for name in ("one", "two")]) for i in range(3)]
  assert mean.means["mse"] == pytest.approx(np.mean(each), rel=1e-5) and mean.means["only"] == 2.0
  assert mean.each["one"]["mse"] == pytest.approx(np.mean([np.mean(error**2) for error in ERRORS["one"]]), rel=1e-5)
  assert best.each["one"]["mse"] == pytest.approx(np.mean(_FACE**2), rel=1e-5) and best.each["two"]["mse"] == 0
  assert np.mean(_FACE**2) > np.mean(_JAW**2)
  for name, errors in ERRORS.items():
    assert averaged.each[name]["mse"] == pytest.approx(np.mean((sum(errors) / 3) ** 2), rel=1e-4)
  assert mean.collapsed == ["jaw"]
  assert compared_runs.score_compared(folder, make_run(samples=True), score, 3, {}) == rows and score.calls == 5
  compared_runs.score_compared(folder, make_run(samples=True), score, 2, {})
  assert score.calls == 9


def test_a_row_says_that_its_run_is_unfinished(folder):
  rows = compared_runs.score_compared(folder, make_run(stages="motion:6"), Counting(), 3, {})
  assert list(rows) == ["A (motion at step 6 of 8)"]


def test_what_is_compared_are_variants():
  assert COMPARED.keys() <= VARIANTS.keys() and all(seeds for seeds in COMPARED.values())
  titles = [VARIANTS[name][0] for name in COMPARED]
  assert len(set(titles)) == len(titles)  # Rows of a table are known by them.
