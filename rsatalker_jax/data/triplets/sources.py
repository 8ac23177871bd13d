"""What triplets are made of: DualTalk's conversations, RealTalk's videos, and what a user has beside them."""

import dataclasses
import pathlib
import re
import zlib

from rsatalker_jax.data.triplets.source_video import SUFFIXES
from rsatalker_jax.errors import InputError

_SPLITS = ("train", "val", "test", "ood")
_FILE = re.compile(r"(?P<clip>(?P<video>.+)_sub_video_.+)_speaker(?P<speaker>[12])\.(?P<kind>wav|npz)")


@dataclasses.dataclass(frozen=True)
class Sources:
  """Attributes:
    conversations: DualTalk's folder, with the splits.
    videos: RealTalk's, searched with its subfolders.
    boxes: csv of face boxes (`cropping.FaceBoxes`).
    tracks: folder of captures that VHAP tracked: <video id>_p{0,1} of whole videos, <conversation>_speaker{1,2} of films.
    masks: folder of mask videos as long as the videos: <video id>_p{0,1}.mp4, or <video id>.mp4 of both people.
    own_tracks: folder of the videos' own tracks of DECA's family, <video id>_p{0,1}.npz, every frame of the video.
    relations: the labels table.
  """

  conversations: pathlib.Path
  videos: pathlib.Path
  boxes: pathlib.Path | None = None
  tracks: pathlib.Path | None = None
  masks: pathlib.Path | None = None
  own_tracks: pathlib.Path | None = None
  relations: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Clip:
  """A conversation with all of its files."""

  name: str
  split: str
  video: str
  wavs: tuple[pathlib.Path, pathlib.Path]
  npzs: tuple[pathlib.Path, pathlib.Path]


def list_clips(root: pathlib.Path) -> tuple[list[Clip], dict[str, str]]:
  """Conversations by name, and those that cannot be used, with the reasons.

  Where there is no folder val, a tenth of the videos of train are held out for it, always the same ones.

  Raises:
    InputError: there is no split, or nothing in any.
  """
  files: dict[str, dict[tuple[str, str, int], pathlib.Path]] = {}
  videos = {}
  folders = [root / split for split in _SPLITS if (root / split).is_dir()]
  if not folders:
    raise InputError(root, "", "no folder train, val or test", "DualTalk's conversations")
  for folder in folders:
    for path in sorted(folder.iterdir()):
      if not path.name.startswith(".") and (match := _FILE.fullmatch(path.name)):
        files.setdefault(match["clip"], {})[folder.name, match["kind"], int(match["speaker"])] = path
        videos[match["clip"]] = match["video"]
  if not files:
    raise InputError(root, "", "no conversation", "<video id>_sub_video_<n>_speaker{1,2}.{wav,npz} in train, val or test")
  clips, unusable = [], {}
  for name, found in sorted(files.items()):
    splits = sorted({split for split, _, _ in found})
    missing = [f"{name}_speaker{n}.{kind}" for kind in ("wav", "npz") for n in (1, 2) if (splits[0], kind, n) not in found]
    if len(splits) > 1:
      unusable[name] = f"in several splits: {', '.join(splits)}"
    elif missing:
      unusable[name] = f"files are missing: {', '.join(missing)}"
    elif splits == ["ood"]:
      unusable[name] = "of split ood: there are no films of it"
    else:
      pick = lambda kind: (found[splits[0], kind, 1], found[splits[0], kind, 2])
      clips.append(Clip(name, splits[0], videos[name], pick("wav"), pick("npz")))
  if not (root / "val").is_dir():
    trained = sorted({clip.video for clip in clips if clip.split == "train"}, key=lambda video: (zlib.crc32(video.encode()), video))
    held_out = set(trained[: max(1, round(0.1 * len(trained)))] if len(trained) > 1 else ())
    clips = [dataclasses.replace(c, split="val") if c.split == "train" and c.video in held_out else c for c in clips]
  return clips, unusable


def list_videos(root: pathlib.Path) -> tuple[dict[str, pathlib.Path], dict[str, str]]:
  """Videos by id, and ids that several files have, with the reasons.

  Raises:
    InputError: there is no video.
  """
  if not root.is_dir():
    raise InputError(root, "", "no such folder", f"videos: <video id>{{{','.join(SUFFIXES)}}}")
  found: dict[str, list[pathlib.Path]] = {}
  for path in sorted(root.rglob("*")):
    if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
      found.setdefault(path.stem, []).append(path)
  if not found:
    raise InputError(root, "", "no video", f"videos: <video id>{{{','.join(SUFFIXES)}}}")
  several = {name: f"two videos of this name: {paths[0]} and {paths[1]}" for name, paths in found.items() if len(paths) > 1}
  return {name: paths[0] for name, paths in found.items() if name not in several}, several
