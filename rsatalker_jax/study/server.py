"""The web application that participants meet: pages, videos under names that tell nothing, and answers.

    /s/<token>                   the page of one participant; study.js asks for the rest
    /s/<token>/state             GET: what is next, as JSON
    /s/<token>/consent           POST {}
    /s/<token>/answers           POST {"video": id, "client", "scores", "comment"}: 200 when it is on the disk
    /s/<token>/videos/<id>       with ranges; the id is another for each participant and does not tell the method

Nothing but files of the study and of this package is read, whatever an address says: names are looked up in tables, not
joined to paths. Nothing about who asks is logged or stored.
"""

import asyncio
import concurrent.futures
import functools
import hashlib
import importlib.resources
import ipaddress
import json
import signal
import socket
import urllib.parse
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from rsatalker_jax.errors import InputError
from rsatalker_jax.study import criteria
from rsatalker_jax.study.materials import Materials, Video
from rsatalker_jax.study.store import LONGEST_COMMENT, Answer, Participant, Refused, Store

try:
  from aiohttp import web
except ImportError as error:
  raise InputError("aiohttp", "", error, "it installed: pip install 'aiohttp>=3.14', or rsatalker-jax[study]") from None

_T = TypeVar("_T")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_BODY = 16 << 10
_ASSETS = {"study.js": "text/javascript", "study.css": "text/css"}
_HEADERS = {
    # The page is one of files: no script or style within it, nothing from elsewhere, in nobody's frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # The address holds the token.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Robots-Tag": "noindex",
}


