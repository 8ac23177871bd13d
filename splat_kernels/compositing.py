"""Tiled compositing but for the walk through the tiles: what `xla` and the Pallas implementations have in common.

An implementation is a `Walk`: two functions that go through every tile's list front to back. Everything around them is
here: lists, parameters per slot, the custom gradient, gradients per Gaussian.

Backward is the same walk again: the loss still to come behind a Gaussian is the known total minus what has been
accumulated, so nothing is stored per (pixel, Gaussian). All gradients of a slot are moments over the tile's pixels,
written once to the slot's own row; a segment sum adds the rows of a Gaussian. No atomics: reruns are bit-equal.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from splat_kernels.binning import make_bins
from splat_kernels.fusion import apart, columns
from splat_kernels.tiles import count_tiles, tile, tile_centres, untile
from splat_kernels.types import Config, Projected


@dataclasses.dataclass(frozen=True)
class Walk:
  """How an implementation goes through the tiles' lists. Make one per module: it is a static argument.

  Letters: J chunks of K slots, BT tiles of all frames, P pixels of a tile, C channels.

  The table holds per slot 7 + C numbers: l_xx, l_xy, u, l_yy, v, e, the C features, and 1. With x, y of a pixel
  relative to the tile's centre,
    scale * ln alpha = e - (l_xx x + l_xy y + u)^2 - (l_yy y + v)^2,
  the Cholesky form of the conic, which has neither the cancellation nor the positive exponents of the expanded
  polynomial. In empty slots ln alpha is below -800 everywhere, and they must come out as skipped.

  Attributes:
    make_lists: (bins of all frames, N, config) to the lists: a pytree with `TileLists.gaussians` and `TileLists.tiles`,
      and whatever else the two walks want to know.
    forward: (table, lists, number of tiles BT, config, save) to (BT, C + 1, P), sums over the tile's Gaussians of
      weight times feature, and lastly the sum of weights (the table's 1 as a feature), 0 in tiles without Gaussians;
      and a pytree of whatever `backward` wants to know of it, not looked at unless `save`.
    backward: (table, lists, d loss / d sums (BT, C + 1, P), its product with the sums, summed over channels (BT, P),
      the pytree, config) to moments, 8 + C numbers (or more: the rest is not looked at) per slot:
      the sums over the tile's pixels of d loss / d ln(alpha) times `monomials`, and of weight times the gradients of
      the C channels; 0 in slots that are never reached, anything in empty ones.
    scale: of the table's exponent, see above.
    transposed: whether table and moments have one row per number, (7 + C, J * K) and (8 + C, J * K), instead of one
      per slot, (J, K, 7 + C) and (J, K, 8 + C).
    backward_absolute: `backward` with the sums over pixels of the absolute values of d loss / d centre, x and y, in the
      two moments that `monomials` leaves 0; None if the implementation has no absolute gradients.
    sum_slots: (numbers per slot (S, M), Gaussian of each slot (S,), G) to sums per Gaussian (G, M), in an order that is
      the same in every run; slots of Gaussian G belong to none.
    apart: whether to keep steps from being fused, which XLA:CPU needs to be fast; see `fusion.apart`.
  """

  make_lists: Callable
  forward: Callable
  backward: Callable
  scale: float
  transposed: bool
  apart: bool
  backward_absolute: Callable | None = None
  sum_slots: Callable = lambda values, gaussians, num: jax.ops.segment_sum(values, gaussians, num + 1)[:-1]


def composite_with(
    walk: Walk,
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
  """`reference.composite` by way of tiles' lists and a walk through them."""
  if means2d_abs is not None and walk.backward_absolute is None:
    raise ValueError("this implementation has no absolute gradients: means2d_abs_offset must be None")
  batch, num, channels = features.shape
  if batch == 0 or num == 0:
    none = jnp.zeros(batch, jnp.int32)
    image = jnp.broadcast_to(background[:, None, None], (batch, height, width, channels))
    return image, jnp.ones((batch, height, width), features.dtype), none, none
  always = projected.radii[0, 0] >= 0 if walk.apart else None
  fixed = jax.lax.stop_gradient(projected)
  fixed = apart(always, lambda: fixed)
  bin_frame = functools.partial(make_bins, width=width, height=height, config=config, capacity=capacity)
  bins = jax.vmap(lambda p: bin_frame(p, always))(fixed)
  lists = apart(always, lambda: walk.make_lists(bins, num, config))
  shapes = projected.means2d, means2d_abs, projected.conics, projected.opacities
  image, transmittance = _composite(*shapes, features, background, lists, walk, width, height, config)
  return image, transmittance, bins.intersections, bins.overflow


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8, 9, 10))
def _composite(
    means2d, means2d_abs, conics, opacities, features, background, lists, walk: Walk, width, height, config: Config
):
  given = means2d, means2d_abs, conics, opacities, features, background, lists, walk, width, height, config
  return _forward(*given, save=False)[0]


