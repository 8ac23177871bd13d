"""Stage 3: everything but the speech encoder learns from pixels and motion together (Eq. 13)."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from rsatalker_jax.avatar import Avatar, Gaussians, join_bank, select
from rsatalker_jax.data.captures import Capture
from rsatalker_jax.data.conversations import data_paths
from rsatalker_jax.data.triplets import FilmedConversation, Films
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation.validation import frame_validation
from rsatalker_jax.head import FlamePose, pose_for
from rsatalker_jax.sharding import BANK
from rsatalker_jax.talker import Params
from rsatalker_jax.training import losses, optimizers
from rsatalker_jax.training.bank_stage import bank_of, init_bank, per_person
from rsatalker_jax.training.loop import Stage
from rsatalker_jax.training.motion_stage import (
    make_motion_evaluation,
    motion_and_lips,
    motion_batches,
    motion_init,
    orthogonality_of,
)
from rsatalker_jax.training.rendering import (
    buffer_terms,
    camera_of,
    continued_gaussian_rates,
    init_avatar_group,
    let_through,
    people_seen,
    to_float,
    to_frame_example,
    triangle_sizes,
    with_renderer,
)
from rsatalker_jax.training.stage_inputs import StageInputs

# The group of parameters and buffers with the people of other films than the trained avatar's.
OTHERS = "others"
_MOTION = ("speech_a", "motion_a", "speech_b", "motion_b", "relation")
_VALIDATION_FRAMES = 16


def joint_stage(inputs: StageInputs) -> Stage:
  """Trains everything but the speech encoder, from pixels and motion together (Eq. 13).

  A batch holds windows of filmed conversations, each with frames of its own film. With `motion_batch` it also holds windows
  of all training conversations, on which L_mesh is taken then: films are few, and on them alone the generator would forget
  how others talk. What else is added to the paper's losses is named by `losses.JointWeights`.

  Raises:
    InputError: a value of the config's section, or films that do not go with it.
  """
  config, talker = inputs.config.joint, inputs.talker
  if config.drawn_weight and config.motion_batch < config.batch:
    raise InputError("config", "joint.motion_batch", config.motion_batch, f"at least joint.batch, {config.batch}: they are drawn")
  films = inputs.films
  people = People.of(inputs, films)
  windows = JointWindows.of(inputs, films, people)
  mesh = inputs.mesh_for("joint.batch, joint.motion_batch", config.batch, *[config.motion_batch] * bool(config.motion_batch))
  weights = joint_weights(inputs.config)
  init_motion = motion_init(inputs)

  def loss(render, params, buffers, batch, key, step):
    del step
    filmed, others = batch["filmed"], batch.get("others")
    spoken = {name: filmed[name] for name in _MOTION}
    if others is not None:
      spoken = {name: jnp.concatenate([spoken[name], others[name]]) for name in _MOTION}
    predicted = talker.generate(params, buffers, spoken, dropout=key)
    count = len(filmed["frame"])
    # Over all conversations, the filmed ones as often as others: in every batch they would be learnt by heart.
    learnt = slice(count if others is not None else 0, None)

    shots = Shots.of(filmed, params, people, config.frames)
    avatar = people.show(talker, params, buffers, shots.identity)
    offsets = people.offsets(talker, params, shots)  # Eq. 8
    share = functools.partial(let_through, share=config.avatar_share)
    held = avatar.replace(gaussians=jax.tree.map(share, avatar.gaussians)), jax.tree.map(share, offsets)

    def draw(motions, avatar, offsets):
      """Images of all of `motions`, each on the film's bodies under the film's cameras, in one call."""
      repeat = lambda tree: jax.tree.map(lambda x: jnp.concatenate([x] * len(motions)), tree)
      flame = pose_for(jnp.concatenate([shots.take(motion) for motion in motions]), repeat(shots.flame), repeat(shots.alignment))
      shown = avatar if people.alone else repeat(avatar)
      output = render(shown, flame, camera_of(repeat(shots.view), people.captures[0]), repeat(offsets))
      return jnp.split(output.image, len(motions)), output

    # Of conversations that nobody filmed as many frames are drawn, of the first of the other windows.
    unfilmed = slice(count, 2 * count)
    generated = [predicted[:count]] + [predicted[unfilmed]] * bool(weights.drawn)
    images, output = draw(generated, *held)
    outputs, rendered = [output], {"generated": images[0]}
    if weights.tracked:
      tracked = render(avatar, shots.flame, camera_of(shots.view, people.captures[0]), offsets)
      outputs.append(tracked)
      rendered["tracked"] = tracked.image
    if weights.drawn:
      (truth,), output = jax.lax.stop_gradient(draw([spoken["motion_b"][unfilmed]], avatar, offsets))
      outputs.append(output)
      rendered |= {"drawn": images[1], "drawn_truth": truth}
    # Gaussians that any of the film's frames shows; the film's are the first of the call's frames.
    first = dataclasses.replace(outputs[0], radii=outputs[0].radii[: len(shots.identity)])
    rendered |= people_seen(avatar.gaussians, first, None if people.alone else shots.identity)
    if offsets is not None:
      rendered["offsets"] = offsets / people.sizes[shots.identity]
    if weights.orthogonality:
      rendered["orthogonality"] = orthogonality_of(params)
    target = {"motion_b": spoken["motion_b"][learnt]}
    given = {
        "target": motion_and_lips(inputs, target["motion_b"]),
        "statistics": buffers["generator"],
        "image": shots.image,
    }
    terms = losses.joint_terms(weights, given, motion_and_lips(inputs, predicted[learnt]), rendered)
    return sum(terms.values()), terms | buffer_terms(outputs)  # Eq. 13

  def init(key):
    generator_key, offsets_key = jax.random.split(key)
    params, buffers = init_motion(generator_key)
    if talker.knows_relation:
      query = talker.social.apply(params["social"], jnp.zeros(2, jnp.int32), method="query")
      params["offsets"] = talker.offset_net.init(offsets_key, query, jnp.zeros(()))
    more_params, more_buffers = people.init
    return params | more_params, buffers | more_buffers | {"film": {"alignment": people.alignment}}

  batches = {"filmed": windows.batches(inputs)}
  if config.motion_batch:
    batches["others"] = motion_batches(inputs, "joint", config.motion_batch, config.window)
  zipped = grain.experimental.ZipIterDataset(tuple(batches.values()))
  return Stage(
      name="joint",
      steps=config.steps,
      mesh=mesh,
      init=init,
      batches=zipped.map(lambda parts: dict(zip(batches, parts))),
      **with_renderer(loss, talker, mesh, avatar_per_frame=not people.alone),
      optimizer=_make_optimizer(inputs.config, people, talker.knows_relation),
      evaluate=_make_evaluation(inputs, people),
  )


def joint_weights(config: ConfigDict) -> losses.JointWeights:
  """The weights of Eq. 13 and its additions that a config asks for."""
  joint, avatar = config.joint, config.avatar
  return losses.JointWeights(
      motion=losses.MotionLossWeights(**config.motion.loss),
      image=joint.image_weight,
      position=joint.position_weight,
      offset=joint.offset_weight,
      position_threshold=avatar.position_threshold,
      offset_threshold=joint.offset_threshold,
      dssim=avatar.dssim_weight,
      lpips=avatar.lpips_weight,
      tracked=joint.tracked_weight,
      drawn=joint.drawn_weight,
      scale=avatar.scale_weight,
      scale_threshold=avatar.scale_threshold,
      orthogonality=config.motion.orthogonality,
  )


def _make_optimizer(config: ConfigDict, people: "People", with_offsets: bool):
  joint, avatar = config.joint, config.avatar
  warmup = joint.steps // 10
  network = functools.partial(optimizers.network_optimizer, steps=joint.steps, warmup=warmup)
  rates = continued_gaussian_rates(
      avatar, joint.steps, share=joint.avatar_learning_rate, final_share=joint.final_avatar_learning_rate, warmup=joint.avatar_warmup
  )
  gaussians = optimizers.gaussian_optimizer(avatar.learning_rates, rates, sh_rest_share=avatar.sh_rest_share)
  transforms = {"generator|social": network(joint.generator_learning_rate)}
  if with_offsets:
    transforms["offsets"] = network(joint.offsets_learning_rate)
  for group in people.groups:
    for label, transform in gaussians.items():
      own = group == "avatar"
      transforms[label.replace("avatar/", f"{group}/")] = transform if own else per_person(transform)
  return optimizers.by_path(transforms)


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
      captures = [inputs.open_capture(name, "train") for name in names]
      return cls._make(inputs, films, ("bank",), captures, [names.index(root) for root in roots], init_bank(inputs, captures))
    own = inputs.path("capture").resolve()
    others = [capture for capture, root in zip(films.captures, roots) if root != own]
    capture = inputs.open_capture(own, "train") if own not in roots else films.captures[roots.index(own)]
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

  def offsets(self, talker, params: Params, shots: "Shots") -> Float[Array, "K F 3"] | None:
    return talker.gaussian_offsets(params, shots.relation, shots.time) if talker.knows_relation else None

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
  def of(cls, filmed: Mapping[str, Array], params: Params, people: People, frames: int) -> "Shots":
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
  """

  config: ConfigDict
  films: tuple[FilmedConversation, ...]
  starts: tuple[Int[np.ndarray, "w"], ...]
  people: People

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
    inputs.say(f"joint: {shown} frames of video in {len(kept)} conversations of {len(set(f.person for f, _ in kept))} people")
    return cls(config, *map(tuple, zip(*kept)), people)

  def cut(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random window of film `index`, with `config.frames` random frames of it from the film."""
    film, starts, window = self.films[index], self.starts[index], self.config.window
    start = int(starts[rng.integers(len(starts))])
    places = np.flatnonzero((film.frames >= start) & (film.frames < start + window))
    chosen = np.sort(rng.choice(places, self.config.frames, replace=False))
    shown = film.read(chosen)
    frame = film.frames[chosen]
    span = slice(start, start + window)
    clip = film.clip
    return {
        **{name: np.asarray(getattr(clip, name)[span]) for name in _MOTION[:4]},
        "relation": np.asarray(clip.relation, np.int32),
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
    # Films are few: every process draws from all of them, each with its own seed.
    dataset = dataset.repeat().seed(inputs.config.seed + jax.process_index()).random_map(self.cut)
    dataset = dataset.batch(self.config.batch // jax.process_count(), drop_remainder=True)
    return dataset.to_iter_dataset(inputs.read_options(8))


def window_starts(frames: Int[np.ndarray, "F"], window: int, shown: int) -> Int[np.ndarray, "w"]:
  """First frames of the windows within a film, from its first frame to its last, that show at least so many frames."""
  starts = np.arange(frames[0], frames[-1] - window + 2)
  inside = np.searchsorted(frames, starts + window) - np.searchsorted(frames, starts)
  return starts[inside >= shown]


def _make_evaluation(inputs: StageInputs, people: People):
  """Scores of generated motion of the split val, and of frames of it: drawn against true motion, both by the avatar, and
  against its films, where it has some."""
  motion = make_motion_evaluation(inputs)
  if motion is None:
    return None
  if not people.alone:
    return motion
  talker, clips, capture = inputs.talker, inputs.validation_clips, people.captures[0]
  films = inputs.validation_films
  own = pathlib.Path(capture.root).resolve()
  filmed = [film for film in films.conversations if film.capture.root.resolve() == own]
  standing = jax.tree.map(lambda x: x[:1], capture.read_flame([0]))
  item = capture[0]
  view = {name: item[name][None] for name in ("world_to_camera", "intrinsics")}
  render = jax.jit(lambda *given: talker.render(*given).image)

  def draw(params, buffers, flame, view, relation, time):
    offsets = None
    if talker.knows_relation:
      offsets = talker.gaussian_offsets(params, jnp.asarray(relation)[None], jnp.float32([time]))
    return np.asarray(render(talker.avatar(params, buffers), flame, camera_of(view, capture), offsets))

  def evaluate(params, buffers):
    scores = motion(params, buffers)
    generated = {}

    def motion_of(clip):
      if clip.name not in generated:
        generated[clip.name] = talker.generate_clip(params, buffers, clip)
      return generated[clip.name]

    pairs = []
    for number in range(_VALIDATION_FRAMES):
      clip = clips[number * len(clips) // _VALIDATION_FRAMES]
      frame = (2 * number + 1) * len(clip.motion_b) // (2 * _VALIDATION_FRAMES)
      pose = lambda motion: pose_for(motion[frame : frame + 1], standing, people.alignment[None])
      pairs.append(tuple(
          draw(params, buffers, pose(m), view, clip.relation, frame) for m in (motion_of(clip), clip.motion_b)
      ))
    scores |= {f"drawn_{name}": value for name, value in frame_validation(pairs).items()}
    pairs = []
    for film in filmed:
      for place in np.unique(np.linspace(0, len(film.frames) - 1, _VALIDATION_FRAMES).round().astype(int)):
        shown = film.read([place])
        frame = int(film.frames[place])
        flame = pose_for(motion_of(film.clip)[frame : frame + 1], shown["flame"], film.alignment[None])
        camera = {name: shown[name] for name in view}
        pairs.append((draw(params, buffers, flame, camera, film.clip.relation, frame), shown["image"]))
    if pairs:
      scores |= {f"filmed_{name}": value for name, value in frame_validation(pairs).items()}
    return scores

  return evaluate
