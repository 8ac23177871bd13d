"""Bootstrap intervals against closed forms: the normal's for means of independent values, an AR(1)'s for a film's."""

import numpy as np
import pytest
import scipy.stats

from rsatalker_jax.evaluation.bootstrap import block_bootstrap, paired_bootstrap


def test_interval_of_a_mean_is_the_normals():
  differences = 0.3 + 2 * np.random.default_rng(0).normal(size=400)
  mean, low, high = paired_bootstrap(differences, draws=4000)
  assert mean == pytest.approx(differences.mean())
  expected = scipy.stats.norm.interval(0.95, differences.mean(), differences.std() / 20)
  np.testing.assert_allclose([low, high], expected, atol=0.02)  # Quantiles of 4000 draws: 0.005 of spread 0.2.
  _, low, high = block_bootstrap(differences, block=1, draws=4000)
  np.testing.assert_allclose([low, high], expected, atol=0.02)


def test_the_seed_decides():
  differences = np.random.default_rng(1).normal(size=30)
  assert paired_bootstrap(differences) == paired_bootstrap(differences) != paired_bootstrap(differences, seed=1)
  assert block_bootstrap(differences) == block_bootstrap(differences) != block_bootstrap(differences, seed=1)
  assert paired_bootstrap(np.full(5, 2.0)) == (2.0, 2.0, 2.0)


def test_blocks_keep_what_neighbours_share():
  """An AR(1) of 0.9 has a mean whose variance is (1 + 0.9) / (1 - 0.9) = 19 times that of independent values."""
  rng = np.random.default_rng(2)
  noise, film = rng.normal(size=20_000), np.zeros(20_000)
  for t in range(1, len(film)):
    film[t] = 0.9 * film[t - 1] + noise[t]
  width = lambda interval: interval[2] - interval[1]
  independent = width(paired_bootstrap(film, draws=1000))
  blocks = width(block_bootstrap(film, block=200, draws=1000))
  assert blocks / independent == pytest.approx(np.sqrt(19), rel=0.2)
  assert width(block_bootstrap(film, block=1, draws=1000)) == pytest.approx(independent, rel=0.1)
  mean, low, high = block_bootstrap(film, block=200)
  assert mean == film.mean() and low < mean < high


def test_blocks_are_successive_frames_and_as_many_as_the_film_has():
  # Sums over any two blocks of three and one of two, of powers of four: which frames were drawn is read off the digits.
  film = 4.0 ** np.arange(8)
  sums = []
  for seed in range(200):
    _, low, high = block_bootstrap(film, block=3, draws=1, seed=seed)
    assert low == high
    sums.append(low * 8)
  possible = {
      sum(film[s : s + n].sum() for s, n in zip(starts, (3, 3, 2)))
      for starts in np.ndindex(6, 6, 6)
  }
  assert {round(total) for total in sums} <= {round(total) for total in possible}
  assert max(sums) > 4.0**7 and min(sums) < 4.0**4  # The first and the last block are among them.
  whole = block_bootstrap(film, block=100)
  assert whole == pytest.approx((film.mean(),) * 3)


@pytest.mark.parametrize("resample", [paired_bootstrap, block_bootstrap])
def test_nothing_to_draw_from(resample):
  for differences in (np.zeros(1), np.array([1.0, np.nan, 2.0])):
    with pytest.raises(ValueError, match="at least two are wanted"):
      resample(differences)
