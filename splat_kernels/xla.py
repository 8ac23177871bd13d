"""Tiled compositing in plain XLA, with a hand-written backward pass: the portable implementation, the CPU's default.

The lists of all tiles are cut into chunks of CHUNK slots, and one loop walks all chunks, tile after tile and front to
back within a tile; a tile whose pixels are all finished is left early. Backward is the same walk again: the loss still
to come behind a Gaussian is the known total minus what has been accumulated, so nothing is stored per (pixel, Gaussian).
All gradients of a slot are moments over the tile's pixels, written once to the slot's own row; a segment sum adds the
rows of a Gaussian. No atomics: reruns are bit-equal.

How the loop body is written matters more than how much it computes; see `_stage`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from splat_kernels.binning import Bins, make_bins, tile_grid
from splat_kernels.types import Config, Projected

CHUNK = 8  # Slots of one tile processed together. More than 8 loses XLA:CPU's cheap way to run a short list of kernels.


def composite(
    projected: Projected,
    features: Float[Array, "B N C"],
    *,
    width: int,
    height: int,
    config: Config,
    capacity: int,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W"], Int[Array, "B"], Int[Array, "B"]]:
  """See `reference.composite`."""
  batch, num, channels = features.shape
  if batch == 0 or num == 0:
    none = jnp.zeros(batch, jnp.int32)
    shape = (batch, height, width)
    return jnp.zeros(shape + (channels,), features.dtype), jnp.ones(shape, features.dtype), none, none
  bin_frame = functools.partial(make_bins, width=width, height=height, config=config, capacity=capacity)
  bins = jax.vmap(bin_frame)(jax.lax.stop_gradient(projected))
  chunks = make_chunks(bins, num)
  summed, transmittance = _composite(
      projected.means2d, projected.conics, projected.opacities, features, chunks, width, height, config
  )
  return summed, transmittance, bins.intersections, bins.overflow


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("tiles", "first", "next_tile", "gaussians", "count"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class Chunks:
  """The work list of a batch: J chunks (a static bound) of K slots, tile after tile over all frames.

  Attributes:
    tiles: tile of each chunk, counted through all frames: frame * T + tile.
    first: whether it is the tile's first chunk.
    next_tile: index of the first chunk of the next tile.
    gaussians: Gaussian of each slot, counted through all frames: frame * N + index; B * N in empty slots.
    count: chunks in use.
  """

  tiles: Int[Array, "J"]
  first: Bool[Array, "J"]
  next_tile: Int[Array, "J"]
  gaussians: Int[Array, "J K"]
  count: Int[Array, ""]


def make_chunks(bins: Bins, num: int) -> Chunks:
  """Cuts the tiles' lists into chunks; the last chunk of a tile is filled up with empty slots."""
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
  return Chunks(tiles, within == 0, chunk_ends[tiles], jnp.where(used, gaussians, batch * num), chunk_ends[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _composite(means2d, conics, opacities, features, chunks: Chunks, width: int, height: int, config: Config):
  return _forward(means2d, conics, opacities, features, chunks, width, height, config)[0]


def _forward(means2d, conics, opacities, features, chunks: Chunks, width: int, height: int, config: Config):
  """Image, transmittance, and what the backward pass reads again."""
  batch, _, channels = features.shape
  table = _slot_table(means2d, conics, opacities, features, chunks, width, height, config)
  pixels = config.tile_size**2

  def draw_chunk(state):
    at, transmittance, summed, image = state
    rows, tile, first = table[at], chunks.tiles[at], chunks.first[at]
    alphas = _stage(at, _alphas, config, rows)
    weights = _stage(at, _weights, config, alphas, transmittance, first)
    transmittance = _behind(alphas, transmittance, first)
    summed = jnp.where(first, 0, summed)
    for k in range(CHUNK):
      summed = summed + rows[k, 6:, None] * weights[k]
    image = jax.lax.dynamic_update_slice(image, summed[None], (tile, 0, 0))
    return _following(at, transmittance, chunks, config), transmittance, summed, image

  num_tiles = batch * np.prod(tile_grid(width, height, config.tile_size))
  one = jnp.ones(pixels, features.dtype)
  summed = jnp.zeros((channels + 1, pixels), features.dtype)
  image = jnp.zeros((num_tiles, channels + 1, pixels), features.dtype)
  state = jax.lax.while_loop(lambda s: s[0] < chunks.count, draw_chunk, (jnp.int32(0), one, summed, image))
  tiles = state[3]
  image = _untile(tiles, batch, width, height, config.tile_size)
  residuals = means2d, conics, opacities, features, chunks, table, tiles
  return (image[..., :channels], 1 - image[..., channels]), residuals


def _backward(width: int, height: int, config: Config, residuals, gradients):
  means2d, conics, opacities, features, chunks, table, tiles = residuals
  grad_summed, grad_transmittance = gradients
  batch, num, channels = features.shape
  # d loss / d transmittance, with transmittance = 1 - sum of weights: one more channel, of colour 1.
  gradient = _tile(jnp.concatenate([grad_summed, -grad_transmittance[..., None]], axis=-1), config.tile_size)
  totals = jnp.sum(tiles * gradient, axis=1)  # (B * T, P): what all Gaussians of the tile contribute to the loss.
  # Right-hand sides of the moments, padded to 8 columns: a vector register wide, which XLA:CPU needs to be fast.
  columns = -(-channels // 8) * 8
  color_side = jnp.pad(gradient[:, :channels].swapaxes(1, 2), ((0, 0), (0, 0), (0, columns - channels)))
  shape_side = _monomials(config.tile_size)

  def walk_chunk(state):
    at, transmittance, remaining, moments = state
    rows, tile, first = table[at], chunks.tiles[at], chunks.first[at]
    alphas, gains = _stage(at, _alphas_and_gains, config, rows, gradient[tile])
    weights = _stage(at, _weights, config, alphas, transmittance, first)
    remaining = jnp.where(first, totals[tile], remaining)
    pulls = _stage(at, _pulls, config, alphas, gains, weights, remaining)
    transmittance = _behind(alphas, transmittance, first)
    for k in range(CHUNK):
      remaining = remaining - weights[k] * gains[k]
    shape = _dot(jnp.stack(pulls), shape_side)
    color = _dot(jnp.stack(weights), color_side[tile])
    row = jnp.concatenate([shape, color], axis=-1)
    moments = jax.lax.dynamic_update_slice(moments, row[None], (at, 0, 0))
    return _following(at, transmittance, chunks, config), transmittance, remaining, moments

  one = jnp.ones(config.tile_size**2, features.dtype)
  moments = jnp.zeros(table.shape[:2] + (8 + columns,), features.dtype)
  state = jax.lax.while_loop(lambda s: s[0] < chunks.count, walk_chunk, (jnp.int32(0), one, 0 * one, moments))
  per_slot = _slot_gradients(state[3], means2d, conics, opacities, channels, chunks, width, height, config)
  summed = jax.ops.segment_sum(per_slot, chunks.gaussians.reshape(-1), num_segments=batch * num + 1)
  summed = summed[:-1].reshape(batch, num, -1)
  return summed[..., :2], summed[..., 2:5], summed[..., 5], summed[..., 6:], None


_composite.defvjp(_forward, _backward)


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
  per_gaussian = [l_xx, l_xy, l_yy, log_opacity, means2d[..., 0], means2d[..., 1]]
  per_gaussian = jnp.concatenate([jnp.stack(per_gaussian, axis=-1), features], axis=-1)
  per_gaussian = per_gaussian.reshape(-1, per_gaussian.shape[-1])
  empty = jnp.zeros_like(per_gaussian[:1]).at[0, 3].set(-100)  # ln opacity of empty slots: alpha 0.
  rows = jnp.concatenate([per_gaussian, empty])[chunks.gaussians]
  x, y = _tile_centres(chunks.tiles, width, height, config.tile_size)
  dx, dy = x[:, None] - rows[..., 4], y[:, None] - rows[..., 5]
  u = rows[..., 0] * dx + rows[..., 1] * dy
  v = rows[..., 2] * dy
  index = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 2)
  pick = lambda i, value, rest: jnp.where(index == i, value[..., None], rest)
  swapped = pick(2, u, pick(3, rows[..., 2], pick(4, v, pick(5, rows[..., 3], rows))))
  return jnp.pad(swapped, ((0, 0), (0, 0), (0, 1)), constant_values=1)


def _slot_gradients(moments, means2d, conics, opacities, channels, chunks: Chunks, width, height, config):
  """Moments about the tile's centre to gradients of mean, conic, opacity and features, (J * K, 6 + C).

  With q = d loss / d alpha * alpha and d = pixel - mean: ln alpha = ln opacity - d^T conic d / 2.
  """
  x, y = _tile_centres(chunks.tiles, width, height, config.tile_size)
  per_gaussian = jnp.concatenate([means2d, conics, opacities[..., None]], axis=-1).reshape(-1, 6)
  rows = jnp.concatenate([per_gaussian, jnp.ones_like(per_gaussian[:1])])[chunks.gaussians]
  mx, my = rows[..., 0] - x[:, None], rows[..., 1] - y[:, None]  # The mean, relative to the tile's centre.
  q, qx, qy, qxx, qxy, qyy = (moments[..., i] for i in range(6))
  dx, dy = qx - mx * q, qy - my * q
  dxx, dxy, dyy = qxx - mx * (qx + dx), qxy - mx * qy - my * dx, qyy - my * (qy + dy)
  a, b, c = rows[..., 2], rows[..., 3], rows[..., 4]
  shape = [a * dx + b * dy, b * dx + c * dy, -0.5 * dxx, -dxy, -0.5 * dyy, q / jnp.maximum(rows[..., 5], 1e-30)]
  out = jnp.pad(moments[..., 8 : 8 + channels], ((0, 0), (0, 0), (6, 0)))
  index = jax.lax.broadcasted_iota(jnp.int32, out.shape, 2)
  for i, value in enumerate(shape):
    out = jnp.where(index == i, value[..., None], out)
  return out.reshape(-1, 6 + channels)


# ---- Stages of a chunk ----


def _stage(at, function, config: Config, *args):
  """function(config, *args), kept apart from what reads its result.

  XLA:CPU has no multi-output fusion: it repeats a producer inside every consumer, which here means evaluating all
  alphas once per channel and per Gaussian (2 to 3 times slower), and compile times that grow exponentially.
  `optimization_barrier` is dropped before fusion, but nothing is fused across a conditional, even if it is always true.
  """
  function = functools.partial(function, config)
  shapes = jax.eval_shape(function, *args)
  nothing = lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  return jax.lax.cond(at >= 0, function, nothing, *args)


def _alphas(config: Config, rows) -> Float[Array, "K P"]:
  """Alpha of a chunk's Gaussians at the tile's pixels; 0 where skipped."""
  offsets = np.arange(config.tile_size, dtype=np.float32) + 0.5 - config.tile_size / 2
  y, x = (g.reshape(-1) for g in np.meshgrid(offsets, offsets, indexing="ij"))  # Pixel centres from the tile's centre.
  column = lambda i: rows[:, i : i + 1]
  u = column(0) * x + (column(1) * y + column(2))
  v = column(3) * y + column(4)
  eighth = column(5) - u * u - v * v  # ln(alpha) / 8
  lowest = np.float32(np.log(config.alpha_min) / 8)
  return jnp.where(eighth >= lowest, jnp.minimum(_exp_of_eighth(eighth, lowest), config.alpha_max), 0)


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


def _alphas_and_gains(config: Config, rows, gradient):
  """Alphas, and d loss / d weight: the feature along the gradient of the pixel."""
  gains = sum(rows[:, 6 + c, None] * gradient[c] for c in range(gradient.shape[0]))
  return _alphas(config, rows), gains


def _weights(config: Config, alphas, transmittance, first) -> tuple[Float[Array, "P"], ...]:
  """Weight of each Gaussian of a chunk: alpha times transmittance, 0 in finished pixels.

  The transmittance goes on falling in finished pixels: having passed the minimum is what marks them as finished.
  """
  transmittance = jnp.where(first, 1, transmittance)
  weights = []
  for k in range(CHUNK):
    weight = transmittance * alphas[k]
    transmittance = transmittance - weight
    weights.append(jnp.where(transmittance > config.transmittance_min, weight, 0))
  return tuple(weights)


def _behind(alphas, transmittance, first):
  """Transmittance behind a chunk."""
  transmittance = jnp.where(first, 1, transmittance)
  for k in range(CHUNK):
    transmittance = transmittance - transmittance * alphas[k]
  return transmittance


def _pulls(config: Config, alphas, gains, weights, remaining) -> tuple[Float[Array, "P"], ...]:
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
  return tuple(pulls)


def _following(at, transmittance, chunks: Chunks, config: Config):
  """The chunk to go on with: the next one, or the next tile's first one if all pixels are finished."""
  finished = jnp.max(transmittance) <= config.transmittance_min
  return jnp.where(finished, chunks.next_tile[at], at + 1)


def _dot(a, b):
  return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


# ---- Tiles and pixels ----


def _monomials(tile_size: int) -> np.ndarray:
  """1, x, y, x^2, xy, y^2, 0, 0 at the pixel centres relative to the tile's centre: (P, 8)."""
  offsets = np.arange(tile_size, dtype=np.float32) + 0.5 - tile_size / 2
  y, x = (g.reshape(-1) for g in np.meshgrid(offsets, offsets, indexing="ij"))
  return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y, 0 * x, 0 * x], axis=-1)


def _tile_centres(tiles, width: int, height: int, tile_size: int):
  """Pixel coordinates of the centres of tiles that are counted through all frames."""
  columns, rows = tile_grid(width, height, tile_size)
  within = tiles % (columns * rows)
  return (within % columns + 0.5) * tile_size, (within // columns + 0.5) * tile_size


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
