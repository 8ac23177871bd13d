"""Who speaks when, and which moments of a conversation are shown: by rules, never by how well they came out."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from rsatalker_jax.evaluation.turn_taking import stretches
from rsatalker_jax.social.relation import RELATIONS
from rsatalker_jax.types import FPS

_BACKCHANNEL = FPS  # Frames: who says less, "mm" or "really?", takes no turn.
ROLES = ("speaker", "listener")


@dataclasses.dataclass(frozen=True)
class Turns:
  """Who speaks in one direction of a conversation.

  Attributes:
    name: of the conversation and of B.
    relation: as `format_relation` writes it.
    a, b: frames in which A and B have the turn: they speak, or pause for less than 0.6 s.
    filmed: frames that a film shows.
  """

  name: str
  relation: str
  a: Bool[np.ndarray, "T"]
  b: Bool[np.ndarray, "T"]
  filmed: Bool[np.ndarray, "T"]

  def of_role(self, role: str) -> Bool[np.ndarray, "T"]:
    """Frames in which B is the speaker, or the listener while A speaks; who says less than a second still listens."""
    if role == "speaker":
      return self.b
    listening = self.a.copy()
    for start, stop in stretches(self.b):
      if stop - start >= _BACKCHANNEL:
        listening[start:stop] = False
    return listening


@dataclasses.dataclass(frozen=True)
class Moment:
  """Frames `start` to `stop` of a conversation, and why those.

  Attributes:
    turns: of the conversation.
    role: B's.
    length: of the stretch in frames.
  """

  turns: Turns
  role: str
  start: int
  stop: int
  length: int


def choose_moments(conversations: Sequence[Turns], length: int) -> list[Moment]:
  """For each relation the moment in which B speaks for longest, and that in which B listens for longest while A speaks.

  Filmed moments go before others, if there is a stretch of half of `length` among them: there is a true picture of those.
  The moment is the beginning of the stretch, `length` frames; in a shorter stretch what follows belongs to it too, and at
  the conversation's end what comes before. Of equally long ones the first is taken.
  """
  present = {turns.relation for turns in conversations}
  order = [relation for relation in RELATIONS if relation in present] + sorted(present - set(RELATIONS))
  moments = []
  for relation in order:
    of_relation = [turns for turns in conversations if turns.relation == relation]
    for role in ROLES:
      moment = _longest(of_relation, role, length, filmed=True)
      if moment is None or moment.length < length / 2:
        moment = _longest(of_relation, role, length, filmed=False)
      if moment is not None:
        moments.append(moment)
  return moments


def _longest(conversations: Sequence[Turns], role: str, length: int, *, filmed: bool) -> Moment | None:
  best = None
  for turns in conversations:
    shown = turns.filmed if filmed else np.ones(len(turns.b), bool)
    for start, stop in stretches(turns.of_role(role) & shown):
      if best is None or stop - start > best.length:
        # A film may have gaps; near an end what came before the stretch fills the moment.
        first, end = next((first, end) for first, end in stretches(shown) if first <= start < end)
        moment_end = min(start + length, end)
        best = Moment(turns, role, max(moment_end - length, first), moment_end, stop - start)
  return best


def choose_exchange(conversations: Sequence[Turns], length: int) -> Moment | None:
  """The moment of `length` frames in which both speak most: in which the quieter of the two has most frames.

  Of filmed moments if there are any. None if nowhere do both speak.
  """
  for filmed in (True, False):
    best, most = None, 0
    for turns in conversations:
      shown = turns.filmed if filmed else np.ones(len(turns.b), bool)
      for first, end in stretches(shown):
        size = min(length, end - first)
        counts = [np.cumsum(np.concatenate([[0], who[first:end]])) for who in (turns.a, turns.b)]
        quieter = np.minimum(*(count[size:] - count[:-size] for count in counts))
        if quieter.max() > most:
          most, start = int(quieter.max()), first + int(np.argmax(quieter))
          best = Moment(turns, "both", start, start + size, most)
    if best is not None:
      return best
  return None
