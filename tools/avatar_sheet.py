"""A run's avatar in poses that its capture never shows: a look for holes, torn lips and teeth that do not stay.

    python tools/avatar_sheet.py --workdir runs/demo --out docs/images/avatar_poses.jpg

In rows: at rest, jaw wide open, jaw to the side, jaw open with the head bowed; turned left, turned right, bowed, tilted.
The largest angles of the training film stand beside them in the printed line.
"""

import argparse
import os
import sys

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from rsatalker_jax.data.captures import load_capture
from rsatalker_jax.files import whole_file
from rsatalker_jax.head import pose_for
from rsatalker_jax.media.video import to_uint8
from rsatalker_jax.media.viewer import front_camera
from rsatalker_jax.talker import render_sequence
from rsatalker_jax import sharding
from rsatalker_jax.runs import load_run

# Jaw and neck, axis-angle in radians.
POSES = (
    ((0, 0, 0), (0, 0, 0)),
    ((0.42, 0, 0), (0, 0, 0)),
    ((0.15, 0.15, 0), (0, 0, 0)),
    ((0.42, 0, 0), (0.4, 0, 0)),
    ((0, 0, 0), (0, 0.7, 0)),
    ((0.2, 0, 0), (0, -0.7, 0)),
    ((0, 0, 0), (0.5, 0, 0)),
    ((0.1, 0, 0), (0, 0.3, 0.4)),
)
COLUMNS = 4


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--out", required=True)
  parser.add_argument("--size", type=int, default=320)
  args = parser.parse_args()
  run = load_run(args.workdir)
  motion = np.zeros((len(POSES), 56), np.float32)
  motion[:, 50:53], motion[:, 53:] = np.split(np.array(POSES, np.float32).reshape(-1, 6), 2, axis=1)
  flame = jax.tree.map(np.asarray, pose_for(motion))
  camera = front_camera(run.talker.head, args.size)
  frames = np.concatenate(list(render_sequence(run.talker, sharding.make_mesh(), run.avatar, flame, camera)))
  rows = frames.reshape(-1, COLUMNS, *frames.shape[1:])
  sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
  with whole_file(args.out) as file:
    Image.fromarray(to_uint8(sheet)).save(file, format="JPEG", quality=88)

  capture = load_capture(run.data_path("capture"), "train")
  seen = [capture[i]["flame"] for i in range(0, len(capture), 10)]
  largest = {name: max(float(np.linalg.norm(flame[name])) for flame in seen) for name in ("jaw", "neck")}
  print(f"wrote {args.out}; in every tenth training frame the jaw turns by at most {largest['jaw']:.2f}, the neck {largest['neck']:.2f}")


if __name__ == "__main__":
  main()
