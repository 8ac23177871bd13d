"""Camera models, the unscented transform and rolling shutters against OpenCV's formulas in numpy, in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from splat_kernels import Camera, Config, cameras, project, rasterize
from splat_kernels.cameras import make_motion, map_point, shutter_time, widest_tangent

WIDTH, HEIGHT = 40, 30
CAMERAS = {
    "pinhole": ("pinhole", (-0.2, 0.1, 0.01, -0.02, 0.05, 0.1, -0.05, 0.02)),
    "fisheye": ("fisheye", (0.05, -0.02, 0.01, -0.003)),
}
IDENTITY = np.float32([1, 0, 0, 0])
UNSCENTED = Config(projection="unscented", low_pass=0.0)


def camera_64(points, model, distortion, intrinsics):
  """Pixels of points in camera coordinates, as OpenCV's documentation has it."""
  x, y, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
  k = np.concatenate([() if distortion is None else distortion, np.zeros(8)])
  if model == "pinhole":
    x, y = x / z, y / z
    r2 = x**2 + y**2
    scale = (1 + k[0] * r2 + k[1] * r2**2 + k[4] * r2**3) / (1 + k[5] * r2 + k[6] * r2**2 + k[7] * r2**3)
    tangential = 2 * k[2] * x * y + k[3] * (r2 + 2 * x**2), k[2] * (r2 + 2 * y**2) + 2 * k[3] * x * y
    x, y = x * scale + tangential[0], y * scale + tangential[1]
  elif model == "fisheye":
    r = np.hypot(x, y)
    angle = np.arctan2(r, z)
    bent = angle * (1 + k[0] * angle**2 + k[1] * angle**4 + k[2] * angle**6 + k[3] * angle**8)
    x, y = x * bent / r, y * bent / r
  return np.stack([intrinsics[0, 0] * x + intrinsics[0, 2], intrinsics[1, 1] * y + intrinsics[1, 2]], axis=-1)


def make_scene(case: str, num: int = 20, size: float = 0.1) -> tuple[dict, Camera]:
  """Gaussians inside of the image, for all models, and a camera that looks along no axis."""
  rng = np.random.default_rng(0)
  model, distortion = CAMERAS[case]
  pose = np.eye(4)
  pose[:3, :3] = Rotation.from_rotvec([0.2, -0.3, 0.1]).as_matrix()
  pose[:3, 3] = [0.1, -0.2, 2.0]
  arrays = {
      "means": rng.uniform(-0.6, 0.6, (num, 3)),
      "quats": rng.normal(size=(num, 4)),
      "scales": rng.uniform(0.3, 1, (num, 3)) * size,
      "opacities": rng.uniform(0.3, 1, num),
  }
  intrinsics = np.array([[25.0, 0, 21.0], [0, 22.0, 14.0], [0, 0, 1]])
  arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
  distortion = None if distortion is None else np.float32(distortion)
  pose, intrinsics = pose.astype(np.float32), intrinsics.astype(np.float32)
  return arrays, Camera(pose, intrinsics, WIDTH, HEIGHT, model=model, distortion=distortion)


def axes_64(arrays) -> np.ndarray:
  """Columns are the Gaussians' axes, one standard deviation long."""
  rotations = Rotation.from_quat(np.roll(np.asarray(arrays["quats"], np.float64), -1, axis=-1)).as_matrix()
  return rotations * np.asarray(arrays["scales"], np.float64)[:, None, :]


def ewa_64(arrays, camera) -> tuple[np.ndarray, np.ndarray]:
  """Centres and covariances in the image, the Jacobian by central differences."""
  pose, intrinsics = (np.asarray(a, np.float64) for a in (camera.world_to_camera, camera.intrinsics))
  at = lambda points: camera_64(points, camera.model, camera.distortion, intrinsics)
  points = np.asarray(arrays["means"], np.float64) @ pose[:3, :3].T + pose[:3, 3]
  steps = 1e-5 * np.eye(3)
  jacobians = np.stack([(at(points + step) - at(points - step)) / 2e-5 for step in steps], axis=-1)
  halves = jacobians @ pose[:3, :3] @ axes_64(arrays)
  return at(points), halves @ halves.transpose(0, 2, 1)


