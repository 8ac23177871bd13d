"""Tables of numbers for the scripts of pages: what tables.js reads, and of it what makes an avatar and its head.

A description (JSON) and one stream of bytes. Integers are uint32. All else is rounded to 16 bits, evenly between the least and
the largest value of each column (places in space not finer than a micrometre: offsets of a fraction of that would be mere digits
to store); frames are stored as differences to the one before, all low bytes before all high bytes, which a compressor makes
most of.

    faces (F, 3), binding (N,)     uint32
    means, quats, log_scales, opacities, sh (1, N, …)
                                   the Gaussians in the frames of their triangles; quaternions of unit length, opacities
                                   in [0, 1], harmonics (1, N, 3K)
    template (1, V, 3)             of the person's head, metres
    expressions (1, 3V, 50)        displacement per expression coefficient
    correctives (1, 3V, 18)        displacement per entry of (R - I) of neck and jaw
    weights (1, V, 2)              of neck and jaw, the rest being the body's; the eyes, which stay at rest, count as neck
    joints (1, 6, 1), joint_expressions (1, 6, 50)
                                   places of neck and jaw, and their displacements
    offsets/anchors (A,)           uint32; the faces with Gaussians, for which the network of Eq. 8 has rows
    offsets/…                      its arrays (`social.folding`)
"""

import gzip
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

import splat_kernels
from rsatalker_jax.avatar import Avatar
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import JOINT_NAMES, HeadModel
from rsatalker_jax.types import EXPRESSION_DIM

_STEPS = 2**16 - 1
MICROMETRE = 1e-6


