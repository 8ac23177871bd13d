"""Tiled compositing in plain XLA, with a hand-written backward pass: the portable implementation, the CPU's default.

The lists of all tiles are cut into chunks of CHUNK slots, and one loop walks all chunks, tile after tile and front to
back within a tile; a tile whose pixels are all finished is left early. Backward is the same walk again: the loss still
to come behind a Gaussian is the known total minus what has been accumulated, so nothing is stored per (pixel, Gaussian).
All gradients of a slot are moments over the tile's pixels, written once to the slot's own row; a segment sum adds the
rows of a Gaussian. No atomics: reruns are bit-equal.

How the loop body is written matters more than how much it computes; see `fusion.apart`.
"""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from splat_kernels.binning import Bins, make_bins, tile_grid
from splat_kernels.fusion import apart, columns
from splat_kernels.types import Config, Projected

CHUNK = 8  # Slots of one tile processed together.


def composite(
    projected: Projected,
    features: Float[Array, "B N C"],
    background: Float[Array, "B C"],
    *,
    width: int,
    height: int,
    config: Config,
    capacity: int,
    means2d_abs: Float[Array, "B N 2"] | None = None,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W"], Int[Array, "B"], Int[Array, "B"]]:
  """See `reference.composite`."""
  batch, num, channels = features.shape
  if batch == 0 or num == 0:
    none = jnp.zeros(batch, jnp.int32)
    image = jnp.broadcast_to(background[:, None, None], (batch, height, width, channels))
    return image, jnp.ones((batch, height, width), features.dtype), none, none
  config = dataclasses.replace(config, loops=config.loops or _default_loops())
  always = projected.radii[0, 0] >= 0
  fixed = jax.lax.stop_gradient(projected)
  fixed = apart(always, lambda: fixed)
  bin_frame = functools.partial(make_bins, width=width, height=height, config=config, capacity=capacity)
  bins = jax.vmap(lambda p: bin_frame(p, always))(fixed)
  chunks = apart(always, lambda: make_chunks(bins, num, config.loops))
  shapes = projected.means2d, means2d_abs, projected.conics, projected.opacities
  image, transmittance = _composite(*shapes, features, background, chunks, width, height, config)
  return image, transmittance, bins.intersections, bins.overflow


def _default_loops() -> int:
  """One for each core that a CPU device has for itself."""
  if jax.default_backend() != "cpu":
    return 1
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return min(4, max(1, cores // jax.local_device_count()))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("tiles", "first", "next_tile", "gaussians", "parts"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class Chunks:
  """The work list of a batch: J chunks (a static bound) of K slots, tile after tile over all frames.

  Attributes:
    tiles: tile of each chunk, counted through all frames: frame * T + tile.
    first: whether it is the tile's first chunk.
    next_tile: index of the first chunk of the next tile.
    gaussians: Gaussian of each slot, counted through all frames: frame * N + index; B * N in empty slots.
    parts: first chunk of each of the L parts that are walked at the same time, and lastly the number of chunks in use.
  """

  tiles: UInt[Array, "J"]
  first: Bool[Array, "J"]
  next_tile: UInt[Array, "J"]
  gaussians: Int[Array, "J K"]
  parts: UInt[Array, "L1"]


def make_chunks(bins: Bins, num: int, loops: int) -> Chunks:
  """Cuts the tiles' lists into chunks; the last chunk of a tile is filled up with empty slots.

  Args:
    bins: of all frames.
    num: Gaussians of a frame.
    loops: number of parts.
  """
  batch, capacity = bins.gaussians.shape
  num_tiles = bins.starts.shape[1] - 1
  frames = jnp.arange(batch, dtype=jnp.int32)[:, None]
  starts = (bins.starts[:, :-1] + frames * capacity).reshape(-1)
  ends = (bins.starts[:, 1:] + frames * capacity).reshape(-1)
  counts = (ends - starts + CHUNK - 1) // CHUNK
  chunk_ends = jnp.cumsum(counts)
  size = batch * (capacity // CHUNK + min(num_tiles, capacity)) + 1
  tiles = jnp.cumsum(jnp.zeros(size, jnp.int32).at[chunk_ends].add(1, mode="drop"))
  tiles = jnp.minimum(tiles, batch * num_tiles - 1)
  index = jnp.arange(size, dtype=jnp.int32)
  within = index - (chunk_ends - counts)[tiles]
  slots = (starts[tiles] + within * CHUNK)[:, None] + jnp.arange(CHUNK, dtype=jnp.int32)
  used = (slots < ends[tiles][:, None]) & (index < chunk_ends[-1])[:, None]
  gaussians = (bins.gaussians + frames * num).reshape(-1)[jnp.where(used, slots, 0)]
  # Unsigned, as jax.numpy adds a step for negative indices to signed ones, in every round of the loops.
  tiles, next_tile = tiles.astype(jnp.uint32), chunk_ends[tiles].astype(jnp.uint32)
  total = chunk_ends[-1:].astype(jnp.uint32)
  middles = next_tile[total * jnp.arange(1, loops, dtype=jnp.uint32) // loops]  # A tile belongs to one part.
  parts = jnp.concatenate([jnp.zeros_like(total), jnp.minimum(middles, total), total])
  return Chunks(tiles, within == 0, next_tile, jnp.where(used, gaussians, batch * num), parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8, 9))
def _composite(
    means2d, means2d_abs, conics, opacities, features, background, chunks: Chunks, width, height, config: Config
):
  return _forward(means2d, means2d_abs, conics, opacities, features, background, chunks, width, height, config)[0]


def _forward(
    means2d, means2d_abs, conics, opacities, features, background, chunks: Chunks, width, height, config: Config
):
  """Image and transmittance, and what the backward pass reads again."""
  batch, _, channels = features.shape
  always = _always(chunks)
  means2d, conics, opacities, features = apart(always, lambda given=(means2d, conics, opacities, features): given)
  table = apart(always, lambda: _slot_table(means2d, conics, opacities, features, chunks, width, height, config))
  pixels = config.tile_size**2

  def draw_part(begin, end):
    def draw_chunk(state):
      at, transmittance, summed, tiles = state
      alphas = apart(at < end, lambda: _alphas(config, table[at]))
      weights = apart(at < end, lambda: _weights(config, alphas, transmittance))
      following, transmittance = apart(at < end, lambda: _advance(config, at, alphas, transmittance, chunks))
      summed = jnp.where(chunks.first[at], 0, summed)
      for k in range(CHUNK):
        summed = summed + table[at, k, 6:, None] * weights[k]
      tiles = jax.lax.dynamic_update_index_in_dim(tiles, summed, chunks.tiles[at], 0)
      return following, transmittance, summed, tiles

    summed = jnp.zeros((channels + 1, pixels), features.dtype)
    tiles = jnp.zeros((_num_tiles(batch, width, height, config),) + summed.shape, features.dtype)
    state = begin, jnp.ones(pixels, features.dtype), summed, tiles
    return jax.lax.while_loop(lambda s: s[0] < end, draw_chunk, state)[3]

  tiles = sum(draw_part(chunks.parts[i], chunks.parts[i + 1]) for i in range(config.loops))
  summed, transmittance = tiles[:, :channels], 1 - tiles[:, channels]
  colored = summed + transmittance[:, None] * _per_tile(background, width, height, config)[..., None]
  image = _untile(colored, batch, width, height, config.tile_size)
  transmittance = _untile(transmittance[:, None], batch, width, height, config.tile_size)[..., 0]
  return (image, transmittance), (means2d, means2d_abs, conics, opacities, background, chunks, table, tiles)


def _backward(width: int, height: int, config: Config, residuals, gradients):
  means2d, means2d_abs, conics, opacities, background, chunks, table, tiles = residuals
  absolute = means2d_abs is not None
  batch, num, _ = means2d.shape
  size, channels = config.tile_size, tiles.shape[1] - 1
  always = _always(chunks)
  # d loss / d pixel, tile by tile. Transmittance is 1 - sum of weights: one more channel, of colour 1.
  tiled = lambda: (_tile(gradients[0], size), _tile(gradients[1][..., None], size)[:, 0])
  grad_image, grad_transmittance = apart(always, tiled)
  behind = _per_tile(background, width, height, config)
  for c in range(channels):  # Not sums over an axis of 3: slow on XLA:CPU.
    grad_transmittance = grad_transmittance + behind[:, c, None] * grad_image[:, c]
  gradient = apart(always, lambda: jnp.concatenate([grad_image, -grad_transmittance[:, None]], axis=1))
  total = apart(always, lambda: sum(tiles[:, c] * gradient[:, c] for c in range(channels + 1)))
  # Right-hand sides of the moments, padded to 8 columns: a vector register wide, which XLA:CPU needs to be fast.
  padding = -channels % 8
  color_side = apart(always, lambda: jnp.pad(grad_image.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding))))
  shape_side, (abs_x_side, abs_y_side) = _monomials(size), _absolute_sides(size)

  def walk_part(begin, end):
    def walk_chunk(state):
      at, transmittance, remaining, moments = state

      def weigh():
        alphas = _alphas(config, table[at])
        gains = sum(table[at, :, 6 + c, None] * gradient[chunks.tiles[at], c] for c in range(channels + 1))
        return alphas, gains, apart(at < end, lambda: _weights(config, alphas, transmittance))

      def pull():
        left = jnp.where(chunks.first[at], total[chunks.tiles[at]], remaining)
        pulls = _pulls(config, alphas, gains, weights, left)
        if config.clamp_passes_gradient:  # As if nothing had been clamped: d alpha / d ln(alpha) is the free alpha.
          free = _alphas(config, table[at], clamp=False)
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

      alphas, gains, weights = apart(at < end, weigh)
      pulls, remaining, following, transmittance = apart(at < end, pull)
      row = apart(at < end, sum_moments)
      return following, transmittance, remaining, jax.lax.dynamic_update_index_in_dim(moments, row, at, 0)

    moments = jnp.zeros(table.shape[:2] + (8 + channels + padding,), table.dtype)
    state = begin, jnp.ones(size**2, table.dtype), jnp.zeros(size**2, table.dtype), moments
    return jax.lax.while_loop(lambda s: s[0] < end, walk_chunk, state)[3]

  moments = sum(walk_part(chunks.parts[i], chunks.parts[i + 1]) for i in range(config.loops))
  per_slot = lambda: _slot_gradients(
      moments, means2d, conics, opacities, channels, absolute, chunks, width, height, config
  )
  summed = jax.ops.segment_sum(apart(always, per_slot), chunks.gaussians.reshape(-1), num_segments=batch * num + 1)
  summed = summed[:-1].reshape(batch, num, -1)
  grad_background = jnp.sum(((1 - tiles[:, channels:]) * grad_image).reshape(batch, -1, channels, size**2), axis=(1, 3))
  grad_abs = summed[..., 6 + channels :] if absolute else None
  grad_features = summed[..., 6 : 6 + channels]
  parts = summed[..., :2], grad_abs, summed[..., 2:5], summed[..., 5], grad_features, grad_background
  return *apart(always, lambda: parts), None


_composite.defvjp(_forward, _backward)


def _always(chunks: Chunks):
  """True, and XLA does not know; see `fusion.apart`."""
  return chunks.parts[0] < jnp.uint32(2**31)


# ---- Parameters and gradients per slot ----


def _slot_table(means2d, conics, opacities, features, chunks: Chunks, width, height, config) -> Float[Array, "J K D"]:
  """Per slot what the pixel loops read: l_xx, l_xy, u, l_yy, v, ln opacity, features, 1.

  ln alpha = ln opacity - (l_xx x + l_xy y + u)^2 - (l_yy y + v)^2 with x, y relative to the tile's centre: the Cholesky
  form of the conic, which has neither the cancellation nor the positive exponents of the expanded polynomial. All are
  scaled so that the left side is ln(alpha) / 8; see `_exp_of_eighth`.
  """
  a, b, c = conics[..., 0], conics[..., 1], conics[..., 2]
  l_xx = jnp.sqrt(a / 16)
  l_xy = b / a * l_xx
  l_yy = jnp.sqrt(jnp.maximum((c - b * b / a) / 16, 0))
  log_opacity = jnp.log(jnp.maximum(opacities, 1e-30)) / 8
  shape = columns(l_xx, l_xy, l_yy, log_opacity, means2d[..., 0], means2d[..., 1])
  per_gaussian = jnp.concatenate([shape, features], axis=-1).reshape(-1, 6 + features.shape[-1])
  empty = jnp.zeros_like(per_gaussian[:1]).at[0, 3].set(-100)  # ln opacity of empty slots: alpha 0.
  always = _always(chunks)
  per_gaussian = apart(always, lambda: jnp.concatenate([per_gaussian, empty]))
  rows = apart(always, lambda: per_gaussian[chunks.gaussians])
  x, y = _tile_centres(chunks.tiles, width, height, config.tile_size)
  dx, dy = x[:, None] - rows[..., 4], y[:, None] - rows[..., 5]
  u = rows[..., 0] * dx + rows[..., 1] * dy
  v = rows[..., 2] * dy
  index = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 2)
  pick = lambda i, value, rest: jnp.where(index == i, value[..., None], rest)
  swapped = pick(2, u, pick(3, rows[..., 2], pick(4, v, pick(5, rows[..., 3], rows))))
  return jnp.pad(swapped, ((0, 0), (0, 0), (0, 1)), constant_values=1)


def _slot_gradients(moments, means2d, conics, opacities, channels, absolute, chunks: Chunks, width, height, config):
  """Moments about the tile's centre to gradients of mean, conic, opacity, features and absolute mean, (J * K, 6 + C + 2).

  With q = d loss / d alpha * alpha and d = pixel - mean: ln alpha = ln opacity - d^T conic d / 2.
  """
  x, y = _tile_centres(chunks.tiles, width, height, config.tile_size)
  per_gaussian = jnp.concatenate([means2d, conics, opacities[..., None]], axis=-1).reshape(-1, 6)
  always = _always(chunks)
  per_gaussian = apart(always, lambda: jnp.concatenate([per_gaussian, jnp.ones_like(per_gaussian[:1])]))
  rows = apart(always, lambda: per_gaussian[chunks.gaussians])
  mx, my = rows[..., 0] - x[:, None], rows[..., 1] - y[:, None]  # The mean, relative to the tile's centre.
  q, qx, qy, qxx, qxy, qyy = (moments[..., i] for i in range(6))
  dx, dy = qx - mx * q, qy - my * q
  dxx, dxy, dyy = qxx - mx * (qx + dx), qxy - mx * qy - my * dx, qyy - my * (qy + dy)
  a, b, c = rows[..., 2], rows[..., 3], rows[..., 4]
  opacity = jnp.maximum(rows[..., 5], 1e-30)
  shape = columns(a * dx + b * dy, b * dx + c * dy, -0.5 * dxx, -dxy, -0.5 * dyy, q / opacity)
  rest = [moments[..., 8 : 8 + channels]] + [moments[..., 6:8]] * absolute
  return jnp.concatenate([shape, *rest], axis=-1).reshape(-1, 6 + channels + 2 * absolute)


# ---- Stages of a chunk ----


def _alphas(config: Config, rows, *, clamp: bool = True) -> Float[Array, "K P"]:
  """Alpha of a chunk's Gaussians at the tile's pixels; 0 where skipped. Without `clamp` alpha_max is not applied."""
  u, v = _whiten(config, rows)
  eighth = rows[:, 5:6] - u * u - v * v  # ln(alpha) / 8
  lowest = np.float32(np.log(config.alpha_min) / 8)
  alphas = _exp_of_eighth(eighth, lowest)
  return jnp.where(eighth >= lowest, jnp.minimum(alphas, config.alpha_max) if clamp else alphas, 0)


def _whiten(config: Config, rows) -> tuple[Float[Array, "K P"], Float[Array, "K P"]]:
  """u and v with ln(alpha) / 8 = ln(opacity) / 8 - u^2 - v^2; see `_slot_table`."""
  x, y = _pixel_centres(config.tile_size)
  column = lambda i: rows[:, i : i + 1]
  return column(0) * x + (column(1) * y + column(2)), column(3) * y + column(4)


def _centre_slopes(config: Config, rows) -> tuple[Float[Array, "K P"], Float[Array, "K P"]]:
  """d ln(alpha) / d centre, along x and y."""
  u, v = _whiten(config, rows)
  column = lambda i: rows[:, i : i + 1]
  return 16 * column(0) * u, 16 * (column(1) * u + column(3) * v)


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


# ---- Tiles and pixels ----


def _pixel_centres(tile_size: int) -> tuple[np.ndarray, np.ndarray]:
  """x and y of a tile's pixels relative to the tile's centre, each (P,)."""
  offsets = np.arange(tile_size, dtype=np.float32) + 0.5 - tile_size / 2
  y, x = (g.reshape(-1) for g in np.meshgrid(offsets, offsets, indexing="ij"))
  return x, y


def _monomials(tile_size: int) -> np.ndarray:
  """1, x, y, x^2, xy, y^2, 0, 0 at the pixel centres relative to the tile's centre: (P, 8)."""
  x, y = _pixel_centres(tile_size)
  return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y, 0 * x, 0 * x], axis=-1)


