"""Learning to Listen, L2L (Ng et al., CVPR 2022), repaired: of the speaker's voice and motion, codes of the listener's motion.

    codes    token = E(8 frames), q = the nearest code, 32 frames = D(4 codes)                                stage "codes"
    motion   past = Transformer(the 4 codes before), speaker = CrossModal(Q = voice, K = V = motion) of 40 frames
             the next codes ~ softmax(Linear(Transformer([past; speaker])))                                   stage "motion"

The listener is B; B's own voice is not heard. A block of 8 frames is made at a time and never changed after: of what A said
and did up to the block's end, so that an answer comes 320 ms late at most. Clips may have any length.

Repaired, where the published code does otherwise than its paper or than it can have been meant to:

                          published                                     here
    a token               64 of 256 channels over 32 frames             all channels over 8 frames
    the past's own        never run, as each draw of the past's         run
    Transformer           length counts as a mask
    voice in generation   from window t, of four a frame                from window 4 t
    standardised by       the mean and std over clips of their          the training motion's mean and std
                          std over time
    hidden past           not asked of within the past, yet there in    an own embedding, "unknown", in the code's place
                          the residual path of the outputs
    made motion           decoded in groups of 4 codes and encoded      the last 8 frames of each 4 codes; codes
                          again in each step                            are kept as they are

and other than published:

    encoder               3 convolutions to 4 steps of 8 frames, then   one to steps of 2 frames, the Transformer over a token's
                          the Transformer over those                    4 steps, two more: a token knows its 8 frames alone
    norms of convolutions BatchNorm                                     LayerNorm: a window's codes do not depend on its batch
    ends of a transposed  repeated (by a patched PyTorch)               zero
    convolution
    frames a second       30                                            25
    motion                smoothed over time, one model for a listener  as it is, one model for all listeners
    the past's length     drawn for the batch                           for each window and block
    before a clip begins  a mean face for 32 frames                     unknown codes, no speaker (zeros)
    codebook              lost codes stay lost                          they are drawn to tokens (`Quantizer.terms`)
    initial weights       N(0, 0.02)                                    Flax's
    rates                 ~ n^(-1/2), peaks 4e-4 and 2e-6               AdamW, warm-up and cosine (`config.codes`, `config.motion`)
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from rsatalker_jax.baselines.motion.quantizing import EdgeConv, PreNormLayer, Quantizer
from rsatalker_jax.motion.generator import MotionConfig, normalization
from rsatalker_jax.motion.layers import FrameCount, clear_padding
from rsatalker_jax.types import MOTION_DIM, MOTION_GROUPS

TOKEN = 8  # Frames of a code.
PAST = 4  # Codes that the next are predicted from, as many as are decoded together …
SEEN = TOKEN * (PAST + 1)  # … and frames of the speaker: those of the past and those of the next code.
# In the place of a code that is not known: before the clip begins, or hidden in training.
UNKNOWN = -1
_DRAWS = 21  # In training 0 … 20 are drawn: so many codes of the past are shown, all from 4 on.


class TokenCodes(nn.Module):
  """The auto-encoder: 8 frames to a token, four codes to 32 frames.

  Attributes:
    features: width of tokens and layers.
    codebook: codes.
    layers: Transformer layers of encoder and decoder.
    heads, hidden: theirs (`PreNormLayer`).
    dtype: of the arithmetic.
  """

  features: int
  codebook: int
  layers: int
  heads: int
  hidden: int
  dtype: DTypeLike = jnp.float32

  def setup(self):
    dense = functools.partial(nn.Dense, self.features, dtype=self.dtype)
    layers = lambda: [PreNormLayer(self.features, self.heads, self.hidden, self.dtype) for _ in range(self.layers)]
    position = lambda name, count: self.param(name, nn.initializers.normal(0.02), (count, self.features))
    block = functools.partial(ConvBlock, self.features, dtype=self.dtype)
    self.encoder_in, self.encoder_blocks = block(stride=2), [block() for _ in range(2)]
    self.encoder_linear, self.encoder_layers = dense(), layers()
    self.encoder_positions = position("encoder_positions", TOKEN // 2)
    self.quantizer = Quantizer(self.codebook, self.features)
    self.decoder_in = nn.ConvTranspose(self.features, (EdgeConv.KERNEL,), (2,), dtype=self.dtype)
    self.decoder_norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
    self.decoder_blocks = [block() for _ in range(2)]
    self.decoder_linear, self.decoder_layers = dense(), layers()
    self.decoder_positions = position("decoder_positions", TOKEN * PAST)
    self.decoder_out = EdgeConv(MOTION_DIM, dtype=self.dtype)

  def encode(self, motion: Float[Array, "*b T 56"]) -> Float[Array, "*b N D"]:
    """A token for each 8 frames of normalised motion, before it is quantised."""
    x = self.encoder_in(motion.reshape(*motion.shape[:-2], -1, TOKEN, MOTION_DIM))  # (*b, N, 4, D)
    x = self.encoder_linear(x) + self.encoder_positions.astype(self.dtype)
    for layer in self.encoder_layers:
      x = layer(x)
    for block in self.encoder_blocks:
      x = _halve(block(x))
    return x[..., 0, :].astype(jnp.float32)

  def decode(self, vectors: Float[Array, "*b 4 D"]) -> Float[Array, "*b 32 56"]:
    """Normalised motion of four codes in a row."""
    x = self.decoder_norm(nn.leaky_relu(self.decoder_in(vectors.astype(self.dtype)), 0.2))
    for block in self.decoder_blocks:
      x = jnp.repeat(block(x), 2, axis=-2)
    x = self.decoder_linear(x) + self.decoder_positions.astype(self.dtype)
    for layer in self.decoder_layers:
      x = layer(x)
    return self.decoder_out(x).astype(jnp.float32)


class ConvBlock(nn.Module):
  """Convolution, LeakyReLU, norm."""

  features: int
  stride: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b T C"]) -> Float[Array, "*b T2 D"]:
    x = nn.leaky_relu(EdgeConv(self.features, self.stride, dtype=self.dtype, name="conv")(x), 0.2)
    return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)


class CodePredictor(nn.Module):
  """Logits of the next four codes, of which the first is that of the block which the speaker's last 8 frames are of.

  Attributes:
    codebook: codes; also the width of the layers that put past and speaker together, as published.
    speaker_features: width of the speaker's.
    layers, past_layers, speaker_layers: Transformer layers of both together, of the past codes, of the speaker.
    heads, hidden: theirs (`PreNormLayer`).
    dtype: of the arithmetic.
  """

  codebook: int
  speaker_features: int
  layers: int
  past_layers: int
  speaker_layers: int
  heads: int
  hidden: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, past: Int[Array, "*b 4"], voice: Float[Array, "*b 40 M"], motion: Float[Array, "*b 40 56"]
  ) -> Float[Array, "*b 4 K"]:
    """Args: `past` are codes or `UNKNOWN`; `voice` and `motion` are the speaker's, zero before the clip begins."""
    placed = lambda x, name: x + self.param(name, nn.initializers.normal(0.02), x.shape[-2:]).astype(self.dtype)
    layer = lambda width, name: PreNormLayer(width, self.heads, self.hidden, self.dtype, name=name)
    dense = lambda width, name, **options: nn.Dense(width, dtype=self.dtype, name=name, **options)

    codes = nn.Embed(self.codebook + 1, self.codebook, dtype=self.dtype, name="codes")(past % (self.codebook + 1))
    codes = placed(codes, "past_positions")
    for i in range(self.past_layers):
      codes = layer(self.codebook, f"past_layer_{i}")(codes)

    asking = placed(dense(self.speaker_features, "voice")(voice), "voice_positions")
    speaker = placed(dense(self.speaker_features, "motion")(motion), "motion_positions")
    for i in range(self.speaker_layers):
      speaker = layer(self.speaker_features, f"speaker_layer_{i}")(speaker, asking=asking)
    for i, stride in enumerate((2, 1, 1)):
      speaker = ConvBlock(self.speaker_features, stride, self.dtype, name=f"speaker_block_{i}")(speaker)
      speaker = _halve(speaker) if stride == 1 else speaker
    speaker = dense(self.codebook, "speaker")(speaker)  # (*b, 5, K)

    x = placed(jnp.concatenate([codes, speaker], axis=-2), "positions")
    for i in range(self.layers):
      x = layer(self.codebook, f"layer_{i}")(x)
    x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
    return dense(self.codebook, "logits", use_bias=False)(x)[..., :PAST, :].astype(jnp.float32)


