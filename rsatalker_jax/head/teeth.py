"""Teeth for FLAME, which has none: two rows behind the lips, as VHAP and GaussianAvatars (Qian et al. 2024) build them.

Each row is a bent strip of 15 columns, one behind each vertex of the lips' outer rings, with a front, a back and the
side on which the other row bites; towards the gums it is open. Tracked vertex offsets and Gaussians' bindings count on
120 vertices and 168 triangles in their order, first corner included, so the order here is theirs.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from rsatalker_jax.head.flame import JOINT_NAMES, NUM_JOINTS, HeadModel
from rsatalker_jax.head.lips import find_lips

# FLAME's mesh, the same in all its releases.
FLAME_VERTICES, FLAME_FACES = 5023, 9976

# Vertices of FLAME's outer lip rings, from the subject's left to the right.
_UPPER_RING = (1713, 1715, 1716, 1735, 1696, 1694, 1657, 3543, 2774, 2811, 2813, 2850, 2833, 2832, 2830)
_LOWER_RING = (1576, 1577, 1773, 1774, 1795, 1802, 1865, 3503, 2948, 2905, 2898, 2881, 2880, 2713, 2712)
_COLUMNS = len(_UPPER_RING)

# Rows of vertices: the teeth, then height and depth of the row about the middle between the lips, in units of the lips'
# mean distance. A tooth is 2 high and 1 thick; the upper ones stand 1.5 behind the lips, the lower ones 0.4 deeper.
_ROWS = (
    ("upper", 2.1, -1.5),  # 0 root
    ("lower", -2.1, -1.9),  # 1 root
    ("upper", 0.1, -1.5),  # 2 edge
    ("lower", -0.1, -1.9),  # 3 edge
    ("upper", 2.1, -2.5),  # 4 root, back
    ("upper", 0.1, -2.5),  # 5 edge, back
    ("lower", -2.1, -2.9),  # 6 root, back
    ("lower", -0.1, -2.9),  # 7 edge, back
)
# Bands of triangles between two rows a and b: whether the diagonals of the left half start at a's outer vertex (those
# of the right half mirror them), and whether corners two and three change places.
_BANDS = (
    (0, 2, True, False),  # Upper teeth: front,
    (4, 5, True, True),  # back,
    (5, 2, False, True),  # biting side.
    (3, 1, False, False),  # Lower teeth: front,
    (6, 7, True, False),  # back,
    (7, 3, False, False),  # biting side.
)
_JOINTS = {"upper": "neck", "lower": "jaw"}


def add_teeth(head: HeadModel) -> HeadModel:
  """FLAME with teeth: 5143 vertices and 10144 faces, FLAME's own first.

  Upper teeth follow the neck joint, lower teeth the jaw, both rigidly: neither expressions nor pose correctives
  move them. A shape coefficient moves each column as the mean of the two lip vertices in front of it. Joints stay where
  they are. The regions "teeth_upper", "teeth_lower" and "teeth" are added, and the lips are noted, since `find_lips`
  could take the teeth for them.

  Raises:
    ValueError: a mesh other than FLAME's.
  """
  num_vertices, num_faces = head.v_template.shape[0], head.faces.shape[0]
  if (num_vertices, num_faces) != (FLAME_VERTICES, FLAME_FACES):
    raise ValueError(f"{num_vertices} vertices and {num_faces} faces, not FLAME's {FLAME_VERTICES} and {FLAME_FACES}")
  upper, lower = np.array(_UPPER_RING), np.array(_LOWER_RING)
  rows, num_teeth = len(_ROWS), len(_ROWS) * _COLUMNS

  lips = np.asarray(head.v_template)[np.stack([upper, lower])]
  distance = np.linalg.norm(lips[0] - lips[1], axis=-1).mean()
  middle = lips.mean(axis=0)
  middle[:, 1] = middle[:, 1].mean()
  shifts = np.array([[0, height, depth] for _, height, depth in _ROWS])
  teeth = (middle + distance * shifts[:, None]).reshape(num_teeth, 3)

  weights = np.zeros((rows, _COLUMNS, NUM_JOINTS))
  for row, (which, *_) in enumerate(_ROWS):
    weights[row, :, JOINT_NAMES.index(_JOINTS[which])] = 1
  shape_directions = (head.shape_directions[upper] + head.shape_directions[lower]) / 2
  append = lambda x, more: jnp.concatenate([x, jnp.asarray(more, x.dtype)])
  no_directions = lambda x: append(x, np.zeros((num_teeth, *x.shape[1:])))

  faces = _teeth_faces()
  is_upper = np.array([which == "upper" for which, *_ in _ROWS]).repeat(_COLUMNS)[faces[:, 0]]
  added = np.stack([is_upper, ~is_upper, np.ones_like(is_upper)])
  known = np.zeros((0, num_faces), bool) if head.region_masks is None else np.asarray(head.region_masks)
  region_masks = np.block([
      [known, np.zeros((len(known), len(faces)), bool)],
      [np.zeros((len(added), num_faces), bool), added],
  ])
  lip_vertices = find_lips(head)
  return dataclasses.replace(
      head,
      v_template=append(head.v_template, teeth),
      shape_directions=append(head.shape_directions, jnp.tile(shape_directions, (rows, 1, 1))),
      expression_directions=no_directions(head.expression_directions),
      pose_directions=no_directions(head.pose_directions),
      joint_regressor=jnp.pad(head.joint_regressor, ((0, 0), (0, num_teeth))),
      weights=append(head.weights, weights.reshape(num_teeth, NUM_JOINTS)),
      faces=append(head.faces, num_vertices + faces),
      lip_vertices=None if lip_vertices is None else jnp.asarray(lip_vertices),
      region_masks=jnp.asarray(region_masks),
      region_names=(*head.region_names, "teeth_upper", "teeth_lower", "teeth"),
  )


def _teeth_faces() -> Int[np.ndarray, "168 3"]:
  """Triangles among the teeth's vertices, counter-clockwise seen from outside."""
  triangles = []
  for row_a, row_b, starts_at_a, turned in _BANDS:
    for column in range(_COLUMNS - 1):
      a0, b0 = row_a * _COLUMNS + column, row_b * _COLUMNS + column
      a1, b1 = a0 + 1, b0 + 1
      if (column < _COLUMNS // 2) == starts_at_a:
        pair = (a0, b1, b0), (a0, a1, b1)
      else:
        pair = (a0, a1, b0), (a1, b1, b0)
      triangles += [(first, third, second) if turned else (first, second, third) for first, second, third in pair]
  return np.array(triangles)
