"""What every implementation of compositing has to fulfil: parity with `reference`, which has its own tests.

    class TestMine(splat_kernels.testing.RasterizerContract):
      implementation = "mine"

Errors are relative to what a float32 sum of that many numbers rounds to, Gaussian by Gaussian and pixel by pixel, as
a few wrong ones among hundreds vanish in a norm over all.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from splat_kernels import Camera, Config, RenderOutput, implementations, rasterize
from splat_kernels.specs import SPECS, make_scene

# Each spec under the constants that make it say something else than the others.
CASES = {
    "tiny": Config(),
    "batch": Config(tile_size=32),  # Three frames with gradients of their own, and the widest tiles.
    "odd_size": Config(tile_size=8, antialiased=True),
    "sh3": Config(support="inria", jacobian_limit="centred", clamp_passes_gradient=True, alpha_max=0.9),
    "dense": Config(with_depth=False),
    "large": Config(low_pass=0.0, jacobian_limit="none", transmittance_min=1e-2),
}
ARRAYS = ("means", "quats", "scales", "opacities", "colors")


def of(implementation: str) -> dict:
  """Arguments that choose an implementation, interpreted where its device is not."""
  interpret = implementations.load(implementation).unsupported(jax.devices()[0], Config()) is not None
  return {"implementation": implementation, "interpret": interpret}


def jax_scene(name: str) -> dict:
  scene = make_scene(SPECS[name])
  sh_degree = scene.pop("sh_degree")  # Stays a Python number.
  return jax.tree.map(jnp.asarray, scene) | {"sh_degree": sh_degree}


def draw_and_differentiate(name: str, config: Config, implementation: str) -> tuple[RenderOutput, dict]:
  """Output and gradients with respect to everything, of a random linear function of image, alpha and depth.

  The function is another one in every frame, and so is the background.
  """
  scene = jax_scene(name)
  rng = np.random.default_rng(7)
  spec = SPECS[name]
  channels = 3 if spec.sh_degree is not None else spec.channels
  weights = rng.normal(size=(spec.batch, spec.height, spec.width, channels + 2)).astype(np.float32)
  inputs = {key: scene[key] for key in ARRAYS}
  inputs["background"] = jnp.asarray(rng.uniform(size=(spec.batch, channels)), jnp.float32)
  inputs["means2d_offset"] = jnp.zeros((spec.batch, spec.num, 2))
  inputs["world_to_camera"] = scene["camera"].world_to_camera
  inputs["intrinsics"] = scene["camera"].intrinsics

  def loss(inputs):
    poses = {key: inputs[key] for key in ("world_to_camera", "intrinsics")}
    arrays = {key: value for key, value in inputs.items() if key not in poses}
    camera = dataclasses.replace(scene["camera"], **poses)
    output = rasterize(**arrays, camera=camera, sh_degree=spec.sh_degree, config=config, **of(implementation))
    total = jnp.sum(output.image * weights[..., :channels]) + jnp.sum(output.alpha * weights[..., channels])
    if config.with_depth:  # Divided by alpha: nearly discontinuous where alpha is, so with a small weight.
      total += 0.1 * jnp.sum(jnp.asarray(output.depth) * output.alpha * weights[..., channels + 1])
    return total, output

  gradients, output = jax.grad(loss, has_aux=True)(inputs)
  return output, gradients


def worst_error(value, expected, *, share: float = 0.0) -> float:
  """Largest error of a Gaussian's (a row's) gradient, relative to its size or, if larger, to 1 % of the median one's.

  Args:
    value: (*b, N, …), last dimension summed over.
    expected: the same.
    share: of all rows, that may be left out: those whose pixels lie within rounding of a cut-off.
  """
  rows = lambda a: np.linalg.norm(np.asarray(a, np.float64).reshape(-1, a.shape[-1] if a.ndim > 1 else 1), axis=1)
  sizes = rows(expected)
  floor = 0.01 * np.median(sizes[sizes > 0]) if np.any(sizes > 0) else 1.0
  errors = np.sort(rows(np.asarray(value, np.float64) - np.asarray(expected, np.float64)) / np.maximum(sizes, floor))
  return float(errors[len(errors) - 1 - int(share * len(errors))])


_REFERENCE = {}  # Drawn once for all implementations.


def reference_of(name: str) -> tuple[RenderOutput, dict]:
  if name not in _REFERENCE:
    _REFERENCE[name] = draw_and_differentiate(name, CASES[name], "reference")
  return _REFERENCE[name]


@functools.cache
def _offset_gradients(implementation: str) -> tuple[jax.Array, jax.Array]:
  """Of the centres, plain and absolute, frame by frame, for a random linear function of nine channels."""
  spec = dataclasses.replace(SPECS["tiny"], batch=2, channels=9, num=20)
  scene = make_scene(spec)
  weights = np.random.default_rng(3).normal(size=(2, spec.height, spec.width, 9)).astype(np.float32)
  arrays = {key: jnp.asarray(scene[key]) for key in ARRAYS}
  config = Config(with_depth=False, max_intersections=512)
  draw = lambda plain, absolute: rasterize(
      **arrays,
      camera=scene["camera"],
      means2d_offset=plain,
      means2d_abs_offset=absolute,
      config=config,
      **of(implementation),
  )
  loss = lambda plain, absolute: jnp.sum(weights * draw(plain, absolute).image)
  return jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.zeros((2, 20, 2)), jnp.zeros((2, 20, 2)))


@functools.cache
def _draw_degenerate(implementation: str):
  """Six Gaussians in an image of 13 x 9, compiled once."""
  pose = jnp.eye(4).at[2, 3].set(2.5)
  camera = Camera(pose, jnp.array([[12.0, 0, 6], [0, 12, 5], [0, 0, 1]]), 13, 9)
  config = Config(tile_size=4, max_intersections=128)

  def loss(arrays):
    output = rasterize(**arrays, camera=camera, config=config, **of(implementation))
    return jnp.sum(output.image) + jnp.sum(output.alpha) + jnp.sum(output.depth), output

  def draw(arrays):
    gradients, output = jax.grad(loss, has_aux=True)(arrays)
    return output, gradients

  return jax.jit(draw)


def _bright_front(implementation: str, dtype=jnp.float32) -> dict:
  """Gradients of twelve layers in one tile, the first of them 1e5 times as bright as the others."""
  num = 12
  rng = np.random.default_rng(0)
  means = np.concatenate([rng.uniform(-0.1, 0.1, (num, 2)), np.linspace(2, 3, num)[:, None]], axis=1)
  colors = rng.uniform(0.2, 1, (num, 1))
  colors[0] = 1e5
  weights = rng.normal(size=(16, 16, 1))
  arrays = {
      "means": means,
      "quats": np.tile([1.0, 0, 0, 0], (num, 1)),
      "scales": np.full((num, 3), 0.25),
      "opacities": np.full(num, 0.45),
      "colors": colors,
  }
  arrays = {key: jnp.asarray(value, dtype) for key, value in arrays.items()}
  camera = Camera(jnp.eye(4, dtype=dtype), jnp.asarray([[20, 0, 8], [0, 20, 8], [0, 0, 1]], dtype), 16, 16)
  config = Config(max_intersections=64, with_depth=False)
  draw = lambda arrays: rasterize(**arrays, camera=camera, config=config, **of(implementation)).image
  return jax.jit(jax.grad(lambda arrays: jnp.sum(jnp.asarray(weights, dtype) * draw(arrays))))(arrays)


@functools.cache
def _bright_front_in_float64() -> dict:
  with jax.enable_x64(True):
    return jax.tree.map(np.asarray, _bright_front("reference", jnp.float64))


class RasterizerContract:
  """Parity with `reference`, which has its own tests against other sources of truth."""

  implementation: str

  @pytest.mark.parametrize("name", CASES)
  def test_matches_reference(self, name):
    expected, expected_gradients = reference_of(name)
    output, gradients = draw_and_differentiate(name, CASES[name], self.implementation)

    # A pixel where some alpha lies within rounding of alpha_min, or a transmittance of its minimum, may take the other
    # branch: it changes by up to that alpha (1/255), or by what lay behind. All others agree to rounding.
    for key in ("image", "alpha"):
      difference = np.abs(np.asarray(getattr(output, key) - getattr(expected, key)))
      assert np.mean(difference > 1e-4) <= 1e-3, (key, difference.max())
      assert difference.max() < 5e-3 + CASES[name].transmittance_min, key
    if CASES[name].with_depth:
      seen = np.asarray(expected.alpha) > 0.01  # In fainter pixels the quotient is sensitive.
      np.testing.assert_allclose(np.asarray(output.depth)[seen], np.asarray(expected.depth)[seen], rtol=1e-3)
    np.testing.assert_array_equal(output.radii, expected.radii)
    assert np.all(np.asarray(output.intersections) <= np.asarray(expected.intersections))  # Reference counts boxes.
    np.testing.assert_array_equal(output.overflow, 0)

    for key, value in expected_gradients.items():
      # Of a pixel that took the other branch above the Gaussians it lies in know something, too: 1 % of them may.
      assert worst_error(gradients[key], value, share=0.01) < 3e-4, key
      assert np.linalg.norm(gradients[key] - value) < 3e-5 * np.linalg.norm(value), key

  def test_absolute_gradients_match_reference(self):
    for absolute, expected in zip(_offset_gradients(self.implementation), _offset_gradients("reference")):
      assert worst_error(absolute, expected) < 1e-3

  def test_what_lies_behind_something_bright_keeps_its_gradients(self):
    expected = _bright_front_in_float64()
    for key, value in _bright_front(self.implementation).items():
      errors = np.abs(np.asarray(value, np.float64) - expected[key]).reshape(12, -1).max(axis=1)
      sizes = np.abs(expected[key]).reshape(12, -1).max(axis=1)
      if key != "quats":  # Of round Gaussians: 0.
        assert np.all(errors < 1e-4 * sizes), (key, errors / sizes)

  def test_gaussians_at_one_depth_are_drawn_in_their_order(self):
    camera = Camera(jnp.eye(4), jnp.array([[12.0, 0, 6], [0, 12, 5], [0, 0, 1]]), 13, 9)
    colors = jnp.array([[1.0, 0], [0, 1]])
    both = jnp.zeros((2, 3)).at[:, 2].set(2)
    output = rasterize(
        both, jnp.ones((2, 4)), jnp.full((2, 3), 0.3), jnp.array([0.5, 0.5]), colors, camera, **of(self.implementation)
    )
    at_centre = output.image[5, 6]
    assert at_centre[0] > 1.5 * at_centre[1]

  def test_a_tile_mask_draws_what_it_shows_and_nothing_else(self):
    scene = jax_scene("dense")  # Four tiles.
    mask = jnp.array([[False, True], [True, False]])
    seen = rasterize(**scene, tile_mask=mask, **of(self.implementation))
    full = rasterize(**scene, **of(self.implementation))
    shown = np.kron(np.asarray(mask), np.ones((16, 16), bool))
    np.testing.assert_allclose(seen.image[0][shown], full.image[0][shown], atol=1e-6)
    np.testing.assert_array_equal(seen.alpha[0][~shown], 0)

  def test_a_full_list_is_said_under_jit(self):
    if self.implementation == "reference":
      pytest.skip("has no list")
    scene = jax_scene("tiny")
    arrays = {key: scene[key] for key in ARRAYS}
    draw = lambda config: jax.jit(
        lambda arrays: rasterize(**arrays, camera=scene["camera"], config=config, **of(self.implementation))
    )(arrays)
    needed = int(rasterize(**scene, **of(self.implementation)).intersections[0])
    lost = draw(Config(max_intersections=needed - needed // 6))
    assert lost.intersections[0] == needed and lost.overflow[0] == needed // 6
    assert np.all(np.isnan(lost.image)) and np.all(np.isnan(lost.alpha)) and np.all(np.isnan(lost.depth))
    reported = draw(Config(max_intersections=needed - needed // 6, on_overflow="report"))
    assert reported.overflow[0] == needed // 6 and np.all(np.isfinite(reported.image))

  @settings(max_examples=25)
  @given(st.data())
  def test_degenerate_input_gives_what_reference_gives(self, data):
    numbers = lambda *values: st.sampled_from([np.float32(v) for v in values])
    # The camera stands at z = -2.5; 2e19 has a square beyond float32.
    draw = lambda values, shape: np.array(
        data.draw(st.lists(values, min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))), np.float32
    ).reshape(shape)
    arrays = {
        "means": draw(numbers(0, 0.2, -0.3, 1, -2.5, -2.489, -9, 2e19, np.nan), (6, 3)),
        "quats": draw(numbers(0, 1, -0.5, 1e-30, 1e18, np.nan), (6, 4)),
        "scales": draw(numbers(0, 1e-12, 0.05, 0.3, 1, 1e6, np.inf), (6, 3)),
        "opacities": draw(numbers(0, 1 / 256, 0.5, 1, np.nan), (6,)),
        "colors": draw(numbers(0, 1, -3, np.nan), (6, 2)),
    }
    output, gradients = _draw_degenerate(self.implementation)(arrays)
    expected, expected_gradients = _draw_degenerate("reference")(arrays)
    for key in ("image", "alpha", "depth"):
      assert np.all(np.isfinite(getattr(output, key))), key
    # Near the cut-offs a pixel may take the other branch: 1/255 of colours up to 3.
    np.testing.assert_allclose(output.alpha, expected.alpha, atol=5e-3)
    np.testing.assert_allclose(output.image, expected.image, rtol=2e-3, atol=2e-2)
    for key in ("radii", "nonfinite"):
      np.testing.assert_array_equal(getattr(output, key), getattr(expected, key))
    for key, value in gradients.items():
      assert np.all(np.isfinite(value)) and np.all(np.isfinite(expected_gradients[key])), key

  def test_reruns_are_bit_equal(self):
    first, first_gradients = draw_and_differentiate("tiny", CASES["tiny"], self.implementation)
    again, again_gradients = draw_and_differentiate("tiny", CASES["tiny"], self.implementation)
    jax.tree.map(np.testing.assert_array_equal, (first, first_gradients), (again, again_gradients))

  def test_batch_equals_frames_drawn_alone(self):
    scene = jax_scene("batch")
    together = rasterize(**scene, **of(self.implementation))
    for i in range(SPECS["batch"].batch):
      alone = rasterize(**{**scene, **{key: scene[key][i] for key in ARRAYS}}, **of(self.implementation))
      np.testing.assert_allclose(together.image[i], alone.image, atol=1e-6)
      assert together.intersections[i] == alone.intersections

  def test_one_scene_under_many_cameras(self):
    scene = jax_scene("tiny")
    arrays = {key: scene[key][0] for key in ARRAYS}
    moved = jnp.stack([scene["camera"].world_to_camera.at[0, 3].set(x) for x in (-0.3, 0.0, 0.3)])
    camera = dataclasses.replace(scene["camera"], world_to_camera=moved)
    many = rasterize(**arrays, camera=camera, **of(self.implementation))
    one = rasterize(**arrays, camera=scene["camera"], **of(self.implementation))
    assert many.image.shape == (3, 24, 40, 3)
    np.testing.assert_allclose(many.image[1], one.image, atol=1e-6)
    assert np.abs(many.image[0] - one.image).max() > 0.05

  def test_degenerate_gaussians_stay_finite_and_leave_the_others_alone(self):
    scene = jax_scene("tiny")
    arrays = {key: scene[key][0] for key in ARRAYS}
    # One way of being degenerate each; all of them culled or invisible, except the ones marked.
    broken = {key: np.array(value) for key, value in arrays.items()}
    broken["means"][0] = (0, 0, -5)  # Behind the camera.
    broken["means"][1] = (0, 0, -2.5)  # At the camera's centre.
    broken["means"][2] = (3, 0, -2.5)  # On the camera's plane.
    broken["means"][3, 1] = np.nan
    broken["scales"][4, 2] = np.inf
    broken["quats"][5, 0] = np.nan
    broken["opacities"][6] = 0
    broken["opacities"][7] = np.nan
    broken["means"][8] = (1e20, 0, 0)
    broken["colors"][3] = np.nan
    broken["colors"][9, 1] = np.nan
    lost = np.arange(10)
    broken["quats"][10] = 0  # Drawn: no rotation.
    broken["scales"][11] = 1e-12  # Drawn: a dot.
    broken["scales"][12] = 1e6  # Drawn: covers everything.
    broken["opacities"][13] = 1  # Drawn.
    broken["opacities"][12] = 0.5
    broken = jax.tree.map(jnp.asarray, broken)

    def loss(arrays):
      output = rasterize(**arrays, camera=scene["camera"], **of(self.implementation))
      return jnp.sum(output.image**2) + jnp.sum(output.depth) + jnp.sum(output.alpha), output

    gradients, output = jax.grad(loss, has_aux=True)(broken)
    for key, value in gradients.items():
      assert np.all(np.isfinite(value)), key
      np.testing.assert_array_equal(np.asarray(value)[lost], 0, err_msg=key)
    assert np.all(np.isfinite(output.image)) and np.all(np.isfinite(output.depth))
    assert output.nonfinite == 5
    np.testing.assert_array_equal(np.asarray(output.radii)[lost], 0)
    assert np.all(np.asarray(output.radii)[[10, 11, 12, 13]] > 0)
    kept = jax.tree.map(lambda a: a[10:], broken)
    alone = rasterize(**kept, camera=scene["camera"], **of(self.implementation))
    np.testing.assert_allclose(output.image, alone.image, atol=1e-6)

  @pytest.mark.parametrize("num", [0, 3])
  def test_nothing_to_draw_gives_the_background(self, num):
    # No Gaussians, or all culled; an image of one pixel.
    camera = Camera(jnp.eye(4), jnp.eye(3), 1, 1)
    zeros = lambda *shape: jnp.zeros((num, *shape))
    background = jnp.array([0.2, 0.4, 0.6])
    draw = lambda means: rasterize(
        means,
        zeros(4),
        zeros(3),
        zeros(),
        zeros(3),
        camera,
        background=background,
        **of(self.implementation),
    )
    output = draw(zeros(3))
    np.testing.assert_allclose(output.image, background[None, None])
    assert output.depth is not None and output.alpha.shape == output.depth.shape == (1, 1) and output.radii.shape == (num,)
    assert output.alpha[0, 0] == 0 and output.depth[0, 0] == 0 and output.intersections == 0
    gradient = jax.grad(lambda means: jnp.sum(draw(means).image))(zeros(3))
    np.testing.assert_array_equal(gradient, 0)
