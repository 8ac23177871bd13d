"""Projection: 3D Gaussians to 2D ones, in plain JAX, so that autodiff gives every gradient.

Sources: Zwicker et al., "EWA splatting" (2002), in the form of 3D Gaussian splatting; Wu et al., "3DGUT" (2024), for the
unscented transform. Constants in `Config`, cameras in cameras.py.
"""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from splat_kernels import cameras
from splat_kernels.stages import columns
from splat_kernels.tiles import inria_spans
from splat_kernels.types import Camera, Config, Projected


def project_gaussians(
    means: Float[Array, "N 3"],
    quats: Float[Array, "N 4"] | None,
    scales: Float[Array, "N 3"] | None,
    opacities: Float[Array, "N"],
    camera: Camera,
    config: Config,
    covariances: Float[Array, "N 3 3"] | None = None,
) -> Projected:
  """Projects N Gaussians, given by quats and scales or by covariances, into one camera. Batches by `jax.vmap`.

  A Gaussian is culled (radius 0, no gradient) if any of its numbers or of the camera's is not finite, its centre is not
  between near and far or where the camera cannot see, its opacity is below alpha_min, its projection is larger than
  1e9 px or singular, its box misses the image, or its radius is not above radius_clip. A zero quaternion counts as no
  rotation.

  Written component by component on (N,) arrays: XLA fuses all of it into a few loops, where batches of 3x3 products
  would be a loop of small calls.
  """
  components = lambda a: [a[:, i] for i in range(a.shape[1])]
  m = components(means)
  # Rotations with scales, or the six numbers of symmetric matrices.
  if covariances is None:
    q, s = components(quats), components(scales)
    shape = [*q, *s]
  else:
    entries = (0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)
    shape = [(covariances[:, i, j] + covariances[:, j, i]) / 2 for i, j in entries]
  camera_finite = cameras.is_finite(camera)
  camera = cameras.without_nonfinite(camera, camera_finite)
  finite = camera_finite & jnp.isfinite(opacities)
  for a in (*m, *shape):  # Not NaN, and so far from overflow that all products below are finite or caught.
    finite &= jnp.abs(a) < 1e10

  # Camera coordinates of the centre.
  m = [jnp.where(finite, a, 0) for a in m]
  x, y, z = cameras.to_camera(m, camera)
  depth = z if camera.shutter == "global" else cameras.make_motion(camera)((x, y, z), 0.5)[2]
  near = config.near if camera.near is None else camera.near
  valid = finite & (depth >= near) & (depth <= camera.far)
  widest = cameras.widest_tangent(camera)
  if camera.shutter == "global" and not cameras.is_plain(camera):
    valid &= cameras.is_visible(x, y, z, camera, widest)
  # From here on culled Gaussians are a harmless unit one before the camera: neither NaN nor its gradient can arise.
  x, y, z = jnp.where(valid, x, 0), jnp.where(valid, y, 0), jnp.where(valid, z, 1)
  depth = jnp.where(valid, depth, 1)
  opacity = jnp.where(valid, opacities, 0)
  if covariances is None:
    q = [jnp.where(valid, a, 0) for a in q]
    s = [jnp.where(valid, a, 1) for a in s]
    axes = rotation_columns(*q)
  else:
    shape = [jnp.where(valid, a, unit) for a, unit in zip(shape, (1, 0, 0, 1, 0, 1))]

  # The covariance in the image is H H^T, the images of the Gaussian's axes as columns of H; or else J C J^T.
  cx, cy = camera.intrinsics[0, 2], camera.intrinsics[1, 2]
  if config.projection == "unscented":
    offsets = [[s[k] * a for a in axes[k]] for k in range(3)] if covariances is None else _cholesky_columns(*shape)
    mean_x, mean_y, halves_x, halves_y, seen = _transform_points((x, y, z), offsets, camera, config, widest)
    cov_xx, cov_xy, cov_yy, det_sharp, valid = _outer_product(halves_x, halves_y, valid & seen)
  else:
    mean_x, mean_y, row_x, row_y = _linearize(x, y, z, camera, config)
    if covariances is None:
      halves_x = [s[k] * _dot(row_x, axes[k]) for k in range(3)]
      halves_y = [s[k] * _dot(row_y, axes[k]) for k in range(3)]
      cov_xx, cov_xy, cov_yy, det_sharp, valid = _outer_product(halves_x, halves_y, valid)
    else:
      cov_xx, cov_xy, cov_yy, det_sharp, valid = _quadratic_form(row_x, row_y, shape, valid)
  mean_x, mean_y = mean_x + cx, mean_y + cy
  det = det_sharp + config.low_pass * (cov_xx + cov_yy) + config.low_pass**2
  cov_xx, cov_yy = cov_xx + config.low_pass, cov_yy + config.low_pass
  # Without a low-pass filter a covariance can be singular. The gradient of its inverse needs 1 / det^2.
  solid = valid & (det > 1e-18)
  det = jnp.where(solid, det, 1)
  cov_xx, cov_xy, cov_yy = jnp.where(solid, cov_xx, 1), jnp.where(solid, cov_xy, 0), jnp.where(solid, cov_yy, 1)
  conic = (cov_yy / det, -cov_xy / det, cov_xx / det)
  mean_x, mean_y = jnp.where(solid, mean_x, 0), jnp.where(solid, mean_y, 0)

  if config.antialiased:
    ratio = jnp.where(solid, det_sharp, 1) / det
    opacity = opacity * jnp.sqrt(jnp.maximum(ratio, max(config.antialias_floor**2, 1e-12)))

  half_w, half_h = _extents(*map(jax.lax.stop_gradient, (cov_xx, cov_yy, det, opacity)), config)
  if config.support == "inria":  # Tiles may reach beyond the image.
    spans = inria_spans((mean_x, mean_y), (half_w, half_h), camera.width, camera.height, config.tile_size)
    inside = (spans[0][0] < spans[0][1]) & (spans[1][0] < spans[1][1])
  else:
    inside = (mean_x + half_w > 0) & (mean_x - half_w < camera.width)
    inside &= (mean_y + half_h > 0) & (mean_y - half_h < camera.height)
  drawn = solid & (opacity >= config.alpha_min) & inside
  half_w, half_h = jnp.where(drawn, half_w, 0), jnp.where(drawn, half_h, 0)
  radius = jnp.ceil(jnp.clip(jnp.maximum(half_w, half_h), 0, 2**30)).astype(jnp.int32)
  if config.radius_clip > 0:
    drawn &= radius > config.radius_clip
    half_w, half_h, radius = (jnp.where(drawn, a, 0) for a in (half_w, half_h, radius))
  return Projected(
      means2d=columns(mean_x, mean_y),
      conics=columns(*conic),
      depths=depth,
      opacities=jnp.where(drawn, opacity, 0),
      extents=jax.lax.stop_gradient(columns(half_w, half_h)),
      radii=radius,
      support=config.support,
  )


