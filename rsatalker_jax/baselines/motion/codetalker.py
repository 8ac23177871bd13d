"""CodeTalker (Xing et al., CVPR 2023): of a voice alone, codes of motion, one frame after the other.

    codes    z = E(m), q = the nearest codes to the H tokens of each frame of z, m' = D(q)           stage "codes"
    motion   f_t = Linear(Decoder(PPE(s + W m'_(t-1)), memory = voice)), m'_t = D(nearest(f_..t))    stage "motion"

A related network, not the same one; it differs from the published code in

                          published                                     here
    motion                offsets from a person's template              z-scores of the 56 values
    person                a learned vector for each of a few people     s, one for all
    voice                 Wav2Vec 2.0, tuned, and a linear layer        frozen features, `SpeechAdapter` (log-mel sees one frame)
    codes: positions      by mistake of the clip's place in the batch   of time, sinusoids with the predictor's period
    codes: attention      over the clip                                 over `code_reach` frames
    codes: norm           of each channel over the clip                 of each frame over its channels
    D sees                both sides                                    the past
    codebook              lost codes stay lost                          they are drawn to tokens (`Quantizer.terms`)
    fed back              the last frame of the clip so far decoded     the same; with this D it is the frame of the output
    trained on            true frames m_(t-1)                           more and more of its own instead, up to `own_share`
    the first frame       is doubled; its input is s                    is as it is; its input is s + W 0, the mean face
    longest clip          600 frames                                    none

A norm over the clip takes from a person's motion the level of each channel, makes a window other than the clip that it is of,
and a clip so far other than the whole; of a single frame it is void, whence the doubling. A norm of each frame has none
of that. So codes here depend on their surroundings alone, whatever the window. And since D sees the past alone, what was decoded
stays: T cheap steps that keep what was computed instead of T decodings of all so far, whose frames in the end are others
than those that were fed back.

Trained on true frames alone it moves well until it has to go on from its own, as its authors' readers found.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rsatalker_jax.baselines.motion.layers import DecoderLayer, encode_periodic, make_speech_adapter
from rsatalker_jax.baselines.motion.quantizing import EdgeConv, PreNormLayer, Quantizer
from rsatalker_jax.motion.generator import MotionConfig, normalization
from rsatalker_jax.motion.layers import FrameCount
from rsatalker_jax.types import MOTION_DIM


class MotionCodes(nn.Module):
  """The auto-encoder: motion to H tokens a frame, of whole windows, and codes to motion.

  Attributes:
    features: width, that of the H tokens of a frame together.
    tokens: H.
    codebook: codes.
    layers: Transformer layers of encoder and decoder.
    heads, hidden: theirs (`PreNormLayer`).
    reach: frames that they see, the encoder's to each side, the decoder's back.
    period: of the position code.
    dropout: behind the position code.
    dtype: of the arithmetic.
  """

  features: int
  tokens: int
  codebook: int
  layers: int
  heads: int
  hidden: int
  reach: int
  period: int
  dropout: float
  dtype: DTypeLike = jnp.float32

  def setup(self):
    dense = lambda features: nn.Dense(features, dtype=self.dtype)
    layers = lambda: [PreNormLayer(self.features, self.heads, self.hidden, self.dtype) for _ in range(self.layers)]
    self.encoder_in, self.encoder_linear, self.encoder_layers = dense(self.features), dense(self.features), layers()
    self.encoder_conv = EdgeConv(self.features, dtype=self.dtype)
    self.quantizer = Quantizer(self.codebook, self.features // self.tokens)
    self.decoder_conv = EdgeConv(self.features, causal=True, dtype=self.dtype)
    self.decoder_linear, self.decoder_layers, self.decoder_out = dense(self.features), layers(), dense(MOTION_DIM)
    self.norm = nn.LayerNorm(use_bias=False, use_scale=False, epsilon=1e-5, dtype=self.dtype)
    self.drop = nn.Dropout(self.dropout)

  def encode(self, motion: Float[Array, "*b T 56"], *, deterministic: bool = True) -> Float[Array, "*b T H C"]:
    """Tokens before they are quantised, of normalised motion; those at the ends see fewer frames."""
    x = self.encoder_conv(_leaky(self.encoder_in(motion)))
    x = self._place(self.encoder_linear(self.norm(_leaky(x))), np.arange(x.shape[-2]), deterministic)
    for layer in self.encoder_layers:
      x = layer(x, visible=np.abs(self._distance(x)) <= self.reach)
    return self.split(x)

  def decode(self, vectors: Float[Array, "*b T H C"], *, deterministic: bool = True) -> Float[Array, "*b T 56"]:
    """Normalised motion of codes; frame t sees those up to t."""
    x = self.decoder_conv(vectors.reshape(*vectors.shape[:-2], self.features))
    x = self._place(self.decoder_linear(self.norm(_leaky(x))), np.arange(x.shape[-2]), deterministic)
    distance = self._distance(x)
    for layer in self.decoder_layers:
      x = layer(x, visible=(distance >= 0) & (distance <= self.reach))
    return self.decoder_out(x).astype(jnp.float32)

  def decode_step(self, vectors: Float[Array, "*b H C"], cache, t: Int[ArrayLike, ""]):
    """Frame t of `decode` alone, (*b, 56), and the cache for the next; frames come in order, from 0 on."""
    past, kept = cache
    x, past = self.decoder_conv.step(vectors.reshape(*vectors.shape[:-2], self.features), past, t)
    x = self._place(self.decoder_linear(self.norm(_leaky(x))), t, True)
    following = []
    for layer, ring in zip(self.decoder_layers, kept):
      x, ring = layer.step(x, ring, t)
      following.append(ring)
    return self.decoder_out(x).astype(jnp.float32), (past, following)

  def init_cache(self, batch: tuple[int, ...], frames: int):
    """The cache of `decode_step` before the first of `frames` frames."""
    past = jnp.zeros((*batch, EdgeConv.KERNEL - 1, self.features))
    return past, [layer.init_cache(batch, min(self.reach + 1, frames)) for layer in self.decoder_layers]

  def split(self, x: Float[Array, "*b D"]) -> Float[Array, "*b H C"]:
    """Tokens of the features of a frame, in float32."""
    return x.astype(jnp.float32).reshape(*x.shape[:-1], self.tokens, -1)

  def _place(self, x, times, deterministic):
    code = encode_periodic(times, self.features, self.period).astype(self.dtype)
    return self.drop(x + code, deterministic=deterministic)

  def _distance(self, x: Float[Array, "*b T D"]) -> Int[np.ndarray, "T T"]:
    """Frame of the query minus that of the key."""
    return np.subtract.outer(*2 * (np.arange(x.shape[-2]),))


class CodeTalker(nn.Module):
  """The speaker's motion of the own voice; a `Generator` with a loss of its own and a stage "codes" before.

  Attributes:
    config: of the harness; what counts is `causal` (whether the speech adapter sees the past alone, all else does) and `dtype`.
    features: width of codes and predictor.
    tokens: codes of a frame, H.
    codebook: codes to choose from.
    code_layers, code_heads, code_hidden, code_reach: of the codes' Transformers (`MotionCodes`).
    layers, heads, hidden: of the predictor's decoder (`layers.DecoderLayer`).
    reach: frames that it sees back.
    period: frames of the position codes' period and of the bias's.
    dropout: in training, in both stages.
    speech_layers, speech_kernel, speech_hidden: of the speech adapter (`MotionConfig`).
    own_share: share of its own frames among those fed back with which training ends; it rises from 0 in a line.
  """

  config: MotionConfig
  features: int
  tokens: int
  codebook: int
  code_layers: int
  code_heads: int
  code_hidden: int
  code_reach: int
  layers: int
  heads: int
  hidden: int
  reach: int
  period: int
  dropout: float
  speech_layers: int
  speech_kernel: int
  speech_hidden: int
  own_share: float

  causal_form = True
  samples = False
  average = 0.0

  def setup(self):
    dtype = self.config.dtype
    self.motion_mean, self.motion_std = normalization(self)
    self.codes = MotionCodes(
        self.features, self.tokens, self.codebook, self.code_layers, self.code_heads, self.code_hidden, self.code_reach,
        self.period, self.dropout, dtype,
    )  # fmt: skip
    speech = self.speech_layers, self.speech_kernel, self.speech_hidden
    self.speech_adapter = make_speech_adapter(self.config, self.features, *speech)
    self.style = self.param("style", nn.initializers.normal(0.02), (self.features,))
    self.motion_in = nn.Dense(self.features, dtype=dtype)
    sizes = self.features, self.heads, self.hidden, self.period, self.reach, self.dropout, dtype
    self.decoder_layers = [DecoderLayer(*sizes) for _ in range(self.layers)]
    self.tokens_out = nn.Dense(self.features, use_bias=False, kernel_init=nn.initializers.zeros, dtype=dtype)
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
    """Generates B's motion; arguments as `MotionGenerator`'s, of which `speech_b` alone is looked at."""
    del speech_a, social, deterministic
    memory = self.speech_adapter(speech_b, person="b", num_frames=num_frames)
    unknown = jnp.zeros(motion_a.shape)
    if self.is_initializing():
      self.predict_tokens(memory, self.codes.decode(self.codes.quantizer(self.codes.encode(unknown))))
    made = self.roll_out(memory, unknown, jnp.ones((*unknown.shape[:-1], 1), bool))
    return self.motion_mean + self.motion_std * made

  def codes_terms(self, motion_b: Float[Array, "*b T 56"], *, progress: Float[ArrayLike, ""]) -> dict[str, Float[Array, ""]]:
    """Loss of the stage "codes"."""
    del progress
    motion = (motion_b - self.motion_mean) / self.motion_std
    tokens = self.codes.encode(motion, deterministic=False)
    decoded = self.codes.decode(self.codes.quantizer(tokens), deterministic=False)
    return {"motion": jnp.mean(jnp.abs(decoded - motion)), **self.codes.quantizer.terms(tokens)}

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
    """Loss of the stage "motion": of the motion, and of the tokens against the codes of the true motion."""
    del speech_a, motion_a, social
    motion = (motion_b - self.motion_mean) / self.motion_std
    wanted = jax.lax.stop_gradient(self.codes.quantizer(self.codes.encode(motion)))
    memory = self.speech_adapter(speech_b, person="b")
    fed = _shift(motion)
    if self.own_share:
      own = jax.random.bernoulli(self.make_rng("sample"), self.own_share * progress, (*fed.shape[:-1], 1))
      # What it made of its own frames is fed as if it were true: no gradients through the steps, and none through these weights.
      fixed = self.clone(parent=None)
      made = fixed.apply(*jax.lax.stop_gradient((self.variables, memory)), fed, own, method="roll_out")
      fed = jnp.where(own, _shift(made), fed)
    tokens = self.predict_tokens(memory, fed, deterministic=False)
    made = self.codes.decode(self.codes.quantizer(tokens))
    return {"motion": jnp.mean((made - motion) ** 2), "tokens": jnp.mean((tokens - wanted) ** 2)}

  def predict_tokens(
      self, memory: Float[Array, "*b T D"], fed: Float[Array, "*b T 56"], *, deterministic: bool = True
  ) -> Float[Array, "*b T H C"]:
    """Tokens of all frames at once.

    Args:
      memory: features of the own voice.
      fed: for each frame the one before it, normalised.
    """
    x = self.drop(self._embed(fed, np.arange(fed.shape[-2])), deterministic=deterministic)
    for layer in self.decoder_layers:
      x = layer(x, memory, deterministic=deterministic)
    return self.codes.split(self.tokens_out(x))

  def roll_out(
      self, memory: Float[Array, "*b T D"], fed: Float[Array, "*b T 56"], own: Bool[Array, "*b T 1"]
  ) -> Float[Array, "*b T 56"]:
    """Normalised motion, frame by frame, each made of that before it.

    Args:
      memory: features of the own voice.
      fed: for each frame the one before it, where that is not to be `own`, which is what was made here.
    """
    batch, frames = fed.shape[:-2], fed.shape[-2]
    caches = [layer.init_cache(batch, frames) for layer in self.decoder_layers], self.codes.init_cache(batch, frames)
    aligned = [layer.align(memory) for layer in self.decoder_layers]
    by_time = jax.tree.map(lambda x: jnp.moveaxis(x, -2, 0), (aligned, fed, own))
    start = jnp.zeros((*batch, MOTION_DIM)), *caches
    scan = nn.scan(CodeTalker._step, variable_broadcast=("params", "statistics"), split_rngs={"params": False})
    _, made = scan(self, start, (jnp.arange(frames), *by_time))
    return jnp.moveaxis(made, 0, -2)

  def _step(self, carry, inputs):
    made, kept, code_cache = carry
    t, aligned, fed, own = inputs
    x = self._embed(jnp.where(own, made, fed), t)
    following = []
    for layer, seen, cache in zip(self.decoder_layers, aligned, kept):
      x, cache = layer.step(x, seen, cache, t)
      following.append(cache)
    vectors = self.codes.quantizer(self.codes.split(self.tokens_out(x)))
    made, code_cache = self.codes.decode_step(vectors, code_cache, t)
    return (made, following, code_cache), made

  def _embed(self, fed, times):
    code = encode_periodic(times, self.features, self.period)
    return (self.style + self.motion_in(fed) + code).astype(self.config.dtype)


def _shift(motion: Float[Array, "*b T 56"]) -> Float[Array, "*b T 56"]:
  """For each frame the one before it, the mean face before the first."""
  return jnp.concatenate([jnp.zeros_like(motion[..., :1, :]), motion[..., :-1, :]], axis=-2)


def _leaky(x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
  return nn.leaky_relu(x, 0.2)
