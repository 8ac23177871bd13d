"""The whole model: the modules that a config asks for, and how they are put together.

Trained arrays and buffers are passed in, never held here:

    params  = {"social": …, "generator": …, "offsets": …, "avatar": Gaussians}
    buffers = {"generator": {motion_mean (56,), motion_std (56,), lip_std?}, "avatar": {binding (N,), shape (S,), static_offset?}}

Of a baseline that generates by the moving average of its parameters, buffers also hold "average": {"generator": …}.
"""

import dataclasses
import functools
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

import splat_kernels
from rsatalker_jax.avatar import Avatar, Gaussians, render_frames
from rsatalker_jax.baselines.image import Subject
from rsatalker_jax.baselines.motion import make_generator
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import HeadModel, load_head
from rsatalker_jax.data.capture_collection import CaptureCollection, load_captures
from rsatalker_jax.data.captured_people import CapturedPeople
from rsatalker_jax.data.captures import Capture, check_capture, load_capture
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.data.triplets import FilmedConversation
from rsatalker_jax.motion import Generator, MotionConfig
from rsatalker_jax.motion.clips import pad_clip
from rsatalker_jax.sharding import AXES
from rsatalker_jax.social import GaussianOffsetNet, SocialModule
from rsatalker_jax.social.relation import UNKNOWN
from rsatalker_jax.speech import LogMel, SpeechFeatures, logmel_features, wav2vec2_features, whisper_features
from rsatalker_jax.types import Motion

Params = dict[str, Any]
# wav (S,) at 16 kHz and a number of frames -> features (T, D) at 25 fps
SpeechEncoder = Callable[[Float[np.ndarray, "S"], int], Float[np.ndarray, "T D"]]


