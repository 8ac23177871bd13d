"""What is known of the embedded conversations beyond their files: who says what when, and by which rules they answer.

Real data has neither; what is measured here is measured on the demo alone. docs/demo_world.md explains the rules.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from rsatalker_jax.data.demo import dyads, visemes, voices
from rsatalker_jax.data.demo.expressions import columns
from rsatalker_jax.data.demo.rules import CHANNELS, FACE_CHANNELS, RULES
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation.motion_metrics import correlation
from rsatalker_jax.evaluation.tables import markdown_table
from rsatalker_jax.types import FPS, MOTION_GROUPS, Motion

_PERSON_NAME = re.compile(r"demo-(?P<dialogue>[^_]+)_sub_video_\d+_speaker(?P<speaker>[12])")

# The coefficients that a channel alone moves, and how much: nothing else reaches them in the frames that are measured.
_SHOWN_IN = {
    "smile": ("mouthSmile", 1.0), "laugh": ("noseSneer", 0.15), "brow_raise": ("browOuterUp", 1.0),
    "brow_inner": ("browInnerUp", 1.0), "brow_lower": ("browDown", 1.0), "press": ("mouthPress", 1.0),
    "pitch": ("headPitch", 1.0), "yaw": ("headYaw", 1.0), "tilt": ("headTilt", 1.0),
}  # fmt: skip

# A nudge: this much more of a channel for three seconds, as much less of it for the next three (in the face: none).
_FACE_NUDGE, _HEAD_NUDGE = 0.3, 0.08
_HALF_PERIOD = 3 * FPS
_PAUSE = 0.3  # Seconds around what B says that do not count as silent.
_SETTLED = round(1.8 * FPS)  # Frames into a half period when the slowest answer (.72 s late, .28 s to settle) has come.


def find_person(name: str) -> tuple[voices.Dialogue, int]:
  """Dialogue and speaker (1 or 2) of a person of the embedded conversations, "demo-d001_sub_video_0_speaker2".

  Raises:
    InputError: another name, or the table of dialogues is missing or damaged.
  """
  match = _PERSON_NAME.fullmatch(name)
  if not match or match["dialogue"] not in _dialogues():
    raise InputError(name, "", "no person of an embedded conversation", "demo-d001_sub_video_0_speaker1 and so on")
  return _dialogues()[match["dialogue"]], int(match["speaker"])


@functools.cache
def _dialogues() -> Mapping[str, voices.Dialogue]:
  return {dialogue.id: dialogue for dialogue in voices.load_dialogues()}


def find_bilabials(name: str) -> list[voices.Phone]:
  """The P, B and M that a person says, for a name as in `find_person`."""
  dialogue, speaker = find_person(name)
  said = [utterance for utterance in dialogue.utterances if utterance.speaker == speaker]
  return [phone for utterance in said for phone in utterance.phones if phone.name in visemes.BILABIALS]


def shown_channels(motion: Motion) -> Float[np.ndarray, "T 9"]:
  """What a motion shows of `rules.CHANNELS`, right where the person does not speak."""
  shown = [motion[:, list(columns(shape))].mean(axis=1) / height for shape, height in map(_SHOWN_IN.__getitem__, CHANNELS)]
  return np.stack(shown, axis=1).astype(np.float64)


def rule_answers() -> dict[str, Float[np.ndarray, "9 9"]]:
  """The rules' gains per relation, [what the partner shows, what is shown back]."""
  return {relation: rules.answer_matrix() for relation, rules in RULES.items()}


def nudge_partner(name: str, motion_a: Motion) -> Float[np.ndarray, "9 T 56"]:
  """A's motion, with more and less of one of `rules.CHANNELS` in turns: one motion for each channel.

  Args:
    name: of B, as in `find_person`.
    motion_a: A's motion.
  """
  dialogue, speaker = find_person(name)
  # What a nudge does to A's coefficients is what the simulator adds for it to an A who answers nobody.
  alone = dataclasses.replace(RULES[dialogue.relation], answers={})
  plain = dyads.simulate_dyad(dialogue, 0, rules=alone).motion[2 - speaker]
  nudged = []
  for channel in range(len(CHANNELS)):
    other = dyads.simulate_dyad(dialogue, 0, rules=alone, nudge=_nudge(dialogue, speaker, channel)).motion[2 - speaker]
    nudged.append(motion_a + (other - plain)[: len(motion_a)])
  nudged = np.stack(nudged)
  expression = nudged[..., MOTION_GROUPS["expression"]]
  np.clip(expression, 0.0, 1.0, out=expression)
  return nudged


def measure_answers(
    respond: Callable[[Motion], Motion], name: str, motion_a: Motion, nudged: Float[np.ndarray, "9 T 56"]
) -> Float[np.ndarray, "9 9"]:
  """How strongly B answers A: by how much B's motion changes when A shows more of one channel and all else is as it was.

  Nothing is regressed, so what both do because of the dialogue does not enter. Counted are frames in which B is silent.

  Args:
    respond: B's motion from A's.
    name: of B, as in `find_person`.
    motion_a: A's motion.
    nudged: the same, nudged by `nudge_partner`.

  Returns:
    Gains as in `rule_answers`, change of B's channels per change of A's; NaN where B is never silent long enough.
  """
  dialogue, speaker = find_person(name)
  before = respond(motion_a)
  return np.stack([
      _gain(dialogue, speaker, channel, changed - motion_a, respond(changed) - before)
      for channel, changed in enumerate(nudged)
  ])


