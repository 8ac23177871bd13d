"""What the small web applications share: who may ask, what browsers may do with an answer, a socket, and the end by Ctrl+C.

Nothing about who asks is logged or stored. Pages are of files, and of these page.css and page.js are every application's.
"""

import asyncio
import importlib.resources
import ipaddress
import json
import pathlib
import signal
import socket
import ssl
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from typing import Any

from rsatalker_jax.errors import InputError
from rsatalker_jax.web import Refused

try:
  from aiohttp import web
except ImportError as error:
  raise InputError("aiohttp", "", error, "it installed: pip install 'aiohttp>=3.14', or rsatalker-jax[study]") from None

_DEFAULT_PORTS = {"http": 80, "https": 443}
_TYPES = {".js": "text/javascript", ".css": "text/css"}
# The page is one of files: no script or style within it, nothing from elsewhere, in nobody's frame.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Of every answer that has no other.
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # An address may hold a token.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Robots-Tag": "noindex",
}
# Seconds that the end of the server waits for videos under way.
_PATIENCE = 2.0


def make_application(
    name: str, origins: Collection[str], *, max_body: int, address: str, assets: Mapping[str, Collection[str]]
) -> web.Application:
  """An application without pages that refuses what none of its pages sends, and says mistakes in one line of JSON.

  Args:
    name: what it is, a word in its lines and in the header Server.
    origins: scheme, host and port under which browsers reach it, such as http://127.0.0.1:8700. Requests to others are
      refused: a foreign site whose name resolves to this machine is none of ours.
    max_body: bytes of a request.
    address: where people have the right address from, for the line of those who have another.
    assets: scripts and style sheets, served below /assets/: names by the package that has them, besides page.js and page.css.
  """
  hosts = frozenset(urllib.parse.urlsplit(origin).netloc for origin in origins)

  @web.middleware
  async def guard(request: web.Request, handler) -> web.StreamResponse:
    try:
      if request.host not in hosts:
        return error_response(421, InputError("request", "Host", request.host, f"the address in {address}"))
      if request.method == "POST" or "Upgrade" in request.headers:
        # Browsers send Origin with every POST and with every WebSocket, which any site may open to this machine; one from another
        # site is that site's doing, not the person's.
        origin = request.headers.get("Origin", "none")
        if origin not in origins:
          return error_response(403, InputError("request", "Origin", origin, f"the {name}'s own"))
        if request.method == "POST" and request.content_type != "application/json":
          return error_response(415, InputError("request", "Content-Type", request.content_type, "application/json"))
      return await handler(request)
    except web.HTTPRequestEntityTooLarge:
      return error_response(413, InputError("request", "", f"more than {max_body} bytes", "an answer"))
    except web.HTTPException as error:
      return error_response(error.status, InputError("request", "", error.reason, f"an address of this {name}"))
    except Refused as error:
      return error_response(409, error)
    except InputError as error:
      # Of what is stored: the disk is full, or a file is locked or gone. Mistakes in requests are caught where they are read.
      return error_response(503, error)

  async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    for header, value in {**_HEADERS, "Cache-Control": "no-store"}.items():
      response.headers.setdefault(header, value)
    response.headers["Server"] = name

  contents = {
      asset: importlib.resources.files(package).joinpath(asset).read_bytes()
      for package, names in {__package__: ("page.js", "page.css"), **assets}.items() for asset in names
  }  # fmt: skip

  async def get_asset(request: web.Request) -> web.Response:
    asset = request.match_info["name"]
    if asset not in contents:
      raise web.HTTPNotFound(reason="no such file")
    kind = _TYPES[pathlib.PurePath(asset).suffix]
    return web.Response(body=contents[asset], content_type=kind, charset="utf-8", headers={"Cache-Control": "no-cache"})

  app = web.Application(client_max_size=max_body, middlewares=[guard])
  app.on_response_prepare.append(add_headers)
  app.router.add_get("/assets/{name}", get_asset)
  return app


