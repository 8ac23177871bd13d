"""Results of a run as JSON, for programs, as Markdown tables, for people, and as LaTeX tables, for papers."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np

from rsatalker_jax.files import whole_file

# Of the definitions behind all scores: raised when one changes, so that results of different ones do not share a table.
METRICS_VERSION = 2

# A score, or one for each seed; text as it is; None: there is none.
Cell = float | Sequence[float] | str | None


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table.

  Attributes:
    title: what is in it.
    group: the title that it shares with its neighbours, as FD in Table 1.
    better: which of its values is best, and set in bold: the lowest, the highest or, of "", none.
  """

  title: str
  group: str = ""
  better: Literal["↓", "↑", ""] = ""


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of scores.

  Attributes:
    columns: of all rows.
    rows: by name, a cell for each column. Of several seeds the mean is shown, with half the distance from the lowest to
      the highest.
    unranked: names of rows that are not compared with the others: the truth itself.
    below: rows below a rule, which are never compared with those above it.
    rule: what the rule says.
  """

  columns: Sequence[Column]
  rows: Mapping[str, Sequence[Cell]]
  unranked: Sequence[str] = ()
  below: Mapping[str, Sequence[Cell]] = dataclasses.field(default_factory=dict)
  rule: str = ""

  def __post_init__(self):
    for name, cells in [*self.rows.items(), *self.below.items()]:
      if len(cells) != len(self.columns):
        raise ValueError(f"row {name!r} has {len(cells)} values for {len(self.columns)} columns")

  def markdown(self) -> str:
    """The table in Markdown; what it cannot draw, groups of columns and a rule, in words."""
    titles = [" ".join(filter(None, (column.group, column.title, column.better))) for column in self.columns]
    lines = ["| | " + " | ".join(titles) + " |", "|---" + "|---:" * len(titles) + "|"]
    best = self._best()
    for name, cells in self.rows.items():
      shown = [f"**{_format(cell)}**" if (name, i) in best else _format(cell) for i, cell in enumerate(cells)]
      lines.append(f"| {name} | " + " | ".join(shown) + " |")
    if self.below:
      lines.append(f"| *{self.rule}* |" + " |" * len(titles))
    lines += [f"| {name} | " + " | ".join(map(_format, cells)) + " |" for name, cells in self.below.items()]
    return "\n".join(lines) + "\n"

  def latex(self) -> str:
    """A tabular with the rules of booktabs."""
    groups, start = [], 0  # Neighbours of one group share a title.
    while start < len(self.columns):
      end = start + 1
      while end < len(self.columns) and self.columns[start].group and self.columns[end].group == self.columns[start].group:
        end += 1
      groups.append((start, end))
      start = end
    lines = [r"\begin{tabular}{l" + "r" * len(self.columns) + "}", r"\toprule"]
    arrow = lambda column: f" {column.better}" * bool(column.better)
    if any(column.group for column in self.columns):
      heads = [rf"\multicolumn{{{end - start}}}{{c}}{{{_escape(self.columns[start].group + arrow(self.columns[start]))}}}"
               for start, end in groups]
      lines.append(" & ".join(["", *heads]) + r" \\")
      lines += [rf"\cmidrule(lr){{{start + 2}-{end + 1}}}" for start, end in groups if end > start + 1]
      titles = [_escape(column.title) for column in self.columns]
    else:
      titles = [_escape(column.title + arrow(column)) for column in self.columns]
    lines += [" & ".join(["Methods", *titles]) + r" \\", r"\midrule"]
    best = self._best()
    for name, cells in self.rows.items():
      shown = [_escape(_format(cell)) for cell in cells]
      shown = [rf"\textbf{{{text}}}" if (name, i) in best else text for i, text in enumerate(shown)]
      lines.append(" & ".join([_escape(name), *shown]) + r" \\")
    if self.below:
      lines += [r"\midrule", rf"\multicolumn{{{len(self.columns) + 1}}}{{l}}{{\emph{{{_escape(self.rule)}}}}} \\"]
    lines += [" & ".join([_escape(name), *(_escape(_format(cell)) for cell in cells)]) + r" \\" for name, cells in self.below.items()]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

  def _best(self) -> set[tuple[str, int]]:
    """Row and column of the cells in bold: the best, where there is something to choose from."""
    best = set()
    for i, column in enumerate(self.columns):
      values = {name: _number(cells[i]) for name, cells in self.rows.items() if name not in self.unranked}
      values = {name: value for name, value in values.items() if value is not None}
      if column.better and len(values) > 1:
        top = (min if column.better == "↓" else max)(values.values())
        best |= {(name, i) for name, value in values.items() if value == top}
    return best


def markdown_table(columns: Sequence[str], rows: Mapping[str, Sequence[Cell]]) -> str:
  """A table without ranks: a row per name; numbers to four significant digits, None as a dash.

  Raises:
    ValueError: if a row does not have a value for each column.
  """
  return Table([Column(title) for title in columns], rows).markdown()


def _number(cell: Cell) -> float | None:
  if cell is None or isinstance(cell, str) or np.size(cell) == 0:
    return None
  value = float(np.mean(cell))
  return value if math.isfinite(value) else None


def _format(cell: Cell) -> str:
  if isinstance(cell, str):
    return cell
  if cell is None or np.size(cell) == 0:
    return "–"
  if np.size(cell) == 1:
    return f"{np.ravel(cell)[0]:.4g}"
  return f"{np.mean(cell):.3g} ± {np.ptp(cell) / 2:.1g}"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "†": r"$^\dagger$", "−": "$-$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$", "×": r"$\times$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$", "≤": r"$\le$", "°": r"$^\circ$", "¹": "$^1$", "²": "$^2$", "³": "$^3$",
}  # fmt: skip


def _escape(text: str) -> str:
  return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)


def write_results(
    folder: str | os.PathLike, results: Mapping[str, Any], markdown: str, latex: str, *, name: str = "results", **others: bytes
) -> None:
  """Writes <name>.json, <name>.md and <name>.tex together: none gets its name before all are written.

  Args:
    folder: where.
    results: for the JSON. Numbers that JSON does not have, infinite or none, are null there.
    markdown, latex: the other two files.
    name: of the files.
    others: contents of further files, by name.

  Raises:
    InputError: a file cannot be written; those of before stay as they were.
  """
  folder = pathlib.Path(folder)
  written = json.dumps(_finite(results), indent=2, allow_nan=False) + "\n"
  texts = {f"{name}.json": written, f"{name}.md": markdown, f"{name}.tex": latex}
  with contextlib.ExitStack() as stack:
    for file_name, content in [*((file_name, text.encode()) for file_name, text in texts.items()), *others.items()]:
      file: BinaryIO = stack.enter_context(whole_file(folder / file_name))
      file.write(content)
      file.flush()  # A full disk is noticed here, where no file has its name yet.


def _finite(value: Any) -> Any:
  """The same for JSON: numbers of numpy as Python's, those that are not finite as None."""
  if isinstance(value, Mapping):
    return {str(key): _finite(entry) for key, entry in value.items()}
  if isinstance(value, (list, tuple, np.ndarray)):
    return [_finite(entry) for entry in value]
  if isinstance(value, np.generic):
    value = value.item()
  return None if isinstance(value, float) and not math.isfinite(value) else value
