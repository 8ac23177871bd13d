"""What `python -m rsatalker_jax dataset` does: statistics of a folder of conversations, and new splits of it."""

import collections
import functools
import json
import pathlib
import sys

import tqdm

from rsatalker_jax.data import splits as splitting
from rsatalker_jax.data.audio import wav_frames
from rsatalker_jax.data.dualtalk import find_clips
from rsatalker_jax.data.people import read_people
from rsatalker_jax.data.relations import describe_disagreements, merge_labels, read_labels
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation.dataset_statistics import measure_dataset, statistics_tables
from rsatalker_jax.files import whole_file
from rsatalker_jax.types import FPS


def describe_dataset(
    *,
    root: str,
    relations: str | None = None,
    people: str | None = None,
    split: str | None = None,
    fractions: str = "train=0.7,val=0.1,test=0.1,ood=0.1",
    seed: int = 0,
    out: str | None = None,
    strict: bool = False,
) -> None:
  """Prints statistics of a folder of conversations, or of new splits of it that it writes first.

  Args:
    root: folder in DualTalk's layout, or of its files without folders of splits.
    relations, people: tables; `<root>/relations.csv` and `<root>/people.csv` if they exist.
    split: "person" or "conversation": make new splits of the complete conversations; see `data.splits.make_splits`.
    fractions, seed: of the new splits.
    out: folder for dataset.md and dataset.json; with `split` the new folder of conversations, which also has splits.json.
    strict: recordings or people that stand in two splits are an error, once everything is written.

  Raises:
    InputError: for every mistake in the inputs.
  """
  if split is not None and out is None:
    raise InputError("--out", "", "none", "with --split, the folder to make")
  shares = splitting.parse_fractions(fractions)
  clips = find_clips(root)
  names = {clip.name for clip in clips}
  relations, people = _find_table(root, relations, "relations.csv"), _find_table(root, people, "people.csv")
  labels = read_labels(relations, names) if relations is not None else []
  speakers = read_people(people, names) if people is not None else {}
  merged, disagreements = merge_labels(labels)
  if disagreements:
    print(describe_disagreements(disagreements))
  if split is not None:
    clips = _split(clips, speakers, split, shares, seed, out, relations, people)
  progress = functools.partial(tqdm.tqdm, desc="conversations", unit="clip", mininterval=0.5 if sys.stderr.isatty() else 15)
  statistics = measure_dataset(clips, merged, speakers, progress=progress)
  tables = statistics_tables(statistics)
  print(tables)
  if out is not None:
    for name, text in (("dataset.md", tables), ("dataset.json", json.dumps(statistics, indent=2, allow_nan=False))):
      with whole_file(pathlib.Path(out) / name) as file:
        file.write((text + "\n").encode())
    print(f"wrote {pathlib.Path(out) / 'dataset.md'} and dataset.json")
  if strict and (leaks := statistics["leaks"]):
    first = splitting.Leak(leaks[0]["kind"], leaks[0]["name"], tuple(leaks[0]["splits"]))
    raise InputError(out if split is not None else root, "splits", f"{len(leaks)} leaks, as {first}", "nobody in two splits")


def _find_table(root: str, given: str | None, name: str) -> str | None:
  if given is not None:
    return given
  path = pathlib.Path(root) / name
  return str(path) if path.is_file() else None


def _split(clips, speakers, kind, shares, seed, out, relations, people):
  """Writes the new folder; the clips that it has."""
  counts = collections.Counter(clip.name for clip in clips)
  if twice := [name for name, count in counts.items() if count > 1]:
    raise InputError("--root", "", f"{twice[0]} in two splits", "each conversation once")
  whole = [clip for clip in clips if not clip.missing]
  if not whole:
    raise InputError("--root", "", "no complete conversation", "voices and motions of both speakers")
  if len(whole) < len(clips):
    print(f"left out: {len(clips) - len(whole)} incomplete conversations, as {next(clip.name for clip in clips if clip.missing)}")
  seconds = {clip.name: min(wav_frames(path, FPS) for path in clip.wavs) / FPS for clip in whole}
  made = splitting.make_splits(seconds, speakers, shares, by=kind, seed=seed)
  total = sum(seconds.values())
  reached = {split: sum(seconds[name] for name in made if made[name] == split) / total for split in shares}
  unknown = sum(2 - len(speakers[name].names) if name in speakers else 2 for name in seconds)
  about = {"by": kind, "seed": seed, "fractions": shares, "reached": reached, "unknown_speakers": unknown}
  splitting.write_splits(out, whole, made, about=about, relations=relations, people=people)
  print(f"wrote {out}: {', '.join(f'{split} {100 * part:.1f} % (of {100 * shares[split]:g} %)' for split, part in reached.items())}")
  if unknown:
    print(f"{unknown} of {2 * len(seconds)} speakers are not known: they are kept together by their recording alone")
  return find_clips(out)
