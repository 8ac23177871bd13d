"""What is below the head, as a picture behind it (ER-NeRF's torso branch): shoulders do not move with the head, the neck half."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rsatalker_jax.baselines.image.nerf_field import Mlp, Planes, squash

# Where the three points begin, in head space and units of the box.
_FIRST_POINTS = ((0.01, 0.01, 0.1), (-0.1, -0.1, 0.1), (0.1, -0.1, 0.1))


@dataclasses.dataclass(frozen=True)
class TorsoConfig:
  """Sizes of the branch; in brackets ER-NeRF's, where they differ.

  Attributes:
    resolutions: texels along the picture's side, of each level [16 to 2048, 16 levels, hashed].
    features: of a texel.
    hidden: width of both networks.
    code: length of a frame's code.
    shrink: factor on places in the picture.
  """

  resolutions: tuple[int, ...]
  features: int = 2
  hidden: int = 32
  code: int = 8
  shrink: float = 0.8


class Torso(nn.Module):
  """Colour and alpha of places in the picture, by the head's pose.

      p     = three learnt points of the head, as the picture shows them
      d     = MLP(code(place), code(p), the frame's code)            where the picture is looked up instead
      alpha, colour = sigmoid(MLP(levels at place + d, code(place), code(p), the frame's code))
  """

  config: TorsoConfig

  def setup(self):
    c = self.config
    self.points = self.param("points", lambda _: jnp.concatenate([jnp.asarray(_FIRST_POINTS), jnp.ones((3, 1))], axis=-1))
    self.planes = Planes(1, c.resolutions, c.features)
    self.shift_net = Mlp((c.hidden, c.hidden, 2))
    self.color_net = Mlp((c.hidden, c.hidden, 4))

  def __call__(
      self, places: Float[Array, "n 2"], head_to_picture: Float[Array, "3 4"], code: Float[Array, "K"]
  ) -> tuple[Float[Array, "n"], Float[Array, "n 3"]]:
    """Alpha and colours.

    Args:
      places: x and y in the picture, from -1 to 1.
      head_to_picture: projection of homogeneous points of the head, in units of the box, on these.
      code: the frame's.
    """
    c = self.config
    points = frequency_code(project(self.points, head_to_picture).reshape(-1), 3)
    places = c.shrink * places
    alike = jnp.concatenate([points, code])
    seen = jnp.concatenate([frequency_code(places, 8), jnp.broadcast_to(alike, (len(places), len(alike)))], axis=-1)
    looked_up = jnp.clip(places + self.shift_net(seen), -1.0, 1.0)
    output = squash(self.color_net(jnp.concatenate([self.planes(looked_up[:, None]), seen], axis=-1)))
    return output[:, 0], output[:, 1:]

  def points_penalty(self) -> Float[Array, ""]:
    """Holds the points' homogeneous coordinate at 1."""
    return jnp.mean((1 - self.points[:, 3]) ** 2)


def project(points: Float[Array, "P 4"], head_to_picture: Float[Array, "3 4"]) -> Float[Array, "P 2"]:
  """Points' places in the picture, divided by their homogeneous coordinate w, which is learnt: a weight of what it says."""
  x, y, depth = jnp.moveaxis(points @ head_to_picture.T, -1, 0)
  return jnp.stack([x, y], axis=-1) / (points[:, 3] * depth)[:, None]


def picture_projection(
    head_to_camera: Float[Array, "4 4"], intrinsics: Float[Array, "3 3"], width: int, height: int
) -> Float[Array, "3 4"]:
  """The projection on a picture whose sides lie at -1 and 1."""
  to_sides = jnp.asarray(np.array([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]], np.float32))
  return to_sides @ intrinsics @ head_to_camera[:3]


def frequency_code(x: Float[Array, "*n D"], octaves: int) -> Float[Array, "*n _"]:
  """x, and sin and cos of 2^k x for k below `octaves`."""
  angles = x[..., None] * 2.0 ** jnp.arange(octaves)
  waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  return jnp.concatenate([x, waves.reshape(*x.shape[:-1], -1)], axis=-1)
