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
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from rsatalker_jax.errors import InputError
from rsatalker_jax.study import criteria
from rsatalker_jax.study.materials import Materials, Video
from rsatalker_jax.study.store import LONGEST_COMMENT, Answer, Participant, Store
from rsatalker_jax.web import serving
from rsatalker_jax.web.serving import web  # aiohttp's, or one line that says how to get it.

_T = TypeVar("_T")
_MAX_BODY = 16 << 10

# What those see who have no link, or a wrong one.
_DOOR = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Study</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="{assets}/page.css"><link rel="stylesheet" href="{assets}/study.css">
<main class="alone"><p>{text}</p></main></html>
"""


class StudyServer:
  """The application of one study.

  Args:
    materials, store: the study and its answers. One thread of the server's own uses the store.
    origins: under which it is reached; see `serving.make_application`.
  """

  def __init__(self, materials: Materials, store: Store, origins: Collection[str]):
    self._materials, self._store = materials, store
    self._origins = frozenset(origins)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "study-store")
    self._page = importlib.resources.files("rsatalker_jax.study").joinpath("study.html").read_bytes()

  def make_app(self) -> web.Application:
    assets = {"rsatalker_jax.study": ("study.js", "study.css")}
    app = serving.make_application("study", self._origins, max_body=_MAX_BODY, address="the personal link", assets=assets)
    app.router.add_get("/", self._get_door)
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
      data = serving.parse_json(await request.read())
      if not isinstance(data, dict) or "video" not in data:
        raise InputError("answer", "video", "none", "the video that it is about")
      position = self._find_position(participant, data.pop("video"))
      answer = Answer.parse(data)
    except InputError as error:
      return serving.error_response(400, error)
    await self._in_store(self._store.record_answer, participant.number, position, answer)
    return web.json_response({"stored": True})


def _letters(index: int) -> str:
  """A, B, ..., Z, AA, AB, ..."""
  letters = ""
  index += 1
  while index:
    index, letter = divmod(index - 1, 26)
    letters = chr(ord("A") + letter) + letters
  return letters


def serve(materials: Materials, store: Store, *, host: str, port: int, url: str | None) -> None:
  """Serves the study until the process is interrupted or terminated; arguments and errors as of `serving.serve`."""
  serving.serve(lambda origins: StudyServer(materials, store, origins).make_app(), host=host, port=port, url=url)
