"""The Gaussians' optimizer against Adam as published and as PyTorch has it: ten steps on gradients of very unlike sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
from rsatalker_jax.training import optimizers

RATES = {"means": 3e-3, "quats": 1e-3, "log_scales": 0.017, "opacity_logits": 0.05, "sh": 2.5e-3}
SHAPES = {"means": (7, 3), "quats": (7, 4), "log_scales": (7, 3), "opacity_logits": (7,), "sh": (7, 9, 3)}
STEPS = 10


@pytest.fixture(scope="module")
def gradients():
  """By attribute (steps, ...); of single Gaussians they are tiny."""
  rng = np.random.default_rng(0)
  sizes = {name: 10.0 ** rng.uniform(-12, 0, shape) for name, shape in SHAPES.items()}
  return {name: (size * rng.normal(size=(STEPS, *size.shape))).astype(np.float32) for name, size in sizes.items()}


@pytest.fixture(scope="module")
def moved(gradients):
  """The way of each attribute in ten steps of the project's optimizer."""
  transform = optimizers.by_path(
      optimizers.gaussian_optimizer(RATES, lambda name: optax.constant_schedule(RATES[name]), sh_rest_share=1 / 20)
  )
  params = {"avatar": {name: jnp.zeros(shape) for name, shape in SHAPES.items()}}
  state = transform.init(params)
  update = jax.jit(transform.update)
  for step in range(STEPS):
    updates, state = update({"avatar": {name: g[step] for name, g in gradients.items()}}, state, params)
    params = optax.apply_updates(params, updates)
  return params["avatar"]


def assert_same_way(moved, expected):
  for name, way in expected.items():
    if name == "sh":
      way[:, 1:] /= 20
    # Sums of ten steps of either sign in float32.
    np.testing.assert_allclose(moved[name], way, atol=1e-4 * RATES[name], rtol=1e-3, err_msg=name)


def test_ways_are_those_of_the_paper(moved, gradients):
  """Kingma and Ba 2015, algorithm 1, in float64, with 3DGS's epsilon."""
  expected = {}
  for name, steps in gradients.items():
    first = second = way = np.zeros(SHAPES[name])
    for t, g in enumerate(steps.astype(np.float64), start=1):
      first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
      way = way - RATES[name] * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-15)
    expected[name] = way
  assert_same_way(moved, expected)


@oracles.needs("torch")
def test_ways_are_those_of_pytorch(moved, gradients):
  import torch

  params = {name: torch.zeros(shape, requires_grad=True) for name, shape in SHAPES.items()}
  groups = [dict(params=[value], lr=RATES[name]) for name, value in params.items()]
  adam = torch.optim.Adam(groups, eps=1e-15)
  for step in range(STEPS):
    for name, value in params.items():
      value.grad = torch.tensor(gradients[name][step])
    adam.step()
  assert_same_way(moved, {name: value.detach().numpy() for name, value in params.items()})
