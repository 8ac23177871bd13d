"""What one person of a dyad does by themselves: moods, posture, prosodic head motion, nods, gaze and blinks.

Everything here depends on who speaks when and on chance, not on what the other's face does; `dyads` adds that.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from jaxtyping import Float
import numpy as np
from scipy import signal

from rsatalker_jax.data.demo import visemes
from rsatalker_jax.data.demo.expressions import EXPRESSION_NAMES
from rsatalker_jax.data.demo.rules import CHANNELS, FACE_CHANNELS, RelationRules
from rsatalker_jax.types import FPS

_SMILE, _LAUGH, _BROW_RAISE, _BROW_INNER, _BROW_LOWER, _PRESS, _PITCH, _YAW, _TILT = range(len(CHANNELS))

# What a mood does to the channels of who is in it, at its height.
_MOODS: Mapping[str, Mapping[int, float]] = {
    "neutral": {},
    "smile": {_SMILE: 0.48},
    "laugh": {_SMILE: 0.58, _LAUGH: 0.80},
    "surprise": {_BROW_RAISE: 0.70, _BROW_INNER: 0.50, _PITCH: -0.05},
    "concern": {_BROW_LOWER: 0.45, _BROW_INNER: 0.35, _PRESS: 0.30, _PITCH: 0.03},
    "question": {_BROW_RAISE: 0.35, _BROW_INNER: 0.25, _TILT: 0.07},
    "agree": {_SMILE: 0.20, _PRESS: 0.30, _PITCH: 0.02},
}
# How a mood goes on through an utterance: seconds in which it falls to a third, or None for a rise towards the end.
_MOOD_DECAY = {"smile": 5.0, "laugh": 2.0, "surprise": 1.0, "concern": 6.0, "question": None, "agree": 1.5, "neutral": 1.0}

_PHRASE_GAP = 0.25        # A silence this long ends a phrase (seconds).
_AVERT_TIME = 0.9         # How long one looks away at the start of a turn.
_SHIFT = (0.016, 0.042, 0.038)  # Posture shift at each turn: standard deviation of pitch, yaw, tilt (rad).
_SWAY = (0.004, 0.006, 0.004)   # Standing noise of the head (rad).


@dataclasses.dataclass(frozen=True)
class Timeline:
  """When one person speaks.

  Attributes:
    times: (T,) centres of the frames, seconds.
    phones: all phones in order.
    loudness: of each phone, relative to the person's mean.
    utterances: (start, end, kind, mood) in order.
    speaking: (T,) 1 while speaking, with smooth flanks.
  """

  times: Float[np.ndarray, "T"]
  phones: Sequence[visemes.Phone]
  loudness: Sequence[float]
  utterances: Sequence[tuple[float, float, str, str]]
  speaking: Float[np.ndarray, "T"]

  def phrase_ends(self) -> list[float]:
    """Ends of the phrases: phones that a silence of at least 0.25 s follows."""
    if not self.phones:
      return []
    starts = [start for _, start, _ in self.phones[1:]] + [np.inf]
    return [end for (_, _, end), following in zip(self.phones, starts, strict=True) if following - end >= _PHRASE_GAP]


@dataclasses.dataclass(frozen=True)
class Habits:
  """What is this person's own, whatever the relation.

  Attributes:
    liveliness, answering, articulation, nodding, moving, averting, brow_beats: scales around 1 of moods and head beats,
      of answers to the partner, of the mouth's opening, of nods, of posture shifts, of looking away, of brow raises.
    face_offset: added to the face channels at rest.
    head_offset: added to pitch, yaw and tilt (rad).
    asymmetry: scale of every expression coefficient, so left and right differ.
    blink_interval: mean time between blinks that nothing causes (s).
  """

  liveliness: float
  answering: float
  articulation: float
  nodding: float
  moving: float
  averting: float
  brow_beats: float
  face_offset: Float[np.ndarray, "6"]
  head_offset: Float[np.ndarray, "3"]
  asymmetry: Float[np.ndarray, "50"]
  blink_interval: float

  @classmethod
  def draw(cls, rng: np.random.Generator) -> "Habits":
    """Draws a person."""
    asymmetry = rng.normal(1.0, 0.05, len(EXPRESSION_NAMES))
    # Two eyes look at one place, and both lids close together.
    asymmetry[[k for k, name in enumerate(EXPRESSION_NAMES) if name.startswith(("eyeBlink", "eyeLook"))]] = 1.0
    scales = (float(scale) for scale in np.exp(rng.normal(0.0, (0.25, 0.08, 0.10, 0.20, 0.30, 0.20, 0.25))))
    return cls(*scales, face_offset=np.abs(rng.normal(0.0, (0.05, 0.0, 0.04, 0.04, 0.03, 0.05))),
               head_offset=rng.normal(0.0, (0.012, 0.014, 0.010)), asymmetry=asymmetry,
               blink_interval=float(rng.uniform(10.0, 18.0)))


def smooth(x: Float[np.ndarray, "T *c"], settle: float) -> Float[np.ndarray, "T *c"]:
  """Causal, critically damped low-pass along the first axis: two first-order stages of `settle` seconds each."""
  decay = np.exp(-1.0 / (FPS * settle))
  for _ in range(2):
    x = signal.lfilter([1.0 - decay], [1.0, -decay], x, axis=0)
  return x


def smooth_noise(rng: np.random.Generator, num_frames: int, num_channels: int,
                 settle: float) -> Float[np.ndarray, "T c"]:
  """Gaussian noise of unit variance and the time scale `settle` (seconds), (num_frames, num_channels)."""
  lead = int(8 * settle * FPS)
  noise = smooth(rng.normal(size=(num_frames + lead, num_channels)), settle)[lead:]
  decay = np.exp(-1.0 / (FPS * settle))
  # Variance of white noise after two first-order stages with pole p: (1-p)^4 (1+p^2) / (1-p^2)^3.
  return noise / np.sqrt((1 - decay)**4 * (1 + decay**2) / (1 - decay**2)**3)


def pulses(centres: Sequence[float], amplitudes: Sequence[float], length: float,
           num_frames: int) -> Float[np.ndarray, "T"]:
  """Sum of Hann windows (`length` seconds wide, height = amplitude) around the centres: (num_frames,)."""
  out = np.zeros(num_frames)
  half = 0.5 * length
  for centre, amplitude in zip(centres, amplitudes, strict=True):
    first = max(int((centre - half) * FPS), 0)
    last = min(int((centre + half) * FPS) + 2, num_frames)
    phase = ((np.arange(first, last) + 0.5) / FPS - centre) / half
    out[first:last] += np.where(np.abs(phase) < 1.0, amplitude * 0.5 * (1.0 + np.cos(np.pi * phase)), 0.0)
  return out


def interval(times: Float[np.ndarray, "T"], start: float, end: float) -> Float[np.ndarray, "T"]:
  """1 between start and end, else 0."""
  return ((times >= start) & (times < end)).astype(np.float64)


def _mood_course(times: Float[np.ndarray, "T"], start: float, end: float, decay: float | None) -> Float[np.ndarray, "T"]:
  """Course of a mood through an utterance, 0 to 1: it begins a little before and outlasts the voice a little."""
  held = interval(times, start - 0.15, end + 0.30)
  if decay is None:
    return held * np.clip((times - start) / max(end - start, 1e-3), 0.15, 1.0)**2
  return held * np.exp(-np.maximum(times - start - 0.4, 0.0) / decay)


def own_channels(me: Timeline, partner: Timeline, rules: RelationRules, habits: Habits,
                 rng: np.random.Generator) -> Float[np.ndarray, "T 9"]:
  """The channels a person would show if the partner's face were not seen (columns: rules.CHANNELS)."""
  times, num_frames = me.times, len(me.times)
  target = np.zeros((num_frames, len(CHANNELS)))
  shift = np.zeros((num_frames, 3))
  lively = rules.expressiveness * habits.liveliness
  nods: list[tuple[float, float]] = []
  for start, end, kind, mood in me.utterances:
    held = lively * np.exp(rng.normal(0.0, 0.10)) * _mood_course(times, start, end, _MOOD_DECAY[mood])
    for channel, value in _MOODS[mood].items():
      target[:, channel] += value * held
    offset = habits.moving * rng.normal(0.0, _SHIFT)
    if kind != "filler":
      shift += interval(times, start, end + 0.2)[:, None] * offset
      away = habits.averting * interval(times, start - 0.1, start + min(_AVERT_TIME, end - start))
      target[:, _YAW] += rules.avert_yaw * away
      target[:, _PITCH] += rules.avert_pitch * away
      # The head rises as a turn begins and sinks towards its end.
      declination = np.clip((times - start) / max(end - start, 1e-3), 0.0, 1.0)
      target[:, _PITCH] += interval(times, start, end) * 0.065 * (2.0 * declination - 1.0)
    if kind == "filler" or mood == "agree":
      nods.append((start + 0.15, 0.8 * rules.nod_gain * habits.nodding))
  listening = np.clip(partner.speaking - me.speaking, 0.0, 1.0)
  target[:, _PITCH] += rules.bow_listening * listening
  target[:, _YAW] += rules.yaw_listening * listening
  target[:, _TILT] += rules.tilt_listening * listening
  channels = smooth(target, 0.12)
  channels[:, _PITCH:] += smooth(shift, 0.16)

  nods += _backchannels(me, partner, rules, habits, rng)
  # A nod is followed by half a nod.
  nods += [(centre + 0.8 * rules.nod_time, 0.5 * depth) for centre, depth in nods]
  channels[:, _PITCH] += pulses([c for c, _ in nods], [d for _, d in nods], rules.nod_time, num_frames)

  # Stress moves the head and the brows.
  beats = visemes.stress(me.phones, me.loudness)
  centres, emphasis = [c for c, _ in beats], np.array([e for _, e in beats])
  channels[:, _PITCH] += pulses(centres, rules.beat_gain * habits.liveliness * emphasis, 0.36, num_frames)
  channels[:, _BROW_RAISE] += pulses(centres, rules.brow_beats * habits.brow_beats * emphasis, 0.5, num_frames)
  channels[:, _BROW_INNER] += pulses(centres, 0.6 * rules.brow_beats * habits.brow_beats * emphasis, 0.5, num_frames)

  channels[:, :FACE_CHANNELS] += habits.face_offset
  for name, level in rules.base.items():
    channels[:, CHANNELS.index(name)] += level
  channels[:, _PITCH:] += habits.head_offset
  channels[:, _PITCH] += rules.bow
  channels[:, _PITCH:] += smooth_noise(rng, num_frames, 3, 0.3) * np.array(_SWAY)
  return channels


