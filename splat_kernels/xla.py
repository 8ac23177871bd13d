"""Tiled compositing in plain XLA, with a hand-written backward pass: the portable implementation, the CPU's default.

The lists of all tiles are cut into chunks of CHUNK slots, and one loop walks all chunks, tile after tile and front to
back within a tile; a tile whose pixels are all finished is left early. What surrounds the walk is in tiled.py.

How the loop body is written matters more than how much it computes; see `stages.apart`.
"""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from splat_kernels.binning import Bins
from splat_kernels.platforms import current_platform
from splat_kernels.stages import apart, computed_once
from splat_kernels.tile_lists import make_tile_lists
from splat_kernels.tiled import Tiled
from splat_kernels.tiles import monomials, pixel_offsets
from splat_kernels.types import Config

CHUNK = 8  # Slots of one tile processed together.


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("gaussians", "tiles", "first", "next_tile", "total"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class Chunks:
  """The work list of a batch; see `TileLists`.

  Attributes:
    gaussians: as in `TileLists`.
    tiles: as in `TileLists`.
    first: whether it is the tile's first chunk.
    next_tile: index of the first chunk of the next tile.
    total: number of chunks in use, of all frames, once per frame.
  """

  gaussians: Int[Array, "J K"]
  tiles: UInt[Array, "J"]
  first: Bool[Array, "J"]
  next_tile: UInt[Array, "J"]
  total: UInt[Array, "B"]


class Xla(Tiled):
  """See the head of this file. Draws on any device, in float32."""

  name = "xla"
  scale = 1 / 8
  has_second_order = True

  def unsupported(self, device: jax.Device, config: Config) -> str | None:
    del device, config

  def around_stages(self, indices: Int[Array, "*s"]) -> contextlib.AbstractContextManager:
    return computed_once(indices.reshape(-1)[0] >= 0)

  def frames_apart(self) -> bool:
    # On a CPU one frame's arrays stay in the cache and a batch's do not.
    return current_platform() == "cpu"

  def make_lists(self, bins: Bins, num: int, config: Config) -> Chunks:
    """Lists in chunks of CHUNK slots, and what the loops jump by."""
    lists = make_tile_lists(bins, num, CHUNK)
    tiles = lists.tiles.astype(jnp.int32)
    first = lists.starts[tiles] == jnp.arange(tiles.shape[0], dtype=jnp.int32)
    next_tile = lists.ends[tiles].astype(jnp.uint32)
    total = jnp.broadcast_to(lists.ends[-1:].astype(jnp.uint32), bins.overflow.shape)
    return Chunks(lists.gaussians, lists.tiles, first, next_tile, total)

  def forward(self, table, lists: Chunks, num_tiles: int, config: Config, *, save: bool, interpret: bool):
    """See `Tiled.forward`; the sums are saved."""
    del interpret
    chunks, total = lists, lists.total[0]
    pixels = config.tile_size**2

    def draw_chunk(state):
      at, transmittance, summed, tiles = state
      used = at < total
      alphas = apart(used, lambda: chunk_alphas(config, table[at]))
      weights = apart(used, lambda: _weights(config, alphas, transmittance))
      following, transmittance = apart(used, lambda: _advance(config, at, alphas, transmittance, chunks))
      summed = jnp.where(chunks.first[at], 0, summed)
      for k in range(CHUNK):
        summed = summed + table[at, k, 6:, None] * weights[k]
      tiles = jax.lax.dynamic_update_index_in_dim(tiles, summed, chunks.tiles[at], 0)
      return following, transmittance, summed, tiles

    zero = _zero(table)
    summed = jnp.zeros((table.shape[-1] - 6, pixels), table.dtype) + zero
    tiles = jnp.zeros((num_tiles,) + summed.shape, table.dtype) + zero
    state = jnp.uint32(0) + zero.astype(jnp.uint32), jnp.ones(pixels, table.dtype) + zero, summed, tiles
    tiles = jax.lax.while_loop(lambda s: s[0] < total, draw_chunk, state)[3]
    return tiles, tiles if save else None

  def backward(self, table, lists: Chunks, gradient, saved, config: Config, *, absolute: bool, interpret: bool):
    """See `Tiled.backward`."""
    del interpret
    chunks, sums, end = lists, saved, lists.total[0]
    used = end < jnp.uint32(2**31)  # See `stages.apart`.
    channels = gradient.shape[1] - 1
    total = apart(used, lambda: sum(sums[:, c] * gradient[:, c] for c in range(channels + 1)))
    # Right-hand sides of the moments, padded to 8 columns: a vector register wide, which XLA:CPU needs to be fast.
    padding = -channels % 8
    swapped = lambda: jnp.pad(gradient[:, :channels].swapaxes(1, 2), ((0, 0), (0, 0), (0, padding)))
    color_side = apart(used, swapped)
    shape_side, (abs_x_side, abs_y_side) = monomials(config.tile_size), _absolute_sides(config.tile_size)
    pixels = config.tile_size**2

    def walk_chunk(state):
      at, transmittance, remaining, moments = state
      used = at < end

      def weigh():
        alphas = chunk_alphas(config, table[at])
        gains = sum(table[at, :, 6 + c, None] * gradient[chunks.tiles[at], c] for c in range(channels + 1))
        return alphas, gains, apart(used, lambda: _weights(config, alphas, transmittance))

      def pull():
        left = jnp.where(chunks.first[at], total[chunks.tiles[at]], remaining)
        pulls = _pulls(config, alphas, gains, weights, left)
        if config.clamp_passes_gradient:  # As if nothing had been clamped: d alpha / d ln(alpha) is the free alpha.
          free = chunk_alphas(config, table[at], clamp=False)
          pulls = pulls * jnp.where(alphas > 0, free / jnp.where(alphas > 0, alphas, 1), 0)
        for k in range(CHUNK):
          left = left - weights[k] * gains[k]
        return pulls, left, *_advance(config, at, alphas, transmittance, chunks)

      def sum_moments():
        shape = _dot(pulls, shape_side)
        if absolute:
          towards_x, towards_y = _centre_slopes(config, table[at])
          shape += _dot(jnp.abs(pulls * towards_x), abs_x_side) + _dot(jnp.abs(pulls * towards_y), abs_y_side)
        return jnp.concatenate([shape, _dot(weights, color_side[chunks.tiles[at]])], axis=-1)

      alphas, gains, weights = apart(used, weigh)
      pulls, remaining, following, transmittance = apart(used, pull)
      row = apart(used, sum_moments)
      return following, transmittance, remaining, jax.lax.dynamic_update_index_in_dim(moments, row, at, 0)

    zero = _zero(table)
    moments = jnp.zeros(table.shape[:2] + (8 + channels + padding,), table.dtype) + zero
    start = jnp.uint32(0) + zero.astype(jnp.uint32)
    state = start, jnp.ones(pixels, table.dtype) + zero, jnp.zeros(pixels, table.dtype) + zero, moments
    return jax.lax.while_loop(lambda s: s[0] < end, walk_chunk, state)[3]


def _zero(table) -> Float[Array, ""]:
  """0 that varies over the devices of a `shard_map` as the table does: a loop's first state has to, under `check_vma`."""
  return jnp.where(jnp.isnan(table[0, 0, -1]), jnp.ones((), table.dtype), 0)


# ---- Stages of a chunk ----


def chunk_alphas(config: Config, rows, *, clamp: bool = True) -> Float[Array, "K P"]:
  """Alpha of a chunk's Gaussians at the tile's pixels; 0 where skipped. Without `clamp` alpha_max is not applied."""
  u, v = _whiten(config, rows)
  eighth = rows[:, 5:6] - u * u - v * v  # ln(alpha) / 8
  lowest = np.float32(np.log(config.alpha_min) / 8)
  alphas = _exp_of_eighth(eighth, lowest)
  return jnp.where(eighth >= lowest, jnp.minimum(alphas, config.alpha_max) if clamp else alphas, 0)


def _whiten(config: Config, rows) -> tuple[Float[Array, "K P"], Float[Array, "K P"]]:
  """u and v with ln(alpha) / 8 = e - u^2 - v^2; see `Tiled`."""
  x, y = pixel_offsets(config.tile_size)
  column = lambda i: rows[:, i : i + 1]
  return column(0) * x + (column(1) * y + column(2)), column(3) * y + column(4)


def _centre_slopes(config: Config, rows) -> tuple[Float[Array, "K P"], Float[Array, "K P"]]:
  """d ln(alpha) / d centre, along x and y."""
  u, v = _whiten(config, rows)
  column = lambda i: rows[:, i : i + 1]
  return 16 * column(0) * u, 16 * (column(1) * u + column(3) * v)


def _absolute_sides(tile_size: int) -> np.ndarray:
  """Sums over pixels, put into the columns 6 and 7 that `monomials` leaves free: (2, P, 8)."""
  return np.tile(np.eye(8, dtype=np.float32)[6:, None], (1, tile_size**2, 1))


def _exp_of_eighth(p, lowest):
  """exp(8 p) for p in [lowest, 0]: a polynomial and three squarings, half the work of a general exp.

  Relative error below 2e-6 for alpha_min of 1/255. Outside the interval the result is garbage, which the caller drops.
  """
  degree = 5 if lowest > -0.75 else 8
  fit = np.polynomial.Chebyshev.interpolate(np.exp, degree, domain=[lowest, 0])
  result = 0.0
  for coefficient in reversed(fit.convert(kind=np.polynomial.Polynomial).coef):
    result = result * p + np.float32(coefficient)
  for _ in range(3):
    result = result * result
  return result


def _weights(config: Config, alphas, transmittance) -> Float[Array, "K P"]:
  """Weight of each Gaussian of a chunk: alpha times transmittance, 0 in finished pixels.

  The transmittance goes on falling in finished pixels: having passed the minimum is what marks them as finished.
  """
  weights = []
  for k in range(CHUNK):
    weight = transmittance * alphas[k]
    transmittance = transmittance - weight
    weights.append(jnp.where(transmittance > config.transmittance_min, weight, 0))
  return jnp.stack(weights)


def _pulls(config: Config, alphas, gains, weights, remaining) -> Float[Array, "K P"]:
  """d loss / d ln(alpha) of each Gaussian: T gain alpha - (what comes behind) alpha / (1 - alpha)."""
  pulls = []
  for k in range(CHUNK):
    gain = weights[k] * gains[k]
    remaining = remaining - gain
    pull = gain - remaining * (alphas[k] / (1 - alphas[k]))
    passes = weights[k] > 0
    if not config.clamp_passes_gradient:
      passes &= alphas[k] < config.alpha_max
    pulls.append(jnp.where(passes, pull, 0))
  return jnp.stack(pulls)


def _advance(config: Config, at, alphas, transmittance, chunks: Chunks):
  """Index of the chunk to go on with, and the transmittance before it: behind this chunk, or 1 in a new tile."""
  for k in range(CHUNK):
    transmittance = transmittance - transmittance * alphas[k]
  finished = jnp.max(transmittance) <= config.transmittance_min
  following = jnp.where(finished, chunks.next_tile[at], at + jnp.uint32(1))
  return following, jnp.where(following == chunks.next_tile[at], 1, transmittance)


def _dot(a, b):
  return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


IMPLEMENTATION = Xla()
