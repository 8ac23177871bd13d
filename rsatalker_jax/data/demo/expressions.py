"""Names of the demo head's expression coefficients, and where each lies in a motion vector.

The demo head's 50 expressions are the ARKit face shapes in alphabetical order, without jawOpen (the jaw joint opens the
mouth) and tongueOut. A coefficient of 1 is the full shape. The eyeLook* shapes turn the eyeballs too, so a motion vector
alone carries the gaze.
"""

import types

_BILATERAL_END = ("Left", "Right")

EXPRESSION_NAMES = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)

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
