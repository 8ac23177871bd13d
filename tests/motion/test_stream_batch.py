"""Conversations that are stepped together against each of them alone: nobody's motion depends on who else speaks."""

import numpy as np
import pytest

from media.test_generator_script import random_generator
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import MotionStream, StreamBatch
from rsatalker_jax.speech import LogMel

ENCODER = LogMel(num_mels=2, causal=True)  # As many features as the generator is wide: one letter stands for both in `step`.
SMALL = dict(
    features=8, heads=2, reach=3, encoder_layers=1, decoder_layers=1, speech_hidden=8, speech_layers=2, speech_kernel=3,
    motion_kernel=3, motion_stride=2, dropout=0.0, query_time=True, social_norm=True, causal=True,
)  # fmt: skip
FRAMES = 14


@pytest.fixture(scope="module", params=[0, 2], ids=["own_lookahead=0", "own_lookahead=2"])
def model(request):
  return random_generator(ENCODER, **SMALL, own_lookahead=request.param)


def draw_conversations(count, ahead):
  """Voices of A and B (count, frames, 640) and A's motion, all of them different."""
  rng = np.random.default_rng(3)
  voices = (rng.normal(size=(2, count, FRAMES + ahead, 640)) * rng.uniform(0.01, 0.2, (2, count, FRAMES + ahead, 1))).astype(np.float32)
  return voices[0], rng.normal(size=(count, FRAMES, 1, 56)).astype(np.float32), voices[1]


def make_batch(model, places):
  generator, variables, socials = model
  return StreamBatch(generator, variables, socials[0], places, encoder=ENCODER, level=True)


def begin(stream, conversation, ahead, social):
  stream.reset()
  stream.social = social
  stream.prime(conversation[2][:ahead].reshape(-1))


def frame_of(conversation, ahead, t):
  return conversation[0][t], conversation[1][t], conversation[2][t + ahead]


def play_alone(stream, conversation, socials):
  ahead, made = stream.frames_ahead, []
  begin(stream, conversation, ahead, socials[1])
  for t in range(FRAMES):
    if t == 9:
      stream.social = socials[2]
    made.append(stream.push(*frame_of(conversation, ahead, t))[0])
  return np.stack(made)


def test_each_is_what_it_is_alone_whoever_comes_and_goes(model):
  """Three places, five conversations that begin, pause and end at their own times."""
  generator, variables, socials = model
  batch = make_batch(model, 3)
  ahead = batch.frames_ahead
  conversations = list(zip(*draw_conversations(5, ahead), strict=True))
  made, rng = [[] for _ in conversations], np.random.default_rng(4)
  free, busy, coming = list(batch.streams), {}, [0, 1, 2, 3, 4]
  together = set()
  while coming or busy:
    if free and coming and rng.random() < 0.5:
      number = coming.pop(0)
      busy[number] = free.pop(rng.integers(len(free)))
      begin(busy[number], conversations[number], ahead, socials[1])
    now = [number for number in busy if rng.random() < 0.7]
    for number in now:
      if len(made[number]) == 9:
        busy[number].social = socials[2]
    frames = [(busy[number], *frame_of(conversations[number], ahead, len(made[number]))) for number in now]
    together.add(len(frames))
    for number, motion in zip(now, batch.push(frames), strict=True):
      made[number].append(motion[0])
      if len(made[number]) == FRAMES:
        free.append(busy.pop(number))
  assert together >= {0, 1, 2, 3}

  plain = MotionStream(generator, variables, socials[0], encoder=ENCODER, level=True, lengths=(1,))
  for number, conversation in enumerate(conversations):
    np.testing.assert_allclose(made[number], play_alone(plain, conversation, socials), rtol=0, atol=2e-5)
  assert 0.05 < np.std(made, axis=(0, 1)).mean() < 3
  # To the bit where it is alone in a batch of as many places.
  alone = make_batch(model, 3)
  np.testing.assert_array_equal(made[0], play_alone(alone.streams[1], conversations[0], socials))
  np.testing.assert_array_equal(made[4], play_alone(alone.streams[1], conversations[4], socials))  # Nothing is left of the one before.


def test_one_place_is_the_stream_to_the_bit(model):
  generator, variables, socials = model
  batch = make_batch(model, 1)
  (conversation,) = zip(*draw_conversations(1, batch.frames_ahead), strict=True)
  plain = MotionStream(generator, variables, socials[0], encoder=ENCODER, level=True, lengths=(1,))
  np.testing.assert_array_equal(play_alone(batch.streams[0], conversation, socials), play_alone(plain, conversation, socials))


