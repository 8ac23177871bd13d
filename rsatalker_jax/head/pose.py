"""Motion and film become poses of the head here, and nowhere else: training, scoring, generating and exporting call `pose_for`.

A conversation's tracker and a film's tracker look at the same head in two ways:

    motion (56)    50 expression, 3 jaw, 3 head rotation as DualTalk has it: the whole head's, which FLAME gets as its neck
    film frame     FLAME's parameters as VHAP has them: rotation of the whole body, neck, jaw, eyes, translation

Where somebody was filmed, motion poses the filmed body: rotation, eyes and translation stay the film's, and the neck turns
as far as it takes for the head to look where the motion says. So motion that agrees with the film gives the film's own pose.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rsatalker_jax.types import EXPRESSION_DIM, MOTION_GROUPS

FlamePose = dict[str, Float[Array, "*b _"]]


def pose_for(
    motion: Float[Array, "*b 56"],
    frame: Mapping[str, Float[Array, "*b _"]] | None = None,
    alignment: Float[Array, "*b 3"] | None = None,
) -> FlamePose:
  """A motion as arguments of `head_vertices` (without the identity).

  Args:
    motion: expression, jaw, head rotation (axis-angle, radians).
    frame: FLAME's parameters of the filmed moment (`Capture`'s "flame"), whose body the motion moves; None: a head at the
      origin, whose neck turns by the motion's rotation.
    alignment: rotation (axis-angle) from the frame in which the motion's tracker measures rotations to the film's;
      None: they are the same.

  Returns:
    expression (50), rotation, neck, jaw, translation (3), eyes (6). Eye joints are the film's, or at rest: gaze, where a
    motion has it, lies in its expression coefficients.
  """
  motion = jnp.asarray(motion)
  zeros = jnp.zeros_like(motion[..., :3])
  turn = motion[..., MOTION_GROUPS["pose"]]
  if frame is None:
    frame = {"rotation": zeros, "eyes": jnp.concatenate([zeros, zeros], axis=-1), "translation": zeros}
  else:
    head = to_quaternion(turn)
    if alignment is not None:
      head = multiply_quaternions(to_quaternion(jnp.asarray(alignment)), head)
    body = to_quaternion(jnp.asarray(frame["rotation"]))
    turn = to_axis_angle(multiply_quaternions(_conjugate(body), head))
  return {
      "expression": motion[..., MOTION_GROUPS["expression"]],
      "rotation": jnp.asarray(frame["rotation"]),
      "neck": turn,
      "jaw": motion[..., MOTION_GROUPS["jaw"]],
      "eyes": jnp.asarray(frame["eyes"]),
      "translation": jnp.asarray(frame["translation"]),
  }


def motion_of(
    frame: Mapping[str, Float[Array, "*b _"]], alignment: Float[Array, "*b 3"] | None = None
) -> Float[Array, "*b 56"]:
  """The motion that a filmed moment shows: the inverse of `pose_for`, but for expressions beyond the 50th.

  Args:
    frame, alignment: as in `pose_for`.
  """
  head = multiply_quaternions(to_quaternion(jnp.asarray(frame["rotation"])), to_quaternion(jnp.asarray(frame["neck"])))
  if alignment is not None:
    head = multiply_quaternions(_conjugate(to_quaternion(jnp.asarray(alignment))), head)
  expression = jnp.asarray(frame["expression"])[..., :EXPRESSION_DIM]
  missing = EXPRESSION_DIM - expression.shape[-1]
  expression = jnp.pad(expression, [(0, 0)] * (expression.ndim - 1) + [(0, missing)])
  return jnp.concatenate([expression, jnp.asarray(frame["jaw"]), to_axis_angle(head)], axis=-1)


def find_alignment(motion: Float[np.ndarray, "T 56"], frames: Mapping[str, Float[np.ndarray, "T _"]]) -> Float[np.ndarray, "3"]:
  """The rotation (axis-angle) that takes a conversation's head rotations to a film's of the same moments, in least squares.

  Trackers agree on how a head turns and not on what they call straight: DECA's family measures against the camera, VHAP
  against its own world. Solved by the singular value decomposition (Kabsch 1976). Less than a thousandth of a radian is
  the trackers' noise, and none.

  Args:
    motion: of the frames that the film shows.
    frames: FLAME's parameters of the film, at the same moments.
  """
  own = _matrices(to_quaternion(jnp.asarray(motion)[:, MOTION_GROUPS["pose"]]))
  film = _matrices(multiply_quaternions(to_quaternion(jnp.asarray(frames["rotation"])), to_quaternion(jnp.asarray(frames["neck"]))))
  u, _, vt = np.linalg.svd(np.einsum("tij,tkj->ik", np.asarray(film, np.float64), np.asarray(own, np.float64)))
  rotation = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
  angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
  if angle < 1e-3:
    return np.zeros(3, np.float32)
  # The axis is the one that the rotation leaves: robust at half turns too, where sines vanish.
  axis = np.linalg.eigh((rotation + rotation.T) / 2)[1][:, -1]
  sense = [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
  return (angle * axis * (-1 if axis @ sense < 0 else 1)).astype(np.float32)


def to_quaternion(axis_angle: Float[Array, "*b 3"]) -> Float[Array, "*b 4"]:
  """wxyz; value and gradient are right at zero too."""
  squares = jnp.sum(axis_angle**2, axis=-1, keepdims=True)
  near = squares < 1e-6
  angle = jnp.sqrt(jnp.where(near, 1.0, squares))
  scale = jnp.where(near, 0.5 - squares / 48, jnp.sin(angle / 2) / angle)
  cosine = jnp.where(near, 1 - squares / 8, jnp.cos(angle / 2))
  return jnp.concatenate([cosine, scale * axis_angle], axis=-1)


def to_axis_angle(quaternion: Float[Array, "*b 4"]) -> Float[Array, "*b 3"]:
  """The inverse of `to_quaternion`, by an angle of at most pi; of unit quaternions."""
  quaternion = jnp.where(quaternion[..., :1] < 0, -quaternion, quaternion)
  cosine, vector = quaternion[..., :1], quaternion[..., 1:]
  squares = jnp.sum(vector**2, axis=-1, keepdims=True)
  near = squares < 1e-6
  sine = jnp.sqrt(jnp.where(near, 1.0, squares))
  # 2 asin(x) / x = 2 + x^2 / 3 + ... near zero.
  return vector * jnp.where(near, 2 + squares / 3, 2 * jnp.arctan2(sine, cosine) / sine)


def multiply_quaternions(a: Float[Array, "*b 4"], b: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
  """Hamilton's product: the rotation b, then a."""
  aw, av, bw, bv = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
  return jnp.concatenate(
      [aw * bw - jnp.sum(av * bv, axis=-1, keepdims=True), aw * bv + bw * av + jnp.cross(av, bv)], axis=-1
  )


def _conjugate(quaternion: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
  return quaternion * jnp.array([1.0, -1.0, -1.0, -1.0], quaternion.dtype)


def _matrices(quaternion: Float[Array, "*b 4"]) -> Float[Array, "*b 3 3"]:
  columns = []
  for axis in np.eye(4, dtype=np.float32)[1:]:
    turned = multiply_quaternions(multiply_quaternions(quaternion, jnp.broadcast_to(axis, quaternion.shape)), _conjugate(quaternion))
    columns.append(turned[..., 1:])
  return jnp.stack(columns, axis=-1)
