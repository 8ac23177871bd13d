"""Features of places in space: sampled from planes of texels, one for each pair of axes."""

import jax.numpy as jnp
from jaxtyping import Array, Float

# Pairs of axes of the planes: of x, y, z the numbers.
PLANES = ((0, 1), (0, 2), (1, 2))


def sample_plane(
    plane: Float[Array, "R S C"], points: Float[Array, "*n 2"], *, border: bool = True
) -> Float[Array, "*n C"]:
  """Bilinear samples of one plane; what PyTorch's `grid_sample` gives with aligned corners.

  Args:
    plane: texels by second and first coordinate.
    points: from −1, the centre of the first texel, to 1, that of the last.
    border: outside, whether the texels at the border go on, or there are zeros.
  """
  rows, columns, _ = plane.shape
  place = (points + 1) / 2 * jnp.array([columns - 1, rows - 1], points.dtype)
  if border:
    place = jnp.clip(place, 0, jnp.array([columns - 1, rows - 1], points.dtype))
  low = jnp.floor(place)
  share = place - low
  low = low.astype(jnp.int32)
  total = jnp.zeros((), plane.dtype)
  for right in (0, 1):
    for lower in (0, 1):
      x, y = low[..., 0] + right, low[..., 1] + lower
      weight = (share[..., 0] if right else 1 - share[..., 0]) * (share[..., 1] if lower else 1 - share[..., 1])
      inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
      texel = plane[jnp.clip(y, 0, rows - 1), jnp.clip(x, 0, columns - 1)]
      total = total + jnp.where(inside, weight, 0.0)[..., None] * texel
  return total
