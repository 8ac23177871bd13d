"""Where head and body are in a frame: the head stands still for the methods here, and the camera moves about it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rsatalker_jax.head import FlamePose, HeadModel
from rsatalker_jax.head.flame import rotation_matrix


def joint_transforms(
    head: HeadModel, shape: Float[Array, "S"], static_offset: Float[Array, "V 3"] | None, flame: FlamePose
) -> dict[str, Float[Array, "*b 4 4"]]:
  """Rigid transforms from the head at rest to the world, of what is fixed to the head and of what is fixed to the body.

  Without a tracker of their own, which the methods' authors have to run: exact, but for the lips that hang at the jaw. Where
  the joints are does not depend on the expression here, or the pose would tell what the mouth does.

  Args:
    head: whose joints they are.
    shape, static_offset: the person.
    flame: of the frames, "rotation", "neck" and "translation" are used.

  Returns:
    "head": FLAME's neck joint, below which the whole head turns; "body": the root joint.
  """
  count = min(head.num_shape, len(shape))
  vertices = head.v_template + head.shape_directions[..., :count] @ jnp.asarray(shape)[:count]
  if static_offset is not None:
    vertices = vertices + static_offset
  joints = head.joint_regressor @ vertices

  def one(rotation, neck, translation):
    body = _about(rotation_matrix(rotation), joints[0])
    return {"head": _shift(body @ _about(rotation_matrix(neck), joints[1]), translation), "body": _shift(body, translation)}

  for _ in range(jnp.ndim(flame["neck"]) - 1):
    one = jax.vmap(one)
  return one(*(jnp.asarray(flame[name]) for name in ("rotation", "neck", "translation")))


def _about(rotation: Float[Array, "3 3"], centre: Float[Array, "3"]) -> Float[Array, "4 4"]:
  return _rigid(rotation, centre - rotation @ centre)


def _shift(transform: Float[Array, "4 4"], translation: Float[Array, "3"]) -> Float[Array, "4 4"]:
  return transform.at[:3, 3].add(translation)


def _rigid(rotation: Float[Array, "*b 3 3"], translation: Float[Array, "*b 3"]) -> Float[Array, "*b 4 4"]:
  upper = jnp.concatenate([rotation, translation[..., None]], axis=-1)
  lower = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (*upper.shape[:-2], 1, 4))
  return jnp.concatenate([upper, lower], axis=-2)


def invert_rigid(transform: Float[Array, "*b 4 4"]) -> Float[Array, "*b 4 4"]:
  """The inverse of a rotation and a translation."""
  back = jnp.swapaxes(transform[..., :3, :3], -1, -2)
  return _rigid(back, -jnp.einsum("...ij,...j->...i", back, transform[..., :3, 3]))


def camera_to_head(
    world_to_camera: Float[Array, "*b 4 4"], head_to_world: Float[Array, "*b 4 4"]
) -> Float[Array, "*b 4 4"]:
  """The camera's pose as seen from a head that stands still; OpenCV axes."""
  return invert_rigid(world_to_camera @ head_to_world)
