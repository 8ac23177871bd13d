"""What every implementation of the rasterizer has to fulfil. Subclass `RasterizerContract` and set `implementation`."""

import dataclasses
import functools

import chex
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
    "odd_size": Config(tile_size=8, antialiased=True),
    "sh3": Config(support="inria", jacobian_limit="centred", clamp_passes_gradient=True, alpha_max=0.9),
    "dense": Config(depth=None),
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
  """Output and gradients with respect to everything, of a random linear function of image, alpha and depth."""
  scene = jax_scene(name)
  rng = np.random.default_rng(7)
  spec = SPECS[name]
  channels = 3 if spec.sh_degree is not None else spec.channels
  weights = rng.normal(size=(spec.batch, spec.height, spec.width, channels + 2)).astype(np.float32)
  inputs = {key: scene[key] for key in ARRAYS}
  inputs["background"] = jnp.asarray(rng.uniform(size=channels), jnp.float32)
  inputs["means2d_offset"] = jnp.zeros((spec.batch, spec.num, 2))
  inputs["world_to_camera"] = scene["camera"].world_to_camera
  inputs["intrinsics"] = scene["camera"].intrinsics

  def loss(inputs):
    poses = {key: inputs[key] for key in ("world_to_camera", "intrinsics")}
    arrays = {key: value for key, value in inputs.items() if key not in poses}
    camera = dataclasses.replace(scene["camera"], **poses)
    output = rasterize(
        **arrays, camera=camera, sh_degree=spec.sh_degree, config=config, **of(implementation)
    )
    total = jnp.sum(output.image * weights[..., :channels]) + jnp.sum(output.alpha * weights[..., channels])
    if config.depth:  # Divided by alpha: nearly discontinuous where alpha is, so with a small weight.
      total += 0.1 * jnp.sum(output.depth * output.alpha * weights[..., channels + 1])
    return total, output

  gradients, output = jax.grad(loss, has_aux=True)(inputs)
  return output, gradients


_REFERENCE = {}  # Drawn once for all implementations.


def reference_of(name: str) -> tuple[RenderOutput, dict]:
  if name not in _REFERENCE:
    _REFERENCE[name] = draw_and_differentiate(name, CASES[name], "reference")
  return _REFERENCE[name]


@functools.cache
def _offset_gradients(implementation: str) -> tuple[jax.Array, jax.Array]:
  """Of the centres, plain and absolute, for a random linear function of the image."""
  scene = jax_scene("tiny")
  weights = np.random.default_rng(3).normal(size=(1, 24, 40, 3)).astype(np.float32)
  draw = lambda plain, absolute: rasterize(
      **scene, means2d_offset=plain, means2d_abs_offset=absolute, **of(implementation)
  )
  loss = lambda plain, absolute: jnp.sum(weights * draw(plain, absolute).image)
  return jax.grad(loss, argnums=(0, 1))(jnp.zeros((60, 2)), jnp.zeros((60, 2)))


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
    if CASES[name].depth:
      seen = np.asarray(expected.alpha) > 0.01  # In fainter pixels the quotient is sensitive.
      np.testing.assert_allclose(np.asarray(output.depth)[seen], np.asarray(expected.depth)[seen], rtol=1e-3)
    np.testing.assert_array_equal(output.radii, expected.radii)
    assert np.all(np.asarray(output.intersections) <= np.asarray(expected.intersections))  # Reference counts boxes.
    np.testing.assert_array_equal(output.overflow, 0)

    for key, value in expected_gradients.items():
      error = np.linalg.norm(gradients[key] - value) / np.linalg.norm(value)
      assert error < 1e-3, (key, error)

  def test_absolute_gradients_match_reference(self):
    for absolute, expected in zip(_offset_gradients(self.implementation), _offset_gradients("reference")):
      assert np.linalg.norm(absolute - expected) < 1e-3 * np.linalg.norm(expected)  # As all other gradients.

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
        "colors": draw(numbers(0, 1, -3, 1e6, np.nan), (6, 2)),
    }
    output, gradients = _draw_degenerate(self.implementation)(arrays)
    expected, expected_gradients = _draw_degenerate("reference")(arrays)
    for key in ("image", "alpha", "depth"):
      assert np.all(np.isfinite(getattr(output, key))), key
    # Near the cut-offs a pixel may take the other branch: 1/255 of colours up to 1e6.
    np.testing.assert_allclose(output.alpha, expected.alpha, atol=5e-3)
    np.testing.assert_allclose(output.image, expected.image, rtol=2e-3, atol=5e3)
    for key in ("radii", "nonfinite"):
      np.testing.assert_array_equal(getattr(output, key), getattr(expected, key))
    for key, value in gradients.items():
      assert np.all(np.isfinite(value)) and np.all(np.isfinite(expected_gradients[key])), key

  def test_reruns_are_bit_equal(self):
    first, first_gradients = draw_and_differentiate("tiny", CASES["tiny"], self.implementation)
    again, again_gradients = draw_and_differentiate("tiny", CASES["tiny"], self.implementation)
    chex.assert_trees_all_equal((first, first_gradients), (again, again_gradients))

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
    assert output.alpha.shape == output.depth.shape == (1, 1) and output.radii.shape == (num,)
    assert output.alpha[0, 0] == 0 and output.depth[0, 0] == 0 and output.intersections == 0
    gradient = jax.grad(lambda means: jnp.sum(draw(means).image))(zeros(3))
    np.testing.assert_array_equal(gradient, 0)
