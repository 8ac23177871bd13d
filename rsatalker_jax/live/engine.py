"""What makes B's motion in a live conversation: a trained run with a causal generator, and an avatar that shows it."""

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.avatar import Avatar
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import HeadModel
from rsatalker_jax.live.partner import InventedPartner
from rsatalker_jax.media.tables import Tables
from rsatalker_jax.media.viewer import front_view
from rsatalker_jax.motion import StreamBatch
from rsatalker_jax.motion.stream_batch import BatchedStream
from rsatalker_jax.runs import TrainedRun
from rsatalker_jax.runs.shown import load_shown
from rsatalker_jax.social.relation import UNKNOWN, format_relation
from rsatalker_jax.types import FPS, MOTION_DIM, SAMPLES_PER_FRAME

_ALL_RELATIONS = [(blood, equal) for blood in (UNKNOWN, 0, 1) for equal in (UNKNOWN, 0, 1)]
UNSEEN = ("invented", "neutral")
MOST_CONVERSATIONS = 64
# Seconds that a step of all conversations may take. Who is unlucky waits for a step that has just begun and for others' frames
# (worker.py) before their own step, and the way there and back takes some milliseconds too: all of it within a frame's 40 ms.
LONGEST_STEP = 0.010


class RunEngine:
  """See `worker.Engine`."""

  def __init__(
      self, run: TrainedRun, shown: TrainedRun, place: str, *, conversations: int, unseen: str = UNSEEN[0], others: Sequence[TrainedRun] = ()
  ):
    """Compiles all that is needed.

    Args:
      run: of which the generator is.
      shown: whose avatar it is, on the same head model.
      place: where that is from, for errors.
      conversations: how many there may be at once; 0: as many as this device holds, which is measured.
      unseen: one of `UNSEEN`: A's motion where no camera sees it.
      others: `shown` with the avatars of other people, whom the page can choose.

    Raises:
      InputError: the run cannot be streamed from samples, or the avatar cannot be drawn.
    """
    if run.config.speech.encoder != "logmel":
      expected = "'logmel': the others hear the whole of a voice at once"
      raise InputError("run", "speech.encoder", repr(run.config.speech.encoder), expected)
    self._social = {relation: run.social_feature(np.array(relation, np.int32)) for relation in _ALL_RELATIONS}
    invents = unseen == "invented" and not run.talker.generator.config.frames_ahead
    measure = lambda batch: measure_step(batch) * (1 + invents)  # The inventor takes as long again.
    if conversations:
      batch = run.stream_batch(conversations)
      seconds = measure(batch)
    else:
      batch, seconds = find_largest(run.stream_batch, measure)
    self.streams, self.push = batch.streams, batch.push
    self.neutral = np.asarray(run.buffers["generator"]["motion_mean"], np.float32)
    self.partner = InventedPartner(run.stream_batch(len(batch.streams)), self.neutral) if invents else None
    names = [format_relation(np.array(relation)) for relation in _ALL_RELATIONS]
    describe = lambda run: describe_avatar(run.avatar, run.talker.head, run.talker.background, place, run.fold_offsets(names))
    self.about, self.avatar = describe(shown)
    described = {other.person: describe(other) for other in others}
    self.others = {person: packed for person, (_, packed) in described.items()}
    self.about |= {"relations": names, "others": {person: about for person, (about, _) in described.items()}}
    self.about |= {"frames_ahead": batch.frames_ahead, "stages": run.stages, "person": run.person}
    self.about |= {"basis": run.basis, "places": len(batch.streams), "generator": digest_generator(run)}
    self.about["step_ms"] = round(1000 * seconds, 2)

  def relate(self, stream: BatchedStream, relation: Int[np.ndarray, "2"]) -> None:
    stream.social = social = self._social[tuple(map(int, relation))]
    if self.partner is not None:
      self.partner.relate(stream, social)


def digest_generator(run: TrainedRun) -> str:
  """By which a recording knows its generator: SHA-256 of all that makes its motion but the code."""
  digest = hashlib.sha256(run.config.speech.to_json().encode() + run.config.generator.to_json().encode())
  parts = {"params": {name: run.params[name] for name in ("generator", "social")}, "buffers": run.buffers["generator"]}
  for path, values in jax.tree_util.tree_leaves_with_path(parts):
    values = np.ascontiguousarray(values)
    digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode() + values.tobytes())
  return digest.hexdigest()


def measure_step(batch: StreamBatch, steps: int = 30) -> float:
  """Seconds that a frame of all places takes, 95th percentile. Conversations begin anew after it."""
  silence, rest = np.zeros(SAMPLES_PER_FRAME, np.float32), np.zeros((1, MOTION_DIM), np.float32)
  frames, times = [(stream, silence, rest, silence) for stream in batch.streams], []
  for stream in batch.streams:
    stream.prime(np.zeros(SAMPLES_PER_FRAME * batch.frames_ahead, np.float32))
  for _ in range(steps):
    began = time.perf_counter()
    batch.push(frames)
    times.append(time.perf_counter() - began)
  for stream in batch.streams:
    stream.reset()
  return float(np.percentile(times, 95))


def find_largest(
    make_batch: Callable[[int], StreamBatch], measure: Callable[[StreamBatch], float] = measure_step
) -> tuple[StreamBatch, float]:
  """The largest batch of 1, 2, 4 … `MOST_CONVERSATIONS` places whose step takes at most `LONGEST_STEP`, and how long it takes; one of
  one place where even that takes longer."""
  batch = make_batch(1)
  seconds = measure(batch)
  for places in itertools.takewhile(lambda n: n <= MOST_CONVERSATIONS, (2**i for i in itertools.count(1))):
    larger = make_batch(places)
    longer = measure(larger)
    if longer > LONGEST_STEP:
      break
    batch, seconds = larger, longer
  return batch, seconds


def describe_avatar(
    avatar: Avatar,
    head: HeadModel,
    background: tuple[float, float, float],
    place: str,
    offsets: Mapping[str, Float[np.ndarray, "_ _"]] | None = None,
) -> tuple[dict, bytes]:
  """What live.js has to know to draw somebody, as JSON, and the tables (media/tables.py).

  Args:
    avatar, head, background: of a run.
    place: what errors name.
    offsets: the network of the offset corrections (`social.folding`), if there are any.

  Raises:
    InputError: see `Tables`.
  """
  tables = Tables(place)
  seen = tables.add_triangles(avatar, head)
  tables.add_gaussians(avatar, seen)
  tables.add_head(avatar, head)
  if offsets is not None:
    tables.add_offsets(avatar, seen, offsets)
  about = {"fps": FPS, "background": [float(x) for x in background], "view": front_view(head), "tables": tables.descriptions}
  return about, tables.pack()


def load_engine(
    workdir: str, avatar_from: str | None, person: str | None, conversations: int, cache: str | None, unseen: str = UNSEEN[0]
) -> RunEngine:
  """Loads a run in the process that streams it.

  Args:
    workdir: of a run with a causal generator.
    avatar_from: another run, on the same head model, whose avatar is shown; None: its own.
    person: whose avatar, of several.
    conversations, unseen: see `RunEngine`.
    cache: where compiled programs are kept, if anywhere.

  Raises:
    InputError: for every mistake in them.
  """
  if cache is not None:
    jax.config.update("jax_compilation_cache_dir", cache)
  run, shown = load_shown(workdir, avatar_from, person)
  place = workdir if avatar_from is None else avatar_from
  others = [shown.of_person(number) for number, name in enumerate(shown.names) if name != shown.person]
  return RunEngine(run, shown, place, conversations=conversations, unseen=unseen, others=others)
