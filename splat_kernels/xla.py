"""Tiled compositing in plain XLA, with a hand-written backward pass: the portable implementation, the CPU's default.

The lists of all tiles are cut into chunks of CHUNK slots. One loop walks them in lanes: each round takes the next chunk
of as many tiles as there are lanes. A tile whose list is at its end, or whose pixels are all finished, leaves its lane to
the next tile, longest lists first. One round is enough work for all cores, and its arrays stay in the cache. What
surrounds the walk is in tiled.py.

How the loop body is written matters more than how much it computes; see `stages.apart`.

Words: `alpha` of a Gaussian at a pixel; `transmittance` in front of it; its `weight` = transmittance alpha; its `gain`, what
it adds to a loss that is linear in the image: weight times the sum over channels of feature times gradient; `behind`, the
sum of the gains of all that lies behind it. d loss / d ln(alpha), its `slope`, is gain - behind alpha / (1 - alpha).
`behind` is summed from the back, so that what is faint loses no digits to something bright in front of it.
"""

import contextlib
import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from splat_kernels.binning import Bins
from splat_kernels.platforms import current_platform
from splat_kernels.stages import apart, computed_once
from splat_kernels.tile_lists import make_tile_lists
from splat_kernels.tiled import Tiled
from splat_kernels.tiles import pixel_offsets
from splat_kernels.types import Config

