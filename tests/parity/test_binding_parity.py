"""Eq. 6 and 7 on a random mesh, against numpy one Gaussian at a time and central differences, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsatalker_jax.avatar import binding
from splat_kernels.densification import rotate_by_quaternion

V, F, N = 12, 15, 20


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def inputs():
  rng = np.random.default_rng(5)
  return {
      "means": rng.normal(size=(N, 3)),
      "quats": rng.normal(size=(N, 4)),
      "log_scales": rng.normal(size=(N, 3)),
      "binding": rng.integers(0, F, N),
      "vertices": rng.normal(size=(V, 3)),
      "faces": np.stack([rng.choice(V, 3, replace=False) for _ in range(F)]),
      "offsets": rng.normal(size=(F, 3)),
  }


def bind_by_loop(means, quats, log_scales, binding, vertices, faces, offsets):
  """Means, rotation matrices and scales in the world."""
  out = []
  for i, face in enumerate(binding):
    corners = vertices[faces[face]]
    edge, other = corners[1] - corners[0], corners[2] - corners[0]
    normal = np.cross(edge, other)
    # The height over the edge is twice the area by the edge's length.
    size = (np.linalg.norm(edge) + np.linalg.norm(normal) / np.linalg.norm(edge)) / 2
    a0, a1 = edge / np.linalg.norm(edge), normal / np.linalg.norm(normal)
    frame = np.stack([a0, a1, np.cross(a0, a1)], axis=1)
    turn = Rotation.from_quat(quats[i], scalar_first=True).as_matrix()
    centre = corners.mean(0) + offsets[face]
    out.append((size * frame @ means[i] + centre, frame @ turn, size * np.exp(log_scales[i])))
  return tuple(map(np.stack, zip(*out)))


def test_values(inputs):
  means, quats, scales = jax.jit(binding.bind)(**inputs)
  expected_means, rotations, expected_scales = bind_by_loop(**inputs)
  np.testing.assert_allclose(means, expected_means, atol=1e-12)
  np.testing.assert_allclose(Rotation.from_quat(quats, scalar_first=True).as_matrix(), rotations, atol=1e-12)
  np.testing.assert_allclose(scales, expected_scales, rtol=1e-12)


def test_gradients_of_all_inputs(inputs):
  rng = np.random.default_rng(6)
  weights = [rng.normal(size=shape) for shape in ((N, 3), (N, 3, 3), (N, 3))]

  def total(changed):
    means, quats, scales = binding.bind(**{**inputs, **changed})
    axes = jnp.broadcast_to(jnp.eye(3)[:, None], (3, N, 3))
    turned = jax.vmap(rotate_by_quaternion, (None, 0), 2)(quats, axes)
    return sum(jnp.sum(w * x) for w, x in zip(weights, (means, turned, scales)))

  floats = {name: x for name, x in inputs.items() if x.dtype == np.float64}
  gradients = jax.jit(jax.grad(total))(floats)
  by_loop = lambda changed: sum(np.sum(w * x) for w, x in zip(weights, bind_by_loop(**{**inputs, **changed})))
  for name, value in floats.items():
    direction = rng.normal(size=value.shape)
    ends = [by_loop({name: value + sign * 1e-6 * direction}) for sign in (1, -1)]
    found = np.sum(np.asarray(gradients[name]) * direction)
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-6, rtol=1e-6, err_msg=name)
