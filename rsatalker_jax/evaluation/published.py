"""Rows of published tables, in the tables' own units. They are of other data than ours and stand below a rule.

"RSATalker" is the paper (Tables 1 and 2). TIMAR's rows, and DualTalk's weights scored by its authors, are those of the table
in its repository, for a context of 8 s (github.com/CoderChen01/towards-seamless-interaction).

docs/evaluation.md tells what the paper's Table 1 shows about itself.
"""

from collections.abc import Mapping

from rsatalker_jax.evaluation.motion_metrics import TABLE_SCALES
from rsatalker_jax.types import MOTION_GROUPS

MOTION_DATA = "published, on DualTalk's test set"
IMAGE_DATA = "published, on the paper's own films"


def _motion(fd, p_fd, mse) -> dict[str, float]:
  metrics = {"fd": fd, "p_fd": p_fd, "mse": mse}
  return {f"{name}/{group}": value for name, row in metrics.items() for group, value in zip(MOTION_GROUPS, row, strict=True)}


# Units of the published tables, which `motion_metrics.TABLE_SCALES` makes of raw values.
MOTION = {
    "FaceFormer (paper)": _motion((34.90, 5.40, 8.00), (34.90, 5.40, 8.00), (6.97, 1.80, 2.67)),
    "CodeTalker (paper)": _motion((48.57, 6.89, 10.74), (48.57, 6.89, 10.74), (9.71, 2.29, 3.58)),
    "EmoTalk (paper)": _motion((29.86, 4.33, 7.54), (30.20, 4.36, 7.58), (6.88, 1.76, 2.59)),
    "DiffusionTalker (paper)": _motion((30.67, 4.89, 8.23), (36.71, 5.98, 7.43), (6.54, 1.63, 2.57)),
    "SelfTalk (paper)": _motion((35.77, 5.49, 8.14), (35.77, 5.49, 8.14), (7.15, 1.83, 2.71)),
    "L2L (paper)": _motion((24.61, 3.69, 7.08), (24.99, 3.74, 7.13), (5.68, 1.48, 2.49)),
    "DualTalk (paper)": _motion((11.14, 1.90, 3.83), (11.88, 1.97, 3.97), (3.59, 1.04, 1.72)),
    "RSATalker (paper)": _motion((10.68, 2.05, 3.43), (10.21, 1.82, 4.34), (2.98, 1.12, 1.65)),
    "DualTalk (rerun by TIMAR)": _motion((11.26, 1.67, 3.29), (12.41, 1.78, 3.53), (4.20, 1.20, 1.92)),
    "TIMAR": _motion((8.97, 1.57, 3.08), (9.93, 1.65, 3.28), (3.58, 1.07, 1.61)),
}

# The paper does not say which network its LPIPS compares.
IMAGES = {
    "ER-NeRF (paper)": {"l1": 0.0468, "psnr": 19.8098, "ssim": 0.8856, "lpips_alex": 0.1413},
    "SyncTalk (paper)": {"l1": 0.0288, "psnr": 20.9312, "ssim": 0.9184, "lpips_alex": 0.1035},
    "GaussianTalker (paper)": {"l1": 0.0224, "psnr": 21.3262, "ssim": 0.9164, "lpips_alex": 0.0967},
    "RSATalker (paper)": {"l1": 0.0198, "psnr": 22.9979, "ssim": 0.9377, "lpips_alex": 0.0560},
}

_ROUNDING = 0.01  # As a share: of numbers with two decimals, and of T/(T − 1) for clips of several seconds.


def is_possible(scores: Mapping[str, float]) -> bool:
  """Whether a row of `MOTION` keeps FD ≤ P-FD and FD ≤ D·MSE·T/(T−1), which hold for every clip, and so for means over clips
  (`motion_metrics.find_violations`)."""
  for group, dims in MOTION_GROUPS.items():
    fd, p_fd, mse = (scores[f"{name}/{group}"] / TABLE_SCALES[name][group] for name in ("fd", "p_fd", "mse"))
    if fd > (1 + _ROUNDING) * min(p_fd, (dims.stop - dims.start) * mse):
      return False
  return True
