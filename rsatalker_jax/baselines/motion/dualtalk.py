"""DualTalk: both people are heard, and the one answered to is seen."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rsatalker_jax.motion.generator import MotionConfig, MotionDecoder, MotionEncoder, SpeechAdapter, normalization
from rsatalker_jax.motion.layers import FrameCount, TransformerLayer, WindowAttention


class DualTalkGenerator(nn.Module):
  """DualTalk (Peng et al., CVPR 2025): no relation; time is bridged by a bidirectional LSTM.

      partner = BiLSTM(CrossAttn(Q=a_A, K=V=m_A)), both of half the width      dual-speaker joint encoder, temporal enhancer
      memory  = Encoder([partner; a_B])                                       interaction module
      motion  = Linear(DecoderLayer(memory))                                  synthesis module

  Published: width 512, 4 heads, 3 encoder layers, 1 decoder layer, 2 LSTM layers. A related network, not the same one; it
  differs from the published code in

                              published                                     here
      attention               over the whole clip, without positions        windowed, a learned bias by distance
      A's voice and motion    the cross-attention alone                     it on a residual of both, LayerNorm behind
      speech                  one linear layer                              `SpeechAdapter`: two layers, GELU, LayerNorm
      motion                  two layers with ReLU, raw values              `MotionEncoder`: GELU, LayerNorm, normalised
      Transformer layers      post-norm, ReLU                               pre-norm, GELU
      behind the encoder      a further self-attention, dropout 0.5         nothing
      decoder                 self-attention, cross-attention, MLP,         cross-attention, a Transformer layer
                              then x + 0.1 Linear(x)
      voice encoders          one for each person, fine-tuned               one, frozen, shared

  The first two would otherwise hold it back here: minutes are to be treated as the windows of training were. The LSTM
  and, without windows and bias, the attention are the published ones.

  Attributes:
    config: as for `MotionGenerator`; of its switches, those of the partner, of time and of s mean nothing here.
  """

  config: MotionConfig

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
    c = self.config
    half = dataclasses.replace(c, features=c.features // 2, motion_kernel=1, social_norm=False)
    mean, std = normalization(self)
    adapter = SpeechAdapter(half, name="speech_adapter")
    speech = adapter(speech_a, num_frames=num_frames)
    motion = MotionEncoder(half, name="motion_encoder")((motion_a - mean) / std)  # Frame by frame.
    attention = WindowAttention(half.features, c.heads, c.reach, c.dtype, name="partner_attention")
    attended = attention(speech, motion, num_frames=num_frames)
    partner = nn.LayerNorm(dtype=c.dtype, name="partner_norm")(speech + motion + attended)
    lengths = None if num_frames is None else jnp.broadcast_to(num_frames, partner.shape[:-2])
    for i in range(self.LSTM_LAYERS):
      # Unrolled by ten, a step takes a third of the time on a CPU.
      cell = lambda: nn.RNN(nn.OptimizedLSTMCell(half.features // 2, dtype=c.dtype), unroll=10)
      directions = cell(), cell()
      partner = nn.Bidirectional(*directions, name=f"lstm_{i}")(partner, seq_lengths=lengths)

    memory = jnp.concatenate([partner, adapter(speech_b, num_frames=num_frames)], axis=-1)
    for i in range(c.encoder_layers):
      layer = TransformerLayer(c.features, c.heads, c.reach, c.mlp_ratio, c.dropout, c.dtype, remat=c.remat, name=f"encoder_{i}")
      memory = layer(memory, num_frames=num_frames, deterministic=deterministic)
    cross = WindowAttention(c.features, c.heads, c.reach, c.dtype, name="decoder_attention")
    z = memory + cross(nn.LayerNorm(dtype=c.dtype, name="query_norm")(memory), memory, num_frames=num_frames)
    return mean + std * MotionDecoder(dataclasses.replace(c, social_norm=False), name="motion_decoder")(
        z, num_frames=num_frames, deterministic=deterministic
    )

