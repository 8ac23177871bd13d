"""How well generated lips follow the truth: opening while speaking, closure on bilabials.

The opening is that of `head.LipOpening`, in metres.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from rsatalker_jax.evaluation.motion_metrics import correlation
from rsatalker_jax.types import FPS, SAMPLE_RATE

# A sound made with closed lips: its name, start and end in seconds.
Closure = tuple[str, float, float]

CLOSED = 0.5e-3  # Metres. The demo head's lips are 0.2 mm apart at rest, and overlap in all true P, B and M.
OPEN = 2e-3  # Metres: lips visibly apart.
CLOSURE_TOLERANCE = 1  # Frames by which a closure may come early or late.
_SPEAKING_LEVEL = 1e-3  # -30 dB below loud speech (the 95th percentile of the voice's energy).


def speaking_frames(wav: Float[np.ndarray, "S"], num_frames: int) -> Bool[np.ndarray, "T"]:
  """Frames in which a voice sounds: within 30 dB of its loud frames, in a window of three frames.

  Three frames bridge the silence inside a P or T. On the demo's voices it agrees with their phones in 95 % of frames.
  """
  hop = SAMPLE_RATE // FPS
  samples = np.zeros(num_frames * hop)
  samples[: min(len(wav), len(samples))] = wav[: len(samples)]
  energy = np.convolve(np.mean(samples.reshape(num_frames, hop) ** 2, axis=1), np.full(3, 1 / 3), "same")
  return energy > max(_SPEAKING_LEVEL * float(np.quantile(energy, 0.95)), 1e-10)


class LipScores:
  """Compares openings, clip by clip; of each clip nothing is kept but sums."""

  def __init__(self):
    self._correlations: list[float] = []
    self._pooled = PooledCorrelation()
    self._open, self._closed_in_error = 0, 0
    self._closed: dict[str, list[bool]] = {}

  def add(
      self,
      generated: Float[np.ndarray, "T"],
      true: Float[np.ndarray, "T"],
      speaking: Bool[np.ndarray, "T"],
      closures: Sequence[Closure] = (),
  ) -> None:
    """Another clip.

    Args:
      generated, true: openings in metres.
      speaking: when the person speaks; a clip in which they never do tells of bilabials alone.
      closures: the bilabials, where they are known.
    """
    if np.count_nonzero(speaking) > 1:
      g, t = generated[speaking], true[speaking]
      self._correlations.append(correlation(g, t))
      self._pooled.add(g, t)
      self._open += int(np.count_nonzero(t > OPEN))
      self._closed_in_error += int(np.count_nonzero(g[t > OPEN] < CLOSED))
    for name, start, end in closures:
      frames = closure_frames(start, end, len(generated))
      if frames.stop > frames.start:  # Not past the clip's end.
        self._closed.setdefault(name, []).append(bool(generated[frames].min() < CLOSED))

  def scores(self) -> dict[str, float]:
    """"lips/correlation": Pearson's, over each clip's speaking frames, mean over clips;
    "lips/pooled_correlation": over all clips' speaking frames together;
    "lips/false_closures": share of speaking frames, truly more than 2 mm open, in which the generated lips are closed;
    and where closures are known "lips/bilabials" and "lips/bilabials_P" …: share of those during which, or one frame
    before or after, the generated lips come closer than 0.5 mm.
    What there is nothing to tell of (nobody speaks) is absent.
    """
    scores = {}
    if self._correlations:
      scores["lips/correlation"] = float(np.mean(self._correlations))
      scores["lips/pooled_correlation"] = self._pooled.value()
    if self._open:
      scores["lips/false_closures"] = self._closed_in_error / self._open
    if self._closed:
      scores["lips/bilabials"] = float(np.mean(list(itertools.chain.from_iterable(self._closed.values()))))
      scores |= {f"lips/bilabials_{name}": float(np.mean(self._closed[name])) for name in sorted(self._closed)}
    return scores


class PooledCorrelation:
  """Pearson's correlation of all pairs that come in parts, from their means and sums of squares (Chan et al. 1979)."""

  def __init__(self):
    self._count, self._means, self._products = 0, np.zeros(2), np.zeros((2, 2))

  def add(self, a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> None:
    """Another part, of at least one pair."""
    part = np.stack([a, b]).astype(np.float64)
    count, means = self._count + len(a), part.mean(axis=1)
    apart = means - self._means
    centred = part - means[:, None]
    # Rounding of the mean is no variation: what does not vary within the part has no product.
    centred[np.ptp(part, axis=1) == 0] = 0.0
    self._products += centred @ centred.T + np.outer(apart, apart) * self._count * len(a) / count
    self._count, self._means = count, self._means + apart * len(a) / count

  def value(self) -> float:
    """The correlation; 0 where one side does not vary."""
    (aa, ab), (_, bb) = self._products
    return float(ab / np.sqrt(aa * bb)) if aa > 0 and bb > 0 else 0.0


def closure_frames(start: float, end: float, num_frames: int) -> slice:
  """Frames (of `num_frames`) that a sound from `start` to `end` seconds touches, and those within the tolerance."""
  first = max(math.floor(start * FPS) - CLOSURE_TOLERANCE, 0)
  return slice(first, min(math.ceil(end * FPS) + CLOSURE_TOLERANCE, num_frames))
