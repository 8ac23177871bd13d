"""A head with FLAME's numbers of vertices and faces and a mouth where FLAME has it; everything else is random."""

import functools
import pathlib

import numpy as np

NUM_VERTICES, NUM_FACES = 5023, 9976
NUM_SHAPE, NUM_EXPRESSION = 3, 2
# FLAME's outer lip rings as published with VHAP, from the subject's left to the right.
UPPER_LIP = [1713, 1715, 1716, 1735, 1696, 1694, 1657, 3543, 2774, 2811, 2813, 2850, 2833, 2832, 2830]
LOWER_LIP = [1576, 1577, 1773, 1774, 1795, 1802, 1865, 3503, 2948, 2905, 2898, 2881, 2880, 2713, 2712]
MIDDLE_LIPS = [3543, 3503]


@functools.cache
def flame_values() -> dict[str, np.ndarray]:
  """Arrays under FLAME's keys; 3 shape and 2 expression coefficients, to be quick."""
  r = np.random.default_rng(0)
  vertices = r.normal(size=(NUM_VERTICES, 3))
  vertices *= (0.1 + 0.02 * r.random((NUM_VERTICES, 1))) / np.linalg.norm(vertices, axis=1, keepdims=True)
  vertices[:, 0] += 0.004 * np.sign(vertices[:, 0])  # Nothing but lips in the middle plane, where lips are looked for.
  weights = np.eye(5)[np.where(vertices[:, 1] < -0.04, 2, 1)] + 0.1 * r.random((NUM_VERTICES, 5))
  x = np.linspace(0.024, -0.024, 15)
  z = 0.095 - 20 * x**2
  vertices[UPPER_LIP] = np.stack([x, -0.038 + 0.0004 * r.normal(size=15), z], axis=1)
  vertices[LOWER_LIP] = np.stack([x, -0.042 + 0.0004 * r.normal(size=15), z - 0.001], axis=1)
  weights[UPPER_LIP], weights[LOWER_LIP] = np.eye(5)[1], np.eye(5)[2]
  corners = r.integers(0, NUM_VERTICES, (NUM_FACES, 1)) + [0, 1, 2]
  # Joints of a head: at its base, in the neck, at the jaw's hinge, in the eyes.
  joints = [[0, -0.11, -0.02, 1], [0, -0.05, -0.02, 1], [0, 0, 0.02, 1], [0.03, 0.03, 0.08, 1], [-0.03, 0.03, 0.08, 1]]
  regressor = np.array(joints) @ np.linalg.pinv(np.concatenate([vertices, np.ones((NUM_VERTICES, 1))], axis=1))
  return dict(
      v_template=vertices,
      shapedirs=0.003 * r.normal(size=(NUM_VERTICES, 3, NUM_SHAPE + NUM_EXPRESSION)),
      posedirs=0.001 * r.normal(size=(NUM_VERTICES, 3, 36)),
      J_regressor=regressor,
      kintree_table=np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
      weights=weights / weights.sum(axis=1, keepdims=True),
      f=(corners % NUM_VERTICES).astype(np.uint32),
      n_shape=NUM_SHAPE,
  )


def write_flame(path: pathlib.Path) -> pathlib.Path:
  np.savez(path, **flame_values())
  return path
