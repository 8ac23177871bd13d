"""Wav2Vec 2.0's and Whisper's checkpoints in Hugging Face's layout, from a folder or from the hub, to parameters of the Linen modules.

A weight can be stored in 8 bits, int8 `NAME.weight` with `NAME.weight_scale`, a factor for each output (compressed-tensors' layout).
"""

import dataclasses
import hashlib
import os
import pathlib
import re
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from rsatalker_jax.errors import InputError
from rsatalker_jax.pickles import load_torch_tensors
from rsatalker_jax.speech.encoder_ids import EncoderId, EncoderIds
from rsatalker_jax.speech.wav2vec2 import Params, Wav2Vec2, Wav2Vec2Config
from rsatalker_jax.speech.whisper import Whisper, WhisperConfig, sinusoids

_SETTINGS = ("config.json", "preprocessor_config.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # In the order of preference.

_HUB_ID = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")
# Seconds after which a file's time of change tells it from a later one: file systems count time in steps of up to 2 s.
_SETTLED = 3.0

# Tensors of training heads, which an encoder does not need.
_HEADS = ("lm_head", "masked_spec_embed", "quantizer", "project_hid", "project_q", "projector", "classifier")


def load_wav2vec2(path_or_hub_id: str | os.PathLike, *, dtype: str | None = None) -> tuple[Wav2Vec2, Params]:
  """Reads a Hugging Face checkpoint: `module.apply(params, wav (S,)) -> (T50, D)`, and see `encode_voice`.

  Args:
    path_or_hub_id: a folder with config.json, preprocessor_config.json (optional) and model.safetensors or
      pytorch_model.bin, or an id on the hub, "facebook/wav2vec2-base-960h", whose files are then downloaded.
    dtype: of the arithmetic; None is bfloat16 on GPUs and TPUs, float32 elsewhere.

  Raises:
    InputError: no such folder or id, another kind of model, or tensors that are missing, unknown or of another shape.
  """
  folder = _find_folder(path_or_hub_id, "Wav2Vec 2.0")
  config = read_config(folder)
  module = Wav2Vec2(dataclasses.replace(config, dtype=dtype or _default_dtype()))
  path, tensors = _read_tensors(folder)
  tensors = {name.removeprefix("wav2vec2."): value for name, value in tensors.items()}
  tensors = {name: value for name, value in tensors.items() if name.split(".")[0] not in _HEADS}
  _fold_weight_norm(path, tensors)
  return module, _to_linen(path, tensors, module, samples=16000)


def load_whisper(path_or_hub_id: str | os.PathLike, *, dtype: str | None = None) -> tuple[Whisper, Params]:
  """Reads the encoder of a Whisper checkpoint: `module.apply(params, wav (S,)) -> (T50, D)`, and see `whisper.encode_frames`.

  Args:
    path_or_hub_id: a folder with config.json and model.safetensors or pytorch_model.bin, or an id on the hub,
      "openai/whisper-tiny.en", whose files are then downloaded. Decoder and encodings of positions need not be in it.
    dtype: of the arithmetic; None is bfloat16 on GPUs and TPUs, float32 elsewhere.

  Raises:
    InputError: as `load_wav2vec2`.
  """
  folder = _find_folder(path_or_hub_id, "Whisper")
  module = Whisper(dataclasses.replace(read_whisper_config(folder), dtype=dtype or _default_dtype()))
  path, tensors = _read_tensors(folder)
  tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
  tensors = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.split(".")[0] not in ("decoder", "proj_out")}
  tensors.setdefault("embed_positions.weight", sinusoids(module.config.max_source_positions, module.config.d_model))
  return module, _to_linen(path, tensors, module, samples=640)


def checkpoint_id(path_or_hub_id: str | os.PathLike, known: EncoderIds) -> EncoderId:
  """Which encoder `load_wav2vec2` or `load_whisper` would load: a digest of its files' contents and the arithmetic's dtype.

  Files that `known` has seen as they are now are not read again, and where they are not on this machine (nothing is
  downloaded for this) it is the encoder that `known` has under the same name.

  Raises:
    InputError: no such folder or id, or no weights in it; or `known` has several of the name.
  """
  name = f"{path_or_hub_id} in {_default_dtype()}"
  folder = _find_local_folder(path_or_hub_id)
  if folder is None and (encoder := known.find_by_name(name)):
    return encoder
  folder = folder or _find_folder(path_or_hub_id, "speech encoder's")
  files = [path for path in (*(folder / setting for setting in _SETTINGS), _find_weights(folder)) if path.is_file()]
  stamp = _stamp(files)
  if stamp and (encoder := known.find(name, stamp)):
    return encoder
  digest = hashlib.sha256(_default_dtype().encode())
  for path in files:
    with path.open("rb") as file:
      digest.update(f" {path.name} ".encode() + hashlib.file_digest(file, "sha256").digest())
  return EncoderId(name, digest.hexdigest(), stamp if _stamp(files) == stamp else "")