def covariances_of(projected) -> np.ndarray:
  return np.linalg.inv(np.asarray(projected.conics, np.float64)[:, [[0, 1], [1, 2]]])


def assert_close(value, expected, tolerance):
  """Relative to the largest number of the array."""
  np.testing.assert_allclose(value, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


@functools.cache
def _program(config: Config):
  def loss(arrays, camera, weights):
    p = project(**arrays, camera=camera, config=config)
    return sum(jnp.sum(weight * value) for weight, value in zip(weights, outputs_of(p))), p

  return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


def outputs_of(p) -> tuple:
  return p.means2d, p.conics, p.depths, p.opacities


def differentiate(arrays, camera, config, by_means2d=1.0, by_conics=1.0, by_others=1.0):
  """Gradients by Gaussians and camera of a linear function of the outputs, and the outputs; few programs for many tests."""
  shapes = {(20, 2): by_means2d, (20, 3): by_conics, (20,): by_others}
  means2d, conics, others = (np.broadcast_to(np.float32(weight), shape) for shape, weight in shapes.items())
  return _program(config)(arrays, camera, (means2d, conics, others, others))


EWA = Config(low_pass=0.0, antialiased=True)
PROGRAMS = {
    "pinhole": ("pinhole", EWA),
    "fisheye": ("fisheye", EWA),
    "unscented": ("pinhole", UNSCENTED),
    "rolling": ("rolling", UNSCENTED),
}


def scene_of(program: str, size: float = 0.1) -> tuple[dict, Camera, Config]:
  case, config = PROGRAMS[program]
  return *(rolling_camera(size=size) if case == "rolling" else make_scene(case, size=size)), config


@pytest.mark.parametrize("case", CAMERAS)
def test_positions_and_covariances(case):
  arrays, camera = make_scene(case)
  _, projected = differentiate(arrays, camera, EWA)
  centres, covariances = ewa_64(arrays, camera)
  assert np.all(projected.radii > 0)
  assert_close(projected.means2d, centres, 1e-6)
  assert_close(covariances_of(projected), covariances, 1e-4)
  # What sorts is z for all models.
  z = arrays["means"] @ camera.world_to_camera[2, :3] + camera.world_to_camera[2, 3]
  np.testing.assert_allclose(projected.depths, z, rtol=1e-6)


@pytest.mark.parametrize("program", PROGRAMS)
def test_gradients_are_those_of_float64_differences(program):
  arrays, camera, config = scene_of(program)
  rng = np.random.default_rng(1)
  weights = rng.normal(size=(20, 2)), 10 * rng.normal(size=(20, 3))
  names = cameras.arrays_of(camera)
  (by_arrays, by_camera), _ = differentiate(arrays, camera, config, *weights, by_others=0)
  gradients = {**by_arrays, **{name: getattr(by_camera, name) for name in names}}
  del gradients["opacities"]

  def loss_64(name, step):
    moved = {**arrays, name: arrays[name].astype(np.float64) + step} if name in arrays else arrays
    fields = {} if name in arrays else {name: getattr(camera, name).astype(np.float64) + step}
    at = dataclasses.replace(camera, **fields)
    centres, covariances = {"rolling": rolling_64, "unscented": unscented_64}.get(program, ewa_64)(moved, at)
    conics = np.linalg.inv(covariances).reshape(-1, 4)[:, [0, 1, 3]]
    return np.sum(weights[0] * centres) + np.sum(weights[1] * conics)

  for name, gradient in gradients.items():
    for _ in range(3):
      direction = rng.normal(size=gradient.shape)
      if name == "intrinsics":
        direction *= [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
      if name.startswith("world"):  # Only translations stay poses.
        direction *= 1 if program != "rolling" else np.eye(4)[3]
        direction[3] = 0
      expected = (loss_64(name, 1e-5 * direction) - loss_64(name, -1e-5 * direction)) / 2e-5
      # The transform's weights multiply rounding by a hundred.
      tolerance = (1e-4 if config == EWA else 2e-3) * np.linalg.norm(gradient) * np.linalg.norm(direction)
      np.testing.assert_allclose(np.sum(gradient * direction), expected, atol=tolerance, err_msg=name)


def test_a_distortion_of_zeros_changes_nothing():
  # Far outside of the image, too, where the Jacobian is limited.
  rng = np.random.default_rng(0)
  arrays, camera = make_scene("pinhole", num=200)
  arrays["means"] = rng.uniform(-6, 6, (200, 3)).astype(np.float32)
  arrays["scales"] *= 30
  cases = (None, np.zeros(4, np.float32))
  plain, zeros = (project(**arrays, camera=dataclasses.replace(camera, distortion=k)) for k in cases)
  drawn = np.asarray(plain.radii) > 0
  outside = np.abs(np.asarray(plain.means2d) - [20, 15]).max(-1) > 40
  assert np.sum(drawn & outside) > 10
  for name in ("means2d", "conics", "extents"):
    value, expected = np.asarray(getattr(zeros, name)), np.asarray(getattr(plain, name))
    np.testing.assert_allclose(value[drawn], expected[drawn], rtol=1e-4, atol=1e-6)


def test_the_jacobians_limit_is_of_the_distorted_point():
  # r (1 - 0.05 r^2) grows up to 2.6. x / z = 2 is seen at 1.6; the image ends at 1, its limit lies at 1.3, so the
  # Jacobian is taken at 2 * 1.3 / 1.6.
  camera = Camera(np.eye(4), np.diag([20.0, 20, 1]) + np.eye(3, k=2) * 20 + np.eye(3, k=1) * [[0], [20], [0]], 40, 40)
  camera = dataclasses.replace(camera, distortion=np.float32([-0.05, 0, 0, 0]))
  x, z, s = 4.0, 2.0, 3.0
  arrays = np.float32([[x, 0, z]]), IDENTITY[None], np.full((1, 3), s), np.ones(1)
  projected = project(*arrays, camera, config=Config(low_pass=0.0))
  at = 2 * 1.3 / 1.6
  slope = 20 * (1 - 0.15 * at**2)
  np.testing.assert_allclose(1 / projected.conics[0, 0], (slope / z * s) ** 2 * (1 + at**2), rtol=1e-4)


def project_points(points, camera, **config):
  """Small Gaussians at points in camera coordinates."""
  num = len(points)
  arrays = np.float32(points), np.tile(IDENTITY, (num, 1)), np.full((num, 3), 1e-3), np.ones(num)
  return project(*arrays, camera, config=Config(**config))


TURNING = [
    ("pinhole", (-0.3, 0, 0, 0), np.sqrt(1 / 0.9)),  # r - 0.3 r^3
    ("pinhole", (0, 0, 0, 0, -0.1), (1 / 0.7) ** (1 / 6)),  # r - 0.1 r^7
    ("pinhole", (0, 0, 0, 0, 0, -0.25, 0, 0), 2.0),  # r / (1 - r^2 / 4): a pole, beyond which it grows again.
    ("pinhole", (0, 0, 0, 0, 0, 0.25, 0, 0), 2.0),  # r / (1 + r^2 / 4)
    ("pinhole", (0.3, 0, 0, 0), 1e4),
    ("fisheye", (-0.4, 0, 0, 0), np.tan(np.sqrt(1 / 1.2))),  # a - 0.4 a^3
    # a (1 - 2 a^2 + 1.5 a^4), which falls where 1 - 6 a^2 + 7.5 a^4 < 0, from 0.487 to 0.750 rad, and grows again.
    ("fisheye", (-2.0, 1.5, 0, 0), np.tan(np.sqrt((6 - np.sqrt(6)) / 15))),
]


@pytest.mark.parametrize("model, distortion, turns_at", TURNING)
def test_where_a_distortion_turns_back(model, distortion, turns_at):
  camera = Camera(jnp.eye(4), jnp.eye(3), 8, 8, model=model, distortion=jnp.float32(distortion))
  np.testing.assert_allclose(widest_tangent(camera), turns_at, rtol=1e-3)


@pytest.mark.parametrize("case, projection", [(0, "ewa"), (0, "unscented"), (-1, "ewa")])
def test_nothing_is_drawn_beyond_where_a_distortion_turns_back(case, projection):
  model, distortion, turns_at = TURNING[case]
  camera = Camera(
      np.eye(4),
      np.float32([[5, 0, 200], [0, 5, 200], [0, 0, 1]]),
      400,
      400,
      model=model,
      distortion=np.float32(distortion),
  )
  tangents = np.array([0.1, 0.99, 1.01, 1.5, 3, 20]) * turns_at
  angle = np.linspace(0, 6, len(tangents))
  for z in (0.5, 2.0):
    points = z * np.stack([tangents * np.cos(angle), tangents * np.sin(angle), np.ones_like(tangents)], axis=-1)
    drawn = np.asarray(project_points(points, camera, projection=projection).radii) > 0
    np.testing.assert_array_equal(drawn, tangents < turns_at)


@pytest.mark.parametrize("model", ["fisheye", "orthographic"])
def test_near_and_far_are_of_z(model):
  camera = Camera(np.eye(4), np.float32([[5, 0, 50], [0, 5, 50], [0, 0, 1]]), 100, 100, near=0.5, far=3.0, model=model)
  points = [[0.6, 0, 0.4], [0.6, 0, 0.6], [0.6, 0, 2.9], [0.6, 0, 3.1], [0.6, 0, -1.0], [0.6, 0, 0]]
  drawn = np.asarray(project_points(points, camera).radii) > 0
  np.testing.assert_array_equal(drawn, [False, True, True, False, False, False])


def test_fisheye_on_the_axis():
  # x / tan and its derivatives by a series there; where it meets the formula, at a tangent of sqrt(1e-3), no step.
  camera = jax.tree.map(jnp.asarray, make_scene("fisheye")[1])
  k = np.float64(camera.distortion)
  scale = jax.jit(lambda x: map_point(x, 0.0, 1.0, camera)[0] / x)
  for tangent in (1e-6, 1e-3, 0.0316, 0.0317, 0.1):
    angle = np.arctan(tangent)
    bent = angle * (1 + k[0] * angle**2 + k[1] * angle**4 + k[2] * angle**6 + k[3] * angle**8)
    np.testing.assert_allclose(scale(tangent), bent / tangent, rtol=3e-7)
  gradient = jax.jit(jax.grad(lambda p: map_point(*p, camera)[0]))((0.0, 0.0, 2.0))
  np.testing.assert_allclose(gradient, (0.5, 0, 0), atol=1e-7)
  # d^2 u / dx^2 to second order: u = x / z (1 + (k1 - 1/3) x^2 / z^2).
  with jax.enable_x64(True):  # Where the series' last terms count.
    double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), camera)
    for tangent in (0.01, 0.0316, 0.0317):
      expected = camera_64(np.array([tangent, 1e-300, 1.0]), "fisheye", k, np.eye(3))[0]
      np.testing.assert_allclose(map_point(jnp.asarray(tangent), 0.0, 1.0, double)[0], expected, rtol=3e-12)
  second = jax.jit(jax.grad(jax.grad(lambda x: map_point(x, 0.0, 2.0, camera)[0])))
  for x in (1e-3, 0.06, 0.065):
    angle = np.arctan(x / 2)
    h = 1e-4
    at = lambda x: camera_64(np.array([x, 1e-12, 2.0]), "fisheye", k, np.eye(3))[0]
    np.testing.assert_allclose(second(x), (at(x + h) - 2 * at(x) + at(x - h)) / h**2, rtol=2e-2, atol=1e-6)


