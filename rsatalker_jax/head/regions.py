"""Regions of a head: which faces are lips, scalp, teeth. FLAME's are in a file of their own, FLAME_masks.pkl."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from rsatalker_jax import pickles
from rsatalker_jax.errors import InputError
from rsatalker_jax.head.flame import HeadModel

FLAME_REGIONS = (
    "face",
    "neck",
    "scalp",
    "boundary",
    "right_eyeball",
    "left_eyeball",
    "right_ear",
    "left_ear",
    "forehead",
    "eye_region",
    "nose",
    "lips",
    "right_eye_region",
    "left_eye_region",
)

# What makes up a face, by FLAME's names and by the demo head's.
_FACE = ("face", "left_eyeball", "right_eyeball", "teeth")
_FACE += ("skin", "lips", "mouth_interior", "tongue", "eye_left", "eye_right", "lashes")
_BELOW_THE_HEAD = ("neck", "boundary")


def load_masks(path: str | os.PathLike, num_vertices: int) -> dict[str, Int[np.ndarray, "_"]]:
  """Reads FLAME_masks.pkl: vertex indices by region. Regions overlap: "face" has "nose", both eyes are in "eye_region".

  The pickle is read with an allow-list: nothing in it is executed.

  Raises:
    InputError: the file is missing or no such pickle, a region is missing or unknown, or an index is none of
      `num_vertices`.
  """
  content = pickles.load_dict(path, "a dict of vertex indices by region")
  unknown = [key for key in content if key not in FLAME_REGIONS]
  if unknown:
    raise InputError(path, str(unknown[0]), "an unknown region", f"FLAME's: {', '.join(FLAME_REGIONS)}")
  masks = {}
  for name in FLAME_REGIONS:
    if name not in content:
      raise InputError(path, name, f"no such key (there are {', '.join(sorted(content))})", "one of FLAME's regions")
    try:
      indices = pickles.to_array(content[name])
    except ValueError as error:
      raise InputError(path, name, error, "vertex indices") from None
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices):
      raise InputError(path, name, f"{indices.dtype} of shape {indices.shape}", "a list of vertex indices")
    if indices.min() < 0 or indices.max() >= num_vertices:
      raise InputError(path, name, f"vertex indices {indices.min()} to {indices.max()}", f"0 to {num_vertices - 1}")
    masks[name] = indices.astype(np.int32)
  return masks


def faces_inside(faces: Int[np.ndarray, "F 3"], vertices: Int[np.ndarray, "_"]) -> Bool[np.ndarray, "F"]:
  """The faces that have all three corners among `vertices`, which is how GaussianAvatars and VHAP draw regions.

  So the faces on the seam between two regions that share no vertices belong to neither.
  """
  return np.all(np.isin(faces, vertices), axis=1)


def region_mask(head: HeadModel, names: str | Sequence[str]) -> Bool[np.ndarray, "F"]:
  """The faces of one region or of the union of several.

  Raises:
    InputError: the head has no region of that name.
  """
  names = [names] if isinstance(names, str) else list(names)
  for name in names:
    if name not in head.region_names:
      known = ", ".join(head.region_names) or "regions: a FLAME head gets them from FLAME_masks.pkl, config.head.masks"
      raise InputError("region", "", repr(name), f"one of {known}")
  rows = [head.region_names.index(name) for name in names]
  return np.any(np.asarray(head.region_masks)[rows], axis=0)


def region_labels(head: HeadModel) -> Int[np.ndarray, "F"]:
  """A number for each face, the same for faces in the same regions: overlapping regions become disjoint ones."""
  if head.region_masks is None:
    return np.zeros(head.faces.shape[0], np.int64)
  return np.unique(np.asarray(head.region_masks), axis=1, return_inverse=True)[1].reshape(-1)


def face_mask(head: HeadModel) -> Bool[np.ndarray, "F"]:
  """The face with eyes, mouth and teeth: without scalp and neck, of FLAME also without ears.

  Raises:
    InputError: the head has no regions to tell it by.
  """
  if "skin" not in head.region_names:
    region_mask(head, "face")
  return region_mask(head, [name for name in _FACE if name in head.region_names])


def full_head_mask(head: HeadModel) -> Bool[np.ndarray, "F"]:
  """Everything above the neck. FLAME's faces on the seam, in part head and in part neck, are in.

  Raises:
    InputError: the head has no regions to tell it by.
  """
  region_mask(head, "neck")
  return ~region_mask(head, [name for name in _BELOW_THE_HEAD if name in head.region_names])
