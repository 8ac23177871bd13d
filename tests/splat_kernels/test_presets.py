"""What the named constants say differently, each by a number that can be worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splat_kernels import GSPLAT_1_5, GSPLAT_1_6, INRIA, Camera, Config, project, rasterize
from splat_kernels.binning import tile_box

PRESETS = {"INRIA": INRIA, "GSPLAT_1_5": GSPLAT_1_5, "GSPLAT_1_6": GSPLAT_1_6}


def by_preset(inria, gsplat_1_5, gsplat_1_6):
  """The test for each preset, with the value expected under it."""
  return pytest.mark.parametrize(
      "config, expected", list(zip(PRESETS.values(), (inria, gsplat_1_5, gsplat_1_6))), ids=list(PRESETS)
  )


def one_gaussian(config, *, opacity=1.0, scale=0.1, x=0.0, z=2.0, cx=24.5):
  """Image and projection of a round white Gaussian; f = 50, 49 x 49 pixels, tiles of 8."""
  config = dataclasses.replace(config, tile_size=8)
  camera = Camera(jnp.eye(4), jnp.array([[50.0, 0, cx], [0, 50, 24.5], [0, 0, 1]]), 49, 49)
  geometry = (
      jnp.array([[x, 0, z]], jnp.float32),
      jnp.array([[1.0, 0, 0, 0]]),
      jnp.full((1, 3), scale, jnp.float32),
      jnp.full(1, opacity, jnp.float32),
  )
  output = rasterize(*geometry, jnp.ones((1, 1)), camera, config=config, implementation="reference")
  return output.image[..., 0], project(*geometry, camera, config=config)


def test_gsplat_1_6_is_the_default():
  assert GSPLAT_1_6 == Config()


@by_preset(0.99, 0.999, 0.99)
def test_alpha_is_clamped(config, expected):
  image, _ = one_gaussian(config)
  np.testing.assert_allclose(image[24, 24], expected, rtol=1e-6)


@by_preset(1.0, 0.0, 0.0)
def test_gradient_through_the_clamp(config, expected):
  # At the centre the free alpha is the opacity.
  gradient = jax.grad(lambda opacity: one_gaussian(config, opacity=opacity)[0][24, 24])(1.0)
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


@by_preset((False, True, True), (True, True, True), (True, True, True))
def test_near_plane(config, expected):
  depths = (np.float32(0.2), np.nextafter(np.float32(0.2), np.float32(1)), np.float32(0.2) + np.float32(0.01))
  drawn = tuple(bool(one_gaussian(config, scale=0.01, z=z)[1].radii[0] > 0) for z in depths)
  assert drawn == expected
  assert (one_gaussian(config, scale=0.001, z=0.01)[1].radii[0] > 0) == (config is not INRIA)
  assert one_gaussian(config, scale=0.001, z=0.0099)[1].radii[0] == 0


_SIGMA = 4.98  # px


@by_preset((0.0, True), (np.exp(-0.5 * (16 / _SIGMA) ** 2), True), (np.exp(-0.5 * (16 / _SIGMA) ** 2), True))
def test_support_beyond_three_sigmas(config, expected):
  # sqrt(0.1) is added to the variance before its root, so the radius is ceil(3 * 5.01) = 16. In pixels whose centres are
  # whole numbers the centre lies at 24: getRect lists tiles from int(8 / 8) up to before int((24 + 16 + 7) / 8) = 5, hence
  # pixels 8 to 39. The 1/255 contour is at 3.33 sigma, 16.6 px.
  image, projected = one_gaussian(config, scale=np.sqrt(_SIGMA**2 - 0.3) * 2 / 50)
  np.testing.assert_allclose(image[24, 40], expected[0], rtol=1e-4)
  assert (image[24, 8] > 0.005) == expected[1]
  assert projected.radii[0] == (16 if config is INRIA else 17)


def test_inria_lists_a_row_less_to_the_right():
  # ceil(3 sqrt(m + sqrt(0.1))) = 15 for m = 24.6. Tiles 9 / 8 to 46 / 8, exclusive: pixels 8 to 39. The same radius in
  # exact pixels about 24.5 would be 9.5 to 39.5.
  for x, first, last in ((0.0, 8, 39), (0.04, 8, 39), (0.08, 8, 47), (-0.04, 8, 39), (-0.08, 0, 39)):
    # x moves the centre by 25 px per unit: to 24, 25, 26, 23 and 22.
    _, projected = one_gaussian(INRIA, scale=np.sqrt(24.6 - 0.3) * 2 / 50, x=x)
    assert projected.radii[0] == 15
    box = np.asarray(tile_box(projected, 49, 49, 8))[0]
    np.testing.assert_array_equal(box[[0, 2]], [first // 8, (last + 1) // 8])


@by_preset(True, False, False)
def test_what_brings_transmittance_to_the_minimum(config, expected):
  # Alphas whose complements are i, j and 2^23 units of 2^-24, and whose product rounds to the float32 next to 0.0001.
  target = np.float32(1e-4)
  i = np.arange(200_000, 400_000)
  j = np.round(float(target) * 2**25 * 2**24 / i).astype(int)
  product = (i * 2.0**-24).astype(np.float32) * (j * 2.0**-24).astype(np.float32) * np.float32(0.5)
  k = np.flatnonzero(product == target)[0]
  opacities = 1 - np.float32([i[k] * 2.0**-24, j[k] * 2.0**-24, 0.5])
  camera = Camera(jnp.eye(4), jnp.array([[10.0, 0, 0.5], [0, 10, 0.5], [0, 0, 1]]), 1, 1)
  num = np.ones((3, 1), np.float32)
  means = np.float32([[0, 0, 1], [0, 0, 2], [0, 0, 3]])
  colors = jnp.array([[0.0], [0.0], [1.0]])
  output = rasterize(
      means,
      num * np.float32([1, 0, 0, 0]),
      num * np.ones(3),
      opacities,
      colors,
      camera,
      config=config,
      implementation="reference",
  )
  assert bool(output.image[0, 0, 0] > 0) == expected


@by_preset(1.3, 1.3, 1.3)
def test_jacobian_is_taken_inside_the_widened_image(config, expected):
  # Seen at x / z = 4 half widths of the image, (f s / z)^2 (1 + at^2) + low-pass.
  half = 24.5 / 50
  _, projected = one_gaussian(config, scale=5.0, x=2 * 4 * half)
  at = expected * half
  np.testing.assert_allclose(1 / projected.conics[0, 0], (50 * 5 / 2) ** 2 * (1 + at**2) + 0.3, rtol=1e-5)


@by_preset(1.3, 1.5, 1.5)
def test_jacobian_knows_an_off_centre_principal_point(config, expected):
  half = 24.5 / 50
  _, projected = one_gaussian(config, scale=5.0, x=2 * 4 * half, cx=0.8 * 24.5)  # The image ends at 1.2 half widths.
  at = expected * half
  np.testing.assert_allclose(1 / projected.conics[0, 0], (50 * 5 / 2) ** 2 * (1 + at**2) + 0.3, rtol=1e-5)


@by_preset(0.005, 0.0, 0.005)
def test_least_antialiasing_factor(config, expected):
  # Far thinner than a pixel: the factor is its floor.
  image, _ = one_gaussian(dataclasses.replace(config, antialiased=True), scale=1e-6)
  np.testing.assert_allclose(image[24, 24], expected, atol=1e-6)
