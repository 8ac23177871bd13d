"""A's motion through a webcam: each error has the size that was measured, and is drawn by share and seed."""

import numpy as np
import pytest

from rsatalker_jax.data import webcam
from rsatalker_jax.data.pipeline import MotionClip, motion_windows
from rsatalker_jax.data.webcam import Webcam, track
from rsatalker_jax.types import ARKIT_EXPRESSIONS

COUNT = 400


def make_motion(frames: int = COUNT, seed: int = 0) -> np.ndarray:
  """Smooth, of unit size in expression and jaw, of 0.2 in the head."""
  slow = webcam.autoregression(np.random.default_rng(seed), frames, 56)
  kernel = np.hanning(9) / np.hanning(9).sum()
  smooth = np.stack([np.convolve(column, kernel, "same") for column in slow.T], axis=1)
  return (smooth / smooth.std(axis=0) * np.repeat([1, 1, 0.2], [50, 3, 3])).astype(np.float32)


MOTION = make_motion()


def tracked(draws: int = 60, severity: float = 1.0, basis: str = "arkit", motion=MOTION) -> np.ndarray:
  return np.stack([track(motion, np.arange(len(motion)), basis, severity, np.random.default_rng(i)) for i in range(draws)])


def correlation(a, b) -> float:
  return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize("name, r", [
    ("eyeBlinkLeft", 0.96), ("mouthSmileRight", 0.83), ("mouthLowerDownLeft", 0.82), ("browOuterUpLeft", 0.7), ("mouthPucker", 0.48),
])  # fmt: skip
def test_units_are_followed_as_well_as_measured(name, r):
  unit = ARKIT_EXPRESSIONS.index(name)
  seen = tracked()[:, :, unit]
  assert np.median([correlation(x, MOTION[:, unit]) for x in seen]) == pytest.approx(r, abs=0.06)
  slopes = [np.polyfit(MOTION[:, unit], x, 1)[0] for x in seen]
  assert np.mean(slopes) == pytest.approx(r**2, abs=0.06)
  # The best linear estimate: its own variance is r² of the truth's.
  assert np.mean(seen.std(axis=1)) == pytest.approx(r, abs=0.06)


def test_what_a_tracker_never_sees_rests():
  seen = tracked(20)
  for name in ("cheekPuff", "noseSneerLeft", "jawForward", "mouthFrownRight", "mouthClose", "eyeLookDownLeft", "mouthRollUpper"):
    assert seen[:, :, ARKIT_EXPRESSIONS.index(name)].std(axis=1).max() < 0.01, name
  assert seen[:, :, 51:53].std() == 0  # The jaw to the side.
  assert tracked(20, basis="flame2020")[:, :, :50].std(axis=1).min() > 0.3  # Of other bases nothing is known to rest.
  assert np.median([correlation(x[:, 3], MOTION[:, 3]) for x in tracked(basis="flame2020")]) == pytest.approx(0.7, abs=0.06)


def test_the_jaw_and_the_head():
  seen = tracked(100)
  assert np.median([correlation(x[:, 50], MOTION[:, 50]) for x in seen]) == pytest.approx(0.95, abs=0.03)
  late = MOTION[:-1, 53:]  # A frame behind the face.
  gains = np.array([[np.polyfit(late[:, i], x[1:, 53 + i], 1)[0] for i in range(3)] for x in seen])
  np.testing.assert_allclose(gains.mean(axis=0), [0.72, 0.85, 0.97], atol=0.05)
  np.testing.assert_allclose(gains.std(axis=0), 0.1, atol=0.04)
  still = tracked(100, motion=np.zeros((COUNT, 56), np.float32))
  bias, noise = np.degrees(still[:, :, 53:].mean(axis=1)), np.degrees(still[:, :, 53:].std(axis=1))
  assert bias.std() == pytest.approx(1.3, abs=0.3) and noise.mean() == pytest.approx(1.2, abs=0.2)
  assert still[:, :, :50].mean(axis=1).std() == pytest.approx(0.03, abs=0.01)
  assert np.abs(np.diff(still[:, :, 0], axis=1)).mean() == pytest.approx(0.002 * 2 / np.sqrt(np.pi), rel=0.2)


