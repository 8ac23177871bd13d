"""What eval.py does: scores what a run has, motion and frames, on one split, and writes tables and a sheet of frames."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

import splat_kernels
from rsatalker_jax import sharding
from rsatalker_jax.avatar import Avatar
from rsatalker_jax.data.capture_collection import name_people
from rsatalker_jax.data.captures import Capture, has_frames
from rsatalker_jax.data.conversations import data_paths, load_conversations
from rsatalker_jax.data.dualtalk import DualTalkSource
from rsatalker_jax.data.pipeline import MotionClip, load_clips
from rsatalker_jax.data.triplets import FilmedConversation, label_clips, load_films, load_triplets
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import demo_world, lip_metrics, motion_metrics, relation_probe, scoring, tables
from rsatalker_jax.files import whole_file
from rsatalker_jax.head import FlamePose, LipOpening, make_lip_opening, pose_for
from rsatalker_jax.media.video import to_uint8
from rsatalker_jax.runs import STAGES, TrainedRun, load_config, load_parameters, load_run, workdir as workdirs
from rsatalker_jax.talker import Talker, render_sequence
from rsatalker_jax.types import Motion

_SHEET_FRAMES = 6
_TRUTH, _CONSTANT = "true motion", "constant training mean"
_TRACKED, _GENERATED = "tracked motion", "generated motion"
_BEFORE_JOINT = "generated motion, before the joint stage"
_HELD_OUT = "tracked motion, held-out camera"

Runs = Mapping[pathlib.Path, TrainedRun]  # By the capture of whose avatar it has; all generate alike.
Rows = dict[str, dict[str, float]]


def score_run(workdir: str, split: str = "test", *, config: ConfigDict | None = None) -> str:
  """Scores a run, writes results.json, results.md and, where frames were scored, frames.png, and returns the Markdown.

  They are written to <workdir>/evaluation for the split test, to <workdir>/evaluation/<split> for others.

  Args:
    workdir: the run. What it has is scored: motion, if it has a generator; frames, if it has an avatar: of the films of the
      conversations, or without a generator those of its capture, in their tracked poses alone.
    split: of the conversations and their films: val, test or ood.
    config: the whole config, if it was given. It must be the one that made the run; what may differ and matters here, its
      sections `data` and `evaluation`, is then taken from it.

  Raises:
    InputError: another config, a run with a generator and no conversations in the split, or nothing that can be scored.
  """
  if config is not None:
    workdirs.check_workdir(workdir, config, must_exist=True)
  runs = _load_runs(workdir, config)
  run = next(iter(runs.values()))
  results, sections, missing, clips = {"run": workdir, "stages": run.stages, "split": split}, [], [], None

  if "generator" in run.params:
    source = load_conversations(run.config.data, split)
    clips = _read_clips(run, source, split)
    scorer = make_scorer(run, source, clips)
    results["motion"] = _score_motion_rows(run, source, scorer, split, workdir)
    sections.append(f"{source.summary()}\n\n" + _motion_report(results["motion"]))
  else:
    missing.append("motion is not scored: the run has no motion stage")

  earlier = _load_runs(workdir, config, STAGES[:2]) if "joint:" in run.stages else {}
  frames, reason = _score_frames(runs, earlier, split, clips)
  if frames is not None:
    results |= {"frames": frames.rows, "films": frames.by_film, "flicker": frames.flicker}
    sections.append(_frame_report(frames, filmed=clips is not None))
  else:
    missing.append(f"frames are not scored: {reason}")
  if not sections:
    raise InputError(workdir, "", "; ".join(missing), f"a run of which something can be scored on {split}")

  markdown = "\n".join([f"Run {workdir} ({run.stages}), split {split}", *sections])
  markdown += "".join(f"\n{line[0].upper()}{line[1:]}.\n" for line in missing)
  folder = pathlib.Path(workdir) / "evaluation"
  folder = folder if split == "test" else folder / split
  tables.write_results(folder, results | {"missing": missing}, markdown)
  (folder / "frames.png").unlink(missing_ok=True)  # Of an earlier evaluation.
  if frames is not None:
    with whole_file(folder / "frames.png") as file:
      Image.fromarray(to_uint8(frames.sheet)).save(file, format="PNG")
  return markdown


def _load_runs(workdir: str, config: ConfigDict | None, stages: Sequence[str] = STAGES) -> Runs:
  """The run, by its capture; once for each of its people where it has a bank of them. `config` as in `score_run`."""
  params, *_ = load_parameters(workdir, stages)
  people = [None]
  if sharding.BANK in params:
    people = name_people(data_paths(ConfigDict(load_config(workdir)).data, "captures"))
  runs = {}
  for number, person in enumerate(people):
    run = load_run(workdir, stages, person=person)
    if config is not None:
      sections = {name: config[name].to_dict() for name in ("data", "evaluation")}
      run = dataclasses.replace(run, config=ConfigDict(run.config.to_dict() | sections))
      if person is not None:
        run.config.data.capture = config.data.captures[number]
    runs[run.data_path("capture").resolve()] = run
  return runs


# --- Motion


def _read_clips(run: TrainedRun, source: DualTalkSource, split: str) -> list[MotionClip]:
  """The clips as this run hears them, with the relations that their triplets know."""
  manifest = run.data_path("triplets")
  triplets = load_triplets(manifest, split) if manifest.is_file() else []
  return label_clips(load_clips(source, run.encode), triplets)


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
      lips=None if opening is None else LipOpening(opening),
      speaking=[
          lip_metrics.speaking_frames(conversation.speech_b, len(conversation.motion_b)) for conversation in source
      ],
      closures=closures,
  )


def _score_motion_rows(
    run: TrainedRun, source: DualTalkSource, scorer: scoring.MotionScorer, split: str, workdir: str
) -> dict[str, list[dict[str, float]]]:
  """Scores by row of the table, one for each seed that was trained; the runs compared with by their expression's error.

  Those are the motion stages that `make compare` trains: <workdir>/compare/<variant>/seed_<n>.
  """
  mean = run.buffers["generator"]["motion_mean"]
  compared: dict[str, list[dict[str, float]]] = {}
  scorers = {run.config.speech.to_json(): scorer}  # By what is heard: a causal run has other features of the same clips.
  for folder in sorted((pathlib.Path(workdir) / run.config.evaluation.compare).glob("*/seed_*")):
    other = load_run(str(folder))
    speech = other.config.speech.to_json()
    if speech not in scorers:
      scorers[speech] = dataclasses.replace(scorer, clips=_read_clips(other, source, split))
    compared.setdefault(other.config.evaluation.title, []).append(scorers[speech].score(other.generate))
  error = lambda title: np.mean([scores["mse/expression"] for scores in compared[title]])
  title = run.config.evaluation.title
  rows = {
      _TRUTH: [scorer.score_truth()],
      f"{title}, this run" if title in compared else title: [scorer.score(run.generate)],
      _CONSTANT: [scorer.score(lambda clip: np.tile(mean, (len(clip.motion_a), 1)))],
  }
  return rows | {title: compared[title] for title in sorted(compared, key=error)}


def _motion_report(rows: dict[str, list[dict[str, float]]]) -> str:
  """Tables of all that was scored, with what is needed to read them."""
  generated = {title: seeds for title, seeds in rows.items() if title != _TRUTH}
  report = (
      "Motion of unseen conversations (less is better):\n\n"
      + scoring.motion_table(generated)
      + "\nDiversity (SID: as much as the truth's) and correlation with the partner (rPCC: less is better):\n\n"
      + scoring.diversity_table(rows)
      + "\nSID as other code computes it, k-means fitted to each clip alone: to its truth, of the prediction's frames (TIMAR's "
      + "`sid`), and swapped, to its prediction, of the truth's frames (DualTalk's script). Not comparable with SID above:\n\n"
      + scoring.clip_diversity_table(rows)
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


# --- Frames


@dataclasses.dataclass(frozen=True)
class Film:
  """Frames of a capture with their cameras and tracked parameters."""

  images: np.ndarray
  flame: FlamePose
  camera: splat_kernels.Camera

  @classmethod
  def read(cls, capture: Capture, items: Sequence[int]) -> "Film":
    shown = [capture[int(item)] for item in items]
    stack = lambda key: np.stack([item[key] for item in shown])
    flame = {name: np.stack([item["flame"][name] for item in shown]) for name in shown[0]["flame"]}
    camera = splat_kernels.Camera(stack("world_to_camera"), stack("intrinsics"), capture.width, capture.height)
    return cls(stack("image"), flame, camera)

  def render(self, talker: Talker, avatar: Avatar, flame: FlamePose, offsets=None) -> np.ndarray:
    """An avatar in these poses before the film's cameras; `offsets` as in `render_sequence`."""
    return np.concatenate(list(render_sequence(talker, sharding.make_mesh(), avatar, flame, self.camera, offsets)))


