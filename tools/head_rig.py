"""Joints, skinning weights and pose correctives of the demo head, in FLAME's sense. Metres, FLAME frame."""

import numpy as np
from scipy.optimize import nnls
from scipy.spatial.transform import Rotation

# FLAME's kinematic tree: global, neck, jaw, left eye, right eye.
KINTREE = np.array([[-1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.int32)
# Feature columns of the jaw's (R - I) in posedirs that carry its sine when it opens: entries (1, 2) and (2, 1).
_JAW_SINE = {"minus": 9 + 5, "plus": 9 + 7}


def smoothstep(x: np.ndarray) -> np.ndarray:
  """0 below 0, 1 above 1, with two vanishing derivatives at both ends."""
  x = np.clip(x, 0.0, 1.0)
  return x**3 * (x * (6 * x - 15) + 10)


def fit_jaw_hinge(points: np.ndarray, moved: np.ndarray) -> tuple[float, np.ndarray]:
  """Angle (rad, about +x) and centre (3,) of the rotation that takes the lower teeth to their open place."""
  p, q = points - points.mean(0), moved - moved.mean(0)
  u, _, vt = np.linalg.svd(p.T @ q)
  rotation = vt.T @ np.diag([1, 1, np.linalg.det(vt.T @ u.T)]) @ u.T
  angle = float(np.arctan2(rotation[2, 1], rotation[2, 2]))
  shift = moved.mean(0) - rotation @ points.mean(0)
  centre = np.linalg.solve((np.eye(3) - rotation)[1:, 1:], shift[1:])
  return angle, np.array([0.0, *centre])


def regressor_row(vertices: np.ndarray, candidates: np.ndarray, joint: np.ndarray, mirror: np.ndarray) -> np.ndarray:
  """Non-negative weights (V,), summing to one, that give `joint` from the candidate vertices, left-right alike."""
  pairs = vertices[candidates] * 0.5 + vertices[mirror[candidates]] * 0.5
  system = np.concatenate([pairs.T, 10 * np.ones((1, len(candidates))), 1e-3 * np.eye(len(candidates))])
  weights, _ = nnls(system, np.concatenate([joint, [10.0], np.zeros(len(candidates))]))
  row = np.zeros(len(vertices))
  np.add.at(row, candidates, 0.5 * weights)
  np.add.at(row, mirror[candidates], 0.5 * weights)
  return row / row.sum()


def skinning_weights(vertices: np.ndarray, jaw_share: np.ndarray, eyes: dict[str, np.ndarray], neck_joint: np.ndarray,
                     rest: np.ndarray) -> np.ndarray:
  """Weights (V, 5).

  The head (joint "neck") takes over from the still collar along a plane that rises towards the back of the neck.

  Args:
    jaw_share: (V,) how far a vertex follows the jaw when it opens, 0..1.
    eyes: {"left": bool (V,), "right": bool (V,)}.
    neck_joint: (3,).
    rest: (V,) bool, vertices that belong wholly to the head (teeth, tongue, lashes).
  """
  y, z = vertices[:, 1] - neck_joint[1], vertices[:, 2] - neck_joint[2]
  # Full head above the line from under the chin to the base of the skull; still below the collarbones.
  top = 0.063 - 0.42 * z
  bottom = -0.062 - 0.15 * z
  head = smoothstep((y - bottom) / (top - bottom))
  head = np.where(rest, 1.0, head)
  weights = np.zeros((len(vertices), 5))
  weights[:, 0] = 1 - head
  weights[:, 1] = head * (1 - jaw_share)
  weights[:, 2] = head * jaw_share
  for joint, side in ((3, "left"), (4, "right")):
    weights[eyes[side]] = np.eye(5)[joint]
  return weights


def jaw_share(vertices: np.ndarray, opened: np.ndarray, angle: float, hinge: np.ndarray) -> np.ndarray:
  """(V,) projection of the jawOpen displacement on the rigid motion of the jaw, 0..1."""
  rigid = Rotation.from_rotvec([angle, 0, 0]).apply(vertices - hinge) + hinge - vertices
  share = (opened * rigid).sum(1) / np.maximum((rigid**2).sum(1), 1e-10)
  return np.clip(share, 0.0, 1.0)


def jaw_correctives(vertices: np.ndarray, opened: np.ndarray, weights: np.ndarray, angle: float,
                    hinge: np.ndarray) -> np.ndarray:
  """posedirs (V, 3, 36): what skinning misses of the jawOpen target at its angle.

  FLAME's correctives are linear in R - I of joints 1..4. For an opening by t about x the entries (2, 1) and (1, 2) of
  R - I are +sin t and -sin t, so half the residual goes to each, over the sine of the target's angle; turning the jaw
  sideways leaves both untouched to first order. The residual is brought back through the blended rotation, because
  correctives are added before skinning.
  """
  turned = Rotation.from_rotvec([angle, 0, 0]).as_matrix()
  blend = weights[:, 2, None, None] * turned + (1 - weights[:, 2, None, None]) * np.eye(3)
  skinned = np.einsum("vij,vj->vi", blend, vertices - hinge) + hinge
  residual = np.linalg.solve(blend, (vertices + opened - skinned)[..., None])[..., 0]
  posedirs = np.zeros((len(vertices), 3, 36))
  posedirs[:, :, _JAW_SINE["plus"]] = 0.5 * residual / np.sin(angle)
  posedirs[:, :, _JAW_SINE["minus"]] = -0.5 * residual / np.sin(angle)
  return posedirs
