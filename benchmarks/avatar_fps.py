"""Frames a second of an avatar by GaussianAvatars' protocol: FLAME, skinning, binding and rasterizer, no files.

    python benchmarks/avatar_fps.py [--workdir runs/demo] [--renders 500] [--rounds 3] [--batch 1 4 16] [--gaussians N]

At 802 x 550 pixels (height x width), theirs, and at 512 x 512. Every frame has another expression, jaw and neck. The
poses lie in the device's memory; each picture, or batch of pictures, is waited for before the next is begun. A round is
`renders` frames; after one that is not counted, all sizes and batches take turns, round by round. Batches that the
devices can share evenly are spread over all of them, as generate.py does it. Without --workdir: an avatar as training
begins with it, on the embedded head. On a CPU 500 frames take long; 40 are the default there.
"""

import argparse
import dataclasses
import os
import statistics
import sys

import jax
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
import splat_kernels
from configs.common import base_config
from rsatalker_jax.commands import command_line
from rsatalker_jax.avatar import Avatar, init_avatar
from rsatalker_jax.head import HeadModel, pose_for
from rsatalker_jax.media.viewer import front_camera
from rsatalker_jax.talker import Talker, make_talker, render_on_mesh
from rsatalker_jax import sharding
from rsatalker_jax.runs import workdir as workdirs
from rsatalker_jax.runs import load_run
from rsatalker_jax.types import FPS, MOTION_GROUPS
from splat_kernels.bench import time_in_turns

SIZES = ((802, 550), (512, 512))  # Height, width.
POSES = 48  # Different ones; a multiple of all usual batches.


def make_poses() -> dict[str, np.ndarray]:
  """Two seconds of a head that nods and speaks, arguments of `head_vertices`."""
  time = np.arange(POSES)[:, None] / FPS
  motion = np.zeros((POSES, 56), np.float32)
  for group, least_hz, largest in (("expression", 0.3, 0.5), ("jaw", 3.0, 0.1), ("pose", 0.5, 0.15)):
    part = MOTION_GROUPS[group]
    count = part.stop - part.start
    motion[:, part] = largest * np.sin(2 * np.pi * ((least_hz + np.arange(count) / 25) * time + np.arange(count) / 7))
  motion[:, MOTION_GROUPS["jaw"]] = np.abs(motion[:, MOTION_GROUPS["jaw"]]) * [1, 0, 0]
  return jax.tree.map(np.asarray, pose_for(motion))


def make_camera(head: HeadModel, height: int, width: int, batch: int) -> splat_kernels.Camera:
  """`front_camera` for a picture that need not be square, once for each frame of a batch."""
  front = front_camera(head, min(height, width))
  intrinsics = np.array(front.intrinsics)
  intrinsics[:2, 2] = width / 2, height / 2
  each = lambda x: np.tile(x, (batch, 1, 1))
  return splat_kernels.Camera(each(front.world_to_camera), each(intrinsics), width, height)


def make_round(talker: Talker, avatar: Avatar, height: int, width: int, batch: int, renders: int):
  """A round of at least `renders` frames: the function, and how many there are."""
  poses = make_poses()
  # As much room as the poses need, as training and generate.py make it.
  camera = make_camera(talker.head, height, width, 1)
  needed = jax.jit(lambda flame: talker.render(avatar, flame, camera).intersections)
  most = max(int(needed({name: x[[i]] for name, x in poses.items()})[0]) for i in range(POSES))
  talker = talker.with_room(most)
  mesh = sharding.make_mesh()
  camera = make_camera(talker.head, height, width, batch)
  spread = batch % mesh.size == 0
  draw = render_on_mesh(talker, mesh) if spread else talker.render
  render = jax.jit(draw)
  place = (lambda x: sharding.put_batch(mesh, x)) if spread else jax.device_put
  starts = range(0, POSES - batch + 1, batch)
  flames = [place({name: x[start : start + batch] for name, x in poses.items()}) for start in starts]
  views = dataclasses.replace(
      camera, world_to_camera=place(camera.world_to_camera), intrinsics=place(camera.intrinsics)
  )
  for flame in flames:
    if int(render(avatar, flame, views).overflow.max()):
      raise ValueError(f"{height}x{width}: room for {most} pairs was too little")
  calls = -(-renders // batch)

  def draw_round():
    for i in range(calls):
      render(avatar, flames[i % len(flames)], views).image.block_until_ready()

  return draw_round, calls * batch, mesh.size if spread else 1


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", help="a trained run; a fresh avatar if not given")
  parser.add_argument("--renders", type=int, help="frames of a round; 500 if not given, 40 on a CPU")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16], choices=range(1, POSES + 1), metavar="B")
  parser.add_argument("--gaussians", type=int, help="of the fresh avatar; one per face if not given")
  args = parser.parse_args()
  config = ConfigDict(workdirs.load_config(args.workdir)) if args.workdir else base_config()
  command_line.use_devices(config.mesh)
  if args.workdir:
    run = load_run(args.workdir)
    talker, avatar, what = run.talker, run.avatar, f"of {args.workdir} ({run.stages})"
  else:
    talker = make_talker(config)
    options = {name: config.gaussians[name] for name in ("sh_degree", "init_scale", "init_opacity")}
    shape = np.zeros(talker.head.num_shape, np.float32)
    avatar, what = init_avatar(talker.head, shape, num_gaussians=args.gaussians, **options), "not trained"
  renders = args.renders or (40 if jax.default_backend() == "cpu" else 500)

  rounds = {
      (size, batch): make_round(talker, avatar, *size, batch, renders) for size in SIZES for batch in args.batch
  }
  before = os.getloadavg()[0]
  times = time_in_turns({key: call for key, (call, *_) in rounds.items()}, args.rounds)
  device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}"
  implementation = talker.implementation or "the platform's implementation"
  print(f"{device}; {implementation}; avatar {what}")
  print(
      f"{len(avatar.binding)} Gaussians, harmonics of degree {round(avatar.gaussians.sh.shape[-2] ** 0.5) - 1}; "
      f"{args.rounds} rounds; load {before:.1f} before, {os.getloadavg()[0]:.1f} after\n"
  )
  print("| height x width | batch | devices | frames a round | frames/s, median (most) | ms a frame, median (least) |")
  print("|---|---|---|---|---|---|")
  for (size, batch), (_, count, devices) in rounds.items():
    each = [ms / count for ms in times[size, batch].wall]
    middle, least = statistics.median(each), min(each)
    print(
        f"| {size[0]} x {size[1]} | {batch} | {devices} | {count} | {1e3 / middle:.1f} ({1e3 / least:.1f}) "
        f"| {middle:.1f} ({least:.1f}) |"
    )


if __name__ == "__main__":
  main()
