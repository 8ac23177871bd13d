"""Gaussians in the image plane, one behind the other, and the error of every single one's gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from splat_kernels import Config, Projected, composite

CONFIG = Config(max_intersections=512)


def layers(num: int, channels: int, *, opacity: float, least_sigma: float = 4) -> dict:
  """Gaussians one behind the other, that cover most of an image of 24 x 20; all of them touch its first tile of 16."""
  rng = np.random.default_rng(5)
  sigma = rng.uniform(1, 2, size=num) * least_sigma
  conics = np.stack([1 / sigma**2, 0.2 / sigma**2, 1.3 / sigma**2], axis=-1)
  return {
      "means2d": rng.uniform(4, 15, size=(num, 2)),
      "conics": conics,
      "opacities": rng.uniform(0.5, 1.5, size=num) * opacity,
      "features": rng.uniform(0.2, 1, size=(num, channels)),
      "means2d_abs_offset": np.zeros((num, 2)),
  }


def loss(arrays: dict, implementation, config: Config, **options):
  """A random linear function of image and alpha."""
  num, channels = arrays["features"].shape
  dtype = arrays["features"].dtype
  weights = np.random.default_rng(6).uniform(0.5, 1.5, size=(20, 24, channels + 1))  # Few sums cancel by chance.
  geometry = {key: arrays[key] for key in ("means2d", "conics", "opacities")}
  whole = jnp.full((num, 2), 40, dtype)
  projected = Projected(
      **geometry, depths=jnp.arange(1, num + 1, dtype=dtype), extents=whole, radii=jnp.full(num, 40, jnp.int32)
  )
  drawn = composite(
      projected,
      arrays["features"],
      width=24,
      height=20,
      config=config,
      implementation=implementation,
      means2d_abs_offset=arrays.get("means2d_abs_offset"),
      **options,
  )
  seen = jnp.concatenate([drawn.image, drawn.alpha[..., None]], axis=-1)
  return jnp.sum(jnp.asarray(weights, dtype) * seen)


def gradients(arrays: dict, implementation, dtype, *, config: Config = CONFIG, **options) -> dict[str, np.ndarray]:
  """Of `loss`, computed in a dtype."""
  with jax.enable_x64(dtype == jnp.float64):
    arrays = {key: jnp.asarray(value, dtype) for key, value in arrays.items()}
    differentiate = jax.jit(jax.grad(lambda arrays: loss(arrays, implementation, config, **options)))
    return {key: np.asarray(value, np.float64) for key, value in differentiate(arrays).items()}


def worst_error(found: dict, expected: dict) -> float:
  """Largest error of any Gaussian's gradient, relative to that gradient; infinite if one should be 0 and is not."""
  worst = 0.0
  for key, value in expected.items():
    error, size = (np.linalg.norm(np.reshape(a, (len(value), -1)), axis=1) for a in (found[key] - value, value))
    with np.errstate(divide="ignore"):
      worst = max(worst, np.max(error[error > 0] / size[error > 0], initial=0))
  return float(worst)
