"""A conversation in pieces against the same conversation at once: any pieces, a state of one size, mistakes told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motion_configs import motion_config
from configs.demo import get_config
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import MotionGenerator, MotionStream, streaming
from rsatalker_jax.speech import LogMel, logmel_features
from rsatalker_jax.runs import TrainedRun
from rsatalker_jax.social import SocialModule
from rsatalker_jax.talker import Talker

FRAMES = 810  # More than the 800 after which the encoding of time repeats itself.
RELATION = np.array([1, 0], np.int32)
CONFIG = motion_config(
    features=8, heads=2, reach=3, encoder_layers=1, decoder_layers=1, speech_hidden=8, speech_layers=2, speech_kernel=3,
    motion_kernel=3, motion_stride=2, dropout=0.0, query_time=True, social_norm=True, causal=True,
)
GENERATOR = MotionGenerator(CONFIG)
SOCIAL = SocialModule(8, relation_features=4, hidden=8)
ENCODER = LogMel(num_mels=2, causal=True)


@pytest.fixture(scope="module")
def run():
  """A trained run, but for the training: random parameters, with an output of the size of real motion."""
  config = get_config("causal")
  config.speech.num_mels = ENCODER.num_mels
  frame = jnp.zeros((1, 8))
  shapes = {
      "generator": jax.eval_shape(GENERATOR.init, jax.random.key(0), frame, jnp.zeros((1, 56)), frame, jnp.zeros(8)),
      "social": jax.eval_shape(SOCIAL.init, jax.random.key(0), RELATION),
  }
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes)
  params["generator"]["params"]["motion_decoder"]["norm"]["scale"] += 1.0
  del params["generator"]["statistics"]
  statistics = {"motion_mean": np.linspace(-0.5, 0.5, 56, dtype=np.float32), "motion_std": np.ones(56, np.float32)}
  talker = Talker(None, SOCIAL, GENERATOR, None, True, None, None, None)
  return TrainedRun(config, talker, params, {"generator": statistics}, "")


def variables_of(run):
  """The generator's collections, and s of `RELATION`."""
  social = SOCIAL.apply(run.params["social"], RELATION)
  return run.params["generator"] | {"statistics": run.buffers["generator"]}, social


@pytest.fixture(scope="module")
def conversation(run):
  """Both voices, A's motion, both voices' features as a whole file's are made, and B's motion from the whole."""
  rng = np.random.default_rng(0)
  wavs = (rng.normal(size=(2, FRAMES * 640)) * 0.1).astype(np.float32)
  motion_a = rng.normal(size=(FRAMES, 56)).astype(np.float32)
  encode = logmel_features(ENCODER)
  features = [encode(wav, FRAMES) for wav in wavs]
  variables, social = variables_of(run)
  motion_b = np.asarray(jax.jit(GENERATOR.apply)(variables, features[0], motion_a, features[1], social))
  assert 0.3 < (motion_b - motion_b.mean(axis=0)).std() < 3.0
  return wavs, motion_a, features, motion_b


@pytest.fixture(scope="module")
def stream(run):
  return run.stream(RELATION, lengths=(4,))


