"""The three stages of the paper (Sec. 3.6), each as data for the loop: what it reads, its loss, what it trains.

    motion   L_mesh (Eq. 9)                                                    trains the generator
    avatar   L_image + lambda_2 L_pos (Eq. 10, 11)                             trains the Gaussians
    joint    L_mesh + lambda_1 L_image + lambda_2 L_pos + lambda_3 L_offset    trains all of them and the offsetnet
             (Eq. 13)
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

import splat_kernels
from rsatalker_jax.avatar import face_colors, init_avatar, paint, triangle_frames, up_to_degree
from rsatalker_jax.data.captures import Capture, load_capture
from rsatalker_jax.data.conversations import data_path, load_conversations
from rsatalker_jax.data.pipeline import MotionClip, load_clips, motion_statistics, motion_windows
from rsatalker_jax.data.triplets import load_triplets
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import head_vertices, make_lip_opening, motion_to_flame
from rsatalker_jax.social import orthogonality_penalty
from rsatalker_jax.talker import Params, SpeechEncoder, Talker, render_on_mesh
from rsatalker_jax.training import losses, optimizers
from rsatalker_jax.training.density_control import make_density_control
from rsatalker_jax.training.loop import Stage

_AVATAR_GROUP = ("means", "quats", "log_scales", "opacity_logits", "sh")


@dataclasses.dataclass(frozen=True)
class StageInputs:
  """What the makers of stages share.

  Attributes:
    config: the whole config.
    talker: the modules.
    encode: the speech encoder.
    mesh: the device mesh.
    say: prints a line about the data.
  """

  config: ConfigDict
  talker: Talker
  encode: SpeechEncoder
  mesh: jax.sharding.Mesh
  say: Callable[[str], None] = print

  def path(self, name: str) -> pathlib.Path:
    """A path of `config.data`."""
    return data_path(self.config.data, name)

  @functools.cached_property
  def training_clips(self) -> list[MotionClip]:
    """The training conversations with features, read once for all stages."""
    source = load_conversations(self.config.data, "train")
    for line in source.report("training conversations"):
      self.say(line)
    return load_clips(source, self.encode)

  @functools.cached_property
  def fitted_talker(self) -> Talker:
    """The talker with the statistics of the training conversations."""
    return self.talker.with_statistics(*motion_statistics(self.training_clips))

  @functools.cached_property
  def mesh_loss(self) -> Callable[[Float[Array, "B T 56"], Float[Array, "B T 56"]], dict[str, Array]]:
    """L_mesh (Eq. 9) as (predicted, target) -> weighted terms, in units of the training conversations."""
    weights = losses.MotionLossWeights(**self.config.motion.loss)
    motion_std = self.fitted_talker.generator.config.motion_std
    opening = make_lip_opening(self.talker.head) if weights.lips and not weights.plain_norm else None
    if opening is not None:
      every = jax.jit(opening)(np.concatenate([clip.motion_b for clip in self.training_clips]))
      opening_std = max(float(np.std(every)), 1e-4)  # 0.1 mm: lips that never move would be divided by nothing.

    def mesh_loss(predicted, target):
      terms = losses.motion_loss(predicted, target, weights, motion_std)
      if opening is not None:
        lips = losses.lip_loss(opening(predicted), opening(target), weights.closure, opening_std)
        terms["lips"] = weights.lips * lips
      return terms

    return mesh_loss

  def local_batch(self, batch: int) -> int:
    """This process's share of a global batch."""
    if batch % self.mesh.size:
      raise InputError("config", "batch", batch, f"a multiple of {self.mesh.size}, the number of devices")
    return batch // jax.process_count()


def make_stages(inputs: StageInputs) -> dict[str, Callable[[], Stage]]:
  """Makers of all stages, in order; a stage is made only when its turn comes."""
  makers = {"motion": motion_stage, "avatar": avatar_stage, "joint": joint_stage}
  return {name: functools.partial(maker, inputs) for name, maker in makers.items()}


# --- Stage 1: motion.


def motion_stage(inputs: StageInputs) -> Stage:
  """Trains the generator on conversations (Eq. 9)."""
  config, talker, mesh_loss = inputs.config.motion, inputs.fitted_talker, inputs.mesh_loss

  def loss(params, buffers, batch, key, step):
    del buffers, step
    terms = mesh_loss(_generate(talker, params, batch, key), batch["motion_b"])  # Eq. 9
    tables = params["generator"]["params"].get("relation_embedding", {})  # A baseline may have none.
    terms["orthogonality"] = config.orthogonality * orthogonality_penalty(tables)
    return sum(terms.values()), terms

  return Stage(
      name="motion",
      steps=config.steps,
      init=lambda key: _init_generator(talker, inputs.training_clips[0], key),
      batches=_motion_batches(inputs, "motion", config.batch, config.window),
      loss=loss,
      optimizer=optimizers.by_path({
          "generator": optimizers.network_optimizer(
              config.learning_rate,
              config.steps,
              warmup=config.warmup,
              weight_decay=config.weight_decay,
              gradient_clip=config.gradient_clip,
          )
      }),
  )


