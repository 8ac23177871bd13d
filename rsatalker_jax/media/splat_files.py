"""Avatars as files that others read: PLY of 3D Gaussian splatting, PLY with bindings of GaussianAvatars, and SPZ.

    plain PLY   Gaussians of one moment in world space: x y z nx ny nz f_dc_* f_rest_* opacity scale_* rot_*, float32;
                the logit of opacity, the logarithm of scale, quaternions wxyz, f_rest by channel; normals are zero
    bound PLY   the same fields in the frames of the triangles, then binding_0, the face of each Gaussian; beside it
                flame_param.npz with the head's identity, as GaussianAvatars (Qian et al. 2024) keeps it
    SPZ         Gaussians of one moment, rounded (Niantic's format, version 3)

World space is the head model's: metres, y up, the face looks along z. Spherical harmonics are those of the avatar as
they are: both the avatar and these formats evaluate them along the direction of view in world space, and neither turns
them with the triangles, so baking moves and turns the Gaussians but not their colours.
"""

import dataclasses
import math
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rsatalker_jax import npz
from rsatalker_jax.avatar import Avatar, Gaussians, pose_gaussians
from rsatalker_jax.data.captures import read_identity
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_whole, whole_file
from rsatalker_jax.head import HeadModel
from rsatalker_jax.head.teeth import FLAME_FACES

IDENTITY_FILE = "flame_param.npz"
BINDING = "binding_0"
# Number of f_rest fields by degree of the spherical harmonics.
_REST_COUNTS = {3 * ((degree + 1) ** 2 - 1): degree for degree in range(4)}
_PLY_TYPES = {
    **dict(char="<i1", uchar="<u1", short="<i2", ushort="<u2", int="<i4", uint="<u4", float="<f4", double="<f8"),
    **dict(int8="<i1", uint8="<u1", int16="<i2", uint16="<u2", int32="<i4", uint32="<u4", float32="<f4", float64="<f8"),
}
_LONGEST_HEADER = 1 << 16
_HEADER_END = re.compile(rb"\n[ \t]*end_header[ \t]*\r?\n")
_MAX_BYTES = 1 << 32  # 17 million Gaussians of degree 3.
# Nobody reads these beside f_dc and the quaternions: normals, and colours for programs that show points alone.
_UNREAD_FIELDS = ("nx", "ny", "nz", "red", "green", "blue", "alpha")
# The logits of opacities 1 and 0, which some writers store as infinite; float32's sigmoid is 1 from 17 on, and far below
# -6 no rasterizer draws anything (1/255 is opacity's least). An anchor for a face that the file leaves bare has it, too.
_OPAQUE_LOGIT, _INVISIBLE_LOGIT = 20.0, -20.0
# The logarithm of a size of 0, as `bake` writes it, and of the largest that float32 holds.
_LEAST_LOG_SCALE, _LARGEST_LOG_SCALE = math.log(np.finfo(np.float32).tiny), math.log(np.finfo(np.float32).max)
# SPZ's bytes: the logarithm of a scale from -10 in steps of 1/16, colours' constant term about 0 in steps of
# 1/(255 * 0.15), further coefficients in steps of 1/128.
_SPZ_SCALES = (-10.0, -10.0 + 255 / 16)
_SPZ_COLORS = (-127.5 / (255 * 0.15), 127.5 / (255 * 0.15))
_SPZ_COEFFICIENTS = (-1.0, 127 / 128)
_SPZ_FINEST_BITS = 20


@jax.jit
def bake(
    avatar: Avatar,
    head: HeadModel,
    flame: dict[str, Float[Array, "_"]],
    offsets: Float[Array, "F 3"] | None = None,
) -> Gaussians:
  """The avatar's Gaussians at one moment, in world space: means in metres, unit quaternions, logarithms of metres.

  Args:
    avatar, head: the person, and the head model it is bound to.
    flame: the pose, arguments of `head_vertices`.
    offsets: Gaussian offset corrections of that moment in metres (Eq. 8); None for none.
  """
  means, quats, scales = pose_gaussians(avatar, head, flame, offsets)
  return dataclasses.replace(
      avatar.gaussians,
      means=means,
      quats=quats / jnp.linalg.norm(quats, axis=-1, keepdims=True),
      # A collapsed triangle makes Gaussians of size 0, whose logarithm no file holds.
      log_scales=jnp.log(jnp.maximum(scales, jnp.finfo(jnp.float32).tiny)),
  )


