"""Independent implementations that tests compare with where they are installed."""

import importlib.util

import pytest


def needs(*packages: str) -> pytest.MarkDecorator:
  """Skips a test where one of the packages is absent; the reason says which, and how it comes."""
  absent = [package for package in packages if importlib.util.find_spec(package) is None]
  return pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}: pip install -r requirements-oracles.txt")
