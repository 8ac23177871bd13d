"""Text to speech for what is typed: hibari (Apache-2.0), whose voice "heart" is one of those that the demo's generator learnt from.

It is no dependency: `pip install hibari-tts` brings it with all that it needs, model and dictionary included.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from rsatalker_jax.errors import InputError


def load_voice() -> Callable[[str], tuple[Float[np.ndarray, "S"], int]] | None:
  """A function from a sentence to its sound and the rate of that; None where hibari is not installed."""
  try:
    import hibari  # ty: ignore[import-not-found]
  except ImportError:
    return None
  speaker = hibari.Hibari(threads=1)
  speaker("Hello.")  # The first takes longer.

  def say(sentence: str) -> tuple[Float[np.ndarray, "S"], int]:
    wav = np.asarray(speaker(sentence), np.float32)
    if not len(wav) or not np.isfinite(wav).all():
      raise InputError("message", "say", f"{sentence!r}, which has no sound", "words")
    return wav, speaker.sample_rate

  return say
