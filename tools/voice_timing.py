"""A voice made to follow another recording of the same words: its phones' times and its level.

A filmed dialogue's motion follows the phones and the loudness of the voice that was heard when it was planned. Another voice
can take its place if it moves its lips at the same moments: WORLD (Morise et al. 2016) takes it apart every 2 ms, the frames
are read at other times, and put together again; pitch and timbre stay what they are.
"""

from collections.abc import Sequence

import numpy as np
import pyworld
import scipy.signal
from jaxtyping import Float

Phone = tuple[str, float, float]  # ARPAbet name, start, end in seconds.

SAMPLE_RATE = 16_000
FRAME = 0.002  # Seconds.
LEVEL_WINDOW = 0.04  # Seconds: a syllable's loudness, not its periods.
LOWEST = 10 ** (-60 / 20)  # What is fainter is not raised.
MOST_GAIN = 10 ** (12 / 20)


def follow_phones(wav: Float[np.ndarray, "S"], phones: Sequence[Phone], times: Sequence[Phone]) -> Float[np.ndarray, "R"]:
  """The voice with each phone where `times` has it; what lies before the first and after the last keeps its length.

  Args:
    wav: 16 kHz.
    phones: of `wav`, seconds from its beginning.
    times: the same phones, in seconds of any clock.

  Returns:
    16 kHz; its beginning lies at times[0].start - phones[0].start.

  Raises:
    ValueError: the phones differ.
  """
  if [phone[0] for phone in phones] != [phone[0] for phone in times]:
    raise ValueError(f"phones {[phone[0] for phone in phones]} should follow {[phone[0] for phone in times]}")
  begin = times[0][1] - phones[0][1]
  length = len(wav) / SAMPLE_RATE
  rest = length - phones[-1][2]
  here = np.array([0.0, *(edge for _, start, end in phones for edge in (start, end)), length])
  there = np.array([0.0, *(edge - begin for _, start, end in times for edge in (start, end)), times[-1][2] - begin + rest])
  here, there = np.maximum.accumulate(here), np.maximum.accumulate(there)

  samples = wav.astype(np.float64)
  pitch, at = pyworld.harvest(samples, SAMPLE_RATE, f0_floor=60.0, f0_ceil=500.0, frame_period=FRAME * 1000)
  envelope = pyworld.cheaptrick(samples, pitch, at, SAMPLE_RATE)
  noise = pyworld.d4c(samples, pitch, at, SAMPLE_RATE)
  read = np.interp(np.arange(0.0, there[-1], FRAME), there, here) / FRAME
  frames = np.clip(np.round(read).astype(int), 0, len(pitch) - 1)
  made = pyworld.synthesize(pitch[frames], envelope[frames], noise[frames], SAMPLE_RATE, FRAME * 1000)
  return made[: round(there[-1] * SAMPLE_RATE)].astype(np.float32)


def follow_level(wav: Float[np.ndarray, "S"], other: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
  """`wav` with the course of loudness of `other`, which lasts as long."""
  window = scipy.signal.windows.hann(round(LEVEL_WINDOW * SAMPLE_RATE))
  power = [scipy.signal.fftconvolve(np.square(x, dtype=np.float64), window / window.sum(), "same") for x in (wav, other)]
  mine, wanted = np.sqrt(np.maximum(power[0], 0.0) + LOWEST**2), np.sqrt(np.maximum(power[1], 0.0))
  return (wav * np.minimum(wanted / mine, MOST_GAIN)).astype(np.float32)
