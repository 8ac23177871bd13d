"""Scores taken while a stage trains, on held-out clips or frames: few, quick, with one number that names the best step.

The tables of a finished run have more (`evaluation.scoring`); these are a part of them, by the same definitions.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rsatalker_jax.data.pipeline import STD_FLOOR, MotionClip
from rsatalker_jax.evaluation import motion_metrics, scoring
from rsatalker_jax.types import MOTION_GROUPS, Motion

_DSSIM_WEIGHT = 0.2  # As in Eq. 10.


def motion_validation(generate: Callable[[MotionClip], Motion], clips: Sequence[MotionClip]) -> dict[str, float]:
  """Scores a generator on clips.

  Args:
    generate: B's motion for a clip.
    clips: with ground truth, at least one.

  Returns:
    "mse/expression", "fd/jaw" …: raw, mean over clips (`motion_metrics`); and "score", by which steps can be compared, less
    is better: the squared error as a share of the true motion's variance over all these clips, mean over the three groups,
    so that groups of different units count alike and 1 is what the best motionless face reaches. It is of MSE because that
    is what all variants of the loss have in common; FD and SID also reward motion that has nothing to do with the clip.
  """
  motions = [generate(clip) for clip in clips]
  pairs = [(motion, clip.motion_b) for motion, clip in zip(motions, clips)]
  scores = motion_metrics.mean_metrics([motion_metrics.evaluate_distances(*pair) for pair in pairs])
  predicted, true = (np.concatenate(parts).astype(np.float64) for parts in zip(*pairs))
  shares = []
  for dims in MOTION_GROUPS.values():
    variance = np.maximum(true[:, dims].var(axis=0), STD_FLOOR**2)  # A head that never moves is divided by something.
    shares.append(np.mean((predicted[:, dims] - true[:, dims]) ** 2) / np.mean(variance))
  return scores | {"score": float(np.mean(shares))}


def frame_validation(pairs: Iterable[tuple[scoring.Images, scoring.Images]]) -> dict[str, float]:
  """Scores rendered frames.

  Args:
    pairs: chunks of (rendered, true) frames; chunks of one size are compiled once.

  Returns:
    "l1", "psnr", "ssim", means over frames; and "score", by which steps can be compared, less is better: the form of the
    paper's image loss (Eq. 10), which PSNR alone, blind to structure, would not be.
  """
  scores = scoring.score_frames(pairs, lpips_nets=())
  score = (1 - _DSSIM_WEIGHT) * scores["l1"] + _DSSIM_WEIGHT * (1 - scores["ssim"])
  return {name: scores[name] for name in ("l1", "psnr", "ssim")} | {"score": score}