def _dot(a, b):
  return sum(x * y for x, y in zip(a, b, strict=True))


def _linearize(x, y, z, camera: Camera, config: Config):
  """Image points of the centres relative to the principal point, and both rows of J W, in pixels per world unit.

  J is the mapping's 2x3 Jacobian, of pinholes at a point clamped to the widened field of view, W the camera's rotation.
  """
  w2c, intrinsics = camera.world_to_camera, camera.intrinsics
  fx, fy = intrinsics[0, 0], intrinsics[1, 1]
  u, v = cameras.map_point(x, y, z, camera)
  if cameras.is_plain(camera):
    jx, jy = _limit_point(u, v, camera, config)
    row_x = [fx / z * (w2c[0, k] - jx * w2c[2, k]) for k in range(3)]
    row_y = [fy / z * (w2c[1, k] - jy * w2c[2, k]) for k in range(3)]
    return fx * u, fy * v, row_x, row_y
  if camera.model == "pinhole":
    # The limit is one of the image, hence of the distorted point; the true one goes back by the same share.
    x, y = (p * _share(limit, at) for p, limit, at in zip((x, y), _limit_point(u, v, camera, config), (u, v)))
  # All three columns in one array, so that their program is compiled once.
  tangents = tuple(jnp.broadcast_to(row[:, None], (3, *z.shape)) for row in jnp.eye(3, dtype=z.dtype))
  _, (by_u, by_v) = jax.jvp(
      lambda *p: cameras.map_point(*p, camera), tuple(jnp.broadcast_to(a, (3, *a.shape)) for a in (x, y, z)), tangents
  )
  row_x = [fx * _dot(by_u, [w2c[i, k] for i in range(3)]) for k in range(3)]
  row_y = [fy * _dot(by_v, [w2c[i, k] for i in range(3)]) for k in range(3)]
  return fx * u, fy * v, row_x, row_y


