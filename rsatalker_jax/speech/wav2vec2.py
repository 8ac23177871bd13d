"""Wav2Vec 2.0 (Baevski et al. 2020) in Linen, frozen, with Hugging Face's checkpoints.

Module and parameter names are Hugging Face's, so that a checkpoint is read by renaming its tensors. Both families are here:
base (group norm in the first convolution, norms after each block) and large-lv60 (layer norm in every convolution, norms
before each block).
"""

import dataclasses
import os
import pathlib
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Int

from rsatalker_jax.errors import InputError
from rsatalker_jax.pickles import load_torch_tensors
from rsatalker_jax.speech.logmel import to_frames

Params = dict[str, Any]

# Tensors of training heads, which an encoder does not need.
_HEADS = ("lm_head", "masked_spec_embed", "quantizer", "project_hid", "project_q", "projector", "classifier")


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
  """Sizes and switches, named as in `transformers.Wav2Vec2Config`.

  Attributes:
    conv_dim, conv_kernel, conv_stride: of the convolutions on the waveform; their strides multiply to 320, hence 50 Hz.
    conv_bias: whether they have biases.
    feat_extract_norm: "group" (first convolution alone, per channel over time) or "layer" (every one, over channels).
    do_stable_layer_norm: norms before the blocks instead of after them.
    hidden_size: D.
    num_hidden_layers, num_attention_heads, intermediate_size: of the Transformer.
    num_conv_pos_embeddings, num_conv_pos_embedding_groups: kernel and groups of the convolution that encodes positions.
    layer_norm_eps: of all norms but those between the convolutions.
    normalize: whether the waveform is brought to mean 0 and variance 1 first (the checkpoint's feature extractor says).
    dtype: of the arithmetic, "float32" or "bfloat16"; norms and the softmax are float32, and so is the output.
  """

  conv_dim: tuple[int, ...] = (512,) * 7
  conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
  conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
  conv_bias: bool = False
  feat_extract_norm: str = "group"
  do_stable_layer_norm: bool = False
  hidden_size: int = 768
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  intermediate_size: int = 3072
  num_conv_pos_embeddings: int = 128
  num_conv_pos_embedding_groups: int = 16
  layer_norm_eps: float = 1e-5
  normalize: bool = True
  dtype: str = "float32"

  def num_frames(self, samples: int | Array) -> int | Array:
    """Frames that the convolutions make of so many samples: about 50 a second."""
    for kernel, stride in zip(self.conv_kernel, self.conv_stride):
      samples = (samples - kernel) // stride + 1
    return samples


class Wav2Vec2(nn.Module):
  """The encoder: a voice to hidden states of the last layer. Batches by `jax.vmap`.

  Attributes:
    config: sizes and switches.
  """

  config: Wav2Vec2Config

  def setup(self):
    self.feature_extractor = _FeatureExtractor(self.config)
    self.feature_projection = _FeatureProjection(self.config)
    self.encoder = _Encoder(self.config)

  def __call__(
      self, wav: Float[Array, "S"], num_samples: Int[Array, ""] | None = None, *, num_frames: int | None = None
  ) -> Float[Array, "T D"]:
    """Hidden states at 50 Hz, or at any other rate.

    Args:
      wav: samples at 16 kHz.
      num_samples: how many of them are the voice; the rest is padding, which is kept out of the attention. None: all.
        Checkpoints with group norm were trained without attention masks: give them zeros and no `num_samples`.
      num_frames: the convolutions' features are first resampled to so many frames, linearly, first on first and last on
        last, as FaceFormer, CodeTalker and DualTalk do for 25 fps. None leaves them at 50 Hz. Not with `num_samples`.
    """
    c = self.config
    if num_samples is not None and num_frames is not None:
      raise ValueError(f"{num_frames=} cannot be combined with num_samples: frames would mix voice and padding")
    if c.normalize:
      wav = normalize_wav(wav, num_samples)
    features = self.feature_extractor(wav)
    if num_frames is not None:
      features = to_frames(features, num_frames)
    visible = None
    if num_samples is not None:
      visible = jnp.arange(features.shape[0]) < c.num_frames(num_samples)
    return self.encoder(self.feature_projection(features), visible).astype(jnp.float32)


def normalize_wav(wav: Float[Array, "S"], num_samples: Int[Array, ""] | None = None) -> Float[Array, "S"]:
  """Mean 0 and variance 1 over the voice, zeros behind it (`transformers.Wav2Vec2FeatureExtractor`)."""
  used = jnp.ones(wav.shape, bool) if num_samples is None else jnp.arange(wav.shape[0]) < num_samples
  mean = jnp.mean(wav, where=used)
  variance = jnp.mean((wav - mean) ** 2, where=used)
  return jnp.where(used, (wav - mean) / jnp.sqrt(variance + 1e-7), 0)


