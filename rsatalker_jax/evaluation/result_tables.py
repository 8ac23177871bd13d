"""Tables of scores by name: which columns they have, in which units, and how they are to be read."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rsatalker_jax.evaluation import motion_metrics, published, relation_test
from rsatalker_jax.evaluation.tables import Cell, Column, Table
from rsatalker_jax.types import MOTION_GROUPS

Rows = Mapping[str, Sequence[Mapping[str, float]]]  # Scores by name, a list with one for each seed.

_GROUP_NAMES = {"expression": "EXP", "jaw": "JAW", "pose": "POSE"}
_METRIC_NAMES = {
    "fd": "FD", "p_fd": "P-FD", "mse": "MSE", "mse_speaking": "MSE speaking", "mse_listening": "MSE listening",
    "sid": "SID", "rpcc": "rPCC", "sid_per_clip": "SID per clip",
    "sid_per_clip_swapped": "swapped SID per clip", "variation": "variation", "jerk": "jerk",
}  # fmt: skip
_BETTER = dict.fromkeys(("fd", "p_fd", "mse", "mse_speaking", "mse_listening", "rpcc"), "↓")
_IMAGE_COLUMNS = {
    "l1": Column("L1", better="↓"),
    "psnr": Column("PSNR (dB)", better="↑"),
    "psnr_per_channel": Column("PSNR per channel (dB)", better="↑"),
    "ssim": Column("SSIM", better="↑"),
    "lpips_alex": Column("LPIPS Alex", better="↓"),
    "lpips_vgg": Column("LPIPS VGG", better="↓"),
}
_KINDS = ("speaking", "listening")


# --- Motion


def motion_table(rows: Rows, *, with_published: bool = False) -> Table:
  """The paper's Table 1: FD, P-FD and MSE, with the published rows below a rule if they are asked for; † marks those of
  them that no motion can reach (`published.is_possible`)."""
  columns = _group_columns("fd", "p_fd", "mse")
  mark = lambda scores: "" if published.is_possible(scores) else " †"
  below = {title + mark(scores): {name: f"{scores[name]:.2f}" for name in columns} for title, scores in published.MOTION.items()}
  return _seeds_table(columns, rows, below=below if with_published else {}, rule=published.MOTION_DATA)


def kind_error_table(rows: Rows) -> Table:
  """MSE of the frames in which the person generated speaks, and of those in which they listen."""
  return _seeds_table(_group_columns(*(f"mse_{kind}" for kind in _KINDS)), rows)


def diversity_table(rows: Rows, unranked: Sequence[str] = ()) -> Table:
  """SID and rPCC in the scales of the published tables; `unranked` names the truth and what is no generator."""
  return _seeds_table(_group_columns("sid", "rpcc"), rows, unranked=unranked)


def clip_diversity_table(rows: Rows) -> Table:
  """SID with k-means fitted to each clip, in both orders."""
  return _seeds_table(_group_columns("sid_per_clip", "sid_per_clip_swapped"), rows)


def deviation_table(rows: Rows) -> Table:
  """Lip-vertex error, and how far upper face, jaw and head move more or less than the truth's; speaking and listening apart."""
  units = {"lve": "LVE (mm)", "fdd": "FDD (mm)", "jdd": "JDD (°)", "pdd": "PDD (°)"}
  columns = {f"{name}/{kind}": Column(kind, title, "↓") for name, title in units.items() for kind in _KINDS}
  return _seeds_table(columns, rows)


def liveliness_table(rows: Rows) -> Table:
  """How much and how smoothly motion moves, and the habits of head and lids: what is like the truth's is good."""
  columns = _group_columns("variation", "jerk")
  columns |= {"head/speed": Column("speed (°/s)", "head")}
  columns |= {f"head/{axis}": Column(f"{axis} (°)", "head") for axis in ("pitch", "yaw", "tilt")}
  columns |= {"blinks/rate": Column("a minute", "blinks"), "blinks/duration": Column("length (s)", "blinks")}
  return _seeds_table(columns, rows)


def backchannel_table(rows: Rows) -> Table:
  """Nods, and smiles where the head's basis names them, at the ends of the partner's phrases."""
  columns = {}
  for gesture in ("nod", "smile"):
    name = f"backchannel/{gesture}_"
    columns |= {f"{name}answered": Column("after", gesture), f"{name}before": Column("before", gesture)}
    columns |= {f"{name}delay": Column("delay (s)", gesture), f"{name}distance": Column("distance (s)", gesture, "↓")}
  return _seeds_table(columns, rows)


def lip_table(rows: Rows, unranked: Sequence[str] = ()) -> Table:
  """Lips of the person generated; bilabials only where their times are known."""
  columns = {
      "lips/correlation": Column("opening while speaking, r", better="↑"),
      "lips/pooled_correlation": Column("all clips pooled, r", better="↑"),
      "lips/false_closures": Column("closed in error", better="↓"),
      "lips/bilabials": Column("bilabials closed", better="↑"),
  }
  columns |= {f"lips/bilabials_{phone}": Column(phone, better="↑") for phone in "PBM"}
  return _seeds_table(columns, rows, unranked=unranked)


