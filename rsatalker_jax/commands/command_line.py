"""What the command-line entries share: errors in one line, and the devices that JAX is shown."""

import contextlib
import os
import pathlib
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rsatalker_jax.commands.config_values import check_values
from rsatalker_jax.errors import InputError


class _OrNone(flags.ArgumentParser):
  """Parses as `parser` does, and the word None as None; `check_values` says where that may be."""

  def __init__(self, parser: flags.ArgumentParser):
    self._parser = parser
    self.syntactic_help = parser.syntactic_help

  def parse(self, argument: Any) -> Any:
    return None if argument in (None, "None") else self._parser.parse(argument)

  def flag_type(self) -> str:
    return self._parser.flag_type()


class _WholeNumbers(flags.IntegerParser):
  """Whole numbers in every form: 1000, 1_000, 1e3."""

  def convert(self, argument: Any) -> int:
    with contextlib.suppress(ValueError):
      return super().convert(argument)
    number = float(argument)
    if not number.is_integer():
      raise ValueError(f"found {argument}, expected a whole number")
    return int(number)


for _type, _parser in ((int, _WholeNumbers()), (float, flags.FloatParser()), (str, flags.ArgumentParser())):
  config_flags.register_flag_parser_for_type(_type, _OrNone(_parser))


def run(verb: str) -> None:
  """Parses the flags of a verb (`verbs.VERBS`) and does it; see `run_program`."""
  from rsatalker_jax.commands import verbs  # Which imports this module.

  command = verbs.VERBS[verb]
  command.define()
  run_program(command.main, f"{command.help}\n{flags.FLAGS.module_help(verbs.__name__)}")


def run_program(main: Callable[[], None], help: str | None = None) -> None:
  """Parses the flags that are defined and calls `main`. A user's mistake ends the program with one line on stderr and status 2.

  Args:
    help: what --help prints; None leaves that to absl.
  """
  # Config files import each other from the folder that the program is run in.
  sys.path.insert(0, os.getcwd())

  def checked(argv: Sequence[str]) -> None:
    if len(argv) > 1:  # Everything is a flag; a stray word is often `--flag value` with a typo in the flag.
      raise InputError("command line", "", " ".join(argv[1:]), "only flags, --name=value")
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # Checkpointing tells of its every thread otherwise.
    main()

  def parse(argv: list[str]) -> list[str]:
    if help is not None and {"--help", "-help", "-h"} & set(argv[1:]):
      print(help)
      sys.exit(0)
    try:
      return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError) as error:  # Of config_flags, for unknown keys and types.
      raise InputError("command line", "", _last_line(error), "flags as --help lists them") from error
    except InputError:
      raise
    except Exception as error:  # Whatever a config file does that is no config, or is broken.
      place = traceback.extract_tb(error.__traceback__)[-1]
      where = "" if isinstance(error, SyntaxError) else f" ({place.filename}, line {place.lineno})"
      found = f"{type(error).__name__}: {error}{where}"
      raise InputError("command line", "--config", found, "a config file") from error

  try:
    app.run(checked, flags_parser=parse)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except OSError as error:  # A full disk, a folder that may not be written: never the program's mistake.
    place = error.filename if error.filename is not None else "a file"
    print(f"error: {InputError(place, '', error.strerror or error, 'a place that can be read and written')}", file=sys.stderr)
    sys.exit(2)


def _last_line(error: Exception) -> str:
  """What went wrong, without the traceback that config_flags puts before it."""
  message: Any = error
  while isinstance(message, (AttributeError, KeyError)) and message.args:
    message = message.args[0]  # str() of these would quote and escape the text.
  lines = str(message).strip().splitlines()
  return lines[-1].strip() if len(lines) > 2 else " ".join(lines)


