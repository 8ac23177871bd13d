"""What encode_speech.py does: the speech features of all conversations of a config, each voice once."""

import collections
import pathlib
import random
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import tqdm
from ml_collections import ConfigDict

from rsatalker_jax.data.conversations import data_path, find_splits, load_conversations, unpack_embedded
from rsatalker_jax.data.sound import make_degradations
from rsatalker_jax.errors import InputError
from rsatalker_jax.talker import make_encoder
from rsatalker_jax.types import FPS

_Clip = TypeVar("_Clip")


def encode_voices(config: ConfigDict, *, say: Callable[[str], None] = print) -> None:
  """Encodes every voice of the train, val, test and ood conversations that is not in the cache yet, whole.

  Each process of a cluster begins with its share of the voices and ends with what others have not done yet, so that all
  end together. Processes that know nothing of each other may run at the same time, too: files are renamed into place
  when they are whole.

  Args:
    config: of a run; see configs/common.py.
    say: gets the lines about what was done.

  Raises:
    InputError: conversations, labels or the encoder's checkpoint are not as expected; or, after all others are encoded,
      clips that cannot be read, each of which was named before.
  """
  unpack_embedded(config.data)
  root, folder = data_path(config.data, "conversations"), data_path(config.data, "features")
  sources = {split: load_conversations(config.data, split) for split in find_splits(config.data)}
  if not sources:
    raise InputError(root, "", "no split", "a folder train, val, test or ood")
  features = make_encoder(config.speech, folder)
  # The two directions of a conversation have each other's voices: the people to generate are all people.
  clips = [(split, index) for split, source in sources.items() for index in range(len(source))]
  clips = visiting_order(clips, jax.process_index(), jax.process_count())

  degradations = make_degradations(**config.speech.augmentation)
  origins = {split: collections.Counter() for split in sources}
  degraded = collections.Counter()
  frames = collections.Counter()
  seen: set[pathlib.Path] = set()  # Conversations may share a voice.
  unreadable: list[InputError] = []
  for split, index in tqdm.tqdm(clips, desc="speech", unit="voice", mininterval=0.5 if sys.stderr.isatty() else 15):
    try:
      clip = sources[split][index]
    except InputError as error:
      unreadable.append(error)
      continue
    length = len(clip.motion_b)
    path = features.path(clip.speech_b, length)
    if path not in seen:
      seen.add(path)
      origins[split][features.fill(clip.speech_b, length)] += 1
      frames[split] += length
      if split == "train":  # Nothing else is ever heard degraded.
        degraded.update(features.fill(clip.speech_b, length, degradation) for degradation in degradations)

  for split, source in sources.items():
    for line in source.report(split):
      say(line)
    done = origins[split]
    say(f"  {done.total()} voices, {frames[split] / FPS / 60:.1f} minutes: {_count(done)}")
    if split == "train" and degradations:
      say(f"  {degraded.total()} degraded variants of them: {_count(degraded)}")
  for error in unreadable:
    say(f"not encoded: {error}")
  say(f"speech features of encoder {features.id} are in {folder}")
  if unreadable and not all(source.passes_over_damage for source in sources.values()):
    raise InputError(root, "", f"{len(unreadable)} clips that cannot be read, named above", "whole files, or none")


def _count(origins: collections.Counter) -> str:
  return f"{origins['encoded']} encoded, {origins['cached']} there already, {origins['rebuilt']} damaged and rebuilt"


def visiting_order(clips: Sequence[_Clip], process: int, processes: int) -> list[_Clip]:
  """All clips in the order for one of several processes: its own share first, then the others' in an order of its own."""
  own = clips[process::processes]
  others = [clip for i, clip in enumerate(clips) if i % processes != process]
  random.Random(process).shuffle(others)
  return [*own, *others]
