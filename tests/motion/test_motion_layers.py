"""Windowed attention against plain loops, and what it promises about reach and length."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsatalker_jax.motion import layers

KEY = jax.random.key(0)


def reference_attention(params, queries, context, heads, reach, ahead):
  """Frame by frame in float64: each query with its visible keys, one head after the other."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  dense = lambda name, x: np.asarray(x, np.float64) @ params[name]["kernel"] + params[name]["bias"]
  q, k, v = dense("query", queries), dense("key", context), dense("value", context)
  frames, width = q.shape
  size = width // heads
  mixed = np.zeros_like(q)
  for t in range(frames):
    low, high = max(0, t - reach), min(frames, t + ahead + 1)
    for h in range(heads):
      part = slice(h * size, (h + 1) * size)
      logits = k[low:high, part] @ q[t, part] / np.sqrt(size)
      logits += params["distance_bias"][h, np.arange(low, high) - t + reach]
      weights = np.exp(logits - logits.max())
      mixed[t, part] = weights / weights.sum() @ v[low:high, part]
  return dense("out", mixed)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("frames", [1, 4, 5, 13, 20])
def test_attention_equals_reference(frames, causal):
  module = layers.WindowAttention(features=8, heads=2, reach=5, causal=causal)
  queries, context = (jax.random.normal(jax.random.key(i), (frames, 8 + 2 * i)) for i in range(2))
  params = module.init(KEY, queries, context)
  ahead = 0 if causal else 5
  params["params"]["distance_bias"] = jax.random.normal(jax.random.key(3), (2, 6 + ahead))
  out = module.apply(params, queries, context)
  np.testing.assert_allclose(out, reference_attention(params["params"], queries, context, 2, 5, ahead), atol=2e-6)


@pytest.mark.parametrize("frames", [1, 8, 20])
@pytest.mark.parametrize("ahead", [1, 7])
def test_attention_ahead_equals_reference(frames, ahead):
  """Queries come late; what is not known, at the end and at the beginning, is not seen."""
  module = layers.WindowAttention(features=8, heads=2, reach=5, causal=True, ahead=ahead)
  queries, context = (np.array(jax.random.normal(jax.random.key(i), (frames, 8 + 2 * i))) for i in range(2))
  late = np.concatenate([np.full((ahead, 8), 3.0), queries])
  padded = np.concatenate([context, np.full((ahead, 10), 7.0)])
  known = np.arange(frames + ahead) < frames
  params = jax.jit(module.init)(KEY, late, padded, known=known)
  start = params["params"]["distance_bias"]
  assert start.shape == (2, 6 + ahead) and (np.argmax(start, axis=1) == 5).all()  # At first the frame itself counts most.
  params["params"]["distance_bias"] = jax.random.normal(jax.random.key(3), start.shape)
  out = jax.jit(module.apply)(params, late, padded, known=known)[ahead:]
  np.testing.assert_allclose(out, reference_attention(params["params"], queries, context, 2, 5, ahead), atol=2e-6)