@dataclasses.dataclass(frozen=True)
class Footage:
  """What a run's frames are compared with of one person: some frames of one capture, film after film.

  Attributes:
    run: with the person's avatar.
    capture: the person's.
    names: of the films.
    lengths: frames of each film.
    items: the capture's items, of all films.
    films: the conversations that the films show; empty where nothing but the capture is known.
    frames: numbers of their frames in the conversations, of all films.
  """

  run: TrainedRun
  capture: Capture
  names: list[str]
  lengths: list[int]
  items: np.ndarray
  films: list[FilmedConversation]
  frames: np.ndarray

  @classmethod
  def choose(cls, run: TrainedRun, films: list[FilmedConversation], choose: Callable[[int], np.ndarray]) -> "Footage":
    """Of films by one capture, the frames that `choose` gives of so many."""
    chosen = [choose(len(film.items)) for film in films]
    join = lambda name: np.concatenate([getattr(film, name)[places] for film, places in zip(films, chosen)])
    lengths = [len(places) for places in chosen]
    return cls(run, films[0].capture, _name_films(films), lengths, join("items"), films, join("frames"))

  def motion(self, of: Callable[[MotionClip], Motion]) -> Motion:
    """Of the frames, from the motion of whole clips."""
    parts = np.split(self.frames, np.cumsum(self.lengths)[:-1])
    return np.concatenate([of(film.clip)[frames] for film, frames in zip(self.films, parts)])

  def pose(self, motion: Motion, flame: FlamePose) -> FlamePose:
    """A motion of the frames, on the bodies that were filmed."""
    alignments = [np.tile(film.alignment, (length, 1)) for film, length in zip(self.films, self.lengths)]
    return jax.device_get(pose_for(motion, flame, np.concatenate(alignments)))

  def offsets(self, run: TrainedRun, motion: Motion | None = None):
    """A run's offsets for the frames in a motion, the true one if not given, as `render_sequence` wants them."""
    if not self.films:
      return None
    motion = self.motion(lambda clip: clip.motion_b) if motion is None else motion
    relations = [np.tile(film.clip.relation, (length, 1)) for film, length in zip(self.films, self.lengths)]
    return run.gaussian_offsets(np.concatenate(relations), self.frames, motion)


