"""Stand-ins that make a stage's loss arithmetic one can do by hand: a talker without networks and a renderer without Gaussians."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.talker import Talker
from splat_kernels import RenderOutput

SIZE = 16


def make_clip(name, frames=40, seed=0, relation=(1, 0), speech=3):
  """A clip whose arrays all differ, and differ from frame to frame."""
  r = np.random.default_rng(seed)
  draw = lambda width: (0.1 * r.normal(size=(frames, width))).astype(np.float32)
  return MotionClip(name, draw(speech), draw(56), draw(speech), draw(56), np.array(relation, np.int32), basis="flame2020")


@dataclasses.dataclass(frozen=True)
class PlainTalker(Talker):
  """B's motion is A's, plus what is trained; offsets are what is trained, times the time, the relation's first number and the
  jaw's."""

  @classmethod
  def of(cls, talker: Talker) -> "PlainTalker":
    return cls(**{field.name: getattr(talker, field.name) for field in dataclasses.fields(talker)})

  def generate(self, params, buffers, inputs, *, dropout=None):
    del buffers, dropout
    return inputs["motion_a"] + params["generator"]["shift"] + params["social"]["shift"]

  def gaussian_offsets(self, params, buffers, relation, t, motion):
    del buffers
    scale = (t * (1 + relation[..., 0]) * (1 + motion[..., 50]))[:, None, None]
    return scale * params["offsets"]["c"]


def plain_params(num_faces):
  return {
      "generator": {"shift": jnp.full(56, 0.01)},
      "social": {"shift": jnp.full(56, 0.02), "params": {"relation_embedding": {"blood": jnp.eye(2), "equal": jnp.eye(2)}}},
      "offsets": {"c": jnp.full((num_faces, 3), 1e-4)},
  }


def plain_render(avatar, flame, camera, offsets=None, probes=None):
  """Frames in one colour: the sums of what is drawn, and where. Every second Gaussian is hidden."""
  del camera, probes
  gaussians, frames = avatar.gaussians, len(flame["jaw"])
  own = jnp.mean(gaussians.means, axis=(-2, -1))
  value = 0.3 + own + jnp.mean(flame["expression"][:, :50], axis=-1) + jnp.mean(flame["neck"], axis=-1)
  value += 3 * jnp.mean(flame["translation"], axis=-1) + jnp.mean(flame["rotation"], axis=-1)
  if offsets is not None:
    value += 10 * jnp.mean(offsets, axis=(-2, -1))
  # A picture, so that SSIM is defined by more than one number.
  pattern = jnp.linspace(0.5, 1, SIZE * SIZE * 3).reshape(SIZE, SIZE, 3)
  count = gaussians.means.shape[-2]
  radii = jnp.broadcast_to(jnp.arange(count) % 2, (frames, count)).astype(jnp.int32)
  zeros = jnp.zeros(frames, jnp.int32)
  image = value[:, None, None, None] * pattern
  return RenderOutput(image=image, alpha=image[..., 0], depth=None, radii=radii, nonfinite=zeros, intersections=zeros, overflow=zeros)


def terms_of(stage, params, buffers, batch):
  """The stage's loss with the plain renderer: total and terms."""
  loss = getattr(stage.loss, "func", stage.loss)
  rendered = (plain_render,) if loss is not stage.loss else ()
  return loss(*rendered, params, buffers, batch, jax.random.key(0), jnp.zeros((), jnp.int32))
