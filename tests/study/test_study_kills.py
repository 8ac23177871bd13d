"""A server that is killed while participants answer loses nothing that it acknowledged."""

from benchmarks import study_kills


def test_nothing_acknowledged_is_lost(tmp_path):
  """A small form of the benchmark, which docs/study.md has the numbers of."""
  outcome = study_kills.simulate(tmp_path, participants=8, methods=2, conversations=3, kills=5, seed=1)
  assert outcome.kills == 5
  assert len(outcome.acknowledged) == len(outcome.stored) == 8 * 2 * 3
  assert outcome.lost == []
