"""Moments of test conversations as pictures: the same frames by several runs, side by side in one file, kept for the next time.

A scene says what is seen (frames, camera, the filmed body), a column who moves and draws it. A picture file is named by a
checksum of all that decides its pixels, so a file that is there is the right one.
"""

import dataclasses
import hashlib
import io
import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import av
import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

import splat_kernels
from rsatalker_jax import sharding
from rsatalker_jax.avatar import Avatar
from rsatalker_jax.data.captures import Capture
from rsatalker_jax.data.pipeline import load_clips
from rsatalker_jax.data.triplets import FilmedConversation
from rsatalker_jax.files import whole_file
from rsatalker_jax.head import FlamePose, pose_for
from rsatalker_jax.media import video
from rsatalker_jax.runs import TrainedRun, views
from rsatalker_jax.talker import render_sequence
from rsatalker_jax.types import SAMPLES_PER_FRAME, Conversation, Motion

_VERSION = 1  # Of what is drawn from the same inputs; raise it to have everything drawn again.
_MOST_PIXELS = 320  # Height of a column.
_QUALITY = 21
_NAME = r"[a-z_0-9]+-[0-9a-f]{20}\.(mp4|png)"
Frame = UInt8[np.ndarray, "H W 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
  """What is seen.

  Attributes:
    name: of the conversation and of B, or of the capture.
    conversation: None where frames of a capture are shown that belong to none.
    relation: that B is told.
    frames: numbers of the frames in the conversation.
    camera: of each frame.
    body: pose of the filmed head in each frame.
    alignment: see `head.pose_for`.
    film: the frames as they were filmed; None where nobody filmed them.
  """

  name: str
  conversation: Conversation | None
  relation: Int[np.ndarray, "2"] | None
  frames: Int[np.ndarray, "T"]
  camera: splat_kernels.Camera
  body: FlamePose
  alignment: Float[np.ndarray, "3"]
  film: UInt8[np.ndarray, "T H W 3"] | None

  @classmethod
  def filmed(cls, film: FilmedConversation, conversation: Conversation, frames: Int[np.ndarray, "T"]) -> "Scene":
    """Frames of a conversation before the camera that filmed them."""
    items = film.items[np.searchsorted(film.frames, frames)]
    return cls._of_capture(film.capture, items, film.name, conversation, film.clip.relation, frames, film.alignment)

  @classmethod
  def captured(cls, capture: Capture, items: Int[np.ndarray, "T"]) -> "Scene":
    """Frames of a capture of which no conversation is known."""
    return cls._of_capture(capture, items, capture.root.name, None, None, items, np.zeros(3, np.float32))

  @classmethod
  def _of_capture(cls, capture, items, name, conversation, relation, frames, alignment) -> "Scene":
    shown = [capture[int(item)] for item in items]
    stack = lambda key: np.stack([item[key] for item in shown])
    whole = splat_kernels.Camera(stack("world_to_camera"), stack("intrinsics"), capture.width, capture.height)
    camera = views.zoom(whole, picture_height(capture.height))
    images = np.stack([_resize(video.to_uint8(item["image"]), camera) for item in shown])
    return cls(name, conversation, relation, frames, camera, capture.read_flame(items), alignment, images)

  @classmethod
  def unfilmed(
      cls,
      run: TrainedRun,
      conversation: Conversation,
      relation: Int[np.ndarray, "2"],
      frames: Int[np.ndarray, "T"],
      view: tuple[splat_kernels.Camera, FlamePose],
  ) -> "Scene":
    """Frames of a conversation that nobody filmed, before `view`: of `views.front_view`."""
    repeat = lambda x: np.broadcast_to(x, (len(frames), *np.shape(x)))
    camera, body = view
    cameras = dataclasses.replace(
        camera, world_to_camera=repeat(camera.world_to_camera), intrinsics=repeat(camera.intrinsics)
    )
    bodies = {name: repeat(x) for name, x in body.items()}
    return cls(conversation.name, conversation, relation, frames, cameras, bodies, run.alignment, None)

  @property
  def identity(self) -> str:
    """A checksum of all that is seen, and heard."""
    said = self.conversation
    heard = None if said is None else (said.speech_a, said.speech_b, said.motion_a, said.motion_b)
    camera = self.camera.world_to_camera, self.camera.intrinsics, (self.camera.width, self.camera.height)
    return digest((self.name, heard, self.relation, self.frames, camera, self.body, self.alignment, self.film))

  @property
  def sound(self) -> Float[np.ndarray, "S 2"]:
    """Both voices while the scene, whose frames follow each other, lasts: A's on the left, B's on the right."""
    part = slice(int(self.frames[0]) * SAMPLES_PER_FRAME, (int(self.frames[-1]) + 1) * SAMPLES_PER_FRAME)
    said = self.conversation
    if said is None:
      raise ValueError(f"scene {self.name}: nothing is known of what was said")
    return video.pan_two_voices(said.speech_a[part], said.speech_b[part])


def picture_height(captured: int) -> int:
  """Height of pictures of a capture of this height: even, and 320 at most."""
  return min(captured // 2 * 2, _MOST_PIXELS)


def _resize(image: Frame, camera: splat_kernels.Camera) -> Frame:
  size = camera.width, camera.height
  return image if image.shape[1::-1] == size else np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


class Method:
  """A run that generates, and its motions so far.

  Args:
    title: for captions.
    run: with a generator.
  """

  def __init__(self, title: str, run: TrainedRun):
    self.title, self.run = title, run
    self.identity = run_identity(run)
    self._motions: dict[str, Motion] = {}

  def motion(self, conversation: Conversation, relation: Int[np.ndarray, "2"]) -> Motion:
    """B's motion in the whole conversation, told this relation."""
    if conversation.name not in self._motions:
      (clip,) = load_clips([dataclasses.replace(conversation, relation=relation)], self.run.encode)
      self._motions[conversation.name] = self.run.generate(clip)
    return self._motions[conversation.name]


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
  """Who moves, and how it is drawn.

  Attributes:
    title: above the column.
    run: whose talker draws.
    avatar: the person.
    motion: of the person in each frame of a scene.
    identity: a checksum of what `motion` and `avatar` depend on, besides the scene.
    tracked: whether the head has the film's pose, not the motion's.
    corrected: whether the run's offset corrections (Eq. 8) are used.
    film: whether the film is shown instead, where there is one.
  """

  title: str
  run: TrainedRun
  avatar: Avatar
  motion: Callable[[Scene], Motion]
  identity: str
  tracked: bool = False
  corrected: bool = True
  film: bool = False

  def pose(self, scene: Scene) -> FlamePose:
    """Of the head in each frame."""
    if self.tracked:
      return scene.body
    alignment = np.broadcast_to(scene.alignment, (len(scene.frames), 3))
    return jax.device_get(pose_for(self.motion(scene), scene.body, alignment))

  def draw(self, scenes: Sequence[Scene]) -> Iterator[Frame]:
    """All frames of the scenes, one after the other: one program for all."""
    pictures = self._render([scene for scene in scenes if self._film_of(scene) is None])
    for scene in scenes:
      film = self._film_of(scene)
      yield from itertools.islice(pictures, len(scene.frames)) if film is None else film

  def _film_of(self, scene: Scene) -> UInt8[np.ndarray, "K H W 3"] | None:
    return scene.film if self.film else None

  def _render(self, scenes: Sequence[Scene]) -> Iterator[Frame]:
    if not scenes:
      return
    poses = [self.pose(scene) for scene in scenes]
    flame = {name: np.concatenate([pose[name] for pose in poses]) for name in poses[0]}
    join = lambda name: np.concatenate([getattr(scene.camera, name) for scene in scenes])
    camera = dataclasses.replace(
        scenes[0].camera, world_to_camera=join("world_to_camera"), intrinsics=join("intrinsics")
    )
    offsets = None
    if self.corrected and all(scene.relation is not None for scene in scenes):
      told = [(np.tile(np.asarray(scene.relation), (len(scene.frames), 1)), scene.frames, self.motion(scene)) for scene in scenes]
      offsets = self.run.gaussian_offsets(*map(np.concatenate, zip(*told)))
    for chunk in render_sequence(self.run.talker, sharding.make_mesh(), self.avatar, flame, camera, offsets):
      yield from video.to_uint8(chunk)


def generated_column(method: Method, drawn_by: TrainedRun) -> Column:
  """What a method generates, drawn by the avatar of a run: its own, or another's where it has none."""
  motion = lambda scene: method.motion(scene.conversation, scene.relation)[scene.frames]
  identity = digest(("generated", method.identity, run_identity(drawn_by)))
  return Column(method.title, drawn_by, drawn_by.avatar, motion, identity)


def true_column(title: str, run: TrainedRun, *, film: bool = True) -> Column:
  """The film; where there is none, true motion drawn by the run's avatar. Without `film`, the tracked pose drawn by it."""
  motion = lambda scene: scene.conversation.motion_b[scene.frames]
  return Column(title, run, run.avatar, motion, digest(("true", film, run_identity(run))), tracked=not film, film=film)


def partner_column(title: str, run: TrainedRun) -> Column:
  """A, whose motion is given, as another of the run's people, else as the run's Gaussians on another identity."""
  motion = lambda scene: scene.conversation.motion_a[scene.frames]
  partner, _ = views.choose_people(run, None, run.person or None)
  avatar = views.partner_avatar(run) if partner is None else partner.avatar
  return Column(title, run, avatar, motion, digest(("partner", run_identity(partner or run))), corrected=False)


def run_identity(run: TrainedRun) -> str:
  """A checksum of a run's parameters and of the config that gives them a meaning."""
  config = {name: section for name, section in run.config.to_dict().items() if name not in ("evaluation", "logging", "mesh")}
  return digest((repr(sorted(config.items())), run.params, run.buffers))


def digest(tree: Any) -> str:
  """A checksum of a tree of arrays, numbers and texts, its structure included."""
  checksum = hashlib.sha256(str(jax.tree.structure(tree)).encode())
  for leaf in jax.tree.leaves(tree):
    array = np.ascontiguousarray(leaf)
    checksum.update(f"{array.dtype.str} {array.shape} ".encode())
    checksum.update(array.tobytes())
  return checksum.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """A file to draw: a scene by several columns, as a video, or frame by frame on a sheet.

  Attributes:
    slug: of the file's name, before the checksum.
    scene, columns: what is drawn.
    still: a sheet, with a row for each column and the frames side by side; not a video, with the columns side by side.
  """

  slug: str
  scene: Scene
  columns: Sequence[Column]
  still: bool = False

  def path(self, folder: pathlib.Path) -> pathlib.Path:
    """Where it is kept: a name that nothing else has."""
    columns = [column.identity for column in self.columns]
    key = digest((_VERSION, _QUALITY, self.still, self.scene.identity, columns))[:20]
    return folder / f"{self.slug}-{key}{'.png' if self.still else '.mp4'}"

  def write(self, path: pathlib.Path, streams: Sequence[Iterator[Frame]]) -> None:
    """Takes the scene's frames from the streams, one for each column, and writes the file, whole or not at all."""
    count = len(self.scene.frames)
    rows = zip(*(itertools.islice(stream, count) for stream in streams), strict=True)
    if not self.still:
      frames = (np.concatenate(row, axis=1) for row in rows)
      video.write_video(path, frames, audio=self.scene.sound, quality=_QUALITY)
      return
    sheet = np.concatenate([np.concatenate(row, axis=0) for row in rows], axis=1)
    with whole_file(path) as file:
      Image.fromarray(sheet).save(file, format="PNG")


def draw_pictures(
    pictures: Sequence[Picture], folder: pathlib.Path, progress: Callable[[Iterable], Iterable] = iter
) -> list[pathlib.Path]:
  """Draws those pictures that are not there yet, and takes away those of earlier runs. Stopped, it goes on where it was.

  Args:
    pictures: all that should be there.
    folder: where.
    progress: is shown the pictures that are drawn.

  Returns:
    The file of each picture.
  """
  paths = [picture.path(folder) for picture in pictures]
  pending = [(picture, path) for picture, path in zip(pictures, paths) if not path.exists()]
  columns = dict.fromkeys(column for picture, _ in pending for column in picture.columns)
  streams = {
      column: column.draw([picture.scene for picture, _ in pending if column in picture.columns]) for column in columns
  }
  for picture, path in progress(pending):
    picture.write(path, [streams[column] for column in picture.columns])
  for old in folder.iterdir() if folder.is_dir() else ():
    if old not in paths and re.fullmatch(_NAME, old.name):
      old.unlink()
  return paths


def read_poster(path: pathlib.Path) -> bytes:
  """The frame in the middle of a video as JPEG."""
  with av.open(str(path)) as container:
    middle = container.streams.video[0].frames // 2
    frame = next(itertools.islice(container.decode(video=0), middle, None))
    return to_jpeg(frame.to_ndarray(format="rgb24"))


def to_jpeg(image: Frame, quality: int = 85) -> bytes:
  """A picture as JPEG."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
  return buffer.getvalue()


def error_rows(
    sheet: Frame, rows: int, gain: float = 4.0
) -> tuple[list[UInt8[np.ndarray, "h W 3"]], list[UInt8[np.ndarray, "h W 3"]]]:
  """A sheet's rows, and what each but the first differs from the first by, times `gain`: black where nothing does."""
  parts = np.split(sheet, rows)
  differ = lambda part: np.abs(part.astype(np.float32) - parts[0].astype(np.float32))
  return parts, [np.minimum(np.round(gain * differ(part)), 255).astype(np.uint8) for part in parts[1:]]
