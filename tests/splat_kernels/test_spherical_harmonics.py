"""The SH basis against scipy's associated Legendre functions, and its use as colour."""

import jax.numpy as jnp
import numpy as np
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
  expected = np.stack([real_sh(l, m, d) for l in range(4) for m in range(-l, l + 1)], axis=-1)
  np.testing.assert_allclose(sh_basis(3, jnp.asarray(d)), expected, atol=2e-6)


def test_lower_degrees_are_prefixes():
  d = jnp.asarray(directions(5))
  for degree in range(4):
    assert sh_basis(degree, d).shape == (5, num_coefficients(degree))
    np.testing.assert_allclose(sh_basis(degree, d), sh_basis(3, d)[:, : num_coefficients(degree)])


def test_colors_look_along_the_ray_from_the_camera():
  rng = np.random.default_rng(1)
  pose = np.eye(4)
  pose[:3, :3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
  pose[:3, 3] = [1, 2, 3]
  centre = -pose[:3, :3].T @ pose[:3, 3]
  means = rng.normal(size=(20, 3))
  coefficients = rng.normal(size=(20, 16, 3))
  d = means - centre
  d /= np.linalg.norm(d, axis=-1, keepdims=True)
  basis = np.stack([real_sh(l, m, d) for l in range(4) for m in range(-l, l + 1)], axis=-1)
  expected = np.maximum(np.einsum("nk,nkc->nc", basis, coefficients) + 0.5, 0)
  colors = sh_colors(3, *(jnp.asarray(a, jnp.float32) for a in (coefficients, means, pose)))
  np.testing.assert_allclose(colors, expected, atol=1e-5)
  assert np.any(expected == 0)  # The clamp was seen.
