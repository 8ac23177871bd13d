"""B's sound frame by frame, A's interruptions, and what page and server say to each other."""

import json

import numpy as np
import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.live import protocol
from rsatalker_jax.live.protocol import CUT, HOLD, VOICED
from rsatalker_jax.live.server import Allowance
from rsatalker_jax.live.voice import Event, SentenceCutter, SpeechDetector, Turns, Voice, split_sentences

LEAD = 6  # Frames of silence before what is said.


def tone(frames: float, level: float = 0.3) -> np.ndarray:
  return (level * np.sin(0.2 * np.arange(int(640 * frames)))).astype(np.float32)


@pytest.mark.parametrize("ahead", [0, 3])
def test_the_generator_hears_each_frame_so_much_before_it_sounds(ahead):
  voice = Voice(ahead)
  first = voice.first()
  assert first.shape == (640 * ahead,) and not first.any()
  wav = tone(2.5)
  heard, sounds, flags = [], [], []
  for frame in range(20):
    if frame == 4:
      assert voice.say(wav) == ahead + LEAD
    heard.append(voice.hear())
    flag, sound = voice.sound()
    flags.append(flag), sounds.append(sound)
  heard, sounds = np.concatenate(heard), np.concatenate(sounds)
  begins = 640 * (4 + LEAD)
  expected = np.zeros(640 * 20)
  expected[begins : begins + len(wav)] = np.round(wav * 32767)
  np.testing.assert_array_equal(heard, expected)
  np.testing.assert_array_equal(sounds[640 * ahead :], heard[: len(heard) - 640 * ahead])
  said = [bool(flag & HOLD) for flag in flags]
  assert said == [4 + ahead <= frame < 4 + ahead + LEAD + 3 + 2 for frame in range(20)]
  assert [bool(flag & VOICED) for flag in flags] == [4 + ahead + LEAD <= frame < 4 + ahead + LEAD + 3 for frame in range(20)]
  assert not voice.speaking and not voice.waiting and not any(flag & CUT for flag in flags)


@pytest.mark.parametrize("ahead", [0, 3])
def test_interrupted_it_is_silent_from_the_next_frame_on(ahead):
  voice = Voice(ahead)
  voice.first()
  assert not voice.cut()
  voice.say(tone(30))
  for _ in range(ahead + LEAD + 1):
    voice.hear(), voice.sound()
  voice.hear()
  assert voice.sound()[0] == HOLD | VOICED and voice.cut() and not voice.speaking
  heard = [voice.hear() for _ in range(3)]
  told = [voice.sound() for _ in range(3)]
  assert [flags for flags, _ in told] == [CUT, 0, 0]
  assert not np.any(heard) and not any(sound.any() for _, sound in told)
  voice.say(tone(1))  # And it can speak again.
  assert voice.speaking and voice.waiting == (LEAD + 1 + 2) / 25


def test_what_is_said_one_after_the_other_has_one_beginning():
  voice = Voice(0)
  assert voice.say(tone(4)) == LEAD and voice.say(tone(3)) == LEAD + 4 + 2
  assert voice.waiting == pytest.approx((LEAD + 4 + 2 + 3 + 2) / 25)


def test_loud_values_are_clipped_and_do_not_wrap_around():
  voice = Voice(0)
  voice.say(np.full(640, 2.0, np.float32))
  sounds = [(voice.hear(), voice.sound())[0] for _ in range(LEAD + 1)]
  assert (sounds[LEAD] == 32767).all()


def frames(*levels: float) -> list[np.ndarray]:
  rng = np.random.default_rng(0)
  return [np.round(32768 * level * rng.normal(size=640)).astype(np.int16) for level in levels]


@pytest.mark.parametrize(
    "levels, echo, found",
    [
        ([0.001] * 10 + [0.1] * 3 + [0.001] * 3, False, None),  # A cough: 120 ms.
        ([0.001] * 10 + [0.1] * 6, False, 13),
        ([0.001] * 10 + [0.1, 0.1, 0.001] * 4, False, None),
        ([0.02] * 10 + [0.03] * 10, False, None),  # A noisy room.
        ([0.001] * 10 + [0.008] * 6, False, 13),
        ([0.001] * 10 + [0.008] * 6, True, None),  # What is left of an echo.
        ([0.001] * 10 + [0.05] * 6, True, 13),
        ([0.0] * 10 + [0.0001] * 10, False, None),
    ],
)
def test_a_has_begun_to_speak(levels, echo, found):
  detector, turns = SpeechDetector(), Turns()
  told = [turns.take(detector.hears(frame, echo)) is Event.BEGINS for frame in frames(*levels)]
  assert (told.index(True) if any(told) else None) == found
  assert sum(told) <= 1


