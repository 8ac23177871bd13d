"""Whole clips of any length through a few compiled programs.

A program is compiled for one length. A test set has hundreds, and compiling takes far longer than generating does; so a
clip is padded to the next of a few lengths, and the generator is told how many of the frames are the clip's
(`num_frames`). They come out as those of the clip alone, but for the order of float32 sums.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from rsatalker_jax.types import Motion

_SHORTEST = 128  # Frames, 5 s.


def padded_length(frames: int) -> int:
  """The next of 128, 192, 256, 384, 512 … frames: two programs for each doubling, at most half as much again to compute."""
  power = _SHORTEST << max(0, (max(frames, 1) - 1).bit_length() - _SHORTEST.bit_length() + 1)
  return power * 3 // 4 if _SHORTEST < power and frames <= power * 3 // 4 else power


def pad_clip(
    speech_a: Float[np.ndarray, "T D"], motion_a: Motion, speech_b: Float[np.ndarray, "T D"]
) -> dict[str, Any]:
  """A clip as a generator's arguments by name: padded with zeros, and `num_frames`, an array so that it is not compiled in."""
  frames = len(motion_a)
  pad = lambda x: np.pad(x, ((0, padded_length(frames) - frames), (0, 0)))
  return dict(
      speech_a=pad(speech_a), motion_a=pad(motion_a), speech_b=pad(speech_b), num_frames=np.asarray(frames, np.int32)
  )
