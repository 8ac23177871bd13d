"""The three-way test on generators that obey, or do not."""

import numpy as np
import pytest

from rsatalker_jax.evaluation import motion_metrics, relation_probe, relation_test
from rsatalker_jax.evaluation.bootstrap import paired_bootstrap
from test_relation_probe import fit, make_clips


def test_what_labels_are_worth():
  probe, clips = fit(make_clips(range(4), noise=0.5)), make_clips(range(10, 13))
  test = relation_test.RelationTest(probe)
  assert test.result() is None
  errors = {"true": 0.1, "none": 0.2, "random": 0.4}
  rng = np.random.default_rng(0)
  motions = []
  for clip in clips:
    own = rng.normal(size=clip.motion_b.shape).astype(np.float32)
    motions.append({told: clip.motion_b + size * own for told, size in errors.items()})
    test.add(clip, motions[-1])
  result = test.result()
  assert set(result) == {"mse/expression", "mse/pose", "fd/expression", "fd/pose", "relation/misfit"}
  for name, values in result.items():
    each = {told: [] for told in errors}
    for clip, generated in zip(clips, motions):
      for told, motion in generated.items():
        if name == "relation/misfit":
          label = probe.relations.index(relation_probe.relation_index(clip.relation))
          each[told].append(probe.misfits(clip.motion_a, motion)[label])
        else:
          each[told].append(motion_metrics.evaluate_distances(motion, clip.motion_b)[name])
    for told in errors:
      assert values[told] == pytest.approx(np.mean(each[told]))
    for more, less in (("none", "true"), ("random", "none")):
      assert values[f"{more} - {less}"] == pytest.approx(paired_bootstrap(np.array(each[more]) - np.array(each[less])))
  mean, low, high = result["mse/pose"]["none - true"]
  assert mean == pytest.approx(0.03, rel=0.1) and 0 < low < mean < high


def test_telling():
  (clip, *_) = make_clips([0])
  assert relation_test.tell(clip, None).relation.tolist() == [-1, -1]
  told = relation_test.tell(clip, np.array([0, 1]))
  assert told.relation.tolist() == [0, 1] and told.relation.dtype == np.int32 and told.motion_b is clip.motion_b
