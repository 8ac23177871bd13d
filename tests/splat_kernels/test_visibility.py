"""Which Gaussians a pixel sees, and depth modes, against a loop over all of them in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splat_kernels import Config, Projected, contributors, project, rasterize
from splat_kernels.specs import SPECS, make_scene
from splat_kernels.testing import ARRAYS

CONFIG = Config(tile_size=8, alpha_max=0.9, max_intersections=4096)
GEOMETRY = ("means", "quats", "scales", "opacities")


@pytest.fixture(scope="module")
def scene() -> dict:
  scene = make_scene(dataclasses.replace(SPECS["dense"], num=150, batch=2))
  return {key: jnp.asarray(scene[key]) for key in ARRAYS} | {"camera": scene["camera"]}


@pytest.fixture(scope="module")
def projected(scene) -> Projected:
  return project(**{key: scene[key] for key in GEOMETRY}, camera=scene["camera"], config=CONFIG)


def look(p: Projected, frame: int, x: int, y: int) -> tuple[int, int, int, int, float, float]:
  """Count, first, median and last Gaussian of a pixel; sum of w z; sum of w."""
  p = jax.tree.map(lambda a: np.asarray(a[frame], np.float64), p)
  transmittance, seen, median, accumulated = 1.0, [], -1, 0.0
  for i in np.argsort(p.depths, kind="stable"):
    dx, dy = x + 0.5 - p.means2d[i, 0], y + 0.5 - p.means2d[i, 1]
    a, b, c = p.conics[i]
    alpha = min(CONFIG.alpha_max, p.opacities[i] * np.exp(-0.5 * (a * dx * dx + 2 * b * dx * dy + c * dy * dy)))
    if p.radii[i] == 0 or alpha < CONFIG.alpha_min:
      continue
    if transmittance * (1 - alpha) <= CONFIG.transmittance_min:
      break
    accumulated += transmittance * alpha * p.depths[i]
    if transmittance > 0.5 >= transmittance * (1 - alpha):
      median = i
    transmittance *= 1 - alpha
    seen.append(i)
  first, last = (seen[0], seen[-1]) if seen else (-1, -1)
  return len(seen), first, median, last, accumulated, 1 - transmittance


PIXELS = [(frame, x, y) for frame in (0, 1) for x in range(0, 32, 6) for y in range(0, 32, 5)]


def test_contributors(projected):
  found = contributors(projected, width=32, height=32, config=CONFIG)
  for frame, x, y in PIXELS:
    expected = look(projected, frame, x, y)[:4]
    assert tuple(int(a[frame, y, x]) for a in (found.counts, found.first, found.median, found.last)) == expected
  assert found.counts.max() > 5 and found.counts.min() == 0 and found.overflow.max() == 0


def test_contributors_under_a_mask_and_a_full_list(projected):
  mask = np.zeros((4, 4), bool)
  mask[1, 2] = True
  found = contributors(projected, width=32, height=32, config=CONFIG, tile_mask=mask)
  whole = contributors(projected, width=32, height=32, config=CONFIG)
  np.testing.assert_array_equal(found.last[:, 8:16, 16:24], whole.last[:, 8:16, 16:24])
  assert found.counts.sum() == whole.counts[:, 8:16, 16:24].sum() > 0
  small = dataclasses.replace(CONFIG, max_intersections=16)
  cut = jax.jit(lambda p: contributors(p, width=32, height=32, config=small))(projected)
  assert np.all(cut.overflow == cut.intersections - 16) and cut.counts.sum() < whole.counts.sum()


def test_depth_modes(scene, projected):
  draw = lambda mode: rasterize(**scene, config=dataclasses.replace(CONFIG, depth_mode=mode)).depth
  accumulated, expected, median = (draw(mode) for mode in ("accumulated", "expected", "median"))
  for frame, x, y in PIXELS:
    *_, index, _, weighted, alpha = look(projected, frame, x, y)
    np.testing.assert_allclose(accumulated[frame, y, x], weighted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(expected[frame, y, x], weighted / alpha if alpha else 0, rtol=1e-4)
    depth = 0 if index < 0 else projected.depths[frame, index]
    assert median[frame, y, x] == depth


def test_the_median_depth_moves_with_its_gaussian(scene):
  config = dataclasses.replace(CONFIG, depth_mode="median")
  camera = scene["camera"]
  total = lambda means: jnp.sum(rasterize(**{**scene, "means": means}, config=config).depth)
  gradient = jax.grad(total)(scene["means"])
  found = contributors(
      project(**{key: scene[key] for key in GEOMETRY}, camera=camera, config=config), width=32, height=32, config=config
  )
  pixels = [np.bincount(found.median[i][found.median[i] >= 0], minlength=150) for i in range(2)]
  np.testing.assert_allclose(gradient[..., 2], np.stack(pixels), atol=1e-5)  # The camera looks along the world's z.
  np.testing.assert_allclose(gradient[..., :2], 0, atol=1e-5)
