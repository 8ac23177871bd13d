"""Gaussians taken as small pieces of surface."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from splat_kernels import arguments
from splat_kernels.cameras import check_camera
from splat_kernels.projection import rotation_columns
from splat_kernels.types import Camera, InputArray


def normals(
    means: Float[InputArray, "*#b N 3"],
    quats: Float[InputArray, "*#b N 4"],
    scales: Float[InputArray, "*#b N 3"],
    camera: Camera,
) -> Float[Array, "*b N 3"]:
  """Unit normals: each Gaussian's axis of least scale, in camera coordinates, facing the camera.

  Composite them as features for a map of normals. Leading dimensions broadcast. Differentiable, but for which axis it is
  and which side faces the camera. Of a rolling shutter, the camera is where it is at the beginning of the exposure. A
  Gaussian or camera that is not finite gets some normal and no gradient.

  Raises:
    ValueError: if shapes do not fit, naming them with their values.
  """
  means = arguments.floats("means", means, (None, 3))
  num = means.shape[-2]
  quats, scales = arguments.floats("quats", quats, (num, 4)), arguments.floats("scales", scales, (num, 3))
  camera = check_camera(camera)

  pose = camera.world_to_camera
  finite = jnp.all(jnp.isfinite(pose), axis=(-2, -1))[..., None]
  pose = jnp.where(finite[..., None], pose, jnp.eye(4, dtype=pose.dtype))
  for array in (means, quats):
    finite = finite & jnp.all(jnp.isfinite(array), axis=-1)
  m = [jnp.where(finite, means[..., i], 0) for i in range(3)]
  columns = rotation_columns(*(jnp.where(finite, quats[..., i], 0) for i in range(4)))
  thinnest = jnp.argmin(scales, axis=-1)
  axis = [jnp.where(thinnest == 0, a, jnp.where(thinnest == 1, b, c)) for a, b, c in zip(*columns)]
  w2c = [[pose[..., i, k, None] for k in range(4)] for i in range(3)]
  x, y, z = (sum(row[k] * axis[k] for k in range(3)) for row in w2c)
  if camera.model == "orthographic":
    away = z > 0
  else:
    centre = [sum(row[k] * m[k] for k in range(3)) + row[3] for row in w2c]
    away = x * centre[0] + y * centre[1] + z * centre[2] > 0
  return jnp.where(away, -1, 1)[..., None] * jnp.stack(jnp.broadcast_arrays(x, y, z), axis=-1)
