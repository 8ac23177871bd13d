"""Which Gaussians touch which tiles: lists of static capacity, in depth order within every tile.

Three expansions of static size, one sort:
  Gaussians in depth order -> the rows of tiles each one touches -> the tiles of each row -> sorted by tile.
The span of a row is exact: the part of the ellipse inside the row's band decides (after gsplat's AccuTile), so that a
tile the Gaussian does not touch takes no slot.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from splat_kernels.stages import columns, stage
from splat_kernels.tiles import inria_spans, tile_grid
from splat_kernels.types import Config, Projected


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("gaussians", "tiles", "starts", "intersections", "overflow"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Bins:
  """Slots of one frame, sorted by tile and within a tile by depth. M is the capacity, T the number of tiles.

  Attributes:
    gaussians: index of the Gaussian in each slot; any index in unused slots.
    tiles: tile of each slot, row major; T in unused slots.
    starts: first slot of each tile; entry T is the number of used slots.
    intersections: slots needed.
    overflow: slots needed beyond the capacity.
  """

  gaussians: Int[Array, "M"]
  tiles: Int[Array, "M"]
  starts: Int[Array, "T1"]
  intersections: Int[Array, ""]
  overflow: Int[Array, ""]


def tile_box(projected: Projected, width: int, height: int, tile_size: int) -> Int[Array, "N 4"]:
  """Tiles that a Gaussian's box touches: first column, first row, and one past the last of each; empty if culled."""
  if projected.support == "inria":
    spans = inria_spans(projected.means2d.T, projected.extents.T, width, height, tile_size)
    (first_x, end_x), (first_y, end_y) = spans
    box = jnp.stack([first_x, first_y, end_x, end_y], axis=-1)
  else:
    corners = jnp.concatenate([projected.means2d - projected.extents, projected.means2d + projected.extents], axis=-1)
    last = jnp.array(tile_grid(width, height, tile_size))
    first = jnp.floor(corners[:, :2] / tile_size)
    end = jnp.floor(corners[:, 2:] / tile_size) + 1
    box = jnp.concatenate([jnp.clip(first, 0, last), jnp.clip(end, 0, last)], axis=-1)
  return jnp.where((projected.radii > 0)[:, None], box.astype(jnp.int32), 0)


