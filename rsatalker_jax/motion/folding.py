"""A causal generator as plain arrays for programs without JAX, such as generator.js of `media`.

Modules keep their names, their parts behind a slash ("social_fusion/layer_0/attention/query/kernel"). What depends on the
relation alone is computed here, a row for each relation: the motion social feature, and norms' scales and shifts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from rsatalker_jax.errors import InputError
from rsatalker_jax.motion.generator import MotionGenerator
from rsatalker_jax.speech.logmel import LogMel


def fold_generator(
    generator: MotionGenerator, variables: Mapping[str, Any], socials: Float[np.ndarray, "R D"]
) -> tuple[dict[str, Any], dict[str, Float[np.ndarray, "n c"]]]:
  """Sizes and arrays of a generator for some relations.

  Args:
    generator: one that `check_foldable` lets pass.
    variables: its collections "params" and "statistics".
    socials: the motion social feature of each relation.

  Returns:
    Sizes and switches by the names that generator.js has for them; and arrays by name: `social`, `motion_mean`, `motion_std`,
    kernels (out, in), biases (1, out), `distance_bias` (heads, reach + 1), norms' `scale` and `shift` (R, D), or (1, D) where
    they are the same for all relations.
  """
  c = generator.config
  settings = {
      "features": c.features, "heads": c.heads, "reach": c.reach, "mlp": c.mlp_ratio * c.features,
      "encoderLayers": c.encoder_layers, "decoderLayers": c.decoder_layers,
      "speechHidden": c.speech_hidden, "speechLayers": c.speech_layers, "speechKernel": c.speech_kernel,
      "motionKernel": c.motion_kernel, "motionStride": c.motion_stride, "usePartner": c.use_partner,
      "useOwnSpeech": c.use_own_speech, "residual": c.residual, "queryTime": c.query_time, "socialNorm": c.social_norm,
      "ahead": c.frames_ahead, "adapterAhead": c.adapter_ahead,
  }  # fmt: skip
  socials = np.asarray(socials, np.float32)
  arrays = {name: np.asarray(variables["statistics"][name], np.float32)[None] for name in ("motion_mean", "motion_std")}
  arrays["social"] = socials
  _fold(variables["params"], "", socials, arrays)
  return settings, arrays


def _fold(params: Mapping[str, Any], name: str, socials: Float[np.ndarray, "R D"], arrays: dict[str, np.ndarray]) -> None:
  if "modulation" in params:  # `AdaptiveNorm`: both of its steps are one.
    norm, modulation = ({key: np.asarray(x) for key, x in params[part].items()} for part in ("norm", "modulation"))
    scale, shift = np.split(socials @ modulation["kernel"] + modulation["bias"], 2, axis=1)
    arrays[f"{name}/scale"] = norm["scale"] * (1 + scale)
    arrays[f"{name}/shift"] = norm["bias"] * (1 + scale) + shift
  elif "norm" in params and set(params) == {"norm"}:  # The same without a condition.
    _fold(params["norm"], name, socials, arrays)
  elif "scale" in params:
    arrays[f"{name}/scale"], arrays[f"{name}/shift"] = (np.asarray(params[key])[None] for key in ("scale", "bias"))
  elif "kernel" in params:
    arrays[f"{name}/kernel"] = np.asarray(params["kernel"]).T
    if "bias" in params:
      arrays[f"{name}/bias"] = np.asarray(params["bias"])[None]
  else:
    for key, part in params.items():
      inner = f"{name}/{key}" if name else key
      if isinstance(part, Mapping):
        _fold(part, inner, socials, arrays)
      else:
        arrays[inner] = np.asarray(part)


def check_foldable(generator: Any, encoder: LogMel, place: object) -> None:
  """Refuses what a page cannot compute, naming `place`, a run.

  Args:
    generator: a run's.
    encoder: of its speech.

  Raises:
    InputError: another architecture, or a generator or features that look ahead.
  """
  architecture = generator.config.architecture
  if not isinstance(generator, MotionGenerator):
    raise InputError(place, "generator.architecture", repr(architecture), "'rsatalker', which alone can be streamed")
  if not generator.config.causal:
    raise InputError(place, "generator.causal", "a generator that looks ahead", "one trained with generator.causal=True")
  if not encoder.causal:
    raise InputError(place, "speech.causal", False, "True, for features that look at nothing ahead")
