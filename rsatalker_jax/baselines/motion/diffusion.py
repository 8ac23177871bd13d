"""Diffusion of motion, as those baselines that sample have it: Nichol and Dhariwal's cosine schedule, predictions of the clean
motion x_0, and steps back from noise over all times of the schedule or over a few of them.

    x_k = √ᾱ_k x_0 + √(1 − ᾱ_k) ε        ᾱ_k = cos²(π/2 · ((k + 1)/K + 0.008)/1.008) up to a factor, β ≤ 0.999

A process over a few of K times is one whose ᾱ are those of these times; its β follow from them. "Step" below numbers the
times that are used, 0 … n − 1, least noise first; the network is told the time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

TIMES = 1000
# Numbers of steps, of a shape that broadcasts against a motion's without its last axis.
Step = int | Int[Array, "..."]
_LARGEST_BETA = 0.999


def cosine_schedule(times: int = TIMES) -> Float[np.ndarray, "K"]:
  """ᾱ of the cosine schedule: the share of the clean motion's variance that is left at each time."""
  level = lambda t: np.cos(np.pi / 2 * (t + 0.008) / 1.008) ** 2
  start = np.arange(times) / times
  betas = np.minimum(1 - level(start + 1 / times) / level(start), _LARGEST_BETA)
  return np.cumprod(1 - betas)


def spread_times(count: int) -> tuple[int, ...]:
  """`count` times from the least noise to the most, at equal distances: 0, 250, 500, 749, 999 for 5."""
  return tuple(int(t) for t in np.linspace(0, TIMES - 1, count).round())


def trailing_times(count: int) -> tuple[int, ...]:
  """The last time of each of `count` equal parts, so that those of half as many are every other one of these."""
  return tuple(int(t) - 1 for t in (np.arange(1, count + 1) * TIMES / count).round())


class Diffusion(NamedTuple):
  """A process over some times of the cosine schedule (`make_diffusion`).

  Attributes:
    times: of the schedule, by step.
    signal, noise: √ᾱ and √(1 − ᾱ), by the number of steps taken: the first entry, 1 and 0, is of clean motion.
    clean_weight, noisy_weight: by step, the posterior mean E[x_(k−1) | x_k, x_0] = clean_weight x_0 + noisy_weight x_k.
    log_posterior: log β̃ by step, the posterior's variance. That of the first is 0; it stands as the second's.
    log_beta: log β by step.
  """

  times: Int[np.ndarray, "n"]
  signal: Float[np.ndarray, "n1"]
  noise: Float[np.ndarray, "n1"]
  clean_weight: Float[np.ndarray, "n"]
  noisy_weight: Float[np.ndarray, "n"]
  log_posterior: Float[np.ndarray, "n"]
  log_beta: Float[np.ndarray, "n"]

  def add_noise(
      self, clean: Float[Array, "*b D"], noise: Float[Array, "*b D"], step: Step
  ) -> Float[Array, "*b D"]:
    """x_k of a clean motion."""
    return _at(self.signal, step + 1) * clean + _at(self.noise, step + 1) * noise

  def step_back(
      self,
      noisy: Float[Array, "*b D"],
      clean: Float[Array, "*b D"],
      noise: Float[Array, "*b D"],
      step: Step,
      log_variance: Float[Array, "*b D"] | None = None,
  ) -> Float[Array, "*b D"]:
    """A sample of x_(k−1) from x_k and the clean motion that is predicted; the last step, 0, gives the mean.

    Args:
      log_variance: of the sample; None for the posterior's, β̃.
    """
    mean = _at(self.clean_weight, step) * clean + _at(self.noisy_weight, step) * noisy
    deviation = jnp.exp(0.5 * (_at(self.log_posterior, step) if log_variance is None else log_variance))
    return mean + jnp.where(jnp.asarray(step)[..., None] > 0, deviation * noise, 0)

  def jump(
      self, noisy: Float[Array, "*b D"], clean: Float[Array, "*b D"], step: Step, to: Step
  ) -> Float[Array, "*b D"]:
    """From x_k on to x_j without new noise (DDIM; Song et al. 2021), j = −1 for clean motion."""
    share = _at(self.noise, to + 1) / _at(self.noise, step + 1)
    return _at(self.signal, to + 1) * clean + share * (noisy - _at(self.signal, step + 1) * clean)

  def clean_of_jump(
      self, noisy: Float[Array, "*b D"], after: Float[Array, "*b D"], step: Step, to: Step
  ) -> Float[Array, "*b D"]:
    """The clean motion with which `jump` leads from `noisy` to `after`."""
    share = _at(self.noise, to + 1) / _at(self.noise, step + 1)
    return (after - share * noisy) / (_at(self.signal, to + 1) - share * _at(self.signal, step + 1))

  def log_variance(self, share: Float[Array, "*b D"], step: Step) -> Float[Array, "*b D"]:
    """A learned variance: log β̃ where `share` is −1, log β where it is 1, in between linear in the logarithm."""
    low, high = _at(self.log_posterior, step), _at(self.log_beta, step)
    return low + (share + 1) / 2 * (high - low)

  def variance_bound(
      self,
      clean: Float[Array, "*b D"],
      noisy: Float[Array, "*b D"],
      predicted: Float[Array, "*b D"],
      share: Float[Array, "*b D"],
      step: Step,
  ) -> Float[Array, "*b D"]:
    """The variational bound's term of a step, in bits a value: KL of the posterior to a step back with a learned variance.

    0 at step 0, which is taken without noise. (Elsewhere the likelihood of pixels stands there.) Gradients reach `share`
    alone: means learn by their own error.
    """
    low, variance = _at(self.log_posterior, step), self.log_variance(share, step)
    # Both means have the same part in x_k.
    distance = jax.lax.stop_gradient(_at(self.clean_weight, step) * (clean - predicted))
    divergence = 0.5 * (variance - low + jnp.exp(low - variance) - 1 + distance**2 * jnp.exp(-variance))
    return jnp.where(jnp.asarray(step)[..., None] > 0, divergence / np.log(2), 0)


