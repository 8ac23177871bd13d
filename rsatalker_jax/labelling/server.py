"""The web application of one annotator, on their own machine.

    /                    the page; label.js asks for the rest
    /state               GET: the conversations, and the annotator's labels of them, as JSON
    /labels              POST {"conversation", "blood", "equal", "confidence"}: 200 when it is in the table
    /scenes/<number>     GET: loudness of both voices, opening of both jaws, rotation of both heads, frame by frame, as JSON
    /sounds/<number>     GET: both voices, speaker 1 on the left, as wav
    /videos/<number>/<i> GET: the i-th video of the conversation

Numbers are those of the conversations in `state`. Nothing else is read, whatever an address says: numbers are looked up in tables.
What other annotators say is not shown: labels are only worth comparing where nobody copies.
"""

import asyncio
import concurrent.futures
import functools
import importlib.resources
import io
import json
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from rsatalker_jax.data.audio import read_wav
from rsatalker_jax.data.dualtalk import ClipFiles
from rsatalker_jax.data.relations import AXES, VALUES, WORDS, RelationLabel
from rsatalker_jax.data.tracks import read_motion
from rsatalker_jax.errors import InputError
from rsatalker_jax.labelling.table import LabelTable
from rsatalker_jax.types import FPS, MOTION_GROUPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from rsatalker_jax.web import serving
from rsatalker_jax.web.serving import web  # aiohttp's, or one line that says how to get it.

_MAX_BODY = 4 << 10
_NEAR, _FAR = 0.9, 0.35  # A voice in the ear of its own side, and in the other.


def find_videos(folder: str | os.PathLike, clips: Sequence[ClipFiles]) -> dict[str, list[pathlib.Path]]:
  """Videos by conversation: <conversation>.mp4, or else what there is of <conversation>_speaker1.mp4 and _speaker2.mp4.

  Raises:
    InputError: there is no such folder, it has no video of any conversation, or a link in it leads out of it.
  """
  try:
    root = pathlib.Path(folder).resolve(strict=True)
  except (OSError, ValueError, RuntimeError) as error:
    raise InputError("--videos", "", f"{folder}: {getattr(error, 'strerror', None) or error}", "a folder of videos") from None
  videos = {}
  for clip in clips:
    whole, *single = (root / f"{clip.name}{part}.mp4" for part in ("", "_speaker1", "_speaker2"))
    found = [whole] if whole.is_file() else [path for path in single if path.is_file()]
    for path in found:
      if root not in path.resolve().parents:
        raise InputError(path, "", f"a link to {path.resolve()}", f"a file within {root}: nothing outside of it is shown")
    if found:
      videos[clip.name] = found
  if not videos:
    raise InputError("--videos", "", f"{folder}, no video of any conversation", f"files such as {clips[0].name}.mp4")
  return videos


