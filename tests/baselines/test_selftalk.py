"""SelfTalk: layers without masks against loops, that no order is known, and what the reader of lips sees, costs and moves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motion_configs import motion_config
from rsatalker_jax.baselines.motion.clip_layers import ClipAttention, ClipLayer
from rsatalker_jax.baselines.motion.selftalk import LipReader, SelfTalk

SIZES = dict(
    features=8, heads=2, dropout=0.0, speech_layers=1, speech_kernel=1, speech_hidden=6, reader_features=4, reader_heads=2,
    reader_hidden=6, reader_layers=1, velocity=0.7, reading=0.3,
)  # fmt: skip
FRAMES = 9
RNG = np.random.default_rng(0)
SPEECH, MOTION = (jnp.asarray(RNG.normal(size=(FRAMES, width)), jnp.float32) for width in (5, 56))
INPUTS = SPEECH + 1, MOTION + 1, SPEECH, jnp.zeros(3)
MEAN, STD = jnp.linspace(-1, 1, 56), jnp.linspace(0.5, 2, 56)


def draw_params(module, *inputs):
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)


def make_variables(**changes):
  model = SelfTalk(motion_config(), **SIZES | changes)
  return model, {"params": draw_params(model, *INPUTS), "statistics": {"motion_mean": MEAN, "motion_std": STD}}


def reference_attention(params, queries, context, heads):
  dense = lambda name, x: np.asarray(x, np.float64) @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"])
  query, key, value = dense("query", queries), dense("key", context), dense("value", context)
  mixed, size = np.zeros_like(query), query.shape[1] // heads
  for h in range(heads):
    part = slice(h * size, (h + 1) * size)
    for t in range(len(query)):
      weights = np.exp(key[:, part] @ query[t, part] / np.sqrt(size))
      mixed[t, part] = weights / weights.sum() @ value[:, part]
  return dense("out", mixed)


@pytest.mark.parametrize("queries", ["own", "memory"])
def test_layer_equals_loops(queries):
  """Attention to oneself, then to memory where there is one, an MLP with ReLU; norms behind the sums."""
  layer = ClipLayer(8, 2, 6, 0.0, "float32")
  x, memory = (jnp.asarray(RNG.normal(size=(FRAMES, 8)), jnp.float32) for _ in range(2))
  given = (x, memory) if queries == "memory" else (x,)
  params = draw_params(layer, *given)
  dense = lambda name, x: x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])

  def norm(name, x):
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    return x * np.asarray(params[name]["scale"]) + np.asarray(params[name]["bias"])

  z = norm("attention_norm", np.asarray(x) + reference_attention(params["self_attention"], x, x, 2))
  if queries == "memory":
    z = norm("memory_norm", z + reference_attention(params["memory_attention"], z, memory, 2))
  expected = norm("mlp_norm", z + dense("mlp_out", np.maximum(dense("mlp_hidden", z), 0)))
  np.testing.assert_allclose(layer.apply({"params": params}, *given), expected, atol=2e-5)


def test_attention_in_blocks_equals_attention_at_once(monkeypatch):
  """Of a long clip, whose last block is not full, with padding behind it."""
  attention = ClipAttention(8, 2, 0.0, "float32")
  x = jnp.asarray(RNG.normal(size=(3, 14, 8)), jnp.float32)
  params = {"params": draw_params(attention, x, x)}
  expected = np.stack([reference_attention(params["params"], part[:11], part[:11], 2) for part in x])
  for block in (256, 4):
    monkeypatch.setattr(ClipAttention, "BLOCK", block)
    np.testing.assert_allclose(attention.apply(params, x, x, num_frames=11)[:, :11], expected, atol=2e-5)


def test_no_order_is_known():
  """With speech seen frame by frame, shuffled frames give the shuffled motion."""
  model, variables = make_variables()
  order = RNG.permutation(FRAMES)
  shuffled = model.apply(variables, *INPUTS[:2], SPEECH[order], INPUTS[3])
  whole = model.apply(variables, *INPUTS)
  np.testing.assert_allclose(shuffled, whole[order], atol=1e-4)
  bound = model.bind(variables)
  voice, out = bound.speech_adapter(SPEECH), variables["params"]["motion_out"]
  expected = MEAN + STD * (bound.layer(voice, voice) @ out["kernel"] + out["bias"])
  np.testing.assert_allclose(whole, expected, atol=1e-5)
  assert bound.layer.hidden == 16


def test_loss_is_of_motion_velocity_and_what_is_read():
  model, variables = make_variables()
  bound = model.bind(variables)
  y, truth = (bound(*INPUTS) - MEAN) / STD, (MOTION - MEAN) / STD
  read = bound.lip_reader(y, 5)
  rngs = {"dropout": jax.random.key(0)}
  terms = model.apply(variables, *INPUTS, MOTION, progress=0.0, method="training_terms", rngs=rngs)
  assert set(terms) == {"motion", "velocity", "reading"}
  np.testing.assert_allclose(terms["motion"], np.mean((y - truth) ** 2), rtol=1e-4)
  np.testing.assert_allclose(terms["velocity"], 0.7 * np.mean(np.diff(y - truth, axis=0) ** 2), rtol=1e-4)
  np.testing.assert_allclose(terms["reading"], 0.3 * np.mean((read - SPEECH) ** 2) / np.var(SPEECH), rtol=1e-4)


def test_reader_sees_face_and_jaw_and_not_the_heads_turn():
  reader = LipReader(4, 2, 6, 2, 0.0, "float32")
  params = {"params": draw_params(reader, MOTION, 5)}
  layers = {f"{side}_{i}" for side in ("encoder", "decoder") for i in (0, 1)}
  assert set(params["params"]) == {"lips", "memory_norm", "norm", "states", *layers}
  seen = jax.grad(lambda y: reader.apply(params, y, 5)[3, 1])(MOTION)
  assert (np.abs(seen).max(axis=0) > 0).tolist() == [True] * 53 + [False] * 3
  assert (np.abs(seen).max(axis=1) > 0).all()  # All frames, though there are no positions.
  # Both sides see the same sequence; memory and output have a norm of their own, as PyTorch's stacks have.
  bound = reader.bind(params)
  weights = params["params"]
  lips = MOTION[:, :53] @ weights["lips"]["kernel"] + weights["lips"]["bias"]
  apply = lambda name, *x: ClipLayer(4, 2, 6, 0.0, "float32").apply({"params": weights[name]}, *x)
  centred = lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
  norm = lambda name, x: centred(x) * weights[name]["scale"] + weights[name]["bias"]
  memory = norm("memory_norm", apply("encoder_1", apply("encoder_0", lips)))
  states = norm("norm", apply("decoder_1", apply("decoder_0", lips, memory), memory))
  expected = states @ weights["states"]["kernel"] + weights["states"]["bias"]
  np.testing.assert_allclose(bound(MOTION, 5), expected, atol=2e-5)


def test_reading_trains_the_motion_and_plays_no_part_in_generating():
  model, variables = make_variables()

  def reading(params):
    rngs = {"dropout": jax.random.key(0)}
    return model.apply(variables | {"params": params}, *INPUTS, MOTION, progress=0.0, method="training_terms", rngs=rngs)["reading"]

  gradient = jax.jit(jax.grad(reading))(variables["params"])
  assert all(np.abs(x).max() > 1e-6 for x in (gradient["motion_out"]["kernel"], gradient["lip_reader"]["lips"]["kernel"]))
  other = variables | {"params": variables["params"] | {"lip_reader": jax.tree.map(lambda x: x + 1, variables["params"]["lip_reader"])}}
  np.testing.assert_array_equal(model.apply(other, *INPUTS), model.apply(variables, *INPUTS))


def test_a_face_at_rest_does_not_explode_the_readers_gradient():
  """As motion is at first: behind a norm of nothing the gradient would be some hundred times that of the motion's error."""
  model = SelfTalk(motion_config(), **SIZES)
  variables = jax.jit(model.init)(jax.random.key(0), *INPUTS)

  def sizes(kernel):
    changed = {**variables["params"], "motion_out": {**variables["params"]["motion_out"], "kernel": kernel}}
    rngs = {"dropout": jax.random.key(0)}
    return model.apply(variables | {"params": changed}, *INPUTS, MOTION, progress=0.0, method="training_terms", rngs=rngs)

  gradients = jax.jit(jax.jacrev(sizes))(variables["params"]["motion_out"]["kernel"])
  assert 0 < np.linalg.norm(gradients["reading"]) < 10 * np.linalg.norm(gradients["motion"])


