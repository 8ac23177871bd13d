"""Projection against EWA written with numpy matrices, and its constants against the rasterizers they come from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from splat_kernels import Camera, Config, project
from splat_kernels.specs import Spec, make_scene

GEOMETRY = ("means", "quats", "scales", "opacities")


@pytest.fixture
def scene():
  scene = make_scene(Spec(64, 40, 30, 35.0, 0.1, seed=2))
  arrays = {key: scene[key][0] for key in GEOMETRY}
  rng = np.random.default_rng(0)
  pose = np.eye(4)
  pose[:3, :3] = Rotation.from_rotvec([0.2, -0.3, 0.1]).as_matrix()
  pose[:3, 3] = [0.1, -0.2, 2.3]
  intrinsics = np.array([[35.0, 0, 23.0], [0, 31.0, 12.0], [0, 0, 1]])
  arrays["quats"] *= rng.uniform(0.1, 10, size=(64, 1)).astype(np.float32)  # Any length.
  return arrays, Camera(pose.astype(np.float32), intrinsics.astype(np.float32), 40, 30)


def ewa(arrays, camera, low_pass):
  """Centres and covariances by matrices, float64."""
  pose, k = camera.world_to_camera.astype(np.float64), camera.intrinsics.astype(np.float64)
  means = arrays["means"] @ pose[:3, :3].T + pose[:3, 3]
  rotations = Rotation.from_quat(np.roll(arrays["quats"], -1, axis=-1)).as_matrix()  # scipy: xyzw.
  axes = rotations * arrays["scales"][:, None, :]
  x, y, z = means.T
  zero = np.zeros_like(z)
  jacobians = np.stack([
      np.stack([k[0, 0] / z, zero, -k[0, 0] * x / z**2], -1),
      np.stack([zero, k[1, 1] / z, -k[1, 1] * y / z**2], -1),
  ], axis=1)
  halves = jacobians @ pose[:3, :3] @ axes
  pixels = means @ k.T
  return pixels[:, :2] / pixels[:, 2:], halves @ halves.transpose(0, 2, 1) + low_pass * np.eye(2), z


def test_matches_ewa_in_matrix_form(scene):
  arrays, camera = scene
  centres, covariances, depths = ewa(arrays, camera, 0.3)
  projected = project(**arrays, camera=camera)
  conics = np.linalg.inv(covariances)
  drawn = np.asarray(projected.radii) > 0
  assert 20 < drawn.sum()
  expected = np.stack([conics[:, 0, 0], conics[:, 0, 1], conics[:, 1, 1]], axis=-1)
  np.testing.assert_allclose(projected.means2d[drawn], centres[drawn], rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(projected.conics[drawn], expected[drawn], rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(projected.depths[drawn], depths[drawn], rtol=1e-5)
  # The box holds the ellipse on which alpha is 1/255, and touches it.
  level = 2 * np.log(arrays["opacities"] * 255)
  box = np.sqrt(level[:, None] * np.stack([covariances[:, 0, 0], covariances[:, 1, 1]], -1))
  np.testing.assert_allclose(projected.extents[drawn], box[drawn], rtol=1e-3)
  np.testing.assert_array_equal(projected.radii[drawn], np.ceil(projected.extents[drawn].max(-1)))


def test_needles_keep_a_positive_determinant(scene):
  arrays, camera = scene
  arrays["scales"] = np.tile(np.float32([3.0, 1e-4, 1e-4]), (64, 1))
  projected = project(**arrays, camera=camera)
  a, b, c = (np.asarray(projected.conics, np.float64)[:, i] for i in range(3))
  _, covariances, _ = ewa(arrays, camera, 0.3)
  drawn = np.asarray(projected.radii) > 0
  inside = drawn & (np.abs(np.asarray(projected.means2d) - [20, 15]).max(-1) < 20)  # Where the Jacobian is not clamped.
  assert inside.sum() > 10
  np.testing.assert_allclose((a * c - b * b)[inside] * np.linalg.det(covariances)[inside], 1, rtol=0.05)


def test_what_is_not_drawn_has_radius_zero(scene):
  arrays, camera = scene
  arrays["means"][0] = [0, 0, -10]  # Behind.
  arrays["means"][1] = [50, 0, 0]  # Beside the image.
  arrays["opacities"][2] = 1 / 256  # Below 1/255 everywhere.
  arrays["means"][3] = np.nan
  radii = project(**arrays, camera=camera).radii
  np.testing.assert_array_equal(radii[:4], 0)
  near = dataclasses.replace(camera, near=2.4)
  depths = np.asarray(project(**arrays, camera=camera).depths)
  culled = np.asarray(project(**arrays, camera=near).radii) == 0
  assert np.all(culled[depths < 2.4]) and not np.all(culled)


def far_to_the_side(limit: str, cx: float = 20.0) -> float:
  """Variance along x of a Gaussian seen under a wide angle: shows where the Jacobian is taken."""
  camera = Camera(jnp.eye(4), jnp.array([[20.0, 0, cx], [0, 20, 20], [0, 0, 1]]), 40, 40)
  projected = project(
      jnp.array([[6.0, 0, 2.0]]),  # x / z = 3; the image ends at 1 for cx = 20.
      jnp.array([[1.0, 0, 0, 0]]),
      jnp.full((1, 3), 3.0),
      jnp.ones(1),
      camera,
      config=Config(jacobian_limit=limit, low_pass=0.0),
  )
  return 1 / float(projected.conics[0, 0])


def test_jacobian_limits():
  variance = lambda at: (20 / 2 * 3.0) ** 2 * (1 + at**2)  # (f/z s)^2 (1 + (x/z)^2).
  np.testing.assert_allclose(far_to_the_side("none"), variance(3.0), rtol=1e-4)
  np.testing.assert_allclose(far_to_the_side("centred"), variance(1.3), rtol=1e-4)
  np.testing.assert_allclose(far_to_the_side("image"), variance(1.3), rtol=1e-4)
  # Off-centre: the image now ends at (40 - 10) / 20 = 1.5.
  np.testing.assert_allclose(far_to_the_side("image", cx=10.0), variance(1.8), rtol=1e-4)
  np.testing.assert_allclose(far_to_the_side("centred", cx=10.0), variance(1.3), rtol=1e-4)


def test_square_support_is_three_sigmas_rounded_up(scene):
  arrays, camera = scene
  projected = project(**arrays, camera=camera, config=Config(support="square"))
  _, covariances, _ = ewa(arrays, camera, 0.3)
  radius = np.ceil(3 * np.sqrt(np.linalg.eigvalsh(covariances)[:, 1]))
  drawn = np.asarray(projected.radii) > 0
  assert np.mean(projected.radii[drawn] == radius[drawn]) > 0.95  # Rounding up may differ by rounding.
  np.testing.assert_allclose(projected.radii[drawn], radius[drawn], atol=1)


def test_batches_broadcast(scene):
  arrays, camera = scene
  poses = np.stack([camera.world_to_camera] * 2)
  poses[1, 0, 3] += 0.1
  many = project(**arrays, camera=dataclasses.replace(camera, world_to_camera=poses))
  assert many.means2d.shape == (2, 64, 2) and many.radii.shape == (2, 64)
  one = project(**arrays, camera=camera)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-6), many, one)
