"""Who has the turn, from two voices."""

import numpy as np
from jaxtyping import Bool, Float

from rsatalker_jax.evaluation.lip_metrics import speaking_frames
from rsatalker_jax.types import FPS

_PAUSE = round(0.6 * FPS)  # Frames: a shorter silence, as between two words, ends no turn.


def find_turns(wav: Float[np.ndarray, "S"], num_frames: int) -> Bool[np.ndarray, "T"]:
  """Frames in which a voice has the turn: it sounds, or pauses for less than 0.6 s."""
  turns = speaking_frames(wav, num_frames)
  for start, stop in stretches(~turns):
    if stop - start < _PAUSE and start > 0 and stop < num_frames:
      turns[start:stop] = True
  return turns


def stretches(mask: Bool[np.ndarray, "T"]) -> list[tuple[int, int]]:
  """(start, stop) of each run of true frames."""
  edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
  return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2])]
