"""The dense reference against sources of truth outside of it: a loop in numpy, closed forms, finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from splat_kernels import Camera, Config, rasterize
from splat_kernels.specs import Spec, make_scene

ARRAYS = ("means", "quats", "scales", "opacities", "colors")


def draw_by_loop(scene: dict, background: np.ndarray, config: Config = Config()) -> tuple[np.ndarray, np.ndarray]:
  """One frame, pixel by pixel and Gaussian by Gaussian, in float64 and in the order of the definition."""
  camera = scene["camera"]
  w2c, k = camera.world_to_camera.astype(np.float64), camera.intrinsics.astype(np.float64)
  splats = []
  for i in range(scene["means"].shape[0]):
    x, y, z = w2c[:3, :3] @ scene["means"][i].astype(np.float64) + w2c[:3, 3]
    if z < config.near:
      continue
    q = scene["quats"][i].astype(np.float64)
    w, a, b, c = q / np.linalg.norm(q)
    rotation = np.array([
        [1 - 2 * (b * b + c * c), 2 * (a * b - w * c), 2 * (a * c + w * b)],
        [2 * (a * b + w * c), 1 - 2 * (a * a + c * c), 2 * (b * c - w * a)],
        [2 * (a * c - w * b), 2 * (b * c + w * a), 1 - 2 * (a * a + b * b)],
    ])
    covariance = rotation @ np.diag(scene["scales"][i].astype(np.float64) ** 2) @ rotation.T
    jacobian = np.array([[k[0, 0] / z, 0, -k[0, 0] * x / z**2], [0, k[1, 1] / z, -k[1, 1] * y / z**2]])
    jacobian = jacobian @ w2c[:3, :3]
    covariance = jacobian @ covariance @ jacobian.T + config.low_pass * np.eye(2)
    mean = np.array([k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]])
    splats.append((z, mean, np.linalg.inv(covariance), scene["opacities"][i], scene["colors"][i]))
  splats.sort(key=lambda s: s[0])

  image = np.zeros((camera.height, camera.width, background.shape[0]))
  transmittances = np.ones((camera.height, camera.width))
  for row in range(camera.height):
    for column in range(camera.width):
      transmittance = 1.0
      for _, mean, conic, opacity, color in splats:
        d = np.array([column + 0.5, row + 0.5]) - mean
        alpha = min(opacity * np.exp(-0.5 * d @ conic @ d), config.alpha_max)
        if alpha < config.alpha_min:
          continue
        if transmittance * (1 - alpha) <= config.transmittance_min:
          break
        image[row, column] += transmittance * alpha * color
        transmittance *= 1 - alpha
      image[row, column] += transmittance * background
      transmittances[row, column] = transmittance
  return image, transmittances


def one_frame(spec: Spec) -> dict:
  scene = make_scene(spec)
  return {key: value[0] if key in ARRAYS else value for key, value in scene.items()}


def test_matches_a_loop_over_pixels_and_gaussians():
  scene = one_frame(Spec(40, 18, 14, 20.0, 0.15, seed=11))
  scene["opacities"][:10] = 1.0  # So that the clamp and the stop matter.
  background = np.array([0.1, 0.5, 0.9])
  image, transmittance = draw_by_loop(scene, background)
  output = rasterize(
      **jax.tree.map(jnp.asarray, scene), background=jnp.asarray(background), implementation="reference"
  )
  np.testing.assert_allclose(output.image, image, atol=1e-4)
  np.testing.assert_allclose(output.alpha, 1 - transmittance, atol=1e-4)
  assert transmittance.min() < 0.01 and transmittance.max() > 0.9  # The scene shows both.


def centred(opacities, colors, depths=None, *, size=9, scale=0.1, focal=50.0, background=None, config=Config()):
  """Round Gaussians on the optical axis; the axis hits the centre of the middle pixel."""
  n = len(opacities)
  depths = depths or [2.0 + i for i in range(n)]
  camera = Camera(jnp.eye(4), jnp.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]), size, size)
  return rasterize(
      jnp.array([[0, 0, z] for z in depths], jnp.float32),
      jnp.tile(jnp.array([1.0, 0, 0, 0]), (n, 1)),
      jnp.full((n, 3), scale),
      jnp.array(opacities, jnp.float32),
      jnp.array(colors, jnp.float32),
      camera,
      background=background,
      config=config,
      implementation="reference",
  )


def test_single_gaussian_is_its_opacity_at_the_centre_and_a_gaussian_around_it():
  output = centred([0.7], [[1.0]])
  variance = (50 * 0.1 / 2) ** 2 + 0.3  # (focal * scale / z)^2 + low-pass, px^2.
  distance = np.arange(9) - 4.0
  expected = 0.7 * np.exp(-(distance**2) / (2 * variance))
  np.testing.assert_allclose(output.image[4, :, 0], expected, rtol=1e-5)
  np.testing.assert_allclose(output.alpha[:, 4], expected, rtol=1e-5)
  np.testing.assert_allclose(output.depth[4, 4], 2.0, rtol=1e-6)
  assert output.radii[0] == np.ceil(np.sqrt(2 * np.log(0.7 * 255) * variance))


def test_two_layers_over_a_background():
  output = centred([0.25, 0.5], [[1, 0, 0], [0, 1, 0]], background=jnp.array([0.0, 0.0, 1.0]))
  np.testing.assert_allclose(output.image[4, 4], [0.25, 0.75 * 0.5, 0.75 * 0.5], rtol=1e-5)
  np.testing.assert_allclose(output.alpha[4, 4], 1 - 0.75 * 0.5, rtol=1e-5)
  np.testing.assert_allclose(output.depth[4, 4], (0.25 * 2 + 0.375 * 3) / 0.625, rtol=1e-5)


def test_order_is_by_depth_and_ties_are_by_index():
  near_last = centred([0.5, 0.5], [[1, 0], [0, 1]], depths=[3.0, 2.0])
  np.testing.assert_allclose(near_last.image[4, 4], [0.25, 0.5], rtol=1e-5)
  tied = centred([0.5, 0.5], [[1, 0], [0, 1]], depths=[2.0, 2.0])
  np.testing.assert_allclose(tied.image[4, 4], [0.5, 0.25], rtol=1e-5)


def test_stops_before_the_gaussian_that_would_pass_the_minimum():
  # alpha_max = 0.99: after two T = 1e-4, which is not above 1e-4, so the second is not drawn; the third could be.
  output = centred([1.0, 1.0, 0.5], [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
  np.testing.assert_allclose(output.image[4, 4], [0.99, 0, 0], atol=1e-6)
  lower = centred([1.0, 1.0], [[1, 0], [0, 1]], config=Config(transmittance_min=1e-5))
  np.testing.assert_allclose(lower.image[4, 4], [0.99, 0.0099], rtol=1e-4)


def test_alpha_below_the_minimum_is_skipped():
  output = centred([0.7], [[1.0]], size=41)
  alpha = np.asarray(output.alpha)
  assert np.all((alpha == 0) | (alpha >= 1 / 255 - 1e-6)) and np.any(alpha == 0)


def test_sharper_than_a_pixel_keeps_its_energy_when_antialiased():
  # Opacity times area is what a pixel-sized filter must conserve: with scale << pixel the factor is sqrt(det / det').
  tiny = centred([0.9], [[1.0]], scale=0.01, config=Config(antialiased=True))
  variance = (50 * 0.01 / 2) ** 2
  np.testing.assert_allclose(tiny.image[4, 4, 0], 0.9 * variance / (variance + 0.3), rtol=1e-4)


@pytest.mark.parametrize("sh_degree", [None, 2])
def test_gradients_match_finite_differences_in_float64(sh_degree):
  with jax.enable_x64(True):
    spec = Spec(12, 10, 8, 12.0, 0.2, sh_degree=sh_degree, seed=5)
    scene = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), one_frame(spec), is_leaf=lambda a: isinstance(a, np.ndarray))
    scene["camera"] = dataclasses.replace(
        scene["camera"],
        world_to_camera=jnp.asarray(scene["camera"].world_to_camera, jnp.float64),
        intrinsics=jnp.asarray(scene["camera"].intrinsics, jnp.float64),
    )
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(8, 10, 5)))
    # Cut-offs far away: they are discontinuities, at which a finite difference has no meaning.
    config = Config(alpha_min=1e-12, alpha_max=0.999999, transmittance_min=1e-12, antialiased=sh_degree is None)

    @jax.jit
    def loss(inputs):
      camera = dataclasses.replace(scene["camera"], world_to_camera=inputs["pose"], intrinsics=inputs["intrinsics"])
      output = rasterize(
          **{key: inputs[key] for key in (*ARRAYS, "background", "means2d_offset")},
          camera=camera,
          sh_degree=sh_degree,
          config=config,
          implementation="reference",
      )
      stacked = [output.image, output.alpha[..., None], output.depth[..., None]]
      return jnp.sum(jnp.concatenate(stacked, axis=-1) * weights)

    inputs = {key: scene[key] for key in ARRAYS}
    inputs |= {"background": jnp.asarray([0.3, 0.6, 0.9]), "means2d_offset": jnp.zeros((12, 2))}
    inputs |= {"pose": scene["camera"].world_to_camera, "intrinsics": scene["camera"].intrinsics}
    gradients = jax.grad(loss)(inputs)
    for key, value in inputs.items():
      mask = np.ones(value.shape)
      if key == "pose":
        mask[3] = 0
      if key == "intrinsics":
        mask[:] = [[1, 0, 1], [0, 1, 1], [0, 0, 0]]  # fx, cx, fy, cy.
      for _ in range(3):
        direction = jnp.asarray(rng.normal(size=value.shape) * mask)
        h = 1e-6
        ahead, back = (loss({**inputs, key: value + s * h * direction}) for s in (1, -1))
        expected = (ahead - back) / (2 * h)
        np.testing.assert_allclose(jnp.sum(gradients[key] * direction), expected, rtol=1e-5, atol=1e-6, err_msg=key)


def test_absolute_gradients_are_sums_over_pixels_taken_one_by_one():
  scene = jax.tree.map(jnp.asarray, one_frame(Spec(8, 9, 7, 10.0, 0.2, seed=6)))
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(7, 9, 3)), jnp.float32)

  def losses(plain, absolute):
    """What each pixel adds to the loss, (63,)."""
    output = rasterize(**scene, means2d_offset=plain, means2d_abs_offset=absolute, implementation="reference")
    return jnp.sum(weights * output.image, axis=-1).reshape(-1)

  zeros = jnp.zeros((8, 2))
  per_pixel = jax.jacrev(losses)(zeros, zeros)  # (63, 8, 2)
  plain, absolute = jax.grad(lambda *offsets: jnp.sum(losses(*offsets)), argnums=(0, 1))(zeros, zeros)
  np.testing.assert_allclose(plain, per_pixel.sum(axis=0), atol=1e-4)  # Sums of 63 numbers of order 1 in float32.
  np.testing.assert_allclose(absolute, np.abs(per_pixel).sum(axis=0), atol=1e-4)
  assert np.abs(absolute).max() > 1.5 * np.abs(plain).max()  # They do cancel in the plain sum.


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**16),
    log_scale=st.floats(-14, 14),
    opacity=st.floats(0, 1),
    offset=st.floats(-1e3, 1e3),
)
def test_weights_are_a_partition_of_one(seed, log_scale, opacity, offset):
  """Whatever the Gaussians: with all colours 1 over a background of 1 the image is 1, and alpha lies in [0, 1]."""
  rng = np.random.default_rng(seed)
  arrays = {
      "means": rng.normal(size=(6, 3)) + [offset, 0, 0],
      "quats": rng.normal(size=(6, 4)) * 10.0 ** rng.integers(-12, 8),
      "scales": np.exp(log_scale + rng.normal(size=(6, 3))),
      "opacities": np.full(6, opacity),
      "colors": np.ones((6, 2)),
  }
  arrays = {key: jnp.asarray(value, jnp.float32) for key, value in arrays.items()}
  camera = Camera(jnp.eye(4).at[2, 3].set(2.0), jnp.array([[20.0, 0, 6], [0, 20, 5], [0, 0, 1]]), 12, 10)
  output = rasterize(**arrays, camera=camera, background=jnp.ones(2), implementation="reference")
  np.testing.assert_allclose(output.image, 1, atol=1e-5)
  assert np.all((output.alpha >= 0) & (output.alpha <= 1 + 1e-6)) and np.all(np.isfinite(output.depth))
