"""From answers to Table 3, its confidence intervals, tests between methods, and how many participants an effect needs.

The unit of all statistics is the participant: answers of one person are no independent sample. Each participant counts with
one mean of each method, over the conversations of which they have rated every method, so that methods are compared on the
same videos by the same people.

Tests are t-tests of participants' differences. Each is a mean over conversations and, but for single sub-criteria, over
several sliders, which is close to normal whatever one slider is like; the t-test is about the mean difference, which is what
Table 3, its intervals and the wanted effect are about, and it is what `required_participants` plans for. (Wilcoxon's
signed-rank test is about another quantity, and can reach no small p at all with the few people of a pilot.)
"""

import csv
import dataclasses
import io
import itertools
import math
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float

from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation.tables import Column, Table, markdown_table, write_results
from rsatalker_jax.files import whole_file
from rsatalker_jax.study import criteria

_RESAMPLES = 9999
_SEED = 0
CONFIDENCE, POWER = 0.95, 0.8
_MOST_PARTICIPANTS = 1_000_000
# Columns of Table 3: three sub-criteria and their mean, three times; the total.
COLUMNS = (
    *(name for dimension in criteria.DIMENSIONS for name in (*(c.key for c in dimension.criteria), dimension.key)), "total",
)
MEASURES = (*(dimension.key for dimension in criteria.DIMENSIONS), "total")
_TITLES = {c.key: c.title for c in criteria.CRITERIA} | {d.key: d.title for d in criteria.DIMENSIONS} | {"total": "Total"}
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclasses.dataclass(frozen=True)
class Ratings:
  """Attributes:
    methods: M names.
    participants: numbers of the P who have rated at least one whole conversation.
    scores: their means, in the order of `criteria.CRITERIA`.
    conversations: how many whole conversations each has rated.
    left_out: answers in conversations that their participant has not rated to the end.
  """

  methods: tuple[str, ...]
  participants: tuple[int, ...]
  scores: Float[np.ndarray, "P M 9"]
  conversations: tuple[int, ...]
  left_out: int

  @property
  def columns(self) -> Float[np.ndarray, "P M 13"]:
    """In the order of `COLUMNS`, Eq. 14 included."""
    return to_columns(self.scores)

  def measure(self, key: str) -> Float[np.ndarray, "P M"]:
    """One column of `COLUMNS`."""
    return self.columns[..., COLUMNS.index(key)]


def to_columns(scores: Float[np.ndarray, "*n 9"]) -> Float[np.ndarray, "*n 13"]:
  """Table 3's columns from its nine sub-criteria."""
  dimensions = criteria.dimension_scores(scores)
  grouped = np.concatenate([scores.reshape(*scores.shape[:-1], 3, 3), dimensions[..., None]], axis=-1)
  return np.concatenate([grouped.reshape(*scores.shape[:-1], 12), criteria.total_score(dimensions)[..., None]], axis=-1)


