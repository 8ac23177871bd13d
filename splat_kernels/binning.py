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
from jaxtyping import Array, Bool, Float, Int

from splat_kernels.platforms import current_platform
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

  # Rows of tiles -> slots, in depth order -> sorted by tile.
  tile_ends = _saturating_sums(tile_counts)
  total = tile_ends[-1]
  row_of_slot = _expand(tile_ends, capacity)
  tiles = index + (row * width_in_tiles + first - tile_ends + tile_counts)[row_of_slot]
  tiles = jnp.where(index < total, tiles, num_tiles)
  if tile_mask is not None:  # Holes between a row's tiles: last, among the unused slots.
    tiles = jnp.where(tile_mask.reshape(-1)[jnp.minimum(tiles, num_tiles - 1)], tiles, num_tiles)
  slots, starts = sort_slots(tiles, num_tiles)
  gaussians = order[ranks][row_of_slot[slots]]
  tiles = _expand(starts[1:], capacity, end=num_tiles)

  # With too many rows even the number of tiles is unknown; the sum of boxes is an upper bound.
  boxes = 1.001 * jnp.sum((box[:, 2] - box[:, 0]).astype(jnp.float32) * row_counts)
  boxes = jnp.minimum(boxes, SATURATED).astype(jnp.int32)
  needed = jnp.where(row_ends[-1] > capacity, jnp.maximum(boxes, capacity + 1), total)
  return Bins(gaussians, tiles, starts, needed, jnp.maximum(needed - capacity, 0))


@stage
def _in_order(projected: Projected, order: Int[Array, "N"]) -> Projected:
  return jax.tree.map(lambda a: a[order], projected)


@stage
def _boxes(projected: Projected, width: int, height: int, tile_size: int) -> Int[Array, "N 4"]:
  return tile_box(projected, width, height, tile_size)


# Where prefix sums of counts stop: beyond what any list holds, and far enough from where int32 wraps around.
SATURATED = 2**30


@stage
def _saturating_sums(counts: Int[Array, "M"]) -> Int[Array, "M"]:
  """Prefix sums, not above SATURATED, of counts below 2^24: diverged scales may ask for more pairs than int32 counts."""
  before, within = _sums_in_blocks(counts)
  # Where int32 has wrapped around, float32 still says that it has.
  before = jnp.where(jnp.cumsum(within[:, -1].astype(jnp.float32)) > 1.5 * SATURATED, SATURATED, before)
  return jnp.minimum(before[:, None] + within, SATURATED).reshape(-1)[: counts.shape[0]]


def _sums_in_blocks(counts: Int[Array, "M"]) -> tuple[Int[Array, "R"], Int[Array, "R 16"]]:
  """Prefix sums of blocks of 16: what comes before each, and those within it.

  XLA:CPU takes half the time of `cumsum` for them, and a fraction of the time to compile an associative scan.
  """
  blocks = jnp.pad(counts, (0, -counts.shape[0] % 16)).reshape(-1, 16)
  place = jnp.arange(16)
  within = jnp.sum(jnp.where(place <= place[:, None], blocks[:, None], 0), axis=-1, dtype=jnp.int32)
  return jnp.cumsum(within[:, -1], dtype=jnp.int32) - within[:, -1], within


def _inside(mask: Bool[Array, "rows columns"], row, first, end) -> tuple[Int[Array, "R"], Int[Array, "R"]]:
  """Spans cut to what lies between the first and the last tile of the mask in each row."""
  height, width = mask.shape
  index = jnp.arange(width, dtype=jnp.int32)
  row = jnp.clip(row, 0, height - 1)
  first = jnp.maximum(first, jnp.min(jnp.where(mask, index, width), axis=1)[row])
  end = jnp.minimum(end, jnp.max(jnp.where(mask, index + 1, 0), axis=1)[row])
  return first, jnp.maximum(first, end)


# On CPUs slots are sorted in so many parts: their sorts run at the same time, and each one's keys fit into 32 bits.
PARTS = 32


