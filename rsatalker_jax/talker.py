"""The whole model: the modules that a config asks for, and how they are put together.

Trained arrays and buffers are passed in, never held here:

    params  = {"generator": …, "offsets": …, "avatar": Gaussians}
    buffers = {"generator": {motion_mean (56,), motion_std (56,)}, "avatar": {binding (N,), shape (S,), static_offset?}}
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

import splat_kernels
from rsatalker_jax.avatar import Avatar, Gaussians, render_frames
from rsatalker_jax.head import HeadModel, load_head, motion_to_flame
from rsatalker_jax.motion import MotionConfig, MotionGenerator
from rsatalker_jax.social import GaussianOffsetNet

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Talker:
  """The modules of one config. Methods are pure functions of parameters and inputs.

  Attributes:
    head: the head model.
    offset_net: Gaussian offsetnet (Eq. 8).
    motion_options: fields of `MotionConfig` without the motion's statistics, which are buffers.
    raster: constants of the rasterizer.
    implementation: of the rasterizer; None picks.
    background: colour behind the head.
  """

  head: HeadModel
  offset_net: GaussianOffsetNet
  motion_options: dict[str, Any]
  raster: splat_kernels.Config
  implementation: str | None
  background: tuple[float, float, float]

  @property
  def generator(self) -> MotionGenerator:
    """The generator without statistics: in and out are normalised motion."""
    return MotionGenerator(MotionConfig(**self.motion_options))

  def generate_motion(
      self,
      params: Params,
      buffers: Params,
      speech_a: Float[Array, "*b T D"],
      motion_a: Float[Array, "*b T 56"],
      speech_b: Float[Array, "*b T D"],
      relation: Int[Array, "*b 2"],
      dropout_key: jax.Array | None = None,
  ) -> Float[Array, "*b T 56"]:
    """B's motion from both voices' features, A's motion and the relation. With a key, with dropout (training)."""
    mean, std = buffers["generator"]["motion_mean"], buffers["generator"]["motion_std"]
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    normalised = self.generator.apply(
        params["generator"],
        speech_a,
        (motion_a - mean) / std,
        speech_b,
        relation,
        deterministic=dropout_key is None,
        rngs=rngs,
    )
    return mean + std * normalised

  def gaussian_offsets(
      self, params: Params, relation: Int[Array, "*b 2"], t: Float[Array, "*b"]
  ) -> Float[Array, "*b F 3"]:
    """Offset corrections c = GON(q, t) in metres (Eq. 8), t in frames since the conversation began."""
    query = self.generator.apply(params["generator"], relation, method="relation_query")
    return self.offset_net.apply(params["offsets"], query, t)

  def avatar(self, params: Params, buffers: Params) -> Avatar:
    """The avatar of a run's parameters."""
    return Avatar(gaussians=Gaussians(**params["avatar"]), **buffers["avatar"])

  def render(
      self,
      avatar: Avatar,
      flame: dict[str, Float[Array, "*b _"]],
      camera: splat_kernels.Camera,
      offsets: Float[Array, "*b F 3"] | None = None,
  ) -> splat_kernels.RenderOutput:
    """Frames (B leading) of an avatar in the poses `flame` (arguments of `head_vertices`)."""
    return render_frames(
        avatar,
        self.head,
        flame,
        offsets,
        camera,
        background=jnp.asarray(self.background),
        config=self.raster,
        implementation=self.implementation,
    )

  def render_motion(self, avatar, motion: Float[Array, "T 56"], translation: Float[Array, "3"], camera, offsets=None):
    """`render` for motion vectors, with the head standing at `translation` (metres)."""
    flame = motion_to_flame(motion)
    flame["translation"] = flame["translation"] + translation
    return self.render(avatar, flame, camera, offsets)


def make_talker(config: ConfigDict) -> Talker:
  """Loads the head and makes the modules that `config` asks for."""
  head = load_head(config.head.path)
  return Talker(
      head=head,
      offset_net=GaussianOffsetNet(num_anchors=head.faces.shape[0], hidden=config.offsets.hidden),
      motion_options=dict(config.generator),
      raster=splat_kernels.Config(
          tile_size=config.render.tile_size,
          max_intersections=config.render.max_intersections,
          with_depth=False,
      ),
      implementation=config.render.implementation,
      background=tuple(config.render.background),
  )