class Tables:
  """Tables that are added one by one.

  Attributes:
    descriptions: of all so far, for `readTables`.
  """

  def __init__(self, place: str | os.PathLike):
    """`place`: what errors name."""
    self._place = place
    self.descriptions: list[dict[str, Any]] = []
    self._parts: list[bytes] = []

  def add_integers(self, name: str, values: np.ndarray) -> None:
    self.descriptions.append({"name": name, "type": "uint32", "shape": values.shape})
    self._parts.append(values.astype("<u4").tobytes())

  def add_numbers(self, name: str, values: Float[np.ndarray, "T n c"], finest: float = 0.0) -> None:
    """Adds a table of frames; values are not told apart more finely than `finest`.

    Raises:
      InputError: a value that is not finite.
    """
    if not np.isfinite(values).all():
      raise InputError(self._place, name, "a value that is not finite", "finite numbers")
    header, data = _to_steps(values, finest)
    self.descriptions.append({"name": name, "type": "uint16", "shape": values.shape} | header)
    self._parts.append(data)

  def pack(self) -> bytes:
    """The stream, by gzip."""
    return gzip.compress(b"".join(self._parts), 9, mtime=0)

  def add_triangles(self, avatar: Avatar, head: HeadModel) -> np.ndarray:
    """Adds faces and binding; returns which Gaussians (N,) a rasterizer draws, the others being left out here and by
    `add_gaussians`.

    Raises:
      InputError: none is drawn.
    """
    opacities = _opacities(avatar)
    seen = ~(opacities < splat_kernels.Config().alpha_min)  # NaN is not left out, but named by `add_gaussians`.
    if not seen.any():
      raise InputError(self._place, "opacities", "all below 1/255", "at least one Gaussian that is visible")
    if not np.linalg.norm(np.asarray(avatar.gaussians.quats), axis=-1)[seen].all():
      raise InputError(self._place, "quats", "a quaternion of zeros", "rotations")
    self.add_integers("faces", np.asarray(head.faces))
    self.add_integers("binding", np.asarray(avatar.binding)[seen])
    return seen

  def add_gaussians(self, avatar: Avatar, seen: np.ndarray) -> None:
    """Adds the Gaussians themselves; `seen` is what `add_triangles` returned.

    Raises:
      InputError: a value that is not finite.
    """
    gaussians, opacities = jax.device_get(avatar.gaussians), _opacities(avatar)
    with np.errstate(invalid="ignore", divide="ignore"):  # Quaternions of zeros of Gaussians that are left out.
      quats = gaussians.quats / np.linalg.norm(gaussians.quats, axis=-1, keepdims=True)
    for name, values in (
        ("means", gaussians.means),
        ("quats", quats),
        ("log_scales", gaussians.log_scales),
        ("opacities", opacities[:, None]),
        ("sh", gaussians.sh.reshape(len(opacities), -1)),
    ):
      self.add_numbers(name, values[None, seen])

  def add_head(self, avatar: Avatar, head: HeadModel) -> None:
    """Adds the head of an avatar's person, which head.js poses by any motion.

    Raises:
      InputError: a value that is not finite, or a head whose joints are not FLAME's.
    """
    if head.parents != (-1, 0, 1, 1, 1):
      raise InputError(self._place, "parents", head.parents, f"the tree of FLAME's joints {', '.join(JOINT_NAMES)}")
    as_64 = lambda x: np.asarray(x, np.float64)
    shape, directions = as_64(avatar.shape), as_64(head.shape_directions)
    count = min(len(shape), directions.shape[-1])
    template = as_64(head.v_template) + directions[..., :count] @ shape[:count]
    if avatar.static_offset is not None:
      template += as_64(avatar.static_offset)
    expressions = as_64(head.expression_directions)[..., :EXPRESSION_DIM]
    vertices, coefficients = len(template), expressions.shape[-1]
    regressor = as_64(head.joint_regressor)[1:3]  # Of neck and jaw.
    weights = as_64(head.weights)
    weights = np.stack([weights[:, 1] + weights[:, 3] + weights[:, 4], weights[:, 2]], axis=1)
    self.add_numbers("template", template[None], MICROMETRE)
    self.add_numbers("expressions", expressions.reshape(1, 3 * vertices, coefficients))
    self.add_numbers("correctives", as_64(head.pose_directions)[..., :18].reshape(1, 3 * vertices, 18))
    self.add_numbers("weights", weights[None])
    self.add_numbers("joints", (regressor @ template).reshape(1, 6, 1), MICROMETRE / 100)
    self.add_numbers("joint_expressions", np.einsum("jv,vie->jie", regressor, expressions).reshape(1, 6, coefficients))


  def add_offsets(self, avatar: Avatar, seen: np.ndarray, offsets: Mapping[str, Float[np.ndarray, "_ _"]]) -> None:
    """Adds the network of the offset corrections (`social.folding.fold_offsets`), of those faces that have Gaussians in the page;
    `seen` is what `add_triangles` returned.

    Raises:
      InputError: a value that is not finite.
    """
    anchors = np.unique(np.asarray(avatar.binding)[seen])
    rows = (3 * anchors[:, None] + np.arange(3)).reshape(-1)
    self.add_integers("offsets/anchors", anchors)
    kept = {"out/kernel": offsets["out/kernel"][rows], "out/bias": offsets["out/bias"][:, rows]}  # Metres.
    self.add_arrays({f"offsets/{name}": values for name, values in offsets.items() if name not in kept})
    self.add_arrays({f"offsets/{name}": values for name, values in kept.items()}, MICROMETRE / 4)

  def add_arrays(self, arrays: Mapping[str, Float[np.ndarray, "_ _"]], finest: float = 0.0) -> None:
    """Adds a network's arrays, each in 16 bits between its own least and largest value (docs/live_page.md has what that changes); see
    `add_numbers`.

    Raises:
      InputError: a value that is not finite.
    """
    for name, values in arrays.items():
      self.add_numbers(name, values.reshape(1, -1, 1), finest)


def _opacities(avatar: Avatar) -> Float[np.ndarray, "N"]:
  return 1 / (1 + np.exp(-np.asarray(avatar.gaussians.opacity_logits, np.float64)))


def _to_steps(values: Float[np.ndarray, "T n c"], finest: float) -> tuple[dict[str, list[float]], bytes]:
  """Least value and step of each column, and all values as differences between frames; see the top of this file."""
  least = values.min(axis=(0, 1)).astype(np.float64)
  step = np.maximum((values.max(axis=(0, 1)) - least) / _STEPS, finest)
  steps = np.round((values - least) / np.where(step > 0, step, 1)).astype(np.uint16)
  differences = steps.copy()
  differences[1:] -= steps[:-1]  # Wraps around, and so does the page's sum.
  low_high = differences.astype("<u2").reshape(-1, 1).view(np.uint8)
  return {"least": least.tolist(), "step": step.tolist()}, low_high.T.tobytes()
