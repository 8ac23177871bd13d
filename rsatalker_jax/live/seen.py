"""A's motion in one conversation, where a camera sees it at times only."""

import numpy as np
from jaxtyping import Float

from rsatalker_jax.types import FPS

# Frames in which A's motion comes to what is seen, and goes from it when nothing more is: no generator has learnt from faces that jump.
_COMING, _GOING = FPS // 5, FPS // 2


class SeenMotion:
  """Between what is seen and what is supposed where nothing is."""

  def __init__(self):
    self._seen: Float[np.ndarray, "56"] | None = None
    self._share = 0.0

  def mix(self, seen: Float[np.ndarray, "56"] | None, supposed: Float[np.ndarray, "56"]) -> Float[np.ndarray, "56"]:
    """A's motion of the next frame.

    Args:
      seen: by the camera, or None.
      supposed: where it sees nothing.
    """
    if seen is None:
      self._share = max(self._share - 1 / _GOING, 0.0)
    else:
      self._seen, self._share = seen, min(self._share + 1 / _COMING, 1.0)
    if self._seen is None or not self._share:
      return supposed
    if self._share == 1:
      return self._seen
    share = self._share**2 * (3 - 2 * self._share)
    return (supposed + share * (self._seen - supposed)).astype(np.float32)
