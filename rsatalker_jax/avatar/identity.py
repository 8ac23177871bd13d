"""An avatar on another identity of its head model: what lies off its own triangle goes where the surface goes that it lies on.

A Gaussian is kept in the frame of the triangle that it is bound to. Training moves many of them off it, by up to a few of its
sizes, onto something else: what is bound to the inside of a lid paints the iris, what is bound to the gum a lip. On the head
that it was trained on that is as good as any other place. On another head that triangle is turned and sized otherwise than
what was painted, and the length in between turns with it: the piece of iris comes to lie in front of the lid.

So a Gaussian that is nearer to another triangle than to its own is moved, turned and sized as that other one is between the
two heads at rest, and then bound to its own again, with which it goes on to move.
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
from rsatalker_jax.head import HeadModel, head_vertices

# Of its distance from its own triangle, below which the distance to another makes that the one that a Gaussian lies on.
_NEARER = 0.5
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
  vertices = [_at_rest(head, *identity) for identity in ((avatar.shape, avatar.static_offset), (shape, static_offset))]
  (turn, size, centre), (new_turn, new_size, new_centre) = ([np.asarray(x) for x in triangle_frames(v, head.faces)] for v in vertices)
  gaussians, bound = avatar.gaussians, np.asarray(avatar.binding)
  own = np.where(bound == FREE, 0, bound)
  points = size[own, None] * np.einsum("nij,nj->ni", turn[own], np.asarray(gaussians.means)) + centre[own]
  lies_on = find_surfaces(points, own, np.asarray(vertices[0])[np.asarray(head.faces)])
  # From one head to the other as the triangle goes that it lies on, then into the frame of its own.
  rotation = np.einsum("nij,nkj->nik", new_turn[lies_on], turn[lies_on])
  growth = new_size[lies_on] / size[lies_on]
  moved = growth[:, None] * np.einsum("nij,nj->ni", rotation, points - centre[lies_on]) + new_centre[lies_on]
  means = np.einsum("nji,nj->ni", new_turn[own], moved - new_centre[own]) / new_size[own, None]
  turned = np.einsum("nji,njk,nkl->nil", new_turn[own], rotation, turn[own])
  elsewhere = (lies_on != own) & (bound != FREE)
  keep = lambda new, old: jnp.where(elsewhere.reshape(-1, *[1] * (old.ndim - 1)), jnp.asarray(new, old.dtype), old)
  changed = dataclasses.replace(
      gaussians,
      means=keep(means, gaussians.means),
      quats=keep(multiply_quaternions(quaternion_from_matrix(jnp.asarray(turned)), gaussians.quats), gaussians.quats),
      log_scales=keep(gaussians.log_scales + np.log(growth * size[own] / new_size[own])[:, None], gaussians.log_scales),
  )
  offset = None if static_offset is None else jnp.asarray(static_offset)
  return dataclasses.replace(avatar, gaussians=changed, shape=jnp.asarray(shape, avatar.shape.dtype), static_offset=offset)


def find_surfaces(
    points: Float[np.ndarray, "N 3"], own: Int[np.ndarray, "N"], triangles: Float[np.ndarray, "F 3 3"]
) -> Int[np.ndarray, "N"]:
  """The triangle that each point lies on: its own, or one that is less than half as far away."""
  count = min(_CANDIDATES, len(triangles))
  _, candidates = scipy.spatial.cKDTree(triangles.mean(axis=1)).query(points, count)
  distances = triangle_distances(points[:, None], triangles[candidates.reshape(len(points), count)])
  nearest = np.argmin(distances, axis=1)
  rows = np.arange(len(points))
  is_nearer = distances[rows, nearest] < _NEARER * triangle_distances(points, triangles[own])
  return np.where(is_nearer, candidates.reshape(len(points), count)[rows, nearest], own)


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


def _at_rest(head: HeadModel, shape, static_offset) -> Float[Array, "V 3"]:
  zeros = jnp.zeros(3)
  pose = dict(rotation=zeros, neck=zeros, jaw=zeros, eyes=jnp.zeros(6), translation=zeros, expression=zeros[:0])
  return jax.jit(head_vertices)(head, shape=jnp.asarray(shape), static_offset=static_offset, **pose)
