"""What encode_speech.py does: the speech features of all conversations of a config, each voice once."""

import collections
import pathlib
import sys
from collections.abc import Callable

import jax
import tqdm
from ml_collections import ConfigDict

from rsatalker_jax.data.conversations import data_path, find_splits, load_conversations, unpack_embedded
from rsatalker_jax.errors import InputError
from rsatalker_jax.talker import make_encoder
from rsatalker_jax.types import FPS


def encode_voices(config: ConfigDict, *, say: Callable[[str], None] = print) -> None:
  """Encodes every voice of the train, val, test and ood conversations that is not in the cache yet, whole.

  Each process of a cluster takes its share of the voices. Processes that know nothing of each other may run at the same
  time, too: files are renamed into place when they are whole.

  Args:
    config: of a run; see configs/common.py.
    say: gets the lines about what was done.

  Raises:
    InputError: conversations, labels or the encoder's checkpoint are not as expected; or, after all others are encoded,
      clips that cannot be read, each of which was named before.
  """
  unpack_embedded(config.data)
  splits = find_splits(config.data)
  if not splits:
    raise InputError(data_path(config.data, "conversations"), "", "no split", "a folder train, val, test or ood")
  sources = {split: load_conversations(config.data, split) for split in splits}
  folder = data_path(config.data, "features")
  features = make_encoder(config.speech, folder)
  process, processes = jax.process_index(), jax.process_count()
  share = f" (process {process + 1} of {processes})" if processes > 1 else ""

  seen: set[pathlib.Path] = set()  # Conversations may share a voice.
  unreadable: list[InputError] = []
  for split, source in sources.items():
    origins, frames = collections.Counter(), 0
    # The two directions of a conversation have each other's voices: B's are all voices.
    clips = range(process, len(source), processes)
    for index in tqdm.tqdm(clips, desc=split, unit="voice", mininterval=0.5 if sys.stderr.isatty() else 15):
      try:
        clip = source[index]
      except InputError as error:
        unreadable.append(error)
        continue
      path = features.path(clip.speech_b, len(clip.motion_b))
      if path not in seen:
        seen.add(path)
        origins[features.fill(clip.speech_b, len(clip.motion_b))] += 1
        frames += len(clip.motion_b)
    for line in source.report(split):
      say(line)
    counts = f"{origins['encoded']} encoded, {origins['cached']} there already, {origins['rebuilt']} damaged and rebuilt"
    say(f"{split}{share}: {origins.total()} voices, {frames / FPS / 60:.1f} minutes: {counts}")
  for error in unreadable:
    say(f"not encoded: {error}")
  say(f"speech features of {config.speech.encoder} are in {folder}")
  if unreadable:
    raise InputError(data_path(config.data, "conversations"), "", f"{len(unreadable)} clips that cannot be read, named above",
                     "whole files, or none")
