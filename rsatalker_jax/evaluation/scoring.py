"""Scores of a trained run: generated motion against the truth, rendered frames against the video."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.evaluation import image_metrics, lip_metrics, motion_metrics, relation_probe, tables
from rsatalker_jax.types import MOTION_GROUPS, Motion, Motions

Images = Float[np.ndarray, "_ _ _ 3"]  # Frames, height, width; chunks differ in length.
Rows = Mapping[str, Sequence[Mapping[str, float]]]  # Scores by name, a list with one for each seed.

_IMAGE_METRICS = {
    "l1": image_metrics.l1,
    "psnr": image_metrics.psnr,
    "psnr_per_channel": image_metrics.psnr_per_channel,
    "ssim": image_metrics.ssim,
}
_IMAGE_TITLES = {
    "l1": "L1 ↓",
    "psnr": "PSNR (dB) ↑",
    "psnr_per_channel": "PSNR per channel (dB) ↑",
    "ssim": "SSIM ↑",
    "lpips_alex": "LPIPS Alex ↓",
    "lpips_vgg": "LPIPS VGG ↓",
}


@dataclasses.dataclass(frozen=True)
class MotionScorer:
  """Scores motion generators on the same clips: the motion metrics, and what the fields below allow.

  Attributes:
    clips: with ground truth.
    clusters: k-means centres of their true motion, for SID (`motion_metrics` tells which SID is which).
    probe: names the relation from both people's motion; None leaves that out.
    lips: opening of the lips from motion, with `speaking` (a mask per clip); None leaves both out.
    closures: the bilabials of each clip, where they are known.
    seed: of the wrong relations that are told.
  """

  clips: Sequence[MotionClip]
  clusters: Mapping[str, Float[np.ndarray, "K D"]]
  probe: relation_probe.RelationProbe | None = None
  lips: Callable[[Motion], Float[np.ndarray, "T"]] | None = None
  speaking: Sequence[Bool[np.ndarray, "T"]] = ()
  closures: Sequence[Sequence[lip_metrics.Closure]] | None = None
  seed: int = 0

  def score(self, generate: Callable[[MotionClip], Motion]) -> dict[str, float]:
    """Mean over clips of every motion metric, raw (`motion_metrics.TABLE_SCALES` has the tables' factors), and scores of
    lips ("lips/…", `lip_metrics.score_lips`) and of the relation ("relation/…", `relation_probe`)."""
    scores = self._score_motions([generate(clip) for clip in self.clips])
    if self.probe is not None:
      scores |= relation_probe.score_told_relation(self.probe, self.clips, generate, seed=self.seed)
    return scores

  def score_truth(self) -> dict[str, float]:
    """The same of the true motion itself: what a perfect generator would score."""
    return self._score_motions([clip.motion_b for clip in self.clips])

  def _score_motions(self, motions: Motions) -> dict[str, float]:
    scores = motion_metrics.mean_metrics([
        motion_metrics.evaluate_motion(motion, clip.motion_b, clip.motion_a)
        | motion_metrics.motion_diversity(motion, self.clusters)
        | motion_metrics.clip_diversity(motion, clip.motion_b, own_clusters)
        for motion, clip, own_clusters in zip(motions, self.clips, self._clip_clusters, strict=True)
    ])
    if self.lips is not None:
      openings = [self.lips(motion) for motion in motions]
      scores |= lip_metrics.score_lips(openings, self._true_openings, self.speaking, self.closures)
    if self.probe is not None:
      scores |= relation_probe.score_relation(self.probe, self.clips, motions)
    return scores

  @functools.cached_property
  def _clip_clusters(self) -> list[dict[str, Float[np.ndarray, "K D"]]]:
    return [motion_metrics.fit_clip_clusters(clip.motion_b) for clip in self.clips]

  @functools.cached_property
  def _true_openings(self) -> list[Float[np.ndarray, "T"]]:
    return [self.lips(clip.motion_b) for clip in self.clips]


def score_frames(pairs: Iterable[tuple[Images, Images]], lpips_nets: Sequence[str] = ("alex",)) -> dict[str, float]:
  """Mean over frames of every image metric, from chunks of (rendered, true) frames; LPIPS by these networks."""
  score = _compiled_image_metrics(tuple(lpips_nets))
  chunks = [jax.device_get(score(rendered, truth)) for rendered, truth in pairs]
  return {name: float(np.mean(np.concatenate([chunk[name] for chunk in chunks]))) for name in chunks[0]}


def score_images(rendered: Images, truth: Images, lpips_nets: Sequence[str] = ("alex",), *, chunk: int = 16) -> dict[str, float]:
  """`score_frames` of any number of frames, `chunk` at a time."""
  starts = range(0, len(truth), chunk)
  return score_frames(((rendered[i : i + chunk], truth[i : i + chunk]) for i in starts), lpips_nets)


@functools.cache
def _compiled_image_metrics(lpips_nets: tuple[str, ...]):
  """All image metrics at once; kept, so that scoring again compiles nothing."""
  metrics = _IMAGE_METRICS | {
      f"lpips_{net}": functools.partial(image_metrics.lpips, net=net) for net in lpips_nets
  }
  return jax.jit(lambda a, b: {name: metric(a, b) for name, metric in metrics.items()})


def motion_table(rows: Rows) -> str:
  """FD, P-FD and MSE in the scales of the published tables (see `_seeds_table` for rows)."""
  return _seeds_table(_group_columns("fd", "p_fd", "mse"), rows)


def diversity_table(rows: Rows) -> str:
  """SID and rPCC in the scales of the published tables."""
  return _seeds_table(_group_columns("sid", "rpcc"), rows)


def clip_diversity_table(rows: Rows) -> str:
  """SID with k-means fitted to each clip, in both orders."""
  return _seeds_table(_group_columns("sid_per_clip", "sid_per_clip_swapped"), rows)


def lip_table(rows: Rows) -> str:
  """Lips of the person generated; bilabials only where their times are known."""
  columns = {
      "lips/correlation": "opening while speaking, r ↑",
      "lips/pooled_correlation": "all clips pooled, r ↑",
      "lips/false_closures": "closed in error ↓",
      "lips/bilabials": "bilabials closed ↑",
  }
  columns |= {f"lips/bilabials_{phone}": phone for phone in "PBM"}
  return _seeds_table(columns, rows)


def relation_table(rows: Rows) -> str:
  """What the relation probe names, as shares of the clips."""
  return _seeds_table(
      {
          "relation/accuracy": "named right ↑",
          "relation/pieces": "in 4 s ↑",
          "relation/told_shown": "told another: shows that ↑",
          "relation/told_wrong": "… shows the true one ↓",
      },
      rows,
  )


def _group_columns(*metrics: str) -> dict[str, str]:
  """Columns of metrics that are taken per group: {"fd/jaw": "FD JAW ×10³"}."""
  group_names = {"expression": "EXP", "jaw": "JAW", "pose": "POSE"}
  titles = {"rpcc": "rPCC", "sid_per_clip": "SID per clip", "sid_per_clip_swapped": "swapped SID per clip"}
  columns = {}
  for metric in metrics:
    for group in MOTION_GROUPS:
      scale = motion_metrics.TABLE_SCALES[metric][group]
      power = "" if scale == 1 else f" ×10{'¹²³'[round(np.log10(scale)) - 1]}"
      columns[f"{metric}/{group}"] = f"{titles.get(metric, metric.upper().replace('_', '-'))} {group_names[group]}{power}"
  return columns


def _seeds_table(columns: Mapping[str, str], rows: Rows) -> str:
  """A table of scores.

  Args:
    columns: titles by score; those that no row has are left out.
    rows: scores by name, one for each seed: the mean is shown, and with several seeds the spread (half the distance from
      the lowest to the highest); dashes where there are none.
  """
  columns = {name: title for name, title in columns.items() if any(name in seed for row in rows.values() for seed in row)}

  def cell(name: str, seeds: Sequence[Mapping[str, float]]) -> float | str | None:
    values = [motion_metrics.table_value(name, scores[name]) for scores in seeds if name in scores]
    if len(values) < 2:
      return values[0] if values else None
    return f"{np.mean(values):.3g} ± {np.ptp(values) / 2:.1g}"

  values = {row: [cell(name, seeds) for name in columns] for row, seeds in rows.items()}
  return tables.markdown_table(list(columns.values()), values)


def image_table(rows: Mapping[str, Mapping[str, float]]) -> str:
  """L1, PSNR, SSIM and LPIPS, a column for each that was computed."""
  names = [name for name in _IMAGE_TITLES if all(name in scores for scores in rows.values())]
  values = {row: [scores[name] for name in names] for row, scores in rows.items()}
  return tables.markdown_table([_IMAGE_TITLES[name] for name in names], values)


def film_table(films: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
  """PSNR of each film, a column for each row of its scores."""
  titles = list(next(iter(films.values())))
  return tables.markdown_table(titles, {film: [rows[title]["psnr"] for title in titles] for film, rows in films.items()})
