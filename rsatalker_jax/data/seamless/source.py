"""Conversations of UniLS-Talk's LMDB, read in place."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from rsatalker_jax.data.dualtalk import SPLITS, DualTalkSource
from rsatalker_jax.data.seamless.joining import (
    DROPPED_NOTE, POSE_NOTE, Join, Joined, Selection, count_relations, hold_out, join_conversations, kind_of,
)
from rsatalker_jax.data.seamless.names import Skip, describe_skips
from rsatalker_jax.data.seamless.talk import BASIS, Recording, find_talk, read_pairs
from rsatalker_jax.errors import InputError
from rsatalker_jax.types import Conversation, Motion

_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True, eq=False)
class _Direction:
  """One direction of a conversation: `speaker` 1 or 2 is to be generated."""

  joined: Joined
  speaker: int

  @property
  def name(self) -> str:
    return f"{self.joined.name}_speaker{self.speaker}"

  @property
  def frames(self) -> int:
    return self.joined.frames

  @property
  def relation(self) -> Int[np.ndarray, "2"]:
    return self.joined.relation


class SeamlessSource(DualTalkSource):
  """Random access to conversations in UniLS-Talk's LMDB, as `DualTalkSource` has it for files, both directions of each.

  Whoever goes through all of them in order, or through all motions, meets no error where a recording is damaged: it is taken
  out and named in `skipped`. Asked for by its index it is an error.
  """

  passes_over_damage = True

  def __init__(self, join: Join):
    directions = [_Direction(joined, speaker) for joined in join.conversations for speaker in (1, 2)]
    trimmed = [(direction.name, direction.joined.lost) for direction in directions if direction.joined.lost]
    self._join, self._directions, self._last = join, directions, None
    self._damaged: set[str] = set()
    skipped = [(skip.name, f"{skip.kind} {skip.detail}".strip()) for skip in join.skipped]
    super().__init__(directions, skipped, trimmed, [], basis=BASIS, sign="what UniLS-Talk says of itself")

  def __getitem__(self, index: int) -> Conversation:
    return self._make(self._directions[index])

  def __iter__(self) -> Iterator[Conversation]:
    yield from self._each(self._make)

  def motions(self) -> Iterator[tuple[Motion, Motion, Int[np.ndarray, "2"]]]:
    """(motion of A, motion of B, relation) of each item in order."""
    for relation, (a, b) in self._each(lambda clip: (clip.relation, self._read(clip))):
      yield a.motion, b.motion, relation

  def report(self, title: str) -> list[str]:
    """Lines: the summary, relations, what stands out, and what is skipped by reason."""
    counts = ", ".join(f"{count} {relation}" for relation, count in count_relations(self._join.conversations).items())
    lines = [f"{title}: {self.summary()}", f"  expressions are {self.basis}'s, by {self.sign}", f"  conversations by relation: {counts}"]
    lines += [f"  {POSE_NOTE}", f"  {DROPPED_NOTE}"]
    return lines + [f"  {note}" for note in self._join.notes] + [f"  skipped {line}" for line in describe_skips(self._join.skipped)]

  def _each(self, make: Callable[[_Direction], _Item]) -> Iterator[_Item]:
    """What `make` makes of each direction; conversations that cannot be read are taken out."""
    for clip in list(self._directions):
      if clip.joined.name in self._damaged:  # By its other direction.
        continue
      try:
        item = make(clip)
      except InputError as error:
        self._take_out(clip.joined, error)
        continue
      yield item
    if not self._directions:
      raise InputError("conversations", "", f"none that can be read; the last: {self.skipped[-1][1]}", "at least one")

  def _take_out(self, joined: Joined, error: InputError) -> None:
    self._damaged.add(joined.name)
    skip = Skip(joined.name, kind_of(error), str(error))
    self._join.skipped.append(skip)
    self.skipped.append((skip.name, f"{skip.kind} {skip.detail}"))
    self._directions[:] = [clip for clip in self._directions if clip.joined is not joined]
    self._join.conversations[:] = [other for other in self._join.conversations if other is not joined]

  def _read(self, clip: _Direction) -> tuple[Recording, Recording]:
    """The partner's and the own recording."""
    last = self._last  # Both directions of a conversation follow each other.
    if last is None or last[0] is not clip.joined:
      last = self._last = clip.joined, self._join.read(clip.joined)
    a, b = last[1]
    return (a, b) if clip.speaker == 2 else (b, a)

  def _make(self, clip: _Direction) -> Conversation:
    partner, own = self._read(clip)
    return Conversation(
        name=clip.name,
        speech_a=partner.voice,
        motion_a=partner.motion,
        speech_b=own.voice,
        motion_b=own.motion,
        relation=clip.relation,
        basis=BASIS,
    )


def load_seamless(
    talk: str | os.PathLike,
    split: str,
    *,
    seamless: str | os.PathLike | None = None,
    selection: Selection = Selection(),
    relations: str | os.PathLike | None = None,
    default_relation: str | None = None,
) -> SeamlessSource:
  """The conversations of one split, read in place; see `join_conversations`."""
  if split not in SPLITS:
    raise InputError("split", "", f"{split!r}", " | ".join(SPLITS))
  join = join_conversations(
      talk, seamless, splits=(split,), selection=selection, relations=relations, default_relation=default_relation
  )
  return SeamlessSource(join)


def present_seamless_splits(talk: str | os.PathLike, selection: Selection = Selection()) -> list[str]:
  """The splits of which the pairs' file has conversations, validation sessions held out of `train` among them."""
  pairs = hold_out(read_pairs(find_talk(talk)[1])[0])
  present = {pair.split for pair in pairs if selection.chooses(pair.ids[0].session)}
  return [split for split in SPLITS if split in present]
