"""Projection against EWA written with numpy matrices, and its constants against the rasterizers they come from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from splat_kernels import INRIA, Camera, Config, normals, project
from splat_kernels.binning import make_bins, tile_box
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


def ewa(arrays, camera, low_pass, limit=None):
  """Centres and covariances by matrices, float64; `limit`, half fields of view, is where the Jacobian is taken at most."""
  pose, k = camera.world_to_camera.astype(np.float64), camera.intrinsics.astype(np.float64)
  means = arrays["means"] @ pose[:3, :3].T + pose[:3, 3]
  rotations = Rotation.from_quat(np.roll(arrays["quats"], -1, axis=-1)).as_matrix()  # scipy: xyzw.
  axes = rotations * arrays["scales"][:, None, :]
  x, y, z = means.T
  if limit is not None:
    tan_x, tan_y = limit * camera.width / 2 / k[0, 0], limit * camera.height / 2 / k[1, 1]
    x, y = np.clip(x / z, -tan_x, tan_x) * z, np.clip(y / z, -tan_y, tan_y) * z
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


def inria_rectangles(arrays, camera, size=16):
  """Radii and tiles (first column and row, and one past the last) by formulas of diff-gaussian-rasterization, float32.

  Also how far each number that is rounded is from where rounding would go the other way.
  """
  centres, covariances, z = ewa(arrays, camera, 0.3, limit=1.3)
  x, y = (centres.astype(np.float32) - np.float32(0.5)).T  # Pixel centres are whole numbers there.
  xx, xy, yy = (covariances[:, i, j].astype(np.float32) for i, j in ((0, 0), (0, 1), (1, 1)))
  mid, det = np.float32(0.5) * (xx + yy), xx * yy - xy * xy
  root = np.sqrt(np.maximum(np.float32(0.1), mid * mid - det))
  exact = 3 * np.sqrt(np.maximum(mid + root, mid - root))
  radius = np.ceil(exact)
  columns, rows = -(-camera.width // size), -(-camera.height // size)
  edges = np.stack([x - radius, y - radius, x + radius + size - 1, y + radius + size - 1], axis=-1) / size
  boxes = np.minimum([columns, rows] * 2, np.maximum(0, np.trunc(edges).astype(int)))
  empty = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) == 0
  culled = empty | (z <= 0.2)
  margin = np.min(np.abs(edges - np.round(edges)), axis=-1)
  margin = np.minimum(margin, np.abs(exact - np.round(exact)) / exact)
  return np.where(culled, 0, radius), np.where(culled[:, None], 0, boxes), margin


@pytest.mark.parametrize("tile_size, spread", [(16, 1.0), (8, 3.0)])
def test_inria_support_is_that_of_its_code(tile_size, spread):
  # A head that fills the image; and a cloud that lies mostly outside, partly before the near plane.
  scene = make_scene(Spec(2000, 100, 70, 90.0, 0.03, seed=4))
  arrays = {key: scene[key][0] for key in GEOMETRY}
  arrays["means"] *= np.float32(spread)
  arrays["opacities"] = np.maximum(arrays["opacities"], 0.1)
  camera = scene["camera"]
  projected = project(**arrays, camera=camera, config=dataclasses.replace(INRIA, tile_size=tile_size))
  radii, boxes, margin = inria_rectangles(arrays, camera, tile_size)
  clear = margin > 1e-5  # Elsewhere the last bits of float32 decide.
  assert clear.mean() > 0.99 and np.sum(radii > 0) > 800
  np.testing.assert_array_equal(np.asarray(projected.radii)[clear], radii[clear])
  np.testing.assert_array_equal(np.asarray(tile_box(projected, 100, 70, tile_size))[clear], boxes[clear])
  # What is listed is what is drawn, one slot for each tile.
  config = dataclasses.replace(INRIA, tile_size=tile_size)
  bins = jax.jit(lambda p: make_bins(p, width=100, height=70, config=config, capacity=30_000))(projected)
  counts = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  assert bins.overflow == 0
  listed = np.bincount(np.asarray(bins.gaussians)[: int(bins.intersections)], minlength=2000)
  np.testing.assert_array_equal(listed[clear], counts[clear])


def test_radius_clip(scene):
  arrays, camera = scene
  all_radii = np.asarray(project(**arrays, camera=camera).radii)
  clip = int(np.median(all_radii[all_radii > 0]))
  clipped = project(**arrays, camera=camera, config=Config(radius_clip=clip))
  np.testing.assert_array_equal(clipped.radii, np.where(all_radii > clip, all_radii, 0))
  assert np.sum(all_radii == clip) > 0
  culled = np.asarray(clipped.radii) == 0
  assert np.all(np.asarray(clipped.extents)[culled] == 0) and np.all(np.asarray(clipped.opacities)[culled] == 0)


def covariances_of(arrays) -> np.ndarray:
  rotations = Rotation.from_quat(np.roll(arrays["quats"], -1, axis=-1)).as_matrix()
  axes = rotations * arrays["scales"][:, None, :]
  return axes @ axes.transpose(0, 2, 1)


@pytest.mark.parametrize("projection", ["ewa", "unscented"])
def test_covariances_instead_of_quats_and_scales(scene, projection):
  arrays, camera = scene
  config = Config(projection=projection, antialiased=True)
  expected = project(**arrays, camera=camera, config=config)
  # Only their symmetric part counts.
  skew = np.random.default_rng(0).normal(size=(64, 3, 3))
  covariances = (covariances_of(arrays) + skew - skew.transpose(0, 2, 1)).astype(np.float32)
  given = arrays["means"], None, None, arrays["opacities"], camera
  projected = project(*given, covariances=covariances, config=config)
  drawn = np.asarray(expected.radii) > 0
  np.testing.assert_array_equal(drawn, np.asarray(projected.radii) > 0)
  # The unscented transform's points lie elsewhere on the same ellipsoid: of third order in the size.
  tolerance = 1e-4 if projection == "ewa" else 0.05
  for name in ("means2d", "conics", "depths", "opacities"):
    value, other = np.asarray(getattr(projected, name))[drawn], np.asarray(getattr(expected, name))[drawn]
    np.testing.assert_allclose(value, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


def test_gradients_of_covariances(scene):
  # C = A A^T, so that d loss / dA = 2 (d loss / dC) A: against the gradient by scales, A = R diag(s).
  arrays, camera = scene
  weights = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
  drawn = np.asarray(project(**arrays, camera=camera).radii) > 0
  loss = lambda p: jnp.sum((weights * drawn[:, None]) * p.conics)
  by_scales = jax.grad(lambda s: loss(project(**{**arrays, "scales": s}, camera=camera)))(arrays["scales"])
  given = arrays["means"], None, None, arrays["opacities"], camera
  covariances = covariances_of(arrays).astype(np.float32)
  by_covariances = jax.grad(lambda c: loss(project(*given, covariances=c)))(covariances)
  np.testing.assert_allclose(by_covariances, by_covariances.transpose(0, 2, 1), rtol=1e-6)
  rotations = Rotation.from_quat(np.roll(arrays["quats"], -1, axis=-1)).as_matrix()
  expected = 2 * np.einsum("nik,nij,njk->nk", rotations, by_covariances, rotations * arrays["scales"][:, None])
  np.testing.assert_allclose(by_scales, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("projection", ["ewa", "unscented"])
def test_degenerate_covariances_stay_finite(scene, projection):
  arrays, camera = scene
  covariances = np.tile(np.float32(np.diag([0.04, 0.09, 0.01])), (64, 1, 1))
  covariances[0] = 0
  covariances[1] = np.diag([0.04, 0.09, 0])
  covariances[2] = 0.04  # A needle.
  covariances[3, 0, 2] = np.nan
  covariances[4, 1, 1] = np.inf
  covariances[5] = np.diag([0.5, -0.09, 0.04])
  covariances[6] *= 1e9
  covariances[7] = np.diag([-0.09, 0.5, 0.04])

  def loss(covariances):
    given = arrays["means"], None, None, arrays["opacities"], camera
    p = project(*given, covariances=covariances, config=Config(projection=projection, support="inria"))
    return jnp.sum(p.means2d) + jnp.sum(p.conics) + jnp.sum(p.opacities), p

  gradient, projected = jax.grad(loss, has_aux=True)(covariances)
  assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves((gradient, projected)))
  if projection == "ewa":  # The transform takes what has no root for flat.
    np.testing.assert_array_equal(np.asarray(projected.radii)[[5, 7]], 0)
  np.testing.assert_array_equal(np.asarray(projected.radii)[3:5], 0)
  np.testing.assert_array_equal(gradient[3:5], 0)
  assert np.all(np.asarray(projected.radii)[:3] > 0)
  needle = np.asarray(projected.conics)[2]
  assert np.all(np.isfinite(needle)) and needle[0] * needle[2] > needle[1] ** 2


@pytest.mark.usefixtures("unchecked_signatures")
def test_either_a_rotation_with_scales_or_a_covariance(scene):
  arrays, camera = scene
  means, quats, scales, opacities = (arrays[name] for name in GEOMETRY)
  covariances = covariances_of(arrays)
  for given, message in (
      ((quats, scales, covariances), "is quats, scales, covariances"),
      ((None, None, None), "is none of them"),
      ((quats, None, None), "is quats"),
      ((quats, None, covariances), "is quats, covariances"),
      ((None, None, covariances[:5]), r"covariances.shape=\(5, 3, 3\) must be \(\*b, 64, 3, 3\)"),
      ((None, None, covariances[..., 0]), r"covariances.shape=\(64, 3\) must be"),
  ):
    with pytest.raises(ValueError, match=message):
      project(means, given[0], given[1], opacities, camera, covariances=given[2])
  with pytest.raises(ValueError, match="means='here' must be an array"):
    project("here", quats, scales, opacities, camera)


@pytest.mark.parametrize("model", ["pinhole", "orthographic"])
def test_normals(scene, model):
  arrays, camera = scene
  camera = dataclasses.replace(camera, model=model)
  arrays["scales"][:3] = np.float32([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2], [0.3, 0.2, 0.1]])
  value = np.asarray(jax.jit(normals)(arrays["means"], arrays["quats"], arrays["scales"], camera))
  rotations = Rotation.from_quat(np.roll(arrays["quats"], -1, axis=-1)).as_matrix()
  pose = camera.world_to_camera
  axis = np.take_along_axis(rotations, np.argmin(arrays["scales"], -1)[:, None, None], axis=-1)[..., 0] @ pose[:3, :3].T
  np.testing.assert_allclose(np.abs(np.sum(value * axis, -1)), 1, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(value, axis=-1), 1, atol=1e-5)
  towards = arrays["means"] @ pose[:3, :3].T + pose[:3, 3] if model == "pinhole" else np.float32([[0, 0, 1]])
  assert np.all(np.sum(value * towards, -1) < 0)
  poses = np.stack([pose, np.eye(4, dtype=np.float32)])
  many = normals(arrays["means"], arrays["quats"], arrays["scales"], dataclasses.replace(camera, world_to_camera=poses))
  np.testing.assert_allclose(many[0], value, atol=1e-6)
  assert many.shape == (2, 64, 3)


def test_normals_of_broken_gaussians_have_no_gradient(scene):
  arrays, camera = scene
  arrays["quats"][0, 1] = np.nan
  arrays["means"][1, 1] = np.inf
  arrays["quats"][2] = 0
  arrays["quats"][3, 0] = np.inf

  def loss(means, quats, pose):
    return jnp.sum(normals(means, quats, arrays["scales"], dataclasses.replace(camera, world_to_camera=pose)))

  inputs = arrays["means"], arrays["quats"], camera.world_to_camera
  gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
  gradients = gradient(*inputs)
  assert all(np.all(np.isfinite(a)) for a in gradients) and np.any(gradients[1][4:] != 0)
  assert all(np.all(np.isfinite(a)) for a in gradient(*inputs[:2], np.full((4, 4), np.nan, np.float32)))


@pytest.mark.usefixtures("unchecked_signatures")
def test_normals_check_shapes(scene):
  arrays, camera = scene
  with pytest.raises(ValueError, match=r"scales.shape=\(64, 2\)"):
    normals(arrays["means"], arrays["quats"], arrays["scales"][:, :2], camera)
  with pytest.raises(ValueError, match=r"means.shape=\(3,\)"):
    normals(arrays["means"][0], arrays["quats"], arrays["scales"], camera)


def test_batches_broadcast(scene):
  arrays, camera = scene
  poses = np.stack([camera.world_to_camera] * 2)
  poses[1, 0, 3] += 0.1
  many = project(**arrays, camera=dataclasses.replace(camera, world_to_camera=poses))
  assert many.means2d.shape == (2, 64, 2) and many.radii.shape == (2, 64)
  one = project(**arrays, camera=camera)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-6), many, one)
