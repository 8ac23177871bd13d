"""When a listener answers the end of a partner's phrase with a nod or a smile, against when the truth does.

A phrase end is the end of a run of the partner's voice of at least half a second that is followed by at least a quarter of a
second of silence (shorter pauses do not end a run), while the listener is silent from 0.6 s before it to 0.6 s after it; later
the listener has often taken the turn. What counts is the onset of the first nod, or smile, in the 0.6 s after the end; and, to
tell answers from habits, whether one begins in the 0.6 s *before* the end.

All on voices and coefficients; the voice's activity is `lip_metrics.speaking_frames`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Bool, Int

from rsatalker_jax.types import FPS, MOTION_GROUPS, Motion

_PHRASE = FPS // 2  # Frames that a phrase has at least.
_PAUSE = FPS // 4  # Frames of silence that end it.
WINDOW = 3 * FPS // 5  # Frames after the end, and before it.


@dataclasses.dataclass(frozen=True)
class Gesture:
  """What is looked for: a signal that rises.

  Attributes:
    name: in scores.
    columns: of a motion, whose mean is the signal.
    rise: by how much it rises …
    frames: … within how many frames.
  """

  name: str
  columns: tuple[int, ...]
  rise: float
  frames: int

  def onsets(self, motion: Motion) -> Int[np.ndarray, "n"]:
    """Frames at which the signal, smoothed over three frames, begins to rise that much."""
    signal = np.asarray(motion, np.float64)[:, list(self.columns)].mean(axis=1)
    smooth = np.convolve(np.pad(signal, 1, mode="edge"), np.full(3, 1 / 3), "valid")
    rising = smooth[self.frames :] - smooth[: -self.frames] >= self.rise
    return np.flatnonzero(rising & ~np.concatenate([[False], rising[:-1]]))


def find_gestures(expression_names: Sequence[str]) -> list[Gesture]:
  """A nod, which every head has (rotation about x, nose down); a smile only where the basis names it."""
  gestures = [Gesture("nod", (MOTION_GROUPS["pose"].start,), rise=0.02, frames=5)]
  names = ("mouthSmileLeft", "mouthSmileRight")
  if set(names) <= set(expression_names):
    gestures.append(Gesture("smile", tuple(list(expression_names).index(name) for name in names), rise=0.08, frames=8))
  return gestures


def find_phrase_ends(partner: Bool[np.ndarray, "T"], own: Bool[np.ndarray, "T"]) -> Int[np.ndarray, "n"]:
  """First silent frames after the partner's phrases, with the listener silent around them and whole windows to both sides.

  Args:
    partner, own: when either speaks.
  """
  changes = np.diff(np.concatenate([[False], partner, [False]]).astype(np.int8))
  starts, ends = np.flatnonzero(changes == 1), np.flatnonzero(changes == -1)
  if len(starts) > 1:  # Short pauses are no ends.
    kept = starts[1:] - ends[:-1] >= _PAUSE
    starts, ends = starts[np.concatenate([[True], kept])], ends[np.concatenate([kept, [True]])]
  return np.array([
      end for start, end in zip(starts, ends)
      if end - start >= _PHRASE and end >= WINDOW and end + WINDOW <= len(own) and not own[end - WINDOW : end + WINDOW].any()
  ], np.int64)  # fmt: skip


class BackchannelTiming:
  """Delays of first answers to phrase ends, over all clips, of a motion and of the truth at the same ends.

  Args:
    gesture: what answers.
  """

  def __init__(self, gesture: Gesture):
    self._gesture = gesture
    self._ends, self._before = 0, 0
    self._delays, self._true_delays = [], []  # In frames; a few for each minute.

  def add(self, pred: Motion, target: Motion, ends: Int[np.ndarray, "n"]) -> None:
    """Another clip, with its `find_phrase_ends`."""
    onsets, true_onsets = self._gesture.onsets(pred), self._gesture.onsets(target)
    self._ends += len(ends)
    for end in ends:
      self._delays += _first(onsets, end)
      self._true_delays += _first(true_onsets, end)
      self._before += len(_first(onsets, end - WINDOW))

  def scores(self) -> dict[str, float]:
    """Where there are phrase ends, "backchannel/<name>_": "answered", the share of ends with an answer; "before", the share
    with one as long before; where there are answers "delay", their mean delay in seconds; and "distance", how far the delays'
    distribution is from the truth's (1-Wasserstein, seconds). "backchannel/ends" is the number of ends."""
    if not self._ends:
      return {}
    name = f"backchannel/{self._gesture.name}"
    scores = {"backchannel/ends": self._ends, f"{name}_answered": len(self._delays) / self._ends}
    scores[f"{name}_before"] = self._before / self._ends
    if self._delays:
      scores[f"{name}_delay"] = float(np.mean(self._delays)) / FPS
    if self._delays and self._true_delays:
      scores[f"{name}_distance"] = float(scipy.stats.wasserstein_distance(self._delays, self._true_delays)) / FPS
    return scores


def _first(onsets: Int[np.ndarray, "n"], start: int) -> list[int]:
  """The delay of the first onset in the window from `start` on, as a list of one, or of none."""
  inside = onsets[(onsets >= start) & (onsets < start + WINDOW)]
  return [int(inside[0] - start)] if len(inside) else []
