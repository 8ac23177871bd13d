"""FaceDiffuser (Stan et al. 2023), its form for blendshapes: a recurrent network that denoises the speaker's motion.

    x_0 = Linear(GRU(dropout(GRU(LayerNorm([B's voice; x_k; embedding of k])))))

                              published                                     here
    voice                     HuBERT, tuned, two features a frame           the harness's frozen features, `SpeechAdapter`, as a
                                                                            frame of log-mel hears no surroundings
    motion                    51 blendshapes                                56 z-scores
    embedding of k            one-hot of 1000, a layer, Mish                sinusoids, a layer, Mish: in a short training each of
                                                                            1000 rows would be met a few times
    steps when generating     all 1000                                      `sampling_steps`
    optimizer                 Adam 1e-4, a clip a step                      the harness's, windows

With `distilled_steps` the network is also told how far a step is to lead, and learns that one step is two of its own of half the
length: progressive distillation (Salimans & Ho 2022), 16 → 8 → 4 → 2. That stands in for DiffusionTalker (Chen et al. 2025),
whose code and details are not public; it is not that model, which has a personaliser and a student of its own. In place of a
student for each halving there is one network, teacher and student, the teacher without gradient (as Frans et al. 2025 have
it), so that a run is one stage.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rsatalker_jax.baselines.motion.diffusion import TIMES, draw_noise, encode_time, make_diffusion, trailing_times
from rsatalker_jax.baselines.motion.layers import make_speech_adapter
from rsatalker_jax.motion.generator import MotionConfig, normalization
from rsatalker_jax.motion.layers import FrameCount
from rsatalker_jax.types import MOTION_DIM

_LAYERS = 2
_TIME_FEATURES = 256


class FaceDiffuser(nn.Module):
  """FaceDiffuser on normalised motion; what it is given of A and of the relation it does not look at. Frame t of the output
  depends on B's voice up to t and what the speech adapter hears ahead, nothing if `causal`.

  Attributes:
    config: of it `dtype` and `causal` are looked at.
    features: width of the GRUs.
    speech_features: width of the adapted voice.
    speech_layers, speech_kernel, speech_hidden: of the speech adapter (`MotionConfig`).
    dropout: between the GRUs.
    sampling_steps: from noise to motion; with distillation those of the first teacher.
    distilled_steps: steps when generating, `sampling_steps` halved some times; 0 for no distillation. They are then taken
      without new noise (DDIM), as distillation wants it.
    average: decay of the moving average of the parameters.
  """

  config: MotionConfig
  features: int
  speech_features: int
  speech_layers: int
  speech_kernel: int
  speech_hidden: int
  dropout: float
  sampling_steps: int
  distilled_steps: int
  average: float

  causal_form = True
  samples = True

  def setup(self):
    c = self.config
    self.motion_mean, self.motion_std = normalization(self)
    sizes = self.speech_layers, self.speech_kernel, self.speech_hidden
    self.speech_adapter = make_speech_adapter(c, self.speech_features, *sizes)
    self.time_embedding = nn.Dense(_TIME_FEATURES, dtype=c.dtype)
    if self.halvings:
      self.length_embedding = nn.Embed(self.halvings + 1, _TIME_FEATURES, dtype=c.dtype)
    self.norm = nn.LayerNorm(dtype=c.dtype)
    self.recurrent = [Gru(self.features, c.dtype) for _ in range(_LAYERS)]
    self.drop = nn.Dropout(self.dropout)
    self.out = nn.Dense(MOTION_DIM)

  @property
  def halvings(self) -> int:
    """How often the number of steps is halved."""
    return (self.sampling_steps // self.distilled_steps).bit_length() - 1 if self.distilled_steps else 0

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
    """Generates B's motion of B's voice; arguments as `MotionGenerator`'s, the others are not looked at."""
    del speech_a, motion_a, social
    voice = self.speech_adapter(speech_b, num_frames=num_frames)
    diffusion = make_diffusion(trailing_times(self.sampling_steps))
    stride = self.sampling_steps // (self.distilled_steps or self.sampling_steps)
    key, frames = self.make_rng("sample"), jnp.arange(voice.shape[-2])
    noise_of = lambda step: draw_noise(jax.random.fold_in(key, step), frames, voice.shape[:-2], MOTION_DIM)

    def advance(self, motion, step):
      everywhere = jnp.broadcast_to(step, motion.shape[:-2])
      clean = self._denoise(voice, motion, self._times()[everywhere], self.halvings, deterministic)
      if self.halvings:
        return diffusion.jump(motion, clean, step, step - stride), None
      return diffusion.step_back(motion, clean, noise_of(step), step), None

    steps = jnp.arange(self.sampling_steps - 1, -1, -stride)
    run = nn.scan(advance, variable_broadcast=("params", "statistics"), split_rngs={"params": False, "dropout": True})
    motion, _ = run(self, noise_of(self.sampling_steps), steps)
    return self.motion_mean + self.motion_std * motion

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
    """The loss by terms: the squared error of x_0 in z-scores at one time a window; with distillation also that of a step
    against two steps of half its length, of which longer ones join as training goes on."""
    del speech_a, motion_a, social
    batch, batches = motion_b.shape[0], 2 if self.halvings else 1
    target = (motion_b - self.motion_mean) / self.motion_std
    voice = self.speech_adapter(speech_b)
    time_key, noise_key, level_key, place_key = jax.random.split(self.make_rng("sample"), 4)
    noise = jax.random.normal(noise_key, (batches, *target.shape))
    time = jax.random.randint(time_key, (batch,), 0, TIMES)
    noisy = make_diffusion().add_noise(target, noise[0], time[:, None])
    if not self.halvings:
      return {"diffusion": jnp.mean(jnp.square(self._denoise(voice, noisy, time, 0, False) - target))}

    # A step of 2^level of the teacher's, from one of the places where such a step begins.
    levels = jnp.minimum(1 + jnp.floor(progress * self.halvings).astype(jnp.int32), self.halvings)
    level = 1 + jax.random.randint(level_key, (batch,), 0, levels)
    stride = 2**level
    step = (1 + jax.random.randint(place_key, (batch,), 0, self.sampling_steps // stride)) * stride - 1
    far, wanted = self._step_twice(voice, target, noise[1], step, level)
    both = lambda x, y: jnp.concatenate([x, y])
    # One pass for both: a recurrence takes as long for twice the windows.
    clean = self._denoise(
        both(voice, voice), both(noisy, far), both(time, self._times()[step]), both(jnp.zeros_like(level), level), False
    )
    errors = jnp.mean(jnp.square(clean - both(target, wanted)).reshape(2, -1), axis=1)
    return {"diffusion": errors[0], "distillation": errors[1]}

  def _times(self) -> Int[Array, "n"]:
    """Of the steps when generating, of the first teacher's where there is distillation."""
    return jnp.asarray(trailing_times(self.sampling_steps))

  def _step_twice(
      self,
      voice: Float[Array, "B T D"],
      target: Float[Array, "B T 56"],
      noise: Float[Array, "B T 56"],
      step: Int[Array, "B"],
      level: Int[Array, "B"],
  ) -> tuple[Float[Array, "B T 56"], Float[Array, "B T 56"]]:
    """x_k, and the x_0 that leads in one step of 2^level to where two of half its length lead, by the network as it is."""
    diffusion = make_diffusion(trailing_times(self.sampling_steps))
    half = 2 ** (level - 1)
    start, middle, end = (x[:, None] for x in (step, step - half, step - 2 * half))
    far = diffusion.add_noise(target, noise, start)
    near = diffusion.jump(far, self._denoise(voice, far, self._times()[step], level - 1, True), start, middle)
    clean = self._denoise(voice, near, self._times()[step - half], level - 1, True)
    reached = diffusion.jump(near, clean, middle, end)
    return far, jax.lax.stop_gradient(diffusion.clean_of_jump(far, reached, start, end))

  def _denoise(
      self,
      voice: Float[Array, "*b T D"],
      noisy: Float[Array, "*b T 56"],
      time: Int[Array, "*b"],
      level: int | Int[Array, "*b"],
      deterministic: bool,
  ) -> Float[Array, "*b T 56"]:
    """x_0 of x_k at a time of the schedule, for steps of 2^level of the teacher's."""
    embedded = self.time_embedding(encode_time(time, _TIME_FEATURES))
    if self.halvings:
      embedded += self.length_embedding(jnp.broadcast_to(level, time.shape))
    embedded = _mish(embedded)[..., None, :]
    embedded = jnp.broadcast_to(embedded, (*noisy.shape[:-1], _TIME_FEATURES))
    x = self.norm(jnp.concatenate([voice, noisy, embedded], axis=-1))
    for i, layer in enumerate(self.recurrent):
      x = layer(self.drop(x, deterministic=deterministic) if i else x)
    return self.out(x.astype(jnp.float32))


def _mish(x: Float[Array, "..."]) -> Float[Array, "..."]:
  return x * jnp.tanh(jax.nn.softplus(x))


class Gru(nn.Module):
  """A gated recurrent unit forward in time, from zeros; PyTorch's equations.

  Flax's cell projects its input within the recurrence; here all frames' inputs are one product, which on a CPU is half of the
  time.
  """

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b T D"]) -> Float[Array, "*b T E"]:
    inputs = nn.Dense(3 * self.features, dtype=self.dtype, name="inputs")(x)
    orthogonal = nn.initializers.orthogonal(column_axis=-1)
    kernels = [self.param(name, orthogonal, (self.features, self.features)) for name in ("reset", "update", "new")]
    kernel = jnp.concatenate(kernels, axis=-1).astype(self.dtype)
    bias = self.param("new_bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)

    def advance(state, frame):
      reset, update, new = jnp.split(frame, 3, axis=-1)
      from_reset, from_update, from_new = jnp.split(state @ kernel, 3, axis=-1)
      reset, update = nn.sigmoid(reset + from_reset), nn.sigmoid(update + from_update)
      new = jnp.tanh(new + reset * (from_new + bias))
      state = (1 - update) * new + update * state
      return state, state

    start = jnp.zeros((*x.shape[:-2], self.features), self.dtype)
    # Unrolled, as DualTalk's LSTM is.
    _, states = jax.lax.scan(advance, start, jnp.moveaxis(inputs, -2, 0), unroll=10)
    return jnp.moveaxis(states, 0, -2)
