"""Motion metrics against scipy's matrix root, scikit-learn's k-means, closed forms, and the published scales."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import sklearn.cluster
import sklearn.metrics

from rsatalker_jax.evaluation import motion_metrics
from rsatalker_jax.types import MOTION_GROUPS

GROUPS = tuple(MOTION_GROUPS)


def make_motion(seed, frames=300):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(frames, 56)) @ rng.normal(size=(56, 56)) * 0.1 + rng.normal(size=56)).astype(np.float32)


def scipy_frechet(a, b):
  cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  root = scipy.linalg.sqrtm(cov_a @ cov_b)
  return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root.real)


def test_frechet_distance_equals_scipy():
  a, b = make_motion(0).astype(np.float64), make_motion(1, 200).astype(np.float64)
  np.testing.assert_allclose(motion_metrics.clip_frechet_distance(a, b), scipy_frechet(a, b), rtol=1e-8)


def test_frechet_distance_closed_forms():
  frechet = motion_metrics.frechet_distance
  # Diagonal covariances: a sum over dimensions of squared differences of means and deviations.
  rng = np.random.default_rng(0)
  m1, m2, s1, s2 = rng.uniform(0.1, 2, (4, 6))
  expected = np.sum((m1 - m2) ** 2 + (s1 - s2) ** 2)
  np.testing.assert_allclose(frechet(m1, np.diag(s1**2), m2, np.diag(s2**2)), expected, rtol=1e-10)
  # A constant motion has no covariance: the distance is squared bias plus the target's total variance.
  cov = np.cov(make_motion(3), rowvar=False)
  np.testing.assert_allclose(frechet(np.zeros(56), np.zeros((56, 56)), np.ones(56), cov), 56 + np.trace(cov), rtol=1e-6)
  # Symmetric, zero for equals.
  other = np.cov(make_motion(4), rowvar=False)
  np.testing.assert_allclose(frechet(m1[:1], cov[:1, :1], m2[:1], other[:1, :1]), frechet(m2[:1], other[:1, :1], m1[:1], cov[:1, :1]))
  assert frechet(np.zeros(56), cov, np.zeros(56), cov) < 1e-6


def test_rotation_leaves_the_distance():
  a, b = make_motion(0)[:, :10].astype(np.float64), make_motion(1)[:, :10].astype(np.float64)
  rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 10)))
  np.testing.assert_allclose(
      motion_metrics.clip_frechet_distance(a @ rotation, b @ rotation),
      motion_metrics.clip_frechet_distance(a, b),
      rtol=1e-8,
  )


def test_perfect_generation_scores_zero():
  target, partner = make_motion(0), make_motion(1)
  metrics = motion_metrics.evaluate_motion(target, target, partner)
  assert set(metrics) == {f"{m}/{g}" for m in ("fd", "p_fd", "mse", "rpcc") for g in GROUPS}
  for name, value in metrics.items():
    assert value == pytest.approx(0.0, abs=1e-6), name


def test_groups_are_told_apart():
  target, partner = make_motion(0), make_motion(1)
  pred = target.copy()
  pred[:, 50:53] += 0.5  # The jaw alone.
  metrics = motion_metrics.evaluate_motion(pred, target, partner)
  assert metrics["mse/jaw"] == pytest.approx(0.25, rel=1e-4)
  assert metrics["fd/jaw"] == pytest.approx(0.75, rel=1e-4)
  for group in ("expression", "pose"):
    assert metrics[f"mse/{group}"] == 0.0 and metrics[f"fd/{group}"] < 1e-6


def test_mse_fd_and_paired_fd_by_definition():
  pred, target, partner = (make_motion(i).astype(np.float64) for i in range(3))
  metrics = motion_metrics.evaluate_motion(pred, target, partner)
  for group, dims in MOTION_GROUPS.items():
    p, t, a = pred[:, dims], target[:, dims], partner[:, dims]
    assert metrics[f"mse/{group}"] == pytest.approx(sum((p[i] - t[i]) @ (p[i] - t[i]) for i in range(300)) / p.size)
    assert metrics[f"fd/{group}"] == pytest.approx(scipy_frechet(p, t), rel=1e-6)
    paired = scipy_frechet(np.hstack([a, p]), np.hstack([a, t]))
    assert metrics[f"p_fd/{group}"] == pytest.approx(paired, rel=1e-5)
    assert metrics[f"p_fd/{group}"] >= metrics[f"fd/{group}"] - 1e-9  # By construction.
    rpcc = abs(scipy.stats.pearsonr(t.ravel(), a.ravel())[0] - scipy.stats.pearsonr(p.ravel(), a.ravel())[0])
    assert metrics[f"rpcc/{group}"] == pytest.approx(rpcc, rel=1e-6)


def test_paired_distance_sees_what_the_single_one_cannot():
  """Shuffling B's frames in time keeps its distribution but breaks its bond with A."""
  partner = make_motion(1)
  target = partner + 0.01 * make_motion(2)
  shuffled = np.random.default_rng(0).permutation(target)
  metrics = motion_metrics.evaluate_motion(shuffled, target, partner)
  assert metrics["fd/pose"] < 1e-6 < 100 * metrics["fd/pose"] + 1e-3 < metrics["p_fd/pose"]


