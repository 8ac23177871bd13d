"""A web application served from a thread, and requests to it that go out as they are."""

import asyncio
import contextlib
import http.client
import ssl
import threading
from collections.abc import Callable, Iterator

from aiohttp import web

from rsatalker_jax.web import serving


@contextlib.contextmanager
def serving_in_thread(
    make_app: Callable[[list[str]], web.Application], name: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Iterator[int]:
  """Serves an application on 127.0.0.1, to browsers that know it by a name; gives the port."""
  loop = asyncio.new_event_loop()
  thread = threading.Thread(target=loop.run_forever)
  thread.start()
  in_loop = lambda work: asyncio.run_coroutine_threadsafe(work, loop).result()
  try:
    listener = serving.open_listener("127.0.0.1", 0)
    port = listener.getsockname()[1]
    url = f"{'https' if tls else 'http'}://{name}:{port}"
    runner = in_loop(serving.start_server(make_app(serving.find_origins("127.0.0.1", port, url)[1]), listener, tls))
    try:
      yield port
    finally:
      in_loop(runner.cleanup())
  finally:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def request(port: int, method: str, path: str, body: bytes | None = None, **headers) -> tuple[int, dict[str, str], bytes]:
  """Status, headers and body; the path goes out as it is."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
  try:
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
      connection.putheader(name.replace("_", "-"), value)
    if body is not None and "Transfer_Encoding" not in headers:
      connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), response.read()
  finally:
    connection.close()
