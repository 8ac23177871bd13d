"""The quantiser and L2L's layer, against loops in float64 written from the published definitions; steps against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsatalker_jax.baselines.motion import quantizing

KEY = jax.random.key(0)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def quantizer():
  """The module, its variables, and the codebook in numpy: seven codes, of which the last two are far from all tokens."""
  module = quantizing.Quantizer(7, 3)
  codebook = draw(7, 3, seed=1)
  codebook[5:] += 40
  return module, {"params": {"codebook": jnp.asarray(codebook / module.PACE)}}, codebook


def test_the_codebook_begins_uniformly_within_one_code():
  codebook = quantizing.Quantizer(50, 40).init_with_output(KEY, jnp.zeros((50,), int), method="vectors")[1]["params"]["codebook"]
  codes = quantizing.Quantizer.PACE * np.asarray(codebook)
  assert codes.shape == (50, 40) and 0.018 < codes.max() <= 0.02 and -0.02 <= codes.min() < -0.018
  assert abs(codes.std() - 0.02 / 3**0.5) < 5e-4


def test_the_nearest_code_by_euclid(quantizer):
  module, variables, codebook = quantizer
  tokens = draw(4, 5, 3)
  codes = module.apply(variables, tokens, method="nearest")
  wanted = np.linalg.norm(tokens[..., None, :] - codebook, axis=-1).argmin(-1)
  np.testing.assert_array_equal(codes, wanted)
  assert len(np.unique(codes)) > 2
  np.testing.assert_allclose(module.apply(variables, tokens), codebook[wanted], rtol=1e-5)
  np.testing.assert_allclose(module.apply(variables, codes, method="vectors"), codebook[wanted], rtol=1e-5)


def test_gradients_pass_to_the_tokens_and_not_to_the_codes(quantizer):
  module, variables, _ = quantizer
  tokens, weights = draw(4, 3), draw(4, 3, seed=2)
  of = lambda variables, tokens: jnp.sum(weights * module.apply(variables, tokens))
  to_codes, to_tokens = jax.grad(of, argnums=(0, 1))(variables, tokens)
  np.testing.assert_allclose(to_tokens, weights, rtol=1e-6)
  assert not np.any(to_codes["params"]["codebook"])


def test_terms_and_whom_each_of_them_moves(quantizer):
  module, variables, codebook = quantizer
  tokens = draw(2, 6, 3)
  flat = tokens.reshape(-1, 3).astype(np.float64)
  squares = ((flat[:, None] - codebook) ** 2).sum(-1)
  nearest = squares.argmin(1)
  idle = [k for k in range(7) if k not in nearest]
  assert {5, 6} <= set(idle) and len(idle) < 6
  towards = {k: flat[squares[:, k].argmin()] for k in idle}
  error = np.mean((flat - codebook[nearest]) ** 2)
  lost = sum(((codebook[k] - towards[k]) ** 2).sum() for k in idle) / codebook.size
  terms = module.apply(variables, tokens, method="terms")
  for name, wanted in dict(codebook=error, commitment=0.25 * error, idle=0.25 * lost).items():
    np.testing.assert_allclose(terms[name], wanted, rtol=1e-5)

  def pulls(name):
    of = lambda variables, tokens: module.apply(variables, tokens, method="terms")[name]
    codes, tokens_ = jax.grad(of, argnums=(0, 1))(variables, tokens)
    return np.asarray(codes["params"]["codebook"]) / module.PACE, np.asarray(tokens_)

  used = np.isin(np.arange(7), nearest)
  codes, none = pulls("codebook")
  pull = [2 * sum(codebook[k] - flat[i] for i in np.flatnonzero(nearest == k)) / flat.size for k in range(7)]
  np.testing.assert_allclose(codes, [np.broadcast_to(x, 3) for x in pull], atol=1e-5)
  assert not none.any()
  none, moved = pulls("commitment")
  np.testing.assert_allclose(moved.reshape(-1, 3), 0.5 * (flat - codebook[nearest]) / flat.size, atol=1e-6)
  assert not none.any()
  codes, none = pulls("idle")
  assert not none.any() and not codes[used].any()
  np.testing.assert_allclose(codes[idle], [0.5 * (codebook[k] - towards[k]) / codebook.size for k in idle], rtol=1e-4)


@pytest.mark.parametrize("stride, causal", [(1, False), (2, False), (1, True)])
def test_convolutions_repeat_the_ends(stride, causal):
  module = quantizing.EdgeConv(6, stride, causal)
  x = draw(2, 8, 3)
  made, variables = module.init_with_output(KEY, x)
  kernel = np.asarray(variables["params"]["taps"]["kernel"]).reshape(5, 3, 6)
  offset = -4 if causal else -2
  for b in range(2):
    for i, t in enumerate(range(0, 8, stride)):
      wanted = sum(x[b, np.clip(t + offset + k, 0, 7)] @ kernel[k] for k in range(5))
      np.testing.assert_allclose(made[b, i], wanted, atol=1e-5)
  assert made.shape == (2, 8 // stride, 6)


def test_convolutions_step_by_step():
  module = quantizing.EdgeConv(6, causal=True)
  x = draw(2, 9, 3)
  whole, variables = module.init_with_output(KEY, x)
  past = jnp.full((2, 4, 3), 50.0)  # What stands there before the first step is not looked at.
  for t in range(9):
    step, past = module.apply(variables, x[:, t], past, t, method="step")
    np.testing.assert_allclose(step, whole[:, t], rtol=1e-5, atol=1e-5)


def layer_in_loops(params, x, asking, visible, heads):
  """L2L's layer of one sequence: norm, attention scaled by the width, sum; norm, MLP with tanh-GELU, sum."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  kernel = lambda name: params[name]["kernel"]

  def norm(x, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * params[name]["scale"] + params[name]["bias"]

  x, width = x.astype(np.float64), x.shape[-1]
  context = norm(x, "attention_norm")
  query = (context if asking is None else asking) @ kernel("query")
  key, value, mixed = context @ kernel("key"), context @ kernel("value"), np.zeros_like(x)
  for h in range(heads):
    part = slice(h * width // heads, (h + 1) * width // heads)
    for t in range(len(x)):
      seen = [s for s in range(len(x)) if visible[t, s]]
      weights = np.exp([query[t, part] @ key[s, part] / np.sqrt(width) for s in seen])
      mixed[t, part] = sum(w * value[s, part] for w, s in zip(weights / weights.sum(), seen))
  x = x + mixed @ kernel("out") + params["out"]["bias"]
  hidden = norm(x, "mlp_norm") @ kernel("mlp_hidden") + params["mlp_hidden"]["bias"]
  hidden *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
  return x + hidden @ kernel("mlp_out") + params["mlp_out"]["bias"]


@pytest.fixture(scope="module")
def layer():
  module = quantizing.PreNormLayer(6, 3, 10)
  params = module.init(KEY, draw(2, 6))["params"]
  # Larger than they begin, so that attention is far from even; and biases and norms that are not 0 and 1.
  return module, jax.tree.map(lambda p: 2 * p + 0.1 * draw(*p.shape, seed=p.size), params)


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_layer_is_the_published(layer, asks, masked):
  module, params = layer
  x, asking = draw(2, 5, 6), draw(2, 5, 6, seed=3) if asks else None
  visible = np.tri(5, dtype=bool) if masked else None
  made = module.apply({"params": params}, x, asking=asking, visible=visible)
  for b in range(2):
    seen = np.ones((5, 5), bool) if visible is None else visible
    wanted = layer_in_loops(params, x[b], None if asking is None else asking[b], seen, heads=3)
    np.testing.assert_allclose(made[b], wanted, atol=2e-5)
  assert set(params["query"]) == set(params["key"]) == set(params["value"]) == {"kernel"}


def test_the_layer_step_by_step(layer):
  """With room for three frames each sees two behind itself, as masked."""
  module, params = layer
  x = draw(2, 9, 6)
  distance = np.arange(9)[:, None] - np.arange(9)
  whole = module.apply({"params": params}, x, visible=(distance >= 0) & (distance <= 2))
  cache = module.apply({"params": params}, (2,), 3, method="init_cache")
  for t in range(9):
    step, cache = module.apply({"params": params}, x[:, t], cache, t, method="step")
    np.testing.assert_allclose(step, whole[:, t], rtol=1e-5, atol=1e-5)
