"""What stages that render have in common: frames of a capture, the person's first avatar, terms of the loss."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

import splat_kernels
from rsatalker_jax.avatar import Gaussians, face_colors, init_avatar, paint, triangle_frames
from rsatalker_jax.data.capture_collection import CaptureCollection
from rsatalker_jax.data.captures import Capture, spread_places
from rsatalker_jax.head import head_vertices, pose_for
from rsatalker_jax.talker import Params, Talker, render_on_mesh
from rsatalker_jax.training import optimizers
from rsatalker_jax.training.loop import Room
from rsatalker_jax.training.stage_inputs import StageInputs

_AVATAR_GROUP = ("means", "quats", "log_scales", "opacity_logits", "sh")


def gaussian_rates(config: ConfigDict, steps: int) -> Callable[[str], optax.Schedule]:
  """Learning rates of the Gaussians by attribute, from the config's avatar section (`optimizers.gaussian_schedule`)."""
  return functools.partial(
      optimizers.gaussian_schedule,
      config.learning_rates,
      steps,
      scene_extent=config.scene_extent,
      final_shares=config.final_learning_rates,
  )


def continued_gaussian_rates(
    config: ConfigDict, steps: int, *, share: float, final_share: float, warmup: int
) -> Callable[[str], optax.Schedule]:
  """Learning rates of the Gaussians by attribute in a stage of so many steps after the avatar's.

  Args:
    config: the config's avatar section.
    steps: of the stage.
    share, final_share, warmup: see `optimizers.continued_schedule`.
  """
  rates = gaussian_rates(config, config.steps)
  return lambda attribute: optimizers.continued_schedule(
      rates(attribute), config.steps, steps, share=share, final_share=final_share, warmup=warmup
  )


def with_renderer(
    loss: Callable, inputs: StageInputs, mesh: jax.sharding.Mesh, *, avatar_per_frame: bool = False
) -> dict[str, Any]:
  """The fields `loss` and `room` of a stage whose loss takes a renderer (`render_on_mesh`) first."""
  options = dict(avatar_per_frame=avatar_per_frame, frames_at_once=inputs.config.render.frames_at_once)
  bind = lambda talker: functools.partial(loss, render_on_mesh(talker, mesh, **options))
  room = Room("Gaussian-tile pairs", "overflow", "intersections", lambda needed: bind(inputs.talker.with_room(needed)))
  return {"loss": bind(inputs.talker), "room": room}


def buffer_terms(outputs: Sequence[splat_kernels.RenderOutput]) -> dict[str, Array]:
  return {
      "overflow": jnp.sum(jnp.stack([jnp.sum(output.overflow) for output in outputs])),
      "intersections": jnp.max(jnp.stack([jnp.max(output.intersections) for output in outputs])),
  }


def let_through(x: Array, share: float) -> Array:
  """x, whose gradient is multiplied by `share`."""
  return share * x + (1 - share) * jax.lax.stop_gradient(x)


def init_avatar_group(inputs: StageInputs, capture: Capture) -> tuple[Params, Params]:
  """Group "avatar" of params and buffers of a person as training begins: the config's `gaussians`, in the film's colours.

  Reads frames and draws places by numpy: to be called where a stage is made, not in its `init`, which is traced.
  """
  if capture.root.resolve() not in inputs.first_avatars:
    inputs.first_avatars[capture.root.resolve()] = _make_avatar_group(inputs, capture)
  params, buffers = inputs.first_avatars[capture.root.resolve()]
  return dict(params), dict(buffers)


def _make_avatar_group(inputs: StageInputs, capture: Capture) -> tuple[Params, Params]:
  options = dict(inputs.config.gaussians)
  # Only regions that are steered: a head need not have the others.
  options["region_density"] = {name: factor for name, factor in options["region_density"].items() if factor != 1}
  color_frames = options.pop("color_frames")
  offset = capture.nonzero_offset
  avatar = init_avatar(inputs.talker.head, capture.shape, static_offset=offset, seed=inputs.config.seed, **options)
  if color_frames:
    chosen = spread_places(len(capture), color_frames)
    frames = (capture[int(i)] for i in chosen)
    avatar = paint(avatar, face_colors(inputs.talker.head, avatar.shape, frames, offset))
  params = {name: getattr(avatar.gaussians, name) for name in _AVATAR_GROUP}
  buffers = {"binding": avatar.binding, "shape": avatar.shape}
  if offset is not None:
    buffers["static_offset"] = jnp.asarray(offset)
  return {"avatar": params}, {"avatar": buffers}


def capacity_of(inputs: StageInputs) -> int:
  """Length of the Gaussians' arrays."""
  config = inputs.config.gaussians
  return max(config.num_gaussians or inputs.talker.head.faces.shape[0], config.capacity or 0)


def to_frame_example(item: Mapping[str, Any]) -> dict[str, Any]:
  """What a step needs of a captured frame; the image as bytes, a quarter of the traffic."""
  return {
      "image": np.round(item["image"] * 255).astype(np.uint8),
      "world_to_camera": item["world_to_camera"],
      "intrinsics": item["intrinsics"],
      "flame": dict(item["flame"]),
  }


def to_float(image: Array) -> Array:
  return image.astype(jnp.float32) / 255


def camera_of(batch: Mapping[str, Array], capture: Capture | CaptureCollection) -> splat_kernels.Camera:
  return splat_kernels.Camera(batch["world_to_camera"], batch["intrinsics"], capture.width, capture.height)


def people_seen(
    gaussians: Gaussians, output: splat_kernels.RenderOutput, identity: Int[Array, "B"] | None
) -> dict[str, Float[Array, "P N ..."]]:
  """"means" and "log_scales" (P, N, 3), and "visible" (P, N), 1 for each Gaussian that any frame of its person shows, for
  `losses.gaussian_terms`: of one person (P = 1), or of each frame's person (P = B).

  Args:
    gaussians: of one person, or of each frame's person (B, N, ...).
    output: the frames.
    identity: whom each frame shows; None for one person.
  """
  shown = output.radii > 0
  if identity is None:
    visible = jnp.any(shown, axis=0).astype(jnp.float32)
    return {"means": gaussians.means[None], "log_scales": gaussians.log_scales[None], "visible": visible[None]}
  same_person = (identity[:, None] == identity).astype(jnp.float32)
  visible = (same_person @ shown.astype(jnp.float32) > 0).astype(jnp.float32)
  return {"means": gaussians.means, "log_scales": gaussians.log_scales, "visible": visible}


def triangle_sizes(talker: Talker, capture: Capture) -> Float[Array, "F 1"]:
  """Sizes of the person's triangles at rest: the unit in which Eq. 12 measures offsets."""
  rest = jax.tree.map(lambda x: x[0], pose_for(jnp.zeros((1, 56))))
  vertices = head_vertices(talker.head, shape=jnp.asarray(capture.shape), static_offset=capture.static_offset, **rest)
  _, sizes, _ = triangle_frames(vertices, talker.head.faces)
  return sizes[:, None]
