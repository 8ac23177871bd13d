"""Dense compositing: every Gaussian at every pixel, in any floating dtype. The truth of every test.

Obviously right comes first: memory is N * H * W, and gradients are JAX's own.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from splat_kernels.binning import tile_box
from splat_kernels.implementations import Implementation
from splat_kernels.types import Config, Projected


class Reference(Implementation):
  """See `Implementation`; has no limits. Pairs are counted by boxes: at least what tile-based implementations need."""

  name = "reference"

  def composite(
      self,
      projected: Projected,
      features: Float[Array, "B N C"],
      *,
      width: int,
      height: int,
      config: Config,
      capacity: int,
      interpret: bool = False,
      tile_mask: Bool[Array, "B rows columns"] | None = None,
      means2d_abs: Float[Array, "B N 2"] | None = None,
  ) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W"], Int[Array, "B"], Int[Array, "B"]]:
    """See `Implementation.composite`. Differentiable in every mode and order, but for `means2d_abs`, which asks for one."""
    del capacity, interpret
    one = lambda p, f, m, a: _composite_frame(p, f, m, a, width, height, config)
    summed, transmittance, intersections = jax.vmap(one)(projected, features, tile_mask, means2d_abs)
    return summed, transmittance, intersections, jnp.zeros_like(intersections)


IMPLEMENTATION = Reference()


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _at_pixels(
    centres: Float[Array, "N"], absolute: Float[Array, "N"], height: int, width: int
) -> Float[Array, "N H W"]:
  """Centres repeated for every pixel; what pixels pull in is summed for `centres`, and its absolute for `absolute`."""
  del absolute
  return jnp.broadcast_to(centres[:, None, None], (len(centres), height, width))


_at_pixels.defvjp(
    lambda centres, absolute, height, width: (_at_pixels(centres, absolute, height, width), None),
    lambda height, width, _, pulls: (jnp.sum(pulls, axis=(1, 2)), jnp.sum(jnp.abs(pulls), axis=(1, 2))),
)


def _composite_frame(projected: Projected, features, tile_mask, means2d_abs, width: int, height: int, config: Config):
  visible = projected.radii > 0
  order = jnp.argsort(jnp.where(visible, projected.depths, jnp.inf), stable=True)  # Ties by Gaussian index.
  p = jax.tree.map(lambda a: a[order], projected)
  features, visible = features[order], visible[order]

  dtype = p.means2d.dtype
  y, x = jnp.mgrid[:height, :width].astype(dtype) + 0.5  # (H, W) pixel centres.
  centre_x, centre_y = (p.means2d[:, i, None, None] for i in range(2))
  if means2d_abs is not None:
    centre_x, centre_y = (_at_pixels(p.means2d[:, i], means2d_abs[order, i], height, width) for i in range(2))
  dx, dy = x - centre_x, y - centre_y  # (N, H, W)
  xx, xy, yy = (p.conics[:, i, None, None] for i in range(3))
  exponent = -0.5 * (xx * dx * dx + 2 * xy * dx * dy + yy * dy * dy)
  # The form is positive definite, so an exponent above 0 is rounding; others skip such pixels, which leaves pinholes.
  alpha = p.opacities[:, None, None] * jnp.exp(jnp.minimum(exponent, 0))
  clamped = jnp.minimum(alpha, config.alpha_max)
  if config.clamp_passes_gradient:
    clamped = alpha + jax.lax.stop_gradient(clamped - alpha)

  tiles = tile_box(p, width, height, config.tile_size)  # (N, 4): x0, y0, x1, y1, exclusive ends.
  tx, ty = x // config.tile_size, y // config.tile_size
  in_box = (tx >= tiles[:, 0, None, None]) & (tx < tiles[:, 2, None, None])
  in_box &= (ty >= tiles[:, 1, None, None]) & (ty < tiles[:, 3, None, None])
  drawn = visible[:, None, None] & in_box & (alpha >= config.alpha_min)
  if tile_mask is not None:
    drawn &= tile_mask[ty.astype(jnp.int32), tx.astype(jnp.int32)]
  clamped = jnp.where(drawn, clamped, 0)

  # Transmittance only falls, so "stop before the Gaussian that would bring it to the minimum" is a plain mask.
  behind = jnp.cumprod(1 - clamped, axis=0)
  clamped = jnp.where(behind > config.transmittance_min, clamped, 0)
  behind = jnp.cumprod(1 - clamped, axis=0)
  before = jnp.concatenate([jnp.ones_like(behind[:1]), behind])[:-1]
  weights = before * clamped
  summed = jnp.einsum("nhw,nc->hwc", weights, features, precision="highest")
  transmittance = jnp.concatenate([jnp.ones((1, height, width), dtype), behind])[-1]
  columns, rows = tiles[:, 2] - tiles[:, 0], tiles[:, 3] - tiles[:, 1]
  return summed, transmittance, jnp.sum(columns * rows)