def gather_ratings(answers: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Ratings:
  """Means of each participant from what `Store.answers` gives."""
  cells: dict[int, dict[str, dict[str, list[int]]]] = {}
  for answer in answers:
    row = [answer[key] for key in criteria.KEYS]
    cells.setdefault(answer["participant"], {}).setdefault(answer["conversation"], {})[answer["method"]] = row
  participants, scores, conversations, used = [], [], [], 0
  for participant, by_conversation in sorted(cells.items()):
    whole = [[rows[m] for m in methods] for rows in by_conversation.values() if len(rows) == len(methods)]
    if whole:
      participants.append(participant)
      scores.append(np.mean(whole, axis=0))
      conversations.append(len(whole))
      used += len(whole) * len(methods)
  stacked = np.array(scores, np.float64).reshape(-1, len(methods), len(criteria.KEYS))
  return Ratings(tuple(methods), tuple(participants), stacked, tuple(conversations), len(answers) - used)


def bootstrap_intervals(values: Float[np.ndarray, "P *n"]) -> Float[np.ndarray, "*n 2"] | None:
  """95 % intervals of means over participants, by resampling participants (BCa; Efron 1987); None for fewer than two."""
  if len(values) < 2:
    return None
  with warnings.catch_warnings(), np.errstate(all="ignore"):
    warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
    interval = scipy.stats.bootstrap(
        (values,), np.mean, axis=0, n_resamples=_RESAMPLES, confidence_level=CONFIDENCE, method="BCa", rng=_SEED
    ).confidence_interval
  both = np.stack([interval.low, interval.high], axis=-1)
  # Where all agree there is nothing to resample, and BCa divides by zero.
  same = np.ptp(values, axis=0) == 0
  return np.where(same[..., None], values[0][..., None], both)


def holm(p_values: Sequence[float]) -> list[float]:
  """Holm's step-down correction (Holm 1979): adjusted p-values in the given order."""
  adjusted, largest = [0.0] * len(p_values), 0.0
  for rank, index in enumerate(np.argsort(p_values, kind="stable")):
    largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
    adjusted[index] = largest
  return adjusted


def paired_tests(values: Float[np.ndarray, "P M"], methods: Sequence[str]) -> list[dict[str, Any]]:
  """Two-sided t-tests of participants' differences between all pairs of methods, with Holm's correction over the pairs.

  Returns:
    For each pair: "methods", the better first; "difference" of their means and "sd" of participants' differences in points;
    "p", and "p_holm". Where all participants differ by the same, p is 0, or 1 if that is nothing.

  Raises:
    ValueError: fewer than two participants.
  """
  if len(values) < 2:
    raise ValueError(f"a test needs two participants, found {len(values)}")
  rows = []
  for a, b in itertools.combinations(np.argsort(-values.mean(axis=0), kind="stable"), 2):
    differences = values[:, a] - values[:, b]
    sd = float(differences.std(ddof=1))
    if sd > 1e-9:
      p = float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)
    else:
      p = float(abs(differences.mean()) < 1e-9)
    rows.append({"methods": (methods[a], methods[b]), "difference": float(differences.mean()), "sd": sd, "p": p})
  for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
    row["p_holm"] = adjusted
  return rows


def t_test_power(participants: int, effect: float, sd: float, alpha: float) -> float:
  """Probability that a two-sided paired t-test finds a true mean difference: noncentral t with P - 1 degrees of freedom."""
  degrees, shift = participants - 1, effect * math.sqrt(participants) / sd
  critical = scipy.stats.t.ppf(1 - alpha / 2, degrees)
  # The lower tail by symmetry: scipy's cdf there is NaN for some large effects.
  return float(scipy.stats.nct.sf(critical, degrees, shift) + scipy.stats.nct.sf(critical, degrees, -shift))


def required_participants(effect: float, sd: float, alpha: float = 1 - CONFIDENCE, power: float = POWER) -> int:
  """The least number of participants with which the test finds a difference with probability `power`.

  Args:
    effect: the true difference of two methods' means, in points.
    sd: of participants' differences, in points.
    alpha: two-sided level of the test.
    power: wanted.
  """
  enough = lambda count: t_test_power(count, effect, sd, alpha) >= power
  if sd <= 0 or enough(2):
    return 2
  most = 4
  while most < _MOST_PARTICIPANTS and not enough(most):
    most *= 2
  least = most // 2
  while least + 1 < most:
    middle = (least + most) // 2
    least, most = (least, middle) if enough(middle) else (middle, most)
  return most


