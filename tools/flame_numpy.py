"""FLAME's forward pass in plain numpy, for the tools that make assets (the project's own one is in JAX)."""

import numpy as np
from scipy.spatial.transform import Rotation


def load(path) -> dict[str, np.ndarray]:
  """Reads an npz head file; floating arrays become float64."""
  with np.load(path, allow_pickle=False) as file:
    return {k: file[k].astype(np.float64) if file[k].dtype.kind == "f" else file[k] for k in file.files}


def vertices(head, shape=None, expression=None, *, rotation=(0, 0, 0), neck=(0, 0, 0), jaw=(0, 0, 0),
             eyes=(0, 0, 0, 0, 0, 0), translation=(0, 0, 0)) -> np.ndarray:
  """(V, 3) metres: shape -> joints -> pose correctives -> linear blend skinning -> translation.

  FLAME (and `head_vertices`) place the joints after expressions too, here shape alone does: with the demo head that moves
  the jaw's joint by 0.9 mm at most at an expression coefficient of 1.

  Args:
    shape: (S,) or None for zero. expression: (E,) or None. The others: axis-angle, radians.
  """
  count = int(head["n_shape"])
  shaped = head["v_template"] if shape is None else head["v_template"] + head["shapedirs"][:, :, :count] @ shape
  joints = head["J_regressor"] @ shaped
  posed = shaped
  if expression is not None:
    posed = posed + head["shapedirs"][:, :, count:count + len(expression)] @ expression
  local = Rotation.from_rotvec([rotation, neck, jaw, eyes[:3], eyes[3:]]).as_matrix()
  posed = posed + head["posedirs"] @ (local[1:] - np.eye(3)).ravel()
  parents = head["kintree_table"][0]
  turn, place = [local[0]], [joints[0]]
  for j in range(1, 5):
    parent = parents[j]
    turn.append(turn[parent] @ local[j])
    place.append(place[parent] + turn[parent] @ (joints[j] - joints[parent]))
  turn, place = np.array(turn), np.array(place)
  shift = place - np.einsum("jkl,jl->jk", turn, joints)
  blend, offset = np.tensordot(head["weights"], turn, 1), head["weights"] @ shift
  return np.einsum("vkl,vl->vk", blend, posed) + offset + np.asarray(translation)


def expression_vector(head, **coefficients) -> np.ndarray:
  """Coefficients by name; "Both" at the end of a name stands for Left and Right."""
  names = [str(n) for n in head["expression_names"]]
  vector = np.zeros(len(names))
  for name, value in coefficients.items():
    sides = [name[:-4] + s for s in ("Left", "Right")] if name.endswith("Both") else [name]
    for side in sides:
      vector[names.index(side)] = value
  return vector


def normals(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
  """Unit vertex normals (V, 3), area weighted."""
  face = np.cross(points[triangles[:, 1]] - points[triangles[:, 0]], points[triangles[:, 2]] - points[triangles[:, 0]])
  corner = triangles.ravel()
  total = np.stack([np.bincount(corner, np.repeat(face[:, k], 3), len(points)) for k in range(3)], axis=-1)
  return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
