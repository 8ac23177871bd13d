"""How well generated lips follow the truth: opening while speaking, closure on bilabials.

The opening is that of `head.LipOpening`, in metres.
"""

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


def score_lips(
    generated: Sequence[Float[np.ndarray, "_"]],
    true: Sequence[Float[np.ndarray, "_"]],
    speaking: Sequence[Bool[np.ndarray, "_"]],
    closures: Sequence[Sequence[Closure]] | None = None,
) -> dict[str, float]:
  """Compares openings, a curve per clip.

  Args:
    generated, true: openings in metres.
    speaking: when the person speaks; clips in which they never do are left out.
    closures: the bilabials of each clip, where they are known.

  Returns:
    "lips/correlation": Pearson's, over each clip's speaking frames, mean over clips;
    "lips/pooled_correlation": over all clips' speaking frames together;
    "lips/false_closures": share of speaking frames, truly more than 2 mm open, in which the generated lips are closed;
    and where closures are known "lips/bilabials" and "lips/bilabials_P" …: share of those during which, or one frame
    before or after, the generated lips come closer than 0.5 mm.
    What there is nothing to tell of (nobody speaks) is absent.
  """
  scores = {}
  spoken = [(g[s], t[s]) for g, t, s in zip(generated, true, speaking, strict=True) if np.count_nonzero(s) > 1]
  if spoken:
    g, t = (np.concatenate(parts) for parts in zip(*spoken))
    scores["lips/correlation"] = float(np.mean([correlation(*clip) for clip in spoken]))
    scores["lips/pooled_correlation"] = correlation(g, t)
    if np.any(t > OPEN):
      scores["lips/false_closures"] = float(np.mean(g[t > OPEN] < CLOSED))
  closed: dict[str, list[bool]] = {}
  for opening, clip in zip(generated, closures or (), strict=closures is not None):
    for name, start, end in clip:
      frames = closure_frames(start, end, len(opening))
      if frames.stop > frames.start:  # Not past the clip's end.
        closed.setdefault(name, []).append(bool(opening[frames].min() < CLOSED))
  if closed:
    scores["lips/bilabials"] = float(np.mean(sum(closed.values(), [])))
    scores |= {f"lips/bilabials_{name}": float(np.mean(closed[name])) for name in sorted(closed)}
  return scores


def closure_frames(start: float, end: float, num_frames: int) -> slice:
  """Frames (of `num_frames`) that a sound from `start` to `end` seconds touches, and those within the tolerance."""
  first = max(math.floor(start * FPS) - CLOSURE_TOLERANCE, 0)
  return slice(first, min(math.ceil(end * FPS) + CLOSURE_TOLERANCE, num_frames))
