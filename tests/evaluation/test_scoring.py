"""The scorer asks for each clip in turn, tells generators what it says it tells them, and keeps numbers alone."""

import dataclasses
import gc
import time
import weakref

import numpy as np
import pytest

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import motion_metrics, relation_probe, scoring
from rsatalker_jax.evaluation.cases import Case
from rsatalker_jax.social.relation import RELATIONS, parse_relation
from rsatalker_jax.types import MOTION_DIM


def make_clip(seed, relation=RELATIONS[0]):
  rng = np.random.default_rng(seed)
  speech = np.zeros((60, 1), np.float32)
  motions = rng.normal(size=(2, 60, MOTION_DIM)).astype(np.float32)
  return MotionClip(str(seed), speech, motions[0], speech, motions[1], parse_relation(relation), basis="flame2020")


def make_scorer(clips, **options):
  return scoring.MotionScorer(
      cases=[Case(clip, np.ones(60, bool), np.zeros(60, bool)) for clip in clips],
      clusters=motion_metrics.fit_motion_clusters([clip.motion_b for clip in clips]),
      **options,
  )


@pytest.fixture(scope="module")
def clips():
  return [make_clip(i, RELATIONS[i % 2]) for i in range(4)]


@pytest.fixture(scope="module")
def scorer(clips):
  probe = relation_probe.fit_relation_probe((c.motion_a, c.motion_b, c.relation) for c in clips)
  return make_scorer(clips, probe=probe, lips=lambda motion: motion[:, 50])


def test_what_the_generator_is_told(clips, scorer):
  """Each clip's own relation, then another, and for the relation test none: of every clip in turn."""
  told = []

  def generate(clip):
    told.append((clip.name, tuple(int(x) for x in clip.relation)))
    return 0.5 * clip.motion_b

  scores = scorer.score(generate)
  true = [(clip.name, tuple(int(x) for x in clip.relation)) for clip in clips]
  # Two relations are known to the probe: told wrong, each clip is told the other one.
  wrong = [(name, true[1 - i % 2][1]) for i, (name, _) in enumerate(true)]
  assert told == [call for calls in zip(true, wrong) for call in calls] and scores.told is None
  told.clear()
  tested = scorer.score(generate, test_relation=True)
  none = [(name, (-1, -1)) for name, _ in true]
  assert told == [call for calls in zip(true, wrong, none) for call in calls]
  assert tested.means == scores.means and set(tested.told) >= {"mse/expression", "fd/pose", "relation/misfit"}
  assert scorer.score(lambda clip: clip.motion_b + clip.relation[1]).means["mse/jaw"] == pytest.approx(0.5)  # Half are equal.


def test_means_over_clips(clips, scorer):
  scores = scorer.score(lambda clip: 0.5 * clip.motion_b)
  means = scores.means
  assert means["mse/jaw"] == pytest.approx(np.mean([np.mean(0.25 * c.motion_b[:, 50:53] ** 2) for c in clips]), rel=1e-5)
  own = [motion_metrics.fit_clip_clusters(clip.motion_b) for clip in clips]
  by_clip = [motion_metrics.clip_diversity(0.5 * c.motion_b, c.motion_b, centres) for c, centres in zip(clips, own)]
  for name in by_clip[0]:
    assert means[name] == pytest.approx(np.mean([clip[name] for clip in by_clip]))
  assert means["mse_speaking/jaw"] == pytest.approx(means["mse/jaw"]) and "mse_listening/jaw" not in means  # B speaks all the time.
  assert list(scores.each) == [clip.name for clip in clips]
  assert scores.each["2"]["mse/jaw"] == pytest.approx(np.mean(0.25 * clips[2].motion_b[:, 50:53] ** 2), rel=1e-5)
  assert means["lips/correlation"] == pytest.approx(1.0)
  assert means["relation/told_shown"] == pytest.approx(1 - means["relation/told_wrong"])
  assert means["variation/jaw"] == pytest.approx(0.25) and means["jerk/pose"] == pytest.approx(0.5)
  assert scores.violations == scores.collapsed == []
  truth = scorer.score_truth().means
  assert truth["fd/expression"] == pytest.approx(0, abs=1e-9) and truth["sid/jaw"] > 2
  assert set(truth) == set(means) - {"relation/told_shown", "relation/told_wrong"}