def sigma_points_64(arrays, alpha=0.1, beta=2.0, kappa=0.0):
  """The seven points in the world, (N, 7, 3), with their weights for mean and covariance as the literature has them."""
  spread = alpha**2 * (3 + kappa)
  steps = np.sqrt(spread) * axes_64(arrays).transpose(0, 2, 1)  # (N, axis, 3)
  means = np.asarray(arrays["means"], np.float64)[:, None]
  points = np.concatenate([means, means + steps, means - steps], axis=1)
  weights = np.full(7, 1 / (2 * spread))
  weights[0] = 1 - 3 / spread
  by_covariance = weights.copy()
  by_covariance[0] += 1 - alpha**2 + beta
  return points, weights, by_covariance


def moments_64(pixels, weights, by_covariance):
  mean = np.einsum("s,nsi->ni", weights, pixels)
  centred = pixels - mean[:, None]
  return mean, np.einsum("s,nsi,nsj->nij", by_covariance, centred, centred)


def unscented_64(arrays, camera, **constants):
  points, *weights = sigma_points_64(arrays, **constants)
  pose, intrinsics = (np.asarray(a, np.float64) for a in (camera.world_to_camera, camera.intrinsics))
  pixels = camera_64(points @ pose[:3, :3].T + pose[:3, 3], camera.model, camera.distortion, intrinsics)
  return moments_64(pixels, *weights)