def sort_slots(tiles: Int[Array, "M"], num_tiles: int) -> tuple[Int[Array, "M"], Int[Array, "T1"]]:
  """Sorts slots by tile, keeping the order of those of one tile.

  Args:
    tiles: of each slot; `num_tiles` where it is unused.
    num_tiles: T.

  Returns:
    For each place in the sorted list, the slot that comes there; the first place of each tile, entry T being the number
    of used slots.
  """
  num = tiles.shape[0]
  parts = PARTS if current_platform() == "cpu" and num >= 2**15 else 1
  size = -(-num // parts)
  bits = max(1, (size - 1).bit_length())
  fits = bits + num_tiles.bit_length() <= 32
  if not fits:
    parts, size = 1, num
  padded = jnp.pad(tiles, (0, parts * size - num), constant_values=num_tiles).reshape(parts, size)
  if fits:
    # Tile and slot in one number: XLA:CPU sorts that several times faster than a key with a payload.
    keys = padded.astype(jnp.uint32) << bits | jnp.arange(size, dtype=jnp.uint32)
    keys = jnp.stack([jax.lax.sort(keys[part], is_stable=False) for part in range(parts)])
    slots = (keys & jnp.uint32((1 << bits) - 1)).astype(jnp.int32)
    if current_platform() == "gpu":  # Counting takes a GPU longer, as additions to one address wait for each other.
      bounds = jnp.arange(num_tiles + 1, dtype=jnp.uint32)
      return slots[0], jnp.searchsorted(keys[0] >> bits, bounds, method="scan_unrolled").astype(jnp.int32)
  counts = jnp.zeros((parts, num_tiles + 1), jnp.int32).at[jnp.arange(parts)[:, None], padded].add(1)
  in_all = jnp.sum(counts, axis=0, dtype=jnp.int32)
  starts = jnp.cumsum(in_all, dtype=jnp.int32) - in_all
  if not fits:
    return jax.lax.sort((tiles, jnp.arange(num, dtype=jnp.int32)), num_keys=1, is_stable=True)[1], starts
  if parts == 1:
    return slots[0], starts
  # A slot's place: behind all of earlier tiles, behind its own tile's of earlier parts, and as in its own part.
  shifts = starts + jnp.cumsum(counts, axis=0, dtype=jnp.int32) - jnp.cumsum(counts, axis=1, dtype=jnp.int32)
  part = jnp.arange(parts, dtype=jnp.int32)[:, None]
  places = jnp.arange(size, dtype=jnp.int32) + shifts[part, (keys >> bits).astype(jnp.int32)]
  return jnp.zeros(num, jnp.int32).at[places].set(slots + part * size, mode="drop", unique_indices=True), starts


def depth_order(projected: Projected) -> Int[Array, "N"]:
  """Gaussians from near to far, ties by index, culled ones last."""
  num = projected.depths.shape[0]
  is_double = projected.depths.dtype == jnp.float64
  if is_double:
    depths = jnp.where(projected.radii > 0, projected.depths, jnp.inf)
  else:  # The bits of a positive float order as it does.
    depths = jax.lax.bitcast_convert_type(projected.depths.astype(jnp.float32), jnp.uint32)
    depths = jnp.where(projected.radii > 0, depths, jnp.uint32(0xFFFFFFFF))
  if is_double or current_platform() == "gpu":  # There it is a radix sort, for which a payload is cheap.
    return jax.lax.sort((depths, jnp.arange(num, dtype=jnp.int32)), num_keys=1, is_stable=True)[1]
  # Digit by digit from the last, with the place so far below the digit: two or three sorts of one number each are twice
  # as fast on XLA:CPU as one with a payload.
  bits = max(1, (num - 1).bit_length())
  places = jnp.arange(num, dtype=jnp.uint32)
  order = places
  for shift in range(0, 32, 32 - bits):
    digits = (depths[order] >> shift) & jnp.uint32((1 << (32 - bits)) - 1)
    order = order[jax.lax.sort(digits << bits | places, is_stable=False) & jnp.uint32((1 << bits) - 1)]
  return order.astype(jnp.int32)


@stage
def _expand(ends: Int[Array, "N"], size: int, end: int | None = None) -> Int[Array, "size"]:
  """For each position, which of the consecutive ranges that end at `ends` it lies in; behind all `end`, or the last."""
  # Ranges that end where all do are left out, which are many if most of the list is unused: a GPU's additions to one
  # address wait for each other.
  jumps = jnp.zeros(size, jnp.int32).at[jnp.where(ends < ends[-1], ends, size)].add(1, mode="drop")
  before, within = _sums_in_blocks(jumps)
  last = ends.shape[0] - 1 if end is None else end
  return jnp.where(jnp.arange(size) < ends[-1], (before[:, None] + within).reshape(-1)[:size], last)


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
