"""B's motion while the conversation goes on: the causal generator, given the conversation piece by piece.

    stream = load_run("runs/causal").stream(parse_relation("blood,equal"))  # A run of configs/demo.py:causal.
    for speech_a, motion_a, speech_b in conversation:  # For example (640,), (1, 56), (640,): 40 ms.
      motion_b = stream.push(speech_a, motion_a, speech_b)  # (1, 56), at once.

The network is that of `motion.generator`; its layers keep the frames that they still need in Flax's collection "history".
All that is remembered is the state: for each attention the keys and values of the last `reach` frames, for each
convolution the frames of its kernel, of each voice the samples that the next frame's windows share with the last. It has
the same size from the first frame on, and no number in it grows with time, so that the thousandth minute is computed as
the first is. In whatever pieces a conversation comes, the motion is that of `generator.apply` on the whole, but for the
order of float32 sums.

`step` is a pure function of one conversation: `jax.vmap` makes one of many, each at its own time. `MotionStream` is for one
conversation from an ordinary program.

Voices may be samples where the speech encoder is `LogMel(causal=True)`. Wav2Vec 2.0 hears the whole of a voice at once, so
it has no such form: a stream then takes features, from whatever made them, and is as causal as they are.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rsatalker_jax.errors import InputError
from rsatalker_jax.motion.generator import MotionGenerator
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
    *,
    encoder: LogMel | None = None,
) -> tuple[State, Float[Array, "T 56"]]:
  """The next frames of B's motion.

  Args:
    generator, variables: see `init_state`.
    state: of `init_state` or of the step before.
    speech_a, speech_b: the next piece of both voices: S = 640 T samples with an encoder, features at 25 fps without.
    motion_a: the next T frames of A's motion.
    social: the motion social feature s (`social.SocialModule`).
    encoder: see `init_state`.

  Returns:
    The state after the piece, of the same shapes, and B's motion.
  """
  voices, kept_levels = state["voices"], {}
  if encoder is not None:
    wavs = jnp.stack([speech_a, speech_b])
    if "levels" in state:
      kept_levels["levels"], wavs = jax.vmap(normalise_level)(state["levels"], wavs)
    encode = lambda wav, past: to_frames(encoder.apply({}, wav, past), motion_a.shape[0])
    speech_a, speech_b = jax.vmap(encode)(wavs, voices)
    voices = jnp.concatenate([voices, wavs], axis=1)[:, wavs.shape[1] :]
  variables = {**variables, "history": state["history"]}
  motion_b, kept = generator.apply(variables, speech_a, motion_a, speech_b, social, mutable=["history"])
  return {"history": kept["history"], "voices": voices, **kept_levels}, motion_b


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


class MotionStream:
  """One conversation in progress.

  Attributes:
    state: see `step`.
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
    self._social = jnp.asarray(social, jnp.float32)
    self._step = _compiled_step(generator, encoder)
    self.state = init_state(generator, variables, encoder=encoder, level=level)
    self._first_state = jax.device_get(self.state)
    self._width = speech_width(generator, variables)
    for frames in self._lengths:
      speech = np.zeros(frames * SAMPLES_PER_FRAME if encoder else (frames, self._width), np.float32)
      self._advance(speech, np.zeros((frames, MOTION_DIM), np.float32), speech)
    self.reset()

  def reset(self) -> None:
    """Begins another conversation."""
    self.state = jax.tree.map(jnp.array, self._first_state)  # Copies: a step uses their memory again.
    self._waiting = np.zeros((2, 0), np.float32)  # Samples of a frame that is not over yet.

  def push(
      self,
      speech_a: np.ndarray,
      motion_a: np.ndarray,
      speech_b: np.ndarray,
  ) -> Motion:
    """Takes the next piece of the conversation and returns B's motion for all frames that it completes.

    Args:
      speech_a, speech_b: with an encoder any number of samples of both voices, 16 kHz, the same of each; those beyond the
        last whole frame wait for the next piece. Without one, features (T, D).
      motion_a: A's motion for the T frames, 640 samples each, that are complete with this piece.

    Returns:
      (T, 56); T is 0 when no frame is complete.

    Raises:
      InputError: wrong shapes, lengths that do not agree, or values that are not finite. The stream is as it was before.
    """
    voices = [np.asarray(x, np.float32) for x in (speech_a, speech_b)]
    motion_a = np.asarray(motion_a, np.float32)
    for name, x in zip(("speech_a", "speech_b"), voices):
      fits = x.ndim == 1 if self._encoder else x.ndim == 2 and x.shape[1] == self._width
      if not fits:
        raise InputError("stream", name, f"shape {x.shape}", "(S,)" if self._encoder else f"(T, {self._width})")
    if motion_a.ndim != 2 or motion_a.shape[1] != MOTION_DIM:
      raise InputError("stream", "motion_a", f"shape {motion_a.shape}", f"(T, {MOTION_DIM})")
    if len(voices[1]) != len(voices[0]):
      raise InputError("stream", "speech_b", f"length {len(voices[1])}", f"{len(voices[0])}, as speech_a has")
    for name, x in zip(("speech_a", "motion_a", "speech_b"), (voices[0], motion_a, voices[1])):
      if not np.isfinite(x).all():
        raise InputError("stream", name, "values that are not finite", "numbers")

    waiting = self._waiting
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

    self._waiting, unit = waiting, SAMPLES_PER_FRAME if self._encoder else 1
    made, done = [np.zeros((0, MOTION_DIM), np.float32)], 0
    while done < frames:
      count = next(length for length in self._lengths if length <= frames - done)
      part = slice(done * unit, (done + count) * unit)
      made.append(self._advance(voices[0][part], motion_a[done : done + count], voices[1][part]))
      done += count
    return np.concatenate(made)

  def _advance(self, speech_a: np.ndarray, motion_a: np.ndarray, speech_b: np.ndarray) -> np.ndarray:
    self.state, motion_b = self._step(self._variables, self.state, speech_a, motion_a, speech_b, self._social)
    return np.asarray(motion_b)
