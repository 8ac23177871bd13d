"""What motion is scored on: the conversations of a split, each read when its turn comes, so that a set of any length fits."""

import collections.abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxtyping import Bool
import numpy as np

from rsatalker_jax.data.dualtalk import DualTalkSource
from rsatalker_jax.data.pipeline import MotionClip, load_clips
from rsatalker_jax.data.triplets import Triplet, label_clips
from rsatalker_jax.evaluation.lip_metrics import Closure, speaking_frames


@dataclasses.dataclass(frozen=True)
class Case:
  """A clip to generate, and what its voices say of its frames.

  Attributes:
    clip: with ground truth.
    speaking, partner_speaking: frames in which B, who is generated, and A speak.
    closures: the bilabials that B says; none where they are not known.
  """

  clip: MotionClip
  speaking: Bool[np.ndarray, "T"]
  partner_speaking: Bool[np.ndarray, "T"]
  closures: Sequence[Closure] = ()

  @property
  def kinds(self) -> dict[str, Bool[np.ndarray, "T"]]:
    """The frames in which B speaks, and those in which B is silent while A speaks."""
    return {"speaking": self.speaking, "listening": self.partner_speaking & ~self.speaking}


class ConversationCases(collections.abc.Sequence):
  """The cases of a source of conversations: read, and heard, each time one is asked for.

  Args:
    source: the conversations.
    encode: from a voice and a number of frames to features, as a run hears it.
    triplets: which know relations (`data.triplets.label_clips`).
    find_closures: the bilabials of a person by the clip's name; None where nobody has written them down.
  """

  def __init__(
      self,
      source: DualTalkSource,
      encode: Callable[[np.ndarray, int], Any],
      triplets: Sequence[Triplet] = (),
      find_closures: Callable[[str], Sequence[Closure]] | None = None,
  ):
    self._source, self._encode, self._triplets, self._find_closures = source, encode, triplets, find_closures

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Case:  # ty: ignore[incompatible-method-override]
    conversation = self._source[index]
    (clip,) = label_clips(load_clips([conversation], self._encode), self._triplets)
    frames = len(clip.motion_b)
    closures = () if self._find_closures is None else self._find_closures(clip.name)
    return Case(clip, *(speaking_frames(wav, frames) for wav in (conversation.speech_b, conversation.speech_a)), closures)

  def clips(self, names: set[str]) -> Iterator[MotionClip]:
    """The clips of these names, in order."""
    for index, name in enumerate(self._source.names):
      if name in names:
        yield self[index].clip
