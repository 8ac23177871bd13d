"""B's motion while the conversation goes on: the causal generator, given the conversation piece by piece.

    stream = load_run("runs/causal").stream(parse_relation("blood,equal"))  # A run of configs/demo.py:causal.
    for speech_a, motion_a, speech_b in conversation:  # For example (640,), (1, 56), (640,): 40 ms.
      motion_b = stream.push(speech_a, motion_a, speech_b)  # (1, 56), at once.

Where B is a program that knows what it will say (`generator.own_lookahead`), its voice comes `stream.frames_ahead` frames ahead:

    ahead = 640 * stream.frames_ahead
    stream.prime(speech_b[:ahead])  # What B says first, before A is heard.
    motion_b = stream.push(speech_a[:640], motion_a[:1], speech_b[ahead : ahead + 640])  # And so on.

The network is that of `motion.generator`; its layers keep the frames that they still need in Flax's collection "history".
All that is remembered is the state: for each attention the keys and values of the last `reach` frames, for each
convolution the frames of its kernel, of each voice the samples that the next frame's windows share with the last, of B's own
what was heard ahead. It has
the same size from the first frame on, and no number in it grows with time, so that the thousandth minute is computed as
the first is. In whatever pieces a conversation comes, the motion is that of `generator.apply` on the whole, but for the
order of float32 sums.

`step` is a pure function of one conversation: `jax.vmap` makes one of many, each at its own time. `MotionStream` is for one
conversation from an ordinary program.

Voices may be samples where the speech encoder is `LogMel(causal=True)`. Wav2Vec 2.0 and Whisper hear the whole of a voice at once, so
it has no such form: a stream then takes features, from whatever made them, and is as causal as they are.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rsatalker_jax.errors import InputError
from rsatalker_jax.motion.generator import MotionGenerator
from rsatalker_jax.motion.layers import FrameCount
from rsatalker_jax.speech.level import init_level, normalise_level
from rsatalker_jax.speech.logmel import LogMel, to_frames
from rsatalker_jax.types import MOTION_DIM, SAMPLES_PER_FRAME, Motion

Params = dict[str, Any]
# {"history": the layers' collection, "voices": (2, P) last samples of A and B; without an encoder (2, 0);
#  "levels": where voices are brought to one level, the state of that for both}
State = dict[str, Any]


def init_state(
    generator: MotionGenerator, variables: Params, *, encoder: LogMel | None = None, level: bool = False
) -> State:
  """The state before a conversation's first frame.

  Args:
    generator: causal.
    variables: its collections "params" and "statistics".
    encoder: causal, if `step` is to take samples; None if it is to take features.
    level: whether `step` brings samples to one level first (`speech.level`); features have been so already.

  Raises:
    InputError: if one of the two looks ahead, or they do not fit together.
  """
  if not isinstance(generator, MotionGenerator):
    raise InputError("generator", "architecture", repr(generator.config.architecture), "'rsatalker', which alone can be streamed")
  if not generator.config.causal:
    raise InputError("generator", "causal", "a generator that looks ahead", "one trained with generator.causal=True")
  width = speech_width(generator, variables)
  if encoder is not None and not encoder.causal:
    raise InputError("speech encoder", "causal", "one that looks ahead", "one with speech.causal=True")
  if encoder is not None and encoder.features != width:
    raise InputError("speech encoder", "features", encoder.features, f"{width}, as the generator was trained with")
  frame = lambda features: jax.ShapeDtypeStruct((1, features), jnp.float32)
  apply = functools.partial(generator.apply, mutable=["history"])
  social = jax.ShapeDtypeStruct((generator.config.features,), jnp.float32)
  _, kept = jax.eval_shape(apply, variables, frame(width), frame(MOTION_DIM), frame(width), social)
  history = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), kept["history"])
  state = {"history": history, "voices": jnp.zeros((2, encoder.overhang if encoder else 0))}
  return state | ({"levels": jax.tree.map(lambda x: jnp.stack([x, x]), init_level())} if level else {})


def step(
    generator: MotionGenerator,
    variables: Params,
    state: State,
    speech_a: Float[Array, "T D"] | Float[Array, "S"],
    motion_a: Float[Array, "T 56"],
    speech_b: Float[Array, "T D"] | Float[Array, "S"],
    social: Float[Array, "D"],
    known_b: FrameCount = None,
    *,
    encoder: LogMel | None = None,
) -> tuple[State, Float[Array, "T 56"]]:
  """The next frames of B's motion.

  Args:
    generator, variables: see `init_state`.
    state: of `init_state`, `prime` or of the step before.
    speech_a, speech_b: the next piece of both voices: S = 640 T samples with an encoder, features at 25 fps without. With
      `own_lookahead` B's is that of `frames_ahead` frames later.
    motion_a: the next T frames of A's motion.
    social: the motion social feature s (`social.SocialModule`).
    known_b: with `own_lookahead`, how many frames of speech_b B's voice has: it ends with them. None: all.
    encoder: see `init_state`.

  Returns:
    The state after the piece, of the same shapes, and B's motion.
  """
  if encoder is not None:
    (speech_a, speech_b), heard = _hear(encoder, state, jnp.stack([speech_a, speech_b]), slice(2))
    state = state | heard
  variables = {**variables, "history": state["history"]}
  motion_b, kept = generator.apply(variables, speech_a, motion_a, speech_b, social, known_b=known_b, mutable=["history"])
  return {**state, **kept}, motion_b


def prime(
    generator: MotionGenerator,
    variables: Params,
    state: State,
    speech_b: Float[Array, "T D"] | Float[Array, "S"],
    known_b: FrameCount = None,
    *,
    encoder: LogMel | None = None,
) -> State:
  """The state before a conversation's first frame, when B's first words are known: of a generator with `own_lookahead`.

  Args:
    generator, variables, encoder: see `init_state`.
    state: of `init_state`.
    speech_b: of B's first T = `frames_ahead` frames; see `step`.
    known_b: how many of them B's voice has, where it is shorter.
  """
  if encoder is not None:
    (speech_b,), heard = _hear(encoder, state, speech_b[None], slice(1, 2))
    state = state | heard
  variables = {**variables, "history": state["history"]}
  _, kept = generator.apply(variables, speech_b, known_b, method="hear_ahead", mutable=["history"])
  return {**state, **kept}


def _hear(
    encoder: LogMel, state: State, wavs: Float[Array, "n S"], people: slice
) -> tuple[Float[Array, "n T D"], State]:
  """Features of the next pieces of some people's voices, and what of the state is other after them."""
  heard = {}
  if "levels" in state:
    levels, wavs = jax.vmap(normalise_level)(jax.tree.map(lambda x: x[people], state["levels"]), wavs)
    heard["levels"] = jax.tree.map(lambda x, after: x.at[people].set(after), state["levels"], levels)
  past, samples = state["voices"][people], wavs.shape[1]
  encode = lambda wav, past: to_frames(encoder.apply({}, wav, past), samples // SAMPLES_PER_FRAME)
  heard["voices"] = state["voices"].at[people].set(jnp.concatenate([past, wavs], axis=1)[:, samples:])
  return jnp.asarray(jax.vmap(encode)(wavs, past)), heard


def speech_width(generator: MotionGenerator, params: Params) -> int:
  """Features of a frame of speech that a generator's parameters are for."""
  return params["params"]["speech_adapter"]["context"]["taps"]["kernel"].shape[0] // generator.config.speech_kernel


def state_bytes(state: State) -> int:
  """Memory that a state takes."""
  return sum(x.nbytes for x in jax.tree.leaves(state))


@functools.lru_cache(maxsize=8)
def _compiled_step(generator: MotionGenerator, encoder: LogMel | None):
  """`step` of one model for all its streams, a program per length; the state's memory is used again."""
  return jax.jit(functools.partial(step, generator, encoder=encoder), donate_argnums=1)


@functools.lru_cache(maxsize=8)
def _compiled_prime(generator: MotionGenerator, encoder: LogMel | None):
  """`prime`, likewise."""
  return jax.jit(functools.partial(prime, generator, encoder=encoder), donate_argnums=1)


class MotionStream:
  """One conversation in progress.

  Attributes:
    state: see `step`.
    frames_ahead: by how many frames B's voice is given ahead of all else: first so many to `prime`. 0: by none.
  """

  def __init__(
      self,
      generator: MotionGenerator,
      variables: Params,
      social: Float[np.ndarray, "D"],
      *,
      encoder: LogMel | None = None,
      level: bool = False,
      lengths: Sequence[int] = (1, 5, 25),
  ):
    """Compiles what `push` will need, so that no frame has to wait for it.

    Args:
      generator, variables, encoder, level: see `init_state`.
      social: see `step`.
      lengths: numbers of frames that are computed together; pieces of other lengths are made of these. 1 is among them.

    Raises:
      InputError: see `init_state`; or lengths below 1.
    """
    if min(lengths, default=1) < 1:
      raise InputError("stream", "lengths", list(lengths), "numbers of frames, at least 1")
    self._lengths = sorted({1, *lengths}, reverse=True)
    self._encoder = encoder
    self._variables = jax.device_put(variables)
    self.social = social
    self._step, self._prime = _compiled_step(generator, encoder), _compiled_prime(generator, encoder)
    self.state = init_state(generator, variables, encoder=encoder, level=level)
    self._first_state = jax.device_get(self.state)
    self.frames_ahead = generator.config.frames_ahead
    self._width = speech_width(generator, variables)
    self._unit = SAMPLES_PER_FRAME if encoder else 1  # Samples, or rows of features, of a frame.
    self.reset()
    for frames in self._lengths:
      speech = self._silence(frames)
      self._advance(speech, np.zeros((frames, MOTION_DIM), np.float32), speech, frames)
    if self.frames_ahead:
      self.prime(self._silence(self.frames_ahead))
    self.reset()

  @property
  def social(self) -> Float[Array, "D"]:
    """The motion social feature s; another one, of the same size, holds from the next frame on."""
    return self._social

  @social.setter
  def social(self, social: Float[ArrayLike, "D"]) -> None:
    self._social = jnp.asarray(social, jnp.float32)

  def reset(self) -> None:
    """Begins another conversation."""
    self.state = jax.tree.map(jnp.array, self._first_state)  # Copies: a step uses their memory again.
    self._waiting = np.zeros((2, 0), np.float32)  # Samples of a frame that is not over yet.
    self._primed = self.frames_ahead == 0
    self._ended = False  # B's voice, where it is ahead.

  def prime(self, speech_b: np.ndarray, *, ended: bool = False) -> None:
    """Takes the first `frames_ahead` frames of B's voice, before the first `push`; where that is 0, nothing.

    Args:
      speech_b: with an encoder 640 samples for each of those frames, 16 kHz; without one, features (frames, D).
      ended: whether that is all that B says: speech_b may then be shorter.

    Raises:
      InputError: wrong shapes or lengths, values that are not finite, or a conversation that has begun. The stream is as it was
        before.
    """
    speech_b = np.asarray(speech_b, np.float32)
    self._check_speech("speech_b", speech_b)
    wanted = self.frames_ahead * self._unit
    if self._primed and self.frames_ahead:
      raise InputError("stream", "prime", "a conversation that has begun", "the first call after reset()")
    if len(speech_b) > wanted or (len(speech_b) < wanted and not ended):
      expected = f"{wanted}, the first {self.frames_ahead} frames of B's voice" + ", or fewer" * ended
      raise InputError("stream", "speech_b", f"length {len(speech_b)}", expected)
    if not self.frames_ahead:
      return
    known = len(speech_b) // self._unit
    padded = np.concatenate([speech_b, self._silence(self.frames_ahead)[len(speech_b) :]])
    self.state = self._prime(self._variables, self.state, padded, np.int32(known))
    self._primed, self._ended = True, ended

  def push(
      self,
      speech_a: np.ndarray,
      motion_a: np.ndarray,
      speech_b: np.ndarray,
      *,
      ended: bool = False,
  ) -> Motion:
    """Takes the next piece of the conversation and returns B's motion for all frames that it completes.

    Args:
      speech_a, speech_b: with an encoder any number of samples of both voices, 16 kHz, the same of each; those beyond the
        last whole frame wait for the next piece. Without one, features (T, D). B's are those of `frames_ahead` frames later.
      motion_a: A's motion for the T frames, 640 samples each, that are complete with this piece.
      ended: where B's voice is ahead: whether it ends with this piece. speech_b may then be shorter than speech_a, in later
        pieces it is empty, and the motion is that of a clip that ends there. What is said on in silence has not ended.

    Returns:
      (T, 56); T is 0 when no frame is complete.

    Raises:
      InputError: wrong shapes, lengths that do not agree, values that are not finite, or a stream that is not primed. It is as it
        was before.
    """
    if not self._primed:
      raise InputError("stream", "prime", "no call", f"the first {self.frames_ahead} frames of B's voice before the first push")
    voices = [np.asarray(x, np.float32) for x in (speech_a, speech_b)]
    motion_a = np.asarray(motion_a, np.float32)
    for name, x in zip(("speech_a", "speech_b"), voices):
      self._check_speech(name, x)
    if motion_a.ndim != 2 or motion_a.shape[1] != MOTION_DIM:
      raise InputError("stream", "motion_a", f"shape {motion_a.shape}", f"(T, {MOTION_DIM})")
    if not np.isfinite(motion_a).all():
      raise InputError("stream", "motion_a", "values that are not finite", "numbers")
    if self._ended and len(voices[1]):
      raise InputError("stream", "speech_b", f"length {len(voices[1])}", "0: B's voice has ended")
    ended = self._ended or (ended and self.frames_ahead > 0)
    if len(voices[1]) > len(voices[0]) or (len(voices[1]) < len(voices[0]) and not ended):
      raise InputError("stream", "speech_b", f"length {len(voices[1])}", f"{len(voices[0])}, as speech_a has")

    waiting = self._waiting
    known = 0 if self._ended else (waiting.shape[1] + len(voices[1])) // self._unit  # Frames of B's voice.
    voices[1] = np.concatenate([voices[1], np.zeros_like(voices[0][len(voices[1]) :])])
    if self._encoder:
      voices = np.concatenate([waiting, np.stack(voices)], axis=1)
      frames = voices.shape[1] // SAMPLES_PER_FRAME
      expected = f"{frames}: {voices.shape[1]} samples since the last whole frame"
      waiting = voices[:, frames * SAMPLES_PER_FRAME :]
    else:
      frames = len(voices[0])
      expected = f"{frames}, as speech_a has"
    if len(motion_a) != frames:
      raise InputError("stream", "motion_a", f"{len(motion_a)} frames", expected)

    self._waiting, self._ended, unit = waiting, ended, self._unit
    made, done = [np.zeros((0, MOTION_DIM), np.float32)], 0
    while done < frames:
      count = next(length for length in self._lengths if length <= frames - done)
      part = slice(done * unit, (done + count) * unit)
      made.append(self._advance(voices[0][part], motion_a[done : done + count], voices[1][part], known - done))
      done += count
    return np.concatenate(made)

  def _check_speech(self, name: str, x: np.ndarray) -> None:
    fits = x.ndim == 1 if self._encoder else x.ndim == 2 and x.shape[1] == self._width
    if not fits:
      raise InputError("stream", name, f"shape {x.shape}", "(S,)" if self._encoder else f"(T, {self._width})")
    if not np.isfinite(x).all():
      raise InputError("stream", name, "values that are not finite", "numbers")

  def _silence(self, frames: int) -> np.ndarray:
    return np.zeros(frames * self._unit if self._encoder else (frames, self._width), np.float32)

  def _advance(self, speech_a: np.ndarray, motion_a: np.ndarray, speech_b: np.ndarray, known: int) -> np.ndarray:
    known_b = np.int32(known) if self.frames_ahead else None
    self.state, motion_b = self._step(self._variables, self.state, speech_a, motion_a, speech_b, self._social, known_b)
    return np.asarray(motion_b)
