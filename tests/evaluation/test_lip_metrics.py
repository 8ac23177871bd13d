"""Lip metrics against scipy, and openings made by hand."""

import pathlib

import numpy as np
import pytest
import scipy.stats

from rsatalker_jax.data.demo import visemes
from rsatalker_jax.data.demo.expressions import COLUMN, columns
from rsatalker_jax.evaluation import lip_metrics
from rsatalker_jax.head import LipOpening, load_head, make_lip_opening

HEAD = pathlib.Path(__file__).resolve().parents[2] / "assets" / "head" / "demo_head.npz"


def score_lips(generated, true, speaking, closures=None):
  """Of clips, one by one."""
  scores = lip_metrics.LipScores()
  for clip in zip(generated, true, speaking, closures or [()] * len(true), strict=True):
    scores.add(*clip)
  return scores.scores()


@pytest.fixture(scope="module")
def opening():
  return LipOpening(make_lip_opening(load_head(HEAD)))


def test_opening_of_known_faces(opening):
  faces = np.zeros((3, 56), np.float32)
  faces[1:, COLUMN["jawOpening"]] = 0.2
  faces[2, columns("mouthClose")] = 0.2 / visemes.JAW_OPEN_ANGLE
  rest, opened, closed = opening(faces)
  assert 0 <= rest < lip_metrics.CLOSED and opened > 5 * lip_metrics.OPEN and closed < lip_metrics.CLOSED


def test_speaking_frames():
  rng = np.random.default_rng(0)
  wav = 1e-4 * rng.normal(size=100 * 640)
  wav[30 * 640 : 70 * 640] += 0.1 * rng.normal(size=40 * 640)
  wav[50 * 640 : 51 * 640] = 0  # A stop's silence is bridged.
  mask = lip_metrics.speaking_frames(wav, 100)
  np.testing.assert_array_equal(np.flatnonzero(mask), np.arange(29, 71))
  assert not lip_metrics.speaking_frames(np.zeros(6400), 12).any()


def test_correlations_are_pearsons_over_speaking_frames():
  rng = np.random.default_rng(0)
  true = [0.01 * rng.uniform(size=50) for _ in range(3)]
  generated = [t + 0.004 * rng.normal(size=50) for t in true]
  speaking = [rng.uniform(size=50) < 0.6, np.zeros(50, bool), rng.uniform(size=50) < 0.6]
  scores = score_lips(generated, true, speaking)
  each = [scipy.stats.pearsonr(g[s], t[s])[0] for g, t, s in zip(generated, true, speaking) if s.any()]
  assert scores["lips/correlation"] == pytest.approx(np.mean(each))
  pooled = [np.concatenate([x[s] for x, s in zip(xs, speaking)]) for xs in (generated, true)]
  assert scores["lips/pooled_correlation"] == pytest.approx(scipy.stats.pearsonr(*pooled)[0])
  far = pooled[1] > 2e-3
  assert scores["lips/false_closures"] == pytest.approx(np.mean(pooled[0][far] < 0.5e-3))
  assert not any(name.startswith("lips/bilabials") for name in scores)  # Nobody knows what was said.
  still = score_lips([np.full(50, 0.003)] * 3, true, speaking)
  assert still["lips/correlation"] == still["lips/pooled_correlation"] == 0.0


def test_bilabials_closed_within_a_frame():
  silent = [np.zeros(100, bool)]
  opening = np.full(100, 0.01)
  opening[[10, 50]] = 0.0
  # Frame 10 is 0.40 to 0.44 s: hit, a frame late, a frame early, two frames early; then one past the clip's end.
  closures = [("P", 0.40, 0.44), ("B", 0.44, 0.47), ("M", 0.35, 0.39), ("M", 0.30, 0.35), ("M", 4.2, 4.3)]
  scores = score_lips([opening], [opening], silent, [closures])
  assert scores == pytest.approx(
      {"lips/bilabials": 0.75, "lips/bilabials_P": 1.0, "lips/bilabials_B": 1.0, "lips/bilabials_M": 0.5}
  )


def test_demo_faces_close_on_every_bilabial(opening):
  """The demo world's own lips, phone by phone, as the simulator writes them."""
  phones = [(name, 0.2 + 0.08 * i, 0.28 + 0.08 * i) for i, name in enumerate("M AA P IY B OW M AE T AA P".split())]
  times = (np.arange(40) + 0.5) / 25
  lips = visemes.lip_motion(phones, times)
  motion = np.zeros((40, 56), np.float32)
  for i, shape in enumerate(visemes.LIP_SHAPES):
    motion[:, columns(shape)] = lips.shapes[:, i : i + 1]
  curve = opening(motion)
  bilabials = [phone for phone in phones if phone[0] in visemes.BILABIALS]
  assert score_lips([curve], [curve], [np.ones(40, bool)], [bilabials])["lips/bilabials"] == 1.0
  assert score_lips([curve + 0.003], [curve], [np.ones(40, bool)], [bilabials])["lips/bilabials"] == 0.0
