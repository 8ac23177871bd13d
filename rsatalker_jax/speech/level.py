"""A causal level normaliser: a quiet microphone is turned up, a loud one down, and silence is left alone.

A voice comes in blocks of 10 ms. The loudness of the last 50 ms counts as speech if it is within 8 dB of the loudest so far and 5 dB
above the quietest; the mean of it, in dB, is brought to -23.5 dB of full scale. That is a plain mean at first and later forgets with
a time constant of five seconds of speech, so the gain neither follows syllables nor changes while nobody speaks. A block's gain
follows from the blocks before it alone, and moves to it linearly from that of the one before: no sample depends on a later one, and a
stream has exactly the samples of the whole.

All but the beginning is relative to the signal itself, so that any gain of a microphone ends in the same output. At the beginning the
level is supposed to be right, which weighs as much as 50 ms of speech.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rsatalker_jax.types import SAMPLE_RATE

# Raised with every change of what comes out: features are kept under it.
VERSION = 1

BLOCK = SAMPLE_RATE // 100
TARGET = -23.5  # dB of full scale, where the demo's voices are while they speak.
_MOST = 30.0  # dB, up or down.
_PART = 40  # Samples whose mean is taken off: fans and steps, which are low and fluctuate, do not count as loud.
_SMOOTHING = float(np.exp(-10 / 50))  # Of the power from block to block.
_BELOW_PEAK, _ABOVE_FLOOR = 8.0, 5.0  # dB.
_FAINTEST = -70.0  # dB of full scale: the last bits of 16 are at -90.
_FLOOR_RISE = 3.0 / 100  # dB a block: what is quietest may become louder.
_PEAK_FALL, _PEAK_FALL_SPEAKING = 0.1 / 100, 3.0 / 100  # dB a block.
_MEMORY, _PRIOR = 500, 5  # Blocks of speech.

# "gain": dB at the end of the last block; "power": smoothed; "peak", "floor", "mean": loudness in dB; "speech": blocks of it that "mean"
# is of; "blocks": in all, at most 2.
LevelState = dict[str, Any]


def init_level() -> LevelState:
  """The state before a voice's first sample."""
  return {
      "gain": jnp.float32(0), "power": jnp.float32(0), "peak": jnp.float32(0), "floor": jnp.float32(0), "mean": jnp.float32(TARGET),
      "speech": jnp.float32(_PRIOR), "blocks": jnp.int32(0),
  }  # fmt: skip


def normalise_level(state: LevelState, wav: Float[Array, "S"]) -> tuple[LevelState, Float[Array, "S"]]:
  """The next piece of a voice, at the level of speech.

  Args:
    state: of `init_level` or of the piece before.
    wav: whole blocks of 160 samples.

  Returns:
    The state after it, and the piece.
  """
  def advance(state, power):
    gain = jnp.clip(TARGET - state["mean"], -_MOST, _MOST)
    first = state["blocks"] == 0
    smoothed = jnp.where(first, power, _SMOOTHING * state["power"] + (1 - _SMOOTHING) * power)
    loudness = 10 * jnp.log10(smoothed + 1e-12)
    floor = jnp.where(first, loudness, jnp.minimum(loudness, state["floor"] + _FLOOR_RISE))
    above = loudness > jnp.maximum(floor + _ABOVE_FLOOR, _FAINTEST)
    fall = jnp.where(above, _PEAK_FALL_SPEAKING, _PEAK_FALL)
    peak = jnp.where(first, loudness, jnp.maximum(loudness, state["peak"] - fall))
    speech = above & (loudness > peak - _BELOW_PEAK)
    # What was taken for speech so far is far below what is heard now, so it was none: begun anew.
    lost = speech & (state["mean"] < peak - _BELOW_PEAK) & (state["speech"] > _PRIOR)
    count = jnp.where(lost, 1.0, jnp.minimum(state["speech"] + 1, _MEMORY))
    mean = state["mean"] + (loudness - state["mean"]) / count
    after = {
        "gain": gain,
        "power": smoothed,
        "peak": peak,
        "floor": floor,
        "mean": jnp.where(speech, mean, state["mean"]),
        "speech": jnp.where(speech, count, state["speech"]),
        "blocks": jnp.minimum(state["blocks"] + 1, 2),
    }
    return after, (state["gain"], gain)

  blocks = wav.reshape(-1, BLOCK)
  powers = jnp.mean(jnp.var(blocks.reshape(-1, BLOCK // _PART, _PART), axis=2), axis=1)
  state, (before, after) = jax.lax.scan(advance, state, powers)
  ramp = jnp.arange(1, BLOCK + 1) / BLOCK
  decibels = before[:, None] + (after - before)[:, None] * ramp
  return state, (blocks * 10 ** (decibels / 20)).reshape(-1)


def level_voice(wav: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
  """A whole voice of any length at the level of speech."""
  padded = np.pad(wav, (0, -len(wav) % (5 * SAMPLE_RATE)))  # Few lengths, few compilations.
  return np.asarray(_level(padded))[: len(wav)]


_level = jax.jit(lambda wav: normalise_level(init_level(), wav)[1])