@pytest.mark.parametrize("constants", [(0.1, 2.0, 0.0), (0.7, 1.0, 0.5)])
def test_unscented_transform(constants):
  arrays, camera = make_scene("pinhole", size=0.6)
  config = dataclasses.replace(UNSCENTED, sigma_points=constants)
  projected = project(**arrays, camera=camera, config=config)
  means, covariances = unscented_64(arrays, camera, **dict(zip(("alpha", "beta", "kappa"), constants)))
  drawn = np.asarray(projected.radii) > 0
  assert drawn.sum() > 15
  np.testing.assert_allclose(np.asarray(projected.means2d)[drawn], means[drawn], atol=2e-3)
  np.testing.assert_allclose(covariances_of(projected)[drawn], covariances[drawn], rtol=2e-3, atol=5e-3)
  # It is another thing than the Jacobian says of Gaussians as wide as these.
  assert np.abs(ewa_64(arrays, camera)[1] - covariances)[drawn].max() > 1


def test_unscented_agrees_with_the_jacobian_for_small_gaussians():
  arrays, camera = make_scene("pinhole", size=0.02)
  ewa, unscented = (differentiate(arrays, camera, config)[1] for config in (EWA, UNSCENTED))
  np.testing.assert_allclose(unscented.means2d, ewa.means2d, atol=0.02)
  np.testing.assert_allclose(covariances_of(unscented), covariances_of(ewa), rtol=5e-3, atol=5e-3)
  np.testing.assert_array_equal(unscented.depths, ewa.depths)


