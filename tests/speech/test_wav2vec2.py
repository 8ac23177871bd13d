"""Wav2Vec 2.0 against PyTorch's transformers, and its checkpoints, whole and broken."""

import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import oracles
import wav2vec2_checkpoints as checkpoints
from wav2vec2_checkpoints import FAMILIES, PADDED, REFERENCE, SAMPLES, make_tensors, make_wav, write_checkpoint

from rsatalker_jax.errors import InputError
from rsatalker_jax.speech import load_wav2vec2, to_frames, wav2vec2
from rsatalker_jax.speech.wav2vec2 import encode_voice

PADDED_WAV = np.pad(make_wav(), (0, PADDED - SAMPLES))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("checkpoints")
  return {family: write_checkpoint(root / family, family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_equal_pytorchs(folders, family):
  module, params = load_wav2vec2(folders[family])
  with np.load(REFERENCE) as reference:
    expected, expected_masked = reference[family], reference[f"{family}_masked"]
  assert expected.std() > 0.5  # Weights are such that something happens on the way.
  hidden = jax.jit(module.apply)(params, make_wav())
  assert hidden.shape == expected.shape == (module.config.num_frames(SAMPLES), 32)
  np.testing.assert_allclose(hidden, expected, atol=1e-4)
  masked = jax.jit(module.apply)(params, PADDED_WAV, SAMPLES)
  real = len(expected)
  np.testing.assert_allclose(masked[:real], expected_masked[:real], atol=1e-4)


@oracles.needs("torch")
@pytest.mark.parametrize("family", FAMILIES)
def test_stored_reference_is_what_pytorch_computes(folders, family):
  with np.load(REFERENCE) as reference:
    np.testing.assert_allclose(
        checkpoints.torch_hidden_states(folders[family], make_wav()), reference[family], atol=1e-5
    )


def test_padding_of_group_norms_family_is_pytorchs(folders):
  """Its extractor asks for no attention mask: voices are normalised without their padding, which then is seen."""
  pytest.importorskip("torch", reason="PyTorch is not installed")
  expected = checkpoints.torch_hidden_states(folders["base"], PADDED_WAV, SAMPLES, masked=False)
  module, params = load_wav2vec2(folders["base"])
  features = module.apply(params, wav2vec2.normalize_wav(PADDED_WAV, SAMPLES), method="extract")
  np.testing.assert_allclose(module.apply(params, features, method="contextualize"), expected, atol=1e-4)


def test_padding_is_kept_out(folders):
  """With `num_samples`, what lies behind the voice does not matter; with layer norm, nor does that there is something."""
  module, params = load_wav2vec2(folders["large"])
  apply = jax.jit(module.apply)
  noise = PADDED_WAV + np.where(np.arange(PADDED) < SAMPLES, 0, make_wav(PADDED, seed=9))
  hidden = apply(params, PADDED_WAV, SAMPLES)
  np.testing.assert_array_equal(hidden, apply(params, noise, SAMPLES))
  alone = apply(params, make_wav())
  np.testing.assert_allclose(hidden[: len(alone)], alone, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_voices(folders, family):
  """In one chunk, padded and masked, hidden states are those of the plain call; at 25 fps, in DualTalk's order."""
  module, params = load_wav2vec2(folders[family])
  wav = make_wav(11 * 16000 + 77)  # Longer than a piece of the convolutions.
  np.testing.assert_allclose(encode_voice(module, params, wav), jax.jit(module.apply)(params, wav), atol=1e-4)
  frames = 275

  @jax.jit
  def encode_at_once(params, wav):
    features = module.apply(params, wav2vec2.normalize_wav(wav), method="extract")
    return module.apply(params, to_frames(features, frames), method="contextualize")

  video = encode_voice(module, params, wav, num_frames=frames)
  assert video.shape == (frames, 32)
  np.testing.assert_allclose(video, encode_at_once(params, jnp.asarray(wav)), atol=1e-4)
  # Interpolating after the Transformer is something else.
  assert np.abs(video - to_frames(encode_voice(module, params, wav), frames)).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_meet_with_a_small_error(folders, family):
  module, params = load_wav2vec2(folders[family])
  wav = make_wav(5 * 16000 + 77)
  whole = np.asarray(jax.jit(module.apply)(params, wav))
  pieces = encode_voice(module, params, wav, chunk=100, margin=30)
  assert pieces.shape == whole.shape
  error = np.abs(pieces - whole).max(axis=1) / whole.std()
  # Random weights attend to all of the voice, of which a chunk sees two fifths: 0.48 and 0.12 were measured, and more in
  # docs/speech.md.
  assert 0 < error.max() < 0.6

  def jump(hidden, seams):
    """What the error changes by from the frame before a seam to the one behind it."""
    step = (hidden - whole)[seams] - (hidden - whole)[seams - 1]
    return np.sqrt(np.mean(step**2)) / whole.std()

  with_margin = jump(pieces, np.arange(70, len(whole) - 30, 40))
  without = jump(encode_voice(module, params, wav, chunk=100, margin=0), np.arange(100, len(whole), 100))
  assert with_margin < 0.15 and with_margin < 0.5 * without  # 0.09 and 0.03; 0.27 and 0.29 without margins.
  shifted = np.abs(pieces[:-1] - whole[1:]).max(axis=1) / whole.std()
  assert error.mean() < 0.1 * shifted.mean()  # No frame is out of place.
  with pytest.raises(ValueError, match="margin=50"):
    encode_voice(module, params, wav, chunk=100, margin=50)
  with pytest.raises(ValueError, match="do not make a frame"):
    encode_voice(module, params, wav[:300])


def test_bfloat16_is_close(folders):
  module, params = load_wav2vec2(folders["large"], dtype="bfloat16")
  rough = jax.jit(module.apply)(params, make_wav())
  exact = jax.jit(load_wav2vec2(folders["large"])[0].apply)(params, make_wav())
  assert rough.dtype == jnp.float32
  # 8 bits a number: half a percent an operation, a dozen layers deep.
  assert float(jnp.sqrt(jnp.mean((rough - exact) ** 2)) / exact.std()) < 0.05


@oracles.needs("torch")
def test_pytorch_files_equal_safetensors(folders, tmp_path):
  import torch

  tensors = make_tensors(FAMILIES["base"])
  # The position convolution under its newer names, and one tensor as a strided view of a larger storage.
  for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
    prefix = "wav2vec2.encoder.pos_conv_embed.conv"
    tensors[f"{prefix}.parametrizations.weight.{new}"] = tensors.pop(f"{prefix}.{old}")
  state = {name: torch.from_numpy(value) for name, value in tensors.items()}
  name = "wav2vec2.feature_projection.projection.weight"
  state[name] = torch.cat([state[name], state[name]]).T.contiguous().T[: len(state[name])]
  folder = write_checkpoint(tmp_path / "torch", "base")
  (folder / "model.safetensors").unlink()
  torch.save(state, folder / "pytorch_model.bin")
  _, params = load_wav2vec2(folder)
  _, expected = load_wav2vec2(folders["base"])
  chex.assert_trees_all_equal(params, expected)


def test_hub_ids_are_downloaded(folders, monkeypatch):
  import huggingface_hub

  asked = []

  def download(name, allow_patterns):
    asked.append(name)
    return str(folders["base"])

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  module, _ = load_wav2vec2("facebook/wav2vec2-base-960h")
  assert asked == ["facebook/wav2vec2-base-960h"] and module.config.hidden_size == 32


def _drop(tensors, config):
  del tensors["wav2vec2.encoder.layers.1.attention.k_proj.bias"]


def _add(tensors, config):
  tensors["wav2vec2.encoder.layers.7.layer_norm.weight"] = np.ones(32, np.float32)


def _reshape(tensors, config):
  tensors["wav2vec2.feature_projection.projection.weight"] = np.ones((32, 20), np.float32)


def _other_model(tensors, config):
  config["model_type"] = "hubert"


def _adapter(tensors, config):
  config["add_adapter"] = True


@pytest.mark.parametrize(
    "mistake, message",
    [
        (_drop, "model.safetensors: found 1 tensors missing: encoder/layers_1/attention/k_proj/bias, expected what"),
        (_add, "found 1 tensors unknown: encoder.layers.7.layer_norm.weight"),
        (_reshape, r"found 1 tensors of another shape: feature_projection.projection.weight (32, 20)"),
        (_other_model, "config.json: model_type: found 'hubert', expected 'wav2vec2'"),
        (_adapter, "config.json: add_adapter: found True, expected False"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path, mistake, message):
  tensors, config = make_tensors(FAMILIES["base"]), dict(FAMILIES["base"])
  mistake(tensors, config)
  folder = write_checkpoint(tmp_path, "base", tensors)
  (folder / "config.json").write_text(json.dumps(config))
  assert_one_line(folder, message)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: found no such file"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": '), "config.json: found "),
        (lambda folder: (folder / "model.safetensors").unlink(), "found no weights, expected model.safetensors or"),
        (lambda folder: cut(folder / "model.safetensors"), "expected a safetensors file"),
        (lambda folder: write_bin(folder, b"\x80\x02]."), "pytorch_model.bin: found "),
        (lambda folder: write_bin(folder, evil_archive()), "the name os.system, which is not on the allow-list"),
    ],
)
def test_broken_checkpoints(tmp_path, damage, message):
  folder = write_checkpoint(tmp_path, "base")
  damage(folder)
  assert_one_line(folder, message)


def test_neither_a_folder_nor_an_id():
  assert_one_line("./no/such/folder", "./no/such/folder: found no such folder, expected a folder with a Wav2Vec 2.0")


def assert_one_line(path, message):
  with pytest.raises(InputError) as error:
    load_wav2vec2(path)
  assert message in str(error.value) and "\n" not in str(error.value)


def cut(path: pathlib.Path):
  path.write_bytes(path.read_bytes()[:-100])


def write_bin(folder: pathlib.Path, content: bytes):
  (folder / "model.safetensors").unlink()
  (folder / "pytorch_model.bin").write_bytes(content)


def evil_archive() -> bytes:
  import io
  import zipfile

  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("model/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
  return file.getvalue()
