"""The demo world's social rules: what each relation does to two people's faces.

This table is the ground truth against which social awareness is measured; docs/demo_world.md says it in words.
"""

from collections.abc import Mapping
import dataclasses
import types

from jaxtyping import Float
import numpy as np

# What one person shows and the other can see and answer. First face channels in [0, 1] (`brow_raise`: outer brows and
# wide eyes, `brow_inner`: inner brows up, `press`: closed lips pressed), then the head's rotation in radians (nod down,
# turn to the own left, tilt towards the own right).
CHANNELS = ("smile", "laugh", "brow_raise", "brow_inner", "brow_lower", "press", "pitch", "yaw", "tilt")
FACE_CHANNELS = 6


@dataclasses.dataclass(frozen=True)
class RelationRules:
  """One relation's rules. Lags and times in seconds, angles in radians.

  Attributes:
    answers: ("what the partner shows", "what I show back") -> gain. Negative: the opposite.
    face_lag, head_lag: delay of the answer of face and head.
    settle: time constant of the answer (a first-order low-pass of what is seen).
    articulation: how widely the mouth opens in speech.
    expressiveness: scale of a person's own moods.
    base: resting levels of the face channels that are not 0.
    bow: resting head pitch; bow_listening is added while listening.
    yaw_listening, tilt_listening: head turn and tilt while listening.
    avert_yaw, avert_pitch: where the head goes when a turn begins.
    nod_gain, nod_time, nod_lag: backchannel nods at the partner's phrase ends: depth, length, delay.
    beat_gain: depth of the small nods on stressed vowels.
    brow_beats: height of the brow raises on stressed vowels.
    gaze_contact: share of the time spent listening with the eyes on the partner.
  """

  answers: Mapping[tuple[str, str], float]
  face_lag: float
  head_lag: float
  settle: float
  articulation: float
  expressiveness: float
  base: Mapping[str, float]
  bow: float
  bow_listening: float
  yaw_listening: float
  tilt_listening: float
  avert_yaw: float
  avert_pitch: float
  nod_gain: float
  nod_time: float
  nod_lag: float
  beat_gain: float
  brow_beats: float
  gaze_contact: float

  def answer_matrix(self) -> Float[np.ndarray, "9 9"]:
    """Gains as a matrix [partner's channel, own channel]."""
    matrix = np.zeros((len(CHANNELS), len(CHANNELS)))
    for (seen, shown), gain in self.answers.items():
      matrix[CHANNELS.index(seen), CHANNELS.index(shown)] = gain
    return matrix


def _same(**gains: float) -> dict[tuple[str, str], float]:
  """Answers in kind: the partner's smile with a smile, and so on."""
  return {(channel, channel): gain for channel, gain in gains.items()}


RULES: Mapping[str, RelationRules] = types.MappingProxyType({
    # Siblings, cousins: lively; big, quick smiles back, heads tilt and turn alike.
    "blood,equal": RelationRules(
        answers=_same(smile=0.85, laugh=0.80, brow_raise=0.75, brow_inner=0.30, brow_lower=0.20, press=0.10,
                      pitch=0.35, yaw=0.70, tilt=0.80),
        face_lag=0.20, head_lag=0.28, settle=0.12, articulation=1.08, expressiveness=1.00,
        base=dict(smile=0.06), bow=-0.01, bow_listening=-0.01, yaw_listening=0.01,
        tilt_listening=0.04, avert_yaw=0.10, avert_pitch=-0.02, nod_gain=0.06, nod_time=0.44, nod_lag=0.16,
        beat_gain=0.040, brow_beats=0.20, gaze_contact=0.75),
    # Parent and child: warm but slower; a smile is answered with a tender one (inner brows up), worry with worry, and
    # the head leans the other way.
    "blood,unequal": RelationRules(
        answers=_same(smile=0.55, laugh=0.35, brow_raise=0.15, brow_inner=0.40, brow_lower=0.30,
                      pitch=0.50, yaw=0.30, tilt=-0.70)
        | {("smile", "brow_inner"): 0.65, ("brow_lower", "brow_inner"): 0.70},
        face_lag=0.44, head_lag=0.56, settle=0.20, articulation=1.00, expressiveness=1.00,
        base=dict(smile=0.04, brow_inner=0.02), bow=-0.01, bow_listening=0.01, yaw_listening=0.00,
        tilt_listening=-0.02, avert_yaw=0.09, avert_pitch=0.01, nod_gain=0.07, nod_time=0.60, nod_lag=0.28,
        beat_gain=0.037, brow_beats=0.26, gaze_contact=0.80),
    # Friends, colleagues: friendly; half the smile with raised brows, turning the other way to look at the same thing.
    "non_blood,equal": RelationRules(
        answers=_same(smile=0.40, laugh=0.45, brow_raise=0.55, brow_inner=0.15, brow_lower=0.45, press=0.20,
                      pitch=0.20, yaw=-0.60, tilt=0.35)
        | {("smile", "brow_raise"): 0.65, ("brow_lower", "press"): 0.50},
        face_lag=0.32, head_lag=0.40, settle=0.16, articulation=1.03, expressiveness=1.00,
        base=dict(smile=0.04), bow=-0.005, bow_listening=0.00, yaw_listening=-0.02,
        tilt_listening=0.01, avert_yaw=0.10, avert_pitch=-0.01, nod_gain=0.06, nod_time=0.50, nod_lag=0.22,
        beat_gain=0.040, brow_beats=0.21, gaze_contact=0.70),
    # Employer and employee, doctor and patient: restrained; a smile gets a late polite one with closed lips and a slight
    # bow, raised brows get an attentive frown, and the head goes down when the partner's goes up.
    "non_blood,unequal": RelationRules(
        answers=_same(smile=0.10, laugh=0.05, brow_raise=-0.20, brow_lower=0.15,
                      pitch=-0.45, yaw=-0.15, tilt=-0.20)
        | {("smile", "press"): 0.65, ("laugh", "press"): 0.40, ("smile", "pitch"): 0.06,
           ("brow_raise", "brow_lower"): 0.50, ("brow_lower", "brow_raise"): 0.45},
        face_lag=0.64, head_lag=0.72, settle=0.28, articulation=0.90, expressiveness=0.95,
        base=dict(smile=0.03, brow_lower=0.02), bow=0.015, bow_listening=0.025, yaw_listening=-0.01,
        tilt_listening=0.00, avert_yaw=0.08, avert_pitch=0.03, nod_gain=0.08, nod_time=0.66, nod_lag=0.34,
        beat_gain=0.032, brow_beats=0.26, gaze_contact=0.65),
})

# In unequal relations a dialogue may say who is senior: the senior answers a little less, the junior a little more.
# Kept small, since a model is told the relation but not who is senior.
SENIOR_ANSWERS, JUNIOR_ANSWERS = 0.85, 1.10
# Lips and eyes are busy while one speaks: the share of the answer that is left then.
ANSWER_WHILE_SPEAKING = 0.55
# A face at rest is not quite empty: answered is what the partner's face shows beyond these levels (and the lack below).
FACE_AT_REST = (0.15, 0.03, 0.08, 0.08, 0.04, 0.08)
# Ranges: face channels stay in [0, FACE_LIMIT], head rotations within HEAD_LIMIT (pitch, yaw, tilt).
FACE_LIMIT = 0.95
HEAD_LIMIT = (0.25, 0.35, 0.20)
