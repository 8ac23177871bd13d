"""Camera models: from camera coordinates to the image, and where a camera stands while its shutter runs.

All of it is written on tuples of arrays x, y, z of equal shape and on one camera; batches by `jax.vmap`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from splat_kernels import arguments
from splat_kernels.types import MODELS, SHUTTERS, Camera, Config

# Where a ray is so oblique (tangent of its angle with the axis) that it counts as beside the camera. It bounds the
# powers in the models below, so that none overflows.
WIDEST_TANGENT = 1e4
# Newton's, for the time at which a moving camera sees a point. One would do if the point moved evenly over the image.
SHUTTER_STEPS = 3

Point = tuple[Float[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]
ImagePoint = tuple[Float[Array, "*n"], Float[Array, "*n"]]


# The arrays of a camera, and how many of their dimensions are not of the batch.
RANKS = {"world_to_camera": 2, "intrinsics": 2, "distortion": 1, "world_to_camera_end": 2}


def arrays_of(camera: Camera) -> dict[str, Float[Array, "..."]]:
  """The arrays that a camera has, by field."""
  return {name: getattr(camera, name) for name in RANKS if getattr(camera, name) is not None}


def check_camera(camera: Camera) -> Camera:
  """The camera with JAX arrays for arrays and lists of any kind, and Python's numbers for any other library's.

  Raises:
    ValueError: naming the field which is wrong, with its value.
  """
  for name, known in (("model", MODELS), ("shutter", SHUTTERS)):
    if getattr(camera, name) not in known:
      raise ValueError(f"camera.{name}={getattr(camera, name)!r} must be one of {', '.join(known)}")
  tails = {"world_to_camera": (4, 4), "intrinsics": (3, 3), "distortion": (None,), "world_to_camera_end": (4, 4)}
  needed = {"world_to_camera": camera.world_to_camera, "intrinsics": camera.intrinsics, **arrays_of(camera)}
  fields: dict[str, Any] = {name: arguments.floats(f"camera.{name}", a, tails[name]) for name, a in needed.items()}
  if "distortion" in fields:
    counts = {"pinhole": (4, 5, 8), "fisheye": (4,), "orthographic": ()}[camera.model]
    if not counts:
      raise ValueError(f"{camera.model=} has no distortion; camera.distortion must be None")
    if (count := fields["distortion"].shape[-1]) not in counts:
      raise ValueError(f"camera.distortion has {count} coefficients, of {camera.model=} {' or '.join(map(str, counts))}")
  if (camera.world_to_camera_end is None) != (camera.shutter == "global"):
    given = "absent" if camera.world_to_camera_end is None else "given"
    raise ValueError(f"{camera.shutter=} with camera.world_to_camera_end {given}: rolling shutters, and no other, need it")
  for name in ("width", "height"):
    fields[name] = arguments.size(f"camera.{name}", getattr(camera, name))
  for name in ("near", "far"):
    if (value := getattr(camera, name)) is not None:
      try:
        fields[name] = float(value)
      except (TypeError, ValueError):  # Of a tracer, too.
        raise ValueError(f"camera.{name}={value!r} must be a number that is known outside jit") from None
  if not 0 < fields.get("near", fields["far"]) <= fields["far"]:
    raise ValueError(f"camera.near={camera.near} and camera.far={camera.far} must satisfy 0 < near <= far")
  return dataclasses.replace(camera, **fields)


def check_shutter(camera: Camera, config: Config) -> None:
  """Raises a ValueError if the projection cannot draw what the camera's shutter sees."""
  if camera.shutter != "global" and config.projection != "unscented":
    raise ValueError(f"{camera.shutter=} needs Config(projection='unscented'), not {config.projection!r}")


def is_finite(camera: Camera) -> Bool[Array, "*b"]:
  """Whether all numbers of a camera are finite; leading dimensions of its arrays broadcast."""
  finite = (jnp.all(jnp.isfinite(a), axis=tuple(range(-RANKS[name], 0))) for name, a in arrays_of(camera).items())
  return functools.reduce(jnp.logical_and, finite)


