"""Labels reach the right arrays, frozen ones stay, rates follow their schedules."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.demo import get_config as demo_config
from configs.rsatalker import get_config as rsatalker_config
from rsatalker_jax.baselines.motion import make_generator
from rsatalker_jax.motion import MotionConfig
from rsatalker_jax.social import GaussianOffsetNet, SocialModule
from rsatalker_jax.training import optimizers, rendering

PARAMS = {"generator": {"w": jnp.ones((2, 2))}, "avatar": {"means": jnp.ones((3, 3)), "sh": jnp.ones((3, 4, 3))}}


def step(transform, params=PARAMS):
  updates, _ = transform.update(jax.tree.map(jnp.ones_like, params), transform.init(params), params)
  return updates


def test_longest_prefix_wins_and_the_rest_is_frozen():
  updates = step(optimizers.by_path({"avatar": optax.sgd(1.0), "avatar/sh": optax.sgd(10.0)}))
  np.testing.assert_array_equal(updates["generator"]["w"], 0)
  np.testing.assert_array_equal(updates["avatar"]["means"], -1)
  np.testing.assert_array_equal(updates["avatar"]["sh"], -10)


def test_misspelt_label_is_an_error():
  with pytest.raises(ValueError, match="avatar/mean'"):
    optimizers.by_path({"avatar/mean": optax.sgd(1.0)}).init(PARAMS)


def test_gaussian_rates_use_the_extent_and_decay():
  learning_rates, final_shares = {"means": 1e-2, "sh": 2e-3}, {"means": 0.1, "sh": 0.5}
  rates = lambda name: optimizers.gaussian_schedule(
      learning_rates, 10, name, scene_extent=5.0, final_shares=final_shares
  )
  transform = optimizers.by_path(optimizers.gaussian_optimizer(learning_rates, rates, sh_rest_share=0.05))
  state, grads = transform.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
  sizes = []
  for _ in range(11):
    updates, state = transform.update(grads, state, PARAMS)
    sizes.append((-updates["avatar"]["means"][0, 0], -updates["avatar"]["sh"][0, 0, 0]))
  # Adam's step on a constant gradient is the rate.
  np.testing.assert_allclose(sizes[0], (5e-2, 2e-3), rtol=1e-4)
  np.testing.assert_allclose(sizes[10], (5e-3, 1e-3), rtol=1e-4)
  # The degrees above the constant move by a twentieth.
  sh = -updates["avatar"]["sh"]
  np.testing.assert_allclose(sh[:, 1:], np.broadcast_to(sh[:, :1] / 20, sh[:, 1:].shape), rtol=1e-5)


def expon_lr(step, first, last, steps):
  """Positions' rate in 3DGS and GaussianAvatars."""
  return np.exp((1 - step / steps) * np.log(first) + step / steps * np.log(last))


