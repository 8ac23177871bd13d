"""The fit of the camera's map: what it solves, against motions that are known exactly."""

import dataclasses
import pathlib
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))
import fit_webcam
from rsatalker_jax.types import MOTION_GROUPS

HEAD = MOTION_GROUPS["pose"]


def make_setting(rng, weights, count=200, names=20):
  x = np.concatenate([rng.uniform(-0.5, 0.5, (count, names)), 0.2 * rng.normal(size=(count, 3))], axis=1)
  return fit_webcam.Setting("a", "random", "b", x, x @ weights.T)


def test_a_linear_map_is_found_and_the_head_turns_by_the_tracker_alone():
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(56, 23))
  weights[HEAD, :-3] = 0
  settings = [make_setting(rng, weights, count) for count in (100, 300)]
  found, bias = fit_webcam.solve(settings, 1e-12)
  np.testing.assert_allclose(found[:51], weights[:51], atol=1e-6)
  np.testing.assert_allclose(found[HEAD], weights[HEAD], atol=1e-6)
  assert not found[51:53].any() and np.abs(bias).max() < 1e-6 and not bias[51:].any()
  shrunk, _ = fit_webcam.solve(settings, 1.0)
  assert np.linalg.norm(shrunk[:51]) < 0.5 * np.linalg.norm(weights[:51])
  np.testing.assert_allclose(shrunk[HEAD], weights[HEAD], atol=1e-6)


def test_every_setting_counts_as_much():
  rng = np.random.default_rng(1)
  make = lambda gain, count, kind="simulated": dataclasses.replace(make_setting(rng, gain * np.eye(56, 23), count), kind=kind)
  (found, _), (other, _) = (fit_webcam.solve([make(1.0, 100), make(2.0, count)], 0.0) for count in (100, 2000))
  np.testing.assert_allclose(np.diag(found)[:20], 1.5, atol=0.2)
  np.testing.assert_allclose(np.diag(other)[:20], 1.5, atol=0.2)
  less, _ = fit_webcam.solve([make(1.0, 400), make(2.0, 400, "random")], 0.0)
  np.testing.assert_allclose(np.diag(less)[:20], 1 + fit_webcam.RANDOM_SHARE / (1 + fit_webcam.RANDOM_SHARE), atol=0.05)


def test_features_are_differences_from_rest():
  rng = np.random.default_rng(2)
  turns = Rotation.from_rotvec(0.5 * rng.normal(size=(30, 3)))
  matrix = np.tile(np.eye(4), (30, 1, 1))
  matrix[:, :3, :3], matrix[:, :3, 3] = 2.3 * turns.as_matrix(), rng.normal(size=(30, 3))
  matrix[:5] = matrix[0]
  scores = rng.uniform(size=(30, 4))
  found = fit_webcam.find_features(scores, matrix.transpose(0, 2, 1).reshape(30, 16), slice(0, 5))
  np.testing.assert_allclose(found[:, :4], scores - np.median(scores[:5], axis=0))
  np.testing.assert_allclose(found[5:, 4:], (turns[0].inv() * turns[5:]).as_rotvec(), atol=1e-9)
  np.testing.assert_allclose(found[:5, 4:], 0, atol=1e-9)


def test_scores_are_of_what_moves():
  rng = np.random.default_rng(3)
  true = rng.normal(size=(400, 56))
  true[:, 7] = 0
  found = true + np.where(np.arange(56) < 10, 0.0, 1.0) * rng.normal(size=(400, 56)) + 5.0 * (np.arange(56) == 3)
  scores = fit_webcam.score([(found[:150], true[:150]), (found[150:], true[150:])])
  np.testing.assert_allclose(scores["r"][[0, 1, 2, 3]], 1, atol=1e-9)
  assert np.isnan(scores["r"][7]) and scores["rms"][3] == pytest.approx(5) and scores["rms"][0] == 0
  np.testing.assert_allclose(scores["r"][10:50], np.sqrt(0.5), atol=0.1)


def test_settings_begin_at_rest_and_are_the_same_again():
  assert [fit_webcam.is_random(number) for number in range(8)] == [False, True, False, False] * 2
  for number in (0, 1):
    motion = fit_webcam.make_motion(number)
    np.testing.assert_array_equal(motion, fit_webcam.make_motion(number))
    assert not motion[: fit_webcam.REST].any() and motion.shape[1] == 56 and np.isfinite(motion).all()
    assert motion[:, :50].min() >= 0 and motion[:, :50].max() <= 1
    assert np.abs(np.diff(motion[:, :50], axis=0)).max() < 0.9
  # By chance, nearly all shapes are shown, and each of the ten faces in the looks of both people.
  assert (motion[:, :50].max(axis=0) > 0.2).mean() > 0.8
  looks = [fit_webcam.Look.of_setting(number, 2, 10) for number in range(40)]
  for kind in (looks[0::2], looks[1::2]):
    assert {(look.person, look.identity) for look in kind} == {(person, identity) for person in range(2) for identity in range(10)}
  assert len({look.yaw for look in looks}) == 40
