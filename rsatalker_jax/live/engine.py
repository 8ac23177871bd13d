"""What makes B's motion in a live conversation: a trained run with a causal generator, and an avatar that shows it."""

import hashlib

import jax
import numpy as np
from jaxtyping import Int

from rsatalker_jax.avatar import Avatar
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import HeadModel
from rsatalker_jax.media.tables import Tables
from rsatalker_jax.media.viewer import front_view
from rsatalker_jax.motion import MotionStream
from rsatalker_jax.runs import TrainedRun
from rsatalker_jax.runs.shown import load_shown
from rsatalker_jax.social.relation import UNKNOWN
from rsatalker_jax.types import FPS

_ALL_RELATIONS = [(blood, equal) for blood in (UNKNOWN, 0, 1) for equal in (UNKNOWN, 0, 1)]


class RunEngine:
  """See `worker.Engine`."""

  def __init__(self, run: TrainedRun, avatar: Avatar, place: str, *, conversations: int):
    """Compiles all that is needed.

    Args:
      run: of which the generator is.
      avatar: on the run's head model.
      place: where the avatar is from, for errors.
      conversations: how many there may be at once.

    Raises:
      InputError: the run cannot be streamed from samples, or the avatar cannot be drawn.
    """
    if run.config.speech.encoder != "logmel":
      expected = "'logmel': Wav2Vec 2.0 hears the whole of a voice at once"
      raise InputError("run", "speech.encoder", repr(run.config.speech.encoder), expected)
    self._social = {relation: run.social_feature(np.array(relation, np.int32)) for relation in _ALL_RELATIONS}
    self.streams = open_streams(run, conversations)
    self.neutral = np.asarray(run.buffers["generator"]["motion_mean"], np.float32)
    self.about, self.avatar = describe_avatar(avatar, run.talker.head, run.talker.background, place)
    self.about |= {"frames_ahead": self.streams[0].frames_ahead, "stages": run.stages, "person": run.person}
    self.about |= {"basis": run.basis, "places": len(self.streams), "generator": digest_generator(run)}

  def relate(self, stream: MotionStream, relation: Int[np.ndarray, "2"]) -> None:
    stream.social = self._social[tuple(map(int, relation))]


def open_streams(run: TrainedRun, conversations: int) -> list[MotionStream]:
  """Streams for so many conversations at once. A recording is reproduced by the same: other programs differ in the last bits."""
  return [run.stream(np.full(2, UNKNOWN, np.int32), lengths=(1,)) for _ in range(conversations)]


def digest_generator(run: TrainedRun) -> str:
  """By which a recording knows its generator: SHA-256 of all that makes its motion but the code."""
  digest = hashlib.sha256(run.config.speech.to_json().encode() + run.config.generator.to_json().encode())
  parts = {"params": {name: run.params[name] for name in ("generator", "social")}, "buffers": run.buffers["generator"]}
  for path, values in jax.tree_util.tree_leaves_with_path(parts):
    values = np.ascontiguousarray(values)
    digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode() + values.tobytes())
  return digest.hexdigest()


def describe_avatar(avatar: Avatar, head: HeadModel, background: tuple[float, float, float], place: str) -> tuple[dict, bytes]:
  """What live.js has to know to draw somebody, as JSON, and the tables (media/tables.py).

  Raises:
    InputError: see `Tables`.
  """
  tables = Tables(place)
  seen = tables.add_triangles(avatar, head)
  tables.add_gaussians(avatar, seen)
  tables.add_head(avatar, head)
  about = {"fps": FPS, "background": [float(x) for x in background], "view": front_view(head), "tables": tables.descriptions}
  return about, tables.pack()


def load_engine(
    workdir: str, avatar_from: str | None, person: str | None, conversations: int, cache: str | None
) -> RunEngine:
  """Loads a run in the process that streams it.

  Args:
    workdir: of a run with a causal generator.
    avatar_from: another run, on the same head model, whose avatar is shown; None: its own.
    person: whose avatar, of several.
    conversations: how many there may be at once.
    cache: where compiled programs are kept, if anywhere.

  Raises:
    InputError: for every mistake in them.
  """
  if cache is not None:
    jax.config.update("jax_compilation_cache_dir", cache)
  run, shown = load_shown(workdir, avatar_from, person)
  return RunEngine(run, shown.avatar, workdir if avatar_from is None else avatar_from, conversations=conversations)
