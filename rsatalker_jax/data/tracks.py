"""A person's face as trackers of DECA's family (DECA, EMOCA, SPECTRE) find it, frame by frame.

    shape (T, 100)   identity             exp (T, 50)   expression: the first of FLAME's 100, the others are 0
    pose (T, 6)      [:, :3] turns the head, [:, 3:] the jaw, both axis-angle

and what else there is (tex, cam, light, detail), which is not read. Three kinds of files hold them, at 25 fps: an .npz of
these arrays, as DualTalk's are; a .pkl, a dict of them; or a folder as EMOCA's --save_codes leaves it, with
<frame>_<face>/{shape,exp,pose}.npy for every frame. Files of ARKit's shapes, .csv and .json, are read by `data.arkit`.

A tracker's coefficients are FLAME 2020's. Our own files are of the same layout and may hold others: their key `basis`
names one of `types.BASES`. Where an npz has no such key, as those that an earlier version wrote, the range of the coefficients
decides: ARKit's shapes are weights from 0 to 1, FLAME's components are of either sign. A file that holds anything in cam,
light, tex or shape is a tracker's whatever the range.

FLAME gets the head's rotation as its neck, as DualTalk does it (`head.pose_for`), and zeros for the expressions
beyond 50. A head's vertices: `head_vertices(head, shape=track.identity, **pose_for(track.motion[t]))`.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped

from rsatalker_jax import npz, pickles
from rsatalker_jax.data import arkit
from rsatalker_jax.errors import InputError
from rsatalker_jax.types import BASES, EXPRESSION_DIM, JAW_DIM, POSE_DIM, Motion

SHAPE_DIM = 100
_MOTION_WIDTHS = {"exp": EXPRESSION_DIM, "pose": JAW_DIM + POSE_DIM}
_WIDTHS = _MOTION_WIDTHS | {"shape": SHAPE_DIM}
# What trackers find beside a motion, and `dualtalk.write_motion` leaves zero.
_TRACKED = ("cam", "light", "tex", "shape")
# How far generated weights go beyond 0 and 1, and which share of all is below 0.
_WEIGHTS, _NEGATIVE_SHARE = (-0.3, 1.5), 0.1
_FRAME_FOLDER = re.compile(r"(?P<frame>\d+)_(?P<face>\d+)")


@dataclasses.dataclass(frozen=True)
class Track:
  """Attributes:
    motion: [expression, jaw, head], for `head.pose_for`.
    basis: of the expression, one of `types.BASES`.
    sign: by what the basis is known, in words.
    shape: identity of every frame; trackers that look at frames one by one find it a little different in each. None
      where it was not asked for.
    notes: what reading has changed, in words.
  """

  motion: Motion
  basis: str
  sign: str
  shape: Float[np.ndarray, "T 100"] | None = None
  notes: tuple[str, ...] = ()

  @property
  def identity(self) -> Float[np.ndarray, "100"]:
    """One shape for the person: the mean over frames."""
    if self.shape is None:
      raise ValueError("the track was read without its shape")
    return self.shape.mean(axis=0)


def read_track(path: str | os.PathLike, *, shape: bool = True) -> Track:
  """Reads a tracked face.

  Args:
    path: an npz, a pickle or a folder; or, of motion alone, a csv or json of ARKit's shapes (`arkit.read_arkit`).
    shape: whether the identity is wanted too; False reads files that have none.

  Raises:
    InputError: missing, cut off, a key absent or of the wrong width, no frames, arrays of different lengths, values
      that are not finite, or an unknown basis; of a folder also a frame that is missing or has several faces.
  """
  if not shape and pathlib.Path(path).suffix.lower() in arkit.SUFFIXES and not pathlib.Path(path).is_dir():
    take = arkit.read_arkit(path)
    return Track(take.motion, "arkit", "its names", notes=take.notes)
  arrays, (basis, sign) = _read_arrays(pathlib.Path(path), _WIDTHS if shape else _MOTION_WIDTHS)
  return Track(_to_motion(arrays), basis, sign, arrays.get("shape"))


def read_motion(path: str | os.PathLike) -> Motion:
  """Reads a tracked face's motion alone, (T, 56) float32, for those who know or do not need its basis.

  Raises:
    InputError: see `read_track`; the file need not have a shape.
  """
  return read_track(path, shape=False).motion


def _to_motion(arrays: Mapping[str, np.ndarray]) -> Motion:
  exp, pose = arrays["exp"], arrays["pose"]
  return np.concatenate([exp, pose[:, POSE_DIM:], pose[:, :POSE_DIM]], axis=1)


def _read_arrays(path: pathlib.Path, widths: Mapping[str, int]) -> tuple[dict[str, np.ndarray], tuple[str, str]]:
  """The arrays, checked, and the basis with the sign that it is known by."""
  if path.is_dir():
    arrays, told = _read_folder(path, widths), ("flame2020", "a folder as EMOCA leaves it")
  elif not path.exists():
    raise InputError(path, "", "no such file", f"an npz with {_expected(widths)}")
  elif pickles.is_pickle_name(path):
    arrays, told = _read_pkl(path, widths)
  else:
    arrays, told = _read_npz(path, widths)
  for key, array in arrays.items():
    if array.ndim != 2 or array.shape[1] != widths[key] or array.dtype.kind not in "fiu":
      raise InputError(path, key, f"{array.dtype} {array.shape}", f"float32 (T, {widths[key]})")
    if not len(array):
      raise InputError(path, key, "no frames", "at least one")
    arrays[key] = npz.to_float32(path, key, array, row="frame")
    if len(array) != len(arrays["exp"]):
      raise InputError(path, key, f"{len(array)} frames", f"{len(arrays['exp'])}, as in exp")
  return arrays, told


def _expected(widths: Mapping[str, int]) -> str:
  return " and ".join(f"{key} (T, {width})" for key, width in widths.items())


def _pick(path: pathlib.Path, container: Mapping | npz.Archive, widths: Mapping[str, int]) -> dict:
  for key in widths:
    if key not in container:
      found = f"only the keys {', '.join(map(str, container)) or '(none)'}"
      raise InputError(path, key, found, f"{key} (T, {widths[key]})")
  return {key: container[key] for key in widths}


def are_weights(expression: Shaped[np.ndarray, "..."]) -> bool:
  """Whether coefficients lie where weights of shapes do, and not all are 0."""
  below = -expression[expression < 0].sum() <= _NEGATIVE_SHARE * np.abs(expression).sum()
  return bool(expression.any() and _WEIGHTS[0] <= expression.min() and expression.max() <= _WEIGHTS[1] and below)


def _basis_by_key(path: pathlib.Path, basis: np.ndarray) -> tuple[str, str]:
  if basis.dtype.kind != "U" or basis.ndim or str(basis) not in BASES:
    raise InputError(path, "basis", f"{basis.dtype} {basis.tolist()!r}", " | ".join(BASES))
  return str(basis), "its key basis"


def _basis_by_content(archive: npz.Archive, expression: np.ndarray) -> tuple[str, str]:
  """Of a file without the key: weights, or components of either sign."""
  if expression.dtype.kind not in "fiu" or not expression.any():  # Nothing to tell by: the layout is a tracker's.
    return "flame2020", "its layout"
  sign = f"the range of its coefficients, {expression.min():.2f} to {expression.max():.2f}"
  if not are_weights(expression):
    return "flame2020", sign
  tracked = next((key for key in _TRACKED if key in archive and archive[key].dtype.kind in "fiu" and archive[key].any()), None)
  return ("arkit", sign) if tracked is None else ("flame2020", f"{tracked}, which trackers of DECA's family find")


def _read_npz(path: pathlib.Path, widths: Mapping[str, int]) -> tuple[dict[str, np.ndarray], tuple[str, str]]:
  with npz.open_npz(path, f"an npz with {_expected(widths)}") as archive:
    arrays = _pick(path, archive, widths)
    told = _basis_by_key(path, archive["basis"]) if "basis" in archive else _basis_by_content(archive, arrays["exp"])
  return arrays, told


def _read_pkl(path: pathlib.Path, widths: Mapping[str, int]) -> tuple[dict[str, np.ndarray], tuple[str, str]]:
  content = pickles.load_dict(path, f"a dict with {_expected(widths)}")
  arrays = {}
  for key, value in _pick(path, content, widths).items():
    try:
      arrays[key] = pickles.to_array(value)
    except ValueError as error:
      raise InputError(path, key, error, f"float32 (T, {widths[key]})") from None
  if "basis" in content:
    return arrays, _basis_by_key(path, np.asarray(content["basis"]))
  return arrays, ("flame2020", "a pickle, as trackers leave it")


def _read_folder(path: pathlib.Path, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
  folders = {}
  for match in (_FRAME_FOLDER.fullmatch(entry.name) for entry in path.iterdir() if entry.is_dir()):
    if match:
      folders.setdefault(int(match["frame"]), []).append(path / match[0])
  if not folders:
    raise InputError(path, "", "no folder of a frame", "EMOCA's <frame>_<face>/{shape,exp,pose}.npy")
  first = min(folders)
  for frame in range(first, max(folders) + 1):
    # Without it, all that follows would be early against the voice.
    if frame not in folders:
      raise InputError(path, f"frame {frame}", "no such folder", f"every frame from {first} to {max(folders)}")
    if len(folders[frame]) > 1:
      names = ", ".join(sorted(folder.name for folder in folders[frame]))
      raise InputError(path, f"frame {frame}", f"several faces ({names})", "one person's folders alone")
  arrays = {key: [] for key in widths}
  for frame in sorted(folders):
    for key, width in widths.items():
      file = folders[frame][0] / f"{key}.npy"
      row = npz.read_npy(file, f"an array of {width} numbers")
      if row.size != width or row.dtype.kind not in "fiu":
        raise InputError(file, "", f"{row.dtype} {row.shape}", f"float32 ({width},)")
      arrays[key].append(row.reshape(width))
  return {key: np.stack(rows) for key, rows in arrays.items()}
