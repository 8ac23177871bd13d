"""From one head's motion to another's: a head in FLAME's format whose motions are known as the demo head's, and geometry."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.optimize

import flame_like_head
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import head_vertices, load_head, pose_for
from rsatalker_jax.head.retarget import Retargeting, _solve, closest_points

FRAMES = 32


def truth() -> tuple[np.ndarray, np.ndarray]:
  """The same motion as the demo head's and as the FLAME-like head's: speech of the capture, and a turned head."""
  file = np.load(flame_like_head.DEMO_HEAD.parents[1] / "capture/demo-d003_sub_video_9_speaker1.npz")
  frames = slice(100, 100 + 3 * FRAMES, 3)
  weights, head, jaw = file["exp"][frames].astype(float), file["pose"][frames, :3], file["pose"][frames, 3:]
  theirs = [flame_like_head.components(weights), flame_like_head.TURN.apply(jaw), flame_like_head.TURN.apply(head)]
  return np.concatenate([weights, jaw, head], 1).astype(np.float32), np.concatenate(theirs, 1).astype(np.float32)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
  path = tmp_path_factory.mktemp("heads") / "head.npz"
  np.savez(path, **flame_like_head.flame_like_values())
  return load_head(flame_like_head.DEMO_HEAD), load_head(path)


@pytest.fixture(scope="module")
def to_arkit(heads):
  demo, flame = heads
  return Retargeting(flame, demo)


def vertices_of(head, motion):
  pose = jax.jit(jax.vmap(lambda motion: head_vertices(head, shape=np.zeros(1, np.float32), **pose_for(motion))))
  return np.asarray(pose(motion))


def rms(x):
  return float(np.sqrt(np.mean(np.sum(x**2, axis=-1))))


def test_flames_motion_is_found_as_weights(heads, to_arkit):
  demo, _ = heads
  arkit, flame = truth()
  found, fit = to_arkit.convert(flame)
  assert to_arkit.apart < 0.3 and to_arkit.points > 1000
  assert fit.moved > 1 and fit.error < 0.1 and fit.worst < 0.25  # Millimetres.
  assert found.shape == arkit.shape and found.dtype == np.float32
  assert found[:, :50].min() >= 0 and found[:, :50].max() <= 1
  # All of the head, eyes and the inside of the mouth too, moves by centimetres and lands within a part of a millimetre.
  moves = vertices_of(demo, arkit)
  assert rms(moves - np.asarray(demo.v_template)) > 8e-3
  assert rms(moves - vertices_of(demo, found)) < 2.5e-4
  np.testing.assert_allclose(found[:, 50:53], arkit[:, 50:53], atol=0.01)
  np.testing.assert_allclose(found[:, 53:], arkit[:, 53:], atol=0.003)
  assert np.sqrt(np.mean((found[:, :50] - arkit[:, :50]) ** 2)) < 0.15 * np.sqrt(np.mean(arkit[:, :50] ** 2))


def test_a_rest_face_stays_at_rest(to_arkit):
  found, fit = to_arkit.convert(np.zeros((3, 56), np.float32))
  assert np.abs(found).max() < 1e-4 and fit.error < 1e-3 and fit.moved < 1e-3


def test_the_error_is_what_the_surface_says(heads, to_arkit):
  """Of a motion that the demo head cannot make: measured over again from posed meshes, at every point's closest place."""
  demo, flame = heads
  motion = np.zeros((2, 56), np.float32)
  motion[:, :5] = [[3, -2, 2, 3, -3], [0, 4, 0, -4, 2]]
  found, fit = to_arkit.convert(motion)
  assert fit.error > 0.3
  places, fitted = vertices_of(flame, motion), vertices_of(demo, found)
  at_rest = np.asarray(demo.v_template, np.float64)
  back = lambda x: flame_like_head.TURN.inv().apply((x - flame_like_head.SHIFT) / flame_like_head.SCALE)
  base = back(np.asarray(flame.v_template, np.float64))
  chosen = np.flatnonzero((at_rest[:, 2] > 0.06) & (np.asarray(demo.weights)[:, 3:].sum(1) < 0.1))
  place, weights, _ = closest_points(at_rest[chosen], base, np.asarray(flame.faces))
  corners = np.asarray(flame.faces)[place]
  wanted = [np.einsum("pc,pcx->px", weights, (back(p.astype(float)) - base)[corners]) for p in places]
  measured = 1e3 * rms(np.stack(wanted) - (fitted - at_rest)[:, chosen])
  assert 0.5 * fit.error < measured < 2 * fit.error


def test_arkits_motion_is_found_as_components(heads):
  demo, flame = heads
  arkit, theirs = truth()
  retargeting = Retargeting(demo, flame)
  found, fit = retargeting.convert(arkit[:8])
  assert fit.error < 0.2 and fit.moved > 1
  assert found[:, :50].min() < -0.1  # Components are not weights: they keep their signs.
  np.testing.assert_allclose(found[:, 53:], theirs[:8, 53:], atol=0.003)
  assert rms(vertices_of(flame, found) - vertices_of(flame, theirs[:8])) < 4e-4


