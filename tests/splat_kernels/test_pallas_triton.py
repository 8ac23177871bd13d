"""The NVIDIA kernels, interpreted: the shared contract, and more channels than are drawn at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from splat_kernels.testing import ARRAYS, CASES, RasterizerContract, of, draw_and_differentiate, reference_of

from splat_kernels import Config, rasterize
from splat_kernels.pallas_triton import CHANNELS
from splat_kernels.specs import SPECS, make_scene


class TestPallasTriton(RasterizerContract):
  implementation = "pallas_triton"


def test_many_channels_are_drawn_in_groups():
  spec = dataclasses.replace(SPECS["tiny"], channels=CHANNELS + 3)
  scene = make_scene(spec)
  camera = scene["camera"]
  inputs = {key: jnp.asarray(scene[key]) for key in ARRAYS}
  inputs["background"] = jnp.linspace(0, 1, spec.channels)
  weights = np.random.default_rng(3).normal(size=(1, spec.height, spec.width, spec.channels)).astype(np.float32)

  def loss(inputs, implementation):
    output = rasterize(
        **inputs, camera=camera, config=Config(with_depth=False, max_intersections=1024), **of(implementation)
    )
    return jnp.sum(output.image * weights) + jnp.sum(output.alpha), output.image

  differentiate = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  (expected, expected_image), (gradients, image) = (differentiate(inputs, i) for i in ("reference", "pallas_triton"))
  np.testing.assert_allclose(image, expected_image, atol=1e-4)  # As in the contract; no pixel is in its band here.
  for key, value in expected.items():
    assert np.linalg.norm(gradients[key] - value) < 1e-3 * np.linalg.norm(value), key


@pytest.mark.skipif(not hasattr(plgpu, "InterpretGPUParams"), reason="needs jax 0.12 (Python 3.12) for its interpreter")
def test_mosaic_form_matches_reference():
  # The same kernels as above, called in another way; one case, as JAX's interpreter of Mosaic GPU steps through Python.
  expected, expected_gradients = reference_of("tiny")
  output, gradients = draw_and_differentiate("tiny", CASES["tiny"], "pallas_mosaic_gpu")
  np.testing.assert_allclose(output.image, expected.image, atol=1e-4)
  np.testing.assert_allclose(output.alpha, expected.alpha, atol=1e-4)
  for key, value in expected_gradients.items():
    assert np.linalg.norm(gradients[key] - value) < 1e-3 * np.linalg.norm(value), key
