"""What a training step of the motion stage costs at the paper's size, with cached speech features and with the encoder online.

    python benchmarks/motion_step.py [--runs 15] [--online_runs 3] [--dtype float32]

A step is forward, backward and optimizer on 4 windows of 200 frames, made and compiled as training does it, over a mesh of
two CPU devices. Online, Wav2Vec 2.0 in the size of facebook/wav2vec2-large-960h-lv60-self (315 M parameters, random
weights, frozen) turns both voices of each window into features within the step, in DualTalk's order (25 fps before the
Transformer). Prints medians after warm-up, the least, their ratio and the load of the machine.
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
from configs.common import base_config  # noqa: E402
from rsatalker_jax import command_line  # noqa: E402
from rsatalker_jax.data.audio import write_wav  # noqa: E402
from rsatalker_jax.data.dualtalk import SAMPLES_PER_FRAME, write_motion  # noqa: E402
from rsatalker_jax.speech.logmel import to_frames  # noqa: E402
from rsatalker_jax.speech.wav2vec2 import Wav2Vec2, Wav2Vec2Config, normalize_wav  # noqa: E402
from rsatalker_jax.talker import make_talker  # noqa: E402
from rsatalker_jax.training import loop, sharding  # noqa: E402
from rsatalker_jax.training.stages import StageInputs, motion_stage  # noqa: E402
from splat_kernels.bench import time_in_turns  # noqa: E402

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


def paper_config():
  """The paper's sizes."""
  config = base_config()
  config.generator.update(dict(features=512, heads=4, encoder_layers=3, decoder_layers=1, mlp_ratio=4, reach=25))
  return config


def make_stage(config, mesh: jax.sharding.Mesh) -> loop.Stage:
  """The motion stage on a few conversations of noise, with features as wide as the large encoder's."""
  rng = np.random.default_rng(0)
  config.data.embedded_root = ""
  config.motion.update(dict(batch=BATCH, window=WINDOW))
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    config.data.conversations, config.data.relations = str(root), str(root / "relations.csv")
    (root / "train").mkdir()
    for name in [f"noise{i}_sub_video_0_speaker{n}" for i in range(4) for n in (1, 2)]:
      write_wav(root / "train" / f"{name}.wav", rng.uniform(-0.5, 0.5, 2 * WINDOW * SAMPLES_PER_FRAME))
      write_motion(root / "train" / f"{name}.npz", rng.normal(size=(2 * WINDOW, 56)))
    (root / "relations.csv").write_text("conversation,relation\n" + "".join(f"noise{i}_sub_video_0,blood,equal\n" for i in range(4)))
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
    self.parameters = {
        name: sum(x.size for x in jax.tree.leaves(tree))
        for name, tree in (self._state.params | self._state.buffers).items()
    }

  def take(self) -> None:
    self._state, terms = self._step(self._state, self._batch, self._state.step)
    if not np.isfinite(terms["loss"]):
      raise ValueError(f"{terms=}")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--runs", type=int, default=15)
  parser.add_argument("--online_runs", type=int, default=3, help="0 leaves the online step out")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  config = paper_config()
  config.generator.dtype = args.dtype
  command_line.use_devices(config.mesh)
  mesh = sharding.make_mesh()
  stage = make_stage(config, mesh)
  batch = next(iter(stage.batches))
  with jax.set_mesh(mesh):
    cached = Steps(stage, mesh, batch)
    calls, runs = {"cached features": cached.take}, {"cached features": args.runs}
    print(f"load {os.getloadavg()[0]:.1f}; parameters {cached.parameters}")
    times = {"cached features": time_in_turns({0: cached.take}, args.runs)[0].wall}
    if args.online_runs:
      rng = np.random.default_rng(0)
      voices = rng.normal(size=(2, BATCH, WINDOW * SAMPLES_PER_FRAME)).astype(np.float32)
      online = Steps(with_online_encoder(stage), mesh, batch | {"speech_a": voices[0], "speech_b": voices[1]})
      times["encoder online"] = time_in_turns({0: online.take}, args.online_runs)[0].wall
  for name, ms in times.items():
    print(name, statistics.median(ms), min(ms))


if __name__ == "__main__":
  main()
