"""Writes where a run's time goes to <workdir>/ledger.jsonl, which `runs.ledger` describes and reads.

A process is in one phase at a time, from its own beginning on, so nothing is left out. The last line of the file is that of the
span which goes on: it is written again several times a second, over itself, so that a process killed at any moment has told
all but a fraction of a second of what it did.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from rsatalker_jax.runs import ledger as ledgers

_EVERY = 0.2  # Seconds between writes of the last line.


class Ledger:
  """The account of one start; a context manager around it. Process 0 writes, all keep account.

  Args:
    workdir: the run's. Its file is made with the first stage: a start that fails earlier leaves a new folder free.
    age: seconds that have passed already, before it was made.
  """

  def __init__(self, workdir: str | os.PathLike, age: float = 0.0):
    self._path = pathlib.Path(workdir) / ledgers.FILE
    # Wall time that never jumps.
    self._offset = time.time() - time.perf_counter()
    self._begin = self._since = self._entered = time.perf_counter() - age
    self._phase = "initialise"
    self._totals = dict.fromkeys(ledgers.PHASES, 0.0)
    self._lock = threading.RLock()
    self._file: int | None = None
    self._number, self._written, self._pending = 0, 0, b""
    self._stopped = threading.Event()
    self._begin_line(None, None)

  # --- What the run tells

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Time within counts as `name`, one of `runs.ledger.PHASES`, and not as what it is within."""
    before = self._enter(name)
    try:
      yield
    finally:
      self._enter(before)

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """What happens within is this stage's."""
    self._open()
    with self._lock:
      self._end_line()
      self._begin_line(name, None)
    try:
      yield
    finally:
      with self._lock:
        self._end_line()
        self._begin_line(None, None)

  def begin_span(self, step: int) -> None:
    """Begins a line at a step from which a restart may go on."""
    with self._lock:
      self._end_line()
      self._begin_line(self._line["stage"], step)
      self._write()

  def count_step(self, step: int) -> None:
    """`step` steps of the stage have been taken."""
    self._line["step"] = step

  def move(self, seconds: float, target: str, source: str = "step") -> None:
    """Counts seconds that have counted as `source` as `target` instead."""
    with self._lock:
      self._advance()
      self._add(source, -seconds)
      self._add(target, seconds)

  # --- What others ask

  @property
  def current(self) -> tuple[str, float]:
    """The phase, and for how many seconds it has been it."""
    with self._lock:
      return self._phase, time.perf_counter() - self._entered

  def total(self, *phases: str) -> float:
    """Seconds in these phases up to now."""
    with self._lock:
      self._advance()
      return sum(self._totals[name] for name in phases)

  # --- The file

  def __enter__(self) -> Ledger:
    if self._path.exists():
      self._open()
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
    self._stopped.set()
    with self._lock:
      self._end_line()
      how = ledgers.FINISHED
      if isinstance(error, SystemExit) and error.code:
        how = f"ended with status {error.code}"
      elif error is not None and not isinstance(error, SystemExit):
        how = f"{type(error).__name__}: {str(error)[:200]}"
      self._pending += _encode({"start": self._number, "kind": "end", "how": how})
      self._write(last=True)
      if self._file is not None:
        os.close(self._file)
        self._file = None

  def _enter(self, phase: str) -> str:
    with self._lock:
      self._advance()
      before, self._phase, self._entered = self._phase, phase, self._since
      return before

  def _advance(self) -> None:
    """Counts the time up to now."""
    now = time.perf_counter()
    self._add(self._phase, now - self._since)
    self._since = now

  def _add(self, phase: str, seconds: float) -> None:
    self._totals[phase] += seconds
    self._line["seconds"][phase] = self._line["seconds"].get(phase, 0.0) + seconds

  def _begin_line(self, stage: str | None, step: int | None) -> None:
    self._line: dict[str, Any] = {
        "start": self._number, "kind": "span", "stage": stage, "first": step, "step": step,
        "begin": self._since + self._offset, "end": None, "seconds": {}, **_measure_memory(),
    }
    self._length = 0

  def _end_line(self) -> None:
    self._advance()
    self._line |= _measure_memory()
    self._pending += self._encode_line()

  def _encode_line(self) -> bytes:
    seconds = {phase: round(x, 4) for phase, x in self._line["seconds"].items() if x > 0}
    return _encode({**self._line, "end": self._since + self._offset, "seconds": seconds}, self._length)

  def _open(self) -> None:
    if self._file is not None or jax.process_index() != 0:
      return
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    content = self._path.read_bytes()
    # A line that a kill has cut off is dropped.
    self._written = content.rfind(b"\n") + 1
    os.ftruncate(self._file, self._written)
    self._number = 1 + content.count(b'"kind": "start"')
    with self._lock:
      self._line["start"] = self._number
      start = {"start": self._number, "kind": "start", "begin": self._begin + self._offset, "host": socket.gethostname()}
      self._pending = _encode({**start, "pid": os.getpid(), "processes": jax.process_count()}) + self._pending
      self._write()
    threading.Thread(target=self._write_often, name="ledger", daemon=True).start()

  def _write_often(self) -> None:
    while not self._stopped.wait(_EVERY):
      with self._lock:
        if self._file is not None:
          self._write()

  def _write(self, last: bool = False) -> None:
    """Writes the lines that have ended, and that of the span that goes on, which is written over next time."""
    if self._file is None:
      return
    self._advance()
    line = b"" if last else self._encode_line()
    with contextlib.suppress(OSError):  # On a full disk, training must not end here: lines wait for another time.
      if os.pwrite(self._file, self._pending + line, self._written) == len(self._pending) + len(line):
        self._written += len(self._pending)
        self._pending, self._length = b"", len(line)
        if last:
          os.ftruncate(self._file, self._written)


def _encode(line: dict[str, Any], length: int = 0) -> bytes:
  """A line of at least so many bytes, so that it covers the one that it is written over."""
  return json.dumps(line).encode().ljust(max(0, length - 1)) + b"\n"


def _measure_memory() -> dict[str, int]:
  # Kilobytes but on macOS.
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
  on_devices = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
  return {"peak_memory_bytes": used} | ({"peak_device_memory_bytes": max(on_devices)} if any(on_devices) else {})
