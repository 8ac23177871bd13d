"""Selective Adam against a numpy loop over single Gaussians, and against optax where all are visible."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from splat_kernels import adam

SHAPES = {"means": (7, 3), "opacity_logits": (7,), "sh": (7, 4, 3)}
RATES = {"means": 3e-3, "opacity_logits": 0.05, "sh": np.float32([0.1, 0.01, 0.01, 0.01])[:, None]}
STEPS = 6


def make_run():
  r = np.random.default_rng(0)
  params = {name: r.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
  draw = lambda shape: (10.0 ** r.uniform(-9, 0, shape) * r.normal(size=shape)).astype(np.float32)
  gradients = [{name: draw(shape) for name, shape in SHAPES.items()} for _ in range(STEPS)]
  visible = r.uniform(size=(STEPS, 7)) < 0.5
  visible[:, 0], visible[:, 1] = True, False
  visible[:3, 2], visible[3:, 2] = False, True  # Seen late.
  return params, gradients, visible


def run(params, gradients, visible):
  step = jax.jit(lambda p, g, s, v: adam.selective_adam(p, g, s, v, rates=RATES))
  state = adam.init_state(params)
  for g, v in zip(gradients, visible):
    params, state = step(params, g, state, v)
  return jax.device_get((params, state))


def test_each_gaussian_takes_the_steps_in_which_it_is_visible():
  params, gradients, visible = make_run()
  found, state = run(params, gradients, visible)
  np.testing.assert_array_equal(state["steps"], visible.sum(0))
  for name, start in params.items():
    rate = np.broadcast_to(RATES[name], SHAPES[name])
    for i in range(7):
      value, first, second, t = start[i].astype(np.float64), 0.0, 0.0, 0
      for k in range(STEPS):
        if not visible[k, i]:
          continue
        g, t = gradients[k][name][i].astype(np.float64), t + 1
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        value = value - rate[i] * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-15)
      np.testing.assert_allclose(found[name][i], value, rtol=1e-5, atol=1e-6, err_msg=name)
      np.testing.assert_allclose(state["mean"][name][i], np.broadcast_to(first, value.shape), rtol=1e-5, atol=1e-12)
      np.testing.assert_allclose(state["square"][name][i], np.broadcast_to(second, value.shape), rtol=1e-4, atol=1e-24)
    np.testing.assert_array_equal(found[name][1], start[1])  # Never seen.


def test_with_all_visible_it_is_optax_adam():
  params, gradients, visible = make_run()
  found, _ = run(params, gradients, np.ones_like(visible))
  optimizer = optax.adam(1.0, eps=1e-15)
  expected, state = params, optimizer.init(params)
  for g in gradients:
    updates, state = optimizer.update(g, state)
    expected = jax.tree.map(lambda p, u, rate: p + rate * u, expected, updates, RATES)
  # optax takes 1 - 0.999^t in float32, which is off by up to 3e-5 in the first steps; the rate is 0.1 at most.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_forgotten_gaussians_begin_anew():
  params, gradients, visible = make_run()
  moved, state = run(params, gradients, visible)
  fresh = np.arange(7) == 3
  forgotten = jax.device_get(adam.forget_moments(state, fresh))
  for found, old in zip(jax.tree.leaves(forgotten), jax.tree.leaves(state), strict=True):
    assert not np.any(found[3]) and np.any(old[3]) and found.dtype == old.dtype
    np.testing.assert_array_equal(found[~fresh], old[~fresh])
  after, state = adam.selective_adam(moved, gradients[0], forgotten, jnp.array(fresh), rates=RATES)
  # The first step of an Adam is as long as its rate.
  np.testing.assert_allclose(moved["means"][3] - after["means"][3], 3e-3 * np.sign(gradients[0]["means"][3]), rtol=2e-3)
  np.testing.assert_array_equal(state["steps"], np.where(fresh, 1, forgotten["steps"]))
