"""Which Gaussians a pixel sees: how many, and the first, the median and the last of them. Not differentiable.

For depth maps, picking, pruning by visibility and debugging; plain XLA on every platform, whatever draws the image.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from splat_kernels import arguments
from splat_kernels.binning import make_bins
from splat_kernels.compositing import RANKS, growing, projected_arrays
from splat_kernels.tile_lists import make_tile_lists
from splat_kernels.tiles import count_tiles, pixel_offsets, tile_centres, tile_grid, untile
from splat_kernels.types import Config, InputArray, Projected

CHUNK = 8  # Slots of every tile that are looked at in one round.


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("counts", "first", "median", "last", "intersections", "overflow"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Contributors:
  """What `contributors` returns: indices of Gaussians, -1 where there is none.

  Attributes:
    counts: Gaussians drawn at each pixel.
    first: the nearest one drawn.
    median: the one at which transmittance falls to one half or less; -1 where it never does.
    last: the farthest one drawn.
    intersections: see `RenderOutput`.
    overflow: see `RenderOutput`; where it is not 0, the farthest Gaussians were not looked at.
  """

  counts: Int[Array, "*b H W"]
  first: Int[Array, "*b H W"]
  median: Int[Array, "*b H W"]
  last: Int[Array, "*b H W"]
  intersections: Int[Array, "*b"]
  overflow: Int[Array, "*b"]


def contributors(
    projected: Projected,
    *,
    width: int,
    height: int,
    config: Config = Config(),
    tile_mask: Bool[InputArray, "*#b rows columns"] | None = None,
) -> Contributors:
  """Which Gaussians are drawn at each pixel. Arguments, batches, buffers and errors as in `composite`.

  All tiles take the rounds of the longest list together: on a CPU several times the cost of an image.
  """
  width, height = arguments.size("width", width), arguments.size("height", height)
  arrays = projected_arrays(projected)
  if tile_mask is not None:
    columns, rows = tile_grid(width, height, config.tile_size)
    arrays["tile_mask"] = arguments.array("tile_mask", tile_mask, (rows, columns)).astype(bool)
  arrays = jax.lax.stop_gradient(arrays)
  batch = arguments.leading_shape(arrays, RANKS)

  def draw(capacity: int) -> Contributors:
    look = functools.partial(
        _look, support=projected.support, width=width, height=height, config=config, capacity=capacity
    )
    return arguments.over_explicit_mesh(look, batch, arrays, RANKS)

  return growing(draw, arrays["means2d"].shape[-2], width, height, config)


@functools.partial(jax.jit, static_argnames=("support", "width", "height", "config", "capacity"))
def _look(
    arrays: dict[str, Array], *, support: str, width: int, height: int, config: Config, capacity: int
) -> Contributors:
  batch = arguments.leading_shape(arrays, RANKS)
  flat = {name: arguments.flatten(batch, a, RANKS[name]) for name, a in arrays.items()}
  tile_mask = flat.pop("tile_mask", None)
  projected = Projected(**flat, support=support)
  frames, num = projected.depths.shape
  size = config.tile_size
  if not frames or not num:
    none = jnp.full((*batch, height, width), -1, jnp.int32)
    return Contributors(none + 1, none, none, none, *(jnp.zeros(batch, jnp.int32),) * 2)
  bin_frame = functools.partial(make_bins, width=width, height=height, config=config, capacity=capacity)
  bins = jax.vmap(lambda p, mask: bin_frame(p, tile_mask=mask))(projected, tile_mask)
  lists = make_tile_lists(bins, num, CHUNK)

  tiles = jnp.arange(count_tiles(frames, width, height, size), dtype=jnp.int32)
  centre_x, centre_y = tile_centres(tiles, width, height, size)
  offset_x, offset_y = pixel_offsets(size)
  x, y = centre_x[:, None] + offset_x, centre_y[:, None] + offset_y  # (BT, P)
  table = jnp.concatenate([projected.means2d, projected.conics, projected.opacities[..., None]], axis=-1)
  table = jnp.concatenate([table.reshape(frames * num, 6), jnp.zeros((1, 6), table.dtype)])  # Empty slots: opacity 0.

  def look_at_chunk(state):
    step, transmittance, counts, first, median, last = state
    chunk = jnp.minimum(lists.starts + step, lists.gaussians.shape[0] - 1)
    gaussians = jnp.where((lists.starts + step < lists.ends)[:, None], lists.gaussians[chunk], frames * num)
    for k in range(CHUNK):
      index = gaussians[:, k, None]
      mean_x, mean_y, a, b, c, opacity = (table[index, i] for i in range(6))
      dx, dy = x - mean_x, y - mean_y
      alpha = opacity * jnp.exp(jnp.minimum(-0.5 * (a * dx * dx + 2 * b * dx * dy + c * dy * dy), 0))
      alpha = jnp.where(alpha >= config.alpha_min, jnp.minimum(alpha, config.alpha_max), 0)
      # It goes on falling in finished pixels: having passed the minimum is what marks them as finished.
      after = transmittance * (1 - alpha)
      drawn = (alpha > 0) & (after > config.transmittance_min)
      counts += drawn
      first = jnp.where(drawn & (first < 0), index, first)
      median = jnp.where(drawn & (transmittance > 0.5) & (after <= 0.5), index, median)
      last = jnp.where(drawn, index, last)
      transmittance = after
    return step + 1, transmittance, counts, first, median, last

  none = jnp.where(x == x, jnp.int32(-1), 0)  # -1, and varying over a mesh as the lists do.
  state = jnp.int32(0) * jnp.max(lists.counts), jnp.ones_like(x) - 0 * none, none + 1, none, none, none
  rounds = jnp.max(lists.ends - lists.starts)
  unfinished = lambda s: (s[0] < rounds) & (jnp.max(s[1]) > config.transmittance_min)
  _, _, *found = jax.lax.while_loop(unfinished, look_at_chunk, state)
  image = lambda a: untile(a[:, None], frames, width, height, size)[..., 0]
  counts, *indices = (image(a) for a in found)
  indices = (jnp.where(i < 0, -1, i % num) for i in indices)
  result = Contributors(counts, *indices, bins.intersections, bins.overflow)
  return jax.tree.map(lambda a: a.reshape(batch + a.shape[1:]), result)
