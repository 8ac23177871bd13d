"""A's motion where no camera sees A: what the same generator makes of the conversation when the two change places."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import StreamBatch
from rsatalker_jax.motion.stream_batch import BatchedStream

Wav = Float[np.ndarray, "640"]


class InventedPartner:
  """One for each conversation: it hears A as its own voice and B as its partner, and sees B's last frame.

  benchmarks/unseen_partner.py measures what it is worth. A generator that hears its own voice ahead would have to know what A is going
  to say, so of it there is none.

  Args:
    batch: of as many places as the conversations' own, which are known by the same numbers.
    neutral: B's motion before the first frame, and A's where none can be made.
  """

  def __init__(self, batch: StreamBatch, neutral: Float[np.ndarray, "56"]):
    if batch.frames_ahead:
      raise ValueError(f"{batch.frames_ahead=} must be 0")
    self._batch, self._neutral = batch, neutral
    self._seen = np.tile(neutral, (len(batch.streams), 1))

  def begin(self, stream: BatchedStream) -> None:
    """Another conversation in a place."""
    self._batch.streams[stream.place].reset()
    self._seen[stream.place] = self._neutral

  def relate(self, stream: BatchedStream, social: Float[np.ndarray, "D"]) -> None:
    self._batch.streams[stream.place].social = social

  def suppose(self, voices: Sequence[tuple[BatchedStream, Wav, Wav]]) -> list[Float[np.ndarray, "56"]]:
    """A's motion of the next frame of some conversations, of each by its place, A's voice and B's."""
    mirrors = self._batch.streams
    made = self._batch.push([(mirrors[stream.place], b, self._seen[stream.place][None], a) for stream, a, b in voices])
    return [self._neutral if isinstance(motion, InputError) or not np.isfinite(motion).all() else motion[0] for motion in made]

  def see(self, stream: BatchedStream, motion: Float[np.ndarray, "56"]) -> None:
    """B's motion of that frame."""
    self._seen[stream.place] = motion