def test_constant_motion_is_scored_not_crashed():
  target, partner = make_motion(0), make_motion(1)
  metrics = motion_metrics.evaluate_motion(np.zeros_like(target), target, partner)
  assert all(np.isfinite(value) for value in metrics.values())
  expected = (target[:, 53:].astype(np.float64) ** 2).mean()
  assert metrics["mse/pose"] == pytest.approx(expected)


def test_shapes_must_agree(unchecked_signatures):
  with pytest.raises(ValueError, match="must be equal"):
    motion_metrics.evaluate_motion(make_motion(0, 10), make_motion(0, 11), make_motion(0, 10))


def test_mean_over_clips_and_table_scales():
  mean = motion_metrics.mean_metrics([{"mse/jaw": 1e-3, "fd/pose": 0.02}, {"mse/jaw": 3e-3, "fd/pose": 0.04}])
  assert mean == pytest.approx({"mse/jaw": 2e-3, "fd/pose": 0.03})
  # DualTalk's row as published: FD 11.14/1.90/3.83, MSE 3.59/1.04/1.72.
  raw = {"fd/expression": 11.14, "fd/jaw": 1.90e-3, "fd/pose": 3.83e-2, "mse/expression": 0.359, "mse/jaw": 1.04e-3}
  table = {name: motion_metrics.table_value(name, value) for name, value in raw.items()}
  assert table == pytest.approx(
      {"fd/expression": 11.14, "fd/jaw": 1.90, "fd/pose": 3.83, "mse/expression": 3.59, "mse/jaw": 1.04}
  )


def test_diversity_is_the_entropy_of_clusters():
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(40, 56)) * 10
  target = np.repeat(centres, 25, axis=0) + 0.01 * rng.normal(size=(1000, 56))
  clusters = {"expression": centres[:, :50], "jaw": centres[:8, 50:53], "pose": centres[:1, 53:]}
  diversity = motion_metrics.motion_diversity(target[:200], clusters)  # Eight centres, equally often.
  assert diversity["sid/expression"] == pytest.approx(3.0)
  assert diversity["sid/jaw"] == pytest.approx(3.0)
  assert diversity["sid/pose"] == 0.0
  fitted = motion_metrics.fit_motion_clusters([target], seed=0)
  assert {group: c.shape for group, c in fitted.items()} == {"expression": (40, 50), "jaw": (10, 3), "pose": (10, 3)}
  again = motion_metrics.fit_motion_clusters([target], seed=0)
  np.testing.assert_array_equal(fitted["expression"], again["expression"])
  # k-means with spread-out starts finds nearly all of forty far-apart clusters: log2(40) = 5.3 bits.
  assert motion_metrics.motion_diversity(target, fitted)["sid/expression"] > 4.5


def test_diversity_equals_scikit_learn():
  """The same centres give the same entropy; our centres fit the truth as well as scikit-learn's do."""
  targets = [np.tanh(make_motion(seed, 400)) for seed in range(3)]
  clusters = motion_metrics.fit_motion_clusters(targets, seed=0)
  pred = np.tanh(make_motion(7, 200))
  diversity = motion_metrics.motion_diversity(pred, clusters)
  for group, dims in MOTION_GROUPS.items():
    frames = np.concatenate(targets)[:, dims].astype(np.float64)
    count = motion_metrics.SID_CLUSTERS[group]
    ours = sklearn.cluster.KMeans(count, init=clusters[group], n_init=1, max_iter=1).fit(frames)
    ours.cluster_centers_ = np.ascontiguousarray(clusters[group])
    labels = ours.predict(pred[:, dims].astype(np.float64))
    assert diversity[f"sid/{group}"] == pytest.approx(scipy.stats.entropy(np.bincount(labels), base=2))
    theirs = sklearn.cluster.KMeans(count, n_init=1, random_state=0).fit(frames)
    assert -ours.score(frames) < 1.1 * theirs.inertia_  # Both stop in local minima, a few percent apart.


