"""Boxes in the picture about parts of the face: where losses and metrics look closer. Landmarks are the head's own vertices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rsatalker_jax.head import FlamePose, HeadModel, face_mask, find_lips, head_vertices, region_mask, select_vertices

_LIP_MARGIN = 1.2  # Of the lips' square, as a share of their larger side.
_CHUNK = 256  # Frames that are posed at once.
_NO_BOX = np.zeros(4, np.float32)


@dataclasses.dataclass(frozen=True)
class Boxes:
  """Makes the boxes of a person's frames.

  Attributes:
    head: of the vertices of face and lips alone.
    shape: of the person.
    face, lower, lips: numbers of the vertices that a box encloses, none where the head has no such part: the whole face;
      what of it lies below the tip of the nose, which is what lies furthest ahead; the lips.
    width, height: of the picture, pixels.
  """

  head: HeadModel
  shape: Float[np.ndarray, "S"]
  static_offset: Float[np.ndarray, "v 3"] | None
  face: Int[np.ndarray, "_"]
  lower: Int[np.ndarray, "_"]
  lips: Int[np.ndarray, "_"]

  @classmethod
  def of(cls, head: HeadModel, shape: Float[np.ndarray, "S"], static_offset: Float[np.ndarray, "V 3"] | None) -> "Boxes":
    faces = np.asarray(head.faces)
    face = np.unique(faces[face_mask(head)] if head.region_names else faces)
    lips = find_lips(head)
    if "lips" in head.region_names:
      lips = np.unique(faces[region_mask(head, "lips")])
    lips = np.zeros(0, np.int64) if lips is None else lips
    template = np.asarray(head.v_template)
    lower = face[template[face, 1] <= template[face[np.argmax(template[face, 2])], 1]]
    chosen = np.union1d(face, lips)
    offset = None
    if static_offset is not None:  # Joints stand behind the vertices (`select_vertices`).
      offset = np.concatenate([static_offset[chosen], np.asarray(head.joint_regressor) @ static_offset])
    places = (np.searchsorted(chosen, part) for part in (face, lower, lips))
    return cls(select_vertices(head, chosen), np.asarray(shape), offset, *places)

  def find(
      self, flame: FlamePose, world_to_camera: Float[Array, "T 4 4"], intrinsics: Float[Array, "T 3 3"]
  ) -> dict[str, Float[np.ndarray, "T 4"]]:
    """Left, top, right and bottom in pixels, which may lie outside the picture, of frames: "face", "lower", and "lips", a
    square. Without area where the head has no such part."""
    count, parts = len(intrinsics), []
    for start in range(0, count, _CHUNK):
      # The last frames are filled up: one shape, one compilation.
      numbers = np.minimum(np.arange(start, start + min(_CHUNK, count)), count - 1)
      shown = {name: np.asarray(x)[numbers] for name, x in flame.items()}
      found = self._corners(shown, np.asarray(world_to_camera)[numbers], np.asarray(intrinsics)[numbers])
      parts.append({name: np.asarray(box, np.float32)[: count - start] for name, box in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

  @functools.cached_property
  def _corners(self):
    def corners(flame, world_to_camera, intrinsics):
      vertices = head_vertices(self.head, shape=self.shape, static_offset=self.static_offset, **flame)
      seen = (vertices @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]) @ intrinsics.T
      pixels = seen[:, :2] / seen[:, 2:]
      enclose = lambda part: jnp.concatenate([pixels[part].min(axis=0), pixels[part].max(axis=0)]) if len(part) else _NO_BOX
      lips = enclose(self.lips)
      middle, reach = (lips[:2] + lips[2:]) / 2, _LIP_MARGIN * jnp.max(lips[2:] - lips[:2]) / 2
      return {"face": enclose(self.face), "lower": enclose(self.lower), "lips": jnp.concatenate([middle - reach, middle + reach])}

    return jax.jit(jax.vmap(corners))


def box_mask(box: Float[Array, "*b 4"], width: int, height: int) -> Float[Array, "*b H W"]:
  """1 at the pixels whose centres lie in the box, 0 elsewhere."""
  x, y = jnp.arange(width) + 0.5, jnp.arange(height) + 0.5
  left, top, right, bottom = (box[..., i, None] for i in range(4))
  across, down = (x >= left) & (x < right), (y >= top) & (y < bottom)
  return (down[..., :, None] & across[..., None, :]).astype(jnp.float32)


def crop(
    images: Float[Array, "T H W 3"], centres: Float[Array, "T 2"], size: int
) -> Float[Array, "T size size 3"]:
  """Squares of the images about places in them (x, y in pixels), moved inwards where they would leave the image."""
  height, width = images.shape[1:3]
  corner = jnp.round(centres - size / 2).astype(jnp.int32)
  cut = lambda image, at: jax.lax.dynamic_slice(image, (at[1], at[0], 0), (size, size, 3))
  return jax.vmap(cut)(images, jnp.clip(corner, 0, jnp.array([width - size, height - size])))
