"""What eval.py does: scores a run's motion and frames on the test split, and writes tables and a sheet of frames."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

import splat_kernels
from rsatalker_jax import sharding
from rsatalker_jax.avatar import Avatar
from rsatalker_jax.data.captures import Capture, load_capture
from rsatalker_jax.data.conversations import load_conversations
from rsatalker_jax.data.dualtalk import DualTalkSource
from rsatalker_jax.data.pipeline import MotionClip, load_clips
from rsatalker_jax.data.triplets import FilmedConversation, load_films
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file
from rsatalker_jax.evaluation import demo_world, lip_metrics, motion_metrics, relation_probe, scoring, tables
from rsatalker_jax.head import make_lip_opening, pose_for
from rsatalker_jax.media.video import to_uint8
from rsatalker_jax.talker import Talker, render_sequence
from rsatalker_jax.runs import STAGES, TrainedRun, load_run

_SHEET_FRAMES = 6
_TRUTH = "true motion"
_BEFORE_JOINT = "generated motion, before the joint stage"


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
  scorer = make_scorer(run, source, clips)
  motion_rows = _score_motion_rows(run, source, scorer, workdir)
  filmed = _open_test_film(run, clips)
  image_rows, sheet = _score_frame_rows(run, filmed, workdir)
  flicker = _measure_flicker(run, filmed)

  markdown = (
      f"Run {workdir} ({run.stages}), {source.summary()}\n\n"
      + _motion_report(motion_rows)
      + "\nRendered frames of an unseen conversation:\n\n"
      + scoring.image_table(image_rows)
      + f"\nSuccessive frames differ by {flicker['film']:.5f} in the film and by {flicker['avatar']:.5f} in the avatar with "
      + f"tracked motion (mean absolute difference); these differences differ by {flicker['difference']:.5f}.\n"
  )
  folder = pathlib.Path(workdir) / "evaluation"
  results = {"run": workdir, "stages": run.stages, "motion": motion_rows, "frames": image_rows, "flicker": flicker}
  tables.write_results(folder, results, markdown)
  with whole_file(folder / "frames.png") as file:
    Image.fromarray(to_uint8(sheet)).save(file, format="PNG")
  return markdown


def make_scorer(run: TrainedRun, source: DualTalkSource, clips: list[MotionClip]) -> scoring.MotionScorer:
  """What motion is scored with: `clips` of `source`, and a relation probe fitted to the true training motion."""
  training = load_conversations(run.config.data, "train")
  opening, closures = make_lip_opening(run.talker.head), None
  if run.config.data.embedded_root:  # Elsewhere nobody has written down who says what when.
    closures = [demo_world.find_bilabials(clip.name) for clip in clips]
  return scoring.MotionScorer(
      clips=clips,
      clusters=motion_metrics.fit_motion_clusters([clip.motion_b for clip in clips]),
      probe=relation_probe.fit_relation_probe(training.motions()),
      lips=None if opening is None else lip_metrics.LipOpening(opening),
      speaking=[
          lip_metrics.speaking_frames(conversation.speech_b, len(conversation.motion_b)) for conversation in source
      ],
      closures=closures,
  )


def _score_motion_rows(
    run: TrainedRun, source: DualTalkSource, scorer: scoring.MotionScorer, workdir: str
) -> dict[str, list[dict[str, float]]]:
  """Scores by row of the table, one for each seed that was trained; the runs compared with by their expression's error.

  Those are the motion stages that `make compare` trains: <workdir>/compare/<variant>/seed_<n>.
  """
  mean = run.buffers["generator"]["motion_mean"]
  rows = {
      _TRUTH: [scorer.score_truth()],
      "RSATalker": [scorer.score(run.generate)],
      "constant training mean": [scorer.score(lambda clip: np.tile(mean, (len(clip.motion_a), 1)))],
  }
  compared: dict[str, list[dict[str, float]]] = {}
  scorers = {run.config.speech.to_json(): scorer}  # By what is heard: a causal run has other features of the same clips.
  for folder in sorted((pathlib.Path(workdir) / run.config.evaluation.compare).glob("*/seed_*")):
    other = load_run(str(folder))
    speech = other.config.speech.to_json()
    if speech not in scorers:
      scorers[speech] = dataclasses.replace(scorer, clips=load_clips(source, other.encode))
    compared.setdefault(other.config.evaluation.title, []).append(scorers[speech].score(other.generate))
  error = lambda title: np.mean([scores["mse/expression"] for scores in compared[title]])
  return rows | {title: compared[title] for title in sorted(compared, key=error)}


def _motion_report(rows: dict[str, list[dict[str, float]]]) -> str:
  """Tables of all that was scored, with what is needed to read them."""
  generated = {title: seeds for title, seeds in rows.items() if title != _TRUTH}
  report = (
      "Motion of unseen conversations (less is better):\n\n"
      + scoring.motion_table(generated)
      + "\nDiversity (SID: as much as the truth's) and correlation with the partner (rPCC: less is better):\n\n"
      + scoring.diversity_table(rows)
  )
  truth = rows[_TRUTH][0]
  if "lips/correlation" in truth:
    report += (
        "\nLips (closed: less than 0.5 mm apart; bilabials: within a frame of the sound):\n\n" + scoring.lip_table(rows)
    )
  if truth.get("relation/clips"):
    report += (
        f"\nRelation that a probe fitted to true motion names, share of {truth['relation/clips']} clips "
        f"({truth['relation/left_out']} left out); standard error at most "
        f"{0.5 / np.sqrt(truth['relation/clips']):.2f}:\n\n" + scoring.relation_table(rows)
    )
  return report


def _open_test_film(run: TrainedRun, clips: list[MotionClip]) -> FilmedConversation:
  """The first filmed test conversation."""
  open_capture = lambda folder: load_capture(folder, "test", background=tuple(run.config.render.background))
  films = load_films(run.data_path("triplets"), "test", clips, open_capture, run.talker.head).conversations
  if not films:
    raise InputError(run.data_path("triplets"), "split", "no test triplet", "one whose video can be compared with")
  return films[0]


def _score_frame_rows(run: TrainedRun, filmed: FilmedConversation, workdir: str):
  """Image metrics by row, and a sheet: truth, tracked, generated, error of tracked."""
  places = np.unique(np.linspace(0, len(filmed.frames) - 1, run.config.evaluation.frames).round().astype(int))
  capture, clip, frames = filmed.capture, filmed.clip, filmed.frames[places]
  film = Film.read(capture, filmed.items[places])

  nets = run.config.evaluation.lpips_nets
  score = lambda film, run, flame, offsets: film.score(run.talker, run.avatar, flame, offsets, nets)
  rows, rendered = {}, {}
  for title, stages in (("tracked motion", None), ("generated motion", None), (_BEFORE_JOINT, STAGES[:2])):
    if stages and "joint" not in run.stages:
      continue
    shown = load_run(workdir, stages) if stages else run
    flame = film.flame
    if title != "tracked motion":
      alignment = np.tile(filmed.alignment, (len(frames), 1))
      flame = jax.device_get(pose_for(shown.generate(clip)[frames], film.flame, alignment))
    rows[title], rendered[title] = score(film, shown, flame, shown.gaussian_offsets(clip.relation, frames))

  if (capture.root / "transforms_val.json").is_file():  # Cameras held out.
    others = load_capture(capture.root, "val", background=tuple(run.config.render.background))
    chosen = np.unique(np.linspace(0, len(others) - 1, run.config.evaluation.frames // 2).round().astype(int))
    other_film = Film.read(others, chosen)
    rows["tracked motion, held-out camera"], _ = score(other_film, run, other_film.flame, None)

  columns = np.linspace(0, len(frames) - 1, _SHEET_FRAMES).round().astype(int)
  error = np.minimum(4 * np.abs(rendered["tracked motion"] - film.images), 1)
  shown = film.images, rendered["tracked motion"], rendered["generated motion"], error
  return rows, np.concatenate([np.concatenate(list(x[columns]), axis=1) for x in shown], axis=0)


def _measure_flicker(run: TrainedRun, filmed: FilmedConversation) -> dict[str, float]:
  """Mean absolute difference of successive frames, of the film and of the avatar with tracked motion, and of the two
  differences: an avatar that flickers changes where the film does not."""
  places = np.arange(min(run.config.evaluation.frames, len(filmed.frames)))
  film = Film.read(filmed.capture, filmed.items[places])
  offsets = run.gaussian_offsets(filmed.clip.relation, filmed.frames[places])
  rendered = np.concatenate(
      list(render_sequence(run.talker, sharding.make_mesh(), run.avatar, film.flame, film.camera, offsets))
  )
  true, ours = np.diff(film.images, axis=0), np.diff(rendered, axis=0)
  mean = lambda x: float(np.mean(np.abs(x)))
  return {"film": mean(true), "avatar": mean(ours), "difference": mean(ours - true)}


@dataclasses.dataclass(frozen=True)
class Film:
  """Frames of a capture with their cameras and tracked parameters."""

  images: np.ndarray
  flame: dict[str, np.ndarray]
  camera: splat_kernels.Camera

  @classmethod
  def read(cls, capture: Capture, items: Sequence[int]) -> "Film":
    shown = [capture[int(item)] for item in items]
    stack = lambda key: np.stack([item[key] for item in shown])
    flame = {name: np.stack([item["flame"][name] for item in shown]) for name in shown[0]["flame"]}
    camera = splat_kernels.Camera(stack("world_to_camera"), stack("intrinsics"), capture.width, capture.height)
    return cls(stack("image"), flame, camera)

  def score(
      self, talker: Talker, avatar: Avatar, flame: dict[str, np.ndarray], offsets, lpips_nets: Sequence[str]
  ) -> tuple[dict[str, float], np.ndarray]:
    """Image metrics of an avatar in these poses against the film, and its frames; `offsets` as in `render_sequence`."""
    chunks = list(render_sequence(talker, sharding.make_mesh(), avatar, flame, self.camera, offsets))
    ends = np.cumsum([len(chunk) for chunk in chunks])
    pairs = zip(chunks, np.split(self.images, ends[:-1]))
    return scoring.score_frames(pairs, lpips_nets), np.concatenate(chunks)