def _motion_batches(inputs: StageInputs, stage: str, batch: int, window: int) -> grain.IterDataset:
  """Batches of windows; says which clips are too short for one."""
  clips = inputs.training_clips
  short = [clip for clip in clips if len(clip.motion_b) < window]
  if short:
    inputs.say(f"{stage}: {len(short)} of {len(clips)} clips are shorter than a window of {window} frames and not used")
  for clip in short:
    inputs.say(f"  skipped {clip.name}: {len(clip.motion_b)} frames")
  return motion_windows(
      clips,
      window=window,
      batch_size=inputs.local_batch(batch),
      seed=inputs.config.seed,
      shard_index=jax.process_index(),
      shard_count=jax.process_count(),
  )


def _generate(talker: Talker, params: Params, batch: Mapping[str, Array], key: jax.Array) -> Float[Array, "B T 56"]:
  return talker.generator.apply(
      params["generator"],
      batch["speech_a"],
      batch["motion_a"],
      batch["speech_b"],
      batch["relation"],
      deterministic=False,
      rngs={"dropout": key},
  )


def _init_generator(talker: Talker, clip: MotionClip, key: jax.Array) -> tuple[Params, Params]:
  example = (clip.speech_a[:2], clip.motion_a[:2], clip.speech_b[:2], clip.relation)
  config = talker.generator.config
  # The statistics are part of the model: they go with the parameters into every checkpoint.
  statistics = {"motion_mean": jnp.asarray(config.motion_mean), "motion_std": jnp.asarray(config.motion_std)}
  return {"generator": talker.generator.init(key, *example)}, {"generator": statistics}


# --- Stage 2: avatar.


