"""Several processes that train one run: how they find each other, and how they end together.

A process is one of several if a launcher says so: flags, or the variables and services of SLURM, Open MPI, Kubernetes, Cloud TPU.
They join through JAX's coordination service, which process 0 holds. What each adds to it here, so that none waits for ever:

    a sign of life every few seconds. Whoever is silent for `SILENCE` seconds is gone: the others end, with a line that says so.
    the line of an error. Whoever ends because of one tells the others, and all end with it.
    what must be the same everywhere (config, versions): compared with process 0's before anything is computed.
    a request to stop: SIGTERM or SIGINT to any of them stops all after the same step.
"""

import contextlib
import ctypes
import dataclasses
import glob
import importlib.util
import json
import os
import pathlib
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from rsatalker_jax.errors import InputError

# Seconds without a sign of life after which a process counts as gone; signs are given and looked at every `_BEAT`.
SILENCE = 40.0
_BEAT = 2.0
# How long process 0, whose end is the end of all, leaves the others to read why.
_FAREWELL = 3 * _BEAT
_TPU_PORT = 8482  # JAX's own, where a TPU's hosts are named without one.

_LAUNCHERS = "srun, mpirun, a TPU pod, JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; or none, for one process"


@dataclasses.dataclass(frozen=True)
class Membership:
  """Which of several processes this one is, as far as is known before they join; JAX finds what is None.

  Attributes:
    launcher: who says so.
    coordinator: "host:port" of process 0.
    process, processes: number of this one, and how many there are.
  """

  launcher: str
  coordinator: str | None = None
  process: int | None = None
  processes: int | None = None


