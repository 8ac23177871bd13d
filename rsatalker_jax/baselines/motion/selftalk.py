"""SelfTalk (Peng et al., ACM MM 2023): motion from a voice in one pass, and a reader of lips that is to understand it.

    voice  = SpeechAdapter(features)
    y      = W_r Layer(voice, memory = voice) + b_r,  motion = mean + std y        attention to the whole clip, no positions
    states = Transformer(W_l lips(y)), both sides the same
    loss   = |y - y*|^2 + velocity |dy - dy*|^2 + reading |states - features|^2

The reader of lips plays a part in training alone: features of the voice can be read from motion that articulates.

                          published                                      here
    speech                Wav2Vec 2.0, tuned; one linear layer           the harness's frozen features, `SpeechAdapter`
    motion y              offsets from a person's template               standard deviations of the training motion
    lips                  lip vertices, offsets without the head's pose  y of expression and jaw, of which those are nearly a
                                                                         linear function, as is the reader's first layer; but it
                                                                         reads brows and eyes, too
    what is to be read    the last states of a recogniser of speech, at  the harness's features at 25 Hz, through a linear layer
                          50 Hz, of the states' width
    words                 CTC of the recogniser's own transcript         none: the harness has no recogniser
    weights               1000, 1000, 0.001 for squares of metres        of squares of standard deviations; reading is relative to
                                                                         the features' variance
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rsatalker_jax.baselines.motion.clip_layers import ClipLayer
from rsatalker_jax.baselines.motion.layers import make_speech_adapter
from rsatalker_jax.motion.generator import MotionConfig, normalization
from rsatalker_jax.motion.layers import FrameCount
from rsatalker_jax.types import MOTION_DIM, MOTION_GROUPS


class SelfTalk(nn.Module):
  """SelfTalk on normalised motion; what it is given of A and of the relation it does not look at.

  Attributes:
    config: of the harness; what counts is `dtype`. All of the clip is looked at, so there is no causal form.
    features: width d; the MLP has 2 d.
    heads: attention heads.
    dropout: in all layers.
    speech_layers, speech_kernel, speech_hidden: of the speech adapter (`MotionConfig`). Attention knows no order: what a frame is
      to hear of its surroundings has to come from here or from the encoder.
    reader_features, reader_heads, reader_hidden: width of the reader of lips, its attention heads, width of its MLPs.
    reader_layers: its layers, so many on each side.
    velocity, reading: weights of the loss.
  """

  config: MotionConfig
  features: int
  heads: int
  dropout: float
  speech_layers: int
  speech_kernel: int
  speech_hidden: int
  reader_features: int
  reader_heads: int
  reader_hidden: int
  reader_layers: int
  velocity: float
  reading: float

  causal_form = False
  samples = False
  average = 0.0

  def setup(self):
    c = self.config
    self.motion_mean, self.motion_std = normalization(self)
    speech = self.speech_layers, self.speech_kernel, self.speech_hidden
    self.speech_adapter = make_speech_adapter(c, self.features, *speech)
    self.layer = ClipLayer(self.features, self.heads, 2 * self.features, self.dropout, c.dtype)
    zeros = nn.initializers.zeros
    self.motion_out = nn.Dense(MOTION_DIM, kernel_init=zeros, bias_init=zeros)
    reader = self.reader_features, self.reader_heads, self.reader_hidden, self.reader_layers
    self.lip_reader = LipReader(*reader, self.dropout, c.dtype)

  def __call__(
      self,
      speech_a: Float[Array, "*b T E"],
      motion_a: Float[Array, "*b T 56"],
      speech_b: Float[Array, "*b T E"],
      social: Float[Array, "*b D"],
      *,
      num_frames: FrameCount = None,
      deterministic: bool = True,
  ) -> Float[Array, "*b T 56"]:
    """Generates B's motion; arguments as `MotionGenerator`'s."""
    del speech_a, motion_a, social
    y = self._predict(speech_b, num_frames, deterministic)
    if self.is_initializing():
      self.lip_reader(y, speech_b.shape[-1])
    return self.motion_mean + self.motion_std * y

  def training_terms(
      self,
      speech_a: Float[Array, "*b T E"],
      motion_a: Float[Array, "*b T 56"],
      speech_b: Float[Array, "*b T E"],
      social: Float[Array, "*b D"],
      motion_b: Float[Array, "*b T 56"],
      *,
      progress: Float[Array, ""] | float,
  ) -> dict[str, Float[Array, ""]]:
    """Mean squared errors of y, of its frame differences, and of the features that are read from it."""
    del speech_a, motion_a, social, progress
    y = self._predict(speech_b, None, deterministic=False)
    error = y - (motion_b - self.motion_mean) / self.motion_std
    read = self.lip_reader(y, speech_b.shape[-1], deterministic=False)
    return {
        "motion": jnp.mean(error**2),
        "velocity": self.velocity * jnp.mean(jnp.diff(error, axis=-2) ** 2),
        "reading": self.reading * jnp.mean((read - speech_b) ** 2) / jnp.var(speech_b),
    }

  def _predict(self, speech, num_frames, deterministic: bool):
    voice = self.speech_adapter(speech, num_frames=num_frames)
    z = self.layer(voice, voice, num_frames=num_frames, deterministic=deterministic)
    return self.motion_out(z.astype(jnp.float32))


class LipReader(nn.Module):
  """Speech features from the motion of mouth and face: PyTorch's Transformer with the same sequence on both sides."""

  features: int
  heads: int
  hidden: int
  layers: int
  dropout: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, y: Float[Array, "*b T 56"], speech: int, *, deterministic: bool = True) -> Float[Array, "*b T E"]:
    """Args: `speech`, how many features there are to read."""
    sizes = self.features, self.heads, self.hidden, self.dropout, self.dtype
    norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
    face = jnp.concatenate([y[..., MOTION_GROUPS[group]] for group in ("expression", "jaw")], axis=-1)
    # With a bias of unit size: motion begins at y = 0, and behind a norm of next to nothing the gradient would be of hundreds.
    bias = nn.initializers.normal(1.0)
    lips = memory = nn.Dense(self.features, dtype=self.dtype, bias_init=bias, name="lips")(face)
    for i in range(self.layers):
      memory = ClipLayer(*sizes, name=f"encoder_{i}")(memory, deterministic=deterministic)
    memory, x = norm(name="memory_norm")(memory), lips
    for i in range(self.layers):
      x = ClipLayer(*sizes, name=f"decoder_{i}")(x, memory, deterministic=deterministic)
    return nn.Dense(speech, name="states")(norm(name="norm")(x).astype(jnp.float32))