def write_ply(path: str | os.PathLike, gaussians: Gaussians, binding: Int[np.ndarray, "N"] | None = None) -> None:
  """Writes Gaussians as a PLY, whole or not at all.

  Args:
    path: the file; its folder is made if absent.
    gaussians: in world space, or with `binding` in the frames of the triangles.
    binding: face of each Gaussian; None writes a plain PLY.

  Raises:
    InputError: a value that is not finite, or a quaternion of zeros.
  """
  columns = _to_columns(gaussians)
  if binding is not None:
    columns[BINDING] = np.asarray(binding)
  # GaussianAvatars writes bindings as float32 too, which holds whole numbers up to 2^24.
  table = np.empty(len(columns["x"]), [(name, "<f4") for name in columns])
  for name, values in columns.items():
    table[name] = values
  _check_table(path, table)
  header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
  header += [*(f"property float {name}" for name in columns), "end_header", ""]
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  with whole_file(path) as file:
    file.write("\n".join(header).encode("ascii"))
    file.write(table.tobytes())


def read_ply(path: str | os.PathLike) -> tuple[Gaussians, Int[np.ndarray, "N"] | None]:
  """Reads a plain or a bound PLY.

  Returns:
    The Gaussians, as float32 numpy arrays, and the face of each; None where the file has no `binding_0`.

  Raises:
    InputError: not a whole, binary, little-endian PLY of 3D Gaussian splatting: a field is missing or unknown, the size
      is not what the header says, or a value is not finite.
  """
  path = pathlib.Path(path)
  content = read_whole(path, "a PLY of 3D Gaussians", _MAX_BYTES)
  fields, count, start = _read_header(path, content)
  degree = _check_fields(path, fields)
  dtype = np.dtype(list(fields.items()))
  size, left = count * dtype.itemsize, len(content) - start
  if left != size and content[start + size :] not in (b"\n", b"\r\n"):  # Some writers end the file like a line.
    raise InputError(path, "", f"{left} bytes after the header", f"{size}: {count} Gaussians of {dtype.itemsize} bytes")
  table = np.frombuffer(content, dtype, count, start).copy()
  if table["opacity"].dtype.kind == "f":
    table["opacity"][table["opacity"] == np.inf] = _OPAQUE_LOGIT
    table["opacity"][table["opacity"] == -np.inf] = _INVISIBLE_LOGIT
  for scale in (table[f"scale_{i}"] for i in range(3)):
    if scale.dtype.kind == "f":
      scale[scale == -np.inf] = _LEAST_LOG_SCALE
  _check_table(path, table)
  binding = None
  if BINDING in fields:
    with np.errstate(invalid="ignore"):
      binding = table[BINDING].astype(np.int32)
    whole = binding == table[BINDING]
    if not whole.all():
      row = int(np.argmin(whole))
      raise InputError(path, f"{BINDING}, Gaussian {row}", table[BINDING][row], "a whole number, the face's index")
  return _from_columns(table, degree), binding


def write_spz(path: str | os.PathLike, gaussians: Gaussians) -> None:
  """Writes Gaussians in world space as an SPZ, rounded as docs/exchange.md measures; whole or not at all.

  Raises:
    InputError: a value that is not finite, or a quaternion of zeros.
  """
  # Only here: gsply imports numba, which takes a second.
  import gsply

  columns = _to_columns(gaussians)
  _check_table(path, np.rec.fromarrays(list(columns.values()), names=list(columns)))
  sh = np.asarray(gaussians.sh, np.float32)
  means = np.asarray(gaussians.means, np.float32)
  data = gsply.GSData(
      means=means,
      scales=np.asarray(gaussians.log_scales, np.float32),
      quats=np.asarray(gaussians.quats, np.float32),
      opacities=np.asarray(gaussians.opacity_logits, np.float32),
      sh0=sh[:, 0],
      shN=sh[:, 1:],
  )
  # 24 bits with sign for a coordinate: as many as the farthest mean leaves stand behind the point, up to micrometres.
  reach = max(float(np.abs(means).max()), 1.0)
  bits = min(_SPZ_FINEST_BITS, math.floor(math.log2((2**23 - 1) / reach)))
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  with whole_file(path) as file:
    gsply.write_spz(file.name, data, version=3, fractional_bits=bits)


