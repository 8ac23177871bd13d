"""B's own voice heard ahead: by so many frames and no more, A's never; in pieces as at once; mistakes told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motion_configs import motion_config
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import MotionGenerator, MotionStream, streaming
from rsatalker_jax.motion.generator import SpeechAdapter
from rsatalker_jax.motion.layers import TransformerLayer
from rsatalker_jax.speech import LogMel, logmel_features

FRAMES = 31
ENCODER = LogMel(num_mels=2, causal=True)
LOOKAHEADS = (1, 3, -1)  # Within the adapter's two frames, beyond them, and to the end of the attention's reach.


def ahead_config(own_lookahead, **changes):
  return motion_config(
      features=8, heads=2, reach=3, encoder_layers=1, decoder_layers=1, speech_hidden=8, speech_layers=2, speech_kernel=3,
      motion_kernel=3, dropout=0.0, query_time=True, social_norm=True, causal=True, own_lookahead=own_lookahead, **changes,
  )


def random_like(shapes, seed=1, size=0.4):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: (size * rng.normal(size=x.shape)).astype(np.float32), shapes)


def make_variables(generator):
  """Random parameters, with an output of the size of real motion."""
  frame = jnp.zeros((1, ENCODER.features))
  shapes = jax.eval_shape(generator.init, jax.random.key(0), frame, jnp.zeros((1, 56)), frame, jnp.zeros(8))
  variables = {"params": random_like(shapes["params"])}
  variables["params"]["motion_decoder"]["norm"]["scale"] += 1.0
  statistics = {"motion_mean": np.linspace(-0.5, 0.5, 56, dtype=np.float32), "motion_std": np.ones(56, np.float32)}
  return variables | {"statistics": statistics}


class World:
  """A generator that hears ahead, a conversation, and B's motion from the whole."""

  def __init__(self, own_lookahead):
    rng = np.random.default_rng(0)
    self.generator = MotionGenerator(ahead_config(own_lookahead))
    self.ahead = self.generator.config.frames_ahead
    self.variables = make_variables(self.generator)
    self.social = (0.2 * rng.normal(size=8)).astype(np.float32)
    loudness = 10 ** rng.uniform(-4, -0.5, size=(2, FRAMES))  # Noise of one loudness has one spectrum: nothing to hear.
    self.wavs = (np.repeat(loudness, 640, axis=1) * rng.normal(size=(2, FRAMES * 640))).astype(np.float32)
    self.motion_a = rng.normal(size=(FRAMES, 56)).astype(np.float32)
    self.features = [logmel_features(ENCODER)(wav, FRAMES) for wav in self.wavs]
    self._apply = jax.jit(self.generator.apply)
    self.motion_b = self.apply()
    assert 0.1 < self.motion_b.std(axis=0).mean() < 3.0

  def apply(self, *, frames=FRAMES, num_frames=None, **changes):
    inputs = {"speech_a": self.features[0], "motion_a": self.motion_a, "speech_b": self.features[1]} | changes
    inputs = {name: x[:frames] for name, x in inputs.items()}
    return np.asarray(self._apply(self.variables, **inputs, social=self.social, num_frames=num_frames))

  def stream(self, **options):
    return MotionStream(self.generator, self.variables, self.social, **options)


@pytest.fixture(scope="module", params=LOOKAHEADS)
def world(request):
  return World(request.param)


@pytest.fixture(scope="module")
def stream(world):
  return world.stream(encoder=ENCODER, lengths=(3,))


def test_frames_ahead(world):
  assert {1: 1, 3: 3, -1: 5}[world.generator.config.own_lookahead] == world.ahead


@pytest.mark.parametrize("t", [0, 4, 17, FRAMES - 2])
def test_it_hears_so_far_ahead_and_no_further(world, t):
  """Not a bit of the output up to t depends on A after t or on B after t + n; what B says at t + n, t hears."""
  changed = lambda x, frames: jnp.asarray(x).at[frames].add(1.0)
  after = slice(t + 1, None)
  later = {"speech_a": changed(world.features[0], after), "motion_a": changed(world.motion_a, after)}
  later["speech_b"] = changed(world.features[1], slice(t + world.ahead + 1, None))
  np.testing.assert_array_equal(world.apply(**later)[: t + 1], world.motion_b[: t + 1])
  for ahead in range(world.ahead + 1):
    if t + ahead < FRAMES:
      heard = world.apply(speech_b=changed(world.features[1], t + ahead))
      assert np.abs(heard[t] - world.motion_b[t]).max() > 1e-4, ahead
  for name, x in (("speech_a", world.features[0]), ("motion_a", world.motion_a)):
    assert np.abs(world.apply(**{name: changed(x, t)})[t] - world.motion_b[t]).max() > 1e-4


def test_padding_behind_a_clip_is_not_heard(world):
  rng = np.random.default_rng(2)
  garbage = lambda x: np.concatenate([x[:20], 10 * rng.normal(size=x[20:].shape).astype(np.float32)])
  padded = {"speech_a": garbage(world.features[0]), "motion_a": garbage(world.motion_a), "speech_b": garbage(world.features[1])}
  # float32, blocks of other lengths.
  np.testing.assert_allclose(world.apply(**padded, num_frames=np.int32(20))[:20], world.apply(frames=20), atol=2e-5)


