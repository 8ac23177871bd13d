"""Tiled compositing in plain XLA, with a hand-written backward pass: the portable implementation, the CPU's default.

Forward: tiles one after the other, each walking its list of Gaussians front to back in chunks, until all its pixels are
finished. Backward: the same walk again. The colour still to come behind a Gaussian is the known total minus what has
been accumulated, so nothing is stored per (pixel, Gaussian). All gradients of a slot are moments over the tile's
pixels, written once to the slot's own row; a segment sum adds the rows of a Gaussian. No atomics: reruns are bit-equal.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from splat_kernels.binning import Bins, make_bins, tile_grid
from splat_kernels.types import Config, Projected

CHUNK = 8  # Gaussians of a tile processed together.


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
  if features.shape[0] == 0 or features.shape[1] == 0:
    shape = (features.shape[0], height, width)
    none = jnp.zeros(features.shape[0], jnp.int32)
    return jnp.zeros(shape + (features.shape[2],), features.dtype), jnp.ones(shape, features.dtype), none, none
  bin_frame = functools.partial(make_bins, width=width, height=height, config=config, capacity=capacity)
  bins = jax.lax.stop_gradient(jax.vmap(bin_frame)(jax.lax.stop_gradient(projected)))
  summed, transmittance = _composite(
      projected.means2d, projected.conics, projected.opacities, features, bins, width, height, config
  )
  return summed, transmittance, bins.intersections, bins.overflow


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _composite(means2d, conics, opacities, features, bins: Bins, width: int, height: int, config: Config):
  return _forward(means2d, conics, opacities, features, bins, width, height, config)[0]


def _forward(means2d, conics, opacities, features, bins: Bins, width: int, height: int, config: Config):
  """Image, transmittance, and what the backward pass reads again."""
  table = jax.vmap(functools.partial(_slot_table, width=width, config=config))(
      means2d, conics, opacities, features, bins
  )
  table, starts, ends = _flatten_slots(table, bins)
  channels = features.shape[-1]
  x, y = _pixel_grid(config.tile_size)

  def draw_tile(bounds):
    start, end = bounds

    def unfinished(state):
      at, transmittance, _ = state
      return (at < end) & (jnp.max(transmittance) > config.transmittance_min)

    def draw_chunk(state):
      at, transmittance, summed = state
      rows = jax.lax.dynamic_slice(table, (at, 0), (CHUNK, table.shape[1]))
      alphas, _ = _alphas(rows, x, y, end - at, config)
      for k in range(CHUNK):
        weight, transmittance = _weigh(alphas[k], transmittance, config)
        summed = summed + rows[k, 6:, None] * weight
      return at + CHUNK, transmittance, summed

    one = jnp.ones_like(x)
    state = start, one, jnp.zeros((channels + 1,) + one.shape)
    return jax.lax.while_loop(unfinished, draw_chunk, state)[2]

  tiles = jax.lax.map(draw_tile, (starts, ends))  # (B * T, C + 1, P)
  image = _untile(tiles, means2d.shape[0], width, height, config.tile_size)
  summed, transmittance = image[..., :channels], 1 - image[..., channels]
  residuals = means2d, conics, opacities, features, bins, table, starts, ends, tiles
  return (summed, transmittance), residuals


def _backward(width: int, height: int, config: Config, residuals, gradients):
  means2d, conics, opacities, features, bins, table, starts, ends, tiles = residuals
  grad_summed, grad_transmittance = gradients
  batch, num, channels = features.shape
  # d loss / d transmittance, with transmittance = 1 - sum of weights: one more channel, of colour 1.
  gradient = jnp.concatenate([grad_summed, -grad_transmittance[..., None]], axis=-1)
  gradient = _tile(gradient, config.tile_size)  # (B * T, C + 1, P)
  x, y = _pixel_grid(config.tile_size)
  monomials = jnp.stack([jnp.ones_like(x), x, y, x * x, x * y, y * y])  # (6, P)

  def walk_tile(slots, tile):
    start, end, total, grad = tile

    def unfinished(state):
      at, transmittance, _, _ = state
      return (at < end) & (jnp.max(transmittance) > config.transmittance_min)

    def walk_chunk(state):
      at, transmittance, remaining, slots = state
      rows = jax.lax.dynamic_slice(table, (at, 0), (CHUNK, table.shape[1]))
      alphas, open_ = _alphas(rows, x, y, end - at, config)
      weights, moments = [], []
      for k in range(CHUNK):
        weight, behind = _weigh(alphas[k], transmittance, config)
        along = rows[k, 6:] @ grad  # d loss / d weight.
        remaining = remaining - weight * along
        # d loss / d alpha = T along - (what comes behind) / (1 - alpha); times alpha. Finished pixels have none.
        live = (behind > config.transmittance_min) & open_[k]
        moments.append(jnp.where(live, weight * along - remaining * alphas[k] / (1 - alphas[k]), 0))
        weights.append(weight)
        transmittance = behind
      gradient_rows = jnp.concatenate([jnp.stack(moments) @ monomials.T, jnp.stack(weights) @ grad[:-1].T], axis=-1)
      gradient_rows = jnp.where((jnp.arange(CHUNK) < end - at)[:, None], gradient_rows, 0)
      before = jax.lax.dynamic_slice(slots, (at, 0), gradient_rows.shape)
      slots = jax.lax.dynamic_update_slice(slots, before + gradient_rows, (at, 0))
      return at + CHUNK, transmittance, remaining, slots

    remaining = jnp.sum(total * grad, axis=0)
    state = start, jnp.ones_like(x), remaining, slots
    return jax.lax.while_loop(unfinished, walk_chunk, state)[3], None

  slots = jnp.zeros((table.shape[0], 6 + channels), table.dtype)
  slots, _ = jax.lax.scan(walk_tile, slots, (starts, ends, tiles, gradient))
  slots = slots[:-CHUNK].reshape(batch, -1, slots.shape[1])
  per_slot = jax.vmap(functools.partial(_slot_gradients, width=width, config=config))
  per_slot = per_slot(slots, means2d, conics, opacities, bins)
  summed = jax.vmap(functools.partial(jax.ops.segment_sum, num_segments=num))(per_slot, bins.gaussians)
  return summed[..., :2], summed[..., 2:5], summed[..., 5], summed[..., 6:], None


_composite.defvjp(
    lambda *args: _forward(*args),
    _backward,
)


def _slot_table(means2d, conics, opacities, features, bins: Bins, width: int, config: Config) -> Float[Array, "M D"]:
  """Per slot what the pixel loops read: l_xx, l_xy, u, l_yy, v, ln opacity, features, 1.

  ln alpha = ln opacity - (l_xx x + l_xy y + u)^2 - (l_yy y + v)^2 with x, y relative to the tile's centre: the Cholesky
  form of the conic, which has neither the cancellation nor the positive exponents of the expanded polynomial.
  """
  a, b, c = conics[:, 0], conics[:, 1], conics[:, 2]
  l_xx = jnp.sqrt(0.5 * a)
  l_xy = b / a * l_xx
  l_yy = jnp.sqrt(jnp.maximum(0.5 * (c - b * b / a), 0))
  log_opacity = jnp.log(jnp.maximum(opacities, 1e-30))
  per_gaussian = jnp.concatenate([jnp.stack([l_xx, l_xy, l_yy, log_opacity], -1), means2d, features], axis=-1)
  rows = per_gaussian[bins.gaussians]
  x, y = _tile_centres(bins.tiles, width, config.tile_size)
  dx, dy = x - rows[:, 4], y - rows[:, 5]
  quadratic = jnp.stack(
      [rows[:, 0], rows[:, 1], rows[:, 0] * dx + rows[:, 1] * dy, rows[:, 2], rows[:, 2] * dy, rows[:, 3]], axis=-1
  )
  return jnp.concatenate([quadratic, rows[:, 6:], jnp.ones_like(rows[:, :1])], axis=-1)


def _slot_gradients(moments, means2d, conics, opacities, bins: Bins, width: int, config: Config):
  """Moments about the tile's centre to gradients of mean, conic, opacity and features, per slot.

  With q = d loss / d alpha * alpha and d = pixel - mean: ln alpha = ln opacity - d^T conic d / 2.
  """
  x, y = _tile_centres(bins.tiles, width, config.tile_size)
  rows = jnp.concatenate([means2d, conics, opacities[:, None]], axis=-1)[bins.gaussians]
  mx, my = rows[:, 0] - x, rows[:, 1] - y  # The mean, relative to the tile's centre.
  q, qx, qy, qxx, qxy, qyy = (moments[:, i] for i in range(6))
  dx, dy = qx - mx * q, qy - my * q
  dxx, dxy, dyy = qxx - mx * (qx + dx), qxy - mx * qy - my * dx, qyy - my * (qy + dy)
  a, b, c = rows[:, 2], rows[:, 3], rows[:, 4]
  gradients = [a * dx + b * dy, b * dx + c * dy, -0.5 * dxx, -dxy, -0.5 * dyy, q / jnp.maximum(rows[:, 5], 1e-30)]
  return jnp.concatenate([jnp.stack(gradients, axis=-1), moments[:, 6:]], axis=-1)


def _alphas(rows, x, y, count, config: Config):
  """Alpha of a chunk's Gaussians (K, P), 0 where skipped, and whether alpha passes a gradient on."""
  column = lambda i: rows[:, i : i + 1]
  u = column(0) * x + (column(1) * y + column(2))
  v = column(3) * y + column(4)
  exponent = column(5) - u * u - v * v
  present = (jnp.arange(rows.shape[0]) < count)[:, None]
  raw = jnp.where(present & (exponent >= jnp.log(config.alpha_min)), jnp.exp(exponent), 0)
  passes = (raw > 0) if config.clamp_passes_gradient else (raw > 0) & (raw < config.alpha_max)
  return jnp.minimum(raw, config.alpha_max), passes


