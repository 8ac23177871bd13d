"""What `python -m rsatalker_jax triplets` does: DualTalk's conversations found in RealTalk's videos, written, and reported."""

import collections
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import markdown_it
import numpy as np
import tqdm

from rsatalker_jax.data.triplets.building import Options, build_triplets
from rsatalker_jax.data.triplets.sources import Sources
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file
from rsatalker_jax.media.video import write_video
from rsatalker_jax.types import FPS

# Of a record, what the report repeats.
_REPORTED = ("conversation", "status", "reason", "video", "first_frame", "frames", "start", "speed", "coherence", "rival", "agreement",
             "similarity", "left", "margin", "evidence")  # fmt: skip


def make_triplets(
    *,
    conversations: str,
    videos: str,
    out: str,
    boxes: str | None = None,
    tracks: str | None = None,
    masks: str | None = None,
    own_tracks: str | None = None,
    relations: str | None = None,
    size: str = "512x512",
    margin: float,
    search_all: bool = False,
    only_tracked: bool = False,
    jobs: int = 1,
) -> dict[str, Any]:
  """Builds the triplets; prints the report and writes it to `out` as report.txt, report.json and report.html.

  Args:
    conversations, videos, boxes, tracks, masks, own_tracks, relations: see `Sources`.
    out: the folder to write.
    size: of films, WIDTHxHEIGHT.
    margin, search_all, only_tracked: see `Options`.
    jobs: processes.

  Returns:
    What report.json holds.

  Raises:
    InputError: see `build_triplets`; or a flag's value is wrong, or nothing is matched.
  """
  given = {"--conversations": conversations, "--videos": videos, "--tracks": tracks, "--masks": masks, "--own_tracks": own_tracks}
  root = pathlib.Path(out)
  for flag, folder in given.items():
    if folder is not None and not pathlib.Path(folder).is_dir():
      raise InputError(flag, "", f"{folder}, which is no folder", "a folder")
    if folder is not None and root.resolve() == pathlib.Path(folder).resolve():
      raise InputError("--out", "", out, f"another folder than {flag}")
  to_path = lambda name: None if name is None else pathlib.Path(name)
  sources = Sources(pathlib.Path(conversations), pathlib.Path(videos), *map(to_path, (boxes, tracks, masks, own_tracks, relations)))
  options = Options(size=_parse_size(size), margin=margin, search_all=search_all, only_tracked=only_tracked)
  records = build_triplets(sources, root, options, write_video, jobs=jobs, progress=_progress)
  report = summarise(records)
  text = format_report(report)
  renderer = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table")
  page = f'<!DOCTYPE html><meta charset="utf-8"><title>Triplets</title><body style="font: 15px sans-serif; margin: 2em">{renderer.render(text)}'
  for name, content in (("report.json", json.dumps(report, indent=1) + "\n"), ("report.txt", text), ("report.html", page)):
    with whole_file(root / name) as file:
      file.write(content.encode())
  print(text)
  if not report["matched"]:
    raise InputError(out, "", f"no conversation matched of {len(records)}; see {root / 'report.txt'}", "conversations of these videos")
  return report


def _parse_size(text: str) -> tuple[int, int]:
  match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
  width, height = (int(match[1]), int(match[2])) if match else (0, 0)
  if not all(32 <= pixels <= 4096 and pixels % 2 == 0 for pixels in (width, height)):
    raise InputError("--size", "", repr(text), "WIDTHxHEIGHT, even numbers of 32 to 4096 pixels")
  return width, height


def _progress(items: Iterable, total: int, what: str) -> Iterable:
  return tqdm.tqdm(items, total=total, desc=what, file=sys.stderr)


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Counts, reasons and histograms of a build's records."""
  matched = [record for record in records if record["status"] == "matched"]
  kinds = collections.Counter(_kind(record["reason"]) for record in records if record["status"] != "matched")
  offsets = [1000 * (record["start"] - round(record["start"] * FPS) / FPS) for record in matched]
  return {
      "matched": len(matched),
      "refused": sum(record["status"] == "refused" for record in records),
      "skipped": sum(record["status"] == "skipped" for record in records),
      "films": sum(len(record["films"]) for record in matched),
      "frames": sum(record["frames"] for record in matched),
      "reasons": dict(kinds.most_common()),
      "offset_ms": _histogram(offsets, np.arange(-20, 21, 4)),
      "speed_percent": _histogram([100 * record["speed"] for record in matched], np.arange(-2.75, 2.76, 0.5)),
      "coherence": _histogram([record["coherence"] for record in matched], np.arange(0, 1.01, 0.1)),
      "conversations": [{key: record[key] for key in _REPORTED if key in record} for record in records],
  }


def _kind(reason: str) -> str:
  """What reasons have in common: of a file that is not as it should be what it should be, of others what stands before the colon."""
  _, expected, after = reason.rpartition(", expected ")
  return f"a file is not what it should be: {after}" if expected else reason.split(":", maxsplit=1)[0]


def _histogram(values: Sequence[float], edges: np.ndarray) -> list[tuple[float, float, int]]:
  """(from, to, how many); what lies beyond counts with the last."""
  counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
  return [(round(float(a), 4), round(float(b), 4), int(n)) for a, b, n in zip(edges, edges[1:], counts)]


def format_report(report: Mapping[str, Any]) -> str:
  """The report as Markdown, which reads well as it is."""
  lines = [
      "# Triplets",
      "",
      (
          f"{report['matched']} conversations matched, {report['refused']} refused, {report['skipped']} skipped; "
          f"{report['films']} films, {report['frames'] / FPS / 60:.1f} minutes."
      ),
  ]
  if report["reasons"]:
    lines += ["", "| conversations | why not |", "|---|---|", *(f"| {n} | {_cell(kind)} |" for kind, n in report["reasons"].items())]
  titles = {"offset_ms": "start beside the nearest frame, ms", "speed_percent": "speed beside the video's, %", "coherence": "coherence"}
  for key, title in titles.items():
    most = max((n for *_, n in report[key]), default=0)
    if most:
      bars = (f"| {a:g} to {b:g} | {n} | {'#' * round(40 * n / most)} |" for a, b, n in report[key])
      lines += ["", f"| {title} | | |", "|---|---|---|", *bars]
  lines += ["", "| conversation | | frame | coherence | elsewhere | left | evidence | why not |", "|---|---|---|---|---|---|---|---|"]
  for row in report["conversations"]:
    number = lambda key, form: format(row[key], form) if key in row else ""
    left = f"speaker {row['left']}" if row.get("left") else ""
    cells = [row["conversation"], row["status"], number("first_frame", "d"), number("coherence", ".3f"), number("rival", ".3f"), left,
             number("margin", ".1f"), row["reason"]]  # fmt: skip
    lines.append("| " + " | ".join(map(_cell, cells)) + " |")
  return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
  return text.replace("|", "\\|").replace("\n", " ")
