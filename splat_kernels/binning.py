"""Which Gaussians touch which tiles: lists of static capacity, in depth order within every tile."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from splat_kernels.types import Projected


def tile_box(projected: Projected, width: int, height: int, tile_size: int) -> Int[Array, "N 4"]:
  """Tiles that a Gaussian's box touches: first column, first row, and one past the last of each; empty if culled."""
  corners = jnp.concatenate([projected.means2d - projected.extents, projected.means2d + projected.extents], axis=-1)
  last = jnp.array([-(-width // tile_size), -(-height // tile_size)])
  first = jnp.floor(corners[:, :2] / tile_size)
  end = jnp.floor(corners[:, 2:] / tile_size) + 1
  box = jnp.concatenate([jnp.clip(first, 0, last), jnp.clip(end, 0, last)], axis=-1).astype(jnp.int32)
  return jnp.where((projected.radii > 0)[:, None], box, 0)
