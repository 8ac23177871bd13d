"""Small Whisper checkpoints with seeded weights, and what PyTorch makes of them.

    python tests/speech/whisper_checkpoints.py

writes tests/speech/whisper_reference.npz with PyTorch's hidden states (tested with torch 2.13.0, transformers 5.23.0), so that
parity is tested where torch is absent, too.
"""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

REFERENCE = pathlib.Path(__file__).with_name("whisper_reference.npz")
SECONDS = 2  # Of a window.
CONFIG = dict(
    model_type="whisper",
    num_mel_bins=20,
    d_model=32,
    encoder_layers=2,
    encoder_attention_heads=4,
    encoder_ffn_dim=48,
    max_source_positions=50 * SECONDS,
    decoder_layers=1,
    decoder_attention_heads=4,
    decoder_ffn_dim=48,
    max_target_positions=8,
    vocab_size=16,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=3,
)


def make_tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
  """Weights of order one per input, norms near one: every part matters to the output. A decoder's are beside the encoder's."""
  rng = np.random.default_rng(seed)
  d, inner = config["d_model"], config["encoder_ffn_dim"]
  shapes = {"conv1.weight": (d, config["num_mel_bins"], 3), "conv1.bias": (d,), "conv2.weight": (d, d, 3), "conv2.bias": (d,)}
  shapes |= {"embed_positions.weight": (config["max_source_positions"], d)}
  norm = lambda name: {f"{name}.weight": (d,), f"{name}.bias": (d,)}
  for i in range(config["encoder_layers"]):
    prefix = f"layers.{i}."
    shapes |= {f"{prefix}self_attn.{name}_proj.weight": (d, d) for name in ("q", "k", "v", "out")}
    shapes |= {f"{prefix}self_attn.{name}_proj.bias": (d,) for name in ("q", "v", "out")}
    shapes |= norm(f"{prefix}self_attn_layer_norm") | norm(f"{prefix}final_layer_norm")
    shapes |= {f"{prefix}fc1.weight": (inner, d), f"{prefix}fc1.bias": (inner,), f"{prefix}fc2.weight": (d, inner), f"{prefix}fc2.bias": (d,)}
  shapes |= norm("layer_norm")
  tensors = {}
  for name, shape in sorted(shapes.items()):
    value = rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))
    if name.endswith("norm.weight"):
      value = 1 + 0.2 * value
    elif len(shape) == 1:
      value = 0.1 * value
    elif name == "embed_positions.weight":
      value = 0.3 * value * np.sqrt(d)
    tensors[f"model.encoder.{name}"] = value.astype(np.float32)
  return tensors | {"model.decoder.layer_norm.bias": np.zeros(d, np.float32), "proj_out.weight": np.zeros((16, d), np.float32)}


def write_checkpoint(folder: pathlib.Path, tensors: dict[str, np.ndarray] | None = None, **config) -> pathlib.Path:
  """config.json and model.safetensors in Hugging Face's layout."""
  folder.mkdir(parents=True, exist_ok=True)
  config = CONFIG | config
  (folder / "config.json").write_text(json.dumps(config))
  save_file(make_tensors(config) if tensors is None else tensors, folder / "model.safetensors")
  return folder


def extract_mels(wav: np.ndarray, num_mels: int) -> np.ndarray:
  """The published spectrogram, as transformers computes it with numpy: (frames, mels)."""
  from transformers import WhisperFeatureExtractor

  extractor = WhisperFeatureExtractor(feature_size=num_mels, chunk_length=SECONDS)
  return np.asarray(extractor(wav, sampling_rate=16000, return_tensors="np")["input_features"][0]).T


def torch_hidden_states(wav: np.ndarray) -> np.ndarray:
  """What PyTorch's transformers make of a window."""
  import torch
  from transformers import WhisperConfig, WhisperModel

  model = WhisperModel(WhisperConfig(**CONFIG, attn_implementation="eager")).eval()
  prefix = "model.encoder."
  state = {name.removeprefix(prefix): torch.from_numpy(x) for name, x in make_tensors(CONFIG).items() if name.startswith(prefix)}
  model.encoder.load_state_dict(state)
  with torch.no_grad():
    return model.encoder(torch.from_numpy(extract_mels(wav, CONFIG["num_mel_bins"]).T[None])).last_hidden_state[0].numpy()


if __name__ == "__main__":
  from wav2vec2_checkpoints import make_wav

  np.savez_compressed(REFERENCE, hidden=torch_hidden_states(make_wav(16000 * SECONDS)))
