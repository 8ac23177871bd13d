"""Table 3 and its statistics against the paper's own numbers, closed forms, and other ways to compute them."""

import csv
import itertools
import json
import math
import pathlib
import warnings

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from rsatalker_jax.errors import InputError
from rsatalker_jax.study import analysis, criteria

METHODS = ("a", "b", "c")
IDENTITY = {"methods": list(METHODS), "criteria": "1234abcd"}


def ratings_of(scores) -> analysis.Ratings:
  count = len(scores)
  return analysis.Ratings(METHODS[: scores.shape[1]], tuple(range(1, count + 1)), scores, (1,) * count, 0)


@pytest.fixture
def ratings():
  rng = np.random.default_rng(3)
  levels = rng.normal(0, 4, (12, 1, 1)) + np.array([50.0, 60.0, 61.0])[:, None] + rng.normal(0, 3, (12, 3, 9))
  return ratings_of(levels)


def answers_of(scores, *, conversations=("talk",), start=1) -> list[dict]:
  """Rows as the store gives them, of (P, C, M, 9) scores."""
  rows = []
  for participant, by_conversation in enumerate(scores, start):
    for conversation, by_method in zip(conversations, by_conversation):
      for method, row in zip(METHODS, by_method):
        given = dict(zip(criteria.KEYS, map(int, row)))
        rows.append({"participant": participant, "position": 0, "conversation": conversation, "method": method, **given,
                     "comment": "", "answered_at": "2026-01-01T00:00:00+00:00"})
  return rows


# --- Eq. 14


@pytest.mark.parametrize("method", criteria.PUBLISHED)
def test_the_papers_sub_scores_give_its_means_and_totals(method):
  """Sub-scores and results are printed to one decimal, each up to 0.05 away from what it was."""
  scores, printed = criteria.PUBLISHED[method]
  dimensions = criteria.dimension_scores(np.array(scores))
  np.testing.assert_allclose(dimensions, printed[:3], atol=0.05 + 0.05)
  assert criteria.total_score(dimensions) == pytest.approx(printed[3], abs=0.05 + 0.05)


def test_the_printed_table_is_met_to_the_digit_but_for_one_total():
  """From its printed sub-scores RSATalker's total is 86.04; the paper prints 86.1, which rounding before the mean allows."""
  different = {}
  for method, (scores, printed) in criteria.PUBLISHED.items():
    columns = analysis.to_columns(np.array(scores))
    for key, value in zip(analysis.MEASURES, printed, strict=True):
      ours = f"{columns[analysis.COLUMNS.index(key)]:.1f}"
      if ours != f"{value:.1f}":
        different[method, key] = (ours, value)
  assert different == {("RSATalker", "total"): ("86.0", 86.1)}


def test_columns_are_the_papers_and_eq_14_by_hand():
  assert analysis.COLUMNS == (
      "lip_sync", "expression_naturalness", "visual_realism", "realism",
      "motion_smoothness", "temporal_consistency", "long_term_stability", "fluency",
      "role_consistency", "emotional_tone", "interaction_dynamics", "sra", "total",
  )
  scores = np.array([1.0, 2, 6, 10, 20, 60, 50, 70, 90])
  expected = [1, 2, 6, 3, 10, 20, 60, 30, 50, 70, 90, 70, 0.25 * 3 + 0.25 * 30 + 0.5 * 70]
  np.testing.assert_allclose(analysis.to_columns(scores), expected, rtol=1e-12)
  np.testing.assert_allclose(analysis.to_columns(np.stack([scores, scores * 2])), [expected, np.multiply(expected, 2)], rtol=1e-12)


def test_the_documentation_has_the_statements():
  text = (pathlib.Path(__file__).parents[2] / "docs" / "study.md").read_text()
  for dimension in criteria.DIMENSIONS:
    assert f"{dimension.title} ({dimension.weight})" in text
    for criterion in dimension.criteria:
      assert f"| {criterion.title} | {criterion.question} |" in text


# --- From answers to participants' means


