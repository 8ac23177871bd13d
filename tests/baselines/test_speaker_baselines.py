"""FaceFormer, SelfTalk and EmoTalk alike: what they hear and do not see, where they start, clips of any length, that they learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from motion_configs import motion_config
from rsatalker_jax.baselines.motion.emotalk import EmoTalk
from rsatalker_jax.baselines.motion.faceformer import FaceFormer
from rsatalker_jax.baselines.motion.selftalk import SelfTalk
from rsatalker_jax.motion import clips

SPEECH = dict(speech_layers=2, speech_kernel=3, speech_hidden=6)
SIZES = {
    FaceFormer: dict(SPEECH, features=8, heads=2, period=3, reach=40, dropout=0.0, normalised=True, teacher_forcing=False),
    EmoTalk: dict(SPEECH, content_features=4, emotion_features=2, style_features=2, heads=2, period=3, reach=40, dropout=0.0,
                  emotion_kernel=3, emotion_stride=4, emotion_hidden=4, velocity=0.5),
    SelfTalk: dict(SPEECH, features=8, heads=2, dropout=0.0, reader_features=4, reader_heads=2, reader_hidden=8, reader_layers=1,
                   velocity=1.0, reading=0.1),
}  # fmt: skip
# Frames that a generator hears to each side of the frame that it makes.
HEARD = {FaceFormer: 2, EmoTalk: 4, SelfTalk: 1000}


def make_inputs(frames, batch=()):
  rng = np.random.default_rng(frames)
  draw = lambda width: rng.normal(size=(*batch, frames, width)).astype(np.float32)
  return dict(speech_a=draw(5), motion_a=draw(56), speech_b=draw(5), social=draw(3)[..., 0, :])


@functools.cache
def make_variables(kind, causal=False):
  """A generator and random variables of it: the output's layer is not zero."""
  generator = kind(motion_config(causal=causal), **SIZES[kind])
  shapes = jax.eval_shape(generator.init, jax.random.key(0), **make_inputs(2))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes["params"])
  statistics = {"motion_mean": jnp.linspace(-1, 1, 56), "motion_std": jnp.linspace(0.5, 2, 56)}
  return generator, {"params": params, "statistics": statistics}


@pytest.fixture(scope="module", params=SIZES, ids=lambda kind: kind.__name__)
def kind(request):
  return request.param


def test_hears_one_voice_and_nothing_else(kind):
  generator, variables = make_variables(kind)
  inputs = make_inputs(9, batch=(2, 3))
  apply = jax.jit(generator.apply)
  whole = np.asarray(apply(variables, **inputs))
  assert whole.shape == (2, 3, 9, 56) and whole.dtype == np.float32
  others = {name: x if name == "speech_b" else x + 1 for name, x in inputs.items()}
  np.testing.assert_array_equal(apply(variables, **others), whole)
  assert np.abs(apply(variables, **inputs | {"speech_b": inputs["speech_b"] + 1}) - whole).min(axis=(-2, -1)).min() > 0
  one = generator.apply(variables, **{name: x[1, 2] for name, x in inputs.items()})
  np.testing.assert_allclose(whole[1, 2], one, atol=1e-5 * np.abs(whole).max())


def test_hears_so_far_ahead(kind):
  generator, variables = make_variables(kind)
  inputs = make_inputs(30)
  apply = jax.jit(generator.apply)
  whole = np.asarray(apply(variables, **inputs))
  for t in (0, 11, 29):
    speech = inputs["speech_b"].copy()
    speech[t] += 1.0
    heard = np.abs(apply(variables, **inputs | {"speech_b": speech}) - whole).max(axis=1) > 0
    first = max(0, t - HEARD[kind])
    assert not heard[:first].any() and heard[first:].all()  # Afterwards all frames see those that heard it.


@pytest.mark.parametrize("made", [FaceFormer, EmoTalk])
def test_causal_form_hears_no_future(made):
  assert made.causal_form and not SelfTalk.causal_form
  generator, variables = make_variables(made, causal=True)
  inputs = make_inputs(23)
  apply = jax.jit(generator.apply)
  whole = np.asarray(apply(variables, **inputs))
  for t in (0, 5, 16):
    later = {name: x if name == "social" else np.concatenate([x[: t + 1], x[t + 1 :] + 1]) for name, x in inputs.items()}
    np.testing.assert_array_equal(apply(variables, **later)[: t + 1], whole[: t + 1])
    now = inputs["speech_b"].copy()
    now[t] += 1.0
    assert np.abs(apply(variables, **inputs | {"speech_b": now})[t] - whole[t]).max() > 1e-4