def test_dropout_is_drawn_in_training_alone():
  """In the generator's layer and in the reader's."""
  model, variables = make_variables(dropout=0.5)
  terms = lambda seed: model.apply(
      variables, *INPUTS, MOTION, progress=0.0, method="training_terms", rngs={"dropout": jax.random.key(seed)}
  )
  asked = set()

  def note(call, args, kwargs, context):
    if isinstance(context.module, nn.Dropout):
      asked.add((context.module.path[0], kwargs.get("deterministic", context.module.deterministic)))
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    assert terms(0)["motion"] != terms(1)["motion"]
  assert asked == {("layer", False), ("lip_reader", False)}
  np.testing.assert_array_equal(model.apply(variables, *INPUTS), make_variables()[0].apply(variables, *INPUTS))


def shares_of_zeros(module, params, *inputs, deterministic):
  """Behind each dropout of a module, by its path and in the order of its calls."""
  keep = dict(mutable=["intermediates"], capture_intermediates=lambda module, _: isinstance(module, nn.Dropout))
  apply = lambda params: module.apply({"params": params}, *inputs, deterministic=deterministic, rngs={"dropout": jax.random.key(0)}, **keep)
  found = {}
  for path, x in jax.tree_util.tree_leaves_with_path(jax.jit(apply)(params)[1]["intermediates"]):
    found.setdefault("/".join(key.key for key in path[:-2]), []).append(float(np.mean(x == 0)))
  return found


def test_dropout_is_on_weights_branches_and_in_the_mlp():
  """Behind each about half is zero, and without it nothing is; in all layers of the reader."""
  x, memory = (jnp.asarray(RNG.normal(size=(20, 16)), jnp.float32) for _ in range(2))
  layer = ClipLayer(16, 2, 16, 0.5, "float32")
  params = draw_params(layer, x, memory)
  params["memory_norm"]["bias"] += 100.0  # Where the ReLU cuts nothing off.
  params["mlp_hidden"] = {"kernel": jnp.ones((16, 16)), "bias": jnp.ones(16)}
  shares = shares_of_zeros(layer, params, x, memory, deterministic=False)
  calls = {"Dropout_0": 4, "self_attention/Dropout_0": 1, "memory_attention/Dropout_0": 1}
  assert {name: len(found) for name, found in shares.items()} == calls
  assert all(0.2 < share < 0.8 for found in shares.values() for share in found)
  assert all(share < 0.05 for found in shares_of_zeros(layer, params, x, memory, deterministic=True).values() for share in found)
  reader = LipReader(4, 2, 6, 2, 0.5, "float32")
  shares = shares_of_zeros(reader, draw_params(reader, MOTION, 5), MOTION, 5, deterministic=False)
  attention = {name: found for name, found in shares.items() if "attention" in name}
  assert len(attention) == 2 + 4 and all(0.2 < found[0] < 0.8 for found in attention.values())
