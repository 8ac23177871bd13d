"""An avatar that moves in a browser: one HTML file with everything in it, which asks nothing of any network.

The page (viewer.html beside this file) poses the Gaussians on their triangles, sorts and draws them with WebGL 2 as
`splat_kernels` does. What it is given, in one gzip stream within the page:

    faces (F, 3), binding (N,)     uint32
    vertices (T, V, 3)             of the posed head, metres
    offsets (T, F, 3)              offset corrections of Eq. 8 in metres, where there are any
    means, quats, log_scales, opacities, sh (1, N, …)
                                   the Gaussians in the frames of their triangles; quaternions of unit length, opacities
                                   in [0, 1], harmonics (1, N, 3K)

All but the integers are rounded to 16 bits, evenly between the least and the largest value of each column (places in
space not finer than a micrometre: offsets of a fraction of that would be mere digits to store); frames are
stored as differences to the one before, all low bytes before all high bytes, which a compressor makes most of.
"""

import base64
import gzip
import html
import json
import os
import pathlib
import re

import jax
import numpy as np
from jaxtyping import Array, Float

import splat_kernels
from rsatalker_jax.avatar import Avatar, drop_free_slots
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file
from rsatalker_jax.head import HeadModel, head_vertices
from rsatalker_jax.types import FPS

_PAGE = pathlib.Path(__file__).with_suffix(".html")
_STEPS = 2**16 - 1
_MICROMETRE = 1e-6
# Of the front view: metres from the camera to the face and from the crown down to its middle, and the focal length in
# units of the picture's smaller side.
_DISTANCE, _BELOW_CROWN, _FOCAL = 0.8, 0.13, 2.2


def front_camera(head: HeadModel, size: int) -> splat_kernels.Camera:
  """In front of the mean head's face, for square pictures of `size` pixels; the view with which the page begins."""
  x, y, z = _face_centre(head)
  world_to_camera = np.array([[1, 0, 0, -x], [0, -1, 0, y], [0, 0, -1, z + _DISTANCE], [0, 0, 0, 1]], np.float32)
  focal = _FOCAL * size
  intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], np.float32)
  return splat_kernels.Camera(world_to_camera, intrinsics, size, size)


def _face_centre(head: HeadModel) -> tuple[float, float, float]:
  return 0.0, float(np.asarray(head.v_template)[:, 1].max()) - _BELOW_CROWN, 0.0


def write_player(
    path: str | os.PathLike,
    avatar: Avatar,
    head: HeadModel,
    flame: dict[str, Float[Array, "T _"]],
    offsets: Float[Array, "T F 3"] | None = None,
    *,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    fps: int = FPS,
) -> None:
  """Writes the page, whole or not at all. Gaussians that no rasterizer draws (opacity below 1/255) are left out.

  Args:
    path: the file; its folder is made if absent, its name is the page's title.
    avatar, head: the person, and the head model it is bound to.
    flame: the poses of all frames, arguments of `head_vertices`.
    offsets: Gaussian offset corrections in metres (Eq. 8); None for none.
    background: the colour behind the head.
    fps: frames a second.

  Raises:
    InputError: a value that is not finite, or a quaternion of zeros.
  """
  path = pathlib.Path(path)
  avatar = drop_free_slots(avatar)
  tables, parts = [], []

  def add_integers(name: str, values: np.ndarray) -> None:
    tables.append({"name": name, "type": "uint32", "shape": values.shape})
    parts.append(values.astype("<u4").tobytes())

  def add_numbers(name: str, values: np.ndarray, finest: float = 0.0) -> None:
    if not np.isfinite(values).all():
      raise InputError(path, name, "a value that is not finite", "finite numbers")
    header, data = _to_steps(values, finest)
    tables.append({"name": name, "type": "uint16", "shape": values.shape} | header)
    parts.append(data)

  gaussians = jax.device_get(avatar.gaussians)
  opacities = 1 / (1 + np.exp(-np.asarray(gaussians.opacity_logits, np.float64)))
  seen = ~(opacities < splat_kernels.Config().alpha_min)  # NaN is not left out, but named below.
  if not seen.any():
    raise InputError(path, "opacities", "all below 1/255", "at least one Gaussian that is visible")
  norms = np.linalg.norm(gaussians.quats, axis=-1, keepdims=True)
  if not norms[seen].all():
    raise InputError(path, "quats", "a quaternion of zeros", "rotations")
  add_integers("faces", np.asarray(head.faces))
  add_integers("binding", np.asarray(avatar.binding)[seen])
  add_numbers("vertices", np.asarray(_pose_vertices(avatar, head, flame)), _MICROMETRE)
  if offsets is not None:
    add_numbers("offsets", np.asarray(offsets), _MICROMETRE)
  with np.errstate(invalid="ignore", divide="ignore"):  # Quaternions of zeros of Gaussians that are left out.
    quats = gaussians.quats / norms
  for name, values in (
      ("means", gaussians.means),
      ("quats", quats),
      ("log_scales", gaussians.log_scales),
      ("opacities", opacities[:, None]),
      ("sh", gaussians.sh.reshape(len(opacities), -1)),
  ):
    add_numbers(name, values[None, seen])

  view = {"target": _face_centre(head), "distance": _DISTANCE, "focal": _FOCAL}
  header = {"fps": fps, "background": [float(x) for x in background], "view": view, "tables": tables}
  data = base64.b64encode(gzip.compress(b"".join(parts), 9, mtime=0)).decode()
  filled = {"TITLE": html.escape(path.stem), "HEADER": json.dumps(header), "DATA": data}
  page = re.sub("@@([A-Z]+)@@", lambda mark: filled[mark[1]], _PAGE.read_text(encoding="utf-8"))
  path.parent.mkdir(parents=True, exist_ok=True)
  with whole_file(path) as file:
    file.write(page.encode())


@jax.jit
def _pose_vertices(
    avatar: Avatar, head: HeadModel, flame: dict[str, Float[Array, "T _"]]
) -> Float[Array, "T V 3"]:
  pose = lambda flame: head_vertices(head, shape=avatar.shape, static_offset=avatar.static_offset, **flame)
  return jax.lax.map(pose, flame)


def _to_steps(values: Float[np.ndarray, "T n c"], finest: float) -> tuple[dict[str, list[float]], bytes]:
  """Least value and step of each column, and all values as differences between frames; see the top of this file."""
  least = values.min(axis=(0, 1)).astype(np.float64)
  step = np.maximum((values.max(axis=(0, 1)) - least) / _STEPS, finest)
  steps = np.round((values - least) / np.where(step > 0, step, 1)).astype(np.uint16)
  differences = steps.copy()
  differences[1:] -= steps[:-1]  # Wraps around, and so does the page's sum.
  low_high = differences.astype("<u2").reshape(-1, 1).view(np.uint8)
  return {"least": least.tolist(), "step": step.tolist()}, low_high.T.tobytes()
