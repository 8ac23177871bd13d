"""A conversation over the socket: what is refused and what ends it, what strangers are given, and processes that end."""

import asyncio
import contextlib
import json
import os
import signal

import aiohttp
import numpy as np
import pytest

from live import probe
from live.talks import QUIET, TOKEN, serve, talk
from rsatalker_jax.errors import InputError
from rsatalker_jax.live import server
from rsatalker_jax.live.protocol import make_frame
from rsatalker_jax.live.server import LiveServer
from rsatalker_jax.live.worker import Worker
from served import request, serving_in_thread

BAD = np.zeros(56, np.float32)
BAD[3] = np.nan
FAILS = np.zeros(56, np.float32)
FAILS[1] = probe.FAILS


@pytest.fixture(scope="module")
def port():
  with serve() as port:
    yield port


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
