"""Whisper's encoder against PyTorch's transformers, its checkpoints, whole and broken, and long voices in windows."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import oracles
import pytest
from wav2vec2_checkpoints import make_wav
from whisper_checkpoints import CONFIG, REFERENCE, SECONDS, extract_mels, make_tensors, torch_hidden_states, write_checkpoint

from rsatalker_jax.errors import InputError
from rsatalker_jax.speech import load_whisper, whisper, whisper_features

ROOT = pathlib.Path(__file__).parents[2]
WINDOW = make_wav(16000 * SECONDS)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  return load_whisper(write_checkpoint(tmp_path_factory.mktemp("whisper")))


@pytest.mark.parametrize("num_mels", [20, 80])
def test_the_spectrogram_is_the_published_one(num_mels):
  wav = WINDOW * np.where(np.arange(len(WINDOW)) < 12000, 1e-6, 1).astype(np.float32)
  found = jax.jit(whisper.log_mel_spectrogram, static_argnums=1)(wav, num_mels)
  expected = extract_mels(wav, num_mels)
  assert expected.std() > 0.1 and expected.min() == pytest.approx(expected.max() - 2, abs=1e-5)  # The floor matters.
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_hidden_states_equal_pytorchs(loaded):
  module, params = loaded
  with np.load(REFERENCE) as reference:
    expected = reference["hidden"]
  assert expected.std() > 0.5
  np.testing.assert_allclose(jax.jit(module.apply)(params, WINDOW), expected, atol=1e-4)


@oracles.needs("torch")
def test_stored_reference_is_what_pytorch_computes():
  with np.load(REFERENCE) as reference:
    np.testing.assert_allclose(torch_hidden_states(WINDOW), reference["hidden"], atol=1e-5)


@pytest.mark.parametrize("frames", [10, 49, 50])
def test_a_voice_of_one_window(loaded, monkeypatch, frames):
  """Two hidden states a frame, in their order; the voice is filled up with silence."""
  module, params = loaded
  monkeypatch.setattr(whisper, "_GRAIN", 20)
  wav = make_wav(640 * frames - 100)
  found = whisper.encode_frames(module, params, wav, frames, margin=10)
  length = -(-2 * frames // 20) * 20
  states = module.apply(params, np.pad(wav, (0, length * 320 - len(wav))))
  assert found.shape == (frames, 64)
  np.testing.assert_allclose(found[:, :32], states[0 : 2 * frames : 2], atol=1e-5)
  np.testing.assert_allclose(found[:, 32:], states[1 : 2 * frames : 2], atol=1e-5)
  # What comes behind the frames is not heard.
  longer = np.concatenate([np.pad(wav, (0, 100)), make_wav(5000)])
  np.testing.assert_array_equal(whisper.encode_frames(module, params, longer, frames, margin=10), found)


@pytest.mark.parametrize("frames", [51, 120, 133])
def test_long_voices_are_encoded_in_windows_that_overlap(tmp_path, monkeypatch, frames):
  """Where no frame attends and positions say nothing, seams are nothing; and every window of any voice is as long as it may be at most."""
  tensors = make_tensors(CONFIG)
  tensors = {name: x * (0 if "out_proj" in name or "positions" in name else 1) for name, x in tensors.items()}
  module, params = load_whisper(write_checkpoint(tmp_path / "local", tensors))
  whole, _ = load_whisper(write_checkpoint(tmp_path / "whole", max_source_positions=400))
  monkeypatch.setattr(whisper, "_GRAIN", 20)
  lengths = []
  encode = whisper._encode
  monkeypatch.setattr(whisper, "_encode", lambda module, params, wav: lengths.append(len(wav)) or encode(module, params, wav))
  # Of constant loudness: each window's floor is the same.
  wav = make_wav(640 * frames)
  wav[: 640 * frames] = np.resize(make_wav(3200), 640 * frames)
  found = whisper.encode_frames(module, params, wav, frames, margin=8)
  assert len(lengths) == -(-(2 * frames - 16) // 84) and max(lengths) <= 32000 and len(set(lengths)) == 1
  params = {"params": {**params["params"], "embed_positions": {"embedding": np.zeros((400, 32), np.float32)}}}
  expected = np.asarray(whole.apply(params, np.pad(wav, (0, 640 * 40)))).reshape(-1, 64)[:frames]
  # What reaches over a seam is the convolutions' and the spectrogram's: a few hidden states, less than the margin. Silence begins at the end.
  np.testing.assert_allclose(found[:-2], expected[:-2], atol=2e-3)
  with pytest.raises(ValueError, match="margin=50"):
    whisper.encode_frames(module, params, wav, frames, margin=50)


def test_weights_in_8_bits(tmp_path, loaded):
  tensors, stored = make_tensors(CONFIG), {}
  for name, value in tensors.items():
    if name.endswith(("fc1.weight", "conv2.weight")):
      scale = np.abs(value).max(axis=tuple(range(1, value.ndim)), keepdims=True) / 127
      stored |= {name: np.round(value / scale).astype(np.int8), f"{name}_scale": scale.astype(np.float16)}
    else:
      stored[name] = value
  module, params = load_whisper(write_checkpoint(tmp_path / "8", stored))
  exact = np.asarray(loaded[1]["params"]["conv2"]["kernel"])
  np.testing.assert_allclose(params["params"]["conv2"]["kernel"], exact, atol=np.abs(exact).max() / 200)
  assert 0 < np.abs(module.apply(params, WINDOW) - loaded[0].apply(loaded[1], WINDOW)).max() < 0.1
  name = "model.encoder.layers.0.fc1.weight"
  for scale, message in ((None, "int8 with no scale"), (np.ones(48, np.float32), r"int8 with a scale of shape \(48,\)")):
    stored.pop(f"{name}_scale", None)
    changed = stored if scale is None else stored | {f"{name}_scale": scale}
    with pytest.raises(InputError, match=f"{name}: found {message}, expected {name}_scale, one for each of 48 outputs"):
      load_whisper(write_checkpoint(tmp_path / "8", changed))


def test_positions_need_not_be_stored(tmp_path):
  """They are Whisper's sinusoids then: sin and cos of t at the first of either half, and of t / 10000 at the last."""
  tensors = make_tensors(CONFIG)
  del tensors["model.encoder.embed_positions.weight"]
  _, params = load_whisper(write_checkpoint(tmp_path, tensors))
  found, t = params["params"]["embed_positions"]["embedding"], np.arange(100)
  assert found.shape == (100, 32)
  for column, expected in ((0, np.sin(t)), (15, np.sin(t / 1e4)), (16, np.cos(t)), (31, np.cos(t / 1e4))):
    np.testing.assert_allclose(found[:, column], expected, atol=1e-5)