def relation_table(rows: Rows, unranked: Sequence[str] = ()) -> Table:
  """What the relation probe names, as shares of the clips."""
  columns = {
      "relation/accuracy": Column("named right", better="↑"),
      "relation/pieces": Column("in 4 s", better="↑"),
      "relation/told_shown": Column("told another: shows that", better="↑"),
      "relation/told_wrong": Column("… shows the true one", better="↓"),
  }
  return _seeds_table(columns, rows, unranked=unranked)


def relation_test_table(result: Mapping[str, Mapping[str, Any]]) -> Table:
  """What it is worth to be told the relation (`relation_test.RelationTest.result`)."""
  names = {"relation/misfit": "misfit of the true relation"}
  rows = {}
  for score, values in result.items():
    column = _group_columns(score.split("/")[0]).get(score)
    scale = motion_metrics.table_value(score, 1.0)
    title = names.get(score) or (f"{column.group} {column.title}" if column else score)
    cells = [scale * values[told] for told in relation_test.TOLD]
    for more, less in relation_test.DIFFERENCES:
      mean, low, high = (scale * value for value in values[f"{more} - {less}"])
      cells.append(f"{mean:+.3g} [{low:+.3g}, {high:+.3g}]")
    rows[title] = cells
  titles = [f"told {told}" for told in relation_test.TOLD] + [f"{more} − {less}" for more, less in relation_test.DIFFERENCES]
  return Table([Column(title) for title in titles], rows)


def minute_table(minutes: Sequence[Mapping[str, float]]) -> Table:
  """The error of each minute of a long conversation, in one go and clip by clip."""
  columns, rows = {}, {}
  for prefix, group in (("", "in one go"), ("pieces/", "clip by clip")):
    for name, column in _group_columns("mse").items():
      columns[prefix + name] = Column(f"MSE {column.title}", group)
  for number, scores in enumerate(minutes, 1):
    rows[f"minute {number}"] = [motion_metrics.table_value(name.removeprefix("pieces/"), scores[name]) for name in columns]
  return Table(list(columns.values()), rows)


def _group_columns(*metrics: str) -> dict[str, Column]:
  """Columns of metrics that are taken per group: {"fd/jaw": FD, JAW ×10³}."""
  columns = {}
  for metric in metrics:
    for group in MOTION_GROUPS:
      scale = motion_metrics.TABLE_SCALES.get(metric, {}).get(group, 1.0)
      power = "" if scale == 1 else f" ×10{'¹²³'[round(np.log10(scale)) - 1]}"
      columns[f"{metric}/{group}"] = Column(f"{_GROUP_NAMES[group]}{power}", _METRIC_NAMES.get(metric, metric), _BETTER.get(metric, ""))
  return columns


def _seeds_table(
    columns: Mapping[str, Column],
    rows: Rows,
    *,
    unranked: Sequence[str] = (),
    below: Mapping[str, Mapping[str, Cell]] | None = None,
    rule: str = "",
) -> Table:
  """A table of scores, in the units of the published tables.

  Args:
    columns: by score; those that no row has are left out.
    rows: scores by name, one for each seed.
    unranked, rule: see `Table`.
    below: cells of the rows below the rule, by score.
  """
  columns = {name: column for name, column in columns.items() if any(name in seed for row in rows.values() for seed in row)}
  cell = lambda name, seeds: [motion_metrics.table_value(name, scores[name]) for scores in seeds if name in scores]
  cells = {row: [cell(name, seeds) for name in columns] for row, seeds in rows.items()}
  beneath = {title: [scores[name] for name in columns] for title, scores in (below or {}).items()}
  return Table(list(columns.values()), cells, unranked, beneath, rule)


# --- Frames


def image_table(
    rows: Mapping[str, Mapping[str, float]], *, unranked: Sequence[str] = (), with_published: bool = False
) -> Table:
  """The paper's Table 2: L1, PSNR, SSIM and LPIPS, a column for each that was computed; below a rule the published rows."""
  names = [name for name in _IMAGE_COLUMNS if all(name in scores for scores in rows.values())]
  shown = lambda scores, name: f"{scores[name]:.4f}" if name in scores else None
  below = {title: [shown(scores, name) for name in names] for title, scores in published.IMAGES.items()}
  cells = {row: [scores[name] for name in names] for row, scores in rows.items()}
  return Table([_IMAGE_COLUMNS[name] for name in names], cells, unranked, below if with_published else {}, published.IMAGE_DATA)


def film_table(films: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
  """PSNR of each film, a column for each row of its scores; dashes where a film has no such row, as of a method that has learnt
  another person."""
  titles = list(dict.fromkeys(title for rows in films.values() for title in rows))
  rows = {film: [rows[title]["psnr"] if title in rows else None for title in titles] for film, rows in films.items()}
  return Table([Column(title) for title in titles], rows)


# --- What it took


def usage_table(usage: Mapping[str, Mapping]) -> Table:
  """Time, memory and parameters of each stage; dashes where there is no ledger of it."""
  rows = {}
  for stage, entry in usage.items():
    seconds, peak = entry.get("seconds"), entry.get("peak_memory_bytes")
    groups = ", ".join(f"{name} {count:,}" for name, count in entry["parameters"].items())
    rows[stage] = [
        f"{entry['steps']:,}", None if seconds is None else f"{seconds / 60:.1f}", None if peak is None else f"{peak / 1e9:.2f}", groups
    ]  # fmt: skip
  return Table([Column(title) for title in ("steps", "time (min)", "peak memory (GB)", "parameters")], rows)
