"""What B answers, from an OpenAI-compatible endpoint: llama.cpp, Ollama, vLLM or a hosted one, over its streamed chat completions."""

import dataclasses
import json
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp

from rsatalker_jax.errors import InputError
from rsatalker_jax.web.serving import is_loopback

KEY_VARIABLE = "RSATALKER_ENDPOINT_KEY"
_QUOTED = 200  # Characters of what an endpoint says of its errors.


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of one answer. Times are in seconds."""

  connect: float = 5.0
  silence: float = 30.0  # Until the first word, and between two: a model may have to be loaded.
  total: float = 120.0
  tokens: int = 300  # That are asked for …
  characters: int = 3000  # … and that are taken of an endpoint that goes on for ever.
  line: int = 1 << 16  # Bytes of one event.


def parse_endpoint(url: str, key: str | None) -> tuple[str, str, bool]:
  """The address of its chat completions, its host and port, and whether it is this machine.

  Args:
    url: such as http://127.0.0.1:8080/v1; without a path, /v1 is meant.
    key: that is sent with each request.

  Raises:
    InputError: it is none, or the key would be sent in the clear.
  """
  expected = "an address such as http://127.0.0.1:8080/v1"
  try:
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname, parts.port
  except ValueError as error:
    raise InputError("--endpoint", "", f"{url}: {error}", expected) from None
  if not host or parts.scheme not in ("http", "https") or "@" in parts.netloc or parts.query or parts.fragment:
    raise InputError("--endpoint", "", url, expected)
  local = is_loopback(host)
  if key and parts.scheme == "http" and not local:
    raise InputError("--endpoint", "", f"{url} with a key in {KEY_VARIABLE}", "https: the key would be sent in the clear")
  name = f"[{host}]" if ":" in host else host
  where = name if port is None else f"{name}:{port}"
  return f"{parts.scheme}://{where}{parts.path.rstrip('/') or '/v1'}/chat/completions", where, local


class Endpoint:
  """A `dialogue.Answerer` over HTTP. It is told no more than the words of the conversation and the relation."""

  def __init__(self, url: str, model: str, key: str | None = None, limits: Limits = Limits()):
    """See `parse_endpoint`; `model` is what the endpoint calls it."""
    self._address, self._where, local = parse_endpoint(url, key)
    self._model, self._key, self._limits = model, key, limits
    self.about = {"name": model, "where": self._where, "local": local}

  async def open(self) -> None:
    limits = self._limits
    timeout = aiohttp.ClientTimeout(total=limits.total, sock_connect=limits.connect, sock_read=limits.silence)
    # A connection for each answer: llama.cpp's server ends them without saying so, and the next question would be lost.
    connector = aiohttp.TCPConnector(force_close=True)
    self._session = aiohttp.ClientSession(timeout=timeout, connector=connector, cookie_jar=aiohttp.DummyCookieJar())

  async def close(self) -> None:
    await self._session.close()

  async def answer(self, messages: Sequence[dict[str, str]]) -> AsyncIterator[str]:
    body = {"model": self._model, "messages": list(messages), "stream": True, "max_tokens": self._limits.tokens}
    headers = {"Accept": "text/event-stream"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
    try:
      # A redirection could take words and key to another place than the page says.
      async with self._session.post(self._address, json=body, headers=headers, allow_redirects=False) as response:
        if response.status != 200:
          told = (await response.content.read(4 * _QUOTED)).decode(errors="replace")
          raise self._error(f"status {response.status}: {told[:_QUOTED]}", "an answer")
        if response.content_type != "text/event-stream":
          raise self._error(response.content_type, "text/event-stream, an answer that comes word by word")
        taken = 0
        async for piece in self._read_pieces(response.content):
          taken += len(piece)
          if taken > self._limits.characters:
            raise self._error(f"an answer of more than {self._limits.characters} characters", "a shorter one; the rest is left out")
          yield piece
    except TimeoutError:
      raise self._error("no word for too long", f"one in {self._limits.silence:g} s, and all in {self._limits.total:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
      raise self._error(f"{type(error).__name__}: {error}", "an endpoint that answers") from None

  async def _read_pieces(self, content: Any) -> AsyncIterator[str]:
    finished = False
    async for data in self._read_events(content):
      if data == "[DONE]":
        return
      try:
        event = json.loads(data)
        if event.get("error"):
          raise self._error(str(event["error"])[:_QUOTED], "an answer")
        for choice in event["choices"][:1]:  # The last event may have none.
          piece = choice["delta"].get("content") or ""
          finished = finished or bool(choice.get("finish_reason"))
          if not isinstance(piece, str):
            raise TypeError(piece)
          yield piece
      except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
          raise
        raise self._error(f"an event that is none: {data[:_QUOTED]}", "chat completion chunks") from None
    if not finished:
      raise self._error("an answer that broke off", "one with an end")

  async def _read_events(self, content: Any) -> AsyncIterator[str]:
    """The data of each event (WHATWG HTML, section 9.2), in lines that end with LF or CR LF."""
    rest, data = b"", []
    async for chunk in content.iter_any():
      *lines, rest = (rest + chunk).split(b"\n")
      for line in lines:
        text = line.decode(errors="replace").rstrip("\r")
        if text.startswith("data:"):
          data.append(text[5:].removeprefix(" "))
        elif not text and data:
          yield "\n".join(data)
          data = []
      if len(rest) + sum(map(len, data)) > self._limits.line:
        raise self._error(f"an event of more than {self._limits.line} bytes", "words")
    if rest.startswith(b"data:"):
      data.append(rest[5:].decode(errors="replace").strip())
    if data:  # Some end without an empty line.
      yield "\n".join(data)

  def _error(self, found: str, expected: str) -> InputError:
    if self._key:  # Some endpoints repeat it.
      found = found.replace(self._key, "…")
    return InputError(f"endpoint {self._where}", "", found, expected)
