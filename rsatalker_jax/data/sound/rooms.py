"""Impulse responses of rooms by the image-source model (Allen & Berkley 1979), and how long rooms reverberate.

Rooms are boxes whose six walls absorb alike, at all frequencies alike.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy.signal
from jaxtyping import Float

from rsatalker_jax.types import SAMPLE_RATE

SPEED = 343.0  # Of sound, metres a second, at 20 degrees Celsius.
_FINER = 16  # Times the rate at which images arrive: arrivals are right to 1/32 sample.
_LOSS = 24 * math.log(10) / SPEED  # Sabine's 0.161 s/m.


def room_impulse_response(
    size: Sequence[float],
    source: Sequence[float],
    microphone: Sequence[float],
    absorption: float,
    *,
    seconds: float,
    rate: int = SAMPLE_RATE,
) -> Float[np.ndarray, "S"]:
  """The pressure at a microphone after an impulse that at 1 m from its source has 1 / 4π.

  Image n along an axis lies at nL + s, or at nL + L - s where n is odd, and has met |n| walls; an image whose walls are
  n in all and whose distance is d adds (1 - absorption)^(n / 2) / (4 π d) at d / SPEED.

  Args:
    size, source, microphone: metres, (3,); both inside.
    absorption: share of the energy that a wall takes, in (0, 1].
    seconds: length of the response, from the impulse on. What arrives later is left out.
    rate: samples a second.

  Raises:
    ValueError: source or microphone are not inside, or at one place.
  """
  places = np.array([source, microphone], float)
  if not ((places > 0) & (places < np.array(size))).all() or np.allclose(*places):
    raise ValueError(f"{source=} and {microphone=} must be two places in a room of {size=}")
  reach = seconds * SPEED
  squares, walls = [], []
  for length, s, m in zip(size, source, microphone):
    count = math.ceil(reach / length) + 1
    n = np.arange(-count, count + 1)
    squares.append((n * length + np.where(n % 2 == 0, s, length - s) - m) ** 2)
    walls.append(np.abs(n))
  grid = lambda x, y, z: x[:, None, None] + y[:, None] + z
  square = grid(*squares)
  near = square < reach**2
  distance, met = np.sqrt(square[near]), grid(*walls)[near]
  amplitude = (1 - absorption) ** (met / 2) / (4 * np.pi * distance)
  count = round(seconds * rate)
  arrival = np.rint(distance / SPEED * rate * _FINER).astype(int)
  fine = np.bincount(arrival, amplitude, minlength=count * _FINER)[: count * _FINER]
  return _FINER * scipy.signal.resample_poly(fine, 1, _FINER)


def sabine_time(size: Sequence[float], absorption: float) -> float:
  """Seconds in which sound in a room falls by 60 dB, by Sabine: for walls that absorb little."""
  volume, surface = _measure(size)
  return _LOSS * volume / (surface * absorption)


def eyring_time(size: Sequence[float], absorption: float) -> float:
  """The same by Eyring, for walls that absorb more."""
  volume, surface = _measure(size)
  return _LOSS * volume / (-surface * math.log1p(-absorption))


def absorption_for(size: Sequence[float], seconds: float) -> float:
  """The absorption with which `eyring_time` is so many seconds."""
  volume, surface = _measure(size)
  return -math.expm1(-_LOSS * volume / (surface * seconds))


def _measure(size: Sequence[float]) -> tuple[float, float]:
  """Volume and surface."""
  x, y, z = size
  return x * y * z, 2 * (x * y + y * z + z * x)
