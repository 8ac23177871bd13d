"""Floating-point operations of a traced JAX program. XLA's own count takes a loop's body once, and has none for GPUs."""

import math
from typing import Any

import jax
import jax.extend.core

# Neither sums nor products: they move numbers, or make integers.
_MOVES = {
    "reshape", "transpose", "broadcast_in_dim", "concatenate", "slice", "dynamic_slice", "dynamic_update_slice", "gather", "pad",
    "squeeze", "rev", "copy", "convert_element_type", "bitcast_convert_type", "iota", "stop_gradient", "optimization_barrier",
    "sharding_constraint", "split", "sort", "select_n", "random_bits", "random_wrap", "random_unwrap", "copy_p", "device_put",
}  # fmt: skip


def count_flops(program: Any, devices: int) -> float:
  """FLOPs of a program over all devices: 2 for each product of a matrix product, what Pallas kernels say they cost, 1 for each
  number that anything else computes. Of branches the dearest; a loop whose rounds are not known counts as one round.

  Args:
    program: a closed jaxpr.
    devices: that share its `shard_map`s, within which shapes are a device's.
  """
  return _count(getattr(program, "jaxpr", program), devices)


def _count(jaxpr, devices: int) -> float:
  return sum(_count_equation(equation, devices) for equation in jaxpr.eqns)


def _count_equation(equation, devices: int) -> float:
  name, given = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = given["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * _size(equation.outvars[0]) * math.prod(left[axis] for axis in contracted)
  if name == "conv_general_dilated":
    kernel, numbers = equation.invars[1].aval.shape, given["dimension_numbers"]
    return 2 * _size(equation.outvars[0]) * math.prod(kernel) / kernel[numbers.rhs_spec[0]]
  if name == "pallas_call":
    cost = given.get("cost_estimate")
    return float(cost.flops) if cost else 0.0
  if name == "cond":
    return max(count_flops(branch, devices) for branch in given["branches"])
  if name == "scan":
    return given["length"] * count_flops(given["jaxpr"], devices)
  if name == "while":
    return count_flops(given["body_jaxpr"], devices)
  inner = [value for key, value in given.items() if _is_program(value)]
  if inner:
    return (devices if name == "shard_map" else 1) * count_flops(inner[0], 1 if name == "shard_map" else devices)
  if name in _MOVES:
    return 0.0
  if name.startswith(("reduce_", "arg", "cum")):
    return _size(equation.invars[0])
  return sum(map(_size, equation.outvars))


def _is_program(value: Any) -> bool:
  return isinstance(value, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr))


def _size(variable) -> float:
  aval = variable.aval
  is_number = hasattr(aval, "shape") and jax.dtypes.issubdtype(aval.dtype, jax.numpy.number)
  return float(math.prod(aval.shape)) if is_number else 0.0
