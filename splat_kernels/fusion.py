"""How to say to XLA what to compute once. Both functions change speed and nothing else."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def apart(always: Bool[Array, ""] | None, function: Callable):
  """`function()`, computed once, apart from whatever reads its results.

  XLA:CPU has no multi-output fusion: it repeats a producer inside every consumer. In the loops of this library that
  means evaluating all alphas once per channel and per Gaussian, and compile times that grow exponentially.
  `optimization_barrier` does not help, as it is dropped before fusion, but nothing is fused across a conditional.

  Args:
    always: a scalar that is true at run time without XLA being able to know. It must not be batched by `vmap`, or the
      conditional becomes a selection. None: just `function()`, for accelerators, where a conditional costs time.
    function: without arguments; what it reads is computed apart, too.
  """
  if always is None:
    return function()
  nothing = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function))
  return jax.lax.cond(always, function, nothing)


def columns(*arrays: Float[Array, "*b"]) -> Float[Array, "*b K"]:
  """`jnp.stack(arrays, axis=-1)` by selection: XLA:CPU fuses a stack so badly that projection took ten times as long."""
  index = jax.lax.broadcasted_iota(jnp.int32, arrays[0].shape + (len(arrays),), arrays[0].ndim)
  stacked = arrays[-1][..., None]
  for k in range(len(arrays) - 1):
    stacked = jnp.where(index == k, arrays[k][..., None], stacked)
  return stacked
