import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsatalker_jax.avatar import binding

# Compiled: primitive by primitive they take seconds each to start.
bind, triangle_frames = jax.jit(binding.bind), jax.jit(binding.triangle_frames)
quaternion_from_matrix = jax.jit(binding.quaternion_from_matrix)
multiply_quaternions = jax.jit(binding.multiply_quaternions)


def scipy_rotation(quats):
  return Rotation.from_quat(np.roll(np.asarray(quats), -1, axis=-1))  # wxyz to scipy's xyzw.


def random_mesh(num_vertices=30, num_faces=50, seed=0):
  r = np.random.default_rng(seed)
  faces = np.stack([r.choice(num_vertices, 3, replace=False) for _ in range(num_faces)])
  return r.normal(size=(num_vertices, 3)), faces


def test_frame_of_a_triangle_in_closed_form():
  # Edge of length 4 along y; the third corner 3 away from it along -z, so the normal is y x -z = -x.
  vertices = jnp.array([[1.0, 2, 3], [1, 6, 3], [1, 3, 0]])
  rotation, size, centre = triangle_frames(vertices, jnp.array([[0, 1, 2]]))
  np.testing.assert_allclose(rotation[0], np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), atol=1e-6)
  np.testing.assert_allclose(size, [(4 + 3) / 2], rtol=1e-6)
  np.testing.assert_allclose(centre, [[1, 11 / 3, 2]], rtol=1e-6)


def test_frames_are_rotations_with_the_normal_second():
  vertices, faces = random_mesh()
  rotation, _, _ = triangle_frames(jnp.array(0.001 * vertices), jnp.array(faces))  # Millimetres, as heads have.
  np.testing.assert_allclose(np.swapaxes(rotation, 1, 2) @ rotation, np.tile(np.eye(3), (len(faces), 1, 1)), atol=2e-6)
  np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=2e-6)
  corners = vertices[faces]
  normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
  normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
  np.testing.assert_allclose(rotation[:, :, 1], normals, atol=1e-5)


def test_collapsed_triangles_give_finite_values_and_gradients():
  faces = jnp.array([[0, 1, 2], [0, 0, 0], [0, 1, 1]])
  vertices = jnp.array([[0.0, 0, 0], [0.01, 0, 0], [0.02, 0, 0]])  # A line, a point, an edge.

  def total(v):
    means, quats, scales = bind(jnp.ones((3, 3)), jnp.ones((3, 4)), jnp.ones((3, 3)), jnp.arange(3), v, faces)
    return jnp.sum(means) + jnp.sum(quats) + jnp.sum(scales)

  value, gradient = jax.jit(jax.value_and_grad(total))(vertices)
  assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_quaternions_of_all_rotations():
  rotations = [*Rotation.random(200, random_state=0), *Rotation.from_euler("xyz", 180 * np.eye(3), degrees=True)]
  rotations += [Rotation.identity(), Rotation.from_euler("xyz", [180, 0, 1e-4], degrees=True)]
  matrices = np.stack([rotation.as_matrix() for rotation in rotations])
  quats = quaternion_from_matrix(jnp.array(matrices, jnp.float32))
  np.testing.assert_allclose(np.linalg.norm(quats, axis=-1), 1, atol=1e-6)
  np.testing.assert_allclose(scipy_rotation(quats).as_matrix(), matrices, atol=1e-6)


@pytest.mark.parametrize("axis_angle", [[0, 0, 0], [0.1, -0.2, 0.3], [np.pi, 0, 0], [0, np.pi, 0], [0, 0, np.pi], [2, 2, -1]])
def test_gradient_of_the_quaternion(axis_angle):
  with jax.enable_x64(True):
    matrix = Rotation.from_rotvec(axis_angle).as_matrix()
    turn = np.cross(np.eye(3), [0.3, -0.5, 0.7]) @ matrix  # dR = ω× R moves q by (0, ω)/2 ⊗ q.
    quat, tangent = jax.jvp(quaternion_from_matrix, (jnp.array(matrix),), (jnp.array(-turn),))
    omega = np.array([0, -0.3, 0.5, -0.7])
    matrix_of = lambda q: scipy_rotation(q).as_matrix()
    step = 1e-6
    moved = (matrix_of(quat + step * tangent) - matrix_of(quat - step * tangent)) / (2 * step)
    np.testing.assert_allclose(moved, -turn, atol=1e-8)
    expected = multiply_quaternions(jnp.array(omega) / 2, quat)
    assert min(np.abs(tangent - expected).max(), np.abs(tangent + expected).max()) < 1e-8


def test_quaternion_product_is_composition():
  p, q = np.random.default_rng(0).normal(size=(2, 20, 4))
  product = multiply_quaternions(jnp.array(p), jnp.array(q))
  expected = scipy_rotation(p) * scipy_rotation(q)
  np.testing.assert_allclose(scipy_rotation(product).as_matrix(), expected.as_matrix(), atol=1e-5)


def test_equations_6_and_7_by_hand():
  # Frame: a0 = y, a1 = -x, a2 = z (see the closed form above), λ = 3.5, T = (1, 11/3, 2).
  vertices = jnp.array([[1.0, 2, 3], [1, 6, 3], [1, 3, 0]])
  means, quats, scales = bind(
      means=jnp.array([[0.0, 0, 0], [1, 2, -1]]),
      quats=jnp.array([[1.0, 0, 0, 0], [0, 1, 0, 0]]),
      log_scales=jnp.log(jnp.array([[1.0, 1, 1], [0.5, 2, 1]])),
      binding=jnp.array([0, 0]),
      vertices=vertices,
      faces=jnp.array([[0, 1, 2]]),
      offsets=jnp.array([[10.0, 20, 30]]),
  )
  centre = np.array([11, 20 + 11 / 3, 32])
  # R (1, 2, -1) = a0 + 2 a1 - a2 = (-2, 1, -1); both Gaussians share their anchor's offset.
  np.testing.assert_allclose(means, [centre, centre + 3.5 * np.array([-2, 1, -1])], rtol=1e-6)
  np.testing.assert_allclose(scales, 3.5 * np.array([[1, 1, 1], [0.5, 2, 1]]), rtol=1e-6)
  face = Rotation.from_matrix([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
  half_turn = Rotation.from_euler("x", 180, degrees=True)
  expected = np.stack([face.as_matrix(), (face * half_turn).as_matrix()])
  np.testing.assert_allclose(scipy_rotation(quats).as_matrix(), expected, atol=1e-6)


def test_gaussians_move_rigidly_with_the_mesh():
  vertices, faces = random_mesh()
  r = np.random.default_rng(1)
  local = dict(
      means=jnp.array(r.normal(size=(70, 3))),
      quats=jnp.array(r.normal(size=(70, 4))),
      log_scales=jnp.array(r.normal(size=(70, 3))),
      binding=jnp.array(r.integers(0, len(faces), 70)),
  )
  turn, shift, grow = Rotation.from_rotvec([0.4, -1.0, 2.0]), np.array([1.0, 2, 3]), 1.7
  means, quats, scales = bind(**local, vertices=jnp.array(vertices), faces=jnp.array(faces))
  moved = bind(**local, vertices=jnp.array(grow * turn.apply(vertices) + shift), faces=jnp.array(faces))
  np.testing.assert_allclose(moved[0], grow * turn.apply(means) + shift, atol=1e-4)
  expected = (turn * scipy_rotation(quats)).as_matrix()
  np.testing.assert_allclose(scipy_rotation(moved[1]).as_matrix(), expected, atol=1e-4)
  np.testing.assert_allclose(moved[2], grow * scales, rtol=1e-4)
