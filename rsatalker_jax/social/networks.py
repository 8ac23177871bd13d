"""The socially-aware module (Sec. 3.5): relation embeddings, motion socialnet and Gaussian offsetnet.

One query q, made from the two relation embeddings, feeds both networks: the socialnet steers the motion (Eq. 5), the
offsetnet moves the Gaussians (Eq. 7, 8).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rsatalker_jax.types import FPS


OFFSET_INPUTS = ("relation", "time", "motion")  # What Gaussian offsets may depend on.
TIME_PERIOD = 32 * FPS  # In frames: `encode_time` repeats itself after it.


class RelationEmbedding(nn.Module):
  """Two tables of two vectors, one per axis of the relation; q is the concatenation of the two chosen vectors.

  The vectors of a table start orthonormal; `orthogonality_penalty` can keep them so. A value of `relation.UNKNOWN`
  (-1) on an axis gives the mean of its two vectors.

  Attributes:
    features: length E of one embedding; q has 2E entries.
  """

  features: int = 32

  @nn.compact
  def __call__(self, relation: Int[Array, "*b 2"]) -> Float[Array, "*b Q"]:
    chosen = []
    for axis, name in enumerate(("blood", "equal")):
      table = self.param(name, nn.initializers.orthogonal(), (2, self.features))
      value = relation[..., axis, None]
      weights = jnp.where(value < 0, 0.5, value == jnp.arange(2))
      chosen.append(weights.astype(table.dtype) @ table)
    return jnp.concatenate(chosen, axis=-1)


def orthogonality_penalty(tables: dict[str, Float[Array, "2 E"]]) -> Float[Array, ""]:
  """Sum over the tables of the squared cosine between their two vectors: 0 is orthogonal, 1 is parallel.

  Args:
    tables: the parameters of one `RelationEmbedding`.
  """
  total = jnp.zeros(())
  for table in jax.tree.leaves(tables):
    first, second = table
    total += jnp.vdot(first, second) ** 2 / (jnp.vdot(first, first) * jnp.vdot(second, second) + 1e-12)
  return total


class MotionSocialNet(nn.Module):
  """Two-layer MLP from the query q to the motion social feature s (Sec. 3.5).

  Attributes:
    features: length of s.
    hidden: width of the middle layer.
  """

  features: int
  hidden: int = 128

  @nn.compact
  def __call__(self, query: Float[Array, "*b Q"]) -> Float[Array, "*b D"]:
    return nn.Dense(self.features, name="out")(nn.gelu(nn.Dense(self.hidden, name="hidden")(query)))


class SocialModule(nn.Module):
  """What the generator and the offsetnet are told of a relation: `apply(params, relation)` is the motion social feature s
  (Eq. 5), `apply(params, relation, method="query")` the query q of Eq. 8.

  Attributes:
    features: length of s, the generator's width.
    relation_features: length E of one embedding; q has 2E entries.
    hidden: width of the motion socialnet's middle layer.
  """

  features: int
  relation_features: int = 32
  hidden: int = 128

  def setup(self):
    self.relation_embedding = RelationEmbedding(self.relation_features)
    self.motion_social_net = MotionSocialNet(self.features, self.hidden)

  def __call__(self, relation: Int[Array, "*b 2"]) -> Float[Array, "*b D"]:
    return self.motion_social_net(self.query(relation))

  def query(self, relation: Int[Array, "*b 2"]) -> Float[Array, "*b Q"]:
    return self.relation_embedding(relation)


class GaussianOffsetNet(nn.Module):
  """Two-layer MLP from what it is told of a frame to one offset per anchor: c = GON(q, t), Eq. 8, or more.

  The last layer starts at zero, so that the third stage begins with exactly the avatar that the second one left.

  Attributes:
    num_anchors: anchors F, that is, triangles of the head.
    hidden: width of the middle layer.
    inputs: some of `OFFSET_INPUTS`: "relation", the query q; "time"; and what is not in the paper, "motion", that of the frame.
  """

  num_anchors: int
  hidden: int = 64
  inputs: tuple[str, ...] = ("relation", "time")

  @nn.compact
  def __call__(
      self, query: Float[Array, "*b Q"], t: Float[Array, "*b"], motion: Float[Array, "*b 56"]
  ) -> Float[Array, "*b F 3"]:
    """Offsets c in metres, in the deformed head's coordinates, for times t in frames and standardised motion."""
    given = {"relation": query, "time": encode_time(t).astype(query.dtype), "motion": motion.astype(query.dtype)}
    inputs = jnp.concatenate([given[name] for name in OFFSET_INPUTS if name in self.inputs], axis=-1)
    hidden = nn.gelu(nn.Dense(self.hidden, name="hidden")(inputs))
    offsets = nn.Dense(self.num_anchors * 3, kernel_init=nn.initializers.zeros, name="out")(hidden)
    return offsets.reshape(*offsets.shape[:-1], self.num_anchors, 3)


def encode_time(t: Float[Array, "*b"]) -> Float[Array, "*b E"]:
  """Bounded periodic encoding of time: sines and cosines with periods of 0.5, 1, 2 … 32 seconds.

  A conversation longer than those trained on meets only values that training has seen.

  Args:
    t: time in frames (25 per second).
  """
  periods = TIME_PERIOD * 2.0 ** np.arange(-6, 1)
  # The remainder first: float32 has no precision left in sin of a large number.
  phase = 2 * np.pi * jnp.mod(jnp.asarray(t, jnp.float32)[..., None], periods) / periods
  return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
