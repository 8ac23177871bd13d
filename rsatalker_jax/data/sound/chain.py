"""Chains of degradations, one drawn for each voice and variant: size of the person, colour of the voice, room, noise,
microphone, line, in that order."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.signal
from jaxtyping import Float

from rsatalker_jax.data.audio import read_wav
from rsatalker_jax.data.sound import degradations, rooms
from rsatalker_jax.types import SAMPLE_RATE

# Of what chains do with what they draw. To be raised with every change of that: features of degraded voices are kept under it.
VERSION = 2

_NOISES = ("white", "pink", "speech")

# A step's name and its parameters.
Steps = tuple[tuple[str, Mapping[str, Any]], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Degradation:
  """What one variant makes of every voice. The chain follows from the seed, the variant and the voice's samples alone: the same in
  any order, on any machine and under any name, another for each person of a conversation.

  Attributes:
    variant: number of the variant.
    seed: of all draws.
    noises, responses: own recordings of noise and impulse responses, at 16 kHz; where there are none, made ones.
  """

  variant: int
  seed: int = 0
  noises: tuple[Float[np.ndarray, "_"], ...] = ()
  responses: tuple[Float[np.ndarray, "_"], ...] = ()

  @functools.cached_property
  def key(self) -> str:
    """Digest of all that decides what becomes of a voice, but for the voice."""
    digest = hashlib.sha256(f"{VERSION} {self.seed} {self.variant} {len(self.noises)}".encode())
    for recording in (*self.noises, *self.responses):
      digest.update(hashlib.sha256(recording.tobytes()).digest())
    return digest.hexdigest()

  def __call__(self, wav: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
    """The voice, degraded."""
    steps, rng = self._draw(wav)
    for name, parameters in steps:
      wav = getattr(self, f"_{name}")(wav, rng, **parameters)
    return wav

  def draw(self, wav: Float[np.ndarray, "S"]) -> Steps:
    """The chain of a voice, without taking it."""
    return self._draw(wav)[0]

  def _draw(self, wav: Float[np.ndarray, "S"]) -> tuple[Steps, np.random.Generator]:
    """The chain, and the random numbers for noise."""
    voice = np.ascontiguousarray(wav, np.float32).tobytes()
    digest = hashlib.sha256(f"{self.seed} {self.variant} ".encode() + voice).digest()
    rng = np.random.default_rng(list(digest))
    steps: list[tuple[str, Mapping[str, Any]]] = []
    if rng.random() < 0.6:
      steps.append(("size", {"factor": 2 ** rng.uniform(-0.35, 0.35)}))
    if rng.random() < 0.6:
      steps.append(("colour", {"decibels": rng.normal(0, 5, len(degradations.OCTAVES)).tolist()}))
    # A chain that is always noisy costs clean voices more than it gives noisy ones.
    elsewhere = rng.random() < 0.5
    if elsewhere and rng.random() < 0.5:
      steps.append(("room", self._draw_room(rng)))
    if elsewhere and rng.random() < 0.7:
      kind = int(rng.integers(len(self.noises))) if self.noises else _NOISES[rng.integers(len(_NOISES))]
      steps.append(("noise", {"kind": kind, "decibels": rng.uniform(5, 30)}))
    steps.append(("gain", {"decibels": rng.uniform(-15, 15)}))
    if elsewhere and rng.random() < 0.15:
      steps.append(("clip", {"share": rng.uniform(0.2, 0.7)}))
    if elsewhere and rng.random() < 0.5:
      steps.append(("line", {"kind": list(degradations.LINES)[rng.integers(len(degradations.LINES))]}))
    return tuple(steps), rng

  def _draw_room(self, rng: np.random.Generator) -> dict[str, Any]:
    if self.responses:
      return {"response": int(rng.integers(len(self.responses)))}
    size = rng.uniform((2.5, 2.5, 2.3), (5.0, 5.0, 3.0))
    microphone = rng.uniform(0.6, size - 0.6)
    away = rng.normal(size=3)
    mouth = microphone + rng.uniform(0.3, 1.2) * away / np.linalg.norm(away)
    return {
        "size": size.tolist(),
        "mouth": np.clip(mouth, 0.3, size - 0.3).tolist(),
        "microphone": microphone.tolist(),
        "seconds": rng.uniform(0.15, 0.45),
    }

  def _size(self, wav, rng, factor: float):
    return degradations.resize(wav, factor)

  def _colour(self, wav, rng, decibels: list[float]):
    return degradations.equalise(wav, np.asarray(decibels))

  def _room(self, wav, rng, response: int | None = None, **room):
    return degradations.reverberate(wav, make_room(**room) if response is None else self.responses[response])

  def _noise(self, wav, rng, kind: int | str, decibels: float):
    if isinstance(kind, str):
      noise = degradations.make_noise(kind, wav, rng)
    else:
      recording = self.noises[kind]
      noise = np.resize(np.roll(recording, -rng.integers(len(recording))), len(wav))
    return degradations.add_noise(wav, noise, decibels)

  def _gain(self, wav, rng, decibels: float):
    return degradations.amplify(wav, decibels)

  def _clip(self, wav, rng, share: float):
    return degradations.clip_peaks(wav, share)

  def _line(self, wav, rng, kind: str):
    return degradations.LINES[kind](wav, rng)


def make_room(
    size: Sequence[float], mouth: Sequence[float], microphone: Sequence[float], seconds: float
) -> Float[np.ndarray, "S"]:
  """The impulse response of a room that reverberates for so long (Eyring), until it has fallen by 60 dB; without what lies below
  100 Hz, where images of one sign add up to a pressure that no room has (Allen & Berkley's high-pass)."""
  absorption = rooms.absorption_for(size, seconds)
  response = rooms.room_impulse_response(size, mouth, microphone, absorption, seconds=seconds)
  return scipy.signal.sosfilt(scipy.signal.butter(2, 100, "highpass", fs=SAMPLE_RATE, output="sos"), response)


def make_degradations(
    variants: int, seed: int = 0, noises: Sequence[str] = (), impulse_responses: Sequence[str] = ()
) -> tuple[Degradation, ...]:
  """So many variants, as the config's section `speech.augmentation` says.

  Args:
    variants, seed: of `Degradation`.
    noises, impulse_responses: wav files at 16 kHz, used instead of made noise and made rooms.

  Raises:
    InputError: a file is missing or damaged, holds no sound, or has another rate.
  """
  if not variants:
    return ()
  read = lambda paths: tuple(read_wav(path, only_rate=SAMPLE_RATE)[0] for path in paths)
  own = read(noises), read(impulse_responses)
  return tuple(Degradation(variant, seed, *own) for variant in range(1, variants + 1))