def others_sid(fitted, counted, clusters):
  """As DualTalk's and TIMAR's code has it: scikit-learn's k-means of one motion, entropy of the other's labels."""
  means = sklearn.cluster.KMeans(n_clusters=clusters, random_state=0, n_init="auto").fit(fitted)
  return scipy.stats.entropy(np.bincount(means.predict(counted)), base=2)


def test_diversity_per_clip_in_both_orders_equals_others():
  """Of as many different frames as there are clusters k-means has one answer: the numbers agree to rounding."""
  rng = np.random.default_rng(0)

  def rest_in_poses(frames, often):
    poses = rng.normal(size=(40, 56))
    poses[:, 50:] = poses[np.arange(40) % 10, 50:]  # Ten different jaws and heads.
    order = np.concatenate([np.arange(40), rng.integers(0, often, frames - 40)])
    return poses[order].astype(np.float32)

  target, pred = rest_in_poses(900, 40), rest_in_poses(900, 5)
  scores = motion_metrics.clip_diversity(pred, target, motion_metrics.fit_clip_clusters(target))
  assert set(scores) == {f"{name}/{group}" for name in ("sid_per_clip", "sid_per_clip_swapped") for group in GROUPS}
  for group, dims in MOTION_GROUPS.items():
    k, p, t = motion_metrics.SID_CLUSTERS[group], pred[:, dims], target[:, dims]
    meant, swapped = scores[f"sid_per_clip/{group}"], scores[f"sid_per_clip_swapped/{group}"]
    assert meant == pytest.approx(others_sid(t, p, k), abs=1e-6)
    assert swapped == pytest.approx(others_sid(p, t, k), abs=1e-6)
    assert abs(meant - swapped) > 0.1


def test_diversity_per_clip_is_near_its_maximum_for_any_truth():
  """Why it does not compare with SID over all clips: the truth scores nearly log2 k even where it hardly moves."""
  for size in (1.0, 1e-3):
    truth = size * make_motion(3, 400)
    scores = motion_metrics.clip_diversity(truth, truth, motion_metrics.fit_clip_clusters(truth))
    for name, score in scores.items():
      assert 0.85 < score / np.log2(motion_metrics.SID_CLUSTERS[name.split("/")[1]]) <= 1.0
    # Clusters of all clips tell the two apart.
    together = motion_metrics.fit_motion_clusters([make_motion(3, 400), make_motion(4, 400)])
    diversity = motion_metrics.motion_diversity(truth, together)["sid/expression"]
    assert (diversity > 3.5) == (size == 1.0)


@pytest.mark.filterwarnings("error")
def test_diversity_of_short_and_still_clips():
  still = np.zeros((30, 56), np.float32)
  moving = make_motion(0, 30)  # Fewer frames than clusters.
  assert set(motion_metrics.clip_diversity(still, still, motion_metrics.fit_clip_clusters(still)).values()) == {0.0}
  scores = motion_metrics.clip_diversity(still, moving, motion_metrics.fit_clip_clusters(moving))
  assert set(scores.values()) == {0.0}
  scores = motion_metrics.clip_diversity(moving, moving, motion_metrics.fit_clip_clusters(moving))
  assert scores["sid_per_clip/expression"] == pytest.approx(np.log2(30))


def test_correlation_of_what_does_not_vary_is_zero():
  """In float32 a constant differs from its own mean: that rounding must not be taken for motion."""
  varying = np.random.default_rng(0).normal(size=1000)
  assert motion_metrics.correlation(np.full(1000, 0.1, np.float32), varying) == 0.0
  assert motion_metrics.correlation(varying, varying**3) == pytest.approx(scipy.stats.pearsonr(varying, varying**3)[0])


