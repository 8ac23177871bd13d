"""DualTalk's file layout: two people's voices and their tracked FLAME motion, clip by clip.

    <root>/{train,val,test,ood}/<video id>_sub_video_<n>[_<ccc>]_speaker{1,2}.{wav,npz}
    <root>/relations.csv          ours, since DualTalk has no labels; see `relations`

An npz holds float32 arrays at 25 fps: shape (T,100), tex (T,50), exp (T,50), pose (T,6), cam (T,3), light (T,9,3);
pose[:, :3] turns the head, pose[:, 3:] the jaw, both axis-angle. A motion here is [exp, jaw, head], (T, 56). DualTalk's
expressions are FLAME 2020's; files written here say in a key `basis` what theirs are (`types.BASES`).
"""

import collections.abc
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from rsatalker_jax.data import arkit
from rsatalker_jax.data.audio import SILENCE_PEAK, read_wav, wav_frames
from rsatalker_jax.data.relations import describe_disagreements, merge_labels, read_labels
from rsatalker_jax.data.tracks import SHAPE_DIM, read_motion, read_track
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file
from rsatalker_jax.social.relation import parse_relation
from rsatalker_jax.types import BASES, FPS, MOTION_DIM, MOTION_GROUPS, SAMPLES_PER_FRAME, Conversation, Motion

SPLITS = ("train", "val", "test", "ood")
MAX_FRAME_DIFFERENCE = 12  # Half a second. DualTalk's own files differ from their audio by 1 or 2 frames.
_SESSION = re.compile(r"V\d+_S\d+(?=_I\d)")  # Of Seamless Interaction's names.
_WAV_NAME = re.compile(r"(?P<conversation>.+)_speaker(?P<speaker>[12])\.(wav|npz)")


def write_motion(path: str | os.PathLike, motion: Motion, *, basis: str) -> None:
  """Writes (T, 56) as an npz with all of DualTalk's keys (those that motion does not hold are zero) and `basis`, whole or not
  at all.

  The same motion gives the same bytes.
  """
  if basis not in BASES:
    raise ValueError(f"{basis=} must be one of {', '.join(BASES)}")
  motion = np.asarray(motion, np.float32)
  if motion.ndim != 2 or motion.shape[1] != MOTION_DIM:
    raise ValueError(f"{motion.shape=} must be (T, {MOTION_DIM})")
  frames = len(motion)
  arrays = dict(
      shape=np.zeros((frames, SHAPE_DIM), np.float32),
      tex=np.zeros((frames, 50), np.float32),
      exp=motion[:, MOTION_GROUPS["expression"]],
      pose=np.concatenate([motion[:, MOTION_GROUPS["pose"]], motion[:, MOTION_GROUPS["jaw"]]], axis=1),
      cam=np.zeros((frames, 3), np.float32),
      light=np.zeros((frames, 9, 3), np.float32),
      basis=np.array(basis),
  )
  with whole_file(path) as file:
    np.savez_compressed(file, **arrays)


def check_motion_file(flag: str, path: str | os.PathLike, basis: str | None) -> None:
  """Whether `write_motion_file` can write a motion of a basis under a name; None where the basis is not known yet.

  Raises:
    InputError: names the flag and what it can.
  """
  suffix = pathlib.Path(path).suffix
  if suffix not in (".npz", *arkit.SUFFIXES):
    raise InputError(flag, "", path, f"a name that ends in .npz, {' or '.join(arkit.SUFFIXES)}")
  if suffix != ".npz" and basis not in (None, "arkit"):
    expected = "a name that ends in .npz, which `python -m rsatalker_jax convert` turns into ARKit's shapes"
    raise InputError(flag, "", f"{path} for expressions of {basis}", expected)


def write_motion_file(path: str | os.PathLike, motion: Motion, *, basis: str) -> list[str]:
  """Writes a motion as the name asks: .npz as `write_motion`, .csv and .json as `arkit.write_arkit`; returns what is lost.

  Raises:
    InputError: see `check_motion_file`.
  """
  check_motion_file("motion", path, basis)
  if pathlib.Path(path).suffix != ".npz":
    return arkit.write_arkit(path, motion)
  write_motion(path, motion, basis=basis)
  return []


@dataclasses.dataclass(frozen=True)
class _Clip:
  """One direction of one conversation, checked: `frames` is what both voices and both motions cover."""

  name: str
  files: dict[str, pathlib.Path]  # wav_a, npz_a, wav_b, npz_b
  frames: int
  relation: Int[np.ndarray, "2"]


