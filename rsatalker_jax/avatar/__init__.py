"""Photoreal heads: 3D Gaussians bound to the triangles of a head model."""

from rsatalker_jax.avatar.binding import bind, triangle_frames
from rsatalker_jax.avatar.gaussians import Avatar, Gaussians, init_avatar
from rsatalker_jax.avatar.render import pose_gaussians, render_frames

__all__ = ["Avatar", "Gaussians", "bind", "init_avatar", "pose_gaussians", "render_frames", "triangle_frames"]
