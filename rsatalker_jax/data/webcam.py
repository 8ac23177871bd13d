"""Motion as a webcam's tracker would have tracked it: what training shows of A, so that a real camera is no other world.

Sizes are those measured on the demo's head with MediaPipe's face landmarker and a linear map to its coefficients: a tracker's
estimate x̂ of a coefficient x that it follows with correlation r is r² x + noise of standard deviation r √(1 - r²) σ, as the best
linear estimate has it. A coefficient that it does not see (r = 0) rests. Noise is a first-order autoregression over time, as filters
leave it. Gains, biases and the lag are a person's, a camera's and a machine's: constant in a window.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.signal
from jaxtyping import Float

from rsatalker_jax.types import ARKIT_EXPRESSIONS, EXPRESSION_DIM, MOTION_GROUPS, Motion

KEPT = 0.8  # Of the noise from one frame to the next.

# Correlation with the truth of coefficients with these beginnings in the basis "arkit"; the longest counts.
_FOLLOWED: Mapping[str, float] = {
    "browDown": 0.6, "browInnerUp": 0.6, "browOuterUp": 0.7, "cheek": 0.0, "eyeBlink": 0.96, "eyeLookDown": 0.0, "eyeLookIn": 0.8,
    "eyeLookOut": 0.8, "eyeLookUp": 0.5, "eyeSquint": 0.4, "eyeWide": 0.6, "jaw": 0.0, "mouthClose": 0.0, "mouthDimple": 0.0,
    "mouthFrown": 0.0, "mouthFunnel": 0.68, "mouthLeft": 0.5, "mouthLowerDown": 0.82, "mouthPress": 0.2, "mouthPucker": 0.48,
    "mouthRight": 0.0, "mouthRollLower": 0.5, "mouthRollUpper": 0.0, "mouthShrug": 0.5, "mouthSmile": 0.83, "mouthStretch": 0.5,
    "mouthUpperUp": 0.66, "noseSneer": 0.0,
}  # fmt: skip
_OTHERS_FOLLOWED = 0.7  # Of other bases: between R² 0.45 and 0.68 over all.
_BIAS = 0.03  # Of an expression: what is left of the rest face after it was subtracted.
_JITTER = 0.002  # Of an expression from frame to frame.
# The jaw turns about x; what turns it about y and z (jawLeft, jawRight) is not seen.
_JAW_FOLLOWED, _JAW_GAIN, _JAW_BIAS = 0.95, 0.1, 0.012
# The head's pitch, yaw and tilt, by their gains; how gains differ; bias and noise in radians, jitter from frame to frame.
_HEAD_GAINS, _HEAD_GAIN_SPREAD = (0.72, 0.85, 0.97), 0.1
_HEAD_BIAS, _HEAD_NOISE, _HEAD_JITTER = np.radians((1.3, 1.2, 0.18))
_HEAD_LAG = 1  # Frames later than the face: the tracker smooths it.
# A frame that repeats the one before (a camera below 25 fps); a face that is lost, and for how many frames at most.
_REPEATED, _LOST, _LONGEST_LOSS = 0.05, 0.004, 15


def autoregression(rng: np.random.Generator, count: int, width: int) -> Float[np.ndarray, "T D"]:
  """(count, width) values of mean 0 and variance 1, `KEPT` of each in the next."""
  fresh = rng.normal(size=(count, width))
  fresh[1:] *= np.sqrt(1 - KEPT**2)
  return scipy.signal.lfilter([1.0], [1.0, -KEPT], fresh, axis=0)


@dataclasses.dataclass(frozen=True)
class Webcam:
  """How often and how badly A is seen in training; the config's section `motion.tracker`.

  Attributes:
    share: of the windows that are seen through a webcam.
    severity: 1 is as bad as measured, 0 perfect but for the lag; errors grow with it.
    lag: frames by which all comes late at most; each window has a lag of its own, 0 among them.
  """

  share: float = 0.0
  severity: float = 1.0
  lag: int = 3

  def see(self, motion: Motion, start: int, window: int, basis: str, rng: np.random.Generator) -> Float[np.ndarray, "t 56"]:
    """A window of a motion, as the camera or as the data has it; random numbers are taken only where `share` is above 0."""
    if self.share and rng.random() < self.share:
      lag = int(rng.integers(self.lag + 1))
      return track(motion, np.arange(start, start + window) - lag, basis, self.severity, rng)
    return np.array(motion[start : start + window])


def track(
    motion: Motion, frames: Sequence[int] | np.ndarray, basis: str, severity: float, rng: np.random.Generator
) -> Float[np.ndarray, "t 56"]:
  """A motion as it is tracked.

  Args:
    motion: the whole of it, the truth.
    frames: which of its frames are in front of the camera, one after another; before the first, it rests as there.
    basis: of its expressions.
    severity: see `Webcam`.
    rng: of all errors.

  Returns:
    (len(frames), 56) float32.
  """
  count = len(frames)
  places = np.maximum(frames, 0)
  seen = motion[places].astype(np.float64)
  head = motion[np.maximum(places - _HEAD_LAG * bool(severity), 0)][:, MOTION_GROUPS["pose"]]
  out = np.empty_like(seen)

  followed = np.maximum(0.0, 1 - severity * (1 - _correlations(basis)))
  spread = followed * np.sqrt(1 - followed**2) * motion[:, : EXPRESSION_DIM + 3].std(axis=0)
  out[:, : EXPRESSION_DIM + 3] = followed**2 * seen[:, : EXPRESSION_DIM + 3] + spread * autoregression(rng, count, EXPRESSION_DIM + 3)
  face = out[:, MOTION_GROUPS["expression"]]
  face += severity * (_BIAS * rng.normal(size=EXPRESSION_DIM) + _JITTER * rng.normal(size=face.shape))
  opening = out[:, MOTION_GROUPS["jaw"].start]
  opening *= max(0.0, 1 + severity * _JAW_GAIN * rng.normal())
  opening += severity * _JAW_BIAS * rng.normal()

  gains = 1 - severity * (1 - np.array(_HEAD_GAINS)) + severity * _HEAD_GAIN_SPREAD * rng.normal(size=3)
  noise = _HEAD_BIAS * rng.normal(size=3) + _HEAD_NOISE * autoregression(rng, count, 3) + _HEAD_JITTER * rng.normal(size=(count, 3))
  out[:, MOTION_GROUPS["pose"]] = gains * head + severity * noise
  return out[_held(count, severity, rng)].astype(np.float32)


def _correlations(basis: str) -> Float[np.ndarray, "53"]:
  """Of expression and jaw with the truth."""
  if basis == "arkit":
    longest = lambda name: max((start for start in _FOLLOWED if name.startswith(start)), key=len)
    expression = [_FOLLOWED[longest(name)] for name in ARKIT_EXPRESSIONS]
  else:
    expression = [_OTHERS_FOLLOWED] * EXPRESSION_DIM
  return np.array([*expression, _JAW_FOLLOWED, 0.0, 0.0])


def _held(count: int, severity: float, rng: np.random.Generator) -> np.ndarray:
  """Which frame is shown at each moment: its own, or the last one before a loss."""
  stale = rng.random(count) < severity * _REPEATED
  for start in np.flatnonzero(rng.random(count) < severity * _LOST):
    stale[start : start + rng.integers(2, _LONGEST_LOSS + 1)] = True
  return np.maximum.accumulate(np.where(stale, 0, np.arange(count)))
