"""ER-NeRF's parts against numpy, scipy and finite differences; SyncTalk's switches; what learns when."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from rsatalker_jax.baselines.image.ernerf import ERNERF, SYNCTALK, Rays, head_terms, shift_term
from rsatalker_jax.baselines.image.nerf_field import Field, FieldConfig, Planes, plane_resolutions
from rsatalker_jax.baselines.image.nerf_rendering import Lattice, composite, sample_rays
from rsatalker_jax.baselines.image.torso import Torso, TorsoConfig, frequency_code, picture_projection, project
from splat_kernels.sh import sh_basis

_TINY = FieldConfig(resolutions=(4, 7), features=2, hidden=8, attention_hidden=8, audio=5, code=3)


def _normal(*shape, seed: int = 0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- Planes and field


def test_planes_are_bilinear_and_nothing_outside():
  planes, points = Planes(3, (5, 8), 2), np.random.default_rng(1).uniform(-1, 1, (50, 3, 2)).astype(np.float32)
  points[:9] *= 1.01 / np.abs(points[:9])  # A little beyond.
  points[9:11] = np.sign(points[9:11])  # At a corner.
  params = jax.tree.map(lambda x: _normal(*x.shape), jax.jit(planes.init)(jax.random.key(0), points))
  found = jax.jit(planes.apply)(params, points)
  np.testing.assert_allclose(found, _sample(params["params"], (5, 8), points), atol=1e-5)
  assert not np.any(found[:9])


def _sample(params, sizes, points):
  """Features of all levels and planes by scipy; texels lie by second and first coordinate."""
  sampled, texels = [], np.asarray(params["texels"])
  for size in sizes:
    axis = np.linspace(-1, 1, size)
    for i in range(points.shape[1]):
      plane, texels = texels[: size**2].reshape(size, size, -1), texels[size**2 :]
      sampled.append(RegularGridInterpolator((axis, axis), plane, bounds_error=False, fill_value=0.0)(points[:, i, ::-1]))
  assert not len(texels)
  return np.concatenate(sampled, axis=-1)


def test_levels_grow_by_a_factor():
  assert plane_resolutions(6, 32, 256) == (32, 49, 74, 111, 169, 256)


def _field(config=_TINY, seed: int = 0):
  field = Field(config)
  points, directions = 0.3 * _normal(9, 3), _normal(9, 3, seed=1)
  directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
  arguments = points, directions, _normal(config.audio, seed=2), np.full(config.eyes, 0.4, np.float32), _normal(config.code, seed=3)
  params = jax.jit(field.init)(jax.random.key(seed), *arguments)
  # Planes begin as good as empty: as if they had learnt something.
  planes = jax.tree.map(lambda x: jnp.asarray(_normal(*x.shape)), params["params"]["planes"])
  return field, {"params": params["params"] | {"planes": planes}}, arguments


def _mlp(params, x):
  for i in range(len(params)):
    x = (np.maximum(x, 0) if i else x) @ np.asarray(params[f"Dense_{i}"]["kernel"])
  return x


@pytest.mark.parametrize("config", [_TINY, dataclasses.replace(_TINY, eyes=7, eye_sigmoid=False)])
def test_field_is_its_equations(config):
  field, params, (points, directions, audio, eyes, code) = _field(config)
  said = jax.jit(field.apply)(params, points, directions, audio, eyes, code)
  p = params["params"]
  x = _sample(p["planes"], config.resolutions, np.stack([points[:, [0, 1]], points[:, [0, 2]], points[:, [1, 2]]], axis=1))
  voice, lids = _mlp(p["audio_attention"], x), _mlp(p["eye_attention"], x)
  if config.eye_sigmoid:
    lids = 1 / (1 + np.exp(-lids))
  h = _mlp(p["density_net"], np.concatenate([x, voice * audio, lids * eyes], axis=-1))
  np.testing.assert_allclose(said["density"], np.exp(h[:, 0]), rtol=1e-4)
  np.testing.assert_allclose(said["audio_attention"], np.linalg.norm(voice, axis=-1), rtol=1e-4)
  np.testing.assert_allclose(said["eye_attention"], np.linalg.norm(lids, axis=-1), rtol=1e-4)
  np.testing.assert_allclose(said["uncertainty"], np.log1p(np.exp(_mlp(p["uncertainty_net"], x)[:, 0])), rtol=1e-4)
  seen = np.concatenate([np.asarray(sh_basis(3, jnp.asarray(directions))), h[:, 1:], np.tile(code, (9, 1))], axis=-1)
  np.testing.assert_allclose(said["color"], 1.002 / (1 + np.exp(-_mlp(p["color_net"], seen))) - 0.001, atol=1e-5)
  np.testing.assert_allclose(field.apply(params, points, audio, eyes, method="density"), said["density"], rtol=1e-6)


def test_uncertainty_does_not_move_the_planes_and_density_stays_finite():
  field, params, arguments = _field()
  gradient = jax.jit(jax.grad(lambda p: jnp.sum(field.apply(p, *arguments)["uncertainty"])))(params)["params"]
  assert not any(np.any(x) for x in jax.tree.leaves(gradient["planes"]))
  assert np.any(gradient["uncertainty_net"]["Dense_0"]["kernel"])
  huge = jax.tree.map(lambda x: 100 * x, params)
  assert np.isfinite(jax.jit(field.apply)(huge, *arguments)["density"]).all()


def test_gradients_are_those_of_finite_differences():
  """Of a rendered picture, by every kind of parameter, in double precision."""
  with jax.enable_x64():
    field, params, (_, _, audio, eyes, code) = _field()
    double = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)
    params, audio, eyes, code = double(params), double(audio), double(eyes), double(code)
    lattice = Lattice((0.6, 1.0, 0.8), 0.11, 20, 8)
    origins = jnp.asarray([[0.1, 0.2, 3.0], [-0.2, 0.1, 3.0], [0.3, -0.4, 3.0]])
    directions = jnp.asarray([[0.0, 0.0, -1.0], [0.06, 0.08, -0.995], [0.0, 0.1, -0.995]])
    directions = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
    occupied = jnp.asarray(np.random.default_rng(0).random((8, 8, 8)) < 0.6)

    def render(params, audio, eyes, code):
      points, kept = sample_rays(origins, directions, occupied, lattice, 0.3)
      said = field.apply(params, points.reshape(-1, 3), jnp.repeat(directions, 8, axis=0), audio, eyes, code)
      weights = composite(jnp.where(kept, said["density"].reshape(3, 8), 0.0), lattice.step)
      color = jnp.einsum("ns,nsc->nc", weights, said["color"].reshape(3, 8, 3))
      return jnp.sum(jnp.sin(3 * color)) + jnp.sum(weights**2)

    arguments = params, audio, eyes, code
    gradients = jax.jit(jax.grad(render, argnums=(0, 1, 2, 3)))(*arguments)
    rng, step = np.random.default_rng(0), 1e-6
    way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), arguments)
    run = jax.jit(render)
    for i in range(len(arguments)):
      moved = lambda sign: [jax.tree.map(lambda x, d: x + sign * step * d, a, w) if j == i else a
                            for j, (a, w) in enumerate(zip(arguments, way))]
      expected = (run(*moved(1)) - run(*moved(-1))) / (2 * step)
      found = sum(jnp.sum(g * w) for g, w in zip(jax.tree.leaves(gradients[i]), jax.tree.leaves(way[i])))
      np.testing.assert_allclose(found, expected, rtol=1e-5)
      assert abs(expected) > 1e-4


# --- Torso


def test_frequencies_double():
  x = np.array([0.3, -0.2])
  expected = np.concatenate([[*x], *([*np.sin(x[i] * np.array([1, 2, 4])), *np.cos(x[i] * np.array([1, 2, 4]))] for i in (0, 1))])
  np.testing.assert_allclose(frequency_code(jnp.asarray(x, jnp.float32), 3), expected, atol=1e-6)


def test_points_are_projected_into_the_picture():
  head_to_camera = np.eye(4)
  head_to_camera[:3] = [[0, -1, 0, 0.1], [1, 0, 0, -0.2], [0, 0, 1, 7.0]]
  intrinsics = np.array([[853.0, 0, 130], [0, 850.0, 100], [0, 0, 1]])
  points = np.concatenate([_normal(4, 3), np.array([[1.0], [1.0], [0.5], [2.0]])], axis=1)
  projection = picture_projection(*(jnp.asarray(x, jnp.float32) for x in (head_to_camera, intrinsics)), 256, 200)
  seen = points @ head_to_camera.T
  pixels = seen[:, :3] @ intrinsics.T
  pixels = pixels[:, :2] / pixels[:, 2:]
  expected = (2 * pixels / [256, 200] - 1) / points[:, 3:]
  np.testing.assert_allclose(project(jnp.asarray(points, jnp.float32), projection), expected, rtol=2e-4)


def test_torso_is_its_equations():
  config = TorsoConfig(resolutions=(4, 6), hidden=8, code=2)
  torso, places = Torso(config), np.random.default_rng(0).uniform(-1, 1, (20, 2)).astype(np.float32)
  projection, code = _normal(3, 4) + np.array([[0], [0], [5]], np.float32), _normal(2)
  params = jax.tree.map(lambda x: x + 0.2 * _normal(*x.shape), jax.jit(torso.init)(jax.random.key(0), places, projection, code))
  alpha, color = jax.jit(torso.apply)(params, places, projection, code)
  p = params["params"]
  points = np.asarray(frequency_code(project(p["points"], projection).reshape(-1), 3))
  seen = np.concatenate([np.asarray(frequency_code(0.8 * jnp.asarray(places), 8)), np.tile([*points, *code], (20, 1))], axis=-1)
  assert seen.shape[1] == 34 + 42 + 2
  looked_up = np.clip(0.8 * places + _mlp(p["shift_net"], seen), -1, 1)
  assert (np.abs(looked_up) == 1).any()
  levels = _sample(p["planes"], config.resolutions, looked_up[:, None])
  output = 1.002 / (1 + np.exp(-_mlp(p["color_net"], np.concatenate([levels, seen], axis=-1)))) - 0.001
  np.testing.assert_allclose(alpha, output[:, 0], atol=1e-4)
  np.testing.assert_allclose(color, output[:, 1:], atol=1e-4)
  penalty = torso.apply(params, method="points_penalty")
  np.testing.assert_allclose(penalty, np.mean((1 - np.asarray(p["points"])[:, 3]) ** 2), rtol=1e-5)


# --- Losses


def _example():
  rng = np.random.default_rng(0)
  rays = Rays(*(rng.uniform(0, 1, shape).astype(np.float32) for shape in ((30, 3), 30, 30, 30, 30)))
  return rays, rng.uniform(0, 1, (30, 3)), (rng.random(30) < 0.6).astype(float), (rng.random(30) < 0.3).astype(float)


def _expected_terms(rays, target, face, lower, s, fine_tuned, synctalk):
  error = rays.color - target
  pixels = np.abs(error).mean(1) if synctalk else (error**2).mean(1)
  softmax = np.exp(rays.uncertainty) / np.exp(rays.uncertainty).sum()
  weight = 0.2 + 0.8 * np.clip((1 - s) + s * 30 * softmax, 0, 10)
  beta = 1 + rays.uncertainty
  learnt = np.linalg.norm(error, axis=1) / (2 * beta**2) + np.log(beta) ** 2 / 2
  inside, outside = (0.01, 0.01) if synctalk else (1, 1e-3)
  alpha = np.clip(rays.alpha, 1e-5, 1 - 1e-5)
  voice, eyes = rays.audio_attention, rays.eye_attention
  return {
      "pixels": (pixels if fine_tuned else weight * pixels).mean(),
      "uncertainty": 0 if fine_tuned else s * (inside * face * learnt + outside * (1 - face) * rays.uncertainty).mean(),
      "entropy": 1e-4 * -(alpha * np.log2(alpha) + (1 - alpha) * np.log2(1 - alpha)).mean(),
      "audio_attention": 1e-4 * s * (voice * (1 - (lower if synctalk else face))).mean(),
      "eye_attention": 1e-4 * s * ((eyes * lower) if synctalk else (eyes / 16 * voice * face)).mean(),
  }


@pytest.mark.parametrize("s", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("synctalk", [False, True])
@pytest.mark.parametrize("fine_tuned", [False, True])
def test_terms_are_the_published_ones(s, synctalk, fine_tuned):
  rays, target, face, lower = _example()
  terms = head_terms(SYNCTALK if synctalk else ERNERF, rays, target, face, lower, s, fine_tuned, 16)
  expected = _expected_terms(rays, target, face, lower, s, fine_tuned, synctalk)
  assert terms.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-5, atol=1e-9, err_msg=name)


def test_uncertain_colours_count_at_most_tenfold():
  rays, target, face, lower = _example()
  rays = dataclasses.replace(rays, uncertainty=np.where(np.arange(30) == 3, 20.0, 0.0).astype(np.float32))
  pixels = head_terms(ERNERF, rays, target, face, lower, 1.0, False, 16)["pixels"]
  error = ((rays.color - target) ** 2).mean(1)
  np.testing.assert_allclose(pixels, (np.where(np.arange(30) == 3, 8.2, 0.2) * error).mean(), rtol=1e-5)


def test_what_a_term_pulls():
  """Uncertainty learns from errors and does not move colours by its weights; voices are not attended to less for the eyes."""
  rays, target, face, lower = _example()
  pull = lambda name, switches=ERNERF: jax.grad(
      lambda x: head_terms(switches, Rays(*x), target, face, lower, 0.5, False, 16)[name]
  )(tuple(jnp.asarray(getattr(rays, field.name)) for field in dataclasses.fields(Rays)))
  color, _, uncertainty, _, _ = pull("pixels")
  assert np.any(color) and not np.any(uncertainty)
  color, _, uncertainty, _, _ = pull("uncertainty")
  assert not np.any(color) and np.any(uncertainty)
  _, _, _, audio, eyes = pull("eye_attention")
  assert not np.any(audio) and np.any(eyes)


def test_shifts_change_little():
  seen, shifted = ({name: _normal(12, seed=i) for i, name in enumerate(("uncertainty", "audio_attention", "eye_attention"), start)}
                   for start in (0, 5))
  expected = 1e-5 * 0.7 * sum(np.mean((seen[name] - shifted[name]) ** 2) for name in seen)
  np.testing.assert_allclose(shift_term(seen, shifted, 0.7), expected, rtol=1e-5)
  assert shift_term(seen, shifted, 0.0) == 0
  pulls = jax.grad(lambda a, b: shift_term(a, b, 1.0), argnums=(0, 1))(*jax.tree.map(jnp.asarray, (seen, shifted)))
  assert not any(np.any(x) for x in pulls[0].values()) and all(np.any(x) for x in pulls[1].values())
