"""A Chromium that tests steer: it opens a page, evaluates in it and tells what went wrong there."""

import json
import os
import pathlib
import shutil
import signal
import socket
import threading
from collections.abc import Sequence
from typing import Any, Self

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
# SwiftShader draws in software; there is no network but this machine.
OPTIONS = (
    "--headless=new --no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --no-first-run "
    "--disable-background-networking --remote-debugging-pipe"
).split() + ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
# Ends a browser that hangs. Nothing is decided by how soon an answer comes.
HANGS_AFTER = 900

# The page's clock and its animation frames, which pass when the test says so, and only then.
CLOCK = """
let clock = 0, waiting = [];
performance.now = () => clock;
window.requestAnimationFrame = (callback) => waiting.push(callback);
function pass(milliseconds) {
  clock += milliseconds;
  const due = waiting;
  waiting = [];
  for (const callback of due) callback(clock);
}
"""


class OpenPage:
  """A page in a browser of its own, by the DevTools protocol over the browser's pipe: there is no port to collide on.

  Used in a `with` statement. `errors` holds what the page's console said, exceptions included; `requests` the addresses
  that were asked for, but those that hold their content themselves.

  Args:
    page: a file, or an address of this machine.
    profile: a folder for the browser to make.
    holds_clock: whether the page has `CLOCK`.
    options: of the browser, besides those that all have.
  """

  def __init__(self, page: pathlib.Path | str, profile: pathlib.Path, *, holds_clock: bool = True, options: Sequence[str] = ()):
    self.errors: list[str] = []
    self.requests: list[str] = []
    self._sent = 0
    ours, theirs = socket.socketpair()
    arguments = [BROWSER, *OPTIONS, *options, f"--user-data-dir={profile}", "about:blank"]
    self._log = profile.with_name("browser.log")
    actions = [
        (os.POSIX_SPAWN_OPEN, 2, str(self._log), os.O_WRONLY | os.O_CREAT, 0o600),
        # The browser reads from 3 and writes to 4.
        (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
        (os.POSIX_SPAWN_DUP2, theirs.fileno(), 4),
    ]
    self._process = os.posix_spawn(BROWSER, arguments, os.environ, file_actions=actions)
    theirs.close()
    self._pipe = ours.makefile("rwb")
    ours.close()
    self._guard = threading.Timer(HANGS_AFTER, os.kill, (self._process, signal.SIGKILL))
    self._guard.daemon = True
    self._guard.start()
    self._session = None
    pages = [x for x in self._call("Target.getTargets")["targetInfos"] if x["type"] == "page"]
    self._session = self._call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self._call(f"{domain}.enable")
    if holds_clock:
      self._call("Page.addScriptToEvaluateOnNewDocument", source=CLOCK)
    self.open(page)

  def open(self, page: pathlib.Path | str) -> None:
    """Goes to a page, or loads it anew, and waits until it is loaded."""
    self._call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
    while self._read().get("method") != "Page.loadEventFired":
      pass

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self._guard.cancel()
    self._pipe.close()  # The browser ends itself when nobody speaks to it any more.
    os.waitpid(self._process, 0)

  def evaluate(self, expression: str) -> Any:
    """The value of an expression in the page, awaited."""
    answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
    assert "exceptionDetails" not in answer, answer["exceptionDetails"]
    return answer["result"].get("value")

  def mouse(self, kind: str, x: int, y: int, **details) -> None:
    """A mouse event of the browser's own (`mousePressed`, `mouseMoved`, `mouseReleased`, `mouseWheel`)."""
    self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **details)

  def resize(self, width: int, height: int) -> None:
    """Makes the window so large, in the page's pixels."""
    self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True)

  def key(self, name: str) -> None:
    """A key, such as Tab, ArrowRight or a, pressed and released where the focus is."""
    codes = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
    text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
    about = {"key": name, "windowsVirtualKeyCode": codes[name] if name in codes else ord(name.upper()), "text": text}
    self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **about)
    self._call("Input.dispatchKeyEvent", type="keyUp", **about)

  def _call(self, method: str, **parameters) -> dict:
    self._sent += 1
    message = {"id": self._sent, "method": method, "params": parameters}
    if self._session:
      message["sessionId"] = self._session
    self._pipe.write(json.dumps(message).encode() + b"\0")
    self._pipe.flush()
    while (answer := self._read()).get("id") != self._sent:
      pass
    assert "error" not in answer, (method, answer["error"])
    return answer["result"]

  def _read(self) -> dict:
    content = bytearray()
    while (byte := self._pipe.read(1)) != b"\0":
      if not byte:
        raise EOFError(f"the browser ended: {self._log.read_text(errors='replace')[-2000:]}")
      content += byte
    message = json.loads(content)
    method, about = message.get("method"), message.get("params")
    if method == "Runtime.exceptionThrown":
      self.errors.append(about["exceptionDetails"]["exception"].get("description", "exception"))
    elif method == "Runtime.consoleAPICalled":
      self.errors.append(" ".join(str(argument.get("value")) for argument in about["args"]))
    elif method == "Network.requestWillBeSent" and not about["request"]["url"].startswith(("data:", "blob:")):
      self.requests.append(about["request"]["url"])
    elif method == "Log.entryAdded" and "GL Driver Message" not in about["entry"]["text"]:
      # Drivers tell on the console how fast a call was.
      self.errors.append(about["entry"]["text"])
    return message
