"""Named workloads, shared by tests and benchmarks: `make_scene(SPECS["head10k"])` are arguments of `rasterize`.

Public, so that other rasterizers and other machines can be measured on the same scenes; numbers of a spec do not change.
"""

import dataclasses

import numpy as np

from splat_kernels.types import Camera


@dataclasses.dataclass(frozen=True)
class Spec:
  """A scene and a camera, made from a seed.

  Attributes:
    num: Gaussians.
    width: pixels.
    height: pixels.
    focal: pixels.
    sigma: typical standard deviation of a Gaussian, world units; the head is about 1.4 units tall, 2.5 units away.
    batch: frames, each with its own means; 1 still has the batch dimension.
    channels: of plain colours.
    sh_degree: None for plain colours.
    seed: of numpy's generator.
  """

  num: int
  width: int
  height: int
  focal: float
  sigma: float
  batch: int = 1
  channels: int = 3
  sh_degree: int | None = None
  seed: int = 0


SPECS = {
    # Benchmarks: a random shell of ellipsoids with the shape of a head.
    "head10k": Spec(10_000, 512, 512, 600.0, 0.02),
    "head50k": Spec(50_000, 512, 512, 600.0, 0.01),
    "head100k": Spec(100_000, 512, 512, 600.0, 0.007),
    "head100k_802x550": Spec(100_000, 802, 550, 645.0, 0.007),
    "head1m_1080p": Spec(1_000_000, 1920, 1080, 1266.0, 0.0022),
    "head10k_batch4": Spec(10_000, 512, 512, 600.0, 0.02, batch=4),
    "head10k_batch16": Spec(10_000, 512, 512, 600.0, 0.02, batch=16),
    "head10k_batch64": Spec(10_000, 512, 512, 600.0, 0.02, batch=64),
    "head10k_256": Spec(10_000, 256, 256, 300.0, 0.01),  # Training of an avatar: one Gaussian per triangle.
    "head10k_256_batch4": Spec(10_000, 256, 256, 300.0, 0.01, batch=4),
    # Tests: small enough for the dense reference.
    "tiny": Spec(60, 40, 24, 40.0, 0.08),
    "odd_size": Spec(80, 37, 53, 60.0, 0.05, seed=1),
    "batch": Spec(50, 32, 32, 40.0, 0.08, batch=3, sh_degree=2, seed=2),  # Each frame has its own coefficients.
    "channels5": Spec(40, 33, 20, 40.0, 0.08, channels=5, seed=3),
    "sh3": Spec(50, 32, 24, 40.0, 0.08, sh_degree=3, seed=4),
    "dense": Spec(400, 32, 32, 40.0, 0.1, seed=5),  # Many layers: pixels reach the transmittance minimum.
    "large": Spec(30, 48, 48, 40.0, 0.5, seed=6),  # Gaussians as large as the image.
}


def make_scene(spec: Spec) -> dict:
  """Keyword arguments of `rasterize` for a spec: float32 numpy arrays, a `Camera`, and `sh_degree`.

  Means lie on an ellipsoid of half axes (0.5, 0.7, 0.6), jittered; scales are log-normal about sigma; opacities are
  uniform in [0.05, 1).
  """
  rng = np.random.default_rng(spec.seed)
  shape = (spec.batch, spec.num)
  directions = rng.normal(size=(spec.num, 3))
  directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
  shell = directions * np.array([0.5, 0.7, 0.6]) * (1 + 0.03 * rng.normal(size=(spec.num, 1)))
  means = shell + 0.3 * spec.sigma * rng.normal(size=shape + (3,))
  quats = rng.normal(size=shape + (4,))
  scales = spec.sigma * np.exp(0.4 * rng.normal(size=shape + (3,)))
  if spec.sh_degree is None:
    colors = rng.uniform(size=shape + (spec.channels,))
  else:
    colors = 0.4 * rng.normal(size=shape + ((spec.sh_degree + 1) ** 2, 3))
  world_to_camera = np.eye(4)
  world_to_camera[2, 3] = 2.5
  intrinsics = np.array([[spec.focal, 0, spec.width / 2], [0, spec.focal, spec.height / 2], [0, 0, 1]])
  arrays = {
      "means": means,
      "quats": quats,
      "scales": scales,
      "opacities": rng.uniform(0.05, 1, size=shape),
      "colors": colors,
  }
  scene = {name: array.astype(np.float32) for name, array in arrays.items()}
  camera = Camera(world_to_camera.astype(np.float32), intrinsics.astype(np.float32), spec.width, spec.height)
  return {**scene, "camera": camera, "sh_degree": spec.sh_degree}
