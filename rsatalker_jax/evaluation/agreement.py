"""How far annotators of relations agree beyond chance: Cohen's kappa.

Cohen, "A Coefficient of Agreement for Nominal Scales" (1960). For each axis and each two annotators, over the conversations of
which both say true or false: who says unknown abstains, as where labels are merged (`data.relations.merge_labels`). How many
conversations that leaves out is counted, since kappa over the clear cases alone is higher than over all.
"""

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.data.relations import AXES, RelationLabel
from rsatalker_jax.evaluation.bootstrap import CONFIDENCE
from rsatalker_jax.social.relation import UNKNOWN


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Of two annotators on one axis.

  Attributes:
    axis: one of `data.relations.AXES`.
    annotators: the two names.
    counts: (2, 2), how often the first said row (0 false, 1 true) and the second column.
    abstained: conversations that both have labelled and at least one of them as unknown.
    kappa: None where it is not defined: nothing in common, or both always say the same one word.
    interval: its 95 % bootstrap interval over conversations; None where kappa is.
  """

  axis: str
  annotators: tuple[str, str]
  counts: Int[np.ndarray, "2 2"]
  abstained: int
  kappa: float | None
  interval: tuple[float, float] | None


def cohens_kappa(counts: Int[np.ndarray, "*n C C"]) -> Float[np.ndarray, "*n"]:
  """kappa = (p_o - p_e) / (1 - p_e) of tables of counts; nan where p_e is 1, or where nothing was counted.

  Args:
    counts: how often the first annotator said row and the second column.
  """
  counts = np.asarray(counts, np.float64)
  total = counts.sum(axis=(-2, -1))
  agreed = np.trace(counts, axis1=-2, axis2=-1) * total
  chance = (counts.sum(axis=-1) * counts.sum(axis=-2)).sum(axis=-1)  # Both are times total², so that 1 - p_e is exactly 0 or not.
  with np.errstate(invalid="ignore"):
    return np.asarray((agreed - chance) / np.where(total**2 > chance, total**2 - chance, np.nan))


def measure_agreement(labels: Iterable[RelationLabel], *, draws: int = 2000, seed: int = 0) -> list[Agreement]:
  """Of all pairs of annotators who have a conversation in common, in the order of their names, on both axes.

  Conversations are drawn as if they were independent; those of the same two people hardly are, and then intervals are too narrow.

  Args:
    labels: of any number of annotators, each with one of a conversation at most.
    draws: bootstrap resamples of conversations.
    seed: the same gives the same interval.
  """
  given: dict[str, dict[str, Int[np.ndarray, "2"]]] = {}
  for label in labels:
    given.setdefault(label.annotator, {})[label.conversation] = label.relation
  found = []
  for first, second in itertools.combinations(sorted(given), 2):
    both = sorted(given[first].keys() & given[second].keys())
    for axis, name in enumerate(AXES if both else ()):
      a, b = (np.array([given[who][conversation][axis] for conversation in both]) for who in (first, second))
      known = (a != UNKNOWN) & (b != UNKNOWN)
      counts = np.zeros((2, 2), np.int64)
      np.add.at(counts, (a[known], b[known]), 1)
      kappa = float(cohens_kappa(counts))
      interval = _bootstrap(counts, draws, seed) if np.isfinite(kappa) else None
      found.append(Agreement(name, (first, second), counts, int((~known).sum()), kappa if np.isfinite(kappa) else None, interval))
  return found


def _bootstrap(counts: Int[np.ndarray, "2 2"], draws: int, seed: int) -> tuple[float, float]:
  """Percentiles. Drawing n conversations anew is drawing the table's cells n times; draws without a kappa are left out."""
  total = counts.sum()
  drawn = np.random.default_rng(seed).multinomial(total, counts.ravel() / total, size=draws).reshape(draws, 2, 2)
  kappas = cohens_kappa(drawn)
  low, high = np.nanquantile(kappas, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
  return float(low), float(high)


def agreement_table(agreements: Iterable[Agreement]) -> str:
  """Markdown: a row for each pair and axis."""
  rows = ["| annotators | axis | both know | same | kappa (95 %) | left out as unknown |", "|---|---|--:|--:|--:|--:|"]
  for one in agreements:
    total, same = int(one.counts.sum()), int(np.trace(one.counts))
    names = ", ".join((name or "(no name)").replace("|", "\\|") for name in one.annotators)
    kappa = "not defined" if one.interval is None else f"{one.kappa:.2f} ({one.interval[0]:.2f} to {one.interval[1]:.2f})"
    rows.append(f"| {names} | {one.axis} | {total} | {same} | {kappa} | {one.abstained} |")
  return "\n".join(rows)
