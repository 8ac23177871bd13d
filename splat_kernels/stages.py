"""How to say to XLA:CPU what to compute once. Changes speed and nothing else, and nothing at all on other platforms.

XLA:CPU has no multi-output fusion: it repeats a producer inside every consumer. In the loops of this library that means
evaluating all alphas once per channel and per Gaussian, and compile times that grow exponentially.
`optimization_barrier` does not help, as it is dropped before fusion, but nothing is fused across a conditional.

Code that several implementations share marks its steps with `@stage`. They are plain functions, unless the code runs
inside `computed_once`, which the implementation for CPUs enters; nobody else has to know of it.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_always: contextvars.ContextVar[Array | None] = contextvars.ContextVar("always", default=None)


@contextlib.contextmanager
def computed_once(always: Bool[Array, ""]) -> Iterator[None]:
  """Computes every `stage` that is traced inside once, apart from whatever reads its results.

  Args:
    always: a scalar that is true at run time without XLA being able to know. It must not be batched by `vmap`, or the
      conditional becomes a selection.
  """
  token = _always.set(always)
  try:
    yield
  finally:
    _always.reset(token)


def stage(function: Callable) -> Callable:
  """Marks a step whose results are computed once inside `computed_once`, and what it reads, too."""

  @functools.wraps(function)
  def step(*args, **kwargs):
    return apart(_always.get(), lambda: function(*args, **kwargs))

  return step


def apart(always: Bool[Array, ""] | None, function: Callable):
  """`function()`, computed once if `always`, see `computed_once`; None: just `function()`."""
  if always is None:
    return function()
  # Zeros that vary over the devices of a `shard_map` as the results do, which `check_vma` asks of both branches.
  zero = jnp.where(always, 0, 1)
  shapes = None

  def compute():
    nonlocal shapes
    results = function()
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), results)
    return results

  def nothing():  # Traced after the other branch, so that nobody has to trace `function`, and what lies in it, twice.
    return jax.tree.map(lambda s: jnp.broadcast_to(zero.astype(s.dtype), s.shape), shapes)

  return jax.lax.cond(always, compute, nothing)


def columns(*arrays: Float[Array, "*b"]) -> Float[Array, "*b K"]:
  """`jnp.stack(arrays, axis=-1)` by selection: XLA:CPU fuses a stack so badly that projection took ten times as long."""
  index = jax.lax.broadcasted_iota(jnp.int32, arrays[0].shape + (len(arrays),), arrays[0].ndim)
  stacked = arrays[-1][..., None]
  for k in range(len(arrays) - 1):
    stacked = jnp.where(index == k, arrays[k][..., None], stacked)
  return stacked
