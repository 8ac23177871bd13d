"""A capture as a worse tracker would have tracked it: the same frames, head parameters with gain, bias and noise.

    python tools/degrade_tracking.py runs/demo_data/capture runs/demo_data/capture_degraded
    python train.py --config=configs/demo.py:degraded --workdir=runs/degraded

The demo's films are tracked exactly, since they were rendered. Real tracks are not, and Gaussian offsets (Eq. 8) are there to
correct what the mesh gets wrong: docs/ablations.md measures whether they do. Beside the capture lies <its name>.jsonl then, the
manifest of the same films in this tracking. Images are links.

What a tracker gets wrong in the same way in every film it can be told from the motion; what it gets wrong by chance, it cannot:

    expression   times a gain per coefficient, N(1, 0.15); plus a bias, N(0, 0.02); plus noise of 0.02
    jaw          times 0.85; plus a bias of 1 degree; plus noise of 0.4 degrees
    neck         plus a bias of 1, -0.7 and 0.5 degrees; plus noise of 0.3 degrees
    translation  plus noise of 0.5 mm

Noise is a first-order autoregression over time, 0.8 of each value in the next, as filters leave it.
"""

import json
import os
import pathlib
import shutil
import sys

import numpy as np

from rsatalker_jax.data.webcam import autoregression

# Gain, bias and noise of the parameters that are rotations in degrees and lengths in metres.
_JAW_GAIN, _JAW_BIAS, _JAW_NOISE = 0.85, (1.0, 0.0, 0.0), 0.4
_NECK_BIAS, _NECK_NOISE = (1.0, -0.7, 0.5), 0.3
_TRANSLATION_NOISE = 5e-4


def degrade(parameters: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
  """Head parameters of all frames in the order of time, as VHAP names them, with the errors above.

  Args:
    parameters: expr (T, E), jaw_pose, neck_pose and translation (T, 3), others as they are.
    seed: of gains, biases and noise. Gains and biases do not depend on T: of all films they are the same.
  """
  rng = np.random.default_rng(seed)
  expression = parameters["expr"]
  used = np.arange(expression.shape[1]) < 50
  gain = np.where(used, np.clip(rng.normal(1.0, 0.15, used.shape), 0.6, 1.4), 1.0)
  bias = np.where(used, rng.normal(0.0, 0.02, used.shape), 0.0)
  count = len(expression)
  noise = lambda size, width: size * autoregression(rng, count, width)
  worse = dict(parameters)
  worse["expr"] = gain * expression + bias + np.where(used, noise(0.02, len(used)), 0.0)
  worse["jaw_pose"] = _JAW_GAIN * parameters["jaw_pose"] + np.radians(_JAW_BIAS) + np.radians(noise(_JAW_NOISE, 3)) * (1, 0, 0)
  worse["neck_pose"] = parameters["neck_pose"] + np.radians(_NECK_BIAS) + np.radians(noise(_NECK_NOISE, 3))
  worse["translation"] = parameters["translation"] + noise(_TRANSLATION_NOISE, 3)
  return {name: np.asarray(value, np.float32) for name, value in worse.items()}


def write_degraded(source: pathlib.Path, target: pathlib.Path) -> None:
  """Writes the capture, whole or not at all, and the manifest beside it."""
  if target.exists():
    sys.exit(f"error: {target}: found a file or folder, expected none")
  names = sorted(path.name for path in (source / "flame_param").glob("*.npz"))
  if not names:
    sys.exit(f"error: {source / 'flame_param'}: found no .npz, expected a capture in VHAP's layout")
  frames = []
  for name in names:
    with np.load(source / "flame_param" / name) as file:
      frames.append(dict(file))
  moving = ("expr", "jaw_pose", "neck_pose", "translation")
  worse = degrade({name: np.concatenate([frame[name] for frame in frames]) for name in moving})
  part = target.with_name(target.name + ".part")
  shutil.rmtree(part, ignore_errors=True)
  (part / "flame_param").mkdir(parents=True)
  for number, (name, frame) in enumerate(zip(names, frames)):
    np.savez(part / "flame_param" / name, **frame | {key: value[number][None] for key, value in worse.items()})
  for path in source.iterdir():
    if path.name == "flame_param":
      continue
    (part / path.name).symlink_to(os.path.relpath(path, target))
  part.rename(target)
  manifest = source.parent / "triplets.jsonl"
  if manifest.exists():
    films = [json.loads(line) for line in manifest.read_text().splitlines()]
    films = [film | {"capture": target.name} for film in films if film["capture"] == source.name]
    target.with_name(target.name + ".jsonl").write_text("".join(json.dumps(film) + "\n" for film in films))


if __name__ == "__main__":
  if len(sys.argv) != 3:
    sys.exit("usage: python tools/degrade_tracking.py CAPTURE TARGET")
  write_degraded(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