@dataclasses.dataclass(frozen=True)
class FrameScores:
  """Image metrics: means over the frames of all films, by row; of each film; and what they are of.

  Attributes:
    rows, by_film: scores by row, and by film and row.
    flicker: see `_measure_flicker`.
    count: frames that each row is the mean of, but that of held-out cameras.
    sheet: truth, tracked, generated, error of tracked; of one person.
  """

  rows: Rows
  by_film: dict[str, Rows]
  flicker: dict[str, float]
  count: int
  sheet: np.ndarray


def _find_films(runs: Runs, split: str, clips: list[MotionClip]) -> tuple[list[list[FilmedConversation]], str]:
  """The films of a split's conversations by people whom the run has avatars of, person by person; or why there are none."""
  run = next(iter(runs.values()))
  manifest = run.data_path("triplets")
  if not manifest.is_file():
    return [], f"there is no {manifest}"
  films = load_films(manifest, split, clips, lambda folder: run.talker.open_capture(folder, split), run.talker.head)
  known: dict[pathlib.Path, list[FilmedConversation]] = {}
  for film in films.conversations:
    if (folder := film.capture.root.resolve()) in runs:
      known.setdefault(folder, []).append(film)
  others = f" but {len(films.conversations)} of people whom the run has no avatar of" if films.conversations else ""
  return list(known.values()), f"{manifest} names no film of the split {split}{others}"


