"""Log-mel features against scipy's short-time Fourier transform, and their timing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
import scipy.signal

from rsatalker_jax.speech import LogMel, logmel, to_frames


def reference_log_mel(wav: np.ndarray, num_mels: int) -> np.ndarray:
  """Power spectra by scipy.signal.spectrogram, filters by interpolating each triangle over its three corners."""
  hertz, _, density = scipy.signal.spectrogram(
      wav.astype(np.float64), 16000, window="hann", nperseg=400, noverlap=80, nfft=1024, detrend=False,
      scaling="spectrum", mode="psd",
  )
  density[1:-1] /= 2  # scipy folds negative frequencies in.
  to_hertz = lambda mel: 700 * (10 ** (mel / 2595) - 1)
  corners = to_hertz(np.linspace(0, 2595 * np.log10(1 + 8000 / 700), num_mels + 2))
  filters = np.stack([np.interp(hertz, corners[i : i + 3], [0, 1, 0], 0, 0) for i in range(num_mels)])
  return (np.log10(filters @ density + 1e-8) + 5).T / 1.5


def test_parity_with_scipy():
  wav = np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1
  wav[5000:9000] *= 1e-3  # Loud and quiet.
  features = LogMel(num_mels=40, context=1).apply({}, wav)
  expected = reference_log_mel(wav, 40)
  assert features.shape == expected.shape == (49, 40)
  np.testing.assert_allclose(features, expected, atol=2e-4)  # float32 FFT against float64.


@pytest.mark.parametrize("samples", [400, 719, 720, 16000, 16001])
def test_number_of_frames_is_that_of_wav2vec2(samples):
  length = samples  # Wav2Vec 2.0's convolutions: kernels 10 3 3 3 3 2 2, strides 5 2 2 2 2 2 2.
  for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)):
    length = (length - kernel) // stride + 1
  module = LogMel()
  assert module.num_frames(samples) == length
  shape = jax.eval_shape(module.apply, {}, jax.ShapeDtypeStruct((samples,), jnp.float32)).shape
  assert shape == (length, module.features)


def test_nothing_to_train():
  assert not jax.tree.leaves(jax.eval_shape(LogMel().init, jax.random.key(0), jnp.zeros(16000)))


def test_context_stacks_the_next_windows():
  wav = np.random.default_rng(1).normal(size=8000).astype(np.float32)
  single = LogMel(context=1).apply({}, wav)
  triple = LogMel(hop=160, context=3).apply({}, wav)
  np.testing.assert_array_equal(triple[:, :64], single)
  np.testing.assert_array_equal(triple[:-1, 128:], single[1:])
  between = LogMel(context=1).apply({}, wav[160:])
  np.testing.assert_allclose(triple[: len(between), 64:128], between, atol=1e-5)


def test_causal_features_end_with_their_frame():
  """Whatever follows frame j leaves its features as they are, to the bit; its own last sample does not."""
  module = LogMel(causal=True)
  wav = np.random.default_rng(1).normal(size=12 * 640).astype(np.float32)
  features = np.asarray(to_frames(module.apply({}, wav), 12))
  for frame in (0, 5, 11):
    end = 640 * (frame + 1)
    later, last = wav.copy(), wav.copy()
    later[end:] += 1.0
    last[end - 40 :] += 1.0  # The taper leaves little of the very last samples.
    np.testing.assert_array_equal(to_frames(module.apply({}, later), 12)[: frame + 1], features[: frame + 1])
    assert np.abs(to_frames(module.apply({}, last), 12)[frame] - features[frame]).max() > 1e-2
  # The same windows 240 samples sooner; none is missing at the end.
  sooner = to_frames(LogMel().apply({}, np.pad(wav, (240, 400))), 13)[:12]
  np.testing.assert_allclose(features, sooner, atol=1e-5)


def test_a_tone_lights_its_own_filter():
  for hertz in (200, 1000, 3500):
    wav = np.sin(2 * np.pi * hertz * np.arange(16000) / 16000).astype(np.float32)
    features = LogMel(context=1).apply({}, wav)
    mel_step = 2595 * np.log10(1 + 8000 / 700) / 65
    expected = 2595 * np.log10(1 + hertz / 700) / mel_step - 1
    assert abs(int(jnp.argmax(features[25])) - expected) < 0.6  # Half-way between two filters, either may win.


def test_silence_is_minus_two_and_loud_speech_about_one():
  np.testing.assert_allclose(LogMel().apply({}, jnp.zeros(16000)), -2.0, atol=1e-5)
  wav = np.random.default_rng(2).normal(size=16000).astype(np.float32) * 0.3
  assert 0.5 < LogMel().apply({}, wav).mean() < 2.0


def test_to_frames_is_linear_interpolation_with_aligned_ends():
  features = np.random.default_rng(3).normal(size=(99, 3)).astype(np.float32)
  for frames in (1, 2, 49, 50, 98, 99, 120):
    expected = scipy.interpolate.interp1d(np.arange(99), features, axis=0)(np.linspace(0, 98, frames))
    np.testing.assert_allclose(to_frames(features, frames), expected, atol=1e-6)
  np.testing.assert_array_equal(to_frames(features[:1], 4), np.repeat(features[:1], 4, 0))


@pytest.mark.parametrize("causal", [False, True])
def test_lips_keep_their_time(causal):
  """A click in the middle of video frame j shows up in feature frame j, also late in a long clip."""
  for frame in (3, 400, 990):
    wav = np.zeros(1000 * 640, np.float32)
    wav[frame * 640 + 320] = 1.0
    features = to_frames(LogMel(causal=causal).apply({}, wav), 1000)
    energy = np.asarray(features).max(axis=1)
    assert abs(int(np.argmax(energy)) - frame) <= 1
    assert energy[frame] > -1.5 > energy[frame + 2] and energy[frame - 2] < -1.5


def test_mel_filters_cover_every_frequency_once():
  filters = logmel.mel_filters(64, 1024)
  assert filters.shape == (64, 513) and (filters.max(axis=1) > 0.5).all()
  inside = filters[:, 8:480]  # Away from the first and last half filter, neighbours add up to one.
  np.testing.assert_allclose(inside.sum(axis=0), 1.0, atol=1e-9)
