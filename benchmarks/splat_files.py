"""What an avatar loses on its way through files.

    python benchmarks/splat_files.py --workdir runs/demo [--size 320]

Writes the avatar of a run as bound PLY, plain PLY and SPZ, reads each again and draws it (jaw open, head turned, on
white). Prints the files' sizes, the pictures' differences from the avatar's own, and what SPZ rounds and clips.
"""

import argparse
import os
import pathlib
import sys
import tempfile

import gsply
import jax
import numpy as np
from scipy.special import expit

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
import splat_kernels
from rsatalker_jax.avatar import Gaussians, render_frames
from rsatalker_jax.head import pose_for
from rsatalker_jax.media import splat_files
from rsatalker_jax.media.viewer import front_camera
from rsatalker_jax.runs import load_run
from rsatalker_jax.types import MOTION_DIM, MOTION_GROUPS

WHITE = np.ones(3, np.float32)


def read_spz(path: pathlib.Path) -> Gaussians:
  data = gsply.read_spz(path)
  sh = np.asarray(data.sh0)[:, None]
  if data.shN is not None and data.shN.size:
    sh = np.concatenate([sh, np.reshape(data.shN, (len(sh), -1, 3))], axis=1)
  arrays = (np.array(x) for x in (data.means, data.quats, data.scales, data.opacities, sh))
  return Gaussians(*arrays)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--size", type=int, default=320)
  args = parser.parse_args()
  run = load_run(args.workdir)
  avatar, head = run.avatar, run.talker.head
  motion = np.zeros(MOTION_DIM, np.float32)
  motion[MOTION_GROUPS["jaw"]] = 0.25, 0, 0
  motion[MOTION_GROUPS["pose"]] = 0, 0.3, 0
  flame = jax.tree.map(np.asarray, pose_for(motion))
  camera = front_camera(head, args.size)
  # Room for every Gaussian in 32 tiles on the average.
  options = dict(background=WHITE, config=splat_kernels.Config(max_intersections=32 * len(avatar.binding)))
  checked = lambda output: np.asarray(output.image[0]) if not int(output.overflow.max()) else sys.exit("too many tiles")
  draw_avatar = lambda avatar: checked(
      render_frames(avatar, head, {name: x[None] for name, x in flame.items()}, None, camera, **options)
  )
  draw = lambda g: checked(
      splat_kernels.rasterize(
          g.means[None],
          g.quats[None],
          np.exp(g.log_scales)[None],
          expit(g.opacity_logits),
          g.sh,
          camera,
          sh_degree=round(g.sh.shape[1] ** 0.5) - 1,
          **options,
      )
  )

  with tempfile.TemporaryDirectory() as folder:
    bound, plain, spz = (pathlib.Path(folder, name) for name in ("bound.ply", "plain.ply", "head.spz"))
    baked = jax.device_get(splat_files.bake(avatar, head, flame))
    splat_files.write_bound_ply(bound, avatar, head)
    splat_files.write_ply(plain, baked)
    splat_files.write_spz(spz, baked)
    truth = draw_avatar(avatar)
    rounded = read_spz(spz)
    for path, image in (
        (bound, draw_avatar(splat_files.load_bound_ply(bound, head))),
        (plain, draw(splat_files.read_ply(plain)[0])),
        (spz, draw(rounded)),
    ):
      error = np.abs(image - truth)
      psnr = -10 * np.log10(np.mean(error**2)) if error.any() else np.inf
      print(f"{path.name}: {path.stat().st_size} bytes, largest difference {error.max():.2g}, PSNR {psnr:.1f} dB")
  largest = lambda name, a, b, unit: print(f"SPZ: {name} off by at most {np.abs(a - b).max():.3g} {unit}")
  largest("means", 1e6 * rounded.means, 1e6 * baked.means, "micrometres")
  largest("log scales (above -10)", rounded.log_scales, np.maximum(baked.log_scales, -10), "")
  largest("opacity", expit(rounded.opacity_logits), expit(baked.opacity_logits), "")
  cosine = np.abs(np.sum(rounded.quats * baked.quats, axis=1)) / np.linalg.norm(rounded.quats, axis=1)
  largest("rotation", 2 * np.degrees(np.arccos(np.minimum(cosine, 1))), 0, "degrees")
  for loss in splat_files.spz_losses(baked):
    print(f"SPZ: {loss}")


if __name__ == "__main__":
  main()