class LabelServer:
  """The application.

  Args:
    clips: the conversations, each name once.
    table: the annotator's labels. One thread of the server's own changes it.
    videos: by conversation, where there are any; see `find_videos`.
    origins: under which it is reached; see `serving.make_application`.
  """

  def __init__(
      self, clips: Sequence[ClipFiles], table: LabelTable, videos: dict[str, list[pathlib.Path]], origins: Collection[str]
  ):
    self._clips, self._table, self._videos, self._origins = clips, table, videos, frozenset(origins)
    self._names = {clip.name for clip in clips}
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "label-table")
    self._page = importlib.resources.files("rsatalker_jax.labelling").joinpath("label.html").read_bytes()
    self._voices = functools.lru_cache(4)(self._read_voices)  # The page asks for sound and scene of one conversation.

  def make_app(self) -> web.Application:
    assets = {"rsatalker_jax.labelling": ("label.js", "label.css")}
    address = "the line that the program prints"
    app = serving.make_application("labelling page", self._origins, max_body=_MAX_BODY, address=address, assets=assets)
    app.router.add_get("/", self._get_page)
    app.router.add_get("/state", self._get_state)
    app.router.add_get("/scenes/{number}", self._get_scene)
    app.router.add_get("/sounds/{number}", self._get_sound)
    app.router.add_get("/videos/{number}/{place}", self._get_video)
    app.router.add_post("/labels", self._post_label)

    async def close(_: web.Application) -> None:
      self._thread.shutdown()

    app.on_cleanup.append(close)
    return app

  async def _get_page(self, _: web.Request) -> web.Response:
    return web.Response(body=self._page, content_type="text/html", charset="utf-8")

  async def _get_state(self, _: web.Request) -> web.Response:
    labels = await asyncio.get_running_loop().run_in_executor(self._thread, self._table.labels)
    conversations = [
        {"name": clip.name, "split": clip.split, "videos": len(self._videos.get(clip.name, ())),
         "label": _describe(labels[clip.name]) if clip.name in labels else None}
        for clip in self._clips
    ]  # fmt: skip
    return web.json_response({"annotator": self._table.annotator, "conversations": conversations})

  async def _post_label(self, request: web.Request) -> web.Response:
    try:
      label = self._parse_label(serving.parse_json(await request.read()))
    except InputError as error:
      return serving.error_response(400, error)
    await asyncio.get_running_loop().run_in_executor(self._thread, self._table.record, label)
    return web.json_response({"stored": True})

  def _parse_label(self, data: Any) -> RelationLabel:
    keys = ("conversation", *AXES, "confidence")
    if not isinstance(data, dict) or set(data) != set(keys):
      raise InputError("label", "", ", ".join(data) if isinstance(data, dict) else type(data).__name__, f"{', '.join(keys)}")
    name, confidence = data["conversation"], data["confidence"]
    if not isinstance(name, str) or name not in self._names:
      raise InputError("label", "conversation", repr(name), "one of the conversations")
    for axis in AXES:
      if not isinstance(data[axis], str) or data[axis] not in VALUES:
        raise InputError("label", axis, repr(data[axis]), " | ".join(VALUES))
    if confidence is not None and not (type(confidence) in (int, float) and 0 <= confidence <= 1):
      raise InputError("label", "confidence", repr(confidence), "a number from 0 to 1, or null")
    relation = np.array([VALUES[data[axis]] for axis in AXES], np.int32)
    return RelationLabel(name, relation, self._table.annotator, confidence)

  def _find_clip(self, request: web.Request) -> ClipFiles:
    number = request.match_info["number"]
    if not (number.isascii() and number.isdigit() and len(number) < 9 and int(number) < len(self._clips)):
      raise web.HTTPNotFound(reason="no such conversation")
    return self._clips[int(number)]

  async def _get_scene(self, request: web.Request) -> web.Response:
    clip = self._find_clip(request)
    scene = await asyncio.to_thread(self._describe_scene, clip)
    return web.Response(text=json.dumps(scene, separators=(",", ":")), content_type="application/json")

  def _describe_scene(self, clip: ClipFiles) -> dict[str, Any]:
    voices = self._voices(clip)
    frames = voices.shape[1] // SAMPLES_PER_FRAME
    power = (voices[:, : frames * SAMPLES_PER_FRAME].reshape(2, frames, SAMPLES_PER_FRAME) ** 2).mean(axis=2)
    loudness = np.sqrt(np.sqrt(power))  # Close to perceived loudness.
    loudness /= max(float(loudness.max()), 1e-9)
    people, notes = [], []
    for person, path in enumerate(clip.npzs):
      about: dict[str, Any] = {"loudness": loudness[person].round(3).tolist(), "jaw": None, "head": None}
      try:
        motion = read_motion(path)
        about["jaw"] = motion[:, MOTION_GROUPS["jaw"].start].round(3).tolist()
        about["head"] = motion[:, MOTION_GROUPS["pose"]].round(3).tolist()
      except InputError as error:  # Whoever hears the conversation can label it all the same.
        notes.append(str(error))
      people.append(about)
    return {"fps": FPS, "frames": frames, "people": people, "notes": notes}

  def _read_voices(self, clip: ClipFiles) -> Float[np.ndarray, "2 S"]:
    wavs = [read_wav(path, allow_silent=True)[0] for path in clip.wavs]
    length = max(map(len, wavs))
    return np.stack([np.pad(wav, (0, length - len(wav))) for wav in wavs])

  async def _get_sound(self, request: web.Request) -> web.Response:
    data = await asyncio.to_thread(self._mix, self._find_clip(request))
    try:
      part = request.http_range
    except ValueError:
      raise web.HTTPRequestRangeNotSatisfiable from None
    start, stop, _ = part.indices(len(data))
    headers = {"Accept-Ranges": "bytes"}
    if part.start is None and part.stop is None:
      return web.Response(body=data, content_type="audio/wav", headers=headers)
    if start >= stop:
      raise web.HTTPRequestRangeNotSatisfiable
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return web.Response(status=206, body=data[start:stop], content_type="audio/wav", headers=headers)

  def _mix(self, clip: ClipFiles) -> bytes:
    first, second = self._voices(clip)
    both = np.stack([_NEAR * first + _FAR * second, _FAR * first + _NEAR * second], axis=1)
    both /= max(float(np.abs(both).max()), 1.0)
    file = io.BytesIO()
    soundfile.write(file, both, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    return file.getvalue()

  async def _get_video(self, request: web.Request) -> web.StreamResponse:
    videos, place = self._videos.get(self._find_clip(request).name, []), request.match_info["place"]
    if place not in map(str, range(len(videos))):
      raise web.HTTPNotFound(reason="no such video")
    return web.FileResponse(videos[int(place)], headers={"Content-Type": "video/mp4"})


def _describe(label: RelationLabel) -> dict[str, Any]:
  return {axis: WORDS[int(value)] for axis, value in zip(AXES, label.relation)} | {"confidence": label.confidence}
