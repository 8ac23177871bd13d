"""DualTalk: what its wiring sees and what it does not, its layers against PyTorch's, its loss by hand; and how generators are named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from motion_configs import motion_config
from rsatalker_jax.baselines.motion import BASELINES, DualTalk, make_generator
from rsatalker_jax.baselines.motion.clip_layers import ClipLayer
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import MotionGenerator, clips

SIZES = dict(features=8, heads=2, encoder_layers=1, hidden=12, motion_hidden=6, dropout=0.0, attention_dropout=0.0,
             positions=False, speech_layers=1, speech_kernel=1, speech_hidden=4)  # fmt: skip
FRAMES = 9
SOCIAL = np.linspace(-1, 1, 8, dtype=np.float32)


def make_inputs(frames=FRAMES):
  rng = np.random.default_rng(frames)
  draw = lambda width: rng.normal(size=(frames, width)).astype(np.float32)
  return dict(speech_a=draw(5), motion_a=draw(56), speech_b=draw(5))


@pytest.fixture(scope="module")
def dualtalk():
  """Random parameters, so that nothing is zero, and statistics that are not 0 and 1."""
  model = make_generator(motion_config(architecture="dualtalk"), {"dualtalk": SIZES})
  assert isinstance(model, DualTalk)
  shapes = jax.eval_shape(model.init, jax.random.key(0), **make_inputs(3), social=SOCIAL)["params"]
  rng = np.random.default_rng(0)
  draw = lambda path, x: np.ones(x.shape) if path[-1].key == "scale" else rng.normal(size=x.shape)
  params = jax.tree_util.tree_map_with_path(lambda path, x: jnp.asarray(draw(path, x), x.dtype), shapes)
  statistics = {"motion_mean": jnp.linspace(-1, 1, 56), "motion_std": jnp.linspace(0.5, 2, 56)}
  return model, {"params": params, "statistics": statistics}


def test_every_frame_sees_all_of_both(dualtalk):
  """A's first frame reaches B's last and the other way round, by voice and by motion; B's own voice, too."""
  model, variables = dualtalk
  apply, inputs = jax.jit(model.apply), make_inputs()
  whole = np.asarray(apply(variables, **inputs, social=SOCIAL))
  assert whole.shape == (FRAMES, 56) and whole.dtype == np.float32
  for name in inputs:
    for frame in (0, FRAMES - 1):
      changed = {**inputs, name: inputs[name].copy()}
      changed[name][frame] += 2
      assert (np.abs(apply(variables, **changed, social=SOCIAL) - whole).max(axis=1) > 1e-6).all()
  np.testing.assert_array_equal(apply(variables, **inputs, social=-SOCIAL), whole)


def test_the_order_of_as_frames_comes_from_the_lstm(dualtalk):
  """Without it frames are a set: permuted, the motion is permuted."""
  model, variables = dualtalk
  lstm = {name: x for name, x in variables["params"].items() if "LSTM" in name}
  assert len(lstm) == 4
  still = {**variables, "params": variables["params"] | jax.tree.map(jnp.zeros_like, lstm)}
  order = np.random.default_rng(1).permutation(FRAMES)
  permuted = {name: x[order] for name, x in make_inputs().items()}
  apply = lambda given, inputs: np.asarray(jax.jit(model.apply)(given, **inputs, social=SOCIAL))
  np.testing.assert_allclose(apply(still, permuted), apply(still, make_inputs())[order], atol=1e-5)
  assert np.abs(apply(variables, permuted) - apply(variables, make_inputs())[order]).max() > 1e-3
  placed = dataclasses.replace(model, positions=True)
  apply = lambda inputs: np.asarray(jax.jit(placed.apply)(still, **inputs, social=SOCIAL))
  assert np.abs(apply(permuted) - apply(make_inputs())[order]).max() > 1e-3


def test_padded_clips_equal_clips_alone(dualtalk):
  model, variables = dualtalk
  inputs = make_inputs(40)
  padded = clips.pad_clip(**inputs)
  for name in inputs:
    padded[name][40:] = 9.0
  apply = jax.jit(model.apply)
  motion = apply(variables, **padded, social=SOCIAL)[:40]
  np.testing.assert_allclose(motion, apply(variables, **inputs, social=SOCIAL), atol=2e-5 * np.abs(motion).max())


