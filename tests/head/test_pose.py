"""Motion and film as poses of the head, against scipy's rotations and the head itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsatalker_jax.head import find_alignment, head_vertices, load_head, motion_of, pose_for
from rsatalker_jax.head.pose import multiply_quaternions, to_axis_angle, to_quaternion


def make_frames(count, seed=0, size=0.4):
  """A film's parameters, all of them in motion."""
  r = np.random.default_rng(seed)
  widths = dict(expression=100, rotation=3, neck=3, jaw=3, eyes=6, translation=3)
  return {name: (size * r.normal(size=(count, width))).astype(np.float32) for name, width in widths.items()}


def make_motion(count, seed=1, size=0.4):
  return (size * np.random.default_rng(seed).normal(size=(count, 56))).astype(np.float32)


@pytest.mark.parametrize("size", [0.0, 1e-5, 1e-3, 0.5, 3.0])
def test_quaternions_are_scipys(size):
  r = np.random.default_rng(0)
  a, b = (size * v / np.linalg.norm(v, axis=1, keepdims=True) for v in r.normal(size=(2, 20, 3)))
  ours = multiply_quaternions(to_quaternion(jnp.asarray(a)), to_quaternion(jnp.asarray(b)))
  expected = Rotation.from_rotvec(a) * Rotation.from_rotvec(b)
  np.testing.assert_allclose(Rotation.from_quat(np.asarray(ours), scalar_first=True).as_matrix(), expected.as_matrix(), atol=2e-6)
  np.testing.assert_allclose(to_axis_angle(to_quaternion(jnp.asarray(a))), a, atol=3e-6)


def test_gradients_at_rest_are_finite_and_right():
  jacobian = jax.jacobian(lambda v: to_axis_angle(to_quaternion(v)))
  for v in (np.zeros(3), np.array([1e-8, 0, 0]), np.array([1e-3, 0, 0]), np.array([0.3, -0.2, 0.1])):
    np.testing.assert_allclose(jacobian(jnp.asarray(v, jnp.float32)), np.eye(3), atol=2e-4)


def test_without_a_film_the_neck_turns():
  motion = make_motion(4)
  flame = pose_for(motion)
  np.testing.assert_array_equal(flame["expression"], motion[:, :50])
  np.testing.assert_array_equal(flame["jaw"], motion[:, 50:53])
  np.testing.assert_array_equal(flame["neck"], motion[:, 53:])
  assert not any(np.any(flame[name]) for name in ("rotation", "eyes", "translation")) and flame["eyes"].shape == (4, 6)


def test_with_a_film_the_head_looks_where_the_motion_says_on_the_films_body():
  frames, motion, alignment = make_frames(30), make_motion(30), np.float32([0.2, -0.5, 0.1])
  flame = pose_for(motion, frames, np.tile(alignment, (30, 1)))
  for name in ("rotation", "eyes", "translation"):
    np.testing.assert_array_equal(flame[name], frames[name])
  head = Rotation.from_rotvec(flame["rotation"]) * Rotation.from_rotvec(flame["neck"])
  expected = Rotation.from_rotvec(alignment) * Rotation.from_rotvec(motion[:, 53:])
  np.testing.assert_allclose(head.as_matrix(), expected.as_matrix(), atol=1e-5)


def test_motion_that_agrees_with_the_film_gives_the_films_pose():
  """In vertices, on the demo's head: what once was up to 47 mm off, by a film whose body turns, is rounding."""
  head = load_head("assets/head/demo_head.npz")
  frames = make_frames(1, size=0.3)
  frames["expression"][:, 50:] = 0
  alignment = np.float32([[0.1, 0.4, -0.3]])
  motion = motion_of(frames, alignment)
  vertices = lambda flame: np.asarray(head_vertices(head, shape=jnp.zeros(0), **{k: jnp.asarray(v)[0] for k, v in flame.items()}))
  np.testing.assert_allclose(vertices(pose_for(motion, frames, alignment)), vertices(frames), atol=2e-6)
  # Without the alignment it is another pose.
  assert np.abs(vertices(pose_for(motion, frames)) - vertices(frames)).max() > 0.01


@pytest.mark.parametrize("truth", [[0.0, 0.0, 0.0], [0.3, -0.2, 0.5], [np.pi - 1e-3, 0.0, 0.0], [0.0, -2.5, 1.0]])
def test_alignment_is_found(truth):
  frames, motion = make_frames(40), make_motion(40)
  turned = Rotation.from_rotvec(truth).inv() * Rotation.from_rotvec(frames["rotation"]) * Rotation.from_rotvec(frames["neck"])
  noise = Rotation.from_rotvec(0.01 * np.random.default_rng(3).normal(size=(40, 3)))
  motion[:, 53:] = (turned * noise).as_rotvec()
  found = Rotation.from_rotvec(find_alignment(motion, frames))
  assert (found * Rotation.from_rotvec(truth).inv()).magnitude() < 0.01  # 0.01 rad of noise in 40 frames, and more.
