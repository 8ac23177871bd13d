"""Results that commands wrote, read back and made into HTML: tables, violated checks, a few figures above all others."""

import html
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import markdown_it

from rsatalker_jax.evaluation import ablations
from rsatalker_jax.evaluation.ablations import GENERATED, TRACKED
from rsatalker_jax.evaluation.dynamics_metrics import COLLAPSE_ALARM
from rsatalker_jax.files import read_text

# Figures that stand above the tables: row (None: the run's own), score, title with unit, format.
_FIGURES = (
    ("motion", None, "mse/expression", "error of expression, MSE ×10", lambda x: f"{10 * x:.4f}"),
    ("motion", None, "fd/expression", "Fréchet distance of expression", lambda x: f"{x:.4f}"),
    ("motion", None, "lips/correlation", "lips' opening while speaking, r", lambda x: f"{x:.3f}"),
    ("motion", None, "relation/accuracy", "relation that a probe recognises", lambda x: f"{100 * x:.0f} %"),
    ("frames", GENERATED, "psnr", "frames, generated motion, PSNR", lambda x: f"{x:.2f} dB"),
    ("frames", TRACKED, "psnr", "frames, tracked motion, PSNR", lambda x: f"{x:.2f} dB"),
)
_TABLE = '<div class="scroll" role="region" aria-label="Table" tabindex="0"><table>'


def read_results(workdir: str | os.PathLike) -> dict[str, Any] | None:
  """The results of a run on the split test, with the text of results.md as "markdown"; None where there are none.

  Raises:
    InputError: they are damaged, or of another version of the metrics than this one.
  """
  folder = pathlib.Path(workdir) / "evaluation"
  if not (folder / "results.json").exists():
    return None
  return {**ablations.read_results(workdir), "markdown": read_text(folder / "results.md", "results as Markdown")}


def to_html(markdown: str) -> str:
  """Markdown as HTML: tables can be scrolled sideways, and of what it holds nothing is obeyed, HTML, links and pictures."""
  renderer = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table")
  renderer.disable(["link", "image", "autolink", "reference"])
  page = renderer.render(markdown)
  return page.replace("<table>", _TABLE).replace("</table>", "</table></div>")


def draw_figures(results: Mapping[str, Any]) -> str:
  """The few figures above all others, of those that the results have; mean over seeds."""
  cells = [
      f"<div><dd>{value}</dd><dt>{html.escape(title)}</dt></div>"
      for (_, _, _, title, _), value in zip(_FIGURES, _figures(results))
      if value is not None
  ]
  return f'<dl class="figures">{"".join(cells)}</dl>' if cells else ""


def draw_comparison(results: Mapping[str, Mapping[str, Any]]) -> str:
  """A table of the same figures for several runs, by title."""
  head = "".join(f"<th>{html.escape(title)}</th>" for _, _, _, title, _ in _FIGURES)
  lines = []
  for name, found in results.items():
    cells = "".join(f"<td>{'–' if value is None else value}</td>" for value in _figures(found))
    lines.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
  return f"{_TABLE}<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _figures(results: Mapping[str, Any]) -> list[str | None]:
  """`_FIGURES` of a run, each None where its results have it not."""
  values = []
  for section, row, score, _, show in _FIGURES:
    rows = results.get(section, {})
    if row is None:  # Results without a title have the truth's row, and then the run's own.
      others = [name for name in rows if name != "true motion"]
      row = results.get("title") if results.get("title") in others else next(iter(others), None)
    value = _mean(rows.get(row), score)
    values.append(None if value is None else show(value))
  return values


def _mean(row: Any, score: str) -> float | None:
  """The mean over seeds of a score; a row is a list of scores, one for each seed, or one alone."""
  seeds = row if isinstance(row, list) else [row]
  values = [seed[score] for seed in seeds if isinstance(seed, dict) and isinstance(seed.get(score), (int, float))]
  return sum(values) / len(values) if values and all(map(math.isfinite, values)) else None


def draw_checks(checks: Mapping[str, Sequence[str] | None]) -> str:
  """A banner of all violated checks and of all motion that has collapsed, by run; quiet where there is none of either, and
  plain where a run's results have no checks."""
  said = [(run, line) for run, lines in checks.items() for line in lines or ()]
  collapsed = [(run, line) for run, line in said if line.startswith(COLLAPSE_ALARM)]
  violated = [(run, line) for run, line in said if not line.startswith(COLLAPSE_ALARM)]
  unknown = [run for run, lines in checks.items() if lines is None]
  parts = []
  count = lambda found, what: f"{len(found)} {what}{'s' * (len(found) > 1)}"
  for found, heading in (
      (violated, f"{count(violated, 'check')} violated: do not trust these tables"),
      (collapsed, f"{count(collapsed, 'alarm')}: motion that hardly moves"),
  ):
    if found:
      lines = "".join(
          f"<li><b>{html.escape(run)}</b>: {html.escape(line.removeprefix(COLLAPSE_ALARM))}</li>" for run, line in found
      )
      parts.append(f'<div class="alarm" role="alert"><h3>{heading}</h3><ul>{lines}</ul></div>')
  if not said and len(unknown) < len(checks):
    parts.append('<p class="fine">All checks of the results hold.</p>')
  if unknown:
    parts.append(f'<p class="note">Without checks in their results: {html.escape(", ".join(unknown))}.</p>')
  return "".join(parts)
