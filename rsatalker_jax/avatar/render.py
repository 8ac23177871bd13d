"""Frames of an avatar: the head's pose -> Gaussians in the world -> pixels."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import splat_kernels
from rsatalker_jax.avatar.binding import bind
from rsatalker_jax.avatar.gaussians import FREE, Avatar
from rsatalker_jax.head import HeadModel, head_vertices


def pose_gaussians(
    avatar: Avatar,
    head: HeadModel,
    flame: dict[str, Float[Array, "_"]],
    offsets: Float[Array, "F 3"] | None = None,
) -> tuple[Float[Array, "N 3"], Float[Array, "N 4"], Float[Array, "N 3"]]:
  """Means, quaternions and scales of the avatar's Gaussians in world space, for one frame.

  Arguments as in `render_frames`, without the frames' dimension.
  """
  vertices = head_vertices(head, shape=avatar.shape, static_offset=avatar.static_offset, **flame)
  gaussians = avatar.gaussians
  return bind(
      gaussians.means, gaussians.quats, gaussians.log_scales, avatar.binding, vertices, head.faces, offsets
  )


def render_frames(
    avatar: Avatar,
    head: HeadModel,
    flame: dict[str, Float[Array, "T _"]],
    offsets: Float[Array, "T F 3"] | None,
    camera: splat_kernels.Camera,
    *,
    background: Float[Array, "*T 3"] | None = None,
    probes: Mapping[str, Float[Array, "T N 2"]] = MappingProxyType({}),
    config: splat_kernels.Config = splat_kernels.Config(),
    implementation: str | None = None,
) -> splat_kernels.RenderOutput:
  """Renders frames of one avatar, or of one for each frame.

  Args:
    avatar: the person; or T of them, in arrays with a leading dimension, the person of each frame.
    head: the head model the avatar is bound to.
    flame: expression, rotation, neck, jaw, eyes, translation of every frame (see `head_vertices`).
    offsets: Gaussian offset corrections c in metres (Eq. 7, 8), one per anchor; None for none.
    camera: one for all frames, or one per frame (leading T).
    background: colour, one for all frames or one per frame; None is black.
    probes: zeros whose gradients are those of the screen positions: `means2d_offset` or `means2d_abs_offset` of
      `splat_kernels.rasterize`.
    config, implementation: of the rasterizer.

  Returns:
    The rasterizer's output with leading dimension T.
  """
  axes = (0 if avatar.binding.ndim == 2 else None, None, 0, None if offsets is None else 0)
  means, quats, scales = jax.vmap(pose_gaussians, in_axes=axes)(avatar, head, flame, offsets)
  sh = avatar.gaussians.sh
  return splat_kernels.rasterize(
      means,
      quats,
      scales,
      jnp.where(avatar.binding == FREE, 0.0, jax.nn.sigmoid(avatar.gaussians.opacity_logits)),
      sh,
      camera,
      background=background,
      sh_degree=math.isqrt(sh.shape[-2]) - 1,
      **probes,
      config=config,
      implementation=implementation,
  )