def _forward(
    means2d,
    means2d_abs,
    conics,
    opacities,
    features,
    background,
    lists,
    walk: Walk,
    width,
    height,
    config: Config,
    *,
    save: bool = True,
):
  """Image and transmittance, and what the backward pass reads again."""
  batch, _, channels = features.shape
  size = config.tile_size
  always = _always(walk, lists)
  means2d, conics, opacities, features = apart(always, lambda given=(means2d, conics, opacities, features): given)
  table = apart(always, lambda: _slot_table(means2d, conics, opacities, features, lists, walk, width, height, size))
  tiles, saved = walk.forward(table, lists, count_tiles(batch, width, height, size), config, save)
  summed, transmittance = tiles[:, :channels], 1 - tiles[:, channels]
  colored = summed + transmittance[:, None] * _per_tile(background, tiles)[..., None]
  image = untile(colored, batch, width, height, size)
  transmittance = untile(transmittance[:, None], batch, width, height, size)[..., 0]
  return (image, transmittance), (means2d, means2d_abs, conics, opacities, background, lists, table, tiles, saved)


def _backward(walk: Walk, width: int, height: int, config: Config, residuals, gradients):
  means2d, means2d_abs, conics, opacities, background, lists, table, tiles, saved = residuals
  absolute = means2d_abs is not None
  batch, num, _ = means2d.shape
  size, channels = config.tile_size, tiles.shape[1] - 1
  always = _always(walk, lists)
  # d loss / d pixel, tile by tile. Transmittance is 1 - sum of weights: one more channel, of colour 1.
  tiled = lambda: (tile(gradients[0], size), tile(gradients[1][..., None], size)[:, 0])
  grad_image, grad_transmittance = apart(always, tiled)
  behind = _per_tile(background, tiles)
  for c in range(channels):  # Not sums over an axis of 3: slow on XLA:CPU.
    grad_transmittance = grad_transmittance + behind[:, c, None] * grad_image[:, c]
  gradient = apart(always, lambda: jnp.concatenate([grad_image, -grad_transmittance[:, None]], axis=1))
  total = apart(always, lambda: sum(tiles[:, c] * gradient[:, c] for c in range(channels + 1)))
  walk_back = walk.backward_absolute if absolute else walk.backward
  moments = walk_back(table, lists, gradient, total, saved, config)
  if walk.transposed:
    moments = moments.T.reshape(*lists.gaussians.shape, -1)
  per_slot = lambda: _slot_gradients(
      moments, means2d, conics, opacities, channels, absolute, lists, walk, width, height, size
  )
  summed = walk.sum_slots(apart(always, per_slot), lists.gaussians.reshape(-1), batch * num)
  summed = summed.reshape(batch, num, -1)
  grad_background = jnp.sum(((1 - tiles[:, channels:]) * grad_image).reshape(batch, -1, channels, size**2), axis=(1, 3))
  grad_abs = summed[..., 6 + channels :] if absolute else None
  grad_features = summed[..., 6 : 6 + channels]
  parts = summed[..., :2], grad_abs, summed[..., 2:5], summed[..., 5], grad_features, grad_background
  return *apart(always, lambda: parts), None