def read_config(flag) -> ConfigDict:
  """The value of a --config flag, checked.

  Raises:
    InputError: if there is no such file, or a run cannot have a value of it.
  """
  try:
    getattr(flag.value, "keys", None)  # A config that failed to load raises at its first use.
  except OSError as error:
    raise InputError("command line", "--config", _last_line(error), "a config file") from error
  if not isinstance(flag.value, ConfigDict):
    raise InputError("command line", "--config", type(flag.value).__name__, "a ConfigDict, as configs/common.py makes it")
  check_values(flag.value)
  return flag.value


def use_devices(mesh: Mapping[str, Any], *, join_cluster: bool = False) -> None:
  """Shows the CPU to JAX as several devices, so that a mesh over them keeps every core busy, and tells JAX where to keep
  compiled programs. To be called before anything else touches JAX's devices.

  Args:
    mesh: the config's section; `cpu_devices` 0 keeps JAX's own choice. Without effect on GPUs and TPUs.
    join_cluster: whether the other processes of a cluster, if there are any, are joined, so that all devices are one mesh.

  Raises:
    InputError: there are other processes, but they cannot be found.
  """
  if mesh["cpu_devices"]:
    jax.config.update("jax_num_cpu_devices", mesh["cpu_devices"])
  if (cache := _cache_folder()) is not None:
    # Programs compiled once are kept: a resumed run starts in seconds.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
      jax.config.update("jax_compilation_cache_dir", str(cache))
    # Numba, which writes .spz, gives up where it may write neither beside its packages nor in a home.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache / "numba"))
  if join_cluster and _is_cluster():
    _join_cluster()


def _cache_folder() -> pathlib.Path | None:
  """A folder of this user's that can be written: in their home, or, where they have none, among temporary files."""
  folders = [pathlib.Path(tempfile.gettempdir()) / f"rsatalker_jax-{os.getuid()}"]
  with contextlib.suppress(RuntimeError):  # No home.
    folders.insert(0, pathlib.Path.home() / ".cache" / "rsatalker_jax")
  for folder in folders:
    with contextlib.suppress(OSError):
      folder.mkdir(mode=0o700, parents=True, exist_ok=True)
      status = folder.lstat()
      # Compiled programs are run: nobody else may have put them there.
      if stat.S_ISDIR(folder.stat().st_mode) and status.st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK):
        return folder
  return None


def _is_cluster() -> bool:
  """Whether a launcher has started this process as one of several.

  Variables of an allocation alone do not say so: they are also in the shells of salloc, sbatch and ssh, and one process
  would wait for others for ever. What srun and mpirun give to each process does.
  """
  return (
      (_count("SLURM_STEP_NUM_TASKS") > 1 and "SLURM_PROCID" in os.environ)
      or (_count("OMPI_COMM_WORLD_SIZE") > 1 and "OMPI_COMM_WORLD_RANK" in os.environ)
      or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
      or any(name in os.environ for name in ("MEGASCALE_COORDINATOR_ADDRESS", "JAX_COORDINATOR_ADDRESS"))
  )


def _count(name: str) -> int:
  """The whole number in a variable of the environment; 0 if it holds something else."""
  text = os.environ.get(name, "")
  return int(text) if text.isdecimal() else 0


def _join_cluster() -> None:
  options = {}
  if _count("SLURM_STEP_NUM_TASKS") > 1 and "SLURM_PROCID" in os.environ:
    # JAX would take the number of tasks from the allocation, of which a step may be a part.
    options = dict(num_processes=_count("SLURM_STEP_NUM_TASKS"), process_id=_count("SLURM_PROCID"))
  elif _count("JAX_NUM_PROCESSES"):
    options = dict(num_processes=_count("JAX_NUM_PROCESSES"), process_id=_count("JAX_PROCESS_ID"))
  try:
    jax.distributed.initialize(**options)
  except (ValueError, KeyError, RuntimeError) as error:
    raise InputError(
        "environment", "", f"variables of one of several processes, but not all: {_last_line(error)}",
        "those of srun, mpirun, a TPU pod or JAX_COORDINATOR_ADDRESS; or none, for one process",
    ) from error
