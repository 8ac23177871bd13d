"""Several conversations in progress on one device, a frame of each at a time: `streaming.step` under `jax.vmap`.

    batch = load_run("runs/causal").stream_batch(8)
    first, second = batch.streams[:2]  # Each like a `MotionStream`.
    made = batch.push([(first, speech_a, motion_a, speech_b), (second, …)])  # (1, 56) each: 40 ms of both.

There is one program, of all places: those without a frame are computed too, and their state stays what it was. So it takes as long for
one conversation as for all, and what somebody is answered depends on nobody else, not by a bit.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from rsatalker_jax.errors import InputError
from rsatalker_jax.motion.generator import MotionGenerator
from rsatalker_jax.motion.streaming import Params, init_state, prime, speech_width, step
from rsatalker_jax.speech.logmel import LogMel
from rsatalker_jax.types import MOTION_DIM, SAMPLES_PER_FRAME, Motion


class StreamBatch:
  """As many conversations as there are places.

  Attributes:
    streams: the places.
    frames_ahead: see `MotionStream`.
  """

  def __init__(
      self,
      generator: MotionGenerator,
      variables: Params,
      social: Float[np.ndarray, "D"],
      places: int,
      *,
      encoder: LogMel | None = None,
      level: bool = False,
  ):
    """Compiles all that is needed.

    Args:
      generator, variables, encoder, level: see `streaming.init_state`.
      social: the motion social feature s that every place begins with.
      places: how many conversations there may be at once.

    Raises:
      InputError: see `init_state`; or no place.
    """
    if places < 1:
      raise InputError("stream", "places", places, "at least 1")
    self._variables = jax.device_put(variables)
    first = init_state(generator, variables, encoder=encoder, level=level)
    self._first_state = jax.device_get(first)
    self._state = jax.tree.map(lambda x: jnp.stack([x] * places), first)
    self._socials = np.tile(np.asarray(social, np.float32), (places, 1))
    self.frames_ahead = generator.config.frames_ahead
    # Of a frame of one voice: samples, or a row of features.
    self._shape = (SAMPLES_PER_FRAME,) if encoder else (1, speech_width(generator, variables))
    self._beginning = (self.frames_ahead * self._shape[0], *self._shape[1:])
    self._step, self._prime = _compiled_step(generator, encoder, places), _compiled_prime(generator, encoder)
    self.streams = [BatchedStream(self, place) for place in range(places)]
    stream, frame = self.streams[0], np.zeros(self._shape, np.float32)
    stream.prime(np.zeros(self._beginning, np.float32))
    stream.push(frame, np.zeros((1, MOTION_DIM), np.float32), frame)
    stream.reset()

  def push(
      self, frames: Sequence[tuple["BatchedStream", np.ndarray, np.ndarray, np.ndarray]]
  ) -> list[Float[np.ndarray, "1 56"] | InputError]:
    """The next frame of some conversations, at most one of each.

    Args:
      frames: the place, and `speech_a`, `motion_a`, `speech_b` as `MotionStream.push` has them, of one frame.

    Returns:
      B's motion of each; or what is wrong with a frame, whose conversation is as it was before.
    """
    places = len(self.streams)
    speech = np.zeros((2, places, *self._shape), np.float32)
    motion, given = np.zeros((places, 1, MOTION_DIM), np.float32), np.zeros(places, bool)
    answers: list = [None] * len(frames)
    for i, (stream, speech_a, motion_a, speech_b) in enumerate(frames):
      place = stream.place
      try:
        if not stream.primed:
          raise InputError("stream", "prime", "no call", f"the first {self.frames_ahead} frames of B's voice before the first push")
        if given[place]:
          raise InputError("stream", "push", "two frames of one conversation", "one at a time")
        checked = self._checked("speech_a", speech_a, self._shape), self._checked("speech_b", speech_b, self._shape)
        motion[place] = self._checked("motion_a", motion_a, (1, MOTION_DIM))
        speech[:, place], given[place] = checked, True
      except InputError as error:
        answers[i] = error
    if given.any():
      known = np.int32(1) if self.frames_ahead else None
      self._state, made = self._step(self._variables, self._state, given, speech[0], motion, speech[1], self._socials, known)
      made = np.asarray(made)
      answers = [made[frame[0].place] if answer is None else answer for frame, answer in zip(frames, answers, strict=True)]
    return answers

  def _checked(self, name: str, x: np.ndarray, shape: tuple[int, ...], what: str = "one frame") -> np.ndarray:
    x = np.asarray(x, np.float32)
    if x.shape != shape:
      raise InputError("stream", name, f"shape {x.shape}", f"{shape}: {what}")
    if not np.isfinite(x).all():
      raise InputError("stream", name, "values that are not finite", "numbers")
    return x

  def reset(self, place: int) -> None:
    self._state = _put(self._state, self._first_state, np.int32(place))

  def prime(self, place: int, speech_b: np.ndarray) -> None:
    speech_b = self._checked("speech_b", speech_b, self._beginning, "the first frames of B's voice")
    if self.frames_ahead:
      self._state = self._prime(self._variables, self._state, np.int32(place), speech_b, np.int32(self.frames_ahead))

  def social(self, place: int) -> Float[np.ndarray, "D"]:
    """That place's, to read or to write into."""
    return self._socials[place]