def _stamp(files: list[pathlib.Path]) -> str:
  """Names, sizes and times of change; empty where a file is so new that a second change might leave the time as it is."""
  stats = [path.stat() for path in files]
  if time.time() - max(stat.st_mtime for stat in stats) < _SETTLED:
    return ""
  return ", ".join(f"{path.name} {stat.st_size} {stat.st_mtime_ns}" for path, stat in zip(files, stats))


def _default_dtype() -> str:
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _find_weights(folder: pathlib.Path) -> pathlib.Path:
  for name in _WEIGHTS:
    if (folder / name).is_file():
      return folder / name
  raise InputError(folder, "", "no weights", " or ".join(_WEIGHTS))


def _read_tensors(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
  """The file of a folder's weights, and what is in it, in floating point."""
  path = _find_weights(folder)
  tensors = _read_safetensors(path) if path.suffix == ".safetensors" else load_torch_tensors(path)
  for name in [name for name, value in tensors.items() if value.dtype == np.int8]:
    scale = tensors.pop(f"{name}_scale", None)
    weight = tensors[name]
    if scale is None or scale.shape != (len(weight), *(1,) * (weight.ndim - 1)):
      found = "no scale" if scale is None else f"a scale of shape {scale.shape}"
      raise InputError(path, name, f"int8 with {found}", f"{name}_scale, one for each of {len(weight)} outputs")
    tensors[name] = weight.astype(np.float32) * scale.astype(np.float32)
  return path, tensors


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  import safetensors
  import safetensors.numpy

  try:
    return safetensors.numpy.load_file(path)
  except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
    raise InputError(path, "", str(error), "a safetensors file") from error


def _find_local_folder(path_or_hub_id: str | os.PathLike) -> pathlib.Path | None:
  """The folder, or what earlier downloads of the id have left here; None where there is nothing to load."""
  folder = pathlib.Path(path_or_hub_id)
  if not folder.is_dir():
    if not _HUB_ID.fullmatch(str(path_or_hub_id)):
      return None
    import huggingface_hub
    from huggingface_hub import errors

    try:
      folder = pathlib.Path(huggingface_hub.snapshot_download(str(path_or_hub_id), local_files_only=True))
    except (OSError, ValueError, errors.HfHubHTTPError):
      return None
  return folder if any((folder / name).is_file() for name in _WEIGHTS) else None


def _find_folder(path_or_hub_id: str | os.PathLike, kind: str) -> pathlib.Path:
  folder = pathlib.Path(path_or_hub_id)
  if folder.is_dir():
    return folder
  name = str(path_or_hub_id)
  if not _HUB_ID.fullmatch(name):
    raise InputError(name, "", "no such folder", f"a folder with a {kind} checkpoint, or an id on the Hugging Face hub")
  import huggingface_hub
  from huggingface_hub import errors

  try:
    for weights in _WEIGHTS:  # Older checkpoints have no safetensors.
      found = pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=[*_SETTINGS, weights]))
      if (found / weights).is_file():
        break
    return found
  except (OSError, ValueError, errors.HfHubHTTPError) as error:  # No network, no such id, a name the hub forbids.
    found = f"no such folder, nor on the hub ({_first_line(error)})"
    raise InputError(name, "", found, f"a {kind} checkpoint") from error


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_config(folder: str | os.PathLike) -> Wav2Vec2Config:
  """The sizes in a checkpoint's config.json, and whether its feature extractor normalises.

  Raises:
    InputError: if the file is missing or broken, or describes a model that is not supported.
  """
  from transformers import Wav2Vec2Config as HuggingFaceConfig
  from transformers import Wav2Vec2FeatureExtractor

  path, theirs = _read_config(folder, HuggingFaceConfig, "wav2vec2", "Wav2Vec 2.0")
  normalize = True
  try:
    if (pathlib.Path(folder) / "preprocessor_config.json").is_file():
      normalize = Wav2Vec2FeatureExtractor.from_pretrained(str(folder)).do_normalize
  except (OSError, ValueError, TypeError) as error:
    raise InputError(path, "", _first_line(error), "the configuration of a Wav2Vec 2.0 checkpoint") from error
  for key, expected in (("hidden_act", "gelu"), ("feat_extract_activation", "gelu"), ("add_adapter", False)):
    if getattr(theirs, key) != expected:
      raise InputError(path, key, repr(getattr(theirs, key)), repr(expected))
  if getattr(theirs, "adapter_attn_dim", None) is not None:
    raise InputError(path, "adapter_attn_dim", theirs.adapter_attn_dim, "null")
  names = {field.name for field in dataclasses.fields(Wav2Vec2Config)} - {"normalize", "dtype"}
  values = {name: getattr(theirs, name) for name in names}
  values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
  return Wav2Vec2Config(**values, normalize=normalize)


