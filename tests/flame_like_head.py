"""A head in FLAME's file format that moves as the demo head does, though nothing about its arrays is the same.

Its mesh is another (triangles split, vertices in another order), it is larger, turned and elsewhere, and its 50 components are
mixtures of either sign of the demo head's shapes. So a motion of it is known as one of the demo head's.
"""

import functools
import pathlib

import numpy as np
from scipy.spatial.transform import Rotation

DEMO_HEAD = pathlib.Path(__file__).parents[1] / "assets/head/demo_head.npz"
SCALE, SHIFT = 1.1, np.array([0.004, -0.02, 0.01])
# About the axis that jaws turn about: pose correctives are entries of the jaw's rotation, which this leaves as they are.
TURN = Rotation.from_rotvec([0.06, 0, 0])


@functools.cache
def _mixture() -> np.ndarray:
  """(50, 50): weights of the demo head's shapes in each component."""
  r = np.random.default_rng(5)
  return np.linalg.qr(r.normal(size=(50, 50)))[0] * 0.4


def components(weights: np.ndarray) -> np.ndarray:
  """Coefficients (T, 50) of the head for the demo head's weights (T, 50)."""
  return weights @ np.linalg.inv(_mixture())


def flame_like_values(basis: str | None = "flame2020") -> dict[str, np.ndarray]:
  """Arrays under FLAME's keys."""
  head = dict(np.load(DEMO_HEAD))
  r = np.random.default_rng(4)
  faces, count = head["f"], len(head["v_template"])
  # Some triangles get a vertex in their middle, which is a mixture of the corners in everything.
  split = np.sort(r.choice(len(faces), 1500, replace=False))
  middle = np.zeros((len(split), count))
  middle[np.arange(len(split))[:, None], faces[split]] = 1 / 3
  new = count + np.arange(len(split))
  a, b, c = faces[split].T
  kept = np.delete(faces, split, axis=0)
  faces = np.concatenate([kept, np.stack([a, b, new], 1), np.stack([b, c, new], 1), np.stack([c, a, new], 1)])
  order = r.permutation(count + len(split))
  extend = lambda x: np.concatenate([x, np.tensordot(middle, x.astype(np.float64), 1)])[order]
  rotate = lambda x: np.einsum("ij,vj...->vi...", TURN.as_matrix(), x)
  directions = head["shapedirs"].astype(np.float64)
  shapes, expressions = directions[..., :24], np.einsum("vxe,me->vxm", directions[..., 24:], _mixture())
  place = np.argsort(order)
  regressor = np.concatenate([head["J_regressor"], np.zeros((5, len(split)))], axis=1)[:, order]
  values = dict(
      v_template=SCALE * rotate(extend(head["v_template"])) + SHIFT,
      shapedirs=SCALE * rotate(extend(np.concatenate([shapes, expressions], axis=2))),
      posedirs=SCALE * rotate(extend(head["posedirs"])),
      J_regressor=regressor,
      kintree_table=head["kintree_table"],
      weights=extend(head["weights"]),
      f=place[faces],
      n_shape=24,
  )
  return values if basis is None else values | {"basis": basis}
