"""EmoTalk's decoder (Peng et al., ICCV 2023) on one speech encoder: what is said and how it is said, apart.

    c = content branch(voice), e = emotion branch(voice)
    x = [c; relu(W_e e); style]
    y = W_r DecoderLayer(x, memory = e, frame by frame) + b_r,  motion = mean + std y

                        published                                       here
    speech              two Wav2Vec 2.0, tuned, one of them for         the harness's frozen features, for both branches
                        emotions; a linear layer behind each
    content branch      linear                                          `SpeechAdapter`, a few frames wide
    emotion branch      linear                                          a dilated convolution over seconds and a linear layer:
                                                                        that it differs from the other is in its reach alone
    training            pairs of voices, what one says with the         the loss of a voice with its own emotion and that of
                        other's emotion; a classifier of emotions       velocities: the data have neither pairs nor labels
    style               intensity and person, one of several each       one vector
    motion y            52 blendshapes at 30 fps                        56 values in standard deviations of the training motion
    attention           to all since the clip began                     `reach` frames back, in training the same

Without a second encoder and without the pairs nothing parts emotion from content: it is EmoTalk's decoder, not EmoTalk. As
published it has no position code and makes all frames at once.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rsatalker_jax.baselines.motion.layers import DecoderLayer, make_speech_adapter
from rsatalker_jax.motion.generator import MotionConfig, normalization
from rsatalker_jax.motion.layers import FrameConv, FrameCount
from rsatalker_jax.types import MOTION_DIM


class EmoTalk(nn.Module):
  """EmoTalk's decoder on normalised motion; what it is given of A and of the relation it does not look at.

  Attributes:
    config: of the harness; what counts is `causal` (whether both branches see the past alone, all else does) and `dtype`.
    content_features, emotion_features, style_features: widths of the three parts of x; their sum is the decoder's width.
    heads: attention heads.
    period: frames of the bias's period.
    reach: frames back that attention sees (`baselines.motion.layers`).
    dropout: in the decoder layer.
    speech_layers, speech_kernel, speech_hidden: of the content branch (`MotionConfig`).
    emotion_kernel, emotion_stride, emotion_hidden: of the emotion branch: frames that it sees at once, how far apart, and the
      width of its hidden layer.
    velocity: weight of the frame differences' loss.
  """

  config: MotionConfig
  content_features: int
  emotion_features: int
  style_features: int
  heads: int
  period: int
  reach: int
  dropout: float
  speech_layers: int
  speech_kernel: int
  speech_hidden: int
  emotion_kernel: int
  emotion_stride: int
  emotion_hidden: int
  velocity: float

  causal_form = True
  samples = False
  average = 0.0

  def setup(self):
    c = self.config
    self.motion_mean, self.motion_std = normalization(self)
    speech = self.speech_layers, self.speech_kernel, self.speech_hidden
    self.content = make_speech_adapter(c, self.content_features, *speech)
    self.emotion_context = FrameConv(self.emotion_hidden, self.emotion_kernel, c.dtype, self.emotion_stride, c.causal)
    width = self.content_features + self.emotion_features + self.style_features
    self.emotion, self.emotion_norm = nn.Dense(width, dtype=c.dtype), nn.LayerNorm(dtype=c.dtype)
    self.emotion_in = nn.Dense(self.emotion_features, dtype=c.dtype)
    self.style = self.param("style", nn.initializers.normal(0.2), (self.style_features,))
    self.layer = DecoderLayer(width, self.heads, width, self.period, self.reach, self.dropout, c.dtype)
    zeros = nn.initializers.zeros
    self.motion_out = nn.Dense(MOTION_DIM, kernel_init=zeros, bias_init=zeros)

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
    return self.motion_mean + self.motion_std * self._predict(speech_b, num_frames, deterministic)

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
    """Mean squared errors of y and of its frame differences."""
    del speech_a, motion_a, social, progress
    error = self._predict(speech_b, None, deterministic=False) - (motion_b - self.motion_mean) / self.motion_std
    return {"motion": jnp.mean(error**2), "velocity": self.velocity * jnp.mean(jnp.diff(error, axis=-2) ** 2)}

  def _predict(self, speech, num_frames, deterministic: bool):
    content = self.content(speech, num_frames=num_frames)
    emotion = self.emotion_norm(self.emotion(nn.gelu(self.emotion_context(speech, num_frames=num_frames))))
    style = jnp.broadcast_to(self.style.astype(content.dtype), (*content.shape[:-1], self.style_features))
    x = jnp.concatenate([content, nn.relu(self.emotion_in(emotion)), style], axis=-1)
    return self.motion_out(self.layer(x, emotion, deterministic=deterministic).astype(jnp.float32))
