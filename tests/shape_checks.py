"""The checker of shapes and types in signatures that the suite runs with."""

import beartype


def check(function):
  """beartype, on all but the constructors of dataclasses, which JAX calls with whatever a tree's leaves are replaced by."""
  return function if function.__name__ == "__init__" else beartype.beartype(function)
