"""Whether it helps a generator to be told the relation: it is told the true one, none, and a random other one.

DyaDiT (CVPR 2026) reports its labels' worth on real conversations like this, by FD: it is the only public evidence of this
kind. None is what the social module makes of "unknown", the mean of its vectors.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.evaluation.bootstrap import paired_bootstrap
from rsatalker_jax.evaluation.motion_metrics import evaluate_distances
from rsatalker_jax.evaluation.relation_probe import RelationProbe, relation_index
from rsatalker_jax.social.relation import UNKNOWN
from rsatalker_jax.types import Motion

TOLD = ("true", "none", "random")
DIFFERENCES = (("none", "true"), ("random", "none"))

_SCORES = ("mse/expression", "mse/pose", "fd/expression", "fd/pose")


def tell(clip: MotionClip, relation) -> MotionClip:
  """The same clip for a generator that is told this relation; None: that it is unknown."""
  relation = (UNKNOWN, UNKNOWN) if relation is None else relation
  return dataclasses.replace(clip, relation=np.array(relation, np.int32))


class RelationTest:
  """Scores of the same clips under three labels, clip by clip.

  Args:
    probe: whose misfit of the true relation is a score too: how badly the motion answers as the true relation would.
  """

  def __init__(self, probe: RelationProbe):
    self._probe = probe
    self._values: dict[str, dict[str, list[float]]] = {}

  def add(self, clip: MotionClip, motions: Mapping[str, Motion]) -> None:
    """Another clip.

    Args:
      clip: with ground truth, and a relation that the probe knows.
      motions: what was generated, by what was told (`TOLD`).
    """
    label = self._probe.relations.index(relation_index(clip.relation))
    for told in TOLD:
      distances = evaluate_distances(motions[told], clip.motion_b)
      scores = {name: distances[name] for name in _SCORES}
      scores["relation/misfit"] = float(self._probe.misfits(clip.motion_a, motions[told])[label])
      for name, value in scores.items():
        self._values.setdefault(name, {}).setdefault(told, []).append(value)

  def result(self) -> dict[str, dict[str, float | tuple[float, float, float]]] | None:
    """By score: means over clips, "true", "none", "random"; and "none - true" and "random - none", mean and 95 % confidence
    interval over clips (`bootstrap.paired_bootstrap`). Above 0 the label that is subtracted helps. None of fewer than two
    clips."""
    if len(next(iter(self._values.values()), {}).get("true", ())) < 2:
      return None
    result: dict[str, dict[str, float | tuple[float, float, float]]] = {}
    for name, by_label in self._values.items():
      values = {told: np.array(by_label[told]) for told in TOLD}
      result[name] = {told: float(value.mean()) for told, value in values.items()}
      result[name] |= {f"{more} - {less}": paired_bootstrap(values[more] - values[less]) for more, less in DIFFERENCES}
    return result
