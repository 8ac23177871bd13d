"""What eval.py does: scores a run's motion and frames on the test split, and writes tables and a sheet of frames."""

import os
import pathlib

import numpy as np
from PIL import Image

import splat_kernels
from rsatalker_jax.data.captures import Capture, load_capture
from rsatalker_jax.data.conversations import load_conversations
from rsatalker_jax.data.pipeline import MotionClip, load_clips
from rsatalker_jax.data.triplets import Triplet, load_triplets
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import scoring, tables
from rsatalker_jax.head import motion_to_flame
from rsatalker_jax.media.video import to_uint8
from rsatalker_jax.talker import render_sequence
from rsatalker_jax.training import sharding
from rsatalker_jax.training.run import TrainedRun, load_run

# Motion stages trained side by side (`make compare`), by their folder under <workdir>/compare: one run per seed in each.
COMPARED = {"full": "RSATalker, stage 1", "no_partner": "without the partner", "no_relation": "without the relation"}
_SHEET_FRAMES = 6


def score_run(workdir: str) -> str:
  """Scores a run, writes <workdir>/evaluation/{results.json, results.md, frames.png} and returns the Markdown.

  Raises:
    InputError: if the run has no generator or no avatar yet, or its test data is not as expected.
  """
  run = load_run(workdir)
  for group, stage in (("generator", "motion"), ("avatar", "avatar")):
    if group not in run.params:
      raise InputError(workdir, stage, f"only {run.stages}", f"a finished {stage} stage")
  source = load_conversations(run.config.data, "test")
  clips = load_clips(source, run.encode)
  motion_rows = _score_motion_rows(run, clips, workdir)
  image_rows, sheet = _score_frame_rows(run, clips)

  markdown = (
      f"Run {workdir} ({run.stages}), {source.summary()}\n\n"
      "Motion of unseen conversations (less is better):\n\n"
      + scoring.motion_table(motion_rows)
      + "\nRendered frames of an unseen conversation:\n\n"
      + scoring.image_table(image_rows)
  )
  folder = pathlib.Path(workdir) / "evaluation"
  results = {"run": workdir, "stages": run.stages, "motion": motion_rows, "frames": image_rows}
  tables.write_results(folder, results, markdown)
  temporary = folder / ".frames.tmp.png"
  Image.fromarray(to_uint8(sheet)).save(temporary)
  os.replace(temporary, folder / "frames.png")
  return markdown


def _score_motion_rows(run: TrainedRun, clips: list[MotionClip], workdir: str) -> dict[str, list[dict[str, float]]]:
  """Scores by row of the table, one for each seed that was trained."""
  mean = run.buffers["generator"]["motion_mean"]
  rows = {
      "RSATalker": [scoring.score_motion(run.generate, clips)],
      "constant training mean": [scoring.score_motion(lambda clip: np.tile(mean, (len(clip.motion_a), 1)), clips)],
  }
  for name, title in COMPARED.items():
    folders = sorted((pathlib.Path(workdir) / run.config.evaluation.compare / name).glob("seed_*"))
    rows[title] = [scoring.score_motion(load_run(str(folder)).generate, clips) for folder in folders]
  return rows


def _score_frame_rows(run: TrainedRun, clips: list[MotionClip]):
  """Image metrics for tracked and for generated motion, and a sheet: truth, tracked, generated, error of tracked."""
  capture = load_capture(run.data_path("capture"), "test", background=tuple(run.config.render.background))
  triplet, clip = _find_test_triplet(run, clips)
  items = triplet.capture_indices(capture)[: len(clip.motion_b)]
  frames = np.unique(np.linspace(0, len(items) - 1, run.config.evaluation.frames).round().astype(int))
  shown = [capture[int(items[frame])] for frame in frames]
  truth = np.stack([item["image"] for item in shown])
  tracked = {name: np.stack([item["flame"][name] for item in shown]) for name in shown[0]["flame"]}
  generated = {name: np.asarray(x) for name, x in motion_to_flame(run.generate(clip)[frames]).items()}
  generated["translation"] = tracked["translation"]

  camera = _camera_of(shown, capture)
  offsets = run.gaussian_offsets(clip.relation, frames)
  rows, rendered = {}, {}
  for title, flame in (("tracked motion", tracked), ("generated motion", generated)):
    chunks = list(render_sequence(run.talker, sharding.make_mesh(), run.avatar, flame, camera, offsets))
    ends = np.cumsum([len(chunk) for chunk in chunks])
    rows[title] = scoring.score_frames(
        zip(chunks, np.split(truth, ends[:-1])), run.config.evaluation.lpips_nets
    )
    rendered[title] = np.concatenate(chunks)

  columns = np.linspace(0, len(frames) - 1, _SHEET_FRAMES).round().astype(int)
  error = 4 * np.abs(rendered["tracked motion"] - truth)
  sheet = [np.concatenate(list(x[columns]), axis=1) for x in (truth, *rendered.values(), error)]
  return rows, np.concatenate(sheet, axis=0)


def _find_test_triplet(run: TrainedRun, clips: list[MotionClip]) -> tuple[Triplet, MotionClip]:
  manifest = run.data_path("triplets")
  by_name = {clip.name: clip for clip in clips}
  for triplet in load_triplets(manifest, "test"):
    if triplet.name in by_name:
      return triplet, by_name[triplet.name]
  raise InputError(manifest, "split", "no test triplet of a test conversation", "one whose video can be compared with")


def _camera_of(shown: list[dict], capture: Capture) -> splat_kernels.Camera:
  stack = lambda key: np.stack([item[key] for item in shown])
  return splat_kernels.Camera(stack("world_to_camera"), stack("intrinsics"), capture.width, capture.height)
