"""Head model files: FLAME's .pkl (2020, 2023, 2023 Open), the same keys as .npz, and the demo head."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Collection

import jax.numpy as jnp
import numpy as np

from rsatalker_jax import npz, pickles
from rsatalker_jax.errors import InputError
from rsatalker_jax.head.flame import NUM_JOINTS, HeadModel
from rsatalker_jax.head.regions import FLAME_REGIONS, faces_inside, load_masks
from rsatalker_jax.head.teeth import FLAME_FACES, FLAME_VERTICES, add_teeth
from rsatalker_jax.types import ARKIT_EXPRESSIONS, BASES

# How many of FLAME's `shapedirs` are shape, the rest being expression, by their total (FLAME 2017 to 2023).
_FLAME_SHAPE_COUNT = {400: 300}
_REQUIRED = ("v_template", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights", "f")
_OPTIONAL = ("n_shape", "lip_vertices", "face_region", "region_names", "identities", "identity_names", "expression_names")
_OPTIONAL += ("basis",)


def load_head(
    path: str | os.PathLike, *, teeth: bool = False, masks: str | os.PathLike | None = None, basis: str | None = None
) -> HeadModel:
  """Reads a head model.

  Args:
    path: a FLAME `.pkl` (read with an allow-list: nothing in it is executed), or an `.npz` with FLAME's keys. Beside
      FLAME's keys an `.npz` may have `n_shape` (how many of `shapedirs` are shape) and the demo head's `lip_vertices`,
      `face_region`, `region_names`, `identities`, `identity_names`, `expression_names`, and `basis`.
    teeth: whether FLAME gets the teeth that GaussianAvatars and VHAP give it; see `add_teeth`.
    masks: FLAME_masks.pkl, which gives FLAME its regions; see `region_mask`.
    basis: of the expressions, one of `types.BASES`; None takes what the file says: its key `basis`, ARKit's names as
      `expression_names`, or the year in its name (flame2023.pkl, FLAME2020/generic_model.pkl). A file that says none of
      these has none, since FLAME's years cannot be told by their arrays.

  Returns:
    The head, in float32.

  Raises:
    InputError: a file is missing or unreadable, lacks a key, or an array has the wrong shape; teeth or masks for
      another mesh than FLAME's; another basis than the file says.
  """
  path = pathlib.Path(path)
  values = _read_pkl(path) if pickles.is_pickle_name(path) else _read_npz(path)
  v = _checked(path, values, "v_template", ("V", 3))
  num_vertices = v.shape[0]
  blend = _checked(path, values, "shapedirs", (num_vertices, 3, "S+E"))
  num_shape = _num_shape(path, values, blend.shape[2])
  faces = _checked(path, values, "f", ("F", 3), integer=True)
  if faces.min() < 0 or faces.max() >= num_vertices:
    raise InputError(path, "f", f"vertex indices {faces.min()} to {faces.max()}", f"0 to {num_vertices - 1}")
  weights = _checked(path, values, "weights", (num_vertices, NUM_JOINTS))
  worst = np.abs(weights.sum(1) - 1).max()
  if not worst <= 1e-2:
    raise InputError(path, "weights", f"a row whose sum is off by {worst:.3g}", "rows that sum to 1")
  head = HeadModel(
      v_template=jnp.asarray(v),
      shape_directions=jnp.asarray(blend[:, :, :num_shape]),
      expression_directions=jnp.asarray(blend[:, :, num_shape:]),
      pose_directions=jnp.asarray(_checked(path, values, "posedirs", (num_vertices, 3, 9 * (NUM_JOINTS - 1)))),
      joint_regressor=jnp.asarray(_checked(path, values, "J_regressor", (NUM_JOINTS, num_vertices))),
      # Rows are normalised exactly: float16 files are off by rounding.
      weights=jnp.asarray(weights / weights.sum(1, keepdims=True)),
      faces=jnp.asarray(faces),
      parents=_parents(path, values),
      basis=_basis(path, values, basis),
      **_demo_head_fields(path, values, num_vertices, faces.shape[0], num_shape, blend.shape[2] - num_shape),
  )
  if (teeth or masks is not None) and (num_vertices, len(faces)) != (FLAME_VERTICES, FLAME_FACES):
    expected = f"FLAME's {FLAME_VERTICES} and {FLAME_FACES}, for head.teeth and head.masks"
    raise InputError(path, "v_template, f", f"{num_vertices} vertices and {len(faces)} faces", expected)
  if masks is not None:
    if head.region_names:
      raise InputError(path, "face_region", "regions in the head's own file", "none beside head.masks")
    regions = load_masks(masks, num_vertices).values()
    region_masks = np.stack([faces_inside(faces, vertices) for vertices in regions])
    head = dataclasses.replace(head, region_masks=jnp.asarray(region_masks), region_names=FLAME_REGIONS)
  return add_teeth(head) if teeth else head


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  with npz.open_npz(path, "a head model (.pkl or .npz)") as file:
    _check_keys(path, file)
    return {key: file[key] for key in (*_REQUIRED, *_OPTIONAL) if key in file}


def _read_pkl(path: pathlib.Path) -> dict[str, np.ndarray]:
  content = pickles.load_dict(path, "a dict with FLAME's keys")
  _check_keys(path, content)
  values = {}
  for key in (*_REQUIRED, "n_shape"):
    if key in content:
      try:
        values[key] = pickles.to_array(content[key])
      except ValueError as error:
        raise InputError(path, key, error, "an array") from None
  return values


def _check_keys(path: pathlib.Path, names: Collection[str]) -> None:
  for key in _REQUIRED:
    if key not in names:
      raise InputError(path, key, f"no such key (there are {', '.join(sorted(names))})", "one of FLAME's keys")


def _checked(path, values, key, shape: tuple[int | str, ...], *, integer: bool = False) -> np.ndarray:
  """The array under a key, as float32 or int32; letters in `shape` stand for any size above 0."""
  array = values[key]
  fits = array.ndim == len(shape) and all(
      size > 0 if isinstance(want, str) else size == want for size, want in zip(array.shape, shape)
  )
  if not fits:
    raise InputError(path, key, f"shape {array.shape}", f"({', '.join(map(str, shape))})")
  if not integer:
    return npz.to_float32(path, key, array)
  if array.dtype.kind not in "fiu" or np.any(array != np.round(array)):
    raise InputError(path, key, f"{array.dtype}", "whole numbers")
  if array.size and not (np.iinfo(np.int32).min <= array.min() and array.max() <= np.iinfo(np.int32).max):
    raise InputError(path, key, f"{array.min()} to {array.max()}", "whole numbers of 32 bits")
  return array.astype(np.int32)


def _checked_names(path, values, key) -> tuple[str, ...]:
  if values[key].dtype.kind != "U" or values[key].ndim != 1:
    raise InputError(path, key, f"{values[key].dtype} of shape {values[key].shape}", "a list of words")
  return tuple(map(str, values[key]))


def _num_shape(path, values, total: int) -> int:
  if "n_shape" in values:
    num_shape = int(_checked(path, values, "n_shape", (), integer=True))
    if not 0 <= num_shape <= total:
      raise InputError(path, "n_shape", num_shape, f"0 to {total}, the number of shapedirs")
    return num_shape
  if total not in _FLAME_SHAPE_COUNT:
    raise InputError(path, "shapedirs", f"{total} directions and no n_shape", "FLAME's 400, or n_shape to split them")
  return _FLAME_SHAPE_COUNT[total]


def _basis(path: pathlib.Path, values, told: str | None) -> str | None:
  """What the expressions are: by the file's content, by what the caller says, by the year in the file's name."""
  if told is not None and told not in BASES:
    raise InputError("head", "basis", repr(told), " | ".join(BASES))
  own = None
  if "basis" in values:
    own = str(values["basis"])
    if values["basis"].dtype.kind != "U" or values["basis"].ndim or own not in BASES:
      raise InputError(path, "basis", repr(own), " | ".join(BASES))
  elif "expression_names" in values and tuple(map(str, values["expression_names"].ravel())) == ARKIT_EXPRESSIONS:
    own = "arkit"
  if own is not None and told not in (None, own):
    raise InputError(path, "head.basis", told, f"{own}, as the file itself says")
  return own or told or _basis_by_name(path)


def _basis_by_name(path: pathlib.Path) -> str | None:
  # FLAME 2017, 2019 and 2020 all come as generic_model.pkl; of 2023 there is one without the jaw, with other expressions.
  name = f"{path.absolute().parent.name}/{path.name}".lower()
  years = set(re.findall("flame[ _-]?(20[0-9]{2})", name))
  basis = f"flame{years.pop()}" if len(years) == 1 else None
  return basis if basis in BASES and "no_jaw" not in name else None


def _parents(path, values) -> tuple[int, ...]:
  table = values["kintree_table"]
  if table.shape != (2, NUM_JOINTS):
    raise InputError(path, "kintree_table", f"shape {table.shape}", f"(2, {NUM_JOINTS})")
  # The root's parent is written as -1, in FLAME's unsigned table as 2^32 - 1.
  parents = (-1, *_checked(path, {"kintree_table": table[0, 1:]}, "kintree_table", (NUM_JOINTS - 1,), integer=True).tolist())
  if not all(0 <= parent < joint for joint, parent in enumerate(parents) if joint):
    raise InputError(path, "kintree_table", parents, "parents that come before their children")
  return parents


def _demo_head_fields(path, values, num_vertices, num_faces, num_shape, num_expression) -> dict:
  fields = {}
  if "lip_vertices" in values:
    lips = _checked(path, values, "lip_vertices", (2,), integer=True)
    if lips.min() < 0 or lips.max() >= num_vertices:
      raise InputError(path, "lip_vertices", lips.tolist(), f"0 to {num_vertices - 1}")
    fields["lip_vertices"] = jnp.asarray(lips)
  names = {key: _checked_names(path, values, key) for key in values if key.endswith("_names")}
  if "face_region" in values:
    region = _checked(path, values, "face_region", (num_faces,), integer=True)
    count = len(names.get("region_names", ()))
    if region.min() < 0 or region.max() >= count:
      raise InputError(path, "face_region", f"regions {region.min()} to {region.max()}", f"{count} region_names")
    fields["region_masks"] = jnp.asarray(region == np.arange(count)[:, None])
    fields["region_names"] = names["region_names"]
  if "identities" in values:
    fields["identities"] = jnp.asarray(_checked(path, values, "identities", ("I", num_shape)))
    fields["identity_names"] = names.get("identity_names", ())
    if len(fields["identity_names"]) != fields["identities"].shape[0]:
      found = f"{len(fields['identity_names'])} names"
      raise InputError(path, "identity_names", found, f"{fields['identities'].shape[0]}, one per identity")
  if "expression_names" in names:
    if len(names["expression_names"]) != num_expression:
      raise InputError(path, "expression_names", f"{len(names['expression_names'])} names", num_expression)
    fields["expression_names"] = names["expression_names"]
  return fields
