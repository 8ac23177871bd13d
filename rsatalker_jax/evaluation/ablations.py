"""The paper's ablations (Tables 4 and 5) out of the scores of finished runs, with what their differences are worth.

Nothing is computed again: <run>/evaluation/results.json of each variant is read (`eval.py`), and what is written is of the
same test split.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import bootstrap
from rsatalker_jax.evaluation.tables import METRICS_VERSION, Cell, Column, Table, write_results
from rsatalker_jax.files import read_text

# Rows of the frames of a run.
GENERATED, TRACKED = "generated motion", "tracked motion"
_BLOCK_SECONDS = 2  # Frames this near each other are drawn together: over two seconds poses are forgotten.
_FPS = 25

_IMAGE = {
    "l1": Column("L1", better="↓"),
    "psnr": Column("PSNR (dB)", better="↑"),
    "ssim": Column("SSIM", better="↑"),
    "lpips_alex": Column("LPIPS", better="↓"),
}
# What stands in for the columns that people score in the paper: of each, what can be measured.
_AUTOMATIC = {
    "lips/correlation": Column("lips, r", "Realism", "↑"),
    "lve/speaking": Column("LVE (mm)", "Realism", "↓"),
    "fd/expression": Column("FD EXP", "Realism", "↓"),
    "jerk/expression": Column("jerk EXP, of the truth's", "Fluency"),
    "variation/expression": Column("variation EXP, of the truth's", "Fluency"),
    "relation/accuracy": Column("relation named", "SRA", "↑"),
    "relation/told_shown": Column("told another: shows that", "SRA", "↑"),
}

Results = Mapping[str, Any]


def folder_of(workdir: str | os.PathLike, variant: str, seed: int) -> pathlib.Path:
  """The run of a variant of the run `workdir`: what asks after offsets alone lies apart from the paper's ablations."""
  return _group_of(workdir, variant) / f"seed_{seed}"


def _group_of(workdir: str | os.PathLike, variant: str) -> pathlib.Path:
  return pathlib.Path(workdir) / ("offsets" if asks_after_offsets(variant) else "ablations") / variant


def asks_after_offsets(variant: str) -> bool:
  """Whether a variant is about offsets alone: what counts is then seen in frames."""
  return "offsets" in variant or "degraded" in variant


def is_scored(folder: str | os.PathLike) -> bool:
  """Whether a run has scores by these metrics that are newer than its last training."""
  results = _results_of(pathlib.Path(folder))
  if not results.is_file() or _read(results).get("metrics_version") != METRICS_VERSION:
    return False
  trained = [path.stat().st_mtime for path in pathlib.Path(folder).glob("*/metrics.jsonl")]
  return results.stat().st_mtime > max(trained, default=0.0)


def read_results(folder: str | os.PathLike) -> Results:
  """Scores of a run on the split test.

  Raises:
    InputError: there are none, or they are of other versions of the metrics.
  """
  path = _results_of(pathlib.Path(folder))
  results = _read(path)
  if (version := results.get("metrics_version")) != METRICS_VERSION:
    raise InputError(path, "metrics_version", version, f"{METRICS_VERSION}: score the run again (eval.py)")
  return results


def _results_of(folder: pathlib.Path) -> pathlib.Path:
  return folder / "evaluation" / "results.json"


def _read(path: pathlib.Path) -> Results:
  try:
    results = json.loads(read_text(path, "scores that eval.py has written"))
  except json.JSONDecodeError as error:
    raise InputError(path, f"line {error.lineno}", "broken JSON", "scores that eval.py has written") from error
  if not isinstance(results, dict):
    raise InputError(path, "", f"a {type(results).__name__}", "scores that eval.py has written")
  return results


