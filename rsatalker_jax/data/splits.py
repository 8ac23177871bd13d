"""Splits of conversations into train, val, test and ood: nobody in two of them.

Who must stay together is a component of a graph: conversations are joined by the people they share, and by their recording, which
a name tells before `_sub_video_`: clips of one share room, light and people. Components are as large as acquaintance makes them;
shares of the duration are met as well as they allow. `ood` holds other people, and where the people table tells of several sources,
conversations of a source that no other split has.
"""

import dataclasses
import json
import math
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from rsatalker_jax.data.dualtalk import SPLITS, ClipFiles, recording_of
from rsatalker_jax.data.people import Speakers, read_people, write_people
from rsatalker_jax.data.relations import read_labels, write_relations
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import link_or_copy, whole_file

KINDS = ("person", "conversation")
_NOBODY = Speakers("", "")


@dataclasses.dataclass(frozen=True)
class Leak:
  """What two splits or more have in common.

  Attributes:
    kind: "conversation", "recording" or "person".
    name: of it.
    splits: that have it.
  """

  kind: str
  name: str
  splits: tuple[str, ...]

  def __str__(self) -> str:
    return f"{self.kind} {self.name} in {' and '.join(self.splits)}"


def check_leaks(clips: Iterable[tuple[str, str]], people: Mapping[str, Speakers]) -> list[Leak]:
  """What stands in two splits; of a conversation, its recording and its people all that do.

  Args:
    clips: (conversation, split).
    people: by conversation, as far as they are known.
  """
  where: dict[tuple[str, str], set[str]] = {}
  for name, split in clips:
    keys = [("conversation", name), ("recording", recording_of(name)), *(("person", who) for who in people.get(name, _NOBODY).names)]
    for key in keys:
      where.setdefault(key, set()).add(split)
  order = {split: i for i, split in enumerate(SPLITS)}
  found = [Leak(kind, name, tuple(sorted(splits, key=order.__getitem__))) for (kind, name), splits in where.items() if len(splits) > 1]
  # A name without clips of a recording is its own recording: said once.
  found = [leak for leak in found if leak.kind != "recording" or dataclasses.replace(leak, kind="conversation") not in found]
  return sorted(found, key=lambda leak: (leak.kind, leak.name))


def find_components(conversations: Sequence[str], people: Mapping[str, Speakers], *, by: str = "person") -> list[list[str]]:
  """Conversations that have to stay together, each component in the order of `conversations`.

  Args:
    conversations: names.
    people: by conversation, as far as they are known; who is not is known by the recording alone.
    by: "person", or "conversation" for recordings alone.
  """
  keys = [
      [("recording", recording_of(name)), *(("person", who) for who in people.get(name, _NOBODY).names if by == "person")]
      for name in conversations
  ]
  return _join(conversations, keys)


def _join(names: Sequence[str], keys: Sequence[Sequence[tuple[str, str]]]) -> list[list[str]]:
  """Components of names that share keys."""
  numbers = {key: len(names) + i for i, key in enumerate(dict.fromkeys(key for some in keys for key in some))}
  edges = [(i, numbers[key]) for i, some in enumerate(keys) for key in some]
  size = len(names) + len(numbers)
  rows, columns = np.array(edges, np.int64).reshape(-1, 2).T
  graph = scipy.sparse.coo_array((np.ones(len(edges), np.int8), (rows, columns)), shape=(size, size))
  _, labels = scipy.sparse.csgraph.connected_components(graph, directed=False)
  components: dict[int, list[str]] = {}
  for name, label in zip(names, labels):
    components.setdefault(int(label), []).append(name)
  return list(components.values())


def make_splits(
    seconds: Mapping[str, float],
    people: Mapping[str, Speakers],
    fractions: Mapping[str, float],
    *,
    by: str = "person",
    seed: int = 0,
) -> dict[str, str]:
  """Splits conversations; the same arguments, in any order, give the same splits.

  First `ood` is set aside: the source, or the sources that share people, whose duration comes closest to its share; where there
  is one source or none is known, components of people. The others are shared out among the other splits: the longest component
  first, each to the split that lacks most, and where a split would stay empty, the shortest of the split with most of them.

  Args:
    seconds: duration by conversation.
    people: by conversation, as far as they are known.
    fractions: of the whole duration by split, 1 in all; splits that are not named, or of 0, are not made.
    by: "person": nobody in two splits. "conversation": no recording in two splits, and nobody in `ood` and another one;
      train, val and test may share people.
    seed: of the order of components that are equally long.

  Raises:
    InputError: fewer components than splits.
  """
  if by not in KINDS:
    raise ValueError(f"{by=} must be one of {KINDS}")
  fractions = {split: fractions[split] for split in SPLITS if fractions.get(split, 0) > 0}
  rng = np.random.default_rng(seed)
  names = sorted(seconds)
  splits: dict[str, str] = {}
  rest = names
  if (share := fractions.pop("ood", 0)) > 0:
    held_out = _find_source(names, seconds, people, share, rng)
    if held_out is None:
      targets = {"ood": share, "rest": 1 - share} if fractions else {"ood": 1.0}
      filled = _fill(find_components(names, people), seconds, targets, rng, "people who share no recording")
      held_out = [name for name in names if filled[name] == "ood"]
    splits |= dict.fromkeys(held_out, "ood")
    rest = [name for name in names if name not in splits]
  if fractions:
    what = "people who share no recording" if by == "person" else "recordings"
    splits |= _fill(find_components(rest, people, by=by), seconds, fractions, rng, what)
  return {name: splits[name] for name in names}


