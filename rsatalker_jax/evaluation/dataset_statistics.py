"""What a folder of conversations holds, split by split: how much, who, how related, who speaks, how loud, how they move.

A conversation counts once here, not once for each direction. What is incomplete or damaged is counted and listed, not measured.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from rsatalker_jax.data.audio import SILENCE_PEAK, read_wav
from rsatalker_jax.data.dualtalk import ClipFiles
from rsatalker_jax.data.people import Speakers
from rsatalker_jax.data.splits import Leak, check_leaks
from rsatalker_jax.data.tracks import Track, read_track
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation.lip_metrics import speaking_frames
from rsatalker_jax.evaluation.turn_taking import find_turns, stretches
from rsatalker_jax.social.relation import BLOOD, EQUAL, UNKNOWN_NAME
from rsatalker_jax.types import BASES, FPS, MOTION_GROUPS, SAMPLES_PER_FRAME

ALL = "all"
# Every cell of the relations table, and what nobody has labelled.
_CELLS = [f"{blood},{equal}" for blood in (*BLOOD[::-1], UNKNOWN_NAME) for equal in (*EQUAL[::-1], UNKNOWN_NAME)]
_UNLABELLED = "no label"
_FULL_SCALE = 1 - 2**-15
_LISTED = 20  # Of what is missing, in Markdown; JSON has all.


@dataclasses.dataclass
class _Sums:
  """Of the motion of one group: enough for its range, mean and standard deviation."""

  count: int = 0
  total: float = 0.0
  squares: float = 0.0
  least: float = np.inf
  most: float = -np.inf

  def add(self, values: np.ndarray) -> None:
    values = np.asarray(values, np.float64)
    self.count += values.size
    self.total += float(values.sum())
    self.squares += float((values**2).sum())
    self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))

  def describe(self) -> dict[str, float] | None:
    if not self.count:
      return None
    mean = self.total / self.count
    spread = float(np.sqrt(max(self.squares / self.count - mean**2, 0.0)))
    return {"min": self.least, "mean": mean, "std": spread, "max": self.most}


class _Part:
  """What is summed up over a split, or over all."""

  def __init__(self):
    self.clips = 0
    self.people: set[str] = set()
    self.unknown_people = 0
    self.relations = dict.fromkeys([*_CELLS, _UNLABELLED], 0)
    self.seconds: list[float] = []
    self.frames = {"speaker1": 0, "speaker2": 0, "both": 0, "neither": 0, "all": 0}
    self.turns: list[float] = []
    self.levels: list[float] = []
    self.clipped, self.silent = 0, 0
    self.motion = {group: _Sums() for group in MOTION_GROUPS}
    self.bases = dict.fromkeys(BASES, 0)

  def add(self, relation: str, speakers: Speakers, voices: Sequence[np.ndarray], tracks: Sequence[Track]) -> None:
    frames = min(*(-(-len(voice) // SAMPLES_PER_FRAME) for voice in voices), *(len(track.motion) for track in tracks))
    self.clips += 1
    self.people |= speakers.names
    self.unknown_people += 2 - len(speakers.names)
    self.relations[relation] += 1
    self.seconds.append(frames / FPS)
    voices = [voice[: frames * SAMPLES_PER_FRAME] for voice in voices]
    first, second = (speaking_frames(voice, frames) for voice in voices)
    counts = {"speaker1": first, "speaker2": second, "both": first & second, "neither": ~(first | second)}
    for key, mask in counts.items():
      self.frames[key] += int(mask.sum())
    self.frames["all"] += frames
    for voice, speaks in zip(voices, (first, second)):
      self.turns += [(stop - start) / FPS for start, stop in stretches(find_turns(voice, frames))]
      peak = float(np.abs(voice).max())
      if peak < SILENCE_PEAK:
        self.silent += 1
        continue
      self.clipped += peak >= _FULL_SCALE
      samples = np.pad(voice, (0, frames * SAMPLES_PER_FRAME - len(voice))).reshape(frames, SAMPLES_PER_FRAME)[speaks]
      self.levels.append(float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)))))
    for track in tracks:
      self.bases[track.basis] += 1
      for group, columns in MOTION_GROUPS.items():
        self.motion[group].add(track.motion[:frames, columns])

  def describe(self) -> dict[str, Any]:
    seconds, total = float(np.sum(self.seconds)), max(self.frames["all"], 1)
    levels = np.percentile(self.levels, [5, 50, 95]).tolist() if self.levels else None
    return {
        "conversations": self.clips,
        "minutes": seconds / 60,
        "people": len(self.people),
        "unknown_people": self.unknown_people,
        "relations": {cell: count for cell, count in self.relations.items() if count},
        "seconds": {"min": min(self.seconds), "median": float(np.median(self.seconds)), "max": max(self.seconds)} if self.seconds else None,
        "speech": {key: self.frames[key] / total for key in ("speaker1", "speaker2", "both", "neither")},
        "turns_per_minute": 60 * len(self.turns) / seconds if seconds else 0.0,
        "turn_seconds": float(np.median(self.turns)) if self.turns else None,
        "level_db": dict(zip(("p5", "median", "p95"), levels)) if levels else None,
        "clipped_voices": self.clipped,
        "silent_voices": self.silent,
        "bases": {basis: count for basis, count in self.bases.items() if count},
        "motion": {group: sums.describe() for group, sums in self.motion.items()},
    }


def measure_dataset(
    clips: Sequence[ClipFiles],
    relations: Mapping[str, Int[np.ndarray, "2"]],
    people: Mapping[str, Speakers],
    *,
    progress: Callable[[Iterable[ClipFiles]], Iterable[ClipFiles]] = iter,
) -> dict[str, Any]:
  """Statistics of conversations, as JSON has them.

  Args:
    clips: the conversations.
    relations, people: by conversation, as far as they are known.
    progress: goes through the clips, as a progress bar does.

  Returns:
    "splits": by split, and "all" where there are several: minutes; people who are known, and speakers who are not; relations by
    cell; lengths; shares of frames in which speaker 1 sounds, speaker 2, both and neither (within 30 dB of a voice's loud frames);
    turns (sound with pauses below 0.6 s) a minute and their median length; levels, RMS over the frames in which a voice sounds in
    dB of full scale; voices that reach full scale and such without any sound; motions by expression basis; ranges of the motion's groups.
    "incomplete", "damaged": lists of {"conversation", "split", "reason"}. "leaks": see `data.splits.check_leaks`.
  """
  parts = {split: _Part() for split in (*dict.fromkeys(clip.split for clip in clips), ALL)}
  incomplete, damaged = [], []
  for clip in progress(clips):
    place = {"conversation": clip.name, "split": clip.split}
    if clip.missing:
      incomplete.append(place | {"reason": f"no {', '.join(clip.missing)}"})
      continue
    try:
      voices = [read_wav(path, allow_silent=True)[0] for path in clip.wavs]
      tracks = [read_track(path, shape=False) for path in clip.npzs]
    except InputError as error:
      damaged.append(place | {"reason": str(error)})
      continue
    relation = _cell(relations[clip.name]) if clip.name in relations else _UNLABELLED
    for split in (clip.split, ALL):
      parts[split].add(relation, people.get(clip.name, Speakers("", "")), voices, tracks)
  if len(parts) == 2:
    del parts[ALL]
  leaks = check_leaks([(clip.name, clip.split) for clip in clips], people)
  return {
      "splits": {split: part.describe() for split, part in parts.items()},
      "incomplete": incomplete,
      "damaged": damaged,
      "leaks": [dataclasses.asdict(leak) | {"splits": list(leak.splits)} for leak in leaks],
  }


def _cell(relation: Int[np.ndarray, "2"]) -> str:
  blood, equal = (UNKNOWN_NAME if value < 0 else names[value] for value, names in zip(map(int, relation), (BLOOD, EQUAL)))
  return f"{blood},{equal}"


def statistics_tables(statistics: Mapping[str, Any]) -> str:
  """Markdown of what `measure_dataset` returns."""
  splits = statistics["splits"]
  header = ["", *(split or "(no split)" for split in splits)]
  lines = [f"| {' | '.join(header)} |", "|---|" + "--:|" * len(splits)]

  def row(title: str, value: Callable[[Mapping[str, Any]], str | None]) -> None:
    lines.append(f"| {title} | {' | '.join(value(part) or '–' for part in splits.values())} |")

  def numbers(key: str, form: str) -> Callable[[Mapping[str, Any]], str | None]:
    return lambda part: part[key] and " / ".join(format(value, form) for value in part[key].values())

  row("conversations", lambda part: f"{part['conversations']}")
  row("minutes", lambda part: f"{part['minutes']:.1f}")
  row("people known", lambda part: f"{part['people']}")
  row("speakers not known", lambda part: f"{part['unknown_people']}")
  row("length in s: min / median / max", numbers("seconds", ".1f"))
  row("sounding: speaker 1 / 2 / both / neither", lambda part: " / ".join(f"{100 * share:.0f} %" for share in part["speech"].values()))
  row("turns a minute", lambda part: f"{part['turns_per_minute']:.1f}")
  row("median turn in s", lambda part: part["turn_seconds"] and f"{part['turn_seconds']:.2f}")
  row("voices' level in dB: 5 % / median / 95 %", numbers("level_db", ".1f"))
  row("voices at full scale", lambda part: f"{part['clipped_voices']}")
  row("voices without sound", lambda part: f"{part['silent_voices']}")
  row("motions by basis", lambda part: ", ".join(f"{basis} {count}" for basis, count in part["bases"].items()))
  for group in MOTION_GROUPS:
    ranges = lambda part: part["motion"][group] and " / ".join(f"{value:.2f}" for value in part["motion"][group].values())
    row(f"{group}: min / mean / std / max", ranges)
  present = [cell for cell in (*_CELLS, _UNLABELLED) if any(cell in part["relations"] for part in splits.values())]
  for cell in present:
    row(cell, lambda part: f"{part['relations'].get(cell, 0)}")
  for kind in ("incomplete", "damaged"):
    if found := statistics[kind]:
      lines += ["", f"{len(found)} conversations are {kind}, and not in the table:", ""]
      lines += _shorten([f"- {one['split']}/{one['conversation']}: {one['reason']}".replace("- /", "- ") for one in found])
  if leaks := statistics["leaks"]:
    lines += ["", f"{len(leaks)} leaks between splits:", ""]
    lines += _shorten([f"- {Leak(leak['kind'], leak['name'], tuple(leak['splits']))}" for leak in leaks])
  else:
    lines += ["", "Nothing leaks between the splits, as far as recordings and people are known."]
  return "\n".join(lines)


def _shorten(lines: list[str]) -> list[str]:
  return lines[:_LISTED] + [f"- … and {len(lines) - _LISTED} more"] * (len(lines) > _LISTED)
