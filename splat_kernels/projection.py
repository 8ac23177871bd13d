"""EWA projection: 3D Gaussians to 2D ones, in plain JAX, so that autodiff gives every gradient.

Source: Zwicker et al., "EWA splatting" (2002), in the form of 3D Gaussian splatting; constants in `Config`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from splat_kernels.stages import columns
from splat_kernels.types import Camera, Config, Projected


def project_gaussians(
    means: Float[Array, "N 3"],
    quats: Float[Array, "N 4"],
    scales: Float[Array, "N 3"],
    opacities: Float[Array, "N"],
    camera: Camera,
    config: Config,
) -> Projected:
  """Projects N Gaussians into one camera. Batches by `jax.vmap`.

  A Gaussian is culled (radius 0, no gradient) if any of its numbers is not finite, its centre is not between near and
  far, its opacity is below alpha_min, its projection is larger than 1e9 px or singular, or its box misses the image. A
  zero quaternion counts as no rotation.

  Written component by component on (N,) arrays: XLA fuses all of it into a few loops, where batches of 3x3 products
  would be a loop of small calls.
  """
  m, q, s = ([a[:, i] for i in range(a.shape[1])] for a in (means, quats, scales))
  finite = jnp.isfinite(opacities)
  for a in (*m, *q, *s):  # Not NaN, and so far from overflow that all products below are finite or caught.
    finite &= jnp.abs(a) < 1e10

  # Camera coordinates of the centre.
  w2c = camera.world_to_camera
  m = [jnp.where(finite, a, 0) for a in m]
  x, y, z = (w2c[i, 0] * m[0] + w2c[i, 1] * m[1] + w2c[i, 2] * m[2] + w2c[i, 3] for i in range(3))
  near = config.near if camera.near is None else camera.near
  valid = finite & (z >= near) & (z <= camera.far)
  # From here on culled Gaussians are a harmless unit one before the camera: neither NaN nor its gradient can arise.
  x, y, z = jnp.where(valid, x, 0), jnp.where(valid, y, 0), jnp.where(valid, z, 1)
  q = [jnp.where(valid, a, 0) for a in q]
  s = [jnp.where(valid, a, 1) for a in s]
  opacity = jnp.where(valid, opacities, 0)

  fx, fy, cx, cy = camera.intrinsics[0, 0], camera.intrinsics[1, 1], camera.intrinsics[0, 2], camera.intrinsics[1, 2]
  px, py = x / z, y / z
  mean_x, mean_y = fx * px + cx, fy * py + cy

  # Rows of J W (2x3): perspective Jacobian, at a point clamped to the widened field of view, times the rotation.
  jx, jy = _limit_point(px, py, fx, fy, cx, cy, camera, config)
  row_x = [fx / z * (w2c[0, k] - jx * w2c[2, k]) for k in range(3)]
  row_y = [fy / z * (w2c[1, k] - jy * w2c[2, k]) for k in range(3)]

  axes = _rotation_columns(*q)

  # Covariance = (J W R S)(J W R S)^T, column by column of R S.
  halves_x = [s[k] * (row_x[0] * axes[k][0] + row_x[1] * axes[k][1] + row_x[2] * axes[k][2]) for k in range(3)]
  halves_y = [s[k] * (row_y[0] * axes[k][0] + row_y[1] * axes[k][1] + row_y[2] * axes[k][2]) for k in range(3)]
  # Beyond 1e9 px (a scale of 1e10, a centre beside the camera) the determinant would overflow: culled.
  for a in (*halves_x, *halves_y):
    valid &= jnp.abs(a) < 1e9
  halves_x, halves_y = ([jnp.where(valid, a, 0) for a in halves] for halves in (halves_x, halves_y))
  cov_xx, cov_xy, cov_yy = _dot(halves_x, halves_x), _dot(halves_x, halves_y), _dot(halves_y, halves_y)

  # det(H H^T) for a 2x3 H is the sum of its squared 2x2 minors (Cauchy-Binet). Unlike xx * yy - xy^2 it does not cancel
  # for needles, and adding the low-pass term by term keeps det positive.
  minors = [halves_x[i] * halves_y[j] - halves_x[j] * halves_y[i] for i, j in ((0, 1), (0, 2), (1, 2))]
  det_sharp = _dot(minors, minors)
  det = det_sharp + config.low_pass * (cov_xx + cov_yy) + config.low_pass**2
  cov_xx, cov_yy = cov_xx + config.low_pass, cov_yy + config.low_pass
  solid = valid & (det > 1e-30)  # Without a low-pass filter a covariance can be singular.
  det = jnp.where(solid, det, 1)
  cov_xx, cov_xy, cov_yy = jnp.where(solid, cov_xx, 1), jnp.where(solid, cov_xy, 0), jnp.where(solid, cov_yy, 1)
  conic = (cov_yy / det, -cov_xy / det, cov_xx / det)
  mean_x, mean_y = jnp.where(solid, mean_x, 0), jnp.where(solid, mean_y, 0)

  if config.antialiased:
    ratio = jnp.where(solid, det_sharp, 1) / det
    opacity = opacity * jnp.sqrt(jnp.maximum(ratio, max(config.antialias_floor**2, 1e-12)))

  half_w, half_h = _extents(*map(jax.lax.stop_gradient, (cov_xx, cov_xy, cov_yy, opacity)), config)
  drawn = (
      solid
      & (opacity >= config.alpha_min)
      & (mean_x + half_w > 0)
      & (mean_x - half_w < camera.width)
      & (mean_y + half_h > 0)
      & (mean_y - half_h < camera.height)
  )
  half_w, half_h = jnp.where(drawn, half_w, 0), jnp.where(drawn, half_h, 0)
  radius = jnp.ceil(jnp.clip(jnp.maximum(half_w, half_h), 0, 2**30)).astype(jnp.int32)
  return Projected(
      means2d=columns(mean_x, mean_y),
      conics=columns(*conic),
      depths=z,
      opacities=jnp.where(drawn, opacity, 0),
      extents=jax.lax.stop_gradient(columns(half_w, half_h)),
      radii=radius,
  )


def _dot(a, b):
  return sum(x * y for x, y in zip(a, b, strict=True))


def _limit_point(px, py, fx, fy, cx, cy, camera: Camera, config: Config):
  """Point (x/z, y/z) at which the Jacobian is taken; see Config.jacobian_limit."""
  if config.jacobian_limit == "none":
    return px, py
  tan_x, tan_y = 0.5 * camera.width / fx, 0.5 * camera.height / fy
  if config.jacobian_limit == "centred":
    lim_x, lim_y = (1 + config.jacobian_margin) * tan_x, (1 + config.jacobian_margin) * tan_y
    low_x, high_x, low_y, high_y = -lim_x, lim_x, -lim_y, lim_y
  else:
    margin_x, margin_y = config.jacobian_margin * tan_x, config.jacobian_margin * tan_y
    low_x, high_x = -cx / fx - margin_x, (camera.width - cx) / fx + margin_x
    low_y, high_y = -cy / fy - margin_y, (camera.height - cy) / fy + margin_y
  return jnp.clip(px, low_x, high_x), jnp.clip(py, low_y, high_y)


def _rotation_columns(w, x, y, z):
  """Columns of the rotation matrix of a quaternion of any length."""
  largest = jnp.maximum(jnp.maximum(jnp.abs(w), jnp.abs(x)), jnp.maximum(jnp.abs(y), jnp.abs(z)))
  usable = largest > 1e-18  # Squares of anything smaller vanish in float32.
  w, x, y, z = jnp.where(usable, w, 1), jnp.where(usable, x, 0), jnp.where(usable, y, 0), jnp.where(usable, z, 0)
  scale = 1 / jax.lax.stop_gradient(jnp.where(usable, largest, 1))  # So that squares neither over- nor underflow.
  w, x, y, z = w * scale, x * scale, y * scale, z * scale
  inverse = jax.lax.rsqrt(w * w + x * x + y * y + z * z)
  w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
  return (
      (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)),
      (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)),
      (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)),
  )


def _extents(cov_xx, cov_xy, cov_yy, opacity, config: Config):
  """Half width and half height, in pixels, of the box that holds the support; see Config.support."""
  if config.support == "square":
    middle = 0.5 * (cov_xx + cov_yy)
    largest = middle + jnp.sqrt(0.25 * (cov_xx - cov_yy) ** 2 + cov_xy**2)
    half = jnp.ceil(3 * jnp.sqrt(largest))
    return half, half
  # alpha falls to alpha_min on the ellipse d^T Sigma^-1 d = 2 ln(opacity / alpha_min), whose box is sqrt(level Sigma_ii).
  level = 2 * jnp.log(jnp.maximum(opacity / config.alpha_min, 1))
  return jnp.sqrt(level * cov_xx), jnp.sqrt(level * cov_yy)