def test_means_are_over_conversations_that_are_rated_to_the_end():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 101, (3, 2, 3, 9))
  answers = answers_of(scores, conversations=("x", "y"))
  # The second leaves one method of y unrated, the third one of each.
  answers = [a for a in answers if (a["participant"], a["conversation"], a["method"]) not in
             {(2, "y", "b"), (3, "x", "a"), (3, "y", "c")}]
  ratings = analysis.gather_ratings(answers[::-1], METHODS)
  assert ratings.participants == (1, 2) and ratings.conversations == (2, 1) and ratings.left_out == 2 + 4
  np.testing.assert_allclose(ratings.scores, [scores[0].mean(axis=0), scores[1, 0]])
  np.testing.assert_allclose(ratings.measure("sra"), ratings.scores[..., 6:].mean(axis=-1))
  assert ratings.columns.shape == (2, 3, 13)


def test_without_a_whole_conversation_there_is_no_table():
  answers = answers_of(np.zeros((1, 1, 2, 9)))
  with pytest.raises(InputError, match="found 2 answers, and no conversation of which anybody has rated every method"):
    analysis.summarize(analysis.gather_ratings(answers, METHODS))


# --- Intervals


def test_intervals_are_students_for_many_participants():
  values = np.random.default_rng(1).normal([50, 70], [5, 20], (400, 2))
  intervals = analysis.bootstrap_intervals(values)
  half = scipy.stats.t.ppf(0.975, 399) * values.std(axis=0, ddof=1) / 20
  np.testing.assert_allclose(intervals[:, 0], values.mean(axis=0) - half, atol=0.03 * half.max())
  np.testing.assert_allclose(intervals[:, 1], values.mean(axis=0) + half, atol=0.03 * half.max())


def test_intervals_resample_participants_and_are_the_same_each_time(ratings):
  """A participant's level is in all their scores; the interval of a mean over scores must not shrink by them."""
  intervals = analysis.bootstrap_intervals(ratings.columns)
  assert intervals.shape == (3, 13, 2)
  np.testing.assert_array_equal(intervals, analysis.bootstrap_intervals(ratings.columns))
  one = scipy.stats.bootstrap((ratings.measure("total")[:, 1],), np.mean, n_resamples=9999, rng=5).confidence_interval
  width = one.high - one.low
  np.testing.assert_allclose(intervals[1, 12], [one.low, one.high], atol=0.06 * width)


def test_intervals_of_no_spread_and_of_too_few():
  values = np.stack([np.full(6, 3.0), np.arange(6.0)], axis=1)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    intervals = analysis.bootstrap_intervals(values)
  assert intervals[0].tolist() == [3.0, 3.0] and 0 < intervals[1, 0] < 2.5 < intervals[1, 1] < 5
  assert analysis.bootstrap_intervals(values[:1]) is None


# --- Tests


def test_holm_by_hand():
  assert analysis.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
  assert analysis.holm([0.04, 0.001, 0.03, 0.5]) == pytest.approx([0.09, 0.004, 0.09, 0.5])
  assert analysis.holm([0.6, 0.9]) == [1.0, 1.0] and analysis.holm([]) == [] and analysis.holm([0.2]) == [0.2]


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closed_testing_procedure(seed):
  """A hypothesis falls with all intersections that it is in, each tested by Bonferroni."""
  p = np.random.default_rng(seed).uniform(0, 0.3, 5)
  expected = []
  for index in range(5):
    others = [i for i in range(5) if i != index]
    subsets = itertools.chain.from_iterable(itertools.combinations(others, size) for size in range(5))
    expected.append(max(min(1, (len(subset) + 1) * min(p[[index, *subset]])) for subset in subsets))
  assert analysis.holm(p.tolist()) == pytest.approx(expected)


def test_tests_are_paired_and_of_all_pairs(ratings):
  values = ratings.measure("total")
  tests = analysis.paired_tests(values, METHODS)
  means = dict(zip(METHODS, values.mean(axis=0)))
  assert {frozenset(test["methods"]) for test in tests} == set(map(frozenset, itertools.combinations(METHODS, 2)))
  for test in tests:
    a, b = (values[:, METHODS.index(method)] for method in test["methods"])
    assert test["difference"] == pytest.approx(means[test["methods"][0]] - means[test["methods"][1]]) and test["difference"] >= 0
    assert test["sd"] == pytest.approx(np.std(a - b, ddof=1))
    t = test["difference"] / (test["sd"] / math.sqrt(12))
    assert test["p"] == pytest.approx(2 * scipy.stats.t.sf(t, 11)) == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)
  assert [test["p_holm"] for test in tests] == analysis.holm([test["p"] for test in tests])


