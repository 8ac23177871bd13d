"""A study of tiny videos, and a server of it in a thread."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from rsatalker_jax.media.video import write_video
from rsatalker_jax.study import server, store
from rsatalker_jax.study.materials import Materials
from served import request, serving_in_thread

CONVERSATIONS, METHODS = ("breakfast", "office"), ("dualtalk", "ours", "truth")


def write_tiny_video(path: pathlib.Path, seed: int, sound: bool = True) -> None:
  frames = np.random.default_rng(seed).integers(0, 255, (5, 16, 16, 3), np.uint8)
  write_video(path, frames, audio=np.zeros((3200, 1), np.float32) if sound else None)


@dataclasses.dataclass
class Site:
  """A running server.

  Attributes:
    port: on 127.0.0.1.
    tokens: of participants 1, 2, ...
    store: for the server's thread alone while it runs; `read_answers` reads with a connection of its own.
  """

  port: int
  tokens: list[str]
  store: store.Store
  folder: pathlib.Path

  @property
  def origin(self) -> str:
    return f"http://127.0.0.1:{self.port}"

  def request(self, method: str, path: str, body: bytes | None = None, **headers) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; the path goes out as it is."""
    return request(self.port, method, path, body, **headers)

  def state(self, number: int = 1) -> dict:
    status, _, body = self.request("GET", f"/s/{self.tokens[number - 1]}/state")
    assert status == 200
    return json.loads(body)

  def post(self, number: int, path: str, data) -> tuple[int, dict]:
    """As a page of the study does."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    path = f"/s/{self.tokens[number - 1]}/{path}"
    status, _, answer = self.request("POST", path, body, Origin=self.origin, Content_Type="application/json")
    return status, json.loads(answer)

  def read_answers(self) -> list[dict]:
    other = store.open_store(self.folder)
    try:
      return other.answers()
    finally:
      other.close()


@contextlib.contextmanager
def running(materials: Materials, opened: store.Store, folder: pathlib.Path) -> Iterator[Site]:
  with serving_in_thread(lambda origins: server.StudyServer(materials, opened, origins).make_app()) as port:
    yield Site(port, list(opened.tokens().values()), opened, folder)