def _find_source(
    names: Sequence[str], seconds: Mapping[str, float], people: Mapping[str, Speakers], share: float, rng: np.random.Generator
) -> list[str] | None:
  """All conversations of the source that is closest to the share of the duration, and of those it has people in common with."""
  # Where no source is known it may be any of them: such conversations never make an ood split.
  source = {name: people.get(name, _NOBODY).source for name in names}
  keys = [[("recording", recording_of(name)), ("source", source[name]), *(("person", who) for who in people.get(name, _NOBODY).names)]
          for name in names]  # fmt: skip
  groups = _join(names, keys)
  known = [group for group in groups if all(source[name] for name in group)]
  if len(groups) < 2 or not known:
    return None
  target = share * sum(seconds[name] for name in names)
  order = rng.permutation(len(known))
  return known[min(order, key=lambda i: abs(sum(seconds[name] for name in known[i]) - target))]


def _fill(
    components: Sequence[Sequence[str]], seconds: Mapping[str, float], fractions: Mapping[str, float], rng: np.random.Generator, what: str
) -> dict[str, str]:
  """Shares out components; fractions are relative to each other."""
  if len(components) < len(fractions):
    found = f"{len(components)} groups of {what}"
    raise InputError("splits", "", found, f"at least one for each of {', '.join(fractions)}")
  lengths = [math.fsum(seconds[name] for name in component) for component in components]
  lacking = {split: part / sum(fractions.values()) * math.fsum(lengths) for split, part in fractions.items()}
  filled: dict[str, list[int]] = {split: [] for split in fractions}
  for i in sorted(rng.permutation(len(components)).tolist(), key=lambda i: -lengths[i]):
    split = max(lacking, key=lacking.__getitem__)
    filled[split].append(i)
    lacking[split] -= lengths[i]
  for split in filled:
    if not filled[split]:
      most = max(filled, key=lambda other: len(filled[other]))
      filled[split].append(filled[most].pop())
  return {name: split for split, some in filled.items() for i in some for name in components[i]}


def write_splits(
    out: str | os.PathLike,
    clips: Sequence[ClipFiles],
    splits: Mapping[str, str],
    *,
    about: Mapping[str, Any],
    relations: str | os.PathLike | None = None,
    people: str | os.PathLike | None = None,
) -> pathlib.Path:
  """Writes a folder in DualTalk's layout with the files of `clips` in their new splits, whole or not at all.

  Files are hard links where the file system allows it, else copies; nothing below the clips' own folder changes.

  Args:
    out: the folder; it must not exist, or be empty.
    clips: with all their files.
    splits: by conversation.
    about: how they were made, for splits.json.
    relations, people: tables whose lines on these conversations go along.

  Raises:
    InputError: `out` holds something, or cannot be written.
  """
  out = pathlib.Path(out)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise InputError(out, "", "something there", "a folder that does not exist yet")
  partial = out.with_name(f".{out.name}.{secrets.token_hex(8)}.tmp")
  names = {clip.name for clip in clips}
  try:
    for clip in clips:
      folder = partial / splits[clip.name]
      folder.mkdir(parents=True, exist_ok=True)
      for path in (*clip.wavs, *clip.npzs):
        link_or_copy(path.resolve(), folder / path.name)
    if relations is not None:
      write_relations(partial / "relations.csv", [label for label in read_labels(relations) if label.conversation in names])
    if people is not None:
      table = read_people(people)
      write_people(partial / "people.csv", {name: table[name] for name in table if name in names})
    with whole_file(partial / "splits.json") as file:
      file.write((json.dumps({**about, "splits": {name: splits[name] for name in sorted(names)}}, indent=2) + "\n").encode())
    if out.exists():
      out.rmdir()
    os.replace(partial, out)
  except OSError as error:
    raise InputError(out, "", error.strerror or error, "a folder that can be written") from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return out


def parse_fractions(text: str) -> dict[str, float]:
  """Shares of the duration from "train=0.8,val=0.1,test=0.1".

  Raises:
    InputError: another split, a share that is none, or shares that are not 1 in all.
  """
  fractions: dict[str, float] = {}
  for part in text.split(","):
    split, _, number = (piece.strip() for piece in part.partition("="))
    try:
      value = float(number)
    except ValueError:
      value = -1.0
    if split not in SPLITS or split in fractions or not 0 <= value <= 1:
      raise InputError("--fractions", "", part, f"each of {', '.join(SPLITS)} once at most, with a share from 0 to 1, as train=0.8")
    fractions[split] = value
  if abs(sum(fractions.values()) - 1) > 1e-6:
    raise InputError("--fractions", "", f"{sum(fractions.values()):g} in all", "1 in all")
  return fractions
