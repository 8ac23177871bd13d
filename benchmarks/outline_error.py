"""Where avatars err before a camera that training never saw: at the outline or inside, too wide or too narrow, by which Gaussians.

    python benchmarks/outline_error.py --workdir=runs/demo [--frames=4]

Of each person's capture with a split val. The outline is what lies within 6 pixels of the true picture's edge towards the
white background. The avatar is too wide where it is darker there than the truth, too narrow where it is brighter. What
is too wide by more than 0.15 is traced to Gaussians by their weights in those pixels (a picture is linear in colours).
"""

import argparse
import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from rsatalker_jax.avatar.gaussians import SH_CONSTANT
from rsatalker_jax.commands.film_scores import Film
from rsatalker_jax.data.captures import spread_places, transforms_file
from rsatalker_jax.runs import load_run

_BAND = 6  # Pixels.
_WHITE, _EXCESS = 0.97, 0.15  # Of the background, at least; of brightness that is missing.


def weights_in(run, film: Film, mask: np.ndarray) -> np.ndarray:
  """How many of the pixels `mask` (T, H, W) each Gaussian fills, in all frames of the film together."""
  flame = jax.tree.map(jnp.asarray, film.flame)

  @jax.grad
  def of_colours(sh):
    avatar = dataclasses.replace(run.avatar, gaussians=dataclasses.replace(run.avatar.gaussians, sh=sh))
    return jnp.sum(run.talker.render(avatar, flame, film.camera).image[..., 1] * mask)

  return np.asarray(of_colours(run.avatar.gaussians.sh)[:, 0, 1]) / SH_CONSTANT


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--frames", type=int, default=4)
  args = parser.parse_args()
  print("| person | PSNR | error at the outline | of it too wide | Gaussians of 80 % of that | their distance, in triangle sizes | of all |")
  print("|---|---:|---:|---:|---:|---:|---:|")
  trained = load_run(args.workdir)
  for number, person in enumerate(trained.names):
    run = trained.of_person(number)
    if not transforms_file(run.data_path("capture"), "val").is_file():
      print(f"{person}: no split val", file=sys.stderr)
      continue
    capture = run.talker.open_capture(run.data_path("capture"), "val")
    film = Film(capture, spread_places(len(capture), args.frames))
    truth = film.images(0, len(film.items))
    drawn = np.clip(np.concatenate([*film.render(run.talker, run.avatar, film.flame)]), 0, 1)
    squares, darker = np.mean((drawn - truth) ** 2, axis=-1), np.mean(truth - drawn, axis=-1)
    band = np.stack([
        ndimage.binary_dilation(x, iterations=_BAND) & ~ndimage.binary_erosion(x, iterations=_BAND)
        for x in truth.min(axis=-1) < _WHITE
    ])  # fmt: skip
    wide = band & (darker > 0)
    weights = weights_in(run, film, (band & (darker > _EXCESS)).astype(np.float32))
    order = np.argsort(-weights)
    most = order[: 1 + np.searchsorted(np.cumsum(weights[order]), 0.8 * weights.sum())]
    off = np.linalg.norm(run.avatar.gaussians.means, axis=-1)
    psnr = np.mean(-10 * np.log10(squares.mean(axis=(1, 2))))
    print(f"| {person} | {psnr:.1f} dB | {squares[band].sum() / squares.sum():.0%} | {squares[wide].sum() / squares[band].sum():.0%} "
          f"| {len(most)} of {len(order)} | {np.median(off[most]):.1f} | {np.median(off):.1f} |")  # fmt: skip


if __name__ == "__main__":
  main()
