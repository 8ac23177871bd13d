"""What is being compiled for."""

from typing import Any

import jax


def current_device() -> jax.Device:
  """`jax.default_device` if that is set, else the first of JAX's default backend.

  Asked while tracing. To compile ahead of time for devices that are not there, trace under
  `jax.default_device(topology.devices[0])`.
  """
  settings: Any = jax.config  # JAX adds its settings as attributes.
  device = settings.jax_default_device
  if device is None:
    return jax.local_devices()[0]
  return jax.local_devices(backend=device)[0] if isinstance(device, str) else device


def current_platform() -> str:
  """`platform_of` the `current_device`."""
  return platform_of(current_device())


def platform_of(device: jax.Device) -> str:
  """ "cpu", "gpu" or "tpu"."""
  return "gpu" if device.platform in ("cuda", "rocm") else device.platform


def needs_nvidia(device: jax.Device, generation: int) -> str | None:
  """Why a device is not an NVIDIA GPU of at least a compute capability; None if it is."""
  if platform_of(device) != "gpu":
    return f"needs an NVIDIA GPU, not {device.platform}"
  capability = str(getattr(device, "compute_capability", ""))
  major = capability.split(".", maxsplit=1)[0]
  if not major.isdigit():  # AMD's are called gfx90a and the like.
    return f"needs an NVIDIA GPU, not {device.device_kind} ({capability})"
  if int(major) < generation:
    return f"needs compute capability {generation}.0, {device.device_kind} has {capability}"
  return None
