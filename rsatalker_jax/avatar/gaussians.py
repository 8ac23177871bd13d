"""The avatar: 3D Gaussians in the frames of the head's triangles (paper Sec. 3.4)."""

import dataclasses
import math
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rsatalker_jax.avatar.binding import triangle_frames
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import HeadModel, head_vertices, region_mask

# The binding of a free slot.
FREE = -1

# First constant of the spherical harmonics: colour = SH_CONSTANT * dc + 0.5.
SH_CONSTANT = 0.28209479177387814


@flax.struct.dataclass
class Gaussians:
  """Trainable parameters, each Gaussian in the frame of its triangle (lengths in units of the triangle's size)."""

  means: Float[Array, "*b N 3"]
  quats: Float[Array, "*b N 4"]  # wxyz, of any length
  log_scales: Float[Array, "*b N 3"]
  opacity_logits: Float[Array, "*b N"]
  sh: Float[Array, "*b N K 3"]


@flax.struct.dataclass
class Avatar:
  """A person: Gaussians, the triangle each is bound to, and the head's identity.

  It begins with the paper's anchors, one per face in the faces' order; any further Gaussians are its neural ones, which
  share their anchor's triangle and its offset correction. Every face has at least one. Gaussians bound to no triangle
  (`FREE`) are free slots, which density control fills: they are never drawn.
  """

  gaussians: Gaussians
  binding: Int[Array, "*b N"]  # Face index, or FREE.
  shape: Float[Array, "*b S"]
  static_offset: Float[Array, "*b V 3"] | None = None


def init_avatar(
    head: HeadModel,
    shape: Float[Array, "S"],
    *,
    static_offset: Float[Array, "V 3"] | None = None,
    sh_degree: int = 0,
    init_scale: float = 1.0,
    init_opacity: float = 0.1,
    num_gaussians: int | None = None,
    capacity: int | None = None,
    region_density: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Avatar:
  """Gaussians at rest on their triangles: mean 0, identity rotation, mid-grey (Sec. 3.4).

  With more Gaussians than faces, the further ones are spread over the triangles in proportion to their area, so
  that detail is even over the surface whatever the mesh's resolution; all Gaussians of a triangle shrink accordingly.

  Args:
    head: the head model.
    shape: identity coefficients.
    static_offset: the person's vertex offsets, if tracked.
    sh_degree: of the colours' spherical harmonics; 0 is advised where one camera sees the head.
    init_scale: standard deviation in units of the triangle's size; the paper's is 1.
    init_opacity: the paper's "zero" would let no gradient through; GaussianAvatars begins at 0.1.
    num_gaussians: at least the number of faces, which is the default.
    capacity: length of the arrays, for density control; what is beyond `num_gaussians` are free slots. None: none.
    region_density: factors on the area by region name, to give a region more of the further Gaussians or none; a face
      in several regions gets their product.
    seed: of the places on the triangles.

  Raises:
    InputError: fewer Gaussians than faces, a capacity below that, or an unknown region.
    ValueError: a shape beyond the head's basis.
  """
  if np.any(np.asarray(shape)[head.num_shape :]):
    raise ValueError(f"{len(shape)} shape coefficients, but the head model has {head.num_shape}")
  num_faces = head.faces.shape[0]
  count = num_faces if num_gaussians is None else num_gaussians
  if count < num_faces:
    raise InputError("config", "gaussians.num_gaussians", count, f"at least {num_faces}, the number of faces")
  if capacity is not None and capacity < count:
    raise InputError("config", "gaussians.capacity", capacity, f"None or at least {count}, the number of Gaussians")

  binding = np.arange(num_faces)
  means = np.zeros((count, 3), np.float32)
  if count > num_faces:
    zeros = jnp.zeros(3)
    pose = dict(rotation=zeros, neck=zeros, jaw=zeros, eyes=jnp.zeros(6), translation=zeros, expression=zeros[:0])
    vertices = jax.jit(head_vertices)(head, shape=shape, static_offset=static_offset, **pose)
    triangles = np.asarray(vertices)[np.asarray(head.faces)]
    random = np.random.default_rng(seed)
    share = _area_share(head, triangles, region_density or {})
    extra = _systematic_sample(share, count - num_faces, random)
    binding = np.concatenate([binding, extra])
    # Uniform points on the triangles (Osada et al. 2002), in the triangles' frames.
    u, v = np.sqrt(random.random(len(extra))), random.random(len(extra))
    corners = np.stack([1 - u, u * (1 - v), u * v], axis=-1)
    rotation, size, centre = map(np.asarray, jax.jit(triangle_frames)(vertices, head.faces))
    points = np.einsum("nc,ncd->nd", corners, triangles[extra]) - centre[extra]
    means[num_faces:] = np.einsum("nji,nj->ni", rotation[extra], points) / size[extra, None]

  sharing = np.bincount(binding, minlength=num_faces)[binding]
  log_scales = np.log(init_scale / np.sqrt(sharing))[:, None].repeat(3, axis=1)
  slots = max(capacity or 0, count)
  pad = lambda x, value: np.pad(x, [(0, slots - count)] + [(0, 0)] * (x.ndim - 1), constant_values=value)
  means, log_scales, binding = pad(means, 0), pad(log_scales, 0), pad(binding, FREE)
  gaussians = Gaussians(
      means=jnp.asarray(means),
      quats=jnp.tile(jnp.array([1.0, 0.0, 0.0, 0.0]), (slots, 1)),
      log_scales=jnp.asarray(log_scales, jnp.float32),
      opacity_logits=jnp.full(slots, jax.scipy.special.logit(init_opacity)),
      sh=jnp.zeros((slots, (sh_degree + 1) ** 2, 3)),
  )
  return Avatar(gaussians, jnp.asarray(binding, jnp.int32), jnp.asarray(shape, jnp.float32), static_offset)


def up_to_degree(avatar: Avatar, degree: int | Int[Array, ""]) -> Avatar:
  """The same avatar with spherical harmonics above `degree`, which may be traced, set to zero."""
  sh = avatar.gaussians.sh
  of_coefficient = np.array([math.isqrt(k) for k in range(sh.shape[-2])])
  kept = jnp.where((of_coefficient <= degree)[:, None], sh, 0.0)
  return dataclasses.replace(avatar, gaussians=dataclasses.replace(avatar.gaussians, sh=kept))


def drop_free_slots(avatar: Avatar) -> Avatar:
  """The same person without free slots, outside jit: less to draw and nothing that other programs would not know."""
  kept = np.flatnonzero(np.asarray(avatar.binding) != FREE)
  return dataclasses.replace(
      avatar,
      gaussians=jax.tree.map(lambda x: x[kept], avatar.gaussians), binding=avatar.binding[kept]
  )


def _area_share(head: HeadModel, triangles: np.ndarray, region_density: Mapping[str, float]) -> np.ndarray:
  edges = triangles[:, 1:] - triangles[:, :1]
  share = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=-1)
  for name, factor in region_density.items():
    share = np.where(region_mask(head, name), factor * share, share)
  return share / share.sum()


def _systematic_sample(share: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
  """Indices drawn in proportion to `share`, each within one of its expected number."""
  positions = (np.arange(count) + random.random()) / count
  return np.minimum(np.searchsorted(np.cumsum(share), positions), len(share) - 1)