def make_bins(
    projected: Projected,
    *,
    width: int,
    height: int,
    config: Config,
    capacity: int,
    tile_mask: Bool[Array, "rows columns"] | None = None,
) -> Bins:
  """Lists the (Gaussian, tile) pairs of one frame.

  If there are more than `capacity`, the farthest Gaussians lose theirs. Tiles where `tile_mask` is False get none, and
  what a row of tiles has of those before its first and after its last other tile takes no room.
  """
  num = projected.depths.shape[0]
  width_in_tiles, height_in_tiles = tile_grid(width, height, config.tile_size)
  num_tiles = width_in_tiles * height_in_tiles
  order = depth_order(projected)
  p = _in_order(projected, order)

  # Gaussians -> rows of tiles.
  box = _boxes(p, width, height, config.tile_size)
  row_counts = box[:, 3] - box[:, 1]
  row_ends = _saturating_sums(row_counts)
  ranks = _expand(row_ends, capacity)  # (R,) depth rank of the Gaussian that each row belongs to.
  index = jnp.arange(capacity, dtype=jnp.int32)
  used = index < row_ends[-1]
  row = index + (box[:, 1] - row_ends + row_counts)[ranks]
  first, end = _row_span(p, box, ranks, row, config)
  if tile_mask is not None:
    first, end = _inside(tile_mask, row, first, end)
  tile_counts = jnp.where(used, end - first, 0)

  # Rows of tiles -> slots. Within a row the sort key (tile, rank) rises by a constant, so a key is that line plus a
  # prefix sum of jumps at the starts of rows; uint32 arithmetic wraps and comes out exact.
  tile_ends = _saturating_sums(tile_counts)
  starts = tile_ends - tile_counts
  total = tile_ends[-1]
  shift = rank_bits(num, num_tiles)
  packed = shift > 0
  step = jnp.uint32(1 << shift)
  offsets = (row * width_in_tiles + first).astype(jnp.uint32) * step - starts.astype(jnp.uint32) * step
  if packed:
    offsets += ranks.astype(jnp.uint32)
  keys = index.astype(jnp.uint32) * step + _expand_values(offsets, starts, used)
  keys = jnp.where(index < total, keys, jnp.uint32(0xFFFFFFFF))
  if tile_mask is not None:  # Holes between a row's tiles: last, among the unused slots.
    tile = jnp.minimum(keys >> shift, num_tiles - 1).astype(jnp.int32)
    keys = jnp.where(tile_mask.reshape(-1)[tile], keys, jnp.uint32(0xFFFFFFFF))
  if packed:
    keys, _ = sort_slots(keys)
    ranks = (keys & jnp.uint32((1 << shift) - 1)).astype(jnp.int32)
  else:
    keys, ranks = sort_slots(keys, ranks[jnp.minimum(_expand(tile_ends, capacity), capacity - 1)])
  bounds = jnp.arange(num_tiles + 1, dtype=jnp.uint32) * step
  starts = jnp.searchsorted(keys, bounds, method="scan_unrolled").astype(jnp.int32)
  tiles = jnp.where(index < starts[-1], (keys >> shift).astype(jnp.int32), num_tiles)

  # With too many rows even the number of tiles is unknown; the sum of boxes is an upper bound.
  boxes = _saturating_sums((box[:, 2] - box[:, 0]) * row_counts)[-1]
  needed = jnp.where(row_ends[-1] > capacity, jnp.maximum(boxes, capacity + 1), total)
  return Bins(order[jnp.minimum(ranks, num - 1)], tiles, starts, needed, jnp.maximum(needed - capacity, 0))


@stage
def _in_order(projected: Projected, order: Int[Array, "N"]) -> Projected:
  return jax.tree.map(lambda a: a[order], projected)


@stage
def _boxes(projected: Projected, width: int, height: int, tile_size: int) -> Int[Array, "N 4"]:
  return tile_box(projected, width, height, tile_size)


# Where prefix sums of counts stop: beyond what any list holds, and far enough from where int32 wraps around.
SATURATED = 2**30


def _saturating_sums(counts: Int[Array, "M"]) -> Int[Array, "M"]:
  """Prefix sums, not above SATURATED: a diverged scale may ask for more pairs than int32 counts."""
  # uint32 holds the sum of two saturated numbers, so it is exact until it saturates and never wraps around.
  counts = jnp.minimum(counts, SATURATED).astype(jnp.uint32)
  return jax.lax.associative_scan(lambda a, b: jnp.minimum(a + b, SATURATED), counts).astype(jnp.int32)


def _inside(mask: Bool[Array, "rows columns"], row, first, end) -> tuple[Int[Array, "R"], Int[Array, "R"]]:
  """Spans cut to what lies between the first and the last tile of the mask in each row."""
  height, width = mask.shape
  index = jnp.arange(width, dtype=jnp.int32)
  row = jnp.clip(row, 0, height - 1)
  first = jnp.maximum(first, jnp.min(jnp.where(mask, index, width), axis=1)[row])
  end = jnp.minimum(end, jnp.max(jnp.where(mask, index + 1, 0), axis=1)[row])
  return first, jnp.maximum(first, end)


def rank_bits(num: int, num_tiles: int) -> int:
  """How many low bits of a slot's sort key hold the depth rank; 0 if tile and rank do not fit into 32 bits."""
  shift = max(1, (num - 1).bit_length())
  return shift if shift + (num_tiles + 1).bit_length() <= 32 else 0