# What those see who have no link, or a wrong one.
_DOOR = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Study</title><link rel="icon" href="data:,"><link rel="stylesheet" href="{assets}/study.css">
<main class="alone"><p>{text}</p></main></html>
"""
# Seconds that the end of the server waits for videos under way.
_PATIENCE = 2.0


class StudyServer:
  """The application of one study.

  Args:
    materials, store: the study and its answers. One thread of the server's own uses the store.
    origins: scheme, host and port under which browsers reach it, such as http://127.0.0.1:8700. Requests to others are
      refused: a foreign site whose name resolves to this machine is no study of ours.
  """

  def __init__(self, materials: Materials, store: Store, origins: Collection[str]):
    self._materials, self._store = materials, store
    self._origins = frozenset(origins)
    self._hosts = frozenset(urllib.parse.urlsplit(origin).netloc for origin in origins)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "study-store")
    page = importlib.resources.files("rsatalker_jax.study")
    self._page = page.joinpath("study.html").read_bytes()
    self._assets = {name: page.joinpath(name).read_bytes() for name in _ASSETS}

  def make_app(self) -> web.Application:
    app = web.Application(client_max_size=_MAX_BODY, middlewares=[self._guard])
    app.on_response_prepare.append(_add_headers)
    app.router.add_get("/", self._get_door)
    app.router.add_get("/assets/{name}", self._get_asset)
    app.router.add_get("/s/{token}", self._get_page)
    app.router.add_get("/s/{token}/state", self._get_state)
    app.router.add_get("/s/{token}/videos/{video}", self._get_video)
    app.router.add_post("/s/{token}/consent", self._post_consent)
    app.router.add_post("/s/{token}/answers", self._post_answer)

    async def close(_: web.Application) -> None:
      self._thread.shutdown()

    app.on_cleanup.append(close)
    return app

  async def _in_store(self, function: Callable[..., _T], *arguments) -> _T:
    return await asyncio.get_running_loop().run_in_executor(self._thread, functools.partial(function, *arguments))

  @web.middleware
  async def _guard(self, request: web.Request, handler) -> web.StreamResponse:
    """Refuses what no page of the study sends, and says mistakes in one line of JSON."""
    try:
      if request.host not in self._hosts:
        return _error(421, InputError("request", "Host", request.host, "the address in the personal link"))
      if request.method == "POST":
        # Browsers send Origin with every POST; one from another site is that site's doing, not the participant's.
        origin = request.headers.get("Origin", "none")
        if origin not in self._origins:
          return _error(403, InputError("request", "Origin", origin, "the study's own"))
        if request.content_type != "application/json":
          return _error(415, InputError("request", "Content-Type", request.content_type, "application/json"))
      return await handler(request)
    except web.HTTPRequestEntityTooLarge:
      return _error(413, InputError("request", "", f"more than {_MAX_BODY} bytes", "an answer"))
    except web.HTTPException as error:
      return _error(error.status, InputError("request", "", error.reason, "an address of this study"))
    except Refused as error:
      return _error(409, error)
    except InputError as error:
      # Of the store: the disk is full, or the file is locked or gone. Answers' own mistakes are caught where they are read.
      return _error(503, error)

  async def _find_participant(self, request: web.Request) -> Participant:
    participant = await self._in_store(self._store.participant, request.match_info["token"])
    if participant is None:
      raise web.HTTPNotFound(reason="a link that nobody has")
    return participant

  def _video_id(self, participant: Participant, position: int) -> str:
    trial = participant.trials[position]
    words = "\0".join((participant.token, trial.conversation, trial.method))
    return hashlib.blake2b(words.encode(), key=self._store.secret, digest_size=16).hexdigest()

  def _find_position(self, participant: Participant, video: Any) -> int:
    for position in range(len(participant.trials)):
      if self._video_id(participant, position) == video:
        return position
    raise web.HTTPNotFound(reason="no such video")

  async def _get_door(self, _: web.Request) -> web.Response:
    text = _DOOR.format(assets="assets", text="Please open the personal link that you were given.")
    return web.Response(text=text, content_type="text/html")

  async def _get_asset(self, request: web.Request) -> web.Response:
    name = request.match_info["name"]
    if name not in _ASSETS:
      raise web.HTTPNotFound(reason="no such file")
    fresh = {"Cache-Control": "no-cache"}
    return web.Response(body=self._assets[name], content_type=_ASSETS[name], charset="utf-8", headers=fresh)

  async def _get_page(self, request: web.Request) -> web.Response:
    if await self._in_store(self._store.participant, request.match_info["token"]) is None:
      text = _DOOR.format(assets="../assets", text="This link is not known here. Is it the whole link that you were given?")
      return web.Response(status=404, text=text, content_type="text/html")
    return web.Response(body=self._page, content_type="text/html", charset="utf-8")

  async def _get_state(self, request: web.Request) -> web.Response:
    return web.json_response(self._describe(await self._find_participant(request)))

  def _describe(self, participant: Participant) -> dict[str, Any]:
    """What the page needs to know; no method's name."""
    materials, total = self._materials, len(participant.trials)
    state = {
        "title": materials.title,
        "contact": materials.contact,
        "number": participant.number,
        "consented": participant.has_consented,
        "answered": participant.answered,
        "total": total,
        "least": criteria.LEAST,
        "most": criteria.MOST,
        "ends": criteria.ENDS,
        "longest_comment": LONGEST_COMMENT,
        "trial": None,
    }
    if not participant.has_consented:
      return state | {"consent": materials.consent or self._consent_text(total)}
    if participant.answered == total:
      return state
    trial, methods = participant.trials[participant.answered], len(materials.methods)
    conversation, video = divmod(trial.position, methods)
    told = materials.conversations[trial.conversation]
    state["dimensions"] = [
        {"name": dimension.name, "criteria": [{"key": c.key, "question": c.question} for c in dimension.criteria]}
        for dimension in criteria.DIMENSIONS
    ]
    state["trial"] = {
        "id": self._video_id(participant, trial.position),
        "conversation": conversation + 1,
        "conversations": len(materials.conversations),
        "video": video + 1,
        "videos": methods,
        "label": f"Video {_letters(video)}",
        "title": told.title,
        "relation": told.relation,
        "role": told.role,
    }
    return state

  def _consent_text(self, total: int) -> list[str]:
    seconds = sum(video.seconds for c in self._materials.conversations.values() for video in c.videos.values())
    minutes = -(-seconds // 60)
    return [
        (f"You will watch {total} videos of talking faces, about {minutes:.0f} minute{'s'[: minutes != 1]} in all, and rate "
         "each on nine scales. Some or all of the faces are made by computers. Please use headphones or loudspeakers, and a "
         "quiet place."),
        ("Taking part is voluntary. You may stop at any time by closing this page, and your personal link brings you back to "
         "where you were. What you have saved until then is kept; if you want it deleted, say so to whoever gave you the "
         "link, with your participant number."),
        ("What is stored: your ratings, your comments and when you saved them, under your participant number. Not stored: "
         "your name, the address of your computer, cookies. Ratings not saved yet stay in your browser. Please "
         "write nothing into the comments that tells who you are."),
    ]

  async def _get_video(self, request: web.Request) -> web.StreamResponse:
    participant = await self._find_participant(request)
    if not participant.has_consented:
      raise web.HTTPForbidden(reason="no consent yet")
    trial = participant.trials[self._find_position(participant, request.match_info["video"])]
    video: Video = self._materials.conversations[trial.conversation].videos[trial.method]
    if not await asyncio.to_thread(video.is_unchanged):
      raise web.HTTPServiceUnavailable(reason="a video that is not the one this study began with")
    return web.FileResponse(video.path, headers={"Content-Type": "video/mp4", "Cache-Control": "private, max-age=3600"})

  async def _post_consent(self, request: web.Request) -> web.Response:
    participant = await self._find_participant(request)
    await request.read()
    await self._in_store(self._store.record_consent, participant.number)
    return web.json_response({"stored": True})

  async def _post_answer(self, request: web.Request) -> web.Response:
    participant = await self._find_participant(request)
    try:
      data = _parse_json(await request.read())
      if not isinstance(data, dict) or "video" not in data:
        raise InputError("answer", "video", "none", "the video that it is about")
      position = self._find_position(participant, data.pop("video"))
      answer = Answer.parse(data)
    except InputError as error:
      return _error(400, error)
    await self._in_store(self._store.record_answer, participant.number, position, answer)
    return web.json_response({"stored": True})


def _parse_json(body: bytes) -> Any:
  try:
    return json.loads(body)
  except (ValueError, RecursionError) as error:
    raise InputError("answer", "", error, "JSON") from None


def _error(status: int, error: InputError) -> web.Response:
  return web.json_response({"error": str(error)}, status=status)


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
  response.headers.update(_HEADERS)
  response.headers.setdefault("Cache-Control", "no-store")
  response.headers["Server"] = "study"


def _letters(index: int) -> str:
  """A, B, ..., Z, AA, AB, ..."""
  letters = ""
  index += 1
  while index:
    index, letter = divmod(index - 1, 26)
    letters = chr(ord("A") + letter) + letters
  return letters


def find_origins(host: str, port: int, url: str | None) -> tuple[str, list[str]]:
  """The address that links begin with, and the origins under which the study is reached.

  Args:
    host, port: what the server listens on.
    url: what participants' browsers have to ask for, where that is another, as behind a proxy.

  Raises:
    InputError: others can reach the host, but `url` does not say by which address; or it is none.
  """
  try:
    is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
  except ValueError:
    is_loopback = False
  if url is None:
    if not is_loopback:
      expected = f"with --host={host}, the address by which participants reach it, such as http://myhost:{port}"
      raise InputError("--url", "", "none", expected)
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{port}"
  try:
    parts = urllib.parse.urlsplit(url)
    name, given = parts.hostname, parts.port
  except ValueError:
    name = None
  if not name or parts.scheme not in _DEFAULT_PORTS or "@" in parts.netloc or parts.query or parts.fragment:
    raise InputError("--url", "", url, "an address such as https://study.example.org")
  origins = [_origin(parts.scheme, name, given)]
  if is_loopback:
    origins += [_origin("http", name, port) for name in ("127.0.0.1", "localhost", "::1")]
  return url.rstrip("/"), origins


def _origin(scheme: str, name: str, port: int | None) -> str:
  """As browsers write it: without the usual port."""
  name = f"[{name}]" if ":" in name else name
  return f"{scheme}://{name}" + ("" if port in (None, _DEFAULT_PORTS[scheme]) else f":{port}")


def serve(materials: Materials, store: Store, *, host: str, port: int, url: str | None) -> None:
  """Serves the study until the process is interrupted or terminated.

  Args:
    materials, store: the study.
    host, port: what to listen on; port 0 takes a free one.
    url: see `find_origins`.

  Raises:
    InputError: the port is taken, or the host is not this machine's.
  """
  asyncio.run(_serve(materials, store, host, port, url))


async def _serve(materials: Materials, store: Store, host: str, port: int, url: str | None) -> None:
  listener = open_listener(host, port)
  port = listener.getsockname()[1]
  base, origins = find_origins(host, port, url)
  runner = await start_server(materials, store, listener, origins)
  try:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
      asyncio.get_running_loop().add_signal_handler(name, stop.set)
    print(f"serving on {base}/ (listening on {host}, port {port}); Ctrl+C ends it", flush=True)
    await stop.wait()
  finally:
    await runner.cleanup()


async def start_server(
    materials: Materials, store: Store, listener: socket.socket, origins: Collection[str]
) -> web.AppRunner:
  """Begins to answer on `listener`; the runner's `cleanup` ends it. Arguments as of `StudyServer`."""
  # No access log: it would hold tokens and addresses.
  app = StudyServer(materials, store, origins).make_app()
  runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_PATIENCE)
  await runner.setup()
  await web.SockSite(runner, listener).start()
  return runner


def open_listener(host: str, port: int) -> socket.socket:
  """A socket that listens.

  Raises:
    InputError: the port is taken, or the host is not this machine's.
  """
  try:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
      # A study that is started again at once would else wait for the port.
      listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      listener.bind(address)
      listener.listen(128)
    except BaseException:
      listener.close()
      raise
    return listener
  except OSError as error:
    raise InputError("--port", "", f"{host}, port {port}: {error.strerror or error}", "a free port of this machine") from None