def without_nonfinite(camera: Camera, finite: Bool[Array, ""]) -> Camera:
  """A harmless camera in place of one that is not finite, which gets no gradient then, rather than NaN."""
  harmless = lambda a: jnp.where(finite, a, jnp.eye(*a.shape, dtype=a.dtype) if a.ndim == 2 else 0)
  return jax.tree.map(harmless, camera)


def is_plain(camera: Camera) -> bool:
  """Whether the camera is a pinhole without distortion."""
  return camera.model == "pinhole" and camera.distortion is None


def to_camera(m: list, camera: Camera) -> Point:
  """World points in camera coordinates; with a rolling shutter those of the beginning of the exposure."""
  w2c = camera.world_to_camera
  return tuple(w2c[i, 0] * m[0] + w2c[i, 1] * m[1] + w2c[i, 2] * m[2] + w2c[i, 3] for i in range(3))


def make_motion(camera: Camera) -> Callable[[Point, Float[Array, "*n"] | float], Point]:
  """How the camera moves: a function of a point in camera coordinates at the beginning of the exposure and of a time.

  It returns where the point is in camera coordinates at that time, in [0, 1]. The translation of `world_to_camera` is
  interpolated linearly, its rotation by slerp.
  """
  start, end = camera.world_to_camera, jnp.asarray(camera.world_to_camera_end)
  # The turn from start to end, end_rotation start_rotation^T, as a quaternion. w is positive, as no exposure sees half a
  # turn, so this form of it is smooth everywhere.
  turn = [[sum(end[i, k] * start[j, k] for k in range(3)) for j in range(3)] for i in range(3)]
  w = jnp.sqrt(jnp.maximum(1 + turn[0][0] + turn[1][1] + turn[2][2], 1e-6)) / 2
  sines = [(turn[2][1] - turn[1][2]) / (4 * w), (turn[0][2] - turn[2][0]) / (4 * w), (turn[1][0] - turn[0][1]) / (4 * w)]
  squared = sum(a * a for a in sines)
  small = squared < 1e-3
  sine = jnp.sqrt(jnp.where(small, 1, squared))
  angle = jnp.arctan2(sine, jnp.where(small, 1, w))

  def move(point, time):
    # Slerp from no turn: sin(time angle) / sin(angle) times the axis, by its series where the angle is small.
    part = jnp.where(small, time * (1 + (1 - time**2) * squared / 6), jnp.sin(time * angle) / sine)
    qx, qy, qz = (part * a for a in sines)
    qw = jnp.sqrt(1 - part * part * squared)
    x, y, z = (a - start[i, 3] for i, a in enumerate(point))
    tx, ty, tz = 2 * (qy * z - qz * y), 2 * (qz * x - qx * z), 2 * (qx * y - qy * x)
    turned = x + qw * tx + qy * tz - qz * ty, y + qw * ty + qz * tx - qx * tz, z + qw * tz + qx * ty - qy * tx
    return tuple(a + (start[i, 3] + time * (end[i, 3] - start[i, 3])) for i, a in enumerate(turned))

  return move


def shutter_time(point: ImagePoint, camera: Camera) -> Float[Array, "*n"]:
  """Time in [0, 1] at which a rolling shutter reads an image point: 0 in the middle of the first row, 1 in the last's."""
  x, y = point
  time = {
      "top_to_bottom": lambda: (y - 0.5) / max(camera.height - 1, 1),
      "bottom_to_top": lambda: 1 - (y - 0.5) / max(camera.height - 1, 1),
      "left_to_right": lambda: (x - 0.5) / max(camera.width - 1, 1),
      "right_to_left": lambda: 1 - (x - 0.5) / max(camera.width - 1, 1),
  }[camera.shutter]()
  return jnp.clip(time, 0, 1)


