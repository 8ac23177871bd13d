"""What A says and what B answers in one conversation: turns, words and their history. All of it happens in the event loop."""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from rsatalker_jax.errors import InputError
from rsatalker_jax.live.ears import EarProcess
from rsatalker_jax.live.voice import Event, SentenceCutter, SpeechDetector, Turns
from rsatalker_jax.social.relation import UNKNOWN
from rsatalker_jax.types import FPS, SAMPLES_PER_FRAME

_SILENCE = np.zeros(SAMPLES_PER_FRAME, np.int16)
_ECHO = FPS // 3  # Frames for which B's voice may still be on its way through loudspeaker and microphone.
_BEFORE = 12  # Frames before A's turn was noticed that belong to it: 160 ms that it took, and a soft beginning.
_LONGEST = 15 * FPS  # Frames of a phrase.
_LATE = FPS  # Frames that voice activity detection may be behind.
_MOST_PHRASES = 4  # That the recogniser may be behind.
_VOICE, _STILL = 0.5, 0.35  # How likely a voice has to be, and to go on.
_MOST_CHARACTERS = 8000  # Of the history that an answerer is told.

_MARKS = str.maketrans(dict.fromkeys("*_`~#", "") | dict.fromkeys("|<>[]{}\\^", " "))

# By (blood, equal): whom B is to be. Sec. 3.5 names these four; what is not told is left open.
_PEOPLE = {
    (1, 1): "your brother or sister",
    (1, 0): "your parent or your child",
    (0, 1): "your partner or a close friend",
    (0, 0): "your superior or somebody who works for you",
    (1, UNKNOWN): "a relative of yours",
    (0, UNKNOWN): "somebody you are not related to",
    (UNKNOWN, 1): "your equal",
    (UNKNOWN, 0): "somebody above or below you in age or rank",
    (UNKNOWN, UNKNOWN): "somebody you are talking to",
}


def describe_relation(relation: Int[np.ndarray, "2"]) -> str:
  """What an answerer is told it is."""
  other = _PEOPLE[tuple(map(int, relation))]
  return (
      f"You are a person in a spoken conversation. The user is {other}: speak as one speaks to them. "
      "Answer in English, in one to three short sentences of plain words that can be read aloud: no lists, no headings, no symbols."
  )


def make_speakable(text: str) -> str:
  """A sentence without the marks of Markdown and without characters that nobody pronounces."""
  text = text.translate(_MARKS)
  kept = "".join(c for c in text if c.isalnum() or c.isspace() or c.isascii() or c in "’‘“”…–—")
  return " ".join(kept.split())


class Answerer(Protocol):
  """What answers: `endpoint.Endpoint`, or `eliza.Eliza`.

  Attributes:
    about: for the page: its name, where words go, and whether that is this machine.
  """

  about: dict[str, Any]

  async def open(self) -> None: ...
  async def close(self) -> None: ...
  def answer(self, messages: Sequence[dict[str, str]]) -> AsyncIterator[str]:
    """Pieces of the answer as they come; `messages` have a role and a content, as OpenAI's have.

    Raises:
      InputError: why there is no (further) answer.
    """
    ...


class Speaker(Protocol):
  """The conversation that a dialogue belongs to."""

  speaking: bool
  relation: Int[np.ndarray, "2"]
  frames: int

  def tell(self, message: dict) -> None: ...
  def say(self, sentence: str) -> Awaitable[None]: ...
  def hush(self) -> None: ...


