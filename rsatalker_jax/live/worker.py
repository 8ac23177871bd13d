"""The generator in a process of its own, where nothing else keeps it waiting, and the asyncio side of the pipe to it.

    to it      ("open", session, relation, first)   first: what it hears of B before A's first frame, int16
               ("frame", session, number, a, b, motion)
               ("relation", session, relation)
               ("close", session, None)
    from it    ("ready", about, avatar, others) or ("refused", error) once, then
               ("motion", session, number, motion, seen), ("failed", session, error)    seen: A's, as the generator was given it

Conversations are apart: what goes wrong in one ends that one. A frame of each that has one goes to the engine together.
"""

import asyncio
import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.errors import InputError
from rsatalker_jax.live.partner import InventedPartner
from rsatalker_jax.live.processes import PipedProcess
from rsatalker_jax.live.seen import SeenMotion


class Stream(Protocol):
  """One conversation: a place of a `motion.StreamBatch`."""

  frames_ahead: int

  def reset(self) -> None: ...
  def prime(self, speech_b: np.ndarray) -> None: ...


class Engine(Protocol):
  """What makes motion; `engine.RunEngine` of a trained run, and simpler ones in tests.

  Attributes:
    about: what the page has to know, as JSON.
    avatar: its tables, packed (`media.tables`).
    others: those of other people's avatars that the page can choose; `about["others"]` has what it has to know of each.
    neutral: A's motion where nobody knows it …
    partner: … and nothing invents it.
    streams: as many as there may be conversations at once, compiled.
  """

  about: dict[str, Any]
  avatar: bytes
  others: Mapping[str, bytes]
  neutral: Float[np.ndarray, "56"]
  partner: InventedPartner | None
  streams: list[Any]

  def relate(self, stream: Any, relation: Int[np.ndarray, "2"]) -> None: ...

  def push(
      self, frames: Sequence[tuple[Any, np.ndarray, np.ndarray, np.ndarray]]
  ) -> Sequence[Float[np.ndarray, "1 56"] | InputError]:
    """See `motion.StreamBatch.push`."""
    ...


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
    connection.send(("ready", engine.about, engine.avatar, engine.others))
    answering = _Answering(connection, engine)
    while True:
      answering.gather()
      answering.step()


# Seconds that a frame waits for those of other conversations, so that fewer steps are taken: at most as long as a step takes, and
# never longer than this.
_GATHER = 0.004


class _Answering:
  """All conversations of an engine: what each has sent and is not answered yet, and a step of all of them."""

  def __init__(self, connection: multiprocessing.connection.Connection, engine: Engine):
    self._connection, self._engine = connection, engine
    self._free, self._busy = collections.deque(engine.streams), {}
    self._faces: dict[int, SeenMotion] = {}
    # By session ("frame", …) and ("relation", …), in the order in which they came; the first is a frame.
    self._waiting: dict[int, collections.deque[tuple]] = {}
    self._step_seconds = 0.0  # That the last step took.

  def gather(self) -> None:
    """Takes messages until there are frames: those that have come, and for a moment those of others that are due."""
    while not self._waiting:
      self._take(*self._connection.recv())
    until = time.monotonic() + min(_GATHER, self._step_seconds)
    while self._connection.poll() or (
        len(self._waiting) < len(self._busy) and self._connection.poll(max(until - time.monotonic(), 0.0))
    ):
      self._take(*self._connection.recv())

  def step(self) -> None:
    """Answers the first frame of each conversation that has one."""
    if not self._waiting:
      return
    now = {session: queue.popleft() for session, queue in self._waiting.items()}
    began = time.monotonic()
    partner = self._engine.partner
    voices = [(self._busy[session], _to_wav(a), _to_wav(b)) for session, (_, _, a, b, _) in now.items()]
    supposed = [self._engine.neutral] * len(now) if partner is None else partner.suppose(voices)
    frames = []
    for (session, (*_, motion)), (stream, voice_a, voice_b), face in zip(now.items(), voices, supposed, strict=True):
      frames.append((stream, voice_a, self._faces[session].mix(motion, face)[None], voice_b))
    answers = self._engine.push(frames)
    self._step_seconds = time.monotonic() - began
    for (session, (_, number, *_)), (_, _, seen, _), answer in zip(now.items(), frames, answers, strict=True):
      with self._apart(session):
        if isinstance(answer, InputError):
          raise answer
        if not np.isfinite(answer).all():
          raise InputError("generator", "motion", "values that are not finite", "numbers")
        if partner is not None:
          partner.see(self._busy[session], answer[0])
        self._connection.send(("motion", session, number, answer[0], seen[0]))
        queue = self._waiting[session]
        while queue and queue[0][0] == "relation":
          self._engine.relate(self._busy[session], queue.popleft()[1])
        if not queue:
          del self._waiting[session]

  def _take(self, kind: str, session: int, *given) -> None:
    if kind == "open":
      with self._apart(session):
        relation, first = given
        stream = self._busy[session] = self._free.popleft()
        self._faces[session] = SeenMotion()
        stream.reset()
        if self._engine.partner is not None:
          self._engine.partner.begin(stream)
        self._engine.relate(stream, relation)
        stream.prime(_to_wav(first))
    elif kind == "close":
      while session in self._waiting:  # What came before is answered: a conversation may begin anew under the same number.
        self.step()
      self._end(session)
    elif session not in self._busy:  # Frames that were under way when it failed.
      pass
    elif kind == "relation" and session not in self._waiting:
      with self._apart(session):
        self._engine.relate(self._busy[session], *given)
    else:
      self._waiting.setdefault(session, collections.deque()).append((kind, *given))

  @contextlib.contextmanager
  def _apart(self, session: int) -> Iterator[None]:
    """What goes wrong within ends this conversation and no other."""
    try:
      yield
    except (EOFError, BrokenPipeError, ConnectionResetError):
      raise
    except Exception as error:
      if not isinstance(error, InputError):  # A fault of the program, of which this line is not enough.
        traceback.print_exc()
      self._end(session)
      self._connection.send(("failed", session, str(error)))

  def _end(self, session: int) -> None:
    self._waiting.pop(session, None)
    if session in self._busy:
      self._free.append(self._busy.pop(session))
      self._faces.pop(session, None)


def _to_wav(sound: Int[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
  return sound.astype(np.float32) / 32768


class Worker(PipedProcess):
  """The process, as the server sees it.

  Attributes:
    about, avatar, others: of the engine.
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
    super().__init__(work, make_engine, arguments, own_process=own_process)
    self.trouble: str | None = None
    self._loop: asyncio.AbstractEventLoop
    self._hear: dict[int, Callable[..., None]] = {}
    kind, *given = self._hear_first()
    if kind == "ended":
      raise InputError("generator", "", "a process that ended before it was ready", "one that answers")
    if kind == "refused":
      raise InputError(*given[0])
    self.about, self.avatar, self.others = given

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