def test_its_loss_by_hand(dualtalk):
  model, variables = dualtalk
  inputs = make_inputs()
  target = np.random.default_rng(5).normal(size=(FRAMES, 56)).astype(np.float32)
  terms = model.apply(variables, *inputs.values(), SOCIAL, target, progress=0.0, rngs={"dropout": jax.random.key(0)}, method="training_terms")
  error = (np.asarray(model.apply(variables, **inputs, social=SOCIAL)) - target) / np.linspace(0.5, 2, 56)
  groups = {"expression": slice(0, 50), "jaw": slice(50, 53), "pose": slice(53, 56)}
  expected = {name: np.mean(error[:, group] ** 2) for name, group in groups.items()} | {"velocity": np.mean(np.diff(error, axis=0) ** 2)}
  assert set(terms) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-4)


def test_the_modulation_adds_a_tenth(dualtalk):
  model, variables = dualtalk
  change = lambda **parts: {**variables, "params": variables["params"] | parts}
  motion, zero = variables["params"]["motion"], np.zeros(8, np.float32)
  with_identity = change(modulation={"kernel": np.eye(8, dtype=np.float32), "bias": zero})
  without = change(modulation={"kernel": np.zeros((8, 8), np.float32), "bias": zero}, motion=motion | {"kernel": 1.1 * motion["kernel"]})
  first, second = (jax.jit(model.apply)(given, **make_inputs(), social=SOCIAL) for given in (with_identity, without))
  np.testing.assert_allclose(first, second, atol=1e-4)


def test_both_dropouts_act_in_training(dualtalk):
  for changed in ("dropout", "attention_dropout"):
    model = DualTalk(motion_config(), **SIZES | {changed: 0.5})
    given = dualtalk[1], *make_inputs().values(), SOCIAL, make_inputs()["motion_a"]
    terms = [model.apply(*given, progress=0.0, rngs={"dropout": jax.random.key(i)}, method="training_terms")["jaw"] for i in (0, 0, 1)]
    assert terms[0] == terms[1] != terms[2]


@oracles.needs("torch")
@pytest.mark.parametrize("decoder", [False, True])
def test_layers_are_pytorchs(decoder):
  """The layers of DualTalk and SelfTalk against nn.TransformerEncoderLayer and DecoderLayer with the same weights."""
  import torch

  features, heads, hidden = 8, 2, 12
  layer = ClipLayer(features, heads, hidden, 0.0, jnp.float32)
  rng = np.random.default_rng(0)
  x, memory = rng.normal(size=(2, FRAMES, features)).astype(np.float32)
  given = (x, memory) if decoder else (x,)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), *given)
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)["params"]
  make = torch.nn.TransformerDecoderLayer if decoder else torch.nn.TransformerEncoderLayer
  other = make(features, heads, hidden, dropout=0.0, batch_first=True).eval()
  tensor = lambda leaf: torch.tensor(np.asarray(leaf))
  names = {"self_attention": other.self_attn} | ({"memory_attention": other.multihead_attn} if decoder else {})
  norms = ["attention_norm", *["memory_norm"] * decoder, "mlp_norm"]
  with torch.no_grad():
    for name, attention in names.items():
      part = params[name]
      attention.in_proj_weight.copy_(torch.cat([tensor(part[which]["kernel"].T) for which in ("query", "key", "value")]))
      attention.in_proj_bias.copy_(torch.cat([tensor(part[which]["bias"]) for which in ("query", "key", "value")]))
      attention.out_proj.weight.copy_(tensor(part["out"]["kernel"].T))
      attention.out_proj.bias.copy_(tensor(part["out"]["bias"]))
    for name, linear in (("mlp_hidden", other.linear1), ("mlp_out", other.linear2)):
      linear.weight.copy_(tensor(params[name]["kernel"].T))
      linear.bias.copy_(tensor(params[name]["bias"]))
    for name, norm in zip(norms, [other.norm1, other.norm2, *([other.norm3] if decoder else [])], strict=True):
      norm.weight.copy_(tensor(params[name]["scale"]))
      norm.bias.copy_(tensor(params[name]["bias"]))
    expected = other(*(tensor(part)[None] for part in given))[0].numpy()
  np.testing.assert_allclose(layer.apply({"params": params}, *given), expected, atol=2e-5)


def test_generators_are_made_by_name():
  config = motion_config()
  assert type(make_generator(config, {})) is MotionGenerator
  with pytest.raises(InputError, match="generator.architecture: found 'faceforma', expected 'rsatalker' or .*'dualtalk'"):
    make_generator(dataclasses.replace(config, architecture="faceforma"), {})
  with pytest.raises(InputError, match="generator.causal: found True with 'dualtalk'"):
    make_generator(dataclasses.replace(config, architecture="dualtalk", causal=True), {"dualtalk": SIZES})
  assert all(isinstance(made.causal_form, bool) for made in BASELINES.values())
