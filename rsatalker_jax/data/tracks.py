"""A person's face as trackers of DECA's family (DECA, EMOCA, SPECTRE) find it, frame by frame.

    shape (T, 100)   identity             exp (T, 50)   expression: the first of FLAME's 100, the others are 0
    pose (T, 6)      [:, :3] turns the head, [:, 3:] the jaw, both axis-angle

and what else there is (tex, cam, light, detail), which is not read. The coefficients are FLAME 2020's. Three kinds of
files hold them, at 25 fps: an .npz of these arrays, as DualTalk's are; a .pkl, a dict of them; or a folder as EMOCA's
--save_codes leaves it, with <frame>_<face>/{shape,exp,pose}.npy for every frame.

FLAME gets the head's rotation as its neck, as DualTalk does it (`head.pose_for`), and zeros for the expressions
beyond 50. A head's vertices: `head_vertices(head, shape=track.identity, **pose_for(track.motion[t]))`.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from rsatalker_jax import npz, pickles
from rsatalker_jax.errors import InputError
from rsatalker_jax.types import EXPRESSION_DIM, JAW_DIM, POSE_DIM, Motion

SHAPE_DIM = 100
_MOTION_WIDTHS = {"exp": EXPRESSION_DIM, "pose": JAW_DIM + POSE_DIM}
_WIDTHS = _MOTION_WIDTHS | {"shape": SHAPE_DIM}
_FRAME_FOLDER = re.compile(r"(?P<frame>\d+)_(?P<face>\d+)")


@dataclasses.dataclass(frozen=True)
class Track:
  """Attributes:
    motion: [expression, jaw, head], for `head.pose_for`.
    shape: identity of every frame; trackers that look at frames one by one find it a little different in each.
  """

  motion: Motion
  shape: Float[np.ndarray, "T 100"]

  @property
  def identity(self) -> Float[np.ndarray, "100"]:
    """One shape for the person: the mean over frames."""
    return self.shape.mean(axis=0)


def read_track(path: str | os.PathLike) -> Track:
  """Reads a tracked face.

  Raises:
    InputError: missing, cut off, a key absent or of the wrong width, no frames, arrays of different lengths, or values
      that are not finite; of a folder also a frame that is missing or has several faces.
  """
  arrays = _read_arrays(pathlib.Path(path), _WIDTHS)
  return Track(_to_motion(arrays), arrays["shape"])


def read_motion(path: str | os.PathLike) -> Motion:
  """Reads a tracked face's motion alone, (T, 56) float32.

  Raises:
    InputError: see `read_track`; the file need not have a shape.
  """
  return _to_motion(_read_arrays(pathlib.Path(path), _MOTION_WIDTHS))


def _to_motion(arrays: Mapping[str, np.ndarray]) -> Motion:
  exp, pose = arrays["exp"], arrays["pose"]
  return np.concatenate([exp, pose[:, POSE_DIM:], pose[:, :POSE_DIM]], axis=1)


def _read_arrays(path: pathlib.Path, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
  if path.is_dir():
    arrays = _read_folder(path, widths)
  elif not path.exists():
    raise InputError(path, "", "no such file", f"an npz with {_expected(widths)}")
  elif pickles.is_pickle_name(path):
    arrays = _read_pkl(path, widths)
  else:
    arrays = _read_npz(path, widths)
  for key, array in arrays.items():
    if array.ndim != 2 or array.shape[1] != widths[key] or array.dtype.kind not in "fiu":
      raise InputError(path, key, f"{array.dtype} {array.shape}", f"float32 (T, {widths[key]})")
    if not len(array):
      raise InputError(path, key, "no frames", "at least one")
    arrays[key] = npz.to_float32(path, key, array, row="frame")
    if len(array) != len(arrays["exp"]):
      raise InputError(path, key, f"{len(array)} frames", f"{len(arrays['exp'])}, as in exp")
  return arrays


def _expected(widths: Mapping[str, int]) -> str:
  return " and ".join(f"{key} (T, {width})" for key, width in widths.items())


def _pick(path: pathlib.Path, container: Mapping | npz.Archive, widths: Mapping[str, int]) -> dict:
  for key in widths:
    if key not in container:
      found = f"only the keys {', '.join(map(str, container)) or '(none)'}"
      raise InputError(path, key, found, f"{key} (T, {widths[key]})")
  return {key: container[key] for key in widths}


def _read_npz(path: pathlib.Path, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
  with npz.open_npz(path, f"an npz with {_expected(widths)}") as archive:
    return _pick(path, archive, widths)


def _read_pkl(path: pathlib.Path, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
  content = pickles.load_dict(path, f"a dict with {_expected(widths)}")
  arrays = {}
  for key, value in _pick(path, content, widths).items():
    try:
      arrays[key] = pickles.to_array(value)
    except ValueError as error:
      raise InputError(path, key, error, f"float32 (T, {widths[key]})") from None
  return arrays


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
