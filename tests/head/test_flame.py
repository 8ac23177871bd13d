import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsatalker_jax import head
from rsatalker_jax.head import HeadModel, pose_for, rotation_matrix

V, F, S, E = 37, 50, 4, 6
PARENTS = (-1, 0, 1, 1, 1)
head_vertices = jax.jit(head.head_vertices)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def model() -> HeadModel:
  r = np.random.default_rng(0)
  weights = r.random((V, 5)) ** 4
  regressor = r.random((5, V)) ** 8
  return HeadModel(
      v_template=jnp.array(r.normal(size=(V, 3))),
      shape_directions=jnp.array(0.3 * r.normal(size=(V, 3, S))),
      expression_directions=jnp.array(0.3 * r.normal(size=(V, 3, E))),
      pose_directions=jnp.array(0.1 * r.normal(size=(V, 3, 36))),
      joint_regressor=jnp.array(regressor / regressor.sum(1, keepdims=True)),
      weights=jnp.array(weights / weights.sum(1, keepdims=True)),
      faces=jnp.array(r.integers(0, V, (F, 3))),
      parents=PARENTS,
  )


@pytest.fixture
def coefficients() -> dict[str, jnp.ndarray]:
  r = np.random.default_rng(1)
  sizes = dict(shape=S, expression=E, rotation=3, neck=3, jaw=3, eyes=6, translation=3)
  return {name: jnp.array(0.7 * r.normal(size=size)) for name, size in sizes.items()}


def numpy_head_vertices(model, c, static_offset=None):
  """The model's definition, vertex by vertex with 4x4 matrices and scipy's rotations."""
  m = jax.tree.map(np.asarray, model)
  rest = m.v_template.copy()
  for k in range(S):
    rest += c["shape"][k] * m.shape_directions[:, :, k]
  for k in range(E):
    rest += c["expression"][k] * m.expression_directions[:, :, k]
  if static_offset is not None:
    rest += static_offset
  joints = np.stack([sum(m.joint_regressor[j, v] * rest[v] for v in range(V)) for j in range(5)])
  angles = np.concatenate([c["rotation"], c["neck"], c["jaw"], c["eyes"]]).reshape(5, 3)
  rotations = Rotation.from_rotvec(angles).as_matrix()
  feature = np.concatenate([(r - np.eye(3)).ravel() for r in rotations[1:]])
  for k in range(36):
    rest = rest + feature[k] * m.pose_directions[:, :, k]

  chain = []
  for j in range(5):
    local = np.eye(4)
    local[:3, :3] = rotations[j]
    local[:3, 3] = joints[j] - (joints[PARENTS[j]] if j else 0)
    chain.append(chain[PARENTS[j]] @ local if j else local)
  posed = np.zeros((V, 3))
  for v in range(V):
    for j in range(5):
      to_joint = np.eye(4)
      to_joint[:3, 3] = -joints[j]
      posed[v] += m.weights[v, j] * (chain[j] @ to_joint @ np.append(rest[v], 1))[:3]
  return posed + np.asarray(c["translation"])


def test_matches_the_definition(model, coefficients):
  static_offset = np.random.default_rng(2).normal(size=(V, 3))
  for offset in (None, static_offset):
    ours = head_vertices(model, **coefficients, static_offset=None if offset is None else jnp.array(offset))
    np.testing.assert_allclose(ours, numpy_head_vertices(model, coefficients, offset), atol=1e-12)


def test_static_offset_moves_the_joints(model, coefficients):
  # Added after the joints were placed, a uniform offset would move the head without turning about moved joints.
  offset = jnp.ones((V, 3))
  moved = head_vertices(model, **coefficients, static_offset=offset)
  shifted = head_vertices(model, **{**coefficients, "translation": coefficients["translation"] + 1.0})
  np.testing.assert_allclose(moved, shifted, atol=1e-12)  # The regressor's rows sum to 1: all joints move along.


def test_gradient_by_finite_differences(model, coefficients):
  direction = jnp.array(np.random.default_rng(3).normal(size=(V, 3)))
  value = jax.jit(lambda c: jnp.sum(direction * head_vertices(model, **c)))
  for scale in (1.0, 0.0):  # At rest too, where axis-angle formulas divide by zero.
    point = jax.tree.map(lambda x: scale * x, coefficients)
    gradient = jax.grad(value)(point)
    step = 1e-6
    for name, x in point.items():
      for i in range(x.size):
        ends = [value({**point, name: x.at[i].add(sign * step)}) for sign in (1, -1)]
        np.testing.assert_allclose(gradient[name][i], (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)


def test_coefficients_of_another_number(model, coefficients):
  short = {**coefficients, "shape": coefficients["shape"][:2], "expression": coefficients["expression"][:0]}
  padded = {**coefficients, "shape": coefficients["shape"].at[2:].set(0), "expression": jnp.zeros(E)}
  np.testing.assert_allclose(head_vertices(model, **short), head_vertices(model, **padded), atol=1e-14)
  wide = {**coefficients, "shape": jnp.zeros(300).at[:S].set(coefficients["shape"])}
  np.testing.assert_allclose(head_vertices(model, **wide), head_vertices(model, **coefficients), atol=1e-14)


def test_refuses_the_offset_of_another_mesh(model, coefficients):
  with pytest.raises(ValueError, match="static_offset"):
    head_vertices(model, **coefficients, static_offset=jnp.zeros((V + 1, 3)))


def test_rotation_matrix_and_its_derivatives():
  angles = np.array([0.0, 1e-9, 1e-5, 0.00999, 0.01001, 0.3, 3.0, 7.0])
  axis_angles = angles[:, None] * np.array([0.48, -0.6, 0.64])
  matrices = jax.jit(jax.vmap(rotation_matrix))(axis_angles)
  np.testing.assert_allclose(matrices, Rotation.from_rotvec(axis_angles).as_matrix(), atol=1e-13)
  matrix_of = lambda x: Rotation.from_rotvec(x).as_matrix()
  numeric = [(matrix_of(axis_angles + d) - matrix_of(axis_angles - d)) / 2e-6 for d in 1e-6 * np.eye(3)]
  jacobian = jax.jit(jax.vmap(jax.jacobian(rotation_matrix)))(axis_angles)
  np.testing.assert_allclose(jacobian, np.stack(numeric, axis=-1), atol=1e-9)
  assert np.all(np.isfinite(jax.jit(jax.vmap(jax.hessian(rotation_matrix)))(axis_angles)))


def test_motion_drives_expression_jaw_and_neck():
  motion = jnp.arange(2 * 56.0).reshape(2, 56)
  flame = pose_for(motion)
  np.testing.assert_array_equal(flame["expression"], motion[:, :50])
  np.testing.assert_array_equal(flame["jaw"], motion[:, 50:53])
  np.testing.assert_array_equal(flame["neck"], motion[:, 53:])
  assert {name: flame[name].shape for name in ("rotation", "eyes", "translation")} == {
      "rotation": (2, 3),
      "eyes": (2, 6),
      "translation": (2, 3),
  }
  assert not any(np.any(flame[name]) for name in ("rotation", "eyes", "translation"))
