"""The demo's data as triplets that were built, beside the same data as it is, to train on both and compare.

    python benchmarks/triplet_training.py --folder runs/triplet_trial [--performances 3] [--jobs 2]

Makes long two-person videos of the embedded conversations (tests/mock_realtalk.py; the film of assets/capture stands in one of
them, beside a drawn face, compressed again), a mock of DualTalk, tracks of the whole videos and face boxes; runs the verb `triplets`;
and leaves two data folders of the same conversations, films from the front camera alone in both:

    <folder>/built      what the verb wrote
    <folder>/original   the embedded conversations and capture under the same names

Prints how far both are apart, and the commands that train on each.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys

import numpy as np

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]
import mock_realtalk as mock  # noqa: E402
import tqdm  # noqa: E402

from rsatalker_jax.commands.triplets import make_triplets  # noqa: E402
from rsatalker_jax.data.captures import load_capture  # noqa: E402
from rsatalker_jax.data.demo.unpack import unpack_demo  # noqa: E402
from rsatalker_jax.data.relations import RelationLabel, read_relations, write_relations  # noqa: E402
from rsatalker_jax.data.tracks import read_motion  # noqa: E402
from rsatalker_jax.data.triplets import load_triplets  # noqa: E402
from rsatalker_jax.types import SAMPLES_PER_FRAME  # noqa: E402

SCENES = 8  # A video.
FILMED = "jonas"  # The video with the film.
MARGIN = 2.0


def find_conversations(root: pathlib.Path) -> dict[str, str]:
  """Split by name."""
  names = {}
  for split in ("train", "val", "test"):
    for path in sorted((root / "conversations" / split).glob("*_speaker1.wav")):
      names[path.name.removesuffix("_speaker1.wav")] = split
  return names


def read_films(demo: pathlib.Path) -> list[dict]:
  """The manifest's entries of assets/capture in which the person is speaker 2, who stands on the right, where the film does."""
  lines = [json.loads(line) for line in (demo / "triplets.jsonl").read_text().splitlines()]
  return [line for line in lines if line["capture"] == "capture" and line["speaker"] == 2]


def load_scene(root: pathlib.Path, split: str, name: str, left: int) -> mock.Scene:
  stems = [root / "conversations" / split / f"{name}_speaker{n}" for n in (1, 2)]
  tracks = tuple(mock.read_sound_file(stem.with_suffix(".wav")) for stem in stems)
  return mock.Scene(name, tracks, tuple(read_motion(stem.with_suffix(".npz")) for stem in stems), left)


def make_sources(folder: pathlib.Path, demo: pathlib.Path) -> dict[str, str]:
  """Writes videos, conversations, tracks, masks and boxes; returns the conversations' new names by their old ones."""
  splits = find_conversations(demo)
  filmed = [line["conversation"] for line in read_films(demo)]
  names = {name: f"{FILMED}_sub_video_{i}" for i, name in enumerate(filmed)}
  rest = sorted((name for name in splits if name not in filmed), key=lambda name: (name.rpartition("_")[2], name))
  # All performances of a dialogue sound the same: in one video they could not be told apart.
  groups = [rest[i : i + SCENES] for i in range(0, len(rest), SCENES)]
  r = np.random.default_rng(0)
  for number, group in enumerate(tqdm.tqdm(groups, desc="mock videos")):
    video = f"video{number:03d}"
    scenes = [load_scene(demo, splits[name], name, int(r.integers(1, 3))) for name in group]
    assert len({name.split("_")[0] for name in group}) == len(group)
    form = mock.FORMATS[number % len(mock.FORMATS)]
    mock.make_video(folder / "videos" / f"{video}.{form[0]}", scenes, form, seed=number)
    names |= {name: f"{video}_sub_video_{i}" for i, name in enumerate(group)}
  for name, new in names.items():
    for n in (1, 2):
      for kind in ("wav", "npz"):
        link(demo / "conversations" / splits[name] / f"{name}_speaker{n}.{kind}",
             folder / "dualtalk" / splits[name] / f"{new}_speaker{n}.{kind}")  # fmt: skip
  relations = read_relations(demo / "conversations" / "relations.csv")
  write_relations(folder / "relations.csv", [RelationLabel(names[name], relations[name]) for name in names])
  film_people(folder, demo, splits, filmed)
  return names