_composite.defvjp(_forward, _backward)


def _always(walk: Walk, lists):
  """True, and XLA does not know; see `fusion.apart`."""
  return lists.tiles[0] < jnp.uint32(2**31) if walk.apart else None


def _per_tile(per_frame: Float[Array, "B C"], tiles: Float[Array, "BT C1 P"]) -> Float[Array, "BT C"]:
  return jnp.repeat(per_frame, tiles.shape[0] // per_frame.shape[0], axis=0)


def _slot_table(means2d, conics, opacities, features, lists, walk: Walk, width, height, size):
  """Per slot what the pixel loops read; see `Walk`."""
  a, b, c = conics[..., 0], conics[..., 1], conics[..., 2]
  l_xx = jnp.sqrt(a * (walk.scale / 2))
  l_xy = b / a * l_xx
  l_yy = jnp.sqrt(jnp.maximum((c - b * b / a) * (walk.scale / 2), 0))
  log_opacity = jnp.log(jnp.maximum(opacities, 1e-30)) * walk.scale
  shape = columns(l_xx, l_xy, l_yy, log_opacity, means2d[..., 0], means2d[..., 1])
  per_gaussian = jnp.concatenate([shape, features], axis=-1).reshape(-1, 6 + features.shape[-1])
  empty = jnp.zeros_like(per_gaussian[:1]).at[0, 3].set(-800 * walk.scale)  # Alpha of empty slots is 0.
  always = _always(walk, lists)
  per_gaussian = apart(always, lambda: jnp.concatenate([per_gaussian, empty]))
  rows = apart(always, lambda: per_gaussian[lists.gaussians])
  x, y = tile_centres(lists.tiles, width, height, size)
  dx, dy = x[:, None] - rows[..., 4], y[:, None] - rows[..., 5]
  u = rows[..., 0] * dx + rows[..., 1] * dy
  v = rows[..., 2] * dy
  index = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 2)
  pick = lambda i, value, rest: jnp.where(index == i, value[..., None], rest)
  swapped = pick(2, u, pick(3, rows[..., 2], pick(4, v, pick(5, rows[..., 3], rows))))
  table = jnp.pad(swapped, ((0, 0), (0, 0), (0, 1)), constant_values=1)
  return table.reshape(-1, table.shape[-1]).T if walk.transposed else table


def _slot_gradients(moments, means2d, conics, opacities, channels, absolute, lists, walk: Walk, width, height, size):
  """Moments about the tile's centre to gradients of mean, conic, opacity, features and, if asked for, absolute mean.

  With q = d loss / d alpha * alpha and d = pixel - mean: ln alpha = ln opacity - d^T conic d / 2.
  """
  x, y = tile_centres(lists.tiles, width, height, size)
  per_gaussian = jnp.concatenate([means2d, conics, opacities[..., None]], axis=-1).reshape(-1, 6)
  always = _always(walk, lists)
  per_gaussian = apart(always, lambda: jnp.concatenate([per_gaussian, jnp.ones_like(per_gaussian[:1])]))
  rows = apart(always, lambda: per_gaussian[lists.gaussians])
  mx, my = rows[..., 0] - x[:, None], rows[..., 1] - y[:, None]  # The mean, relative to the tile's centre.
  q, qx, qy, qxx, qxy, qyy = (moments[..., i] for i in range(6))
  dx, dy = qx - mx * q, qy - my * q
  dxx, dxy, dyy = qxx - mx * (qx + dx), qxy - mx * qy - my * dx, qyy - my * (qy + dy)
  a, b, c = rows[..., 2], rows[..., 3], rows[..., 4]
  opacity = jnp.maximum(rows[..., 5], 1e-30)
  shape = columns(a * dx + b * dy, b * dx + c * dy, -0.5 * dxx, -dxy, -0.5 * dyy, q / opacity)
  rest = [moments[..., 8 : 8 + channels]] + [moments[..., 6:8]] * absolute
  return jnp.concatenate([shape, *rest], axis=-1).reshape(-1, 6 + channels + 2 * absolute)
