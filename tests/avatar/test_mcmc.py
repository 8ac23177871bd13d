"""Relocation keeps what is seen (checked by quadrature), fills what is transparent or free, and noise follows shapes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.spatial.transform

from rsatalker_jax.avatar import FREE, Gaussians, mcmc


CONFIG = mcmc.McmcConfig(
    start=0, stop=100, every=10, growth=1.05, min_opacity=0.005, noise=1.0, opacity_weight=0.01, scale_weight=0.01
)
relocate = jax.jit(mcmc.relocate, static_argnames=("num_faces", "config"))


def make_gaussians(opacity):
  r = np.random.default_rng(1)
  count = len(opacity)
  opacity = np.asarray(opacity)
  return Gaussians(
      means=jnp.array(r.normal(size=(count, 3)), jnp.float32),
      quats=jnp.array(r.normal(size=(count, 4)), jnp.float32),
      log_scales=jnp.array(np.log(r.uniform(0.2, 1, size=(count, 3))), jnp.float32),
      opacity_logits=jnp.array(np.log(opacity / (1 - opacity)), jnp.float32),
      sh=jnp.array(r.normal(size=(count, 1, 3)), jnp.float32),
  )


@pytest.mark.parametrize("copies", [1, 2, 5, 51])
@pytest.mark.parametrize("opacity", [0.02, 0.5, 0.95])
def test_copies_together_look_like_the_one(copies, opacity):
  shared = mcmc._share(make_gaussians([opacity]), jnp.array([copies]))
  one = float(jax.nn.sigmoid(shared.opacity_logits[0]))
  ratio = np.exp(np.asarray(shared.log_scales[0]) - np.asarray(make_gaussians([opacity]).log_scales[0]))
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
  np.testing.assert_allclose(1 - (1 - one) ** copies, opacity, rtol=1e-4)  # At the centre.
  # And over a line through it: the integral of the composited alpha is that of the one Gaussian's.
  width = float(ratio[0])
  profile = lambda x: 1 - (1 - one * np.exp(-0.5 * (x / width) ** 2)) ** copies
  area, _ = scipy.integrate.quad(profile, -10 * width, 10 * width)
  # The series alternates in float32, with terms up to 10 times its sum.
  np.testing.assert_allclose(area, opacity * np.sqrt(2 * np.pi), rtol=2e-3)


def test_transparent_ones_move_and_free_slots_fill_slowly():
  opacity = np.array([0.9, 0.001, 0.001, 0.8, 0.001, 0.5, 0.5, 0.5])
  gaussians = make_gaussians(opacity)
  binding = np.array([0, 0, 1, 1, 2, FREE, FREE, FREE])  # 4 is its face's last.
  config = dataclasses.replace(CONFIG, growth=1.2)
  change = jax.device_get(relocate(gaussians, jnp.array(binding), 3, jax.random.key(0), config))
  assert {n: int(c) for n, c in change.counts.items()} == {"moved": 2, "born": 1, "live": 6}  # 5 * 0.2 are born.
  np.testing.assert_array_equal(change.binding[[4, 6, 7]], [2, FREE, FREE])
  for slot in (1, 2, 5):  # Each lies on one of the two opaque ones, on its triangle, with its colour.
    source = next(i for i in (0, 3) if np.array_equal(change.gaussians.means[slot], gaussians.means[i]))
    assert change.binding[slot] == binding[source]
    np.testing.assert_array_equal(change.gaussians.sh[slot], gaussians.sh[source])
    assert change.gaussians.opacity_logits[slot] == change.gaussians.opacity_logits[source]
    assert change.fresh[slot] and change.fresh[source]
  assert not change.fresh[[4, 6, 7]].any()


def test_more_opaque_ones_are_drawn_more_often():
  count = 3000
  opacity = np.concatenate([[0.9, 0.3], np.full(count - 2, 0.001)])
  binding = np.zeros(count, int)
  change = relocate(make_gaussians(opacity), jnp.array(binding), 1, jax.random.key(3), CONFIG)
  at_first = np.sum(np.all(np.asarray(change.gaussians.means) == np.asarray(change.gaussians.means[0]), axis=1)) - 1
  # Binomial with p = 3/4: standard deviation sqrt(n p q) = 24. Four of them.
  assert abs(at_first - 0.75 * (count - 2)) < 100


MANY = 150_000  # The capacity of configs/rsatalker.py.


def test_draws_have_their_probabilities_among_very_many():
  # Half of them faint, so that in float32 each is below the rounding of a cumulative sum over the others.
  r = np.random.default_rng(0)
  weights = np.where(r.uniform(size=MANY) < 0.5, r.uniform(0.005, 0.02, MANY), r.uniform(0.5, 1, MANY)).astype(np.float32)
  weights[r.uniform(size=MANY) < 0.2] = 0
  weights[[0, -1]] = 0
  rounds = 40
  draw = jax.jit(jax.vmap(functools.partial(mcmc.draw_indices, count=MANY), in_axes=(0, None)))
  drawn = np.asarray(draw(jax.random.split(jax.random.key(0), rounds), jnp.array(weights)))
  counts = np.bincount(drawn.ravel(), minlength=MANY)
  assert counts.sum() == rounds * MANY and not counts[weights == 0].any()
  expected = rounds * MANY * weights.astype(np.float64) / weights.sum(dtype=np.float64)
  assert counts[weights > 0.5].all()  # Expected 50 times and more each.
  # Sums over 100 neighbours of a kind, each with a standard deviation of about its root; thousands of groups.
  for kind in (weights > 0.4, (weights > 0) & (weights < 0.1)):
    groups = np.flatnonzero(kind)[: np.count_nonzero(kind) // 100 * 100].reshape(-1, 100)
    deviations = (counts[groups].sum(1) - expected[groups].sum(1)) / np.sqrt(expected[groups].sum(1))
    assert abs(deviations.mean()) < 5 / np.sqrt(len(groups)) and 0.85 < deviations.std() < 1.15
  # And one by one: chi-square per degree of freedom is 1 within sqrt(2 / n).
  live = weights > 0.4
  chi = np.mean((counts[live] - expected[live]) ** 2 / expected[live])
  assert abs(chi - 1) < 6 * np.sqrt(2 / live.sum())


@pytest.mark.parametrize("weights", [[0.0, 0, 0.3, 0], [1e-30, 0, 0, 0], [0, 0, 0, 1.0]])
def test_the_only_one_with_a_chance_is_always_drawn(weights):
  drawn = mcmc.draw_indices(jax.random.key(0), jnp.array(weights), 100)
  np.testing.assert_array_equal(drawn, np.argmax(weights))


def test_draws_on_a_boundary_go_to_the_one_that_begins_there(monkeypatch):
  ends = np.array([0, 2**30 - 1, 2**30, 2**31 - 1], np.uint32)

  def draw_ends(key, shape, low, high, dtype):
    assert (low, high, dtype) == (ends[0], ends[-1] + 1, jnp.uint32)
    return ends

  monkeypatch.setattr(jax.random, "randint", draw_ends)
  np.testing.assert_array_equal(mcmc.draw_indices(None, jnp.array([0, 0.5, 0, 0.5, 0]), 4), [1, 1, 3, 3])


def test_with_nothing_to_move_to_all_stays():
  gaussians, free = make_gaussians([0.5, 0.001, 0.9]), jnp.full(3, FREE)
  change = relocate(gaussians, free, 1, jax.random.key(0), CONFIG)
  assert {n: int(c) for n, c in change.counts.items()} == {"moved": 0, "born": 0, "live": 0}
  np.testing.assert_array_equal(change.binding, free)
  # All so faint that their opacity is 0 in float32.
  faint = gaussians.replace(opacity_logits=jnp.full(3, -200.0))
  change = relocate(faint, jnp.zeros(3, int), 1, jax.random.key(0), CONFIG)
  assert {n: int(c) for n, c in change.counts.items()} == {"moved": 0, "born": 0, "live": 3}
  for given, after in ((gaussians, relocate(gaussians, free, 1, jax.random.key(0), CONFIG).gaussians), (faint, change.gaussians)):
    jax.tree.map(np.testing.assert_array_equal, after, given)
  assert not change.fresh.any()


def test_memory_grows_with_the_gaussians_and_not_with_their_square():
  array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  gaussians = Gaussians(array(MANY, 3), array(MANY, 4), array(MANY, 3), array(MANY), array(MANY, 16, 3))
  lowered = relocate.lower(
      gaussians, jax.ShapeDtypeStruct((MANY,), jnp.int32), 10_144, jax.eval_shape(lambda: jax.random.key(0)), CONFIG
  )
  assert lowered.compile().memory_analysis().temp_size_in_bytes < 0.2e9  # A table for all pairs has 90e9.


def test_noise_has_the_gaussians_shape_and_spares_opaque_ones():
  count = 4000
  gaussians = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), make_gaussians([1e-4]))
  noise = np.asarray(mcmc.position_noise(gaussians, jax.random.key(0), jnp.array(2.0)))
  w, x, y, z = np.asarray(gaussians.quats[0])
  rotation = scipy.spatial.transform.Rotation.from_quat([x, y, z, w]).as_matrix()
  covariance = rotation @ np.diag(np.exp(2 * np.asarray(gaussians.log_scales[0]))) @ rotation.T
  gate = 1 / (1 + np.exp(-100 * (0.005 - 1e-4)))
  wanted = (2 * gate) ** 2 * covariance @ covariance.T  # The noise is the covariance times white noise.
  np.testing.assert_allclose(np.cov(noise.T), wanted, atol=4 * np.sqrt(2 / count) * wanted.max())
  opaque = mcmc.position_noise(make_gaussians([0.5]), jax.random.key(0), jnp.array(2.0))
  assert np.abs(opaque).max() < 1e-12
