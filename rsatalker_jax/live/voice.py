"""B's sound, frame by frame of A's clock, and when A interrupts it."""

import collections
import enum
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

  def say(self, wav: Float[np.ndarray, "S"]) -> int:
    """Appends a voice, 16 kHz in [-1, 1]; returns how many frames are heard before it."""
    frames = -(-len(wav) // SAMPLES_PER_FRAME)
    samples = np.zeros(frames * SAMPLES_PER_FRAME, np.int16)
    samples[: len(wav)] = (np.asarray(wav).clip(-1, 1) * 32767).round()
    lead = 0 if self._queue else _LEAD
    before = self._ahead + len(self._queue) + lead
    self._queue.extend([_SILENCE] * lead + list(samples.reshape(frames, SAMPLES_PER_FRAME)) + [_SILENCE] * _TAIL)
    return before

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
  """Whether A is heard in a frame, by loudness above the noise of the room; no words are looked for.

  The noise is the least loudness of the last seconds.
  """

  _ABOVE_NOISE = 12.0  # dB.
  _MEMORY = 3 * FPS

  def __init__(self):
    self._levels: collections.deque[float] = collections.deque(maxlen=self._MEMORY)

  def hears(self, sound: Int[np.ndarray, "640"], echo: bool) -> bool:
    """Takes the next frame.

    Args:
      sound: A's.
      echo: whether B may be in it: what the echo canceller leaves of B's voice must not count as A's.
    """
    power = np.mean(np.square(sound.astype(np.float64) / 32768))
    level = 10 * np.log10(power + 1e-10)
    noise = min(self._levels, default=-100.0)
    self._levels.append(level)
    return level > max(noise + self._ABOVE_NOISE, -36.0 if echo else -50.0)


class Event(enum.Enum):
  """What happens in A's speech."""

  BEGINS = "A has spoken for 160 ms, having been silent"
  PAUSES = "A has been silent for 320 ms"
  ENDS = "and for 600 ms: it is B's turn"


class Turns:
  """A's turns, from whether A is heard in each frame.

  Who speaks already when B begins interrupts nobody: that is who speaks again after a pause.
  """

  _BEGINS, _PAUSES, _ENDS = 4, 8, 15  # Frames.

  def __init__(self):
    self._heard, self._silent = 0, 0  # Frames in a row.
    self.speaks, self._in_turn = False, False

  def take(self, heard: bool) -> Event | None:
    """Takes the next frame."""
    self._heard = self._heard + 1 if heard else 0
    self._silent = 0 if heard else self._silent + 1
    if not self.speaks and self._heard >= self._BEGINS:
      self.speaks = self._in_turn = True
      return Event.BEGINS
    if self.speaks and self._silent >= self._PAUSES:
      self.speaks = False
      return Event.PAUSES
    if self._in_turn and self._silent >= self._ENDS:
      self._in_turn = False
      return Event.ENDS
    return None


class SentenceCutter:
  """Cuts a text that comes piece by piece into the parts that are spoken one by one, so that the first is heard early."""

  _LONGEST = 200  # Characters.

  def __init__(self):
    self._rest, self._part = "", ""

  def add(self, piece: str) -> Iterator[str]:
    """The parts that end in this piece. A word ends where white space follows: "3.5" holds no sentence's end."""
    words = (self._rest + piece).split()
    complete = piece[-1:].isspace() or not words
    self._rest = "" if complete else words.pop()
    for word in words:
      self._part = f"{self._part} {word}".strip()
      if self._part.rstrip("\"')”’*_")[-1:] in tuple(".!?;:…") or len(self._part) > self._LONGEST:
        yield self._part
        self._part = ""

  def end(self) -> Iterator[str]:
    """What is left."""
    yield from self.add(" ")
    if self._part:
      yield self._part
      self._part = ""


def split_sentences(text: str) -> Iterator[str]:
  """The parts of a text that are spoken one by one."""
  cutter = SentenceCutter()
  yield from cutter.add(text)
  yield from cutter.end()
