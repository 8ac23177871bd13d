"""What motion baselines share, against loops in float64 written from the published definitions; steps against the whole."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsatalker_jax.baselines.motion import layers

LAYER = dict(features=8, heads=2, hidden=6, period=3, reach=7)


def test_position_code_is_the_published_one():
  """Sine and cosine of (t mod p) / 10000^(2i/d), in turns; a period and a century later it is the same."""
  code = np.asarray(layers.encode_periodic(np.arange(9), 6, 4))
  for t in range(9):
    for i in range(3):
      angle = (t % 4) / 10_000 ** (2 * i / 6)
      np.testing.assert_allclose(code[t, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], atol=1e-6)
  century = 100 * 365 * 86_400 // 4 * 4
  np.testing.assert_array_equal(layers.encode_periodic(century % 2**30 + np.arange(9), 6, 4), code)
  assert layers.encode_periodic(5, 7, 4).shape == (7,)


def test_bias_is_a_step_for_each_whole_period():
  distance = np.arange(-2, 12)
  bias = np.asarray(layers.periodic_bias(distance, 4, 3, 10))
  for h, slope in enumerate([1 / 4, 1 / 16, 1 / 64, 1 / 256]):
    steps = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]  # Of 0 … 10 frames back.
    np.testing.assert_allclose(bias[h, 2:13], -slope * np.array(steps))
  assert (bias[:, :2] < -1e8).all() and (bias[:, 13] < -1e8).all()  # Ahead, and beyond the reach.
  assert layers.periodic_bias(np.zeros((2, 5), int), 3, 3, 10).shape == (3, 2, 5)


def make_layer(frames, memory=5, batch=(), **changes):
  layer = layers.DecoderLayer(**LAYER | changes)
  rng = np.random.default_rng(frames)
  draw = lambda width: jnp.asarray(rng.normal(size=(*batch, frames, width)), jnp.float32)
  inputs = draw(layer.features), draw(memory)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), *inputs)
  params = jax.tree.map(lambda x: jnp.asarray(0.7 * rng.normal(size=x.shape), x.dtype), shapes)
  return layer, params, inputs


def reference_layer(params, x, memory, *, heads, period, reach):
  """PyTorch's decoder layer with FaceFormer's masks, frame by frame."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
  dense = lambda part, x: x @ part["kernel"] + part["bias"]
  norm = lambda part, x: (x - x.mean()) / np.sqrt(x.var() + 1e-5) * part["scale"] + part["bias"]
  x, memory = np.asarray(x, np.float64), np.asarray(memory, np.float64)
  own, size, made = p["self_attention"], x.shape[1] // heads, []
  query, key, value = (dense(own[name], x) for name in ("query", "key", "value"))
  for t in range(len(x)):
    mixed = np.zeros(x.shape[1])
    for h in range(heads):
      part, frames = slice(h * size, (h + 1) * size), range(max(0, t - reach), t + 1)
      logits = np.array([query[t, part] @ key[j, part] / np.sqrt(size) - 2 ** (-8 * (h + 1) / heads) * ((t - j) // period)
                         for j in frames])
      weights = np.exp(logits - logits.max())
      mixed[part] = weights / weights.sum() @ value[list(frames), part]
    z = norm(p["attention_norm"], x[t] + dense(own["out"], mixed))
    z = norm(p["memory_norm"], z + dense(p["memory_attention"]["out"], dense(p["memory_attention"]["value"], memory[t])))
    made.append(norm(p["mlp_norm"], z + dense(p["mlp_out"], np.maximum(dense(p["mlp_hidden"], z), 0))))
  return np.stack(made)


@pytest.mark.parametrize("frames", [1, 7, 8, 19])
def test_layer_equals_reference_at_once_and_by_steps(frames):
  """Shorter than the reach, as long, and with a ring that has gone round twice."""
  layer, params, (x, memory) = make_layer(frames)
  expected = reference_layer(params, x, memory, heads=2, period=3, reach=7)
  np.testing.assert_allclose(jax.jit(layer.apply)(params, x, memory), expected, atol=2e-5)

  aligned = layer.apply(params, memory, method="align")
  cache = layer.apply(params, (), frames, method="init_cache")
  assert cache[0].shape == (min(frames, 8), 2, 4)  # However long the clip is.
  step = jax.jit(lambda params, *given: layer.apply(params, *given, method="step"))
  for t in range(frames):
    made, cache = step(params, x[t], aligned[t], cache, t)
    np.testing.assert_allclose(made, expected[t], atol=2e-5)


def test_leading_dimensions_are_independent():
  layer, params, (x, memory) = make_layer(9, batch=(2, 3))
  apply = jax.jit(layer.apply)
  whole, aligned = apply(params, x, memory), layer.apply(params, memory, method="align")
  np.testing.assert_allclose(whole[1, 2], apply(params, x[1, 2], memory[1, 2]), atol=1e-5)
  cache = layer.apply(params, (2, 3), 9, method="init_cache")
  step = jax.jit(lambda params, *given: layer.apply(params, *given, method="step"))
  for t in range(2):
    made, cache = step(params, x[..., t, :], aligned[..., t, :], cache, t)
    np.testing.assert_allclose(made, whole[..., t, :], atol=1e-5)


def test_memory_grows_with_the_length_not_its_square():
  layer, params, _ = make_layer(50)

  def temporaries(frames):
    x, memory = (jax.ShapeDtypeStruct((frames, width), jnp.float32) for width in (8, 5))
    return jax.jit(layer.apply).lower(params, x, memory).compile().memory_analysis().temp_size_in_bytes

  assert temporaries(20_000) < 12 * temporaries(2_000)  # Ten times the frames; the square would be a hundred.


def dropped(layer, params, *given, **options):
  """Shares of zeros behind each dropout of a layer, by submodule and in the order of the calls."""
  keep = dict(mutable=["intermediates"], capture_intermediates=lambda module, _: isinstance(module, nn.Dropout))
  apply = jax.jit(lambda *given: layer.apply(*given, rngs={"dropout": jax.random.key(1)}, **keep, **options))
  _, state = apply(params, *given)
  parts = {}
  for path, x in jax.tree_util.tree_leaves_with_path(state["intermediates"]):
    parts.setdefault(path[0].key if len(path) == 3 else path[0].key + "/" + path[1].key, []).append(np.mean(x == 0))
  return parts


def test_dropout_is_on_weights_branches_and_the_mlp_when_asked():
  """Of half of all: behind each dropout about half is zero, and without nothing is."""
  layer, params, (x, memory) = make_layer(30, dropout=0.5, features=32, hidden=32, reach=40)
  params["params"]["mlp_hidden"] = jax.tree.map(lambda x: 0 * x + 1, params["params"]["mlp_hidden"])
  params["params"]["attention_norm"]["bias"] += 50.0  # Where the ReLU cuts nothing off.
  params["params"]["memory_norm"]["bias"] += 50.0
  cache, aligned = layer.apply(params, (), 30, method="init_cache"), jnp.ones(32)
  for deterministic in (False, True):
    whole = dropped(layer, params, x, memory, deterministic=deterministic)
    stepped = dropped(layer, params, x[0], aligned, cache, 20, deterministic=deterministic, method="step")
    assert {name: len(shares) for name, shares in whole.items()} == {
        "drop": 4, "self_attention/drop": 1, "memory_attention/Dropout_0": 1,
    }  # fmt: skip
    assert {name: len(shares) for name, shares in stepped.items()} == {"drop": 3, "self_attention/drop": 1}
    attention = whole.pop("self_attention/drop") + stepped.pop("self_attention/drop")
    future = np.array([29 / 60, 9 / 30])  # Shares of the weights.
    np.testing.assert_allclose(attention, future if deterministic else (1 + future) / 2, atol=0.02 if deterministic else 0.15)
    for share in [share for shares in (*whole.values(), *stepped.values()) for share in shares]:
      assert share == 0 if deterministic else 0.2 < share < 0.8
  run = jax.jit(lambda key: layer.apply(params, x, memory, deterministic=False, rngs={"dropout": key}))
  assert not np.allclose(run(jax.random.key(1)), run(jax.random.key(2)))


def test_dropout_leaves_weights_and_heads_out():
  """Of one key alone whole heads are left out; of several keys those whose weight falls to nothing."""
  drop = dict(deterministic=False, rngs={"dropout": jax.random.key(0)})
  aligned = layers.AlignedAttention(features=8, heads=2, dropout=0.5)
  dense = lambda kernel, bias: {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.full(8, float(bias))}
  weights = {"params": {"value": dense(np.zeros((5, 8)), 1), "out": dense(np.eye(8), 0)}}
  heads = np.asarray(aligned.apply(weights, jnp.ones((50, 5)), **drop)).reshape(50, 2, 4)
  assert (heads == heads[..., :1]).all() and set(np.unique(heads)) == {0.0, 2.0}

  attention = layers.PeriodicAttention(8, 2, 3, 7, dropout=0.5)
  value = lambda name: dense(np.eye(8) * (name == "out"), name == "value")
  ones = {"params": {name: value(name) for name in ("query", "key", "value", "out")}}
  x = jnp.ones((9, 8))
  assert np.ptp(attention.apply(ones, x)) < 1e-6 < 0.1 < np.ptp(attention.apply(ones, x, **drop))
  first = [attention.apply(ones, x[0], attention.init_cache((), 9), 0, deterministic=False, method="step",
                           rngs={"dropout": jax.random.key(seed)})[0] for seed in range(8)]  # fmt: skip
  assert set(np.unique(first)) == {0.0, 2.0}


def test_bfloat16_keeps_float32_parameters():
  layer, params, (x, memory) = make_layer(9, dtype="bfloat16")
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(jax.eval_shape(layer.init, jax.random.key(0), x, memory)))
  exact = layers.DecoderLayer(**LAYER).apply(params, x, memory)
  rough = layer.apply(params, x, memory)
  assert rough.dtype == jnp.bfloat16
  assert np.sqrt(np.mean((exact - rough.astype(jnp.float32)) ** 2)) < 0.05 * exact.std()