def _weigh(alpha, transmittance, config: Config):
  """Weight of a Gaussian and the transmittance behind it.

  The transmittance goes on falling in finished pixels, where weights are 0: having passed the minimum is what marks
  them as finished.
  """
  behind = transmittance - transmittance * alpha
  return jnp.where(behind > config.transmittance_min, transmittance * alpha, 0), behind


def _pixel_grid(tile_size: int):
  """Pixel centres of a tile relative to its centre, row major: (P,), (P,)."""
  offsets = jnp.arange(tile_size) + 0.5 - tile_size / 2
  y, x = jnp.meshgrid(offsets, offsets, indexing="ij")
  return x.reshape(-1), y.reshape(-1)


def _tile_centres(tiles, width: int, tile_size: int):
  columns = -(-width // tile_size)
  return (tiles % columns + 0.5) * tile_size, (tiles // columns + 0.5) * tile_size


def _flatten_slots(table, bins: Bins):
  """All frames' slots in one list, padded by a chunk; first slot and end of each of the B * T tiles."""
  batch, capacity, width = table.shape
  offsets = (jnp.arange(batch, dtype=jnp.int32) * capacity)[:, None]
  starts, ends = (bins.starts[:, :-1] + offsets).reshape(-1), (bins.starts[:, 1:] + offsets).reshape(-1)
  return jnp.pad(table.reshape(-1, width), ((0, CHUNK), (0, 0))), starts, ends


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
