"""Charts as inline SVG: panels below each other over one axis, with shaded spans. No script draws them.

Colours are CSS classes of the page (`line-truth`, `shade-a`, …), so that they follow its light and dark.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Num

_LEFT, _RIGHT, _TITLE, _AXIS, _LANE = 52, 12, 20, 36, 14  # Room around a panel's box, in the units of the drawing.
_FEW_POINTS = 12  # So few are marked by dots: held-out scores are steps apart, and one alone is no line.
_MOST_POINTS = 800  # Of a line that is drawn; of more, the least and the greatest of each of so many parts.
_LOG_FROM = 20.0  # Greatest over least value from which an axis is logarithmic.


@dataclasses.dataclass(frozen=True)
class Line:
  """A curve. Values that are not finite are gaps.

  Attributes:
    title: for the legend; equal titles are one entry.
    style: a class of the page: line-<style>.
    x, y: points, by rising x.
  """

  title: str
  style: str
  x: Num[np.ndarray, "n"]
  y: Num[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class Panel:
  """One box.

  Attributes:
    label: what is measured, and in which unit.
    lines: the curves; the last one lies above the others.
    log: whether the axis is logarithmic, if all values are above zero and spread over more than a factor of 20.
  """

  label: str
  lines: Sequence[Line]
  log: bool = False


@dataclasses.dataclass(frozen=True)
class Shade:
  """Spans of x that are shaded through all panels, and filled in a lane of their own above them.

  Attributes:
    title: at the lane, a letter or two.
    style: a class of the page: shade-<style>.
    spans: (start, end) in the unit of x.
  """

  title: str
  style: str
  spans: Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Axis:
  """From values to places.

  Attributes:
    least, most: the values at `start` and `end`.
    start, end: places in the drawing.
    log: whether equal steps are equal factors.
  """

  least: float
  most: float
  start: float
  end: float
  log: bool = False

  def place(self, values: float | np.ndarray) -> np.ndarray:
    """Where values are drawn."""
    scale = np.log if self.log else np.asarray
    least, most, values = scale(self.least), scale(self.most), scale(np.asarray(values, np.float64))
    return self.start + (values - least) / (most - least) * (self.end - self.start)

  def ticks(self, count: int) -> list[float]:
    """About `count` round values between least and most."""
    return _log_ticks(self.least, self.most, count) if self.log else _linear_ticks(self.least, self.most, count)


def draw_figure(
    panels: Sequence[Panel],
    *,
    title: str,
    x_label: str,
    x_range: tuple[float, float] | None = None,
    shades: Sequence[Shade] = (),
    width: int = 860,
    height: int = 84,
) -> str:
  """Panels below each other over the same x, as one <svg>; empty if no panel has a finite value.

  Args:
    panels: from top to bottom; one without a finite value is left out.
    title: what a screen reader says.
    x_label: of the common axis, with its unit.
    x_range: of the axis; None takes the lines'.
    shades: spans, a lane each.
    width, height: of the drawing and of each panel's box, in its units (pixels, where it is not scaled).
  """
  panels = [panel for panel in panels if any(np.isfinite(line.y).any() for line in panel.lines)]
  if not panels:
    return ""
  if x_range is None:
    x_range = _widen(*_range([line.x[np.isfinite(line.y)] for panel in panels for line in panel.lines]), margin=0)
  x_axis = Axis(*x_range, _LEFT, width - _RIGHT)
  top = _LANE * len(shades) + (4 if shades else 0)
  bottom = top + len(panels) * (_TITLE + height)
  parts = []
  for number, shade in enumerate(shades):
    y = _LANE * number
    parts.append(_text(_LEFT - 6, y + 10, shade.title, "lane"))
    for start, end in shade.spans:
      x = x_axis.place(np.clip([start, end], *x_range))
      parts.append(_rect(x[0], y + 2, x[1] - x[0], _LANE - 4, f"lane-{shade.style}"))
      for panel in range(len(panels)):
        parts.append(_rect(x[0], top + panel * (_TITLE + height) + _TITLE, x[1] - x[0], height, f"shade-{shade.style}"))
  x_ticks = x_axis.ticks(max(2, width // 100))
  for number, panel in enumerate(panels):
    box = top + number * (_TITLE + height) + _TITLE
    parts.append(_draw_panel(panel, x_axis, x_ticks, box, height))
  for tick in x_ticks:
    parts.append(_text(x_axis.place(tick), bottom + 14, _number(tick), "x-tick"))
  parts.append(_text((_LEFT + width - _RIGHT) / 2, bottom + 30, x_label, "x-label"))
  # The page's script moves this line along with a video, whose time begins where the axis does.
  per_unit = (x_axis.end - x_axis.start) / (x_range[1] - x_range[0])
  parts.append(f'<line class="now" x1="{_LEFT}" x2="{_LEFT}" y1="0" y2="{bottom}" '
               f'data-start="{_LEFT}" data-per-unit="{per_unit:.6g}"/>')
  return (
      f'<svg class="figure" role="img" viewBox="0 0 {width} {bottom + _AXIS}" aria-label="{html.escape(title)}">'
      f"{''.join(parts)}</svg>"
  )


def draw_legend(entries: Sequence[tuple[str, str]]) -> str:
  """A legend of (title, class) pairs: line-<style> or lane-<style>."""
  keys = []
  for title, style in dict.fromkeys(entries):
    key = '<rect x="0" y="1" width="22" height="8"' if style.startswith("lane-") else '<line x1="0" x2="22" y1="5" y2="5"'
    keys.append(f'<li><svg width="22" height="10" aria-hidden="true">{key} class="{style}"/></svg> {html.escape(title)}</li>')
  return f'<ul class="legend">{"".join(keys)}</ul>'


def _draw_panel(panel: Panel, x_axis: Axis, x_ticks: Sequence[float], box: float, height: float) -> str:
  finite = [line.y[np.isfinite(line.y)] for line in panel.lines]
  least, most = _range(finite)
  log = panel.log and least > 0 and most / least > _LOG_FROM
  if log:
    least, most = least / 1.2, most * 1.2
  else:
    least, most = _widen(least, most, margin=0.06)
  axis = Axis(least, most, box + height, box, log)
  parts = [_text(_LEFT, box - 6, panel.label + (", log scale" if log else ""), "y-label")]
  for tick in axis.ticks(max(2, int(height) // 30)):
    y = float(axis.place(tick))
    parts.append(f'<line class="grid" x1="{_LEFT}" x2="{x_axis.end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(_text(_LEFT - 6, y + 4, _number(tick), "y-tick"))
  for tick in x_ticks:
    x = float(x_axis.place(tick))
    parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{box}" y2="{box + height}"/>')
  for line in panel.lines:
    parts.append(_draw_line(line, x_axis, axis))
  return "".join(parts)


def _draw_line(line: Line, x_axis: Axis, y_axis: Axis) -> str:
  finite = np.isfinite(line.y)
  shown = _thin(np.asarray(line.y, np.float64), finite)
  x, y = x_axis.place(line.x[shown]), y_axis.place(np.where(finite, line.y, 1.0)[shown])
  steps, drawing = [], False
  for px, py, there in zip(x, y, finite[shown]):
    if there:
      steps.append(f"{'L' if drawing else 'M'}{px:.1f} {py:.1f}")
    drawing = bool(there)
  dots = ""
  if len(line.x) <= _FEW_POINTS:
    dots = "".join(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6" class="dot-{line.style}"/>' for px, py in zip(x[finite], y[finite]))
  return f'<path class="line-{line.style}" d="{"".join(steps)}"/>{dots}'


def _thin(y: Float[np.ndarray, "n"], finite: Bool[np.ndarray, "n"]) -> np.ndarray:
  """Which points are drawn: all, or of each of many parts the least, the greatest and the gaps."""
  if len(y) <= _MOST_POINTS:
    return np.arange(len(y))
  kept = {0, len(y) - 1, *np.flatnonzero(np.diff(finite)) + 1}
  for part in np.array_split(np.arange(len(y)), _MOST_POINTS // 2):
    if (there := part[finite[part]]).size:
      kept |= {there[np.argmin(y[there])], there[np.argmax(y[there])]}
  return np.array(sorted(kept))


def _range(values: Sequence[Num[np.ndarray, "_"]]) -> tuple[float, float]:
  together = np.concatenate(values)
  return float(together.min()), float(together.max())


def _widen(least: float, most: float, margin: float) -> tuple[float, float]:
  """The range with a margin on both sides; a range of nothing gets a width."""
  if most - least <= 1e-9 * max(abs(least), abs(most)):
    around = abs(least) / 2 or 1.0
    return least - around, most + around
  return least - margin * (most - least), most + margin * (most - least)


def _linear_ticks(least: float, most: float, count: int) -> list[float]:
  rough = (most - least) / max(count, 1)
  power = 10.0 ** math.floor(math.log10(rough))
  step = power * min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * power / rough)))
  first = math.ceil(least / step - 1e-9)
  return [number * step for number in range(first, math.floor(most / step + 1e-9) + 1)]


def _log_ticks(least: float, most: float, count: int) -> list[float]:
  low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
  inside = lambda factors, every=1: [
      float(f"{factor}e{power}")
      for power in range(low, high + 1)
      if power % every == 0
      for factor in factors
      if least <= float(f"{factor}e{power}") <= most
  ]
  decades = inside((1,))
  if len(decades) < 2:
    return inside((1, 2, 5))
  return decades if len(decades) <= 2 * count else inside((1,), -(-len(decades) // count))


def _number(value: float) -> str:
  text = f"{value:.4g}" if abs(value) > 1e-12 else "0"
  mantissa, _, power = text.partition("e")
  return f"{mantissa}e{int(power)}" if power else text


def _text(x: float, y: float, text: str, style: str) -> str:
  return f'<text class="{style}" x="{float(x):.1f}" y="{float(y):.1f}">{html.escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, style: str) -> str:
  return f'<rect class="{style}" x="{float(x):.1f}" y="{float(y):.1f}" width="{float(width):.1f}" height="{float(height):.1f}"/>'
