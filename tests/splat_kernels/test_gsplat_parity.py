"""Parity with gsplat 1.5's own torch formulas for projection and SH, values and gradients, where it is installed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from splat_kernels import GSPLAT_1_5, Camera, project
from splat_kernels.sh import sh_colors
from splat_kernels.specs import Spec, make_scene

pytestmark = oracles.needs("torch", "gsplat")
if not pytestmark.args[0]:
  import torch
  from gsplat.cuda import _torch_impl as formulas

GEOMETRY = ("means", "quats", "scales")


def as_torch(array):
  return torch.tensor(np.asarray(array), requires_grad=True)


@pytest.fixture(scope="module")
def scene():
  scene = make_scene(Spec(200, 64, 48, 60.0, 0.05, sh_degree=3, seed=8))
  pose = scene["camera"].world_to_camera.copy()
  angle = 0.4
  pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
  intrinsics = np.array([[60.0, 0, 29.0], [0, 55.0, 26.0], [0, 0, 1]], np.float32)
  return {name: value[0] for name, value in scene.items() if name not in ("camera", "sh_degree")} | {
      "camera": Camera(pose, intrinsics, 64, 48)
  }


def test_projection(scene):
  camera = scene["camera"]
  rng = np.random.default_rng(0)
  weights = [rng.normal(size=(200, k)).astype(np.float32) for k in (2, 3, 1, 1)]
  weights[1] *= 10  # Conics are small.

  inputs = {name: as_torch(scene[name]) for name in GEOMETRY} | {"pose": as_torch(camera.world_to_camera)}
  covariances, _ = formulas._quat_scale_to_covar_preci(inputs["quats"], inputs["scales"], compute_preci=False)
  intrinsics = torch.tensor(camera.intrinsics)[None]
  radii, *theirs = formulas._fully_fused_projection(
      inputs["means"], covariances, inputs["pose"][None], intrinsics, 64, 48, calc_compensations=True
  )
  theirs = [(x[0] if x.ndim == 3 else x[0][:, None]) for x in (theirs[0], theirs[2], theirs[1], theirs[3])]

  def outputs(inputs):
    moved = dataclasses.replace(camera, world_to_camera=inputs["pose"])
    config = dataclasses.replace(GSPLAT_1_5, antialiased=True)
    ones = jnp.ones(200)
    p = project(*(inputs[name] for name in GEOMETRY), ones, moved, config=config)
    return [p.means2d, p.conics, p.depths[:, None], p.opacities[:, None]], p.radii

  ours_inputs = {name: jnp.asarray(value.detach().numpy()) for name, value in inputs.items()}
  ours, our_radii = outputs(ours_inputs)
  drawn = (np.asarray(our_radii) > 0) & np.all(radii[0].numpy() > 0, axis=-1)
  assert drawn.sum() > 150
  for mine, other in zip(ours, theirs):
    np.testing.assert_allclose(np.asarray(mine)[drawn], other.detach().numpy()[drawn], rtol=1e-4, atol=1e-4)

  masked = [w * drawn[:, None] for w in weights]
  loss = lambda inputs: sum(jnp.sum(w * x) for w, x in zip(masked, outputs(inputs)[0]))
  gradients = jax.grad(loss)(ours_inputs)
  sum((torch.tensor(w) * x).sum() for w, x in zip(masked, theirs)).backward()
  for name, value in inputs.items():
    expected = value.grad.numpy()
    error = np.linalg.norm(np.asarray(gradients[name]) - expected) / np.linalg.norm(expected)
    assert error < 1e-3, (name, error)  # Sums in float32 on both sides.


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spherical_harmonics(scene, degree):
  means, pose = scene["means"], scene["camera"].world_to_camera
  centre = -pose[:3, :3].T @ pose[:3, 3]
  directions, coefficients = as_torch(means - centre), as_torch(scene["colors"])
  theirs = torch.clamp(formulas._spherical_harmonics(degree, directions, coefficients) + 0.5, min=0.0)
  weights = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
  (torch.tensor(weights) * theirs).sum().backward()

  draw = lambda coefficients, means: sh_colors(degree, coefficients, means, jnp.asarray(pose))
  arguments = jnp.asarray(scene["colors"]), jnp.asarray(means)
  np.testing.assert_allclose(draw(*arguments), theirs.detach().numpy(), atol=1e-5)
  by_coefficients, by_means = jax.grad(lambda *a: jnp.sum(weights * draw(*a)), argnums=(0, 1))(*arguments)
  np.testing.assert_allclose(by_coefficients, coefficients.grad.numpy(), atol=1e-5)
  if degree:
    np.testing.assert_allclose(by_means, directions.grad.numpy(), atol=1e-4)
