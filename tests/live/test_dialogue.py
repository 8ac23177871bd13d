"""Who speaks when, and what is remembered: turns by loudness and by voice, words from a recogniser, answers, interruptions."""

import asyncio
import os
import signal

import numpy as np
import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.live import dialogue
from rsatalker_jax.live.dialogue import Dialogue, describe_relation, make_speakable
from rsatalker_jax.live.ears import EarProcess
from rsatalker_jax.social import RELATIONS, parse_relation

QUIET = np.zeros(640, np.int16)
LOUD = np.round(3000 * np.random.default_rng(0).normal(size=640)).astype(np.int16)
SOFT = np.round(200 * np.random.default_rng(0).normal(size=640)).astype(np.int16)  # -44 dB.


class Speaker:
  """A conversation: what it says begins at once and takes `length` frames."""

  def __init__(self, length=10):
    self.told, self.frames, self.until, self.length = [], 0, 0, length
    self.relation = parse_relation("blood,equal")
    self.said, self.hushed = [], 0

  @property
  def speaking(self):
    return self.frames < self.until

  def tell(self, message):
    self.told.append(message)

  async def say(self, sentence):
    if "unspeakable" in sentence:
      raise InputError("message", "say", "no sound", "words")
    begins = max(self.frames, self.until)
    self.until = begins + self.length
    self.said.append(sentence)
    self.dialogue.note(begins, sentence)

  def hush(self):
    self.hushed += self.speaking
    self.until = self.frames

  def texts(self, kind):
    return [message.get("text", message.get("message")) for message in self.told if message["type"] == kind]


class Answers:
  """An answerer that says what it is given, and keeps what it was asked."""

  about = {"name": "fake", "where": "", "local": True}

  def __init__(self, *answers):
    self.answers, self.asked, self.ended = list(answers), [], 0

  async def answer(self, messages):
    self.asked.append([dict(message) for message in messages])
    try:
      for piece in self.answers.pop(0):
        if isinstance(piece, (float, int)):
          await asyncio.sleep(piece)
        elif isinstance(piece, Exception):
          raise piece
        else:
          yield piece
    finally:
      self.ended += 1


class Ear:
  """A process that hears when the test says so."""

  def __init__(self, trouble=None):
    self.trouble, self.asked, self.closed = trouble, [], False

  def open(self, session, hear):
    self.hear = hear

  def ask(self, session, number, sound):
    self.asked.append((number, sound))

  def close(self, session):
    self.closed = True


def make(answerer=None, recogniser=None, activity=None, length=10):
  speaker = Speaker(length)
  speaker.dialogue = made = Dialogue(0, speaker, answerer, recogniser, activity)
  made.begin()
  return speaker, made


async def hear(speaker, made, *runs):
  for sound, count in runs:
    for _ in range(count):
      speaker.frames += 1
      made.hear(sound)
      await asyncio.sleep(0)


async def settle():
  for _ in range(50):
    await asyncio.sleep(0)


def run(work):
  asyncio.run(work())


def test_what_is_written_is_answered_sentence_by_sentence():
  async def main():
    answers = Answers(["He", "llo **you**. How", " are", " you? 😀"], ["Fine."])
    speaker, made = make(answers)
    made.write("Hi")
    await settle()
    assert speaker.said == ["Hello you.", "How are you?"] and speaker.texts("heard") == ["Hi"]
    speaker.frames = 100
    speaker.relation = parse_relation("non_blood,unequal")
    made.write("And then?")
    await settle()
    assert speaker.said[2:] == ["Fine."]
    first, second = answers.asked
    assert first[0]["content"] == describe_relation(parse_relation("blood,equal")) and "brother or sister" in first[0]["content"]
    assert "superior" in second[0]["content"]
    assert first[1:] == [{"role": "user", "content": "Hi"}]
    assert second[1:] == first[1:] + [
        {"role": "assistant", "content": "Hello you. How are you?"}, {"role": "user", "content": "And then?"}
    ]  # fmt: skip

  run(main)


def test_relations_are_told_apart():
  told = {describe_relation(parse_relation(name)) for name in (*RELATIONS, "unknown", "blood,unknown", "unknown,equal")}
  assert len(told) == 7 and all("spoken conversation" in text for text in told)


def test_an_interruption_ends_request_and_speech_and_is_remembered():
  async def main():
    answers = Answers(["One. ", "Two. ", "Three. ", 1000, "Four."], ["Well."])
    speaker, made = make(answers)
    await hear(speaker, made, (QUIET, 3))
    made.write("Count")
    await settle()
    assert speaker.said == ["One.", "Two.", "Three."] and made.answering
    await hear(speaker, made, (QUIET, 8), (LOUD, 3))
    assert not speaker.hushed
    await hear(speaker, made, (LOUD, 1))
    await settle()
    assert speaker.hushed == 1 and not made.answering and answers.ended == 1
    await hear(speaker, made, (LOUD, 20))
    assert speaker.hushed == 1
    made.write("Go on")
    await settle()
    # Twelve frames had passed: the third sentence had not begun.
    assert answers.asked[1][2:] == [{"role": "assistant", "content": "One. Two. …"}, {"role": "user", "content": "Go on"}]

  run(main)