def test_rates_of_the_configs():
  for config, last in (
      (demo_config().avatar, dict(means=2e-3, quats=1e-3, log_scales=3e-3, opacity_logits=5e-3, sh=3e-3)),
      # GaussianAvatars': positions alone decay.
      (rsatalker_config().avatar, dict(means=5e-5, quats=1e-3, log_scales=1.7e-2, opacity_logits=5e-2, sh=2.5e-3)),
  ):
    rates = rendering.gaussian_rates(config, config.steps)
    assert set(config.final_learning_rates) == set(config.learning_rates) == set(last)
    for name in last:
      for step in (0, config.steps // 3, config.steps):
        expected = expon_lr(step, config.learning_rates[name], last[name], config.steps)
        np.testing.assert_allclose(rates(name)(step), expected, rtol=1e-5)


def test_a_stage_that_continues_starts_from_the_rates_the_other_ended_with():
  config = rsatalker_config().avatar
  config.scene_extent = 3.0
  for share, final_share, warmup in ((1.0, 1.0, 20), (0.5, 0.1, 20), (3.0, 0.1, 0)):
    rates = rendering.continued_gaussian_rates(config, 200, share=share, final_share=final_share, warmup=warmup)
    for name, ended in dict(means=3 * 5e-5, log_scales=1.7e-2).items():
      expected = {0: 0 if warmup else share * ended, 20: None, 200: share * ended * final_share}
      if warmup:
        expected |= {5: share * ended / 4, 20: share * ended}
        middle = 110
      else:
        middle = 100
      expected[middle] = share * ended * final_share**0.5
      for step, rate in expected.items():
        if rate is not None:
          np.testing.assert_allclose(rates(name)(step), rate, rtol=2e-5)


def test_three_times_the_final_rates_without_warm_up_are_the_demos_share_of_the_first():
  config = demo_config()
  before = rendering.gaussian_rates(config.avatar, config.joint.steps)
  after = rendering.continued_gaussian_rates(config.avatar, config.joint.steps, share=3.0, final_share=0.1, warmup=0)
  for name in config.avatar.learning_rates:
    for step in (0, 50, 120):
      np.testing.assert_allclose(after(name)(step), 0.3 * before(name)(step), rtol=1e-6)


def test_warm_up_spares_what_only_noise_pulls_on():
  """The way of 1000 numbers whose gradients are noise, in the first steps of new moments and in as many later ones."""
  r = np.random.default_rng(0)

  def way(schedule, first, steps):
    optimizer = optax.adam(schedule, eps=1e-15)
    params = jnp.zeros(1000)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    lengths = []
    for _ in range(first + steps):
      updates, state = update(jnp.asarray(1e-9 * r.normal(size=1000), jnp.float32), state)
      lengths.append(float(jnp.sqrt(jnp.mean(updates**2))))
    return np.array(lengths[first:])

  constant = way(optax.constant_schedule(1.0), 0, 60)
  np.testing.assert_allclose(constant[0], 1, rtol=1e-3)  # The rate itself, for gradients of 1e-9.
  assert 0.15 < constant[40:].mean() < 0.3  # sqrt((1 - b1) / (1 + b1)) = 0.23 once the moments have settled.
  warm = optimizers.continued_schedule(optax.constant_schedule(1.0), 10, 1000, share=1.0, final_share=1.0, warmup=60)
  assert way(warm, 0, 60).max() < 0.3


# What the arrays of the networks are, by the ends of their paths.
KINDS = {
    "embedding": r"relation_embedding/\w+$",
    "norm": r"(norm|norm_\d+|\w+_norm|LayerNorm_\d+)/(scale|bias)$",
    "distance": r"/distance_bias$",
    "bias": r"(?<!norm)(?<!norm_\d)(?<!LayerNorm_\d)/bias$",
    "kernel": r"/kernel$",
}


def test_kernels_alone_decay_in_the_real_networks():
  found = dict.fromkeys(KINDS, 0)
  for config in (rsatalker_config(), rsatalker_config("dualtalk"), demo_config()):
    generator = make_generator(MotionConfig(**config.generator), config.baselines)
    offsets = GaussianOffsetNet(num_anchors=3, hidden=config.social.offsets_hidden)
    social = SocialModule(config.generator.features)
    speech = jnp.zeros((4, 3))
    params = jax.eval_shape(lambda key: {
        "generator": {"params": generator.init(key, speech, jnp.zeros((4, 56)), speech, jnp.zeros(config.generator.features))["params"]},
        "social": social.init(key, jnp.zeros(2, jnp.int32)),
        "offsets": offsets.init(key, jnp.zeros(8), jnp.zeros(()), jnp.zeros(56)),
    }, jax.random.key(0))
    for path, decays in jax.tree_util.tree_leaves_with_path(optimizers.is_decayed(params)):
      name = "/".join(entry.key for entry in path)
      kinds = [kind for kind, pattern in KINDS.items() if re.search(pattern, name)]
      assert len(kinds) == 1, (name, kinds)
      assert decays == (kinds == ["kernel"]), name
      found[kinds[0]] += 1
  assert all(found.values()), found


def test_decay_shrinks_kernels_by_rate_and_weight():
  params = {"generator": {"layer": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}, "distance_bias": jnp.ones((2, 2))}}
  transform = optimizers.network_optimizer(0.1, 100, weight_decay=0.5)
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = transform.update(zero, transform.init(params), params)
  np.testing.assert_allclose(updates["generator"]["layer"]["kernel"], -0.1 * 0.5 * 3, rtol=1e-6)
  np.testing.assert_array_equal(updates["generator"]["layer"]["bias"], 0)
  np.testing.assert_array_equal(updates["generator"]["distance_bias"], 0)
