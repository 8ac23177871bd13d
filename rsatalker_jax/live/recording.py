"""Recordings of live conversations: made where the page asks for it, and generated again, bit for bit.

    <folder>/<name>/speech_a.wav     A's voice as the generator was given it: 16 bits, 640 samples a frame
                    speech_b.wav     B's as it was sent to the loudspeaker, frame by frame of A's clock
                    heard_b.wav      B's as the generator heard it: `frames_ahead` frames more, which it heard before the first
                    motion_a.npz     A's motion as the generator was given it (data/dualtalk.py), so camera or none
                    motion_b.npz     B's as it came out
                    recording.json   relations and from which frame on, the generator, why it ended, and the files' SHA-256

A recording begins with a generator that remembers nothing, as a conversation does. Its folder has its name when it is whole. Until then
it is .<name>.tmp with what came so far in one file, so that a recording takes no memory.
"""

import asyncio
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.data.audio import read_wav, write_wav
from rsatalker_jax.data.dualtalk import write_motion
from rsatalker_jax.data.tracks import read_track
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_text, read_whole, whole_file
from rsatalker_jax.live.engine import digest_generator
from rsatalker_jax.runs import TrainedRun
from rsatalker_jax.social import format_relation, parse_relation
from rsatalker_jax.types import BASES, FPS, MOTION_DIM, SAMPLE_RATE, SAMPLES_PER_FRAME, Motion

VERSION = 1
MOST_SECONDS = 30 * 60  # Of one recording: 190 MB while it is made.
LEAST_FRAMES = 5  # Of one that is kept: files of voices have 0.2 s at least.
_LEAST_FREE = 1 << 30  # Bytes of the disk, below which none begins.
_ABOUT = "recording.json"
_VOICES, _MOTIONS = ("speech_a", "speech_b", "heard_b"), ("motion_a", "motion_b")
_FRAME = np.dtype([(name, "<i2", SAMPLES_PER_FRAME) for name in _VOICES] + [(name, "<f4", MOTION_DIM) for name in _MOTIONS])

Wav = Float[np.ndarray, "S"]


class Recording:
  """One that is being made.

  Attributes:
    name: of its folder.
    start: the conversation's frame that is its first.
    first: what the generator heard of B before that, int16.
  """

  def __init__(self, folder: pathlib.Path, start: int, first: Int[np.ndarray, "S"], about: Mapping[str, Any]):
    self.start, self.first = start, first
    self._began = datetime.datetime.now().astimezone()
    self.name = f"{self._began:%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(2)}"
    self._about = dict(about)
    self._final, self._folder = folder / self.name, folder / f".{self.name}.tmp"
    self._folder.mkdir()
    self._file = (self._folder / "frames").open("wb")
    self._frames = 0
    self._relations: list[tuple[int, str]] = []

  @property
  def seconds(self) -> float:
    return self._frames / FPS

  @property
  def place(self) -> pathlib.Path:
    """Where it will be."""
    return self._final

  def relate(self, number: int, relation: Int[np.ndarray, "2"]) -> None:
    """The relation that the generator is told from a frame of the conversation on; one for the first frame is the first call."""
    self._relations.append((number - self.start, format_relation(relation)))

  def add(self, number: int, **frame: np.ndarray) -> bool:
    """The next frame of the conversation: voices (640,) int16 and motions (56,) by their names; those before `start` are passed over.

    Returns:
      Whether there is room for another.

    Raises:
      OSError: it cannot be written.
    """
    if number >= self.start:
      fields = {name: np.dtype(_FRAME[name]) for name in _VOICES + _MOTIONS}
      self._file.write(b"".join(np.asarray(frame[name], field.base).reshape(field.shape).tobytes() for name, field in fields.items()))
      self._frames += 1
    return self._frames < MOST_SECONDS * FPS

  def finish(self, why: str) -> bool:
    """Writes its files and gives the folder its name; False: it was too short, and nothing of it is kept.

    Raises:
      InputError: it cannot be written. What there was stays in the folder of the other name.
    """
    try:
      self._file.close()
      if self._frames < LEAST_FRAMES:
        shutil.rmtree(self._folder)
        return False
      frames = np.memmap(self._folder / "frames", _FRAME, "r")
      for name in _VOICES:
        wav = frames[name].reshape(-1)
        write_wav(self._folder / f"{name}.wav", np.concatenate([self.first, wav]) if name == "heard_b" else wav)
      for name in _MOTIONS:
        write_motion(self._folder / f"{name}.npz", frames[name], basis=self._about["basis"])
      about = self._about | {
          "version": VERSION,
          "began": self._began.isoformat(timespec="seconds"),
          "ended": why,
          "frames": self._frames,
          "relations": [[max(frame, 0), relation] for frame, relation in self._relations if frame < self._frames],
          "files": {path.name: _digest(path.read_bytes()) for path in map(self._folder.joinpath, _files())},
      }
      with whole_file(self._folder / _ABOUT) as file:
        file.write(json.dumps(about, indent=2).encode())
      (self._folder / "frames").unlink()
      os.rename(self._folder, self._final)
    except OSError as error:
      raise InputError(self._folder, "", error.strerror or error, "a recording that can be written") from error
    return True


