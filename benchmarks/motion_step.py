"""What a training step of the motion stage costs at the paper's size, with cached speech features and with the encoder online.

    python benchmarks/motion_step.py [--runs 12] [--online_runs 3] [--dtype float32]

A step is forward, backward and optimizer on 4 windows of 200 frames, made and compiled as training does it, on one CPU
device, as configs/rsatalker.py:ours has it: at this size XLA keeps both cores busy by itself. Online, Wav2Vec 2.0 in the size
of facebook/wav2vec2-large-960h-lv60-self (315 M parameters, random weights, frozen) turns both voices of each window into
features within the step, in DualTalk's order (25 fps before the Transformer). Prints medians after warm-up, the least,
the ratio of steps taken in turns, and the machine's load: beside other work, half of the CPU time is nearer to what a
step takes on two free cores.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from configs.rsatalker import get_config
from rsatalker_jax.commands import command_line
from rsatalker_jax.data.audio import write_wav
from rsatalker_jax.data.dualtalk import write_motion
from rsatalker_jax.speech.logmel import to_frames
from rsatalker_jax.speech.wav2vec2 import Wav2Vec2, Wav2Vec2Config, normalize_wav
from rsatalker_jax.talker import make_talker
from rsatalker_jax import sharding
from rsatalker_jax.training import loop
from rsatalker_jax.training.motion_stage import motion_stage
from rsatalker_jax.training.stage_inputs import StageInputs
from rsatalker_jax.types import SAMPLES_PER_FRAME
from splat_kernels.bench import time_in_turns

BATCH, WINDOW = 4, 200
# The published config.json of facebook/wav2vec2-large-960h-lv60-self.
LARGE = Wav2Vec2Config(
    conv_bias=True,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
)


def make_stage(config, mesh: jax.sharding.Mesh) -> loop.Stage:
  """The motion stage on a few conversations of noise, with features as wide as the large encoder's."""
  rng = np.random.default_rng(0)
  config.data.embedded_root, config.data.default_relation = "", "unknown"
  config.motion.update(dict(batch=BATCH, window=WINDOW))
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    config.data.conversations, config.data.relations = str(root), str(root / "relations.csv")
    (root / "train").mkdir()
    for name in [f"noise{i}_sub_video_0_speaker{n}" for i in range(4) for n in (1, 2)]:
      write_wav(root / "train" / f"{name}.wav", rng.uniform(-0.5, 0.5, 2 * WINDOW * SAMPLES_PER_FRAME))
      write_motion(root / "train" / f"{name}.npz", rng.normal(size=(2 * WINDOW, 56)), basis="arkit")
    encode = lambda wav, frames: rng.normal(size=(frames, LARGE.hidden_size)).astype(np.float32)
    return motion_stage(StageInputs(config, make_talker(config), encode, mesh, say=lambda _: None))


def with_online_encoder(stage: loop.Stage) -> loop.Stage:
  """The same stage for batches of voices: its loss runs the frozen encoder first."""
  module = Wav2Vec2(LARGE)

  def encode(params, wav):
    features = module.apply(params, normalize_wav(wav), method="extract")
    return module.apply(params, to_frames(features, WINDOW), method="contextualize")

  def loss(params, buffers, batch, key, step):
    voices = jnp.stack([batch["speech_a"], batch["speech_b"]], axis=1)
    features = jax.vmap(jax.vmap(encode, (None, 0)), (None, 0))(buffers["encoder"], voices)
    features = jax.lax.stop_gradient(features)
    return stage.loss(params, buffers, batch | {"speech_a": features[:, 0], "speech_b": features[:, 1]}, key, step)

  def init(key):
    params, buffers = stage.init(key)
    return params, buffers | {"encoder": module.init(key, jnp.zeros(SAMPLES_PER_FRAME * 25))}

  return dataclasses.replace(stage, init=init, loss=loss)


class Steps:
  """Steps of a stage on one batch, again and again."""

  def __init__(self, stage: loop.Stage, mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]):
    key = jax.random.key(0)
    self._state, abstract = loop.init_state(stage, mesh, key)
    self._step = loop.compile_step(stage, key, jax.tree.map(lambda x: x.sharding, abstract))
    self._batch = sharding.put_batch(mesh, batch)
    self.parameters = sum(x.size for x in jax.tree.leaves((self._state.params, self._state.buffers)))

  def take(self) -> None:
    self._state, terms = self._step(self._state, self._batch, self._state.step)
    if not np.isfinite(terms["loss"]):
      raise ValueError(f"{terms=}")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--runs", type=int, default=12, help="steps with cached features")
  parser.add_argument("--online_runs", type=int, default=3, help="rounds in which both take a step; 0 leaves the encoder out")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the generator's arithmetic")
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  config = get_config("ours")
  config.head.update(dict(path="assets/head/demo_head.npz", teeth=False, basis="arkit"))
  config.generator.dtype = args.dtype
  command_line.use_devices(config.mesh)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  stage = make_stage(config, mesh)
  batch = next(iter(stage.batches))
  print(f"load before {os.getloadavg()[0]:.1f}")
  with jax.set_mesh(mesh):
    calls = {"cached features": Steps(stage, mesh, batch)}
    rows = {"cached features": time_in_turns({0: calls["cached features"].take}, args.runs)[0]}
    if args.online_runs:
      voices = np.random.default_rng(0).normal(size=(2, BATCH, WINDOW * SAMPLES_PER_FRAME)).astype(np.float32)
      given = batch | {"speech_a": voices[0], "speech_b": voices[1]}
      calls["encoder online"] = Steps(with_online_encoder(stage), mesh, given)
      turns = time_in_turns({name: steps.take for name, steps in calls.items()}, args.online_runs)
      rows["encoder online"] = turns["encoder online"]
  print("| step | parameters | s, median (least) | CPU s of all cores, median (least) | steps |\n|---|---|---|---|---|")
  for name, times in rows.items():
    show = lambda ms: f"{statistics.median(ms) / 1e3:.2f} ({min(ms) / 1e3:.2f})"
    size = f"{calls[name].parameters / 1e6:.1f} M"
    print(f"| {name} | {size} | {show(times.wall)} | {show(times.cpu)} | {len(times.wall)} |")
  if args.online_runs:
    ratio = lambda kind: statistics.median(
        b / a for a, b in zip(*(getattr(turns[name], kind) for name in ("cached features", "encoder online")))
    )
    print(f"online / cached, in turns: {ratio('wall'):.1f} in time, {ratio('cpu'):.1f} in CPU time")
  print(f"load after {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
  main()