def write_tables(workdir: str | os.PathLike, variants: Sequence[str]) -> str:
  """Writes <workdir>/ablations/results.{json,md,tex} and returns the Markdown.

  Args:
    workdir: the full run. Its variants lie in `folder_of`; those that were not trained are left out and named.
    variants: their order in the tables; "full" is the run itself and further seeds of it.

  Raises:
    InputError: see `read_results`; or the run itself has no scores.
  """
  runs = {variant: _runs_of(workdir, variant) for variant in variants}
  missing = [variant for variant, seeds in runs.items() if not seeds]
  runs = {variant: seeds for variant, seeds in runs.items() if seeds}
  titles = {variant: _title(variant, seeds) for variant, seeds in runs.items()}
  whole = {variant: seeds for variant, seeds in runs.items() if not asks_after_offsets(variant)}
  motion = {titles[variant]: _cells(seeds, _AUTOMATIC, _own_motion) for variant, seeds in whole.items()}
  frames = {titles[variant]: _cells(seeds, _IMAGE, lambda results: _frames(results, GENERATED)) for variant, seeds in whole.items()}
  differences = {
      titles[variant] + of: cells
      for row, of in ((GENERATED, ""), (TRACKED, ", tracked motion"))
      for variant, seeds in whole.items()
      if variant != "full" and (cells := compare_frames(runs["full"], seeds, row))
  }
  with_offsets = {
      f"{titles[variant]}, {row}": _cells(seeds, _IMAGE, lambda results: _frames(results, row))
      for row in (GENERATED, TRACKED)
      for variant, seeds in runs.items()
      if variant not in whole
  }
  offsets = _offset_rows(runs, titles)
  tables = {
      "Ablations, what can be measured of Table 4": Table(list(_AUTOMATIC.values()), motion),
      "Ablations, frames in generated motion (Table 5)": Table(list(_IMAGE.values()), frames),
      "How much better than the full pipeline, frame by frame, with 95 % intervals": difference_table(differences),
      "Frames with offsets": Table(list(_IMAGE.values()), with_offsets, unranked=tuple(with_offsets)),
      "What offsets change, frame by frame, with 95 % intervals": difference_table(offsets),
  }
  tables = {title: table for title, table in tables.items() if table.rows}
  markdown = "\n".join(f"{title}:\n\n{table.markdown()}" for title, table in tables.items())
  markdown += _reading(runs, titles, differences)
  if missing:
    markdown += f"\nNot trained: {', '.join(missing)}.\n"
  latex = "\n".join(f"% {title}\n{table.latex()}" for title, table in tables.items())
  results = {
      "metrics_version": METRICS_VERSION,
      "titles": titles,
      "seeds": {variant: sorted(seeds) for variant, seeds in runs.items()},
      "motion": motion,
      "frames": frames,
      "differences": differences,
      "frames_with_offsets": with_offsets,
      "offsets": offsets,
      "missing": missing,
  }
  write_results(pathlib.Path(workdir) / "ablations", results, markdown, latex)
  return markdown


def _runs_of(workdir: str | os.PathLike, variant: str) -> dict[int, Results]:
  """The scores of a variant by seed."""
  folders = sorted(_group_of(workdir, variant).glob("seed_*/"))
  found = {int(folder.name.removeprefix("seed_")): read_results(folder) for folder in folders if _results_of(folder).exists()}
  if variant == "full":
    own = read_results(workdir)
    found = {own["seed"]: own} | found
  return found


def _title(variant: str, seeds: Mapping[int, Results]) -> str:
  return "full pipeline" if variant == "full" else next(iter(seeds.values()))["title"]


def _own_motion(results: Results) -> Mapping[str, float]:
  """Scores of the run's own motion among those of all rows."""
  rows = results.get("motion", {})
  own = [row for title, row in rows.items() if title in (results["title"], f"{results['title']}, this run")]
  return own[0][0] if own else {}


def _frames(results: Results, row: str) -> Mapping[str, float]:
  return results.get("frames", {}).get(row, {})


def _cells(seeds: Mapping[int, Results], columns: Mapping[str, Column], of) -> list[Cell]:
  scores = [of(results) for results in seeds.values()]
  return [[row[name] for row in scores if row.get(name) is not None] for name in columns]


