"""A voice that follows another's times and level, on sounds whose pitch and course are known."""

import numpy as np
import pytest

pytest.importorskip("pyworld")  # Of tools/requirements.txt.

from tools import voice_timing

RATE = voice_timing.SAMPLE_RATE


def buzz(pitch: float, seconds: float, brightness: float) -> np.ndarray:
  """A tone with overtones that fall off with `brightness`."""
  times = np.arange(round(seconds * RATE)) / RATE
  tone = sum(brightness**k * np.sin(2 * np.pi * k * pitch * times + k) for k in range(1, int(7000 / pitch)))
  return (0.1 * tone / np.std(tone)).astype(np.float32)


def centroid(wav: np.ndarray) -> float:
  spectrum = np.abs(np.fft.rfft(wav * np.hanning(len(wav)))) ** 2
  return float(np.sum(spectrum * np.fft.rfftfreq(len(wav), 1 / RATE)) / np.sum(spectrum))


def period(wav: np.ndarray) -> int:
  correlation = np.correlate(wav, wav, "full")[len(wav) - 1 :]
  return 40 + int(np.argmax(correlation[40:250]))


def test_phones_move_and_pitch_stays():
  """Two vowels, dull and bright: the change between them moves to where it is wanted, the pitch does not."""
  wav = np.concatenate([buzz(125, 0.4, 0.3), buzz(125, 0.4, 0.95)])
  phones = [("AA", 0.05, 0.4), ("IY", 0.4, 0.75)]
  made = voice_timing.follow_phones(wav, phones, [("AA", 7.0, 7.2), ("IY", 7.2, 7.7)])
  # 50 ms before, .2 s, .5 s, and 50 ms after.
  assert abs(len(made) - 0.8 * RATE) <= 1
  dull, bright = centroid(wav[2000:4000]), centroid(wav[9000:11000])
  for at, expected in ((0.12, dull), (0.20, dull), (0.30, bright), (0.65, bright)):
    piece = made[round((at - 0.03) * RATE) : round((at + 0.03) * RATE)]
    assert centroid(piece) == pytest.approx(expected, rel=0.3), at
    assert period(piece) == pytest.approx(RATE / 125, abs=2), at


def test_a_pause_that_the_other_lacks_is_left_out():
  wav = np.concatenate([buzz(125, 0.3, 0.7), np.zeros(round(0.3 * RATE), np.float32), buzz(125, 0.3, 0.7)])
  phones = [("AA", 0.05, 0.3), ("AA", 0.6, 0.85)]
  made = voice_timing.follow_phones(wav, phones, [("AA", 1.0, 1.25), ("AA", 1.25, 1.5)])
  level = np.sqrt(np.convolve(made**2, np.ones(160) / 160, "same"))
  assert abs(len(made) - 0.6 * RATE) <= 1 and level[800:-800].min() > 0.03


def test_other_phones_are_refused():
  wav = buzz(125, 0.3, 0.7)
  with pytest.raises(ValueError, match="should follow"):
    voice_timing.follow_phones(wav, [("AA", 0.0, 0.2)], [("IY", 0.0, 0.2)])


def test_level_is_the_others():
  rng = np.random.default_rng(0)
  envelope = np.repeat([0.05, 0.2, 0.0, 0.1], RATE // 2)
  other = (envelope * rng.standard_normal(len(envelope))).astype(np.float32)
  made = voice_timing.follow_level((0.1 * rng.standard_normal(len(envelope))).astype(np.float32), other)
  for k, wanted in enumerate([0.05, 0.2, 0.0, 0.1]):
    middle = made[k * RATE // 2 + 1600 : (k + 1) * RATE // 2 - 1600]
    assert np.std(middle) == pytest.approx(wanted, rel=0.05, abs=1e-4)
  # What is silent itself is not raised to noise, and nothing is raised by more than 12 dB.
  faint = voice_timing.follow_level(np.full(RATE, 1e-5, np.float32), np.full(RATE, 0.1, np.float32))
  assert np.abs(faint).max() <= 1e-5 * 10 ** (12 / 20) * 1.001
  quiet = voice_timing.follow_level(np.full(RATE, 1e-4, np.float32), np.full(RATE, 2.5e-4, np.float32))
  assert np.abs(quiet[1600:-1600]).max() < 1e-4
  np.testing.assert_array_equal(voice_timing.follow_level(np.zeros(RATE, np.float32), np.full(RATE, 0.1, np.float32)), 0)
