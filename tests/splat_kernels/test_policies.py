"""What is decided around an implementation: dtypes, devices, full lists, groups of channels and frames, backgrounds."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splat_kernels import (
    Config,
    Implementation,
    composite,
    compositing,
    implementations,
    project,
    rasterize,
    reference,
    register,
    xla,
)
from splat_kernels.platforms import needs_nvidia
from splat_kernels.specs import Spec, make_scene
from splat_kernels.testing import ARRAYS, of

SPEC = Spec(16, 20, 12, 20.0, 0.15, seed=3)
CONFIG = Config(tile_size=8, max_intersections=128)


@pytest.fixture
def scene() -> dict:
  return {key: jnp.asarray(value[0]) for key, value in make_scene(SPEC).items() if key in ARRAYS}


CAMERA = make_scene(SPEC)["camera"]
draw = functools.partial(rasterize, camera=CAMERA, config=CONFIG)


# ---- Dtypes ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("implementation", ["reference", "xla", "pallas_triton", "pallas_mosaic_tpu"])
def test_narrow_numbers_are_computed_in_float32_and_cast_back(scene, dtype, implementation):
  narrow = jax.tree.map(lambda a: a.astype(dtype), scene)
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(12, 20, 3)), jnp.float32)
  total = lambda arrays: (lambda output: (jnp.sum(output.image * weights), output))(draw(**arrays, **of(implementation)))
  gradients, output = jax.jit(jax.grad(total, has_aux=True))(narrow)
  assert {a.dtype.name for a in (output.image, output.alpha, output.depth)} == {dtype}
  assert {a.dtype.name for a in gradients.values()} == {dtype}

  wide = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)
  expected_gradients, expected = jax.jit(jax.grad(total, has_aux=True))(wide)
  digits = float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(output.image.astype(jnp.float32), expected.image, atol=digits)
  for key, value in expected_gradients.items():
    # Cotangents of the image are rounded on their way in, too.
    error = np.linalg.norm(gradients[key].astype(jnp.float32) - value) / np.linalg.norm(value)
    assert error < 2 * digits, (key, error)


def test_one_narrow_argument_gets_its_own_dtype_back(scene):
  gradients = jax.grad(lambda arrays: jnp.sum(draw(**arrays).image))({**scene, "colors": scene["colors"].astype(jnp.bfloat16)})
  assert gradients["colors"].dtype == jnp.bfloat16 and gradients["means"].dtype == jnp.float32


def test_float64_is_not_computed_in_less():
  with jax.enable_x64(True):
    exact = {key: jnp.asarray(value[0], jnp.float64) for key, value in make_scene(SPEC).items() if key in ARRAYS}
    camera = dataclasses.replace(
        CAMERA, **{key: jnp.asarray(getattr(CAMERA, key), jnp.float64) for key in ("world_to_camera", "intrinsics")}
    )
    images = {}
    for implementation in ("reference", "xla"):
      output = rasterize(**exact, camera=camera, config=CONFIG, implementation=implementation)
      assert output.image.dtype == jnp.float64
      images[implementation] = output.image
    np.testing.assert_allclose(images["xla"], images["reference"], atol=1e-12)
    with pytest.raises(ValueError, match="pallas_triton computes in float32, not float64"):
      rasterize(**exact, camera=camera, config=CONFIG, implementation="pallas_triton", interpret=True)


# ---- Devices ----


def device(platform: str, **attributes) -> types.SimpleNamespace:
  return types.SimpleNamespace(platform=platform, device_kind=f"a {platform}", **attributes)


HOPPER, AMPERE = device("gpu", compute_capability="9.0"), device("gpu", compute_capability="8.0")
TURING, AMD = device("gpu", compute_capability="7.5"), device("gpu", compute_capability="gfx90a")
TPU, CPU = device("tpu"), device("cpu")


@pytest.mark.parametrize(
    "at, name",
    [
        (HOPPER, "pallas_triton"),
        (AMPERE, "pallas_triton"),
        (TURING, "xla"),
        (AMD, "xla"),
        (TPU, "pallas_mosaic_tpu"),
        (CPU, "xla"),
    ],
)
def test_the_device_decides(at, name):
  assert implementations.choose(None, at, jnp.dtype("float32"), Config()).name == name


def test_float64_goes_to_what_computes_in_it():
  assert implementations.choose(None, HOPPER, jnp.dtype("float64"), Config()).name == "xla"


def test_preferences_are_taken_in_order_and_all_reasons_are_said():
  choose = lambda wanted, at, **options: implementations.choose(wanted, at, jnp.dtype("float32"), Config(), **options)
  assert choose(("pallas_mosaic_gpu", "pallas_triton", "xla"), AMPERE).name == "pallas_triton"
  assert choose(("pallas_mosaic_gpu", "pallas_triton", "xla"), HOPPER).name == "pallas_mosaic_gpu"
  assert choose(("pallas_mosaic_gpu", "pallas_triton", "xla"), CPU).name == "xla"
  assert choose("pallas_triton", CPU, interpret=True).name == "pallas_triton"
  with pytest.raises(ValueError) as e:
    choose(("pallas_triton", "pallas_mosaic_tpu"), TURING)
  for part in ("needs compute capability 8.0, a gpu has 7.5", "needs a TPU, not gpu", "interpret=True"):
    assert part in str(e.value)
  assert "\n" not in str(e.value)
  assert "(gfx90a)" in needs_nvidia(AMD, 8)


def test_arrays_say_where_they_are_drawn(scene, monkeypatch):
  # As on a workstation whose default backend is a GPU, with arrays on the CPU.
  monkeypatch.setattr(compositing, "current_device", lambda: HOPPER)
  at = jax.devices()[1]
  output = draw(**jax.device_put(scene, at), camera=jax.device_put(CAMERA, at))
  assert output.image.devices() == {at}
  with pytest.raises(ValueError, match="needs a TPU, not gpu"):
    draw(**scene, implementation="pallas_mosaic_tpu")


def test_an_implementation_from_outside(scene, monkeypatch):
  monkeypatch.setattr(implementations, "_PLACES", dict(implementations._PLACES))
  monkeypatch.setattr(implementations, "_DEFAULTS", dict(implementations._DEFAULTS))
  register("mine", "splat_kernels.xla:IMPLEMENTATION", default_on=("tpu",))
  assert implementations.choose(None, TPU, jnp.dtype("float32"), Config()).name == "xla"
  np.testing.assert_array_equal(draw(**scene, implementation="mine").image, draw(**scene, implementation="xla").image)
  assert isinstance(xla.IMPLEMENTATION, Implementation)
  np.testing.assert_array_equal(draw(**scene, implementation=xla.IMPLEMENTATION).image, draw(**scene).image)
  register("absent", "no_such_module:X")
  with pytest.raises(ValueError, match="implementation='absent' is not available here: No module named"):
    draw(**scene, implementation="absent")


# ---- Full lists ----


def test_eager_remembers_what_it_learnt(scene, monkeypatch):
  monkeypatch.setattr(compositing, "_enough", {})
  monkeypatch.setattr(compositing, "guess_capacity", lambda *_: 8)
  real, capacities = compositing._draw, []

  def draw_and_note(arrays, *, capacity, **static):
    capacities.append(capacity)
    return real(arrays, capacity=capacity, **static)

  monkeypatch.setattr(compositing, "_draw", draw_and_note)
  outputs = [rasterize(**scene, camera=CAMERA, config=Config(tile_size=4), implementation="xla") for _ in range(2)]
  needed = compositing.round_capacity(int(outputs[0].intersections))
  assert capacities == [8, needed, needed]  # The second frame begins with what was enough for the first.
  np.testing.assert_array_equal(outputs[0].image, outputs[1].image)
  assert outputs[0].overflow == 0 and np.all(np.isfinite(outputs[0].image))


def test_a_full_list_may_raise(scene):
  config = dataclasses.replace(CONFIG, max_intersections=4, on_overflow="error")
  with pytest.raises(Exception, match="Config.max_intersections has room for 4"):
    jax.block_until_ready(jax.jit(lambda arrays: rasterize(**arrays, camera=CAMERA, config=config).image)(scene))
    jax.effects_barrier()


def test_more_pairs_than_can_be_are_refused(monkeypatch):
  drawn = lambda capacity: types.SimpleNamespace(overflow=jnp.array([2**30 - 5]), intersections=jnp.array([2**30]))
  with pytest.raises(ValueError, match="1073741824 or more .* in one frame of 8 x 8"):
    compositing.growing(drawn, 1, 8, 8, Config())


# ---- Groups, backgrounds, cameras ----


def test_frames_and_channels_in_groups_are_all_at_once():
  scene = make_scene(dataclasses.replace(SPEC, batch=3, channels=4))
  arrays = {key: jnp.asarray(scene[key]) for key in ARRAYS}

  class Small(type(reference.IMPLEMENTATION)):  # Any will do; of this one, four programs compile in a moment.
    def most_channels(self, config, *, absolute=False):
      return 3  # Of 5 with depth.

    def most_tiles(self, config):
      return 13  # Two frames of 6.

  small = Small()
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12, 20, 4)), jnp.float32)
  total = lambda arrays, one: jnp.sum(weights * rasterize(**arrays, camera=CAMERA, config=CONFIG, implementation=one).image)
  (value, gradients), (expected, expected_gradients) = (
      jax.jit(jax.value_and_grad(total), static_argnums=1)(arrays, one) for one in (small, reference.IMPLEMENTATION)
  )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for key, value in expected_gradients.items():
    assert np.linalg.norm(gradients[key] - value) < 1e-5 * np.linalg.norm(value), key
  with pytest.raises(ValueError, match="64 x 12 pixels are 16 tiles of 8, reference draws at most 13"):
    rasterize(**arrays, camera=dataclasses.replace(CAMERA, width=64), config=CONFIG, implementation=small)


def test_a_background_per_pixel(scene):
  background = jnp.asarray(np.random.default_rng(0).uniform(size=(12, 20, 3)), jnp.float32)
  output = draw(**scene, background=background)
  black = draw(**scene)
  np.testing.assert_allclose(output.image, black.image + (1 - black.alpha)[..., None] * background, atol=1e-6)
  gradient = jax.grad(lambda b: jnp.sum(draw(**scene, background=b).image))(background)
  np.testing.assert_allclose(gradient, jnp.broadcast_to((1 - black.alpha)[..., None], (12, 20, 3)), atol=1e-6)


def test_each_frame_has_the_gradient_of_its_own_background():
  scene = make_scene(dataclasses.replace(SPEC, batch=3))
  arrays = {key: jnp.asarray(scene[key]) for key in ARRAYS}
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12, 20, 3)), jnp.float32)
  gradient = jax.grad(lambda b: jnp.sum(weights * draw(**arrays, background=b).image))(jnp.zeros((3, 3)))
  transmittance = 1 - draw(**arrays).alpha
  np.testing.assert_allclose(gradient, jnp.sum(transmittance[..., None] * weights, axis=(1, 2)), rtol=1e-4, atol=1e-4)


def test_a_camera_that_is_not_finite_is_said(scene):
  for field in ("world_to_camera", "intrinsics"):
    broken = dataclasses.replace(CAMERA, **{field: jnp.asarray(getattr(CAMERA, field)).at[0, 2].set(jnp.nan)})
    total = lambda arrays: (lambda output: (jnp.sum(output.image) + jnp.sum(output.depth), output))(
        rasterize(**arrays, camera=broken, config=CONFIG)
    )
    gradients, output = jax.grad(total, has_aux=True)(scene)
    assert output.nonfinite == 16 and not output.image.any()
    jax.tree.map(lambda a: np.testing.assert_array_equal(a, 0), gradients)


def test_the_middle_by_itself(scene):
  geometry = {key: scene[key] for key in ("means", "quats", "scales", "opacities")}
  projected = project(**geometry, camera=CAMERA, config=CONFIG)
  whole = rasterize(**scene, camera=CAMERA, config=dataclasses.replace(CONFIG, with_depth=False))
  middle = composite(projected, scene["colors"], width=20, height=12, config=CONFIG)
  np.testing.assert_array_equal(middle.image, whole.image)
  np.testing.assert_array_equal(middle.alpha, whole.alpha)
  # Twelve sets of features at once over one set of Gaussians.
  many = composite(projected, jnp.stack([scene["colors"] * k for k in range(12)]), width=20, height=12, config=CONFIG)
  np.testing.assert_allclose(many.image[3], 3 * whole.image, atol=1e-5)


@pytest.mark.usefixtures("unchecked_signatures")
@pytest.mark.parametrize(
    "given",
    [
        {"background": (1, 1, 1)},
        {"background": [0.5, 0.5, 0.5]},
        {"means": "list"},
        {"camera": dataclasses.replace(CAMERA, width=np.int64(20), height=np.int32(12))},
        {"camera": dataclasses.replace(CAMERA, intrinsics=np.asarray(CAMERA.intrinsics).tolist())},
    ],
    ids=str,
)
def test_lists_tuples_and_numpy_numbers_are_taken(scene, given):
  given = {"camera": CAMERA, **given}
  if given.get("means") == "list":
    given["means"] = np.asarray(scene["means"]).tolist()
  assert rasterize(**{**scene, **given}, config=CONFIG).image.shape == (12, 20, 3)


@pytest.mark.usefixtures("unchecked_signatures")
@pytest.mark.parametrize(
    "given, message",
    [
        ({"colors": np.ones((16, 3), np.uint8)}, "colors.dtype=uint8 must be floating"),
        ({"means": np.ones((16, 3), int)}, "means.dtype=int.* must be floating"),
        ({"camera": dataclasses.replace(CAMERA, width=20.5)}, "camera.width=20.5 must be a positive whole number"),
        ({"tile_mask": np.ones((3, 3), bool)}, r"tile_mask.shape=\(3, 3\) must be \(\*b, 2, 3\)"),
        ({"means": "all of them"}, "means='all of them' must be an array"),
    ],
    ids=str,
)
def test_what_cannot_be_taken_is_said_in_one_line(scene, given, message):
  with pytest.raises(ValueError, match=message) as e:
    rasterize(**{**scene, "camera": CAMERA, **given}, config=CONFIG)
  assert "\n" not in str(e.value)


def test_near_and_far_are_known_while_tracing(scene):
  with pytest.raises(ValueError, match="camera.near=.* must be a number that is known outside jit"):
    jax.jit(lambda near: draw(**scene, camera=dataclasses.replace(CAMERA, near=near)).image)(0.1)