class L2L(nn.Module):
  """The listener's motion; a `Generator` with a loss of its own and a stage "codes" before.

  Attributes:
    config: of it `dtype`. What is made sees no block of the inputs ahead, with or without `config.causal`.
    mels_per_frame: windows of log-mel that features of a frame consist of (`speech.context`); the largest of each mel is
      taken. 1 takes features as they are.
    features, code_layers, code_heads, code_hidden: of the codes (`TokenCodes`).
    codebook: codes.
    speaker_features, layers, past_layers, speaker_layers, heads, hidden: of the predictor (`CodePredictor`).
    samples: whether codes are drawn, from the rng "sample", or the most probable are taken.
    temperature: of the draws; the lower, the more probable codes are drawn.
    top_p: the most probable codes that together have this probability are drawn from.
  """

  config: MotionConfig
  mels_per_frame: int
  features: int
  codebook: int
  code_layers: int
  code_heads: int
  code_hidden: int
  speaker_features: int
  layers: int
  past_layers: int
  speaker_layers: int
  heads: int
  hidden: int
  temperature: float
  top_p: float
  samples: bool

  causal_form = True
  average = 0.0

  def setup(self):
    dtype = self.config.dtype
    self.motion_mean, self.motion_std = normalization(self)
    self.codes = TokenCodes(self.features, self.codebook, self.code_layers, self.code_heads, self.code_hidden, dtype)
    layers = self.layers, self.past_layers, self.speaker_layers
    self.predictor = CodePredictor(self.codebook, self.speaker_features, *layers, self.heads, self.hidden, dtype)

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
    """Generates B's motion; arguments as `MotionGenerator`'s, of which A's are looked at. Draws from the rng "sample"."""
    del speech_b, social, deterministic
    frames, batch = motion_a.shape[-2], motion_a.shape[:-2]
    blocks = -(-frames // TOKEN)
    speaker = [clear_padding(x, num_frames) for x in (self._voice(speech_a), self._normalised(motion_a))]
    # Zeros before the first block as many as it sees, and behind the last up to its end.
    widths = [(0, 0)] * len(batch) + [(SEEN - TOKEN, blocks * TOKEN - frames), (0, 0)]
    speaker = [jnp.pad(x, widths) for x in speaker]
    rest = self.codes.quantizer.nearest(self.codes.encode(jnp.zeros((TOKEN, MOTION_DIM))))  # The mean face's code.
    key = self.make_rng("sample") if self.samples else None

    def step(self, past, block):
      seen = (jax.lax.dynamic_slice_in_dim(x, block * TOKEN, SEEN, axis=-2) for x in speaker)
      logits = self.predictor(past, *seen)[..., 0, :]
      if self.samples:
        logits = keep_probable(logits / self.temperature, self.top_p)
        code = jax.random.categorical(jax.random.fold_in(key, block), logits)
      else:
        code = jnp.argmax(logits, axis=-1)
      past = jnp.concatenate([past[..., 1:], code[..., None]], axis=-1)
      vectors = self.codes.quantizer.vectors(jnp.where(past == UNKNOWN, rest, past))
      return past, self.codes.decode(vectors)[..., -TOKEN:, :]

    scan = nn.scan(step, variable_broadcast=("params", "statistics"), split_rngs={"params": False})
    _, made = scan(self, jnp.full((*batch, PAST), UNKNOWN), jnp.arange(blocks))
    made = jnp.moveaxis(made, 0, -3).reshape(*batch, blocks * TOKEN, MOTION_DIM)[..., :frames, :]
    return self.motion_mean + self.motion_std * made

  def codes_terms(self, motion_b: Float[Array, "*b T 56"], *, progress: Float[ArrayLike, ""]) -> dict[str, Float[Array, ""]]:
    """Loss of the stage "codes", on pieces of 32 frames; what is left of a window is not looked at."""
    del progress
    motion = self._normalised(_whole_pieces(motion_b, TOKEN * PAST))
    tokens = self.codes.encode(motion)
    pieces = lambda x, length: x.reshape(*x.shape[:-2], -1, length, x.shape[-1])
    error = jnp.abs(self.codes.decode(pieces(self.codes.quantizer(tokens), PAST)) - pieces(motion, TOKEN * PAST))
    groups = {name: jnp.mean(error[..., group]) for name, group in MOTION_GROUPS.items()}
    return groups | self.codes.quantizer.terms(tokens)

  def training_terms(
      self,
      speech_a: Float[Array, "*b T E"],
      motion_a: Float[Array, "*b T 56"],
      speech_b: Float[Array, "*b T E"],
      social: Float[Array, "*b D"],
      motion_b: Float[Array, "*b T 56"],
      *,
      progress: Float[ArrayLike, ""],
  ) -> dict[str, Float[Array, ""]]:
    """Loss of the stage "motion": cross-entropy of the codes of the true motion, four from each block of a window on."""
    del speech_b, social, progress
    codes = self.codes.quantizer.nearest(self.codes.encode(self._normalised(_whole_pieces(motion_b, TOKEN))))
    first = np.arange(codes.shape[-1] - PAST + 1)  # Blocks with four codes from them on.
    before = lambda x, count, value: jnp.concatenate([jnp.full((*x.shape[:-1], count), value, x.dtype), x], axis=-1)
    past = before(codes, PAST, UNKNOWN)[..., first[:, None] + np.arange(PAST)]
    wanted = codes[..., first[:, None] + np.arange(PAST)]
    shown = jax.random.randint(self.make_rng("sample"), past.shape[:-1], 0, _DRAWS)
    past = jnp.where(np.arange(PAST) >= PAST - shown[..., None], past, UNKNOWN)
    speaker = (
        before(x.swapaxes(-1, -2), SEEN - TOKEN, 0.0).swapaxes(-1, -2)[..., TOKEN * first[:, None] + np.arange(SEEN), :]
        for x in (self._voice(speech_a), self._normalised(motion_a))
    )
    likelihoods = nn.log_softmax(self.predictor(past, *speaker))
    return {"codes": -jnp.mean(jnp.take_along_axis(likelihoods, wanted[..., None], axis=-1))}

  def _normalised(self, motion: Float[Array, "*b T 56"]) -> Float[Array, "*b T 56"]:
    return (motion - self.motion_mean) / self.motion_std

  def _voice(self, speech: Float[Array, "*b T E"]) -> Float[Array, "*b T M"]:
    """Of each mel the largest of a frame's windows, which lie behind each other in its features."""
    return jnp.max(speech.reshape(*speech.shape[:-1], self.mels_per_frame, -1), axis=-2)


def _halve(x: Float[Array, "*b T D"]) -> Float[Array, "*b T2 D"]:
  """The larger of each two steps. (Of `jnp.max` the gradient is divided by how many are the largest: by none of them where
  the compiler computes them twice and rounds otherwise.)"""
  return jnp.maximum(x[..., ::2, :], x[..., 1::2, :])


def keep_probable(logits: Float[Array, "*b K"], top_p: float) -> Float[Array, "*b K"]:
  """Logits without those beyond the most probable that together have the probability `top_p`; at least one is left."""
  descending = -jnp.sort(-nn.softmax(logits), axis=-1)
  needed = jnp.cumsum(descending, axis=-1) - descending < top_p
  least = jnp.min(jnp.where(needed, descending, 1.0), axis=-1, keepdims=True)
  return jnp.where(nn.softmax(logits) >= least, logits, -jnp.inf)


def _whole_pieces(motion: Float[Array, "*b T 56"], length: int) -> Float[Array, "*b T2 56"]:
  """The motion up to its last whole piece of so many frames."""
  return motion[..., : motion.shape[-2] // length * length, :]
