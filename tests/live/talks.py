"""A server of conversations with a generator that says what it was given (`probe`), and talks with it as a page has them."""

import asyncio
import contextlib
import json

import aiohttp
import numpy as np

from live import probe
from rsatalker_jax.errors import InputError
from rsatalker_jax.live.protocol import make_frame, parse_answer
from rsatalker_jax.live.server import LiveServer
from rsatalker_jax.live.worker import Worker
from served import serving_in_thread

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
