"""Photoreal heads: 3D Gaussians bound to the triangles of a head model."""

from rsatalker_jax.avatar.bank import num_people, render_bank_frames, select, stack_avatars
from rsatalker_jax.avatar.binding import bind, triangle_frames
from rsatalker_jax.avatar.gaussians import Avatar, Gaussians, init_avatar
from rsatalker_jax.avatar.render import pose_gaussians, render_frames

__all__ = [
    "Avatar",
    "Gaussians",
    "bind",
    "init_avatar",
    "num_people",
    "pose_gaussians",
    "render_bank_frames",
    "render_frames",
    "select",
    "stack_avatars",
    "triangle_frames",
]
