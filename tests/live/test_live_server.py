"""A conversation over the socket: what is answered, and that one knows nothing of another."""

import asyncio
import json
import os
import signal

import numpy as np
import pytest

from live import probe
from live.talks import QUIET, RECORDING, TOKEN, go_on, serve, sound_of, talk
from rsatalker_jax.live import ears
from rsatalker_jax.live.eliza import Eliza
from rsatalker_jax.live.protocol import CUT, VOICED
from served import request


@pytest.fixture(scope="module")
def port():
  with serve() as port:
    yield port


def test_every_frame_is_answered_once_and_in_order(port):
  async def main():
    async with talk(port) as a:
      rng = np.random.default_rng(0)
      sounds = [np.round(rng.uniform(500, 5000) * rng.normal(size=640)).clip(-32768, 32767).astype(np.int16) for _ in range(30)]
      for sound in sounds:
        await a.hear(sound)
      for number, sound in enumerate(sounds):
        found, flags, motion, own = await a.answer()
        assert (found, flags) == (number, 0) and not own.any()
        assert motion[probe.FRAME] == number
        np.testing.assert_allclose(motion[probe.JAW], min(2 * probe.loudness(sound / 32768), 0.5), rtol=1e-5)
        assert motion[probe.SEEN] == 0.25 and motion[probe.RELATION].tolist() == [1, 1]  # A's motion is the neutral one.
      assert a.told == [{"type": "ready", "frames_ahead": 0}]
      motion = np.zeros(56, np.float32)
      motion[0] = 0.75
      assert [(await a.ask(motion=motion))[2][probe.SEEN] for _ in range(5)][-1] == 0.75
      await a.tell("relation", relation="non_blood,unknown")
      assert (await a.ask())[2][probe.RELATION].tolist() == [0, -1]

  asyncio.run(main())


@pytest.mark.parametrize("ahead", [0, 4])
def test_a_recording_is_heard_where_the_generator_heard_it(ahead):
  async def main(port):
    async with talk(port) as a:
      assert (await a.ask())[1] == 0
      await a.tell("play", recording=0)
      answers = [await a.ask() for _ in range(40)]
      assert a.told == [{"type": "ready", "frames_ahead": ahead}, {"type": "saying", "text": "hello.wav", "seconds": 0.8}]
      sound = np.concatenate([sound for *_, sound in answers])
      begins = int(np.argmax(np.abs(sound) > 0)) // 640
      np.testing.assert_array_equal(sound[640 * begins :][: len(RECORDING)], np.round(RECORDING * 32767))
      assert [bool(flags & VOICED) for _, flags, *_ in answers] == [begins <= i < begins + 20 for i in range(40)]
      heard = [motion[probe.OWN] for _, _, motion, _ in answers]
      expected = [probe.loudness(part / 32768) for part in sound.reshape(-1, 640)]
      np.testing.assert_allclose(heard[: 40 - ahead], expected[ahead:], atol=1e-6)
      assert max(expected) > 0.1

  with serve(frames_ahead=ahead, conversations=1) as port:
    asyncio.run(main(port))


def test_a_interrupts(port):
  async def main():
    rng = np.random.default_rng(0)
    loud = np.round(3000 * rng.normal(size=640)).astype(np.int16)
    async with talk(port) as a:
      await a.tell("headphones", on=True)
      await a.ask()
      await a.tell("play", recording=0)
      before = [await a.ask() for _ in range(10)]
      assert before[-1][1] & VOICED and before[-1][3].any()
      during = [await a.ask(loud) for _ in range(6)]
      assert [bool(flags & VOICED) for _, flags, *_ in during] == [True] * 3 + [False] * 3  # 160 ms are over with the fourth.
      assert [bool(flags & CUT) for _, flags, *_ in during] == [False] * 3 + [True] + [False] * 2
      assert not any(sound.any() for *_, sound in during[3:]) and {"type": "cut"} in a.told
      await a.tell("play", recording=0)
      assert any([(await a.ask())[1] & VOICED for _ in range(8)])
      await a.tell("stop")
      assert (await a.ask())[1] & CUT and not (await a.ask())[1]
      assert len([x for x in a.told if x["type"] == "cut"]) == 2

  asyncio.run(main())


def test_who_speaks_when_it_begins_does_not_interrupt(port):
  async def main():
    rng = np.random.default_rng(0)
    loud = np.round(3000 * rng.normal(size=640)).astype(np.int16)
    async with talk(port) as a:
      for sound in [QUIET] * 2 + [loud] * 4:
        await a.ask(sound)
      await a.tell("play", recording=0)
      assert sum([bool((await a.ask(loud))[1] & VOICED) for _ in range(28)]) == 20  # All of it.
      await asyncio.sleep(0.4)  # Frames come at 25 a second.
      await a.tell("play", recording=0)
      answers = [await a.ask(sound) for sound in [loud] * 5 + [QUIET] * 8 + [loud] * 5]
      assert [bool(flags & VOICED) for _, flags, *_ in answers] == [False] * 6 + [True] * 10 + [False] * 2  # After a pause, it does.
      assert answers[16][1] & CUT and a.told[-1] == {"type": "cut"} and a.told.count({"type": "cut"}) == 1

  asyncio.run(main())


