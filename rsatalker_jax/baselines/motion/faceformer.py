"""FaceFormer (Fan et al., CVPR 2022): motion from the person's own voice, each frame from those that were made before it.

    x_0 = s,  x_t = s + W_m y_(t-1) + b_m
    z   = DecoderLayer(dropout(x + position code), memory = voice, frame by frame)
    y   = W_r z + b_r,  motion = mean + std y

                              published                               here
    speech                    Wav2Vec 2.0, tuned; one linear layer    the harness's frozen features, `SpeechAdapter`
    motion y                  offsets from a person's template        offsets from the training mean, in standard deviations
                                                                      unless `normalised` is False
    style s                   a vector for each training identity     one vector
    training                  whole sentences, one a step             windows
    dropout in the roll-out   frame t sees the frames before it with  once for each frame, as all of it is kept and not
                              masks drawn anew                        computed again
    attention                 to all since the clip began             `reach` frames back, in training the same
    codes and biases          tables of 600 frames                    closed forms
    teacher forcing's start   x_0 = s + b_m                           x_0 = s, as when running freely

Trained as published by running freely: the gradient goes through all frames. As there is one layer, keys and values of the
past depend on its inputs alone, and a roll-out is a scan of cheap steps.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rsatalker_jax.baselines.motion.layers import DecoderLayer, encode_periodic, make_speech_adapter
from rsatalker_jax.motion.generator import MotionConfig, normalization
from rsatalker_jax.motion.layers import FrameCount
from rsatalker_jax.types import MOTION_DIM


class FaceFormer(nn.Module):
  """FaceFormer on normalised motion; what it is given of A and of the relation it does not look at.

  Attributes:
    config: of the harness; what counts is `causal` (whether the speech adapter sees the past alone, all else does) and `dtype`.
    features: width d; the MLP has 2 d.
    heads: attention heads.
    period: frames of the position code's and the bias's period.
    reach: frames back that attention sees (`baselines.motion.layers`).
    dropout: in the layer, and behind the position code.
    speech_layers, speech_kernel, speech_hidden: of the speech adapter (`MotionConfig`). Frame t sees frame t of its output alone:
      what it is to hear of the surroundings has to come from here or from the encoder.
    normalised: whether y is in standard deviations, and the loss with it; False leaves both in the motion's units.
    teacher_forcing: whether training shows each frame the true motion of the one before, instead of its own.
  """

  config: MotionConfig
  features: int
  heads: int
  period: int
  reach: int
  dropout: float
  speech_layers: int
  speech_kernel: int
  speech_hidden: int
  normalised: bool
  teacher_forcing: bool

  causal_form = True
  samples = False
  average = 0.0

  def setup(self):
    self.motion_mean, std = normalization(self)
    self.motion_std = std if self.normalised else jnp.ones_like(std)
    speech = self.speech_layers, self.speech_kernel, self.speech_hidden
    self.speech_adapter = make_speech_adapter(self.config, self.features, *speech)
    self.style = self.param("style", nn.initializers.normal(0.2), (self.features,))
    self.motion_in = nn.Dense(self.features, dtype=self.config.dtype)
    self.layer = DecoderLayer(
        self.features, self.heads, 2 * self.features, self.period, self.reach, self.dropout, self.config.dtype
    )
    zeros = nn.initializers.zeros
    self.motion_out = nn.Dense(MOTION_DIM, kernel_init=zeros, bias_init=zeros)
    self.drop = nn.Dropout(self.dropout)

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
    voice = self.speech_adapter(speech_b, num_frames=num_frames)
    return self.motion_mean + self.motion_std * self.roll_out(voice, deterministic=deterministic)

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
    """The published loss: the mean squared error of y."""
    del speech_a, motion_a, social, progress
    voice, truth = self.speech_adapter(speech_b), (motion_b - self.motion_mean) / self.motion_std
    predict = self.predict if self.teacher_forcing else lambda _, *given, **kept: self.roll_out(*given, **kept)
    return {"motion": jnp.mean((predict(truth, voice, deterministic=False) - truth) ** 2)}

  def roll_out(self, voice: Float[Array, "*b T D"], *, deterministic: bool = True) -> Float[Array, "*b T 56"]:
    """y, each frame from its own predecessors."""
    frames, batch = voice.shape[-2], voice.shape[:-2]
    first = lambda x: jnp.moveaxis(x, -2, 0)
    aligned = first(self.layer.align(voice, deterministic=deterministic))

    def step(self, carry, inputs):
      (before, cache), (aligned, t) = carry, inputs
      x = self._embed(jnp.where(t > 0, self.motion_in(before), 0), t, deterministic)
      z, cache = self.layer.step(x, aligned, cache, t, deterministic=deterministic)
      made = self.motion_out(z.astype(jnp.float32))
      return (made, cache), made

    scan = nn.scan(step, variable_broadcast=("params", "statistics"), split_rngs={"params": False, "dropout": True})
    start = jnp.zeros((*batch, MOTION_DIM)), self.layer.init_cache(batch, frames)
    return jnp.moveaxis(scan(self, start, (aligned, jnp.arange(frames)))[1], 0, -2)

  def predict(
      self, motion: Float[Array, "*b T 56"], voice: Float[Array, "*b T D"], *, deterministic: bool = True
  ) -> Float[Array, "*b T 56"]:
    """y where frame t is shown `motion` up to t - 1, all frames at once: teacher forcing."""
    before = jnp.zeros_like(voice).at[..., 1:, :].set(self.motion_in(motion[..., :-1, :]))
    x = self._embed(before, jnp.arange(voice.shape[-2]), deterministic)
    return self.motion_out(self.layer(x, voice, deterministic=deterministic).astype(jnp.float32))

  def _embed(self, before, times, deterministic: bool):
    code = encode_periodic(times, self.features, self.period)
    return self.drop((self.style + before + code).astype(self.config.dtype), deterministic=deterministic)