class DualTalkSource(collections.abc.Sequence):
  """Random access to conversations; an item is read from disk each time it is asked for.

  Attributes:
    skipped: (file or conversation, reason) of what is not served.
    trimmed: (item, frames) of what lost frames because voices and motions differ in length; each by 12 frames at most.
    unlabelled: conversations that have the default relation, since no table names them.
    contradictions: a line of what annotators say differently of these conversations; "" if nothing.
    basis: of all motions' expressions, one of `types.BASES`.
    sign: by what that is known.
    notes: what the wav reader changed (rates, channels) in the items read so far.
    passes_over_damage: whether who goes through all items meets no error where one is damaged.
  """

  passes_over_damage = False

  def __init__(
      self,
      clips: list[_Clip],
      skipped: list[tuple[str, str]],
      trimmed: list[tuple[str, int]],
      unlabelled: list[str],
      basis: str,
      sign: str,
      contradictions: str = "",
  ):
    self.basis, self.sign = basis, sign
    self._clips, self.skipped, self.trimmed, self.unlabelled = clips, skipped, trimmed, unlabelled
    self.contradictions = contradictions
    self.notes: list[str] = []

  def __len__(self) -> int:
    return len(self._clips)

  def __getitem__(self, index: int) -> Conversation:  # ty: ignore[incompatible-method-override]
    clip = self._clips[index]
    wav_a, notes_a = read_wav(clip.files["wav_a"], allow_silent=True)
    wav_b, notes_b = read_wav(clip.files["wav_b"], allow_silent=True)
    self.notes += [note for note in notes_a + notes_b if note not in self.notes]
    _check_somebody_speaks(clip.files["wav_a"], wav_a, wav_b)
    return Conversation(
        name=clip.name,
        speech_a=fit_voice(wav_a, clip.frames * SAMPLES_PER_FRAME),
        motion_a=read_motion(clip.files["npz_a"])[: clip.frames],
        speech_b=fit_voice(wav_b, clip.frames * SAMPLES_PER_FRAME),
        motion_b=read_motion(clip.files["npz_b"])[: clip.frames],
        relation=clip.relation,
        basis=self.basis,
    )

  @property
  def names(self) -> list[str]:
    """Of the items, in order."""
    return [clip.name for clip in self._clips]

  def report(self, title: str) -> list[str]:
    """Lines: the summary, the basis, what has the default relation, and each skipped clip with its reason."""
    lines = [f"{title}: {self.summary()}", f"  expressions are {self.basis}'s, by {self.sign}"]
    if self.unlabelled:
      lines.append(f"  {len(self.unlabelled)} conversations without a label have the default relation")
    if self.contradictions:
      lines.append(f"  {self.contradictions}")
    return lines + [f"  skipped {name}: {reason}" for name, reason in self.skipped]

  def motions(self) -> Iterator[tuple[Motion, Motion, Int[np.ndarray, "2"]]]:
    """(motion of A, motion of B, relation) of each item in order, without reading its voices."""
    motion = functools.lru_cache(2)(read_motion)  # Both directions of a conversation follow each other.
    for clip in self._clips:
      yield motion(clip.files["npz_a"])[: clip.frames], motion(clip.files["npz_b"])[: clip.frames], clip.relation

  def summary(self) -> str:
    """One line: how much is served, trimmed and skipped."""
    frames = sum(clip.frames for clip in self._clips)
    return (
        f"{len(self)} clips, {frames / FPS / 60:.1f} minutes of motion; "
        f"{len(self.trimmed)} trimmed by {sum(n for _, n in self.trimmed)} frames in all, {len(self.skipped)} skipped"
    )


@dataclasses.dataclass(frozen=True)
class ClipFiles:
  """Where a conversation's files are, or would be.

  Attributes:
    name: of the conversation, without the speaker.
    split: the folder it is in; "" where there are no folders of splits.
    wavs, npzs: voices and motions of speakers 1 and 2.
  """

  name: str
  split: str
  wavs: tuple[pathlib.Path, pathlib.Path]
  npzs: tuple[pathlib.Path, pathlib.Path]

  @property
  def missing(self) -> list[str]:
    """Names of the files that do not exist."""
    return [path.name for path in (*self.wavs, *self.npzs) if not path.is_file()]


def find_clips(root: str | os.PathLike) -> list[ClipFiles]:
  """All conversations below `root`, whole or not, split by split and by name; of `root` itself where it has no folders of splits.

  Raises:
    InputError: there is none.
  """
  root = pathlib.Path(root)
  clips = []
  for split in [split for split in SPLITS if (root / split).is_dir()] or [""] * root.is_dir():
    folder = root / split
    for name in sorted(_conversations(folder)):
      wavs, npzs = ((folder / f"{name}_speaker1.{kind}", folder / f"{name}_speaker2.{kind}") for kind in ("wav", "npz"))
      clips.append(ClipFiles(name, split, wavs, npzs))
  if not clips:
    found = "no conversation" if root.is_dir() else "no such folder"
    raise InputError(root, "", found, "clips <id>_speaker{1,2}.{wav,npz}, in folders train, val, test, ood or none")
  return clips