def _name_films(films: Sequence[FilmedConversation]) -> list[str]:
  """Names of one person's films: the conversation's, with the camera where several filmed it."""
  names = [film.name for film in films]
  cameras = [film.capture.camera_indices[film.items[0]] for film in films]
  return [f"{name}, camera {camera}" if names.count(name) > 1 else name for name, camera in zip(names, cameras)]


def _spread(length: int, count: int) -> np.ndarray:
  """Up to `count` of `length` places, from the first to the last."""
  return np.unique(np.linspace(0, length - 1, count).round().astype(int))


def _score_frames(
    runs: Runs, earlier: Runs, split: str, clips: list[MotionClip] | None
) -> tuple[FrameScores | None, str]:
  """Scores `evaluation.frames` frames, as many of each film, at least one; or why there are none.

  Args:
    earlier: the runs before their joint stage, if they have one.
    clips: without them (the run has no generator) the films are the split of the captures.
  """
  run = next(iter(runs.values()))
  config = run.config.evaluation
  if "avatar" not in run.params:
    return None, "the run has no avatar stage"
  if clips is None:
    found = {folder: run for folder, run in runs.items() if has_frames(folder, split)}
    if not found:
      return None, f"no frames of the split {split} in {', '.join(map(str, runs))}"
    count = -(-config.frames // len(found))
    still, moving = [], []
    for folder, run in found.items():
      capture = run.talker.open_capture(folder, split)
      for part, items in (still, _spread(len(capture), count)), (moving, np.arange(min(count, len(capture)))):
        part.append(Footage(run, capture, [folder.name], [len(items)], items, [], np.zeros(0, int)))
  else:
    people, reason = _find_films(runs, split, clips)
    if not people:
      return None, reason
    count = -(-config.frames // sum(map(len, people)))
    of = lambda films: runs[films[0].capture.root.resolve()]
    still = [Footage.choose(of(films), films, lambda length: _spread(length, count)) for films in people]
    moving = [Footage.choose(of(films), films, lambda length: np.arange(min(count, length))) for films in people]

  by_film, counts, sheet = {}, {}, None
  for footage in still:
    rows, drawn = _score_footage(footage, earlier.get(footage.capture.root.resolve()), config.lpips_nets)
    by_film |= rows
    counts |= dict(zip(footage.names, footage.lengths))
    sheet = drawn if sheet is None else sheet
  means = _mean_rows((counts[name], rows) for name, rows in by_film.items())
  if split != "val" and (held_out := _score_held_out(still, config)):
    means |= _mean_rows(held_out)
  return FrameScores(means, by_film, _measure_flicker(moving), sum(counts.values()), sheet), ""


def _score_footage(
    footage: Footage, earlier: TrainedRun | None, lpips_nets: Sequence[str]
) -> tuple[dict[str, Rows], np.ndarray]:
  """Image metrics by film and row, and the sheet."""
  film = Film.read(footage.capture, footage.items)
  run = footage.run
  rendered = {_TRACKED: film.render(run.talker, run.avatar, film.flame, footage.offsets(run))}
  if footage.films:
    for title, other in {_GENERATED: run, _BEFORE_JOINT: earlier}.items():
      if other is not None:
        motion = footage.motion(other.generate)
        pose = footage.pose(motion, film.flame)
        rendered[title] = film.render(other.talker, other.avatar, pose, footage.offsets(other, motion))
  ends = np.cumsum(footage.lengths)
  rows: dict[str, Rows] = {name: {} for name in footage.names}
  for title, images in rendered.items():
    for name, ours, true in zip(footage.names, np.split(images, ends[:-1]), np.split(film.images, ends[:-1])):
      rows[name][title] = scoring.score_images(ours, true, lpips_nets)
  columns = _spread(len(film.images), _SHEET_FRAMES)
  error = np.minimum(4 * np.abs(rendered[_TRACKED] - film.images), 1)
  shown = [film.images, *(rendered[title] for title in (_TRACKED, _GENERATED) if title in rendered), error]
  return rows, np.concatenate([np.concatenate(list(x[columns]), axis=1) for x in shown], axis=0)


def _score_held_out(footage: Sequence[Footage], config: ConfigDict) -> list[tuple[int, Rows]]:
  """Tracked motion before the cameras that a capture holds out, for each capture that has some."""
  parts = []
  for run, capture in ((part.run, part.capture) for part in footage):
    if has_frames(capture.root, "val"):
      others = run.talker.open_capture(capture.root, "val")
      film = Film.read(others, _spread(len(others), -(-config.frames // 2)))
      images = film.render(run.talker, run.avatar, film.flame)
      parts.append((len(images), {_HELD_OUT: scoring.score_images(images, film.images, config.lpips_nets)}))
  return parts


def _mean_rows(parts: Iterable[tuple[int, Rows]]) -> Rows:
  """Means over frames, from the number of frames and the means of each part."""
  numbers, rows = zip(*parts)
  mean = lambda title, name: float(np.average([row[title][name] for row in rows], weights=numbers))
  return {title: {name: mean(title, name) for name in scores} for title, scores in rows[0].items()}


def _measure_flicker(footage: Sequence[Footage]) -> dict[str, float]:
  """Mean absolute difference of successive frames, of the films and of the avatars with tracked motion, and of the two
  differences: an avatar that flickers changes where the film does not. Empty where no two frames follow each other."""
  sums, pixels = dict.fromkeys(("film", "avatar", "difference"), 0.0), 0
  for part in footage:
    times, cameras = (np.diff(x[part.items]) for x in (part.capture.timesteps, part.capture.camera_indices))
    follows = (times == 1) & (cameras == 0)
    follows[np.cumsum(part.lengths)[:-1] - 1] = False  # Another film.
    if not follows.any():
      continue
    film = Film.read(part.capture, part.items)
    rendered = film.render(part.run.talker, part.run.avatar, film.flame, part.offsets(part.run))
    true, ours = (np.diff(images, axis=0)[follows] for images in (film.images, rendered))
    for name, difference in (("film", true), ("avatar", ours), ("difference", ours - true)):
      sums[name] += float(np.abs(difference).sum(dtype=np.float64))
    pixels += true.size
  return {name: value / pixels for name, value in sums.items()} if pixels else {}


def _frame_report(scores: FrameScores, *, filmed: bool) -> str:
  """Tables of the frames, with what is needed to read them."""
  films = f"{scores.count} frames of {len(scores.by_film)} film{'s' * (len(scores.by_film) > 1)}"
  report = f"Rendered frames{' of unseen conversations' * filmed}, {films}:\n\n" + scoring.image_table(scores.rows)
  if len(scores.by_film) > 1:
    report += "\nBy film, PSNR in dB:\n\n" + scoring.film_table(scores.by_film)
  if flicker := scores.flicker:
    report += (
        f"\nSuccessive frames differ by {flicker['film']:.5f} in the film and by {flicker['avatar']:.5f} in the avatar with "
        f"tracked motion (mean absolute difference); these differences differ by {flicker['difference']:.5f}.\n"
    )
  return report