def spz_losses(gaussians: Gaussians) -> list[str]:
  """What SPZ's bytes cannot hold of Gaussians in world space and `write_spz` hence clips, one line for each kind."""
  sh = np.asarray(gaussians.sh)
  kinds = (
      ("scales", gaussians.log_scales, _SPZ_SCALES, "from 45 micrometres to 380 m"),
      ("colours", sh[:, :1], _SPZ_COLORS, "from -0.44 to 1.44"),
      ("spherical harmonics above the constant", sh[:, 1:], _SPZ_COEFFICIENTS, "from -1 to 0.99"),
  )
  lines = []
  for name, values, (least, most), bounds in kinds:
    values = np.asarray(values).reshape(len(sh), -1)
    count = int(((values < least) | (values > most)).any(axis=1).sum())
    if count:
      lines.append(f"{count} of {len(sh)} Gaussians have {name} that SPZ clips: it holds those {bounds}")
  return lines


def write_bound_ply(path: str | os.PathLike, avatar: Avatar, head: HeadModel) -> pathlib.Path:
  """Writes an avatar as GaussianAvatars does: the PLY with bindings, and beside it flame_param.npz with the identity
  and one frame at rest.

  Returns:
    The path of flame_param.npz.

  Raises:
    InputError: the folder has a flame_param.npz of another person, or a value is not finite.
  """
  path = pathlib.Path(path)
  num_vertices = head.v_template.shape[0]
  offset = np.zeros((num_vertices, 3)) if avatar.static_offset is None else avatar.static_offset
  identity = {
      "shape": np.asarray(avatar.shape, np.float32),
      "expr": np.zeros((1, head.num_expression), np.float32),
      **{key: np.zeros((1, 3), np.float32) for key in ("rotation", "neck_pose", "jaw_pose", "translation")},
      "eyes_pose": np.zeros((1, 6), np.float32),
      "static_offset": np.asarray(offset, np.float32)[None],
      "dynamic_offset": np.zeros((1, num_vertices, 3), np.float32),
  }
  beside = path.with_name(IDENTITY_FILE)
  if beside.exists():
    shape, static_offset = _read_identity(beside, num_vertices)
    same = np.array_equal(shape, identity["shape"]) and np.array_equal(static_offset, identity["static_offset"][0])
    if not same:
      raise InputError(beside, "", "another person's identity", "no such file, or this avatar's: a folder for each")
  write_ply(path, avatar.gaussians, np.asarray(avatar.binding))
  with whole_file(beside) as file:
    np.savez_compressed(file, **identity)
  return beside


def load_bound_ply(path: str | os.PathLike, head: HeadModel, *, shape: Float[np.ndarray, "S"] | None = None) -> Avatar:
  """Reads an avatar that GaussianAvatars or `write_bound_ply` wrote.

  `Avatar` begins with one anchor for each face: the first Gaussian of every face in the file becomes that, the others
  keep their order behind them. A face without any (GaussianAvatars' density control leaves none so) gets an anchor that
  is not visible.

  Args:
    path: the PLY; flame_param.npz beside it has the identity.
    head: the head model that the avatar was trained on, with as many faces.
    shape: the identity, for a PLY that stands alone: nothing else is read then.

  Raises:
    InputError: see `read_ply`; no bindings, faces or an identity that the head does not have, or vertex offsets that
      change from frame to frame, which an `Avatar` does not have.
  """
  path = pathlib.Path(path)
  gaussians, binding = read_ply(path)
  if binding is None:
    expected = "the face of each Gaussian: a PLY of an avatar, not of a scene"
    raise InputError(path, BINDING, "no such field", expected)
  num_faces = head.faces.shape[0]
  if binding.min() < 0 or binding.max() >= num_faces:
    found = f"faces {binding.min()} to {binding.max()}"
    hint = "; load FLAME with its teeth" if num_faces == FLAME_FACES else ""
    raise InputError(path, BINDING, found, f"0 to {num_faces - 1}, which the head model has{hint}")
  static_offset = None
  if shape is None:
    beside = path.with_name(IDENTITY_FILE)
    shape, static_offset = _read_identity(beside, head.v_template.shape[0])
    if np.any(shape[head.num_shape :]):
      raise InputError(beside, "shape", f"{len(shape)} coefficients", f"{head.num_shape}, as the head model has")
  gaussians, binding = _anchors_first(gaussians, binding, num_faces)
  offset = None if static_offset is None or not np.any(static_offset) else jnp.asarray(static_offset)
  gaussians = jax.tree.map(jnp.asarray, gaussians)
  return Avatar(gaussians, jnp.asarray(binding), jnp.asarray(shape, jnp.float32), offset)


