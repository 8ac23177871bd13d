"""Which captured video shows which conversation: the speech-mesh-video triplets of the paper (Sec. 4.1).

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

from rsatalker_jax.data.captures import SPLITS, Capture
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_text
from rsatalker_jax.social.relation import parse_relation


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
    frames: how many frames, at 25 per second, the video shows.
    relation: [blood, equal]; -1 for unknown.
  """

  conversation: str
  split: str
  speaker: int
  capture: pathlib.Path
  camera: int
  first_timestep: int
  frames: int
  relation: Int[np.ndarray, "2"]

  @property
  def name(self) -> str:
    """The name under which `load_dualtalk` gives the conversation with this person as the one to generate."""
    return f"{self.conversation}_speaker{self.speaker}"

  def capture_indices(self, capture: Capture) -> Int[np.ndarray, "T"]:
    """The capture's item for every frame of the conversation, in order.

    Raises:
      InputError: the capture does not have one of the frames.
    """
    indices = np.empty(self.frames, np.int64)
    for frame in range(self.frames):
      try:
        indices[frame] = capture.index(self.camera, self.first_timestep + frame)
      except KeyError:
        key = f"camera {self.camera}, timestep {self.first_timestep + frame}"
        raise InputError(self.capture, key, "no such frame", f"{self.frames} frames for {self.name}") from None
    return indices


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
    InputError: the manifest is missing, a line is no JSON object, or a value is missing or wrong.
  """
  manifest = pathlib.Path(manifest)
  lines = read_text(manifest, "a manifest of triplets (.jsonl)").splitlines()
  triplets = [_parse_line(manifest, number, line) for number, line in enumerate(lines, 1) if line.strip()]
  return [triplet for triplet in triplets if split in (None, triplet.split)]


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
  return Triplet(**{**{key: entry[key] for key in _FIELDS}, "capture": capture, "relation": relation})
