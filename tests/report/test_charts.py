"""Charts against their numbers: places of points, shades and ticks are read back from the drawing."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from rsatalker_jax.report.charts import Line, Panel, Shade, draw_figure, draw_legend

STEPS = np.array([0.0, 100, 200, 400, 500])


def draw(*panels, **options):
  return ElementTree.fromstring(draw_figure(panels, title="A & B", x_label="step", **options))


def line(y, x=STEPS, style="ours"):
  return Line("ours", style, np.asarray(x), np.asarray(y, np.float64))


def ticks(figure, style, axis, log=False):
  """Slope and origin of an axis by its printed ticks: value (or its logarithm) = slope * place + origin."""
  marks = [(float(t.get(axis)), float(t.text)) for t in figure if t.get("class") == style]
  assert len(marks) >= 2
  places, values = np.array(marks).T
  values = np.log(values) if log else values
  slope, origin = np.polyfit(places, values, 1)
  # Texts are placed to a tenth of a unit.
  np.testing.assert_allclose(slope * places + origin, values, atol=0.06 * abs(slope))
  return slope, origin


def points(figure, style="line-ours"):
  (path,) = (x for x in figure if x.get("class") == style)
  return [(kind, float(x), float(y)) for kind, x, y in re.findall(r"([ML])([\d.-]+) ([\d.-]+)", path.get("d"))]


@pytest.mark.parametrize("log", [False, True])
def test_points_stand_where_the_ticks_say(log):
  y = np.array([3.0, 0.5, 0.02, 0.1, 1.0])
  figure = draw(Panel("loss", [line(y)], log=log), height=150)
  x_slope, x_origin = ticks(figure, "x-tick", "x")
  y_slope, y_origin = ticks(figure, "y-tick", "y", log)
  drawn = points(figure)
  assert [kind for kind, *_ in drawn] == ["M", *"LLLL"]
  found_x = [x_slope * x + x_origin for _, x, _ in drawn]
  # The text of a tick hangs 4 below its place.
  found_y = np.array([y_slope * (y + 4) + y_origin for *_, y in drawn])
  np.testing.assert_allclose(found_x, STEPS, atol=1)
  expected = np.log(y) if log else y
  np.testing.assert_allclose(found_y, expected, atol=0.01 * np.ptp(expected))
  assert ("loss, log scale" in "".join(figure.itertext())) == log
  # Each tick has a line across the box, and the dots of so few points lie on the curve.
  levels = [float(x.get("y1")) for x in figure if x.get("class") == "grid" and x.get("y1") == x.get("y2")]
  np.testing.assert_allclose(levels, [float(t.get("y")) - 4 for t in figure if t.get("class") == "y-tick"], atol=0.11)
  dots = [(float(x.get("cx")), float(x.get("cy"))) for x in figure if x.get("class") == "dot-ours"]
  assert dots == [(x, y) for _, x, y in drawn]


def test_narrow_or_negative_ranges_are_not_logarithmic():
  for y in ([1, 2, 3, 4, 19], [-1, 1, 100, 1, 1], [0, 1, 100, 1, 1]):
    assert "log scale" not in "".join(draw(Panel("x", [line(y)], log=True)).itertext())
  assert "log scale" in "".join(draw(Panel("x", [line([1, 2, 3, 4, 21])], log=True)).itertext())


def test_gaps_stay_gaps_and_what_is_not_there_is_not_drawn():
  drawn = points(draw(Panel("x", [line([1, np.nan, 2, 3, np.inf])])))
  assert [kind for kind, *_ in drawn] == ["M", "M", "L"]
  nothing = Panel("gone", [line(np.full(5, np.nan))])
  assert "gone" not in "".join(draw(nothing, Panel("x", [line(STEPS)])).itertext())
  assert draw_figure([nothing], title="", x_label="") == ""


def test_a_constant_has_a_place_in_the_middle():
  for value in (0.0, -2.0, 1e-7):
    figure = draw(Panel("x", [line(np.full(5, value))]), height=80)
    assert {y for *_, y in points(figure)} == {20 + 40}
    ticks(figure, "y-tick", "y")


def test_long_lines_are_thinned_to_their_extremes():
  x = np.arange(100_000.0)
  y = np.sin(x / 5000)
  y[34_567], y[70_001], y[50_000:50_010] = 9.0, -7.0, np.nan
  drawn = points(draw(Panel("x", [line(y, x)]), width=1064, height=160))
  assert len(drawn) < 1000
  heights = [y for *_, y in drawn]
  widths = [x for _, x, _ in drawn]
  # The box is 160 high, with margins of 6 % of the range: 20 + 160 * 0.06 / 1.12 is the peak's place.
  assert min(heights) == pytest.approx(20 + 160 * 0.06 / 1.12, abs=0.1)
  assert max(heights) == pytest.approx(180 - 160 * 0.06 / 1.12, abs=0.1)
  assert widths[int(np.argmin(heights))] == pytest.approx(52 + 1000 * 0.34567, abs=0.1)
  assert widths == sorted(widths) and [kind for kind, *_ in drawn].count("M") == 2


def test_shades_cover_their_spans_in_every_panel():
  spans = [(50, 100), (450, 900)]
  shades = [Shade("A", "a", [(0, 50)]), Shade("B", "b", spans)]
  figure = draw(Panel("x", [line(STEPS)]), Panel("y", [line(STEPS)]), shades=shades, x_range=(0, 500))
  slope, origin = ticks(figure, "x-tick", "x")
  rects = lambda style: [x for x in figure if x.get("class") == style]
  ends = lambda x: (slope * float(x.get("x")) + origin, slope * (float(x.get("x")) + float(x.get("width"))) + origin)
  lanes = rects("lane-b")
  for lane, (start, end) in zip(lanes, [(50, 100), (450, 500)], strict=True):  # Cut at the axis' end.
    np.testing.assert_allclose(ends(lane), (start, end), atol=0.2)
  assert len(rects("shade-b")) == 4 and len(rects("shade-a")) == 2
  tops = {float(x.get("y")) for x in rects("shade-a")}
  boxes = [float(x.get("y1")) for x in figure if x.get("class") == "grid" and x.get("x1") == x.get("x2")]
  assert tops == set(boxes)
  # Lanes of A and of B are beside their letters, above the first panel.
  letters = {x.text: float(x.get("y")) for x in figure if x.get("class") == "lane"}
  for letter, style in (("A", "lane-a"), ("B", "lane-b")):
    top = float(rects(style)[0].get("y"))
    assert top < letters[letter] < top + 14 < min(tops)


def test_time_line_goes_as_far_as_the_axis():
  figure = draw(Panel("x", [line(STEPS)]), x_range=(0, 4))
  (now,) = (x for x in figure if x.get("class") == "now")
  slope, origin = ticks(figure, "x-tick", "x")
  place = float(now.get("data-start")) + 3 * float(now.get("data-per-unit"))
  assert slope * place + origin == pytest.approx(3, abs=0.01)


def test_texts_are_escaped():
  figure = draw_figure([Panel("<b>&", [line(STEPS)])], title='"<script>', x_label="<i>", shades=[Shade("<u>", "a", [])])
  assert not re.search("<(b|i|u|script)>", figure)
  read = ElementTree.fromstring(figure)
  assert read.get("aria-label") == '"<script>' and "<b>&" in list(read.itertext())
  legend = draw_legend([("<b>", "line-ours"), ("<b>", "line-ours"), ("A", "lane-a")])
  assert legend.count("<li>") == 2 and "<b>" not in legend and '<rect x="0" y="1"' in legend
