"""Scores of a trained run: generated motion against the truth, rendered frames against the video."""

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
    "lpips_alex": lambda a, b: image_metrics.lpips(a, b, "alex"),
    "lpips_vgg": lambda a, b: image_metrics.lpips(a, b, "vgg"),
}


def score_motion(generate: Callable[[MotionClip], Motion], clips: Sequence[MotionClip]) -> dict[str, float]:
  """Mean over clips of every motion metric, raw (`motion_metrics.TABLE_SCALES` has the tables' factors)."""
  scores = [motion_metrics.evaluate_motion(generate(clip), clip.motion_b, clip.motion_a) for clip in clips]
  return motion_metrics.mean_metrics(scores)


def score_frames(pairs: Iterable[tuple[Images, Images]]) -> dict[str, float]:
  """Mean over frames of every image metric, from chunks of (rendered, true) frames."""
  score = jax.jit(lambda a, b: {name: metric(a, b) for name, metric in _IMAGE_METRICS.items()})
  chunks = [jax.device_get(score(rendered, truth)) for rendered, truth in pairs]
  return {name: float(np.mean(np.concatenate([chunk[name] for chunk in chunks]))) for name in _IMAGE_METRICS}


def motion_table(rows: Mapping[str, Mapping[str, float] | None]) -> str:
  """FD, P-FD and MSE in the scales of the published tables; a row without scores gets dashes."""
  group_names = {"expression": "EXP", "jaw": "JAW", "pose": "POSE"}
  columns = []
  for name in _MOTION_COLUMNS:
    metric, group = name.split("/")
    scale = motion_metrics.TABLE_SCALES[metric][group]
    power = "" if scale == 1 else f" ×10{'¹²³'[round(np.log10(scale)) - 1]}"
    columns.append(f"{metric.upper().replace('_', '-')} {group_names[group]}{power}")
  values = {
      row: [None if scores is None else motion_metrics.table_value(name, scores[name]) for name in _MOTION_COLUMNS]
      for row, scores in rows.items()
  }
  return tables.markdown_table(columns, values)


def image_table(rows: Mapping[str, Mapping[str, float]]) -> str:
  """L1, PSNR, SSIM and LPIPS."""
  columns = ["L1", "PSNR (dB)", "PSNR per channel (dB)", "SSIM", "LPIPS Alex", "LPIPS VGG"]
  return tables.markdown_table(columns, {row: [scores[name] for name in _IMAGE_METRICS] for row, scores in rows.items()})