def test_all_that_is_reached_is_what_a_layer_that_is_not_causal_sees():
  """B's voice through adapter and layer, against the same parameters in layers that see both sides; also at the clip's ends."""
  config = motion_config(
      features=8, heads=2, reach=4, speech_hidden=8, speech_layers=1, speech_kernel=5, causal=True, own_lookahead=-1
  )
  speech = np.random.default_rng(3).normal(size=(2, 19, 6)).astype(np.float32)
  generator = MotionGenerator(config)
  inputs = speech, jnp.zeros((2, 19, 56)), speech, jnp.zeros((2, 8))
  params = random_like(jax.eval_shape(generator.init, jax.random.key(0), *inputs)["params"])
  assert config.frames_ahead == 6
  padded = np.pad(speech, ((0, 0), (0, 6), (0, 0)))
  statistics = {"motion_mean": jnp.zeros(56), "motion_std": jnp.ones(56)}
  hear = jax.jit(lambda variables: generator.apply(variables, padded, 19, method="hear_ahead"))
  own = hear({"params": params, "statistics": statistics})[:, 6:]
  both_sides = motion_config(features=8, heads=2, reach=4, speech_hidden=8, speech_layers=1, speech_kernel=5)
  heard = SpeechAdapter(both_sides).apply({"params": params["speech_adapter"]}, speech)
  expected = jax.jit(TransformerLayer(8, 2, 4, config.mlp_ratio).apply)({"params": params["own_lookahead"]}, heard)
  np.testing.assert_allclose(own, expected, atol=1e-5)


