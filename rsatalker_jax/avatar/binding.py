"""From the triangles' frames to the world: the paper's Eq. 6 and 7, with GaussianAvatars' frames (Qian et al. 2024)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Squared lengths below this (1e-14 m², a tenth of a micrometre) belong to collapsed triangles: no division by zero.
_TINY = 1e-14


def _normalize(x: Float[Array, "*b 3"]) -> Float[Array, "*b 3"]:
  return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _TINY)


def triangle_frames(
    vertices: Float[Array, "V 3"], faces: Int[Array, "F 3"]
) -> tuple[Float[Array, "F 3 3"], Float[Array, "F"], Float[Array, "F 3"]]:
  """Rotation R, size λ and centroid T of every triangle.

  R's columns are the first edge's direction a0, the normal a1 and a2 = -(a1 x a0), which completes a right-handed
  frame; λ is the mean of the edge's length and of the height over it, in metres.
  """
  v0, v1, v2 = (vertices[faces[:, i]] for i in range(3))
  edge = v1 - v0
  a0 = _normalize(edge)
  a1 = _normalize(jnp.cross(a0, v2 - v0))
  a2 = -_normalize(jnp.cross(a1, a0))
  length = jnp.sqrt(jnp.sum(edge * edge, axis=-1) + _TINY)
  height = jnp.abs(jnp.sum(a2 * (v2 - v0), axis=-1))
  rotation = jnp.stack([a0, a1, a2], axis=-1)
  return rotation, (length + height) / 2, (v0 + v1 + v2) / 3


def quaternion_from_matrix(rotation: Float[Array, "*b 3 3"]) -> Float[Array, "*b 4"]:
  """Unit quaternions (wxyz) of rotation matrices, differentiable everywhere, sign arbitrary.

  4 q qᵀ is linear in R. Its row with the largest diagonal entry is q times at least 2, so normalising that row divides
  by nothing small and takes no square root near zero.
  """
  r = rotation
  xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
  wx, wy, wz = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
  xy, xz, yz = r[..., 1, 0] + r[..., 0, 1], r[..., 0, 2] + r[..., 2, 0], r[..., 2, 1] + r[..., 1, 2]
  rows = [
      [1 + xx + yy + zz, wx, wy, wz],
      [wx, 1 + xx - yy - zz, xy, xz],
      [wy, xy, 1 - xx + yy - zz, yz],
      [wz, xz, yz, 1 - xx - yy + zz],
  ]
  outer = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
  largest = jnp.argmax(jnp.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
  row = jnp.take_along_axis(outer, largest[..., None, None], axis=-2)[..., 0, :]
  return row / jnp.linalg.norm(row, axis=-1, keepdims=True)


def multiply_quaternions(p: Float[Array, "*b 4"], q: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
  """Hamilton's product (wxyz): first q's rotation, then p's."""
  pw, px, py, pz = jnp.moveaxis(p, -1, 0)
  qw, qx, qy, qz = jnp.moveaxis(q, -1, 0)
  return jnp.stack(
      [
          pw * qw - px * qx - py * qy - pz * qz,
          pw * qx + px * qw + py * qz - pz * qy,
          pw * qy - px * qz + py * qw + pz * qx,
          pw * qz + px * qy - py * qx + pz * qw,
      ],
      axis=-1,
  )


def bind(
    means: Float[Array, "N 3"],
    quats: Float[Array, "N 4"],
    log_scales: Float[Array, "N 3"],
    binding: Int[Array, "N"],
    vertices: Float[Array, "V 3"],
    faces: Int[Array, "F 3"],
    offsets: Float[Array, "F 3"] | None = None,
) -> tuple[Float[Array, "N 3"], Float[Array, "N 4"], Float[Array, "N 3"]]:
  """Gaussians of one frame in world space.

  Args:
    means, quats, log_scales: in the frames of the triangles.
    binding: face index of each Gaussian.
    vertices, faces: the posed head.
    offsets: Gaussian offset corrections c in metres, one per face (anchor), shared by all its Gaussians.

  Returns:
    Means, quaternions (as long as given) and scales, in world space.
  """
  rotation, size, centre = triangle_frames(vertices, faces)
  quat_face = quaternion_from_matrix(rotation)
  if offsets is not None:
    centre = centre + offsets
  rotation, size, centre, quat_face = (x[binding] for x in (rotation, size, centre, quat_face))
  quats_world = multiply_quaternions(quat_face, quats)  # Eq. 6: r_d = R r_c
  scales_world = size[:, None] * jnp.exp(log_scales)  # Eq. 6: s_d = λ s_c
  means_world = size[:, None] * jnp.einsum("nij,nj->ni", rotation, means) + centre  # Eq. 7: μ_d = λ R μ_c + T + c
  return means_world, quats_world, scales_world
