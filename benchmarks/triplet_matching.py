"""How well conversations are found in long videos, on a mock of RealTalk and DualTalk with known truth.

    python benchmarks/triplet_matching.py --folder /tmp/mock_realtalk [--dialogues 64] [--jobs 2] [--search_all]

Makes long videos of the embedded dialogues (tests/mock_realtalk.py: drawn faces, one of them the film of assets/capture; mpeg4,
H.264; mp3, AAC, Opus; music under some) and clips cut from them, leaking, attenuated, of other gains, through telephone and
codecs, at other speeds; hard cases (a stretch said twice, clips of a second, silence, clips of which only a part is there), and
known negatives (other conversations under a video's name, clips played backwards, music). Then finds them, and prints: the share that
is placed to a frame, wrong placements and wrong people that were accepted, how many times real time it takes, and what confidence
positives and negatives reach. The mock stays in the folder, and is not made again.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import shutil
import sys
import time

import numpy as np

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]
import mock_realtalk as mock  # noqa: E402
import tqdm  # noqa: E402
from PIL import Image  # noqa: E402

from rsatalker_jax.data.audio import read_wav, resample  # noqa: E402
from rsatalker_jax.data.demo import voices  # noqa: E402
from rsatalker_jax.data.tracks import read_motion  # noqa: E402
from rsatalker_jax.data.triplets import matching  # noqa: E402
from rsatalker_jax.data.triplets.building import Options, build_triplets  # noqa: E402
from rsatalker_jax.data.triplets.cropping import Pictures  # noqa: E402
from rsatalker_jax.data.triplets.people import find_sides  # noqa: E402
from rsatalker_jax.data.triplets.source_video import read_frames_at, read_video_sound  # noqa: E402
from rsatalker_jax.data.triplets.sources import Sources, list_clips, list_videos  # noqa: E402
from rsatalker_jax.media.video import write_video  # noqa: E402
from rsatalker_jax.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME  # noqa: E402

SCENES = 8  # A video.
LENGTHS = (100, 150, 250, 400, 600)  # Frames of clips.
# Of these, too, a placement is expected; what is not in mock.DAMAGE or here is to be refused, or may be.
HARD = ("sentence twice", "silence before", "2 s", "jonas")
_FILMED = ("d003", "d009")


def make_mock(folder: pathlib.Path, count: int, seed: int = 0) -> list[mock.Truth]:
  truths: list[mock.Truth] = []
  # Two of them are in the film of assets/capture, and nothing is in two videos.
  dialogues = [dialogue for dialogue in voices.load_dialogues() if dialogue.id not in _FILMED][:count]
  r = np.random.default_rng(seed)
  cases = list(mock.DAMAGE)
  groups = [dialogues[i : i + SCENES] for i in range(0, len(dialogues), SCENES)]
  kept = {}
  for number, group in enumerate(tqdm.tqdm(groups, desc="mock videos")):
    name = f"video{number:02d}"
    scenes = [mock.load_scene(dialogue, performance=number % 3, left=int(r.integers(1, 3))) for dialogue in group]
    form = mock.FORMATS[number % len(mock.FORMATS)]
    repeat = (0, 200, 150)
    starts = mock.make_video(folder / "videos" / f"{name}.{form[0]}", scenes, form, seed=number,
                             music_level=(0.0, 0.0, 0.3, 0.0, 0.8)[number % 5], repeat=repeat)  # fmt: skip
    train, clip = folder / "dualtalk" / ("train" if number % 4 else "test"), 0

    def cut(scene, first, frames, case="plain", label=None, tracks=None):
      nonlocal clip
      conversation = f"{name}_sub_video_{clip}_{clip % 7:03d}"
      clip += 1
      if tracks is None:
        truth = mock.cut_clip(train, conversation, scenes[scene], first, frames, video=name, scene_frame=starts[scene], case=case,
                              seed=clip)  # fmt: skip
        truths.append(dataclasses.replace(truth, case=label or case))
      else:
        length = min(len(tracks[0]) // SAMPLES_PER_FRAME, scenes[scene].frames)
        mock.write_clip(train, conversation, tracks, [motion[:length] for motion in scenes[scene].motions])
        truths.append(mock.Truth(conversation, label, "", 0.0, 0, length))

    for scene in range(len(scenes)):
      for _ in range(4):
        frames = min(int(r.choice(LENGTHS)), scenes[scene].frames - 10)
        # Clips of the stretch that is said twice are a case of their own.
        first = int(r.integers(360 if scene == 0 and frames < scenes[0].frames - 370 else 0, scenes[scene].frames - frames))
        if scene == 0 and first < 350 and frames < 400:
          continue
        cut(scene, first, frames, cases[len(truths) % len(cases)])
    cut(1, 100, 50, label="2 s")
    cut(2, 120, 40, label="1.6 s")
    cut(2, 150, 15, label="0.6 s")
    cut(0, 50, 500, label="sentence twice")
    cut(0, 225, 100, label="all twice")
    before = [np.pad(track[3200 : 3200 + 8 * SAMPLE_RATE], (5 * SAMPLE_RATE, 0)) for track in scenes[3].tracks]
    conversation = f"{name}_sub_video_{clip}"
    motions = [np.concatenate([np.repeat(m[:1], 125, 0), m[5:205]]) for m in scenes[3].motions]
    mock.write_clip(train, conversation, before, motions)
    truths.append(mock.Truth(conversation, "silence before", name, starts[3] + 5 - 125, scenes[3].left, 325))
    clip += 1
    still = [np.zeros(10 * SAMPLE_RATE)] * 2
    cut(0, 0, 0, label="silence", tracks=[still[0] + 1e-3 * r.normal(size=len(still[0])), still[1]])
    cut(0, 0, 0, label="music", tracks=[mock.music(10 * SAMPLE_RATE, 1000 + number), still[1]])
    part = [np.concatenate([a[: 4 * SAMPLE_RATE], b[6 * SAMPLE_RATE : 14 * SAMPLE_RATE]]) for a, b in zip(scenes[4].tracks, scenes[5].tracks)]
    cut(4, 0, 0, label="in part", tracks=part)
    cut(5, 0, 0, label="backwards", tracks=[track[: 12 * SAMPLE_RATE][::-1] for track in scenes[5].tracks])
    for scene in list(kept.values())[-3:]:
      cut(len(scenes) - 1, 0, 0, label="another video", tracks=[track[SAMPLE_RATE : 13 * SAMPLE_RATE] for track in scene.tracks])
    kept[name] = scenes[-1]
  truths += _add_jonas(folder)
  (folder / "truth.json").write_text(json.dumps([dataclasses.asdict(truth) for truth in truths]))
  return truths


def _add_jonas(folder: pathlib.Path) -> list[mock.Truth]:
  """A video of the film in assets/capture, path traced, beside a drawn face: the conversations in which he is speaker 2."""
  with np.load(_ROOT / "assets" / "capture" / "capture.npz") as table:
    table = dict(table)
  shown = {int(t): i for i, t in enumerate(table["timesteps_0"])}
  pictures = [np.asarray(Image.fromarray(frame).resize((110, 160))) for frame in mock.read_frames(_ROOT / "assets/capture/camera_0.mp4")]
  dialogues = {dialogue.id: dialogue for dialogue in voices.load_dialogues()}
  scenes = []
  for k, conversation in enumerate(table["conversation"]):
    if table["speaker"][k] != 2:
      continue
    dialogue = dialogues[str(conversation).split("-")[1].split("_")[0]]
    scene = mock.load_scene(dialogue, left=1)
    motions = []
    for n in (1, 2):
      with np.load(_ROOT / "assets" / "capture" / f"{conversation}_speaker{n}.npz") as file:
        motions.append(np.concatenate([file["exp"], file["pose"][:, 3:], file["pose"][:, :3]], axis=1))
    first = int(table["first_timestep"][k])

    def film(t, first=first, motion=motions[0]):
      frame = mock.draw_pair(motion[t], motion[t], np.full((mock.HEIGHT, mock.WIDTH, 3), 235, np.uint8), None).copy()
      frame[:, mock.WIDTH // 2 :] = 255
      picture = pictures[min(shown.get(first + t, 0), len(pictures) - 1)]
      frame[-160:, 185:295] = picture
      return frame

    covered = sum(first + t in shown for t in range(len(motions[0])))
    motions = [motion[:covered] for motion in motions]
    scenes.append(dataclasses.replace(scene, motions=tuple(motions), film=film))
  starts = mock.make_video(folder / "videos" / "jonas.avi", scenes, mock.FORMATS[0], seed=99)
  truths = []
  for k, scene in enumerate(scenes):
    truth = mock.cut_clip(folder / "dualtalk" / "train", f"jonas_sub_video_{k}", scene, 20, scene.frames - 30, video="jonas",
                          scene_frame=starts[k], case="leaking")  # fmt: skip
    truths.append(dataclasses.replace(truth, case="jonas"))
  return truths


def print_quantiles(name: str, values: list[float]) -> None:
  if values:
    marks = np.quantile(values, [0, 0.01, 0.05, 0.5, 0.95, 0.99, 1])
    print(f"{name:44s} {len(values):5d}  " + "  ".join(f"{mark:7.3f}" for mark in marks))


def measure_negatives(folder: pathlib.Path, truths: list[mock.Truth], count: int) -> list[tuple[float, float, float, float]]:
  """Seconds, coherence, agreement and similarity of clips in videos that they are not in, their speed changed by up to 2 %."""
  clips, _ = list_clips(folder / "dualtalk")
  known = {truth.conversation for truth in truths if truth.video}
  clips = [clip for clip in clips if clip.name in known]
  r = np.random.default_rng(1)
  values = []
  paths = sorted((folder / "videos").iterdir())
  for path in tqdm.tqdm(paths, desc="negatives"):
    sound, _ = read_video_sound(path)
    index = matching.SoundIndex(matching.sound_features(sound))
    others = [clip for clip in clips if clip.video != path.stem]
    for chosen in r.permutation(len(others))[: max(count // len(paths), 1)]:
      tracks = [read_wav(wav, allow_silent=True)[0] for wav in others[chosen].wavs]
      tracks = [resample(track, 1000, int(r.integers(980, 1021))) for track in tracks]
      best = matching.place_clip(matching.ClipSound(tracks), sound, index).best
      if best is not None:
        values.append((len(tracks[0]) / SAMPLE_RATE, best.coherence, best.agreement, best.similarity))
  return values


def measure_strangers(folder: pathlib.Path, records: dict[str, dict], count: int) -> list[float]:
  """Evidence of who is who (without its sign) for voices and motions that have nothing to do with the pictures."""
  clips = {clip.name: clip for clip in list_clips(folder / "dualtalk")[0]}
  videos, _ = list_videos(folder / "videos")
  placed = [record for record in records.values() if record.get("frames", 0) >= 100]
  reader, margins = Pictures(), []
  for record in tqdm.tqdm(placed[:: max(len(placed) // count, 1)], desc="strangers"):
    times = [max(record["start"], 0) + i * (1 + record["speed"]) / FPS for i in range(record["frames"])]
    pictures = np.stack([reader.small_grey(frame, 160) for frame in read_frames_at(videos[record["video"]], times)])
    others = [other for other in placed if other["video"] != record["video"] and other["frames"] >= record["frames"]]
    for other in others[:: max(len(others) // 3, 1)][:3]:
      clip = clips[other["conversation"]]
      voices_of_others = [read_wav(wav, allow_silent=True)[0][: len(times) * SAMPLES_PER_FRAME] for wav in clip.wavs]
      margins.append(find_sides(pictures, voices_of_others, [read_motion(path)[: len(times)] for path in clip.npzs]).margin)
  return margins


def cpu_seconds() -> float:
  return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--dialogues", type=int, default=64)
  parser.add_argument("--jobs", type=int, default=2)
  parser.add_argument("--negatives", type=int, default=400)
  parser.add_argument("--search_all", action="store_true")
  args = parser.parse_args()
  if (args.folder / "truth.json").is_file():
    truths = [mock.Truth(**entry) for entry in json.loads((args.folder / "truth.json").read_text())]
  else:
    truths = make_mock(args.folder, args.dialogues)
  out = args.folder / "out"
  shutil.rmtree(out, ignore_errors=True)
  spent: dict[str, float] = {}

  def progress(items, total, what):
    began = time.monotonic()
    yield from tqdm.tqdm(items, total=total, desc=what)
    spent[what] = time.monotonic() - began

  before = cpu_seconds()
  # Films are not written: nobody has tracked these people.
  options = Options(search_all=args.search_all, only_tracked=True)
  sources = Sources(args.folder / "dualtalk", args.folder / "videos")
  records = {r["conversation"]: r for r in build_triplets(sources, out, options, write_video, jobs=args.jobs, progress=progress)}
  used = cpu_seconds() - before
  wanted = (*mock.DAMAGE, *HARD)
  rows, mistakes = {}, []
  placed = wrong = people = right = 0
  for truth in truths:
    record = records[truth.conversation]
    # Who is who is asked of placements that are accepted, so a placement counts even where the people are in doubt.
    accepted = "frames" in record
    near = truth.video == record.get("video") and "start" in record and abs(record["start"] * FPS - truth.frame) <= 1
    row = rows.setdefault(truth.case, [0, 0, 0, 0, 0, []])
    row[0] += 1
    row[1] += accepted and near
    row[2] += accepted and not near
    wrong += accepted and not near
    if record["status"] == "matched":
      people += 1
      right += record["left"] == truth.left
      row[3] += record["left"] == truth.left
      row[4] += record["left"] != truth.left
    row[5] += [record["coherence"]] if "coherence" in record else []
    placed += truth.case in wanted and accepted and near
    if (accepted and not near) or (truth.case in wanted and not accepted) or (record["status"] == "matched" and record["left"] != truth.left):
      mistakes.append(f"  {truth.conversation} ({truth.case}): {record['status']}, {record['reason']}, frame {truth.frame}, "
                      f"found {record.get('start', 0) * FPS:.1f}")  # fmt: skip
  print(f"{'case':16s} clips  placed  wrong  right person  wrong person  coherence (lowest, highest)")
  for case, (count, good, bad, person, other, values) in rows.items():
    span = f"{min(values):.3f}  {max(values):.3f}" if values else ""
    print(f"{case:16s} {count:5d}  {good:6d}  {bad:5d}  {person:12d}  {other:12d}  {span}")
  total = sum(truth.case in wanted for truth in truths)
  print("\n".join(["accepted where it is not, not accepted where it is, or the wrong person:", *mistakes] if mistakes else []))
  seconds = sum(truth.frames for truth in truths) / FPS
  print(f"placed to a frame: {placed} of {total} ({100 * placed / total:.2f} %)")
  print(f"wrong placements accepted: {wrong} of {len(truths)} clips")
  print(f"right person: {right} of {people} ({100 * right / max(people, 1):.2f} %)")
  for what, wall in spent.items():
    print(f"{what}: {wall:.1f} s for {seconds:.0f} s of clips, {seconds / wall:.0f} times real time, {args.jobs} processes, {os.cpu_count()} cores")
  print(f"processor time, processes' start included: {used:.0f} s, {seconds / used:.0f} times real time on one core")
  print(f"\n{'':44s} {'':5s}  {'  '.join(f'{q:>7s}' for q in ('least', '1 %', '5 %', 'median', '95 %', '99 %', 'most'))}")
  is_there = {t.conversation for t in truths if t.case in wanted}
  pick = lambda key, names: [r[key] for n, r in records.items() if key in r and (n in is_there) == names]
  print_quantiles("coherence, clips that are there", pick("coherence", True))
  print_quantiles("agreement, clips that are there", pick("agreement", True))
  print_quantiles("gap, clips that are there", pick("gap", True))
  print_quantiles("similarity, clips that are there", pick("similarity", True))
  print_quantiles("coherence elsewhere in their own video", pick("rival", True))
  # Above 0 for the right answer, whether it was given or refused.
  toward = lambda r, left: sum(r["evidence"].values()) / len(r["evidence"]) ** 0.5 * (1 if left == 1 else -1)
  told = [(t.frames, toward(r, t.left)) for t in truths if t.video and (r := records[t.conversation]).get("evidence")]
  print_quantiles("evidence for who is who, 4 s and more", [e for frames, e in told if frames >= 100])
  print_quantiles("evidence for who is who, shorter clips", [e for frames, e in told if frames < 100])
  if args.negatives:
    print_quantiles("evidence of strangers' voices and motions", measure_strangers(args.folder, records, 80))
    negatives = measure_negatives(args.folder, truths, args.negatives)
    for what, those in (("2 s and more", [n for n in negatives if n[0] >= 2]), ("shorter clips", [n for n in negatives if n[0] < 2])):
      for name, column in (("coherence", 1), ("agreement", 2), ("similarity", 3)):
        print_quantiles(f"{name}, where they are not, {what}", [n[column] for n in those])


if __name__ == "__main__":
  main()