# Parameters are only ever loaded; their initial values matter to tests alone.


class _ConvLayer(nn.Module):
  config: Wav2Vec2Config
  layer: int

  @nn.compact
  def __call__(self, x):
    c, i = self.config, self.layer
    conv = nn.Conv(
        c.conv_dim[i], (c.conv_kernel[i],), c.conv_stride[i], "VALID", use_bias=c.conv_bias, dtype=c.dtype, name="conv"
    )
    x = conv(x)
    if c.feat_extract_norm == "layer":
      x = nn.LayerNorm(epsilon=1e-5, name="layer_norm")(x)
    elif i == 0:  # Group norm with a group per channel: each channel over time.
      norm = nn.GroupNorm(num_groups=None, group_size=1, epsilon=1e-5, use_fast_variance=False, name="layer_norm")
      x = norm(x[None])[0]
    return nn.gelu(x.astype(c.dtype), approximate=False)


class _FeatureExtractor(nn.Module):
  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, wav: Float[Array, "S"]) -> Float[Array, "T50 C"]:
    x = wav[:, None]
    for i in range(len(self.config.conv_dim)):
      x = _ConvLayer(self.config, i, name=f"conv_layers_{i}")(x)
    return x


class _FeatureProjection(nn.Module):
  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, x):
    c = self.config
    x = nn.LayerNorm(epsilon=c.layer_norm_eps, name="layer_norm")(x)
    return nn.Dense(c.hidden_size, dtype=c.dtype, name="projection")(x)


class _PositionalConv(nn.Module):
  """Encodes positions by a wide grouped convolution; for an even kernel the last frame is dropped."""

  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, x):
    c = self.config
    kernel = c.num_conv_pos_embeddings
    padding = [(kernel // 2, kernel // 2 - (kernel % 2 == 0))]
    groups = c.num_conv_pos_embedding_groups
    conv = nn.Conv(
        c.hidden_size, (kernel,), padding=padding, feature_group_count=groups, dtype=c.dtype, name="conv"
    )
    return nn.gelu(conv(x), approximate=False)


class _Attention(nn.Module):
  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, x, visible):
    c = self.config
    size = c.hidden_size // c.num_attention_heads
    project = lambda name: nn.Dense(c.hidden_size, dtype=c.dtype, name=name)(x).reshape(x.shape[0], -1, size)
    query, key, value = project("q_proj") * size**-0.5, project("k_proj"), project("v_proj")
    logits = jnp.einsum("qhd,khd->hqk", query, key).astype(jnp.float32)
    if visible is not None:
      logits = jnp.where(visible, logits, -1e9)
    mixed = jnp.einsum("hqk,khd->qhd", nn.softmax(logits).astype(c.dtype), value)
    return nn.Dense(c.hidden_size, dtype=c.dtype, name="out_proj")(mixed.reshape(x.shape))


class _FeedForward(nn.Module):
  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, x):
    c = self.config
    x = nn.Dense(c.intermediate_size, dtype=c.dtype, name="intermediate_dense")(x)
    return nn.Dense(c.hidden_size, dtype=c.dtype, name="output_dense")(nn.gelu(x, approximate=False))


class _EncoderLayer(nn.Module):
  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, x, visible):
    c = self.config
    norm = lambda name: nn.LayerNorm(epsilon=c.layer_norm_eps, name=name)
    attention, feed_forward = _Attention(c, name="attention"), _FeedForward(c, name="feed_forward")
    before, after = norm("layer_norm"), norm("final_layer_norm")
    if c.do_stable_layer_norm:
      x = x + attention(before(x), visible)
      return x + feed_forward(after(x))
    x = before(x + attention(x, visible))
    return after(x + feed_forward(x))


class _Encoder(nn.Module):
  config: Wav2Vec2Config

  @nn.compact
  def __call__(self, x, visible):
    c = self.config
    norm = nn.LayerNorm(epsilon=c.layer_norm_eps, name="layer_norm")
    if visible is not None:
      x = jnp.where(visible[:, None], x, 0)
    x = x + _PositionalConv(c, name="pos_conv_embed")(x)
    if not c.do_stable_layer_norm:
      x = norm(x)
    for i in range(c.num_hidden_layers):
      x = _EncoderLayer(c, name=f"layers_{i}")(x, visible)
    return norm(x) if c.do_stable_layer_norm else x


