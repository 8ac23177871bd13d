"""The feature cache: computed once, keyed by sound and encoder, whole or rebuilt, read by slices."""

import functools
import hashlib
import io
import json
import logging
import os
import pathlib
import zipfile

import flax.linen as nn
import jax
import numpy as np
import pytest
import whisper_checkpoints

from rsatalker_jax.errors import InputError, MissingFeatures
from rsatalker_jax.speech import LogMel, SpeechFeatures, logmel_features, to_frames, wav2vec2_features, whisper_features
from rsatalker_jax.speech.cache import StoredFeatures, cached
from rsatalker_jax.speech.checkpoints import checkpoint_id, load_wav2vec2
from rsatalker_jax.speech.encoder_ids import EncoderId, EncoderIds
from wav2vec2_checkpoints import FAMILIES, make_tensors, write_checkpoint

WAV = (0.1 * np.random.default_rng(0).normal(size=20000)).astype(np.float32)


class Counting(nn.Module):
  """A stand-in for a learned encoder."""

  def num_frames(self, samples):
    return samples // 320

  @nn.compact
  def __call__(self, wav):
    return nn.Dense(4)(wav[: wav.shape[0] // 320 * 320].reshape(-1, 320))


def known_as(key, name="test"):
  return lambda: EncoderId(name, key)


def voices(folder):
  return sorted(folder.glob("*.npz"))


def never():
  pytest.fail("the encoder was loaded")


class Quieter:
  """A degradation that halves a voice."""

  def __init__(self, key="half"):
    self.key = key

  def __call__(self, wav):
    return 0.5 * wav


@pytest.mark.parametrize("encoder", ["logmel", "wav2vec2", "whisper"])
def test_degraded_voices_have_features_of_the_degraded_waveform_and_files_of_their_own(tmp_path, encoder):
  if encoder == "logmel":
    make = lambda **options: logmel_features(LogMel(), **options)
  elif encoder == "wav2vec2":
    make = functools.partial(wav2vec2_features, write_checkpoint(tmp_path / "checkpoint", "base"))
  else:
    make = functools.partial(whisper_features, whisper_checkpoints.write_checkpoint(tmp_path / "checkpoint", max_source_positions=400))
  cache = tmp_path / "cache"
  features, plain = make(cache_dir=cache), make()
  clean, half = features(WAV, 31), features(WAV, 31, Quieter())
  np.testing.assert_array_equal(half, plain(0.5 * WAV, 31))
  np.testing.assert_array_equal(half, plain(WAV, 31, Quieter()))
  np.testing.assert_array_equal(clean, plain(WAV, 31))
  assert len(voices(cache)) == 2
  # Read again without being made again; another chain, under another key, is never mistaken for it.
  fails = Quieter()
  fails.__class__ = type("Fails", (Quieter,), {"__call__": lambda *_: pytest.fail("degraded again")})
  np.testing.assert_array_equal(make(cache_dir=cache).open(WAV, 31, fails), half)
  assert features.fill(WAV, 31, fails) == "cached" and features.fill(WAV, 31, Quieter("half, version 2")) == "encoded"
  # Nothing but the key tells one from the other: the file is named after the voice as it was recorded.
  assert len({features.path(WAV, 31, change) for change in (None, Quieter(), Quieter("2"))}) == 3
  with pytest.raises(MissingFeatures, match="of the voice degraded, expected"):
    make(cache_dir=cache, encode_missing=False).open(WAV, 31, Quieter("3"))


def test_padding_of_local_encoders_changes_nothing():
  encode = logmel_features(LogMel())
  direct = LogMel().apply({}, WAV)
  np.testing.assert_allclose(encode(WAV, 31)[:-1], to_frames(direct, 31)[:-1], atol=1e-4)
  assert encode(WAV).shape == (31, 256)  # 31.25 frames.


def test_one_file_per_sound_and_encoder(tmp_path):
  module = Counting()
  make = lambda seed: lambda: (module, module.init(jax.random.key(seed), WAV))
  first = SpeechFeatures(known_as("a"), make(0), cache_dir=tmp_path)(WAV, 31)
  assert len(voices(tmp_path)) == 1
  # What is there is read: the encoder is not even loaded, and need not be allowed to run.
  for options in ({}, {"encode_missing": False}):
    again = SpeechFeatures(known_as("a"), never, cache_dir=tmp_path, **options)
    np.testing.assert_array_equal(first, again(WAV, 31))
    assert again.fill(WAV, 31) == "cached"
  assert len(voices(tmp_path)) == 1
  changed = SpeechFeatures(known_as("b"), make(1), cache_dir=tmp_path)(WAV, 31)
  assert not np.allclose(first, changed)
  assert SpeechFeatures(known_as("a"), make(0), cache_dir=tmp_path).fill(WAV * 0.5, 31) == "encoded"
  assert len(voices(tmp_path)) == 3
  path = lambda features, frames=31: features.path(WAV, frames)
  modules = LogMel(), LogMel(num_mels=40), LogMel(causal=True)
  assert len({path(logmel_features(module, cache_dir=tmp_path)) for module in modules}) == len(modules)
  late, early = (SpeechFeatures(known_as("a"), never, resample_first=first, cache_dir=tmp_path) for first in (False, True))
  assert path(late) == path(late, 32) and path(early) != path(early, 32)  # Before the Transformer, the rate matters.


def test_missing_features_are_an_error_where_encoding_was_not_asked_for(tmp_path):
  features = SpeechFeatures(known_as("a"), never, cache_dir=tmp_path / "cache", encode_missing=False)
  with pytest.raises(MissingFeatures, match=r"cache: a voice: found no whole speech features of encoder a \(test\), expected .*encode_speech\.py"):
    features(WAV, 31)
  assert not list(tmp_path.iterdir())
  features.path(WAV, 31).parent.mkdir()
  features.path(WAV, 31).write_bytes(b"damaged")
  with pytest.raises(MissingFeatures):
    features(WAV, 31)


def test_a_checkpoint_is_known_by_its_files(tmp_path, monkeypatch):
  tensors = make_tensors(FAMILIES["base"])
  checkpoint_key = lambda folder: checkpoint_id(folder, EncoderIds(None)).key
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


@pytest.fixture
def hashed(monkeypatch):
  """Names of the files whose contents are read for a key."""
  names = []
  digest = hashlib.file_digest

  def spy(file, kind):
    names.append(pathlib.Path(file.name).name)
    return digest(file, kind)

  monkeypatch.setattr(hashlib, "file_digest", spy)
  return names


def write_old_checkpoint(folder, seed=0, age=100):
  """One whose files have not changed for a while."""
  write_checkpoint(folder, "base", make_tensors(FAMILIES["base"], seed=seed))
  for path in folder.iterdir():
    os.utime(path, (path.stat().st_mtime - age,) * 2)
  return folder


def test_weights_are_not_read_for_names_that_are_known(tmp_path, hashed):
  folder, cache = write_old_checkpoint(tmp_path / "checkpoint"), tmp_path / "cache"
  first = wav2vec2_features(folder, cache_dir=cache)
  features = first(WAV, 31)
  assert "model.safetensors" in hashed
  hashed.clear()
  for _ in range(2):
    again = wav2vec2_features(folder, cache_dir=cache, encode_missing=False)
    np.testing.assert_array_equal(again(WAV, 31), features)
    assert again.id == first.id
  assert not hashed
  # Other contents of the same size, another time of change.
  write_old_checkpoint(folder, seed=1, age=50)
  changed = wav2vec2_features(folder, cache_dir=cache, encode_missing=False)
  assert changed.id.key != first.id.key and "model.safetensors" in hashed
  assert changed.id.key == checkpoint_id(folder, EncoderIds(None)).key
  with pytest.raises(MissingFeatures, match=rf"of encoder {changed.id.key[:8]} \(.*checkpoint in float32\), but files of {first.id.key[:8]} \("):
    changed(WAV, 31)


def test_files_that_have_just_been_written_are_not_known_by_their_time(tmp_path, hashed):
  folder, cache = write_old_checkpoint(tmp_path / "checkpoint", age=0), tmp_path / "cache"
  for _ in range(2):
    wav2vec2_features(folder, cache_dir=cache)(WAV, 31)
  assert hashed.count("model.safetensors") > 1
  (entry,) = json.loads((cache / "encoders.json").read_text())
  assert entry["stamp"] == ""


def test_a_machine_without_the_weights_reads_the_cache(tmp_path):
  folder, cache = write_old_checkpoint(tmp_path / "checkpoint"), tmp_path / "cache"
  features = wav2vec2_features(folder, cache_dir=cache)(WAV, 31)
  (folder / "model.safetensors").unlink()
  away = wav2vec2_features(folder, cache_dir=cache, encode_missing=False)
  np.testing.assert_array_equal(away(WAV, 31), features)
  with pytest.raises(InputError, match="checkpoint: found no weights"):
    wav2vec2_features(folder, cache_dir=tmp_path / "other", encode_missing=False)(WAV, 31)
  EncoderIds(cache).add(EncoderId(away.id.name, "another"))
  with pytest.raises(InputError, match=r"encoders.json: .*checkpoint in float32: found 2 encoders, expected one, or"):
    wav2vec2_features(folder, cache_dir=cache, encode_missing=False)(WAV, 31)


def test_hub_ids_are_looked_up_on_this_machine_first(tmp_path, monkeypatch):
  import huggingface_hub

  folder = write_old_checkpoint(tmp_path / "snapshot")
  here = []

  def snapshot(name, allow_patterns=None, local_files_only=False):
    assert local_files_only, "asked the hub"
    if not here:
      raise OSError("not here")
    return str(folder)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
  known = EncoderIds(tmp_path)
  known.add(EncoderId("some/id in float32", "noted"))
  assert checkpoint_id("some/id", known).key == "noted"
  here.append(True)  # The files tell more than the name.
  assert checkpoint_id("some/id", known).key == checkpoint_id(folder, EncoderIds(None)).key


def test_a_damaged_list_of_encoders_costs_work_and_no_more(tmp_path, hashed):
  folder, cache = write_old_checkpoint(tmp_path / "checkpoint"), tmp_path / "cache"
  features = wav2vec2_features(folder, cache_dir=cache)(WAV, 31)
  whole = (cache / "encoders.json").read_bytes()
  for damage in (b"", whole[:50], b"[1]", b'{"a": 1}', b'[{"name": "x"}]', b"null", b"\xff"):
    (cache / "encoders.json").write_bytes(damage)
    hashed.clear()
    np.testing.assert_array_equal(wav2vec2_features(folder, cache_dir=cache, encode_missing=False)(WAV, 31), features)
    assert hashed and (cache / "encoders.json").read_bytes() == whole


def test_read_instead_of_computed(tmp_path):
  path = tmp_path / "features" / "a.npz"
  features = np.arange(12.0, dtype=np.float32).reshape(4, 3)
  for origin, compute in (("encoded", lambda: features), ("cached", never)):
    found, how = cached(path, compute)
    np.testing.assert_array_equal(found, features)
    assert how == origin and found.shape == (4, 3) and found.dtype == np.float32 and len(found) == 4
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


def test_no_damaged_byte_passes(tmp_path):
  """Each byte of a file in turn. The archive's own may be harmless (times, versions), the array's are not."""
  features = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
  path = tmp_path / "a.npz"
  cached(path, lambda: features)
  data = path.read_bytes()
  array = range(data.index(b"\x93NUMPY"), data.index(features.tobytes()) + features.nbytes)
  assert len(array) > features.nbytes + 100
  for position in range(len(data)):
    path.write_bytes(flip(data, position))
    found, how = cached(path, lambda: features)
    np.testing.assert_array_equal(found, features)
    assert how == "rebuilt" or position not in array


@pytest.mark.parametrize("check", [True, False])
def test_a_damaged_digit_of_the_shape_is_noticed(tmp_path, check, caplog):
  path = tmp_path / "a.npz"
  features = np.random.default_rng(0).normal(size=(119, 4)).astype(np.float32)
  cached(path, lambda: features)
  data = path.read_bytes()
  path.write_bytes(data.replace(b"(119, 4)", b"(110, 4)"))
  with caplog.at_level(logging.WARNING):
    found, how = cached(path, lambda: features, check=check)
  np.testing.assert_array_equal(found, features)
  assert how == "rebuilt" and "a.npz is damaged (1904 bytes of numbers for 110 rows of 4)" in caplog.text
  assert path.read_bytes() == data


def test_files_of_earlier_versions_are_read(tmp_path):
  """An archive without numpy's extra fields, and one with an array of another type, which is made anew."""
  features = np.arange(12.0, dtype=np.float32).reshape(4, 3)
  for kind, origin in ((np.float32, "cached"), (np.float64, "rebuilt")):
    array = io.BytesIO()
    np.save(array, features.astype(kind))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
      archive.writestr("features.npy", array.getvalue())
    found, how = cached(tmp_path / "a.npz", lambda: features)
    np.testing.assert_array_equal(found, features)
    assert how == origin


@pytest.mark.parametrize("rows, frames", [(60, 60), (119, 60), (118, 60), (45, 60), (1, 3), (7, 1)])
def test_slices_equal_those_of_the_whole(tmp_path, rows, frames):
  features = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
  stored, _ = cached(tmp_path / "a.npz", lambda: features, num_frames=frames)
  whole = features if rows == frames else to_frames(features, frames)
  assert stored.shape == (frames, 4) == np.asarray(stored).shape
  places = np.linspace(0, rows - 1, frames)
  by_numpy = np.stack([np.interp(places, np.arange(rows), column) for column in features.T], axis=1)
  np.testing.assert_allclose(np.asarray(stored), by_numpy, atol=2e-6)
  for span in (slice(None), slice(0, 20), slice(13, 33), slice(frames - 1, None), slice(5, 5), slice(-3, None), slice(0, 50, 7)):
    np.testing.assert_array_equal(stored[span], whole[span])
    assert stored[span].dtype == np.float32
  stored[:][:] = -1.0  # A fresh array each time.
  np.testing.assert_array_equal(stored, whole)


def test_a_slice_reads_its_own_rows_alone_and_keeps_nothing_open(tmp_path):
  features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
  path = tmp_path / "a.npz"
  stored, _ = cached(path, lambda: features)
  open_files = lambda: len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
  before = open_files()
  stored[10:20]
  assert open_files() == before
  data = bytearray(path.read_bytes())
  start = data.index(features.tobytes())
  data[start : start + 10 * 16] = bytes(160)
  data[start + 20 * 16 : start + 50 * 16] = bytes(480)
  path.write_bytes(data)
  np.testing.assert_array_equal(stored[10:20], features[10:20])
  np.testing.assert_array_equal(stored[9:21:11], np.zeros((2, 4)))  # What is on disk is what is read.


def test_damage_behind_the_header_is_found_at_the_first_read(tmp_path):
  """Where nothing may be encoded, files are not read to open them."""
  features = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
  path = tmp_path / "a.npz"
  cached(path, lambda: features)
  data = path.read_bytes()
  path.write_bytes(flip(data, len(data) // 2))
  stored, how = cached(path, never, check=False)
  assert how == "cached"
  for _ in range(2):
    with pytest.raises(InputError, match=r"a.npz: found damaged \(its checksum is another\), expected whole .*encode_speech.py"):
      stored[:2]
  path.write_bytes(data)
  np.testing.assert_array_equal(stored[:2], features[:2])
  for broken in (lambda: path.write_bytes(data[:-3000]), path.unlink):
    broken()
    with pytest.raises(InputError, match="a.npz: found .*expected speech features that stay"):
      stored[390:]


def test_open_leaves_on_disk_what_a_call_reads(tmp_path):
  features = logmel_features(LogMel(), cache_dir=tmp_path)
  stored = features.open(WAV, 31)
  assert isinstance(stored, StoredFeatures) and isinstance(features(WAV, 31), np.ndarray)
  np.testing.assert_array_equal(stored, features(WAV, 31))
  np.testing.assert_array_equal(stored[7:19], logmel_features(LogMel())(WAV, 31)[7:19])
  assert isinstance(logmel_features(LogMel()).open(WAV, 31), np.ndarray)  # No cache: in memory.
  (path,) = voices(tmp_path)
  path.write_bytes(flip(path.read_bytes(), path.stat().st_size // 2))
  frugal = logmel_features(LogMel(), cache_dir=tmp_path, encode_missing=False).open(WAV, 31)  # Not read yet.
  with pytest.raises(InputError, match="its checksum is another"):
    frugal[:5]
  np.testing.assert_array_equal(features.open(WAV, 31), stored)  # Rebuilt: it may encode.
