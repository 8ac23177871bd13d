"""The web application of live conversations.

    /<token>/           the page; live.js asks for the rest
    /<token>/state      GET: what there is to choose from and how the avatar is drawn, as JSON
    /<token>/avatar     GET: the avatar's tables; /<token>/avatar/<person>: another's
    /<token>/socket     a conversation (protocol.py)
    /tracker/           the webcam's tracker (camera.py), where it is installed

The token is in the link that the program prints, and without it nothing is told. Nothing that is said is stored, but where the program
was given a folder for it and while the page asks for it (recording.py); and nothing of it leaves this machine, but for its words where
an endpoint on another answers (dialogue.py).
"""

import asyncio
import collections
import concurrent.futures
import importlib.resources
import itertools
import secrets
import time
from collections.abc import Callable, Collection, Mapping

import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.data.audio import resample
from rsatalker_jax.errors import InputError
from rsatalker_jax.live import protocol
from rsatalker_jax.live.camera import NO_CAMERA, Camera
from rsatalker_jax.live.dialogue import Answerer, Dialogue
from rsatalker_jax.live.ears import EarProcess
from rsatalker_jax.live.recording import Recording, RecordingFolder
from rsatalker_jax.live.voice import MOST_SECONDS, Voice, split_sentences
from rsatalker_jax.live.worker import Worker
from rsatalker_jax.social import RELATIONS, parse_relation
from rsatalker_jax.types import FPS, SAMPLE_RATE
from rsatalker_jax.web import serving
from rsatalker_jax.web.serving import web  # aiohttp's, or one line that says how to get it.

# By the package that has them, in the order of media/viewer.py.
_ASSETS = {
    "rsatalker_jax.media": ("tables.js", "gaussians.js", "screen.js", "turning.js", "head.js", "layers.js", "offsets.js"),
    "rsatalker_jax.live": (
        "dialogue.js", "live.js", "live.css", "clock.js", "recorder.js", "webcam.js", "resampler.js", "microphone.js", "loudspeaker.js",
    ),
}
# What the generator's process is given of one conversation at a time: the rest waits here.
_IN_FLIGHT = 4
# Frames that may wait, for the generator or for the page to take them: 3 s, after which nobody would call it live.
_MOST_WAITING = 3 * FPS
_PATIENCE = 2.0  # Seconds in which the page may take the last line.
_IDLE = 60.0  # Seconds without a frame, after which a conversation ends.

Say = Callable[[str], tuple[Float[np.ndarray, "S"], int]]


class Allowance:
  """So many messages a second, and some at once (a token bucket)."""

  def __init__(self, per_second: float, at_once: int, clock: Callable[[], float] = time.monotonic):
    self._rate, self._most, self._clock = per_second, at_once, clock
    self._left, self._then = float(at_once), clock()

  def take(self) -> bool:
    """Whether there may be one more now."""
    now = self._clock()
    self._left = min(self._left + self._rate * (now - self._then), self._most)
    self._then = now
    if self._left < 1:
      return False
    self._left -= 1
    return True


class _End(Exception):
  """A conversation ends, with a line for the page."""


