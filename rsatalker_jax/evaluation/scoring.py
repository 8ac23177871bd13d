"""Scores of a trained run: generated motion against the truth, rendered frames against the video."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.evaluation import image_metrics, motion_metrics, tables
from rsatalker_jax.types import MOTION_GROUPS, Motion

Images = Float[np.ndarray, "T H W 3"]

_MOTION_COLUMNS = [f"{metric}/{group}" for metric in ("fd", "p_fd", "mse") for group in MOTION_GROUPS]
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


def score_motion(generate: Callable[[MotionClip], Motion], clips: Sequence[MotionClip]) -> dict[str, float]:
  """Mean over clips of every motion metric, raw (`motion_metrics.TABLE_SCALES` has the tables' factors)."""
  scores = [motion_metrics.evaluate_motion(generate(clip), clip.motion_b, clip.motion_a) for clip in clips]
  return motion_metrics.mean_metrics(scores)


def score_frames(pairs: Iterable[tuple[Images, Images]], lpips_nets: Sequence[str] = ("alex",)) -> dict[str, float]:
  """Mean over frames of every image metric, from chunks of (rendered, true) frames; LPIPS by these networks."""
  metrics = _IMAGE_METRICS | {
      f"lpips_{net}": functools.partial(image_metrics.lpips, net=net) for net in lpips_nets
  }
  score = jax.jit(lambda a, b: {name: metric(a, b) for name, metric in metrics.items()})
  chunks = [jax.device_get(score(rendered, truth)) for rendered, truth in pairs]
  return {name: float(np.mean(np.concatenate([chunk[name] for chunk in chunks]))) for name in metrics}


def motion_table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
  """FD, P-FD and MSE in the scales of the published tables.

  Args:
    rows: scores by name, one for each seed: the mean is shown, and with several seeds the spread (half the distance from
      the lowest to the highest); dashes if there are none.
  """
  group_names = {"expression": "EXP", "jaw": "JAW", "pose": "POSE"}
  columns = []
  for name in _MOTION_COLUMNS:
    metric, group = name.split("/")
    scale = motion_metrics.TABLE_SCALES[metric][group]
    power = "" if scale == 1 else f" ×10{'¹²³'[round(np.log10(scale)) - 1]}"
    columns.append(f"{metric.upper().replace('_', '-')} {group_names[group]}{power}")

  def cell(name: str, seeds: Sequence[Mapping[str, float]]) -> float | str | None:
    if len(seeds) < 2:
      return motion_metrics.table_value(name, seeds[0][name]) if seeds else None
    values = [motion_metrics.table_value(name, scores[name]) for scores in seeds]
    return f"{np.mean(values):.3g} ± {np.ptp(values) / 2:.1g}"

  values = {row: [cell(name, seeds) for name in _MOTION_COLUMNS] for row, seeds in rows.items()}
  return tables.markdown_table(columns, values)


def image_table(rows: Mapping[str, Mapping[str, float]]) -> str:
  """L1, PSNR, SSIM and LPIPS, a column for each that was computed."""
  names = [name for name in _IMAGE_TITLES if all(name in scores for scores in rows.values())]
  values = {row: [scores[name] for name in names] for row, scores in rows.items()}
  return tables.markdown_table([_IMAGE_TITLES[name] for name in names], values)
