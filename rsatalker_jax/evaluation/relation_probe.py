"""Relation probe: names the relation of two people from how one's motion answers the other's, and from nothing else.

One linear model per relation predicts B's slow motion from what A showed a moment before; fitted on true motion, they are
compared by how well each explains a clip: the relation of the best one is named. So the probe knows p(B | A, relation)
and not how A moves, which would tell the relation whatever B does. Generated motion that is smoother than the truth keeps
its covariance with A, and with it the order of the models.

An automatic stand-in for social relationship accuracy, which people judge in the paper (Sec. 4).
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.social.relation import RELATIONS, UNKNOWN, format_relation, parse_relation
from rsatalker_jax.types import FPS, MOTION_GROUPS, Motion, Motions

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
  """Fits the probe to true motion.

  Args:
    clips: (motion of A, motion of B, [blood, equal]) of the training conversations. Those of unknown relation and those
      shorter than `least_frames()` are left out.

  Returns:
    The probe, or None if fewer than two relations are left.
  """
  labelled = [(a, b, relation_index(relation)) for a, b, relation in clips if len(a) >= least_frames()]
  labelled = [clip for clip in labelled if clip[2] is not None]
  relations = tuple(sorted({label for *_, label in labelled}))
  if len(relations) < 2:
    return None
  basis = _fit_basis(np.concatenate([_slow(b) for _, b, _ in labelled]))
  answers, residuals = [], []
  for relation in relations:
    designs = [_design(a, b, basis) for a, b, label in labelled if label == relation]
    causes, effects = (np.concatenate(parts) for parts in zip(*designs))
    penalty = np.full(causes.shape[1], _RIDGE)
    penalty[-1] = 0.0  # The constant.
    answers.append(np.linalg.solve(causes.T @ causes + np.diag(penalty), causes.T @ effects))
    residuals.append(effects - causes @ answers[-1])
  covariance = np.cov(np.concatenate(residuals), rowvar=False)
  covariance += _SHRINK * np.mean(np.diag(covariance)) * np.eye(len(covariance))
  return RelationProbe(relations, basis, np.stack(answers), np.linalg.inv(covariance))


def score_relation(
    probe: RelationProbe, clips: Sequence[MotionClip], motions: Motions
) -> dict[str, float]:
  """How often the probe names the right relation from A's true motion and `motions` of B.

  Returns:
    "relation/accuracy"; "relation/pieces", the same in pieces of 4 s; "relation/clips", how many clips were counted;
    "relation/left_out", how many not: too short, or of a relation that is unknown or that the probe never saw.
  """
  right, pieces = [], []
  for clip, motion in zip(clips, motions, strict=True):
    label = relation_index(clip.relation)
    if not _is_seen(probe, clip):
      continue
    right.append(probe.name_relation(clip.motion_a, motion) == label)
    for start in range(0, len(motion) - _PIECE + 1, _PIECE):
      part = slice(start, start + _PIECE)
      pieces.append(probe.name_relation(clip.motion_a[part], motion[part]) == label)
  counts = {"relation/clips": len(right), "relation/left_out": len(clips) - len(right)}
  shares = {"relation/accuracy": right, "relation/pieces": pieces}
  return counts | {name: float(np.mean(values)) for name, values in shares.items() if values}


def score_told_relation(
    probe: RelationProbe,
    clips: Sequence[MotionClip],
    generate: Callable[[MotionClip], Motion],
    *,
    seed: int = 0,
) -> dict[str, float]:
  """What generated motion shows when each clip's generator is told one of the other relations, drawn at random.

  Unlike the accuracy above, this cannot be reached by guessing the relation from the conversation, which voices and
  partner give away in part.

  Returns:
    "relation/told_shown": share of clips in which the probe names the relation that was told;
    "relation/told_wrong": share in which it names the true one.
  """
  rng = np.random.default_rng(seed)
  shown, kept = [], []
  for clip in clips:
    if not _is_seen(probe, clip):
      continue
    label = relation_index(clip.relation)
    told = int(rng.choice([relation for relation in probe.relations if relation != label]))
    motion = generate(dataclasses.replace(clip, relation=parse_relation(RELATIONS[told])))
    named = probe.name_relation(clip.motion_a, motion)
    shown.append(named == told)
    kept.append(named == label)
  return {"relation/told_shown": float(np.mean(shown)), "relation/told_wrong": float(np.mean(kept))} if shown else {}


def _is_seen(probe: RelationProbe, clip: MotionClip) -> bool:
  return relation_index(clip.relation) in probe.relations and len(clip.motion_a) >= least_frames()


def _slow(motion: Motion) -> Float[np.ndarray, "n 56"]:
  """Means of successive blocks of frames."""
  count = len(motion) // BLOCK
  return np.asarray(motion[: count * BLOCK], np.float64).reshape(count, BLOCK, -1).mean(axis=1)


def _fit_basis(slow: Float[np.ndarray, "n 56"]) -> Float[np.ndarray, "56 C"]:
  expression, pose = MOTION_GROUPS["expression"], MOTION_GROUPS["pose"]
  _, vectors = np.linalg.eigh(np.cov(slow[:, expression], rowvar=False))
  basis = np.zeros((slow.shape[1], COMPONENTS + pose.stop - pose.start))
  basis[expression, :COMPONENTS] = vectors[:, ::-1][:, :COMPONENTS]
  basis[pose, COMPONENTS:] = np.eye(pose.stop - pose.start)
  spread = (slow @ basis).std(axis=0)
  return basis / np.where(spread > 1e-6, spread, 1.0)  # What never moves is left as it is.


def _design(
    motion_a: Motion, motion_b: Motion, basis: Float[np.ndarray, "56 C"]
) -> tuple[Float[np.ndarray, "n X"], Float[np.ndarray, "n C"]]:
  """Rows of a regression: A's channels at the lags and a 1, and B's channels."""
  if len(motion_a) != len(motion_b) or len(motion_a) < least_frames():
    raise ValueError(f"{len(motion_a)=} and {len(motion_b)=} must be equal and at least {least_frames()}")
  a, b = _slow(motion_a) @ basis, _slow(motion_b) @ basis
  first = max(LAGS)
  causes = [a[first - lag : len(a) - lag] for lag in LAGS]
  return np.concatenate([*causes, np.ones((len(a) - first, 1))], axis=1), b[first:]
