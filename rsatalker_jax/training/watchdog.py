"""Signs of life of a process that trains: a heartbeat file, and the stacks of all threads when no step comes any more."""

from __future__ import annotations

import faulthandler
import json
import os
import pathlib
import socket
import sys
import threading
import time

import jax

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file
from rsatalker_jax.training.ledger import Ledger

HUNG = os.EX_TEMPFAIL  # The status of a process that a watchdog has ended: starting it again may help.
_BEAT_EVERY = 5.0  # Seconds.
# Where a step is waited for. In other phases (compiling, scoring, …) there is none, for as long as they take.
_WAITING = ("step", "data", "checkpoint")


class Watchdog:
  """Watches one stage in one process; a context manager around its steps.

  Args:
    workdir: <workdir>/heartbeat/<process>.json gets the time, the host, and the stage, its phase and how far it is.
    stage: its name.
    step: that it begins from.
    hang_seconds: without a step after which there is something to say: in a phase in which a step is due the stacks of all
      threads, in others which phase it is. 0: never.
    ends: whether the process then ends, with status `HUNG`, if a step is due.
    ledger: knows the phase; the time without a step is counted as hanging there.
  """

  def __init__(
      self, workdir: str | os.PathLike, stage: str, step: int, *, hang_seconds: float, ends: bool, ledger: Ledger
  ):
    self._path = pathlib.Path(workdir) / "heartbeat" / f"{jax.process_index()}.json"
    self._stage, self._step, self._hang_seconds, self._ends, self._ledger = stage, step, hang_seconds, ends, ledger
    self._progress = self._told = time.perf_counter()
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

  def __enter__(self) -> Watchdog:
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._stopped.set()
    self._thread.join()
    self.beat("ended")

  def count_step(self, step: int) -> None:
    """`step` steps have been taken."""
    self._step = step
    self._progress = self._told = time.perf_counter()

  def beat(self, phase: str | None = None) -> None:
    """Writes the heartbeat file."""
    beat = {
        "time": time.time(), "host": socket.gethostname(), "pid": os.getpid(), "process": jax.process_index(),
        "stage": self._stage, "phase": phase or self._ledger.current[0], "step": self._step,
        "seconds_since_step": round(time.perf_counter() - self._progress, 1),
    }
    try:
      with whole_file(self._path) as file:
        file.write((json.dumps(beat) + "\n").encode())
    except (InputError, OSError):  # On a full disk there is no heartbeat; whether training ends is not decided here.
      pass

  def _watch(self) -> None:
    beaten = -float("inf")
    while True:
      if time.perf_counter() - beaten >= _BEAT_EVERY:
        self.beat()
        beaten = time.perf_counter()
      if self._hang_seconds:
        self._look()
      if self._stopped.wait(min(1.0, self._hang_seconds / 10 or 1.0)):
        return

  def _look(self) -> None:
    phase, since_phase = self._ledger.current
    now = time.perf_counter()
    # Whoever has just been compiling or scoring gets as long from there.
    silent = now - max(self._told, now - since_phase if phase in _WAITING else self._told)
    if silent < self._hang_seconds:
      return
    self._told = now
    where = f"process {jax.process_index()} on {socket.gethostname()}"
    since = f"{self._stage}: no step for {now - self._progress:.0f} s, after step {self._step}; {where}"
    if phase not in _WAITING:
      print(f"{since}: in the phase {phase} for {since_phase:.0f} s, which is not taken for a hang", file=sys.stderr, flush=True)
      return
    self._ledger.move(silent, "hang", source=phase)
    ends = "; the process ends" if self._ends else ""
    print(f"{since}: hangs in the phase {phase}{ends}. Stacks of all threads:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(2, all_threads=True)
    if self._ends:
      time.sleep(1.0)  # The ledger's last line.
      os._exit(HUNG)