def error_response(status: int, error: InputError) -> web.Response:
  return web.json_response({"error": str(error)}, status=status)


def parse_json(body: bytes) -> Any:
  """Raises: InputError: it is no JSON."""
  try:
    return json.loads(body)
  except (ValueError, RecursionError) as error:
    raise InputError("answer", "", error, "JSON") from None


def is_loopback(host: str) -> bool:
  """Whether only this machine reaches it."""
  try:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def find_origins(host: str, port: int, url: str | None, scheme: str = "http") -> tuple[str, list[str]]:
  """The address that links begin with, and the origins under which the study is reached.

  Args:
    host, port: what the server listens on.
    url: what participants' browsers have to ask for, where that is another, as behind a proxy.
    scheme: of what the server answers itself.

  Raises:
    InputError: others can reach the host, but `url` does not say by which address; or it is none.
  """
  local = is_loopback(host)
  if url is None:
    if not local:
      expected = f"with --host={host}, the address by which participants reach it, such as {scheme}://myhost:{port}"
      raise InputError("--url", "", "none", expected)
    name = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{name}:{port}"
  try:
    parts = urllib.parse.urlsplit(url)
    name, given = parts.hostname, parts.port
  except ValueError:
    name = None
  if not name or parts.scheme not in _DEFAULT_PORTS or "@" in parts.netloc or parts.query or parts.fragment:
    raise InputError("--url", "", url, "an address such as https://study.example.org")
  origins = [_origin(parts.scheme, name, given)]
  if local:
    origins += [_origin(scheme, name, port) for name in ("127.0.0.1", "localhost", "::1")]
  return url.rstrip("/"), origins


def _origin(scheme: str, name: str, port: int | None) -> str:
  """As browsers write it: without the usual port."""
  name = f"[{name}]" if ":" in name else name
  return f"{scheme}://{name}" + ("" if port in (None, _DEFAULT_PORTS[scheme]) else f":{port}")


def serve(
    make_app: Callable[[list[str]], web.Application],
    *,
    host: str,
    port: int,
    url: str | None = None,
    path: str = "/",
    tls: ssl.SSLContext | None = None,
) -> None:
  """Serves an application until the process is interrupted or terminated.

  Args:
    make_app: makes it, for the origins under which it is reached.
    host, port: what to listen on; port 0 takes a free one.
    url: see `find_origins`.
    path: of the page whose address is printed.
    tls: the server's certificate, where it answers https itself.

  Raises:
    InputError: the port is taken, or the host is not this machine's.
  """
  asyncio.run(_serve(make_app, host, port, url, path, tls))


async def _serve(
    make_app: Callable[[list[str]], web.Application], host: str, port: int, url: str | None, path: str, tls: ssl.SSLContext | None
) -> None:
  listener = open_listener(host, port)
  port = listener.getsockname()[1]
  base, origins = find_origins(host, port, url, "https" if tls else "http")
  runner = await start_server(make_app(origins), listener, tls)
  try:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
      asyncio.get_running_loop().add_signal_handler(name, stop.set)
    print(f"serving on {base}{path} (listening on {host}, port {port}); Ctrl+C ends it", flush=True)
    await stop.wait()
  finally:
    await runner.cleanup()


async def start_server(app: web.Application, listener: socket.socket, tls: ssl.SSLContext | None = None) -> web.AppRunner:
  """Begins to answer on `listener`; the runner's `cleanup` ends it."""
  # No access log: it would hold tokens and addresses.
  runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_PATIENCE)
  await runner.setup()
  await web.SockSite(runner, listener, ssl_context=tls).start()
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
      # A server that is started again at once would else wait for the port.
      listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      listener.bind(address)
      listener.listen(128)
    except BaseException:
      listener.close()
      raise
    return listener
  except OSError as error:
    raise InputError("--port", "", f"{host}, port {port}: {error.strerror or error}", "a free port of this machine") from None
