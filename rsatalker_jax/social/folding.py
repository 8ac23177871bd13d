"""The Gaussian offsetnet (Eq. 8) as plain arrays for programs without JAX, such as offsets.js of `media`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from rsatalker_jax.social.networks import OFFSET_INPUTS, GaussianOffsetNet, encode_time
from rsatalker_jax.types import MOTION_DIM


def fold_offsets(
    net: GaussianOffsetNet, params: Mapping[str, Any], queries: Float[np.ndarray, "R Q"], statistics: Mapping[str, Float[np.ndarray, "56"]]
) -> dict[str, Float[np.ndarray, "_ _"]]:
  """Arrays of an offsetnet for some relations, whose part of the first layer is computed here.

  Args:
    net, params: the module and its variables.
    queries: the query q of each relation.
    statistics: motion_mean and motion_std, by which motion is standardised.

  Returns:
    By name: `start` (R, H), what the hidden layer is given whatever the frame, or (1, H) where relations do not matter; where the
    network is told of time or motion `time/kernel` (H, 14), and `motion/kernel` (H, 56), `motion_mean` and `motion_std` (1, 56);
    `out/kernel` (3F, H), `out/bias` (1, 3F).
  """
  layers = {name: {key: np.asarray(x, np.float32) for key, x in layer.items()} for name, layer in params["params"].items()}
  sizes = {"relation": queries.shape[1], "time": encode_time(np.zeros(())).shape[0], "motion": MOTION_DIM}
  names = [name for name in OFFSET_INPUTS if name in net.inputs]
  ends = np.cumsum([sizes[name] for name in names])
  kernels = dict(zip(names, np.split(layers["hidden"]["kernel"], ends[:-1]), strict=True))
  start = layers["hidden"]["bias"][None]
  arrays = {"start": start + queries @ kernels["relation"] if "relation" in kernels else start}
  arrays |= {f"{name}/kernel": kernels[name].T for name in ("time", "motion") if name in kernels}
  if "motion" in kernels:
    arrays |= {name: np.asarray(statistics[name], np.float32)[None] for name in ("motion_mean", "motion_std")}
  return arrays | {"out/kernel": layers["out"]["kernel"].T, "out/bias": layers["out"]["bias"][None]}
