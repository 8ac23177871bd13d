"""Labels reach the right arrays, frozen ones stay, rates follow their schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rsatalker_jax.training import optimizers

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
  learning_rates = {"means": 1e-2, "sh": 2e-3}
  rates = lambda name: optimizers.gaussian_schedule(learning_rates, 10, name, scene_extent=5.0, final_share=0.1)
  transform = optimizers.by_path(optimizers.gaussian_optimizer(learning_rates, rates, sh_rest_share=0.05))
  state, grads = transform.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
  sizes = []
  for _ in range(11):
    updates, state = transform.update(grads, state, PARAMS)
    sizes.append((-updates["avatar"]["means"][0, 0], -updates["avatar"]["sh"][0, 0, 0]))
  # Adam's step on a constant gradient is the rate.
  np.testing.assert_allclose(sizes[0], (5e-2, 2e-3), rtol=1e-4)
  np.testing.assert_allclose(sizes[10], (5e-3, 2e-4), rtol=1e-4)
  # The degrees above the constant move by a twentieth.
  sh = -updates["avatar"]["sh"]
  np.testing.assert_allclose(sh[:, 1:], np.broadcast_to(sh[:, :1] / 20, sh[:, 1:].shape), rtol=1e-5)


def test_biases_are_not_decayed():
  params = {"generator": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
  transform = optimizers.network_optimizer(0.1, 100, weight_decay=0.5)
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = transform.update(zero, transform.init(params), params)
  np.testing.assert_array_equal(updates["generator"]["bias"], 0)
  assert (updates["generator"]["kernel"] < 0).all()