def test_all_seven_points_must_be_seen():
  camera = Camera(np.eye(4), np.float32([[5, 0, 50], [0, 5, 50], [0, 0, 1]]), 100, 100)
  reach = 0.1 * np.sqrt(3)
  at = lambda scale: project(
      np.float32([[0, 0, 0.5]]), IDENTITY[None], np.float32([[0.01, 0.01, scale]]), np.ones(1), camera, config=UNSCENTED
  )
  assert at(0.98 * 0.5 / reach).radii[0] > 0
  assert at(1.02 * 0.5 / reach).radii[0] == 0


def rolling_camera(motion: float = 1.0, size: float = 0.05):
  arrays, camera = make_scene("pinhole", size=size)
  end = np.eye(4)
  end[:3, :3] = Rotation.from_rotvec(motion * np.array([0.1, 0.05, -0.08])).as_matrix() @ camera.world_to_camera[:3, :3]
  end[:3, 3] = camera.world_to_camera[:3, 3] + motion * np.array([0.1, 0.2, -0.3])
  return arrays, dataclasses.replace(camera, world_to_camera_end=end.astype(np.float32), shutter="top_to_bottom")


def poses_64(camera, times):
  """Slerp and lerp, by scipy."""
  start, end = (np.asarray(a, np.float64) for a in (camera.world_to_camera, camera.world_to_camera_end))
  rotations = Slerp([0, 1], Rotation.from_matrix([start[:3, :3], end[:3, :3]]))(times.reshape(-1)).as_matrix()
  return rotations.reshape(*times.shape, 3, 3), start[:3, 3] + times[..., None] * (end[:3, 3] - start[:3, 3])


