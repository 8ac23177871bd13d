"""What the server has beside it: a process at the other end of a pipe, so that nothing waits for it."""

import multiprocessing
import threading
from collections.abc import Callable


class PipedProcess:
  """Such a process.

  Attributes:
    target: the process, or the thread in its place.
  """

  def __init__(self, work: Callable[..., None], *arguments, own_process: bool):
    """Starts it.

    Args:
      work: a function of a module, since the process imports it: of its end of the pipe and `arguments`, until the other is closed.
      own_process: False is for tests of all but the process: a thread.
    """
    context = multiprocessing.get_context("spawn")  # JAX has threads, which a fork would break.
    self._connection, theirs = context.Pipe()
    kind = context.Process if own_process else threading.Thread
    self.target = kind(target=work, args=(theirs, *arguments), daemon=True)
    self.target.start()
    if own_process:
      theirs.close()

  def _hear_first(self) -> tuple:
    """What it says when it is ready, or ("refused", …), after which it ends; ("ended",) where it ended before it could."""
    try:
      said = self._connection.recv()
    except EOFError:
      return ("ended",)
    if said[0] == "refused":
      self.target.join()
    return said

  def stop(self) -> None:
    """Ends it."""
    self._connection.close()
    self.target.join(timeout=5)
    if not isinstance(self.target, threading.Thread) and self.target.is_alive():
      self.target.kill()
      self.target.join()