@dataclasses.dataclass(frozen=True)
class Talker:
  """The modules of one config. Methods are pure functions of parameters and inputs.

  Attributes:
    head: the head model.
    social: relation embeddings and motion socialnet.
    generator: speaker-listener motion generator, or a baseline.
    offset_net: Gaussian offsetnet (Eq. 8).
    knows_relation: False is the paper's "w/o SAM": every relation is unknown to it, and there are no offsets.
    raster: constants of the rasterizer.
    implementation: of the rasterizer; None picks.
    background: colour behind the head.
  """

  head: HeadModel
  social: SocialModule
  generator: Generator
  offset_net: GaussianOffsetNet
  knows_relation: bool
  raster: splat_kernels.Config
  implementation: str | None
  background: tuple[float, float, float]

  def with_room(self, needed: int) -> "Talker":
    """The same modules, with a rasterizer that has room for `needed` Gaussian-tile pairs a frame."""
    raster = dataclasses.replace(self.raster, max_intersections=splat_kernels.round_capacity(needed))
    return dataclasses.replace(self, raster=raster)

  def social_feature(self, params: Params, relation: Int[Array, "*b 2"]) -> Float[Array, "*b D"]:
    """The motion social feature s of a relation."""
    if not self.knows_relation:
      relation = jnp.full_like(relation, UNKNOWN)
    feature: Any = self.social.apply(params["social"], relation)
    return feature

  def generate(
      self,
      params: Params,
      buffers: Params,
      inputs: Mapping[str, Array],
      *,
      dropout: jax.Array | None = None,
      sample: jax.Array | None = None,
  ) -> Float[Array, "*b T 56"]:
    """B's motion (Eq. 4, 5).

    Args:
      params, buffers: of a run.
      inputs: speech_a, motion_a, speech_b, relation, as `MotionClip` has them; `num_frames` where clips are padded.
      dropout: key of the dropout masks, in training.
      sample: key of what is drawn by chance, for generators that sample.
    """
    given = params["generator"] if dropout is not None else buffers.get("average", params)["generator"]
    rngs = {"dropout": dropout, "sample": sample}
    return self.generator.apply(
        {**given, "statistics": buffers["generator"]},
        *self._heard_and_seen(params, inputs),
        num_frames=inputs.get("num_frames"),
        deterministic=dropout is None,
        rngs={name: key for name, key in rngs.items() if key is not None},
    )

  def training_terms(
      self, params: Params, buffers: Params, batch: Mapping[str, Array], key: jax.Array, progress: Float[Array, ""]
  ) -> dict[str, Float[Array, ""]]:
    """The loss of a generator that has its own (`motion.Generator`), by terms.

    Args:
      batch: windows, as `MotionClip` has them.
      key: of all that is drawn.
      progress: share of the stage's steps that are taken.
    """
    inputs = *self._heard_and_seen(params, batch), batch["motion_b"]
    return self._apply_in_training(params, buffers, inputs, key, progress, "training_terms")

  def codes_terms(
      self, params: Params, buffers: Params, batch: Mapping[str, Array], key: jax.Array, progress: Float[Array, ""]
  ) -> dict[str, Float[Array, ""]]:
    """The same of what the stage "codes" trains."""
    return self._apply_in_training(params, buffers, (batch["motion_b"],), key, progress, "codes_terms")

  def _apply_in_training(self, params, buffers, inputs, key, progress, method):
    dropout, sample = jax.random.split(key)
    variables = {**params["generator"], "statistics": buffers["generator"]}
    rngs = {"dropout": dropout, "sample": sample}
    return self.generator.apply(variables, *inputs, progress=progress, rngs=rngs, method=method)

  def _heard_and_seen(self, params: Params, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
    relation = self.social_feature(params, inputs["relation"])
    return inputs["speech_a"], inputs["motion_a"], inputs["speech_b"], relation

  def generate_clip(self, params: Params, buffers: Params, clip: MotionClip, *, sample: int = 0) -> Motion:
    """B's motion for a whole clip of any length, through a few compiled programs (`motion.clips`).

    Args:
      sample: which, of a generator that samples: the same number and clip give the same motion.
    """
    speech_a, speech_b = np.asarray(clip.speech_a), np.asarray(clip.speech_b)  # They may lie on disk.
    inputs = pad_clip(speech_a, clip.motion_a, speech_b) | {"relation": np.asarray(clip.relation, np.int32)}
    given = {name: buffers[name] for name in ("generator", "average") if name in buffers}
    key = None
    if self.generator.samples:
      key = jax.random.fold_in(jax.random.key(sample), np.uint32(zlib.crc32(clip.name.encode())))
    motion = _compiled_generate(self.generator, self.social, self.knows_relation)(
        {name: params[name] for name in ("generator", "social")}, given, inputs, sample=key
    )
    return np.asarray(motion)[: len(clip.motion_a)]

  def gaussian_offsets(
      self,
      params: Params,
      buffers: Params,
      relation: Int[Array, "*b 2"],
      t: Float[Array, "*b"],
      motion: Float[Array, "*b 56"],
  ) -> Float[Array, "*b F 3"]:
    """Offset corrections c in metres (Eq. 8), of what `social.offsets_inputs` names.

    Args:
      t: frames since the conversation began.
      motion: B's, that of the frames.
    """
    query = self.social.apply(params["social"], relation, method="query")
    statistics = buffers["generator"]
    standardised = (motion - statistics["motion_mean"]) / statistics["motion_std"]
    offsets: Any = self.offset_net.apply(params["offsets"], query, t, standardised)
    return offsets

  def open_capture(self, folder: str | os.PathLike, split: str) -> Capture:
    """One split of a capture, over the background that avatars are drawn on, and checked against the head."""
    capture = load_capture(
        folder,
        split,
        background=self.background,
        num_vertices=self.head.v_template.shape[0],
        num_expression=self.head.num_expression,
    )
    return check_capture(capture, self.head)

  def open_captures(self, people: CapturedPeople, split: str) -> CaptureCollection:
    """One split of the captures of several people, like `open_capture`.

    Raises:
      InputError: see `load_captures`; or a capture was tracked with another head, of which it has other expressions or more
        shapes than this one.
    """
    found = load_captures(
        people.folders,
        split,
        background=self.background,
        num_vertices=self.head.v_template.shape[0],
        num_expression=self.head.num_expression,
        names=people.names,
    )
    for capture in found.captures:
      check_capture(capture, self.head)
      if np.any(beyond := capture.shape[self.head.num_shape :]):
        count = f"{np.count_nonzero(beyond)} values that are not 0 behind the first {self.head.num_shape}"
        raise InputError(capture.root, "shape", count, f"{self.head.num_shape} values, as the head model has")
    return found

  def subject(self, films: Sequence[FilmedConversation], num_frames: int = 0) -> Subject:
    """The person whom films by one capture show, as image-based baselines want to know her.

    Args:
      films: at least one.
      num_frames: that are learnt from.
    """
    capture = films[0].capture
    return Subject(
        head=self.head,
        shape=capture.shape,
        static_offset=capture.nonzero_offset,
        width=capture.width,
        height=capture.height,
        background=self.background,
        speech_width=films[0].clip.speech_b.shape[-1],
        num_frames=num_frames,
        raster=self.raster,
        implementation=self.implementation,
    )

  def avatar(self, params: Params, buffers: Params) -> Avatar:
    """The avatar of a run's parameters."""
    return Avatar(gaussians=Gaussians(**params["avatar"]), **buffers["avatar"])

  def render(
      self,
      avatar: Avatar,
      flame: dict[str, Float[Array, "*b _"]],
      camera: splat_kernels.Camera,
      offsets: Float[Array, "*b F 3"] | None = None,
      probes: Mapping[str, Float[Array, "*b N 2"]] = MappingProxyType({}),
  ) -> splat_kernels.RenderOutput:
    """Frames (B leading) of an avatar, or of B avatars, in the poses `flame` (arguments of `head_vertices`).

    `probes` as in `render_frames`.
    """
    return render_frames(
        avatar,
        self.head,
        flame,
        offsets,
        camera,
        background=jnp.asarray(self.background),
        probes=probes,
        config=self.raster,
        implementation=self.implementation,
    )


@functools.lru_cache(maxsize=8)
def _compiled_generate(generator: Generator, social: SocialModule, knows_relation: bool):
  """`Talker.generate` for all talkers of equal modules: seeds that are compared share its programs."""
  talker = Talker(None, social, generator, None, knows_relation, None, None, None)
  return jax.jit(talker.generate)


def render_on_mesh(
    talker: Talker, mesh: jax.sharding.Mesh, *, avatar_per_frame: bool = False, frames_at_once: int = 0
):
  """`talker.render` with each device drawing its own frames; gradients of a shared avatar are summed over devices.

  Args:
    avatar_per_frame: whether every frame has an avatar of its own, as from a bank.
    frames_at_once: that a device draws; for gradients it draws them again, so that memory is that of so many. 0: all of
      its frames, once.
  """
  frames = P(AXES)
  avatar = frames if avatar_per_frame else P()
  draw = _render_in_turn(talker, frames_at_once, avatar_per_frame) if frames_at_once else talker.render
  # No check of varying manual axes: a pallas_call inside does not support it.
  spread = jax.shard_map(
      draw, mesh=mesh, in_specs=(avatar, frames, frames, frames, frames), out_specs=frames, check_vma=False
  )
  # shard_map wants every argument that it has a spec for; callers need not give what `talker.render` has a default for.
  return lambda avatar, flame, camera, offsets=None, probes={}: spread(avatar, flame, camera, offsets, probes)


def _render_in_turn(talker: Talker, frames_at_once: int, avatar_per_frame: bool):
  """`talker.render`, at most so many frames at a time, of which nothing but the output is kept for gradients."""

  def draw(avatar, *per_frame):
    shared, each = ((), (avatar, *per_frame)) if avatar_per_frame else ((avatar,), per_frame)
    count = len(per_frame[0]["jaw"])
    size = next(size for size in range(min(frames_at_once, count), 0, -1) if count % size == 0)
    parts = jax.tree.map(lambda x: x.reshape(count // size, size, *x.shape[1:]), each)
    output = jax.lax.map(jax.checkpoint(lambda part: talker.render(*shared, *part)), parts)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), output)

  return draw


def render_sequence(
    talker: Talker,
    mesh: jax.sharding.Mesh,
    avatar: Avatar,
    flame: dict[str, Float[np.ndarray, "T _"]],
    camera: splat_kernels.Camera,
    offsets: Callable[[Int[np.ndarray, "t"]], Float[Array, "t F 3"]] | None = None,
    *,
    chunk: int = 16,
) -> Iterator[Float[np.ndarray, "t H W 3"]]:
  """Renders a sequence of any length, `chunk` frames at a time over all devices.

  Args:
    flame: poses of all frames.
    camera: one for all frames, or one for each.
    offsets: gives the offset corrections of the frames with these numbers; None for none.

  Yields:
    The frames in order, in chunks (the last may be shorter). A chunk for which the rasterizer's list was too small is
    drawn again with a larger one.
  """
  chunk = -(-chunk // mesh.size) * mesh.size
  render = jax.jit(render_on_mesh(talker, mesh))
  count = len(flame["jaw"])
  per_frame = lambda x, rank: np.broadcast_to(x, (count, *x.shape[-rank:]))
  poses = per_frame(camera.world_to_camera, 2), per_frame(camera.intrinsics, 2)
  for start in range(0, count, chunk):
    # The last chunk is filled up with its last frame: one shape, one compilation.
    numbers = np.minimum(np.arange(start, start + chunk), count - 1)
    views = dataclasses.replace(camera, world_to_camera=poses[0][numbers], intrinsics=poses[1][numbers])
    corrections = None if offsets is None else offsets(numbers)
    arguments = avatar, {name: x[numbers] for name, x in flame.items()}, views, corrections
    output = render(*arguments)
    while int(output.overflow.max()):
      render = jax.jit(render_on_mesh(talker.with_room(int(output.intersections.max())), mesh))
      output = render(*arguments)
    yield np.asarray(output.image[: count - start])


def make_talker(config: ConfigDict) -> Talker:
  """Loads the head and makes the modules that `config` asks for."""
  head = load_head(**config.head)
  return Talker(
      head=head,
      social=SocialModule(config.generator.features, config.social.relation_features, config.social.hidden),
      generator=make_generator(MotionConfig(**config.generator), config.baselines),
      offset_net=GaussianOffsetNet(
          num_anchors=head.faces.shape[0],
          hidden=config.social.offsets_hidden,
          inputs=tuple(config.social.offsets_inputs),
      ),
      knows_relation=config.social.enabled,
      raster=splat_kernels.Config(
          tile_size=config.render.tile_size,
          max_intersections=config.render.max_intersections,
          with_depth=False,
          on_overflow="report",  # Who draws looks at it: training takes the step again, `render_frames` the frames.
      ),
      implementation=config.render.implementation,
      background=tuple(config.render.background),
  )


def make_log_mel(config: ConfigDict) -> LogMel:
  """The log-mel encoder of the config's `speech` section."""
  return LogMel(config.num_mels, config.hop, config.context, config.causal)


def make_encoder(
    config: ConfigDict, cache_dir: str | os.PathLike | None, *, encode_missing: bool = True
) -> SpeechFeatures:
  """The frozen speech encoder of the config's `speech` section; a checkpoint is not opened before a voice needs it.

  Args:
    config: the section.
    cache_dir: where features are kept; None keeps none.
    encode_missing: whether a voice that is not in `cache_dir` is encoded, or an error.

  Raises:
    InputError: if the section names an encoder that does not exist.
  """
  options = dict(cache_dir=cache_dir, encode_missing=encode_missing, level=config.level)
  if config.encoder == "logmel":
    return logmel_features(make_log_mel(config), **options)
  if config.encoder == "wav2vec2":
    return wav2vec2_features(config.checkpoint, resample_first=config.resample_first, **options)
  if config.encoder == "whisper":
    return whisper_features(config.checkpoint, **options)
  raise InputError("config", "speech.encoder", repr(config.encoder), "'logmel', 'wav2vec2' or 'whisper'")
