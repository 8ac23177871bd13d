"""Relocation fills what is transparent or free, on the triangle of the one that is copied, and leaves faces their last."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

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
