"""Adaptive density control against a plain numpy reading of its rules, on Gaussians whose fate is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.spatial.transform

from rsatalker_jax.avatar import FREE, Gaussians
from rsatalker_jax.avatar.density import (
    DensityConfig,
    densify_and_prune,
    forget_moments,
    reset_opacities,
    spare_last,
)
from splat_kernels.densification import ScreenStatistics

FACES = 4
CAPACITY = 12
CONFIG = DensityConfig(
    start=100,
    stop=400,
    every=50,
    gradient_threshold=1.0,
    absolute=False,
    dense_size=0.01,
    split_shrink=1.6,
    min_opacity=0.05,
    max_size=0.0,
    max_radius=0.0,
    reset_every=100,
    reset_opacity=0.01,
)
SIZES = jnp.array([0.005, 0.005, 0.02, 0.02])  # Metres: on the last two triangles, scale 1 is large.
logit = lambda p: float(np.log(p / (1 - p)))


def make_gaussians(seed=0, capacity=CAPACITY):
  r = np.random.default_rng(seed)
  quats = r.normal(size=(capacity, 4))
  return Gaussians(
      means=jnp.array(r.normal(size=(capacity, 3)), jnp.float32),
      quats=jnp.array(quats, jnp.float32),
      log_scales=jnp.array(np.log(r.uniform(0.8, 1, size=(capacity, 3))), jnp.float32),
      opacity_logits=jnp.full(capacity, logit(0.5)),
      sh=jnp.array(r.normal(size=(capacity, 1, 3)), jnp.float32),
  )


densify = jax.jit(densify_and_prune, static_argnames="config")


def act(gaussians, binding, gradient, seen=None, radius=None, seed=0, prune_large=True, config=CONFIG):
  count = len(binding)
  given = gradient, np.ones(count) if seen is None else seen, np.zeros(count) if radius is None else radius
  statistics = ScreenStatistics(*(jnp.asarray(x, jnp.float32) for x in given))
  binding = jnp.asarray(binding, jnp.int32)
  return jax.device_get(densify(gaussians, binding, statistics, SIZES, jax.random.key(seed), prune_large, config=config))


def test_small_are_cloned_large_are_split_and_copies_inherit_the_triangle():
  gaussians = make_gaussians()
  binding = np.array([0, 1, 2, 3, 1] + [FREE] * 7)
  gradient = np.array([0.5, 3.0, 2.0, 0.9, 1.5] + [9.0] * 7)  # What is kept of free slots must not matter.
  change = act(gaussians, binding, gradient)
  counts = {name: int(value) for name, value in change.counts.items()}
  assert counts == {"pruned": 0, "cloned": 2, "split": 1, "refused": 0, "live": 8}
  # Largest gradient first: 1 (cloned), 2 (split), 4 (cloned) into slots 5, 6, 7.
  np.testing.assert_array_equal(change.binding, [0, 1, 2, 3, 1, 1, 2, 1] + [FREE] * 4)
  np.testing.assert_array_equal(np.flatnonzero(change.fresh), [2, 5, 6, 7])
  untouched = [0, 1, 3, 4]
  before = jax.device_get(gaussians)
  for name in ("means", "quats", "log_scales", "opacity_logits", "sh"):
    old, new = getattr(before, name), getattr(change.gaussians, name)
    np.testing.assert_array_equal(new[untouched], old[untouched])
    np.testing.assert_array_equal(new[[5, 7]], old[[1, 4]])  # Clones are equal in everything.
    if name in ("quats", "opacity_logits", "sh"):
      np.testing.assert_array_equal(new[[2, 6]], old[[2, 2]])
  np.testing.assert_allclose(np.exp(change.gaussians.log_scales[[2, 6]]), np.exp(before.log_scales[[2, 2]]) / 1.6, rtol=1e-5)
  assert np.all(np.abs(change.gaussians.means[2] - change.gaussians.means[6]) > 1e-3)


def test_halves_of_a_split_follow_the_parents_distribution():
  capacity = 4000
  one = jax.tree.map(lambda x: jnp.repeat(x[2:3], capacity, axis=0), make_gaussians())
  one = one.replace(log_scales=jnp.log(jnp.tile(jnp.array([0.9, 0.5, 0.2]), (capacity, 1))))
  binding = np.array([2] * (capacity // 2) + [FREE] * (capacity // 2))
  change = act(one, binding, np.full(capacity, 2.0))
  assert int(change.counts["split"]) == capacity // 2
  w, x, y, z = np.asarray(one.quats[0])
  rotation = scipy.spatial.transform.Rotation.from_quat([x, y, z, w]).as_matrix()
  wanted = rotation @ np.diag([0.81, 0.25, 0.04]) @ rotation.T
  # Standard error of a variance is sqrt(2 / n): 2.2 % of at most 0.81; of a mean 0.9 / sqrt(n) = 0.014. Four of each.
  np.testing.assert_allclose(np.cov(change.gaussians.means.T), wanted, atol=0.075)
  np.testing.assert_allclose(change.gaussians.means.mean(0), one.means[0], atol=0.06)


def test_without_room_the_strongest_pulls_win_and_the_others_are_counted():
  binding = np.array([0, 1, 2, 3, 0, 0, 1, 1, 1, 1, FREE, FREE])
  gradient = np.array([2.0, 5, 1.1, 0, 4, 3, 0, 0, 0, 0, 0, 0])
  change = act(make_gaussians(), binding, gradient)
  assert int(change.counts["refused"]) == 3 and int(change.counts["live"]) == CAPACITY
  np.testing.assert_array_equal(change.binding[10:], [1, 0])  # Parents 1 and 4.


def test_a_mean_over_the_frames_that_saw_it_decides():
  binding = np.array([0, 1, 2, 3] + [FREE] * 8)
  change = act(make_gaussians(), binding, [10.0, 10, 0, 0] + [0] * 8, seen=[20, 5, 0, 0] + [0] * 8)
  np.testing.assert_array_equal(change.binding[4:], [1] + [FREE] * 7)


def test_faint_ones_are_pruned_but_no_face_loses_its_last():
  gaussians = make_gaussians()
  opacity = np.array([0.01, 0.02, 0.03, 0.5, 0.02, 0.5, 0.03, 0.01, 0.03, 0.5, 0.5, 0.5])
  gaussians = gaussians.replace(opacity_logits=jnp.log(opacity / (1 - opacity)))
  binding = np.array([0, 0, 1, 1, 2, 2, 3, 3, 3, FREE, FREE, FREE])
  gone = spare_last(jnp.array(opacity < 0.05), jnp.array(opacity), jnp.array(binding), FACES)
  # Face 0: all faint, the most opaque (1) stays. Face 3: 6 and 8 are equal, the first stays.
  np.testing.assert_array_equal(np.flatnonzero(gone), [0, 2, 4, 7, 8])
  change = act(gaussians, binding, np.full(CAPACITY, 5.0) * (np.arange(CAPACITY) == 0))
  # The pruned one with a large gradient does not grow.
  assert {n: int(c) for n, c in change.counts.items()} == {"pruned": 5, "cloned": 0, "split": 0, "refused": 0, "live": 4}
  assert set(change.binding[change.binding != FREE]) == set(range(FACES))
  np.testing.assert_array_equal(np.flatnonzero(change.fresh), [0, 2, 4, 7, 8])


def large_ones():
  """Gaussians on faces of 5 mm and 2 cm whose largest standard deviation is 0.1 units, but 3 of the third and two others."""
  gaussians = make_gaussians()
  scales = np.full((CAPACITY, 3), 0.1)
  scales[2, 1] = scales[4, 0] = scales[6, 2] = 3  # 0.06, 0.015 and 0.06 m.
  opacity = np.full(CAPACITY, 0.5)
  opacity[6] = 1.0  # More opaque than its triangle's other.
  binding = np.array([0, 1, 2, 3, 0, 2, 3] + [FREE] * 5)
  gaussians = gaussians.replace(log_scales=jnp.log(scales), opacity_logits=jax.scipy.special.logit(jnp.array(opacity)))
  return gaussians, binding


@pytest.mark.parametrize(("options", "prune_large", "pruned"), [
    (dict(max_size=0.05), True, [2, 6]),
    (dict(max_size=0.014), True, [2, 4, 6]),
    (dict(max_size=0.07), True, []),
    (dict(max_size=0.05), False, []),
    (dict(max_size=0.0), True, []),
    (dict(max_radius=20.0), True, [0, 3]),
    (dict(max_radius=20.0), False, []),
    (dict(max_size=0.05, max_radius=20.0), True, [0, 2, 3]),
])
def test_large_ones_are_pruned_where_the_config_says_so(options, prune_large, pruned):
  gaussians, binding = large_ones()
  # 1 is the last of its face; with 6 pruned as well, face 3 keeps the more opaque of the two.
  radius = np.array([21, 30, 20, 22, 5, 1, 2] + [99] * 5)
  config = dataclasses.replace(CONFIG, **options)
  change = act(gaussians, binding, np.zeros(CAPACITY), radius=radius, prune_large=prune_large, config=config)
  np.testing.assert_array_equal(np.flatnonzero((change.binding == FREE) & (binding != FREE)), pruned)
  assert int(change.counts["pruned"]) == len(pruned)


def test_reset_and_forgotten_moments():
  gaussians = make_gaussians()
  opacity = jax.nn.sigmoid(reset_opacities(gaussians.replace(opacity_logits=jnp.linspace(-8, 3, CAPACITY)), 0.01).opacity_logits)
  np.testing.assert_allclose(opacity, np.minimum(1 / (1 + np.exp(-np.linspace(-8, 3, CAPACITY))), 0.01), rtol=1e-4)
  optimizer = optax.adam(0.1)
  # The last is no attribute of Gaussians, though as long as they are.
  params = {"means": gaussians.means, "opacity_logits": gaussians.opacity_logits, "expression": jnp.ones((CAPACITY, 50))}
  _, state = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params))
  fresh = jnp.arange(CAPACITY) < 5
  for attributes, forgotten in (((), ["means", "opacity_logits"]), ((["opacity_logits"],), ["opacity_logits"])):
    after = forget_moments(state, fresh, *attributes)[0]
    assert int(after.count) == 1
    for before, moments in ((state[0].mu, after.mu), (state[0].nu, after.nu)):
      for name, value in moments.items():
        first = 5 if name in forgotten else 0
        assert not np.any(value[:first])
        np.testing.assert_array_equal(value[first:], before[name][first:])


@pytest.mark.parametrize(
    ("step", "acts", "resets"),
    [(50, False, False), (99, False, False), (100, False, True), (149, False, False), (150, True, False), (200, True, True),
     (350, True, False), (400, False, False), (450, False, False), (500, False, False)],
)
def test_when_it_acts(step, acts, resets):
  """3DGS: densify_from_iter < iteration < densify_until_iter; opacities are reset before densify_until_iter."""
  assert (CONFIG.acts_after(step), CONFIG.resets_after(step)) == (acts, resets)


def test_size_counts_from_the_first_reset_on():
  assert [CONFIG.prunes_large_after(step) for step in (50, 100, 101, 350)] == [False, False, True, True]
  assert dataclasses.replace(CONFIG, reset_every=0).prunes_large_after(1)