@pytest.mark.parametrize("angle", [1e-4, 0.03, 0.08, 2.5])
def test_the_camera_turns_evenly(angle):
  # Also where the series for small angles ends: sin(angle / 2)^2 = 1e-3 at 0.063.
  _, camera = rolling_camera()
  start, end = np.array(camera.world_to_camera), np.array(camera.world_to_camera_end)
  axis = np.array([0.48, 0.6, -0.64])
  end[:3, :3] = Rotation.from_rotvec(angle * axis).as_matrix() @ start[:3, :3]
  camera = dataclasses.replace(camera, world_to_camera_end=end)
  points = np.random.default_rng(0).normal(size=(5, 3)) + [0, 0, 3]
  times = np.linspace(0, 1, 5)
  world = (points - start[:3, 3]) @ start[:3, :3]
  rotations, translations = poses_64(camera, times)
  expected = np.einsum("nij,nj->ni", rotations, world) + translations
  move = jax.jit(lambda camera, *a: make_motion(camera)(*a))
  moved = move(jax.tree.map(np.float32, camera), tuple(np.float32(points.T)), np.float32(times))
  np.testing.assert_allclose(np.stack(moved, axis=-1), expected, atol=3e-6)


@pytest.mark.parametrize("shutter", ["top_to_bottom", "bottom_to_top", "left_to_right", "right_to_left"])
def test_rows_are_read_one_after_another(shutter):
  x, y = jnp.array([0.5, 20.0, 39.5, 45.0]), jnp.array([0.5, 15.0, 29.5, -3.0])
  camera = Camera(jnp.eye(4), jnp.eye(3), WIDTH, HEIGHT, world_to_camera_end=jnp.eye(4), shutter=shutter)
  time = np.array([0, 0.5, 1, 0 if shutter in ("top_to_bottom", "right_to_left") else 1])
  if shutter in ("bottom_to_top", "right_to_left"):
    time[:3] = time[:3][::-1]
  np.testing.assert_allclose(shutter_time((x, y), camera), time, atol=1e-6)


def rolling_64(arrays, camera):
  points, *weights = sigma_points_64(arrays)
  times = np.full(points.shape[:2], 0.5)
  intrinsics = np.asarray(camera.intrinsics, np.float64)
  for _ in range(20):  # To convergence.
    rotations, translations = poses_64(camera, times)
    points_c = np.einsum("nsij,nsj->nsi", rotations, points) + translations
    pixels = camera_64(points_c, camera.model, camera.distortion, intrinsics)
    times = np.clip((pixels[..., 1] - 0.5) / (HEIGHT - 1), 0, 1)
  return moments_64(pixels, *weights)


def test_rolling_shutter():
  arrays, camera = rolling_camera()
  _, projected = differentiate(arrays, camera, UNSCENTED)
  means, covariances = rolling_64(arrays, camera)
  assert np.all(projected.radii > 0)
  np.testing.assert_allclose(projected.means2d, means, atol=5e-3)
  np.testing.assert_allclose(covariances_of(projected), covariances, rtol=5e-3, atol=5e-3)
  middle, translation = poses_64(camera, np.array(0.5))
  np.testing.assert_allclose(projected.depths, (arrays["means"] @ middle.T + translation)[:, 2], rtol=1e-5)
  still = dataclasses.replace(camera, world_to_camera_end=None, shutter="global")
  assert np.abs(differentiate(arrays, still, UNSCENTED)[1].means2d - means).max() > 2


