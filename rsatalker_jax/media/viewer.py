"""An avatar that moves in a browser: one HTML file with everything in it, which asks nothing of any network.

The page (viewer.html beside this file, and the scripts that the live page uses too) poses the Gaussians on their triangles,
sorts and draws them with WebGL 2 as `splat_kernels` does. It is given the avatar's tables (tables.py) and

    vertices (T, V, 3)             of the posed head, metres
    offsets (T, F, 3)              offset corrections of Eq. 8 in metres, where there are any

in one gzip stream within the page.
"""

import base64
import html
import json
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

import splat_kernels
from rsatalker_jax.avatar import Avatar, drop_free_slots
from rsatalker_jax.files import whole_file
from rsatalker_jax.head import HeadModel, head_vertices
from rsatalker_jax.media.tables import MICROMETRE, Tables
from rsatalker_jax.types import FPS

_PAGE = pathlib.Path(__file__).with_suffix(".html")
# Classic scripts in the order in which they are loaded: what is on top of one is known to those after it.
SCRIPTS = ("tables.js", "gaussians.js", "screen.js", "turning.js")
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


def front_view(head: HeadModel) -> dict[str, Any]:
  """The same for `makeCamera` of gaussians.js."""
  return {"target": _face_centre(head), "distance": _DISTANCE, "focal": _FOCAL}


def read_scripts(*names: str) -> str:
  """Scripts, by their paths from this folder, one after the other, as one that may stand within a page."""
  return "\n".join((_PAGE.parent / name).read_text(encoding="utf-8") for name in names)


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
  tables = Tables(path)
  seen = tables.add_triangles(avatar, head)
  tables.add_numbers("vertices", np.asarray(_pose_vertices(avatar, head, flame)), MICROMETRE)
  if offsets is not None:
    tables.add_numbers("offsets", np.asarray(offsets), MICROMETRE)
  tables.add_gaussians(avatar, seen)

  header = {"fps": fps, "background": [float(x) for x in background], "view": front_view(head), "tables": tables.descriptions}
  write_page(path, _PAGE, header, tables, SCRIPTS=read_scripts(*SCRIPTS, "player.js"))


def write_page(path: pathlib.Path, template: pathlib.Path, header: dict[str, Any], tables: Tables, **scripts: str) -> int:
  """Writes a page with everything in it, whole or not at all.

  Args:
    path: the file; its folder is made if absent, its name is the page's title.
    template: HTML with @@TITLE@@, @@HEADER@@, @@DATA@@ and the names of `scripts` where they go; @@SIZE@@ is the page's size in MB.
    header: as JSON.
    tables: packed.

  Returns:
    The file's size in bytes.
  """
  filled = {
      "TITLE": html.escape(path.stem),
      "HEADER": json.dumps(header),
      "DATA": base64.b64encode(tables.pack()).decode(),
      "SIZE": "@@SIZE@@",  # Known when all else is there.
      **scripts,
  }
  page = re.sub("@@([A-Z]+)@@", lambda mark: filled[mark[1]], template.read_text(encoding="utf-8"))
  content = page.replace("@@SIZE@@", f"{len(page.encode()) / 1e6:.1f}").encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  with whole_file(path) as file:
    file.write(content)
  return len(content)


@jax.jit
def _pose_vertices(
    avatar: Avatar, head: HeadModel, flame: dict[str, Float[Array, "T _"]]
) -> Float[Array, "T V 3"]:
  pose = lambda flame: head_vertices(head, shape=avatar.shape, static_offset=avatar.static_offset, **flame)
  return jax.lax.map(pose, flame)

