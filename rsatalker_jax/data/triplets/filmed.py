"""A filmed conversation: what stage 3 learns from and what rendered frames are scored against (the triplet of Sec. 4.1).

A triplet brings its own capture and its own relation. The conversation's motion comes from one tracker, the film's FLAME
parameters from another: where both look at the same frames they must agree, up to what each calls straight
(`head.find_alignment`). That is measured when films are opened.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.data.capture_collection import name_people
from rsatalker_jax.data.captures import Capture, spread_places
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.data.triplets.manifest import Triplet, load_triplets, merge_relations
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import FlamePose, HeadModel, find_alignment, head_vertices, motion_of, pose_for
from rsatalker_jax.types import MOTION_GROUPS

# Frames of a film at which the two trackers are compared.
_COMPARED_FRAMES = 64
# Metres: a film in which nothing moves by more says nothing about whether the two agree.
_STILL = 5e-4


@dataclasses.dataclass(frozen=True)
class FilmedConversation:
  """A conversation and the film of the person who is to be generated.

  Attributes:
    clip: the conversation, under the relation that clip and triplet together know.
    capture: the film, the triplet's own.
    person: number of the person in `Films.captures`.
    frames: the conversation's frames that the film shows, ascending.
    items: the capture's items that show them.
    alignment: see `head.pose_for`.
    missing: frames that the triplet covers and the capture lacks.
  """

  clip: MotionClip
  capture: Capture
  person: int
  frames: Int[np.ndarray, "F"]
  items: Int[np.ndarray, "F"]
  alignment: Float[np.ndarray, "3"]
  missing: int

  @property
  def name(self) -> str:
    return self.clip.name

  def read(self, shown: Int[np.ndarray, "k"]) -> dict[str, np.ndarray | dict[str, np.ndarray]]:
    """What the capture holds of some of `frames`, by their places there: see `Capture`, with k in front."""
    items = [self.capture[int(self.items[place])] for place in shown]
    return jax.tree.map(lambda *x: np.stack(x), *items)


@dataclasses.dataclass(frozen=True)
class Films:
  """The filmed conversations of one split.

  Attributes:
    conversations: in the manifest's order.
    captures: one for each person, in the order in which the manifest names them.
  """

  conversations: tuple[FilmedConversation, ...]
  captures: tuple[Capture, ...]

  @property
  def names(self) -> list[str]:
    """Of the people."""
    return name_people([capture.root for capture in self.captures])


def label_clips(clips: Sequence[MotionClip], triplets: Sequence[Triplet]) -> list[MotionClip]:
  """The clips, with the relations that triplets know of their conversations; both directions of one have the same.

  Raises:
    InputError: a triplet and the clip's own label contradict each other.
  """
  known = {}
  for triplet in triplets:
    before, _ = known.get(triplet.conversation, (triplet.relation, ""))
    known[triplet.conversation] = merge_relations(before, triplet.relation, triplet.place, triplet.conversation), triplet.place
  labelled = []
  for clip in clips:
    relation, place = known.get(clip.name.rpartition("_speaker")[0], (None, ""))
    if relation is not None:
      clip = dataclasses.replace(clip, relation=merge_relations(np.asarray(clip.relation), relation, place, clip.name))
    labelled.append(clip)
  return labelled


def load_films(
    manifest: str | os.PathLike,
    split: str,
    clips: Sequence[MotionClip],
    open_capture: Callable[[pathlib.Path], Capture],
    head: HeadModel,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Films:
  """Opens the films of a split's triplets and compares both trackers.

  Args:
    manifest: see `load_triplets`.
    split: of the triplets.
    clips: the split's conversations, with ground truth and labels (`label_clips`).
    open_capture: opens a capture's folder, once for each.
    head: that both trackers used, or nearly.
    say: gets a line for each film: frames, gaps, by how much the trackers differ.

  Raises:
    InputError: no triplet in the split, a triplet of a conversation that is not in `clips`, a film that shows nothing of
      it, captures of different sizes, or a film and a track that disagree.
  """
  triplets = load_triplets(manifest, split)
  by_name = {clip.name: clip for clip in clips}
  missing = [triplet for triplet in triplets if triplet.name not in by_name]
  if missing:
    raise InputError(missing[0].place, "conversation", f"{missing[0].name}, which is no {split} conversation",
                     f"names of {split} conversations")
  captures: dict[pathlib.Path, Capture] = {}
  films = []
  for triplet in triplets:
    folder = triplet.capture.resolve()
    if folder not in captures:
      captures[folder] = open_capture(triplet.capture)
    film = _open_film(triplet, by_name[triplet.name], captures[folder], list(captures).index(folder))
    film = _compare_trackers(triplet, film, head, say)
    films.append(film)
  for capture in captures.values():
    first = next(iter(captures.values()))
    if (capture.width, capture.height) != (first.width, first.height):
      found, expected = (f"{c.width}x{c.height}" for c in (capture, first))
      raise InputError(capture.root, "w, h", found, f"{expected}, as {first.root}: frames of all films share a batch")
  return Films(tuple(films), tuple(captures.values()))


def _open_film(triplet: Triplet, clip: MotionClip, capture: Capture, person: int) -> FilmedConversation:
  frames, items = [], []
  covered = min(triplet.frames, len(clip.motion_b))
  for frame in range(covered):
    try:
      items.append(capture.index(triplet.camera, triplet.first_timestep + frame))
      frames.append(frame)
    except KeyError:
      pass  # Counted as missing.
  if not frames:
    found = f"none of the {covered} frames of {clip.name} (camera {triplet.camera}, from timestep {triplet.first_timestep} on)"
    raise InputError(triplet.place, "capture", found, f"frames in {capture.root}")
  return FilmedConversation(
      clip=clip,
      capture=capture,
      person=person,
      frames=np.array(frames, np.int64),
      items=np.array(items, np.int64),
      alignment=np.zeros(3, np.float32),
      missing=covered - len(frames),
  )


def _compare_trackers(
    triplet: Triplet, film: FilmedConversation, head: HeadModel, say: Callable[[str], None]
) -> FilmedConversation:
  """The film with its alignment; an error if its track explains nothing of how the face in it moves."""
  chosen = spread_places(len(film.frames), _COMPARED_FRAMES)
  filmed = film.capture.read_flame(film.items[chosen])
  tracked = np.asarray(film.clip.motion_b)[film.frames[chosen]]
  alignment = find_alignment(tracked, filmed)
  shown = np.asarray(motion_of(filmed, np.broadcast_to(alignment, (len(chosen), 3))))
  # Constant differences are taste (another mean face, another zero): what is compared is how vertices move.
  moving = lambda motion: (lambda x: x - x.mean(axis=0))(_vertices(head, film.capture, pose_for(motion)))
  rms = lambda x: float(np.sqrt(np.mean(np.sum(x**2, axis=-1))))
  film_moves, apart = rms(moving(shown)), rms(moving(shown) - moving(tracked))
  turn = MOTION_GROUPS["pose"]
  degrees = np.degrees(np.sqrt(np.mean(np.sum((shown[:, turn] - tracked[:, turn]) ** 2, axis=-1))))
  gaps = f", {film.missing} missing" if film.missing else ""
  if beyond := triplet.frames - len(film.clip.motion_b):
    gaps += f", {beyond} after the conversation's end" if beyond > 0 else ""
  aligned = f", turned by {np.degrees(np.linalg.norm(alignment)):.1f} degrees against each other" if alignment.any() else ""
  measured = f"{1e3 * apart:.1f} mm (rms over vertices), the head by {degrees:.1f} degrees"
  say(f"film of {film.name}: {len(film.frames)} frames{gaps}; film and track differ by {measured}{aligned}")
  if apart > max(film_moves, _STILL):
    expected = f"less than the {1e3 * film_moves:.1f} mm by which the face in the film moves: are they of the same moments?"
    raise InputError(triplet.place, film.name, f"film and track that differ by {measured}", expected)
  return dataclasses.replace(film, alignment=alignment)


def _vertices(head: HeadModel, capture: Capture, flame: FlamePose) -> Float[np.ndarray, "T V 3"]:
  pose = jax.jit(jax.vmap(lambda flame: head_vertices(head, shape=jnp.asarray(capture.shape), **flame)))
  return np.asarray(pose(flame))
