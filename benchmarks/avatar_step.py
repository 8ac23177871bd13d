"""Time and memory of a training step of the avatar stage, by default 512 x 512 pixels, 50,000 Gaussians, two frames.

    python benchmarks/avatar_step.py [--gaussians 50000] [--size 512] [--batch 2] [--runs 9]

Stage, loss and optimizer are training's own (configs/demo.py), compiled as the loop does it, on the embedded
head and a capture of noise that is made for it and thrown away. Memory is what XLA says of the compiled step, for one
device, and the most that the process ever held. Times are medians after a step that is not counted.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import statistics
import sys
import tempfile

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
import splat_kernels
from configs.demo import get_config
from rsatalker_jax.commands import command_line
from rsatalker_jax.media.viewer import front_camera
from rsatalker_jax.talker import make_talker
from rsatalker_jax import sharding
from rsatalker_jax.training import loop
from rsatalker_jax.training.avatar_stage import avatar_stage
from rsatalker_jax.training.stage_inputs import StageInputs
from splat_kernels.bench import time_in_turns


def write_capture(root: pathlib.Path, camera: splat_kernels.Camera, frames: int) -> None:
  """Noise in the capture layout, seen by one camera; the head nods a little."""
  rng = np.random.default_rng(0)
  size = camera.width
  to_world = np.linalg.inv(camera.world_to_camera) @ np.diag([1, -1, -1, 1])  # OpenGL's axes.
  entries = []
  for t in range(frames):
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    coarse.resize((size, size), Image.Resampling.BICUBIC).save(root / f"{t}.png")
    flame = dict(expr=np.zeros((1, 100)), neck_pose=np.array([[0.1 * np.sin(t), 0, 0]]), eyes_pose=np.zeros((1, 6)))
    np.savez(root / f"{t}.npz", **flame, **{key: np.zeros((1, 3)) for key in ("rotation", "jaw_pose", "translation")})
    entries.append({"file_path": f"{t}.png", "flame_param_path": f"{t}.npz", "timestep_index": t, "camera_index": 0})
  top = {"w": size, "h": size, "fl_x": float(camera.intrinsics[0, 0]), "transform_matrix": to_world.tolist()}
  np.savez(root / "canonical_flame_param.npz", shape=np.zeros((1, 2), np.float32))
  content = {"frames": [top | entry for entry in entries]}
  (root / "transforms_train.json").write_text(json.dumps(content))


class Steps:
  """Steps of a stage on one batch, again and again, with room for all of its Gaussian-tile pairs."""

  def __init__(self, stage: loop.Stage, mesh: jax.sharding.Mesh):
    self._mesh = mesh
    self._batch = sharding.put_batch(mesh, next(iter(stage.batches)))
    terms = self._compile(stage)
    self.intersections = int(terms["intersections"])
    if int(terms["overflow"]):
      # Gaussians grow a little in the steps that are timed.
      self._compile(dataclasses.replace(stage, loss=stage.room.grow(int(1.1 * self.intersections))))

  def _compile(self, stage: loop.Stage) -> dict:
    key = jax.random.key(0)
    self.state, abstract = loop.init_state(stage, self._mesh, key)
    step = loop.compile_step(stage, key, jax.tree.map(lambda x: x.sharding, abstract))
    self._step = step.lower(self.state, self._batch, 0).compile()
    self.memory = self._step.memory_analysis()
    return self._advance()

  def _advance(self) -> dict:
    self.state, terms = self._step(self.state, self._batch, int(self.state.step))
    return jax.device_get(terms)

  def take(self) -> None:
    terms = self._advance()
    if terms["overflow"] or not np.isfinite(terms["loss"]):
      raise ValueError(f"{terms=}")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--gaussians", type=int, default=50_000)
  parser.add_argument("--size", type=int, default=512, help="of the square pictures, pixels")
  parser.add_argument("--batch", type=int, default=2, help="frames of a step, on all devices")
  parser.add_argument("--runs", type=int, default=9)
  args = parser.parse_args()
  config = get_config()
  config.data.embedded_root = ""
  config.density.way, config.gaussians.capacity = "none", None
  config.gaussians.num_gaussians, config.avatar.batch = args.gaussians, args.batch
  command_line.use_devices(config.mesh)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  talker = make_talker(config)
  with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
    config.data.capture = folder
    write_capture(pathlib.Path(folder), front_camera(talker.head, args.size), args.batch)
    steps = Steps(avatar_stage(StageInputs(config, talker, encode=None, mesh=mesh, say=lambda _: None)), mesh)
    before = os.getloadavg()[0]
    times = time_in_turns({0: steps.take}, args.runs)[0]

  device = f"{mesh.size} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}"
  load = f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after"
  implementation = talker.implementation or "the platform's implementation"
  print(f"{device}; {implementation}; {load}")
  what = f"{args.gaussians} Gaussians, {args.batch} frames of {args.size} x {args.size}"
  print(f"{what}, {steps.intersections} pairs a frame\n")
  megabytes = lambda size: f"{size / 2**20:.0f}"
  state = sum(x.nbytes for x in jax.tree.leaves((steps.state.params, steps.state.opt_state)))
  rows = [
      ("step, s, median (least)", f"{statistics.median(times.wall) / 1e3:.2f} ({min(times.wall) / 1e3:.2f})"),
      ("CPU time of all threads, s, median", f"{statistics.median(times.cpu) / 1e3:.2f}"),
      ("parameters and optimizer's moments, MB", megabytes(state)),
      ("arguments of the compiled step, MB a device", megabytes(steps.memory.argument_size_in_bytes)),
      ("temporaries of the compiled step, MB a device", megabytes(steps.memory.temp_size_in_bytes)),
      # ru_maxrss is in kilobytes.
      ("process at most, MB", megabytes(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)),
  ]
  print("| | |\n|---|---|")
  for name, value in rows:
    print(f"| {name} | {value} |")


if __name__ == "__main__":
  main()
