"""Scores taken during training: by the definitions of the tables, and one number with a known value for known motion."""

import numpy as np
import pytest
import skimage.metrics

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.evaluation import motion_metrics, validation
from rsatalker_jax.types import MOTION_DIM, MOTION_GROUPS


def make_clips(lengths=(80, 50)):
  """Clips whose groups differ in size as coefficients and radians do."""
  rng = np.random.default_rng(0)
  unit = np.repeat([1.0, 0.05, 0.2], [50, 3, 3])
  speech, relation = np.zeros((1, 1), np.float32), np.array([1, 0])
  motions = [(unit * rng.normal(size=(2, frames, MOTION_DIM)) + 0.3).astype(np.float32) for frames in lengths]
  return [MotionClip(str(i), speech, a, speech, b, relation, basis="flame2020") for i, (a, b) in enumerate(motions)]


def test_motion_is_scored_by_the_tables_definitions():
  clips = make_clips()
  generate = lambda clip: 0.5 * clip.motion_b + 0.1 * clip.motion_a
  scores = validation.motion_validation(generate, clips)
  table = [motion_metrics.evaluate_motion(generate(clip), clip.motion_b, clip.motion_a) for clip in clips]
  assert set(scores) == {f"{metric}/{group}" for metric in ("mse", "fd") for group in MOTION_GROUPS} | {"score"}
  for name in set(scores) - {"score"}:
    assert scores[name] == pytest.approx((table[0][name] + table[1][name]) / 2, rel=1e-12)


def test_motions_score_is_the_unexplained_share_of_the_truth():
  clips = make_clips()
  mean = np.concatenate([clip.motion_b for clip in clips]).mean(axis=0)
  score = lambda generate: validation.motion_validation(generate, clips)["score"]
  assert score(lambda clip: clip.motion_b) == 0.0
  assert score(lambda clip: np.tile(mean, (len(clip.motion_b), 1))) == pytest.approx(1.0, rel=1e-5)
  assert score(lambda clip: mean + 0.5 * (clip.motion_b - mean)) == pytest.approx(0.25, rel=1e-5)
  for dims in MOTION_GROUPS.values():  # A group that is lost costs a third, whatever its unit.
    still = np.zeros(MOTION_DIM, bool)
    still[dims] = True
    assert score(lambda clip: np.where(still, mean, clip.motion_b)) == pytest.approx(1 / 3, rel=1e-5)


def test_a_head_that_never_moves_is_scored():
  clips = make_clips()
  for clip in clips:
    clip.motion_b[:, 53:] = 0.0
  scores = validation.motion_validation(lambda clip: clip.motion_b + 1e-3, clips)
  assert np.isfinite(list(scores.values())).all() and scores["score"] > 1 / 3  # 1e-3 is the floor of a deviation.


def test_frames_are_scored_by_chunks():
  rng = np.random.default_rng(1)
  truth = rng.uniform(size=(3, 24, 20, 3)).astype(np.float32)
  rendered = np.clip(truth + 0.1 * rng.normal(size=truth.shape), 0, 1).astype(np.float32)
  scores = validation.frame_validation([(rendered[:2], truth[:2]), (rendered[2:], truth[2:])])
  expected = {
      "l1": np.mean(np.abs(rendered - truth)),
      "psnr": np.mean([skimage.metrics.peak_signal_noise_ratio(t, r, data_range=1) for r, t in zip(rendered, truth)]),
      "ssim": np.mean([
          skimage.metrics.structural_similarity(
              r, t, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
          ) for r, t in zip(rendered, truth)
      ]),
  }
  assert scores == pytest.approx(expected | {"score": 0.8 * expected["l1"] + 0.2 * (1 - expected["ssim"])}, rel=1e-4)