def _files() -> list[str]:
  return [f"{name}.wav" for name in _VOICES] + [f"{name}.npz" for name in _MOTIONS]


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


class RecordingFolder:
  """Where recordings go.

  Args:
    folder: is made if it does not exist.
    about: of the generator, as JSON: what all recordings say, `RunEngine.about` among it.
    describe: a line for who looks after the program, of one that was kept.

  Attributes:
    unfinished: what a program left that was killed while it recorded.

  Raises:
    InputError: the folder may not be written, or motions would be of an unknown basis.
  """

  def __init__(self, folder: str | os.PathLike, about: Mapping[str, Any], describe: Callable[[pathlib.Path], str] = str):
    self._folder, self._describe = pathlib.Path(folder), describe
    self._about = {name: about[name] for name in ("generator", "basis", "places", "frames_ahead", "stages", "workdir", "avatar_from", "person")}
    if self._about["basis"] not in BASES:
      raise InputError("--recordings", "basis", "a head that does not tell what its expressions are", f"one of {', '.join(BASES)}")
    self._tasks: set[asyncio.Task] = set()
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      self.unfinished = sorted(path.name for path in self._folder.glob(".*.tmp") if path.is_dir())
      trial = self._folder / f".{secrets.token_hex(8)}"
      trial.mkdir()
      trial.rmdir()
    except OSError as error:
      raise InputError("--recordings", "", f"{folder}: {error.strerror or error}", "a folder that can be written") from None

  def begin(self, start: int, first: Int[np.ndarray, "S"]) -> Recording:
    """See `Recording`.

    Raises:
      InputError: there is no room on the disk, or the folder is gone.
    """
    try:
      free = shutil.disk_usage(self._folder).free
      if free < _LEAST_FREE:
        raise InputError("recording", "", f"{free >> 20} MB on the disk", f"{_LEAST_FREE >> 20} MB")
      return Recording(self._folder, start, first, self._about)
    except OSError as error:
      raise InputError("recording", "", error.strerror or error, "a folder that can be written") from None

  def keep(self, recording: Recording, why: str, tell: Callable[[str], None]) -> None:
    """Finishes one, in a thread; tells the page a line, and prints one."""

    async def finish() -> None:
      try:
        kept = await asyncio.to_thread(recording.finish, why)
      except InputError as error:
        told = printed = f"The recording is lost to {error}"
      else:
        long = f"{recording.seconds:.1f} s, {why}"
        told = f"Kept as {recording.name}: {long}." if kept else f"Nothing was kept: {long}, is too short."
        printed = f"recorded {recording.place} ({long}){self._describe(recording.place)}" if kept else told
      print(printed, flush=True)
      tell(told)

    task = asyncio.get_running_loop().create_task(finish())
    self._tasks.add(task)
    task.add_done_callback(self._tasks.discard)

  async def wait(self) -> None:
    """Until all are whole."""
    while self._tasks:
      await asyncio.wait(list(self._tasks))


@dataclasses.dataclass(frozen=True)
class Recorded:
  """A recording that was read.

  Attributes:
    name: of its folder.
    about: recording.json.
    speech_a, speech_b, heard_b: see the module; 16 kHz in [-1, 1].
    motion_a, motion_b: (T, 56).
    relations: [blood, equal] of each frame.
  """

  name: str
  about: Mapping[str, Any]
  speech_a: Wav
  speech_b: Wav
  heard_b: Wav
  motion_a: Motion
  motion_b: Motion
  relations: Int[np.ndarray, "T 2"]