def test_where_all_differ_by_the_same():
  values = np.arange(4.0)[:, None] + np.array([0.0, 0.0, 2.0])
  tests = {test["methods"]: test for test in analysis.paired_tests(values, METHODS)}
  assert tests["a", "b"]["p"] == 1.0 and tests["c", "a"]["p"] == 0.0 and tests["c", "a"]["difference"] == 2.0
  with pytest.raises(ValueError, match="found 1"):
    analysis.paired_tests(values[:1], METHODS)


# --- How many participants


@pytest.mark.parametrize("effect, sd, count", [(0.5, 1.0, 34), (0.8, 1.0, 15), (0.2, 1.0, 199), (4.0, 8.0, 34)])
def test_participants_are_those_of_published_tables(effect, sd, count):
  """Cohen's d of 0.5, 0.8 and 0.2 at level 0.05, two-sided, power 0.8: G*Power 3.1's 34, 15 and 199 pairs."""
  assert analysis.required_participants(effect, sd) == count


@pytest.mark.parametrize("participants, effect, sd, alpha", [(2, 1.0, 1.0, 0.3), (3, 2.0, 1.5, 0.05), (34, 0.5, 1.0, 0.05)])
def test_power_is_the_integral_over_what_the_measured_sd_may_be(participants, effect, sd, alpha):
  """Of a normal mean over chi: given the sd, the mean is beyond the test's bound with a probability that Phi gives."""
  degrees, shift = participants - 1, effect * math.sqrt(participants) / sd
  bound = scipy.stats.t.ppf(1 - alpha / 2, degrees)
  beyond = lambda u: scipy.stats.norm.sf(bound * u - shift) + scipy.stats.norm.cdf(-bound * u - shift)
  density = lambda u: scipy.stats.chi.pdf(u * math.sqrt(degrees), degrees) * math.sqrt(degrees)
  expected, _ = scipy.integrate.quad(lambda u: beyond(u) * density(u), 0, 12)
  assert analysis.t_test_power(participants, effect, sd, alpha) == pytest.approx(expected, abs=1e-6)


def test_power_is_that_of_simulated_studies():
  rng = np.random.default_rng(0)
  differences = rng.normal(3, 5, (20_000, 15))
  t = differences.mean(axis=1) / (differences.std(axis=1, ddof=1) / math.sqrt(15))
  found = np.mean(np.abs(t) > scipy.stats.t.ppf(1 - 0.02 / 2, 14))
  assert analysis.t_test_power(15, 3, 5, 0.02) == pytest.approx(found, abs=0.012)  # 3.5 standard errors.
  assert analysis.t_test_power(15, 0, 5, 0.02) == pytest.approx(0.02)  # Both tails.


def test_the_least_number_is_the_least():
  for effect, alpha in ((0.3, 0.05), (1.1, 0.05 / 6), (6.0, 0.05)):
    count = analysis.required_participants(effect, 1.0, alpha)
    assert analysis.t_test_power(count, effect, 1.0, alpha) >= 0.8
    assert count == 2 or analysis.t_test_power(count - 1, effect, 1.0, alpha) < 0.8
  assert analysis.required_participants(5, 0.0) == 2


def test_the_plan_is_of_the_measured_variances(ratings):
  rows = analysis.plan(ratings, 2.0, multiple=6)
  tests = analysis.paired_tests(ratings.measure("total"), METHODS)
  for row, test in zip(rows, tests, strict=True):
    assert row["methods"] == test["methods"] and row["sd"] == test["sd"]
    # The true sd is below with probability 0.8, whatever it is.
    assert scipy.stats.chi2.cdf(11 * (row["sd"] / row["sd_upper"]) ** 2, 11) == pytest.approx(0.2)
    exact = [analysis.required_participants(2.0, sd, alpha) for sd, alpha in
             ((row["sd"], 0.05), (row["sd"], 0.05 / 3), (row["sd_upper"], 0.05 / 3))]
    assert row["participants"] == [6 * math.ceil(count / 6) for count in exact]
  assert "| a – " in (table := analysis.plan_table(rows)) or "– a |" in table
  with pytest.raises(InputError, match="--power: found 1 participants"):
    analysis.plan(ratings_of(ratings.scores[:1]), 2.0, 6)


