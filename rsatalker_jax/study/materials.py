"""The videos of a study and what participants are told of them.

    VIDEOS/<conversation>/<method>.mp4     the same methods in every conversation
    VIDEOS/study.json                      optional, what participants read:
      {"title": "...", "contact": "who answers questions", "consent": ["a paragraph", ...],
       "conversations": {"<conversation>": {"title": "...", "relation": "A is B's mother.", "role": "B listens."}}}
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from rsatalker_jax.data.video_frames import probe_video
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import open_regular, read_text
from rsatalker_jax.study import criteria

TEXTS_FILE = "study.json"
_SUFFIX = ".mp4"
# What browsers play everywhere.
_CODECS, _PIXELS = ("h264", "vp9", "av1"), ("yuv420p", "yuvj420p")
_CHUNK = 1 << 20
_LONGEST_TEXT = 10_000


@dataclasses.dataclass(frozen=True)
class Video:
  """Attributes:
    path: with all symbolic links resolved.
    size, modified: bytes, and nanoseconds: what the file looked like when it was read.
    sha256: of its bytes.
    seconds: how long it plays.
    has_sound: whether it can be heard.
  """

  path: pathlib.Path
  size: int
  modified: int
  sha256: str
  seconds: float
  has_sound: bool

  def is_unchanged(self) -> bool:
    """Whether the file is still the one that was read; not even a link has taken its place."""
    try:
      state = os.lstat(self.path)
    except OSError:
      return False
    return (state.st_size, state.st_mtime_ns) == (self.size, self.modified) and self.path.resolve() == self.path


@dataclasses.dataclass(frozen=True)
class Conversation:
  """Attributes:
    title, relation, role: what participants read above its videos; may be empty.
    videos: by method.
  """

  title: str
  relation: str
  role: str
  videos: Mapping[str, Video]


@dataclasses.dataclass(frozen=True)
class Materials:
  """Attributes:
    folder: of the videos.
    title: of the study.
    contact: whom participants may ask; may be empty.
    consent: paragraphs of the first page; empty for those that server.py writes.
    methods: names in alphabetical order.
    conversations: by name, in alphabetical order.
  """

  folder: pathlib.Path
  title: str
  contact: str
  consent: tuple[str, ...]
  methods: tuple[str, ...]
  conversations: Mapping[str, Conversation]

  def identity(self) -> dict[str, Any]:
    """What makes this study another than others: as JSON, what is asked, what is shown and what is said of it."""
    conversations = {}
    for name, conversation in self.conversations.items():
      videos = {method: [video.size, video.sha256] for method, video in conversation.videos.items()}
      told = {"title": conversation.title, "relation": conversation.relation, "role": conversation.role}
      conversations[name] = told | {"videos": videos}
    return {"criteria": criteria.VERSION, "methods": list(self.methods), "conversations": conversations}


def read_materials(folder: str | os.PathLike) -> Materials:
  """Reads the folder of a study, every video to its end.

  Raises:
    InputError: a video is missing, damaged, silent where others of its conversation are not, or of a kind that browsers
      do not play; a conversation lacks a method; there are fewer than two methods, or none of the files expected;
      study.json says what it does not have.
  """
  folder = pathlib.Path(folder)
  try:
    root = folder.resolve(strict=True)
    names = _visible_names(root)
  except (OSError, ValueError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(folder, "", getattr(error, "strerror", None) or error, "a folder of videos") from None
  texts = _read_texts(folder)
  names = [name for name in names if name != TEXTS_FILE]
  if not names:
    raise InputError(folder, "", "no conversation", f"<conversation>/<method>{_SUFFIX}")
  paths = {name: _find_videos(folder / name) for name in names}
  methods = sorted(set().union(*paths.values()))
  if len(methods) < 2:
    raise InputError(folder, "", f"one method, {methods[0]}", "two at least: a study compares methods")
  for name, found in paths.items():
    if missing := [method for method in methods if method not in found]:
      other = next(other for other, videos in paths.items() if missing[0] in videos)
      raise InputError(folder / name, missing[0] + _SUFFIX, "no such file", f"a video of each method, as in {other}")
  if strangers := sorted(texts["conversations"].keys() - set(names)):
    raise InputError(folder / TEXTS_FILE, "conversations", strangers[0], f"one of {', '.join(names)}")
  conversations = {}
  for name, found in paths.items():
    videos = {method: _read_video(found[method], root) for method in methods}
    if len({video.has_sound for video in videos.values()}) > 1:
      silent = next(method for method in methods if not videos[method].has_sound)
      raise InputError(found[silent], "", "no sound", "sound, as the other methods' videos of this conversation have")
    told = texts["conversations"].get(name, {})
    conversations[name] = Conversation(told.get("title", ""), told.get("relation", ""), told.get("role", ""), videos)
  return Materials(
      folder, texts["title"], texts["contact"], tuple(texts["consent"]), tuple(methods), conversations
  )


def _visible_names(folder: pathlib.Path) -> list[str]:
  names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
  for name in names:
    if not name.isprintable():  # Nor are bytes that are no UTF-8.
      raise InputError(folder, "", f"a file named {name!r}", "names of letters that can be printed")
  return names


def _find_videos(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Paths by method."""
  try:
    names = _visible_names(folder)
  except OSError as error:
    raise InputError(folder, "", error.strerror or error, f"a conversation's folder, or {TEXTS_FILE}") from None
  paths = {}
  for name in names:
    method, suffix = os.path.splitext(name)
    if suffix != _SUFFIX:
      raise InputError(folder, name, "another file", f"nothing but <method>{_SUFFIX}")
    paths[method] = folder / name
  if not paths:
    raise InputError(folder, "", "no video", f"<method>{_SUFFIX}")
  return paths


