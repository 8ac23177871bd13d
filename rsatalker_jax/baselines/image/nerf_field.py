"""ER-NeRF's field: density and colour of a head's points from three planes, the voice and the eyes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rsatalker_jax.baselines.image.planes import PLANES
from splat_kernels.sh import sh_basis

_MAX_LOG_DENSITY = 12.0  # Opaque within a hundredth of a step; without a bound exp leads to NaN, which users have met.
_DIRECTION_DEGREE = 3  # 16 harmonics: what others call degree 4.


@dataclasses.dataclass(frozen=True)
class FieldConfig:
  """Sizes of the field; in brackets ER-NeRF's, where they differ.

  Attributes:
    resolutions: texels along a plane's side, of each level [64 to 512, 12 levels; hashed above 113].
    features: of a texel [1].
    hidden: width of the networks of density and colour [64].
    attention_hidden: of the audio's region attention [64].
    eye_hidden: of the eyes' attention [16; SyncTalk 64].
    eyes: controls of the eyes [1; SyncTalk 7].
    eye_sigmoid: whether a sigmoid bounds the eyes' attention [True; SyncTalk False].
    audio: length of the voice's code.
    code: length of a frame's code.
  """

  resolutions: tuple[int, ...]
  features: int = 2
  hidden: int = 64
  attention_hidden: int = 64
  eye_hidden: int = 16
  eyes: int = 1
  eye_sigmoid: bool = True
  audio: int = 32
  code: int = 4


def plane_resolutions(levels: int, coarsest: int, finest: int) -> tuple[int, ...]:
  """Texels along a side, from level to level by the same factor."""
  return tuple(np.round(np.geomspace(coarsest, finest, levels)).astype(int).tolist())


class Planes(nn.Module):
  """Levels of planes, bilinear between texels of which the outermost lie at -1 and 1; of a point, the features of all planes of all
  levels, zeros outside.

  Attributes:
    count: planes of a level.
    resolutions: of the levels.
    features: of a texel.
  """

  count: int
  resolutions: tuple[int, ...]
  features: int

  @nn.compact
  def __call__(self, points: Float[Array, "n P 2"]) -> Float[Array, "n _"]:
    # All texels in one table, level by level, plane by plane, by second and first coordinate: planes that are sampled one by
    # one take ten times as long to compile.
    sizes = np.array(self.resolutions)[:, None]
    texels = np.repeat(sizes**2, self.count, axis=1)
    first = np.cumsum(texels).reshape(texels.shape) - texels
    init = lambda key, shape: jax.random.uniform(key, shape, minval=-1e-4, maxval=1e-4)
    table = self.param("texels", init, (int(texels.sum()), self.features))

    place = (points[:, None] + 1) * ((sizes[..., None] - 1) / 2)
    low = jnp.clip(jnp.floor(place), 0, sizes[..., None] - 2)
    share = place - low
    column, row = jnp.moveaxis(low.astype(jnp.int32), -1, 0)
    sampled = jnp.zeros(())
    for right in (0, 1):
      for below in (0, 1):
        weight = (share[..., 0] if right else 1 - share[..., 0]) * (share[..., 1] if below else 1 - share[..., 1])
        sampled += weight[..., None] * table[first + (row + below) * sizes + column + right]
    inside = jnp.all(jnp.abs(points) <= 1, axis=-1)[:, None, :, None]
    return jnp.where(inside, sampled, 0.0).reshape(len(points), -1)


class Mlp(nn.Module):
  """Linear layers without biases, ReLU between them."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Float[Array, "*n _"]) -> Float[Array, "*n _"]:
    for i, width in enumerate(self.widths):
      x = nn.Dense(width, use_bias=False, kernel_init=_uniform_fan_in)(nn.relu(x) if i else x)
    return x


# PyTorch's for linear layers, which the published networks begin with: U(-1, 1) / sqrt(fan in).
_uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Field(nn.Module):
  """Density, colour and attention at points of the head, of one frame.

      x       = planes xy, xz, yz at the point
      v       = MLP(x);  a = sigmoid(MLP(x))                region attention of the voice and of the eyes
      density = exp(h_0),  h = MLP(x, v * voice, a * eyes)
      colour  = sigmoid(MLP(harmonics of the direction, h_1.., the frame's code))
      u       = softplus(MLP(stop(x)))                      uncertainty of the colour
  """

  config: FieldConfig

  def setup(self):
    c = self.config
    self.planes = Planes(3, c.resolutions, c.features)
    self.audio_attention = Mlp((c.attention_hidden, c.audio))
    self.eye_attention = Mlp((c.eye_hidden, c.eyes))
    self.density_net = Mlp((c.hidden, c.hidden, 1 + c.hidden))
    self.color_net = Mlp((c.hidden, 3))
    self.uncertainty_net = Mlp((32, 1))

  def __call__(
      self,
      points: Float[Array, "n 3"],
      directions: Float[Array, "n 3"],
      audio: Float[Array, "A"],
      eyes: Float[Array, "E"],
      code: Float[Array, "K"],
  ) -> dict[str, Float[Array, "n ..."]]:
    """"density" (n,), "color" (n, 3), and of the attention on the voice and on the eyes their lengths, "audio_attention" and
    "eye_attention" (n,), and "uncertainty" (n,)."""
    x = self.encode(points)
    h, audio_attention, eye_attention = self._geometry(x, audio, eyes)
    code = jnp.broadcast_to(code, (len(points), len(code)))
    color = self.color_net(jnp.concatenate([sh_basis(_DIRECTION_DEGREE, directions), h[:, 1:], code], axis=-1))
    return {
        "density": _to_density(h[:, 0]),
        "color": squash(color),
        "audio_attention": _length(audio_attention),
        # Of one control, the attention itself, which a sigmoid has made positive.
        "eye_attention": eye_attention[:, 0] if self.config.eyes == 1 else _length(eye_attention),
        "uncertainty": nn.softplus(self.uncertainty_net(jax.lax.stop_gradient(x))[:, 0]),
    }

  def density(self, points: Float[Array, "n 3"], audio: Float[Array, "A"], eyes: Float[Array, "E"]) -> Float[Array, "n"]:
    """The density alone."""
    return _to_density(self._geometry(self.encode(points), audio, eyes)[0][:, 0])

  def encode(self, points: Float[Array, "n 3"]) -> Float[Array, "n _"]:
    """Features of the planes."""
    return self.planes(jnp.stack([points[:, np.array(pair)] for pair in PLANES], axis=1))

  def _geometry(self, x, audio, eyes):
    audio_attention, eye_attention = self.audio_attention(x), self.eye_attention(x)
    if self.config.eye_sigmoid:
      eye_attention = nn.sigmoid(eye_attention)
    return (
        self.density_net(jnp.concatenate([x, audio_attention * audio, eye_attention * eyes], axis=-1)),
        audio_attention,
        eye_attention,
    )


def squash(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """A sigmoid that reaches 0 and 1: a thousandth wider on both sides."""
  return nn.sigmoid(x) * 1.002 - 0.001


def _to_density(x: Float[Array, "n"]) -> Float[Array, "n"]:
  return jnp.exp(jnp.minimum(x, _MAX_LOG_DENSITY))


def _length(x: Float[Array, "n _"]) -> Float[Array, "n"]:
  # The root has no gradient at zero.
  return jnp.sqrt(jnp.sum(x**2, axis=-1) + 1e-12)
