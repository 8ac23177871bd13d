"""Parity with gsplat 1.5.3's own formulas, values and gradients, from stored numbers; and that they are what they say."""

import dataclasses
import shutil

import gsplat_numbers
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from splat_kernels import GSPLAT_1_5, Camera, project, rasterize
from splat_kernels.sh import sh_colors

NUMBERS = dict(np.load(gsplat_numbers.PATH))
INPUTS = gsplat_numbers.make_inputs()
GEOMETRY = gsplat_numbers.GEOMETRY


def camera_of(inputs, **fields) -> Camera:
  return Camera(inputs["pose"], inputs["intrinsics"], gsplat_numbers.WIDTH, gsplat_numbers.HEIGHT, **fields)


def assert_parity(case: str, function, names, rtol=1e-4, atol=1e-4):
  """Outputs and gradients against the stored ones, number by number; `atol` is relative to the largest of an array."""
  inputs = {name: jnp.asarray(INPUTS[name]) for name in names}
  outputs, pull_back = jax.vjp(function, inputs)
  (gradients,) = pull_back({name: jnp.asarray(INPUTS[f"weights_{name}"]) for name in outputs})
  for name, value in {**outputs, **{f"d_{name}": value for name, value in gradients.items()}}.items():
    expected = NUMBERS.get(f"{case}/{name}", np.zeros_like(value))  # torch has no gradient where there is no path.
    if name == "d_intrinsics":
      expected = expected * np.array([[1, 0, 1], [0, 1, 1], [0, 0, 0]])  # Their pinhole reads the skew.
    if name == "d_pose":
      value, expected = value[:3], expected[:3]
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol * max(np.abs(expected).max(), 1e-3), err_msg=name)


@pytest.mark.parametrize("model", gsplat_numbers.MODELS)
def test_projection(model):
  def outputs(inputs):
    p = project(
        *(inputs[name] for name in GEOMETRY[:3]),
        jnp.ones(gsplat_numbers.NUM),
        camera_of(inputs, model=model),
        config=dataclasses.replace(GSPLAT_1_5, antialiased=True),
    )
    return {"means2d": p.means2d, "conics": p.conics, "depths": p.depths, "compensations": p.opacities}

  assert_parity(model, outputs, GEOMETRY)


@pytest.mark.parametrize("degree", gsplat_numbers.DEGREES)
def test_spherical_harmonics(degree):
  def outputs(inputs):
    return {"colors": sh_colors(degree, inputs["coefficients"], inputs["means"], inputs["pose"])}

  names = ("means", "coefficients", "pose")
  if degree == max(gsplat_numbers.DEGREES):
    assert_parity(f"sh{degree}", outputs, names)
    return
  fixed = jnp.asarray(INPUTS["coefficients"])
  assert_parity(f"sh{degree}", lambda inputs: outputs({**inputs, "coefficients": fixed}), ("means", "pose"))


def test_image():
  def outputs(inputs):
    output = rasterize(
        *(inputs[name] for name in GEOMETRY[:3]),
        inputs["opacities"],
        inputs["coefficients"],
        camera_of(inputs),
        sh_degree=0,
        background=inputs["background"],
        config=dataclasses.replace(GSPLAT_1_5, max_intersections=128),
        implementation="reference",  # With which all others are compared.
    )
    return {"image": output.image, "alpha": output.alpha}

  assert_parity("image", outputs, (*GEOMETRY, "opacities", "coefficients", "background"))


@pytest.mark.parametrize("case", gsplat_numbers.UNSCENTED)
def test_unscented_projection(case):
  model, distortion, shutter = gsplat_numbers.UNSCENTED[case]
  fine = 1 if shutter == "global" else gsplat_numbers.FINE
  camera = Camera(
      INPUTS["pose"],
      INPUTS["intrinsics"] * np.float32([[fine], [fine], [1]]),
      gsplat_numbers.WIDTH * fine,
      gsplat_numbers.HEIGHT * fine,
      model=model,
      distortion=None if distortion is None else np.float32(distortion),
      world_to_camera_end=None if shutter == "global" else INPUTS["pose_end"],
      shutter=shutter,
  )
  config = dataclasses.replace(GSPLAT_1_5, projection="unscented", low_pass=0.0)
  p = project(*(INPUTS[name] for name in GEOMETRY[:3]), jnp.ones(gsplat_numbers.NUM), camera, config=config)
  covariances = np.linalg.inv(np.asarray(p.conics, np.float64)[:, [[0, 1], [1, 2]]])
  expected = NUMBERS[f"unscented/{case}"]
  # Theirs are sums of positions in pixels with weights of up to 99, in float32.
  np.testing.assert_allclose(p.means2d, expected[:, :2], atol=2e-3 * fine)
  np.testing.assert_allclose(
      covariances.reshape(-1, 4)[:, [0, 1, 3]], expected[:, 2:], rtol=2e-3, atol=5e-3 * fine**2
  )


@oracles.needs("torch", "gsplat")
def test_stored_numbers_are_gsplats():
  numbers = gsplat_numbers.make_numbers()
  if shutil.which("g++"):
    numbers |= gsplat_numbers.make_unscented_numbers()
  assert numbers.keys() == NUMBERS.keys() - (set() if shutil.which("g++") else {k for k in NUMBERS if "unscented" in k})
  for name, value in numbers.items():
    np.testing.assert_allclose(value, NUMBERS[name], rtol=1e-4, atol=1e-4 * np.abs(value).max(), err_msg=name)
