"""Where each of the demo head's coefficients lies in a motion vector: a motion of the basis "arkit".

The eyeLook* shapes turn the eyeballs too, so a motion vector alone carries the gaze.
"""

import types

from rsatalker_jax.types import ARKIT_EXPRESSIONS

_BILATERAL_END = ("Left", "Right")

EXPRESSION_NAMES = ARKIT_EXPRESSIONS

# Column of each coefficient in a (T, 56) motion. The jaw's opening and the head's pitch, yaw and tilt are rotations in
# radians about x, y and z: nod down, turn to the own left, tilt towards the own right.
COLUMN = types.MappingProxyType(
    {name: i for i, name in enumerate(EXPRESSION_NAMES)}
    | {"jawOpening": 50, "headPitch": 53, "headYaw": 54, "headTilt": 55})


def columns(shape: str) -> tuple[int, ...]:
  """Columns of a shape: one if it is in the middle of the face, else its left and right half."""
  if shape in COLUMN:
    return (COLUMN[shape],)
  return tuple(COLUMN[shape + end] for end in _BILATERAL_END)