def _drop(tensors, config):
  del tensors["model.encoder.layers.1.self_attn.k_proj.weight"]


def _add(tensors, config):
  tensors["model.encoder.layers.2.fc1.bias"] = np.ones(48, np.float32)


def _reshape(tensors, config):
  tensors["model.encoder.fc.weight"] = tensors.pop("model.encoder.conv1.weight")[:, :10]


def _lengthen(tensors, config):
  config["max_source_positions"] = 99


def _other_model(tensors, config):
  config["model_type"] = "wav2vec2"


def _other_activation(tensors, config):
  config["activation_function"] = "relu"


@pytest.mark.parametrize(
    "mistake, message",
    [
        (_drop, "model.safetensors: found 1 tensors missing: layers_1/self_attn/k_proj/kernel, expected what config.json describes"),
        (_add, "model.safetensors: found 1 tensors unknown: layers.2.fc1.bias"),
        (_reshape, "model.safetensors: found 1 tensors missing: conv1/kernel"),
        (_lengthen, r"found 1 tensors of another shape: embed_positions.weight \(100, 32\)"),
        (_other_model, "config.json: model_type: found 'wav2vec2', expected 'whisper'"),
        (_other_activation, "config.json: activation_function: found 'relu', expected 'gelu'"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path, mistake, message):
  tensors, config = make_tensors(CONFIG), dict(CONFIG)
  mistake(tensors, config)
  folder = write_checkpoint(tmp_path, tensors)
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(InputError, match=message):
    load_whisper(folder)


def test_a_folder_that_is_none_is_one_line(tmp_path):
  with pytest.raises(InputError, match="expected a folder with a Whisper checkpoint, or an id on the Hugging Face hub"):
    load_whisper(tmp_path / "none" / "there")
  with pytest.raises(InputError, match="config.json: found no such file, expected the configuration of a Whisper checkpoint"):
    load_whisper(tmp_path)


def test_features_are_kept_with_their_length(tmp_path):
  """Cut to whole frames, at 25 fps as they are, and never those of another length, which windows would make other."""
  folder = write_checkpoint(tmp_path / "checkpoint", max_source_positions=400)
  features = whisper_features(folder, cache_dir=tmp_path / "cache")
  wav = make_wav(640 * 30 + 17)
  found = features(wav, 30)
  module, params = load_whisper(folder)
  np.testing.assert_array_equal(found, whisper.encode_frames(module, params, wav[: 640 * 30], 30))
  assert found.dtype == np.float32 and features.path(wav, 30) != features.path(wav, 29)
  np.testing.assert_array_equal(whisper_features(folder, cache_dir=tmp_path / "cache", encode_missing=False)(wav, 30), found)


def test_the_demos_encoder():
  """Whole, of Whisper tiny.en's sizes, and it hears vowels apart that a level does not."""
  module, params = load_whisper(ROOT / "assets/whisper")
  assert dataclasses.asdict(module.config) == dict(
      num_mel_bins=80, d_model=384, encoder_layers=2, encoder_attention_heads=6, encoder_ffn_dim=1536, max_source_positions=1500,
      dtype="float32",
  )  # fmt: skip
  time = np.arange(32000) / 16000
  pulses = np.sin(2 * np.pi * 120 * time + 0.3 * np.sin(2 * np.pi * 4 * time)) ** 21

  def vowel(*formants):
    sound = sum(np.convolve(pulses, np.exp(-100 * time[:800]) * np.sin(2 * np.pi * f * time[:800]))[:32000] for f in formants)
    return (0.05 * sound / sound.std()).astype(np.float32)

  hear = lambda wav: whisper.encode_frames(module, params, wav, 50)[5:45]
  aah, eee = vowel(700, 1200, 2500), vowel(300, 2300, 3000)
  apart, louder = np.sqrt(np.mean((hear(aah) - hear(eee)) ** 2)), np.sqrt(np.mean((hear(aah) - hear(4 * aah)) ** 2))
  assert apart > 3 * louder