def _read_identity(path: pathlib.Path, num_vertices: int) -> tuple[np.ndarray, np.ndarray | None]:
  with npz.open_npz(path, "an .npz of head parameters") as file:
    if "dynamic_offset" in file and np.any(npz.to_float32(path, "dynamic_offset", file["dynamic_offset"])):
      raise InputError(path, "dynamic_offset", "offsets that change from frame to frame", "zeros")
  shape, static_offset = read_identity(path, num_vertices)
  return shape, static_offset


def _anchors_first(gaussians: Gaussians, binding: np.ndarray, num_faces: int) -> tuple[Gaussians, np.ndarray]:
  count, num_coefficients = len(binding), gaussians.sh.shape[1]
  faces, first = np.unique(binding, return_index=True)
  anchors = np.full(num_faces, count)  # Row `count` is the invisible Gaussian.
  anchors[faces] = first
  others = np.delete(np.arange(count), first)
  order = np.concatenate([anchors, others])
  invisible = Gaussians(
      means=np.zeros(3),
      quats=np.array([1.0, 0.0, 0.0, 0.0]),
      log_scales=np.zeros(3),
      opacity_logits=np.array(_INVISIBLE_LOGIT),
      sh=np.zeros((num_coefficients, 3)),
  )
  pick = lambda x, extra: np.concatenate([x, extra[None].astype(x.dtype)])[order]
  binding = np.concatenate([np.arange(num_faces), binding[others]]).astype(np.int32)
  return jax.tree.map(pick, gaussians, invisible), binding


def _to_columns(gaussians: Gaussians) -> dict[str, np.ndarray]:
  """The fields of the standard layout, in its order."""
  sh = np.asarray(gaussians.sh)
  rest = np.swapaxes(sh[:, 1:], 1, 2).reshape(len(sh), -1)  # Channel by channel.
  columns = dict(zip("xyz", np.asarray(gaussians.means).T))
  columns |= {name: np.zeros(len(sh)) for name in ("nx", "ny", "nz")}
  columns |= {f"f_dc_{i}": sh[:, 0, i] for i in range(3)}
  columns |= {f"f_rest_{i}": column for i, column in enumerate(rest.T)}
  columns["opacity"] = np.asarray(gaussians.opacity_logits)
  columns |= {f"scale_{i}": column for i, column in enumerate(np.asarray(gaussians.log_scales).T)}
  columns |= {f"rot_{i}": column for i, column in enumerate(np.asarray(gaussians.quats).T)}
  return columns


def _from_columns(table: np.ndarray, degree: int) -> Gaussians:
  gather = lambda names: np.stack([table[name].astype(np.float32) for name in names], axis=-1)
  sh = gather([f"f_dc_{i}" for i in range(3)])[:, None]
  num_rest = (degree + 1) ** 2 - 1
  if num_rest:
    rest = gather([f"f_rest_{i}" for i in range(3 * num_rest)]).reshape(len(table), 3, num_rest)
    sh = np.concatenate([sh, np.swapaxes(rest, 1, 2)], axis=1)
  return Gaussians(
      means=gather("xyz"),
      quats=gather([f"rot_{i}" for i in range(4)]),
      log_scales=gather([f"scale_{i}" for i in range(3)]),
      opacity_logits=table["opacity"].astype(np.float32),
      sh=sh,
  )