def present_splits(root: str | os.PathLike) -> list[str]:
  """The splits that `load_dualtalk` can serve from `root`, validation clips held out of `train` among them."""
  root = pathlib.Path(root)
  present = {split for split in SPLITS if (root / split).is_dir()}
  if "train" in present and len({recording_of(name) for name in _conversations(root / "train")}) > 1:
    present.add("val")
  return [split for split in SPLITS if split in present]


def load_dualtalk(
    root: str | os.PathLike,
    split: str,
    *,
    relations: str | os.PathLike | None = None,
    default_relation: str | None = None,
    val_fraction: float = 0.1,
) -> DualTalkSource:
  """Finds the conversations of one split, both directions of each.

  Where there is no `val` folder, whole videos are held out of `train` for it, the same ones each time; the test split
  is never touched for this.

  Args:
    root: the folder with the split folders.
    split: train, val, test or ood.
    relations: the labels table; by default `<root>/relations.csv` if that exists.
    default_relation: the relation of conversations that the table does not name; None makes them an error.
    val_fraction: part of the training videos to hold out, if there is no `val` folder.

  Raises:
    InputError: no such split, damaged files, lengths that differ by more than 12 frames, motions of different bases, a
      bad labels table.
  """
  root = pathlib.Path(root)
  if split not in SPLITS:
    raise InputError("split", "", f"{split!r}", " | ".join(SPLITS))
  held_out = split == "val" and not (root / "val").is_dir()
  folder = root / ("train" if held_out else split)
  if not folder.is_dir():
    raise InputError(folder, "", "no such folder", f"{split} clips <id>_speaker{{1,2}}.{{wav,npz}}")

  names = sorted(_conversations(folder))
  if split in ("train", "val") and not (root / "val").is_dir():
    validation = held_out_names(names, val_fraction)
    names = [name for name in names if (name in validation) == held_out]
  if relations is None and (root / "relations.csv").is_file():
    relations = root / "relations.csv"
  known = {name for part in SPLITS if (root / part).is_dir() for name in _conversations(root / part)}
  labels, disagreements = merge_labels(read_labels(relations, known) if relations is not None else [])
  contradictions = describe_disagreements([one for one in disagreements if one.conversation in names])
  default = None if default_relation is None else parse_relation(default_relation, source="data.default_relation")

  others = _other_names(folder)
  clips, skipped, trimmed, unlabelled = [], [], [], []
  bases: dict[str, tuple[pathlib.Path, str]] = {}  # Of each basis the first file, and its sign.
  for name in names:
    files = {(kind, n): folder / f"{name}_speaker{n}.{kind}" for kind in ("wav", "npz") for n in (1, 2)}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
      there = [other for other in others if other.lower() in map(str.lower, missing)]
      skipped.append((name, f"no {', '.join(missing)}" + f" (there is {', '.join(there)})" * bool(there)))
      continue
    relation = labels.get(name, default)
    if relation is None:
      where = relations if relations is not None else root / "relations.csv"
      raise InputError(where, "conversation", f"no line for {name!r}", "its relation, or a default relation")
    if name not in labels:
      unlabelled.append(name)
    lengths = {}
    for path in (files["npz", 1], files["npz", 2]):
      track = read_track(path, shape=False)
      lengths[path] = len(track.motion)
      bases.setdefault(track.basis, (path, track.sign))
      if len(bases) > 1:
        first, (example, sign) = next(iter(bases.items()))
        found, expected = f"{track.basis}, by {track.sign}", f"{first}, as {example} has it by {sign}: one basis for all"
        raise InputError(path, "basis", found, expected)
    frames = _common_frames([files["wav", 1], files["wav", 2]], lengths)
    for person in (1, 2):
      ours = {f"{kind}_b": files[kind, person] for kind in ("wav", "npz")}
      theirs = {f"{kind}_a": files[kind, 3 - person] for kind in ("wav", "npz")}
      item = f"{name}_speaker{person}"
      clips.append(_Clip(item, ours | theirs, frames.kept, relation))
      if frames.lost:
        trimmed.append((item, frames.lost))
  incomplete = f"{len(skipped)} incomplete, as " * bool(skipped)
  if others:
    names = ", ".join(others[:5]) + ", ..." * (len(others) > 5)
    skipped.append((f"{len(others)} other {'files' if len(others) > 1 else 'file'} in {folder}", f"no clip's name: {names}"))
  if not clips:
    why = f" ({incomplete}{skipped[0][0]}: {skipped[0][1]})" if skipped else ""
    raise InputError(folder, "", f"no complete conversation{why}", "clips <id>_speaker{1,2}.{wav,npz}")
  ((basis, (_, sign)),) = bases.items()
  return DualTalkSource(clips, skipped, trimmed, unlabelled, basis, sign, contradictions)


