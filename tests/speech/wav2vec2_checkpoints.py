"""Small Wav2Vec 2.0 checkpoints with seeded weights, of both families, and what PyTorch makes of them.

    python tests/speech/wav2vec2_checkpoints.py

writes tests/speech/wav2vec2_reference.npz with PyTorch's hidden states (tested with torch 2.13.0, transformers 5.23.0), so that
parity is tested where torch is absent, too.
"""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

REFERENCE = pathlib.Path(__file__).with_name("wav2vec2_reference.npz")
SAMPLES, PADDED = 9000, 12000

_SIZES = dict(
    model_type="wav2vec2",
    conv_dim=[24] * 7,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    num_feat_extract_layers=7,
)
FAMILIES = {
    # As facebook/wav2vec2-base-960h …
    "base": _SIZES | dict(feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False),
    # … and as facebook/wav2vec2-large-960h-lv60-self.
    "large": _SIZES | dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
}


def make_wav(samples: int = SAMPLES, seed: int = 5) -> np.ndarray:
  """A voice-like sum of tones with noise."""
  time = np.arange(samples) / 16000
  tones = sum(np.sin(2 * np.pi * f * time + f) / (1 + i) for i, f in enumerate((140, 280, 730, 1900)))
  noise = np.random.default_rng(seed).normal(size=samples)
  return (0.1 * tones * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time)) + 0.01 * noise + 0.02).astype(np.float32)


def tensor_shapes(config: dict) -> dict[str, tuple[int, ...]]:
  """Names and shapes of a checkpoint of Wav2Vec2ForCTC, as older versions of PyTorch saved it."""
  d, inner, convs, taps = config["hidden_size"], config["intermediate_size"], config["conv_dim"], config["num_conv_pos_embeddings"]
  kernels = (10, 3, 3, 3, 3, 2, 2)
  shapes = {"masked_spec_embed": (d,)}
  for i, (kernel, width) in enumerate(zip(kernels, convs)):
    prefix = f"feature_extractor.conv_layers.{i}"
    shapes[f"{prefix}.conv.weight"] = (width, convs[i - 1] if i else 1, kernel)
    if config["conv_bias"]:
      shapes[f"{prefix}.conv.bias"] = (width,)
    if i == 0 or config["feat_extract_norm"] == "layer":
      shapes |= {f"{prefix}.layer_norm.weight": (width,), f"{prefix}.layer_norm.bias": (width,)}
  norm = lambda name, width=d: {f"{name}.weight": (width,), f"{name}.bias": (width,)}
  dense = lambda name, out, given: {f"{name}.weight": (out, given), f"{name}.bias": (out,)}
  shapes |= norm("feature_projection.layer_norm", convs[-1]) | dense("feature_projection.projection", d, convs[-1])
  conv = "encoder.pos_conv_embed.conv"
  shapes |= {f"{conv}.bias": (d,), f"{conv}.weight_g": (1, 1, taps)}
  shapes |= {f"{conv}.weight_v": (d, d // config["num_conv_pos_embedding_groups"], taps)}
  shapes |= norm("encoder.layer_norm")
  for i in range(config["num_hidden_layers"]):
    prefix = f"encoder.layers.{i}"
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
      shapes |= dense(f"{prefix}.attention.{name}", d, d)
    shapes |= norm(f"{prefix}.layer_norm") | norm(f"{prefix}.final_layer_norm")
    shapes |= dense(f"{prefix}.feed_forward.intermediate_dense", inner, d)
    shapes |= dense(f"{prefix}.feed_forward.output_dense", d, inner)
  shapes = {f"wav2vec2.{name}": shape for name, shape in shapes.items()}
  return shapes | dense("lm_head", 11, d)


def make_tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
  """Weights of order one per input, norms near one: every part matters to the output."""
  rng = np.random.default_rng(seed)
  tensors = {}
  for name, shape in sorted(tensor_shapes(config).items()):
    value = rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))
    if name.endswith(("norm.weight", "weight_g")):
      value = 1 + 0.2 * value
    elif len(shape) == 1:
      value = 0.1 * value
    tensors[name] = value.astype(np.float32)
  return tensors


def write_checkpoint(folder: pathlib.Path, family: str, tensors: dict[str, np.ndarray] | None = None) -> pathlib.Path:
  """config.json, preprocessor_config.json and model.safetensors in Hugging Face's layout."""
  folder.mkdir(parents=True, exist_ok=True)
  config = FAMILIES[family]
  (folder / "config.json").write_text(json.dumps(config))
  extractor = dict(feature_extractor_type="Wav2Vec2FeatureExtractor", do_normalize=True, sampling_rate=16000,
                   feature_size=1, padding_value=0.0, return_attention_mask=family == "large")
  (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
  save_file(make_tensors(config) if tensors is None else tensors, folder / "model.safetensors")
  return folder


def torch_hidden_states(
    folder: pathlib.Path, wav: np.ndarray, num_samples: int | None = None, *, masked: bool = True
) -> np.ndarray:
  """What PyTorch's transformers make of a voice (the first `num_samples` of `wav`; behind it is padding)."""
  import torch
  from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

  model = Wav2Vec2Model.from_pretrained(str(folder), attn_implementation="eager").eval()
  extractor = Wav2Vec2FeatureExtractor.from_pretrained(str(folder))
  given = extractor(wav[:num_samples], sampling_rate=16000, return_tensors="pt", return_attention_mask=True,
                    padding="max_length", max_length=len(wav))
  mask = None if num_samples is None or not masked else given["attention_mask"]
  with torch.no_grad():
    return model(given["input_values"], attention_mask=mask).last_hidden_state[0].numpy()


def main() -> None:
  import tempfile

  arrays = {}
  for family in FAMILIES:
    with tempfile.TemporaryDirectory() as folder:
      path = write_checkpoint(pathlib.Path(folder), family)
      arrays[family] = torch_hidden_states(path, make_wav())
      arrays[f"{family}_masked"] = torch_hidden_states(path, np.pad(make_wav(), (0, PADDED - SAMPLES)), SAMPLES)
  np.savez_compressed(REFERENCE, **arrays)


if __name__ == "__main__":
  main()
