"""Results that commands wrote, as HTML."""

import json
import re

import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation.dynamics_metrics import COLLAPSE_ALARM
from rsatalker_jax.evaluation.tables import METRICS_VERSION
from rsatalker_jax.report import results


def test_markdown_becomes_tables_and_nothing_else():
  page = results.to_html(
      "Scores **best**:\n\n| | a ↓ |\n|---|---:|\n| x<script>alert(1)</script> | **1.5** |\n\n"
      "![p](http://a.b/c.png) [l](http://a.b) <http://a.b> <img src=x onerror=y>\n"
  )
  assert "<strong>1.5</strong>" in page and "&lt;script&gt;" in page
  assert re.findall(r"<(\w+)", page.split("</table>")[0]).count("td") == 2
  assert not re.search(r"<(script|img|a) |<script|href|src=\"", page)
  assert page.count('class="scroll"') == page.count("<table>") == 1


def test_results_are_read_with_their_text(tmp_path):
  assert results.read_results(tmp_path) is None
  folder = tmp_path / "evaluation"
  folder.mkdir()
  (folder / "results.md").write_text("text")
  (folder / "results.json").write_text(json.dumps({"metrics_version": METRICS_VERSION, "stages": "motion:1"}))
  assert results.read_results(tmp_path) == {"metrics_version": METRICS_VERSION, "stages": "motion:1", "markdown": "text"}
  for text, found in (("{", "broken JSON"), ("[]", "a list"), ('{"metrics_version": 1}', "1, expected 2"), ("{}", "None")):
    (folder / "results.json").write_text(text)
    with pytest.raises(InputError, match=f"results.json.*found {found}"):
      results.read_results(tmp_path)


def test_violated_checks_are_loud():
  quiet = results.draw_checks({"ours": [], "paper": []})
  assert "alarm" not in quiet and "All checks of the results hold" in quiet
  unknown = results.draw_checks({"old": None})
  assert "hold" not in unknown and "Without checks in their results: old." in unknown
  loud = results.draw_checks({"ours": [], "pa<per": ["FD > P-FD", "still <face>"], "old": None})
  assert 'role="alert"' in loud and "2 checks violated" in loud and "hold" not in loud
  assert "<b>pa&lt;per</b>: FD &gt; P-FD" in loud and "still &lt;face&gt;" in loud and "results: old." in loud
  assert "1 check violated" in results.draw_checks({"ours": ["x"]})
  still = results.draw_checks({"ours": [f"{COLLAPSE_ALARM}jaw varies by 0"], "theirs": []})
  assert "1 alarm: motion that hardly moves" in still and "jaw varies by 0" in still
  assert "violated" not in still and "hold" not in still


RESULTS = {
    "title": "mine",
    "motion": {
        "true motion": [{"mse/expression": 0.0, "relation/accuracy": 1.0}],
        "other": [{"mse/expression": 9.0}],
        "mine": [{"mse/expression": 0.02, "relation/accuracy": 0.5}, {"mse/expression": 0.04, "relation/accuracy": 0.7}],
    },
    "frames": {"tracked motion": {"psnr": 30.126}, "generated motion": {"psnr": 20.0}},
}


def figures(page):
  return dict(re.findall(r"<dd>([^<]*)</dd><dt>([^<]*)</dt>", page))


def test_figures_are_means_over_seeds_of_the_runs_own_row():
  found = {title: value for value, title in figures(results.draw_figures(RESULTS)).items()}
  assert found == {
      "error of expression, MSE ×10": "0.3000", "relation that a probe recognises": "60 %",
      "frames, generated motion, PSNR": "20.00 dB", "frames, tracked motion, PSNR": "30.13 dB",
  }
  assert "90.0000" in results.draw_figures({name: x for name, x in RESULTS.items() if name != "title"})
  assert results.draw_figures({}) == ""
  assert results.draw_figures(json.loads('{"frames": {"tracked motion": {"psnr": NaN}}}')) == ""


def test_comparison_has_a_row_for_each_run():
  page = results.draw_comparison({"<a>": RESULTS, "b": {"frames": {"tracked motion": {"psnr": 31.0}}}})
  rows = [re.findall(r"<t[hd]>([^<]*)</t[hd]>", row) for row in page.split("<tr>")[1:]]
  assert rows[1] == ["&lt;a&gt;", "0.3000", "–", "–", "60 %", "20.00 dB", "30.13 dB"]
  assert rows[2] == ["b", "–", "–", "–", "–", "–", "31.00 dB"]
  assert len(rows[0]) == len(rows[1])
