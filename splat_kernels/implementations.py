"""What an implementation of compositing is, which ones there are, and which one is taken.

A new one is registered by name, from anywhere, and is then imported when it is first asked for:

    splat_kernels.register("mine", "my_package.my_module:IMPLEMENTATION")

`splat_kernels.testing.RasterizerContract` says whether it is right.
"""

import importlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from splat_kernels.platforms import platform_of
from splat_kernels.types import Config, Projected


@runtime_checkable
class Implementation(Protocol):
  """Composites projected Gaussians. `tiled.Tiled` is one but for two loops. A subclass has no limits it does not name.

  Attributes:
    name: by which it is chosen.
  """

  name: str

  def unsupported(self, device: jax.Device, config: Config) -> str | None:
    """Why this cannot compile for a device, in a few words; None if it can."""
    return None

  def unsupported_dtype(self, dtype: jnp.dtype) -> str | None:
    """Why this cannot compute in a dtype of float32 or better; None if it can."""
    return None

  def most_channels(self, config: Config, *, absolute: bool = False) -> int | None:
    """How many features (depth is one) can be drawn at a time; more are drawn in groups, but not where gradients are
    `absolute`. None: any number."""
    return None

  def most_tiles(self, config: Config) -> int | None:
    """How many tiles of all frames can be drawn at a time; more frames are drawn in groups. None: any number."""
    return None

  def composite(
      self,
      projected: Projected,
      features: Float[Array, "B N C"],
      *,
      width: int,
      height: int,
      config: Config,
      capacity: int,
      interpret: bool = False,
      tile_mask: Bool[Array, "B rows columns"] | None = None,
      means2d_abs: Float[Array, "B N 2"] | None = None,
  ) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W"], Int[Array, "B"], Int[Array, "B"]]:
    """Composites features front to back. Differentiable by reverse mode in all that is floating but `extents`.

    Args:
      projected: one batch dimension B, at least one frame and one Gaussian.
      features: what is composited: colour channels, depth, anything.
      width: of the image, pixels.
      height: of the image, pixels.
      config: see `Config`.
      capacity: how many (Gaussian, tile) pairs a frame may hold.
      interpret: whether to run a kernel without its device, slowly, or how (`pltpu.InterpretParams`); what has no kernel
        does not look at it.
      tile_mask: False where nothing is to be drawn; None draws everywhere.
      means2d_abs: zeros, whose gradient is the sum over pixels of the absolute gradients of the centres.

    Returns:
      sum over Gaussians of weight * feature; transmittance behind the last Gaussian; (Gaussian, tile) pairs that are
      needed, or more; pairs that found no room.
    """


# Where they are, in the order in which `implementation=None` tries them.
_PLACES: dict[str, str] = {}
_DEFAULTS: dict[str, tuple[str, ...]] = {}  # Platforms on which a name is tried; "" is any.


def register(name: str, place: str, *, default_on: Sequence[str] = ()) -> None:
  """Makes an implementation known.

  Args:
    name: what `implementation=` calls it.
    place: "module:attribute" of the object, imported when it is first asked for.
    default_on: platforms ("cpu", "gpu", "tpu") on which `implementation=None` tries it, before those registered earlier.
  """
  if place.count(":") != 1:
    raise ValueError(f"{place=} must be 'module:attribute'")
  _PLACES[name] = place
  _DEFAULTS[name] = tuple(default_on)


register("reference", "splat_kernels.reference:IMPLEMENTATION")
register("xla", "splat_kernels.xla:IMPLEMENTATION", default_on=("cpu", "gpu", "tpu"))
register("pallas_triton", "splat_kernels.pallas_triton:IMPLEMENTATION", default_on=("gpu",))
register("pallas_mosaic_gpu", "splat_kernels.pallas_mosaic_gpu:IMPLEMENTATION")
register("pallas_mosaic_tpu", "splat_kernels.pallas_mosaic_tpu:IMPLEMENTATION", default_on=("tpu",))


def names() -> tuple[str, ...]:
  """Of all that are registered."""
  return tuple(_PLACES)


def load(name: str) -> Implementation:
  """The implementation of a name.

  Raises:
    ValueError: if there is none, or its module cannot be imported here.
  """
  if name not in _PLACES:
    raise ValueError(f"implementation={name!r} must be None or one of {', '.join(_PLACES)}")
  module, attribute = _PLACES[name].split(":")
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as e:
    raise ValueError(f"implementation={name!r} is not available here: {e}") from e


def choose(
    implementation: str | Implementation | Sequence[str | Implementation] | None,
    device: jax.Device,
    dtype: jnp.dtype,
    config: Config,
    *,
    interpret: bool = False,
) -> Implementation:
  """The first implementation, of the ones given or else of the platform's own, that can draw on a device.

  Raises:
    ValueError: if none can, with the reasons of each.
  """
  if implementation is None:
    on = platform_of(device)
    implementation = [name for name, platforms in reversed(_DEFAULTS.items()) if on in platforms] or ["xla"]
  if isinstance(implementation, str) or isinstance(implementation, Implementation):
    implementation = [implementation]
  reasons = []
  for candidate in implementation:
    try:
      found = load(candidate) if isinstance(candidate, str) else candidate
    except ValueError as e:
      if len(implementation) == 1:
        raise
      reasons.append(str(e))
      continue
    reason = found.unsupported_dtype(dtype) or (None if interpret else found.unsupported(device, config))
    if reason is None:
      return found
    reasons.append(f"{found.name} {reason}")
  advice = "" if interpret else " (interpret=True runs a kernel without its device, slowly)"
  raise ValueError(f"implementation={_shown(implementation)} cannot draw here: {'; '.join(reasons)}{advice}")


def _shown(implementation: Sequence[str | Implementation]) -> str:
  return ", ".join(repr(one if isinstance(one, str) else one.name) for one in implementation)