def test_an_orthographic_camera_on_the_move_in_closed_form():
  # v = fy (y + shift t) + cy with t = (v - 0.5) / (H - 1) is linear in v.
  shift, y = 0.4, np.array([-0.3, 0.0, 0.2])
  end = np.eye(4)
  end[1, 3] = shift
  camera = Camera(
      np.eye(4),
      np.float32([[20, 0, 20], [0, 20, 15], [0, 0, 1]]),
      WIDTH,
      HEIGHT,
      model="orthographic",
      world_to_camera_end=end,
      shutter="top_to_bottom",
  )
  means = np.stack([0 * y, y, 0 * y + 2], axis=-1).astype(np.float32)
  projected = project(means, np.tile(IDENTITY, (3, 1)), np.full((3, 3), 0.05), np.ones(3), camera, config=UNSCENTED)
  share = 20 * shift / (HEIGHT - 1)
  np.testing.assert_allclose(projected.means2d[:, 1], (20 * y + 15 - 0.5 * share) / (1 - share), atol=1e-3)
  np.testing.assert_allclose(covariances_of(projected)[:, 1, 1], (20 * 0.05 / (1 - share)) ** 2, rtol=1e-3)


def test_a_camera_that_stands_still_has_a_global_shutter():
  arrays, camera = rolling_camera(motion=0.0)
  still = dataclasses.replace(camera, world_to_camera_end=None, shutter="global")
  gradients, rolling = differentiate(arrays, camera, UNSCENTED)
  for value, expected in zip(outputs_of(rolling), outputs_of(differentiate(arrays, still, UNSCENTED)[1])):
    np.testing.assert_allclose(value, expected, rtol=2e-3, atol=2e-3)
  assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(gradients))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_camera_that_is_not_finite_culls_everything_and_has_no_gradient(program, value):
  arrays, camera, config = scene_of(program)
  fields = {"world_to_camera": (0, 3), "intrinsics": (0, 0), "distortion": (1,), "world_to_camera_end": (2, 2)}
  for field, index in fields.items():
    if getattr(camera, field) is not None:
      broken = np.array(getattr(camera, field))
      broken[index] = value
      gradients, projected = differentiate(arrays, dataclasses.replace(camera, **{field: broken}), config)
      np.testing.assert_array_equal(projected.radii, 0)
      assert all(np.all(np.isfinite(a)) for a in outputs_of(projected)), field
      for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, 0)


def test_an_image_counts_all_gaussians_of_a_camera_that_is_not_finite():
  arrays, camera = make_scene("fisheye")
  coefficients = np.random.default_rng(0).normal(size=(20, 4, 3)).astype(np.float32)
  arrays["means"][3, 1] = np.nan
  coefficients[4, 2, 0] = np.inf
  draw = functools.partial(rasterize, **arrays, colors=coefficients, sh_degree=1, implementation="reference")
  for distortion, count in ((camera.distortion, 2), (camera.distortion * np.float32(np.nan), 20)):
    output = draw(camera=dataclasses.replace(camera, distortion=distortion))
    assert output.nonfinite == count and np.sum(np.asarray(output.radii) == 0) == count
    assert np.all(np.isfinite(output.image)) and np.all(np.isfinite(output.depth))


@pytest.mark.parametrize("program", PROGRAMS)
def test_degenerate_gaussians_leave_gradients_finite(program):
  arrays, camera, config = scene_of(program)
  means = [np.nan, 0, 0], [2e19, 0, 0], [-2, 0, 0], [0, 0, -2], [0, 0, -9], [1e6, 1e6, 0], [0, 1e9, 1e9]
  arrays["means"][: len(means)] = means
  arrays["means"][7] = np.linalg.solve(camera.world_to_camera[:3, :3], -camera.world_to_camera[:3, 3])  # In the lens.
  arrays["scales"][8:12, 1] = 0, 1e-20, 1e6, np.inf
  arrays["quats"][12] = 0
  gradients, projected = differentiate(arrays, camera, config)
  assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves((gradients, projected)))
  assert projected.radii[0] == 0 and np.all(np.asarray(projected.radii)[13:] > 0)


def test_cameras_of_a_batch_have_their_own_numbers():
  arrays, camera = rolling_camera()
  batch = {
      "distortion": np.stack([camera.distortion, 0 * camera.distortion]),
      "world_to_camera_end": np.stack([camera.world_to_camera_end, camera.world_to_camera]),
  }
  many = project(**arrays, camera=dataclasses.replace(camera, **batch), config=UNSCENTED)
  for i in range(2):
    alone = dataclasses.replace(camera, **{name: value[i] for name, value in batch.items()})
    np.testing.assert_allclose(many.means2d[i], differentiate(arrays, alone, UNSCENTED)[1].means2d, atol=1e-3)
  assert np.abs(many.means2d[0] - many.means2d[1]).max() > 0.5


