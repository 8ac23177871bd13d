"""Cohen's kappa against published examples, scikit-learn and a bootstrap that draws conversations one by one."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from rsatalker_jax.data.relations import RelationLabel
from rsatalker_jax.evaluation.agreement import agreement_table, cohens_kappa, measure_agreement


def labels_of(annotator, values, first=0):
  return [RelationLabel(f"c{first + i:03}", np.array(value, np.int32), annotator) for i, value in enumerate(values)]


def test_published_tables():
  """Cohen 1960's own table of three categories of 200 cases; two of 100 with the same agreement and another kappa."""
  np.testing.assert_allclose(cohens_kappa(np.array([[88, 14, 18], [10, 40, 10], [2, 6, 12]])), 0.492, atol=5e-4)
  both = np.array([[[45, 15], [25, 15]], [[25, 35], [5, 35]]])
  np.testing.assert_allclose(cohens_kappa(both), [0.1304, 0.2593], atol=5e-5)
  assert cohens_kappa(np.array([[3, 0], [0, 4]])) == 1.0 and cohens_kappa(np.array([[0, 2], [2, 0]])) == -1.0
  assert np.isnan(cohens_kappa(np.array([[[5, 0], [0, 0]], [[0, 0], [0, 0]]]))).all()


def test_pairs_axes_and_abstentions_against_scikit_learn():
  rng = np.random.default_rng(0)
  ann = rng.integers(-1, 2, (60, 2))
  ben = np.where(rng.random((60, 2)) < 0.7, ann, rng.integers(-1, 2, (60, 2)))
  found = measure_agreement(labels_of("ben", ben[10:], first=10) + labels_of("ann", ann[:50]) + labels_of("cy", ann[50:], first=50))
  assert [(one.annotators, one.axis) for one in found] == [
      (("ann", "ben"), "blood"), (("ann", "ben"), "equal"), (("ben", "cy"), "blood"), (("ben", "cy"), "equal")]  # fmt: skip
  for axis in (0, 1):
    a, b = ann[10:50, axis], ben[10:50, axis]
    known = (a >= 0) & (b >= 0)
    one = found[axis]
    assert one.abstained == 40 - known.sum() > 0 and one.counts.sum() == known.sum()
    assert one.counts[0, 1] == (known & (a == 0) & (b == 1)).sum() and one.counts[1, 0] == (known & (a == 1) & (b == 0)).sum()
    np.testing.assert_allclose(one.kappa, cohen_kappa_score(a[known], b[known]), atol=1e-12)
    a, b = a[known], b[known]
    draws = rng.integers(0, len(a), (1000, len(a)))
    expected = np.nanquantile([cohen_kappa_score(a[draw], b[draw], labels=[0, 1]) for draw in draws], [0.025, 0.975])
    np.testing.assert_allclose(one.interval, expected, atol=0.06)  # Quantiles of 1000 draws of about 0.15 standard deviation.
    assert one.interval[0] < one.kappa < one.interval[1]


def test_where_kappa_is_not_defined():
  same = measure_agreement(labels_of("ann", [[1, -1]] * 4) + labels_of("ben", [[1, 0]] * 4))
  assert [(one.kappa, one.interval, one.counts.sum(), one.abstained) for one in same] == [(None, None, 4, 0), (None, None, 0, 4)]
  assert measure_agreement(labels_of("ann", [[1, 1]])) == []
  assert measure_agreement(labels_of("ann", [[1, 1]]) + labels_of("ben", [[1, 1]], first=1)) == []
  # A quarter of the draws from two conversations has but one word and no kappa; the others have 0.
  (rare, _) = measure_agreement(labels_of("ann", [[1, 1]] * 2) + labels_of("ben", [[1, 1], [0, 1]]))
  assert rare.kappa == 0.0 and rare.interval == (0.0, 0.0)


def test_table():
  ann, ben = [[1, 1], [1, 0], [0, -1], [0, 0]], [[1, 1], [0, 0], [0, 1], [0, 1]]
  table = agreement_table(measure_agreement(labels_of("", ann) + labels_of("b|n", ben), draws=200)).splitlines()
  assert len(table) == 4 and table[2].startswith("| (no name), b\\|n | blood | 4 | 3 | 0.50 (") and table[2].endswith(") | 0 |")
  assert table[3].startswith("| (no name), b\\|n | equal | 3 | 2 | 0.40 (") and table[3].endswith(") | 1 |")
  undefined = agreement_table(measure_agreement(labels_of("a", [[1, 1]]) + labels_of("b", [[1, 1]])))
  assert undefined.count("| not defined |") == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_same_seed_same_interval(seed):
  rng = np.random.default_rng(seed)
  labels = labels_of("a", rng.integers(0, 2, (30, 2))) + labels_of("b", rng.integers(0, 2, (30, 2)))
  intervals = [[one.interval for one in measure_agreement(labels, seed=s)] for s in (3, 3, 4)]
  assert intervals[0] == intervals[1] != intervals[2]
