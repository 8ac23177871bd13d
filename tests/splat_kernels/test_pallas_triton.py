"""The NVIDIA kernels, interpreted: the shared contract, dynamic range, many channels, and the vectors that a GPU gets."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from layered_scene import CONFIG, gradients, layers, loss, worst_error

from splat_kernels import Config, implementations, pallas_triton
from splat_kernels.binning import Bins
from splat_kernels.pallas_mosaic_gpu import PallasMosaicGpu
from splat_kernels.pallas_triton import CHUNK, PLAIN, PallasTriton
from splat_kernels.testing import CASES, RasterizerContract, draw_and_differentiate, reference_of


class TestPallasTriton(RasterizerContract):
  implementation = "pallas_triton"


def test_gradients_behind_something_bright():
  # The bright ones are in the first chunk and in the second of three, so that the sums within a chunk and those over
  # chunks both have to keep what is faint behind them.
  arrays = layers(2 * CHUNK + 10, 1, opacity=0.03)
  arrays["features"][[0, CHUNK + 3]] = 1e5
  expected = gradients(arrays, "reference", jnp.float64)
  found = gradients(arrays, "pallas_triton", jnp.float32, interpret=True)
  assert worst_error(found, expected) < 1e-4


class AsCompiled(PallasTriton):
  """Interpreted, but with the vectors and the unrolling that a GPU gets: 64 x 4 pixels forward, 32 x 8 backward."""

  targets = []

  def interpreted(self, target, pixels):
    self.targets.append((target.lanes, pixels // target.lanes, target.unroll))
    return target._replace(ops=PLAIN)


def test_vectors_of_the_compiled_kernels():
  arrays = layers(12, 1, opacity=0.6)  # Some pixels are finished in the middle of a group.
  config = Config(max_intersections=64, transmittance_min=0.05, alpha_max=0.8, clamp_passes_gradient=True)
  expected = gradients(arrays, "reference", jnp.float64, config=config)
  found = gradients(arrays, AsCompiled(), jnp.float32, config=config, interpret=True)
  assert AsCompiled.targets[0] == (64, 4, 8) and (32, 8, 8) in AsCompiled.targets
  assert worst_error(found, expected) < 1e-4


def test_many_channels_with_absolute_gradients(monkeypatch):
  monkeypatch.setattr(pallas_triton, "CHANNELS", 2)  # In registers; the third and its like are read for every slot.
  arrays = layers(4 * CHUNK, 3, opacity=0.03, least_sigma=30)
  config = Config(max_intersections=2048, transmittance_min=0.15)  # All pixels see two chunks and none the last one.
  expected = gradients(arrays, "reference", jnp.float64, config=config)
  found = gradients(arrays, PallasTriton(), jnp.float32, config=config, interpret=True)
  assert worst_error(found, expected) < 1e-4
  for key, value in found.items():
    np.testing.assert_array_equal(value[3 * CHUNK :], 0, err_msg=key)


def test_more_channels_than_are_drawn_at_a_time(monkeypatch):
  monkeypatch.setattr(pallas_triton, "CHANNELS", 1)
  arrays = layers(9, 2, opacity=0.3)
  del arrays["means2d_abs_offset"]
  expected = gradients(arrays, "reference", jnp.float64)
  assert worst_error(gradients(arrays, PallasTriton(), jnp.float32, interpret=True), expected) < 1e-3


def test_sums_of_slots():
  rng = np.random.default_rng(0)
  # Gaussian 2 has more slots than are summed at a time, 3 has none; 6 is what empty slots belong to.
  gaussians = rng.permutation(np.repeat([0, 1, 2, 4, 5, 6], [1, 32, 70, 33, 5, 20]).astype(np.int32))
  values = rng.normal(size=(gaussians.size, 5)).astype(np.float32)
  values[gaussians == 6] = np.nan
  expected = np.zeros((7, 5))
  np.add.at(expected, gaussians, values)
  found = PallasTriton().sum_slots(jnp.asarray(values), jnp.asarray(gaussians), 6, interpret=True)
  np.testing.assert_allclose(found, expected[:6], rtol=1e-5, atol=1e-5)


def test_every_kernel_says_what_it_costs():
  arrays = {key: jnp.asarray(value, jnp.float32) for key, value in layers(5, 2, opacity=0.5).items()}
  differentiate = jax.grad(lambda arrays: loss(arrays, "pallas_triton", CONFIG, interpret=True))
  traced = jax.make_jaxpr(differentiate)(arrays)
  calls = {}

  def find(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name == "pallas_call":
        sizes = [v.aval.size * v.aval.dtype.itemsize for v in (*equation.invars, *equation.outvars)]
        calls[equation.params["name"]] = equation.params["cost_estimate"], sum(sizes)
      else:
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr") or hasattr(p, "eqns")):
          if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
            find(getattr(inner, "jaxpr", inner))

  find(traced.jaxpr)
  assert set(calls) == {"splat_forward", "splat_behind", "splat_backward", "splat_sum"}
  for name, (cost, size) in calls.items():
    assert cost.bytes_accessed == size and cost.flops > 0, name
    assert (cost.transcendentals > 0) == (name in ("splat_forward", "splat_backward")), name


def device(platform: str, capability: str, kind: str = "a card"):
  return types.SimpleNamespace(platform=platform, compute_capability=capability, device_kind=kind)


def test_devices_it_cannot_draw_on():
  triton, mosaic = PallasTriton(), PallasMosaicGpu()
  assert triton.unsupported(device("gpu", "8.0"), CONFIG) is None
  assert triton.unsupported(device("cuda", "10.0"), CONFIG) is None
  assert triton.unsupported(device("gpu", "7.5", "Tesla T4"), CONFIG) == "needs compute capability 8.0, Tesla T4 has 7.5"
  assert triton.unsupported(device("gpu", "gfx90a", "MI250"), CONFIG) == "needs an NVIDIA GPU, not MI250 (gfx90a)"
  assert triton.unsupported(device("rocm", "gfx90a"), CONFIG) == "needs an NVIDIA GPU, not a card (gfx90a)"
  assert triton.unsupported(device("cpu", ""), CONFIG) == "needs an NVIDIA GPU, not cpu"
  chosen = lambda device: implementations.choose(None, device, jnp.dtype("float32"), CONFIG).name
  assert chosen(device("gpu", "8.0")) == "pallas_triton" and chosen(device("gpu", "gfx90a")) == "xla"
  assert mosaic.unsupported(device("gpu", "9.0"), CONFIG) is None
  assert mosaic.unsupported(device("gpu", "8.9"), CONFIG) == "needs compute capability 9.0, a card has 8.9"
  assert mosaic.unsupported(device("gpu", "9.0"), Config(tile_size=8)) == "config.tile_size=8 must be 16 or 32"


def test_more_slots_than_it_counts_are_refused_in_one_line(unchecked_signatures):
  ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  bins = Bins(ints(3, 2**30), ints(3, 2**30), ints(3, 8161), ints(3), ints(3))
  with pytest.raises(ValueError, match=r"^capacity for 3221225472 .* pairs in 3 frames .*: draw fewer frames at a time$"):
    PallasTriton().make_lists(bins, 10, CONFIG)


@pytest.mark.skipif(not hasattr(plgpu, "InterpretGPUParams"), reason="needs jax 0.12 (Python 3.12) for its interpreter")
def test_mosaic_form_matches_reference():
  # The same kernels as above, called in another way; one case, as JAX's interpreter of Mosaic GPU steps through Python.
  expected, expected_gradients = reference_of("tiny")
  output, gradients = draw_and_differentiate("tiny", CASES["tiny"], "pallas_mosaic_gpu")
  np.testing.assert_allclose(output.image, expected.image, atol=1e-4)
  np.testing.assert_allclose(output.alpha, expected.alpha, atol=1e-4)
  for key, value in expected_gradients.items():
    assert np.linalg.norm(gradients[key] - value) < 1e-3 * np.linalg.norm(value), key
