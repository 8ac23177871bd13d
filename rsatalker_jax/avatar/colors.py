"""First colours of an avatar, read from a few frames of its capture."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from rsatalker_jax.avatar.binding import triangle_frames
from rsatalker_jax.avatar.gaussians import SH_CONSTANT, Avatar
from rsatalker_jax.head import HeadModel, head_vertices, region_labels


def face_colors(
    head: HeadModel,
    shape: Float[Array, "S"],
    frames: Iterable[Mapping[str, Any]],
    static_offset: Float[Array, "V 3"] | None = None,
) -> Float[np.ndarray, "F 3"]:
  """Mean colour that each triangle's centre has in the frames where it faces the camera and lies on the person.

  What hides a triangle is not looked at: it is a first guess. A triangle that no frame shows has the mean colour of its
  region, and a region that none shows the mean of all: what training never sees (a shoulder below the picture) then at
  least has the colour of what is beside it.

  Args:
    head, shape, static_offset: the person.
    frames: items of a `Capture`.
  """
  faces = np.asarray(head.faces)
  total, weight = np.zeros((len(faces), 3)), np.zeros((len(faces), 1))
  locate = jax.jit(lambda flame: triangle_frames(head_vertices(head, shape=shape, static_offset=static_offset, **flame), faces))
  for frame in frames:
    rotation, _, centre = map(np.asarray, locate(dict(frame["flame"])))
    turn, shift = frame["world_to_camera"][:3, :3], frame["world_to_camera"][:3, 3]
    seen = centre @ turn.T + shift
    normal = rotation[:, :, 1] @ turn.T
    pixel = seen @ frame["intrinsics"].T
    x, y = np.floor(pixel[:, :2] / np.maximum(pixel[:, 2:], 1e-6)).astype(int).T  # Centres at +0.5: pixel i is [i, i+1).
    height, width = frame["mask"].shape
    inside = (seen[:, 2] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = np.where(inside, x, 0), np.where(inside, y, 0)
    facing = -np.sum(normal * seen, axis=-1) / np.linalg.norm(seen, axis=-1)
    share = np.where(inside & (frame["mask"][y, x] > 0.9), np.maximum(facing, 0), 0)[:, None]
    total += share * frame["image"][y, x]
    weight += share
  known = weight[:, 0] > 0
  colors = np.where(known[:, None], total / np.maximum(weight, 1e-9), 0.5)
  region = region_labels(head)
  for name in np.unique(region[~known]):
    beside = known & (region == name)
    colors[~known & (region == name)] = colors[beside if beside.any() else known].mean(axis=0) if known.any() else 0.5
  return colors.astype(np.float32)


def paint(avatar: Avatar, colors: Float[np.ndarray, "F 3"]) -> Avatar:
  """The avatar with each Gaussian in the colour of its triangle, seen from anywhere."""
  constant = (colors[np.asarray(avatar.binding)] - 0.5) / SH_CONSTANT
  gaussians = avatar.gaussians
  colored = dataclasses.replace(gaussians, sh=gaussians.sh.at[:, 0].set(constant).at[:, 1:].set(0.0))
  return dataclasses.replace(avatar, gaussians=colored)
