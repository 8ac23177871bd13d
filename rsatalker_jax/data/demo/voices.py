"""The spoken dialogues in assets/voices: their table and their sound."""

import dataclasses
import json
import pathlib
from typing import NamedTuple

import av
import numpy as np
import scipy.signal
from jaxtyping import Float

from rsatalker_jax.errors import InputError
from rsatalker_jax.types import SAMPLE_RATE

VOICES_FOLDER = pathlib.Path(__file__).resolve().parents[3] / "assets" / "voices"
KINDS = ("turn", "filler", "overlap")
MOODS = ("neutral", "smile", "laugh", "surprise", "concern", "question", "agree")


class Phone(NamedTuple):
  """One speech sound: ARPAbet name without stress digit, seconds from the dialogue's beginning."""

  name: str
  start: float
  end: float


@dataclasses.dataclass(frozen=True)
class Utterance:
  """What one person says in one go.

  Attributes:
    speaker: 1 or 2.
    start: first phone's start in seconds; `end`: last phone's end. Pauses inside are the gaps between phones.
    text: the words.
    kind: "turn", "overlap" (a turn that starts before the other's ends) or "filler" (said by the listener).
    mood: one of MOODS.
    phones: in order, never overlapping.
  """

  speaker: int
  start: float
  end: float
  text: str
  kind: str
  mood: str
  phones: tuple[Phone, ...]


@dataclasses.dataclass(frozen=True)
class Voice:
  """How one person of a dialogue sounds.

  Attributes:
    sex: "female" or "male".
    name: engine and what the voice is mixed of, "kokoro-jm_kumo+jf_alpha".
    size: factor on the voice's pitch and formants.
    speed: factor on its rate; None where the times of another voice are followed.
  """

  sex: str
  name: str
  size: float
  speed: float | None

  @property
  def parts(self) -> frozenset[str]:
    """What the voice is mixed of, each with its engine."""
    engine, _, mixed = self.name.partition("-")
    return frozenset(f"{engine}-{part}" for part in mixed.split("+"))


@dataclasses.dataclass(frozen=True)
class Dialogue:
  """One conversation.

  Attributes:
    id: "d001" …
    title: a few words.
    relation: "blood,equal" … from speaker 1's and 2's view alike.
    split: "train", "val" or "test".
    senior: 1 or 2 in unequal relations, else None.
    duration: seconds, a whole number of video frames; both tracks have this length.
    voices: speaker 1's and 2's.
    utterances: by start.
    tracks: the two sound files, speaker 1 and 2.
  """

  id: str
  title: str
  relation: str
  split: str
  senior: int | None
  duration: float
  voices: tuple[Voice, Voice]
  utterances: tuple[Utterance, ...]
  tracks: tuple[pathlib.Path, pathlib.Path]


def load_dialogues(folder: pathlib.Path = VOICES_FOLDER) -> list[Dialogue]:
  """All dialogues, by id.

  Raises:
    InputError: dialogues.json is missing, is no JSON or lacks a key.
  """
  table = pathlib.Path(folder) / "dialogues.json"
  try:
    entries = json.loads(table.read_text(encoding="utf-8"))["dialogues"]
    return [_parse_dialogue(entry, table.parent) for entry in entries]
  except FileNotFoundError as error:
    raise InputError(table, "", "no such file", "the table of spoken dialogues") from error
  except json.JSONDecodeError as error:
    raise InputError(table, f"line {error.lineno}", error.msg, "JSON") from error
  except KeyError as error:
    raise InputError(table, str(error), "no such key", "the keys of a dialogue, see assets/voices/README.md") from error


def _parse_dialogue(entry: dict, folder: pathlib.Path) -> Dialogue:
  utterances = tuple(
      Utterance(
          speaker=utterance["speaker"],
          start=utterance["start"],
          end=utterance["end"],
          text=utterance["text"],
          kind=utterance["kind"],
          mood=utterance["mood"],
          phones=tuple(Phone(*phone) for phone in utterance["phones"]),
      )
      for utterance in entry["utterances"]
  )
  return Dialogue(
      id=entry["id"],
      title=entry["title"],
      relation=entry["relation"],
      split=entry["split"],
      senior=entry["senior"],
      duration=entry["duration"],
      voices=_parse_voices(entry, folder),
      utterances=utterances,
      tracks=tuple(folder / f"{entry['id']}_speaker{speaker}.opus" for speaker in (1, 2)),
  )


def _parse_voices(entry: dict, folder: pathlib.Path) -> tuple[Voice, Voice]:
  found = entry["voices"]
  where = folder / "dialogues.json", f"{entry['id']}.voices"
  if not isinstance(found, list) or len(found) != 2:
    raise InputError(*where, repr(found), "two voices, speaker 1's and 2's")
  for voice in found:
    if not isinstance(voice, dict):
      raise InputError(*where, repr(voice), "an object with sex, name, size and speed")
  first, second = (Voice(voice["sex"], voice["name"], voice["size"], voice["speed"]) for voice in found)
  return first, second


def decode_track(path: pathlib.Path) -> Float[np.ndarray, "S"]:
  """One person's voice, 16 kHz in [-1, 1], as long as its dialogue.

  Opus always decodes at 48 kHz; every third sample of the low-passed signal is kept.

  Raises:
    InputError: the file is missing or is no sound.
  """
  try:
    with av.open(str(path)) as container:
      frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
      rate = container.streams.audio[0].rate
  except (FileNotFoundError, IndexError, av.error.FFmpegError) as error:
    raise InputError(path, "", error, "an Opus file") from error
  if not frames:
    raise InputError(path, "", "no sound", "an Opus file")
  wav = np.concatenate(frames, axis=1)[0].astype(np.float32)  # Planar float, mono.
  wav = scipy.signal.resample_poly(wav, SAMPLE_RATE, rate)
  return np.clip(wav, -1.0, 1.0).astype(np.float32)
