"""An avatar on another identity of its head model: what lies off its own triangle goes where the surface goes that it lies on.

A Gaussian is kept in the frame of the triangle that it is bound to. Training moves many of them off it, by up to a few of its
sizes, onto something else: what is bound to the inside of a lid paints the iris, what is bound to the gum a lip. On the head
that it was trained on that is as good as any other place. On another head that triangle is turned and sized otherwise than
what was painted, and the length in between turns with it: the piece of iris comes to lie in front of the lid.

So a Gaussian that is nearer to another triangle than to its own is moved, turned and sized as that other one is from one head
to the other, and expressed in the frame of its own again, with which it goes on to move. Which triangle that is depends on the
pose: what paints the iris while the eye is open may be a piece of the row of lashes when it is shut. So the place is the one that
in least squares is right at rest, with shut eyes and with an open mouth; turn and size are those at rest.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.spatial
from jaxtyping import Array, Float, Int

from rsatalker_jax.avatar.binding import multiply_quaternions, quaternion_from_matrix, triangle_frames
from rsatalker_jax.avatar.gaussians import FREE, Avatar
from rsatalker_jax.head import FlamePose, HeadModel, head_vertices, pose_for

# Of its distance from its own triangle, below which the distance to another makes that the one that a Gaussian lies on.
_NEARER = 0.5
_BLINKS, _JAW = ("eyeBlinkLeft", "eyeBlinkRight"), 0.3  # Radians.
_CANDIDATES = 24  # Triangles whose centres are nearest, among which the nearest is looked for.


def wear(
    avatar: Avatar, head: HeadModel, shape: Float[Array, "S"] | Float[np.ndarray, "S"], static_offset: Float[Array, "V 3"] | None = None
) -> Avatar:
  """A person's Gaussians on another identity.

  Args:
    avatar: of one person, outside jit.
    head: the head model that it is bound to.
    shape, static_offset: of the identity, as `init_avatar` has them.
  """
  gaussians, bound = avatar.gaussians, np.asarray(avatar.binding)
  own, faces = np.where(bound == FREE, 0, bound), np.asarray(head.faces)
  old_means = np.asarray(gaussians.means)
  means, weight, elsewhere = np.zeros_like(old_means), np.zeros(len(own)), np.zeros(len(own), bool)
  turned, growth = np.tile(np.eye(3), (len(own), 1, 1)), np.ones(len(own))
  for number, pose in enumerate(_poses(head)):
    before = _vertices(head, pose, avatar.shape, avatar.static_offset)
    after = _vertices(head, pose, shape, static_offset)
    (turn, size, centre), (new_turn, new_size, new_centre) = (map(np.asarray, triangle_frames(v, faces)) for v in (before, after))
    points = size[own, None] * np.einsum("nij,nj->ni", turn[own], old_means) + centre[own]
    lies_on = find_surfaces(points, own, np.asarray(before)[faces])
    # From one head to the other as the triangle goes that it lies on, then into the frame of its own.
    rotation = np.einsum("nij,nkj->nik", new_turn[lies_on], turn[lies_on])
    larger = new_size[lies_on] / size[lies_on]
    moved = larger[:, None] * np.einsum("nij,nj->ni", rotation, points - centre[lies_on]) + new_centre[lies_on]
    # Least squares over the poses, in metres.
    means += new_size[own, None] * np.einsum("nji,nj->ni", new_turn[own], moved - new_centre[own])
    weight += new_size[own] ** 2
    if number == 0:
      turned = np.einsum("nji,njk,nkl->nil", new_turn[own], rotation, turn[own])
      growth = larger * size[own] / new_size[own]
    elsewhere |= (lies_on != own) & (bound != FREE)
  keep = lambda new, old: jnp.where(elsewhere.reshape(-1, *[1] * (old.ndim - 1)), jnp.asarray(new, old.dtype), old)
  changed = dataclasses.replace(
      gaussians,
      means=keep(means / weight[:, None], gaussians.means),
      quats=keep(multiply_quaternions(quaternion_from_matrix(jnp.asarray(turned)), gaussians.quats), gaussians.quats),
      log_scales=keep(gaussians.log_scales + np.log(growth)[:, None], gaussians.log_scales),
  )
  offset = None if static_offset is None else jnp.asarray(static_offset)
  return dataclasses.replace(avatar, gaussians=changed, shape=jnp.asarray(shape, avatar.shape.dtype), static_offset=offset)


def find_surfaces(
    points: Float[np.ndarray, "N 3"], own: Int[np.ndarray, "N"], triangles: Float[np.ndarray, "F 3 3"]
) -> Int[np.ndarray, "N"]:
  """The triangle that each point lies on: its own, or one that is less than half as far away."""
  count = min(_CANDIDATES, len(triangles))
  _, candidates = scipy.spatial.KDTree(triangles.mean(axis=1)).query(points, count)
  candidates = candidates.reshape(len(points), count)
  distances = triangle_distances(np.repeat(points[:, None], count, axis=1), triangles[candidates])
  rows, nearest = np.arange(len(points)), np.argmin(distances, axis=1)
  is_nearer = distances[rows, nearest] < _NEARER * triangle_distances(points, triangles[own])
  return np.where(is_nearer, candidates[rows, nearest], own)


def triangle_distances(points: Float[np.ndarray, "*n 3"], triangles: Float[np.ndarray, "*n 3 3"]) -> Float[np.ndarray, "*n"]:
  """Distances of points from triangles (Ericson, Real-Time Collision Detection, 2005, Sec. 5.1.5)."""
  corners: Sequence[np.ndarray] = [triangles[..., i, :] for i in range(3)]
  a, b, c = corners
  dot = lambda x, y: np.sum(x * y, axis=-1)
  normal = np.cross(b - a, c - a)
  area2 = np.maximum(dot(normal, normal), 1e-30)
  # Inside the prism over the triangle it is the height; else the nearest of the three edges.
  weights = [dot(np.cross(end - start, points - start), normal) / area2 for start, end in ((b, c), (c, a), (a, b))]
  inside = np.all(np.stack(weights) >= 0, axis=0)
  height = np.abs(dot(points - a, normal)) / np.sqrt(area2)
  edges = []
  for start, end in ((a, b), (b, c), (c, a)):
    along = dot(points - start, end - start) / np.maximum(dot(end - start, end - start), 1e-30)
    edges.append(np.linalg.norm(points - start - np.clip(along, 0, 1)[..., None] * (end - start), axis=-1))
  return np.where(inside, height, np.min(edges, axis=0))


def _poses(head: HeadModel) -> list[FlamePose]:
  """At rest; eyes shut, where the head names its expressions; jaw open."""
  motion = np.zeros((3, 56), np.float32)
  for name in set(_BLINKS) & set(head.expression_names):
    motion[1, head.expression_names.index(name)] = 1
  motion[2, 50] = _JAW
  flame = jax.device_get(pose_for(motion))
  return [{name: x[i] for name, x in flame.items()} for i in range(len(motion))]


@jax.jit
def _vertices(head: HeadModel, pose: FlamePose, shape, static_offset) -> Float[Array, "V 3"]:
  return head_vertices(head, shape=jnp.asarray(shape), static_offset=static_offset, **pose)
