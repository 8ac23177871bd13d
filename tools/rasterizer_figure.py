"""Draws docs/images/rasterizer.png, the algorithm on a scene of six Gaussians: python tools/rasterizer_figure.py

The tiles, the lists, the image and the weights are the library's own results for that scene.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from splat_kernels import Camera, Config, project, rasterize  # noqa: E402
from splat_kernels.binning import depth_order, make_bins, tile_box  # noqa: E402

WIDTH, HEIGHT, TILE = 96, 80, 16
CONFIG = Config(tile_size=TILE, max_intersections=256)
CAMERA = Camera(jnp.eye(4), jnp.array([[80.0, 0, 48], [0, 80, 40], [0, 0, 1]]), WIDTH, HEIGHT)
NAMES = "ABCDEF"
COLORS = np.array([[214, 69, 65], [244, 179, 80], [63, 145, 82], [58, 110, 190], [142, 92, 170], [64, 160, 170]]) / 255
# x, y, z; scales; angle about the axis of view. In order of depth.
PLACES = np.array([
    [-0.20, -0.12, 1.0], [0.12, 0.10, 1.2], [-0.05, 0.26, 1.4],
    [0.36, -0.22, 1.6], [-0.55, 0.30, 1.8], [0.05, -0.1, 2.2],
])
SCALES = np.array([
    [0.045, 0.05, 0.04], [0.14, 0.018, 0.02], [0.06, 0.03, 0.03],
    [0.05, 0.08, 0.05], [0.06, 0.06, 0.06], [0.16, 0.1, 0.1],
])
ANGLES = np.array([0.0, -0.75, 0.2, 0.0, 0.0, 0.1])
OPACITIES = np.array([0.75, 0.9, 0.85, 0.8, 0.7, 0.95])
PIXEL = (67, 36)  # The one whose weights are shown.

INK, PALE = (40, 40, 40), (190, 190, 190)
font = lambda size: ImageFont.load_default(size)


def scene() -> dict:
  """Arguments of `rasterize`, one frame."""
  quats = np.stack([np.cos(ANGLES / 2), 0 * ANGLES, 0 * ANGLES, np.sin(ANGLES / 2)], axis=-1)
  arrays = dict(means=PLACES, quats=quats, scales=SCALES, opacities=OPACITIES)
  return {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}


def rgb(color, paleness=0.0):
  return tuple(int(255 * (c * (1 - paleness) + paleness)) for c in color)


def draw_grid(draw, left, top, zoom):
  for column in range(WIDTH // TILE + 1):
    x = left + column * TILE * zoom
    draw.line([x, top, x, top + HEIGHT * zoom], PALE, 2)
  for row in range(HEIGHT // TILE + 1):
    y = top + row * TILE * zoom
    draw.line([left, y, left + WIDTH * zoom, y], PALE, 2)


def draw_projection(draw, projected, tiles_of, left, top, zoom):
  """Panel 1: ellipses on which alpha is 1/255, the tiles they touch, and the box of the thin one."""
  thin = 1
  for tile in tiles_of[thin]:
    row, column = divmod(tile, WIDTH // TILE)
    x, y = left + column * TILE * zoom, top + row * TILE * zoom
    draw.rectangle([x, y, x + TILE * zoom, y + TILE * zoom], rgb(COLORS[thin], 0.8))
  draw_grid(draw, left, top, zoom)
  for i, name in enumerate(NAMES):
    a, b, c = np.asarray(projected.conics[i], np.float64)
    level = 2 * np.log(float(projected.opacities[i]) * 255)
    halves = np.linalg.cholesky(np.linalg.inv([[a, b], [b, c]])) * np.sqrt(level)
    turn = np.linspace(0, 2 * np.pi, 100)
    points = np.asarray(projected.means2d[i]) + np.stack([np.cos(turn), np.sin(turn)], -1) @ halves.T
    inside = [(left + zoom * min(max(x, 0), WIDTH), top + zoom * min(max(y, 0), HEIGHT)) for x, y in points]
    draw.line(inside + inside[:1], rgb(COLORS[i]), 5)
    x, y = np.asarray(projected.means2d[i]) * zoom
    draw.text((left + x, top + y), name, rgb(COLORS[i], -0.2), font(30), anchor="mm")
  centre, extent = np.asarray(projected.means2d[thin]), np.asarray(projected.extents[thin])
  corners = np.clip([centre - extent, centre + extent], 0, [WIDTH, HEIGHT]) * zoom + [left, top]
  draw.rectangle([*corners[0], *corners[1]], outline=rgb(COLORS[thin]), width=2)


def draw_lists(draw, lists, left, top):
  """Panel 2: for each tile its slots, near to far."""
  step, shown = 31, [tile for tile, slots in enumerate(lists) if slots]
  half = -(-len(shown) // 2)
  for place, tile in enumerate(shown):
    x, y = left + (place // half) * 225, top + (place % half) * step
    draw.text((x + 44, y + 14), str(tile), INK, font(20), anchor="rm")
    for k, i in enumerate(lists[tile]):
      box = [x + 54 + 30 * k, y + 1, x + 54 + 30 * k + 27, y + 28]
      draw.rectangle(box, rgb(COLORS[i]))
      draw.text((box[0] + 14, y + 14), NAMES[i], "white", font(19), anchor="mm")


def draw_weights(draw, weights, left, top, width):
  """Panel 3, below: one pixel's walk, as shares of 1."""
  x = left
  for name, color, weight in weights:
    end = x + width * weight
    draw.rectangle([x, top, end, top + 34], color)
    if weight > 0.05:
      draw.text(((x + end) / 2, top + 17), name, "white" if name != "T" else INK, font(20), anchor="mm")
    x = end
  draw.rectangle([left, top, left + width, top + 34], outline=INK, width=1)