def _limit_point(u, v, camera: Camera, config: Config):
  """Point of the plane z = 1 at which the Jacobian is taken; see Config.jacobian_limit."""
  if config.jacobian_limit == "none":
    return u, v
  fx, fy, cx, cy = camera.intrinsics[0, 0], camera.intrinsics[1, 1], camera.intrinsics[0, 2], camera.intrinsics[1, 2]
  tan_x, tan_y = 0.5 * camera.width / fx, 0.5 * camera.height / fy
  if config.jacobian_limit == "centred":
    lim_x, lim_y = (1 + config.jacobian_margin) * tan_x, (1 + config.jacobian_margin) * tan_y
    low_x, high_x, low_y, high_y = -lim_x, lim_x, -lim_y, lim_y
  else:
    margin_x, margin_y = config.jacobian_margin * tan_x, config.jacobian_margin * tan_y
    low_x, high_x = -cx / fx - margin_x, (camera.width - cx) / fx + margin_x
    low_y, high_y = -cy / fy - margin_y, (camera.height - cy) / fy + margin_y
  return jnp.clip(u, low_x, high_x), jnp.clip(v, low_y, high_y)


def _share(limit, at):
  """limit / at; 1 where nothing is limited, or where `at` is too near the axis to say."""
  limited = (limit != at) & (jnp.abs(at) > 1e-6)
  return jnp.where(limited, limit / jnp.where(limited, at, 1), 1)


def _outer_product(halves_x, halves_y, valid):
  """xx, xy and yy of H H^T, its determinant, and what of it is in bounds; `halves` are the rows of H, by columns."""
  # Beyond 1e9 px (a scale of 1e10, a centre beside the camera) the determinant would overflow: culled.
  for a in (*halves_x, *halves_y):
    valid &= jnp.abs(a) < 1e9
  halves_x, halves_y = ([jnp.where(valid, a, 0) for a in halves] for halves in (halves_x, halves_y))
  # det(H H^T) for a 2xK H is the sum of its squared 2x2 minors (Cauchy-Binet). Unlike xx * yy - xy^2 it does not cancel
  # for needles, and adding the low-pass term by term keeps det positive.
  pairs = itertools.combinations(range(len(halves_x)), 2)
  minors = [halves_x[i] * halves_y[j] - halves_x[j] * halves_y[i] for i, j in pairs]
  return _dot(halves_x, halves_x), _dot(halves_x, halves_y), _dot(halves_y, halves_y), _dot(minors, minors), valid


def _quadratic_form(row_x, row_y, covariance, valid):
  """As `_outer_product`, of rows J W and a covariance in the world (xx, xy, xz, yy, yz, zz)."""
  xx, xy, xz, yy, yz, zz = covariance
  matrix = (xx, xy, xz), (xy, yy, yz), (xz, yz, zz)
  by_x, by_y = ([_dot(row, r) for row in matrix] for r in (row_x, row_y))
  entries = _dot(row_x, by_x), _dot(row_x, by_y), _dot(row_y, by_y)
  # Bounds as there. A negative variance is none.
  for variance in (entries[0], entries[2]):
    valid &= (variance >= 0) & (variance < 1e18)
  valid &= jnp.abs(entries[1]) < 1e18
  xx, xy, yy = (jnp.where(valid, a, 0) for a in entries)
  return xx, xy, yy, jnp.maximum(xx * yy - xy * xy, 0), valid


def _cholesky_columns(xx, xy, xz, yy, yz, zz):
  """Columns of the lower triangular root of a covariance; a direction with next to no variance gets none at all."""
  least = 1e-7 * (xx + yy + zz)  # What float32 leaves of it.

  def root(variance):
    some = variance > least
    length = jnp.sqrt(jnp.where(some, variance, 1))
    return jnp.where(some, length, 0), jnp.where(some, 1 / length, 0)

  zero = jnp.zeros_like(xx)
  l_xx, inverse = root(xx)
  l_xy, l_xz = xy * inverse, xz * inverse
  l_yy, inverse = root(yy - l_xy * l_xy)
  l_yz = (yz - l_xy * l_xz) * inverse
  l_zz, _ = root(zz - l_xz * l_xz - l_yz * l_yz)
  return [l_xx, l_xy, l_xz], [zero, l_yy, l_yz], [zero, zero, l_zz]