def test_severity_scales_errors_down_to_the_truth():
  np.testing.assert_allclose(tracked(3, 0.0), np.stack([MOTION] * 3), atol=1e-6)
  errors = [np.sqrt(np.mean((tracked(20, severity) - MOTION) ** 2)) for severity in (0.25, 0.5, 1.0, 2.0)]
  assert errors == sorted(errors) and errors[0] < 0.7 * errors[2]


def test_frames_are_held_where_the_camera_is_slow_or_the_face_is_lost():
  held = np.stack([webcam._held(COUNT, 1.0, np.random.default_rng(i)) for i in range(200)])
  assert (held <= np.arange(COUNT)).all() and (np.diff(held, axis=1) >= 0).all()
  behind = np.arange(COUNT) - held
  assert behind.max() > 8 and 0.06 < np.mean(behind > 0) < 0.14
  seen = track(MOTION, np.arange(COUNT), "arkit", 1.0, np.random.default_rng(1))
  assert 0.03 < np.mean((np.diff(seen, axis=0) == 0).all(axis=1)) < 0.3


def test_all_is_late_by_up_to_the_lag_and_rests_before_the_beginning():
  camera, lags = Webcam(share=1.0, severity=0.0, lag=3), set()
  for seed in range(40):
    seen = camera.see(MOTION, 50, 20, "arkit", np.random.default_rng(seed))
    (lag,) = (lag for lag in range(5) if np.allclose(seen, MOTION[50 - lag : 70 - lag], atol=1e-6))
    lags.add(lag)
  assert lags == {0, 1, 2, 3}
  seen = Webcam(share=1.0, severity=0.0, lag=25).see(MOTION, 0, 30, "arkit", np.random.default_rng(0))
  rest = int(np.argmax((np.abs(seen - MOTION[0]) > 1e-6).any(axis=1)))
  assert rest > 1
  np.testing.assert_allclose(seen[rest - 1 :], MOTION[: 31 - rest], atol=1e-6)


def test_training_sees_a_share_of_the_windows_so_and_b_never():
  arrays = dict(speech_a=MOTION[:, :3], motion_a=MOTION, speech_b=MOTION[:, 3:6], motion_b=make_motion(seed=1))
  clips = [MotionClip(name="x", relation=np.zeros(2, np.int32), basis="arkit", **arrays)]
  make = lambda **options: [
      batch for batch, _ in zip(iter(motion_windows(clips, window=40, batch_size=8, seed=1, **options)), range(16))
  ]
  plain, off = make(), make(webcam=Webcam(share=0.0, severity=2.0))
  half, again = make(webcam=Webcam(share=0.5)), make(webcam=Webcam(share=0.5))
  touched = []
  for a, b, c, d in zip(plain, off, half, again):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
      np.testing.assert_array_equal(c[name], d[name])
      if name != "motion_a":
        np.testing.assert_array_equal(a[name], c[name])
    touched += [not np.array_equal(x, y) for x, y in zip(a["motion_a"], c["motion_a"])]
  assert np.mean(touched) == pytest.approx(0.5, abs=0.12)


def test_noise_over_time_has_unit_size_and_memory():
  noise = webcam.autoregression(np.random.default_rng(0), 50_000, 2)
  np.testing.assert_allclose(noise.std(axis=0), 1.0, atol=0.03)
  assert np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1] == pytest.approx(0.8, abs=0.01)
  starts = np.stack([webcam.autoregression(np.random.default_rng(i), 3, 4)[0] for i in range(500)])
  assert starts.std() == pytest.approx(1.0, abs=0.06)  # From the first frame on.