def map_point(x, y, z, camera: Camera) -> ImagePoint:
  """Camera coordinates to the plane: the image point is (fx, fy) times it plus (cx, cy).

  Points have to be `is_visible`; the result for others has no meaning, and may be infinite.
  """
  if camera.model == "orthographic":
    return x, y
  k = _coefficients(camera)
  if camera.model == "fisheye":
    tangent2 = (x * x + y * y) / (z * z)
    near_axis = tangent2 < 1e-3
    tangent = jnp.sqrt(jnp.where(near_axis, 1, tangent2))
    # Angle over tangent is smooth on the axis, which shows in its series alone.
    series = 1 + tangent2 * (
        k[0] - 1 / 3 + tangent2 * (k[1] - k[0] + 1 / 5 + tangent2 * (k[2] - k[1] * 5 / 3 + k[0] * 14 / 15 - 1 / 7))
    )
    scale = jnp.where(near_axis, series, _distort_angle(jnp.arctan(tangent), k) / tangent) / z
    return scale * x, scale * y
  x, y = x / z, y / z
  if camera.distortion is None:
    return x, y
  radius2, xy = x * x + y * y, x * y
  numerator, denominator = _radial(radius2, k)
  scale = numerator / denominator
  p1, p2 = k[2], k[3]
  return (
      scale * x + 2 * p1 * xy + p2 * (radius2 + 2 * x * x),
      scale * y + p1 * (radius2 + 2 * y * y) + 2 * p2 * xy,
  )


def is_visible(x, y, z, camera: Camera, widest: Float[Array, ""]) -> Bool[Array, "*n"]:
  """Whether a camera can see a point in whatever direction: before it, and where its distortion is one to one."""
  if camera.model == "orthographic":
    return jnp.ones_like(z, bool)
  return (z > 0) & (x * x + y * y < jnp.square(widest * z))


def widest_tangent(camera: Camera) -> Float[Array, ""]:
  """Tangent of the angle with the axis up to which the camera's distortion only grows. Without gradient.

  Polynomials of a calibration turn back somewhere outside of the image, and would draw what lies there over it.
  """
  end = jnp.arctan(jnp.asarray(WIDEST_TANGENT, camera.intrinsics.dtype))
  if camera.distortion is None:
    return jnp.tan(end)
  k = jax.lax.stop_gradient(_coefficients(camera))

  def grows(angle):
    if camera.model == "fisheye":
      return jax.jvp(lambda a: _distort_angle(a, k), (angle,), (jnp.ones_like(angle),))[1] > 0
    radius = jnp.tan(angle)
    ratio = lambda r: r * jnp.divide(*_radial(r * r, k))
    slope = jax.jvp(ratio, (radius,), (jnp.ones_like(radius),))[1]
    return (slope > 0) & (_radial(radius * radius, k)[1] > 0)  # A pole ends the range, too.

  return jnp.tan(_first_false(grows, jax.lax.stop_gradient(end)))


def _first_false(condition: Callable, end: Float[Array, ""], samples: int = 64) -> Float[Array, ""]:
  """Where a condition that holds at 0 first fails, to samples^-3 of `end`; `end` if it does not."""

  def narrow(_, bounds):
    low, high = bounds
    step = (high - low) / samples
    at = low + step * jnp.arange(1, samples + 1, dtype=end.dtype)
    failed = ~condition(at)
    first = at[jnp.argmax(failed)]
    return jnp.where(jnp.any(failed), first - step, high), jnp.where(jnp.any(failed), first, high)

  return jax.lax.fori_loop(0, 3, narrow, (jnp.zeros_like(end), end))[0]


def _coefficients(camera: Camera) -> list[Float[Array, ""]]:
  """Distortion filled up with zeros."""
  given = [] if camera.distortion is None else [camera.distortion[i] for i in range(camera.distortion.shape[0])]
  return given + [jnp.zeros((), camera.intrinsics.dtype)] * (8 - len(given))


def _radial(radius2, k):
  """Numerator and denominator of OpenCV's radial distortion (k1, k2, p1, p2, k3, k4, k5, k6)."""
  numerator = 1 + radius2 * (k[0] + radius2 * (k[1] + radius2 * k[4]))
  denominator = 1 + radius2 * (k[5] + radius2 * (k[6] + radius2 * k[7]))
  return numerator, denominator


def _distort_angle(angle, k):
  """OpenCV's fisheye (Kannala and Brandt, 2006)."""
  squared = angle * angle
  return angle * (1 + squared * (k[0] + squared * (k[1] + squared * (k[2] + squared * k[3]))))
