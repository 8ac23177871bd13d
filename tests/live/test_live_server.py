"""A conversation over the socket: what is answered, what is refused, and that one knows nothing of another."""

import asyncio
import contextlib
import json
import os
import signal

import aiohttp
import numpy as np
import pytest

from live import probe
from rsatalker_jax.errors import InputError
from rsatalker_jax.live import ears, server
from rsatalker_jax.live.eliza import Eliza
from rsatalker_jax.live.protocol import CUT, VOICED, make_frame, parse_answer
from rsatalker_jax.live.server import LiveServer
from rsatalker_jax.live.worker import Worker
from served import request, serving_in_thread

TOKEN = "a-token"
QUIET = np.zeros(640, np.int16)
RECORDING = (0.3 * np.sin(0.1 * np.arange(640 * 20)) * np.repeat(np.linspace(0.1, 1, 20), 640)).astype(np.float32)


def speak(sentence):
  """20 ms a letter, at 8 kHz."""
  if "?" in sentence:
    raise InputError("message", "say", "a question", "an answer")
  return sound_of(sentence)


def sound_of(sentence):
  return np.full(160 * len(sentence), 0.1, np.float32), 8000


@contextlib.contextmanager
def serve(*, frames_ahead=0, conversations=2, own_process=False, **options):
  worker = Worker(probe.ProbeEngine, frames_ahead, conversations, own_process=own_process)
  options = dict(recordings={"hello.wav": RECORDING}, say=speak, conversations=conversations, relation="blood,equal") | options
  try:
    with serving_in_thread(lambda origins: LiveServer(worker, TOKEN, origins, **options).make_app()) as port:
      yield port
  finally:
    worker.stop()


@pytest.fixture(scope="module")
def port():
  with serve() as port:
    yield port


class Talk:
  """A socket, as a page has it."""

  def __init__(self, socket):
    self.socket, self.sent, self.told = socket, 0, []

  async def hear(self, sound=QUIET, motion=None):
    await self.socket.send_bytes(make_frame(self.sent, sound, motion))
    self.sent += 1

  async def tell(self, kind, **value):
    await self.socket.send_str(json.dumps({"type": kind, **value}))

  async def answer(self):
    """The next answer; text before it is kept in `told`."""
    while (message := await self.socket.receive(timeout=20)).type == aiohttp.WSMsgType.TEXT:
      self.told.append(message.json())
    assert message.type == aiohttp.WSMsgType.BINARY, (message, self.told)
    return parse_answer(message.data)

  async def ask(self, sound=QUIET, motion=None):
    await self.hear(sound, motion)
    return await self.answer()

  async def end(self):
    """Why it ends, and by which code."""
    while (message := await self.socket.receive(timeout=20)).type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
      if message.type == aiohttp.WSMsgType.TEXT:
        self.told.append(message.json())
    assert message.type == aiohttp.WSMsgType.CLOSE or self.socket.closed, message
    return (self.told[-1].get("message") if self.told else None), self.socket.close_code


@contextlib.asynccontextmanager
async def talk(port, **options):
  origin = f"http://127.0.0.1:{port}"
  async with aiohttp.ClientSession() as session:
    address = f"{origin}/{options.pop('token', TOKEN)}/socket"
    headers = {"Origin": origin} | options.pop("headers", {})
    async with session.ws_connect(address, headers={k: v for k, v in headers.items() if v}, **options) as socket:
      yield Talk(socket)


async def go_on(until, *talks):
  """Gives frames as a microphone does."""
  while not until():
    for a, sound in talks:
      await a.ask(sound)
    await asyncio.sleep(0.04)


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


