"""The socially-aware module: what its vectors look like at the start, and that time stays bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsatalker_jax.social import (
    RELATIONS,
    GaussianOffsetNet,
    MotionSocialNet,
    RelationEmbedding,
    orthogonality_penalty,
    parse_relation,
)
from rsatalker_jax.social.networks import encode_time

KEY = jax.random.key(0)
ALL = jnp.asarray(np.stack([parse_relation(name) for name in RELATIONS]))


def test_query_is_the_two_chosen_vectors():
  module = RelationEmbedding(8)
  params = module.init(KEY, ALL)
  query = module.apply(params, ALL)
  tables = params["params"]
  for relation, q in zip(ALL, query):
    np.testing.assert_array_equal(q, np.concatenate([tables["blood"][relation[0]], tables["equal"][relation[1]]]))
  assert len(np.unique(np.asarray(query), axis=0)) == 4
  # Any leading shape.
  np.testing.assert_array_equal(module.apply(params, ALL.reshape(2, 2, 2)), query.reshape(2, 2, 16))
  np.testing.assert_array_equal(module.apply(params, ALL[0]), query[0])


def test_unknown_is_the_mean():
  module = RelationEmbedding(8)
  params = module.init(KEY, ALL)
  unknown = module.apply(params, jnp.array([-1, -1]))
  np.testing.assert_allclose(unknown, module.apply(params, ALL).mean(axis=0), atol=1e-7)


def test_vectors_start_orthonormal_and_the_penalty_keeps_them_so():
  tables = RelationEmbedding(16).init(KEY, ALL)["params"]
  for table in tables.values():
    np.testing.assert_allclose(table @ table.T, np.eye(2), atol=1e-6)
  np.testing.assert_allclose(orthogonality_penalty(tables), 0.0, atol=1e-10)
  # Closed form: two vectors at 60 degrees in one table, parallel of different length in the other.
  skewed = {"blood": jnp.array([[1.0, 0.0], [1.0, 3**0.5]]), "equal": jnp.array([[1.0, 2.0], [2.0, 4.0]])}
  np.testing.assert_allclose(orthogonality_penalty(skewed), 0.25 + 1.0, rtol=1e-5)
  step = jax.tree.map(lambda t, g: t - 0.1 * g, skewed, jax.grad(orthogonality_penalty)(skewed))
  assert orthogonality_penalty(step) < 1.25


def test_motion_socialnet_has_two_layers():
  params = MotionSocialNet(features=6, hidden=5).init(KEY, jnp.zeros(4))["params"]
  assert {name: layer["kernel"].shape for name, layer in params.items()} == {"hidden": (4, 5), "out": (5, 6)}


@pytest.mark.parametrize("inputs", [("relation", "time"), ("relation",), ("motion", "time", "relation"), ("motion",)])
def test_offsets_start_at_zero_and_learn_what_they_are_told(inputs):
  module = GaussianOffsetNet(num_anchors=7, hidden=8, inputs=inputs)
  query, t = jax.random.normal(KEY, (2, 3, 4)), jnp.arange(6.0).reshape(2, 3)
  motion = jax.random.normal(jax.random.key(2), (2, 3, 56))
  params = module.init(KEY, query, t, motion)
  offsets = module.apply(params, query, t, motion)
  assert offsets.shape == (2, 3, 7, 3)
  np.testing.assert_array_equal(offsets, 0.0)
  # After a step of training they depend on these and on nothing else.
  target = jax.random.normal(jax.random.key(1), offsets.shape)
  for _ in range(2):
    grads = jax.grad(lambda p: jnp.mean((module.apply(p, query, t, motion) - target) ** 2))(params)
    params = jax.tree.map(lambda p, g: p - g, params, grads)
  moved = module.apply(params, query, t, motion)
  others = {"relation": (query + 1, t, motion), "time": (query, t + 5, motion), "motion": (query, t, motion + 1)}
  for name, other in others.items():
    assert np.allclose(moved, module.apply(params, *other), atol=0) == (name not in inputs), name


def test_offsets_without_motion_are_those_of_the_paper():
  """Eq. 8 by hand: two layers on [q, encoding of t]."""
  module = GaussianOffsetNet(num_anchors=2, hidden=8)
  query, t, motion = jax.random.normal(KEY, (3, 4)), jnp.arange(3.0), jnp.full((3, 56), np.nan)
  params = jax.tree.map(lambda x: x + 0.1, module.init(KEY, query, t, motion))
  layers = params["params"]
  hidden = jnp.concatenate([query, encode_time(t)], axis=-1) @ layers["hidden"]["kernel"] + layers["hidden"]["bias"]
  expected = jax.nn.gelu(hidden) @ layers["out"]["kernel"] + layers["out"]["bias"]
  np.testing.assert_allclose(module.apply(params, query, t, motion), expected.reshape(3, 2, 3), rtol=1e-5)


def test_time_encoding_is_bounded_and_periodic_for_hours():
  period = 25 * 32.0  # The longest period, 32 s, is a multiple of the others.
  t = jnp.arange(800.0)
  encoded = encode_time(t)
  assert float(jnp.abs(encoded).max()) <= 1.0
  np.testing.assert_allclose(encode_time(t + 1000 * period), encoded, atol=1e-4)  # 8.9 hours later.
  assert len(np.unique(np.asarray(encoded).round(3), axis=0)) == 800  # Within a period every frame has its own.
