"""Photoreal heads: 3D Gaussians bound to the triangles of a head model."""

from rsatalker_jax.avatar.bank import join_bank, num_people, render_bank_frames, select, stack_avatars
from rsatalker_jax.avatar.binding import bind, triangle_frames
from rsatalker_jax.avatar.colors import face_colors, paint
from rsatalker_jax.avatar.gaussians import FREE, Avatar, Gaussians, drop_free_slots, init_avatar, up_to_degree
from rsatalker_jax.avatar.identity import wear
from rsatalker_jax.avatar.render import pose_gaussians, render_frames

__all__ = [
    "FREE",
    "Avatar",
    "Gaussians",
    "bind",
    "drop_free_slots",
    "face_colors",
    "init_avatar",
    "join_bank",
    "num_people",
    "paint",
    "pose_gaussians",
    "render_bank_frames",
    "render_frames",
    "select",
    "stack_avatars",
    "triangle_frames",
    "up_to_degree",
    "wear",
]
