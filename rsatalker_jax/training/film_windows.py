"""What stage 3 learns from: windows of filmed conversations, and the frames that their films show."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from rsatalker_jax.data.pipeline import batch_share, cut_window
from rsatalker_jax.data.triplets import FilmedConversation, Films
from rsatalker_jax.data.webcam import Webcam
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import FlamePose
from rsatalker_jax.sharding import BANK
from rsatalker_jax.talker import Params, Talker
from rsatalker_jax.training.people import People
from rsatalker_jax.training.rendering import to_float, to_frame_example
from rsatalker_jax.training.stage_inputs import StageInputs

MOTION = ("speech_a", "motion_a", "speech_b", "motion_b", "relation")


@dataclasses.dataclass(frozen=True)
class Shots:
  """The film frames of a batch, one after another along one axis K.

  Attributes:
    image: (K, H, W, 3).
    flame: FLAME's parameters as the film's tracker and stage 2 have them.
    alignment: (K, 3), see `pose_for`.
    view: world_to_camera, intrinsics.
    relation, time, identity: of each frame.
    window, frame: which frame of which of the batch's windows each shows.
  """

  image: Float[Array, "K H W 3"]
  flame: FlamePose
  alignment: Float[Array, "K 3"]
  view: dict[str, Array]
  relation: Int[Array, "K 2"]
  time: Float[Array, "K"]
  identity: Int[Array, "K"]
  window: Int[Array, "K"]
  frame: Int[Array, "K"]

  @classmethod
  def of(cls, filmed: Mapping[str, Any], params: Params, people: People, frames: int) -> "Shots":
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    each = lambda x: jnp.repeat(x, frames, axis=0)
    flame = {name: flat(x) for name, x in filmed["flame"].items()}
    return cls(
        image=to_float(flat(filmed["image"])),
        flame=people.correct(params, flame, each(filmed["identity"]), flat(filmed["row"])),
        alignment=each(filmed["alignment"]),
        view={name: flat(filmed[name]) for name in ("world_to_camera", "intrinsics")},
        relation=each(filmed["relation"]),
        time=flat(filmed["time"]),
        identity=each(filmed["identity"]),
        window=each(jnp.arange(len(filmed["frame"]))),
        frame=flat(filmed["frame"]),
    )

  def offsets(self, talker: Talker, params: Params, buffers: Params, motion: Float[Array, "B T 56"]) -> Float[Array, "K F 3"] | None:
    """Eq. 8 at the shots' moments, of a motion that lies as the batch's windows do."""
    if not talker.knows_relation:
      return None
    return talker.gaussian_offsets(params, buffers, self.relation, self.time, self.take(motion))

  def take(self, motion: Float[Array, "B T 56"]) -> Float[Array, "K 56"]:
    """The motion at the moments that the frames show, of windows that lie as the batch's do."""
    return motion[self.window, self.frame]


@dataclasses.dataclass(frozen=True)
class JointWindows:
  """Windows of filmed conversations with some of their film's frames.

  Attributes:
    config: the joint section.
    films: those that have a window.
    starts: for each film the first frames of its windows: all those within its film that show enough frames.
    people: who is in them.
    numbers: of the people of `Films.captures` among them.
    webcam: through which A's motion is seen in some windows.
  """

  config: ConfigDict
  films: tuple[FilmedConversation, ...]
  starts: tuple[Int[np.ndarray, "w"], ...]
  people: People
  numbers: Int[np.ndarray, "C"]
  webcam: Webcam = dataclasses.field(default_factory=Webcam)

  @classmethod
  def of(cls, inputs: StageInputs, films: Films, people: People) -> "JointWindows":
    """Says which films have no window. Raises: InputError: none has one."""
    config, kept, longest = inputs.config.joint, [], 0
    if config.frames > config.window:
      raise InputError("config", "joint.frames", config.frames, f"at most {config.window}, the frames of joint.window")
    for film in films.conversations:
      starts = window_starts(film.frames, config.window, config.frames)
      longest = max(longest, int(film.frames[-1] - film.frames[0] + 1))
      if len(starts):
        kept.append((film, starts))
      else:
        inputs.say(f"joint: the film of {film.name} has no window of {config.window} frames that shows {config.frames}: not used")
    if not kept:
      raise InputError("config", "joint.window", config.window, f"at most {longest}, the frames of the longest training film")
    shown = sum(len(film.frames) for film, _ in kept)
    inputs.say(f"joint: {shown} frames of video in {len(kept)} conversations of {len({f.person for f, _ in kept})} people")
    return cls(config, *map(tuple, zip(*kept)), people, number_people(films, people), inputs.webcam)

  def cut(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """A random window of film `index`, with `config.frames` random frames of it from the film."""
    film, starts, window = self.films[index], self.starts[index], self.config.window
    start = int(starts[rng.integers(len(starts))])
    places = np.flatnonzero((film.frames >= start) & (film.frames < start + window))
    chosen = np.sort(rng.choice(places, self.config.frames, replace=False))
    shown = film.read(chosen)
    frame = film.frames[chosen]
    person = int(self.numbers[film.person])
    return {
        **cut_window(film.clip, start, window, rng, self.webcam),
        "frame": (frame - start).astype(np.int32),
        "time": frame.astype(np.float32),
        "identity": np.int32(person),
        "alignment": np.asarray(film.alignment, np.float32),
        "row": np.array([self.people.row(person, t) for t in shown["timestep"]], np.int32),
        **to_frame_example(shown),
    }

  def batches(self, inputs: StageInputs) -> grain.IterDataset:
    # Each conversation as often as its film holds windows, so that every frame is equally likely.
    counts = [max(1, round(len(film.frames) / self.config.window)) for film in self.films]
    slots = [i for i, count in enumerate(counts) for _ in range(count)]
    dataset = grain.MapDataset.source(slots).seed(inputs.config.seed).shuffle()
    dataset = dataset.repeat().seed(inputs.config.seed).random_map(self.cut)
    return batch_share(dataset, self.config.batch).to_iter_dataset(inputs.read_options(8))


def number_people(films: Films, people: People) -> Int[np.ndarray, "C"]:
  """Numbers of the people of `films.captures` among all people."""
  return np.array([people.number(capture.root) for capture in films.captures], np.int32)


def film_alignments(films: Films, people: People) -> Float[np.ndarray, "3"] | Float[np.ndarray, "P 3"]:
  """Of the run's own person, or of each of its bank, the alignment of their first film (`FilmedConversation`)."""
  numbers = number_people(films, people)
  several = people.groups[0] == BANK
  found = np.zeros((len(people.captures) if several else 1, 3), np.float32)
  for film in reversed(films.conversations):
    if numbers[film.person] < len(found):
      found[numbers[film.person]] = film.alignment
  return found if several else found[0]


def window_starts(frames: Int[np.ndarray, "F"], window: int, shown: int) -> Int[np.ndarray, "w"]:
  """First frames of the windows within a film, from its first frame to its last, that show at least so many frames."""
  starts = np.arange(frames[0], frames[-1] - window + 2)
  inside = np.searchsorted(frames, starts + window) - np.searchsorted(frames, starts)
  return starts[inside >= shown]