def camera_with(**fields):
  return dataclasses.replace(Camera(np.eye(4), np.eye(3), 8, 8), **fields)


@pytest.mark.usefixtures("unchecked_signatures")
@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model": "ortho"}, "camera.model='ortho' must be one of pinhole, orthographic, fisheye"),
        ({"shutter": "rolling"}, "camera.shutter='rolling' must be one of global, top_to_bottom"),
        ({"shutter": "top_to_bottom"}, "camera.shutter='top_to_bottom' with camera.world_to_camera_end absent"),
        ({"world_to_camera_end": np.eye(4)}, "camera.shutter='global' with camera.world_to_camera_end given"),
        ({"shutter": "top_to_bottom", "world_to_camera_end": np.eye(3)}, r"camera.world_to_camera_end.shape=\(3, 3\)"),
        ({"shutter": "top_to_bottom", "world_to_camera_end": np.eye(4)}, "shutter='top_to_bottom' needs .*unscented"),
        ({"distortion": np.zeros(3)}, "camera.distortion has 3 coefficients, of camera.model='pinhole' 4 or 5 or 8"),
        ({"distortion": np.zeros(5), "model": "fisheye"}, "camera.distortion has 5 coefficients, of .*'fisheye' 4"),
        ({"distortion": np.zeros(4), "model": "orthographic"}, "camera.model='orthographic' has no distortion"),
        ({"distortion": 0.1}, r"camera.distortion.shape=\(\)"),
        ({"width": 8.5}, "camera.width=8.5 must be a positive whole number"),
        ({"height": 0}, "camera.height=0"),
        ({"near": "close"}, "camera.near='close' .* known outside jit"),
        ({"far": 0.0}, "camera.far=0.0"),
        ({"intrinsics": [[1, 2], [3]]}, "camera.intrinsics="),
        ({"intrinsics": None}, r"camera.intrinsics.shape=\(\) must be"),
        ({"world_to_camera": "front"}, "camera.world_to_camera='front' must be an array"),
        ({"intrinsics": np.eye(3) * 1j}, "camera.intrinsics.dtype=complex"),
        ({"world_to_camera": np.zeros((2, 4, 4)), "intrinsics": np.zeros((3, 3, 3))}, "must broadcast"),
    ],
)
def test_project_names_what_is_wrong_with_a_camera(fields, message):
  with pytest.raises(ValueError, match=message) as error:
    project_points([[0, 0, 2]], camera_with(**fields))
  assert "\n" not in str(error.value)


@pytest.mark.usefixtures("unchecked_signatures")
@pytest.mark.parametrize("field", ["near", "far", "width"])
def test_a_traced_number_is_named(field):
  with pytest.raises(ValueError, match=f"camera.{field}=.* must be a"):
    jax.jit(lambda value: project_points([[0, 0, 2]], camera_with(**{field: value})).radii)(5)


@pytest.mark.usefixtures("unchecked_signatures")
def test_numbers_of_all_kinds():
  plain = Camera(np.float32(np.eye(4)), np.float32([[5, 0, 4], [0, 5, 4], [0, 0, 1]]), 8, 8, 0.5, 10.0)
  means, quats, scales, opacities = np.float32([[0, 0, 2]]), np.float32([[1, 0, 0, 0]]), np.ones((1, 3)), np.ones(1)
  expected = project(means, quats, scales, opacities, plain)
  camera = Camera(
      np.eye(4).tolist(), ((5, 0, 4), (0, 5, 4), (0, 0, 1)), np.int64(8), jnp.int32(8), np.float32(0.5), jnp.float32(10)
  )
  lists = means.tolist(), quats.tolist(), ((1, 1, 1),), [1]
  value = project(*lists, camera)
  jax.tree.map(np.testing.assert_array_equal, value, expected)
  assert value.means2d.dtype == jnp.float32
