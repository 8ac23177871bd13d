"""The generator's process: frames of all conversations that have one go together, and what goes wrong in one ends that one."""

import collections
import contextlib

import numpy as np
import pytest

from live import probe
from rsatalker_jax.live import worker
from rsatalker_jax.live.worker import _Answering

QUIET, RELATION, NONE = np.zeros(640, np.int16), np.array([1, 1]), np.zeros(0, np.int16)
TONE = np.full(640, 3277, np.int16)


class Pipe:
  """A pipe's end with messages that are there, and some that come when somebody waits for them."""

  def __init__(self, *there):
    self.there, self.late, self.sent, self.waits = collections.deque(there), collections.deque(), [], []

  def recv(self):
    if not self.there:
      raise EOFError
    return self.there.popleft()

  def poll(self, timeout=0.0):
    if not self.there and timeout > 0:
      self.waits.append(timeout)
      if self.late:
        self.there.append(self.late.popleft())
    return bool(self.there)

  def send(self, message):
    self.sent.append(message)

  def motions(self):
    """(session, number, what the probe shows) of the answers so far."""
    return [tuple(rest[:3]) for kind, *rest in self.sent if kind == "motion"]


def frame(session, number, sound=QUIET, motion=None):
  return "frame", session, number, sound, QUIET, motion


def begin(count, *messages, engine=None):
  """A desk with so many conversations under way, the messages lying there."""
  engine = engine or probe.ProbeEngine(0, count)
  pipe = Pipe(*(("open", session, RELATION, NONE) for session in range(count)), *messages)
  return engine, pipe, _Answering(pipe, engine)


def test_a_frame_of_each_goes_together_and_each_keeps_its_order():
  engine, pipe, answering = begin(3, frame(0, 0), frame(1, 0, TONE), frame(0, 1, TONE), frame(2, 0), frame(0, 2))
  for _ in range(3):
    answering.gather()
    answering.step()
  assert engine.steps == [3, 1, 1]
  assert [(session, number) for session, number, _ in pipe.motions()] == [(0, 0), (1, 0), (2, 0), (0, 1), (0, 2)]
  jaws = [motion[probe.JAW] for _, _, motion in pipe.motions()]
  np.testing.assert_allclose(jaws, [0, 0.2, 0, 0.2, 0], atol=1e-4)  # Each is answered by its own sound.
  np.testing.assert_array_equal([message[4] for message in pipe.sent], np.full((5, 56), 0.25))  # And told what A's face was taken to be.
  assert [motion[probe.FRAME] for _, _, motion in pipe.motions()] == [0, 0, 0, 1, 2]
  with pytest.raises(EOFError):
    answering.gather()


def test_it_waits_for_those_that_are_due_but_not_for_long():
  engine, pipe, answering = begin(3, frame(0, 0))
  pipe.late.extend([frame(1, 0), frame(2, 0)])
  answering._step_seconds = 5.0  # As the last step took.
  answering.gather()
  answering.step()
  assert engine.steps == [3] and len(pipe.waits) == 2 and max(pipe.waits) <= worker._GATHER < 0.005
  pipe.there.extend([frame(0, 1), frame(1, 1)])
  answering._step_seconds = 1e-9  # A step that takes no time is worth no waiting.
  answering.gather()
  assert len(pipe.waits) == 2
  answering.step()
  assert engine.steps == [3, 2]


def test_nobody_waits_where_all_are_there_or_alone():
  engine, pipe, answering = begin(2, frame(0, 0), frame(1, 0))
  answering._step_seconds = 5.0
  answering.gather()
  answering.step()
  pipe.there.extend([("close", 1, None), frame(0, 1)])
  answering._step_seconds = 5.0
  answering.gather()
  answering.step()
  assert engine.steps == [2, 1] and pipe.waits == []


def test_a_relation_holds_from_the_frame_behind_it():
  relation = lambda value: ("relation", 0, np.array(value))
  _, pipe, answering = begin(1, frame(0, 0), relation([0, 1]), frame(0, 1), relation([0, 0]), relation([0, -1]), frame(0, 2))
  for _ in range(3):
    answering.gather()
    answering.step()
  pipe.there.extend([relation([-1, -1]), frame(0, 3)])
  answering.gather()
  answering.step()
  assert [motion[probe.RELATION].tolist() for _, _, motion in pipe.motions()] == [[1, 1], [0, 1], [0, -1], [-1, -1]]


def test_what_came_before_the_end_is_answered_before_it():
  """As where a conversation begins anew under its number, for a recording."""
  again = ("close", 0, None), ("open", 0, np.array([0, 0]), NONE)
  engine, pipe, answering = begin(2, frame(0, 0), frame(0, 1), frame(1, 0), frame(0, 2), *again, frame(0, 3))
  answering.gather()
  answering.step()
  assert [(session, number, motion[probe.FRAME]) for session, number, motion in pipe.motions()] == [
      (0, 0, 0), (1, 0, 0), (0, 1, 1), (0, 2, 2), (0, 3, 0),
  ]  # fmt: skip
  assert [motion[probe.RELATION].tolist() for session, _, motion in pipe.motions() if session == 0] == [[1, 1]] * 3 + [[0, 0]]
  pipe.there.append(("close", 1, None))
  pipe.there.extend([("open", 2, RELATION, NONE), frame(2, 0)])
  answering.gather()
  answering.step()
  assert pipe.motions()[-1][:2] == (2, 0) and engine.steps == [2, 1, 1, 1, 1]


class Breaks(probe.ProbeEngine):
  """Of three places: one breaks by a fault of the program when it begins, one gives what is no number, one is as it should be."""

  def __init__(self):
    super().__init__(0, 3)
    self.streams[0].prime = lambda speech_b: 1 // 0

  def push(self, frames):
    answers = super().push(frames)
    return [answer * np.nan if stream is self.streams[1] else answer for (stream, *_), answer in zip(frames, answers, strict=True)]


def test_what_breaks_in_one_ends_that_one(capsys):
  engine, pipe, answering = begin(3, frame(0, 0), frame(1, 0), frame(1, 1), frame(2, 0), engine=Breaks())
  answering.gather()
  answering.step()
  kinds = {session: kind for kind, session, *_ in pipe.sent}
  assert kinds == {0: "failed", 1: "failed", 2: "motion"}
  told = {session: rest[0] for kind, session, *rest in pipe.sent if kind == "failed"}
  assert "by zero" in told[0] and "not finite" in told[1]
  assert "ZeroDivisionError" in capsys.readouterr().err  # The whole of it is for whoever runs the program.
  pipe.there.extend([frame(1, 2), frame(2, 1)])  # What was under way of one that has ended is nothing.
  answering.gather()
  answering.step()
  assert engine.steps == [2, 1] and pipe.motions()[-1][:2] == (2, 1)
  # Both places are free again, and one more conversation than there are places has none.
  del engine.streams[0].prime
  pipe.there.extend([("close", 0, None), ("close", 1, None), *(("open", n, RELATION, NONE) for n in (3, 4, 5)), frame(3, 0)])
  answering.gather()
  assert [session for kind, session, *_ in pipe.sent if kind == "failed"] == [0, 1, 5] and len(pipe.there) == 0


def test_the_end_of_the_pipe_is_the_end():
  _, pipe, answering = begin(1, frame(0, 0))
  answering.gather()
  pipe.send = lambda message: (_ for _ in ()).throw(BrokenPipeError)
  with pytest.raises(BrokenPipeError):
    answering.step()
  with contextlib.suppress(BrokenPipeError):
    worker.work(Pipe(), probe.ProbeEngine, ())