def link(source: pathlib.Path, target: pathlib.Path) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  os.link(source, target)


def film_people(folder: pathlib.Path, demo: pathlib.Path, splits: dict[str, str], filmed: list[str]) -> None:
  """The video with the film of assets/capture on the right, its tracks and masks, and the box of the face."""
  with np.load(_ROOT / "assets" / "capture" / "capture.npz") as file:
    table = dict(file)
  width, height = map(int, table["image_size"])
  place = {int(t): i for i, t in enumerate(table["timesteps_0"])}
  colors = list(mock.read_frames(_ROOT / "assets/capture/camera_0.mp4"))
  capture = load_capture(demo / "capture", "all")
  camera = {(int(c), int(t)): i for i, (c, t) in enumerate(zip(capture.camera_indices, capture.timesteps))}
  size = (2 * width, height)
  frames, masks, entries, sounds = [], [], [], []
  tracks = folder / "tracks" / f"{FILMED}_p1"
  (tracks / "flame_param").mkdir(parents=True)
  for name in filmed:
    k = table["conversation"].tolist().index(name)
    scene = load_scene(demo, splits[name], name, 1)
    sounds.append(np.zeros(30 * SAMPLES_PER_FRAME, np.float32))
    frames += [np.full((height, 2 * width, 3), 255, np.uint8)] * 30
    masks += [np.zeros((height, 2 * width), np.uint8)] * 30
    sounds.append((scene.tracks[0] + scene.tracks[1])[: scene.frames * SAMPLES_PER_FRAME])
    for t in range(scene.frames):
      frame = np.full((height, 2 * width, 3), 235, np.uint8)
      drawn = mock.draw_pair(scene.motions[0][t], scene.motions[0][t], np.full((mock.HEIGHT, mock.WIDTH, 3), 235, np.uint8), None)
      frame[40 : 40 + mock.HEIGHT, 40 : 40 + mock.WIDTH // 2] = drawn[:, : mock.WIDTH // 2]
      timestep = int(table["first_timestep"][k]) + t
      shown = place.get(timestep) if t < int(table["num_frames"][k]) else None
      frame[:, width:] = colors[shown] if shown is not None else frames[-1][:, width:]
      mask = np.zeros((height, 2 * width), np.uint8)
      if shown is not None:
        item = camera[0, timestep]
        mask[:, width:] = np.rint(255 * capture[item]["mask"])
        _, lens = capture.read_cameras([item])
        entries.append(dict(
            file_path=f"../../videos/{FILMED}.mp4", frame_index=len(frames), timestep_index=len(frames), camera_index=0, w=size[0], h=size[1],
            fl_x=float(lens[0, 0, 0]), fl_y=float(lens[0, 1, 1]), cx=float(lens[0, 0, 2]) + width, cy=float(lens[0, 1, 2]), cy_from="top",
            transform_matrix=table["camera_to_world"][0].tolist(), flame_param_path=f"flame_param/{timestep:05d}.npz",
        ))  # fmt: skip
        shutil.copy(demo / "capture" / "flame_param" / f"{timestep:05d}.npz", tracks / "flame_param")
      frames.append(frame)
      masks.append(mask)
  sound = np.concatenate(sounds)
  form = ("mp4", "libx264", "aac", 96_000, 44_100)
  mock.write_film(folder / "videos" / f"{FILMED}.mp4", frames, 0.7 * sound / np.abs(sound).max(), form, quality=10)
  mock.write_film(folder / "masks" / f"{FILMED}_p1.mp4", (np.repeat(mask[..., None], 3, 2) for mask in masks), None, form, quality=6)
  content = json.loads((demo / "capture" / "transforms_train.json").read_text())
  (tracks / "transforms_train.json").write_text(json.dumps(content | {"frames": entries, "w": size[0], "h": size[1]}))
  shutil.copy(demo / "capture" / "canonical_flame_param.npz", tracks)
  half = min(width, height) / MARGIN / 2
  middle = 1.5 * width, height / 2
  box = ",".join(str(value) for value in (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half))
  (folder / "boxes.csv").write_text(f"video,frame,person,left,top,right,bottom\n{FILMED},,p1,{box}\n")


def write_original(folder: pathlib.Path, demo: pathlib.Path, names: dict[str, str]) -> None:
  """The embedded data under the new names, with the front camera alone."""
  out = folder / "original"
  for name, split in find_conversations(demo).items():
    for n in (1, 2):
      for kind in ("wav", "npz"):
        link(demo / "conversations" / split / f"{name}_speaker{n}.{kind}", out / "conversations" / split / f"{names[name]}_speaker{n}.{kind}")
  shutil.copy(folder / "relations.csv", out / "conversations" / "relations.csv")
  shutil.copytree(demo / "capture", out / "capture", copy_function=os.link)
  films = read_films(demo)
  shown = {t for film in films for t in range(film["first_timestep"], film["first_timestep"] + film["frames"])}
  for path in (out / "capture").glob("transforms_*.json"):
    content = json.loads(path.read_text())
    content["frames"] = [entry for entry in content["frames"] if entry["camera_index"] == 0 and entry["timestep_index"] in shown]
    path.unlink()
    if content["frames"]:
      path.write_text(json.dumps(content))
  lines = [film | {"conversation": names[film["conversation"]]} for film in films]
  (out / "triplets.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def compare(folder: pathlib.Path) -> None:
  """Says how far the built films are from the originals."""
  built, original = ({t.name: t for t in load_triplets(folder / part / "triplets.jsonl")} for part in ("built", "original"))
  print(f"films: {sorted(built)} built, {sorted(original)} in the original")
  for name in sorted(set(built) & set(original)):
    errors, places = [], []
    ours, theirs = (load_capture(t.capture, t.split) for t in (built[name], original[name]))
    for t in range(0, original[name].frames, 25):
      a, b = ours[ours.index(0, built[name].first_timestep + t)], theirs[theirs.index(0, original[name].first_timestep + t)]
      errors.append((np.mean((a["image"] - b["image"]) ** 2), np.abs(a["mask"] - b["mask"]).mean()))
      places.append(max(np.abs(a["intrinsics"] - b["intrinsics"]).max(), np.abs(a["world_to_camera"] - b["world_to_camera"]).max(),
                        *(np.abs(a["flame"][key] - b["flame"][key]).max() for key in a["flame"])))  # fmt: skip
    error, mask = np.mean(errors, axis=0)
    print(f"{name}: PSNR {-10 * np.log10(error):.1f} dB, masks off by {mask:.4f}, cameras and parameters by at most {max(places):.2g}")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--performances", type=int, default=3)
  parser.add_argument("--dialogues", nargs="*", help="ids; all if not given. d003 and d009 are filmed")
  parser.add_argument("--jobs", type=int, default=2)
  args = parser.parse_args()
  folder = args.folder
  demo = unpack_demo(folder / "demo", performances=args.performances, dialogues=args.dialogues)
  if not (folder / "names.json").is_file():
    for part in ("videos", "dualtalk", "tracks", "masks", "original"):
      shutil.rmtree(folder / part, ignore_errors=True)
    names = make_sources(folder, demo)
    write_original(folder, demo, names)
    (folder / "names.json").write_text(json.dumps(names))
  make_triplets(
      conversations=str(folder / "dualtalk"), videos=str(folder / "videos"), out=str(folder / "built"), boxes=str(folder / "boxes.csv"),
      tracks=str(folder / "tracks"), masks=str(folder / "masks"), relations=str(folder / "relations.csv"), size="256x256", margin=MARGIN,
      only_tracked=True, jobs=args.jobs,
  )  # fmt: skip
  compare(folder)
  for part, capture in (("built", f"captures/{FILMED}_p1"), ("original", "capture")):
    root = folder / part
    data = {"embedded_root": "", "conversations": root / "conversations", "relations": root / "conversations/relations.csv",
            "capture": root / capture, "triplets": root / "triplets.jsonl", "features": folder / "features"}  # fmt: skip
    flags = " ".join(f"--config.data.{key}={value}" for key, value in data.items())
    print(f"python train.py --config=configs/demo.py --workdir={folder}/runs/{part} {flags}")
    print(f"python eval.py --workdir={folder}/runs/{part}")


if __name__ == "__main__":
  main()