def test_leading_dimensions_are_independent():
  module = layers.WindowAttention(features=8, heads=4, reach=3)
  x = jax.random.normal(KEY, (2, 3, 10, 8))
  params, apply = jax.jit(module.init)(KEY, x, x), jax.jit(module.apply)
  batched = apply(params, x, x)
  for i in range(2):
    for j in range(3):
      np.testing.assert_allclose(batched[i, j], apply(params, x[i, j], x[i, j]), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_reach_is_exact(causal):
  """The gradient of one output frame touches the context frames within reach, and no others."""
  module = layers.WindowAttention(features=4, heads=1, reach=3, causal=causal)
  x = jax.random.normal(KEY, (17, 4))
  params = jax.jit(module.init)(KEY, x, x)
  pull = jax.jit(lambda t: jax.grad(lambda context: module.apply(params, x, context)[t].sum())(x))
  for t in (0, 5, 16):
    grads = pull(t)
    touched = np.flatnonzero(np.abs(grads).max(axis=1))
    np.testing.assert_array_equal(touched, np.arange(max(0, t - 3), min(16, t if causal else t + 3) + 1))


def test_position_enters_by_distance_alone():
  """Away from the ends, the same content later in a long clip gives the same output."""
  layer = layers.TransformerLayer(features=8, heads=2, reach=4)
  x = jax.random.normal(KEY, (30, 8))
  params, apply = jax.jit(layer.init)(KEY, x), jax.jit(layer.apply)
  long = jnp.concatenate([jax.random.normal(jax.random.key(1), (501, 8)), x, x])
  np.testing.assert_allclose(apply(params, long)[505:525], apply(params, x)[4:24], atol=1e-5)


def test_heads_begin_with_different_views():
  bias = layers._init_distance_bias(KEY, (4, 51), 25)
  weights = np.exp(bias) / np.exp(bias).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(bias, bias[:, ::-1])
  np.testing.assert_array_equal(layers._init_distance_bias(KEY, (4, 26), 25), bias[:, :26])  # Causal: the past half.
  spread = np.sqrt((weights * (np.arange(51) - 25.0) ** 2).sum(axis=1))
  assert (np.diff(spread) > 0).all() and spread[0] < 5 and spread[-1] > 10


def test_memory_grows_with_the_length_not_its_square():
  module = layers.WindowAttention(features=32, heads=4, reach=25)
  params = module.init(KEY, jnp.zeros((50, 32)), jnp.zeros((50, 32)))

  def temporaries(frames):
    x = jax.ShapeDtypeStruct((frames, 32), jnp.float32)
    return jax.jit(module.apply).lower(params, x, x).compile().memory_analysis().temp_size_in_bytes

  assert temporaries(20_000) < 12 * temporaries(2_000)  # Ten times the frames; the square would be a hundred.


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("frames", [1, 11])
@pytest.mark.parametrize("layer", ["attention", "transformer", "conv"])
def test_what_is_beyond_the_clip_is_not_seen(layer, frames, causal):
  """A clip padded with anything gives the clip's own frames; its length is not known to the program."""
  module = {
      "attention": layers.WindowAttention(features=8, heads=2, reach=5, causal=causal),
      "transformer": layers.TransformerLayer(features=8, heads=2, reach=5, causal=causal),
      "conv": layers.FrameConv(features=3, kernel=5, stride=2, causal=causal),
  }[layer]
  inputs = [jax.random.normal(jax.random.key(i), (2, frames, 8)) for i in range(2 if layer == "attention" else 1)]
  padded = [jnp.pad(x, [(0, 0), (0, 13 - frames), (0, 0)], constant_values=50.0) for x in inputs]
  params = module.init(KEY, *inputs)
  out = jax.jit(module.apply)(params, *padded, num_frames=frames)
  np.testing.assert_allclose(out[:, :frames], module.apply(params, *inputs), atol=1e-5)
  assert np.isfinite(out).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_frame_conv_equals_numpy(stride, causal):
  module = layers.FrameConv(features=3, kernel=5, stride=stride, causal=causal)
  x = np.random.default_rng(0).normal(size=(11, 2)).astype(np.float32)
  params = module.init(KEY, x)
  kernel = np.zeros((4 * stride + 1, 2, 3))  # Zeros between the taps.
  kernel[::stride] = np.asarray(params["params"]["taps"]["kernel"]).reshape(5, 2, 3)
  expected = sum(
      np.stack([np.convolve(x[:, c], kernel[::-1, c, d])[:11] if causal else
                np.convolve(x[:, c], kernel[::-1, c, d], "same") for d in range(3)], 1) for c in range(2)
  )
  np.testing.assert_allclose(module.apply(params, x), expected, atol=1e-5)


def test_adaptive_norm_follows_its_condition():
  module = layers.AdaptiveNorm()
  x, condition = jax.random.normal(KEY, (2, 5, 8)), jax.random.normal(jax.random.key(1), (2, 3))
  params = module.init(KEY, x, condition)
  normed = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(module.apply(params, x, condition), normed, atol=1e-5)  # Plain at the start.
  kernel = jax.random.normal(jax.random.key(2), (3, 16))
  params["params"]["modulation"]["kernel"] = kernel
  scale, shift = np.split(np.asarray(condition @ kernel), 2, axis=-1)
  expected = normed * (1 + scale[:, None]) + shift[:, None]
  np.testing.assert_allclose(module.apply(params, x, condition), expected, atol=1e-4)
  assert "modulation" not in module.init(KEY, x)["params"]


def test_dropout_only_when_asked():
  layer = layers.TransformerLayer(features=8, heads=2, reach=4, dropout=0.5)
  x = jax.random.normal(KEY, (9, 8))
  params, apply = jax.jit(layer.init)(KEY, x), jax.jit(layer.apply)
  run = jax.jit(lambda seed: layer.apply(params, x, deterministic=False, rngs={"dropout": jax.random.key(seed)}))
  np.testing.assert_array_equal(apply(params, x), apply(params, x))
  assert not np.allclose(run(1), run(2))
  np.testing.assert_array_equal(run(1), run(1))


def test_what_a_layer_keeps_for_its_gradients():
  """The same numbers from less: of inputs of 60 frames "full" keeps them alone, "dots" matrix products with weights too."""
  x, condition = jnp.asarray(np.random.default_rng(0).normal(size=(3, 60, 8)), jnp.float32), jnp.ones((3, 8))
  found, kept = {}, {}
  for remat in ("none", "dots", "full"):
    layer = layers.TransformerLayer(features=8, heads=2, reach=4, dropout=0.5, remat=remat)
    params = jax.jit(lambda: jax.tree.map(lambda p: p + 0.1, layer.init(jax.random.key(0), x, condition)))()
    apply = lambda params, x: layer.apply(params, x, condition, deterministic=False, rngs={"dropout": jax.random.key(1)})
    found[remat] = jax.jit(jax.value_and_grad(lambda *given: jnp.sum(apply(*given) ** 2), argnums=(0, 1)))(params, x)
    residuals = jax.eval_shape(lambda *given: jax.vjp(apply, *given)[1], params, x)
    kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(residuals) if leaf.shape[:1] == (3,) and leaf.ndim > 2)
  chex.assert_trees_all_close(found["dots"], found["none"], rtol=1e-5, atol=1e-5)
  chex.assert_trees_all_close(found["full"], found["none"], rtol=1e-5, atol=1e-5)
  frames = x.size  # Of arrays as wide as the input.
  # Query, key, value, their mixture's product, hidden (twice as wide) and output of the MLP.
  assert kept["full"] <= 2 * frames < kept["dots"] <= 9 * frames < kept["none"] / 2