def make_diffusion(times: Sequence[int] = range(TIMES)) -> Diffusion:
  """The process over these times of the cosine schedule, which rise; over one time alone no step has noise."""
  left = cosine_schedule()[list(times)]
  before = np.concatenate([[1.0], left[:-1]])
  betas = 1 - left / before
  posterior = betas * (1 - before) / (1 - left)
  posterior[0] = posterior[min(1, len(posterior) - 1)] or betas[0]
  tables = dict(
      signal=np.sqrt(np.concatenate([[1.0], left])),
      noise=np.sqrt(1 - np.concatenate([[1.0], left])),
      clean_weight=betas * np.sqrt(before) / (1 - left),
      noisy_weight=(1 - before) * np.sqrt(1 - betas) / (1 - left),
      log_posterior=np.log(posterior),
      log_beta=np.log(betas),
  )
  return Diffusion(np.asarray(times, np.int32), **{name: table.astype(np.float32) for name, table in tables.items()})


def _at(table: np.ndarray, step: Step) -> Float[Array, "... 1"]:
  return jnp.asarray(table)[step][..., None]


def draw_noise(key: jax.Array, frames: Int[Array, "T"], shape: Sequence[int], features: int) -> Float[Array, "*b T D"]:
  """Noise of a motion, of which frame t's depends on the key and its number alone, not on how far a clip is padded.

  Args:
    frames: their numbers.
    shape: of what stands before the frames (*b).
  """
  draw = lambda frame: jax.random.normal(jax.random.fold_in(key, frame), (*shape, features))
  return jnp.moveaxis(jax.vmap(draw)(frames), 0, -2)


def encode_time(time: Int[Array, "..."], features: int) -> Float[Array, "... D"]:
  """Sinusoids of a time for a network, half cosines and half sines, with wavelengths of 2π to 10,000 · 2π."""
  frequencies = 10_000.0 ** (-np.arange(features // 2) / (features // 2))
  angles = jnp.asarray(time, jnp.float32)[..., None] * jnp.asarray(frequencies, jnp.float32)
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