def push_all(stream, world, longest, *, frames=FRAMES, seed=0):
  """The conversation in pieces of random lengths, B's voice ahead, ended when there is no more of it."""
  rng = np.random.default_rng(seed)
  total, begin = frames * 640, world.ahead * 640
  voice_a, voice_b = world.wavs[:, :total]
  stream.reset()
  stream.prime(voice_b[:begin], ended=total < begin)
  position, made, ended = 0, [], total < begin
  while position < total:
    end = min(position + int(rng.integers(0, longest)), total)
    piece = voice_b[begin + position : begin + end]
    ending = not ended and begin + end >= total
    made.append(stream.push(voice_a[position:end], world.motion_a[position // 640 : end // 640], piece, ended=ending))
    position, ended = end, ended or ending
  return np.concatenate(made)


@pytest.mark.parametrize("longest, frames", [(900, FRAMES), (7000, FRAMES), (700, 3)])
def test_any_pieces_give_the_motion_of_the_whole(world, stream, longest, frames):
  """To the clip's end, where B's voice is over frames before A's; also of a clip that is shorter than what is known ahead."""
  sizes = lambda: jax.tree.map(lambda x: (x.shape, x.dtype), stream.state)
  first = sizes()
  made = push_all(stream, world, longest, frames=frames)
  # float32, sums in another order; the output's size is 1.
  np.testing.assert_allclose(made, world.apply(frames=frames), atol=2e-5)
  assert sizes() == first and stream.frames_ahead == world.ahead


def test_a_voice_that_goes_on_in_silence_has_not_ended(world, stream):
  """The last frames hear silence, not the end, as those of a longer clip do."""
  silence = np.zeros((2, 640 * 8), np.float32)
  stream.reset()
  stream.prime(world.wavs[1, : 640 * world.ahead])
  voices = np.concatenate([world.wavs[:, : 640 * 12], silence], axis=1)
  ahead = 640 * world.ahead
  made = stream.push(voices[0, : 640 * 12], world.motion_a[:12], voices[1, ahead : ahead + 640 * 12])
  speech_a, speech_b = (logmel_features(ENCODER)(wav, 20) for wav in voices)
  whole = world.apply(frames=20, speech_a=speech_a, speech_b=speech_b)
  np.testing.assert_allclose(made, whole[:12], atol=2e-5)
  assert np.abs(made[-1] - world.apply(frames=12)[-1]).max() > 1e-3


def test_features_of_several_conversations_at_their_own_times():
  """Without an encoder, in one call: the second is primed and begins 8 frames late, and its voice ends."""
  world = World(3)
  speech_a, speech_b = world.features
  prime = lambda: streaming.prime(world.generator, world.variables, streaming.init_state(world.generator, world.variables), speech_b[:3])
  advance = jax.jit(jax.vmap(
      lambda state, *inputs: streaming.step(world.generator, world.variables, state, *inputs[:3], world.social, inputs[3])
  ))
  fresh = prime()
  state = jax.tree.map(lambda x: jnp.stack([x, x]), fresh)
  ends = world.apply(frames=18)
  for start in range(0, 24, 4):
    late = max(start - 8, 0)
    if start == 8:
      state = jax.tree.map(lambda x, y: x.at[1].set(y), state, fresh)
    own = lambda first: speech_b[first + 3 : first + 7]
    pieces = [np.stack([x[start : start + 4], x[late : late + 4]]) for x in (speech_a, world.motion_a)]
    known = np.array([18 - 3 - start, 4], np.int32)  # The first ends after 18 frames.
    state, out = advance(state, *pieces, np.stack([own(start), own(late)]), known)
    np.testing.assert_allclose(out[0, : max(18 - start, 0)], ends[start : start + 4], atol=2e-5)
    if start >= 8:
      np.testing.assert_allclose(out[1], world.motion_b[late : late + 4], atol=2e-5)


def test_a_voice_ahead_is_brought_to_its_level(world):
  """In the stream, the first frames and those after, as in the whole file."""
  wavs = world.wavs * np.float32([[1.0], [0.05]])
  encode = logmel_features(ENCODER, level=True)
  whole = world.apply(speech_a=encode(wavs[0], FRAMES), speech_b=encode(wavs[1], FRAMES))
  quiet = world.apply(speech_b=logmel_features(ENCODER)(wavs[1], FRAMES))
  stream, begin, frames = world.stream(encoder=ENCODER, lengths=(3,), level=True), 640 * world.ahead, FRAMES - world.ahead
  stream.prime(wavs[1, :begin])
  made = [stream.push(wavs[0, 640 * t : 640 * (t + 1)], world.motion_a[t : t + 1], wavs[1, begin + 640 * t : begin + 640 * (t + 1)])
          for t in range(frames)]  # fmt: skip
  np.testing.assert_allclose(np.concatenate(made), whole[:frames], atol=3e-5)
  assert np.abs(whole - quiet)[:frames].max() > 1e-3


def test_a_stream_without_lookahead_takes_the_same_calls():
  world = World(0)
  stream = world.stream(encoder=ENCODER, lengths=(3,))
  assert stream.frames_ahead == 0 and "own_lookahead" not in world.variables["params"]
  stream.prime(np.zeros(0, np.float32))
  with pytest.raises(InputError, match="speech_b: found length 640, expected 0, the first 0 frames"):
    stream.prime(np.zeros(640, np.float32))
  with pytest.raises(InputError, match="speech_b: found length 0, expected 640, as speech_a has"):
    stream.push(world.wavs[0, :640], world.motion_a[:1], world.wavs[1, :0], ended=True)
  out = [stream.push(world.wavs[0, i : i + 6400], world.motion_a[i // 640 : i // 640 + 10], world.wavs[1, i : i + 6400], ended=True)
         for i in (0, 6400)]
  np.testing.assert_allclose(np.concatenate(out), world.motion_b[:20], atol=2e-5)


def test_a_wrong_call_is_refused_and_changes_nothing(world, stream, unchecked_signatures):
  begin = 640 * world.ahead
  voice_a, voice_b = world.wavs[0, :1400], world.wavs[1, begin : begin + 1400]

  def refused(message, call, *arguments, **options):
    with pytest.raises(InputError, match=message) as error:
      call(*arguments, **options)
    assert "\n" not in str(error.value)

  stream.reset()
  refused(f"prime: found no call, expected the first {world.ahead} frames", stream.push, voice_a, world.motion_a[:2], voice_b)
  refused(f"found length {begin - 1}, expected {begin}, the first {world.ahead} frames of B's voice$", stream.prime, world.wavs[1, : begin - 1])
  refused(f"found length {begin + 1}, expected {begin}, .*, or fewer", stream.prime, world.wavs[1, : begin + 1], ended=True)
  refused(r"speech_b: found shape \(1, 640\)", stream.prime, world.wavs[1:, :640])
  refused("speech_b: found values that are not finite", stream.prime, np.full(begin, np.nan))
  stream.prime(world.wavs[1, :begin])
  refused("prime: found a conversation that has begun", stream.prime, world.wavs[1, :begin])
  made = [stream.push(voice_a[:1000], world.motion_a[:1], voice_b[:1000])]
  refused("speech_b: found length 399, expected 400", stream.push, voice_a[1000:], world.motion_a[1:2], voice_b[1000:1399])
  refused("speech_b: found length 1400, expected 400", stream.push, voice_a[1000:], world.motion_a[1:2], voice_b, ended=True)
  refused("motion_a: found 0 frames, expected 1", stream.push, voice_a[1000:], world.motion_a[:0], voice_b[1000:1000], ended=True)
  made.append(stream.push(voice_a[1000:], world.motion_a[1:2], voice_b[1000:]))
  np.testing.assert_allclose(np.concatenate(made), world.motion_b[:2], atol=2e-5)
  stream.push(voice_a[:500], world.motion_a[:0], voice_b[:10], ended=True)
  refused("speech_b: found length 20, expected 0: B's voice has ended", stream.push, voice_a[:20], world.motion_a[:1], voice_b[:20])


def test_values_that_cannot_be():
  for value in (-2, 6):
    with pytest.raises(ValueError, match="must be -1 or 0 to 5"):
      ahead_config(value)
  for changes in ({"causal": False}, {"use_own_speech": False}):
    with pytest.raises(ValueError, match="must be 0 with"):
      motion_config(own_lookahead=1, **{"causal": True} | changes)
