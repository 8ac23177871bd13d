"""Head models with FLAME's parameters."""

from rsatalker_jax.head.bases import check_basis
from rsatalker_jax.head.flame import JOINT_NAMES, HeadModel, head_vertices, rotation_matrix
from rsatalker_jax.head.lips import LipOpening, find_lips, make_lip_opening, select_vertices
from rsatalker_jax.head.loading import load_head
from rsatalker_jax.head.pose import FlamePose, find_alignment, motion_of, pose_for
from rsatalker_jax.head.regions import face_mask, full_head_mask, region_labels, region_mask
from rsatalker_jax.head.teeth import add_teeth

__all__ = [
    "JOINT_NAMES",
    "FlamePose",
    "HeadModel",
    "LipOpening",
    "add_teeth",
    "check_basis",
    "face_mask",
    "find_alignment",
    "find_lips",
    "full_head_mask",
    "head_vertices",
    "load_head",
    "make_lip_opening",
    "motion_of",
    "pose_for",
    "region_labels",
    "region_mask",
    "rotation_matrix",
    "select_vertices",
]
