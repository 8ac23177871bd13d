"""Pixels as square tiles: (B, H, W, C) images to (BT, C, P) tiles and back; tiles are counted through all frames.

`BT` is frames times tiles of a frame, row major: frame * T + tile. `P` is tile_size^2 pixels, row major in the tile.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, UInt


def tile_grid(width: int, height: int, tile_size: int) -> tuple[int, int]:
  """Columns and rows of tiles that cover the image."""
  return -(-width // tile_size), -(-height // tile_size)


def inria_spans(
    centres, radii, width: int, height: int, tile_size: int
) -> list[tuple[Float[Array, "N"], Float[Array, "N"]]]:
  """First, and one past the last, of the columns, then of the rows of tiles that INRIA's code lists for a square.

  It is getRect of diff-gaussian-rasterization, in which pixel centres are whole numbers. The square's last column and
  row of pixels do not count.

  Args:
    centres: x and y, pixels, the first pixel's centre at 0.5.
    radii: half width and half height, whole pixels.
    width: of the image, pixels.
    height: of the image, pixels.
    tile_size: pixels.
  """
  spans = []
  for centre, radius, count in zip(centres, radii, tile_grid(width, height, tile_size)):
    first = jnp.floor((centre - 0.5 - radius) / tile_size)
    end = jnp.floor((centre - 0.5 + radius + (tile_size - 1)) / tile_size)
    spans.append((jnp.clip(first, 0, count), jnp.clip(end, 0, count)))
  return spans


def count_tiles(batch: int, width: int, height: int, tile_size: int) -> int:
  """Tiles of all frames."""
  columns, rows = tile_grid(width, height, tile_size)
  return batch * columns * rows


def pixel_offsets(tile_size: int) -> tuple[np.ndarray, np.ndarray]:
  """x and y of the pixel centres relative to the tile's centre, pixels: (P,) each."""
  offsets = np.arange(tile_size, dtype=np.float32) + 0.5 - tile_size / 2
  y, x = (g.reshape(-1) for g in np.meshgrid(offsets, offsets, indexing="ij"))
  return x, y


def monomials(tile_size: int) -> np.ndarray:
  """1, x, y, x^2, xy, y^2, 0, 0 at the pixel centres relative to the tile's centre: (P, 8)."""
  x, y = pixel_offsets(tile_size)
  return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y, 0 * x, 0 * x], axis=-1)


def tile_centres(
    tiles: Int[Array, "*s"] | UInt[Array, "*s"], width: int, height: int, tile_size: int
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
  """Pixel coordinates x and y of the centres of tiles."""
  columns, rows = tile_grid(width, height, tile_size)
  within = tiles.astype(jnp.int32) % (columns * rows)
  return (within % columns + 0.5) * tile_size, (within // columns + 0.5) * tile_size


def untile(tiles: Num[Array, "BT C P"], batch: int, width: int, height: int, size: int) -> Num[Array, "B H W C"]:
  """Images from tiles; what lies outside the image is cut off."""
  columns, rows = tile_grid(width, height, size)
  image = tiles.reshape(batch, rows, columns, -1, size, size).transpose(0, 1, 4, 2, 5, 3)
  return image.reshape(batch, rows * size, columns * size, -1)[:, :height, :width]


def tile(image: Float[Array, "B H W C"], size: int) -> Float[Array, "BT C P"]:
  """Tiles from images, filled up with zeros."""
  batch, height, width, channels = image.shape
  columns, rows = tile_grid(width, height, size)
  padded = jnp.pad(image, ((0, 0), (0, rows * size - height), (0, columns * size - width), (0, 0)))
  tiles = padded.reshape(batch, rows, size, columns, size, channels).transpose(0, 1, 3, 5, 2, 4)
  return tiles.reshape(batch * rows * columns, channels, size * size)