# ---- Long audio ----


def encode_in_chunks(
    apply,
    params: Params,
    config: Wav2Vec2Config,
    wav: Float[np.ndarray, "S"],
    *,
    chunk_seconds: float = 30.0,
    margin_seconds: float = 4.0,
) -> Float[np.ndarray, "T50 D"]:
  """Hidden states at 50 Hz of audio of any length: in chunks that overlap, of each of which the middle is kept.

  Memory is that of one chunk, where attention over the whole would grow with the square. What lies farther than
  `margin_seconds` from a frame cannot reach it for certain; docs/speech.md has the error that this makes at the seams.

  Args:
    apply: `module.apply`, jitted, with a config of `normalize=False`; the whole is normalised here.
    params, config: the encoder's.
    wav: samples at 16 kHz.
    chunk_seconds, margin_seconds: length of a chunk, and how much at its ends is not kept (but at the ends of the audio).
  """
  hop = int(np.prod(config.conv_stride))
  per_second = 16000 / hop
  total = config.num_frames(len(wav))
  frames, margin = round(chunk_seconds * per_second), round(margin_seconds * per_second)
  if not 0 < 2 * margin < frames:
    raise ValueError(f"{margin_seconds=} must be less than half of {chunk_seconds=}")
  if config.normalize:
    wav = np.asarray(normalize_wav(jnp.asarray(wav)))
  if total <= frames:
    return np.asarray(apply(params, wav))
  # All chunks are alike in length, for one compilation: the last one ends with the audio.
  samples = (frames - 1) * hop + (len(wav) - (total - 1) * hop)
  starts = [*range(0, total - frames, frames - 2 * margin), total - frames]
  parts, kept = [], 0
  for start in starts:
    hidden = np.asarray(apply(params, wav[start * hop : start * hop + samples]))
    end = total if start + frames == total else start + frames - margin
    parts.append(hidden[kept - start : end - start])
    kept = end
  return np.concatenate(parts)


# ---- Checkpoints ----


def load_wav2vec2(path_or_hub_id: str | os.PathLike, *, dtype: str | None = None) -> tuple[Wav2Vec2, Params]:
  """Reads a Hugging Face checkpoint: `module.apply(params, wav (S,)) -> (T50, D)`.

  Args:
    path_or_hub_id: a folder with config.json, preprocessor_config.json (optional) and model.safetensors or
      pytorch_model.bin, or an id on the hub, "facebook/wav2vec2-base-960h", whose files are then downloaded.
    dtype: of the arithmetic; None is bfloat16 on GPUs and TPUs, float32 elsewhere.

  Raises:
    InputError: no such folder or id, another kind of model, or tensors that are missing, unknown or of another shape.
  """
  folder = _find_folder(path_or_hub_id)
  config = read_config(folder)
  if dtype is None:
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  module = Wav2Vec2(dataclasses.replace(config, dtype=dtype))
  path = next((folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()), None)
  if path is None:
    raise InputError(folder, "", "no weights", "model.safetensors or pytorch_model.bin")
  wanted = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((16000,), jnp.float32))
  tensors = _read_safetensors(path) if path.suffix == ".safetensors" else load_torch_tensors(path)
  return module, {"params": _to_linen(path, tensors, wanted["params"])}


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  import safetensors
  import safetensors.numpy

  try:
    return safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise InputError(path, "", str(error), "a safetensors file") from error


def _find_folder(path_or_hub_id: str | os.PathLike) -> pathlib.Path:
  folder = pathlib.Path(path_or_hub_id)
  if folder.is_dir():
    return folder
  name = str(path_or_hub_id)
  if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
    raise InputError(name, "", "no such folder", "a folder with a Wav2Vec 2.0 checkpoint, or an id on the Hugging Face hub")
  import huggingface_hub
  from huggingface_hub import errors

  try:
    files = ["config.json", "preprocessor_config.json", "model.safetensors"]
    found = pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=files))
    if not (found / "model.safetensors").is_file():  # Older checkpoints have no safetensors.
      found = pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=[*files[:2], "pytorch_model.bin"]))
    return found
  except (OSError, ValueError, errors.HfHubHTTPError) as error:  # No network, no such id, a name the hub forbids.
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(name, "", f"no such folder, nor on the hub ({reason})", "a Wav2Vec 2.0 checkpoint") from error


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
    raise InputError(path, "", str(error).strip().splitlines()[0], "the configuration of a Wav2Vec 2.0 checkpoint") from error
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
  found = {}
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
