"""EmoTalk's decoder: its two branches and how they are joined, its loss, and that it knows distances and no positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motion_configs import motion_config
from rsatalker_jax.baselines.motion.emotalk import EmoTalk

SIZES = dict(
    content_features=4, emotion_features=2, style_features=2, heads=2, period=3, reach=5, dropout=0.0, speech_layers=1,
    speech_kernel=3, speech_hidden=6, emotion_kernel=5, emotion_stride=2, emotion_hidden=4, velocity=0.5,
)  # fmt: skip
FRAMES = 20
RNG = np.random.default_rng(0)
SPEECH, MOTION = (jnp.asarray(RNG.normal(size=(FRAMES, width)), jnp.float32) for width in (5, 56))
INPUTS = SPEECH + 1, MOTION + 1, SPEECH, jnp.zeros(3)
MEAN, STD = jnp.linspace(-1, 1, 56), jnp.linspace(0.5, 2, 56)


def make_variables(**changes):
  model = EmoTalk(motion_config(), **SIZES | changes)
  shapes = jax.eval_shape(model.init, jax.random.key(0), *INPUTS)["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)
  return model, {"params": params, "statistics": {"motion_mean": MEAN, "motion_std": STD}}


def test_wiring_is_the_published_one():
  """Content, emotion through a ReLU and style are the decoder's input, emotion alone is its memory."""
  model, variables = make_variables()
  bound, weights = model.bind(variables), variables["params"]
  dense = lambda name, x: x @ weights[name]["kernel"] + weights[name]["bias"]
  emotion = dense("emotion", jax.nn.gelu(bound.emotion_context(SPEECH)))
  emotion = bound.emotion_norm(emotion)
  style = jnp.broadcast_to(weights["style"], (FRAMES, 2))
  x = jnp.concatenate([bound.content(SPEECH), jnp.maximum(dense("emotion_in", emotion), 0), style], axis=-1)
  expected = MEAN + STD * dense("motion_out", bound.layer(x, emotion))
  np.testing.assert_allclose(bound(*INPUTS), expected, atol=1e-5)
  assert bound.layer.hidden == bound.layer.features == 8 and np.std(expected - MEAN) > 0.3


@pytest.mark.parametrize("causal", [False, True])
def test_branches_hear_their_kernels(causal):
  model = EmoTalk(motion_config(causal=causal), **SIZES)
  bound = model.bind(make_variables()[1])
  heard = lambda branch: np.flatnonzero(np.abs(jax.grad(lambda speech: branch(speech)[10, 0])(SPEECH)).max(axis=1))
  np.testing.assert_array_equal(heard(bound.content), [8, 9, 10] if causal else [9, 10, 11])
  np.testing.assert_array_equal(heard(bound.emotion_context), [2, 4, 6, 8, 10] if causal else [6, 8, 10, 12, 14])


def test_distances_alone_count():
  """Away from the beginning the same voice later gives the same motion: there is no position code."""
  model, variables = make_variables()
  later = jnp.concatenate([jnp.asarray(RNG.normal(size=(7, 5)), jnp.float32), SPEECH])
  alone, moved = (model.apply(variables, x, jnp.zeros((len(x), 56)), x, jnp.zeros(3)) for x in (SPEECH, later))
  start = 4 + 5  # Half of the emotion branch's reach, and the attention's.
  np.testing.assert_allclose(moved[7 + start :], alone[start:], atol=1e-4)
  assert np.abs(moved[8] - alone[1]).max() > 1e-3


def test_loss_is_of_motion_and_velocity_in_standard_deviations():
  model, variables = make_variables()
  error = (model.apply(variables, *INPUTS) - MOTION) / STD
  rngs = {"dropout": jax.random.key(0)}
  terms = model.apply(variables, *INPUTS, MOTION, progress=0.0, method="training_terms", rngs=rngs)
  assert set(terms) == {"motion", "velocity"}
  np.testing.assert_allclose(terms["motion"], np.mean(error**2), rtol=1e-4)
  np.testing.assert_allclose(terms["velocity"], 0.5 * np.mean((error[1:] - error[:-1]) ** 2), rtol=1e-4)


def test_dropout_is_drawn_in_training_alone():
  model, variables = make_variables(dropout=0.5)
  terms = lambda seed: model.apply(
      variables, *INPUTS, MOTION, progress=0.0, method="training_terms", rngs={"dropout": jax.random.key(seed)}
  )["motion"]
  assert terms(0) != terms(1)
  np.testing.assert_array_equal(model.apply(variables, *INPUTS), make_variables()[0].apply(variables, *INPUTS))