CHUNK = 8  # Slots of one tile processed together.
# Pixels times slots of a round: XLA:CPU shares a kernel among cores from some 2^16 elements on; more leave the cache.
ROUND = {"cpu": 2**17}
ROUND_ELSEWHERE = 2**23
HALF = CHUNK // 2  # What comes before a Gaussian in its chunk is computed again for each, but only half of it.
BAND = 16  # Rows of pixels summed in one loop.
FEATURES = 4  # Summed at a time: LLVM unrolls a reduction over a chunk, and only then vectorizes it, if it is not too long.


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("gaussians", "tiles", "starts", "ends", "order"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class Chunks:
  """The work list of a batch; see `TileLists`.

  Attributes:
    gaussians: as in `TileLists`.
    tiles: as in `TileLists`.
    starts: first chunk of each tile.
    ends: one past the last chunk of each tile.
    order: tiles, those with most chunks first.
  """

  gaussians: Int[Array, "J K"]
  tiles: UInt[Array, "J"]
  starts: Int[Array, "BT"]
  ends: Int[Array, "BT"]
  order: Int[Array, "BT"]


class Lanes(NamedTuple):
  """Which tile each lane is at. Indices of idle lanes lie beyond the arrays, where nothing is written.

  Attributes:
    tile: of each lane.
    at: chunk of each lane.
    taken: how many tiles were given to lanes.
    busy: whether any lane has a tile.
  """

  tile: Int[Array, "L"]
  at: Int[Array, "L"]
  taken: Int[Array, ""]
  busy: Bool[Array, ""]


class Xla(Tiled):
  """See the head of this file. Draws on any device, in float32 and float64."""

  name = "xla"
  scale = 1 / 8
  has_second_order = True

  def unsupported(self, device: jax.Device, config: Config) -> str | None:
    del device, config

  def unsupported_dtype(self, dtype: jnp.dtype) -> str | None:
    return None if dtype in (jnp.float32, jnp.float64) else f"computes in float32 or float64, not {dtype}"

  def around_stages(self, indices: Int[Array, "*s"]) -> contextlib.AbstractContextManager:
    return computed_once(indices.reshape(-1)[0] >= 0)

  def frames_apart(self) -> bool:
    # On a CPU one frame's arrays stay in the cache and a batch's do not.
    return current_platform() == "cpu"

  def make_lists(self, bins: Bins, num: int, config: Config) -> Chunks:
    """Lists in chunks of CHUNK slots, and the order in which tiles are taken."""
    lists = make_tile_lists(bins, num, CHUNK)
    ends = lists.ends
    index = jnp.arange(ends.shape[0], dtype=jnp.int32)
    order = jax.lax.sort((lists.starts - ends, index), num_keys=1, is_stable=True)[1]
    return Chunks(lists.gaussians, lists.tiles, lists.starts, ends, order)

  def forward(self, table, lists: Chunks, num_tiles: int, config: Config, *, save: bool, interpret: bool):
    """See `Tiled.forward`; the transmittance before each chunk and the last chunk of each tile are saved."""
    del interpret
    pixels, channels = config.tile_size**2, table.shape[-1] - 7

    def draw_round(state):
      lanes, transmittance, summed, tiles, before, last = state
      used = lanes.at[0] >= 0  # True, see `stages.apart`.
      rows = _at(table, lanes.at)
      alphas = apart(used, lambda: chunk_alphas(config, rows))
      folded = apart(used, lambda: _fold(config, alphas, rows, transmittance))

      def add():
        first = lanes.at == _at(lists.starts, lanes.tile)
        new = jnp.stack(folded[2:] + folded[1:2], axis=1)
        return jnp.where(first[:, None, None], 0, summed) + new

      def advance():
        passed = folded[0] * transmittance
        following = lanes.at + 1
        finished = jnp.max(passed, axis=-1) <= config.transmittance_min
        done = finished | (following == _at(lists.ends, lanes.tile))
        lane = jnp.arange(num_lanes, dtype=jnp.int32)
        written = jnp.where(done, lanes.tile, num_tiles + lane)
        return written, _advance(lanes, following, done, lists.starts, lists), jnp.where(done[:, None], 1, passed)

      sums = apart(used, add)
      written, following, after = apart(used, advance)
      tiles = _put(tiles, written, sums)
      if save:
        before = _put(before, lanes.at, transmittance)
        last = _put(last, written, lanes.at)
      return following, after, sums, tiles, before, last

    zero = _zero(table)
    num_lanes = _count_lanes(num_tiles, pixels)
    zeros = lambda *shape: jnp.zeros(shape, table.dtype) + zero
    before = zeros(table.shape[0], pixels) if save else zero
    last = jnp.broadcast_to(zero.astype(jnp.int32), lists.starts.shape)
    state = _first_lanes(num_lanes, lists.starts, lists), zeros(num_lanes, pixels) + 1
    state += zeros(num_lanes, channels + 1, pixels), zeros(num_tiles, channels + 1, pixels), before, last
    tiles, before, last = jax.lax.while_loop(lambda s: s[0].busy, draw_round, state)[3:]
    return tiles, (before, last) if save else None

  def backward(self, table, lists: Chunks, gradient, saved, config: Config, *, absolute: bool, interpret: bool):
    """See `Tiled.backward`. Lanes go from a tile's last chunk to its first."""
    del interpret
    before, last = saved
    num_tiles, channels, pixels = gradient.shape[0], gradient.shape[1] - 1, gradient.shape[2]
    groups = [range(channels)[c : c + FEATURES] for c in range(0, channels, FEATURES)]
    of_bands, y = _moments_of_bands(config.tile_size, channels, absolute), pixel_offsets(config.tile_size)[1]
    num_lanes = _count_lanes(num_tiles, pixels)

    def walk_round(state):
      lanes, behind_last, moments = state
      used = lanes.at[0] >= 0  # True, see `stages.apart`.
      rows = _at(table, lanes.at)
      colors = apart(used, lambda: _at(gradient, lanes.tile))
      alphas = apart(used, lambda: chunk_alphas(config, rows))
      weights = _weights(config, used, alphas, _at(before, lanes.at))

      def weigh():
        return weights * sum(rows[..., 6 + c, None] * colors[:, None, c] for c in range(channels + 1))

      gains = apart(used, weigh)
      behind = apart(used, lambda: jnp.where((lanes.at == _at(last, lanes.tile))[:, None], 0, behind_last))
      slopes, behind = _log_alpha_gradients(config, used, rows, alphas, gains, behind)

      def shape_sums():
        products = [slopes, slopes * y, slopes * (y * y)]
        if absolute:
          products += [jnp.abs(slopes * towards) for towards in _centre_slopes(config, rows)]
        return _sum_bands(products)

      def color_sums():
        return sum((_sum_bands([weights * colors[:, None, c] for c in group]) for group in groups), ())

      sums = apart(used, shape_sums) + apart(used, color_sums)
      row = apart(used, lambda: _dot(jnp.concatenate(sums, axis=-1), of_bands))

      def advance():
        done = lanes.at == _at(lists.starts, lanes.tile)
        return _advance(lanes, lanes.at - 1, done, last, lists)

      return apart(used, advance), behind, _put(moments, lanes.at, row)

    zero = _zero(table)
    moments = jnp.zeros(table.shape[:2] + (8 + channels,), table.dtype) + zero
    state = _first_lanes(num_lanes, last, lists), jnp.zeros((num_lanes, pixels), table.dtype) + zero, moments
    return jax.lax.while_loop(lambda s: s[0].busy, walk_round, state)[2]


# ---- Lanes ----


def _count_lanes(num_tiles: int, pixels: int) -> int:
  return max(1, min(num_tiles, ROUND.get(current_platform(), ROUND_ELSEWHERE) // (CHUNK * pixels)))


def _first_lanes(num: int, entries: Int[Array, "BT"], lists: Chunks) -> Lanes:
  """The first tiles, each at its entry of `entries`, which is a chunk."""
  none = 0 * lists.order[0]  # Not 0: it varies over devices as the lists do, see `_zero`.
  nobody = Lanes(jnp.zeros(num, jnp.int32), jnp.zeros(num, jnp.int32), none, none == 0)
  return _advance(nobody, nobody.at, jnp.ones(num, bool), entries, lists)


def _advance(lanes: Lanes, following, done: Bool[Array, "L"], entries: Int[Array, "BT"], lists: Chunks) -> Lanes:
  """Lanes at their following chunks, or where `done` at the next tiles of `lists.order`."""
  num_tiles, num_chunks = lists.order.shape[0], lists.tiles.shape[0]
  lane = jnp.arange(done.shape[0], dtype=jnp.int32)
  done |= lanes.tile >= num_tiles
  place = lanes.taken + jnp.sum(done & (lane[:, None] > lane), axis=1, dtype=jnp.int32)  # In the order, for done ones.
  tile = _at(lists.order, place)
  left = (place < num_tiles) & (_at(lists.ends, tile) > _at(lists.starts, tile))
  tile = jnp.where(done, jnp.where(left, tile, num_tiles + lane), lanes.tile)
  at = jnp.where(done, jnp.where(left, _at(entries, tile), num_chunks + lane), following)
  return Lanes(tile, at, lanes.taken + jnp.sum(done, dtype=jnp.int32), jnp.any(tile < num_tiles))


def _at(array, index: Int[Array, "L"]):
  return array.at[index].get(mode="clip")


def _put(array, index: Int[Array, "L"], values):
  """Rows of an array replaced, where the index lies inside of it."""
  return array.at[index].set(values, mode="drop", unique_indices=True)


def _zero(table) -> Float[Array, ""]:
  """0 that varies over the devices of a `shard_map` as the table does: a loop's first state has to, under `check_vma`."""
  return jnp.where(jnp.isnan(table[0, 0, -1]), jnp.ones((), table.dtype), 0)


# ---- A round ----


def chunk_alphas(config: Config, rows, *, clamp: bool = True) -> Float[Array, "*l K P"]:
  """Alpha of chunks' Gaussians at their tiles' pixels; 0 where skipped. Without `clamp` alpha_max is not applied."""
  u, v = _whiten(config, rows)
  eighth = rows[..., 5:6] - v * v - u * u  # ln(alpha) / 8
  lowest = np.log(config.alpha_min) / 8
  alphas = _exp_of_eighth(eighth, lowest)
  return jnp.where(eighth >= lowest, jnp.minimum(alphas, config.alpha_max) if clamp else alphas, 0)


def _whiten(config: Config, rows) -> tuple[Float[Array, "*l K P"], Float[Array, "*l K P"]]:
  """u and v with ln(alpha) / 8 = e - u^2 - v^2; see `Tiled`."""
  x, y = pixel_offsets(config.tile_size)
  column = lambda i: rows[..., i : i + 1]
  return column(0) * x + (column(1) * y + column(2)), column(3) * y + column(4)


def _centre_slopes(config: Config, rows) -> tuple[Float[Array, "*l K P"], Float[Array, "*l K P"]]:
  """d ln(alpha) / d centre, along x and y."""
  u, v = _whiten(config, rows)
  column = lambda i: rows[..., i : i + 1]
  return 16 * column(0) * u, 16 * (column(1) * u + column(3) * v)


def _exp_of_eighth(p, lowest: float):
  """exp(8 p) for p in [lowest, 0], lowest being negative.

  In float32 a polynomial and three squarings, half the work of a general exp, with a relative error below 2e-6; where no
  short polynomial is as good, in float64 or for an alpha_min below 1e-6, the general one. Outside the interval the result
  is garbage, which the caller drops.
  """
  if p.dtype != jnp.float32 or lowest < np.log(1e-6) / 8:
    return jnp.exp(8 * jnp.minimum(p, 0))
  degree = 5 if lowest > -0.75 else 8
  fit = np.polynomial.Chebyshev.interpolate(np.exp, degree, domain=[lowest, 0])
  leading, *others = reversed(fit.convert(kind=np.polynomial.Polynomial).coef.astype(np.float32))
  result = leading
  for coefficient in others:
    result = result * p + coefficient
  for _ in range(3):
    result = result * result
  return result


def _fold(config: Config, alphas, rows, transmittance) -> tuple[Float[Array, "L P"], ...]:
  """A chunk front to back: the factor by which the transmittance falls, the sum of weights, those of weight times feature.

  The factor goes on falling in finished pixels: a transmittance below the minimum is what marks them as finished.
  """
  fold = _fold_by_reduction if current_platform() == "cpu" else _fold_in_turn
  features = tuple(rows[..., c, None] for c in range(6, rows.shape[-1] - 1))
  factor, weights, *summed = fold(config, alphas, transmittance, features[:FEATURES])
  for first in range(FEATURES, len(features), FEATURES):
    summed += fold(config, alphas, transmittance, features[first : first + FEATURES])[2:]
  return factor, weights, *summed


def _blend(config: Config, factor, transmittance, alpha):
  """The factor behind a Gaussian, and its weight, 0 in finished pixels."""
  in_front = factor * transmittance
  weight = in_front * alpha
  return factor - factor * alpha, jnp.where(in_front - weight > config.transmittance_min, weight, 0)


def _fold_in_turn(config: Config, alphas, transmittance, features):
  factor = jnp.ones_like(transmittance)
  summed = [jnp.zeros_like(transmittance)] * (1 + len(features))
  for k in range(CHUNK):
    factor, weight = _blend(config, factor, transmittance, alphas[:, k])
    summed = [s + weight * f for s, f in zip(summed, [1] + [f[:, k] for f in features])]
  return factor, *summed


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _fold_by_reduction(config: Config, alphas, transmittance, features):
  """`_fold_in_turn` as one reduction with many results, the only loop of XLA:CPU that keeps all of them in registers.

  What it reduces by is not associative, so it is right only where elements come one after another, as on XLA:CPU.
  """
  spread = lambda a: jnp.broadcast_to(a, alphas.shape)

  def add(so_far, element):
    factor, weights, *summed = so_far
    alpha, transmittance, *features = element
    factor, weight = _blend(config, factor, transmittance, alpha)
    return factor, weights + weight, *(s + weight * f for s, f in zip(summed, features))

  zero = jnp.zeros((), alphas.dtype)
  start = zero + 1, *[zero] * (1 + len(features))
  return tuple(jax.lax.reduce((alphas, spread(transmittance[:, None]), *map(spread, features)), start, add, (1,)))


@_fold_by_reduction.defjvp
def _(config: Config, primals, tangents):
  return jax.jvp(functools.partial(_fold_in_turn, config), primals, tangents)


def _weights(config: Config, used, alphas, transmittance) -> Float[Array, "L K P"]:
  """Weight of each Gaussian of a chunk."""

  def draw(factor, first):
    weights = []
    for k in range(first, first + HALF):
      factor, weight = _blend(config, factor, transmittance, alphas[:, k])
      weights.append(weight)
    return factor, weights

  middle = apart(used, lambda: draw(jnp.ones_like(transmittance), 0)[0])
  return apart(used, lambda: jnp.stack(draw(jnp.ones_like(transmittance), 0)[1] + draw(middle, HALF)[1], axis=1))


def _log_alpha_gradients(config: Config, used, rows, alphas, gains, behind):
  """d loss / d ln(alpha) of each Gaussian of a chunk, and what lies behind the chunk before it; see the head."""

  def walk(behind, first):
    slopes = []
    for k in reversed(range(first, first + HALF)):
      slope = gains[:, k] - behind * (alphas[:, k] / (1 - alphas[:, k]))
      slopes.append(slope if config.clamp_passes_gradient else jnp.where(alphas[:, k] < config.alpha_max, slope, 0))
      behind = behind + gains[:, k]
    return behind, slopes[::-1]

  def all_slopes():
    slopes = jnp.stack(walk(middle, 0)[1] + walk(behind, HALF)[1], axis=1)
    if config.clamp_passes_gradient:  # As if nothing had been clamped: d alpha / d ln(alpha) is the free alpha.
      free = chunk_alphas(config, rows, clamp=False)
      slopes = slopes * jnp.where(alphas > 0, free / jnp.where(alphas > 0, alphas, 1), 0)
    return slopes

  middle = apart(used, lambda: walk(behind, HALF)[0])
  return apart(used, all_slopes), apart(used, lambda: walk(middle, 0)[0])


def _sum_bands(arrays) -> tuple[Float[Array, "L K S"], ...]:
  """Sums over bands of 16 rows of pixels: what lies in one column of one band, one after the other."""
  size = int(math.sqrt(arrays[0].shape[-1]))
  bands = [a.reshape(*a.shape[:2], -1, min(size, BAND), size) for a in arrays]
  return tuple(a.reshape(*a.shape[:2], -1) for a in _sum_together(bands))


@jax.custom_jvp
def _sum_together(arrays):
  """Sums over the last axis but one, of all arrays in one loop."""
  add = lambda so_far, more: tuple(a + b for a, b in zip(so_far, more))
  zeros = [jnp.zeros((), a.dtype) for a in arrays]
  return tuple(jax.lax.reduce(tuple(arrays), tuple(zeros), add, (3,)))


@_sum_together.defjvp
def _(primals, tangents):
  return _sum_together(*primals), _sum_together(*tangents)


def _moments_of_bands(tile_size: int, channels: int, absolute: bool) -> Float[np.ndarray, "S M"]:
  """What makes a slot's moments of all its `_sum_bands`: those of slopes times 1, y, y^2, of absolute ones, of colours."""
  x = np.tile(pixel_offsets(tile_size)[0][:tile_size], max(1, tile_size // BAND))
  parts = 3 + 2 * absolute + channels
  matrix = np.zeros((parts, len(x), 8 + channels), np.float32)
  matrix[0, :, 0], matrix[0, :, 1], matrix[0, :, 3] = 1, x, x * x
  matrix[1, :, 2], matrix[1, :, 4] = 1, x
  matrix[2, :, 5] = 1
  for part, moment in enumerate([6, 7] * absolute + list(range(8, 8 + channels)), 3):
    matrix[part, :, moment] = 1
  return matrix.reshape(-1, 8 + channels)


def _dot(a, b):
  return jnp.dot(a, b.astype(a.dtype), precision=jax.lax.Precision.HIGHEST)


IMPLEMENTATION = Xla()
