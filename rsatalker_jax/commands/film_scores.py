"""Frames of a run against films of the people whom it has avatars of: drawn, compared and forgotten, a chunk at a time."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

import splat_kernels
from rsatalker_jax import sharding
from rsatalker_jax.avatar import Avatar
from rsatalker_jax.commands.image_protocols import Drawn, LipCrops, MethodRun
from rsatalker_jax.data.captures import Capture, has_frames, spread_places
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.data.triplets import FilmedConversation, load_films
from rsatalker_jax.evaluation import image_metrics, scoring
from rsatalker_jax.head import FlamePose, pose_for
from rsatalker_jax.runs import TrainedRun
from rsatalker_jax.talker import Talker, render_sequence
from rsatalker_jax.types import Motion

_SHEET_FRAMES = 6
_CHUNK = 16  # Frames that are drawn at once.
TRACKED, GENERATED = "tracked motion", "generated motion"
BEFORE_JOINT = "generated motion, before the joint stage"
HELD_OUT = "tracked motion, held-out camera"

Runs = Mapping[pathlib.Path, TrainedRun]  # By the capture of whose avatar it has; all generate alike.
Rows = dict[str, dict[str, float]]
Chunks = Iterator[Float[np.ndarray, "t H W 3"]]


@dataclasses.dataclass(frozen=True)
class Film:
  """Some frames of a capture with their cameras and tracked parameters; pixels are read when they are asked for."""

  capture: Capture
  items: Sequence[int]

  @functools.cached_property
  def flame(self) -> dict[str, np.ndarray]:
    return self.capture.read_flame(self.items)

  @functools.cached_property
  def camera(self) -> splat_kernels.Camera:
    return splat_kernels.Camera(*self.capture.read_cameras(self.items), self.capture.width, self.capture.height)

  def images(self, start: int, count: int) -> Float[np.ndarray, "t H W 3"]:
    """The film's frames from the one at `start` on."""
    return np.stack([self.capture[int(item)]["image"] for item in self.items[start : start + count]])

  def render(self, talker: Talker, avatar: Avatar, flame: FlamePose, offsets=None) -> Chunks:
    """An avatar in these poses before the film's cameras, a chunk at a time; `offsets` as in `render_sequence`."""
    return render_sequence(talker, sharding.make_mesh(), avatar, flame, self.camera, offsets, chunk=_CHUNK)

  def beside(self, rendered: Chunks) -> Iterator[tuple[Float[np.ndarray, "t H W 3"], Float[np.ndarray, "t H W 3"]]]:
    """Pairs of rendered and true frames, for as long as frames are rendered."""
    start = 0
    for ours in rendered:
      yield ours, self.images(start, len(ours))
      start += len(ours)


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
    frames: numbers of their frames in the conversations, of all films; in the capture where there are none.
    places: of the frames in each film; empty where there are none.
  """

  run: TrainedRun
  capture: Capture
  names: list[str]
  lengths: list[int]
  items: np.ndarray
  films: list[FilmedConversation]
  frames: np.ndarray
  places: Sequence[np.ndarray] = ()

  @classmethod
  def choose(cls, run: TrainedRun, films: list[FilmedConversation], choose: Callable[[int], np.ndarray]) -> "Footage":
    """Of films by one capture, the frames that `choose` gives of so many."""
    chosen = [choose(len(film.items)) for film in films]
    join = lambda name: np.concatenate([getattr(film, name)[places] for film, places in zip(films, chosen)])
    lengths = [len(places) for places in chosen]
    return cls(run, films[0].capture, name_films(films), lengths, join("items"), films, join("frames"), chosen)

  @property
  def film(self) -> Film:
    return Film(self.capture, self.items)

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
  """Image metrics: means over the frames of all films, by row; of each film; of each frame; and what they are of.

  Attributes:
    rows, by_film: scores by row, of those that all films have, and by film and row.
    by_person: by person and row; their held-out cameras among the rows.
    each: by film and row, the numbers of its frames in the conversation, "frame", and their scores, as lists.
    flicker: see `measure_flicker`.
    count: frames that each row is the mean of, but that of held-out cameras.
    sheet: truth, tracked, generated, error of tracked; of one person.
  """

  rows: Rows
  by_film: dict[str, Rows]
  by_person: dict[str, Rows]
  each: dict[str, dict[str, dict[str, list]]]
  flicker: dict[str, float]
  count: int
  sheet: np.ndarray


def find_films(
    runs: Runs, split: str, read_clips: Callable[[set[str]], Iterable[MotionClip]], names: Iterable[str]
) -> tuple[list[list[FilmedConversation]], str]:
  """The films of a split's conversations by people whom the run has avatars of, person by person; or why there are none.

  Args:
    read_clips: gives the clips of these names.
    names: of the films' clips: those that the split's triplets name.
  """
  run = next(iter(runs.values()))
  manifest = run.data_path("triplets")
  if not manifest.is_file():
    return [], f"there is no {manifest}"
  clips = list(read_clips(set(names)))
  films = load_films(manifest, split, clips, lambda folder: run.talker.open_capture(folder, split), run.talker.head)
  known: dict[pathlib.Path, list[FilmedConversation]] = {}
  for film in films.conversations:
    if (folder := film.capture.root.resolve()) in runs:
      known.setdefault(folder, []).append(film)
  others = f" but {len(films.conversations)} of people whom the run has no avatar of" if films.conversations else ""
  return list(known.values()), f"{manifest} names no film of the split {split}{others}"


def name_films(films: Sequence[FilmedConversation]) -> list[str]:
  """Names of one person's films: the conversation's, with the camera where several filmed it."""
  names = [film.name for film in films]
  cameras = [film.capture.camera_indices[film.items[0]] for film in films]
  return [f"{name}, camera {camera}" if names.count(name) > 1 else name for name, camera in zip(names, cameras)]


def score_films(
    runs: Runs,
    earlier: Runs,
    split: str,
    people: list[list[FilmedConversation]] | None,
    methods: Sequence[MethodRun] = (),
) -> tuple[FrameScores | None, str]:
  """Scores `evaluation.frames` frames, as many of each film, at least one; or why there are none.

  Args:
    runs: with avatars, or of an image-based baseline, which then is one of `methods`.
    earlier: the runs before their joint stage, if they have one.
    people: the films; None (the run has no generator): they are the split of the captures.
    methods: image-based baselines that stand in the same table.
  """
  config = next(iter(runs.values())).config.evaluation
  if people is None:
    found = {folder: run for folder, run in runs.items() if has_frames(folder, split)}
    if not found:
      return None, f"no frames of the split {split} in {', '.join(map(str, runs))}"
    count = -(-config.frames // len(found))
    still, moving = [], []
    for folder, run in found.items():
      capture = run.talker.open_capture(folder, split)
      for part, items in (still, spread_places(len(capture), count)), (moving, np.arange(min(count, len(capture)))):
        part.append(Footage(run, capture, [folder.name], [len(items)], items, [], capture.timesteps[items]))
  else:
    count = -(-config.frames // sum(map(len, people)))
    of = lambda films: runs[films[0].capture.root.resolve()]
    still = [Footage.choose(of(films), films, lambda length: spread_places(length, count)) for films in people]
    moving = [Footage.choose(of(films), films, lambda length: np.arange(min(count, length))) for films in people]

  each, sheet, films_of = {}, None, {}
  for footage in still:
    root = footage.capture.root.resolve()
    of_person = [method for method in methods if method.films[0].capture.root.resolve() == root]
    frames, drawn = _score_footage(footage, _draw_rows(footage, earlier.get(root), of_person), config.lpips_nets)
    each |= frames
    films_of[footage.run.person] = list(frames)
    sheet = drawn if sheet is None else sheet
  mean = lambda scores: {name: float(np.mean(values)) for name, values in scores.items() if name != "frame"}
  by_film = {film: {title: mean(scores) for title, scores in rows.items()} for film, rows in each.items()}
  counts = {film: len(next(iter(rows.values()))["frame"]) for film, rows in each.items()}
  means = mean_rows((counts[film], rows) for film, rows in by_film.items())
  by_person = {name: mean_rows((counts[film], by_film[film]) for film in films) for name, films in films_of.items()}
  own = not any(run.draws_images for run in runs.values())
  if own and split != "val" and (held_out := _score_held_out(still, config)):
    means |= mean_rows(held_out.values())
    for name, (_, rows) in held_out.items():
      by_person[name] |= rows
  flicker = measure_flicker(moving, config.lpips_nets) if own else {}
  return FrameScores(means, by_film, by_person, each, flicker, sum(counts.values()), sheet), ""


def _draw_rows(footage: Footage, earlier: TrainedRun | None, methods: Sequence[MethodRun]) -> dict[str, Drawn]:
  """The rows of one person's frames: the run's own, if it has an avatar, and those of image-based baselines."""
  film, run, rows = footage.film, footage.run, {}
  generates = bool(footage.films) and "generator" in run.params
  if not run.draws_images:
    rows[TRACKED] = Drawn(film.render(run.talker, run.avatar, film.flame, footage.offsets(run)), film.flame)
    for title, other in {GENERATED: run, BEFORE_JOINT: earlier}.items():
      if generates and other is not None:
        motion = footage.motion(other.generate)
        pose = footage.pose(motion, film.flame)
        rows[title] = Drawn(film.render(other.talker, other.avatar, pose, footage.offsets(other, motion)), pose)
  pose = (lambda: footage.pose(footage.motion(run.generate), film.flame)) if generates else None
  for method in methods:
    rows |= method.draw(footage.places, pose, chunk=_CHUNK)
  return rows


def _score_footage(
    footage: Footage, drawn: Mapping[str, Drawn], lpips_nets: Sequence[str]
) -> tuple[dict[str, dict[str, dict[str, list]]], np.ndarray]:
  """Scores of each frame by film and row, and the sheet. All rows are drawn side by side, so that a frame is read once.

  Where the head has a mouth also "lips/psnr" …, of the crops about them.
  """
  film, cameras = footage.film, footage.capture.read_cameras(footage.items)
  lips = LipCrops.of(footage.run, footage.capture)
  centres = {} if lips is None else {title: lips.centres(row.flame, cameras) for title, row in drawn.items()}
  true_centres = None if lips is None else lips.centres(film.flame, cameras)
  scores: dict[str, list[dict[str, np.ndarray]]] = {title: [] for title in drawn}
  columns, sheet = spread_places(len(footage.items), _SHEET_FRAMES), []
  start = 0
  for images in zip(*(row.chunks for row in drawn.values()), strict=True):
    rendered = dict(zip(drawn, images))
    true = film.images(start, len(images[0]))
    here = slice(start, start + len(true))
    for title, ours in rendered.items():
      found = scoring.score_each_frame([(ours, true)], lpips_nets)
      if lips is not None and true_centres is not None:
        pair = lips.cut(ours, centres[title][here]), lips.cut(true, true_centres[here])
        found |= {f"lips/{name}": values for name, values in scoring.score_each_frame([pair], lpips_nets).items()}
      scores[title].append(found)
    first = next(iter(rendered))  # With tracked motion, or the true pose.
    error = np.minimum(4 * np.abs(rendered[first] - true), 1)
    titles = [title for title in (TRACKED, GENERATED) if title in rendered] or rendered
    shown = [true, *(rendered[title] for title in titles), error]
    sheet += [np.concatenate([row[place - start] for row in shown]) for place in columns if start <= place < start + len(true)]
    start += len(true)
  ends = np.cumsum(footage.lengths)[:-1]
  each = {name: {} for name in footage.names}
  for title, chunks in scores.items():
    whole = {"frame": footage.frames} | {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    for i, name in enumerate(footage.names):
      each[name][title] = {score: np.split(values, ends)[i].tolist() for score, values in whole.items()}
  return each, np.concatenate(sheet, axis=1)


def _score_held_out(footage: Sequence[Footage], config: ConfigDict) -> dict[str, tuple[int, Rows]]:
  """Tracked motion before the cameras that a capture holds out, for each person whose capture has some: frames, and their means."""
  parts = {}
  for run, capture in ((part.run, part.capture) for part in footage):
    if has_frames(capture.root, "val"):
      others = run.talker.open_capture(capture.root, "val")
      film = Film(others, spread_places(len(others), -(-config.frames // 2)))
      images = film.render(run.talker, run.avatar, film.flame)
      parts[run.person] = len(film.items), {HELD_OUT: scoring.score_frames(film.beside(images), config.lpips_nets)}
  return parts


def mean_rows(parts: Iterable[tuple[int, Rows]]) -> Rows:
  """Means over frames, from the number of frames and the means of each part; of the rows that all parts have."""
  numbers, rows = zip(*parts)
  mean = lambda title, name: float(np.average([row[title][name] for row in rows], weights=numbers))
  shared = [title for title in rows[0] if all(title in row for row in rows)]
  return {title: {name: mean(title, name) for name in rows[0][title]} for title in shared}


def measure_flicker(footage: Sequence[Footage], lpips_nets: Sequence[str] = ()) -> dict[str, float]:
  """How much successive frames change: an avatar that flickers changes where the film does not. With tracked motion.

  Returns:
    "film", "avatar": mean absolute difference of successive frames; "difference": of these differences,
    mean |(y_t+1 − y_t) − (x_t+1 − x_t)|. And where the network of LPIPS is among `lpips_nets`, "lpips_alex_film", …,
    "lpips_alex_difference": mean LPIPS(x_t, x_t+1), LPIPS(y_t, y_t+1), and |LPIPS(y_t, y_t+1) − LPIPS(x_t, x_t+1)|.
    Empty where no two frames follow each other.
  """
  measure = _compiled_changes(tuple(lpips_nets))
  changes = []
  for part in footage:
    times, cameras = (np.diff(x[part.items]) for x in (part.capture.timesteps, part.capture.camera_indices))
    follows = np.concatenate([[False], (times == 1) & (cameras == 0)])
    follows[np.cumsum(part.lengths)[:-1]] = False  # Another film.
    if not follows.any():
      continue
    film, run, before, start = part.film, part.run, None, 0
    for ours, true in film.beside(film.render(run.talker, run.avatar, film.flame, part.offsets(run))):
      # The first frame follows itself: pairs of every chunk are as many as its frames, and compiled once.
      before = (ours[:1], true[:1]) if before is None else before
      pairs = [(np.concatenate([last, frames[:-1]]), frames) for last, frames in zip(before, (ours, true))]
      found = jax.device_get(measure(*pairs))
      inside = follows[start : start + len(ours)]
      changes.append({name: values[inside] for name, values in found.items()})
      before, start = (ours[-1:], true[-1:]), start + len(ours)
  return {name: float(np.mean(np.concatenate([part[name] for part in changes]))) for name in changes[0]} if changes else {}


@functools.cache
def _compiled_changes(lpips_nets: tuple[str, ...]):
  """The changes of pairs of frames, of the avatar's and of the film's."""
  mean = functools.partial(jnp.mean, axis=(1, 2, 3))

  def measure(ours, true):
    (y0, y1), (x0, x1) = ours, true
    changes = {"film": mean(jnp.abs(x1 - x0)), "avatar": mean(jnp.abs(y1 - y0)), "difference": mean(jnp.abs((y1 - y0) - (x1 - x0)))}
    for net in lpips_nets:
      avatar, film = image_metrics.lpips(y0, y1, net), image_metrics.lpips(x0, x1, net)
      changes |= {f"lpips_{net}_film": film, f"lpips_{net}_avatar": avatar, f"lpips_{net}_difference": jnp.abs(avatar - film)}
    return changes

  return jax.jit(measure)
