"""Conversations written in the project's own layout (`data.dualtalk`), so that everything else reads them without UniLS-Talk.

    <out>/{train,val,test,ood}/<conversation>_speaker{1,2}.{wav,npz}   16 kHz float32, flame2020
    <out>/relations.csv        as relationships.csv has them (annotator "relationships.csv"); others' lines stay
    <out>/people.csv           conversation,speaker1,speaker2
    <out>/conversations.csv    ids, split, frames, and what the tables say of each
    <out>/speech/<split>/<conversation>_speaker{1,2}.json              voice activity and transcript, where there are any
    <out>/video/<split>/<conversation>_speaker{1,2}.mp4                if asked for
    <out>/arrays/<split>/<conversation>_speaker{1,2}.npz               if asked for, at 30 Hz
    <out>/report.json
"""

import collections
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rsatalker_jax.data.audio import wav_frames, write_wav
from rsatalker_jax.data.csv_tables import read_table, write_table
from rsatalker_jax.data.dualtalk import write_motion
from rsatalker_jax.data.relations import RelationLabel, read_labels, write_relations
from rsatalker_jax.data.seamless.joining import DROPPED_NOTE, POSE_NOTE, Join, Joined, count_relations, split_people
from rsatalker_jax.data.seamless.names import Skip, describe_skips
from rsatalker_jax.data.seamless.recordings import write_part
from rsatalker_jax.data.seamless.talk import BASIS
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file
from rsatalker_jax.types import FPS

ANNOTATOR = "relationships.csv"
_PEOPLE = ("conversation", "speaker1", "speaker2")
_CONVERSATIONS = ("conversation", "split", "frames", "speaker1", "speaker2", "relationship_detail", "label", "official_split",
                  "ipc_a", "ipc_b", "interaction_type")  # fmt: skip


def write_conversations(
    join: Join,
    out: str | os.PathLike,
    *,
    videos: str = "none",
    arrays: Sequence[str] = (),
    progress: Callable[[Sequence[Joined]], Iterable[Joined]] = lambda conversations: conversations,
) -> dict[str, Any]:
  """Writes conversations, each file whole or not at all; those that are there already are left alone.

  A conversation that cannot be read is passed over, and its reason is in the report. The tables are written at the end, and
  also where the run is stopped; a later run, of the same or of other conversations, goes on with them.

  Args:
    join: the conversations.
    out: the folder.
    videos: "none", "copy", or "link" (files are linked, what lies in a shard is copied).
    arrays: keys of the official .npz to keep, "movement:is_valid" for example.
    progress: wraps the sequence of conversations.

  Returns:
    The report, as report.json has it.

  Raises:
    InputError: a file cannot be written, or a table of the folder is another.
  """
  out = pathlib.Path(out)
  known, labels = _read_tables(out)
  skipped = list(join.skipped)
  counts = collections.Counter(written=0, there=0)
  done: list[Joined] = []
  try:
    for joined in progress(join.conversations):
      if _is_complete(out, joined):
        counts["there"] += 1
      else:
        try:
          recordings = join.read(joined)
        except InputError as error:
          skipped.append(Skip(joined.name, "a recording that cannot be read", str(error)))
          continue
        for speaker, recording in enumerate(recordings, 1):
          write_motion(_path(out, joined, speaker, ".npz"), recording.motion, basis=BASIS)
          write_wav(_path(out, joined, speaker, ".wav"), recording.voice)
        counts["written"] += 1
      done.append(joined)
      skipped += _write_beside(join, joined, out, videos, arrays, counts)
  finally:
    _write_tables(out, done, known, labels)
    report = _make_report(join, done, counts, skipped)
    with whole_file(out / "report.json") as file:
      file.write((json.dumps(report, indent=2) + "\n").encode())
  return report


def describe_report(report: Mapping[str, Any]) -> list[str]:
  """The report as lines."""
  few = lambda counts: ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
  lengths, trimmed = report["seconds"], report["trimmed"]
  minutes = f"{lengths['all'] / 60:.1f} minutes of two people"
  extent = f"{lengths['shortest']:.1f} s to {lengths['longest']:.1f} s, half of them below {lengths['median']:.1f} s"
  lines = [
      f"{report['conversations']} conversations, {minutes}: {report['written']} written, {report['there']} there already",
      f"  by split: {few(report['splits'])}; {report['people']} people",
      f"  by relation: {few(report['relations'])}",
      f"  by relationship_detail: {few(report['details'])}",
      f"  lengths: {extent}; {trimmed['conversations']} trimmed by {trimmed['frames']} frames in all",
      f"  beside them: {few(report['beside'])}",
      f"  basis {report['basis']}; {report['pose']}",
      f"  {report['dropped']}",
  ]
  if report["not_chosen"]:
    lines.append(f"  {report['not_chosen']} conversations were not asked for")
  lines += [f"  {note}" for note in report["notes"]]
  return lines + [f"  skipped {line}" for line in describe_skips(Skip(**skip) for skip in report["skipped"])]


def _path(out: pathlib.Path, joined: Joined, speaker: int, suffix: str, kind: str = "") -> pathlib.Path:
  return out / kind / joined.split / f"{joined.name}_speaker{speaker}{suffix}"


