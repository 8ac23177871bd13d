"""An OpenAI-compatible endpoint: what is asked of it, what is taken of its answers, and every way in which there is none."""

import asyncio
import contextlib
import json

import pytest
from aiohttp import test_utils, web

from rsatalker_jax.errors import InputError
from rsatalker_jax.live.eliza import Eliza, turn_round
from rsatalker_jax.live.endpoint import Endpoint, Limits, parse_endpoint

MESSAGES = [{"role": "user", "content": "Hello."}]


def chunk(text: str | None = None, **choice) -> bytes:
  data = {"choices": [{"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": None} | choice]}
  return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


class Fake:
  """An endpoint that sends what it is given: bytes, and seconds to wait in between."""

  def __init__(self, *script, status=200, kind="text/event-stream", breaks=False, headers=None):
    self.script, self.status, self.kind, self.breaks = script, status, kind, breaks
    self.headers = headers or {}
    self.asked, self.left = [], asyncio.Event()

  async def handle(self, request):
    self.asked.append((dict(request.headers), await request.json()))
    response = web.StreamResponse(status=self.status, headers={"Content-Type": self.kind} | self.headers)
    await response.prepare(request)
    try:
      for step in self.script:
        if isinstance(step, bytes):
          await response.write(step)
        else:
          await asyncio.sleep(step)
      if self.breaks:
        request.transport.abort()
    except (ConnectionError, asyncio.CancelledError):
      self.left.set()
      raise
    return response

  @contextlib.asynccontextmanager
  async def serving(self, **options):
    app = web.Application()
    app.router.add_post("/v1/chat/completions", self.handle)
    async with test_utils.TestServer(app, host="127.0.0.1") as server:
      endpoint = Endpoint(str(server.make_url("")), "a-model", **options)
      await endpoint.open()
      try:
        yield endpoint
      finally:
        await endpoint.close()


def ask(fake, **options):
  """Pieces until the end, and the error."""

  async def main():
    pieces = []
    async with fake.serving(**options) as endpoint:
      try:
        async for piece in endpoint.answer(MESSAGES):
          pieces.append(piece)
      except InputError as error:
        return pieces, str(error)
    return pieces, None

  return asyncio.run(main())


def test_what_is_asked():
  fake = Fake(chunk("Hi."), DONE)
  assert ask(fake, key="sk-1") == (["Hi."], None)
  (headers, body), = fake.asked
  assert headers["Authorization"] == "Bearer sk-1" and headers["Connection"] == "close"
  assert body == {"model": "a-model", "messages": MESSAGES, "stream": True, "max_tokens": 300}
  fake = Fake(chunk("Hi."), DONE)
  ask(fake)
  assert "Authorization" not in fake.asked[0][0] and "Cookie" not in fake.asked[0][0]


def words(data: bytes, size: int) -> list[bytes]:
  return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize(
    "script",
    [
        [chunk(role="assistant"), chunk("Ça "), chunk("va 😀."), chunk(finish_reason="stop"), DONE],
        words((chunk("Ça ") + chunk("va 😀.") + DONE), 1),
        [chunk("Ça ").replace(b"\n", b"\r\n"), chunk("va 😀.").replace(b"\n", b"\r\n"), DONE.replace(b"\n", b"\r\n")],
        [b": a comment\n\nevent: message\nid: 7\n", chunk("Ça ").replace(b"data: ", b"data:"), chunk("va 😀."), DONE, b"data: rubbish\n\n"],
        [chunk("Ça "), chunk("va 😀."), chunk(finish_reason="stop")],  # Without [DONE].
        [chunk("Ça "), chunk("va 😀."), b'data: {"choices": [], "usage": {}}\n\n', b"data: [DONE]"],
        [chunk("Ça va 😀.").replace(b', "finish', b',\ndata:  "finish'), DONE],
    ],
)
def test_answers_are_read_as_they_come(script):
  pieces, error = ask(Fake(*script))
  assert ("".join(pieces), error) == ("Ça va 😀.", None)


FAST = Limits(silence=0.2, total=1.0, characters=50, line=2000)