def simulate_answers(name: str, relation: str, performance: int = 0) -> Float[np.ndarray, "9 9"]:
  """What `measure_answers` finds where the simulator itself, playing by another relation's rules, responds."""
  dialogue, speaker = find_person(name)
  plain = dyads.simulate_dyad(dialogue, performance, rules=RULES[relation]).motion
  gains = []
  for channel in range(len(CHANNELS)):
    nudge = _nudge(dialogue, speaker, channel)
    change = dyads.simulate_dyad(dialogue, performance, rules=RULES[relation], nudge=nudge).motion - plain
    gains.append(_gain(dialogue, speaker, channel, change[2 - speaker], change[speaker - 1]))
  return np.stack(gains)


def _nudge(dialogue: voices.Dialogue, speaker: int, channel: int) -> Float[np.ndarray, "2 T 9"]:
  """More and less of one channel of the partner of `speaker`, in turns."""
  times = np.arange(int(dialogue.duration * FPS + 1e-6))
  up = times % (2 * _HALF_PERIOD) < _HALF_PERIOD
  nudge = np.zeros((2, len(times), len(CHANNELS)))
  face = channel < FACE_CHANNELS
  nudge[2 - speaker, :, channel] = np.where(up, _FACE_NUDGE, 0.0) if face else np.where(up, _HEAD_NUDGE, -_HEAD_NUDGE)
  return nudge


def _gain(
    dialogue: voices.Dialogue,
    speaker: int,
    channel: int,
    change_a: Float[np.ndarray, "T 56"],
    change_b: Float[np.ndarray, "T 56"],
) -> Float[np.ndarray, "9"]:
  """Settled change of B's channels per change of A's, over frames in which B, the `speaker`, is silent."""
  frames = np.arange(len(change_b))
  silent = np.ones(len(frames), bool)
  for utterance in dialogue.utterances:
    if utterance.speaker == speaker:
      silent &= (frames < (utterance.start - _PAUSE) * FPS) | (frames > (utterance.end + _PAUSE) * FPS)
  settled = silent & (frames % _HALF_PERIOD >= _SETTLED)
  up = frames % (2 * _HALF_PERIOD) < _HALF_PERIOD
  if not np.any(settled & up) or not np.any(settled & ~up):
    return np.full(len(CHANNELS), np.nan)
  swing = lambda change: change[settled & up].mean(axis=0) - change[settled & ~up].mean(axis=0)
  return swing(shown_channels(change_b)) / swing(shown_channels(change_a))[channel]


def compare_answers(
    found: Mapping[str, Float[np.ndarray, "9 9"]], rules: Mapping[str, Float[np.ndarray, "9 9"]], *, least: float = 0.2
) -> dict[str, float]:
  """How far measured gains agree with others: face to face and head to head, where gains have no unit.

  Args:
    found, rules: gains by relation.
    least: differences between two relations that count.

  Returns:
    "correlation" of all gains; "direction", the share of the rules' differences between two relations, of at least
    `least`, that have the right sign; "differences", how many those are; "slope", by how much of the rules' difference the
    found gains differ, least squares.
  """
  face = np.arange(len(CHANNELS)) < FACE_CHANNELS
  same = face[:, None] == face[None, :]
  ours, theirs = (np.stack([gains[relation][same] for relation in rules]) for gains in (found, rules))
  first, second = np.triu_indices(len(rules), 1)
  our_difference, difference = ours[first] - ours[second], theirs[first] - theirs[second]
  counted = np.abs(difference) >= least
  return {
      "correlation": correlation(ours, theirs),
      "direction": float(np.mean(np.sign(our_difference[counted]) == np.sign(difference[counted]))),
      "differences": int(counted.sum()),
      "slope": float(np.sum(our_difference * difference) / np.sum(difference**2)),
  }


def answers_table(columns_of: Mapping[str, Mapping[str, Float[np.ndarray, "9 9"]]], rows: int = 14) -> str:
  """Gains side by side, for the answers in which relations differ most by the first of `columns_of`.

  Args:
    columns_of: title (rules, simulator, generated) -> gains by relation.
    rows: how many answers.
  """
  first = next(iter(columns_of.values()))
  spread = np.ptp(np.stack(list(first.values())), axis=0)
  order = np.argsort(-spread, axis=None, kind="stable")[: min(rows, np.count_nonzero(spread))]
  values = {}
  for cause, effect in zip(*np.unravel_index(order, spread.shape)):
    cells = [" / ".join(f"{gains[relation][cause, effect]:+.2f}" for gains in columns_of.values()) for relation in first]
    values[f"{CHANNELS[cause]} → {CHANNELS[effect]}"] = cells
  return markdown_table(list(first), values)
