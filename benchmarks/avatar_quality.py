"""What the avatar stage reaches on the embedded capture, by how many Gaussians there are and how they come to be.

    python benchmarks/avatar_quality.py [adaptive:20000 fixed:11838 fixed:20000 fixed:34000 mcmc:20000] [--steps 600]

Trains the avatar stage of configs/demo.py once for each "way:number" (no files are kept), and prints image metrics of 60
frames of the test conversation with tracked motion, and of 30 frames from the camera that training never sees.
"""

import argparse
import os
import sys
import tempfile
import time

import jax
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from configs.demo import get_config
from rsatalker_jax.commands import command_line
from rsatalker_jax.avatar import drop_free_slots
from rsatalker_jax.data.captures import load_capture
from rsatalker_jax.data.conversations import unpack_embedded
from rsatalker_jax.evaluation.scoring import score_frames
from rsatalker_jax.evaluation.tables import markdown_table
from rsatalker_jax.commands.film_scores import Film
from rsatalker_jax.talker import make_talker
from rsatalker_jax import sharding
from rsatalker_jax.training import loop
from rsatalker_jax.training.avatar_stage import avatar_stage
from rsatalker_jax.training.stage_inputs import StageInputs

WAYS = {"adaptive": "", "fixed": "fixed", "mcmc": "mcmc"}
NEVER = 10**9


def make_config(way: str, number: int, steps: int):
  config = get_config(WAYS[way])
  config.gaussians["num_gaussians" if way == "fixed" else "capacity"] = number
  config.avatar.steps = steps
  return config


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  defaults = ["adaptive:20000", "fixed:11838", "fixed:20000", "fixed:34000", "mcmc:20000"]
  parser.add_argument("avatars", nargs="*", default=defaults, help="way:number, of " + ", ".join(WAYS))
  parser.add_argument("--steps", type=int, default=600)
  args = parser.parse_args()
  command_line.use_devices(get_config().mesh)
  rows = {}
  for avatar in args.avatars:
    way, number = avatar.split(":")
    config = make_config(way, int(number), args.steps)
    unpack_embedded(config.data)
    talker, mesh = make_talker(config), sharding.make_mesh()
    inputs = StageInputs(config, talker, encode=None, mesh=mesh)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:
      watching = loop.Watching(log_every=100, pictures_every=NEVER, checkpoint_every=NEVER)
      state = loop.run_stage(avatar_stage(inputs), mesh=mesh, workdir=workdir, seed=config.seed, watching=watching)
    seconds = time.perf_counter() - began
    trained = drop_free_slots(talker.avatar(*jax.device_get((state.params, state.buffers))))
    row = [str(len(trained.binding)), str(round(seconds))]
    for split, frames in (("test", 60), ("val", 30)):
      capture = load_capture(inputs.path("capture"), split, background=tuple(config.render.background))
      film = Film(capture, np.unique(np.linspace(0, len(capture) - 1, frames).round().astype(int)))
      scores = score_frames(film.beside(film.render(talker, trained, film.flame)), config.evaluation.lpips_nets)
      row += [scores[name] for name in ("psnr", "ssim", "lpips_alex")]
    rows[avatar] = row
  metrics = [f"{name}, {where}" for where in ("test", "held-out camera") for name in ("PSNR", "SSIM", "LPIPS")]
  print(markdown_table(["Gaussians", "s", *metrics], rows))


if __name__ == "__main__":
  main()