def read_conversation(
    speech_a: str | os.PathLike,
    motion_a: str | os.PathLike,
    speech_b: str | os.PathLike,
    relation: str,
) -> tuple[Conversation, list[str]]:
  """Reads the inputs of one generation, single files anywhere: two voices, A's motion and the relation.

  One of the two may be silent: who only listens.

  Returns:
    The conversation, its arrays cut to the length that all three cover and `motion_b` None, and the notes of what
    was changed on the way.

  Raises:
    InputError: anything wrong with a file, two silent voices, an unknown relation, or lengths that differ by more than 12
      frames.
  """
  label = parse_relation(relation, source="--relation")
  wav_a, notes_a = read_wav(speech_a, allow_silent=True)
  wav_b, notes_b = read_wav(speech_b, allow_silent=True)
  _check_somebody_speaks(speech_a, wav_a, wav_b)
  track = read_track(motion_a, shape=False)
  frames = _common_frames([pathlib.Path(speech_a), pathlib.Path(speech_b)], {pathlib.Path(motion_a): len(track.motion)})
  notes = [*notes_a, *notes_b, *track.notes, f"{motion_a}: expressions are {track.basis}'s, by {track.sign}"]
  if frames.lost:
    notes.append(f"{motion_a}: voices and motion differ in length; {frames.lost} frames trimmed")
  conversation = Conversation(
      name=pathlib.Path(speech_b).stem,
      speech_a=fit_voice(wav_a, frames.kept * SAMPLES_PER_FRAME),
      motion_a=track.motion[: frames.kept],
      speech_b=fit_voice(wav_b, frames.kept * SAMPLES_PER_FRAME),
      motion_b=None,
      relation=label,
      basis=track.basis,
  )
  return conversation, notes


def _check_somebody_speaks(path: str | os.PathLike, wav_a: np.ndarray, wav_b: np.ndarray) -> None:
  if max(np.abs(wav_a).max(), np.abs(wav_b).max()) < SILENCE_PEAK:
    raise InputError(path, "peak", "silence in both voices", "at least one person who speaks")


@dataclasses.dataclass(frozen=True)
class _Frames:
  kept: int  # Frames that every file covers.
  lost: int  # Frames that the longest file has beyond those.


def _common_frames(wavs: list[pathlib.Path], motions: dict[pathlib.Path, int]) -> _Frames:
  """The frames that voices and motions, of these lengths, share. A voice may end within its last frame (DualTalk's do)."""
  lengths = {path: int(np.ceil(wav_frames(path, FPS))) for path in wavs} | motions
  kept, longest = min(lengths.values()), max(lengths.values())
  if longest - kept > MAX_FRAME_DIFFERENCE:
    shortest = min(lengths, key=lengths.__getitem__)
    other = max(lengths, key=lengths.__getitem__)
    raise InputError(
        shortest, "frames", kept, f"{longest}, as in {other.name} (up to {MAX_FRAME_DIFFERENCE} fewer are trimmed)"
    )
  return _Frames(kept, longest - kept)


def fit_voice(wav: np.ndarray, samples: int) -> np.ndarray:
  """Cuts, or pads with silence by less than one frame, to whole frames."""
  return np.pad(wav[:samples], (0, max(0, samples - len(wav))))


def _conversations(folder: pathlib.Path) -> set[str]:
  matches = (_WAV_NAME.fullmatch(name) for name in _visible_names(folder))
  return {match["conversation"] for match in matches if match}


def _other_names(folder: pathlib.Path) -> list[str]:
  return [name for name in _visible_names(folder) if not _WAV_NAME.fullmatch(name)]


def _visible_names(folder: pathlib.Path) -> list[str]:
  """Without macOS's companions of files on other disks, ._<name>, and what else is hidden."""
  return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def recording_of(conversation: str) -> str:
  """What clips share people and room by: DualTalk's video, or Seamless Interaction's session."""
  session = _SESSION.match(conversation)
  return session[0] if session else conversation.split("_sub_video_", maxsplit=1)[0]


def held_out_names(names: list[str], fraction: float = 0.1) -> set[str]:
  """Conversations for validation, whole videos or sessions, the same ones each time."""
  videos = sorted({recording_of(name) for name in names})
  count = min(max(1, round(fraction * len(videos))), len(videos) - 1)
  order = np.random.default_rng(0).permutation(len(videos))
  chosen = {videos[i] for i in order[: max(count, 0)]}
  return {name for name in names if recording_of(name) in chosen}
