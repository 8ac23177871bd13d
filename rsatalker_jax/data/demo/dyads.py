"""Two people in conversation: both faces' motion from a dialogue's timings, seeded.

The rules are `rules.RULES`; docs/demo_world.md explains them. Each person shows channels (smile, laugh, brows, head
rotation). What a person shows is what they do by themselves plus an answer to what the partner visibly showed a moment
ago: delayed, low-passed, scaled by the relation. The two answers feed each other, so time is stepped frame by frame.
"""

import dataclasses
import zlib

from jaxtyping import Float
import numpy as np
from scipy import signal

from rsatalker_jax.data.demo import gestures
from rsatalker_jax.data.demo import visemes
from rsatalker_jax.data.demo import voices
from rsatalker_jax.data.demo.expressions import COLUMN, EXPRESSION_NAMES, columns
from rsatalker_jax.data.demo.rules import (ANSWER_WHILE_SPEAKING, CHANNELS, FACE_AT_REST, FACE_CHANNELS, FACE_LIMIT,
                                           HEAD_LIMIT, JUNIOR_ANSWERS, RULES, SENIOR_ANSWERS, RelationRules)
from rsatalker_jax.errors import InputError
from rsatalker_jax.types import FPS, MOTION_DIM, SAMPLE_RATE

_LAUGH_RATE = 4.6  # Hz
_EYE_RANGE = 0.55  # Radians of gaze at an eyeLook coefficient of 1.


@dataclasses.dataclass(frozen=True)
class Dyad:
  """Both people's motion.

  Attributes:
    motion: (2, T, 56) float32, speaker 1 first.
    visible: (2, T, 9) the channels each shows (rules.CHANNELS): what the other can see and mirror.
    timelines: who speaks when.
  """

  motion: Float[np.ndarray, "2 T 56"]
  visible: Float[np.ndarray, "2 T 9"]
  timelines: tuple[gestures.Timeline, gestures.Timeline]


def simulate_dyad(dialogue: voices.Dialogue, performance: int, *, loudness: Float[np.ndarray, "2 T"] | None = None,
                  rules: RelationRules | None = None, nudge: Float[np.ndarray, "2 T 9"] | None = None) -> Dyad:
  """One performance of a dialogue. The same arguments give the same motion.

  Args:
    dialogue: who says what when (`voices.load_dialogues`).
    performance: number of the performance; other numbers are other people with other habits and moments.
    loudness: each speaker's loudness per frame (`loudness_track`); from the timings alone if None.
    rules: plays the dialogue by these rules instead of its relation's.
    nudge: added to what each person does by themselves (rules.CHANNELS): for what-if questions.

  Raises:
    InputError: unknown relation, mood, kind or phone.
  """
  if dialogue.relation not in RULES:
    raise InputError(f"dialogue {dialogue.id}", "relation", repr(dialogue.relation), " | ".join(RULES))
  rules = RULES[dialogue.relation] if rules is None else rules
  num_frames = int(dialogue.duration * FPS + 1e-6)
  timelines = tuple(_timeline(dialogue, speaker, num_frames, None if loudness is None else loudness[speaker - 1])
                    for speaker in (1, 2))

  # One stream of chance per person and purpose: what one rule draws cannot move another's draws.
  seeds = np.random.SeedSequence([zlib.crc32(dialogue.id.encode()), performance]).spawn(2)
  streams = [[np.random.default_rng(child) for child in seed.spawn(5)] for seed in seeds]
  habits = [gestures.Habits.draw(rng[0]) for rng in streams]

  lips, own, gain = [], [], []
  for me in (0, 1):
    my, other = timelines[me], timelines[1 - me]
    lips.append(visemes.lip_motion(my.phones, my.times, loudness=my.loudness,
                                   articulation=rules.articulation * habits[me].articulation))
    own.append(gestures.own_channels(my, other, rules, habits[me], streams[me][1]))
    role = 1.0
    if dialogue.senior is not None:
      role = SENIOR_ANSWERS if dialogue.senior == me + 1 else JUNIOR_ANSWERS
    gain.append(role * habits[me].answering * (1.0 - (1.0 - ANSWER_WHILE_SPEAKING) * my.speaking))
  own, gain = np.stack(own, axis=1), np.stack(gain, axis=1)  # (T, 2, 9) and (T, 2)
  if nudge is not None:
    own = own + np.swapaxes(nudge, 0, 1)
  # Rounded lips can smile only so much, and the partner sees what is left.
  allowed = np.stack([1.0 - 0.6 * track.rounding for track in lips], axis=1)
  visible = _answer(own, gain, rules, allowed)

  motion = np.stack([
      _compose(visible[:, me], lips[me], gestures.blinks(timelines[me], timelines[1 - me], habits[me], streams[me][2]),
               gestures.gaze_targets(timelines[me], timelines[1 - me], rules, streams[me][3]),
               1.0 - 0.8 * timelines[me].speaking, habits[me], streams[me][4])
      for me in (0, 1)])
  return Dyad(motion.astype(np.float32), np.swapaxes(visible, 0, 1), timelines)


