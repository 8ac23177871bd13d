"""Relation probe: names the relation of two people from how one's motion answers the other's, and from nothing else.

One linear model per relation predicts B's slow motion from what A showed a moment before; fitted on true motion, they are
compared by how well each explains a clip: the relation of the best one is named. So the probe knows p(B | A, relation)
and not how A moves, which would tell the relation whatever B does. Generated motion that is smoother than the truth keeps
its covariance with A, and with it the order of the models.

An automatic stand-in for social relationship accuracy, which people judge in the paper (Sec. 4).
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.social.relation import RELATIONS, UNKNOWN, format_relation, parse_relation
from rsatalker_jax.types import FPS, MOTION_DIM, MOTION_GROUPS, Motion

# Chosen on the demo's validation conversations, by the accuracy in pieces of 4 s.
BLOCK = 5  # Frames that are averaged: answers are slower than lips and blinks.
LAGS = (1, 2, 3)  # Blocks between cause and answer: 0.2 to 0.6 s.
COMPONENTS = 12  # Principal components of the expression; the head's rotation is taken as it is, the jaw left out.
_RIDGE = 100.0  # Blocks' worth of evidence for "no answer".
_PIECE = 4 * FPS
_SHRINK = 1e-3  # Of the residuals' covariance towards a multiple of the identity, where clips are few.


def relation_index(relation: Int[np.ndarray, "2"]) -> int | None:
  """Index into `RELATIONS`; None if any part is unknown."""
  return None if UNKNOWN in np.asarray(relation) else RELATIONS.index(format_relation(relation))


@dataclasses.dataclass(frozen=True)
class RelationProbe:
  """A fitted probe.

  Attributes:
    relations: which of `RELATIONS` it can name, by index.
    basis: from motion to standardised channels C = 12 + 3.
    answers: regressions, per relation, of B's channels on A's at the lags and a constant.
    precision: inverse covariance of the true answers' residuals.
  """

  relations: tuple[int, ...]
  basis: Float[np.ndarray, "56 C"]
  answers: Float[np.ndarray, "R X C"]
  precision: Float[np.ndarray, "C C"]

  def misfits(self, motion_a: Motion, motion_b: Motion) -> Float[np.ndarray, "R"]:
    """How badly each relation explains B's motion: mean squared Mahalanobis distance."""
    causes, effects = _design(motion_a, motion_b, self.basis)
    residuals = effects - causes @ self.answers  # (R, n, C)
    return np.einsum("rni,ij,rnj->r", residuals, self.precision, residuals, optimize=True) / len(effects)

  def name_relation(self, motion_a: Motion, motion_b: Motion) -> int:
    """The relation, as an index into `RELATIONS`, under which B's motion answers A's best.

    Raises:
      ValueError: a clip shorter than `least_frames()`.
    """
    return self.relations[int(np.argmin(self.misfits(motion_a, motion_b)))]


def least_frames() -> int:
  """Frames that a clip must have for the probe to see one answer."""
  return BLOCK * (max(LAGS) + 1)


def fit_relation_probe(
    clips: Iterable[tuple[Motion, Motion, Int[np.ndarray, "2"]]]
) -> RelationProbe | None:
  """Fits the probe to true motion, clip by clip: what is kept of each are sums of products.

  Args:
    clips: (motion of A, motion of B, [blood, equal]) of the training conversations. Those of unknown relation and those
      shorter than `least_frames()` are left out.

  Returns:
    The probe, or None if fewer than two relations are left.
  """
  products: dict[int, Float[np.ndarray, "W W"]] = {}  # Of (A at the lags, 1, B), by relation.
  blocks = np.zeros((MOTION_DIM + 1, MOTION_DIM + 1))  # Of (B, 1), of all.
  for motion_a, motion_b, relation in clips:
    label = relation_index(relation)
    if label is None or len(motion_a) < least_frames():
      continue
    rows = np.concatenate(_lag(_slow(motion_a), _slow(motion_b)), axis=1)
    products[label] = products.get(label, 0.0) + rows.T @ rows
    slow = np.pad(_slow(motion_b), ((0, 0), (0, 1)), constant_values=1.0)
    blocks += slow.T @ slow
  relations = tuple(sorted(products))
  if len(relations) < 2:
    return None
  basis = _fit_basis(blocks)
  # Channels are linear in motion, and so are their products in motion's.
  causes = scipy.linalg.block_diag(*[basis] * len(LAGS), 1.0)
  penalty = np.full(causes.shape[1], _RIDGE)
  penalty[-1] = 0.0  # The constant, so that residuals have no mean.
  answers, residuals, count = [], 0.0, 0.0
  for relation in relations:
    both = scipy.linalg.block_diag(causes, basis)
    sums = both.T @ products[relation] @ both
    split = causes.shape[1]
    cc, ce, ee = sums[:split, :split], sums[:split, split:], sums[split:, split:]
    answer = np.linalg.solve(cc + np.diag(penalty), ce)
    residuals += ee - ce.T @ answer - answer.T @ ce + answer.T @ cc @ answer
    count += cc[-1, -1]
    answers.append(answer)
  covariance = residuals / (count - 1)
  covariance += _SHRINK * np.mean(np.diag(covariance)) * np.eye(len(covariance))
  return RelationProbe(relations, basis, np.stack(answers), np.linalg.inv(covariance))


