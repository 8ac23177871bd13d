"""What the command-line entries share: errors in one line, and the devices that JAX is shown."""

import contextlib
import os
import pathlib
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rsatalker_jax import cluster
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
    cluster.end_together()

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
    _end_by(error)
  except OSError as error:  # A full disk, a folder that may not be written: never the program's mistake.
    place = error.filename if error.filename is not None else "a file"
    _end_by(InputError(place, "", error.strerror or error, "a place that can be read and written"))
  except SystemExit as ending:
    if isinstance(ending.code, int) and ending.code > 128:  # By a signal, which has stopped all.
      cluster.end_together()
    raise
  except Exception as error:
    if cluster.count_processes() == 1:
      raise
    if not cluster.is_loss(error):
      traceback.print_exc()
    cluster.fail_by(error)


def _end_by(error: InputError) -> NoReturn:
  if cluster.count_processes() > 1:
    cluster.fail(str(error))
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


def define_cluster() -> None:
  """Defines the flags of one of several processes, for verbs that work in all of them."""
  flags.DEFINE_string("coordinator", None, "host:port of process 0, where no launcher (SLURM, Open MPI, Kubernetes, Cloud TPU) tells.")
  flags.DEFINE_integer("process", None, "The number of this process, with --coordinator.", lower_bound=0)
  flags.DEFINE_integer("processes", None, "How many processes there are, with --coordinator.", lower_bound=1)
  flags.DEFINE_float("join_seconds", 300, "How long the other processes are waited for.", lower_bound=1)


def find_cluster() -> cluster.Membership | None:
  """Which of several processes this is, by the flags of `define_cluster` or a launcher; see `cluster.find_membership`."""
  values = flags.FLAGS
  return cluster.find_membership(values.coordinator, values.process, values.processes)


def leave_to_first() -> None:
  """For verbs that work in one process: of several that a launcher has started all but the first end here, well and with a line."""
  membership = cluster.find_membership()
  if membership is not None and membership.process:
    print(f"process {membership.process} of {membership.processes or 'several'}: left to process 0, which does this alone", file=sys.stderr)
    sys.exit(0)


def use_devices(mesh: Mapping[str, Any], membership: cluster.Membership | None = None, join_seconds: float = 300) -> None:
  """Shows the CPU to JAX as several devices, so that a mesh over them keeps every core busy, and tells JAX where to keep
  compiled programs. To be called before anything else touches JAX's devices.

  Args:
    mesh: the config's section; `cpu_devices` 0 keeps JAX's own choice. Without effect on GPUs and TPUs.
    membership: the processes to join, so that all their devices are one mesh; None for a process on its own.
    join_seconds: how long they are waited for.

  Raises:
    InputError: there are other processes, but they cannot be found.
  """
  if mesh["cpu_devices"]:
    jax.config.update("jax_num_cpu_devices", mesh["cpu_devices"])
  if (cache := cache_folder()) is not None:
    # Programs compiled once are kept: a resumed run starts in seconds.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
      jax.config.update("jax_compilation_cache_dir", str(cache))
    # Numba, which writes .spz, gives up where it may write neither beside its packages nor in a home.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache / "numba"))
  if membership is not None:
    cluster.join(membership, join_seconds)


def cache_folder() -> pathlib.Path | None:
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