def compare_frames(
    first: Mapping[int, Results], second: Mapping[int, Results], row: str, other: str | None = None
) -> dict[str, tuple[float, float, float]]:
  """What the second is better by, frame by frame: mean and 95 % interval of each image metric (signs: more is better).

  The same frames of the same films are subtracted, seed by seed, and their differences averaged over seeds that both have;
  then blocks of frames are drawn (`bootstrap.block_bootstrap`). So the interval says how much other frames of such films would
  change the difference, not how much other seeds would.

  Args:
    first, second: scores by seed.
    row: of frames that are compared.
    other: the row of the first, if another.

  Returns:
    By metric; empty where nothing is shared.
  """
  shared = sorted(first.keys() & second.keys())
  per_seed = [_paired_frames(first[seed], second[seed], other or row, row) for seed in shared]
  per_seed = [values for values in per_seed if values]
  if not per_seed:
    return {}
  found = {}
  for name, column in _IMAGE.items():
    if name not in per_seed[0]:
      continue
    differences = np.mean([values[name] for values in per_seed], axis=0)
    sign = -1.0 if column.better == "↓" else 1.0
    found[name] = bootstrap.block_bootstrap(sign * differences, block=per_seed[0]["block"])
  return found


def _paired_frames(first: Results, second: Results, first_row: str, second_row: str) -> dict[str, Any]:
  """Differences of frames that both have, second minus first, film after film; and how many frames a block holds."""
  parts: dict[str, list] = {}
  spacing = []
  for film, rows in first.get("frames_each", {}).items():
    ours, theirs = rows.get(first_row), second.get("frames_each", {}).get(film, {}).get(second_row)
    if ours is None or theirs is None:
      continue
    frames, mine, yours = np.intersect1d(ours["frame"], theirs["frame"], return_indices=True)
    if len(frames) < 2:
      continue
    spacing.append(float(np.median(np.diff(frames))))
    for name in sorted(_IMAGE.keys() & ours.keys() & theirs.keys()):
      parts.setdefault(name, []).append(np.asarray(theirs[name], float)[yours] - np.asarray(ours[name], float)[mine])
  if not spacing:
    return {}
  return {name: np.concatenate(values) for name, values in parts.items()} | {
      "block": max(1, round(_BLOCK_SECONDS * _FPS / np.mean(spacing)))
  }


def _offset_rows(runs: Mapping[str, Mapping[int, Results]], titles: Mapping[str, str]) -> dict[str, dict]:
  """Offsets against none, in exact and in worse tracking, in both kinds of motion."""
  rows = {}
  kinds = ("offsets", "motion_offsets", "timeless_offsets")
  pairs = {"no_offsets": kinds, "degraded": tuple(f"degraded_{kind}" for kind in kinds)}
  for base, others in pairs.items():
    for other in others:
      for row in (GENERATED, TRACKED):
        if base in runs and other in runs and (cells := compare_frames(runs[base], runs[other], row)):
          rows[f"{titles[other]}, {row}"] = cells
  return rows


def difference_table(rows: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Table:
  """What `compare_frames` found, by title: means with their intervals; metrics that none has are left out."""
  show = lambda cell: f"{cell[0]:+.3g} [{cell[1]:+.3g}, {cell[2]:+.3g}]" if cell else None
  measured = {name: column for name, column in _IMAGE.items() if any(name in cells for cells in rows.values())}
  columns = [Column(column.title) for column in measured.values()]
  return Table(columns, {title: [show(cells.get(name)) for name in measured] for title, cells in rows.items()})


def _reading(
    runs: Mapping[str, Mapping[int, Results]],
    titles: Mapping[str, str],
    differences: Mapping[str, Mapping[str, Sequence[float]]],
) -> str:
  """What the paper's Table 5 claims, the full pipeline best in PSNR and LPIPS, row by row in words."""
  lines = []
  for variant in ("no_relation", "no_motion_stage", "no_avatar_stage"):
    cells = differences.get(titles.get(variant, ""))
    if not cells:
      continue
    verdicts = []
    for name in ("psnr", "lpips_alex"):
      _, low, high = cells[name]
      verdict = "worse, as in the paper" if high < 0 else "BETTER, against the paper" if low > 0 else "not distinguishable"
      verdicts.append(f"{_IMAGE[name].title} {verdict}")
    lines.append(f"- {titles[variant]}: {'; '.join(verdicts)} (than the full pipeline; seeds: {len(runs[variant])}).")
  return "\n" + "\n".join(lines) + "\n" if lines else ""