@pytest.mark.parametrize("longest", [700, 9000])
def test_any_pieces_give_the_motion_of_the_whole(stream, conversation, longest):
  wavs, motion_a, _, motion_b = conversation
  rng = np.random.default_rng(longest)
  stream.reset()
  sizes = lambda: jax.tree.map(lambda x: (x.shape, x.dtype), stream.state)
  first, position, made = sizes(), 0, [np.zeros((0, 56))]
  while position < wavs.shape[1]:
    end = min(position + int(rng.integers(0, longest)), wavs.shape[1])  # Mostly odd, sometimes nothing.
    frames = slice(position // 640, end // 640)
    made.append(stream.push(wavs[0, position:end], motion_a[frames], wavs[1, position:end]))
    assert len(made[-1]) == frames.stop - frames.start
    position = end
  # float32, sums in another order; the output's size is 1.
  np.testing.assert_allclose(np.concatenate(made), motion_b, atol=2e-5)
  # Nothing has grown, and the counters have stopped.
  assert sizes() == first
  counts = [int(x) for x in jax.tree.leaves(stream.state["history"]) if x.dtype == jnp.int32]
  assert sorted(counts) == [3] * 4 + [FRAMES % 800]
  assert streaming.state_bytes(stream.state) < 10_000


def test_features_of_several_conversations_at_their_own_times(run, conversation):
  """Without an encoder; two conversations in one call, the second 8 frames late."""
  _, motion_a, (speech_a, speech_b), motion_b = conversation
  params, social = variables_of(run)
  advance = jax.jit(jax.vmap(
      lambda state, *inputs: streaming.step(GENERATOR, params, state, *inputs, social), in_axes=(0, 0, 0, 0)
  ))
  state = jax.tree.map(lambda x: jnp.stack([x, x]), streaming.init_state(GENERATOR, params))
  begun = state
  for start in range(0, 40, 4):
    late = max(start - 8, 0)
    pieces = [np.stack([x[start : start + 4], x[late : late + 4]]) for x in (speech_a, motion_a, speech_b)]
    if start == 8:  # The second begins here.
      state = jax.tree.map(lambda x, fresh: x.at[1].set(fresh[1]), state, begun)
    state, out = advance(state, *pieces)
    np.testing.assert_allclose(out[0], motion_b[start : start + 4], atol=2e-5)
    if start >= 8:
      np.testing.assert_allclose(out[1], motion_b[late : late + 4], atol=2e-5)


def test_voices_at_one_level_are_those_of_the_whole(run, conversation):
  """A quiet microphone of A's: brought up in the stream, sample by sample, as in the whole file."""
  wavs, motion_a, _, motion_b = conversation
  frames = 100
  wavs = wavs[:, : frames * 640] * np.float32([[0.05], [1.0]])
  wavs[:, 20 * 640 : 30 * 640] *= 0.01  # Somebody pauses.
  encode = logmel_features(ENCODER, level=True)
  variables, social = variables_of(run)
  whole = jax.jit(GENERATOR.apply)(variables, encode(wavs[0], frames), motion_a[:frames], encode(wavs[1], frames), social)
  assert np.abs(whole[50:] - motion_b[50:frames]).max() > 0.05
  config = run.config.copy_and_resolve_references()
  config.speech.level = True
  stream = dataclasses.replace(run, config=config).stream(RELATION, lengths=(4,))
  for _ in range(2):
    made = [stream.push(wavs[0, at : at + 1000], motion_a[at // 640 : (at + 1000) // 640], wavs[1, at : at + 1000])
            for at in range(0, wavs.shape[1], 1000)]  # fmt: skip
    np.testing.assert_allclose(np.concatenate(made), whole, atol=3e-5)
    stream.reset()


WAV, MOTION = np.zeros(1400, np.float32), np.zeros((2, 56), np.float32)


@pytest.mark.parametrize("pieces, message", [
    ((WAV, MOTION, WAV[:-1]), "speech_b: found length 1399, expected 1400"),
    ((WAV, MOTION[:1], WAV), "motion_a: found 1 frames, expected 2: 1500 samples since"),
    ((WAV, np.zeros((3, 56)), WAV), "motion_a: found 3 frames, expected 2"),
    ((WAV, MOTION[:, :55], WAV), r"motion_a: found shape \(2, 55\), expected \(T, 56\)"),
    ((WAV[None], MOTION, WAV[None]), r"speech_a: found shape \(1, 1400\), expected \(S,\)"),
    ((WAV, MOTION + np.nan, WAV), "motion_a: found values that are not finite"),
])
def test_a_wrong_piece_is_refused_and_changes_nothing(stream, conversation, pieces, message, unchecked_signatures):
  wavs, motion_a, _, motion_b = conversation
  stream.reset()
  assert stream.push(wavs[0, :100], motion_a[:0], wavs[1, :100]).shape == (0, 56)
  with pytest.raises(InputError, match=message):
    stream.push(*pieces)
  out = stream.push(wavs[0, 100 : 5 * 640], motion_a[:5], wavs[1, 100 : 5 * 640])
  np.testing.assert_allclose(out, motion_b[:5], atol=2e-5)


def test_what_cannot_stream_is_refused(run):
  params, social = variables_of(run)
  ahead = MotionGenerator(dataclasses.replace(CONFIG, causal=False))
  with pytest.raises(InputError, match="generator.causal=True"):
    MotionStream(ahead, params, social, encoder=ENCODER)
  with pytest.raises(InputError, match="speech.causal=True"):
    MotionStream(GENERATOR, params, social, encoder=LogMel(num_mels=2))
  with pytest.raises(InputError, match="found 256, expected 8"):
    MotionStream(GENERATOR, params, social, encoder=LogMel(causal=True))
  with pytest.raises(InputError, match="relation: found .2 0., expected"):
    run.stream(np.array([2, 0]))
  with pytest.raises(InputError, match="lengths: found .0., expected"):
    MotionStream(GENERATOR, params, social, encoder=ENCODER, lengths=[0])
  with pytest.raises(InputError, match="only avatar:3"):
    dataclasses.replace(run, params={}, stages="avatar:3").stream(RELATION)
