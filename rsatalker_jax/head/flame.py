"""The FLAME head: coefficients in, vertices out (Li et al. 2017, "Learning a model of facial shape and expression").

Frame: metres, y up, the face looks along +z, x to the subject's left. Rotations are axis-angle, in radians.
Every function works on one frame; callers `jax.vmap` over time.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# The order of FLAME's kinematic tree.
JOINT_NAMES = ("global", "neck", "jaw", "eye_left", "eye_right")
NUM_JOINTS = len(JOINT_NAMES)


@flax.struct.dataclass
class HeadModel:
  """A linear head model with FLAME's joints. Arrays are leaves of the pytree, names and the tree are static.

  Attributes:
    v_template: mean head.
    shape_directions: displacement per shape coefficient.
    expression_directions: displacement per expression coefficient.
    pose_directions: displacement per entry of (R - I) of joints 1 to 4.
    joint_regressor: joints from vertices.
    weights: skinning weights, rows sum to 1.
    faces: vertex indices of each triangle, counter-clockwise seen from outside.
    lip_vertices: inner middle vertex of the upper and of the lower lip, or None where the file does not say.
    region_masks: the faces of each of `region_names`, which may overlap, or None; see `region_mask`.
    identities: shape coefficients of ready-made people, or None.
    parents: parent joint of each joint, -1 for the root.
    basis: what the expression coefficients are, one of `types.BASES`; None where nothing says which year's FLAME it is.
  """

  v_template: Float[Array, "V 3"]
  shape_directions: Float[Array, "V 3 S"]
  expression_directions: Float[Array, "V 3 E"]
  pose_directions: Float[Array, "V 3 36"]
  joint_regressor: Float[Array, "5 V"]
  weights: Float[Array, "V 5"]
  faces: Int[Array, "F 3"]
  lip_vertices: Int[Array, "2"] | None = None
  region_masks: Bool[Array, "R F"] | None = None
  identities: Float[Array, "I S"] | None = None
  parents: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(-1, 0, 1, 1, 1))
  region_names: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
  identity_names: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
  expression_names: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
  basis: str | None = flax.struct.field(pytree_node=False, default=None)

  @property
  def num_shape(self) -> int:
    return self.shape_directions.shape[-1]

  @property
  def num_expression(self) -> int:
    return self.expression_directions.shape[-1]


def rotation_matrix(axis_angle: Float[Array, "3"]) -> Float[Array, "3 3"]:
  """Rodrigues' formula; value and every derivative are right at zero too."""
  x, y, z = axis_angle
  skew = jnp.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
  sine, cosine = rodrigues(jnp.dot(axis_angle, axis_angle))
  return jnp.eye(3, dtype=axis_angle.dtype) + sine * skew + cosine * (skew @ skew)


def rodrigues(angle2: Float[Array, "*b"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
  """sin(a) / a and (1 - cos(a)) / a², the factors of Rodrigues' formula, from a²."""
  # Below this angle the Taylor series is exact in float32, and its gradient has no 0/0.
  near = angle2 < 1e-4
  safe2 = jnp.where(near, 1.0, angle2)
  angle = jnp.sqrt(safe2)
  sine = jnp.where(near, 1 - angle2 / 6 + angle2**2 / 120, jnp.sin(angle) / angle)
  cosine = jnp.where(near, 0.5 - angle2 / 24 + angle2**2 / 720, (1 - jnp.cos(angle)) / safe2)
  return sine, cosine


def _blend(directions: Float[Array, "V 3 D"], coefficients: Float[Array, "d"]) -> Float[Array, "V 3"]:
  count = min(directions.shape[-1], coefficients.shape[-1])
  return directions[..., :count] @ coefficients[:count]


def head_vertices(
    model: HeadModel,
    *,
    shape: Float[Array, "s"],
    expression: Float[Array, "e"],
    rotation: Float[Array, "3"],
    neck: Float[Array, "3"],
    jaw: Float[Array, "3"],
    eyes: Float[Array, "6"],
    translation: Float[Array, "3"],
    static_offset: Float[Array, "V 3"] | None = None,
) -> Float[Array, "V 3"]:
  """Vertices of one frame: shape and expression -> joints -> pose correctives -> skinning -> translation.

  Args:
    model: the head.
    shape: identity. Coefficients that are not given are zero; those beyond the model's basis do nothing (trackers
      pad with zeros to FLAME's 300 and 100).
    expression: likewise.
    rotation: of the whole head about the root joint.
    neck, jaw: of these joints.
    eyes: left, then right.
    translation: in metres, added last.
    static_offset: per-vertex detail of this person, added before the joints are placed (VHAP's convention).

  Raises:
    ValueError: an offset for another mesh.
  """
  vertices = model.v_template
  vertices = vertices + _blend(model.shape_directions, shape)
  vertices = vertices + _blend(model.expression_directions, expression)
  if static_offset is not None:
    if static_offset.shape != vertices.shape:
      raise ValueError(f"static_offset is {static_offset.shape}, but the head model's vertices are {vertices.shape}")
    vertices = vertices + static_offset
  joints = model.joint_regressor @ vertices

  pose = jnp.stack([rotation, neck, jaw, eyes[:3], eyes[3:]])
  rotations = jax.vmap(rotation_matrix)(pose)
  corrective = (rotations[1:] - jnp.eye(3, dtype=rotations.dtype)).reshape(-1)
  vertices = vertices + model.pose_directions @ corrective

  # Joint j maps x to A_j x + b_j, about its own rest position and after its parent's map.
  linear, offset = [], []
  for j, parent in enumerate(model.parents):
    if parent < 0:
      a, origin = rotations[j], joints[j]
    else:
      a, origin = linear[parent] @ rotations[j], linear[parent] @ joints[j] + offset[parent]
    linear.append(a)
    offset.append(origin - a @ joints[j])
  a = jnp.einsum("vj,jkl->vkl", model.weights, jnp.stack(linear))
  b = model.weights @ jnp.stack(offset)
  return jnp.einsum("vkl,vl->vk", a, vertices) + b + translation