def test_padded_clips_equal_clips_alone(kind):
  """Up to 128 frames and more, shorter and longer than the reach; what stands in the padding does not matter."""
  generator, variables = make_variables(kind)
  apply = jax.jit(lambda variables, inputs: generator.apply(variables, **inputs))
  for frames in (31, 140, 300):
    inputs = make_inputs(frames)
    social = inputs.pop("social")
    padded = clips.pad_clip(**inputs)
    for name in inputs:
      padded[name][frames:] = 9.0
    alone = apply(variables, inputs | {"social": social})
    motion = apply(variables, padded | {"social": social})[:frames]
    np.testing.assert_allclose(motion, alone, atol=2e-5 * np.abs(alone).max())


def test_bfloat16_is_close_and_its_parameters_are_float32(kind):
  exact, variables = make_variables(kind)
  rough = kind(motion_config(dtype="bfloat16"), **SIZES[kind])
  inputs = make_inputs(12)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(jax.eval_shape(rough.init, jax.random.key(0), **inputs)))
  expected, found = (jax.jit(model.apply)(variables, **inputs) for model in (exact, rough))
  assert found.dtype == jnp.float32 and not np.array_equal(found, expected)
  # 8 bits, half a percent per operation; a roll-out hands its errors on.
  assert np.sqrt(np.mean((found - expected) ** 2)) < 0.2 * np.std(expected)
  rngs = {"dropout": jax.random.key(0)}
  terms = lambda: rough.apply(variables, **inputs, motion_b=inputs["motion_a"], progress=0.0, method="training_terms", rngs=rngs)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(jax.eval_shape(terms)))


def test_no_clip_is_too_long(kind):
  """The published tables end at 600 frames. Memory of a clip of five minutes is not that of the square of its length."""
  generator, variables = make_variables(kind)
  apply = lambda variables, speech: generator.apply(variables, speech, jnp.zeros((*speech.shape[:-1], 56)), speech, jnp.zeros(3))

  def temporaries(frames):
    speech = jax.ShapeDtypeStruct((frames, 5), jnp.float32)
    return jax.jit(apply).lower(variables, speech).compile().memory_analysis().temp_size_in_bytes

  assert temporaries(7500) < 20 * temporaries(750)  # Ten times the frames; the square would be a hundred.


def test_learns_and_moves(kind):
  """What the voice says to the motion, in standard deviations, is found; a motionless face would have a loss of 1."""
  generator, variables = make_variables(kind)
  inputs = make_inputs(24, batch=(4,))
  truth = np.tanh(inputs["speech_b"][..., :1]) * np.where(np.arange(56) % 3, 1.0, -1.0)
  truth = (truth - truth.mean(axis=(0, 1))) / truth.std(axis=(0, 1))
  statistics = variables["statistics"]
  motion_b = jnp.asarray(truth * statistics["motion_std"] + statistics["motion_mean"], jnp.float32)
  params = jax.jit(generator.init)(jax.random.key(0), **inputs)["params"]
  optimizer = optax.adam(1e-2)

  def loss(params, key):
    rngs = {"dropout": key, "sample": key}
    terms = generator.apply(
        {"params": params, "statistics": statistics}, **inputs, motion_b=motion_b, progress=0.0, method="training_terms", rngs=rngs
    )
    return sum(terms.values()), terms

  @jax.jit
  def step(params, state, key):
    (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(params, key)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, terms

  state, losses = optimizer.init(params), []
  for i in range(100):
    params, state, terms = step(params, state, jax.random.key(i))
    losses.append(float(terms["motion"]))
  np.testing.assert_allclose(losses[0], 1.0, rtol=1e-5)  # It begins at the mean.
  assert losses[-1] < 0.6
  motion = generator.apply({"params": params, "statistics": statistics}, **inputs)
  assert np.mean(np.var((motion - statistics["motion_mean"]) / statistics["motion_std"], axis=1)) > 0.3