def find_membership(
    coordinator: str | None = None,
    process: int | None = None,
    processes: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Membership | None:
  """Whether a launcher has started this process as one of several; None for a process on its own.

  Variables of an allocation alone do not say so: they are also in the shells of salloc, sbatch and ssh, and one process
  would wait for others for ever. What srun and mpirun give to each process does.

  Args:
    coordinator, process, processes: of the command line; all or none.
    environment: variables.

  Raises:
    InputError: flags or variables of one of several processes, but not all of them.
  """
  flags = {"--coordinator": coordinator, "--process": process, "--processes": processes}
  if any(value is not None for value in flags.values()):
    return _from_flags(flags)
  number = lambda name: _whole_number(environment.get(name, ""))
  if "JAX_COORDINATOR_ADDRESS" in environment or number("JAX_NUM_PROCESSES"):
    return _from_jax_variables(environment, number)
  if (number("SLURM_STEP_NUM_TASKS") or 0) > 1 and "SLURM_PROCID" in environment:
    # JAX would take the number of tasks from the allocation, of which a step may be a part.
    return Membership("SLURM", process=number("SLURM_PROCID"), processes=number("SLURM_STEP_NUM_TASKS"))
  if (number("OMPI_COMM_WORLD_SIZE") or 0) > 1 and "OMPI_COMM_WORLD_RANK" in environment:
    return Membership("Open MPI", process=number("OMPI_COMM_WORLD_RANK"), processes=number("OMPI_COMM_WORLD_SIZE"))
  if "MEGASCALE_COORDINATOR_ADDRESS" in environment:
    return Membership("Cloud TPU, several slices")
  if (hosts := environment.get("TPU_WORKER_HOSTNAMES", "").split(","))[1:]:
    return Membership("Cloud TPU", f"{hosts[0]}:{_TPU_PORT}", _need(environment, "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"), len(hosts))
  if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
    return _from_kubernetes(environment)
  if _is_tpu_machine(environment):
    return Membership("a TPU machine")
  return None


def _from_flags(flags: Mapping[str, Any]) -> Membership | None:
  for name, value in flags.items():
    if value is None:
      given = ", ".join(other for other, x in flags.items() if x is not None)
      raise InputError("command line", name, f"nothing beside {given}", "all three of --coordinator, --process, --processes")
  coordinator, process, processes = flags.values()
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise InputError("command line", "--coordinator", coordinator, "host:port of process 0")
  if not 0 <= process < processes:
    raise InputError("command line", "--process", process, f"0 to {processes - 1}, as --processes={processes} are numbered")
  return Membership("the command line", coordinator, process, processes) if processes > 1 else None


def _from_jax_variables(environment: Mapping[str, str], number: Callable[[str], int | None]) -> Membership | None:
  processes = number("JAX_NUM_PROCESSES")
  if processes == 1:
    return None
  coordinator = environment.get("JAX_COORDINATOR_ADDRESS")
  if coordinator is None:
    _need(environment, "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES")
  if coordinator and not coordinator.rpartition(":")[2].isdecimal():
    coordinator = f"{coordinator}:{environment.get('JAX_COORDINATOR_PORT', _TPU_PORT)}"
  hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
  if processes is None and len(hosts) > 1 and "MEGASCALE_COORDINATOR_ADDRESS" not in environment:
    return Membership("Cloud TPU", coordinator, _need(environment, "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"), len(hosts))
  if processes is None:
    return Membership("JAX_COORDINATOR_ADDRESS", coordinator)
  own = number("JAX_PROCESS_ID")
  if own is None:  # Kubernetes numbers the pods of an indexed job.
    own = _need(environment, "JOB_COMPLETION_INDEX" if "JOB_COMPLETION_INDEX" in environment else "JAX_PROCESS_ID", "JAX_NUM_PROCESSES")
  if own >= processes:
    raise InputError("environment", "JAX_PROCESS_ID", own, f"0 to {processes - 1}, as JAX_NUM_PROCESSES={processes} are numbered")
  return Membership("JAX_COORDINATOR_ADDRESS", coordinator, own, processes)


def _from_kubernetes(environment: Mapping[str, str]) -> Membership:
  # JAX asks Kubernetes itself, by its package, which the pod must be allowed to do.
  if importlib.util.find_spec("kubernetes") is None:
    found = f"pod {environment['JOB_COMPLETION_INDEX']} of an indexed job, without JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES"
    raise InputError("environment", "", found, "both, as launch/jobset.yaml sets them; JAX_NUM_PROCESSES=1 for a pod on its own")
  return Membership("Kubernetes")


def _is_tpu_machine(environment: Mapping[str, str]) -> bool:
  """Whether this host has TPUs that JAX will use: it may be one of a slice, which their metadata say."""
  platforms = environment.get("JAX_PLATFORMS", "tpu")
  chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
  return bool("tpu" in platforms and chips and importlib.util.find_spec("libtpu") and "TPU_SKIP_MDS_QUERY" not in environment)


def _whole_number(text: str) -> int | None:
  return int(text) if text.isdecimal() else None


def _need(environment: Mapping[str, str], name: str, beside: str) -> int:
  number = _whole_number(environment.get(name, ""))
  if number is None:
    raise InputError("environment", name, repr(environment[name]) if name in environment else f"nothing beside {beside}", "its value")
  return number


# --- Being one of several


def join(membership: Membership, seconds: float = 300) -> None:
  """Joins the other processes, so that all their devices are one; to be called before JAX's devices are touched.

  A process that fails or falls silent from here on ends all; see the module.

  Args:
    seconds: how long the others are waited for.

  Raises:
    InputError: the others cannot be found.
  """
  given = dict(coordinator_address=membership.coordinator, process_id=membership.process, num_processes=membership.processes)
  joined = threading.Event()
  place = f" at {membership.coordinator}" if membership.coordinator else ""
  count = f" of {membership.processes}" if membership.processes else ""

  def give_up() -> None:  # JAX itself would abort, with a stack of its own.
    if not joined.wait(seconds):
      number = "this process" if membership.process is None else f"process {membership.process}{count}"
      missing = "not all others have come" if membership.process == 0 else "no answer from process 0"
      line = InputError("cluster", "", f"{missing}{place} within {seconds:g} s", f"as many processes as {membership.launcher} says")
      _end(f"{number} on {socket.gethostname()}: {line}", 2)

  threading.Thread(target=give_up, daemon=True).start()
  try:
    # JAX's own signs of life are slower than ours, which end with a line; its stop at the end waits for those who are gone.
    jax.distributed.initialize(
        **{name: value for name, value in given.items() if value is not None},
        initialization_timeout=int(seconds) + 60,
        heartbeat_timeout_seconds=int(4 * SILENCE),
        shutdown_timeout_seconds=20,
    )
  except (ValueError, KeyError, RuntimeError, OSError) as error:
    if membership.launcher == "a TPU machine":  # On its own.
      return
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    found = f"variables of one of several processes ({membership.launcher}), but not all: {reason}"
    raise InputError("environment", "", found, f"those of {_LAUNCHERS}") from error
  finally:
    joined.set()
  if count_processes() > 1:
    _say_when_aborted()
    threading.Thread(target=_watch_others, name="watches other processes", daemon=True).start()


def _state() -> Any:
  # The client of the coordination service has no public name; Orbax takes it from here, too.
  from jax._src import distributed

  return distributed.global_state


def count_processes() -> int:
  """How many processes there are; unlike `jax.process_count` it starts no backend."""
  return (_state().num_processes or 1) if jax.distributed.is_initialized() else 1


def is_first() -> bool:
  """Whether this is the process that writes and prints: number 0, or the only one."""
  return count_processes() == 1 or _state().process_id == 0


def describe_self() -> str:
  """"process 1 of 2 on node7"; empty for a process on its own."""
  if count_processes() == 1:
    return ""
  return f"process {_state().process_id} of {count_processes()} on {socket.gethostname()}"


def check_agreement(values: Mapping[str, Any]) -> None:
  """Compares values, each under a name, with those of process 0.

  Raises:
    InputError: names the first that differs, with both values and both processes.
  """
  if count_processes() == 1:
    return
  client, plain = _state().client, json.loads(json.dumps(dict(values), default=str))
  if is_first():
    client.key_value_set("agreement/values", json.dumps(plain))
    client.key_value_set("agreement/place", describe_self())
  theirs = json.loads(client.blocking_key_value_get("agreement/values", int(60e3)))
  for name in sorted(plain.keys() | theirs.keys()):
    if plain.get(name) != theirs.get(name):
      place = client.blocking_key_value_get("agreement/place", int(60e3))
      raise InputError("cluster", name, f"{plain.get(name, 'nothing')} in {describe_self()}", f"{theirs.get(name, 'nothing')}, as in {place}")
  wait_for_all("agreement")


def check_shared_folder(folder: str | os.PathLike, key: str) -> None:
  """Raises: InputError: a file that process 0 writes into the folder is not seen by this process: each has a folder of its own."""
  if count_processes() == 1:
    return
  client, path = _state().client, pathlib.Path(folder)
  if is_first():
    path.mkdir(parents=True, exist_ok=True)
    name = f".shared-{secrets.token_hex(4)}"
    (path / name).touch()
    client.key_value_set(f"shared/{key}", f"{name} {describe_self()}")
  name, _, place = client.blocking_key_value_get(f"shared/{key}", int(60e3)).partition(" ")
  deadline = time.monotonic() + 20
  while name not in _list_folder(path):  # NFS keeps listings for seconds.
    if time.monotonic() > deadline:
      raise InputError(path, key, f"a folder of {socket.gethostname()}'s own", f"the one that {place} writes to: a file system that all share")
    time.sleep(0.2)
  wait_for_all(f"shared {key}")
  if is_first():
    (path / name).unlink(missing_ok=True)


def _list_folder(path: pathlib.Path) -> list[str]:
  with contextlib.suppress(OSError):
    return os.listdir(path)
  return []


def wait_for_all(what: str, seconds: float = 600) -> None:
  """Returns when all processes have called this with the same word; each word serves once."""
  if count_processes() > 1:
    _state().client.wait_at_barrier(f"rsatalker/{what}", int(seconds * 1e3))


def one_at_first(work: Callable[[], None], what: str) -> None:
  """Does `work` in process 0, and then in the others, who find it done where they share a file system."""
  if is_first():
    work()
  wait_for_all(what, seconds=3600)
  if not is_first():
    work()


# --- Ending together


class StopTogether:
  """A request to stop, by SIGTERM or SIGINT to any process, that all see after the same step.

  Attributes:
    requested: 0, or the signal's number; SIGTERM where another process got it.
  """

  def __init__(self):
    self.requested = 0
    self._signal = signal.SIGTERM

  def __enter__(self):
    # SIGTERM is JAX's own: its handler, in place since `join`, tells the others.
    with contextlib.suppress(ValueError):  # Not in the main thread.
      self._previous = signal.signal(signal.SIGINT, self._handle)
    return self

  def _handle(self, number, frame) -> None:
    del frame
    self._signal = number
    os.kill(os.getpid(), signal.SIGTERM)

  def after_step(self) -> None:
    """To be called after each step, by all."""
    global _steps
    _steps += 1
    if multihost_utils.reached_preemption_sync_point(_steps):
      self.requested = int(self._signal)

  def __exit__(self, *_) -> None:
    with contextlib.suppress(ValueError, AttributeError):
      signal.signal(signal.SIGINT, self._previous)


_steps = 0  # That were taken in this process, over all stages: what a sync point is agreed on by.


def fail(line: str, status: int = 2) -> NoReturn:
  """Ends this process with a line about an error, and with it the others, who print it, too."""
  _over.set()
  line = f"{describe_self()}: {line}"
  with contextlib.suppress(Exception):  # The coordinator may be what has gone.
    _state().client.key_value_set(f"failed/{_state().process_id}", f"{status} {line}")
  _end(line, status)


def fail_by(error: BaseException) -> NoReturn:
  """`fail` for an exception that is nobody's mistake: often it is another process's end, seen in a collective."""
  time.sleep(2 * _BEAT)  # Whoever has failed says why: `_watch_others` then ends this process.
  text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
  if is_loss(error):
    fail(f"another process has gone ({text}); {_GO_ON}", 3)
  fail(text, 1)


def is_loss(error: BaseException) -> bool:
  """Whether an exception is a collective's or JAX's word that another process has gone."""
  return any(word in str(error) for word in _LOST)


# How a collective or the coordination service tells of a lost partner.
_LOST = ("Gloo", "gloo", "NCCL", "Connection reset", "Connection closed", "coordination service", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat")
_GO_ON = "start the same command again, in as many processes as there are hosts, to go on from the last checkpoint"


def _watch_others() -> None:
  """Gives signs of life and looks for those of the others; ends the process with a line if one has failed or gone."""
  state = _state()
  client, own, seen, beat = state.client, state.process_id, {}, 0
  last = time.monotonic()
  while not _over.is_set():
    if time.monotonic() - last > SILENCE / 2:
      seen = {}  # This process itself stood still, in a suspended machine or a debugger: the others get their time again.
    last = time.monotonic()
    try:
      client.key_value_set(f"alive/{own}", str(beat), allow_overwrite=True)
      failed = client.key_value_dir_get("failed/")
      alive = client.key_value_dir_get("alive/")
    except Exception as error:  # Whatever the runtime raises; JAX is about to abort.
      if not _over.is_set():
        _end(f"{describe_self()}: process 0 has gone ({str(error).splitlines()[0][:120]}); {_GO_ON}", 3)
      return
    beat += 1
    for key, value in failed:
      status, _, line = value.partition(" ")
      if key.rpartition("/")[2] != str(own):
        _end(line, int(status))
    for key, value in alive:
      if seen.get(key, (None,))[0] != value:
        seen[key] = value, last
      elif last - seen[key][1] > SILENCE:
        number = key.rpartition("/")[2]
        _end(f"{describe_self()}: process {number} has given no sign of life for {SILENCE:g} s; {_GO_ON}", 3)
    _over.wait(_BEAT)


_over = threading.Event()  # This process has nothing more to do.


def end_together() -> None:
  """To be called at a good end: waits for the others to come to theirs."""
  if count_processes() > 1:
    wait_for_all("end")
    _over.set()


def _end(line: str, status: int) -> NoReturn:
  """Prints a line, the only one however many threads come here, and ends the process."""
  with _last_word:
    print(f"\nerror: {line}", file=sys.stderr, flush=True)
    if is_first() and count_processes() > 1:
      time.sleep(_FAREWELL)
    os._exit(status)  # Not through JAX's farewell, which waits for processes that wait for this one.


_last_word = threading.Lock()  # Never given back.


_keep: list[Any] = []  # What C calls must not be collected.


def _say_when_aborted() -> None:
  """JAX aborts the process, with a stack of its own, when process 0 is gone: the last line says what that means."""
  libc = ctypes.CDLL(None)

  def say(number):
    del number
    _end(f"{describe_self()}: aborted by JAX (see above), most likely as process 0 has gone; {_GO_ON}", 3)

  _keep.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(say))
  libc.signal(signal.SIGABRT, _keep[-1])
