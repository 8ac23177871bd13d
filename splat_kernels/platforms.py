"""What is being compiled for."""

import jax


def current_platform() -> str:
  """ "cpu", "gpu" or "tpu": the platform of `jax.default_device` if that is set, else of JAX's default backend.

  Asked while tracing. To compile ahead of time for devices that are not there, trace under
  `jax.default_device(topology.devices[0])`.
  """
  device = jax.config.jax_default_device
  if device is None:
    platform = jax.default_backend()
  else:
    platform = device if isinstance(device, str) else device.platform
  return "gpu" if platform in ("cuda", "rocm") else platform