def main() -> None:
  arrays = scene()
  projected = project(**arrays, camera=CAMERA, config=CONFIG)
  bins = make_bins(projected, width=WIDTH, height=HEIGHT, config=CONFIG, capacity=256)
  assert list(np.asarray(depth_order(projected))) == list(range(len(NAMES)))
  starts, gaussians = np.asarray(bins.starts), np.asarray(bins.gaussians)
  lists = [list(gaussians[a:b]) for a, b in zip(starts[:-1], starts[1:])]
  tiles_of = [[tile for tile, slots in enumerate(lists) if i in slots] for i in range(len(NAMES))]
  draw_one = lambda colors: rasterize(**arrays, colors=colors, camera=CAMERA, background=jnp.ones(3), config=CONFIG)
  image = np.asarray(draw_one(jnp.asarray(COLORS, jnp.float32)).image)
  # d pixel / d colour is the weight.
  weigh = jax.grad(lambda colors: draw_one(colors).image[PIXEL[1], PIXEL[0], 0])
  weights = np.asarray(weigh(jnp.asarray(COLORS, jnp.float32)))[:, 0]

  canvas = Image.new("RGB", (1720, 740), "white")
  draw = ImageDraw.Draw(canvas)
  zoom, top, lefts = 5.4, 92, (24, 580, 1140)
  for left, title, subtitle in zip(
      lefts,
      ("1  Project", "2  Bin", "3  Composite"),
      ("contours of alpha = 1/255; B touches the shaded tiles", "tile: its slots, near to far", "tiles front to back"),
  ):
    draw.text((left, 18), title, INK, font(34))
    draw.text((left, 60), subtitle, INK, font(20))
  draw_projection(draw, projected, tiles_of, lefts[0], top, zoom)
  draw_lists(draw, lists, lefts[1], top)
  x0, y0, x1, y1 = np.asarray(tile_box(projected, WIDTH, HEIGHT, TILE))[1]
  notes = (
      "a slot's sort key is one 32-bit number:",
      "tile, then place in depth order",
      "",
      f"B's box covers {(x1 - x0) * (y1 - y0)} tiles, B itself {len(tiles_of[1])}:",
      "the others take no slot",
  )
  for k, note in enumerate(notes):
    draw.text((lefts[1] + 20, 345 + 28 * k), note, INK, font(20))
  picture = Image.fromarray((255 * np.clip(image, 0, 1)).astype(np.uint8))
  canvas.paste(picture.resize((int(WIDTH * zoom), int(HEIGHT * zoom)), Image.NEAREST), (lefts[2], top))
  draw_grid(draw, lefts[2], top, zoom)
  x, y = lefts[2] + PIXEL[0] * zoom, top + PIXEL[1] * zoom
  draw.rectangle([x, y, x + zoom, y + zoom], outline=INK, width=2)
  bottom = top + HEIGHT * zoom + 22
  draw.line([x + zoom / 2, y + zoom, x + zoom / 2, bottom], INK, 2)
  named = [(name, rgb(color), weight) for name, color, weight in zip(NAMES, COLORS, weights) if weight > 0]
  draw_weights(draw, [*named, ("T", (255, 255, 255), 1 - weights.sum())], lefts[2], bottom, WIDTH * zoom)
  draw.text(
      (lefts[2], bottom + 42), "a pixel's weights: alpha x transmittance; T is left for the background", INK, font(18)
  )
  lines = (
      "4  Backward: the same walk from the last slot to the first. What lies behind a slot is summed from the back.",
      "Per slot and tile: sums of d loss / d ln(alpha) times 1, x, y, x^2, xy, y^2, and of weight times d loss / d colour,",
      "written to the slot's own row; the rows of a Gaussian are added up by a segment sum.",
  )
  for k, line in enumerate(lines):
    draw.text((lefts[0], 640 + 30 * k), line, INK, font(24 if k == 0 else 21))
  canvas.save(ROOT / "docs" / "images" / "rasterizer.png", optimize=True)


if __name__ == "__main__":
  main()
