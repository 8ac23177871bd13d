"""The SH basis against scipy's associated Legendre functions, and its use as colour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import factorial, lpmv

from splat_kernels.sh import num_coefficients, sh_basis, sh_colors


def directions(n: int) -> np.ndarray:
  d = np.random.default_rng(0).normal(size=(n, 3))
  return d / np.linalg.norm(d, axis=-1, keepdims=True)


def real_sh(l: int, m: int, d: np.ndarray) -> np.ndarray:
  """Real spherical harmonic with Condon-Shortley phase, by associated Legendre functions (scipy's include the phase)."""
  phi = np.arctan2(d[:, 1], d[:, 0])
  norm = np.sqrt((2 * l + 1) / (4 * np.pi) * factorial(l - abs(m)) / factorial(l + abs(m)))
  legendre = norm * lpmv(abs(m), l, d[:, 2])
  if m == 0:
    return legendre
  return np.sqrt(2) * legendre * (np.cos(m * phi) if m > 0 else np.sin(-m * phi))


def test_basis_is_the_real_harmonics_in_order():
  d = directions(50)
  expected = np.stack([real_sh(l, m, d) for l in range(5) for m in range(-l, l + 1)], axis=-1)
  np.testing.assert_allclose(sh_basis(4, jnp.asarray(d)), expected, atol=2e-6)


def test_lower_degrees_are_prefixes():
  d = jnp.asarray(directions(5))
  for degree in range(5):
    assert sh_basis(degree, d).shape == (5, num_coefficients(degree))
    np.testing.assert_allclose(sh_basis(degree, d), sh_basis(4, d)[:, : num_coefficients(degree)])


def test_colors_look_along_the_ray_from_the_camera():
  rng = np.random.default_rng(1)
  pose = np.eye(4)
  pose[:3, :3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
  pose[:3, 3] = [1, 2, 3]
  centre = -pose[:3, :3].T @ pose[:3, 3]
  means = rng.normal(size=(20, 3))
  coefficients = rng.normal(size=(20, 25, 3))
  d = means - centre
  d /= np.linalg.norm(d, axis=-1, keepdims=True)
  basis = np.stack([real_sh(l, m, d) for l in range(5) for m in range(-l, l + 1)], axis=-1)
  expected = np.maximum(np.einsum("nk,nkc->nc", basis, coefficients) + 0.5, 0)
  colors = sh_colors(4, *(jnp.asarray(a, jnp.float32) for a in (coefficients, means, pose)))
  np.testing.assert_allclose(colors, expected, atol=1e-5)
  assert np.any(expected == 0)  # The clamp was seen.


@pytest.mark.parametrize("degree", [0, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_leaves_all_other_gradients_alone(degree, value):
  # Whoever calls gives culled Gaussians no gradient; NaN * 0 would be NaN in the pose, which all share.
  rng = np.random.default_rng(2)
  means, coefficients = rng.normal(size=(20, 3)), rng.normal(size=(20, 9, 3))
  pose = np.eye(4)
  pose[:3, 3] = [1, 2, 3]
  inputs = [jnp.asarray(a, jnp.float32) for a in (coefficients, means, pose)]
  kept = jnp.asarray(np.isin(np.arange(20), [3, 7, 8, 9], invert=True)[:, None], jnp.float32)
  gradient = jax.jit(jax.grad(lambda *a: jnp.sum(kept * sh_colors(degree, *a) ** 2), argnums=(0, 1, 2)))
  expected = gradient(*inputs)
  broken = list(inputs)
  broken[0] = inputs[0].at[7, 1, 2].set(value).at[8].set(value)
  broken[1] = inputs[1].at[3, 1].set(value).at[9, 0].set(1e30)
  for result, other in zip(gradient(*broken), expected):
    assert np.all(np.isfinite(result))
    np.testing.assert_allclose(result, other, atol=1e-5)
  for result in gradient(*inputs[:2], inputs[2].at[0, 1].set(value)):
    assert np.all(np.isfinite(result))


def test_a_gaussian_at_the_cameras_centre_has_finite_gradients():
  pose = jnp.eye(4).at[2, 3].set(2.0)
  gradient = jax.jit(jax.grad(lambda *a: jnp.sum(sh_colors(3, jnp.ones((1, 16, 3)), *a)), argnums=(0, 1)))
  assert all(np.all(np.isfinite(a)) for a in gradient(jnp.array([[0, 0, -2.0]]), pose))