def test_a_broken_metric_and_a_still_face_are_noticed(clips, scorer, monkeypatch):
  still = scorer.score(lambda clip: np.zeros_like(clip.motion_b))
  assert still.violations == [] and [line.split()[0] for line in still.collapsed] == ["expression", "jaw", "pose"]
  right = motion_metrics.evaluate_motion
  broken = lambda *motions: right(*motions) | {"fd/jaw": 1e3}
  monkeypatch.setattr(motion_metrics, "evaluate_motion", broken)
  lines = scorer.score(lambda clip: 0.5 * clip.motion_b).violations
  assert len(lines) == 8 and lines[0].startswith("0: jaw: FD 1000 is more than P-FD ")


def test_motion_that_is_no_motion_is_one_line(clips, scorer):
  with pytest.raises(InputError, match="0: generated motion: found 1 numbers of 3360 that are not finite"):
    scorer.score(lambda clip: np.where(np.arange(clip.motion_b.size).reshape(clip.motion_b.shape) == 7, np.nan, clip.motion_b))


def test_kinds_of_frames():
  own, partner = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
  kinds = Case(make_clip(0), own, partner).kinds
  np.testing.assert_array_equal(kinds["speaking"], own)
  np.testing.assert_array_equal(kinds["listening"], [False, False, True, False])


def test_one_clip_at_a_time(scorer):
  """A set of any length: when a clip is asked for, only the one before it is still there."""
  clips = []

  class Cases:
    most = 0

    def __len__(self):
      return 12

    def __getitem__(self, index):
      clip = make_clip(index)
      clips.append(weakref.ref(clip.motion_b))
      self.most = max(self.most, sum(ref() is not None for ref in clips))
      return Case(clip, np.ones(60, bool), np.zeros(60, bool))

  cases = Cases()
  streaming = dataclasses.replace(scorer, cases=cases)
  scores = [streaming.score(lambda clip: 0.5 * clip.motion_b, test_relation=True), streaming.score_truth()]
  assert len(clips) == 24 and cases.most == 2 and len(scores[0].each) == 12


def test_frames_are_scored_chunk_by_chunk():
  """Each chunk is read when its turn comes and forgotten; scores are those of all frames together."""
  rng = np.random.default_rng(0)
  true = rng.uniform(size=(40, 32, 32, 3)).astype(np.float32)
  ours = np.clip(true + 0.1 * rng.normal(size=true.shape), 0, 1).astype(np.float32)
  chunks, most = [], 0

  def pairs():
    nonlocal most
    for start in range(0, 40, 4):
      pair = ours[start : start + 4].copy(), true[start : start + 4].copy()
      chunks.append(weakref.ref(pair[0]))
      for _ in range(100):  # JAX may let go of what it was given a little later than it answers.
        if (alive := sum(ref() is not None for ref in chunks)) <= 3:
          break
        gc.collect()
        time.sleep(0.01)
      most = max(most, alive)
      yield pair

  found = scoring.score_each_frame(pairs(), lpips_nets=())
  assert len(chunks) == 10 and most <= 3
  np.testing.assert_allclose(found["l1"], np.abs(ours - true).mean(axis=(1, 2, 3)), rtol=1e-5)
  np.testing.assert_allclose(found["psnr"], -10 * np.log10(((ours - true) ** 2).mean(axis=(1, 2, 3))), rtol=1e-5)
  means = scoring.score_frames([(ours, true)], lpips_nets=())
  assert means == pytest.approx({name: values.mean() for name, values in found.items()}, rel=1e-5)
