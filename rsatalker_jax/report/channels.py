"""A handful of numbers that say what a face does: what a motion's 56 mean to somebody who looks at it."""

import numpy as np
from jaxtyping import Float

from rsatalker_jax.head import HeadModel, LipOpening, make_lip_opening
from rsatalker_jax.types import MOTION_GROUPS, Motion

# Shapes of heads whose expressions have names (the demo's, ARKit's): what is drawn of them, and their two halves.
_NAMED = {
    "smile (0 to 1)": ("mouthSmileLeft", "mouthSmileRight"),
    "brows raised (0 to 1)": ("browOuterUpLeft", "browOuterUpRight"),
}


class Channels:
  """Curves of a motion, by label with unit; `channels(motion)` is {label: (T,)}.

  Lips' opening in millimetres (on a mesh without a mouth: the jaw's angle); smile and brows where the head's expressions
  have names; how far the head nods down and turns to its own left, in degrees.

  Args:
    head: the head model.
  """

  def __init__(self, head: HeadModel):
    opening = make_lip_opening(head)
    self._opening = None if opening is None else LipOpening(opening)
    names = list(head.expression_names)
    self._named = {
        label: [names.index(half) for half in halves] for label, halves in _NAMED.items() if set(halves) <= set(names)
    }

  def __call__(self, motion: Motion) -> dict[str, Float[np.ndarray, "T"]]:
    jaw, pose = (np.degrees(motion[:, MOTION_GROUPS[group]]) for group in ("jaw", "pose"))
    if self._opening is None:
      curves = {"jaw open (degrees)": jaw[:, 0]}
    else:
      curves = {"lips apart (mm)": 1e3 * self._opening(motion)}
    expression = motion[:, MOTION_GROUPS["expression"]]
    curves |= {label: expression[:, columns].mean(axis=1) for label, columns in self._named.items()}
    return curves | {"head down (degrees)": pose[:, 0], "head to its left (degrees)": pose[:, 1]}
