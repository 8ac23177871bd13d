"""Where in the picture an image-based baseline has more error than a run's avatar, both in the true poses of the unseen film.

    python benchmarks/error_regions.py --workdir=runs/demo --method=runs/demo/compare/gaussiantalker/seed_0 [--frames=24] [--sheet=FILE.png]

Regions are the boxes about parts of the face as the true pose puts them: lips; lower face without them; the rest of the face;
what is above (hair); everything else (ears, shoulders, background). The sheet shows truth, baseline, its error and the avatar's.
"""

import argparse
import pathlib
import sys

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from rsatalker_jax.baselines.image import Boxes
from rsatalker_jax.baselines.image.boxes import box_mask
from rsatalker_jax.commands import evaluate, film_scores
from rsatalker_jax.commands.image_protocols import TRUE_POSE, MethodRun
from rsatalker_jax.data.captures import spread_places
from rsatalker_jax.media.video import to_uint8
from rsatalker_jax.runs import load_run


def find_regions(boxes, width: int, height: int) -> dict[str, np.ndarray]:
  """Masks (T, H, W) that divide the pictures, by region."""
  inside = {name: np.asarray(box_mask(box, width, height)) > 0.5 for name, box in boxes.items()}
  lips, lower, face = (inside[name] for name in ("lips", "lower", "face"))
  above = ~(lips | lower | face) & (np.arange(height)[:, None] < boxes["face"][:, 1, None, None])
  regions = {"lips": lips, "lower face": lower & ~lips, "upper face": face & ~lower & ~lips, "above the face": above}
  return regions | {"the rest": ~np.any(list(regions.values()), axis=0)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--method", required=True)
  parser.add_argument("--frames", type=int, default=24)
  parser.add_argument("--sheet")
  args = parser.parse_args()
  run, method = load_run(args.workdir), load_run(args.method, image_methods=True)
  people, why = evaluate.find_run_films({method.data_path("capture").resolve(): method}, "test")
  if not people:
    sys.exit(f"error: {why}")
  footage = film_scores.Footage.choose(method, people[0], lambda length: spread_places(length, args.frames))
  film, cameras, capture = footage.film, footage.capture.read_cameras(footage.items), footage.capture
  truth = film.images(0, len(footage.items))
  ours = np.concatenate([*film.render(run.talker, run.avatar, film.flame)])
  drawn = MethodRun("method", method, people[0]).draw(footage.places, None, chunk=8)[f"method: {TRUE_POSE}"]
  theirs = np.concatenate([*drawn.chunks])
  of_ours, of_theirs = (np.mean((np.clip(images, 0, 1) - truth) ** 2, axis=-1) for images in (ours, theirs))
  boxes = Boxes.of(method.talker.head, capture.shape, capture.nonzero_offset).find(film.flame, *cameras)
  decibels = lambda squares: -10 * np.log10(np.mean(squares))
  print("| region | of the picture | avatar, dB | baseline, dB | of the baseline's further error |\n|---|---:|---:|---:|---:|")
  for name, mask in find_regions(boxes, capture.width, capture.height).items():
    share = np.sum((of_theirs - of_ours)[mask]) / np.sum(of_theirs - of_ours)
    print(f"| {name} | {mask.mean():.0%} | {decibels(of_ours[mask]):.1f} | {decibels(of_theirs[mask]):.1f} | {share:.0%} |")
  if args.sheet:
    some = spread_places(len(truth), 5)
    heat = lambda squares: np.repeat(4 * np.sqrt(squares)[..., None], 3, axis=-1)
    rows = [np.concatenate([*images[some]], axis=1) for images in (truth, theirs, heat(of_theirs), heat(of_ours))]
    Image.fromarray(np.asarray(to_uint8(np.concatenate(rows)))).save(args.sheet)


if __name__ == "__main__":
  main()
