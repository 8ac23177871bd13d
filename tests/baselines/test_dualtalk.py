"""Baselines: what DualTalk's wiring sees and what it does not, and how generators are named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motion_configs import motion_config
from rsatalker_jax.baselines.motion import DualTalkGenerator, make_generator
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import MotionGenerator

SMALL = motion_config(architecture="dualtalk", features=8, heads=2, reach=2, encoder_layers=1, speech_hidden=4, speech_kernel=1)
FRAMES = 31
SOCIAL = jnp.linspace(-1, 1, 8)
INPUTS = {
    name: jax.random.normal(jax.random.key(i), (FRAMES, width))
    for i, (name, width) in enumerate(dict(speech_a=5, motion_a=56, speech_b=5).items())
}


@pytest.fixture(scope="module")
def dualtalk():
  model = make_generator(SMALL, {})
  assert isinstance(model, DualTalkGenerator)
  params = jax.jit(model.init)(jax.random.key(0), **INPUTS, social=SOCIAL)
  params["params"]["motion_decoder"]["motion"]["kernel"] *= 100  # Starts near zero.
  return jax.jit(model.apply), params


def test_the_lstm_bridges_the_whole_clip_both_ways(dualtalk):
  """Attention reaches 2 + 2 frames per layer; A's first frame reaches B's last, and the other way round."""
  apply, params = dualtalk
  whole = apply(params, **INPUTS, social=SOCIAL)
  assert whole.shape == (FRAMES, 56) and whole.dtype == jnp.float32
  for changed, seen in ((0, -1), (-1, 0)):
    other = INPUTS | {"motion_a": INPUTS["motion_a"].at[changed].add(3.0)}
    assert np.abs(apply(params, **other, social=SOCIAL) - whole)[seen].max() > 1e-6
    # B's own voice enters behind the LSTM.
    other = INPUTS | {"speech_b": INPUTS["speech_b"].at[changed].add(3.0)}
    moved = np.abs(apply(params, **other, social=SOCIAL) - whole).max(axis=1)
    assert moved[changed] > 1e-4 and moved[seen] == 0


def test_dualtalk_does_not_know_the_relation(dualtalk):
  apply, params = dualtalk
  first, second = (apply(params, **INPUTS, social=social) for social in (SOCIAL, -SOCIAL))
  np.testing.assert_array_equal(first, second)


def test_generators_are_made_by_name():
  assert type(make_generator(motion_config(), {})) is MotionGenerator
  with pytest.raises(InputError, match="generator.architecture: found 'faceforma', expected 'rsatalker' or 'dualtalk'"):
    make_generator(dataclasses.replace(SMALL, architecture="faceforma"), {})
  with pytest.raises(InputError, match="generator.causal: found True with 'dualtalk'"):
    make_generator(dataclasses.replace(SMALL, causal=True), {})
