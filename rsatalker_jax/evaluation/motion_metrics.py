"""Motion metrics: FD, P-FD, MSE, rPCC and SID, each for expression, jaw and pose.

All are computed per clip on raw coefficients, then averaged over clips. Values here are raw; `TABLE_SCALES` holds the factors
that published tables multiply them by. They are taken in float64 by numpy: eigenvalues of a singular covariance, and roots of
them, lose half the digits, which float32 does not have to lose, and a clip takes milliseconds.

FD, P-FD, MSE and rPCC are those of DualTalk's script (rPCC of a motionless face, there not a number, is here that of a
correlation of 0). Of SID there are three, which must not be compared with each other:

    sid                    k-means of all clips' true motion, entropy of the prediction's labels: how many of the truth's
                           states a clip visits. Ours; what the tables call SID
    sid_per_clip           k-means of the clip's own true motion, entropy of the prediction's labels: as published tables
                           describe it; `sid` in TIMAR's code
    sid_per_clip_swapped   k-means of the clip's prediction, entropy of the *truth's* labels: what DualTalk's script does, since
                           its call swaps the arguments; `reverse_sid` in TIMAR's code

Clusters that are fitted to one clip share its frames nearly evenly, so that per clip the truth itself comes near log2 k
whatever it does: those two say how alike two motions are rather than how diverse one is.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.cluster.vq
from jaxtyping import Bool, Float

from rsatalker_jax.evaluation.dynamics_metrics import LEAST_FRAMES
from rsatalker_jax.types import MOTION_DIM, MOTION_GROUPS, Motion

_MSE_SCALES = {"expression": 1e1, "jaw": 1e3, "pose": 1e2}
TABLE_SCALES = {
    "fd": {"expression": 1.0, "jaw": 1e3, "pose": 1e2},
    "p_fd": {"expression": 1.0, "jaw": 1e3, "pose": 1e2},
    "mse": _MSE_SCALES,
    "mse_speaking": _MSE_SCALES,
    "mse_listening": _MSE_SCALES,
    "sid": {"expression": 1.0, "jaw": 1.0, "pose": 1.0},
    "sid_per_clip": {"expression": 1.0, "jaw": 1.0, "pose": 1.0},
    "sid_per_clip_swapped": {"expression": 1.0, "jaw": 1.0, "pose": 1.0},
    "rpcc": {"expression": 1e2, "jaw": 1e1, "pose": 1e1},
}

SID_CLUSTERS = {"expression": 40, "jaw": 10, "pose": 10}
_CLUSTERED_FRAMES = 100_000  # Over an hour; of more, every second, fourth … frame is clustered: 45 MB at most.

# Of FD, as a share of all variances: a singular covariance has eigenvalues of rounding's size, and their roots are summed.
_ROUNDING = 1e-6


def evaluate_motion(pred: Motion, target: Motion, partner: Motion) -> dict[str, float]:
  """Compares one generated clip with its ground truth.

  Args:
    pred: generated motion of B, (T, 56).
    target: true motion of B.
    partner: true motion of A, for P-FD and rPCC.

  Returns:
    "fd/expression", "p_fd/jaw", "mse/pose", "rpcc/pose" …: raw values.
  """
  if partner.shape != pred.shape:
    raise ValueError(f"{pred.shape=} and {partner.shape=} must be equal")
  metrics = evaluate_distances(pred, target)
  for group, dims in MOTION_GROUPS.items():
    p, t, a = (np.asarray(x, np.float64)[:, dims] for x in (pred, target, partner))
    metrics[f"p_fd/{group}"] = clip_frechet_distance(np.concatenate([a, p], 1), np.concatenate([a, t], 1))
    metrics[f"rpcc/{group}"] = abs(correlation(t, a) - correlation(p, a))
  return metrics


def evaluate_distances(pred: Motion, target: Motion) -> dict[str, float]:
  """Those of `evaluate_motion` that need no partner: "fd/expression" …, "mse/expression" …."""
  if pred.shape != target.shape:
    raise ValueError(f"{pred.shape=} and {target.shape=} must be equal")
  metrics = {}
  for group, dims in MOTION_GROUPS.items():
    p, t = (np.asarray(x, np.float64)[:, dims] for x in (pred, target))
    metrics[f"fd/{group}"] = clip_frechet_distance(p, t)
    metrics[f"mse/{group}"] = float(np.mean((p - t) ** 2))
  return metrics


def errors_by_kind(pred: Motion, target: Motion, kinds: Mapping[str, Bool[np.ndarray, "T"]]) -> dict[str, float]:
  """MSE over the frames of a kind alone: "mse_speaking/jaw", "mse_listening/pose" …, raw.

  Args:
    pred, target: generated and true motion of one clip.
    kinds: frames by name, "speaking" …. Those with fewer than `LEAST_FRAMES` are left out.
  """
  squares = (np.asarray(pred, np.float64) - np.asarray(target, np.float64)) ** 2
  return {
      f"mse_{kind}/{group}": float(np.mean(squares[frames, dims]))
      for kind, frames in kinds.items()
      if np.count_nonzero(frames) >= LEAST_FRAMES
      for group, dims in MOTION_GROUPS.items()
  }


def find_violations(metrics: Mapping[str, float], pred: Motion, target: Motion, partner: Motion) -> list[str]:
  """What of FD, P-FD and MSE cannot be, by their definitions, of whatever motion: a metric, or a motion, is broken.

  For every clip of T frames, in a group of D dimensions:

      FD ≤ P-FD                 FD is the squared 2-Wasserstein distance of two Gaussians, and leaving out dimensions (the
                                partner's) cannot enlarge it
      FD ≤ D · MSE · T/(T − 1)  frames side by side are one coupling of the two Gaussians, FD is of the best

  Args:
    metrics: `evaluate_motion(pred, target, partner)`.

  Returns:
    A line for each inequality that is violated by more than rounding, or has no number in it.
  """
  broken = []
  for group, dims in MOTION_GROUPS.items():
    variances = [np.var(np.asarray(x, np.float64)[:, dims], axis=0).sum() for x in (pred, target, partner)]
    rounding = _ROUNDING * sum(variances)
    fd, p_fd, mse = (metrics[f"{name}/{group}"] for name in ("fd", "p_fd", "mse"))
    most = (dims.stop - dims.start) * mse * len(pred) / (len(pred) - 1)
    for bound, text in ((p_fd, "P-FD"), (most, "D·MSE·T/(T−1)")):
      if not fd <= bound + rounding:
        broken.append(f"{group}: FD {fd:.6g} is more than {text} {bound:.6g}")
  return broken


def mean_metrics(clips: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Averages the metrics of clips, each clip with the same weight; a metric that some clips lack, over those that have it."""
  values: dict[str, list[float]] = {}
  for clip in clips:
    for name, value in clip.items():
      values.setdefault(name, []).append(value)
  return {name: float(np.mean(of_clips)) for name, of_clips in values.items()}


def table_value(name: str, value: float) -> float:
  """Scales a raw value as published tables do: `table_value("mse/jaw", 1.04e-3) == 1.04`."""
  metric, group = name.split("/")
  return value * TABLE_SCALES.get(metric, {}).get(group, 1.0)


def clip_frechet_distance(a: Float[np.ndarray, "T D"], b: Float[np.ndarray, "T2 D"]) -> float:
  """Fréchet distance between the frames of two clips, taken as Gaussians (mean and `np.cov`)."""
  return frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


def frechet_distance(
    mean_a: Float[np.ndarray, "D"],
    cov_a: Float[np.ndarray, "D D"],
    mean_b: Float[np.ndarray, "D"],
    cov_b: Float[np.ndarray, "D D"],
) -> float:
  """‖μa − μb‖² + Tr(Σa + Σb − 2 (Σa Σb)^½).

  The trace of the root is taken from the eigenvalues of Σa^½ Σb Σa^½, which is symmetric: unlike a general matrix root
  it stays real and finite where a covariance is singular, as that of a motion held constant is.
  """
  values, vectors = np.linalg.eigh(cov_a)
  root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
  product = np.linalg.eigvalsh(root @ cov_b @ root)
  trace_root = np.sqrt(np.maximum(product, 0.0)).sum()
  distance = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2.0 * trace_root
  return float(max(distance, 0.0))  # Rounding can leave -1e-18 for equal clips.


def fit_motion_clusters(
    motions: Iterable[Motion], *, seed: int = 0, steps: int = 10
) -> dict[str, Float[np.ndarray, "K D"]]:
  """k-means centres of motion for SID: 40 of expression, 10 of jaw and pose, or as many as there are different frames.

  Motions are taken one by one; of more than 100,000 frames every second is left out, as often as it takes.
  """
  frames = _thin_out(motions).astype(np.float64)
  centres = {}
  for group, dims in MOTION_GROUPS.items():
    count = min(SID_CLUSTERS[group], len(np.unique(frames[:, dims], axis=0)))
    with warnings.catch_warnings():
      warnings.filterwarnings("ignore", "One of the clusters is empty")  # No frame then has its label.
      centres[group] = scipy.cluster.vq.kmeans2(frames[:, dims], count, iter=steps, minit="++", rng=seed)[0]
  return centres


def _thin_out(motions: Iterable[Motion]) -> Float[np.ndarray, "n 56"]:
  kept, stride, position = [np.zeros((0, MOTION_DIM), np.float32)], 1, 0
  for motion in motions:
    kept.append(motion[-position % stride :: stride].copy())  # A view would keep all of it.
    position += len(motion)
    while sum(map(len, kept)) > _CLUSTERED_FRAMES:
      kept, stride = [np.concatenate(kept)[::2]], 2 * stride
  return np.concatenate(kept)


def fit_clip_clusters(motion: Motion) -> dict[str, Float[np.ndarray, "K D"]]:
  """k-means centres of one clip alone, in as many steps as others' code takes until nothing changes."""
  return fit_motion_clusters([motion], steps=100)


def motion_diversity(
    motion: Motion, clusters: Mapping[str, Float[np.ndarray, "K D"]], *, name: str = "sid"
) -> dict[str, float]:
  """Shannon's index for diversity: entropy in bits of the clusters that a clip's frames fall into, "<name>/jaw" …."""
  metrics = {}
  for group, dims in MOTION_GROUPS.items():
    labels, _ = scipy.cluster.vq.vq(np.asarray(motion, np.float64)[:, dims], clusters[group])
    share = np.bincount(labels) / len(labels)
    share = share[share > 0]
    metrics[f"{name}/{group}"] = float(-(share * np.log2(share)).sum())
  return metrics


def clip_diversity(
    pred: Motion, target: Motion, target_clusters: dict[str, Float[np.ndarray, "K D"]]
) -> dict[str, float]:
  """SID per clip in both orders: "sid_per_clip/jaw" …, "sid_per_clip_swapped/jaw" …, as other projects compute it.

  Args:
    pred, target: generated and true motion of one clip.
    target_clusters: `fit_clip_clusters(target)`.
  """
  return motion_diversity(pred, target_clusters, name="sid_per_clip") | motion_diversity(
      target, fit_clip_clusters(pred), name="sid_per_clip_swapped"
  )


def correlation(a: Float[np.ndarray, "..."], b: Float[np.ndarray, "..."]) -> float:
  """Pearson's correlation of all entries; 0 where one side does not vary."""
  a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return 0.0
  a, b = a - a.mean(), b - b.mean()
  return float(a @ b / np.sqrt((a @ a) * (b @ b)))