def sort_slots(
    keys: UInt[Array, "M"], ranks: Int[Array, "M"] | None = None
) -> tuple[UInt[Array, "M"], Int[Array, "M"] | None]:
  """Sorts slots by tile, keeping their depth order.

  Args:
    keys: tile and depth rank in one number: on CPUs a several times faster sort than one with a payload. Or, with
      `ranks`, the tile alone.
    ranks: depth ranks that do not fit into the keys. Slots come in depth order, so a stable sort keeps it.
  """
  if ranks is None:
    return jax.lax.sort(keys, is_stable=False), None
  return jax.lax.sort((keys, ranks), num_keys=1, is_stable=True)


def depth_order(projected: Projected) -> Int[Array, "N"]:
  """Gaussians from near to far, ties by index, culled ones last."""
  # The bits of a positive float order as it does; 32-bit integers sort fast on every platform.
  bits = jax.lax.bitcast_convert_type(projected.depths.astype(jnp.float32), jnp.uint32)
  bits = jnp.where(projected.radii > 0, bits, jnp.uint32(0xFFFFFFFF))
  index = jnp.arange(bits.shape[0], dtype=jnp.int32)
  return jax.lax.sort((bits, index), num_keys=1, is_stable=True)[1]


@stage
def _expand(ends: Int[Array, "N"], size: int) -> Int[Array, "size"]:
  """For each position, which of the consecutive ranges that end at `ends` it lies in."""
  jumps = jnp.zeros(size, jnp.int32).at[ends].add(1, mode="drop")
  return jnp.minimum(jnp.cumsum(jumps), ends.shape[0] - 1)


def _expand_values(values: UInt[Array, "R"], starts: Int[Array, "R"], used) -> UInt[Array, "R"]:
  """For each position, the value of the range it lies in; empty ranges cancel."""
  jumps = jnp.where(used, values - jnp.concatenate([jnp.zeros_like(values[:1]), values[:-1]]), 0)
  return jnp.cumsum(jnp.zeros_like(values).at[starts].add(jumps, mode="drop"), dtype=values.dtype)


@stage
def _row_span(p: Projected, box, ranks, row, config: Config) -> tuple[Int[Array, "R"], Int[Array, "R"]]:
  """First column, and one past the last, of the tiles that a Gaussian touches in a row of tiles."""
  size = config.tile_size
  limits = box[:, ::2][ranks]
  if p.support == "inria":
    return limits[:, 0], limits[:, 1]
  x, y, half_height, a, b, det, scaled_level, widest = (_ellipses(p, ranks, config)[:, i] for i in range(8))
  low = jnp.maximum(row * size - y, -half_height)  # The band of the row inside the ellipse, relative to the centre.
  high = jnp.minimum(row * size + size - y, half_height)

  def edge(at, sign):
    at = jnp.clip(at, low, high)
    return x + (sign * jnp.sqrt(jnp.maximum(scaled_level - det * at * at, 0)) - b * at) / a

  first = jnp.floor(edge(-widest, -1) / size)
  end = jnp.floor(edge(widest, 1) / size) + 1
  first, end = (jnp.clip(e, limits[:, 0], limits[:, 1]).astype(jnp.int32) for e in (first, end))
  return first, jnp.maximum(first, end)


@stage
def _ellipses(p: Projected, ranks: Int[Array, "R"], config: Config) -> Float[Array, "R 8"]:
  """For each row of tiles what describes the alpha_min contour of its Gaussian."""
  return _ellipse_of_gaussians(p, config)[ranks]


@stage
def _ellipse_of_gaussians(p: Projected, config: Config) -> Float[Array, "N 8"]:
  level = 2 * jnp.log(jnp.maximum(p.opacities / config.alpha_min, 1))
  a, b, c = p.conics[:, 0], p.conics[:, 1], p.conics[:, 2]
  # The ellipse a x^2 + 2 b x y + c y^2 = level is widest to the right at this y, and to the left at minus it.
  det = jnp.maximum(a * c - b * b, 1e-37)
  widest = -b * jnp.sqrt(level / jnp.maximum(c * det, 1e-37))
  return columns(p.means2d[:, 0], p.means2d[:, 1], p.extents[:, 1], a, b, det, a * level, widest)