def read_whisper_config(folder: str | os.PathLike) -> WhisperConfig:
  """The sizes in a checkpoint's config.json.

  Raises:
    InputError: as `read_config`.
  """
  from transformers import WhisperConfig as HuggingFaceConfig

  path, theirs = _read_config(folder, HuggingFaceConfig, "whisper", "Whisper")
  if theirs.activation_function != "gelu":
    raise InputError(path, "activation_function", repr(theirs.activation_function), "'gelu'")
  names = {field.name for field in dataclasses.fields(WhisperConfig)} - {"dtype"}
  return WhisperConfig(**{name: getattr(theirs, name) for name in names})


def _read_config(folder: str | os.PathLike, kind: Any, model_type: str, title: str) -> tuple[pathlib.Path, Any]:
  """config.json and what it says, in a class of transformers."""
  path = pathlib.Path(folder) / "config.json"
  if not path.is_file():
    raise InputError(path, "", "no such file", f"the configuration of a {title} checkpoint")
  try:
    given, _ = kind.get_config_dict(str(folder))
    theirs = kind.from_dict(given)
  except (OSError, ValueError, TypeError) as error:
    raise InputError(path, "", _first_line(error), f"the configuration of a {title} checkpoint") from error
  if given.get("model_type") != model_type:
    raise InputError(path, "model_type", repr(given.get("model_type")), repr(model_type))
  return path, theirs


def _to_linen(path: pathlib.Path, tensors: dict[str, np.ndarray], module: nn.Module, samples: int) -> Params:
  """Renames and transposes tensors into the parameters of a module that takes so many samples; every one has to be there, and no other."""
  wanted = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((samples,), jnp.float32))["params"]
  found: dict[tuple[str, ...], tuple[str, np.ndarray]] = {}
  for name, value in tensors.items():
    *parts, kind = re.sub(r"\.(\d+)\.", r"_\1.", name).split(".")
    value = value.astype(np.float32)
    if parts == ["embed_positions"]:
      found[(*parts, "embedding")] = name, value
      continue
    if kind == "weight":
      kind = "scale" if value.ndim == 1 else "kernel"  # Norms have vectors.
    found[(*parts, kind)] = name, value.T  # (out, in) and (out, in, width) to Linen's order.
  expected = traverse_util.flatten_dict(wanted)
  missing = sorted("/".join(key) for key in expected.keys() - found.keys())
  extra = sorted(found[key][0] for key in found.keys() - expected.keys())
  wrong = [
      f"{found[key][0]} {tensors[found[key][0]].shape}"
      for key in sorted(found.keys() & expected.keys())
      if found[key][1].shape != expected[key].shape
  ]
  for title, names in (("missing", missing), ("unknown", extra), ("of another shape", wrong)):
    if names:
      raise InputError(path, "", f"{len(names)} tensors {title}: {', '.join(names)}", "what config.json describes")
  return {"params": traverse_util.unflatten_dict({key: value for key, (_, value) in found.items()})}


def _fold_weight_norm(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
  """The position convolution's weight g v / ||v|| (norm over all but the width), under both of PyTorch's namings."""
  prefix = "encoder.pos_conv_embed.conv"
  for length, direction in (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")):
    names = f"{prefix}.{length}", f"{prefix}.{direction}"
    if all(name in tensors for name in names):
      g, v = (tensors.pop(name).astype(np.float32) for name in names)
      if v.ndim != 3 or g.shape != (1, 1, v.shape[2]):
        raise InputError(path, names[0], g.shape, f"(1, 1, {v.shape[-1]}), one length for each tap")
      tensors[f"{prefix}.weight"] = g * v / np.linalg.norm(v, axis=(0, 1), keepdims=True)