class RelationScores:
  """How often the probe names the right relation from A's true motion and motions of B, over clips that come one by one."""

  def __init__(self, probe: RelationProbe):
    self._probe = probe
    self._right, self._pieces, self._left_out = [], [], 0
    self._shown, self._kept = [], []

  def add(self, clip: MotionClip, motion: Motion) -> None:
    """Another clip, generated under its own relation."""
    label = relation_index(clip.relation)
    if not is_seen(self._probe, clip):
      self._left_out += 1
      return
    self._right.append(self._probe.name_relation(clip.motion_a, motion) == label)
    for start in range(0, len(motion) - _PIECE + 1, _PIECE):
      part = slice(start, start + _PIECE)
      self._pieces.append(self._probe.name_relation(clip.motion_a[part], motion[part]) == label)

  def add_told(self, clip: MotionClip, told: Int[np.ndarray, "2"], motion: Motion) -> None:
    """Another clip, whose generator was told another relation (`choose_other`)."""
    named = self._probe.name_relation(clip.motion_a, motion)
    self._shown.append(named == relation_index(told))
    self._kept.append(named == relation_index(clip.relation))

  def scores(self) -> dict[str, float]:
    """"relation/accuracy"; "relation/pieces", the same in pieces of 4 s; "relation/clips", how many clips were counted;
    "relation/left_out", how many not: too short, or of a relation that is unknown or that the probe never saw.

    And of clips that were told another relation, which, unlike the accuracy, cannot be reached by guessing the relation from
    the conversation, which voices and partner give away in part: "relation/told_shown", the share in which the probe names
    the relation that was told, and "relation/told_wrong", in which it names the true one.
    """
    counts = {"relation/clips": len(self._right), "relation/left_out": self._left_out}
    shares = {"accuracy": self._right, "pieces": self._pieces, "told_shown": self._shown, "told_wrong": self._kept}
    return counts | {f"relation/{name}": float(np.mean(values)) for name, values in shares.items() if values}


def choose_other(probe: RelationProbe, clip: MotionClip, rng: np.random.Generator) -> Int[np.ndarray, "2"]:
  """One of the relations that the probe knows and the clip does not have, at random."""
  label = relation_index(clip.relation)
  return parse_relation(RELATIONS[int(rng.choice([relation for relation in probe.relations if relation != label]))])


def is_seen(probe: RelationProbe, clip: MotionClip) -> bool:
  """Whether the probe can name the clip's relation: it was fitted to such, and the clip shows an answer."""
  return relation_index(clip.relation) in probe.relations and len(clip.motion_a) >= least_frames()


def _slow(motion: Motion) -> Float[np.ndarray, "n 56"]:
  """Means of successive blocks of frames."""
  count = len(motion) // BLOCK
  return np.asarray(motion[: count * BLOCK], np.float64).reshape(count, BLOCK, -1).mean(axis=1)


def _fit_basis(products: Float[np.ndarray, "57 57"]) -> Float[np.ndarray, "56 C"]:
  """Channels of unit spread, from the sums of products of slow motion and a 1."""
  count, mean = products[-1, -1], products[-1, :-1] / products[-1, -1]
  covariance = products[:-1, :-1] / count - np.outer(mean, mean)
  expression, pose = MOTION_GROUPS["expression"], MOTION_GROUPS["pose"]
  _, vectors = np.linalg.eigh(covariance[expression, expression])
  basis = np.zeros((MOTION_DIM, COMPONENTS + pose.stop - pose.start))
  basis[expression, :COMPONENTS] = vectors[:, ::-1][:, :COMPONENTS]
  basis[pose, COMPONENTS:] = np.eye(pose.stop - pose.start)
  spread = np.sqrt(np.maximum(np.diag(basis.T @ covariance @ basis), 0.0))
  return basis / np.where(spread > 1e-6, spread, 1.0)  # What never moves is left as it is.


def _design(
    motion_a: Motion, motion_b: Motion, basis: Float[np.ndarray, "56 C"]
) -> tuple[Float[np.ndarray, "n X"], Float[np.ndarray, "n C"]]:
  """Rows of a regression: A's channels at the lags and a 1, and B's channels."""
  if len(motion_a) != len(motion_b) or len(motion_a) < least_frames():
    raise ValueError(f"{len(motion_a)=} and {len(motion_b)=} must be equal and at least {least_frames()}")
  return _lag(_slow(motion_a) @ basis, _slow(motion_b) @ basis)


def _lag(
    a: Float[np.ndarray, "m D"], b: Float[np.ndarray, "m D"]
) -> tuple[Float[np.ndarray, "n X"], Float[np.ndarray, "n D"]]:
  """A's blocks at the lags and a 1, and B's."""
  first = max(LAGS)
  causes = [a[first - lag : len(a) - lag] for lag in LAGS]
  return np.concatenate([*causes, np.ones((len(a) - first, 1))], axis=1), b[first:]