BAD = np.zeros(56, np.float32)
BAD[3] = np.nan
FAILS = np.zeros(56, np.float32)
FAILS[1] = probe.FAILS


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "frame: found 0 bytes"),
        (bytes(1283), "frame: found 1283 bytes"),
        (make_frame(7, QUIET), "number: found 7, expected 3"),
        (make_frame(2, QUIET), "number: found 2, expected 3"),
        (make_frame(3, QUIET, BAD), "frame: motion"),
        (make_frame(3, QUIET, FAILS), "a failure"),
        (bytes(5000), None),  # The protocol's own end: too large.
    ],
)
def test_garbage_ends_one_conversation_and_no_other(port, data, message):
  async def main():
    async with talk(port) as other, talk(port) as a:
      for _ in range(3):
        await a.ask(), await other.ask()
      await a.socket.send_bytes(data)
      found, code = await a.end()
      assert (message in found, code) == (True, 1000) if message else code == 1009
      assert (await other.ask())[2][probe.FRAME] == 3
      async with talk(port) as again:  # Its place is free again, and nothing is left of it.
        assert (await again.ask())[2][probe.FRAME] == 0

  asyncio.run(main())


def test_more_than_a_microphone_gives_is_refused(port):
  async def main():
    async with talk(port) as a:
      for _ in range(120):
        if a.socket.closed:
          break
        with contextlib.suppress(ConnectionError):
          await a.hear()
      assert (await a.end())[0] == "more than 25 frames a second"
    async with talk(port) as a:
      for _ in range(40):
        with contextlib.suppress(ConnectionError):
          await a.tell("stop")
      assert (await a.end())[0] == "more messages than a person makes"

  asyncio.run(main())


def test_a_generator_that_is_too_slow_ends_it(monkeypatch):
  monkeypatch.setattr(server, "_MOST_WAITING", 10)

  async def main(port):
    hangs = np.zeros(56, np.float32)
    hangs[1] = probe.HANGS
    async with talk(port) as a:
      for _ in range(20):
        await a.hear(motion=hangs)
      assert "more slowly than it is needed" in (await a.end())[0]

  with serve() as port:
    asyncio.run(main(port))


def test_a_page_that_is_too_slow_ends_its_own_conversation(monkeypatch):
  monkeypatch.setattr(server, "_MOST_WAITING", 10)
  send = server.web.WebSocketResponse.send_bytes
  slow = set()

  async def send_late(self, data, *given):
    if self in slow or not slow:  # The first that is answered.
      slow.add(self)
      await asyncio.sleep(0.15)
    await send(self, data, *given)

  monkeypatch.setattr(server.web.WebSocketResponse, "send_bytes", send_late)

  async def main(port):
    async with talk(port) as a, talk(port) as b:
      with contextlib.suppress(ConnectionError):
        for _ in range(30):
          await a.hear()
          await asyncio.sleep(0.05)
      assert (await a.end())[0] == "this page takes its answers too slowly"
      assert (await b.ask())[0] == 0

  with serve() as port:
    asyncio.run(main(port))


def test_one_that_is_silent_for_long_ends(monkeypatch):
  monkeypatch.setattr(server, "_IDLE", 0.2)

  async def main(port):
    async with talk(port) as a:
      assert await a.end() == ("no sound for 0.2 s", 1000)

  with serve() as port:
    asyncio.run(main(port))


def test_so_many_at_once():
  async def main(port):
    async with talk(port) as a, talk(port) as b:
      await a.ask(), await b.ask()
      async with talk(port) as c:
        assert await c.end() == ("2 conversations under way already; another begins when one ends", 1013)
    async with talk(port) as a:
      assert (await a.ask())[0] == 0

  with serve(conversations=2) as port:
    asyncio.run(main(port))


@pytest.mark.parametrize(
    "change, status",
    [
        ({"headers": {"Origin": "http://evil.example"}}, 403),
        ({"headers": {"Origin": "null"}}, 403),
        ({"headers": {"Origin": None}}, 403),
        ({"headers": {"Host": "evil.example"}}, 421),
        ({"token": "another"}, 404),
        ({"token": TOKEN[:-1]}, 404),
    ],
)
def test_strangers_are_refused(port, change, status):
  async def main():
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
      async with talk(port, **change):
        pass
    assert caught.value.status == status

  asyncio.run(main())


