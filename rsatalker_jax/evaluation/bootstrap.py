"""Confidence intervals by resampling: of clips that two methods share, and of the frames of a film, which follow each other.

Efron & Tibshirani, "An Introduction to the Bootstrap" (1993); blocks: Künsch, "The jackknife and the bootstrap for general
stationary observations" (1989).
"""

import numpy as np
import scipy.stats
from jaxtyping import Float

CONFIDENCE = 0.95


def paired_bootstrap(
    differences: Float[np.ndarray, "n"], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
  """Mean of differences, one for each clip, and its 95 % confidence interval by percentiles.

  Whole clips are drawn, each with both of its values, so what makes a clip hard for both methods cancels.

  Args:
    differences: of one method's value and the other's, clip by clip.
    draws: resamples.
    seed: the same gives the same interval.

  Returns:
    mean, low, high.

  Raises:
    ValueError: fewer than two differences, or one that is not finite.
  """
  differences = _check(differences)
  found = scipy.stats.bootstrap(
      (differences,), np.mean, n_resamples=draws, batch=256, confidence_level=CONFIDENCE, method="percentile",
      rng=np.random.default_rng(seed),
  )  # fmt: skip
  low, high = found.confidence_interval
  return float(differences.mean()), float(low), float(high)


def block_bootstrap(
    differences: Float[np.ndarray, "T"], *, block: int = 25, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
  """The same of values that follow each other in time, as of a film's frames: moving blocks of them are drawn.

  Neighbouring frames are alike; drawn one by one they would pass for as many independent witnesses. Blocks must be longer
  than the time over which values resemble each other, and many of them must fit into T.

  Args:
    differences: of one method's value and the other's, frame by frame, in order.
    block: frames of a block; of all T where there are fewer.
    draws, seed: as above.

  Returns:
    mean, low, high.

  Raises:
    ValueError: as above.
  """
  differences = _check(differences)
  count = len(differences)
  block = min(block, count)
  starts = np.random.default_rng(seed).integers(0, count - block + 1, size=(draws, -(-count // block)))
  lengths = np.full(starts.shape[1], block)
  lengths[-1] = count - block * (len(lengths) - 1)  # The last block is cut off at T values in all.
  sums = np.concatenate([[0.0], np.cumsum(differences)])
  means = (sums[starts + lengths] - sums[starts]).sum(axis=1) / count
  low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
  return float(differences.mean()), float(low), float(high)


def _check(differences: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
  differences = np.asarray(differences, np.float64)
  if len(differences) < 2 or not np.isfinite(differences).all():
    raise ValueError(f"{len(differences)} differences, {np.isfinite(differences).sum()} of them finite: at least two are wanted")
  return differences
