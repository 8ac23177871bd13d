"""Tables of several seeds, and a scorer put together by hand."""

import numpy as np
import pytest

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.evaluation import motion_metrics, relation_probe, scoring
from rsatalker_jax.social.relation import RELATIONS, parse_relation
from rsatalker_jax.types import MOTION_DIM


def make_clip(seed, relation=RELATIONS[0]):
  rng = np.random.default_rng(seed)
  speech = np.zeros((60, 1), np.float32)
  motions = rng.normal(size=(2, 60, MOTION_DIM)).astype(np.float32)
  return MotionClip(str(seed), speech, motions[0], speech, motions[1], parse_relation(relation))


def test_scorer_generates_once_for_metrics_and_once_for_the_told_relation():
  clips = [make_clip(i, RELATIONS[i % 2]) for i in range(4)]
  probe = relation_probe.fit_relation_probe((c.motion_a, c.motion_b, c.relation) for c in clips)
  lips = lambda motion: motion[:, 50]
  scorer = scoring.MotionScorer(
      clips=clips,
      clusters=motion_metrics.fit_motion_clusters([clip.motion_b for clip in clips]),
      probe=probe,
      lips=lips,
      speaking=[np.ones(60, bool)] * 4,
  )
  told = []

  def generate(clip):
    told.append((clip.name, tuple(int(x) for x in clip.relation)))
    return 0.5 * clip.motion_b

  scores = scorer.score(generate)
  true = [(clip.name, tuple(int(x) for x in clip.relation)) for clip in clips]
  # Two relations are known to the probe: told wrong, each clip is told the other one.
  assert told == true + [(name, true[1 - i % 2][1]) for i, (name, _) in enumerate(true)]
  assert scores["mse/jaw"] == pytest.approx(np.mean([np.mean(0.25 * c.motion_b[:, 50:53] ** 2) for c in clips]), rel=1e-5)
  own = [motion_metrics.fit_clip_clusters(clip.motion_b) for clip in clips]
  by_clip = [motion_metrics.clip_diversity(0.5 * c.motion_b, c.motion_b, centres) for c, centres in zip(clips, own)]
  for name in by_clip[0]:
    assert scores[name] == pytest.approx(np.mean([clip[name] for clip in by_clip]))
  assert scores["lips/correlation"] == pytest.approx(1.0)
  assert scores["relation/told_shown"] == pytest.approx(1 - scores["relation/told_wrong"])
  truth = scorer.score_truth()
  assert truth["fd/expression"] == pytest.approx(0, abs=1e-9) and truth["sid/jaw"] > 2
  assert set(truth) == set(scores) - {"relation/told_shown", "relation/told_wrong"}


def test_tables_show_spread_over_seeds_and_leave_out_what_nobody_has():
  rows = {
      "two seeds": [{"sid/jaw": 1.0, "rpcc/jaw": 0.1}, {"sid/jaw": 1.5, "rpcc/jaw": 0.3}],
      "one": [{"sid/jaw": 2.0, "rpcc/jaw": 0.25}],
      "none": [],
  }
  lines = scoring.diversity_table(rows).splitlines()
  assert lines[0] == "| | SID JAW | rPCC JAW ×10¹ |"
  assert lines[2:] == ["| two seeds | 1.25 ± 0.2 | 2 ± 1 |", "| one | 2 | 2.5 |", "| none | – | – |"]
  table = scoring.clip_diversity_table({"a": [{"sid_per_clip/jaw": 1.5, "sid_per_clip_swapped/jaw": 2.5, "sid/jaw": 3.0}]})
  assert table.splitlines()[::2] == ["| | SID per clip JAW | swapped SID per clip JAW |", "| a | 1.5 | 2.5 |"]
  table = scoring.lip_table({"a": [{"lips/correlation": 0.5}]})
  assert table.splitlines()[0] == "| | opening while speaking, r ↑ |" and "bilabials" not in table
