"""The TPU kernels, interpreted: the shared contract, and their memory traffic as a TPU would do it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # Where the verdict about races is to be had.
from jax.experimental.pallas import tpu as pltpu

from splat_kernels import Config, Projected, composite, pallas_mosaic_tpu, xla
from splat_kernels.testing import RasterizerContract
from splat_kernels.tiles import pixel_offsets


class TestPallasMosaicTpu(RasterizerContract):
  implementation = "pallas_mosaic_tpu"


def projected_at(means, conics, depths, opacities) -> Projected:
  """One frame of Gaussians, each in the tile of 16 its centre is in, if that is far enough from the border."""
  num = len(means)
  arrays = means, conics, depths, opacities, np.full((num, 2), 4.5)
  arrays = (jnp.asarray(a[None], jnp.float32) for a in arrays)
  return Projected(*arrays, radii=jnp.full((1, num), 5), support="inria")  # Tiles by the extents alone.


def seven_tiles() -> tuple[Projected, jax.Array]:
  """Lists walked to the end, left early after one of three chunks, empty, of one Gaussian, of two chunks, and short."""
  rng = np.random.default_rng(0)
  counts, opacities = (300, 260, 0, 1, 140, 0, 30), (0.02, 0.95, 0, 0.5, 0.02, 0, 0.1)
  means = np.concatenate([rng.uniform(5, 11, size=(n, 2)) + (16 * i, 0) for i, n in enumerate(counts)])
  conics = np.tile([1 / 9, 0.0, 1 / 9], (len(means), 1))
  conics[300:560] /= 100  # Wider than the tile: every pixel is finished soon.
  projected = projected_at(means, conics, rng.uniform(1, 2, size=len(means)), np.repeat(opacities, counts))
  return projected, jnp.asarray(rng.uniform(size=(1, len(means), 2)), jnp.float32)


def draw_and_pull_back(draw, projected: Projected, features):
  """Image, and gradients of a linear function of it."""
  config = Config()
  weights = jnp.asarray(np.random.default_rng(1).normal(size=(16, 112, 2)), jnp.float32)

  def loss(means2d, conics, opacities, features):
    p = dataclasses.replace(projected, means2d=means2d, conics=conics, opacities=opacities)
    image, *_ = draw(p, features, width=112, height=16, config=config, capacity=740)
    return jnp.sum(image * weights), image

  arguments = projected.means2d, projected.conics, projected.opacities, features
  (_, image), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*arguments)
  return image, gradients


@pytest.mark.parametrize("copies", ["eager", "on_wait"])
def test_no_races_and_no_memory_read_before_it_is_written(copies, monkeypatch, capsys):
  # A TPU's memories start as NaN here, and what is read outside of them raises. Copies are done when they are started,
  # which shows what is read without waiting, or when they are waited for, which shows what is overwritten without
  # waiting. The rings are shorter than the lists of a core, the blocks of counts shorter than the four tiles of a core,
  # and the second core has a tile too few.
  monkeypatch.setattr(pallas_mosaic_tpu, "AHEAD", 3)
  monkeypatch.setattr(pallas_mosaic_tpu, "BEHIND", 2)
  monkeypatch.setattr(pallas_mosaic_tpu, "COUNTS", 2)
  params = pltpu.InterpretParams(detect_races=True, dma_execution_mode=copies)
  draw = functools.partial(pallas_mosaic_tpu.IMPLEMENTATION.composite, interpret=params)
  image, gradients = draw_and_pull_back(draw, *seven_tiles())
  jax.block_until_ready(gradients)
  assert interpret_pallas_call.races is not None and not interpret_pallas_call.races.races_found
  assert "non-zero count" not in capsys.readouterr().out  # Of a semaphore at exit: a copy that nobody waits for.
  expected, expected_gradients = draw_and_pull_back(xla.IMPLEMENTATION.composite, *seven_tiles())
  np.testing.assert_allclose(image, expected, atol=1e-5)  # Sums of hundreds of weights in another order.
  for value, other in zip(gradients, expected_gradients):
    assert np.linalg.norm(value - other) < 1e-4 * np.linalg.norm(other)


def composite_in_float64(means, conics, opacities, features, weights):
  """The image of one tile, and the gradients of the sum of weights times image by means, conics, opacities and features,
  with the sums over pixels of their absolute values.

  Gaussians front to back, in none of which a pixel is skipped, clamped or finished.
  """
  size = len(weights)
  y, x = np.mgrid[:size, :size] + 0.5
  dx, dy = x - means[:, 0, None, None], y - means[:, 1, None, None]
  a, b, c = conics.T[..., None, None]
  alphas = opacities[:, None, None] * np.exp(-0.5 * (a * dx**2 + 2 * b * dx * dy + c * dy**2))
  assert alphas.min() > 1 / 255 and alphas.max() < 0.99 and np.prod(1 - alphas, axis=0).min() > 1e-4
  ahead = np.concatenate([np.ones_like(alphas[:1]), np.cumprod(1 - alphas, axis=0)[:-1]])
  drawn = (ahead * alphas)[..., None] * features[:, None, None]
  behind = np.cumsum(drawn[::-1], axis=0)[::-1] - drawn  # float64 has digits enough.
  pulls = np.sum((drawn - behind * (alphas / (1 - alphas))[..., None]) * weights, axis=-1)  # By ln(alpha).
  by_pixel = {
      "means": np.stack([pulls * (a * dx + b * dy), pulls * (b * dx + c * dy)], axis=-1),
      "conics": -np.stack([pulls * dx**2 / 2, pulls * dx * dy, pulls * dy**2 / 2], axis=-1),
      "opacities": pulls / opacities[:, None, None],
      "features": (ahead * alphas)[..., None] * weights,
  }
  return drawn.sum(axis=0), [(np.sum(g, axis=(1, 2)), np.sum(abs(g), axis=(1, 2))) for g in by_pixel.values()]


@pytest.mark.parametrize("tile_size, num", [(16, 150), (32, 20)])
def test_a_tile_against_float64(tile_size, num):
  # Of every Gaussian by itself: behind a colour of 1e5, in the same chunk and in the next one, too. In tiles of 32 the
  # squares of coordinates need two bfloat16.
  rng = np.random.default_rng(0)
  means = rng.uniform(0.2 * tile_size, 0.8 * tile_size, size=(num, 2))
  conics = np.tile([3.0, 0.5, 2.0], (num, 1)) / tile_size**2
  opacities = rng.uniform(1, 2, size=num) * 3 / num
  weights = rng.normal(size=(tile_size, tile_size, 2))
  projected = projected_at(means, conics, np.linspace(1, 2, num), opacities)
  config = Config(tile_size=tile_size, alpha_min=1e-3)
  draw = functools.partial(
      pallas_mosaic_tpu.IMPLEMENTATION.composite,
      width=tile_size, height=tile_size, config=config, capacity=num, interpret=True,
  )

  def loss(means2d, conics, opacities, features):
    p = dataclasses.replace(projected, means2d=means2d, conics=conics, opacities=opacities)
    image = draw(p, features)[0][0]
    return jnp.sum(image * jnp.asarray(weights, jnp.float32)), image

  pull = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
  for front in (1.0, 1e5):
    features = rng.uniform(0.2, 1, size=(num, 2))
    features[0] = front
    given = projected.means2d, projected.conics, projected.opacities, jnp.asarray(features[None], jnp.float32)
    (_, image), gradients = pull(*given)
    expected, expected_gradients = composite_in_float64(*(np.asarray(a[0], np.float64) for a in given), weights)
    np.testing.assert_allclose(image, expected, rtol=1e-5)
    for gradient, (wanted, magnitude) in zip(gradients, expected_gradients):
      error = np.abs(gradient[0] - wanted) / magnitude
      assert error.max() < 1e-5, (front, error.argmax(), error.max())


@pytest.mark.parametrize("low_pass", [0.3, 0.003])
def test_exponents_of_needles(low_pass):
  # The kernels' polynomial in float32 against the Cholesky form in float64, in the tile that holds the centre.
  rng = np.random.default_rng(0)
  num = 4096
  angle, mean = rng.uniform(0, np.pi, num), rng.uniform(-9, 9, (num, 2))
  thin, long = 1 / low_pass, 1 / (low_pass + 10 * rng.exponential(2, num) ** 2)
  cos, sin = np.cos(angle), np.sin(angle)
  a, b, c = cos**2 * thin + sin**2 * long, cos * sin * (thin - long), sin**2 * thin + cos**2 * long
  l_xx = np.sqrt(a * pallas_mosaic_tpu.IMPLEMENTATION.scale / 2)
  l_xy, l_yy = b / a * l_xx, np.sqrt((c - b * b / a) * pallas_mosaic_tpu.IMPLEMENTATION.scale / 2)
  table = [l_xx, l_xy, -l_xx * mean[:, 0] - l_xy * mean[:, 1], l_yy, -l_yy * mean[:, 1], 0 * a, 1 + 0 * a]
  table = np.stack(table).astype(np.float32)
  l_xx, l_xy, u, l_yy, v, *_ = table.astype(np.float64)[..., None]
  x, y = pixel_offsets(16)
  expected = -((l_xx * x + l_xy * y + u) ** 2) - (l_yy * y + v) ** 2
  parameters = pallas_mosaic_tpu._pack_parameters(jnp.asarray(table))
  (side,) = pallas_mosaic_tpu._shape_side(16, parameters.shape[0])
  exponents = np.asarray(pallas_mosaic_tpu._dot(parameters, side, contract=(0, 0)), np.float64)
  error = np.abs(exponents - expected)[expected > np.log2(1 / 255)].max() / pallas_mosaic_tpu.IMPLEMENTATION.scale
  # Coefficients times monomials are as large as 8^2 / low_pass, and float32 rounds at 6e-8 of that, a few times.
  assert error < 1.2e-5 / low_pass


def test_frames_with_gaussians_backgrounds_and_several_gradients_of_their_own():
  rng = np.random.default_rng(0)
  frames, num = 3, 40
  uniform = lambda low, high, *shape: jnp.asarray(rng.uniform(low, high, size=(frames, *shape)), jnp.float32)
  means, opacities, features = uniform(2, 22, num, 2), uniform(0.2, 0.9, num), uniform(0, 1, num, 2)
  conics, depths = jnp.full((frames, num, 3), 0.1).at[..., 1].set(0.02), uniform(1, 2, num)
  given = means, conics, opacities, features, uniform(0, 1, 2)
  weights = jnp.asarray(rng.normal(size=(2, frames, 8, 24, 2)), jnp.float32)

  @functools.partial(jax.jit, static_argnums=0)
  def pull(implementation, *given):
    def draw(means, conics, opacities, features, background):
      extents, radii = jnp.full((frames, num, 2), 6.0), jnp.full((frames, num), 6)
      projected = Projected(means, conics, depths, opacities, extents, radii)
      options = {"config": Config(tile_size=8, max_intersections=400), "implementation": implementation}
      return composite(projected, features, background, width=24, height=8, interpret=True, **options).image

    image, pull_back = jax.vjp(draw, *given)
    return image, jax.vmap(pull_back)(weights)

  image, gradients = pull("pallas_mosaic_tpu", *given)
  expected, expected_gradients = pull("xla", *given)
  np.testing.assert_allclose(image, expected, atol=1e-5)
  for value, other in zip(gradients, expected_gradients):
    for i in np.ndindex(2, frames):
      assert np.linalg.norm(value[i] - other[i]) < 1e-4 * np.linalg.norm(other[i])


def test_limits_are_known_and_kept():
  # That this much compiles, tests_aot says.
  draw = pallas_mosaic_tpu.IMPLEMENTATION
  most = [draw.most_channels(Config(tile_size=size)) for size in (4, 8, 16, 32)]
  assert most == [839, 839, 599, 223] and draw.most_tiles(Config()) == 253_952
  projected, _ = seven_tiles()
  absolute = {"implementation": draw.name, "interpret": True, "means2d_abs_offset": jnp.zeros_like(projected.means2d)}
  shape = *projected.depths.shape, 224
  with pytest.raises(ValueError, match="^means2d_abs_offset with 224 channels .* of 32: pallas_mosaic_tpu .* 223$"):
    composite(projected, jnp.zeros(shape), width=112, height=16, config=Config(tile_size=32), **absolute)
