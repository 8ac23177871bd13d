"""The checker of the shapes and kinds of arrays in signatures that the suite runs with."""

import collections.abc
import types
import typing

import beartype
import jax
import jaxtyping
import numpy as np


# To look at what these hold would be to take it: nothing is said of them.
_TAKEN = (collections.abc.Iterable, collections.abc.Iterator, collections.abc.Generator)


def check(function):
  """beartype on what a signature says of arrays, by all but constructors of dataclasses: JAX calls those with whatever
  replaces a tree's leaves.

  Where it says `Array`, numpy's may be given too, as to JAX itself. Other types are not looked at: Python's own numbers,
  JAX's and numpy's stand for each other everywhere.
  """
  if function.__name__ == "__init__":
    return function
  kinds = {name: (kind, _with_numpy(kind)) for name, kind in function.__annotations__.items()}
  function.__annotations__ = {name: either for name, (kind, either) in kinds.items() if either is not kind}
  return beartype.beartype(function)


def _with_numpy(annotation):
  """The annotation with numpy's arrays beside JAX's wherever arrays stand in it; itself where none do."""
  if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
    kind = jax.Array | np.ndarray if annotation.array_type is jax.Array else annotation.array_type
    return annotation.dtype[kind, annotation.dim_str]
  if typing.get_origin(annotation) in _TAKEN:
    return annotation
  inside = typing.get_args(annotation)
  changed = tuple(map(_with_numpy, inside))
  if all(new is old for new, old in zip(changed, inside)):
    return annotation
  origin = typing.Union if isinstance(annotation, types.UnionType) else typing.get_origin(annotation)
  return origin[changed]