def test_turns_begin_pause_and_end():
  def events(*runs):
    turns = Turns()
    told = [(frame, turns.take(heard)) for frame, heard in enumerate(heard for heard, count in runs for _ in range(count))]
    return [(frame, event) for frame, event in told if event]

  # Frames 10 to 29 are heard, then nothing: told with the fourth frame heard, with the eighth and the fifteenth of silence.
  whole = [(13, Event.BEGINS), (37, Event.PAUSES), (44, Event.ENDS)]
  assert events((False, 10), (True, 20), (False, 40)) == whole
  # A gap of seven frames is none; nor is speech of three.
  assert events((False, 10), (True, 9), (False, 7), (True, 4), (False, 40)) == whole
  assert events((False, 10), (True, 3), (False, 40)) == []
  # Who goes on after a pause begins anew, and the turn ends once.
  assert events((True, 4), (False, 10), (True, 4), (False, 40)) == [
      (3, Event.BEGINS), (11, Event.PAUSES), (17, Event.BEGINS), (25, Event.PAUSES), (32, Event.ENDS)
  ]  # fmt: skip


def test_sentences_are_said_one_by_one():
  assert list(split_sentences(" Hello there.  How are you?\nFine ")) == ["Hello there.", "How are you?", "Fine"]
  parts = list(split_sentences("word " * 100))
  assert " ".join(parts) == "word " * 99 + "word" and max(map(len, parts)) <= 205 and len(parts) == 3


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_sentences_are_cut_as_they_come(size):
  text = 'It is 3.5 m, I think. "Really?" Yes… (no!) and so on\n* fine'
  cutter, parts = SentenceCutter(), []
  for i in range(0, len(text), size):
    parts += cutter.add(text[i : i + size])
    if i + size > text.index("Yes"):
      assert parts[:2] == ["It is 3.5 m, I think.", '"Really?"']  # None waits for more than the white space after it.
  parts += cutter.end()
  assert parts == ["It is 3.5 m, I think.", '"Really?"', "Yes…", "(no!)", "and so on * fine"]
  assert not list(cutter.end())


def test_frames_and_answers_are_read_as_they_were_written():
  rng = np.random.default_rng(0)
  sound = rng.integers(-32768, 32768, 640).astype(np.int16)
  motion = rng.normal(size=56).astype(np.float32)
  number, found, seen = protocol.parse_frame(protocol.make_frame(2**31 + 5, sound, motion))
  assert number == 2**31 + 5
  np.testing.assert_array_equal(found, sound)
  np.testing.assert_array_equal(seen, motion)
  assert protocol.parse_frame(protocol.make_frame(7, sound))[2] is None
  data = protocol.make_answer(7, CUT | VOICED, motion, sound)
  assert len(data) == 8 + 224 + 1280 and data[:8] == b"\7\0\0\0\6\0\0\0"
  number, flags, seen, found = protocol.parse_answer(data)
  assert (number, flags) == (7, CUT | VOICED)
  np.testing.assert_array_equal(seen, motion)
  np.testing.assert_array_equal(found, sound)


@pytest.mark.parametrize("value", [np.nan, np.inf, 11.0, -11.0])
def test_motion_that_no_face_makes_is_refused(value):
  motion = np.zeros(56, np.float32)
  motion[30] = value
  with pytest.raises(InputError, match="frame: motion"):
    protocol.parse_frame(protocol.make_frame(0, np.zeros(640, np.int16), motion))


@pytest.mark.parametrize("size", [0, 3, 1283, 1285, 1507, 1509])
def test_frames_of_another_size_are_refused(size):
  with pytest.raises(InputError, match=f"frame: found {size} bytes, expected 1284 or 1508"):
    protocol.parse_frame(bytes(size))


@pytest.mark.parametrize(
    "data, part",
    [
        ("{", "JSON"),
        ("[" * 5000, "JSON"),
        ("[]", "type: found None"),
        ({"type": "shout"}, "type: found 'shout', expected relation | say | write | play | headphones | stop | record"),
        ({"type": ["say"]}, "type"),
        ({"type": "say"}, "say: found type, expected type, text"),
        ({"type": "say", "text": " "}, "text"),
        ({"type": "say", "text": "x" * 501}, "expected 1 to 500 characters"),
        ({"type": "say", "text": 3}, "text: found 3"),
        ({"type": "say", "text": "x", "voice": "y"}, "say: found type, text, voice"),
        ({"type": "play", "recording": -1}, "recording"),
        ({"type": "play", "recording": True}, "recording: found True"),
        ({"type": "headphones", "on": 1}, "on: found 1"),
        ({"type": "relation", "relation": "friends"}, "found 'friends'"),
        ({"type": "relation", "relation": None}, "relation: found None"),
        ({"type": "stop", "now": True}, "stop: found type, now, expected type"),
    ],
)
def test_messages_that_are_none(data, part):
  with pytest.raises(InputError) as caught:
    protocol.parse_command(data if isinstance(data, str) else json.dumps(data))
  assert part in str(caught.value) and "\n" not in str(caught.value)


def test_messages():
  kind, relation = protocol.parse_command('{"type": "relation", "relation": "non_blood,equal"}')
  assert kind == "relation" and relation.tolist() == [0, 1]
  assert protocol.parse_command('{"type": "say", "text": "Hello."}') == ("say", "Hello.")
  assert protocol.parse_command('{"type": "stop"}') == ("stop", None)


def test_allowance():
  now = [0.0]
  allowance = Allowance(25, 3, lambda: now[0])
  assert [allowance.take() for _ in range(4)] == [True] * 3 + [False]
  now[0] += 0.05
  assert [allowance.take() for _ in range(2)] == [True, False]
  now[0] += 1000
  assert [allowance.take() for _ in range(4)] == [True] * 3 + [False]