def avatar_stage(inputs: StageInputs) -> Stage:
  """Trains the Gaussians on a capture with tracked motion (Eq. 10, 11)."""
  config, talker = inputs.config.avatar, inputs.talker
  capture = _load_capture(inputs, "train")
  inputs.say(f"avatar: {len(capture)} training frames of {capture.width}x{capture.height}")

  rates = functools.partial(
      optimizers.gaussian_schedule,
      config.learning_rates,
      config.steps,
      scene_extent=config.scene_extent,
      final_share=config.final_learning_rate,
  )
  control = make_density_control(
      inputs.config.density,
      capacity=_capacity(inputs),
      sizes=_triangle_sizes(talker, capture)[:, 0],
      batch=config.batch,
      image_size=(capture.width, capture.height),
      mean_rate=rates("means"),
      seed=inputs.config.seed,
      say=inputs.say,
  )
  timesteps = np.unique(capture.timesteps)

  def init(key):
    del key
    params, buffers = _init_avatar(inputs, capture)
    if config.flame_learning_rates:
      flame = _to_frame_example(capture[0])["flame"]
      params["flame"] = {name: jnp.zeros((len(timesteps), *flame[name].shape)) for name in config.flame_learning_rates}
    return params, buffers | control.buffers

  def loss(render, params, buffers, batch, key, step):
    del key
    avatar = talker.avatar(params, buffers)
    if config.steps_per_sh_degree:
      avatar = up_to_degree(avatar, step // config.steps_per_sh_degree)
    flame = dict(batch["flame"])
    for name, corrections in params.get("flame", {}).items():
      flame[name] += corrections[batch["row"]]
    output = render(avatar, flame, _camera(batch, capture), None, params.get("probes", {}))
    terms = losses.image_loss(output.image, _to_float(batch["image"]), config.dssim_weight, config.lpips_weight)  # Eq. 10
    terms |= _gaussian_terms(params, output, config, config.position_weight)
    terms |= control.penalties(params, buffers)
    return sum(terms.values()), terms | _buffer_terms([output])

  def pictures(params, buffers):
    item = jax.tree.map(lambda x: x[None], _to_frame_example(capture[len(capture) // 2]))
    output = talker.render(talker.avatar(params, buffers), item["flame"], _camera(item, capture))
    truth = np.asarray(_to_float(item["image"][0]))
    return {"truth_and_render": np.concatenate([truth, np.asarray(output.image[0])], axis=1)}

  examples = grain.MapDataset.source(capture).seed(inputs.config.seed).shuffle()
  examples = examples[jax.process_index() :: jax.process_count()].repeat()
  row = lambda item: {"row": np.int32(np.searchsorted(timesteps, item["timestep"]))}
  examples = examples.map(lambda item: _to_frame_example(item) | row(item))
  batches = examples.batch(inputs.local_batch(config.batch), drop_remainder=True)
  return Stage(
      name="avatar",
      steps=config.steps,
      init=init,
      batches=batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)),
      **_with_renderer(loss, talker, inputs.mesh),
      optimizer=control.on_optimizer(
          optimizers.by_path(
              optimizers.gaussian_optimizer(config.learning_rates, rates, sh_rest_share=config.sh_rest_share)
              | {f"flame/{name}": optax.adam(rate) for name, rate in config.flame_learning_rates.items()}
          )
      ),
      pictures=pictures,
      hooks=control.hooks,
      probes={"probes": control.probes} if control.probes else {},
      observe=control.observe,
  )


def _with_renderer(loss: Callable, talker: Talker, mesh: jax.sharding.Mesh, **options: Any) -> dict[str, Callable]:
  """The fields `loss` and `loss_with_room` of a stage whose loss takes a renderer (`render_on_mesh`) first."""
  bind = lambda talker: functools.partial(loss, render_on_mesh(talker, mesh, **options))
  return {"loss": bind(talker), "loss_with_room": lambda needed: bind(talker.with_room(needed))}


def _buffer_terms(outputs: Sequence[splat_kernels.RenderOutput]) -> dict[str, Array]:
  return {
      "overflow": sum(jnp.sum(output.overflow) for output in outputs),
      "intersections": jnp.max(jnp.stack([jnp.max(output.intersections) for output in outputs])),
  }


def _let_through(x: Array, share: float) -> Array:
  """x, whose gradient is multiplied by `share`."""
  return share * x + (1 - share) * jax.lax.stop_gradient(x)


def _load_capture(inputs: StageInputs, split: str) -> Capture:
  return load_capture(
      inputs.path("capture"),
      split,
      background=tuple(inputs.config.render.background),
      num_vertices=inputs.talker.head.v_template.shape[0],
      num_expression=inputs.talker.head.num_expression,
  )


def _init_avatar(inputs: StageInputs, capture: Capture) -> tuple[Params, Params]:
  options = dict(inputs.config.gaussians)
  options["region_density"] = dict(options["region_density"])
  color_frames = options.pop("color_frames")
  offset = capture.static_offset if np.any(capture.static_offset) else None
  with jax.ensure_compile_time_eval():  # Where Gaussians go is drawn by numpy, also where a stage's init is traced.
    avatar = init_avatar(inputs.talker.head, capture.shape, static_offset=offset, seed=inputs.config.seed, **options)
    if color_frames:
      chosen = np.unique(np.linspace(0, len(capture) - 1, color_frames).round().astype(int))
      frames = (capture[int(i)] for i in chosen)
      avatar = paint(avatar, face_colors(inputs.talker.head, avatar.shape, frames, offset))
  params = {name: getattr(avatar.gaussians, name) for name in _AVATAR_GROUP}
  buffers = {"binding": avatar.binding, "shape": avatar.shape}
  if offset is not None:
    buffers["static_offset"] = jnp.asarray(offset)
  return {"avatar": params}, {"avatar": buffers}


def _capacity(inputs: StageInputs) -> int:
  """Length of the Gaussians' arrays."""
  config = inputs.config.gaussians
  return max(config.num_gaussians or inputs.talker.head.faces.shape[0], config.capacity or 0)


def _to_frame_example(item: Mapping[str, Any]) -> dict[str, Any]:
  """What a step needs of a captured frame; the image as bytes, a quarter of the traffic."""
  return {
      "image": np.round(item["image"] * 255).astype(np.uint8),
      "world_to_camera": item["world_to_camera"],
      "intrinsics": item["intrinsics"],
      "flame": dict(item["flame"]),
  }


def _to_float(image: Array) -> Array:
  return image.astype(jnp.float32) / 255


def _camera(batch: Mapping[str, Array], capture: Capture) -> splat_kernels.Camera:
  return splat_kernels.Camera(batch["world_to_camera"], batch["intrinsics"], capture.width, capture.height)


def _gaussian_terms(
    params: Params, output: splat_kernels.RenderOutput, config: ConfigDict, position_weight: float
) -> dict[str, Array]:
  visible = jnp.any(output.radii > 0, axis=0).astype(jnp.float32)
  gaussians = params["avatar"]
  return {
      "position": position_weight * losses.position_loss(gaussians["means"], visible, config.position_threshold),  # Eq. 11
      "scale": config.scale_weight * losses.scale_loss(gaussians["log_scales"], visible, config.scale_threshold),
  }


# --- Stage 3: joint.


def joint_stage(inputs: StageInputs) -> Stage:
  """Trains everything but the speech encoder, from pixels and motion together (Eq. 13).

  A batch holds windows of filmed conversations and windows of all training conversations: films are few, and on them
  alone the generator would forget how others talk. To the paper's L_image, of the film's frames with generated motion, two
  are added: the same frames with tracked motion, which keep the Gaussians sharp, and frames of unfilmed conversations with
  generated against true motion, both drawn by the avatar, which tell the generator what its errors cost in pixels.
  """
  config, avatar_config, talker = inputs.config.joint, inputs.config.avatar, inputs.fitted_talker
  capture = _load_capture(inputs, "train")
  windows = JointWindows.load(inputs, capture)
  inputs.say(f"joint: {windows.num_frames} frames of video in {len(windows.clips)} conversations")
  mesh_loss, sizes = inputs.mesh_loss, _triangle_sizes(talker, capture)

  def loss(render, params, buffers, batch, key, step):
    del step
    others, batch = batch["others"], batch["filmed"]
    motion = {name: jnp.concatenate([batch[name], others[name]]) for name in others}
    predicted = _generate(talker, params, motion, key)
    terms = mesh_loss(predicted, motion["motion_b"])  # Eq. 9
    image_loss = functools.partial(
        losses.image_loss, dssim_weight=avatar_config.dssim_weight, lpips_weight=avatar_config.lpips_weight
    )

    # The rendered frames (B, K), one after another along one axis.
    one_axis = lambda x: x.reshape(-1, *x.shape[2:])
    film = {name: one_axis(batch[name]) for name in ("image", "translation", "world_to_camera", "intrinsics")}
    image, camera = _to_float(film["image"]), _camera(film, capture)
    relation = jnp.repeat(batch["relation"], config.frames, axis=0)
    offsets = talker.gaussian_offsets(params, relation, one_axis(batch["time"]))  # Eq. 8
    avatar = talker.avatar(params, buffers)
    # Generated motion never quite meets the film: of its pixels' pull on the Gaussians little is wanted.
    held = jax.tree.map(lambda x: _let_through(x, config.avatar_share), (avatar.gaussians, offsets))

    def draw(motion, gaussians, offsets):
      flame = motion_to_flame(motion) | {"translation": film["translation"]}
      return render(avatar.replace(gaussians=gaussians), flame, camera, offsets, {})

    def draw_frames_of(motion, gaussians, offsets):
      return draw(one_axis(jnp.take_along_axis(motion, batch["frame"][..., None], axis=1)), gaussians, offsets)

    count = len(batch["frame"])
    outputs = [draw_frames_of(predicted[:count], *held)]
    image_terms = image_loss(outputs[0].image, image)
    if config.tracked_weight:
      outputs.append(draw_frames_of(batch["motion_b"], avatar.gaussians, offsets))
      for name, value in image_loss(outputs[1].image, image).items():
        image_terms[f"tracked_{name}"] = config.tracked_weight * value
    if config.drawn_weight:
      # Conversations that nobody filmed: the avatar draws the truth. As many frames, of the first of the other windows.
      unfilmed = [predicted[count : 2 * count], motion["motion_b"][count : 2 * count]]
      still = jax.lax.stop_gradient((avatar.gaussians, offsets))
      outputs += [draw_frames_of(m, *still) for m in unfilmed]
      for name, value in image_loss(outputs[-2].image, jax.lax.stop_gradient(outputs[-1].image)).items():
        image_terms[f"drawn_{name}"] = config.drawn_weight * value
    terms |= {name: config.image_weight * value for name, value in image_terms.items()}
    terms |= _gaussian_terms(params, outputs[0], avatar_config, config.position_weight)
    terms["offset"] = config.offset_weight * losses.offset_loss(offsets / sizes, config.offset_threshold)  # Eq. 12
    return sum(terms.values()), terms | _buffer_terms(outputs)  # Eq. 13

  def init(key):
    generator_key, offsets_key = jax.random.split(key)
    params, buffers = _init_generator(talker, windows.clips[0], generator_key)
    avatar_params, avatar_buffers = _init_avatar(inputs, capture)
    query = talker.generator.apply(params["generator"], jnp.zeros(2, jnp.int32), method="relation_query")
    offsets = talker.offset_net.init(offsets_key, query, jnp.zeros(()))
    return params | avatar_params | {"offsets": offsets}, buffers | avatar_buffers

  rates = functools.partial(
      optimizers.gaussian_schedule,
      avatar_config.learning_rates,
      config.steps,
      scene_extent=avatar_config.scene_extent,
      final_share=avatar_config.final_learning_rate,
      scale=config.avatar_learning_rate,
  )
  network = functools.partial(optimizers.network_optimizer, steps=config.steps, warmup=config.steps // 10)
  return Stage(
      name="joint",
      steps=config.steps,
      init=init,
      batches=grain.experimental.ZipIterDataset(
          (windows.batches(inputs), _motion_batches(inputs, "joint", config.motion_batch, config.window))
      ).map(lambda pair: {"filmed": pair[0], "others": pair[1]}),
      **_with_renderer(loss, talker, inputs.mesh),
      optimizer=optimizers.by_path({
          "generator": network(config.generator_learning_rate),
          "offsets": network(config.offsets_learning_rate),
          **optimizers.gaussian_optimizer(avatar_config.learning_rates, rates, sh_rest_share=avatar_config.sh_rest_share),
      }),
  )


def _triangle_sizes(talker: Talker, capture: Capture) -> Float[Array, "F 1"]:
  """Sizes of the person's triangles at rest: the unit in which Eq. 12 measures offsets."""
  rest = jax.tree.map(lambda x: x[0], motion_to_flame(jnp.zeros((1, 56))))
  vertices = head_vertices(talker.head, shape=jnp.asarray(capture.shape), **rest)
  _, sizes, _ = triangle_frames(vertices, talker.head.faces)
  return sizes[:, None]


@dataclasses.dataclass(frozen=True)
class JointWindows:
  """Windows of captured conversations with some of their video frames: the triplets of Sec. 4.1.

  Attributes:
    config: the joint section.
    capture: the video.
    clips: conversations, with the person in the video as B.
    frames: for each clip the capture's item that shows each of its first frames.
  """

  config: ConfigDict
  capture: Capture
  clips: list[MotionClip]
  frames: list[np.ndarray]

  @classmethod
  def load(cls, inputs: StageInputs, capture: Capture) -> "JointWindows":
    manifest = inputs.path("triplets")
    triplets = load_triplets(manifest, "train")
    by_name = {clip.name: clip for clip in inputs.training_clips}
    missing = [triplet.name for triplet in triplets if triplet.name not in by_name]
    if missing or not triplets:
      found = f"{missing[0]}, which is no training conversation" if missing else "no training triplet"
      raise InputError(manifest, "conversation", found, "names of training conversations")
    clips = [by_name[triplet.name] for triplet in triplets]
    return cls(inputs.config.joint, capture, clips, [triplet.capture_indices(capture) for triplet in triplets])

  @property
  def num_frames(self) -> int:
    return sum(map(len, self.frames))

  def cut(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random window of conversation `index`, with `config.frames` random frames of it from the video."""
    clip, items, window = self.clips[index], self.frames[index], self.config.window
    length = min(len(items), len(clip.motion_b))
    if length < window:
      raise InputError("config", "joint.window", window, f"at most {length}, the length of {clip.name}")
    start = int(rng.integers(length - window + 1))
    chosen = np.sort(rng.choice(window, self.config.frames, replace=False))
    shown = [self.capture[int(items[start + frame])] for frame in chosen]
    span = slice(start, start + window)
    examples = [_to_frame_example(item) for item in shown]
    return {
        "speech_a": clip.speech_a[span],
        "motion_a": clip.motion_a[span],
        "speech_b": clip.speech_b[span],
        "motion_b": clip.motion_b[span],
        "relation": np.asarray(clip.relation, np.int32),
        "frame": chosen.astype(np.int32),
        "time": (start + chosen).astype(np.float32),
        "translation": np.stack([item["flame"]["translation"] for item in shown]),
        **{key: np.stack([e[key] for e in examples]) for key in ("image", "world_to_camera", "intrinsics")},
    }

  def batches(self, inputs: StageInputs) -> grain.IterDataset:
    # Each conversation as often as its length holds windows, so that every frame is equally likely.
    slots = [i for i, items in enumerate(self.frames) for _ in range(max(1, round(len(items) / self.config.window)))]
    dataset = grain.MapDataset.source(slots).seed(inputs.config.seed).shuffle()
    # Captures are few: every process draws from all of them, each with its own seed.
    dataset = dataset.repeat().seed(inputs.config.seed + jax.process_index()).random_map(self.cut)
    dataset = dataset.batch(inputs.local_batch(self.config.batch), drop_remainder=True)
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
