"""B's sound, frame by frame of A's clock, and when A interrupts it."""

import collections
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.live.protocol import CUT, HOLD, VOICED
from rsatalker_jax.types import FPS, SAMPLES_PER_FRAME

_SILENCE = np.zeros(SAMPLES_PER_FRAME, np.int16)
_LEAD, _TAIL = 6, 2  # Frames of silence around what is said, in which the page gathers what it holds back.
_QUIET = 30  # Of int16: what is below is not heard.
MOST_SECONDS = 300  # That may wait to be said.


class Voice:
  """What B says: a queue of frames, of which the generator hears each `ahead` frames before it sounds.

      for frame of A:
        heard = voice.hear()             # for the generator, of `ahead` frames later
        flags, sound = voice.sound()     # for the loudspeaker
  """

  def __init__(self, ahead: int):
    self._queue: collections.deque[Int[np.ndarray, "640"]] = collections.deque()
    # What the generator has heard and the loudspeaker has not: (sound, whether it belongs to what is said).
    self._between: collections.deque[tuple[Int[np.ndarray, "640"], bool]] = collections.deque()
    self._ahead, self._cut = ahead, False

  def first(self) -> Int[np.ndarray, "S"]:
    """What the generator is to hear before A's first frame."""
    return np.concatenate([self.hear() for _ in range(self._ahead)]) if self._ahead else np.zeros(0, np.int16)

  @property
  def between(self) -> Int[np.ndarray, "S"]:
    """What the generator has heard and the loudspeaker has not: `ahead` frames."""
    return np.concatenate([np.zeros(0, np.int16), *(sound for sound, _ in self._between)])

  def say(self, wav: Float[np.ndarray, "S"]) -> None:
    """Appends a voice, 16 kHz in [-1, 1]."""
    frames = -(-len(wav) // SAMPLES_PER_FRAME)
    samples = np.zeros(frames * SAMPLES_PER_FRAME, np.int16)
    samples[: len(wav)] = (np.asarray(wav).clip(-1, 1) * 32767).round()
    lead = 0 if self._queue else _LEAD
    self._queue.extend([_SILENCE] * lead + list(samples.reshape(frames, SAMPLES_PER_FRAME)) + [_SILENCE] * _TAIL)

  @property
  def waiting(self) -> float:
    """Seconds that are still to be said."""
    return len(self._queue) / FPS

  @property
  def speaking(self) -> bool:
    return bool(self._queue) or any(said for _, said in self._between)

  def hear(self) -> Int[np.ndarray, "640"]:
    """The next frame for the generator."""
    said = bool(self._queue)
    self._between.append((self._queue.popleft() if said else _SILENCE, said))
    return self._between[-1][0]

  def sound(self) -> tuple[int, Int[np.ndarray, "640"]]:
    """Flags and sound of the next frame to be heard."""
    sound, said = self._between.popleft()
    flags = HOLD * said | VOICED * bool(np.abs(sound.astype(np.int32)).max() > _QUIET) | CUT * self._cut
    self._cut = False
    return flags, sound

  def cut(self) -> bool:
    """Says nothing more, from the next frame to be heard on; returns whether there was something.

    What the generator has heard already, at most `ahead` frames, its lips still show.
    """
    if not self.speaking:
      return False
    self._queue.clear()
    self._between = collections.deque((_SILENCE, False) for _ in self._between)
    self._cut = True
    return True


class SpeechDetector:
  """Whether A has begun to speak, by loudness above the noise of the room; no words are looked for.

  Speech is 160 ms in a row above `threshold`: four frames. The noise is the least loudness of the last seconds.
  """

  _FRAMES = 4
  _ABOVE_NOISE = 12.0  # dB.
  _MEMORY = 3 * FPS

  def __init__(self):
    self.headphones = False
    self._levels: collections.deque[float] = collections.deque(maxlen=self._MEMORY)
    self._loud = 0

  def hears(self, sound: Int[np.ndarray, "640"]) -> bool:
    """Takes the next frame; whether A has spoken for the last 160 ms."""
    power = np.mean(np.square(sound.astype(np.float64) / 32768))
    level = 10 * np.log10(power + 1e-10)
    noise = min(self._levels, default=-100.0)
    self._levels.append(level)
    # Without headphones what the echo canceller leaves of B's own voice must not count as A's.
    least = -50.0 if self.headphones else -36.0
    self._loud = self._loud + 1 if level > max(noise + self._ABOVE_NOISE, least) else 0
    return self._loud >= self._FRAMES


def split_sentences(text: str) -> Iterator[str]:
  """The parts of a text that are spoken one by one, so that the first is heard early."""
  part = ""
  for word in text.split():
    part = f"{part} {word}".strip()
    if word[-1] in ".!?;:" or len(part) > 200:
      yield part
      part = ""
  if part:
    yield part
