"""What callers pass, as arrays: checked by name, broadcast, flattened to one batch dimension, spread over a mesh."""

import math
import operator
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec


def size(name: str, value) -> int:
  """A positive whole number, numpy's or Python's.

  Raises:
    ValueError: if it is not.
  """
  try:
    number = operator.index(value)
  except TypeError:
    number = 0
  if number < 1:
    raise ValueError(f"{name}={value!r} must be a positive whole number")
  return number


def array(name: str, value, tail: tuple[int | None, ...]) -> jax.Array:
  """An array of shape (*b, *tail); None in `tail` is any size.

  Raises:
    ValueError: if it has another shape, or is none.
  """
  try:
    value = jnp.asarray(value)
  except (TypeError, ValueError) as e:
    raise ValueError(f"{name}={value!r} must be an array: {e}") from None
  ends = value.shape[max(0, value.ndim - len(tail)) :]
  if len(ends) != len(tail) or any(want not in (None, got) for want, got in zip(tail, ends)):
    shown = ", ".join("C" if want is None else str(want) for want in tail)
    raise ValueError(f"{name}.shape={value.shape} must be (*b, {shown})")
  return value


def floats(name: str, value, tail: tuple[int | None, ...]) -> jax.Array:
  """`array` of floating numbers. Python's whole numbers are taken for such; arrays of integers are not.

  Raises:
    ValueError: as `array`, or if it is not floating.
  """
  if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
    try:
      value = np.asarray(value, np.float32)
    except (TypeError, ValueError) as e:
      raise ValueError(f"{name}={value!r} must be an array of floating numbers: {e}") from None
  value = array(name, value, tail)
  if not jnp.issubdtype(value.dtype, jnp.floating):
    raise ValueError(f"{name}.dtype={value.dtype} must be floating")
  return value


def batch_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
  """What leading dimensions broadcast to.

  Raises:
    ValueError: if they do not.
  """
  try:
    return jnp.broadcast_shapes(*shapes)
  except ValueError as e:
    raise ValueError(f"leading dimensions must broadcast, but are {shapes}") from e


def leading_shape(arrays: Mapping[str, jax.Array], ranks: Mapping[str, int]) -> tuple[int, ...]:
  """What the leading dimensions of all arrays broadcast to; `ranks` says how many of each are not leading.

  Raises:
    ValueError: if they do not.
  """
  return batch_shape(*(a.shape[: a.ndim - ranks[name]] for name, a in arrays.items()))


def flatten(batch: tuple[int, ...], array, rank: int):
  """(*b, …) to (B, …), where the last `rank` dimensions stay."""
  kept = array.shape[array.ndim - rank :]
  return jnp.broadcast_to(array, batch + kept).reshape((math.prod(batch),) + kept)


def over_explicit_mesh(
    draw: Callable[[dict], object], batch: tuple[int, ...], arrays: Mapping[str, jax.Array], ranks: Mapping[str, int]
):
  """`draw(arrays)`; where leading dimensions are sharded over Explicit axes of a mesh, each device draws its own.

  Args:
    draw: of arrays to a tree of arrays that all have the leading dimensions.
    batch: leading dimensions of all arrays together.
    arrays: by name.
    ranks: of each array, the dimensions that are not leading.

  Raises:
    ValueError: if another dimension than a leading one is sharded, or leading ones in two ways.
  """
  mesh, spec = None, [None] * len(batch)
  for name, value in arrays.items():
    sharding = jax.typeof(value).sharding
    if AxisType.Explicit not in getattr(sharding.mesh, "axis_types", ()) or not any(sharding.spec):
      continue
    mesh = sharding.mesh
    leading = value.ndim - ranks[name]
    axes = (*sharding.spec, *[None] * (value.ndim - len(sharding.spec)))
    if any(axes[leading:]):
      raise ValueError(f"{name} is sharded as {sharding.spec}: only leading dimensions, which are frames, can be")
    for i, axis in enumerate(axes[:leading], len(batch) - leading):
      if axis is not None and spec[i] not in (None, axis):
        raise ValueError(f"{name} is sharded as {sharding.spec}, where another argument has {spec[i]}: they must agree")
      spec[i] = axis if axis is not None else spec[i]
  if mesh is None:
    return draw(dict(arrays))
  frames = PartitionSpec(*spec)
  kept = {name: a.shape[a.ndim - ranks[name] :] for name, a in arrays.items()}
  spread = {name: jax.sharding.reshard(jnp.broadcast_to(a, batch + kept[name]), frames) for name, a in arrays.items()}
  # JAX's interpreter of Pallas kernels is refused under `check_vma`; here everything varies over the mesh anyway.
  return jax.shard_map(draw, mesh=mesh, in_specs=(frames,), out_specs=frames, check_vma=False)(spread)