def test_without_headphones_what_is_left_of_an_echo_is_no_interruption():
  async def main(headphones, sound, cut):
    speaker, made = make(Answers(["Hello."]), length=100)
    made.headphones = headphones
    await hear(speaker, made, (QUIET, 3))
    made.write("Hi")
    await settle()
    await hear(speaker, made, (QUIET, 3), (sound, 10))
    assert speaker.hushed == cut

  for case in ((False, SOFT, 0), (True, SOFT, 1), (False, LOUD, 1)):
    asyncio.run(main(*case))


def test_spoken_words_are_shown_and_answered():
  async def main():
    answers, ear = Answers(["Yes."], ["Well."]), Ear()
    speaker, made = make(answers, ear)
    numbered = [np.full(640, i + 1, np.int16) for i in range(20)]
    await hear(speaker, made, *[(sound, 1) for sound in numbered], (LOUD, 10), (QUIET, 7))
    assert not ear.asked
    await hear(speaker, made, (QUIET, 1))
    (number, sound), = ear.asked
    # 320 ms before A was heard, and the pause.
    assert sound.reshape(-1, 640)[:, 0].tolist() == [*range(13, 21), *[LOUD[0]] * 10, *[0] * 8]
    # A goes on: one turn of two phrases, without a frame in both.
    await hear(speaker, made, (LOUD, 6), (QUIET, 8))
    assert len(ear.asked) == 2 and len(ear.asked[1][1]) == 640 * 14 and ear.asked[1][1][0] == LOUD[0]
    ear.hear(number, "Good")
    assert speaker.texts("heard") == ["Good"] and not answers.asked
    await hear(speaker, made, (QUIET, 20))
    assert not answers.asked  # What A said last is not understood yet.
    ear.hear(ear.asked[1][0], "morning.")
    await settle()
    assert speaker.texts("heard") == ["Good", "Good morning."] and [x["turn"] for x in speaker.told if x["type"] == "heard"] == [0, 0]
    assert answers.asked[0][1:] == [{"role": "user", "content": "Good morning."}] and speaker.said == ["Yes."]
    # The next turn is another.
    await hear(speaker, made, (QUIET, 40), (LOUD, 10), (QUIET, 8))
    ear.hear(ear.asked[2][0], "")  # A cough: nothing was understood.
    await hear(speaker, made, (QUIET, 20))
    assert len(answers.asked) == 1 and len(speaker.texts("heard")) == 2

  run(main)


def test_who_goes_on_before_an_answer_makes_the_question_longer():
  async def main():
    answers, ear = Answers([1000, "No."], ["Yes."]), Ear()
    speaker, made = make(answers, ear)
    await hear(speaker, made, (QUIET, 10), (LOUD, 8), (QUIET, 20))
    ear.hear(0, "May I")
    await settle()
    assert made.answering
    await hear(speaker, made, (LOUD, 3))
    assert made.answering
    await hear(speaker, made, (LOUD, 5))
    await settle()
    assert not made.answering and answers.ended == 1
    await hear(speaker, made, (QUIET, 20))
    ear.hear(1, "come in?")
    await settle()
    assert answers.ended == 2 and speaker.said == ["Yes."]
    assert answers.asked[1][1:] == [{"role": "user", "content": "May I come in?"}]

  run(main)


def test_who_goes_on_before_all_is_understood_goes_on_with_the_same_turn():
  async def main():
    answers, ear = Answers(["Yes."], ["Sure."]), Ear()
    speaker, made = make(answers, ear)
    await hear(speaker, made, (QUIET, 10), (LOUD, 8), (QUIET, 20), (LOUD, 6))
    ear.hear(0, "May I")
    await hear(speaker, made, (QUIET, 10))
    ear.hear(1, "come in?")
    await settle()
    assert not answers.asked
    await hear(speaker, made, (QUIET, 5))
    await settle()
    assert answers.asked[0][1:] == [{"role": "user", "content": "May I come in?"}]
    assert [(x["turn"], x["text"]) for x in speaker.told if x["type"] == "heard"] == [(0, "May I"), (0, "May I come in?")]
    await hear(speaker, made, (QUIET, 20), (LOUD, 6), (QUIET, 20))
    ear.hear(2, "Thanks.")
    assert speaker.told[-1] == {"type": "heard", "turn": 1, "text": "Thanks."}

  run(main)


