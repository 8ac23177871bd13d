"""What encoding a long voice in chunks changes: Wav2Vec 2.0 with random weights, in overlapping chunks and in one piece.

    python benchmarks/seam_error.py [--size small|base] [--seconds 90] [--margins 0 50 200 400]

Both families (base: group norm, norms after the blocks; large: layer norm, norms before them) on voices of the embedded
dialogues, at 50 Hz. Errors are relative to the standard deviation of the hidden states in one piece: root mean square and
greatest over all frames, and the step from the last frame before a seam to the first behind it beside the same step in one
piece. Random weights attend to all frames alike, which makes chunks matter more than attention that looks nearby does.
"""

import argparse
import os
import sys

import jax
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from rsatalker_jax.data.demo.voices import decode_track, load_dialogues
from rsatalker_jax.speech.wav2vec2 import Wav2Vec2, Wav2Vec2Config, encode_voice
from rsatalker_jax.types import SAMPLE_RATE

CHUNK = 1500  # encode_voice's own.
FAMILIES = {
    "base": dict(feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False),
    "large": dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
}
SIZES = {
    "small": dict(
        conv_dim=(24,) * 7,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    ),
    "base": {},  # 12 layers of 768: the base family's own size, 95 M parameters.
}


def make_voice(seconds: float) -> np.ndarray:
  """One speaker's tracks, one after another."""
  samples, parts = round(seconds * SAMPLE_RATE), []
  for dialogue in load_dialogues():
    parts.append(decode_track(dialogue.tracks[0]))
    if sum(map(len, parts)) >= samples:
      break
  return np.concatenate(parts)[:samples]


def measure(config: Wav2Vec2Config, wav: np.ndarray, margins: list[int]) -> list[dict[str, float]]:
  """Errors by margin; the first row's voice in one piece is what all are compared with."""
  module = Wav2Vec2(config)
  params = jax.jit(module.init)(jax.random.key(0), wav[:SAMPLE_RATE])
  total = config.num_frames(len(wav))
  whole = encode_voice(module, params, wav, chunk=total, margin=0)
  scale = whole.std()
  rows = []
  for margin in margins:
    chunked = encode_voice(module, params, wav, chunk=CHUNK, margin=margin)
    error = (chunked - whole) / scale
    # As encode_voice places them: chunks overlap by twice the margin, and each keeps the frames up to its own margin.
    seams = np.arange(CHUNK - margin, total - margin, CHUNK - 2 * margin)
    step = lambda hidden: np.sqrt(np.mean((hidden[seams] - hidden[seams - 1]) ** 2)) / scale
    rows.append({
        "margin": margin,
        "rms": np.sqrt(np.mean(error**2)),
        "greatest": np.abs(error).max(),
        "seam_step": step(chunked),
        "whole_step": step(whole),
    })
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", choices=SIZES, default="small")
  parser.add_argument("--seconds", type=float, default=90.0, help=f"above {CHUNK / 50:.0f}, or there is one chunk")
  parser.add_argument("--margins", type=int, nargs="+", default=[0, 50, 200, 400])
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  wav = make_voice(args.seconds)
  print(f"{args.size}, {len(wav) / SAMPLE_RATE:.0f} s, chunks of {CHUNK} frames")
  print("| family | margin | rms error | greatest error | step over a seam | same step in one piece |\n|---|---|---|---|---|---|")
  for family, switches in FAMILIES.items():
    for row in measure(Wav2Vec2Config(**SIZES[args.size], **switches), wav, args.margins):
      errors = " | ".join(f"{row[name]:.4f}" for name in ("rms", "greatest", "seam_step", "whole_step"))
      print(f"| {family} | {row['margin']} | {errors} |")


if __name__ == "__main__":
  main()
