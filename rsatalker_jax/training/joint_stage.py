"""Stage 3: everything but the speech encoder learns from pixels and motion together (Eq. 13)."""

import dataclasses
import functools

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rsatalker_jax.data.captures import Capture
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.data.triplets import load_triplets
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import pose_for
from rsatalker_jax.training import losses, optimizers
from rsatalker_jax.training.loop import Stage
from rsatalker_jax.training.motion_stage import generate, init_generator, motion_batches
from rsatalker_jax.training.rendering import (
    buffer_terms,
    camera_of,
    gaussian_rates,
    gaussian_terms,
    init_avatar_group,
    let_through,
    open_capture,
    to_float,
    to_frame_example,
    triangle_sizes,
    with_renderer,
)
from rsatalker_jax.training.stage_inputs import StageInputs


def joint_stage(inputs: StageInputs) -> Stage:
  """Trains everything but the speech encoder, from pixels and motion together (Eq. 13).

  A batch holds windows of filmed conversations and windows of all training conversations: films are few, and on them
  alone the generator would forget how others talk. To the paper's L_image, of the film's frames with generated motion, two
  are added: the same frames with tracked motion, which keep the Gaussians sharp, and frames of unfilmed conversations with
  generated against true motion, both drawn by the avatar, which tell the generator what its errors cost in pixels.
  """
  config, avatar_config, talker = inputs.config.joint, inputs.config.avatar, inputs.fitted_talker
  if config.drawn_weight and config.motion_batch < config.batch:
    raise InputError("config", "joint.motion_batch", config.motion_batch, f"at least joint.batch, {config.batch}: they are drawn")
  capture = open_capture(inputs, "train")
  windows = JointWindows.load(inputs, capture)
  inputs.say(f"joint: {windows.num_frames} frames of video in {len(windows.clips)} conversations")
  mesh_loss, sizes = inputs.mesh_loss, triangle_sizes(talker, capture)

  def loss(render, params, buffers, batch, key, step):
    del step
    others, batch = batch["others"], batch["filmed"]
    motion = {name: jnp.concatenate([batch[name], others[name]]) for name in others}
    predicted = generate(talker, params, motion, key)
    count = len(batch["frame"])
    # Over all conversations, the filmed ones as often as others: in every batch they would be learnt by heart.
    terms = mesh_loss(predicted[count:], others["motion_b"])  # Eq. 9
    image_loss = functools.partial(
        losses.image_loss, dssim_weight=avatar_config.dssim_weight, lpips_weight=avatar_config.lpips_weight
    )

    # The rendered frames (B, K), one after another along one axis.
    one_axis = lambda x: x.reshape(-1, *x.shape[2:])
    film = {name: one_axis(batch[name]) for name in ("image", "translation", "world_to_camera", "intrinsics")}
    image = to_float(film["image"])
    relation = jnp.repeat(batch["relation"], config.frames, axis=0)
    offsets = talker.gaussian_offsets(params, relation, one_axis(batch["time"]))  # Eq. 8
    avatar = talker.avatar(params, buffers)
    shown = lambda motion: one_axis(jnp.take_along_axis(motion, batch["frame"][..., None], axis=1))

    def draw(motions, gaussians, offsets):
      """Images of all of `motions`, each under the film's cameras, in one call."""
      times = len(motions)
      tile = lambda x: jnp.tile(x, (times,) + (1,) * (x.ndim - 1))
      flame = pose_for(jnp.concatenate([shown(motion) for motion in motions]))
      flame["translation"] = tile(film["translation"])
      views = camera_of({name: tile(film[name]) for name in ("world_to_camera", "intrinsics")}, capture)
      output = render(avatar.replace(gaussians=gaussians), flame, views, tile(offsets))
      return jnp.split(output.image, times), output

    held = jax.tree.map(lambda x: let_through(x, config.avatar_share), (avatar.gaussians, offsets))
    # Of conversations that nobody filmed as many frames are drawn, of the first of the other windows.
    unfilmed = slice(count, 2 * count)
    generated = [predicted[:count]] + [predicted[unfilmed]] * bool(config.drawn_weight)
    images, output = draw(generated, *held)
    outputs = [output]
    pairs = {"": (config.image_weight, images[0], image)}
    if config.tracked_weight:
      (tracked,), output = draw([batch["motion_b"]], avatar.gaussians, offsets)
      outputs.append(output)
      pairs["tracked_"] = config.tracked_weight, tracked, image
    if config.drawn_weight:
      (truth,), output = jax.lax.stop_gradient(draw([motion["motion_b"][unfilmed]], avatar.gaussians, offsets))
      outputs.append(output)
      pairs["drawn_"] = config.drawn_weight, images[1], truth
    for prefix, (weight, rendered, target) in pairs.items():
      terms |= {prefix + name: weight * value for name, value in image_loss(rendered, target).items()}
    terms |= gaussian_terms(params, outputs[0], avatar_config, config.position_weight)
    terms["offset"] = config.offset_weight * losses.offset_loss(offsets / sizes, config.offset_threshold)  # Eq. 12
    return sum(terms.values()), terms | buffer_terms(outputs)  # Eq. 13

  avatar_params, avatar_buffers = init_avatar_group(inputs, capture)

  def init(key):
    generator_key, offsets_key = jax.random.split(key)
    params, buffers = init_generator(talker, windows.clips[0], generator_key)
    query = talker.generator.apply(params["generator"], jnp.zeros(2, jnp.int32), method="relation_query")
    offsets = talker.offset_net.init(offsets_key, query, jnp.zeros(()))
    return params | avatar_params | {"offsets": offsets}, buffers | avatar_buffers

  rates = gaussian_rates(avatar_config, config.steps, config.avatar_learning_rate)
  network = functools.partial(optimizers.network_optimizer, steps=config.steps, warmup=config.steps // 10)
  return Stage(
      name="joint",
      steps=config.steps,
      init=init,
      batches=grain.experimental.ZipIterDataset(
          (windows.batches(inputs), motion_batches(inputs, "joint", config.motion_batch, config.window))
      ).map(lambda pair: {"filmed": pair[0], "others": pair[1]}),
      **with_renderer(loss, talker, inputs.mesh),
      optimizer=optimizers.by_path({
          "generator": network(config.generator_learning_rate),
          "offsets": network(config.offsets_learning_rate),
          **optimizers.gaussian_optimizer(avatar_config.learning_rates, rates, sh_rest_share=avatar_config.sh_rest_share),
      }),
  )


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
    examples = [to_frame_example(item) for item in shown]
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
