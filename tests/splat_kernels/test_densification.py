"""Growth against a plain loop, copies of MCMC by quadrature and by what is drawn, noise by its covariance."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.spatial.transform

from splat_kernels import Camera, Config, densification, rasterize
from splat_kernels.densification import add_frames, no_statistics


def make_params(count, seed=1):
  r = np.random.default_rng(seed)
  shapes = {"means": (3,), "quats": (4,), "log_scales": (3,), "opacity_logits": (), "colors": (3,)}
  return {name: jnp.array(r.normal(size=(count, *shape)), jnp.float32) for name, shape in shapes.items()}


def rotation_of(quat):
  return scipy.spatial.transform.Rotation.from_quat(np.asarray(quat), scalar_first=True).as_matrix()


# --- Growth.

grow = jax.jit(densification.grow)


def grow_by_loop(live, duplicated, split, priority):
  """Which slot is a copy of whom, and whose halves lie in which slots: one parent after the other."""
  source, halves = list(range(len(live))), []
  wanted = sorted((i for i in range(len(live)) if live[i] and (duplicated[i] or split[i])), key=lambda i: -priority[i])
  free = [i for i in range(len(live)) if not live[i]]
  for parent, slot in zip(wanted, free):
    source[slot] = parent
    if split[parent]:
      halves += [parent, slot]
  return source, halves


@pytest.mark.parametrize("seed", range(4))  # Of these two have more room than is wanted, two less.
def test_growth_is_that_of_a_plain_loop(seed):
  r = np.random.default_rng(seed)
  count = 30
  live = r.uniform(size=count) < (0.4 if seed < 2 else 0.8)
  duplicated, split = r.uniform(size=(2, count)) < 0.4
  priority = r.permutation(count).astype(np.float32)
  params = make_params(count)
  new, source, fresh = jax.device_get(
      grow(jax.random.key(seed), params, live, duplicated=duplicated, split=split, priority=priority)
  )
  expected, halves = grow_by_loop(live, duplicated, split, priority)
  np.testing.assert_array_equal(source, expected)
  born = np.flatnonzero(source != np.arange(count))
  assert 0 < len(halves) < 2 * len(born)
  np.testing.assert_array_equal(np.flatnonzero(fresh), sorted({*born, *halves}))
  others = np.setdiff1d(np.arange(count), halves)
  for name, old in jax.device_get(params).items():
    same = np.arange(count) if name not in ("means", "log_scales") else others
    np.testing.assert_array_equal(new[name][same], old[source][same], err_msg=name)
  np.testing.assert_allclose(new["log_scales"][halves], params["log_scales"][source[halves]] - math.log(1.6), rtol=1e-5)
  moved = new["means"][halves] - params["means"][source[halves]]
  assert len(np.unique(moved.round(6), axis=0)) == len(halves)  # Each half has drawn for itself.


def test_halves_of_a_split_follow_the_parents_distribution():
  count = 8000
  params = jax.tree.map(lambda x: jnp.repeat(x[:1], count, axis=0), make_params(1))
  params["log_scales"] = jnp.log(jnp.tile(jnp.array([0.9, 0.5, 0.2]), (count, 1)))
  live, all_of_them = jnp.arange(count) < count // 2, jnp.ones(count, bool)
  new, *_ = grow(
      jax.random.key(0), params, live, duplicated=~all_of_them, split=all_of_them, priority=jnp.zeros(count), shrink=2.0
  )
  rotation = rotation_of(params["quats"][0])
  wanted = rotation @ np.diag([0.81, 0.25, 0.04]) @ rotation.T
  for half in (live, ~live):
    offsets = np.asarray(new["means"] - params["means"])[np.asarray(half)]
    # Standard error of a variance is sqrt(2 / n): 2.2 % of at most 0.81; of a mean 0.9 / sqrt(n) = 0.014. Four of each.
    np.testing.assert_allclose(np.cov(offsets.T), wanted, atol=0.075)
    np.testing.assert_allclose(offsets.mean(0), 0, atol=0.06)
  np.testing.assert_allclose(np.exp(new["log_scales"]), np.tile([0.45, 0.25, 0.1], (count, 1)), rtol=1e-5)


def test_gradients_are_added_per_frame_in_device_coordinates():
  r = np.random.default_rng(0)
  gradients = r.normal(size=(2, 3, 2))
  radii = np.array([[3.0, 1, 2], [5, 2, 0]])
  gradients[1, 2] = 0  # Not visible in the second frame.
  gradients[0, 0] = 0  # Visible in the first, but behind others: counts.
  statistics = no_statistics(3)
  np.testing.assert_array_equal(statistics.mean_gradient, 0)
  for scale in (1, 0.5):
    statistics = add_frames(statistics, jnp.asarray(gradients), jnp.asarray(scale * radii), width=40, height=20)
  # x_ndc = 2 x / width - 1: d loss / d x_ndc is width / 2 as large; a frame's own loss is twice its share of the mean.
  lengths = 2 * np.sqrt((20 * gradients[..., 0]) ** 2 + (10 * gradients[..., 1]) ** 2)
  np.testing.assert_allclose(statistics.gradient, 2 * lengths.sum(0), rtol=1e-5)
  np.testing.assert_array_equal(statistics.seen, [4, 4, 2])
  np.testing.assert_array_equal(statistics.radius, [5, 2, 2])
  np.testing.assert_allclose(statistics.mean_gradient, 2 * lengths.sum(0) / [4, 4, 2], rtol=1e-5)


# --- Copies of MCMC.


def relocate_by_loop(opacity, ratio):
  """Eq. 9 as it is printed, in float64: opacity, and the factor of scales."""
  one = 1 - (1 - opacity) ** (1 / ratio)
  total = sum(
      math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * one ** (k + 1)
      for i in range(1, ratio + 1)
      for k in range(i)
  )
  return one, opacity / total


@pytest.mark.parametrize("opacity", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("ratio", [1, 2, 5, 51])
def test_copies_together_look_like_the_one(opacity, ratio):
  scales = np.float32([[0.3, 0.2, 0.7]])
  one, shared = densification.relocate(jnp.array([opacity]), jnp.array(scales), jnp.array([ratio]))
  one, growth = float(one[0]), np.asarray(shared)[0] / scales[0]
  # The series alternates in float32, with terms up to 10 times its sum.
  np.testing.assert_allclose([one, *growth], np.array(relocate_by_loop(opacity, ratio))[[0, 1, 1, 1]], rtol=2e-4)
  np.testing.assert_allclose(1 - (1 - one) ** ratio, opacity, rtol=1e-4)  # At the centre.
  # And over a line through it: the integral of the composited alpha is that of the one Gaussian's.
  width = float(growth[0])
  profile = lambda x: 1 - (1 - one * np.exp(-0.5 * (x / width) ** 2)) ** ratio
  area, _ = scipy.integrate.quad(profile, -10 * width, 10 * width)
  np.testing.assert_allclose(area, opacity * np.sqrt(2 * np.pi), rtol=2e-3)


def test_more_copies_than_the_table_has_count_as_its_last():
  given = jnp.array([0.7]), jnp.ones((1, 3))
  for many, most in zip(densification.relocate(*given, jnp.array([500])), densification.relocate(*given, jnp.array([51]))):
    np.testing.assert_array_equal(many, most)


def draw(params, live):
  camera = Camera(np.eye(4), np.array([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]), 64, 64)
  return rasterize(
      params["means"] * 0.7 + jnp.array([0, 0, 3.0]),
      params["quats"],
      jnp.exp(params["log_scales"]),
      jnp.where(live, jax.nn.sigmoid(params["opacity_logits"]), 0),
      jax.nn.sigmoid(params["colors"]),
      camera,
      config=Config(max_intersections=1024, with_depth=False),
  ).image


def test_refilling_leaves_the_image_as_it_was():
  count = 60
  params = make_params(count)
  params["log_scales"] = 0.2 * params["log_scales"] + math.log(0.3)  # 6 pixels; distinct ones' depths do not tie.
  params["opacity_logits"] = jnp.where(jnp.arange(count) % 3 == 2, -9.0, params["opacity_logits"])
  live = jnp.arange(count) < 48
  opacities = jax.nn.sigmoid(params["opacity_logits"])
  filled = ~live | (opacities < 0.005)
  weights = jnp.where(filled, 0.5, opacities)  # What is filled is not drawn, whatever its weight.
  new, source, fresh = jax.jit(densification.refill)(jax.random.key(0), params, filled, weights)
  assert not np.any(filled[source]) and np.all(live[source])
  np.testing.assert_array_equal(source[~filled], np.flatnonzero(~filled))
  drawn = np.isin(np.arange(count), source[filled])
  np.testing.assert_array_equal(fresh, filled | drawn)
  assert drawn.sum() < filled.sum()  # Some have several copies.
  for name, old in params.items():
    whole = np.ones(count, bool) if name not in ("log_scales", "opacity_logits") else ~np.asarray(fresh)
    np.testing.assert_array_equal(new[name][whole], old[source][whole], err_msg=name)

  before = draw(params, live)
  copies = jax.tree.map(lambda a: a[source], params)
  change, naive = (float(jnp.mean(jnp.abs(draw(p, live[source]) - before))) for p in (new, copies))
  # Tails of Gaussians with several copies are another shape than their own; without Eq. 9 they are opaquer by far.
  assert change < 0.012 and naive > 0.05


def test_nothing_to_draw_from_leaves_all_as_it_is():
  params = make_params(5)
  new, source, fresh = densification.refill(jax.random.key(0), params, jnp.array([True] * 3 + [False] * 2), jnp.zeros(5))
  jax.tree.map(np.testing.assert_array_equal, new, params)
  np.testing.assert_array_equal(source, np.arange(5))
  assert not fresh.any()


MANY = 150_000


def test_draws_have_their_probabilities_among_very_many():
  # Half of them faint, so that in float32 each is below the rounding of a cumulative sum over the others.
  r = np.random.default_rng(0)
  weights = np.where(r.uniform(size=MANY) < 0.5, r.uniform(0.005, 0.02, MANY), r.uniform(0.5, 1, MANY)).astype(np.float32)
  weights[r.uniform(size=MANY) < 0.2] = 0
  weights[[0, -1]] = 0
  rounds = 40
  draw = jax.jit(jax.vmap(functools.partial(densification.draw_indices, count=MANY), in_axes=(0, None)))
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
  drawn = densification.draw_indices(jax.random.key(0), jnp.array(weights), 100)
  np.testing.assert_array_equal(drawn, np.argmax(weights))


def test_draws_on_a_boundary_go_to_the_one_that_begins_there(monkeypatch):
  ends = np.array([0, 2**30 - 1, 2**30, 2**31 - 1], np.uint32)

  def draw_ends(key, shape, low, high, dtype):
    assert (low, high, dtype) == (ends[0], ends[-1] + 1, jnp.uint32)
    return ends

  monkeypatch.setattr(jax.random, "randint", draw_ends)
  np.testing.assert_array_equal(densification.draw_indices(None, jnp.array([0, 0.5, 0, 0.5, 0]), 4), [1, 1, 3, 3])


def test_noise_has_the_gaussians_shape_and_spares_opaque_ones():
  count = 4000
  params = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), make_params(1))
  scales = jnp.exp(params["log_scales"])
  inject = functools.partial(densification.inject_noise, jax.random.key(0), params["means"], params["quats"], scales)
  noise = np.asarray(inject(jnp.full(count, 1e-4), 2.0) - params["means"])
  rotation = rotation_of(params["quats"][0])
  covariance = rotation @ np.diag(np.asarray(scales[0]) ** 2) @ rotation.T
  gate = 1 / (1 + np.exp(-100 * (0.005 - 1e-4)))
  wanted = (2 * gate) ** 2 * covariance @ covariance.T  # The noise is the covariance times white noise.
  np.testing.assert_allclose(np.cov(noise.T), wanted, atol=4 * np.sqrt(2 / count) * wanted.max())
  np.testing.assert_array_equal(inject(jnp.full(count, 0.5), 2.0), params["means"])


def test_vectors_are_turned_as_scipy_turns_them():
  r = np.random.default_rng(0)
  quats, x = r.normal(size=(20, 4)), r.normal(size=(20, 3))
  turned = densification.rotate_by_quaternion(jnp.array(quats), jnp.array(x))
  np.testing.assert_allclose(turned, np.einsum("nij,nj->ni", rotation_of(quats), x), atol=1e-5)