def _is_complete(out: pathlib.Path, joined: Joined) -> bool:
  """Whether all four files are there: a file with its name is whole."""
  wavs = [_path(out, joined, speaker, ".wav") for speaker in (1, 2)]
  if not all(path.is_file() and path.with_suffix(".npz").is_file() for path in wavs):
    return False
  try:
    return all(wav_frames(path, FPS) == joined.frames for path in wavs)
  except InputError:  # Damaged since then.
    return False


def _write_beside(
    join: Join, joined: Joined, out: pathlib.Path, videos: str, arrays: Sequence[str], counts: collections.Counter
) -> list[Skip]:
  """Speech, and what else is asked for, of the official recordings; what of it is damaged."""
  skipped: list[Skip] = []
  if join.recordings is None:
    return skipped
  if not joined.pair.whole:  # Where in the recording a piece lies, nothing says.
    counts["pieces, whose speech and video are not theirs alone"] += 1
    return skipped
  for speaker, file_id in enumerate(joined.pair.ids, 1):
    path = _path(out, joined, speaker, ".json", "speech")
    if not path.is_file():
      speech = join.recordings.read_speech(file_id)
      skipped += speech.skipped
      content = {key: value for key in ("vad", "transcript") if (value := getattr(speech, key)) is not None}
      if content:
        with whole_file(path) as file:
          file.write(json.dumps({"id": file_id.name} | content, ensure_ascii=False).encode())
    counts["recordings with speech"] += path.is_file()
    place = join.recordings.find(file_id, "mp4") if videos != "none" else None
    path = _path(out, joined, speaker, ".mp4", "video")
    if place is not None:
      try:
        if not path.is_file():
          write_part(place, path, link=videos == "link")
        counts["recordings with video"] += 1
      except InputError as error:
        if error.file not in (place, place.path):
          raise
        skipped.append(Skip(file_id.name, "a video that cannot be read", str(error)))
    path = _path(out, joined, speaker, ".npz", "arrays")
    if arrays and not path.is_file():
      values, damaged = join.recordings.read_arrays(file_id, arrays)
      skipped += damaged
      if values:
        with whole_file(path) as file:
          np.savez_compressed(file, **values)
    if arrays:
      counts["recordings with arrays"] += path.is_file()
  return skipped


def _read_tables(out: pathlib.Path) -> tuple[dict[str, dict[str, str]], list[RelationLabel]]:
  """What earlier runs, and people, have written: rows of conversations.csv by name, and all labels."""
  known, labels = {}, []
  if (out / "conversations.csv").is_file():
    known = {row["conversation"]: dict(row.values) for row in read_table(out / "conversations.csv", _CONVERSATIONS)}
  if (out / "relations.csv").is_file():
    labels = read_labels(out / "relations.csv")
  return known, labels


def _write_tables(
    out: pathlib.Path, done: Sequence[Joined], known: Mapping[str, Mapping[str, str]], labels: Sequence[RelationLabel]
) -> None:
  rows = dict(known)
  for joined in done:
    values = (joined.name, joined.split, str(joined.frames), *(file_id.speaker for file_id in joined.pair.ids), joined.detail, joined.label,
              joined.official_split, *(joined.prompt.get(key, "") for key in _CONVERSATIONS[-3:]))  # fmt: skip
    rows[joined.name] = dict(zip(_CONVERSATIONS, values, strict=True))
  names = {joined.name for joined in done}
  kept = [label for label in labels if label.annotator != ANNOTATOR or label.conversation not in names]
  ours = [RelationLabel(joined.name, joined.relation, ANNOTATOR) for joined in done]
  ordered = [rows[name] for name in sorted(rows)]
  write_table(out / "conversations.csv", _CONVERSATIONS, [[row[key] for key in _CONVERSATIONS] for row in ordered])
  write_table(out / "people.csv", _PEOPLE, [[row[key] for key in _PEOPLE] for row in ordered])
  write_relations(out / "relations.csv", sorted(kept + ours, key=lambda label: (label.conversation, label.annotator)))


def _make_report(join: Join, done: Sequence[Joined], counts: collections.Counter, skipped: Sequence[Skip]) -> dict[str, Any]:
  seconds = np.array([joined.frames for joined in done] or [0]) / FPS
  splits = split_people(done)
  return {
      "conversations": len(done),
      "written": counts.pop("written"),
      "there": counts.pop("there"),
      "splits": dict(collections.Counter(joined.split for joined in done)),
      "people": len(splits),
      "people_in_several_splits": {person: sorted(of) for person, of in sorted(splits.items()) if len(of) > 1},
      "relations": count_relations(done),
      "details": dict(collections.Counter(joined.detail or "not in relationships.csv" for joined in done).most_common()),
      "seconds": {"all": float(seconds.sum()), "shortest": float(seconds.min()), "median": float(np.median(seconds)),
                  "longest": float(seconds.max())},
      "trimmed": {"conversations": sum(joined.lost > 0 for joined in done), "frames": sum(joined.lost for joined in done)},
      "beside": dict(counts),
      "basis": BASIS,
      "pose": POSE_NOTE,
      "dropped": DROPPED_NOTE,
      "not_chosen": join.not_chosen,
      "notes": list(join.notes),
      "skipped_by_kind": dict(collections.Counter(skip.kind for skip in skipped).most_common()),
      "skipped": [skip._asdict() for skip in skipped],
  }
