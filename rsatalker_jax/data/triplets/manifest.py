"""Which captured video shows which conversation: the manifest of the paper's speech-mesh-video triplets (Sec. 4.1).

The manifest is one JSON object per line:

    {"conversation": "demo-d001_sub_video_9", "split": "train", "speaker": 2, "capture": "capture", "camera": 0,
     "first_timestep": 0, "frames": 1125, "relation": "blood,equal"}
"""

import dataclasses
import json
import os
import pathlib

import numpy as np
from jaxtyping import Int

from rsatalker_jax.data.captures import SPLITS
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_text
from rsatalker_jax.social.relation import UNKNOWN, format_relation, parse_relation


@dataclasses.dataclass(frozen=True)
class Triplet:
  """A conversation, and the video of one of its people.

  Attributes:
    conversation: its name, without the speaker.
    split: "train", "val" or "test".
    speaker: 1 or 2, the person in the video.
    capture: the capture's folder.
    camera: camera index of the video.
    first_timestep: the capture's timestep that shows the conversation's first frame.
    frames: how many frames, at 25 per second, the video covers; single ones may be missing in the capture.
    relation: [blood, equal]; -1 for unknown.
    place: file and line of the manifest, for messages.
  """

  conversation: str
  split: str
  speaker: int
  capture: pathlib.Path
  camera: int
  first_timestep: int
  frames: int
  relation: Int[np.ndarray, "2"]
  place: str = ""

  @property
  def name(self) -> str:
    """The name under which `load_dualtalk` gives the conversation with this person as the one to generate."""
    return f"{self.conversation}_speaker{self.speaker}"

  @property
  def end(self) -> int:
    """The capture's timestep after the last one."""
    return self.first_timestep + self.frames


_FIELDS = {
    "conversation": str,
    "split": str,
    "speaker": int,
    "capture": str,
    "camera": int,
    "first_timestep": int,
    "frames": int,
    "relation": str,
}


def load_triplets(manifest: str | os.PathLike, split: str | None = None) -> list[Triplet]:
  """Reads a manifest of triplets.

  Args:
    manifest: the `triplets.jsonl`; captures are named relative to its folder.
    split: keep this one alone.

  Raises:
    InputError: the manifest is missing, a line is no JSON object, a value is missing or wrong, a conversation's film is
      listed twice, or lines contradict each other (two relations of a conversation, two conversations at one moment of a
      capture).
  """
  manifest = pathlib.Path(manifest)
  lines = read_text(manifest, "a manifest of triplets (.jsonl)").splitlines()
  triplets = [_parse_line(manifest, number, line) for number, line in enumerate(lines, 1) if line.strip()]
  _check_against_each_other(triplets)
  return [triplet for triplet in triplets if split in (None, triplet.split)]


def merge_relations(
    known: Int[np.ndarray, "2"], said: Int[np.ndarray, "2"], place: object, name: str
) -> Int[np.ndarray, "2"]:
  """One label of two; an axis that only one of them knows is that one's.

  Args:
    known, said: [blood, equal], -1 for unknown.
    place, name: where the second stands, and of which conversation, for the message.

  Raises:
    InputError: they contradict each other.
  """
  if np.any((known != said) & (known != UNKNOWN) & (said != UNKNOWN)):
    raise InputError(place, "relation", f"{format_relation(said)} for {name}", f"{format_relation(known)}, as is said elsewhere")
  return np.where(said == UNKNOWN, known, said).astype(np.int32)


def _check_against_each_other(triplets: list[Triplet]) -> None:
  relations: dict[str, np.ndarray] = {}
  films: dict[tuple, Triplet] = {}
  moments: dict[pathlib.Path, list[Triplet]] = {}
  for triplet in triplets:
    name = triplet.conversation
    known = relations.get(name, triplet.relation)
    relations[name] = merge_relations(known, triplet.relation, triplet.place, name)
    capture = triplet.capture.resolve()
    film = name, triplet.speaker, triplet.camera, capture
    if film in films:
      raise InputError(triplet.place, "conversation", f"{triplet.name} from camera {triplet.camera} a second time",
                       f"one line a film, as {films[film].place}")
    films[film] = triplet
    for other in moments.setdefault(capture, []):
      first, last = (f(x) for f, x in ((max, (triplet.first_timestep, other.first_timestep)), (min, (triplet.end, other.end))))
      if first < last and (other.name, other.first_timestep) != (triplet.name, triplet.first_timestep):
        raise InputError(triplet.place, "first_timestep", f"timesteps {first} to {last - 1} of {triplet.capture}",
                         f"others than those of {other.name}, {other.place}")
    moments[capture].append(triplet)


def _parse_line(manifest: pathlib.Path, number: int, line: str) -> Triplet:
  place = f"{manifest}:{number}"
  try:
    entry = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise InputError(place, "", f"damaged JSON ({error})", "one object per line") from None
  if not isinstance(entry, dict):
    raise InputError(place, "", type(entry).__name__, "an object")
  for key, kind in _FIELDS.items():
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
      found = "no such key" if key not in entry else repr(value)
      raise InputError(place, key, found, "text" if kind is str else "a whole number")
  if entry["split"] not in SPLITS:
    raise InputError(place, "split", repr(entry["split"]), "train, val or test")
  if entry["speaker"] not in (1, 2):
    raise InputError(place, "speaker", entry["speaker"], "1 or 2")
  if not 1 <= entry["frames"] < 1 << 31:
    raise InputError(place, "frames", entry["frames"], "at least 1" if entry["frames"] < 1 else "32 bits")
  capture = manifest.parent / entry["capture"]
  if not os.path.isdir(capture):  # Path.is_dir raises on names that are too long.
    raise InputError(place, "capture", f"{entry['capture']}, which does not exist", "a capture's folder")
  relation = parse_relation(entry["relation"], source=place)
  return Triplet(**{**{key: entry[key] for key in _FIELDS}, "capture": capture, "relation": relation, "place": place})
