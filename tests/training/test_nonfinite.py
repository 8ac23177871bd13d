"""Where numbers stop being finite: found by the line, not by the first infinite number that is masked away."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from rsatalker_jax import sharding
from rsatalker_jax.training.nonfinite import find_origins


def line_of(function, words):
  """`<file>:<line>` of the line of a function that has these words."""
  lines, first = inspect.getsourcelines(function)
  (number,) = [first + i for i, line in enumerate(lines) if words in line]
  return f"test_nonfinite.py:{number} "


def find(function, *arguments):
  """Operations and places; the only one."""
  (origin,) = find_origins(function, *arguments)
  return origin.operation, origin.place


def test_the_line_is_found_and_not_what_is_masked_away():
  def loss(x):
    masked = jnp.where(x > 0, jnp.log(x), 0.0)
    total = jnp.sum(masked)
    return total + jnp.sum(jnp.sqrt(x - 2.0)), total

  operation, place = find(loss, jnp.arange(4.0))
  assert operation == "sqrt" and line_of(loss, "jnp.sqrt") in place
  assert find_origins(loss, jnp.arange(2.0, 6.0)) == []


def test_of_a_gradient():
  """The classic: what was masked away comes back as 0 times infinity."""

  def loss(x):
    root = jnp.sqrt(x)
    return jnp.sum(jnp.where(x > 0, root, 0.0))

  assert find_origins(loss, jnp.arange(4.0)) == []
  operation, place = find(jax.grad(loss), jnp.arange(4.0))
  assert operation in ("div", "mul") and line_of(loss, "jnp.sqrt") in place


def test_an_argument():
  both = lambda tree: tree["a"] * 2 + tree["b"]
  assert find(both, {"a": jnp.array([1.0, jnp.inf]), "b": jnp.ones(2)}) == ("argument", "[0]['a']")
  # What does not reach the result is no fault.
  assert find_origins(lambda tree: tree["b"], {"a": jnp.array([1.0, jnp.inf]), "b": jnp.ones(2)}) == []


def test_a_function_that_jax_has_traced_for_another_line():
  @jax.jit
  def divide(x, y):
    return x / y

  def loss(x):
    good = divide(x, x + 1)
    bad = divide(x, x - x)
    return jnp.sum(good) + jnp.sum(bad)

  operation, place = find(loss, jnp.arange(1.0, 3.0))
  assert operation == "div" and line_of(loss, "bad = ") in place and line_of(loss, "good = ") not in place
  assert line_of(divide, "x / y") in place


@pytest.mark.parametrize("check_vma", [True, False])
def test_within_shard_map(check_vma):
  """One device's part is not finite."""
  mesh = sharding.make_mesh()

  def draw(x):
    large = jnp.exp(x * 100)
    return large * jax.lax.psum(x, "data")

  def loss(x):
    return jnp.sum(jax.shard_map(draw, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check_vma)(x))

  with jax.set_mesh(mesh):
    for function in (loss, jax.grad(loss)):
      operation, place = find(function, jnp.array([0.0, 0.5, 0.1, 2.0]))
      assert operation == "exp" and line_of(draw, "jnp.exp") in place
    assert find_origins(loss, jnp.arange(4.0) / 100) == []


def test_several_and_a_loop():
  def loss(x):
    last, _ = jax.lax.scan(lambda carry, v: (carry / v, None), 1.0, x)
    return last + jnp.sum(jnp.log(x - 1.0))

  assert [origin.operation for origin in find_origins(loss, jnp.array([0.0, 1.0]))] == ["scan", "log"]
