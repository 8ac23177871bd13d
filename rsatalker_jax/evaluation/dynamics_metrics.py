"""How motion moves, whatever it shows: variance, jerk, the head's and the lids' habits; against the truth's.

All on raw coefficients in float64 by numpy: a clip takes milliseconds. Rotations are axis-angle (`types.MOTION_GROUPS`).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool
from scipy.spatial.transform import Rotation

from rsatalker_jax.types import FPS, MOTION_GROUPS, Motion

# A motion that varies over time by less than this share of the truth's variance has collapsed: published baselines that
# hold one face have thousandths, a generator that answers with the mean of what may come has half.
COLLAPSED = 0.1
COLLAPSE_ALARM = "COLLAPSED: "  # How a run's checks begin that say so; the others say that a metric is broken.

LEAST_FRAMES = FPS  # Of a kind (speaking, listening) that a clip must have, for its deviation to count.

_SHUT = 0.5  # Of a blink's coefficient, where 1 is a closed eye.
_HEAD_AXES = ("pitch", "yaw", "tilt")


@dataclasses.dataclass
class TimeRatios:
  """How much motion varies over time, and how it jerks, as ratios to the truth's, over all clips.

      variation   Σ_clips Σ_t ‖x_t − mean_t x‖² of the prediction, over the same of the truth: 1 is as lively
      jerk        root of Σ ‖Δ³x_t‖², third differences, of the prediction, over the truth's: 1 is as smooth
  """

  _sums: dict[str, list[float]] = dataclasses.field(default_factory=dict)

  def add(self, pred: Motion, target: Motion) -> None:
    """Another clip."""
    for side, motion in enumerate((pred, target)):
      motion = np.asarray(motion, np.float64)
      motion = motion - motion[0]  # What stands still is exactly 0, without rounding.
      parts = {"variation": motion - motion.mean(axis=0), "jerk": np.diff(motion, 3, axis=0)}
      for group, dims in MOTION_GROUPS.items():
        for name, part in parts.items():
          self._sums.setdefault(f"{name}/{group}", [0.0, 0.0])[side] += float(np.sum(part[:, dims] ** 2))

  def scores(self) -> dict[str, float]:
    """"variation/jaw" …, "jerk/jaw" …; without those of a truth that does not move at all."""
    ratios = {name: pred / true for name, (pred, true) in self._sums.items() if true > 0}
    return {name: float(np.sqrt(ratio)) if name.startswith("jerk/") else ratio for name, ratio in ratios.items()}


def find_collapse(scores: Mapping[str, float]) -> list[str]:
  """The groups whose motion varies by less than `COLLAPSED` of the truth's, each in words; from `TimeRatios.scores`."""
  ratios = {group: scores.get(f"variation/{group}") for group in MOTION_GROUPS}
  return [
      f"{group} varies by {ratio:.2g} of the truth's variance (alarm below {COLLAPSED:g})"
      for group, ratio in ratios.items()
      if ratio is not None and not ratio >= COLLAPSED
  ]


def dynamics_deviation(pred: Motion, target: Motion, kinds: Mapping[str, Bool[np.ndarray, "T"]]) -> dict[str, float]:
  """JDD and PDD: by how much the standard deviation over time of jaw and head differs from the truth's, in degrees.

      mean over the three axes of |σ_t(pred) − σ_t(target)|, over the frames of a kind

  Args:
    pred, target: of one clip.
    kinds: frames by name, "speaking" …. Those with fewer than `LEAST_FRAMES` are left out.

  Returns:
    "jdd/speaking", "pdd/listening" ….
  """
  scores = {}
  for name, group in (("jdd", "jaw"), ("pdd", "pose")):
    for kind, frames in kinds.items():
      if np.count_nonzero(frames) >= LEAST_FRAMES:
        p, t = (np.asarray(x, np.float64)[frames, MOTION_GROUPS[group]].std(axis=0) for x in (pred, target))
        scores[f"{name}/{kind}"] = float(np.degrees(np.mean(np.abs(p - t))))
  return scores


def head_statistics(motion: Motion) -> dict[str, float]:
  """How a head moves: "head/speed", its mean turning speed in degrees a second (by the angle between successive
  rotations), and "head/pitch", "head/yaw", "head/tilt", the width in degrees of what it does in 90 % of the time (from the
  5th to the 95th percentile of the axis-angle's components)."""
  turn = np.asarray(motion, np.float64)[:, MOTION_GROUPS["pose"]]
  rotations = Rotation.from_rotvec(turn)
  angles = (rotations[:-1].inv() * rotations[1:]).magnitude()
  low, high = np.degrees(np.percentile(turn, [5, 95], axis=0))
  scores = {"head/speed": float(np.degrees(angles.mean()) * FPS)}
  return scores | {f"head/{axis}": float(width) for axis, width in zip(_HEAD_AXES, high - low, strict=True)}


class BlinkStatistics:
  """How often and how long lids are shut, over all clips.

  A blink is a run of frames in which the mean of both lids' coefficients is above 0.5, where 1 shuts them. Runs that a clip's
  beginning or end cuts off count as blinks, but not for the duration.

  Args:
    lids: columns of a motion (`find_lids`).
  """

  def __init__(self, lids: Sequence[int]):
    self._lids = list(lids)
    self._frames, self._count, self._lengths = 0, 0, []

  def add(self, motion: Motion) -> None:
    """Another clip."""
    shut = np.asarray(motion)[:, self._lids].mean(axis=1) > _SHUT
    changes = np.diff(np.concatenate([[False], shut, [False]]).astype(np.int8))
    starts, ends = np.flatnonzero(changes == 1), np.flatnonzero(changes == -1)
    self._frames += len(shut)
    self._count += len(starts)
    self._lengths += [int(end - start) for start, end in zip(starts, ends) if start > 0 and end < len(shut)]

  def scores(self) -> dict[str, float]:
    """"blinks/rate" a minute, and "blinks/duration" in seconds, where there was a whole blink."""
    scores = {"blinks/rate": self._count / (self._frames / FPS / 60)} if self._frames else {}
    return scores | ({"blinks/duration": float(np.mean(self._lengths)) / FPS} if self._lengths else {})


def find_lids(expression_names: Sequence[str]) -> list[int] | None:
  """Columns of a motion that shut the lids, by ARKit's names; None where the basis does not name its coefficients (FLAME's
  are principal components, of which none is a lid)."""
  names = ("eyeBlinkLeft", "eyeBlinkRight")
  return [list(expression_names).index(name) for name in names] if set(names) <= set(expression_names) else None