class Dialogue:
  """One conversation's."""

  def __init__(
      self, session: int, speaker: Speaker, answerer: Answerer | None, recogniser: EarProcess | None, activity: EarProcess | None
  ):
    self.headphones = False
    self._session, self._speaker, self._answerer = session, speaker, answerer
    self._recogniser, self._activity = recogniser, activity
    self._detector, self._turns = SpeechDetector(), Turns()
    self._quiet = _ECHO  # Frames for which B has been silent.
    # A's last frames, without those in which B may be heard; the number of the next, and of the first that belongs to a phrase.
    self._sounds: collections.deque[Int[np.ndarray, "640"]] = collections.deque(maxlen=_LONGEST + 2 * FPS)
    self._next, self._begun = 0, 0
    self._unsure: collections.deque[tuple[int, bool, bool]] = collections.deque()  # Frames that the activity detection has not heard.
    # Texts of this turn's phrases, None while the recogniser is at it; whether the turn is over.
    self._turn, self._phrases, self._over = 0, dict[int, str | None](), False
    self._phrase_numbers = 0
    self._history: list[dict[str, str]] = []
    self._said: list[tuple[int, str]] = []  # Sentences of B's since A's last words, with the frame in which each begins.
    self._answer: asyncio.Task | None = None
    for ear, hear in ((recogniser, self._hear_words), (activity, self._hear_voice)):
      if ear is not None:
        ear.open(session, hear)

  def begin(self) -> None:
    """Tells what does not work from the start."""
    for ear in (self._recogniser, self._activity):
      if ear is not None and ear.trouble:
        self._lose(ear)

  def close(self) -> None:
    if self._answer is not None:
      self._answer.cancel()
    for ear in (self._recogniser, self._activity):
      if ear is not None:
        ear.close(self._session)

  @property
  def answering(self) -> bool:
    return self._answer is not None and not self._answer.done()

  # A's sound.

  def hear(self, sound: Int[np.ndarray, "640"]) -> None:
    """Takes A's next frame."""
    self._quiet = 0 if self._speaker.speaking else self._quiet + 1
    echo = not self.headphones and self._quiet < _ECHO
    loud = self._detector.hears(sound, echo)
    self._sounds.append(_SILENCE if echo else sound)
    number, self._next = self._next, self._next + 1
    if self._activity is None:
      self._notice(number, self._turns.take(loud))
      return
    self._unsure.append((number, loud, echo))
    self._activity.ask(self._session, number, sound)
    if self._activity is not None and len(self._unsure) > _LATE:
      self._activity.close(self._session)
      self._lose(self._activity, "voice activity detection does not keep up")

  def _hear_voice(self, number: int | None, heard: Any) -> None:
    if number is None:
      self._lose(self._activity)
      return
    number, loud, echo = self._unsure.popleft()
    voice = heard > (_STILL if self._turns.speaks else _VOICE)
    # What is left of B's own voice is a voice, too.
    self._notice(number, self._turns.take(voice and (loud or not echo)))

  def _lose(self, ear: EarProcess | None, why: str | None = None) -> None:
    if ear is None:
      return
    why = why or ear.trouble
    if ear is self._activity:
      self._activity = None
      waiting, self._unsure = self._unsure, collections.deque()
      for number, loud, _ in waiting:
        self._notice(number, self._turns.take(loud))
      self._speaker.tell({"type": "trouble", "message": f"{why}; until then your turns are told by loudness"})
    elif ear is self._recogniser:
      self._recogniser = None
      self._phrases.clear()
      self._speaker.tell({"type": "trouble", "message": f"{why}; what you say is not understood, what you write is"})

  def _notice(self, number: int, event: Event | None) -> None:
    if event is Event.BEGINS:
      # Never what was given to the recogniser already.
      self._begun = max(self._begun, number + 1 - _BEFORE)
      self._over = False
      # Who goes on before B has said a word takes the question back and makes it longer.
      if self._speaker.speaking or (self.answering and self._recogniser is not None):
        self.interrupt()
    elif event is Event.PAUSES:
      self._end_phrase(number)
    elif event is Event.ENDS:
      self._over = True
      self._end_turn()
    if self._turns.speaks and number + 1 - self._begun >= _LONGEST:
      self._end_phrase(number)

  def _end_phrase(self, last: int) -> None:
    """Gives the recogniser what was said up to and with a frame."""
    first, self._begun = max(self._begun, self._next - len(self._sounds)), last + 1
    if self._recogniser is None:
      return
    sound = np.concatenate([self._sounds[i - self._next] for i in range(first, last + 1)])
    if not sound.any():
      return
    if sum(text is None for text in self._phrases.values()) >= _MOST_PHRASES:
      self._speaker.tell({"type": "trouble", "message": "the recogniser is behind: a phrase of yours was not understood"})
      return
    number, self._phrase_numbers = self._phrase_numbers, self._phrase_numbers + 1
    self._phrases[number] = None
    self._recogniser.ask(self._session, number, sound)

  def _hear_words(self, number: int | None, heard: Any) -> None:
    if number is None:
      self._lose(self._recogniser)
    elif number in self._phrases:
      self._phrases[number] = heard
      text = " ".join(filter(None, self._phrases.values()))
      if text:
        self._speaker.tell({"type": "heard", "turn": self._turn, "text": text})
      self._end_turn()

  def _end_turn(self) -> None:
    """Where a turn is over and all of it is understood, it is B's."""
    if not self._over or None in self._phrases.values():
      return
    text = " ".join(filter(None, self._phrases.values()))
    self._phrases, self._over = {}, False
    if text:
      self._turn += 1
      self._reply(text)

  # Words.

  def write(self, text: str) -> None:
    """A's words as A typed them."""
    if self._answerer is None:
      raise InputError("message", "write", "nobody who answers", "--endpoint=URL or --endpoint=eliza where the program runs")
    self.interrupt()
    self._speaker.tell({"type": "heard", "turn": self._turn, "text": text})
    self._turn += 1
    self._reply(text)

  def _reply(self, text: str) -> None:
    if self._answerer is None:
      return
    self.interrupt()
    self._remember("user", text)
    self._answer = asyncio.get_running_loop().create_task(self._say_answer(self._answerer))

  def note(self, frame: int, sentence: str) -> None:
    """B will have said a sentence, from a frame on."""
    self._said.append((frame, sentence))

  def interrupt(self) -> None:
    """B says nothing more, and nothing more is asked for. Of what B was to say, B has said those sentences that it had begun."""
    if self._answer is not None:
      self._answer.cancel()
      self._answer = None
    said, self._said = self._said, []
    begun = [sentence for frame, sentence in said if frame < self._speaker.frames]
    if begun:
      self._remember("assistant", " ".join(begun) + (" …" if self._speaker.speaking else ""))
    self._speaker.hush()

  def _remember(self, role: str, text: str) -> None:
    """Roles take turns, as some models want it: what the same one goes on to say is the same message."""
    if self._history and self._history[-1]["role"] == role:
      self._history[-1]["content"] += f" {text}"
    else:
      self._history.append({"role": role, "content": text})

  def _messages(self) -> list[dict[str, str]]:
    kept, characters = [], 0
    for message in reversed(self._history):
      characters += len(message["content"])
      if kept and characters > _MOST_CHARACTERS:
        break
      kept.append(message)
    self._history = kept[::-1]
    # Some models want the user to begin.
    opening = [{"role": "user", "content": "…"}] * (self._history[0]["role"] != "user")
    return [{"role": "system", "content": describe_relation(self._speaker.relation)}, *opening, *self._history]

  async def _say_answer(self, answerer: Answerer) -> None:
    """Sentence by sentence, as they come."""
    cutter, spoken = SentenceCutter(), 0
    try:
      async with contextlib.aclosing(answerer.answer(self._messages())) as pieces:
        async for piece in pieces:
          for sentence in cutter.add(piece):
            spoken += await self._say(sentence)
      for sentence in cutter.end():
        spoken += await self._say(sentence)
      if not spoken:
        raise InputError("answer", "", "no words", "an answer")
    except InputError as error:
      self._speaker.tell({"type": "trouble", "message": str(error)})

  async def _say(self, sentence: str) -> bool:
    words = make_speakable(sentence)
    if not any(c.isalnum() for c in words):
      return False
    await self._speaker.say(words)
    return True
