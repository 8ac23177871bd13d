"""Frames of a person's films with what drives them: head pose, eyes, and the speech of the conversation that the film shows."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.baselines.image.audio import speech_around
from rsatalker_jax.baselines.image.boxes import Boxes
from rsatalker_jax.baselines.image.controls import Controls
from rsatalker_jax.baselines.image.method import Drive, Subject
from rsatalker_jax.baselines.image.pose import joint_transforms
from rsatalker_jax.data.triplets import FilmedConversation
from rsatalker_jax.head import FlamePose

_HELD_OUT = 11  # One in so many frames, the last of each film, is not learnt from, as published.


def make_drive(
    subject: Subject,
    flame: FlamePose,
    speech: Float[np.ndarray, "T 15 D"],
    world_to_camera: Float[np.ndarray, "T 4 4"],
    intrinsics: Float[np.ndarray, "T 3 3"],
) -> Drive:
  """What drives frames in these poses; of the expression but what `Controls` tells is known."""
  return {"speech": np.asarray(speech, np.float32), **_seen_of(subject, flame, world_to_camera, intrinsics)}


def _seen_of(subject: Subject, flame: FlamePose, world_to_camera, intrinsics) -> Drive:
  """A drive without what is heard."""
  controls, expression = Controls.of(subject.head), np.asarray(flame["expression"])
  transforms = joint_transforms(subject.head, subject.shape, subject.static_offset, flame)
  return {
      "eyes": controls.eyes(expression),
      "controls": controls.upper_face(expression),
      **{name: np.asarray(transform, np.float32) for name, transform in transforms.items()},
      "world_to_camera": np.asarray(world_to_camera, np.float32),
      "intrinsics": np.asarray(intrinsics, np.float32),
  }


@dataclasses.dataclass(frozen=True)
class DrivenFilm:
  """Some frames of the films of one person; `film[i]` is an example of a batch.

  Attributes:
    subject: the person.
    films: of conversations, by one capture.
    places: (n, 2) which film, and which of its frames.
  """

  subject: Subject
  films: tuple[FilmedConversation, ...]
  places: Int[np.ndarray, "n 2"]

  @classmethod
  def of(cls, subject: Subject, films: Sequence[FilmedConversation], part: str = "all") -> "DrivenFilm":
    """Args: part: "learnt", "held out" (the last eleventh of each film) or "all"."""
    places = []
    for number, film in enumerate(films):
      count = len(film.frames)
      first_held_out = count - count // _HELD_OUT
      start, stop = {"learnt": (0, first_held_out), "held out": (first_held_out, count), "all": (0, count)}[part]
      places.append(np.stack([np.full(stop - start, number), np.arange(start, stop)], axis=1))
    return cls(subject, tuple(films), np.concatenate(places))

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = int(i)
    shown = self._capture[int(self._items[i])]
    one = lambda tree: jax.tree.map(lambda x: x[0], tree)
    return {
        "drive": one(self.drive(np.array([i]))),
        "image": np.round(shown["image"] * 255).astype(np.uint8),
        "mask": np.round(shown["mask"] * 255).astype(np.uint8),
        "frame": np.int32(i),
        "boxes": {name: box[i] for name, box in self._boxes.items()},
        "flame": dict(shown["flame"]),
    }

  def drive(self, frames: Int[np.ndarray, "k"]) -> Drive:
    """What drives these of the frames."""
    return {name: x[frames] for name, x in self._seen.items()} | {"speech": self.speech(frames)}

  def speech(self, frames: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k 15 D"]:
    """What is heard about these of the frames: the filmed person's own voice."""
    rows = []
    for number, place in self.places[frames]:
      film = self.films[number]
      rows.append(speech_around(film.clip.speech_b, film.frames[place : place + 1])[0])
    return np.stack(rows)

  @property
  def _capture(self):
    return self.films[0].capture

  @functools.cached_property
  def _items(self) -> Int[np.ndarray, "n"]:
    return np.array([self.films[number].items[place] for number, place in self.places])

  @functools.cached_property
  def flame(self) -> FlamePose:
    """FLAME's parameters of all frames."""
    return self._capture.read_flame(self._items)

  @functools.cached_property
  def _seen(self) -> Drive:
    """The drive of all frames, without what is heard: a few hundred bytes a frame."""
    return _seen_of(self.subject, self.flame, *self._capture.read_cameras(self._items))

  @functools.cached_property
  def _boxes(self) -> dict[str, Float[np.ndarray, "n 4"]]:
    boxes = Boxes.of(self.subject.head, self.subject.shape, self.subject.static_offset)
    return boxes.find(self.flame, *self._capture.read_cameras(self._items))