def test_inequalities_hold_for_every_motion_and_are_tight():
  """Also where frames are fewer than dimensions, where a motion stands still, and where it is the truth."""
  for seed in range(6):
    frames = (20, 60, 300)[seed % 3]
    target, partner, other = (make_motion(10 * seed + i, frames) for i in range(3))
    for pred in (other, target, 1.01 * target, np.full_like(target, 0.1), np.tile(target.mean(0), (frames, 1)), target[::-1].copy()):
      metrics = motion_metrics.evaluate_motion(pred, target, partner)
      assert motion_metrics.find_violations(metrics, pred, target, partner) == []
  # A constant: FD = P-FD, and FD = D·MSE but for the covariance's divisor.
  still = np.full_like(target, 0.1)
  metrics = motion_metrics.evaluate_motion(still, target, partner)
  for group, size in (("expression", 50), ("jaw", 3), ("pose", 3)):
    assert metrics[f"fd/{group}"] == pytest.approx(metrics[f"p_fd/{group}"], rel=1e-5)
    assert metrics[f"fd/{group}"] == pytest.approx(size * metrics[f"mse/{group}"], rel=0.05)
  # One part in a thousand too much is seen, in the group it is in; and so is no number.
  for name, bound in (("jaw", "p_fd/jaw"), ("pose", "mse/pose")):
    pred = make_motion(1, 60)
    target, partner = make_motion(2, 60), make_motion(3, 60)
    right = motion_metrics.evaluate_motion(pred, target, partner)
    least = right["fd/jaw"] if bound == "p_fd/jaw" else right["fd/pose"] * 59 / 60 / 3
    fine, broken = (right | {bound: share * least} for share in (1.001, 0.999))
    assert motion_metrics.find_violations(fine, pred, target, partner) == []
    (line,) = motion_metrics.find_violations(broken, pred, target, partner)
    assert line.startswith(f"{name}: FD ") and ("P-FD" in line) == (bound == "p_fd/jaw")
  lines = motion_metrics.find_violations(right | {"fd/expression": np.nan}, pred, target, partner)
  assert len(lines) == 2 and all(line.startswith("expression") for line in lines)


def test_means_are_over_the_clips_that_have_a_metric():
  assert motion_metrics.mean_metrics([{"a": 1.0}, {"a": 3.0, "b": 5.0}]) == {"a": 2.0, "b": 5.0}


def test_of_very_long_sets_every_other_frame_is_clustered(monkeypatch):
  """As often as it takes, whatever the clips' lengths: frames 0, 4, 8 … here, and never many in memory."""
  frames = np.zeros((100, 56), np.float32)
  frames[:, 50] = np.arange(100)
  monkeypatch.setattr(motion_metrics, "_CLUSTERED_FRAMES", 30)
  for cuts in ([], [10], [7, 8, 33, 50, 51, 99], list(range(1, 100))):
    kept = motion_metrics._thin_out(iter(np.split(frames, cuts)))
    np.testing.assert_array_equal(kept[:, 50], np.arange(0, 100, 4))
  monkeypatch.setattr(motion_metrics, "_CLUSTERED_FRAMES", 100)
  np.testing.assert_array_equal(motion_metrics._thin_out([frames]), frames)


def test_errors_of_kinds_are_of_their_frames_alone():
  pred, target = make_motion(0, 80), make_motion(1, 80)
  kinds = {"speaking": np.arange(80) < 30, "listening": np.arange(80) >= 55, "rare": np.arange(80) < 24}
  scores = motion_metrics.errors_by_kind(pred, target, kinds)
  assert list(scores) == [f"mse_{kind}/{group}" for kind in ("speaking", "listening") for group in GROUPS]  # 24 frames are too few.
  for kind, part in (("speaking", slice(0, 30)), ("listening", slice(55, 80))):
    for group, dims in (("expression", slice(0, 50)), ("jaw", slice(50, 53)), ("pose", slice(53, 56))):
      expected = sklearn.metrics.mean_squared_error(target[part, dims].astype(float), pred[part, dims].astype(float))
      assert scores[f"mse_{kind}/{group}"] == pytest.approx(expected)
  table = {name: motion_metrics.table_value(name, 1.0) for name in scores}
  assert list(table.values()) == [10.0, 1000.0, 100.0] * 2  # As MSE of all frames.