class BatchedStream:
  """One place of a `StreamBatch`, with the methods of `MotionStream` for whole frames of a conversation that has no end.

  Attributes:
    place: its number.
    primed: whether `push` may be called.
  """

  def __init__(self, batch: StreamBatch, place: int):
    self._batch, self.place = batch, place
    self.frames_ahead = batch.frames_ahead
    self.primed = self.frames_ahead == 0

  def reset(self) -> None:
    """Begins another conversation here; the others go on."""
    self._batch.reset(self.place)
    self.primed = self.frames_ahead == 0

  def prime(self, speech_b: np.ndarray) -> None:
    """Takes the first `frames_ahead` frames of B's voice, before the first `push`; where that is 0, nothing.

    Raises:
      InputError: another length, values that are not finite, or a conversation that has begun.
    """
    if self.primed and self.frames_ahead:
      raise InputError("stream", "prime", "a conversation that has begun", "the first call after reset()")
    self._batch.prime(self.place, speech_b)
    self.primed = True

  @property
  def social(self) -> Float[np.ndarray, "D"]:
    """The motion social feature s; another one holds from the next frame on."""
    return self._batch.social(self.place)

  @social.setter
  def social(self, social: Float[ArrayLike, "D"]) -> None:
    self._batch.social(self.place)[:] = np.asarray(social, np.float32)

  def push(self, speech_a: np.ndarray, motion_a: np.ndarray, speech_b: np.ndarray) -> Motion:
    """A frame of this conversation alone, which takes as long as one of all.

    Raises:
      InputError: see `StreamBatch.push`.
    """
    (answer,) = self._batch.push([(self, speech_a, motion_a, speech_b)])
    if isinstance(answer, InputError):
      raise answer
    return answer


@functools.lru_cache(maxsize=8)
def _compiled_step(generator: MotionGenerator, encoder: LogMel | None, places: int):
  """A frame of all places; the state's memory is used again."""

  def step_all(variables, state, given, speech_a, motion_a, speech_b, socials, known):
    one = lambda *inputs: step(generator, variables, *inputs, known, encoder=encoder)
    inputs = state, speech_a, motion_a, speech_b, socials
    if places == 1:  # The very program of `MotionStream`, to the bit.
      after, made = jax.tree.map(lambda x: x[None], one(*jax.tree.map(lambda x: x[0], inputs)))
    else:
      after, made = jax.vmap(one)(*inputs)
    keep = lambda new, old: jnp.where(given.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return jax.tree.map(keep, after, state), made

  return jax.jit(step_all, donate_argnums=1)


@functools.lru_cache(maxsize=8)
def _compiled_prime(generator: MotionGenerator, encoder: LogMel | None):
  """`streaming.prime` of one place."""

  def prime_one(variables, state, place, speech_b, known):
    after = prime(generator, variables, jax.tree.map(lambda x: x[place], state), speech_b, known, encoder=encoder)
    return _put(state, after, place)

  return jax.jit(prime_one, donate_argnums=1)


@functools.partial(jax.jit, donate_argnums=0)
def _put(state, one, place):
  return jax.tree.map(lambda all_, x: all_.at[place].set(x), state, one)