def test_the_page_and_what_it_asks_for(port):
  page = request(port, "GET", f"/{TOKEN}/")[2].decode()
  assert "<style" not in page and " style=" not in page and " onclick" not in page and "//" not in page
  assert page.count("<script") == page.count("<script src=") == 13
  for path in [f"/{TOKEN}/", f"/{TOKEN}/state", f"/{TOKEN}/avatar"] + [
      f"/assets/{name}.js"
      for name in (
          "page", "tables", "gaussians", "screen", "turning", "head", "layers", "offsets", "clock", "recorder", "dialogue", "webcam", "live",
      )
  ] + [f"/assets/{name}.js" for name in ("resampler", "microphone", "loudspeaker")] + ["/assets/page.css", "/assets/live.css"]:
    status, headers, body = request(port, "GET", path)
    assert status == 200 and body and headers["Content-Security-Policy"].startswith("default-src 'none'"), path
    assert "unsafe" not in headers["Content-Security-Policy"] and headers["Referrer-Policy"] == "no-referrer"
    if path.startswith("/assets"):
      assert path[1:] in page or path.rpartition("/")[2].removesuffix(".js") in ("resampler", "microphone", "loudspeaker")
  state = json.loads(request(port, "GET", f"/{TOKEN}/state")[2])
  assert state == {
      "frames_ahead": 0, "relation": "blood,equal", "recordings": ["hello.wav"], "speaks": True, "longest_text": 500,
      "records": False, "answerer": None, "understands": False,
      "camera": {"trouble": "this program has no tracker"},
  }  # fmt: skip
  assert request(port, "GET", f"/{TOKEN}/socket")[0] == 400


def test_avatars_of_other_people():
  worker = Worker(probe.ProbeEngine, 0, 1, {"others": {"bob": {}}}, b"anns", {"bob": b"bobs"}, own_process=False)
  try:
    with serving_in_thread(lambda origins: LiveServer(worker, TOKEN, origins, recordings={}, conversations=1).make_app()) as port:
      get = lambda path: request(port, "GET", path)[::2]
      assert get(f"/{TOKEN}/avatar") == (200, b"anns") and get(f"/{TOKEN}/avatar/bob") == (200, b"bobs")
      assert get(f"/{TOKEN}/avatar/eve")[0] == get("/x/avatar/bob")[0] == get(f"/{TOKEN}/avatar/bob/x")[0] == 404
  finally:
    worker.stop()


@pytest.mark.parametrize(
    "path", ["/", "/state", "/x/", "/x/state", "/x/avatar", f"/{TOKEN}x/state", f"/{TOKEN}/secret", "/assets/server.py", "/assets/../server.py"]
)
def test_without_the_link_nothing_is_told(port, path):
  status, _, body = request(port, "GET", path)
  assert status == 404 and TOKEN.encode() not in body


def test_a_process_of_its_own_and_its_end():
  worker = Worker(probe.ProbeEngine, 2, 1)

  async def main(port):
    async with talk(port) as a:
      assert (await a.ask())[2][probe.FRAME] == 0
      os.kill(worker.target.pid, signal.SIGKILL)
      assert "process has ended" in (await a.end())[0]
    async with talk(port) as a:
      assert "process has ended" in (await a.end())[0]

  try:
    with serving_in_thread(lambda origins: LiveServer(worker, TOKEN, origins).make_app()) as port:
      asyncio.run(main(port))
  finally:
    worker.stop()
  assert not worker.target.is_alive()


def test_what_the_process_refuses_is_one_line():
  with pytest.raises(InputError, match="^runs/a: generator.causal: found a generator that looks ahead, expected one that is causal$"):
    Worker(probe.refuse, "runs/a")


def test_the_program_ends_and_says_so():
  with contextlib.ExitStack() as stack:
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    served = stack.enter_context(contextlib.ExitStack())
    port = served.enter_context(serve())

    async def begin():
      context = talk(port)
      a = await context.__aenter__()
      await a.ask()
      return context, a

    async def finish(context, a):
      ending = asyncio.get_running_loop().run_in_executor(None, served.close)
      assert (await a.end())[0] == "the program has ended"
      await ending
      await context.__aexit__(None, None, None)

    loop.run_until_complete(finish(*loop.run_until_complete(begin())))
