"""DualTalk (Peng et al., CVPR 2025): both people are heard, and the one answered to is seen; no relation.

    partner = BiLSTM(CrossAttn(Q=a_A, K=V=m_A))         dual-speaker joint encoder, temporal enhancer
    memory  = x + SelfAttn(x), x = Encoder([partner; a_B])   interaction module
    x       = DecoderLayer(memory, memory)              synthesis module
    motion  = mean + std Linear(x + 0.1 Linear(x))
    loss    = |y - y*|^2 by group + |dy - dy*|^2

Attention is to the whole clip, with no position code, no bias and no masks: the order of frames comes from the LSTM alone.
`positions` adds a code of each frame's place to what the interaction module is given, to tell what their want does.

                          published                                    here
    voices                two encoders, fine-tuned; one linear layer   one, frozen: the harness's features; `SpeechAdapter`
    motion y              raw values                                   standard deviations of the training motion
    further attention     its result alone                             added to its input: at first all frames look at all alike,
                                                                       and would be one
    width                 512, of which each stream has half           `features`
    schedule              0.8 every 50 of 1000 epochs                  the harness's

The published code has no sigmoid behind x + 0.1 Linear(x) and no bias in attention, which the paper has; this is the code's.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rsatalker_jax.baselines.motion.clip_layers import ClipAttention, ClipLayer
from rsatalker_jax.baselines.motion.diffusion import encode_time
from rsatalker_jax.baselines.motion.layers import make_speech_adapter
from rsatalker_jax.motion.generator import MotionConfig, normalization
from rsatalker_jax.motion.layers import FrameCount
from rsatalker_jax.types import MOTION_DIM, MOTION_GROUPS


class DualTalk(nn.Module):
  """DualTalk on normalised motion.

  Attributes:
    config: of the harness; what counts is `dtype`. All of the clip is looked at, so there is no causal form.
    features: width of what is joined; each of the two streams has half, each direction of the LSTM a quarter.
    heads: attention heads.
    encoder_layers: of the interaction module.
    hidden: width of the Transformer's MLPs.
    motion_hidden: width of the first of the motion encoder's two layers.
    dropout: in the Transformer's layers.
    attention_dropout: behind the encoder, on what the further self-attention gives.
    positions: whether the interaction module's input has the sinusoids of each frame's place added, which the published has not.
    speech_layers, speech_kernel, speech_hidden: of the speech adapter (`MotionConfig`).
  """

  config: MotionConfig
  features: int
  heads: int
  encoder_layers: int
  hidden: int
  motion_hidden: int
  dropout: float
  attention_dropout: float
  positions: bool
  speech_layers: int
  speech_kernel: int
  speech_hidden: int

  LSTM_LAYERS = 2
  causal_form = False
  samples = False
  average = 0.0

  @nn.compact
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
    """Generates B's motion; arguments as `MotionGenerator`'s, `social` is not looked at."""
    del social
    half, dtype = self.features // 2, self.config.dtype
    dense = functools.partial(nn.Dense, dtype=dtype)
    options = dict(num_frames=num_frames, deterministic=deterministic)
    mean, std = normalization(self)
    speech = self.speech_layers, self.speech_kernel, self.speech_hidden
    adapter = make_speech_adapter(self.config, half, *speech, name="speech_adapter")
    hidden = nn.relu(dense(self.motion_hidden, name="motion_hidden")((motion_a - mean) / std))
    motion = dense(half, name="motion_encoder")(hidden)
    attend = ClipAttention(half, self.heads, self.dropout, dtype, name="partner_attention")
    partner = attend(adapter(speech_a, num_frames=num_frames), motion, **options)
    lengths = None if num_frames is None else jnp.broadcast_to(num_frames, partner.shape[:-2])
    for i in range(self.LSTM_LAYERS):
      # Unrolled by ten, a step takes a third of the time on a CPU.
      cell = lambda: nn.RNN(nn.OptimizedLSTMCell(half // 2, dtype=dtype), unroll=10)
      directions = cell(), cell()
      partner = nn.Bidirectional(*directions, name=f"lstm_{i}")(partner, seq_lengths=lengths)

    memory = jnp.concatenate([partner, adapter(speech_b, num_frames=num_frames)], axis=-1)
    if self.positions:
      memory += encode_time(jnp.arange(memory.shape[-2]), self.features).astype(dtype)
    sizes = self.features, self.heads, self.hidden, self.dropout, dtype
    for i in range(self.encoder_layers):
      memory = ClipLayer(*sizes, name=f"encoder_{i}")(memory, **options)
    attended = ClipAttention(self.features, self.heads, self.dropout, dtype, name="interaction")(memory, memory, **options)
    memory += nn.Dropout(self.attention_dropout, deterministic=deterministic)(attended)
    x = ClipLayer(*sizes, name="decoder")(memory, memory, **options)
    x += 0.1 * dense(self.features, name="modulation")(x)
    return mean + std * nn.Dense(MOTION_DIM, name="motion")(x.astype(jnp.float32))

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
    """Mean squared errors of y by group, and of all its frame differences in one mean, as published."""
    del progress
    std = self.get_variable("statistics", "motion_std")
    error = (self(speech_a, motion_a, speech_b, social, deterministic=False) - motion_b) / std
    terms = {name: jnp.mean(error[..., group] ** 2) for name, group in MOTION_GROUPS.items()}
    return terms | {"velocity": jnp.mean(jnp.diff(error, axis=-2) ** 2)}
