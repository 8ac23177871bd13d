"""Head models with FLAME's parameters."""

from rsatalker_jax.head.flame import JOINT_NAMES, HeadModel, head_vertices, motion_to_flame, rotation_matrix
from rsatalker_jax.head.lips import find_lips, make_lip_opening
from rsatalker_jax.head.loading import load_head

__all__ = [
    "JOINT_NAMES",
    "HeadModel",
    "find_lips",
    "head_vertices",
    "load_head",
    "make_lip_opening",
    "motion_to_flame",
    "rotation_matrix",
]