def read_recording(folder: str | os.PathLike) -> Recorded:
  """Reads a recording.

  Raises:
    InputError: there is none, of another version, or it is not as it was written.
  """
  folder = pathlib.Path(folder)
  place = folder / _ABOUT
  about = _read_about(place)
  frames, ahead = about["frames"], about["frames_ahead"]
  arrays = {}
  for file in _files():
    if _digest(read_whole(folder / file, "a recording's file")) != about["files"].get(file):
      raise InputError(folder / file, "SHA-256", "another content", f"what {_ABOUT} was written with")
  for name in _VOICES:
    arrays[name], _ = read_wav(folder / f"{name}.wav", allow_silent=True, only_rate=SAMPLE_RATE)
    wanted = (frames + ahead * (name == "heard_b")) * SAMPLES_PER_FRAME
    if len(arrays[name]) != wanted:
      raise InputError(folder / f"{name}.wav", "length", len(arrays[name]), f"{wanted} samples")
  for name in _MOTIONS:
    track = read_track(folder / f"{name}.npz", shape=False)
    if track.motion.shape[0] != frames or track.basis != about["basis"]:
      found = f"{len(track.motion)} frames of {track.basis}"
      raise InputError(folder / f"{name}.npz", "motion", found, f"{frames} of {about['basis']}")
    arrays[name] = track.motion
  relations = np.zeros((frames, 2), np.int32)
  for frame, relation in about["relations"]:
    relations[frame:] = parse_relation(relation, source=f"{place}: relations")
  return Recorded(folder.name, about, relations=relations, **arrays)


def _read_about(place: pathlib.Path) -> dict[str, Any]:
  """recording.json, checked."""
  what = "a recording of `python -m rsatalker_jax live --recordings=DIR`"
  try:
    about = json.loads(read_text(place, what))
  except (ValueError, RecursionError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(place, "", f"no JSON ({error})", what) from None
  if not isinstance(about, dict) or about.get("version") != VERSION:
    found = repr(about.get("version")) if isinstance(about, dict) else type(about).__name__
    raise InputError(place, "version", found, f"{VERSION}: {what}")
  whole = lambda least: lambda x: type(x) is int and x >= least
  checks = {
      "frames": (whole(LEAST_FRAMES), f"a whole number, at least {LEAST_FRAMES}"),
      "frames_ahead": (whole(0), "a whole number"),
      "places": (whole(1), "a whole number, at least 1"),
      "basis": (lambda x: x in BASES, " | ".join(BASES)),
      "generator": (lambda x: isinstance(x, str), "a SHA-256"),
      "files": (lambda x: isinstance(x, dict), "SHA-256 by file"),
      "relations": (lambda x: _is_course(x, about["frames"]), "[[0, RELATION], [FRAME, RELATION], …]"),
  }
  for key, (fits, expected) in checks.items():
    if not fits(about.get(key)):
      raise InputError(place, key, repr(about.get(key)), expected)
  return about


def _is_course(relations: Any, frames: int) -> bool:
  """Whether it is [[0, "…"], [frame, "…"], …] in order."""
  if not isinstance(relations, list) or not all(isinstance(x, list) and len(x) == 2 for x in relations):
    return False
  if not all(type(frame) is int and 0 <= frame < frames and isinstance(text, str) for frame, text in relations):
    return False
  begins = [frame for frame, _ in relations]
  return bool(begins) and begins[0] == 0 and begins == sorted(begins)


def reproduce(run: TrainedRun, recorded: Recorded, place: str) -> Motion:
  """B's motion of a recording, made as it was made then: frame by frame, by the program of as many conversations at once.

  Args:
    run: whose generator made it.
    recorded: what it was given.
    place: where the run is from, for errors.

  Raises:
    InputError: another generator.
  """
  if digest_generator(run) != recorded.about["generator"]:
    raise InputError(place, "generator", "another than made the recording", f"that of {recorded.about.get('workdir')} at that time")
  run.check_basis(recorded.about["basis"], recorded.name)
  stream, unit = run.stream_batch(recorded.about["places"]).streams[0], SAMPLES_PER_FRAME
  ahead = stream.frames_ahead
  stream.prime(recorded.heard_b[: ahead * unit])
  made, told = [], None
  for frame, relation in enumerate(recorded.relations):
    if told is None or (relation != told).any():
      stream.social, told = run.social_feature(relation), relation
    heard = slice((frame + ahead) * unit, (frame + ahead + 1) * unit)
    voice_a = recorded.speech_a[frame * unit : (frame + 1) * unit]
    made.append(stream.push(voice_a, recorded.motion_a[frame : frame + 1], recorded.heard_b[heard]))
  return np.concatenate(made)