class LiveServer:
  """The application.

  Args:
    worker: makes the motion.
    token: what links have in them.
    recordings: of B's voice, 16 kHz in [-1, 1], by the name that the page shows.
    say: a sentence as a voice and its rate, or None where there is no text to speech. One thread of the server's own calls it.
    conversations: how many there may be at once; the worker's engine has as many streams.
    relation: which the page begins with.
    records: where conversations are recorded that ask for it; None: nowhere.
    answerer: of what A says or writes; None: nobody answers in words.
    recogniser, activity: hear A's words and voice; None: nobody does, and A's turns are told by loudness.
    origins: under which it is reached; see `serving.make_application`.
    camera: A's.
  """

  def __init__(
      self,
      worker: Worker,
      token: str,
      origins: Collection[str],
      *,
      recordings: Mapping[str, Float[np.ndarray, "S"]] | None = None,
      say: Say | None = None,
      conversations: int = 1,
      relation: str = RELATIONS[0],
      records: RecordingFolder | None = None,
      answerer: Answerer | None = None,
      recogniser: EarProcess | None = None,
      activity: EarProcess | None = None,
      camera: Camera = NO_CAMERA,
  ):
    self._worker, self._token, self._origins = worker, token, frozenset(origins)
    self.recordings, self.say, self._relation = dict(recordings or {}), say, relation
    self._most, self.records, self._camera = conversations, records, camera
    self.answerer, self.recogniser, self.activity = answerer, recogniser, activity
    self._ears = [ear for ear in (recogniser, activity) if ear is not None]
    self._numbers = itertools.count()
    self.thread = concurrent.futures.ThreadPoolExecutor(1, "text-to-speech")
    self._open: set[Conversation] = set()
    self._page = importlib.resources.files("rsatalker_jax.live").joinpath("live.html").read_bytes()

  def make_app(self) -> web.Application:
    app = serving.make_application(
        "conversation", self._origins, max_body=protocol.MOST_BYTES, address="the link that the program prints", assets=_ASSETS
    )
    self._camera.add_to(app)
    app.router.add_get("/{token}/", self._get_page)
    app.router.add_get("/{token}/state", self._get_state)
    app.router.add_get("/{token}/avatar", self._get_avatar)
    app.router.add_get("/{token}/avatar/{person}", self._get_avatar)
    app.router.add_get("/{token}/socket", self._talk)

    async def attach(_: web.Application) -> None:
      for process in (self._worker, *self._ears):
        process.attach(asyncio.get_running_loop())
      if self.answerer is not None:
        await self.answerer.open()

    async def end_all(_: web.Application) -> None:
      for conversation in list(self._open):
        conversation.end("the program has ended")

    async def close(_: web.Application) -> None:
      if self.records is not None:
        await self.records.wait()
      self.thread.shutdown(wait=False, cancel_futures=True)
      if self.answerer is not None:
        await self.answerer.close()
      for process in (self._worker, *self._ears):
        process.detach()
        await asyncio.to_thread(process.stop)

    app.on_startup.append(attach)
    app.on_shutdown.append(end_all)
    app.on_cleanup.append(close)
    return app

  def _check(self, request: web.Request) -> None:
    if not secrets.compare_digest(request.match_info["token"].encode(), self._token.encode()):
      raise web.HTTPNotFound(reason="a link that is not today's")

  async def _get_page(self, request: web.Request) -> web.Response:
    self._check(request)
    return web.Response(body=self._page, content_type="text/html", charset="utf-8")

  async def _get_state(self, request: web.Request) -> web.Response:
    self._check(request)
    return web.json_response(self._worker.about | {
        "relation": self._relation,
        "recordings": list(self.recordings),
        "speaks": self.say is not None,
        "longest_text": protocol.LONGEST_TEXT,
        "records": self.records is not None,
        "answerer": self.answerer and self.answerer.about,
        "understands": self.recogniser is not None,
        "camera": self._camera.about,
    })  # fmt: skip

  async def _get_avatar(self, request: web.Request) -> web.Response:
    self._check(request)
    person = request.match_info.get("person")
    tables = self._worker.avatar if person is None else self._worker.others.get(person)
    if tables is None:
      raise web.HTTPNotFound(reason="no such person")
    return web.Response(body=tables, content_type="application/octet-stream")

  async def _talk(self, request: web.Request) -> web.StreamResponse:
    self._check(request)
    socket = web.WebSocketResponse(max_msg_size=protocol.MOST_BYTES, heartbeat=20, compress=False)
    await socket.prepare(request)
    if self._worker.trouble or len(self._open) >= self._most:
      full = f"{self._most} conversation{'s'[: self._most != 1]} under way already; another begins when one ends"
      await socket.send_json({"type": "end", "message": self._worker.trouble or full})
      await socket.close(code=1013)
      return socket
    conversation = Conversation(next(self._numbers), self, self._worker, socket, parse_relation(self._relation))
    self._open.add(conversation)
    try:
      await conversation.run()
    finally:
      self._open.discard(conversation)
    return socket


