"""The feature cache: computed once, keyed by sound and encoder, whole or rebuilt."""

import logging

import flax.linen as nn
import jax
import numpy as np
import pytest

from rsatalker_jax.errors import InputError, MissingFeatures
from rsatalker_jax.speech import LogMel, SpeechFeatures, logmel_features, to_frames, wav2vec2_features
from rsatalker_jax.speech.cache import cached
from rsatalker_jax.speech.checkpoints import checkpoint_key, load_wav2vec2
from wav2vec2_checkpoints import FAMILIES, make_tensors, write_checkpoint

WAV = (0.1 * np.random.default_rng(0).normal(size=20000)).astype(np.float32)


class Counting(nn.Module):
  """A stand-in for a learned encoder."""

  def num_frames(self, samples):
    return samples // 320

  @nn.compact
  def __call__(self, wav):
    return nn.Dense(4)(wav[: wav.shape[0] // 320 * 320].reshape(-1, 320))


def never():
  pytest.fail("the encoder was loaded")


def test_padding_of_local_encoders_changes_nothing():
  encode = logmel_features(LogMel())
  direct = LogMel().apply({}, WAV)
  np.testing.assert_allclose(encode(WAV, 31)[:-1], to_frames(direct, 31)[:-1], atol=1e-4)
  assert encode(WAV).shape == (31, 256)  # 31.25 frames.


def test_one_file_per_sound_and_encoder(tmp_path):
  module = Counting()
  make = lambda seed: lambda: (module, module.init(jax.random.key(seed), WAV))
  first = SpeechFeatures(lambda: "a", make(0), cache_dir=tmp_path)(WAV, 31)
  assert len(list(tmp_path.iterdir())) == 1
  # What is there is read: the encoder is not even loaded, and need not be allowed to run.
  for options in ({}, {"encode_missing": False}):
    again = SpeechFeatures(lambda: "a", never, cache_dir=tmp_path, **options)
    np.testing.assert_array_equal(first, again(WAV, 31))
    assert again.fill(WAV, 31) == "cached"
  assert len(list(tmp_path.iterdir())) == 1
  changed = SpeechFeatures(lambda: "b", make(1), cache_dir=tmp_path)(WAV, 31)
  assert not np.allclose(first, changed)
  assert SpeechFeatures(lambda: "a", make(0), cache_dir=tmp_path).fill(WAV * 0.5, 31) == "encoded"
  assert len(list(tmp_path.iterdir())) == 3
  path = lambda features, frames=31: features.path(WAV, frames)
  modules = LogMel(), LogMel(num_mels=40), LogMel(causal=True)
  assert len({path(logmel_features(module, cache_dir=tmp_path)) for module in modules}) == len(modules)
  late, early = (SpeechFeatures(lambda: "a", never, resample_first=first, cache_dir=tmp_path) for first in (False, True))
  assert path(late) == path(late, 32) and path(early) != path(early, 32)  # Before the Transformer, the rate matters.


def test_missing_features_are_an_error_where_encoding_was_not_asked_for(tmp_path):
  features = SpeechFeatures(lambda: "a", never, cache_dir=tmp_path / "cache", encode_missing=False)
  with pytest.raises(MissingFeatures, match=r"cache: a voice: found no speech features, expected .*encode_speech\.py"):
    features(WAV, 31)
  assert not list(tmp_path.iterdir())
  features.path(WAV, 31).parent.mkdir()
  features.path(WAV, 31).write_bytes(b"damaged")
  with pytest.raises(MissingFeatures):
    features(WAV, 31)


def test_a_checkpoint_is_known_by_its_files(tmp_path, monkeypatch):
  tensors = make_tensors(FAMILIES["base"])
  keys = [checkpoint_key(write_checkpoint(tmp_path / name, "base", tensors)) for name in ("a", "b")]
  assert keys[0] == keys[1]  # Wherever it lies.
  tensors["wav2vec2.encoder.layers.1.attention.k_proj.bias"][3] += 1e-3
  keys.append(checkpoint_key(write_checkpoint(tmp_path / "c", "base", tensors)))
  settings = tmp_path / "b" / "preprocessor_config.json"
  settings.write_text(settings.read_text().replace('"do_normalize": true', '"do_normalize": false'))
  keys.append(checkpoint_key(tmp_path / "b"))
  config = tmp_path / "b" / "config.json"
  config.write_text(config.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2'))
  keys.append(checkpoint_key(tmp_path / "b"))
  # Accelerators compute in bfloat16: other features, another key.
  assert load_wav2vec2(tmp_path / "a")[0].config.dtype == "float32"
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert load_wav2vec2(tmp_path / "a")[0].config.dtype == "bfloat16"
  keys.append(checkpoint_key(tmp_path / "a"))
  assert len(set(keys)) == len(keys) - 1


def test_a_checkpoint_that_changes_under_the_program_is_refused(tmp_path):
  folder = write_checkpoint(tmp_path / "checkpoint", "base")
  features = wav2vec2_features(folder, cache_dir=tmp_path / "cache")
  features.path(WAV, 31)
  write_checkpoint(folder, "base", make_tensors(FAMILIES["base"], seed=1))
  with pytest.raises(InputError, match="changed since"):
    features(WAV, 31)
  assert not (tmp_path / "cache").exists()


def test_read_instead_of_computed(tmp_path):
  path = tmp_path / "features" / "a.npz"
  features = np.arange(12.0, dtype=np.float32).reshape(4, 3)
  for origin, compute in (("encoded", lambda: features), ("cached", never)):
    found, how = cached(path, compute)
    np.testing.assert_array_equal(found, features)
    assert how == origin
  assert [p.name for p in path.parent.iterdir()] == ["a.npz"]


def test_two_processes_at_one_voice_do_no_harm(tmp_path, monkeypatch):
  """The second begins and ends while the first one writes, with the same process id, as on another host."""
  path = tmp_path / "a.npz"
  features = np.arange(12.0, dtype=np.float32).reshape(4, 3)
  save = np.savez

  def interrupted(file, **arrays):
    monkeypatch.setattr(np, "savez", save)
    cached(path, lambda: features)
    save(file, **arrays)

  monkeypatch.setattr(np, "savez", interrupted)
  cached(path, lambda: features)
  np.testing.assert_array_equal(cached(path, never)[0], features)
  assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("damage", [lambda d: d[:-40], lambda d: d[:10], lambda d: b"", lambda d: flip(d, len(d) // 2)])
def test_damaged_files_are_rebuilt_with_a_word(tmp_path, damage, caplog):
  path = tmp_path / "a.npz"
  features = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
  cached(path, lambda: features)
  path.write_bytes(damage(path.read_bytes()))
  with caplog.at_level(logging.WARNING):
    found, how = cached(path, lambda: features)
  np.testing.assert_array_equal(found, features)
  assert how == "rebuilt" and "a.npz is damaged" in caplog.text
  np.testing.assert_array_equal(cached(path, never)[0], features)


def flip(data: bytes, position: int) -> bytes:
  return data[:position] + bytes([data[position] ^ 255]) + data[position + 1 :]
