"""An engine that shows in the motion what it was given, for tests of all that is around the generator."""

import time

import numpy as np

from rsatalker_jax.errors import InputError

# Where in the motion it is shown.
RELATION, OWN, SEEN, FRAME, JAW = slice(0, 2), 2, 3, 4, 50
GAIN = 2.0  # Radians of jaw for each unit of A's loudness.
FAILS, HANGS = 9.0, -9.0  # In A's motion, as soon as it is on the way there: for a stream that fails, and one that takes a second for a frame.


def loudness(wav: np.ndarray) -> float:
  return float(np.sqrt(np.mean(np.square(wav))))


class ProbeStream:
  def __init__(self, frames_ahead: int):
    self.frames_ahead, self.relation = frames_ahead, np.zeros(2)

  def reset(self):
    self.frame, self.primed = 0, None

  def prime(self, speech_b):
    assert len(speech_b) == 640 * self.frames_ahead and self.primed is None
    self.primed = speech_b

  def push(self, speech_a, motion_a, speech_b):
    assert self.primed is not None and speech_a.shape == speech_b.shape == (640,) and motion_a.shape == (1, 56)
    motion = np.zeros((1, 56), np.float32)
    motion[0, RELATION], motion[0, OWN], motion[0, SEEN] = self.relation, loudness(speech_b), motion_a[0, 0]
    motion[0, FRAME], motion[0, JAW] = self.frame, min(GAIN * loudness(speech_a), 0.5)
    if motion_a[0, 1] > 0.5:
      raise InputError("stream", "probe", "a failure", "none")
    if motion_a[0, 1] < 0:
      time.sleep(1)
    self.frame += 1
    return motion


class ProbeEngine:
  def __init__(
      self, frames_ahead: int = 0, conversations: int = 2, about: dict | None = None, avatar: bytes = b"tables", others: dict | None = None
  ):
    self.about = {"frames_ahead": frames_ahead, **(about or {})}
    self.avatar, self.others = avatar, others or {}
    self.neutral, self.partner = np.full(56, 0.25, np.float32), None
    self.streams = [ProbeStream(frames_ahead) for _ in range(conversations)]
    self.steps = []  # How many conversations each was of.

  def relate(self, stream, relation):
    stream.relation = np.array(relation)

  def push(self, frames):
    self.steps.append(len(frames))
    return [self._answer(stream, *given) for stream, *given in frames]

  def _answer(self, stream, *given):
    try:
      return stream.push(*given)
    except InputError as error:
      return error


def refuse(path: str):
  raise InputError(path, "generator.causal", "a generator that looks ahead", "one that is causal")


VOICE = 2000  # Of all samples' mean: what `Voices` takes for a voice.


class Voices:
  title, yields = "voices", 0

  def hear(self, session, sound):
    return float(sound.mean() > VOICE / 2)

  def forget(self, session):
    pass


class Words(Voices):
  title = "words"

  def hear(self, session, sound):
    return f"I am {len(sound) // 640} frames long"