def _transform_points(centre, axes, camera: Camera, config: Config, widest):
  """The unscented transform (Julier and Uhlmann, 1997): seven points through the whole mapping, and their moments.

  Args:
    centre: in camera coordinates, of the beginning of the exposure.
    axes: three vectors in the world, of one standard deviation each.
    camera: of any kind.
    config: see `Config.sigma_points`.
    widest: see `cameras.widest_tangent`.

  Returns:
    x and y of the mean relative to the principal point; rows of an H with covariance H H^T, by columns; whether the
    camera sees all seven points.
  """
  alpha, beta, kappa = config.sigma_points
  reach = alpha * (3 + kappa) ** 0.5
  turn = camera.world_to_camera
  steps = [[reach * _dot([turn[i, k] for k in range(3)], axis) for i in range(3)] for axis in axes]
  # All seven in one array for each coordinate: as many programs in one would take long to compile.
  points = tuple(
      jnp.stack([a, *(a + sign * step[i] for step in steps for sign in (1, -1))]) for i, a in enumerate(centre)
  )
  (x, y), seen = _see_point(points, camera, widest)
  # They lie in pairs about the centre. Moments of the pairs' sums and differences, relative to the centre's image, are
  # those of the points with the transform's weights, but need no difference of large numbers.
  odd = [((x[i] - x[i + 1]) / (2 * reach), (y[i] - y[i + 1]) / (2 * reach)) for i in (1, 3, 5)]
  even = [tuple(((p[i] - p[0]) + (p[i + 1] - p[0])) / (2 * reach) for p in (x, y)) for i in (1, 3, 5)]
  shift_x, shift_y = (sum(e[i] for e in even) / reach for i in range(2))
  last = (beta - alpha**2) ** 0.5
  halves = [*odd, *even, (last * shift_x, last * shift_y)]
  return x[0] + shift_x, y[0] + shift_y, [h[0] for h in halves], [h[1] for h in halves], jnp.all(seen, axis=0)


def _see_point(point: cameras.Point, camera: Camera, widest):
  """Image point relative to the principal point, at the time at which the shutter reads it; whether it can be seen."""

  def image(point, camera):
    visible = cameras.is_visible(*point, camera, widest)
    x, y, z = (jnp.where(visible, a, harmless) for a, harmless in zip(point, (0, 0, 1)))
    u, v = cameras.map_point(x, y, z, camera)
    return (camera.intrinsics[0, 0] * u, camera.intrinsics[1, 1] * v), visible

  if camera.shutter == "global":
    return image(point, camera)

  def read(time, point, camera):
    """When the shutter reads what the camera sees of the point at a time."""
    (x, y), _ = image(cameras.make_motion(camera)(point, time), camera)
    return cameras.shutter_time((x + camera.intrinsics[0, 2], y + camera.intrinsics[1, 2]), camera)

  still = jax.lax.stop_gradient((point, camera))

  def newton(time, point, camera):
    """A step towards the time at which `read` returns what it is given."""
    _, speed = jax.jvp(lambda time: read(time, *still), (time,), (jnp.ones_like(time),))
    # A point that runs along with the shutter is read at no one time.
    return time + (read(time, point, camera) - time) / jnp.maximum(1 - speed, 0.1)

  time = jax.lax.fori_loop(
      0, cameras.SHUTTER_STEPS - 1, lambda _, time: newton(time, *still), jnp.full_like(point[0], 0.5)
  )
  # The gradient goes through the last step alone: that is the implicit function theorem.
  time = newton(time, point, camera)
  return image(cameras.make_motion(camera)(point, time), camera)


def rotation_columns(w, x, y, z):
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


def _extents(cov_xx, cov_yy, det, opacity, config: Config):
  """Half width and half height, in pixels, of the box that holds the support; see Config.support."""
  if config.support == "inria":
    middle = 0.5 * (cov_xx + cov_yy)
    half = jnp.ceil(3 * jnp.sqrt(middle + jnp.sqrt(jnp.maximum(0.1, middle * middle - det))))
    return half, half
  # alpha falls to alpha_min on the ellipse d^T Sigma^-1 d = 2 ln(opacity / alpha_min), whose box is sqrt(level Sigma_ii).
  level = 2 * jnp.log(jnp.maximum(opacity / config.alpha_min, 1))
  return jnp.sqrt(level * cov_xx), jnp.sqrt(level * cov_yy)