@pytest.mark.parametrize(
    "fake, said, message",
    [
        (lambda: Fake(b"the model is gone", status=500, kind="text/plain"), "", "status 500: the model is gone"),
        (lambda: Fake(b"x" * 10**6, status=401), "", "status 401: " + "x" * 200 + ", "),
        (lambda: Fake(b"no key sk-secret", status=401), "", "no key …,"),
        (lambda: Fake(status=302, headers={"Location": "http://127.0.0.1:1/"}), "", "status 302"),
        (lambda: Fake(b"{}", kind="application/json"), "", "found application/json, expected text/event-stream"),
        (lambda: Fake(0.5, chunk("Late."), DONE), "", "no word for too long, expected one in 0.2 s"),
        (lambda: Fake(chunk("One "), 0.5, chunk("two."), DONE), "One ", "no word for too long"),
        (lambda: Fake(*[b": wait\n\n", 0.1] * 20), "", "no word for too long, expected one in 0.2 s, and all in 1 s"),
        (lambda: Fake(chunk("One "), breaks=True), "One ", "expected an endpoint that answers"),
        (lambda: Fake(chunk("One ")), "One ", "an answer that broke off"),
        (lambda: Fake(), "", "an answer that broke off"),
        (lambda: Fake(b"data: {\n\n"), "", "an event that is none: {"),
        (lambda: Fake(b"data: " + b"[" * 1500 + b"\n\n"), "", "an event that is none"),
        (lambda: Fake(b'data: {"choices": [{"delta": {"content": 3}}]}\n\n'), "", "an event that is none"),
        (lambda: Fake(b"data: 3\n\n"), "", "an event that is none"),
        (lambda: Fake(b'data: {"choices": 3}\n\n'), "", "an event that is none"),
        (lambda: Fake(b"\xff\xfe\x00" * 100 + b"\n\n"), "", "an answer that broke off"),
        (lambda: Fake(b"data: " + b"x" * 3000), "", "an event of more than 2000 bytes"),
        (lambda: Fake(*[b"data: " + b"x" * 100 + b"\n"] * 30), "", "an event of more than 2000 bytes"),
        (lambda: Fake(b'data: {"error": {"message": "out of memory"}}\n\n'), "", "out of memory"),
        (lambda: Fake(*[chunk("word ")] * 100, DONE), "word " * 10, "an answer of more than 50 characters"),
    ],
)  # fmt: skip
def test_without_an_answer_there_is_one_line(fake, said, message):
  pieces, error = ask(fake(), key="sk-secret", limits=FAST)
  assert "".join(pieces) == said and message in error, error
  assert error.startswith("endpoint 127.0.0.1:") and "\n" not in error and "sk-secret" not in error and len(error) < 500


def test_one_that_is_down():
  async def main():
    endpoint = Endpoint(f"http://127.0.0.1:{test_utils.unused_port()}/v1", "m")
    await endpoint.open()
    with pytest.raises(InputError, match="Connect.*expected an endpoint that answers"):
      await anext(endpoint.answer(MESSAGES))
    await endpoint.close()

  asyncio.run(main())


def test_one_that_ends_its_connections_without_saying_so():
  async def handle(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    body = chunk("Yes.") + DONE
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()

  async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    endpoint = Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "m")
    await endpoint.open()
    for _ in range(5):
      assert [piece async for piece in endpoint.answer(MESSAGES)] == ["Yes."]
    await endpoint.close()
    server.close()

  asyncio.run(main())


def test_who_stops_listening_ends_the_request():
  async def main():
    fake = Fake(chunk("One "), 0.01, *[chunk("more "), 0.05] * 1000)
    async with fake.serving() as endpoint:
      async with contextlib.aclosing(endpoint.answer(MESSAGES)) as pieces:
        assert await anext(pieces) == "One "
      await asyncio.wait_for(fake.left.wait(), 10)

  asyncio.run(main())


@pytest.mark.parametrize(
    "url, found",
    [
        ("http://127.0.0.1:8080", ("http://127.0.0.1:8080/v1/chat/completions", "127.0.0.1:8080", True)),
        ("http://localhost:1234/v1/", ("http://localhost:1234/v1/chat/completions", "localhost:1234", True)),
        ("http://[::1]:5/api/v3", ("http://[::1]:5/api/v3/chat/completions", "[::1]:5", True)),
        ("https://api.example.org/v1", ("https://api.example.org/v1/chat/completions", "api.example.org", False)),
        ("https://localhost.example.org", ("https://localhost.example.org/v1/chat/completions", "localhost.example.org", False)),
    ],
)
def test_addresses(url, found):
  assert parse_endpoint(url, "key") == found


@pytest.mark.parametrize(
    "url", ["eliza2", "ftp://a/v1", "http://", "http://user:pw@a/v1", "http://a/v1?key=3", "http://a:99999/v1", "http://a/v1", "http://[::1"]
)
def test_addresses_that_are_none(url):
  with pytest.raises(InputError, match="^--endpoint: found .*expected (an address|https: the key)"):
    parse_endpoint(url, "key")


def eliza(*said):
  """Its answers, one after the other."""

  async def main():
    messages, answers = [{"role": "system", "content": "I am not heard"}], []
    for text in said:
      messages.append({"role": "user", "content": text})
      answers.append("".join([piece async for piece in Eliza().answer(messages)]).strip())
      messages.append({"role": "assistant", "content": answers[-1]})
    return answers

  return asyncio.run(main())


def test_eliza():
  assert eliza("Hello there", "I’m sad about my dog, you know.", "I am sad", "It rains", "It snows", "It rains", "It thaws", "It is mud") == [
      "Hello. How are you today?", "How long have you been sad about your dog?", "Do you like being sad?", "Please go on.",
      "What does that suggest to you?", "I see. Can you say more about that?", "How do you feel about that?", "Please go on.",
  ]  # fmt: skip
  assert turn_round("I gave you my book") == "you gave me your book"
  assert eliza("I hit this") == ["Please go on."]  # A keyword is a word.
  assert eliza("", "I need .") == ["Please go on.", "Why do you need that?"]
