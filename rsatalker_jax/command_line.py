"""What the command-line entries share: errors in one line, and the devices that JAX is shown."""

import functools
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from rsatalker_jax.errors import InputError


def one_line_errors(main: Callable[[Sequence[str]], Any]) -> Callable[[Sequence[str]], Any]:
  """A user's mistake ends the program with one line on stderr and status 2, not with a traceback."""

  @functools.wraps(main)
  def wrapped(argv):
    try:
      return main(argv)
    except InputError as error:
      print(f"error: {error}", file=sys.stderr)
      sys.exit(2)

  return wrapped


def no_arguments(argv: Sequence[str]) -> None:
  """Everything is a flag; a stray word is a mistake (often `--flag value` with a typo in the flag)."""
  if len(argv) > 1:
    raise InputError("command line", "", " ".join(argv[1:]), "only flags, --name=value")


def use_devices(mesh: Mapping[str, Any]) -> None:
  """Joins the other processes of a cluster, if there are any, and shows the CPU to JAX as several devices, so that a
  mesh over them keeps every core busy. To be called before anything else touches JAX's devices.

  Args:
    mesh: the config's section; `cpu_devices` 0 keeps JAX's own choice. Without effect on GPUs and TPUs.
  """
  if mesh["cpu_devices"]:
    jax.config.update("jax_num_cpu_devices", mesh["cpu_devices"])
  # Programs compiled once are kept: a resumed run starts in seconds.
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "rsatalker_jax"))
  jax.config.update("jax_compilation_cache_dir", cache)
  if _is_cluster():
    jax.distributed.initialize()


def _is_cluster() -> bool:
  """Whether a launcher says that this is one of several processes; `jax.distributed` then finds the others itself."""
  sizes = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")
  return any(int(os.environ.get(name, "1")) > 1 for name in sizes) or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
