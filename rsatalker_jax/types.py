"""Numbers, types and the legend of dimension letters that the whole package shares.

Dimension letters in shape annotations:
  B batch          T frames at 25 fps      S audio samples at 16 kHz
  D features       N Gaussians             K spherical-harmonic coefficients
  V vertices       F triangles (faces)     H W pixels
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

FPS = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS

EXPRESSION_DIM = 50
JAW_DIM = 3
POSE_DIM = 3
MOTION_DIM = EXPRESSION_DIM + JAW_DIM + POSE_DIM

# Where each group lies in a motion vector. Expression: coefficients of one of BASES; jaw: axis-angle of the jaw joint;
# pose: axis-angle of the head, which FLAME gets as the neck joint (as DualTalk does).
MOTION_GROUPS = {
    "expression": slice(0, 50),
    "jaw": slice(50, 53),
    "pose": slice(53, 56),
}

# The order in which stages run; a later one starts from the parameters of the ones before it. No run has all: "codes" is of
# baselines that make motion of codes.
STAGES = ("codes", "motion", "avatar", "joint")

# What the 50 expression coefficients of a motion multiply: the first of FLAME's 100 expression components, of which each
# year's model has its own, or shapes with ARKit's names. A motion of one basis tears a head of another apart.
BASES = ("flame2020", "flame2023", "arkit")

# The shapes of the basis "arkit", in order: ARKit's 52 without jawOpen (the jaw joint opens the mouth) and tongueOut. A
# coefficient of 1 is the full shape.
ARKIT_EXPRESSIONS = (
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

Motion = Float[np.ndarray, "T 56"]
Motions = Sequence[Float[np.ndarray, "_ 56"]]  # Of clips of several lengths.


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One direction of a two-person conversation: given A (and B's voice), B's motion is to be generated.

  Attributes:
    name: conversation id and the person to generate, e.g. "demo-d001_sub_video_0_speaker2".
    speech_a: partner's voice (S,), 16 kHz in [-1, 1].
    motion_a: partner's motion (T, 56), 25 fps.
    speech_b: own voice (S,).
    motion_b: own motion (T, 56); None where there is no ground truth (DualTalk's demo files).
    relation: [blood, equal] as 0, 1 or -1, unknown; see `rsatalker_jax.social.relation`.
    basis: of both motions' expressions, one of `BASES`.
  """

  name: str
  speech_a: Float[np.ndarray, "S"]
  motion_a: Motion
  speech_b: Float[np.ndarray, "S"]
  motion_b: Motion | None
  relation: Int[np.ndarray, "2"]
  basis: str