def test_another_persons_face_is_matched_by_identity(heads, to_arkit):
  """The source's mean face is somebody else: without its identities the lips would lie on the chin."""
  demo, flame = heads
  person = np.asarray(demo.identities)[1]
  other = dataclasses.replace(flame, v_template=flame.v_template + np.asarray(flame.shape_directions) @ person)
  retargeting = Retargeting(other, demo)
  assert retargeting.apart < 0.5
  arkit, theirs = truth()
  found, _ = retargeting.convert(theirs[:8])
  assert rms(vertices_of(demo, found) - vertices_of(demo, arkit[:8])) < 1e-3
  stiff = Retargeting(dataclasses.replace(other, shape_directions=other.shape_directions[..., :0]), demo)
  assert stiff.apart > 2 * retargeting.apart


def test_models_of_one_mesh_correspond_by_number(heads):
  demo, _ = heads
  mixture = np.linalg.qr(np.random.default_rng(1).normal(size=(50, 50)))[0].astype(np.float32)
  other = dataclasses.replace(demo, expression_directions=demo.expression_directions @ mixture, basis="flame2023")
  retargeting = Retargeting(demo, other)
  assert retargeting.apart == 0
  arkit, _ = truth()
  found, fit = retargeting.convert(arkit[:5])
  assert fit.error < 5e-3
  assert rms(vertices_of(other, found) - vertices_of(demo, arkit[:5])) < 5e-5
  np.testing.assert_array_equal(found[:, 53:], arkit[:5, 53:])


def test_millimetres(heads):
  """A face that moves as a whole by 1 and by 2 mm, and one of the same mesh that nothing moves."""
  demo, _ = heads
  push = np.zeros(demo.expression_directions.shape, np.float32)
  push[:, 0, 0] = 1e-3
  neck = np.eye(5, dtype=np.float32)[np.ones(len(push), int)]
  stuck = dataclasses.replace(demo, expression_directions=0 * push, pose_directions=0 * demo.pose_directions, weights=neck)
  motion = np.zeros((40, 56), np.float32)  # More than are fitted at once.
  motion[:20, 0], motion[20:, 0] = 1, 2
  found, fit = Retargeting(dataclasses.replace(stuck, expression_directions=push), stuck).convert(motion)
  assert not found.any() and len(found) == 40
  assert (fit.moved, fit.error, fit.worst) == pytest.approx((np.sqrt(2.5), np.sqrt(2.5), 2), rel=1e-3)


def test_a_jaw_that_turns_otherwise_is_found(heads):
  """The source's chin follows its jaw by two fifths: half a radian of it is less than half of that in the target."""
  demo, _ = heads
  weights = np.asarray(demo.weights).copy()
  weights[:, 1] += 0.6 * weights[:, 2]
  weights[:, 2] *= 0.4
  plain = dataclasses.replace(demo, pose_directions=0 * demo.pose_directions)
  motion = np.zeros((2, 56), np.float32)
  motion[:, 50] = [0.2, 0.5]
  found, fit = Retargeting(dataclasses.replace(plain, weights=weights, basis="flame2020"), plain).convert(motion)
  np.testing.assert_allclose(found[:, 50], [0.084, 0.2202], atol=0.002)
  assert fit.error < 0.45


def test_heads_without_a_face_are_refused(heads):
  demo, _ = heads
  blind = dataclasses.replace(demo, joint_regressor=demo.joint_regressor * 0)
  with pytest.raises(InputError, match="heads: found a head without lips or eyes"):
    Retargeting(blind, dataclasses.replace(demo, faces=demo.faces[:-1]))


def test_bounded_solutions_are_scipys():
  r = np.random.default_rng(6)
  for _ in range(20):
    matrix, goal = r.normal(size=(15, 8)), r.normal(size=15)
    low, high = np.full(8, -0.1), np.r_[np.full(6, 0.15), np.inf, np.inf]
    low[7] = -np.inf
    expected = scipy.optimize.lsq_linear(matrix, goal, (low, high), method="bvls", tol=1e-14).x
    found = _solve(matrix.T @ matrix, matrix.T @ goal, low, high, np.zeros(8))
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert 0 < np.sum((found == low) | (found == high)) < 8


def test_closest_points_of_a_mesh():
  """Against a bounded least-squares search over every triangle."""
  r = np.random.default_rng(3)
  vertices, faces = r.normal(size=(12, 3)), r.integers(0, 12, (15, 3))
  faces = faces[[len(set(face)) == 3 for face in faces.tolist()]]
  points = 1.5 * r.normal(size=(20, 3))
  place, weights, distances = closest_points(points, vertices, faces, near=len(faces))
  np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
  assert weights.min() >= -1e-9
  reached = np.einsum("pc,pcx->px", weights, vertices[faces[place]])
  np.testing.assert_allclose(np.linalg.norm(reached - points, axis=1), distances, atol=1e-9)
  for point, distance in zip(points, distances):
    best = np.inf
    for face in faces:
      matrix = np.concatenate([vertices[face].T, np.full((1, 3), 1e4)])  # The last row holds the sum at 1.
      best = min(best, np.linalg.norm(vertices[face].T @ scipy.optimize.nnls(matrix, [*point, 1e4])[0] - point))
    assert distance == pytest.approx(best, abs=1e-5)