def _absolute_sides(tile_size: int) -> np.ndarray:
  """Sums over pixels, put into the columns 6 and 7 that `_monomials` leaves free: (2, P, 8)."""
  return np.tile(np.eye(8, dtype=np.float32)[6:, None], (1, tile_size**2, 1))


def _tile_centres(tiles, width: int, height: int, tile_size: int):
  """Pixel coordinates of the centres of tiles that are counted through all frames."""
  columns, rows = tile_grid(width, height, tile_size)
  within = tiles.astype(jnp.int32) % (columns * rows)
  return (within % columns + 0.5) * tile_size, (within // columns + 0.5) * tile_size


def _num_tiles(batch: int, width: int, height: int, config: Config) -> int:
  columns, rows = tile_grid(width, height, config.tile_size)
  return batch * columns * rows


def _per_tile(per_frame: Float[Array, "B C"], width: int, height: int, config: Config) -> Float[Array, "BT C"]:
  return jnp.repeat(per_frame, _num_tiles(1, width, height, config), axis=0)


def _untile(tiles: Float[Array, "BT C P"], batch: int, width: int, height: int, size: int) -> Float[Array, "B H W C"]:
  columns, rows = tile_grid(width, height, size)
  image = tiles.reshape(batch, rows, columns, -1, size, size).transpose(0, 1, 4, 2, 5, 3)
  return image.reshape(batch, rows * size, columns * size, -1)[:, :height, :width]


def _tile(image: Float[Array, "B H W C"], size: int) -> Float[Array, "BT C P"]:
  batch, height, width, channels = image.shape
  columns, rows = tile_grid(width, height, size)
  padded = jnp.pad(image, ((0, 0), (0, rows * size - height), (0, columns * size - width), (0, 0)))
  tiles = padded.reshape(batch, rows, size, columns, size, channels).transpose(0, 1, 3, 5, 2, 4)
  return tiles.reshape(batch * rows * columns, channels, size * size)
