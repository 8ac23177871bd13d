"""What image-based baselines are asked for when they are scored: frames of films, told more or less of the answer."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax import sharding
from rsatalker_jax.baselines.image import Boxes, crop, make_drive, make_image_method, speech_around
from rsatalker_jax.data.captures import Capture
from rsatalker_jax.data.triplets import FilmedConversation
from rsatalker_jax.head import FlamePose
from rsatalker_jax.runs import TrainedRun

TRUE_POSE, SPEECH_ONLY, GENERATED_POSE = "true pose and eyes", "speech only", "our generator's pose and eyes"

_LIPS_SHARE, _LIPS_LEAST = 4, 32  # The lips' crop is a quarter as high as the picture, and as large as LPIPS needs.

Images = Float[np.ndarray, "t H W 3"]


@dataclasses.dataclass(frozen=True)
class Drawn:
  """Frames that are to be scored, a chunk at a time, and the poses in which the head stands in them."""

  chunks: Iterator[Images]
  flame: FlamePose


@dataclasses.dataclass(frozen=True)
class MethodRun:
  """A trained image-based baseline.

  Attributes:
    title: of its rows.
    run: what it has learnt.
    films: of its person, whose clips have the speech features that it hears.
  """

  title: str
  run: TrainedRun
  films: list[FilmedConversation]

  def draw(
      self,
      places: Sequence[Int[np.ndarray, "_"]],
      pose: Callable[[], FlamePose] | None,
      *,
      chunk: int,
  ) -> dict[str, Drawn]:
    """Rows of some frames of the films before their cameras, by title.

    With the true pose and eyes, as published where a person drives herself; of speech alone, with those of the training film
    played to and fro, as published for new speech; and, where there is a generator, with its pose and eyes.

    Args:
      places: of the frames in each film.
      pose: gives the frames' poses by the generator; None: there is none.
      chunk: frames that are drawn at once.
    """
    capture = self.films[0].capture
    items = np.concatenate([film.items[at] for film, at in zip(self.films, places)])
    frames = [film.frames[at] for film, at in zip(self.films, places)]
    speech = np.concatenate([speech_around(film.clip.speech_b, numbers) for film, numbers in zip(self.films, frames) if len(numbers)])
    subject = self.run.talker.subject(self.films)
    method = make_image_method(self.run.config, subject)
    flames = {TRUE_POSE: capture.read_flame(items), SPEECH_ONLY: self._replay(capture, items, np.concatenate(frames))}
    if pose is not None:
      flames[GENERATED_POSE] = pose()
    rows = {}
    for protocol, flame in flames.items():
      drive = make_drive(subject, flame, speech, *capture.read_cameras(items))
      title = f"{self.title}: {protocol}"
      say = functools.partial(print, f"{title}:")
      chunks = method.render(self.run.params, self.run.buffers, drive, sharding.make_mesh(), chunk=chunk, say=say)
      rows[title] = Drawn(chunks, flame)
    return rows

  def _replay(self, capture: Capture, items: Int[np.ndarray, "n"], frames: Int[np.ndarray, "n"]) -> FlamePose:
    """Poses of the training film by the camera of the first frame, or by its first where that one did not film then."""
    training = self.run.talker.open_capture(capture.root, "train")
    cameras = training.camera_indices
    camera = capture.camera_indices[items[0]]
    camera = camera if camera in cameras else cameras.min()
    by_camera = np.flatnonzero(cameras == camera)
    in_order = by_camera[np.argsort(training.timesteps[by_camera], kind="stable")]
    flame: Any = training.read_flame(in_order[mirrored(frames, len(in_order))])
    return flame


def mirrored(frames: Int[np.ndarray, "n"], length: int) -> Int[np.ndarray, "n"]:
  """Numbers of a sequence's members that is played to and fro for ever: 0 … length − 1, length − 1 … 0, 0 …"""
  turn, place = np.divmod(frames, length)
  return np.where(turn % 2 == 0, place, length - 1 - place)


@dataclasses.dataclass(frozen=True)
class LipCrops:
  """Squares about the lips, cut out of pictures: each about where the head's pose puts them, whatever the picture shows there.

  Attributes:
    boxes: of the person.
    size: of the squares, pixels.
  """

  boxes: Boxes
  size: int

  @classmethod
  def of(cls, run: TrainedRun, capture: Capture) -> "LipCrops | None":
    """None where the head has no mouth, or pictures are too small."""
    offset = capture.nonzero_offset
    boxes = Boxes.of(run.talker.head, capture.shape, offset)
    size = max(capture.height // _LIPS_SHARE, _LIPS_LEAST)
    return cls(boxes, size) if len(boxes.lips) and size <= min(capture.width, capture.height) else None

  def centres(self, flame: FlamePose, cameras) -> Float[np.ndarray, "n 2"]:
    """Middles of the lips of frames, in pixels, before their cameras."""
    box = self.boxes.find(flame, *cameras)["lips"]
    return (box[:, :2] + box[:, 2:]) / 2

  def cut(self, images: Images, centres: Float[np.ndarray, "t 2"]) -> Float[np.ndarray, "t size size 3"]:
    """The squares of some images about these places."""
    return np.asarray(crop(images, centres, self.size))
