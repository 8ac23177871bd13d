"""Label images: which part of the person a pixel shows, where the methods' authors have a face-parsing network."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import splat_kernels
from rsatalker_jax.avatar import init_avatar, pose_gaussians
from rsatalker_jax.head import FlamePose, HeadModel, region_mask

LABELS = ("head", "hair", "mouth", "body")
# Regions of FLAME's masks and of the demo head.
_REGIONS = {"hair": ("scalp",), "mouth": ("mouth_interior", "teeth", "tongue"), "body": ("neck", "boundary")}


def face_labels(head: HeadModel) -> np.ndarray:
  """The number of each triangle's label in `LABELS`. Without regions, what the root joint moves is body, the rest head."""
  labels = np.zeros(len(head.faces), np.int64)
  if not head.region_names:
    below = np.asarray(head.weights)[np.asarray(head.faces), 0].mean(axis=1) > 0.5
    return np.where(below, LABELS.index("body"), labels)
  for name, regions in _REGIONS.items():
    if known := [region for region in regions if region in head.region_names]:
      labels[region_mask(head, known)] = LABELS.index(name)
  return labels


def make_labels(
    head: HeadModel,
    shape: Float[Array, "S"],
    static_offset: Float[Array, "V 3"] | None,
    *,
    raster: splat_kernels.Config = splat_kernels.Config(with_depth=False),
    implementation: str | None = None,
) -> Callable[[FlamePose, splat_kernels.Camera], Float[Array, "B H W 4"]]:
  """A function from FLAME's parameters and cameras to shares of `LABELS` at each pixel, which sum to at most 1.

  The head's triangles are drawn as opaque Gaussians in the colour of their label. A soft picture without gradients.
  """
  avatar = init_avatar(head, np.asarray(shape), static_offset=static_offset, init_scale=0.5, init_opacity=0.99)
  colors = jnp.asarray(np.eye(len(LABELS), dtype=np.float32)[face_labels(head)])

  def draw(flame, camera):
    pose = jax.vmap(pose_gaussians, in_axes=(None, None, 0))
    opacities = jax.nn.sigmoid(avatar.gaussians.opacity_logits)
    output = splat_kernels.rasterize(
        *pose(avatar, head, flame), opacities, colors, camera, config=raster, implementation=implementation
    )
    return jax.lax.stop_gradient(output.image)

  return draw
