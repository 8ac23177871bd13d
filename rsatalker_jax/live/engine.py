"""What makes B's motion in a live conversation: a trained run with a causal generator, and an avatar that shows it."""

import jax
import numpy as np
from jaxtyping import Int

from rsatalker_jax.avatar import Avatar, drop_free_slots
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import HeadModel
from rsatalker_jax.media.tables import Tables
from rsatalker_jax.media.viewer import front_view
from rsatalker_jax.motion import MotionStream
from rsatalker_jax.runs import TrainedRun, load_run
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
    self.streams = [run.stream(np.full(2, UNKNOWN, np.int32), lengths=(1,)) for _ in range(conversations)]
    self.neutral = np.asarray(run.buffers["generator"]["motion_mean"], np.float32)
    self.about, self.avatar = describe_avatar(avatar, run.talker.head, run.talker.background, place)
    self.about |= {"frames_ahead": self.streams[0].frames_ahead, "stages": run.stages, "person": run.person}

  def relate(self, stream: MotionStream, relation: Int[np.ndarray, "2"]) -> None:
    stream.social = self._social[tuple(map(int, relation))]


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
  shown = load_run(workdir if avatar_from is None else avatar_from, person=person)
  run = shown if avatar_from is None else load_run(workdir)
  place = workdir if avatar_from is None else avatar_from
  # Before the avatar is asked for: a generator that looks ahead is the mistake that is made most.
  if "generator" in run.params and not getattr(run.config.generator, "causal", False):
    expected = "one that is causal, as --config=configs/demo.py:causal --stage=motion trains"
    raise InputError(workdir, "generator.causal", "a generator that looks ahead", expected)
  if "avatar" not in shown.params:
    expected = "a finished avatar stage, or --avatar_from=RUN with the run whose avatar is to be shown"
    raise InputError(place, "avatar", f"only {shown.stages}", expected)
  if run is not shown:
    if run.basis is None or shown.basis is None:
      raise InputError(place, "head", "a head that does not tell its basis", "one that does, with --avatar_from")
    shown.check_basis(run.basis, workdir)
  avatar = drop_free_slots(shown.talker.avatar(shown.params, shown.buffers))
  if run is not shown and not np.array_equal(run.talker.head.faces, shown.talker.head.faces):
    raise InputError(place, "head", f"{len(shown.talker.head.faces)} faces", f"those {len(run.talker.head.faces)} of {workdir}'s head")
  return RunEngine(run, avatar, place, conversations=conversations)
