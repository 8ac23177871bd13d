"""Diffusion: the schedule, the posterior and the variational bound against numpy, sampling against a Gaussian known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsatalker_jax.baselines.motion import diffusion

# Of a process over five times: these, by hand.
FIVE = (0, 250, 500, 749, 999)


def closed_form(time):
  """ᾱ of the cosine schedule by time, but at its end, where β is bounded."""
  level = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
  return level((time + 1) / 1000) / level(0.0)


def tables(times):
  """ᾱ, β, α of a process over some times."""
  left = diffusion.cosine_schedule()[list(times)]
  before = np.array([1.0, *left[:-1]])
  return left, before, 1 - left / before


def test_the_schedule_is_the_cosine_and_its_last_beta_is_bounded():
  left = diffusion.cosine_schedule()
  np.testing.assert_allclose(left[:-1], closed_form(np.arange(999)), rtol=1e-9)
  np.testing.assert_allclose(left[-1] / left[-2], 0.001, rtol=1e-6)
  assert left.shape == (1000,) and left[0] > 0.9999 and np.all(np.diff(left) < 0)


def test_times_that_are_used():
  assert diffusion.spread_times(5) == FIVE and diffusion.spread_times(1000) == tuple(range(1000))
  assert diffusion.trailing_times(4) == (249, 499, 749, 999)
  sixteen = diffusion.trailing_times(16)
  assert sixteen[1::2] == diffusion.trailing_times(8) and sixteen[7::8] == diffusion.trailing_times(2)


@pytest.mark.parametrize("times", [range(1000), FIVE])
def test_a_noised_motion_has_the_share_of_its_time(times):
  process = diffusion.make_diffusion(times)
  clean, noise = np.array([[2.0, -1.0]]), np.array([[0.5, 3.0]])
  step = np.array([len(times) - 2])
  left = diffusion.cosine_schedule()[times[-2]]
  np.testing.assert_allclose(
      process.add_noise(clean, noise, step), np.sqrt(left) * clean + np.sqrt(1 - left) * noise, rtol=2e-5
  )
  np.testing.assert_array_equal(process.times, list(times))


@pytest.mark.parametrize("times", [range(1000), FIVE])
def test_the_step_back_is_bayes_rule(times):
  """x_(k−1) given x_0 is N(√ᾱ' x_0, 1 − ᾱ'), x_k given it N(√α x_(k−1), β): the product of two Gaussians."""
  process = diffusion.make_diffusion(times)
  _, before, beta = tables(times)
  clean, noisy, noise = 0.7, -0.4, 1.3
  for k in (1, len(times) // 2, len(times) - 1):
    precision = 1 / (1 - before[k]) + (1 - beta[k]) / beta[k]
    mean = (np.sqrt(before[k]) * clean / (1 - before[k]) + np.sqrt(1 - beta[k]) * noisy / beta[k]) / precision
    step = lambda noise, *more: float(process.step_back(*(jnp.full((1, 1), x) for x in (noisy, clean, noise)), jnp.array([k]), *more)[0, 0])
    assert step(0.0) == pytest.approx(mean, rel=1e-3, abs=1e-5)
    assert step(noise) - step(0.0) == pytest.approx(noise / np.sqrt(precision), rel=2e-3)
    assert step(noise, jnp.full((1, 1), jnp.log(4.0))) - step(0.0) == pytest.approx(2 * noise, rel=1e-3)
  last = process.step_back(jnp.full((1, 1), noisy), jnp.full((1, 1), clean), jnp.ones((1, 1)), jnp.array([0]))
  np.testing.assert_allclose(last, clean, rtol=1e-6)  # The last step goes to x_0 and adds nothing.


def test_a_learned_variance_lies_between_the_posteriors_and_beta():
  process = diffusion.make_diffusion(FIVE)
  left, before, beta = tables(FIVE)
  posterior = beta * (1 - before) / (1 - left)
  posterior[0] = posterior[1]
  for k in range(5):
    low, middle, high = (float(process.log_variance(jnp.full((1, 1), v), jnp.array([k]))[0, 0]) for v in (-1.0, 0.0, 1.0))
    np.testing.assert_allclose(np.exp([low, high]), [posterior[k], beta[k]], rtol=1e-4)
    assert middle == pytest.approx((low + high) / 2, abs=1e-5)


def test_the_bound_is_the_divergence_of_two_gaussians_and_trains_the_variance_alone():
  process = diffusion.make_diffusion(FIVE)
  left, before, beta = tables(FIVE)
  clean, noisy, predicted, share = (np.full((1, 1), x) for x in (0.3, 1.1, -0.2, 0.4))
  for k in range(1, 5):
    weight = np.sqrt(before[k]) * beta[k] / (1 - left[k])
    low = beta[k] * (1 - before[k]) / (1 - left[k])
    variance = low ** (1 - 0.7) * beta[k] ** 0.7  # A share of 0.4 is 0.7 of the way.
    expected = 0.5 * (np.log(variance / low) + (low + (weight * (clean - predicted)) ** 2) / variance - 1) / np.log(2)
    found = process.variance_bound(*(jnp.asarray(x) for x in (clean, noisy, predicted, share)), jnp.array([k]))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
  bound = lambda predicted, share, k: process.variance_bound(clean, noisy, predicted, share, jnp.array([k])).sum()
  np.testing.assert_array_equal(jax.grad(bound, 0)(predicted, share, 2), 0)
  assert abs(jax.grad(bound, 1)(predicted, share, 2)).max() > 0.01
  assert bound(predicted, share, 0) == 0


def optimum(process, mean, variance, k, noisy):
  """E[x_0 | x_k] of a Gaussian x_0, and the variance of x_(k−1) given x_k."""
  signal, noise = process.signal[k + 1], process.noise[k + 1]
  total = signal**2 * variance + noise**2
  left = variance * noise**2 / total  # Var(x_0 | x_k)
  return mean + variance * signal / total * (noisy - signal * mean), np.exp(process.log_posterior[k]) + process.clean_weight[k] ** 2 * left


MEAN, DEVIATION = 1.5, 0.6


@pytest.mark.parametrize("times, learned", [(range(0, 1000, 5), False), (FIVE, True)])
def test_sampling_recovers_a_known_gaussian(times, learned):
  """With many steps by the posterior's variance; with five exactly, where the variance is what it should be."""
  process = diffusion.make_diffusion(times)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(40_000, 1)).astype(np.float32)
  for k in reversed(range(len(times))):
    clean, variance = optimum(process, MEAN, DEVIATION**2, k, np.asarray(x))
    x = process.step_back(x, clean, rng.normal(size=x.shape).astype(np.float32), k, np.full_like(x, np.log(variance)) if learned else None)
  # Five steps end with the mean at time 0, whose noise, of variance 4e-5, is all that is lost. 40,000 samples: 0.003.
  np.testing.assert_allclose([x.mean(), x.std()], [MEAN, DEVIATION], atol=0.015)