def _read_header(path: pathlib.Path, content: bytes) -> tuple[dict[str, str], int, int]:
  """Fields with their types, the number of Gaussians, and where in the file their numbers begin."""
  if not content.startswith((b"ply\n", b"ply\r\n")):
    raise InputError(path, "", f"a file that begins with {content[:8]!r}", "a PLY")
  end = _HEADER_END.search(content, 0, _LONGEST_HEADER)
  if end is None:
    raise InputError(path, "end_header", "none", "a whole header")
  kind = None
  elements: list[tuple[str, int, dict[str, str]]] = []  # Name, number, fields.
  for line in content[: end.start()].decode("ascii", errors="replace").splitlines()[1:]:
    match line.split():
      case [] | ["comment" | "obj_info", *_]:
        pass
      case ["format", kind, *_]:
        if kind != "binary_little_endian":
          raise InputError(path, "format", kind, "binary_little_endian")
      case ["element", name, count] if count.isdecimal() and len(count) < 20:
        elements.append((name, int(count), {}))
      case ["property", *_, name] if name.startswith("packed_"):
        raise InputError(path, name, "SuperSplat's compressed PLY", "plain numbers: export it without compression")
      case ["property", *_] if elements and elements[-1][1] == 0:
        pass  # Of an element of which there is none (the faces of a mesh without any).
      case ["property", number, name] if number in _PLY_TYPES and elements and name not in elements[-1][2]:
        elements[-1][2][name] = _PLY_TYPES[number]
      case _:
        raise InputError(path, "header", repr(line), "elements and single numbers, each named once")
  if kind is None:
    raise InputError(path, "format", "none", "binary_little_endian")
  there = [element for element in elements if element[1]]
  if [name for name, _, _ in there] != ["vertex"]:
    found = ", ".join(f"{count} of {name}" for name, count, _ in elements) or "none"
    raise InputError(path, "element", found, "vertex alone, at least one")
  return there[0][2], there[0][1], end.end()


def _check_fields(path: pathlib.Path, fields: dict[str, str]) -> int:
  """Degree of the spherical harmonics, by the fields there are; none may be missing, none unknown."""
  num_rest = sum(name.startswith("f_rest_") for name in fields)
  if num_rest not in _REST_COUNTS:
    raise InputError(path, "f_rest", f"{num_rest} fields", f"one of {sorted(_REST_COUNTS)}")
  names = [*"xyz", *(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(num_rest)), "opacity"]
  names += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
  for name in names:
    if name not in fields:
      raise InputError(path, name, f"no such field (there are {', '.join(fields)})", "a PLY of 3D Gaussian splatting")
  unknown = [name for name in fields if name not in (*names, *_UNREAD_FIELDS, BINDING)]
  if unknown:
    raise InputError(path, ", ".join(unknown), "a field that is not of 3D Gaussian splatting", "none such")
  return _REST_COUNTS[num_rest]


def _check_table(path: str | os.PathLike, table: np.ndarray) -> None:
  """Whether float32 holds all numbers, sizes and lengths, as whoever draws the Gaussians needs it."""
  for name in table.dtype.names or ():
    if name in _UNREAD_FIELDS:
      continue
    row = lambda wrong: f"{name}, Gaussian {int(np.argmax(wrong))}"
    with np.errstate(over="ignore"):
      wrong = ~np.isfinite(table[name].astype(np.float32))
    if wrong.any():
      raise InputError(path, row(wrong), table[name][np.argmax(wrong)], "a finite number")
    if name.startswith("scale_") and (wrong := table[name] >= _LARGEST_LOG_SCALE).any():
      raise InputError(path, row(wrong), table[name][np.argmax(wrong)], f"the logarithm of a size, below {_LARGEST_LOG_SCALE:.0f}")
  with np.errstate(over="ignore", under="ignore"):
    length = sum(np.square(table[f"rot_{i}"].astype(np.float32)) for i in range(4))
  wrong = ~((length > 0) & np.isfinite(length))
  if wrong.any():
    quaternion = [float(table[f"rot_{i}"][np.argmax(wrong)]) for i in range(4)]
    found = "a quaternion of zeros" if not any(quaternion) else f"the quaternion {quaternion}"
    raise InputError(path, f"rot_*, Gaussian {int(np.argmax(wrong))}", found, "a rotation")
