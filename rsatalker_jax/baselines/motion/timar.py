"""TIMAR (Chen et al. 2025): per turn, which is a second, the tokens of both people's voices and motions, the motion to be made
masked, through a Transformer whose attention sees the same and earlier turns; what comes out at each masked frame conditions a
small network that denoises that frame alone.

    turn    = [start; A's voice 25; A's motion 25; B's voice 25; B's motion 25; end], each between separators: 110 tokens
    z       = LayerNorm(Transformer(LayerNorm(tokens + positions))) + positions, at B's motion
    x_0, σ² = head(x_k, z, k), 5 steps from noise

                              published                                     here
    motion                    raw values                                    z-scores
    loss                      of expression, jaw and head, each a mean,     the same of z-scores; of the variance only
                              and the variational term of the variance      where `learned_variance`, and of steps with noise
    variance of a step        learned                                       the posterior's, or learned
    voice                     Wav2Vec 2.0 of each second alone, one layer   the harness's features; `SpeechAdapter`, which
                                                                            sees some frames of that second
    tokens of a frame         4                                             4, or `joined` 2
    windows of training       the last 8 s of each clip, as the code has    all, at random
    clips                     whole seconds                                 any length: frames that a turn lacks are masked
    dropout of attention      each head and clip its own                    the same for all
    optimizer                 AdamW (0.9, 0.95), constant rate              the harness's

Turns do not depend on each other but by their inputs, as published: of the turns before, B's own motion is masked. So nothing
drifts, and nothing that was generated is known. `feedback` shows it.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from rsatalker_jax.baselines.motion.diffusion import TIMES, draw_noise, encode_time, make_diffusion, spread_times
from rsatalker_jax.baselines.motion.layers import make_speech_adapter
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion.generator import MotionConfig, normalization
from rsatalker_jax.motion.layers import FeedForward, FrameCount, clear_padding
from rsatalker_jax.types import FPS, MOTION_DIM, MOTION_GROUPS

TURN = FPS  # Frames of a turn.
_EPSILON = 1e-6  # Of LayerNorms.
_MASK_DEVIATION = 0.25  # Of the share of masked frames.
_TIME_FEATURES = 256  # Of the sinusoid of the diffusion's time.


class Timar(nn.Module):
  """TIMAR on normalised motion. Output of a turn depends on that turn and those before it, up to a second ahead of a frame;
  `causal` changes nothing but the features that it is given.

  Attributes:
    config: of it the features' `dtype` is looked at.
    features: width of all tokens.
    layers, heads, mlp_ratio: of the Transformer.
    context: turns that it sees, those of training and of generating; a training window is at most that long.
    joined: whether a person's voice and motion of a frame are one token, their sum: 56 tokens a turn instead of 110.
    speech_layers, speech_kernel, speech_hidden: of the speech adapter (`MotionConfig`).
    dropout: on attention weights and on residual branches.
    mask_low: least share of B's frames that are masked in training; shares are drawn from a normal of mean 1 and
      deviation 0.25, cut to [mask_low, 1].
    user_dropout: share of A's tokens, voice and motion each, that a learned vector stands for in training.
    head: "diffusion"; or "regression", the same network given a learned vector for x_k, trained by squared error alone.
    head_features, head_layers: width and residual blocks of it.
    draws: times and noises that each frame is trained with in a step.
    learned_variance: whether the head also gives the variance of its steps, instead of the posterior's. Five steps ask for it at
      times at which the bound that teaches it, over 1000, hardly depends on it.
    sampling_steps: from noise to motion.
    temperature: deviation of the noise in these steps, as a share; the noise that they start from has deviation 1.
    feedback: whether B's own past is seen when generating, instead of masked; turns are then generated one upon the other.
    average: decay of the moving average of the parameters.
  """

  config: MotionConfig
  features: int
  layers: int
  heads: int
  mlp_ratio: int
  context: int
  joined: bool
  speech_layers: int
  speech_kernel: int
  speech_hidden: int
  dropout: float
  mask_low: float
  user_dropout: float
  head: str
  head_features: int
  head_layers: int
  draws: int
  learned_variance: bool
  sampling_steps: int
  temperature: float
  feedback: bool
  average: float

  causal_form = True

  @property
  def samples(self) -> bool:
    """Whether it draws from the rng "sample" when it generates."""
    return self.head == "diffusion"

  def setup(self):
    dtype = self.config.dtype
    self.motion_mean, self.motion_std = normalization(self)
    # Within its second it may look both ways.
    config, sizes = dataclasses.replace(self.config, causal=False), (self.speech_layers, self.speech_kernel, self.speech_hidden)
    self.speech_adapter = make_speech_adapter(config, self.features, *sizes)
    self.motion_hidden, self.motion_out = nn.Dense(self.features // 2, dtype=dtype), nn.Dense(self.features, dtype=dtype)
    self.join = nn.Dense(self.features, dtype=dtype)
    vector = lambda name: self.param(name, nn.initializers.normal(0.02), (self.features,))
    self.mask_token, self.user_token = vector("mask_token"), vector("user_token")
    self.encoder = TurnEncoder(
        self.features, self.layers, self.heads, self.mlp_ratio, self.context, 2 if self.joined else 4, self.dropout, dtype
    )
    self.denoiser = FrameDenoiser(self.head_features, self.head_layers, dtype)
    if self.head == "regression":
      # Not zeros: all modulation and the output start from zero, and of a norm of zeros nothing would reach either, ever.
      self.start = self.param("start", nn.initializers.normal(1.0), (MOTION_DIM,))

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
    """Generates B's motion turn by turn; arguments as `MotionGenerator`'s, `social` is not looked at."""
    del social
    frames, batch = motion_a.shape[-2], motion_a.shape[:-2]
    inputs = [clear_padding(x, num_frames) for x in (speech_a, motion_a, speech_b)]
    streams = self._embed_inputs(*inputs)
    turns = streams[0].shape[-3]
    present = jnp.arange(turns * TURN).reshape(turns, TURN) < (frames if num_frames is None else num_frames)
    key = self.make_rng("sample") if self.samples else None

    def generate_turn(self, motion, turn):
      first = jnp.maximum(turn - self.context + 1, 0)
      window = lambda x: jax.lax.dynamic_slice_in_dim(x, first, self.context, axis=-3)
      within = [window(x) for x in streams]
      earlier = jnp.arange(self.context) < turn - first
      seen = earlier[:, None] if self.feedback else jnp.zeros((1, 1), bool)
      z = self._encode(*within, window(motion), seen, window(present[..., None])[..., 0], deterministic)
      z = jax.lax.dynamic_index_in_dim(z, turn - first, axis=-3, keepdims=False)
      generated = self._denoise(z, key, turn * TURN + jnp.arange(TURN))
      return jax.lax.dynamic_update_index_in_dim(motion, generated, turn, axis=-3), None

    generate = nn.scan(
        generate_turn, variable_broadcast=("params", "statistics"), split_rngs={"params": False, "dropout": True}
    )
    motion = jnp.zeros((*batch, turns, TURN, MOTION_DIM))
    motion, _ = generate(self, motion, jnp.arange(-(-frames // TURN)))
    return self.motion_mean + self.motion_std * motion.reshape(*batch, -1, MOTION_DIM)[..., :frames, :]

  def training_terms(
      self,
      speech_a: Float[Array, "B T E"],
      motion_a: Float[Array, "B T 56"],
      speech_b: Float[Array, "B T E"],
      social: Float[Array, "B D"],
      motion_b: Float[Array, "B T 56"],
      *,
      progress: Float[Array, ""],
  ) -> dict[str, Float[Array, ""]]:
    """The loss by terms: squared errors of x_0 in z-scores, of the masked frames, and the variance's term.

    Raises:
      InputError: the windows are longer than the context.
    """
    del social, progress
    batch, frames, _ = motion_b.shape
    if frames > self.context * TURN:
      raise InputError("config", "motion.window", frames, f"at most {self.context * TURN}, baselines.timar.context in frames")
    mask_key, user_key, time_key, noise_key = jax.random.split(self.make_rng("sample"), 4)
    masked = draw_masks(mask_key, batch, frames, self.mask_low)
    streams = self._embed_inputs(speech_a, motion_a, speech_b)
    turns = streams[0].shape[-3]
    user = [jax.random.bernoulli(k, self.user_dropout, (batch, turns, TURN, 1)) for k in jax.random.split(user_key)]
    streams[:2] = [jnp.where(dropped, self.user_token, x) for dropped, x in zip(user, streams)]
    target = (motion_b - self.motion_mean) / self.motion_std
    present = jnp.arange(turns * TURN).reshape(turns, TURN) < frames
    seen = to_turns(~masked[..., None], turns)[..., 0]
    z = self._encode(*streams, to_turns(target, turns), seen, present, False)
    z = z.reshape(batch, -1, self.features)[:, :frames]

    if self.head == "regression":
      return _group_errors(target, self._regress(z), masked)
    diffusion = make_diffusion()
    step = jax.random.randint(time_key, (self.draws, batch, frames), 0, TIMES)
    noise = jax.random.normal(noise_key, (*step.shape, MOTION_DIM))
    target = jnp.broadcast_to(target, noise.shape)
    noisy = diffusion.add_noise(target, noise, step)
    clean, variance = self.denoiser(noisy, z, step)
    terms = _group_errors(target, clean, masked)
    if self.learned_variance:
      terms["variance"] = _masked_mean(diffusion.variance_bound(target, noisy, clean, variance, step), masked)
    return terms

  def _embed_inputs(
      self, speech_a: Float[Array, "*b T E"], motion_a: Float[Array, "*b T 56"], speech_b: Float[Array, "*b T E"]
  ) -> list[Float[Array, "*b n 25 D"]]:
    """Tokens of A's voice, A's motion and B's voice by turns; as many turns as there are, and at least the context's."""
    turns = max(-(-motion_a.shape[-2] // TURN), self.context)
    voices = [self.join(self.speech_adapter(to_turns(x, turns))) for x in (speech_a, speech_b)]
    motion = self._embed_motion(to_turns((motion_a - self.motion_mean) / self.motion_std, turns))
    return [voices[0], motion, voices[1]]

  def _embed_motion(self, motion: Float[Array, "*b n 25 56"]) -> Float[Array, "*b n 25 D"]:
    return self.join(nn.relu(self.motion_out(nn.relu(self.motion_hidden(motion)))))

  def _encode(
      self,
      voice_a: Float[Array, "*b n 25 D"],
      tokens_a: Float[Array, "*b n 25 D"],
      voice_b: Float[Array, "*b n 25 D"],
      motion_b: Float[Array, "*b n 25 56"],
      seen: Bool[Array, "..."],
      present: Bool[Array, "n 25"],
      deterministic: bool,
  ) -> Float[Array, "*b n 25 D"]:
    """z of each frame of B; of its normalised motion those frames are seen that are `seen`."""
    tokens_b = jnp.where(seen[..., None], self._embed_motion(motion_b), self.mask_token.astype(voice_b.dtype))
    streams = (voice_a + tokens_a, voice_b + tokens_b) if self.joined else (voice_a, tokens_a, voice_b, tokens_b)
    return self.encoder(jnp.stack(streams, axis=-3), present, deterministic=deterministic)

  def _denoise(
      self, z: Float[Array, "*b 25 D"], key: jax.Array | None, numbers: Int[Array, "25"]
  ) -> Float[Array, "*b 25 56"]:
    """Normalised motion of the frames with these numbers."""
    if self.head == "regression":
      return self._regress(z)
    diffusion = make_diffusion(spread_times(self.sampling_steps))
    noise = draw_noise(key, numbers, (self.sampling_steps + 1, *z.shape[:-2]), MOTION_DIM)
    motion = noise[-1]
    for step in reversed(range(self.sampling_steps)):
      clean, variance = self.denoiser(motion, z, jnp.full(z.shape[:-1], diffusion.times[step]))
      log_variance = diffusion.log_variance(variance, step) if self.learned_variance else None
      motion = diffusion.step_back(motion, clean, self.temperature * noise[step], step, log_variance)
    return motion

  def _regress(self, z: Float[Array, "*b T D"]) -> Float[Array, "*b T 56"]:
    # As the diffusion's first step, in which nothing of x_0 is left in x_k.
    start = jnp.broadcast_to(self.start, (*z.shape[:-1], MOTION_DIM))
    clean, _ = self.denoiser(start, z, jnp.full(z.shape[:-1], TIMES - 1))
    return clean


def to_turns(x: Shaped[Array, "*b T D"], turns: int) -> Shaped[Array, "*b n 25 D"]:
  """x by so many turns, filled up with zeros."""
  padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, turns * TURN - x.shape[-2]), (0, 0)])
  return padded.reshape(*x.shape[:-2], turns, TURN, x.shape[-1])


def draw_masks(key: jax.Array, windows: int, frames: int, low: float) -> Bool[Array, "B T"]:
  """Which frames are masked: of each window the same share, which is drawn from a normal cut to [low, 1]."""
  share_key, place_key = jax.random.split(key)
  share = 1 + _MASK_DEVIATION * jax.random.truncated_normal(share_key, (low - 1) / _MASK_DEVIATION, 0.0)
  order = jnp.argsort(jnp.argsort(jax.random.uniform(place_key, (windows, frames))))
  return order < jnp.round(share * frames)


def _group_errors(
    target: Float[Array, "*b B T 56"], predicted: Float[Array, "*b B T 56"], masked: Bool[Array, "B T"]
) -> dict[str, Float[Array, ""]]:
  errors = jnp.square(predicted - target)
  return {name: _masked_mean(errors[..., group], masked) for name, group in MOTION_GROUPS.items()}


def _masked_mean(x: Float[Array, "*b B T D"], masked: Bool[Array, "B T"]) -> Float[Array, ""]:
  means = jnp.mean(x, axis=(*range(x.ndim - 3), -1))
  return jnp.sum(jnp.where(masked, means, 0)) / jnp.maximum(jnp.sum(masked), 1)


class TurnEncoder(nn.Module):
  """The Transformer over turns: tokens of one turn see those of the same and of earlier turns.

  Attributes:
    features, layers, heads, mlp_ratio, dropout: see `Timar`.
    context: turns that there are positions for.
    streams: tokens of a frame; the last one's output is returned.
  """

  features: int
  layers: int
  heads: int
  mlp_ratio: int
  context: int
  streams: int
  dropout: float
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, tokens: Float[Array, "*b n S 25 D"], present: Bool[Array, "n 25"], *, deterministic: bool
  ) -> Float[Array, "*b n 25 D"]:
    turns, streams = tokens.shape[-4], self.streams
    learned = nn.initializers.normal(0.02)
    # Start and end of the turn, and of each of its streams.
    separators = self.param("separators", learned, (2 * (streams + 1), self.features)).astype(self.dtype)
    around = lambda name: jnp.broadcast_to(name, (*tokens.shape[:-2], 1, self.features))
    x = jnp.concatenate([around(separators[2::2, None]), tokens, around(separators[3::2, None])], axis=-2)
    x = x.reshape(*x.shape[:-3], -1, self.features)
    ends = [jnp.broadcast_to(separators[i], (*x.shape[:-2], 1, self.features)) for i in (0, 1)]
    x = jnp.concatenate([ends[0], x, ends[1]], axis=-2)
    length = x.shape[-2]  # Of a turn.

    # Separators are there in every turn, frames where the clip has them.
    exists = jnp.pad(jnp.broadcast_to(present[:, None], (turns, streams, TURN)), ((0, 0), (0, 0), (1, 1)), constant_values=True)
    exists = jnp.pad(exists.reshape(turns, -1), ((0, 0), (1, 1)), constant_values=True).reshape(-1)
    number = np.arange(turns * length) // length
    mask = (number[None] <= number[:, None]) & exists

    positions = [self.param(name, learned, (self.context * length, self.features)) for name in ("positions", "out_positions")]
    x = x.reshape(*x.shape[:-3], turns * length, self.features)
    norm = lambda name: nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name=name)
    drop = nn.Dropout(self.dropout, deterministic=deterministic)
    x = norm("norm")(x + positions[0][: turns * length].astype(self.dtype))
    for i in range(self.layers):
      normed = norm(f"attention_norm_{i}")(x)
      attention = nn.MultiHeadDotProductAttention(
          self.heads, dtype=self.dtype, dropout_rate=self.dropout, deterministic=deterministic, name=f"attention_{i}"
      )
      x += drop(attention(normed, mask=mask[None]))
      mlp = FeedForward(self.features, self.mlp_ratio * self.features, self.dtype, name=f"mlp_{i}")
      x += drop(mlp(norm(f"mlp_norm_{i}")(x)))
    x = norm("out_norm")(x) + positions[1][: turns * length].astype(self.dtype)
    x = x.reshape(*x.shape[:-2], turns, length, self.features)
    return x[..., -2 - TURN : -2, :]  # Behind the last stream stand its end and the turn's.


class FrameDenoiser(nn.Module):
  """The diffusion head: an MLP on single frames whose norms follow the condition (adaLN-zero).

  Attributes:
    features: width of its residual blocks.
    layers: how many there are.
  """

  features: int
  layers: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, noisy: Float[Array, "*b D"], z: Float[Array, "*c C"], time: Int[Array, "*b"]
  ) -> tuple[Float[Array, "*b D"], Float[Array, "*b D"]]:
    """The clean motion, and where its variance lies between β̃ and β (`Diffusion.log_variance`).

    Args:
      noisy: normalised motion x_k.
      z: condition, of a shape that broadcasts against it.
      time: of the schedule.
    """
    dense = lambda features, name: nn.Dense(features, dtype=self.dtype, name=name)
    zero = lambda features, name: nn.Dense(features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name=name)
    embedded = dense(self.features, "time_out")(nn.silu(dense(self.features, "time_hidden")(encode_time(time, _TIME_FEATURES))))
    condition = nn.silu(embedded + dense(self.features, "condition")(z))
    x = dense(self.features, "in")(noisy)
    for i in range(self.layers):
      shift, scale, gate = jnp.split(zero(3 * self.features, f"modulation_{i}")(condition), 3, axis=-1)
      h = nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name=f"norm_{i}")(x) * (1 + scale) + shift
      x += gate * dense(self.features, f"out_{i}")(nn.silu(dense(self.features, f"hidden_{i}")(h)))
    shift, scale = jnp.split(zero(2 * self.features, "modulation")(condition), 2, axis=-1)
    x = nn.LayerNorm(epsilon=_EPSILON, use_scale=False, use_bias=False, dtype=self.dtype, name="norm")(x) * (1 + scale) + shift
    out = nn.Dense(2 * MOTION_DIM, kernel_init=nn.initializers.zeros, name="out")(x.astype(jnp.float32))
    return out[..., :MOTION_DIM], out[..., MOTION_DIM:]