def test_jumps_without_noise_carry_a_gaussian_to_a_gaussian_and_back_to_their_prediction():
  process = diffusion.make_diffusion(range(9, 1000, 10))
  x = np.random.default_rng(0).normal(size=(40_000, 1)).astype(np.float32)
  for k in reversed(range(100)):
    clean, _ = optimum(process, MEAN, DEVIATION**2, k, np.asarray(x))
    x = process.jump(x, clean, k, k - 1)
  np.testing.assert_allclose([x.mean(), x.std()], [MEAN, DEVIATION], atol=0.02)

  noisy, clean = np.array([[0.3, -2.0]]), np.array([[1.0, 0.5]])
  for step, to in ((50, 20), (99, -1), (3, -1)):
    reached = process.jump(noisy, clean, step, to)
    expected = clean
    if to >= 0:  # The noise that x_k is taken to have, at the level of x_j.
      noise = (noisy - process.signal[step + 1] * clean) / process.noise[step + 1]
      expected = process.signal[to + 1] * clean + process.noise[to + 1] * noise
    np.testing.assert_allclose(reached, expected, rtol=1e-5)
    np.testing.assert_allclose(process.clean_of_jump(noisy, reached, step, to), clean, rtol=1e-4)


def test_noise_follows_a_frames_number_alone():
  draw = lambda frames, shape=(3,): diffusion.draw_noise(jax.random.key(0), jnp.arange(frames), shape, 2)
  short, long = draw(7), draw(12)
  assert long.shape == (3, 12, 2)
  np.testing.assert_array_equal(short, long[:, :7])
  np.testing.assert_array_equal(diffusion.draw_noise(jax.random.key(0), jnp.array([5]), (3,), 2), long[:, 5:6])
  many = draw(2000)
  np.testing.assert_allclose([many.mean(), many.std()], [0, 1], atol=0.03)
  assert np.abs(np.corrcoef(many[0].T)[0, 1]) < 0.1 and np.abs(np.corrcoef(many[0, 1:, 0], many[0, :-1, 0])[0, 1]) < 0.1


def test_times_are_told_by_sinusoids():
  encoded = diffusion.encode_time(jnp.array([0, 7, 300]), 6)
  frequencies = np.array([1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)])
  angles = np.array([0, 7, 300])[:, None] * frequencies
  np.testing.assert_allclose(encoded, np.concatenate([np.cos(angles), np.sin(angles)], axis=1), atol=1e-4)