def perform(dialogue: voices.Dialogue, performance: int) -> Dyad:
  """One performance of a dialogue with its voices' loudness: what unpacking writes.

  Raises:
    InputError: as `simulate_dyad`, or a missing or damaged track.
  """
  num_frames = int(dialogue.duration * FPS + 1e-6)
  loudness = np.stack([loudness_track(voices.decode_track(track), num_frames) for track in dialogue.tracks])
  return simulate_dyad(dialogue, performance, loudness=loudness)


def loudness_track(wav: Float[np.ndarray, "S"], num_frames: int) -> Float[np.ndarray, "T"]:
  """Loudness per frame: square root of the RMS amplitude (close to perceived loudness), (num_frames,)."""
  hop = SAMPLE_RATE // FPS
  padded = np.zeros(num_frames * hop)
  padded[:min(len(wav), len(padded))] = wav[:len(padded)]
  return np.sqrt(np.sqrt(np.mean(np.square(padded.reshape(num_frames, hop)), axis=1)))


def _timeline(dialogue: voices.Dialogue, speaker: int, num_frames: int,
              loudness: Float[np.ndarray, "T"] | None) -> gestures.Timeline:
  """One speaker's timeline, checked."""
  source = f"dialogue {dialogue.id}"
  said = sorted((u for u in dialogue.utterances if u.speaker == speaker), key=lambda u: u.start)
  phones = sorted(((phone.name, phone.start, phone.end) for u in said for phone in u.phones), key=lambda phone: phone[1])
  visemes.check_phones(phones, source)
  for u in said:
    if u.mood not in voices.MOODS:
      raise InputError(source, "mood", repr(u.mood), " | ".join(voices.MOODS))
    if u.kind not in voices.KINDS:
      raise InputError(source, "kind", repr(u.kind), " | ".join(voices.KINDS))
  times = (np.arange(num_frames) + 0.5) / FPS
  relative = np.ones(len(phones))
  if loudness is not None and phones:
    # A phone's loudness at its middle, against the mean over this speaker's vowels.
    raw = np.interp([0.5 * (start + end) for _, start, end in phones], times, loudness)
    vowels = [k for k, (symbol, _, _) in enumerate(phones) if symbol in visemes.VOWELS]
    relative = raw / max(float(np.mean(raw[vowels])) if vowels else 0.0, 1e-3)
  speaking = np.zeros(num_frames)
  for u in said:
    speaking = np.maximum(speaking, gestures.interval(times, u.start, u.end))
  return gestures.Timeline(times, phones, relative, [(u.start, u.end, u.kind, u.mood) for u in said],
                           gestures.smooth(speaking, 0.06))


