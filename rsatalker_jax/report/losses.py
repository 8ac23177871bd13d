"""Loss curves: what a stage wrote to metrics.jsonl while it trained, a chart for each number."""

import html
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_text
from rsatalker_jax.report.charts import Line, Panel, draw_figure, draw_legend

# How a stage ran, and no term of its loss.
_NOT_SHOWN = {"step", "steps_per_second", "data_wait", "intersections", "overflow"}
_HELD_OUT = "val/"
_FIRST = ("loss", "score")
_UNITS = {"psnr": "dB", "drawn_psnr": "dB"}

# By name: steps and values, of training and of held-out conversations and frames.
Curves = dict[str, tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]]


def read_metrics(path: str | os.PathLike) -> Curves:
  """Steps and values of each name in a metrics.jsonl; names of held-out scores begin with "val/".

  The last line may be cut off, as that of a run which is still training, or was killed, can be.

  Raises:
    InputError: another line is no object of numbers with a step.
  """
  lines = read_text(path, "the scalars of a stage, an object a line").split("\n")
  points: dict[str, list[tuple[float, float]]] = {}
  for number, text in enumerate(lines, 1):
    if not text.strip():
      continue
    try:
      entry = json.loads(text)
      step = float(entry["step"])
      if not math.isfinite(step):
        raise ValueError(step)
      values = {name: float(value) for name, value in entry.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
      if number == len(lines):  # Without a line's end.
        continue
      raise InputError(path, f"line {number}", text[:80], "an object of numbers, with a step") from None
    for name, value in values.items():
      points.setdefault(name, []).append((step, value))
  curves = {name: np.array(sorted(pairs)) for name, pairs in points.items()}
  return {name: (curve[:, 0], curve[:, 1]) for name, curve in curves.items()}


def draw_losses(curves: Curves, stage: str) -> str:
  """The loss and the held-out score, and behind a summary a small chart for each of their terms.

  Held-out values stand in the chart of the training values of the same name. What has a single value, or is zero throughout,
  is written below instead.
  """
  names = dict.fromkeys(name.removeprefix(_HELD_OUT) for name in curves if name not in _NOT_SHOWN)
  large, small, single, zero = [], [], [], []
  for name in sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)):
    lines = _lines(curves, name)
    if not any(np.any(line.y) for line in lines):
      zero.append(name)
    elif all(len(line.y) == 1 for line in lines):
      single += [f"{name} {line.y[0]:.4g} ({line.title}, step {line.x[0]:.0f})" for line in lines]
    elif name in _FIRST:
      large.append(_draw(curves, stage, name, 520, 170))
    else:
      small.append(_draw(curves, stage, name, 300, 96))
  note = f"Once: {'; '.join(single)}. " if single else ""
  note += f"Zero throughout: {', '.join(zero)}." if zero else ""
  parts = [f'<div class="large grid">{"".join(large)}</div>']
  if small:
    parts.append(f"<details><summary>Terms and held-out metrics ({len(small)} charts)</summary>"
                 f'<div class="grid">{"".join(small)}</div></details>')
  return "".join(parts) + (f'<p class="note">{html.escape(note)}</p>' if note else "")


def _draw(curves: Curves, stage: str, name: str, width: int, height: int) -> str:
  label = f"{name} ({_UNITS[name]})" if name in _UNITS else name
  chart = draw_figure(
      [Panel(label, _lines(curves, name), log=True)],
      title=f"{stage} stage: {name} by step",
      x_label="step",
      x_range=_steps(curves),  # The same in all charts of a stage.
      width=width,
      height=height,
  )
  return f"<div>{chart}</div>"


def legend() -> str:
  """What the lines mean."""
  return draw_legend([("training", "line-train"), ("held out (val)", "line-val")])


def _lines(curves: Curves, name: str) -> list[Line]:
  kinds = (("training", "train", name), ("held out (val)", "val", f"{_HELD_OUT}{name}"))
  return [Line(title, style, *curves[key]) for title, style, key in kinds if key in curves]


def _steps(curves: Curves) -> tuple[float, float]:
  last = max(float(steps.max()) for steps, _ in curves.values())
  return (0.0, last) if last > 0 else (-1.0, 1.0)


def describe_usage(usage: Mapping[str, Any]) -> str:
  """What a stage took, of a run's results: steps, time, memory, parameters; empty where they do not say."""
  parts = []
  if "steps" in usage:
    parts.append(f"{usage['steps']:.0f} steps")
  if "seconds" in usage:
    seconds = usage["seconds"]
    parts.append(f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s")
  if "peak_memory_bytes" in usage:
    parts.append(f"{usage['peak_memory_bytes'] / 2**20:.0f} MiB of memory at most")
  if usage.get("parameters"):
    parts.append(f"{sum(usage['parameters'].values()):,} parameters")
  return ", ".join(parts)