def plan(ratings: Ratings, effect: float, multiple: int) -> list[dict[str, Any]]:
  """How many participants a wanted effect on the total needs, for each pair of methods.

  Args:
    ratings: of a pilot or a finished study, for the variances.
    effect: difference of totals in points.
    multiple: orders are balanced after as many participants; counts are rounded up to it.

  Returns:
    For each pair: "methods"; "sd" of participants' differences as measured, and "sd_upper", the upper end of its one-sided
    80 % interval (chi-square), since a pilot's sd is often too small (Browne 1995); "participants" needed at level 0.05, at
    0.05 over the number of pairs, the first step of Holm's procedure, and that with "sd_upper".

  Raises:
    InputError: fewer than two participants.
  """
  _check_enough(ratings, "--power")
  tests = paired_tests(ratings.measure("total"), ratings.methods)
  alpha, degrees = 1 - CONFIDENCE, len(ratings.participants) - 1
  widen = math.sqrt(degrees / scipy.stats.chi2.ppf(0.2, degrees))
  rows = []
  for test in tests:
    upper = test["sd"] * widen
    settings = ((test["sd"], alpha), (test["sd"], alpha / len(tests)), (upper, alpha / len(tests)))
    counts = [-(-required_participants(effect, sd, level) // multiple) * multiple for sd, level in settings]
    rows.append({"methods": test["methods"], "sd": test["sd"], "sd_upper": upper, "participants": counts})
  return rows


def plan_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Markdown of `plan`."""
  columns = ["sd", "upper sd", "single test", "with Holm", "with Holm, upper sd"]
  cells = {}
  for row in rows:
    name = " – ".join(map(_escape, row["methods"]))
    cells[name] = [f"{row['sd']:.1f}", f"{row['sd_upper']:.1f}", *map(str, row["participants"])]
  return markdown_table(columns, cells)


def summarize(ratings: Ratings) -> dict[str, Any]:
  """Table 3 and its statistics as JSON.

  Raises:
    InputError: nobody has rated a whole conversation.
  """
  if not ratings.participants:
    found = f"{ratings.left_out} answers, and no conversation of which anybody has rated every method"
    raise InputError("--results", "", found, "at least one such")
  columns = ratings.columns
  intervals = bootstrap_intervals(columns)
  table = {}
  for index, method in enumerate(ratings.methods):
    cells = {}
    for place, key in enumerate(COLUMNS):
      interval = None if intervals is None else [float(x) for x in intervals[index, place]]
      cells[key] = {"mean": float(columns[:, index, place].mean()), "interval": interval}
    table[method] = cells
  tests = {}
  if len(ratings.participants) > 1:
    tests = {key: paired_tests(ratings.measure(key), ratings.methods) for key in MEASURES}
  return {
      "participants": len(ratings.participants),
      "conversations_each": [min(ratings.conversations), max(ratings.conversations)],
      "answers_left_out": ratings.left_out,
      "table": table,
      "tests": tests,
  }


def _bold_best(rows: Mapping[str, Sequence[float]]) -> dict[str, list[str]]:
  """One decimal, as the paper prints; of each column the largest as printed in bold."""
  printed = {name: [f"{value:.1f}" for value in values] for name, values in rows.items()}
  best = [max(column, key=float) for column in zip(*printed.values(), strict=True)]
  return {
      name: [f"**{cell}**" if cell == top else cell for cell, top in zip(cells, best, strict=True)]
      for name, cells in printed.items()
  }


def _escape(name: str) -> str:
  """A name from outside as one cell of a Markdown table."""
  return "".join(f"\\{c}" if c in "\\|*_`[]<>" else c for c in name)


def write_markdown(summary: Mapping[str, Any], title: str) -> str:
  """Table 3 in the paper's form, intervals, tests, and the paper's own rows, which are of other videos."""
  short = {method: _escape(method) for method in summary["table"]}
  headers = [f"{_TITLES[key]} ↑" for key in COLUMNS]
  for place, dimension in enumerate(criteria.DIMENSIONS):
    headers[4 * place] = f"{dimension.title}: {headers[4 * place]}"
    headers[4 * place + 3] = f"{dimension.title} Mean ↑"
  rows = {short[m]: [cells[key]["mean"] for key in COLUMNS] for m, cells in summary["table"].items()}
  least, most = summary["conversations_each"]
  each = f"{least}" if least == most else f"{least} to {most}"
  lines = [
      f"# {_escape(title)}\n",
      (f"{summary['participants']} participants, {each} conversations each, 0 to 100. "
       "Total = 0.25 Realism + 0.25 Fluency + 0.5 SRA (Eq. 14)."),
  ]
  if summary["answers_left_out"]:
    lines.append(f"{summary['answers_left_out']} answers are left out: their conversations are not rated to the end.")
  lines += ["", markdown_table(headers, _bold_best(rows))]
  if summary["tests"]:
    lines.append("## 95 % intervals\n\nBootstrap over participants (BCa, 9999 resamples).\n")
    interval = lambda cell: f"{cell['mean']:.1f} [{cell['interval'][0]:.1f}, {cell['interval'][1]:.1f}]"
    cells = {short[m]: [interval(row[key]) for key in MEASURES] for m, row in summary["table"].items()}
    lines.append(markdown_table([_TITLES[key] for key in MEASURES], cells))
    lines.append("## Tests between methods\n")
    lines.append("Paired t-tests of participants' means, two-sided; Holm's correction over the pairs of one measure.\n")
    rows = {}
    for key, tests in summary["tests"].items():
      for test in tests:
        name = f"{_TITLES[key]}: {' – '.join(short[m] for m in test['methods'])}"
        rows[name] = [f"{test['difference']:+.1f}", f"{test['sd']:.1f}", f"{test['p']:.2g}", f"{test['p_holm']:.2g}"]
    lines.append(markdown_table(["difference", "sd", "p", "p, Holm"], rows))
  else:
    lines.append("One participant: no intervals and no tests.\n")
  lines.append("## The paper's Table 3\n\nAs printed: other videos, 24 other people. Not comparable with the above.\n")
  published = {}
  for method, (scores, means) in criteria.PUBLISHED.items():
    groups = [[*scores[3 * place : 3 * place + 3], means[place]] for place in range(3)]
    published[method] = [*itertools.chain(*groups), means[3]]
  lines.append(markdown_table(headers, _bold_best(published)))
  return "\n".join(lines)


def write_latex(summary: Mapping[str, Any]) -> str:
  """Table 3 as a tabular."""
  groups = [dimension.title for dimension in criteria.DIMENSIONS for _ in range(4)] + [""]
  titles = ["Mean" if key in {d.key for d in criteria.DIMENSIONS} else _TITLES[key] for key in COLUMNS]
  columns = [Column(title, group, "↑") for title, group in zip(titles, groups, strict=True)]
  rows = {method: [round(cells[key]["mean"], 1) for key in COLUMNS] for method, cells in summary["table"].items()}
  return Table(columns, rows).latex()


def write_csv(path: pathlib.Path, answers: Sequence[Mapping[str, Any]]) -> None:
  """One row an answer, as UTF-8. What a spreadsheet would take for a formula gets an apostrophe before it."""
  text = io.StringIO()
  names = ["participant", "position", "conversation", "method", *criteria.KEYS, *MEASURES, "comment", "answered_at"]
  writer = csv.writer(text)
  writer.writerow(names)
  for answer in answers:
    dimensions = criteria.dimension_scores(np.array([answer[key] for key in criteria.KEYS], np.float64))
    means = [*dimensions, criteria.total_score(dimensions)]
    row = dict(answer) | {key: f"{value:.4f}" for key, value in zip(MEASURES, means, strict=True)}
    writer.writerow([_guard_formula(row[name]) for name in names])
  with whole_file(path) as file:
    file.write(text.getvalue().encode())


def _guard_formula(cell: Any) -> Any:
  return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell


def write_analysis(
    folder: pathlib.Path, answers: Sequence[Mapping[str, Any]], identity: Mapping[str, Any], title: str
) -> str:
  """Writes answers.csv, results.json, results.md and results.tex.

  Args:
    folder: where to.
    answers: as `Store.answers` gives them.
    identity: of the study, `Materials.identity`: its methods and the version of its statements.
    title: of the study.

  Returns:
    The Markdown.

  Raises:
    InputError: see `summarize`; answers.csv is written all the same if there are answers.
  """
  if answers:
    write_csv(folder / "answers.csv", answers)
  summary = summarize(gather_ratings(answers, identity["methods"]))
  markdown = write_markdown(summary, title)
  results = {"title": title, "criteria": identity["criteria"]} | summary
  write_results(folder, results, markdown, write_latex(summary))
  return markdown


def _check_enough(ratings: Ratings, flag: str) -> None:
  if len(ratings.participants) < 2:
    found = f"{len(ratings.participants)} participants with a whole conversation"
    raise InputError(flag, "", found, "two at least: variances are measured")
