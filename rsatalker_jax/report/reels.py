"""Which videos and sheets a report has, and how they stand on the page."""

import dataclasses
import html
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rsatalker_jax.data.captures import has_frames, spread_places
from rsatalker_jax.report import page, scenes
from rsatalker_jax.report.material import SPLIT, Cast, TestSet
from rsatalker_jax.report.motion import MotionCharts, name_relation
from rsatalker_jax.report.scenes import Column, Picture, Scene
from rsatalker_jax.report.turns import Moment
from rsatalker_jax.types import FPS

_SHEETS, _SHEET_FRAMES = 3, 6
_ROLES = {
    "speaker": "B speaks",
    "listener": "B listens",
    "both": "A and B in turns",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Reel:
  """A video, and the moment that it shows."""

  moment: Moment
  picture: Picture


class Plan:
  """All pictures of a report.

  Args:
    cast, test: see `material`.
    exchange: the moment that the page begins with.
    moments: those of the videos.
    missing: gets a line for what cannot be drawn.

  Attributes:
    hero: the first video, or None.
    reels: the others.
    sheets: of frames.
  """

  def __init__(
      self, cast: Cast, test: TestSet, exchange: Moment | None, moments: Sequence[Moment], missing: list[str]
  ):
    self._cast, self._test = cast, test
    self.hero: Reel | None = None
    self.reels: list[Reel] = []
    self.sheets: list[Picture] = []
    if not test.can_be_drawn(missing):
      return
    truth = scenes.true_column("truth", cast.run)
    tracked = scenes.true_column("tracked motion", cast.run, film=False)
    generated = [scenes.generated_column(x, cast.drawn_by(x)) for x in (cast.ours, *cast.others) if x is not None]
    if exchange is not None:
      partner = scenes.partner_column("A, whose motion is given", cast.run)
      columns = [partner, truth, generated[0]]
      self.hero = Reel(exchange, Picture("conversation", test.scene(exchange), columns))
    for moment in moments:
      slug = f"{moment.turns.relation.replace(',', '_')}_{moment.role}"
      self.reels.append(Reel(moment, Picture(slug, test.scene(moment), [truth, *generated])))
    for number, scene in enumerate(self._sheet_scenes(missing)):
      self.sheets.append(Picture(f"sheet_{number}", scene, [truth, tracked, *generated], still=True))

  def _sheet_scenes(self, missing: list[str]) -> list[Scene]:
    if self._cast.ours is not None:
      films = list(self._test.films.values())[:_SHEETS]
      return [Scene.filmed(film, self._test.conversation(film.name), film.frames[spread_places(len(film.frames), _SHEET_FRAMES)]) for film in films]
    folder = self._cast.run.data_path("capture")
    if not has_frames(folder, SPLIT):
      missing.append(f"no sheet: there are no frames of the split {SPLIT} in {folder}")
      return []
    capture = self._cast.run.talker.open_capture(folder, SPLIT)
    return [Scene.captured(capture, spread_places(len(capture), _SHEET_FRAMES))]

  @property
  def pictures(self) -> list[Picture]:
    """All, in the order in which they are drawn."""
    return [reel.picture for reel in ([self.hero] if self.hero else []) + self.reels] + self.sheets


def show_reel(reel: Reel, path: pathlib.Path, cast: Cast, charts: MotionCharts) -> str:
  """A video with its captions and, below it, its motion."""
  moment, scene = reel.moment, reel.picture.scene
  start, stop = moment.start / FPS, moment.stop / FPS
  filmed = scene.film is not None
  truth = "truth: the film" if filmed else "true motion, drawn"
  columns = [truth if column.film else _head(column, cast) for column in reel.picture.columns]
  shown = "" if filmed else " Nobody filmed this: the truth is the true motion, drawn by the avatar of the run."
  caption = (
      f"<b>{_ROLES[moment.role]}</b>, {html.escape(name_relation(moment.turns.relation))}: {html.escape(scene.name)}, "
      f"{start:.1f} to {stop:.1f} s.{shown}"
  )
  size = scene.camera.width * len(columns), scene.camera.height
  chart = charts.draw(moment.turns, moment.start, moment.stop, origin=0.0, width=760, height=44, few=True)
  return page.video_figure(
      path.read_bytes(),
      scenes.read_poster(path),
      seconds=stop - start,
      size=size,
      columns=columns,
      label=f"{_ROLES[moment.role]}, {name_relation(moment.turns.relation)}",
      caption=caption,
      below=f'<div class="scroll long" role="region" aria-label="Its motion" tabindex="0">{chart}</div>',
  )


def _head(column: Column, cast: Cast) -> str:
  """A column's title, with whose avatar draws it where it is not its own."""
  own = column.title == cast.run.config.evaluation.title or column.run is not cast.run or not column.corrected
  return column.title if own else f"{column.title} (motion alone, drawn by our avatar)"


def show_sheet(picture: Picture, path: pathlib.Path) -> str:
  """A sheet: the film, and each column with what it differs from the film by."""
  with Image.open(path) as image:
    parts, errors = scenes.error_rows(np.asarray(image.convert("RGB")), len(picture.columns))
  rows = [("the film", parts[0])]
  for column, part, error in zip(picture.columns[1:], parts[1:], errors):
    rows += [(column.title, part), (f"{column.title}: error × 4", error)]
  columns = [f"{frame / FPS:.1f} s" for frame in picture.scene.frames]
  return page.sheet_figure(
      [(title, scenes.to_jpeg(row)) for title, row in rows],
      columns=columns,
      caption=f"{html.escape(picture.scene.name)}. Error: absolute difference from the film, times 4; black where there is none. "
      "With tracked motion, it is the avatar's; with generated motion, most of it is where the head is.",
  )


def show_reels(reels: Sequence[tuple[Reel, str]], legend: str) -> str:
  """The videos, by relation."""
  parts = [
      ("<p>For each relation the longest stretch in which B speaks, and the longest in which B listens while A speaks, from "
       "its beginning on; filmed ones first. All columns are one video, so that they stay together; both voices are heard, "
       "A's on the left and B's on the right.</p>"),
      legend,
  ] if reels else []
  before = None
  for reel, figure in reels:
    relation = reel.moment.turns.relation
    if relation != before:
      parts.append(f"<h3>{html.escape(name_relation(relation).capitalize())}</h3>")
    parts.append(figure)
    before = relation
  return "".join(parts)