def _answer(own: Float[np.ndarray, "T 2 9"], gain: Float[np.ndarray, "T 2"], rules: RelationRules,
            allowed: Float[np.ndarray, "T 2"]) -> Float[np.ndarray, "T 2 9"]:
  """Adds each person's answer to what the other visibly showed: gain · lowpass(visible of the other)(t − lag) · M."""
  num_frames, matrix = len(own), rules.answer_matrix()
  decay = np.exp(-1.0 / (FPS * rules.settle))
  parts = ((slice(0, FACE_CHANNELS), max(round(FPS * rules.face_lag), 1), FACE_LIMIT),
           (slice(FACE_CHANNELS, len(CHANNELS)), max(round(FPS * rules.head_lag), 1), np.array(HEAD_LIMIT)))
  block, lead = min(part[1] for part in parts), max(part[1] for part in parts)
  at_rest = np.pad(FACE_AT_REST, (0, len(CHANNELS) - FACE_CHANNELS))
  visible = np.zeros_like(own)
  # What each has taken in of the other: row t + lead is the low-pass at frame t; before, they saw each other's first pose.
  seen = np.zeros((num_frames + lead, 2, len(CHANNELS)))
  seen[:lead] = own[0, ::-1]
  for first in range(0, num_frames, block):  # Within a block, answers depend on earlier blocks alone.
    now = slice(first, min(first + block, num_frames))
    for channels, lag, limit in parts:
      answer = gain[now, :, None] * ((seen[now.start + lead - lag:now.stop + lead - lag] - at_rest) @ matrix[:, channels])
      visible[now, :, channels] = limit * np.tanh((own[now, :, channels] + answer) / limit)
    np.maximum(visible[now, :, :FACE_CHANNELS], 0.0, out=visible[now, :, :FACE_CHANNELS])
    visible[now, :, 0] *= allowed[now]
    seen[now.start + lead:now.stop + lead] = signal.lfilter(
        [1.0 - decay], [1.0, -decay], visible[now, ::-1], axis=0, zi=decay * seen[now.start + lead - 1][None])[0]
  return visible


def _compose(channels: Float[np.ndarray, "T 9"], lips: visemes.Lips, lids: Float[np.ndarray, "T"],
             gaze: Float[np.ndarray, "T 2"], still: Float[np.ndarray, "T"], habits: gestures.Habits,
             rng: np.random.Generator) -> Float[np.ndarray, "T 56"]:
  """Writes channels, lips, lids and gaze into one person's motion; `still`: how much of the lips speech leaves free."""
  num_frames = len(channels)
  smile, laugh, brow_raise, brow_inner, brow_lower, press = channels[:, :FACE_CHANNELS].T
  motion = np.zeros((num_frames, MOTION_DIM))

  def add(shape: str, value: Float[np.ndarray, "T"]) -> None:
    for column in columns(shape):
      motion[:, column] += value

  for index, shape in enumerate(visemes.LIP_SHAPES):
    add(shape, lips.shapes[:, index])
  free = 1.0 - lips.closure
  chuckle = 0.5 + 0.5 * np.sin(2.0 * np.pi * _LAUGH_RATE * np.arange(num_frames) / FPS + rng.uniform(0, 2 * np.pi))
  motion[:, COLUMN["jawOpening"]] += free * (0.015 * smile + laugh * (0.07 + 0.05 * chuckle))
  add("mouthSmile", smile)
  add("mouthDimple", 0.20 * smile)
  add("mouthUpperUp", free * (0.10 * smile + 0.25 * laugh))
  add("mouthLowerDown", free * 0.15 * laugh)
  add("cheekSquint", 0.35 * smile + 0.45 * laugh)
  add("eyeSquint", 0.22 * smile + 0.25 * laugh)
  add("noseSneer", 0.15 * laugh)
  add("browInnerUp", brow_inner)
  add("browOuterUp", brow_raise)
  add("eyeWide", 0.35 * brow_raise)
  add("browDown", brow_lower)
  add("mouthFrown", 0.40 * brow_lower)
  add("mouthPress", still * press)
  add("mouthRollLower", 0.4 * still * press)
  add("mouthShrugLower", 0.5 * still * press)
  add("mouthDimple", 0.4 * still * press)
  add("eyeBlink", lids)

  head = channels[:, FACE_CHANNELS:]
  motion[:, COLUMN["headPitch"]:] = head
  # Eyes hold their target against the head's own turns (vestibulo-ocular reflex, not quite complete).
  down, left = (gaze - 0.8 * head[:, :2]).T / _EYE_RANGE
  add("eyeLookDown", np.maximum(down, 0.0))
  add("eyeLookUp", np.maximum(-down, 0.0))
  for name, value in (("eyeLookOutLeft", left), ("eyeLookInRight", left), ("eyeLookInLeft", -left),
                      ("eyeLookOutRight", -left)):
    motion[:, COLUMN[name]] = np.maximum(value, 0.0)

  expression = motion[:, :len(EXPRESSION_NAMES)]
  expression *= habits.asymmetry
  jitter = 0.008 * gestures.smooth_noise(rng, num_frames, len(EXPRESSION_NAMES), 0.15)
  np.clip(expression + jitter * (expression > 0.02), 0.0, 1.0, out=expression)
  return motion
