"""Results of a run as JSON, for programs, and as Markdown tables, for people."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rsatalker_jax.files import whole_file


def markdown_table(columns: Sequence[str], rows: Mapping[str, Sequence[float | str | None]]) -> str:
  """A table with a row per name; numbers to four significant digits, None as a dash.

  Raises:
    ValueError: if a row does not have a value for each column.
  """
  lines = ["| | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
  for name, values in rows.items():
    if len(values) != len(columns):
      raise ValueError(f"row {name!r} has {len(values)} values for {len(columns)} columns")
    lines.append(f"| {name} | " + " | ".join(_format(value) for value in values) + " |")
  return "\n".join(lines) + "\n"


def _format(value: float | str | None) -> str:
  if value is None:
    return "–"
  return value if isinstance(value, str) else f"{value:.4g}"


def write_results(folder: str | os.PathLike, results: Mapping[str, Any], markdown: str) -> None:
  """Writes results.json and results.md, each whole or not at all."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, text in (("results.json", json.dumps(results, indent=2) + "\n"), ("results.md", markdown)):
    with whole_file(folder / name) as file:
      file.write(text.encode("utf-8"))
