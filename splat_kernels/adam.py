"""Adam that leaves alone what was not seen, as pure functions: params and state in, params and state out.

Source: Kingma and Ba 2015, algorithm 1; Mallick et al. 2024 (Taming 3DGS) for the selection, as gsplat's SelectiveAdam.
Unlike there, moments are corrected for their start from zero, by the steps that each Gaussian itself has taken, so that a
Gaussian that is seen for the first time late does not begin with steps three times too long.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

State = dict[str, Any]  # "steps", an array, and "mean" and "square", arrays by name.


def init_state(params: Mapping[str, Float[Array, "N ..."]]) -> State:
  """The state of `selective_adam` before its first step: "mean" and "square" of gradients by name, and "steps" (N,)."""
  zeros = lambda: {name: jnp.zeros_like(a) for name, a in params.items()}
  count = len(next(iter(params.values())))
  return {"mean": zeros(), "square": zeros(), "steps": jnp.zeros(count, jnp.int32)}


def selective_adam(
    params: Mapping[str, Float[Array, "N ..."]],
    gradients: Mapping[str, Float[Array, "N ..."]],
    state: State,
    visible: Bool[Array, "N"],
    *,
    rates: Mapping[str, float | Float[Array, "..."]],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-15,
) -> tuple[dict[str, Array], State]:
  """One step of Adam for Gaussians that are visible; values and moments of the others stay as they are.

  Args:
    params: arrays of length N, by name.
    gradients: of the loss, by the same names.
    state: of `init_state`, or of the step before.
    visible: which Gaussians take the step: `jnp.any(output.radii > 0, axis=0)`, say.
    rates: learning rates by the same names; arrays broadcast against the params.
    b1: decay of the mean of gradients.
    b2: decay of the mean of their squares.
    eps: added to the root of the mean of squares; gradients of single Gaussians are tiny.

  Returns:
    params and state after the step.
  """
  steps = state["steps"] + visible
  new_params, new_state = {}, {"mean": {}, "square": {}, "steps": steps}
  for name, value in params.items():
    each = lambda a: a.reshape((-1,) + (1,) * (value.ndim - 1))  # One number per Gaussian.
    chosen, taken = each(visible), jnp.maximum(each(steps), 1).astype(value.dtype)
    mean = b1 * state["mean"][name] + (1 - b1) * gradients[name]
    square = b2 * state["square"][name] + (1 - b2) * gradients[name] ** 2
    # 1 - b^t: in float32 that difference would have lost half of its digits after the first step.
    share1, share2 = (-jnp.expm1(taken * math.log(b)) for b in (b1, b2))
    step = rates[name] * (mean / share1) / (jnp.sqrt(square / share2) + eps)
    new_params[name] = jnp.where(chosen, value - step, value)
    new_state["mean"][name] = jnp.where(chosen, mean, state["mean"][name])
    new_state["square"][name] = jnp.where(chosen, square, state["square"][name])
  return new_params, new_state


def forget_moments(state: State, fresh: Bool[Array, "N"]) -> State:
  """The state with nothing known of Gaussians that are `fresh` (see `densification`)."""
  return jax.tree.map(lambda a: jnp.where(fresh.reshape((-1,) + (1,) * (a.ndim - 1)), 0, a), state)
