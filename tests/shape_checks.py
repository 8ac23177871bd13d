"""The checker of shapes and types in signatures that the suite runs with."""

import beartype


def check(function):
  """beartype, on all but constructors of dataclasses: JAX calls them with whatever replaces a tree's leaves."""
  return function if function.__name__ == "__init__" else beartype.beartype(function)