class Conversation:
  """One socket's, from its beginning to its end. All of it happens in the event loop."""

  def __init__(self, number: int, server: LiveServer, worker: Worker, socket: web.WebSocketResponse, relation: Int[np.ndarray, "2"]):
    self._number, self._server, self._worker, self._socket = number, server, worker, socket
    self._ahead = worker.about["frames_ahead"]
    self._voice = Voice(self._ahead)
    self._dialogue = Dialogue(number, self, server.answerer, server.recogniser, server.activity)
    self._relation = relation
    self._heard = 0  # Frames of A so far.
    self._waiting: collections.deque[tuple] = collections.deque()  # Frames for the generator.
    # Of frames that are with the generator, or wait for it: flags and sound; A's sound and what was heard of B's.
    self._sent: dict[int, tuple[int, np.ndarray, np.ndarray, np.ndarray]] = {}
    self._answers: asyncio.Queue[bytes | dict | None] = asyncio.Queue()
    # 25 a second for ever, and what a page sends at once that was held up.
    self._frames, self._commands = Allowance(FPS * 1.1, 2 * FPS), Allowance(5, 20)
    self._tasks: set[asyncio.Task] = set()
    self._sentences: asyncio.Future | None = None
    self._ended = False
    self._recording: Recording | None = None

  async def run(self) -> None:
    """Until the page leaves, or the conversation has to end."""
    self._worker.open(self._number, self._relation, self._voice.first(), self._hear)
    self._tell({"type": "ready", "frames_ahead": self._ahead})
    self._dialogue.begin()
    writer = asyncio.create_task(self._write())
    try:
      while not self._ended:
        try:
          message = await self._socket.receive(timeout=_IDLE)
        except TimeoutError:
          self.end(f"no sound for {_IDLE:g} s")
          break
        if message.type in (web.WSMsgType.BINARY, web.WSMsgType.TEXT):
          try:
            (self._take_frame if message.type == web.WSMsgType.BINARY else self._obey)(message.data)
          except _End as error:
            self.end(str(error))
        elif message.type in (web.WSMsgType.CLOSE, web.WSMsgType.CLOSING, web.WSMsgType.CLOSED, web.WSMsgType.ERROR):
          self._end_recording("the page left" if message.type == web.WSMsgType.CLOSE else "the connection was lost")
          self._ended = True
          self._answers.put_nowait(None)
      await asyncio.wait({writer}, timeout=_PATIENCE)
    finally:
      writer.cancel()
      for task in self._tasks:
        task.cancel()
      self._dialogue.close()
      self._end_recording("the connection was lost")
      self._worker.close(self._number)

  def end(self, message: str) -> None:
    """Ends it with a line that the page shows."""
    if not self._ended:
      self._end_recording(message)
      self._ended = True
      self._answers.put_nowait({"type": "end", "message": message})
      self._answers.put_nowait(None)

  def _tell(self, message: bytes | dict) -> None:
    if self._ended:
      return
    if self._answers.qsize() >= _MOST_WAITING:
      self.end("this page takes its answers too slowly")
    else:
      self._answers.put_nowait(message)

  async def _write(self) -> None:
    """Sends the answers in their order; one that the page does not take holds up this conversation alone."""
    try:
      while (message := await self._answers.get()) is not None:
        if isinstance(message, bytes):
          await self._socket.send_bytes(message)
        else:
          await self._socket.send_json(message)
      await self._socket.close(code=1000)
    except ConnectionError:
      self._ended = True

  def _take_frame(self, data: bytes) -> None:
    if not self._frames.take():
      raise _End(f"more than {FPS} frames a second")
    try:
      number, sound, motion = protocol.parse_frame(data)
      if number != self._heard:
        raise InputError("frame", "number", number, self._heard)
    except InputError as error:
      raise _End(str(error)) from None
    self._heard += 1
    self._dialogue.hear(sound)
    ahead = self._voice.hear()
    self._sent[number] = *self._voice.sound(), sound, ahead
    self._waiting.append((number, sound, ahead, motion))
    if len(self._waiting) >= _MOST_WAITING:
      raise _End("this machine makes motion more slowly than it is needed")
    self._pass_on()

  def _pass_on(self) -> None:
    while self._waiting and len(self._sent) - len(self._waiting) < _IN_FLIGHT:
      if self._recording is not None and self._recording.start == self._waiting[0][0]:
        self._begin_anew(self._recording)
      self._worker.push(self._number, *self._waiting.popleft())

  def _hear(self, kind: str, *given) -> None:
    """What the generator's process says."""
    if kind == "failed":
      self.end(given[0])
      return
    number, motion, seen = given
    flags, sound, speech_a, heard_b = self._sent.pop(number)
    self._tell(protocol.make_answer(number, flags, motion, sound))
    if self._recording is not None:
      self._record(self._recording, number, speech_a=speech_a, speech_b=sound, heard_b=heard_b, motion_a=seen, motion_b=motion)
    self._pass_on()

  # --- Recording

  def _begin_recording(self) -> None:
    """From the next frame of A's on."""
    if self._server.records is None:
      raise InputError("message", "record", "no folder for recordings", "--recordings=DIR where the program is started")
    if self._recording is None:
      self._recording = self._server.records.begin(self._heard, self._voice.between)
      self._tell({"type": "recording", "name": self._recording.name})

  def _begin_anew(self, recording: Recording) -> None:
    """Before a recording's first frame: the generator forgets what was, but for what of B's voice is to come.

    Frames that are under way are answered first (`worker._Answering`).
    """
    self._worker.close(self._number)
    self._worker.open(self._number, self._relation, recording.first, self._hear)
    recording.relate(recording.start, self._relation)

  def _record(self, recording: Recording, number: int, **frame: np.ndarray) -> None:
    try:
      if not recording.add(number, **frame):
        self._end_recording("the longest that one may be")
    except OSError as error:
      self._end_recording(f"it cannot be written: {error.strerror}")

  def _end_recording(self, why: str) -> None:
    """With the last frame that was answered."""
    recording, self._recording = self._recording, None
    if recording is not None and self._server.records is not None:
      self._server.records.keep(recording, why, lambda line: self._tell({"type": "recorded", "message": line}))

  # --- What the dialogue is told of its conversation

  @property
  def speaking(self) -> bool:
    return self._voice.speaking

  @property
  def frames(self) -> int:
    """Of A, and of B's sound, so far."""
    return self._heard

  @property
  def relation(self) -> Int[np.ndarray, "2"]:
    return self._relation

  def tell(self, message: dict) -> None:
    self._tell(message)

  def hush(self) -> None:
    """B says nothing more from the next frame on."""
    if self._sentences is not None:
      self._sentences.cancel()
    if self._voice.cut():
      self._tell({"type": "cut"})

  def _obey(self, text: str) -> None:
    if not self._commands.take():
      raise _End("more messages than a person makes")
    try:
      kind, value = protocol.parse_command(text)
      if kind == "relation":
        self._relation = value
        self._worker.relate(self._number, value)
        if self._recording is not None and self._recording.start < (now := self._heard - len(self._waiting)):
          self._recording.relate(now, value)
      elif kind == "headphones":
        self._dialogue.headphones = value
      elif kind == "stop":
        self._dialogue.interrupt()
      elif kind == "write":
        self._dialogue.write(value)
      elif kind == "record":
        if value:
          self._begin_recording()
        else:
          self._end_recording("stopped")
      elif kind == "play":
        names = list(self._server.recordings)
        if value >= len(names):
          raise InputError("message", "recording", value, f"below {len(names)}, as there are")
        self._speak(names[value], self._server.recordings[names[value]])
      else:
        self._begin_saying(value)
    except InputError as error:
      self._tell({"type": "trouble", "message": str(error)})

  def _speak(self, text: str, wav: Float[np.ndarray, "S"]) -> int:
    """Returns the frame in which it begins."""
    seconds = len(wav) / SAMPLE_RATE
    if self._voice.waiting + seconds > MOST_SECONDS:
      raise InputError("message", "", f"{self._voice.waiting + seconds:.0f} s to say", f"at most {MOST_SECONDS} at once")
    begins = self._heard + self._voice.say(wav)
    self._tell({"type": "saying", "text": text, "seconds": round(seconds, 2)})
    return begins

  def _begin_saying(self, text: str) -> None:
    if self._server.say is None:
      raise InputError("message", "say", "no text to speech", "pip install hibari-tts where the program runs")
    if self._dialogue.answering or (self._sentences is not None and not self._sentences.done()):
      raise InputError("message", "say", "a sentence that is still being made", "one at a time")
    task = self._sentences = asyncio.get_running_loop().create_task(self._say_all(text))
    self._tasks.add(task)
    task.add_done_callback(self._tasks.discard)

  async def _say_all(self, text: str) -> None:
    """Sentence by sentence, so that the first is heard while the next is made."""
    try:
      for sentence in split_sentences(text):
        await self.say(sentence)
    except InputError as error:
      self._tell({"type": "trouble", "message": str(error)})

  async def say(self, sentence: str) -> None:
    """Makes a sentence's sound and queues it.

    Raises:
      InputError: it has none, or too much waits to be said.
    """
    wav, rate = await asyncio.get_running_loop().run_in_executor(self._server.thread, self._server.say, sentence)
    if rate != SAMPLE_RATE:
      wav = resample(wav, rate, SAMPLE_RATE)
    self._dialogue.note(self._speak(sentence, wav), sentence)
