"""The tiles' lists of all frames, cut into chunks of equal size: the work list of every tiled implementation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt

from splat_kernels.binning import Bins


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("gaussians", "tiles", "starts", "counts"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class TileLists:
  """J chunks (a static bound) of K slots, tile after tile over all frames, front to back within a tile.

  Every axis that grows with the number of frames is a multiple of it, so that batches can be joined and split.

  Attributes:
    gaussians: Gaussian of each slot, counted through all frames: frame * N + index; B * N in empty slots, which are
      the last ones of a tile's last chunk and all slots of unused chunks.
    tiles: tile of each chunk, counted through all frames: frame * T + tile; any tile in unused chunks.
    starts: first chunk of each tile.
    counts: slots of each tile that are not empty.
  """

  gaussians: Int[Array, "J K"]
  tiles: UInt[Array, "J"]
  starts: Int[Array, "BT"]
  counts: Int[Array, "BT"]

  @property
  def ends(self) -> Int[Array, "BT"]:
    """One past the last chunk of each tile."""
    chunk = self.gaussians.shape[1]
    return self.starts + (self.counts + chunk - 1) // chunk


def make_tile_lists(bins: Bins, num: int, chunk: int) -> TileLists:
  """Cuts the tiles' lists into chunks; the last chunk of a tile is filled up with empty slots.

  Args:
    bins: of all frames: `make_bins` under `vmap`.
    num: Gaussians of a frame.
    chunk: slots of a chunk.
  """
  batch, capacity = bins.gaussians.shape
  num_tiles = bins.starts.shape[1] - 1
  frames = jnp.arange(batch, dtype=jnp.int32)[:, None]
  starts = (bins.starts[:, :-1] + frames * capacity).reshape(-1)
  ends = (bins.starts[:, 1:] + frames * capacity).reshape(-1)
  counts = ends - starts
  chunk_counts = (counts + chunk - 1) // chunk
  chunk_ends = jnp.cumsum(chunk_counts)
  size = batch * (capacity // chunk + min(num_tiles, capacity) + 1)
  tiles = jnp.cumsum(jnp.zeros(size, jnp.int32).at[chunk_ends].add(1, mode="drop"))
  tiles = jnp.minimum(tiles, batch * num_tiles - 1)
  index = jnp.arange(size, dtype=jnp.int32)
  within = index - (chunk_ends - chunk_counts)[tiles]
  slots = (starts[tiles] + within * chunk)[:, None] + jnp.arange(chunk, dtype=jnp.int32)
  used = (slots < ends[tiles][:, None]) & (index < chunk_ends[-1])[:, None]
  gaussians = (bins.gaussians + frames * num).reshape(-1)[jnp.where(used, slots, 0)]
  # Tiles are unsigned, as jax.numpy adds a step for negative indices to signed ones, in every round of a loop.
  return TileLists(
      gaussians=jnp.where(used, gaussians, batch * num),
      tiles=tiles.astype(jnp.uint32),
      starts=chunk_ends - chunk_counts,
      counts=counts,
  )
