"""Wav2Vec 2.0's checkpoints in Hugging Face's layout, from a folder or from the hub, to parameters of the Linen module."""

import dataclasses
import hashlib
import os
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from rsatalker_jax.errors import InputError
from rsatalker_jax.pickles import load_torch_tensors
from rsatalker_jax.speech.encoder_ids import EncoderId, EncoderIds
from rsatalker_jax.speech.wav2vec2 import Params, Wav2Vec2, Wav2Vec2Config

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
  folder = _find_folder(path_or_hub_id)
  config = read_config(folder)
  module = Wav2Vec2(dataclasses.replace(config, dtype=dtype or _default_dtype()))
  path = _find_weights(folder)
  wanted = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((16000,), jnp.float32))
  tensors = _read_safetensors(path) if path.suffix == ".safetensors" else load_torch_tensors(path)
  return module, {"params": _to_linen(path, tensors, wanted["params"])}


def checkpoint_id(path_or_hub_id: str | os.PathLike, known: EncoderIds) -> EncoderId:
  """Which encoder `load_wav2vec2` would load: a digest of its files' contents and the arithmetic's dtype.

  Files that `known` has seen as they are now are not read again, and where they are not on this machine (nothing is
  downloaded for this) it is the encoder that `known` has under the same name.

  Raises:
    InputError: no such folder or id, or no weights in it; or `known` has several of the name.
  """
  name = f"{path_or_hub_id} in {_default_dtype()}"
  folder = _find_local_folder(path_or_hub_id)
  if folder is None and (encoder := known.find_by_name(name)):
    return encoder
  folder = folder or _find_folder(path_or_hub_id)
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


def _find_folder(path_or_hub_id: str | os.PathLike) -> pathlib.Path:
  folder = pathlib.Path(path_or_hub_id)
  if folder.is_dir():
    return folder
  name = str(path_or_hub_id)
  if not _HUB_ID.fullmatch(name):
    raise InputError(name, "", "no such folder", "a folder with a Wav2Vec 2.0 checkpoint, or an id on the Hugging Face hub")
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
    raise InputError(name, "", found, "a Wav2Vec 2.0 checkpoint") from error


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_config(folder: str | os.PathLike) -> Wav2Vec2Config:
  """The sizes in a checkpoint's config.json, and whether its feature extractor normalises.

  Raises:
    InputError: if the file is missing or broken, or describes a model that is not supported.
  """
  from transformers import Wav2Vec2Config as HuggingFaceConfig
  from transformers import Wav2Vec2FeatureExtractor

  path = pathlib.Path(folder) / "config.json"
  if not path.is_file():
    raise InputError(path, "", "no such file", "the configuration of a Wav2Vec 2.0 checkpoint")
  try:
    given, _ = HuggingFaceConfig.get_config_dict(str(folder))
    theirs = HuggingFaceConfig.from_dict(given)
    normalize = True
    if (pathlib.Path(folder) / "preprocessor_config.json").is_file():
      normalize = Wav2Vec2FeatureExtractor.from_pretrained(str(folder)).do_normalize
  except (OSError, ValueError, TypeError) as error:
    raise InputError(path, "", _first_line(error), "the configuration of a Wav2Vec 2.0 checkpoint") from error
  if given.get("model_type") != "wav2vec2":
    raise InputError(path, "model_type", repr(given.get("model_type")), "'wav2vec2'")
  for key, expected in (("hidden_act", "gelu"), ("feat_extract_activation", "gelu"), ("add_adapter", False)):
    if getattr(theirs, key) != expected:
      raise InputError(path, key, repr(getattr(theirs, key)), repr(expected))
  if getattr(theirs, "adapter_attn_dim", None) is not None:
    raise InputError(path, "adapter_attn_dim", theirs.adapter_attn_dim, "null")
  names = {field.name for field in dataclasses.fields(Wav2Vec2Config)} - {"normalize", "dtype"}
  values = {name: getattr(theirs, name) for name in names}
  values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
  return Wav2Vec2Config(**values, normalize=normalize)


def _to_linen(path: pathlib.Path, tensors: dict[str, np.ndarray], wanted: Params) -> Params:
  """Renames and transposes tensors into the module's parameters; every one has to be there, and no other."""
  tensors = {name.removeprefix("wav2vec2."): value for name, value in tensors.items()}
  tensors = {name: value for name, value in tensors.items() if name.split(".")[0] not in _HEADS}
  _fold_weight_norm(path, tensors)
  found: dict[tuple[str, ...], tuple[str, np.ndarray]] = {}
  for name, value in tensors.items():
    *parts, kind = re.sub(r"\.(\d+)\.", r"_\1.", name).split(".")
    if kind == "weight":
      kind = "scale" if value.ndim == 1 else "kernel"  # Norms have vectors.
    found[(*parts, kind)] = name, value.T.astype(np.float32)  # (out, in) and (out, in, width) to Linen's order.
  expected = traverse_util.flatten_dict(wanted)
  missing = sorted("/".join(key) for key in expected.keys() - found.keys())
  extra = sorted(found[key][0] for key in found.keys() - expected.keys())
  wrong = [
      f"{found[key][0]} {found[key][1].T.shape}"
      for key in sorted(found.keys() & expected.keys())
      if found[key][1].shape != expected[key].shape
  ]
  for title, names in (("missing", missing), ("unknown", extra), ("of another shape", wrong)):
    if names:
      raise InputError(path, "", f"{len(names)} tensors {title}: {', '.join(names)}", "what config.json describes")
  return traverse_util.unflatten_dict({key: value for key, (_, value) in found.items()})


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
