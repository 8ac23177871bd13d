"""The level normaliser: causal, the same in pieces, deaf to the microphone's gain, and silent where nobody speaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from rsatalker_jax.errors import MissingFeatures
from rsatalker_jax.speech import LogMel, level, logmel_features

RATE = 16_000
_normalise = jax.jit(level.normalise_level)


def make_voice(seconds: float = 20.0, seed: int = 0) -> np.ndarray:
  """Noise of speech's band in syllables, a third of the time silent, at -23 dB of full scale where it sounds."""
  rng = np.random.default_rng(seed)
  time = np.arange(round(seconds * RATE)) / RATE
  band = scipy.signal.sosfilt(scipy.signal.butter(2, (300, 3000), "bandpass", fs=RATE, output="sos"), rng.normal(size=len(time)))
  sounding = (0.5 - 0.5 * np.cos(2 * np.pi * 4 * time)) * (time % 3 < 2)
  return (10 ** (-23 / 20) * band / band.std() * sounding / np.sqrt(3 / 8)).astype(np.float32)


VOICE = make_voice()


def loudness(wav: np.ndarray) -> float:
  return 10 * np.log10(np.mean(np.square(wav, dtype=np.float64)))


def test_pieces_give_the_samples_of_the_whole():
  whole = level.level_voice(VOICE)
  rng, state, at, made = np.random.default_rng(1), level.init_level(), 0, []
  while at < len(VOICE):
    size = level.BLOCK * int(rng.choice([1, 4, 20, 100]))
    state, piece = _normalise(state, jnp.asarray(VOICE[at : at + size]))
    made.append(np.asarray(piece))
    at += size
  np.testing.assert_allclose(np.concatenate(made), whole, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(level.level_voice(VOICE[:12_345]), whole[:12_345], rtol=1e-5, atol=1e-7)  # Any length.


@pytest.mark.parametrize("sample", [40_000, 40_037, 40_159])
def test_no_sample_depends_on_a_later_one(sample):
  changed = VOICE.copy()
  changed[sample:] = 0.9
  before, after = level.level_voice(VOICE), level.level_voice(changed)
  np.testing.assert_array_equal(before[:sample], after[:sample])
  assert np.abs(before - after)[sample:].max() > 0.1


@pytest.mark.parametrize("decibels", [-20, -12, 12, 20])
def test_a_microphone_of_another_gain_ends_in_the_same_output(decibels):
  plain, other = (level.level_voice((VOICE * 10 ** (gain / 20)).astype(np.float32)) for gain in (0, decibels))
  late = slice(4 * RATE, None)
  assert loudness(other[late]) == pytest.approx(loudness(plain[late]), abs=0.5)
  second = slice(RATE, 2 * RATE)  # After a second of speech the difference is 2 dB at most of 20.
  assert abs(loudness(other[second]) - loudness(plain[second])) < 2
  # Near the target, which is of speech without what lies below 200 Hz, as 50 ms smooth it.
  blocks = plain[late].reshape(-1, 800)
  loud = 10 * np.log10(np.mean(blocks**2, axis=1) + 1e-12)
  assert loud[loud > loud.max() - 8].mean() == pytest.approx(level.TARGET, abs=3)


def test_the_gain_is_smooth_and_stays_while_nobody_speaks():
  quiet = (VOICE * 0.1).astype(np.float32)
  out = level.level_voice(quiet + 1e-5)
  gain = 20 * np.log10(out / (quiet + 1e-5) + 1e-12)
  assert np.abs(np.diff(gain)).max() < 0.05  # dB from sample to sample: no click.
  settled = gain[10 * RATE :]
  assert np.ptp(settled) < 1.5 and settled.mean() == pytest.approx(20, abs=2)
  pause = gain[int(14.1 * RATE) : int(14.9 * RATE)]  # Of the three seconds from 12 on the last is silent.
  assert np.ptp(pause) < 0.01


@pytest.mark.parametrize("decibels", [-30, -50, -80, -np.inf])
def test_silence_and_steady_noise_are_not_blown_up(decibels):
  rng = np.random.default_rng(0)
  fan = scipy.signal.lfilter([1], [1, -0.99], rng.normal(size=20 * RATE))
  for noise in (rng.normal(size=20 * RATE), fan / fan.std()):
    noise = (noise * 10 ** (decibels / 20)).astype(np.float32)
    out = level.level_voice(noise)
    assert np.abs(out).max() == 0 if decibels == -np.inf else loudness(out) == pytest.approx(decibels, abs=1)


def test_the_noise_before_and_between_words_does_not_raise_the_gain():
  rng = np.random.default_rng(2)
  clean = np.concatenate([np.zeros(10 * RATE, np.float32), VOICE])
  noisy = (clean + 10 ** (-43 / 20) * rng.normal(size=len(clean))).astype(np.float32)  # 20 dB below speech, alone for 10 s.
  late = slice(15 * RATE, None)
  gain = loudness(level.level_voice(noisy)[late]) - loudness(noisy[late])
  assert gain == pytest.approx(loudness(level.level_voice(clean)[late]) - loudness(clean[late]), abs=1)
  assert loudness(level.level_voice(noisy)[: 10 * RATE]) == pytest.approx(-43, abs=1)


def test_a_cough_or_a_wrong_beginning_is_forgotten():
  loud = VOICE.copy()
  loud[: RATE // 2] *= 8  # At 18 dB more.
  plain, other = level.level_voice(VOICE), level.level_voice(loud)
  assert loudness(other[13 * RATE :]) == pytest.approx(loudness(plain[13 * RATE :]), abs=2)
  # A louder voice after a faint one is not taken up by the faint one's gain for long.
  faint = VOICE.copy()
  faint[: 10 * RATE] *= 0.03
  assert loudness(level.level_voice(faint)[13 * RATE :]) == pytest.approx(loudness(plain[13 * RATE :]), abs=2)


def test_features_of_a_quiet_voice_are_nearly_those_of_a_loud_one(tmp_path):
  options = dict(cache_dir=tmp_path)
  plain, levelled = logmel_features(LogMel(), **options), logmel_features(LogMel(), level=True, **options)
  quiet = (VOICE * 0.25).astype(np.float32)
  apart = lambda features: np.abs(features(VOICE, 500) - features(quiet, 500))[100:].mean()
  assert apart(levelled) < 0.1 * apart(plain)
  np.testing.assert_array_equal(levelled(quiet, 500), logmel_features(LogMel())(level.level_voice(quiet), 500))
  # What is heard degraded is brought to its level afterwards.
  louder = type("Louder", (), {"key": "x", "__call__": lambda _, wav: np.clip(4 * wav, -0.5, 0.5)})()
  np.testing.assert_array_equal(
      logmel_features(LogMel(), level=True)(VOICE, 500, louder), logmel_features(LogMel())(level.level_voice(louder(VOICE)), 500)
  )
  # The two never share a file; nor do those of another version.
  assert len(list(tmp_path.glob("*.npz"))) == 4
  with pytest.raises(MissingFeatures, match=", at one level, expected"):
    logmel_features(LogMel(), level=True, encode_missing=False, **options)(quiet[:-640], 499)


def test_another_version_has_files_of_its_own(tmp_path, monkeypatch):
  path = lambda: logmel_features(LogMel(), level=True, cache_dir=tmp_path).path(VOICE, 500)
  first = path()
  monkeypatch.setattr(level, "VERSION", level.VERSION + 1)
  assert path() != first