def test_a_sentence_is_said_and_what_cannot_be_is_told(port):
  async def main():
    async with talk(port) as a:
      await a.tell("say", text="Hello there. Fine.")
      answers = []
      while len(a.told) < 3:
        answers.append(await a.ask())
      answers += [await a.ask() for _ in range(30)]
      assert [x["text"] for x in a.told[1:]] == ["Hello there.", "Fine."] and a.told[1]["seconds"] == 0.24
      assert sum(bool(flags & VOICED) for _, flags, *_ in answers) == 6 + 3  # 0.24 s and 0.1 s.
      for kind, value, part in (
          ("say", {"text": "Why?"}, "a question"),
          ("say", {"text": ""}, "1 to 500"),
          ("play", {"recording": 1}, "recording: found 1, expected below 1"),
          ("relation", {"relation": "friends"}, "friends"),
          ("dance", {}, "type: found 'dance'"),
      ):
        told = len(a.told)
        await a.tell(kind, **value)
        while len(a.told) == told:
          await a.ask()
        assert a.told[-1]["type"] == "trouble" and part in a.told[-1]["message"]

  asyncio.run(main())


def test_what_is_written_is_answered():
  async def main(port):
    async with talk(port) as a, talk(port) as b:
      await a.tell("write", text="I am here.")
      await go_on(lambda: len(a.told) > 2, (a, QUIET), (b, QUIET))
      assert a.told[1:] == [
          {"type": "heard", "turn": 0, "text": "I am here."},
          {"type": "saying", "text": "How long have you been here?", "seconds": 0.56},
      ]  # fmt: skip
      assert len(b.told) == 1
      answers = [await a.ask() for _ in range(30)]
      assert sum(bool(flags & VOICED) for _, flags, *_ in answers) == 14
      await a.tell("say", text="Fine.")
      await a.tell("write", text="I am here.")
      await go_on(lambda: "being" in a.told[-1]["text"], (a, QUIET))
      assert a.told[-1]["text"] == "Do you like being here?"
      await b.tell("write", text="I am here.")  # Of what the other said it knows nothing.
      await go_on(lambda: len(b.told) > 2, (b, QUIET))
      assert b.told[-1]["text"] == "How long have you been here?"

  with serve(say=sound_of, answerer=Eliza()) as port:
    assert json.loads(request(port, "GET", f"/{TOKEN}/state")[2])["answerer"] == {"name": "eliza", "where": "", "local": True}
    asyncio.run(main(port))


def test_who_leaves_ends_the_request():
  class Slow(Eliza):
    ended = 0

    async def answer(self, messages):
      try:
        yield "Well. "
        await asyncio.sleep(1000)
      finally:
        Slow.ended += 1

  async def main(port):
    async with talk(port) as a:
      await a.tell("write", text="Hello.")
      await go_on(lambda: len(a.told) > 2, (a, QUIET))
      assert not Slow.ended
    for _ in range(500):
      if Slow.ended:
        return
      await asyncio.sleep(0.02)
    raise AssertionError("it is still asked")

  with serve(say=sound_of, answerer=Slow()) as port:
    asyncio.run(main(port))


def test_nobody_answers_where_nobody_is(port):
  async def main():
    async with talk(port) as a:
      await a.tell("write", text="Hello.")
      while len(a.told) < 2:
        await a.ask()
      assert "--endpoint=eliza" in a.told[1]["message"]

  asyncio.run(main())


def test_ears_of_several_conversations():
  """Voices are heard by a process instead of loudness, phrases become words; and the process may die."""
  rng = np.random.default_rng(0)
  activity, recogniser = ears.EarProcess(probe.Voices, "voices", own_process=False), ears.EarProcess(probe.Words, "words")

  async def main(port):
    loud = np.round(1000 * rng.normal(size=640)).astype(np.int16)
    async with talk(port) as a, talk(port) as b:
      for sound in [QUIET] * 5 + [loud + probe.VOICE] * 10 + [QUIET] * 25:
        await a.ask(sound), await b.ask(loud)
      await go_on(lambda: len(a.told) > 2, (a, QUIET), (b, loud))
      assert [x["text"] for x in a.told[1:3]] == ["I am 23 frames long", "How long have you been 23 frames long?"]
      assert len(b.told) == 1  # Loud, but no voice.
      os.kill(recogniser.target.pid, signal.SIGKILL)
      await go_on(lambda: b.told[-1]["type"] == "trouble", (b, loud))
      assert "words has ended" in b.told[-1]["message"]
      await b.tell("write", text="Hello.")
      await go_on(lambda: b.told[-1]["type"] == "saying", (b, loud))
    async with talk(port) as c:
      await go_on(lambda: len(c.told) > 1, (c, QUIET))
      assert "words has ended" in c.told[1]["message"]

  with serve(say=sound_of, answerer=Eliza(), activity=activity, recogniser=recogniser) as port:
    asyncio.run(main(port))


def test_without_text_to_speech_it_says_how_to_get_it():
  async def main(port):
    async with talk(port) as a:
      await a.tell("say", text="Hello.")
      while len(a.told) < 2:
        await a.ask()
      assert "pip install hibari-tts" in a.told[1]["message"]

  with serve(say=None) as port:
    asyncio.run(main(port))