def _backchannels(me: Timeline, partner: Timeline, rules: RelationRules, habits: Habits,
                  rng: np.random.Generator) -> list[tuple[float, float]]:
  """Nods (centre in seconds, depth in radians) at the partner's phrase ends, where oneself is silent."""
  nods = []
  for end in partner.phrase_ends():
    depth = rules.nod_gain * habits.nodding * np.exp(rng.normal(0.0, 0.10))
    late = rules.nod_lag + rng.normal(0.0, 0.02)
    if rng.random() < 0.95 and me.speaking[min(int(end * FPS), len(me.times) - 1)] < 0.5:
      nods.append((end + late + 0.5 * rules.nod_time, depth))
  return nods


def blinks(me: Timeline, partner: Timeline, habits: Habits, rng: np.random.Generator) -> Float[np.ndarray, "T"]:
  """Lid closure in [0, 1]: a renewal process with a refractory time, and blinks at the ends of phrases of both."""
  duration = len(me.times) / FPS
  moments, moment = [], float(rng.uniform(0.3, habits.blink_interval))
  while moment < duration:
    moments.append(moment)
    moment += 0.8 + rng.exponential(habits.blink_interval)
  for ends, chance in ((me.phrase_ends(), 0.8), (partner.phrase_ends(), 0.15)):
    moments += [end + 0.1 + rng.normal(0.0, 0.02) for end in ends if rng.random() < chance]
  out, previous = np.zeros(len(me.times) + 8), -1.0
  shape = np.array([0.5, 1.0, 0.85, 0.45, 0.15])  # Lids close in two frames and open in three.
  for moment in sorted(moments):
    if moment - previous < 1.0 or moment > duration:
      continue
    previous, first = moment, int(moment * FPS)
    out[first:first + len(shape)] = np.maximum(out[first:first + len(shape)], shape)
  return out[:len(me.times)]


def gaze_targets(me: Timeline, partner: Timeline, rules: RelationRules,
                 rng: np.random.Generator) -> Float[np.ndarray, "T 2"]:
  """Where the eyes want to look in the room, (T, 2) pitch (down) and yaw (left) in radians; 0 is the partner's eyes."""
  num_frames = len(me.times)
  away = np.zeros((num_frames, 2))
  frame = 0
  listening = partner.speaking > me.speaking
  while frame < num_frames:
    length = max(int(rng.exponential(1.2) * FPS), 8)
    contact = rules.gaze_contact if listening[frame] else 0.65
    if rng.random() > contact:
      away[frame:frame + length] = rng.normal((0.05, 0.0), (0.04, 0.07))
    frame += length
  for start, end, kind, _ in me.utterances:
    if kind != "filler":
      turn = interval(me.times, start - 0.1, start + min(_AVERT_TIME, end - start)) > 0
      away[turn] = (1.5 * rules.avert_pitch, 1.5 * rules.avert_yaw)
  # Saccades take about a frame; between them the eyes are never quite still.
  return smooth(away, 0.02) + 0.006 * smooth_noise(rng, num_frames, 2, 0.1)
