"""The TPU kernels, interpreted: the shared contract, and their memory traffic as a TPU would do it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # Where the verdict about races is to be had.
from jax.experimental.pallas import tpu as pltpu
from splat_kernels.testing import RasterizerContract

from splat_kernels import Config, Projected, pallas_mosaic_tpu, xla
from splat_kernels.tiles import pixel_offsets


class TestPallasMosaicTpu(RasterizerContract):
  implementation = "pallas_mosaic_tpu"


def four_tiles() -> tuple[Projected, jax.Array]:
  """Lists of 260, 300, 0 and 1 Gaussians: left early after one of three chunks, walked to the end, empty, almost."""
  rng = np.random.default_rng(0)
  counts, opacities = (260, 300, 0, 1), (0.95, 0.02, 0, 0.5)
  corners = np.array([[0, 0], [16, 0], [0, 16], [16, 16]])
  means = np.concatenate([rng.uniform(5, 11, size=(n, 2)) + corner for n, corner in zip(counts, corners)])
  num = len(means)
  conics = np.tile([1 / 9, 0.0, 1 / 9], (num, 1))
  conics[:260] /= 100  # Wider than the tile: every pixel is finished soon.
  projected = Projected(
      means2d=means,
      conics=conics,
      depths=rng.uniform(1, 2, size=num),
      opacities=np.repeat(opacities, counts),
      extents=np.full((num, 2), 4.5),
      radii=np.full(num, 5),
  )
  projected = jax.tree.map(lambda a: jnp.asarray(a[None], jnp.int32 if a.dtype == int else jnp.float32), projected)
  return projected, jnp.asarray(rng.uniform(size=(1, num, 2)), jnp.float32)


def draw_and_pull_back(draw, projected: Projected, features):
  """Image, and gradients of a linear function of it."""
  config = Config(support="square")  # Tiles by the extents alone.
  weights = jnp.asarray(np.random.default_rng(1).normal(size=(32, 32, 2)), jnp.float32)

  def loss(means2d, conics, opacities, features):
    p = Projected(means2d, conics, projected.depths, opacities, projected.extents, projected.radii)
    image, *_ = draw(p, features, width=32, height=32, config=config, capacity=600)
    return jnp.sum(image * weights), image

  arguments = projected.means2d, projected.conics, projected.opacities, features
  (_, image), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*arguments)
  return image, gradients


@pytest.mark.parametrize("copies", ["eager", "on_wait"])
def test_no_races_and_no_memory_read_before_it_is_written(copies):
  # A TPU's memories start as NaN here. Copies are done when they are started, which shows what is read without waiting,
  # or when they are waited for, which shows what is overwritten without waiting.
  params = pltpu.InterpretParams(detect_races=True, dma_execution_mode=copies)
  draw = functools.partial(pallas_mosaic_tpu.IMPLEMENTATION.composite, interpret=params)
  image, gradients = draw_and_pull_back(draw, *four_tiles())
  jax.block_until_ready(gradients)
  assert interpret_pallas_call.races is not None and not interpret_pallas_call.races.races_found
  expected, expected_gradients = draw_and_pull_back(xla.IMPLEMENTATION.composite, *four_tiles())
  np.testing.assert_allclose(image, expected, atol=1e-5)  # Sums of hundreds of weights in another order.
  for value, other in zip(gradients, expected_gradients):
    assert np.linalg.norm(value - other) < 1e-4 * np.linalg.norm(other)


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
