"""Losses against numbers worked out by hand and numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from rsatalker_jax.evaluation import image_metrics
from rsatalker_jax.training import losses


def test_motion_loss_by_group():
  target = np.zeros((2, 5, 56), np.float32)
  predicted = target.copy()
  predicted[..., 50:53] = 2.0  # The jaw is off by 2 everywhere: no velocity error.
  terms = losses.motion_loss(predicted, target, losses.MotionLossWeights(jaw=3.0))
  np.testing.assert_allclose(terms["jaw"], 3 * 4.0)
  assert all(value == 0 for name, value in terms.items() if name != "jaw")


def test_motion_velocity_matches_numpy():
  rng = np.random.default_rng(0)
  predicted, target = rng.normal(size=(2, 3, 7, 56)).astype(np.float32)
  terms = losses.motion_loss(predicted, target, losses.MotionLossWeights(velocity=0.5))
  error = np.diff(predicted, axis=1) - np.diff(target, axis=1)
  np.testing.assert_allclose(terms["pose_velocity"], 0.5 * np.mean(error[..., 53:] ** 2), rtol=1e-5)


def test_relative_loss_of_the_mean_is_one():
  target = np.random.default_rng(0).normal(size=(4, 1000, 56)).astype(np.float32)
  target *= np.repeat([0.3, 0.02, 0.1], [50, 3, 3]).astype(np.float32)
  std = target.std(axis=(0, 1))
  mean = np.broadcast_to(target.mean(axis=(0, 1)), target.shape)
  terms = losses.motion_loss(mean, target, losses.MotionLossWeights(relative=True, velocity=0.0), tuple(std))
  np.testing.assert_allclose([terms["expression"], terms["jaw"], terms["pose"]], 1, rtol=1e-4)


def test_paper_motion_loss_is_the_norm():
  rng = np.random.default_rng(0)
  predicted, target = rng.normal(size=(2, 7, 56)).astype(np.float32)
  weights = losses.MotionLossWeights(plain_norm=True)
  terms = losses.motion_loss(predicted, target, weights)
  np.testing.assert_allclose(terms["mesh"], np.linalg.norm(predicted - target), rtol=1e-5)
  gradient = jax.grad(lambda x: losses.motion_loss(x, target, weights)["mesh"])(target)
  assert np.isfinite(gradient).all()


def test_lip_loss_counts_closures_more():
  target = jnp.array([-1e-3, 0.0, 1e-3, 50e-3])  # Pressed, closed, 1 mm, wide open.
  each = [losses.lip_loss(target.at[i].add(2e-3), target, closure=8.0, unit=1e-3) for i in range(4)]
  np.testing.assert_allclose(each, np.array([9, 9, 1 + 8 / np.e, 1]) * 2.0**2 / 4, rtol=1e-5)


def test_position_loss_is_a_hinge_over_visible():
  means = jnp.array([[0.0, 0.0, 0.0], [0.6, 0.8, 0.0], [3.0, 4.0, 0.0], [30.0, 40.0, 0.0]])
  visible = jnp.array([1.0, 1.0, 1.0, 0.0])
  np.testing.assert_allclose(losses.position_loss(means, visible), (0 + 0 + 4) / 3, rtol=1e-6)
  gradient = jax.grad(losses.position_loss)(means, visible)
  np.testing.assert_allclose(gradient[2], np.array([0.6, 0.8, 0.0]) / 3, rtol=1e-6)
  np.testing.assert_array_equal(gradient[jnp.array([0, 3])], 0)


def test_offset_loss_by_hand():
  offsets = jnp.array([[[0.0, 0.0, 0.5], [0.0, 0.0, 2.0]]])
  np.testing.assert_allclose(losses.offset_loss(offsets), 0.5)


def test_scale_loss_by_hand():
  log_scales = jnp.log(jnp.array([[0.6, 0.5, 0.1], [0.6 + 3.0, 0.6 + 4.0, 0.2]]))
  np.testing.assert_allclose(losses.scale_loss(log_scales, jnp.ones(2)), 5 / 2, rtol=1e-5)


def test_image_loss_of_equal_images_is_zero_and_of_a_shift_is_known():
  image = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.8, size=(1, 32, 32, 3)).astype(np.float32))
  equal = losses.image_loss(image, image)
  np.testing.assert_allclose([equal["l1"], equal["dssim"]], 0, atol=1e-5)
  shifted = losses.image_loss(image + 0.1, image)
  np.testing.assert_allclose(shifted["l1"], 0.8 * 0.1, rtol=1e-4)
  assert 0 < shifted["dssim"] < 0.2


def test_lpips_is_a_further_term_with_a_gradient():
  r = np.random.default_rng(0)
  a, b = (jnp.array(r.uniform(size=(1, 32, 32, 3)), jnp.float32) for _ in range(2))
  terms = losses.image_loss(a, b, lpips_weight=0.5)
  np.testing.assert_allclose(terms["lpips"], 0.5 * image_metrics.lpips(a, b)[0], rtol=1e-6)
  assert {name: terms[name] for name in ("l1", "dssim")} == losses.image_loss(a, b)
  # Towards the target LPIPS falls.
  slope = jax.grad(lambda x: losses.image_loss(x, b, lpips_weight=0.5)["lpips"])(a)
  assert float(jnp.sum(slope * (b - a))) < 0
