"""The speaker-listener motion generator (Sec. 3.3): two voices, A's motion and the social feature s in, B's motion out.

    a_A, a_B = speech encoder (frozen, outside) → SpeechAdapter
    m_A      = MotionEncoder(motion A)
    f_A      = CrossAttn(Q=a_A, K=V=m_A)                      Eq. 4
    z        = CrossAttn(Q=s, K=V=Encoder([f_A; a_B]))        Eq. 5, s of `social.SocialModule`
    motion B = MotionDecoder(z)

Eq. 5 gives the queries no time axis: s is one vector. Here frame t asks with s too, but attention is biased by distance, so
each frame finds its own surroundings; and the residual path z = s + CrossAttn + Encoder([f_A; a_B]) keeps the lips.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rsatalker_jax.motion.layers import (
    AdaptiveNorm,
    FrameConv,
    FrameCount,
    TransformerLayer,
    WindowAttention,
    frame_times,
    keeps_history,
    past_frames,
)
from rsatalker_jax.social.networks import TIME_PERIOD, encode_time
from rsatalker_jax.types import MOTION_DIM


@dataclasses.dataclass(frozen=True)
class MotionConfig:
  """Sizes and switches of a `MotionGenerator`.

  Attributes:
    architecture: "rsatalker", or a baseline's name (`baselines.motion.make_generator`), which has sizes of its own.
    features: width D of all layers.
    heads: attention heads.
    reach: frames that attention sees to each side, per layer.
    encoder_layers, decoder_layers: Transformer layers before and after the social fusion.
    mlp_ratio: width of the MLPs, in `features`.
    speech_hidden: width of the speech adapter's hidden layer.
    speech_layers: convolutions of the speech adapter.
    speech_kernel: frames of speech features that each of them sees at once; 1 for encoders that see enough themselves.
    motion_kernel: frames of A's motion that its encoder sees at once, `motion_stride` frames apart; 1 is frame by frame.
    motion_stride: see `motion_kernel`.
    dropout: on each residual branch, in training.
    use_partner: whether A's voice and motion are seen (ablation: speaker-only).
    use_own_speech: whether B's voice is heard (ablation: listener-only).
    residual: whether encoder features and s also pass by the attention of Eq. 4 and 5; the paper's equations read without.
    query_time: whether the queries of Eq. 5 also hold a bounded periodic encoding of t.
    social_norm: whether s also sets scale and shift of the Transformer layers' norms, so that the relation can change how
      strongly the partner is answered; the paper's s enters as the query alone.
    causal: whether frame t of the output sees the inputs up to t alone, so that it can be made at once
      (`motion.streaming`): reach and kernels then lie in the past. Features must not look ahead either (`LogMel.causal`).
    own_lookahead: of a causal one, how many frames after t of B's own voice are heard too, as where a program speaks and knows
      what it will say; A's voice and motion end with t. -1: as many as `longest_lookahead`.
    remat: what Transformer layers keep for gradients, "none", "dots" or "full" (`layers.REMAT`): less memory for more
      arithmetic.
    dtype: "float32" or "bfloat16" arithmetic; parameters and output are float32.
  """

  architecture: str
  features: int
  heads: int
  reach: int
  encoder_layers: int
  decoder_layers: int
  mlp_ratio: int
  speech_hidden: int
  speech_layers: int
  speech_kernel: int
  motion_kernel: int
  motion_stride: int
  dropout: float
  use_partner: bool
  use_own_speech: bool
  residual: bool
  query_time: bool
  social_norm: bool
  causal: bool
  own_lookahead: int
  remat: str
  dtype: str

  def __post_init__(self):
    if self.features % self.heads:
      raise ValueError(f"{self.features=} must be a multiple of {self.heads=}")
    most = longest_lookahead(self.reach, self.speech_layers, self.speech_kernel)
    if not -1 <= self.own_lookahead <= most:
      raise ValueError(f"{self.own_lookahead=} must be -1 or 0 to {most}")
    if self.own_lookahead and not (self.causal and self.use_own_speech):
      raise ValueError(f"{self.own_lookahead=} must be 0 with {self.causal=} and {self.use_own_speech=}")

  @property
  def frames_ahead(self) -> int:
    """Frames of B's own voice after t on which frame t depends."""
    if self.own_lookahead >= 0:
      return self.own_lookahead
    return longest_lookahead(self.reach, self.speech_layers, self.speech_kernel)

  @property
  def adapter_ahead(self) -> int:
    """Those of them that the speech adapter hears: at most as many as it hears of both voices where nothing is causal."""
    return min(self.frames_ahead, self.speech_layers * (self.speech_kernel // 2))


def longest_lookahead(reach: int, speech_layers: int, speech_kernel: int) -> int:
  """The most frames that B's own voice can be heard ahead: the reach of one attention, and half of what the adapter sees."""
  return reach + speech_layers * (speech_kernel // 2)


class Generator(Protocol):
  """What the talker, the stages and scoring want of a motion generator: a Linen module with these members.

  Its variables are the collections "params", trained, and "statistics", mean and standard deviation of the training
  motion (`normalization`). Statistics are the run's buffers: training and generating read the same arrays.

  A generator whose training is not to compare what it generates with the truth has further members (`can`), methods of the
  module that are applied with the rngs "dropout" and "sample" to whole windows:

    training_terms(speech_a, motion_a, speech_b, social, motion_b, *, progress) -> the terms of its own loss by name, each
      weighted; `progress`, from 0 to 1, is the share of the stage's steps that are taken. Without it the stage's loss is Eq. 9.
    codes_terms(motion_b, *, progress) -> the same of what the stage "codes" trains before: the parameters of the
      submodule "codes", which the motion stage then leaves as they are.

  Attributes:
    config: its sizes; `config.features` is the length of the social feature that it is given.
    causal_form: whether it has a form that looks at nothing ahead.
    samples: whether what it generates is drawn by chance, from the rng "sample".
    average: decay of the moving average of its parameters, by which it generates then; 0: none.
  """

  config: MotionConfig
  causal_form: bool = False
  samples: bool = False
  average: float = 0.0

  def init(self, key: Any, *inputs: Any) -> Mapping[str, Any]: ...

  def apply(
      self,
      variables: Mapping[str, Any],
      speech_a: Float[Array, "*b T E"],
      motion_a: Float[Array, "*b T 56"],
      speech_b: Float[Array, "*b T E"],
      social: Float[Array, "*b D"],
      *,
      num_frames: FrameCount = None,
      deterministic: bool = True,
      **options: Any,
  ) -> Float[Array, "*b T 56"]: ...


def can(generator: Generator, method: str) -> bool:
  """Whether a generator has one of the methods that not all have, "training_terms" or "codes_terms"."""
  return callable(getattr(type(generator), method, None))


def normalization(module: nn.Module) -> tuple[Float[Array, "56"], Float[Array, "56"]]:
  """Mean and standard deviation by which a generator's motion is normalised; `init` makes 0 and 1."""
  read = lambda name, init: module.variable("statistics", name, init, MOTION_DIM).value
  return read("motion_mean", jnp.zeros), read("motion_std", jnp.ones)


class SpeechAdapter(nn.Module):
  """Speech features of a frozen encoder to the generator's width, the same for both people."""

  config: MotionConfig

  @nn.compact
  def __call__(
      self, speech: Float[Array, "*b T E"], *, person: str = "b", num_frames: FrameCount = None
  ) -> Float[Array, "*b T D"]:
    c = self.config
    context = FrameConv(c.speech_hidden, c.speech_kernel, c.dtype, causal=c.causal, name="context")
    x = nn.gelu(context(speech, source=person, num_frames=num_frames))
    for i in range(1, c.speech_layers):
      context = FrameConv(c.speech_hidden, c.speech_kernel, c.dtype, causal=c.causal, name=f"context_{i}")
      normed = nn.LayerNorm(dtype=c.dtype, name=f"context_norm_{i}")(x)
      x += nn.gelu(context(normed, source=person, num_frames=num_frames))
    return nn.LayerNorm(dtype=c.dtype, name="norm")(nn.Dense(c.features, dtype=c.dtype, name="out")(x))


class OwnLookahead(nn.Module):
  """B's own voice, heard `frames_ahead` frames ahead of all else, as what frame t makes of it.

  All of it is causal in a time of its own, that of B's voice: place u of the output belongs to frame u - frames_ahead and
  hears nothing after place u. The adapter's output at u is centred on frame u - adapter_ahead; a `TransformerLayer`, whose
  attention goes from there as many frames ahead as are left, follows. Like `causal`, it can be given a voice in pieces.
  """

  config: MotionConfig

  def setup(self):
    c = self.config
    sizes = c.features, c.heads, c.reach, c.mlp_ratio
    self.layer = TransformerLayer(*sizes, dtype=c.dtype, causal=True, ahead=c.frames_ahead - c.adapter_ahead)
    nn.share_scope(self, self.layer)

  @nn.compact
  def __call__(self, heard: Float[Array, "*b T D"], known: Bool[Array, "T"]) -> Float[Array, "*b T D"]:
    """Args: `heard`, the adapter's output; `known`, which frames the voice has: beyond its ends nothing is attended to."""
    centred = past_frames(self, "centred", known[:, None], self.config.adapter_ahead)[: len(known), 0]
    return self.layer(heard, known=centred)


class MotionEncoder(nn.Module):
  """Normalised motion (FLAME parameters) to motion features (DualTalk's 56 → 128 → D, here with a window in time)."""

  config: MotionConfig

  @nn.compact
  def __call__(
      self,
      motion: Float[Array, "*b T 56"],
      social: Float[Array, "*b D"] | None = None,
      *,
      num_frames: FrameCount = None,
  ) -> Float[Array, "*b T D"]:
    c = self.config
    context = FrameConv(c.features, c.motion_kernel, c.dtype, c.motion_stride, c.causal, name="context")
    hidden = context(motion, num_frames=num_frames)
    if c.social_norm:
      hidden = AdaptiveNorm(c.dtype, name="context_norm")(hidden, social)
    return nn.LayerNorm(dtype=c.dtype, name="norm")(nn.Dense(c.features, dtype=c.dtype, name="out")(nn.gelu(hidden)))


class SocialFusion(nn.Module):
  """The socially-aware fusion network (Fig. 3): Transformer encoder on [f_A; a_B], then attention queried by s (Eq. 5)."""

  config: MotionConfig

  @nn.compact
  def __call__(
      self,
      partner: Float[Array, "*b T D"],
      speech: Float[Array, "*b T D"],
      social: Float[Array, "*b D"],
      *,
      num_frames: FrameCount = None,
      deterministic: bool = True,
  ) -> Float[Array, "*b T D"]:
    c = self.config
    encoded = nn.Dense(c.features, dtype=c.dtype, name="join")(jnp.concatenate([partner, speech], axis=-1))
    for i in range(c.encoder_layers):
      sizes = c.features, c.heads, c.reach, c.mlp_ratio
      layer = TransformerLayer(*sizes, c.dropout, c.dtype, c.causal, c.remat, name=f"layer_{i}")
      condition = social if c.social_norm else None
      encoded = layer(encoded, condition, num_frames=num_frames, deterministic=deterministic)
    memory = nn.LayerNorm(dtype=c.dtype, name="memory_norm")(encoded)

    queries = jnp.broadcast_to(social[..., None, :], encoded.shape)
    if c.query_time:
      time = encode_time(frame_times(self, encoded.shape[-2], period=TIME_PERIOD))
      queries += nn.Dense(c.features, use_bias=False, dtype=c.dtype, name="time")(time)
    attention = WindowAttention(c.features, c.heads, c.reach, c.dtype, c.causal, name="attention")
    normed = nn.LayerNorm(dtype=c.dtype, name="query_norm")(queries)
    z = attention(normed, memory, num_frames=num_frames)  # Eq. 5
    return queries + z + encoded if c.residual else z


class MotionDecoder(nn.Module):
  """Transformer-based motion decoder: z to normalised motion."""

  config: MotionConfig

  @nn.compact
  def __call__(
      self,
      z: Float[Array, "*b T D"],
      social: Float[Array, "*b D"] | None = None,
      *,
      num_frames: FrameCount = None,
      deterministic: bool = True,
  ) -> Float[Array, "*b T 56"]:
    c = self.config
    for i in range(c.decoder_layers):
      sizes = c.features, c.heads, c.reach, c.mlp_ratio
      layer = TransformerLayer(*sizes, c.dropout, c.dtype, c.causal, c.remat, name=f"layer_{i}")
      z = layer(z, social if c.social_norm else None, num_frames=num_frames, deterministic=deterministic)
    z = nn.LayerNorm(dtype=c.dtype, name="norm")(z)
    return nn.Dense(MOTION_DIM, kernel_init=nn.initializers.normal(0.01), name="motion")(z.astype(jnp.float32))


class MotionGenerator(nn.Module):
  """B's facial motion from both voices, A's motion and the social feature; a `Generator`.

  Works on clips of any length; a clip of minutes takes memory in proportion to its length.

  Attributes:
    config: sizes and switches.
  """

  config: MotionConfig

  causal_form = True
  samples = False
  average = 0.0

  def setup(self):
    c = self.config
    self.motion_mean, self.motion_std = normalization(self)
    self.speech_adapter = SpeechAdapter(c)
    self.own_lookahead = OwnLookahead(c)
    self.motion_encoder = MotionEncoder(c)
    self.partner_norm = nn.LayerNorm(dtype=c.dtype)
    self.partner_attention = WindowAttention(c.features, c.heads, c.reach, c.dtype, c.causal)
    self.social_fusion = SocialFusion(c)
    self.motion_decoder = MotionDecoder(c)

  def __call__(
      self,
      speech_a: Float[Array, "*b T E"],
      motion_a: Float[Array, "*b T 56"],
      speech_b: Float[Array, "*b T E"],
      social: Float[Array, "*b D"],
      *,
      num_frames: FrameCount = None,
      known_b: FrameCount = None,
      deterministic: bool = True,
  ) -> Float[Array, "*b T 56"]:
    """Generates B's motion: expression coefficients, jaw and head rotation (axis-angle), 25 frames a second.

    With `own_lookahead` a clip's speech_b is as long as all else, and beyond its end B's voice is not known. Of a piece of a
    conversation (`motion.streaming`) speech_b is that of `frames_ahead` frames later, behind what `hear_ahead` was given.

    Args:
      speech_a, speech_b: features of both voices at 25 fps (`speech.SpeechFeatures`).
      motion_a: A's motion.
      social: the motion social feature s (`social.SocialModule`).
      num_frames: how many frames are the clip's, where it is padded (`motion.clips`); those beyond mean nothing.
      known_b: of a piece, with `own_lookahead`: how many frames of speech_b B's voice has; it ends with them. None: all.
      deterministic: False draws dropout masks from the rng "dropout".
    """
    c, mean, std = self.config, self.motion_mean, self.motion_std
    social = social.astype(c.dtype)
    if not c.own_lookahead:
      own_speech = self.speech_adapter(speech_b, person="b", num_frames=num_frames)
    elif keeps_history(self):
      own_speech = self.hear_ahead(speech_b, known_b)
    else:
      beyond = jnp.zeros((*speech_b.shape[:-2], c.frames_ahead, speech_b.shape[-1]), speech_b.dtype)
      known = speech_b.shape[-2] if num_frames is None else num_frames
      own_speech = self.hear_ahead(jnp.concatenate([speech_b, beyond], axis=-2), known)[..., c.frames_ahead :, :]
    if not c.use_own_speech:
      own_speech = jnp.zeros_like(own_speech)
    if c.use_partner:
      partner_speech = self.speech_adapter(speech_a, person="a", num_frames=num_frames)
      motion = self.motion_encoder((motion_a - mean) / std, social, num_frames=num_frames)
      partner = self.partner_attention(self.partner_norm(partner_speech), motion, num_frames=num_frames)  # Eq. 4
      if c.residual:
        partner += partner_speech + motion
    else:
      partner = jnp.zeros_like(own_speech)
    z = self.social_fusion(partner, own_speech, social, num_frames=num_frames, deterministic=deterministic)
    return mean + std * self.motion_decoder(z, social, num_frames=num_frames, deterministic=deterministic)

  def hear_ahead(self, speech_b: Float[Array, "*b T E"], known_b: FrameCount = None) -> Float[Array, "*b T D"]:
    """What `OwnLookahead` makes of B's voice; of a conversation in pieces its first `frames_ahead` frames, before all else.

    Args:
      speech_b: features of B's voice at 25 fps.
      known_b: how many of its frames the voice has; it ends with them, whatever finite numbers follow. None: all.
    """
    frames = jnp.arange(speech_b.shape[-2])
    known = frames < (len(frames) if known_b is None else known_b)
    return self.own_lookahead(self.speech_adapter(jnp.where(known[:, None], speech_b, 0), person="b"), known)
