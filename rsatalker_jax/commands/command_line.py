"""What the command-line entries share: errors in one line, and the devices that JAX is shown."""

import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from rsatalker_jax.errors import InputError


def run(verb: str) -> None:
  """Parses the flags of a verb (`verbs.VERBS`) and does it. A user's mistake ends the program with one line on stderr and
  status 2."""
  from rsatalker_jax.commands import verbs  # Which imports this module.

  # Config files import each other from the folder that the program is run in.
  sys.path.insert(0, os.getcwd())
  command = verbs.VERBS[verb]
  command.define()

  def checked(argv: Sequence[str]) -> None:
    if len(argv) > 1:  # Everything is a flag; a stray word is often `--flag value` with a typo in the flag.
      raise InputError("command line", "", " ".join(argv[1:]), "only flags, --name=value")
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # Checkpointing tells of its every thread otherwise.
    command.main()

  def parse(argv: list[str]) -> list[str]:
    if {"--help", "-help", "-h"} & set(argv[1:]):
      print(f"{command.help}\n{flags.FLAGS.module_help(verbs.__name__)}")
      sys.exit(0)
    try:
      return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError) as error:  # config_flags raises the latter two for unknown keys.
      raise InputError("command line", "", _last_line(error), "flags as --help lists them") from error

  try:
    app.run(checked, flags_parser=parse)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _last_line(error: Exception) -> str:
  """What went wrong, without the traceback that config_flags puts before it."""
  message: Any = error
  while isinstance(message, (AttributeError, KeyError)) and message.args:
    message = message.args[0]  # str() of these would quote and escape the text.
  lines = str(message).strip().splitlines()
  return lines[-1].strip() if len(lines) > 2 else " ".join(lines)


def read_config(flag) -> ConfigDict:
  """The value of a --config flag.

  Raises:
    InputError: if there is no such file.
  """
  try:
    flag.value.keys()  # A config that failed to load raises at its first use.
    return flag.value
  except OSError as error:
    raise InputError("command line", "--config", _last_line(error), "a config file") from error


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
  sizes = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
  return any(int(os.environ.get(name, "1")) > 1 for name in sizes) or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
