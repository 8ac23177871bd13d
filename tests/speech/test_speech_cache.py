"""The feature cache: computed once, keyed by sound and encoder, whole or rebuilt."""

import logging

import jax
import jax.numpy as jnp
import flax.linen as nn
import numpy as np
import pytest

from rsatalker_jax.speech import LogMel, make_speech_encoder, to_frames
from rsatalker_jax.speech.cache import cached, encoder_key

WAV = (0.1 * np.random.default_rng(0).normal(size=20000)).astype(np.float32)


class Counting(nn.Module):
  """A stand-in for a learned encoder."""

  def num_frames(self, samples):
    return samples // 320

  @nn.compact
  def __call__(self, wav):
    return nn.Dense(4)(wav[: wav.shape[0] // 320 * 320].reshape(-1, 320))


def test_padding_of_local_encoders_changes_nothing():
  encode = make_speech_encoder(LogMel(), {})
  direct = LogMel().apply({}, WAV)
  np.testing.assert_allclose(encode(WAV, 31)[:-1], to_frames(direct, 31)[:-1], atol=1e-4)
  assert encode(WAV).shape == (31, 128)  # 31.25 frames.


def test_one_file_per_sound_and_encoder(tmp_path):
  module = Counting()
  params = module.init(jax.random.key(0), jnp.asarray(WAV))
  other = module.init(jax.random.key(1), jnp.asarray(WAV))
  first = make_speech_encoder(module, params, cache_dir=tmp_path)(WAV, 31)
  assert len(list(tmp_path.iterdir())) == 1
  again = make_speech_encoder(module, params, cache_dir=tmp_path)(WAV, 31)
  np.testing.assert_array_equal(first, again)
  assert len(list(tmp_path.iterdir())) == 1
  changed = make_speech_encoder(module, other, cache_dir=tmp_path)(WAV, 31)
  assert not np.allclose(first, changed)
  make_speech_encoder(module, params, cache_dir=tmp_path)(WAV * 0.5, 31)
  assert len(list(tmp_path.iterdir())) == 3
  assert encoder_key(LogMel(causal=True), {}) != encoder_key(LogMel(), {})
  assert encoder_key(LogMel(num_mels=40), {}) != encoder_key(LogMel(), {})


def test_read_instead_of_computed(tmp_path):
  path = tmp_path / "features" / "a.npz"
  features = np.arange(12.0, dtype=np.float32).reshape(4, 3)
  np.testing.assert_array_equal(cached(path, lambda: features), features)
  np.testing.assert_array_equal(cached(path, lambda: pytest.fail("computed again")), features)
  assert [p.name for p in path.parent.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("damage", [lambda d: d[:-40], lambda d: d[:10], lambda d: b"", lambda d: flip(d, len(d) // 2)])
def test_damaged_files_are_rebuilt_with_a_word(tmp_path, damage, caplog):
  path = tmp_path / "a.npz"
  features = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
  cached(path, lambda: features)
  path.write_bytes(damage(path.read_bytes()))
  with caplog.at_level(logging.WARNING):
    np.testing.assert_array_equal(cached(path, lambda: features), features)
  assert "a.npz is damaged" in caplog.text
  np.testing.assert_array_equal(cached(path, lambda: pytest.fail("not rebuilt")), features)


def flip(data: bytes, position: int) -> bytes:
  return data[:position] + bytes([data[position] ^ 255]) + data[position + 1 :]
