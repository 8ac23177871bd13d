"""What is told of the face besides speech: how far the eyes are closed, and how the brows stand."""

import dataclasses

import numpy as np
from jaxtyping import Float

from rsatalker_jax.head import HeadModel

_BLINK = ("eyeBlinkLeft", "eyeBlinkRight")
_UPPER = ("browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", *_BLINK)


@dataclasses.dataclass(frozen=True)
class Controls:
  """Which coefficients of a head's expression say how eyes and brows are; empty where the head does not name them.

  Attributes:
    blink: numbers of the two lids' coefficients.
    upper: of SyncTalk's seven: five of the brows, two of the lids.
  """

  blink: tuple[int, ...]
  upper: tuple[int, ...]

  @classmethod
  def of(cls, head: HeadModel) -> "Controls":
    names = list(head.expression_names)
    known = all(name in names for name in _UPPER)
    return cls(*(tuple(map(names.index, chosen)) if known else () for chosen in (_BLINK, _UPPER)))

  def eyes(self, expression: Float[np.ndarray, "*b E"]) -> Float[np.ndarray, "*b"]:
    """How far the eyes are closed, from 0 to 1: what stands for OpenFace's AU45, divided by 2 and clipped. Zeros where the
    head does not name its expressions."""
    if not self.blink:
      return np.zeros(expression.shape[:-1], np.float32)
    return np.clip(expression[..., list(self.blink)].mean(axis=-1), 0, 1).astype(np.float32)

  def upper_face(self, expression: Float[np.ndarray, "*b E"]) -> Float[np.ndarray, "*b 7"]:
    """SyncTalk's seven blendshapes. Zeros where the head does not name its expressions."""
    if not self.upper:
      return np.zeros((*expression.shape[:-1], len(_UPPER)), np.float32)
    return np.asarray(expression[..., list(self.upper)], np.float32)