# --- What is written


def test_the_table_in_the_papers_form(ratings):
  summary = analysis.summarize(ratings)
  assert summary["participants"] == 12 and json.loads(json.dumps(summary))["table"].keys() == set(METHODS)
  text = analysis.write_markdown(summary, "Faces")
  lines = text.splitlines()
  first = "| | Realism: Lip Sync ↑ | Expr. Naturalness ↑ | Visual Realism ↑ | Realism Mean ↑ | Fluency: Motion Smoothness ↑ |"
  head = next(i for i, line in enumerate(lines) if line.startswith(first))
  assert lines[head].endswith("| SRA Mean ↑ | Total ↑ |")
  rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines[head + 2 : head + 5]}
  columns = ratings.columns.mean(axis=0)
  for place in range(13):
    cells = [rows[method][place] for method in METHODS]
    assert [float(cell.strip("*")) for cell in cells] == [float(f"{value:.1f}") for value in columns[:, place]]
    best = max(float(cell.strip("*")) for cell in cells)
    assert [cell.startswith("**") for cell in cells] == [float(cell.strip("*")) == best for cell in cells]
  total = summary["table"]["c"]["total"]
  assert f"{total['mean']:.1f} [{total['interval'][0]:.1f}, {total['interval'][1]:.1f}]" in text
  assert text.count("Total: ") == 3 and "| RSATalker | **90.7** |" in text and "Not comparable" in text


def test_one_participant_has_a_table_without_statistics(ratings):
  summary = analysis.summarize(ratings_of(ratings.scores[:1]))
  assert summary["tests"] == {} and summary["table"]["a"]["total"]["interval"] is None
  assert "One participant: no intervals" in analysis.write_markdown(summary, "Faces")


def test_names_cannot_break_the_table(ratings):
  named = analysis.Ratings(("a|b", "<script>", "c"), ratings.participants, ratings.scores, ratings.conversations, 0)
  text = analysis.write_markdown(analysis.summarize(named), "A|B")
  assert "a\\|b" in text and "<script>" not in text.replace("\\<script\\>", "")


def test_files_of_the_results(tmp_path):
  scores = np.random.default_rng(2).integers(0, 101, (4, 1, 3, 9))
  answers = answers_of(scores)
  comments = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "fine, \"quoted\"\nsecond line =1", "ä"]
  for answer, comment in zip(answers, comments):
    answer["comment"] = comment
  markdown = analysis.write_analysis(tmp_path, answers, IDENTITY, "Faces")
  assert (tmp_path / "results.md").read_text() == markdown
  latex = (tmp_path / "results.tex").read_text()
  assert r"\multicolumn{4}{c}{SRA $\uparrow$}" in latex and "Role Consistency" in latex and latex.count("Mean") == 3
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["criteria"] == "1234abcd" and results["participants"] == 4
  with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 12
  for row, answer in zip(rows, answers, strict=True):
    nine = [int(row[key]) for key in criteria.KEYS]
    assert nine == [answer[key] for key in criteria.KEYS]
    assert float(row["sra"]) == pytest.approx(np.mean(nine[6:]), abs=1e-4)
    assert float(row["total"]) == pytest.approx(np.mean(nine[:3]) / 4 + np.mean(nine[3:6]) / 4 + np.mean(nine[6:]) / 2, abs=1e-4)
  assert [row["comment"] for row in rows[:8]] == [*("'" + comment for comment in comments[:6]), *comments[6:]]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "results.json", "results.md", "results.tex"]


def test_how_many_answers_are_left_out_is_said(tmp_path):
  answers = answers_of(np.full((2, 2, 3, 9), 50), conversations=("x", "y"))[:-1]
  markdown = analysis.write_analysis(tmp_path, answers, IDENTITY, "Faces")
  assert "2 participants, 1 to 2 conversations each" in markdown
  assert "2 answers are left out" in markdown
