"""Clips of many lengths through a few programs: the same motion as of the clip alone, for every form."""

import chex
import jax
import numpy as np
import pytest

from motion_configs import motion_config
from rsatalker_jax.motion import MotionGenerator, clips

SMALL = dict(features=8, heads=2, reach=3, encoder_layers=1, decoder_layers=1, speech_hidden=6, speech_layers=2, speech_kernel=3)
FORMS = {
    "rsatalker": dict(motion_kernel=5, motion_stride=2, social_norm=True, query_time=True),
    "causal": dict(motion_kernel=5, motion_stride=2, residual=False, causal=True),
}


def make_inputs(frames):
  rng = np.random.default_rng(frames)
  draw = lambda width: rng.normal(size=(frames, width)).astype(np.float32)
  return dict(speech_a=draw(5), motion_a=draw(56), speech_b=draw(5))


def test_lengths_are_few_and_close():
  lengths = {frames: clips.padded_length(frames) for frames in range(1, 5000)}
  assert sorted(set(lengths.values())) == [128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144]
  assert all(frames <= length for frames, length in lengths.items())
  assert all(length < 1.5 * frames for frames, length in lengths.items() if frames > 128)
  assert [lengths[frames] for frames in (128, 129, 192, 193, 256, 257)] == [128, 192, 192, 256, 256, 384]


@pytest.mark.parametrize("form", FORMS)
def test_padded_clips_equal_clips_alone(form):
  """Of lengths there are four, of programs two; what stands in the padding does not matter."""
  generator = MotionGenerator(motion_config(**SMALL, **FORMS[form]))
  social = np.linspace(-1, 1, 8, dtype=np.float32)
  variables = jax.jit(generator.init)(jax.random.key(0), **make_inputs(4), social=social)
  kernel = variables["params"]["motion_decoder"]["motion"]["kernel"]
  variables["params"]["motion_decoder"]["motion"]["kernel"] = 100 * kernel  # Starts near zero.
  apply = lambda variables, inputs: generator.apply(variables, **inputs, social=social)
  chex.clear_trace_counter()
  counted = jax.jit(chex.assert_max_traces(apply, n=2))
  for frames in (1, 31, 128, 140):
    inputs = make_inputs(frames)
    padded = clips.pad_clip(**inputs)
    assert all(len(padded[name]) == clips.padded_length(frames) for name in inputs)
    for name in inputs:
      padded[name][frames:] = 9.0
    motion = counted(variables, padded)[:frames]
    if frames in (31, 140):
      np.testing.assert_allclose(motion, jax.jit(apply)(variables, inputs), atol=2e-5 * np.abs(motion).max())
