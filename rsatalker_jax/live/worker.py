"""The generator in a process of its own, where nothing else keeps it waiting, and the asyncio side of the pipe to it.

    to it      ("open", session, relation, first)   first: what it hears of B before A's first frame, int16
               ("frame", session, number, a, b, motion)
               ("relation", session, relation)
               ("close", session, None)
    from it    ("ready", about, avatar) or ("refused", error) once, then
               ("motion", session, number, motion, seen), ("failed", session, error)    seen: A's, as the generator was given it

Conversations are apart: what goes wrong in one ends that one.
"""

import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.errors import InputError
from rsatalker_jax.live.seen import SeenMotion
from rsatalker_jax.types import MOTION_DIM


class Stream(Protocol):
  """One conversation: `motion.MotionStream`."""

  frames_ahead: int

  def reset(self) -> None: ...
  def prime(self, speech_b: np.ndarray) -> None: ...
  def push(self, speech_a: np.ndarray, motion_a: np.ndarray, speech_b: np.ndarray) -> Float[np.ndarray, "T 56"]: ...


class Engine(Protocol):
  """What makes motion; `engine.RunEngine` of a trained run, and simpler ones in tests.

  Attributes:
    about: what the page has to know, as JSON.
    avatar: its tables, packed (`media.tables`).
    neutral: A's motion where nobody knows it.
    streams: as many as there may be conversations at once, compiled.
  """

  about: dict[str, Any]
  avatar: bytes
  neutral: Float[np.ndarray, "56"]
  streams: list[Any]

  def relate(self, stream: Any, relation: Int[np.ndarray, "2"]) -> None: ...


class _Ended(Exception):
  """The other side of the pipe has gone."""


def work(connection: multiprocessing.connection.Connection, make_engine: Callable[..., Engine], arguments: tuple) -> None:
  """Answers until the other side closes the pipe."""
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C ends the server, which closes the pipe.
  with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
    try:
      engine = make_engine(*arguments)
    except InputError as error:
      connection.send(("refused", (str(error.file), error.key, str(error.found), str(error.expected))))
      return
    connection.send(("ready", engine.about, engine.avatar))
    free, busy = list(engine.streams), {}
    faces: dict[int, SeenMotion] = {}
    while True:
      kind, session, *given = connection.recv()
      if kind == "close":
        if session in busy:
          free.append(busy.pop(session))
          del faces[session]
        continue
      if kind != "open" and session not in busy:  # Frames that were under way when it failed.
        continue
      try:
        if kind == "open":
          relation, first = given
          stream = busy[session] = free.pop()
          faces[session] = SeenMotion()
          stream.reset()
          engine.relate(stream, relation)
          stream.prime(_to_wav(first))
        elif kind == "relation":
          engine.relate(busy[session], *given)
        else:
          number, speech_a, speech_b, motion = given
          motion_a = faces[session].mix(motion, engine.neutral)
          made = busy[session].push(_to_wav(speech_a), motion_a.reshape(1, MOTION_DIM), _to_wav(speech_b))
          if not np.isfinite(made).all():
            raise InputError("generator", "motion", "values that are not finite", "numbers")
          connection.send(("motion", session, number, made[0], motion_a))
      except InputError as error:
        if session in busy:
          free.append(busy.pop(session))
          del faces[session]
        connection.send(("failed", session, str(error)))


def _to_wav(sound: Int[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
  return sound.astype(np.float32) / 32768


class Worker:
  """The process, as the server sees it.

  Attributes:
    about, avatar: of the engine.
    trouble: why it answers no more; None while it does.
  """

  def __init__(self, make_engine: Callable[..., Engine], *arguments, own_process: bool = True):
    """Starts it and waits until it is ready.

    Args:
      make_engine: a function of a module, since the process imports it.
      arguments: what it is given; they are pickled.
      own_process: False is for tests of all but the process: a thread.

    Raises:
      InputError: what `make_engine` raised; or the process ended.
    """
    context = multiprocessing.get_context("spawn")  # JAX has threads, which a fork would break.
    self._connection, theirs = context.Pipe()
    kind = context.Process if own_process else threading.Thread
    self._target = kind(target=work, args=(theirs, make_engine, arguments), daemon=True)
    self._target.start()
    if own_process:
      theirs.close()
    self.trouble: str | None = None
    self._loop: asyncio.AbstractEventLoop
    self._hear: dict[int, Callable[..., None]] = {}
    try:
      kind, *given = self._connection.recv()
    except EOFError:
      raise InputError("generator", "", "a process that ended before it was ready", "one that answers") from None
    if kind == "refused":
      self._target.join()
      raise InputError(*given[0])
    self.about, self.avatar = given

  def attach(self, loop: asyncio.AbstractEventLoop) -> None:
    """Answers are heard in this loop from now on."""
    self._loop = loop
    loop.add_reader(self._connection.fileno(), self._read)

  def _read(self) -> None:
    try:
      while self._connection.poll():
        kind, session, *given = self._connection.recv()
        if session in self._hear:
          self._hear[session](kind, *given)
    except (EOFError, OSError):
      self._loop.remove_reader(self._connection.fileno())
      self.trouble = "the generator's process has ended; start the program again"
      for hear in list(self._hear.values()):
        hear("failed", self.trouble)

  def open(self, session: int, relation: np.ndarray, first: np.ndarray, hear: Callable[..., None]) -> None:
    """Begins a conversation. `hear` is called with ("motion", number, motion, seen) for each frame, or ("failed", message) once."""
    self._hear[session] = hear
    self._send("open", session, relation, first)

  def push(self, session: int, number: int, speech_a: np.ndarray, speech_b: np.ndarray, motion: np.ndarray | None) -> None:
    self._send("frame", session, number, speech_a, speech_b, motion)

  def relate(self, session: int, relation: np.ndarray) -> None:
    self._send("relation", session, relation)

  def close(self, session: int) -> None:
    """Ends a conversation; nothing more is heard of it."""
    if self._hear.pop(session, None):
      self._send("close", session, None)

  def _send(self, *message) -> None:
    if self.trouble is None:
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_read` tells it.
        self._connection.send(message)

  def detach(self) -> None:
    """Hears no more; in the loop of `attach`."""
    if self.trouble is None:
      self._loop.remove_reader(self._connection.fileno())
      self.trouble = "the program has ended"

  def stop(self) -> None:
    """Ends the process."""
    self._connection.close()
    self._target.join(timeout=5)
    if not isinstance(self._target, threading.Thread) and self._target.is_alive():
      self._target.kill()
      self._target.join()
