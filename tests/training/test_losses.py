"""Losses against numbers worked out by hand and numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from skimage.metrics import structural_similarity

from configs.common import base_config
from rsatalker_jax.evaluation import image_metrics
from rsatalker_jax.training import losses
from rsatalker_jax.training.joint_stage import joint_weights


def motion_weights(**changes):
  """Every group and its velocity once, but for the changes."""
  plain = dict(expression=1.0, jaw=1.0, pose=1.0, velocity=1.0, relative=False, lips=0.0, closure=0.0, plain_norm=False)
  return losses.MotionLossWeights(**plain | changes)


def test_motion_loss_by_group():
  target = np.zeros((2, 5, 56), np.float32)
  predicted = target.copy()
  predicted[..., 50:53] = 2.0  # The jaw is off by 2 everywhere: no velocity error.
  terms = losses.motion_loss(predicted, target, motion_weights(jaw=3.0))
  np.testing.assert_allclose(terms["jaw"], 3 * 4.0)
  assert all(value == 0 for name, value in terms.items() if name != "jaw")


def test_motion_velocity_matches_numpy():
  rng = np.random.default_rng(0)
  predicted, target = rng.normal(size=(2, 3, 7, 56)).astype(np.float32)
  terms = losses.motion_loss(predicted, target, motion_weights(velocity=0.5))
  error = np.diff(predicted, axis=1) - np.diff(target, axis=1)
  np.testing.assert_allclose(terms["pose_velocity"], 0.5 * np.mean(error[..., 53:] ** 2), rtol=1e-5)


def test_relative_loss_of_the_mean_is_one():
  target = np.random.default_rng(0).normal(size=(4, 1000, 56)).astype(np.float32)
  target *= np.repeat([0.3, 0.02, 0.1], [50, 3, 3]).astype(np.float32)
  std = target.std(axis=(0, 1))
  mean = np.broadcast_to(target.mean(axis=(0, 1)), target.shape)
  terms = losses.motion_loss(mean, target, motion_weights(relative=True, velocity=0.0), std)
  np.testing.assert_allclose([terms["expression"], terms["jaw"], terms["pose"]], 1, rtol=1e-4)


def test_paper_motion_loss_is_the_norm():
  rng = np.random.default_rng(0)
  predicted, target = rng.normal(size=(2, 7, 56)).astype(np.float32)
  weights = motion_weights(plain_norm=True)
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


def test_equation_13_by_hand():
  """Every named term against its formula in numpy, each with a weight of its own; hidden Gaussians count for nothing."""
  r = np.random.default_rng(0)
  draw = lambda *shape: r.uniform(0.2, 0.8, size=shape).astype(np.float32)
  motion_weights = losses.MotionLossWeights(
      expression=1.0, jaw=2.0, pose=3.0, velocity=0.7, relative=True, lips=1.3, closure=4.0, plain_norm=False
  )
  weights = losses.JointWeights(
      motion=motion_weights, image=0.5, position=0.03, offset=0.07, position_threshold=0.9, offset_threshold=1.1, dssim=0.3,
      tracked=1.7, drawn=2.3, scale=0.11, scale_threshold=0.4, orthogonality=0.13,
  )
  batch = {
      "target": {"motion": draw(2, 9, 56), "lips": 1e-2 * draw(2, 9)},
      "statistics": {"motion_std": draw(56), "lip_std": np.float32(0.02)},
      "image": draw(3, 16, 16, 3),
  }
  predicted = {"motion": draw(2, 9, 56), "lips": 1e-2 * draw(2, 9)}
  means = 3 * draw(1, 4, 3)
  rendered = {
      "generated": draw(3, 16, 16, 3), "tracked": draw(3, 16, 16, 3), "drawn": draw(2, 16, 16, 3), "drawn_truth": draw(2, 16, 16, 3),
      "means": means, "log_scales": draw(1, 4, 3), "visible": np.float32([[1, 0, 1, 1]]), "offsets": 3 * draw(3, 5, 3),
      "orthogonality": np.float32(0.6),
  }
  terms = losses.joint_terms(weights, batch, predicted, rendered)
  expected = {}
  std, error = batch["statistics"]["motion_std"], predicted["motion"] - batch["target"]["motion"]
  for name, weight, dims in (("expression", 1.0, slice(0, 50)), ("jaw", 2.0, slice(50, 53)), ("pose", 3.0, slice(53, 56))):
    unit = weight / np.mean(std[dims] ** 2)
    expected[name] = unit * np.mean(error[..., dims] ** 2)
    expected[f"{name}_velocity"] = 0.7 * unit * np.mean(np.diff(error, axis=1)[..., dims] ** 2)
  lips, true = predicted["lips"], batch["target"]["lips"]
  expected["lips"] = 1.3 * np.mean((1 + 4 * np.exp(-true / 1e-3)) * ((lips - true) / 0.02) ** 2)
  pairs = {"": (0.5, "generated", batch["image"]), "tracked_": (1.7, "tracked", batch["image"]),
           "drawn_": (2.3, "drawn", rendered["drawn_truth"])}  # fmt: skip
  for prefix, (weight, name, truth) in pairs.items():
    expected[f"{prefix}l1"] = weight * 0.7 * np.mean(np.abs(rendered[name] - truth))
    similar = np.mean([structural_similarity(a, b, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5,
                                             use_sample_covariance=False) for a, b in zip(rendered[name], truth)])  # fmt: skip
    expected[f"{prefix}dssim"] = weight * 0.3 * (1 - similar)
  shown = np.array([0, 2, 3])
  length = lambda x: np.linalg.norm(x, axis=-1)
  expected["position"] = 0.03 * np.mean(np.maximum(length(means[0, shown]) - 0.9, 0))
  expected["offset"] = 0.07 * np.mean(np.maximum(length(rendered["offsets"]) - 1.1, 0))
  scales = np.exp(rendered["log_scales"][0, shown])
  expected["scale"] = 0.11 * np.mean(length(np.maximum(scales - 0.4, 0)))
  expected["orthogonality"] = 0.13 * 0.6
  assert terms.keys() == expected.keys()
  for name, value in expected.items():
    assert value != 0, name
    np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)


def test_lpips_of_stage_3_is_against_the_film_alone():
  r = np.random.default_rng(2)
  draw = lambda *shape: jnp.asarray(r.uniform(0.2, 0.8, size=shape), jnp.float32)
  config = base_config()
  config.joint.lpips_weight, config.avatar.lpips_weight = 0.4, 0.7
  weights = joint_weights(config)
  assert weights.image != weights.tracked and weights.drawn
  batch = {"target": {"motion": draw(1, 5, 56)}, "statistics": {"motion_std": draw(56)}, "image": draw(1, 64, 64, 3)}
  rendered = {name: draw(1, 64, 64, 3) for name in ("generated", "tracked", "drawn", "drawn_truth")}
  rendered |= {"means": draw(1, 4, 3), "log_scales": draw(1, 4, 3), "visible": np.ones((1, 4), np.float32), "orthogonality": 0.0}
  weights = dataclasses.replace(weights, motion=dataclasses.replace(weights.motion, lips=0.0))
  terms = losses.joint_terms(weights, batch, {"motion": draw(1, 5, 56)}, rendered)
  assert sorted(name for name in terms if "lpips" in name) == ["lpips", "tracked_lpips"]
  for name, weight, image in (("lpips", weights.image, "generated"), ("tracked_lpips", weights.tracked, "tracked")):
    np.testing.assert_allclose(terms[name], weight * 0.4 * image_metrics.lpips(rendered[image], batch["image"])[0], rtol=1e-5)


def test_equation_13_as_printed_has_four_parts():
  """Without additions: L_mesh as a norm, L_image, L_pos, L_offset, and nothing else."""
  r = np.random.default_rng(1)
  draw = lambda *shape: r.uniform(0.2, 0.8, size=shape).astype(np.float32)
  plain = losses.MotionLossWeights(
      expression=1.0, jaw=1.0, pose=1.0, velocity=1.0, relative=False, lips=0.0, closure=0.0, plain_norm=True
  )
  weights = losses.JointWeights(
      motion=plain, image=0.5, position=0.01, offset=0.01, position_threshold=1.0, offset_threshold=1.0, dssim=0.2
  )
  batch = {"target": {"motion": draw(2, 5, 56)}, "statistics": {"motion_std": draw(56)}, "image": draw(1, 16, 16, 3)}
  rendered = {"generated": draw(1, 16, 16, 3), "means": draw(1, 4, 3), "log_scales": draw(1, 4, 3),
              "visible": np.ones((1, 4), np.float32), "offsets": draw(1, 5, 3)}  # fmt: skip
  predicted = {"motion": draw(2, 5, 56)}
  terms = losses.joint_terms(weights, batch, predicted, rendered)
  assert set(terms) == {"mesh", "l1", "dssim", "position", "offset"}
  norms = [np.linalg.norm(a - b) for a, b in zip(predicted["motion"], batch["target"]["motion"])]
  np.testing.assert_allclose(terms["mesh"], np.mean(norms), rtol=1e-5)
