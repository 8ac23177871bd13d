"""What the web applications of the package share: serving.py, which needs aiohttp, and the script and style of their pages."""

from rsatalker_jax.errors import InputError


class Refused(InputError):
  """What somebody sends is right in itself, but not now."""