def test_without_a_recogniser_sound_takes_no_question_back():
  async def main():
    answers = Answers([1000, "No."])
    speaker, made = make(answers)
    made.write("May I come in?")
    await settle()
    await hear(speaker, made, (QUIET, 5), (LOUD, 8))
    await settle()
    assert made.answering and not answers.ended
    made.close()

  run(main)


def test_the_recogniser_is_deaf_while_b_speaks_but_for_headphones():
  async def main(headphones):
    answers, ear = Answers(["Hello."]), Ear()
    speaker, made = make(answers, ear, length=30)
    made.headphones = headphones
    made.write("Hi")
    await settle()
    await hear(speaker, made, (QUIET, 3), (LOUD, 40), (QUIET, 8))
    assert speaker.hushed == 1  # With the fourth frame.
    (_, sound), = ear.asked
    # Without headphones the echo of what B said before is not in it, either: a third of a second.
    assert sound.reshape(-1, 640).any(axis=1).sum() == (40 if headphones else 40 - 4 - 7)

  asyncio.run(main(False))
  asyncio.run(main(True))


def test_a_phrase_without_end_is_cut(monkeypatch):
  monkeypatch.setattr(dialogue, "_LONGEST", 50)

  async def main():
    ear = Ear()
    speaker, made = make(None, ear)
    await hear(speaker, made, (QUIET, 20), *[(LOUD, 9), (QUIET, 1)] * 12, (QUIET, 19))
    assert [len(sound) // 640 for _, sound in ear.asked] == [50, 50, 8 + 119 + 8 - 100]
    # And a recogniser that never answers is not given more and more.
    await hear(speaker, made, *[(LOUD, 10), (QUIET, 10)] * 4)
    assert len(ear.asked) == 4 and "the recogniser is behind" in speaker.texts("trouble")[0]

  run(main)


def test_voices_instead_of_loudness():
  async def main():
    activity, answers = Ear(), Answers(["Hello."])
    speaker, made = make(answers, activity=activity, length=100)
    made.headphones = True

    async def heard(sound, *likelihoods):
      for likelihood in likelihoods:
        await hear(speaker, made, (sound, 1))
        activity.hear(len(activity.asked) - 1, likelihood)

    await heard(QUIET, *[0.0] * 3)
    made.write("Hi")
    await settle()
    await heard(LOUD, *[0.1] * 20)  # A door.
    await heard(SOFT, *[0.45] * 20)
    await heard(SOFT, 0.6, 0.6, 0.6, 0.4)
    assert not speaker.hushed
    await heard(SOFT, 0.6, 0.6, 0.6, 0.6)
    assert speaker.hushed == 1
    await heard(SOFT, *[0.4] * 20)  # A voice that there is goes on with less.
    assert made._turns.speaks
    await heard(SOFT, *[0.3] * 8)
    assert not made._turns.speaks
    # B's own voice from the loudspeaker is a voice.
    made.headphones = False
    await heard(SOFT, *[0.0] * 20)
    made._answerer = Answers(["Hello again."])
    made.write("Hi")
    await settle()
    await heard(SOFT, *[0.9] * 10)
    assert speaker.hushed == 1
    await heard(LOUD, *[0.9] * 4)
    assert speaker.hushed == 2

  run(main)


def test_ears_that_die_or_sleep_are_told_and_the_conversation_goes_on():
  async def main():
    activity, recogniser = Ear(), Ear()
    speaker, made = make(Answers(["One."], ["Two."]), recogniser, activity, length=100)
    await hear(speaker, made, (QUIET, 3))
    activity.trouble = "voice activity detection has ended"
    activity.hear(None, activity.trouble)
    assert speaker.texts("trouble") == ["voice activity detection has ended; until then your turns are told by loudness"]
    await hear(speaker, made, (LOUD, 8), (QUIET, 20))
    assert len(activity.asked) == 3 and len(recogniser.asked) == 1  # By loudness.
    recogniser.trouble = "the recogniser has ended"
    recogniser.hear(None, recogniser.trouble)
    assert "what you write is" in speaker.texts("trouble")[1]
    await hear(speaker, made, (LOUD, 8), (QUIET, 20))
    made.write("Hi")
    await settle()
    assert speaker.said == ["One."] and len(recogniser.asked) == 1

    sleepy = Ear()
    speaker, made = make(None, None, sleepy)
    await hear(speaker, made, (QUIET, 5), (LOUD, 20))
    assert not speaker.told and not made._turns.speaks
    await hear(speaker, made, (LOUD, 1))
    assert "does not keep up" in speaker.texts("trouble")[0] and sleepy.closed
    assert made._turns.speaks
    dead = Ear(trouble="it has ended")
    speaker, made = make(None, dead, None)
    assert "it has ended" in speaker.texts("trouble")[0]

  run(main)


def test_answers_that_fail_are_told():
  async def main():
    answers = Answers(
        ["One. ", InputError("endpoint", "", "status 500", "an answer")], [], ["😀 ** "], ["Two unspeakable."], ["Three."]
    )
    speaker, made = make(answers)
    for text, trouble in (("a", "status 500"), ("b", "no words"), ("c", "no words"), ("d", "no sound"), ("e", None)):
      told = len(speaker.texts("trouble"))
      made.write(text)
      await settle()
      assert [trouble in x for x in speaker.texts("trouble")[told:]] == [True] * (trouble is not None)
      speaker.frames += 100
    assert speaker.said == ["One.", "Three."]
    assert [(x["role"], x["content"]) for x in answers.asked[-1][1:]] == [("user", "a"), ("assistant", "One."), ("user", "b c d e")]

  run(main)


def test_a_long_history_is_cut_at_its_beginning(monkeypatch):
  monkeypatch.setattr(dialogue, "_MOST_CHARACTERS", 100)

  async def main():
    answers = Answers(*[["Yes, yes, yes, yes."]] * 10)
    speaker, made = make(answers)
    for i in range(10):
      made.write(f"This is number {i}")
      await settle()
      speaker.frames += 100
    system, *rest = answers.asked[-1]
    assert system["role"] == "system" and rest[-1]["content"] == "This is number 9"
    assert sum(len(x["content"]) for x in rest) <= 100 and len(rest) == 5
    # Roles take turns, and the user begins.
    assert [x["role"] for x in rest] == ["user", "assistant"] * 2 + ["user"]

  run(main)


def test_who_began_is_the_user():
  async def main():
    answers = Answers(["Fine."])
    speaker, made = make(answers)
    made.note(0, "Hello there.")  # Typed for B.
    speaker.frames = 5
    made.write("Hi")
    await settle()
    assert [(x["role"], x["content"]) for x in answers.asked[0][1:]] == [("user", "…"), ("assistant", "Hello there."), ("user", "Hi")]

  run(main)


def test_nobody_answers_where_nobody_is():
  async def main():
    _, made = make()
    with pytest.raises(InputError, match="--endpoint"):
      made.write("Hi")

  run(main)


def test_speakable():
  assert make_speakable("**Well**, _this_ is `3 < 5` — naïve 😀 [link](x)") == "Well, this is 3 5 — naïve link (x)"


# The processes.


class Counts:
  """An ear that says how much it has heard in a session."""

  title, yields = "the counter", 3

  def __init__(self):
    self.heard = {}

  def hear(self, session, sound):
    if sound[0] == -1:
      os.kill(os.getpid(), signal.SIGKILL)
    self.heard[session] = self.heard.get(session, 0) + len(sound)
    return self.heard[session]

  def forget(self, session):
    del self.heard[session]


class Broken:
  def __init__(self):
    raise ImportError("no module named moonshine")


def test_a_process_that_hears():
  process = EarProcess(Counts, "the counter")

  async def main():
    process.attach(asyncio.get_running_loop())
    heard = {0: asyncio.Queue(), 1: asyncio.Queue()}
    for session, told in heard.items():
      process.open(session, lambda *given, told=told: told.put_nowait(given))
    for number in range(3):
      for session in heard:
        process.ask(session, number, np.zeros(100 + session, np.int16))
    assert [await heard[0].get() for _ in range(3)] == [(0, 100), (1, 200), (2, 300)]
    assert [await heard[1].get() for _ in range(3)] == [(0, 101), (1, 202), (2, 303)]
    process.close(0)
    process.open(0, lambda *given: heard[0].put_nowait(given))
    process.ask(0, 0, np.zeros(5, np.int16))
    assert await heard[0].get() == (0, 5)  # Nothing is left of the session before.
    assert os.getpriority(os.PRIO_PROCESS, process.target.pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19)
    big = np.zeros(500_000, np.int16)
    for number in range(20):  # More than a pipe holds: nobody waits.
      process.ask(0, number, big)
    for number in range(20):
      assert await heard[0].get() == (number, 5 + (number + 1) * len(big))
    process.ask(1, 3, np.full(5, -1, np.int16))
    number, why = await heard[0].get()
    assert number is None and "the counter has ended" in why and process.trouble == why
    process.ask(0, 9, QUIET)  # Nothing happens.
    process.detach()

  try:
    asyncio.run(asyncio.wait_for(main(), 60))
  finally:
    process.stop()
  assert not process.target.is_alive()


def test_one_that_cannot_begin_is_one_line():
  with pytest.raises(InputError, match="^the recogniser: found ImportError: no module named moonshine, expected one that hears$"):
    EarProcess(Broken, "the recogniser", own_process=False)