def test_a_wrong_frame_is_told_and_changes_nothing(model):
  batch = make_batch(model, 2)
  ahead, (a, b) = batch.frames_ahead, batch.streams
  first, second = zip(*draw_conversations(2, ahead), strict=True)
  expected = [play_alone(stream, conversation, model[2]) for stream, conversation in ((a, first), (b, second))]
  for stream, conversation in ((a, first), (b, second)):
    begin(stream, conversation, ahead, model[2][1])
  good = lambda t: (a, *frame_of(first, ahead, t))
  voice_a, motion, voice_b = frame_of(second, ahead, 0)
  for t, (frame, message) in enumerate((
      ((voice_a[:639], motion, voice_b), r"^stream: speech_a: found shape \(639,\), expected \(640,\): one frame"),
      ((voice_a, motion, np.zeros((640, 1))), r"speech_b: found shape \(640, 1\)"),
      ((voice_a, motion[0], voice_b), r"motion_a: found shape \(56,\), expected \(1, 56\)"),
      ((voice_a, motion * np.nan, voice_b), "motion_a: found values that are not finite"),
      ((voice_a * np.inf, motion, voice_b), "speech_a: found values that are not finite"),
  )):  # fmt: skip
    told, made = batch.push([(b, *frame), good(t)])
    assert isinstance(told, InputError)
    with pytest.raises(InputError, match=message):
      raise told
    np.testing.assert_array_equal(made[0], expected[0][t])
  with pytest.raises(InputError, match="speech_a: found shape"):
    b.push(voice_a[:5], motion, voice_b)
  made, told = batch.push([(b, voice_a, motion, voice_b), (b, voice_a * 0, motion, voice_b)])
  assert "found two frames of one conversation" in str(told)
  np.testing.assert_array_equal(made[0], expected[1][0])


def test_numbers_beyond_all_bounds_stay_in_their_place(model):
  batch = make_batch(model, 2)
  ahead, (a, b) = batch.frames_ahead, batch.streams
  first, second = zip(*draw_conversations(2, ahead), strict=True)
  expected = play_alone(a, first, model[2])
  for stream, conversation in ((a, first), (b, second)):
    begin(stream, conversation, ahead, model[2][1])
  huge = np.full((1, 56), 3e38, np.float32)
  for t in range(9):
    made, other = batch.push([(a, *frame_of(first, ahead, t)), (b, second[0][t], huge, second[2][t])])
    np.testing.assert_array_equal(made[0], expected[t])
  assert not np.isfinite(other).all()
  np.testing.assert_array_equal(play_alone(a, first, model[2]), expected)
  assert np.isfinite(play_alone(b, second, model[2])).all()


def test_it_is_primed_first_and_once(model):
  batch = make_batch(model, 2)
  stream, ahead = batch.streams[1], batch.frames_ahead
  frame = np.zeros(640), np.zeros((1, 56)), np.zeros(640)
  if not ahead:
    assert stream.push(*frame).shape == (1, 56)
    return
  with pytest.raises(InputError, match="prime: found no call, expected the first 2 frames"):
    stream.push(*frame)
  with pytest.raises(InputError, match=r"speech_b: found shape \(640,\), expected \(1280,\): the first frames of B's voice"):
    stream.prime(np.zeros(640))
  stream.prime(np.zeros(1280))
  assert stream.push(*frame).shape == (1, 56)
  with pytest.raises(InputError, match="found a conversation that has begun"):
    stream.prime(np.zeros(1280))


def test_features_instead_of_samples():
  generator, variables, socials = random_generator(ENCODER, **SMALL)
  batch = StreamBatch(generator, variables, socials[0], 2)
  plain = MotionStream(generator, variables, socials[0], lengths=(1,))
  rng = np.random.default_rng(5)
  for _ in range(5):
    frame = [rng.normal(size=(1, n)).astype(np.float32) for n in (ENCODER.features, 56, ENCODER.features)]
    np.testing.assert_allclose(batch.streams[1].push(*frame), plain.push(*frame), rtol=0, atol=2e-5)


def test_no_place_is_refused(model):
  with pytest.raises(InputError, match="places: found 0, expected at least 1"):
    make_batch(model, 0)
