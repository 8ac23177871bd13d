"""What stage 3 learns from: windows of filmed conversations, the frames that their films show, and the people in them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from rsatalker_jax.avatar import Avatar, Gaussians, join_bank, select
from rsatalker_jax.data.captures import Capture
from rsatalker_jax.data.conversations import data_paths
from rsatalker_jax.data.pipeline import batch_share, cut_window
from rsatalker_jax.data.triplets import FilmedConversation, Films
from rsatalker_jax.data.webcam import Webcam
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import FlamePose
from rsatalker_jax.sharding import BANK
from rsatalker_jax.talker import Params
from rsatalker_jax.training.bank_stage import bank_of, init_bank
from rsatalker_jax.training.rendering import init_avatar_group, to_float, to_frame_example, triangle_sizes
from rsatalker_jax.training.stage_inputs import StageInputs

# The group of parameters and buffers with the people of other films than the trained avatar's.
OTHERS = "others"
MOTION = ("speech_a", "motion_a", "speech_b", "motion_b", "relation")


@dataclasses.dataclass(frozen=True)
class People:
  """The people whom films show, and the Gaussians that draw them.

  Attributes:
    groups: of parameters that hold them, in the order of their numbers: "avatar", the run's one person; `OTHERS`, people of
      further films, whom no stage before this one has trained; or "bank", the run's several people.
    numbers: of the people of `Films.captures`, in these groups.
    captures: of the people in these groups, by number.
    init: params and buffers of the groups, as training begins.
    sizes: of each person's triangles at rest, (P, F, 1) metres.
    timesteps: of the avatar's own capture, by which its corrections of FLAME parameters are kept; None without any.
    alignment: see `FilmedConversation`: of the first film of the run's own person.
  """

  groups: tuple[str, ...]
  numbers: Int[np.ndarray, "C"]
  captures: tuple[Capture, ...]
  init: tuple[Params, Params]
  sizes: Float[Array, "P F 1"]
  timesteps: Int[np.ndarray, "t"] | None
  alignment: Float[Array, "3"]

  @classmethod
  def of(cls, inputs: StageInputs, films: Films) -> "People":
    """Raises: InputError: a film of somebody who is not one of `data.captures`, where the run has a bank."""
    roots = [capture.root.resolve() for capture in films.captures]
    if inputs.config.data.captures:
      names = [path.resolve() for path in data_paths(inputs.config.data, "captures")]
      for root in roots:
        if root not in names:
          raise InputError(inputs.path("triplets"), "capture", root, "one of data.captures, the people of this run")
      captures = [inputs.talker.open_capture(name, "train") for name in names]
      return cls._make(inputs, films, ("bank",), captures, [names.index(root) for root in roots], init_bank(inputs, captures))
    own = inputs.path("capture").resolve()
    others = [capture for capture, root in zip(films.captures, roots) if root != own]
    capture = inputs.talker.open_capture(own, "train") if own not in roots else films.captures[roots.index(own)]
    groups, init = ("avatar",), init_avatar_group(inputs, capture)
    if others:
      bank = init_bank(inputs, others)
      groups, init = ("avatar", OTHERS), tuple(mine | {OTHERS: theirs[BANK]} for mine, theirs in zip(init, bank))
    order = [own, *(other.root.resolve() for other in others)]
    return cls._make(inputs, films, groups, [capture, *others], [order.index(root) for root in roots], init)

  @classmethod
  def _make(cls, inputs, films, groups, captures, numbers, init) -> "People":
    timesteps, (params, buffers) = None, init
    rates = [name for name, rate in inputs.config.avatar.flame_learning_rates.items() if rate]
    if groups[0] == "avatar" and rates:
      # What stage 2 has learnt about its film's parameters goes on to be used, and is not trained further.
      timesteps = np.unique(captures[0].timesteps)
      flame = captures[0].read_flame([0])
      params = params | {"flame": {name: jnp.zeros((len(timesteps), flame[name].shape[1])) for name in rates}}
    alignments = [film.alignment for film in films.conversations if numbers[film.person] == 0]
    return cls(
        groups=groups,
        numbers=np.array(numbers, np.int32),
        captures=tuple(captures),
        init=(params, buffers),
        sizes=jnp.stack([triangle_sizes(inputs.talker, capture) for capture in captures]),
        timesteps=timesteps,
        alignment=jnp.asarray(alignments[0] if alignments else np.zeros(3, np.float32)),
    )

  @property
  def alone(self) -> bool:
    """Whether there is but one person, whose Gaussians are then shared by all frames."""
    return self.groups == ("avatar",)

  def show(self, talker, params: Params, buffers: Params, identity: Int[Array, "K"]) -> Avatar:
    """The avatar of every frame: one for all of them, or one each."""
    if self.alone:
      return talker.avatar(params, buffers)
    if self.groups == ("bank",):
      return select(bank_of(params, buffers), identity)
    others = Avatar(gaussians=Gaussians(**params[OTHERS]), **buffers[OTHERS])
    return select(join_bank(talker.avatar(params, buffers), others), identity)

  def offsets(
      self, talker, params: Params, buffers: Params, shots: "Shots", motion: Float[Array, "B T 56"]
  ) -> Float[Array, "K F 3"] | None:
    """Eq. 8 at the shots' moments, of a motion that lies as the batch's windows do."""
    if not talker.knows_relation:
      return None
    return talker.gaussian_offsets(params, buffers, shots.relation, shots.time, shots.take(motion))

  def correction_row(self, person: int, timestep: int) -> int:
    """Where the corrections of a moment are kept; -1 where it has none."""
    if self.timesteps is None or self.numbers[person] != 0:
      return -1
    return int(np.searchsorted(self.timesteps, timestep))


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
    row = flat(filmed["row"])
    for name, corrections in params.get("flame", {}).items():
      flame[name] = flame[name] + jnp.where(row[:, None] >= 0, corrections[row], 0.0)
    return cls(
        image=to_float(flat(filmed["image"])),
        flame=flame,
        alignment=each(filmed["alignment"]),
        view={name: flat(filmed[name]) for name in ("world_to_camera", "intrinsics")},
        relation=each(filmed["relation"]),
        time=flat(filmed["time"]),
        identity=each(filmed["identity"]),
        window=each(jnp.arange(len(filmed["frame"]))),
        frame=flat(filmed["frame"]),
    )

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
    people: whose film each is.
    webcam: through which A's motion is seen in some windows.
  """

  config: ConfigDict
  films: tuple[FilmedConversation, ...]
  starts: tuple[Int[np.ndarray, "w"], ...]
  people: People
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
    return cls(config, *map(tuple, zip(*kept)), people, inputs.webcam)

  def cut(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """A random window of film `index`, with `config.frames` random frames of it from the film."""
    film, starts, window = self.films[index], self.starts[index], self.config.window
    start = int(starts[rng.integers(len(starts))])
    places = np.flatnonzero((film.frames >= start) & (film.frames < start + window))
    chosen = np.sort(rng.choice(places, self.config.frames, replace=False))
    shown = film.read(chosen)
    frame = film.frames[chosen]
    return {
        **cut_window(film.clip, start, window, rng, self.webcam),
        "frame": (frame - start).astype(np.int32),
        "time": frame.astype(np.float32),
        "identity": np.int32(self.people.numbers[film.person]),
        "alignment": np.asarray(film.alignment, np.float32),
        "row": np.array([self.people.correction_row(film.person, t) for t in shown["timestep"]], np.int32),
        **to_frame_example(shown),
    }

  def batches(self, inputs: StageInputs) -> grain.IterDataset:
    # Each conversation as often as its film holds windows, so that every frame is equally likely.
    counts = [max(1, round(len(film.frames) / self.config.window)) for film in self.films]
    slots = [i for i, count in enumerate(counts) for _ in range(count)]
    dataset = grain.MapDataset.source(slots).seed(inputs.config.seed).shuffle()
    dataset = dataset.repeat().seed(inputs.config.seed).random_map(self.cut)
    return batch_share(dataset, self.config.batch).to_iter_dataset(inputs.read_options(8))


def window_starts(frames: Int[np.ndarray, "F"], window: int, shown: int) -> Int[np.ndarray, "w"]:
  """First frames of the windows within a film, from its first frame to its last, that show at least so many frames."""
  starts = np.arange(frames[0], frames[-1] - window + 2)
  inside = np.searchsorted(frames, starts + window) - np.searchsorted(frames, starts)
  return starts[inside >= shown]