def _read_video(path: pathlib.Path, root: pathlib.Path) -> Video:
  try:
    resolved = path.resolve(strict=True)
  except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle.
    raise InputError(path, "", getattr(error, "strerror", None) or error, "a video") from None
  if root not in resolved.parents:
    raise InputError(path, "", f"a link to {resolved}", f"a file within {root}: nothing outside of it is shown")
  with open_regular(resolved, "a video") as file:
    state, digest = os.fstat(file.fileno()), hashlib.sha256()
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
  facts = probe_video(resolved)
  if facts.codec not in _CODECS or facts.pixel_format not in _PIXELS:
    found = f"{facts.codec} in {facts.pixel_format}, which not every browser plays"
    hint = "as `ffmpeg -i IN -pix_fmt yuv420p OUT.mp4` writes"
    raise InputError(path, "", found, f"{', '.join(_CODECS)} in {_PIXELS[0]}, {hint}")
  return Video(resolved, state.st_size, state.st_mtime_ns, digest.hexdigest(), facts.seconds, facts.has_sound)


def _read_texts(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / TEXTS_FILE
  texts: dict[str, Any] = {"title": "How do these faces talk?", "contact": "", "consent": [], "conversations": {}}
  if not os.path.lexists(path):
    return texts
  try:
    given = json.loads(read_text(path, "JSON"))
  except (ValueError, RecursionError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(path, "", error, "JSON") from None
  _check_keys(path, "", given, texts)
  for key in ("title", "contact"):
    _check_text(path, key, given.get(key, ""))
  paragraphs = given.get("consent", [])
  if not isinstance(paragraphs, list):
    raise InputError(path, "consent", type(paragraphs).__name__, "a list of paragraphs")
  for number, paragraph in enumerate(paragraphs):
    _check_text(path, f"consent[{number}]", paragraph)
  conversations = given.get("conversations", {})
  if not isinstance(conversations, dict):
    raise InputError(path, "conversations", type(conversations).__name__, "an object by conversation")
  for name, told in conversations.items():
    _check_keys(path, f"conversations.{name}", told, ("title", "relation", "role"))
    for key, text in told.items():
      _check_text(path, f"conversations.{name}.{key}", text)
  return texts | given


def _check_keys(path: pathlib.Path, where: str, given: Any, allowed) -> None:
  if not isinstance(given, dict):
    raise InputError(path, where, type(given).__name__, "an object")
  if strangers := sorted(given.keys() - set(allowed)):
    raise InputError(path, where, f"the key {strangers[0]}", f"none but {', '.join(allowed)}")


def _check_text(path: pathlib.Path, where: str, text: Any) -> None:
  if not isinstance(text, str):
    raise InputError(path, where, type(text).__name__, "text")
  if len(text) > _LONGEST_TEXT:
    raise InputError(path, where, f"{len(text)} characters", f"{_LONGEST_TEXT} at most")
  try:
    text.encode()
  except UnicodeEncodeError:
    raise InputError(path, where, "half a character", "text") from None
