"""Lips of a head model: which vertices they are, and how far they are apart."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rsatalker_jax.head.flame import JOINT_NAMES, NUM_JOINTS, HeadModel, head_vertices, rodrigues
from rsatalker_jax.types import MOTION_GROUPS, Motion

# How `find_lips` looks for lips where the file does not name them.
_REST_GAP = 5e-3  # Metres between the lips of a mouth at rest, at most.
_MIDDLE = 3e-3  # Metres from the middle plane, at most.
_JAW_ANGLE = 0.2

_CHUNK = 1024  # Frames that are posed at once: one shape, one compilation, a megabyte of temporaries.


def find_lips(head: HeadModel) -> Int[np.ndarray, "2"] | None:
  """Vertices in the middle of upper and lower lip: those that the head's file names, else found by what the jaw does.

  Found: of all pairs in the middle plane that are less than 5 mm apart at rest, one held by the jaw and one not, the
  pair that an opening jaw parts most. (Pairs deeper in the mouth lie nearer to the hinge and part less.)

  Returns:
    [upper, lower], or None if the head has no such pair: a mesh without a mouth.
  """
  if head.lip_vertices is not None:
    return np.asarray(head.lip_vertices)
  rest, opened = (np.asarray(_pose(head, jaw)) for jaw in (0.0, _JAW_ANGLE))
  jaw_weight = np.asarray(head.weights)[:, JOINT_NAMES.index("jaw")]
  middle = np.abs(rest[:, 0]) < _MIDDLE
  upper, lower = np.flatnonzero(middle & (jaw_weight < 0.3)), np.flatnonzero(middle & (jaw_weight > 0.7))
  if not len(upper) or not len(lower):
    return None
  gap = np.linalg.norm(rest[upper, None] - rest[None, lower], axis=-1)
  parting = np.where(gap < _REST_GAP, opened[upper, None, 1] - opened[None, lower, 1], -np.inf)
  best = np.unravel_index(np.argmax(parting), parting.shape)
  return np.array([upper[best[0]], lower[best[1]]]) if parting[best] > _REST_GAP else None


@jax.jit
def _pose(head: HeadModel, jaw: float) -> Float[jax.Array, "V 3"]:
  zero = jnp.zeros(3)
  return head_vertices(
      head, shape=zero[:0], expression=zero[:0], rotation=zero, neck=zero, jaw=zero.at[0].set(jaw),
      eyes=jnp.zeros(6), translation=zero,
  )


def make_lip_opening(head: HeadModel) -> Callable[[Float[Array, "*b 56"]], Float[Array, "*b"]] | None:
  """A differentiable function from motion to the height in metres between the middles of upper and lower lip.

  The head is turned straight for it. Lips that are pressed together overlap a little: it may be negative.

  Args:
    head: the head model, in its mean shape.

  Returns:
    None for a mesh without a mouth (see `find_lips`).
  """
  lips = find_lips(head)
  if lips is None:
    return None
  # Of a straight head nothing turns but the jaw, and two vertices and the jaw's joint are all that counts. As arithmetic on
  # whole motions, number by number: small matrices for every frame are slow on accelerators, and slow to compile for them.
  jaw = JOINT_NAMES.index("jaw")
  joint = lambda x: jnp.tensordot(head.joint_regressor[jaw], x, 1)[None]
  points = lambda x: jnp.concatenate([x[lips], joint(x)])  # Upper lip, lower lip, joint.
  template, directions = points(head.v_template), points(head.expression_directions)
  correctives = head.pose_directions[lips][..., 9 * (jaw - 1) : 9 * jaw]  # Columns are of the joints behind the first.
  weights = head.weights[lips, jaw]

  def opening(motion: Float[Array, "*b 56"]) -> Float[Array, "*b"]:
    expression = motion[..., MOTION_GROUPS["expression"]]
    count = min(expression.shape[-1], directions.shape[-1])
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    rest = template + product("...e,pxe->...px", expression[..., :count], directions[..., :count])
    x, y, z = jnp.moveaxis(motion[..., MOTION_GROUPS["jaw"]], -1, 0)
    sine, cosine = rodrigues(x * x + y * y + z * z)
    turn = [  # R - I, row by row.
        -cosine * (y * y + z * z), cosine * x * y - sine * z, cosine * x * z + sine * y,
        cosine * x * y + sine * z, -cosine * (x * x + z * z), cosine * y * z - sine * x,
        cosine * x * z - sine * y, cosine * y * z + sine * x, -cosine * (x * x + y * y),
    ]  # fmt: skip
    rest_of_lips = rest[..., :2, :] + product("...r,pxr->...px", jnp.stack(turn, axis=-1), correctives)
    arm = rest_of_lips - rest[..., 2:, :]
    lifted = sum(turn[3 + axis][..., None] * arm[..., axis] for axis in range(3))  # (R - I) arm, upwards.
    height = rest_of_lips[..., 1] + weights * lifted
    return height[..., 0] - height[..., 1]

  return opening


class LipOpening:
  """Opening of a head's lips in a whole motion of any length: `opening(motion)` is (T,) in metres.

  Args:
    opening: of `make_lip_opening`.
  """

  def __init__(self, opening: Callable[[Float[Array, "*b 56"]], Float[Array, "*b"]]):
    self._opening = jax.jit(opening)

  def __call__(self, motion: Motion) -> Float[np.ndarray, "T"]:
    padded = np.pad(np.asarray(motion, np.float32), ((0, -len(motion) % _CHUNK), (0, 0)))
    chunks = [np.asarray(self._opening(chunk)) for chunk in padded.reshape(-1, _CHUNK, padded.shape[1])]
    return np.concatenate(chunks)[: len(motion)]


def select_vertices(head: HeadModel, vertices: Int[np.ndarray, "n"]) -> HeadModel:
  """The same head with these vertices alone, which pose as before, in a thousandth of the time.

  Joints are linear in the vertices: each becomes a vertex of its own, behind those selected.
  """
  joints = head.joint_regressor
  gather = lambda x: jnp.concatenate([x[vertices], jnp.tensordot(joints, x, 1)])
  return HeadModel(
      v_template=gather(head.v_template),
      shape_directions=gather(head.shape_directions),
      expression_directions=gather(head.expression_directions),
      pose_directions=gather(head.pose_directions),
      joint_regressor=jnp.concatenate([jnp.zeros((NUM_JOINTS, len(vertices))), jnp.eye(NUM_JOINTS)], axis=1),
      weights=gather(head.weights),
      faces=head.faces[:0],
      parents=head.parents,
  )
