"""Tracked video of a head: the capture layout that VHAP exports and GaussianAvatars trains on.

    transforms_{train,val,test}.json   frames: file_path, flame_param_path, timestep_index, camera_index,
                                       transform_matrix (OpenGL camera-to-world), w, h, cx, cy, and fl_x, fl_y or
                                       camera_angle_x; a value that all frames share may stand at the top instead.
                                       At the top, ours: "background", a colour in [0, 1] that already shows where
                                       the masks are below 1 (rendered captures), not a real room
                                       An entry of ours may name a video as file_path, fg_mask_path or both; its
                                       "frame_index" then says which frame of it, counted from 0
    images/, fg_masks/                 frames and soft foreground masks
    flame_param/*.npz                  translation, rotation, neck_pose, jaw_pose (1,3), eyes_pose (1,6), expr (1,E)
    canonical_flame_param.npz          shape (S,) and, where tracked, static_offset (1,V,3)
"""

import json
import math
import os
import pathlib
import threading
import zipfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError

from rsatalker_jax.data.video_frames import VIDEO_SUFFIXES, read_video_frame
from rsatalker_jax.errors import InputError

SPLITS = ("train", "val", "test")
# Our name, VHAP's key and the width of each per-frame head parameter (None: as many as the first frame has).
_FLAME_KEYS = (
    ("expression", "expr", None),
    ("rotation", "rotation", 3),
    ("neck", "neck_pose", 3),
    ("jaw", "jaw_pose", 3),
    ("eyes", "eyes_pose", 6),
    ("translation", "translation", 3),
)
# numpy reads array headers with ast.literal_eval, which Python 3.11 breaks off with a SystemError now and then when threads
# do it at the same time (seen with 3.11.7), and Grain's threads would.
_PARSING = threading.Lock()
_ARRAY_FILE_ERRORS = (ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile)


class Capture:
  """Random access to the frames of a capture, decoded when asked for; a source for `grain.MapDataset.source`.

  `capture[i]` is a dict:
    image (H, W, 3) float32 in [0, 1], over `background` where one is given;
    mask (H, W) float32, 1 on the head; all 1 where the capture has no masks;
    world_to_camera (4, 4) and intrinsics (3, 3) float32, OpenCV axes, pixel centres at +0.5;
    timestep, camera_index: int32;
    flame: dict of expression (E,), rotation, neck, jaw, translation (3,), eyes (6,), arguments of `head_vertices`.

  Attributes:
    root: the capture's folder.
    width, height: of every image, in pixels.
    shape: identity coefficients (S,).
    static_offset: vertex offsets (V, 3), or None.
    num_expression: E, of every frame.
    timesteps, camera_indices: of every item, int32.
  """

  def __init__(self, root: pathlib.Path, frames: list["_Frame"], identity, background, max_expression: int | None):
    self.root = root
    self.width, self.height = frames[0].size
    self.shape, self.static_offset = identity
    self.num_expression = len(_read_flame_param(frames[0].flame_path)["expression"])
    self.timesteps = np.array([frame.timestep for frame in frames], np.int32)
    self.camera_indices = np.array([frame.camera_index for frame in frames], np.int32)
    self._frames = frames
    self._background = background
    self._max_expression = max_expression
    self._flames: dict[pathlib.Path, dict] = {}  # A few hundred bytes a timestep, wanted by every camera and epoch.
    self._index = {(frame.camera_index, frame.timestep): i for i, frame in enumerate(frames)}

  def __len__(self) -> int:
    return len(self._frames)

  def __getitem__(self, i: int) -> dict:
    frame = self._frames[i]
    image, mask = frame.read_image()
    if self._background is not None:
      image = composite(image, mask, self._background, frame.background)
    return {
        "image": image,
        "mask": mask,
        "world_to_camera": frame.world_to_camera,
        "intrinsics": frame.intrinsics,
        "timestep": np.int32(frame.timestep),
        "camera_index": np.int32(frame.camera_index),
        "flame": self._flame(frame),
    }

  def read_flame(self, items: Sequence[int]) -> dict[str, np.ndarray]:
    """The head parameters of some items, without their images: `flame` of `self[i]` with the items in front."""
    flames = [self._flame(self._frames[int(i)]) for i in items]
    return {name: np.stack([flame[name] for flame in flames]) for name in flames[0]}

  def _flame(self, frame: "_Frame") -> dict[str, np.ndarray]:
    if (flame := self._flames.get(frame.flame_path)) is None:
      flame = self._flames[frame.flame_path] = _read_flame_param(frame.flame_path, self.num_expression)
    if self._max_expression is not None and np.any(beyond := flame["expression"][self._max_expression :]):
      found = f"{np.count_nonzero(beyond)} values that are not 0 behind the first {self._max_expression}"
      raise InputError(frame.flame_path, "expr", found, f"{self._max_expression} values, as the head model has")
    return dict(flame)

  def index(self, camera_index: int, timestep: int) -> int:
    """The item that shows a moment from a camera; KeyError where there is none."""
    return self._index[camera_index, timestep]


def composite(
    image: Float[np.ndarray, "*b H W 3"],
    mask: Float[np.ndarray, "*b H W"],
    background: Float[np.ndarray, "3"],
    shown: Float[np.ndarray, "3"] | None = None,
) -> Float[np.ndarray, "*b H W 3"]:
  """The head over another background; numpy or jax arrays.

  Args:
    image, mask: as captured.
    background: the colour wanted where the mask is 0.
    shown: the colour that the image already blends in there. None: unknown, and soft edges keep a trace of it.
  """
  beside = 1 - mask[..., None]
  if shown is None:
    return image * (1 - beside) + background * beside
  return image + (background - shown) * beside


def transforms_file(root: str | os.PathLike, split: str) -> pathlib.Path:
  """The file that lists a split's frames."""
  return pathlib.Path(root) / f"transforms_{split}.json"


def load_capture(
    root: str | os.PathLike,
    split: str,
    *,
    background: tuple[float, float, float] | None = None,
    num_vertices: int | None = None,
    num_expression: int | None = None,
) -> Capture:
  """Opens one split of a capture.

  Args:
    root: the folder with the transforms files.
    split: "train", "val", "test", or "all" of those that exist.
    background: colour in [0, 1] to put behind the mask; None leaves the images as they are.
    num_vertices: of the head model the capture is used with, to check the tracked static offset against.
    num_expression: likewise, for the expressions: coefficients behind it must be 0.

  Raises:
    InputError: a file is missing or damaged, or a value is missing or wrong. What concerns a single image, video or
      parameter file (beyond its existence) is found when that frame is read.
  """
  root = pathlib.Path(root)
  if split not in (*SPLITS, "all"):
    raise InputError("split", "", repr(split), "train, val, test or all")
  files = [transforms_file(root, name) for name in (SPLITS if split == "all" else (split,))]
  if split == "all":
    files = [file for file in files if file.exists()] or files[:1]
  frames = [frame for file in files for frame in _read_transforms(file)]
  for frame in frames:
    if frame.size != frames[0].size:
      raise InputError(frame.place, "w, h", frame.size, f"{frames[0].size} as in the first frame")
  canonical = root / "canonical_flame_param.npz"
  # Captures without a canonical file repeat the identity in every frame's.
  identity = read_identity(canonical if canonical.is_file() else frames[0].flame_path, num_vertices)
  background = None if background is None else np.asarray(background, np.float32)
  return Capture(root, frames, identity, background, num_expression)


class _Frame:
  """One entry of a transforms file, checked."""

  def __init__(self, file: pathlib.Path, number: int, entry: object, shared: dict):
    self.place = f"{file}: frames[{number}]"
    if not isinstance(entry, dict):
      raise InputError(self.place, "", type(entry).__name__, "an object")
    self._entry, self._shared = entry, shared
    self.timestep = int(self._number("timestep_index"))
    self.camera_index = int(self._number("camera_index"))
    self.size = int(self._number("w")), int(self._number("h"))
    self.background = self._read_background()
    self.intrinsics = self._read_intrinsics()
    self.world_to_camera = self._read_camera()
    self.image_path = self._path("file_path", file.parent)
    self.flame_path = self._path("flame_param_path", file.parent)
    self.mask_path = self._find_mask(file.parent)
    self._video_frame = self._read_video_frame()

  def _number(self, key: str, default: float | None = None) -> float:
    value = self._entry.get(key, self._shared.get(key, default))
    if value is None:
      raise InputError(self.place, key, "no such key", "a number")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
      raise InputError(self.place, key, repr(value), "a finite number")
    return value

  def _path(self, key: str, folder: pathlib.Path) -> pathlib.Path:
    value = self._entry.get(key)
    if not isinstance(value, str):
      raise InputError(self.place, key, "no such key" if value is None else repr(value), "a path")
    path = folder / value
    if not path.is_file():
      raise InputError(self.place, key, f"{value}, which does not exist", "an existing file")
    return path

  def _find_mask(self, folder: pathlib.Path) -> pathlib.Path | None:
    if self._entry.get("fg_mask_path") is not None:
      return self._path("fg_mask_path", folder)
    # GaussianAvatars' convention: the same path, another folder.
    guess = folder / self._entry["file_path"].replace("images", "fg_masks", 1)
    guess = guess if _is_video(guess) else guess.with_suffix(".png")
    return guess if guess != self.image_path and guess.is_file() else None

  def _read_video_frame(self) -> int | None:
    """Which frame of its videos shows the moment; None where the entry names images."""
    if not any(path is not None and _is_video(path) for path in (self.image_path, self.mask_path)):
      return None
    number = self._number("frame_index")
    if number < 0 or number != int(number):
      raise InputError(self.place, "frame_index", number, "a whole number from 0")
    return int(number)

  def _read_background(self) -> np.ndarray | None:
    value = self._shared.get("background")
    if value is None:
      return None
    numbers = isinstance(value, list) and all(isinstance(x, (int, float)) and 0 <= x <= 1 for x in value)
    if not numbers or len(value) != 3:
      raise InputError(self.place, "background", repr(value), "three numbers in [0, 1]")
    return np.array(value, np.float32)

  def _read_intrinsics(self) -> np.ndarray:
    width, height = self.size
    if width <= 0 or height <= 0:
      raise InputError(self.place, "w, h", self.size, "sizes above 0")
    if "fl_x" in self._entry or "fl_x" in self._shared:
      fx = self._number("fl_x")
    else:
      angle = self._number("camera_angle_x")
      if not 0 < angle < math.pi:
        raise InputError(self.place, "camera_angle_x", angle, "0 to pi")
      fx = width / 2 / math.tan(angle / 2)
    fy = self._number("fl_y", fx)
    if fx <= 0 or fy <= 0:
      raise InputError(self.place, "fl_x, fl_y", (fx, fy), "focal lengths above 0")
    cx, cy = self._number("cx", width / 2), self._number("cy", height / 2)
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)

  def _read_camera(self) -> np.ndarray:
    value = self._entry.get("transform_matrix")
    try:
      matrix = np.array(value, np.float64)
    except (TypeError, ValueError):
      matrix = np.zeros(0)
    if matrix.shape != (4, 4) or not np.all(np.isfinite(matrix)):
      found = "no such key" if value is None else f"shape {matrix.shape}"
      raise InputError(self.place, "transform_matrix", found, "4 x 4 finite numbers")
    rotation = matrix[:3, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if error > 1e-3 or np.linalg.det(rotation) < 0 or np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
      found = f"determinant {np.linalg.det(matrix):.3g}, rotation off by {error:.2g}"
      raise InputError(self.place, "transform_matrix", found, "a rotation and a translation, which can be inverted")
    # OpenGL's camera looks along -z with y up, OpenCV's along +z with y down.
    return np.linalg.inv(matrix @ np.diag([1.0, -1.0, -1.0, 1.0])).astype(np.float32)

  def read_image(self) -> tuple[np.ndarray, np.ndarray]:
    image = self._decode(self.image_path, channels=3)
    if image.ndim == 2:
      image = image[..., None].repeat(3, axis=-1)
    if self.mask_path is not None:
      mask = self._decode(self.mask_path, channels=1)
      mask = mask if mask.ndim == 2 else mask[..., 0]
    elif image.shape[-1] == 4:
      mask = image[..., 3]
    else:
      mask = np.ones(image.shape[:2], np.float32)
    return np.ascontiguousarray(image[..., :3]), mask

  def _decode(self, path: pathlib.Path, channels: int) -> np.ndarray:
    """Pixels in [0, 1], of a video in `channels` channels, of an image in as many as it has."""
    if _is_video(path):
      pixels = read_video_frame(path, self._video_frame, channels=channels)
    else:
      pixels = _read_image(path)
    if pixels.shape[:2] != self.size[::-1]:
      found = f"{pixels.shape[1]}x{pixels.shape[0]} pixels"
      raise InputError(path, "", found, f"{self.size[0]}x{self.size[1]} as {self.place} says")
    return pixels.astype(np.float32) / 255


def _is_video(path: pathlib.Path) -> bool:
  return path.suffix.lower() in VIDEO_SUFFIXES


def _read_image(path: pathlib.Path) -> np.ndarray:
  try:
    with Image.open(path) as picture:
      return np.asarray(picture if picture.mode in ("L", "RGB", "RGBA") else picture.convert("RGB"))
  except (OSError, UnidentifiedImageError, SyntaxError) as error:
    raise InputError(path, "", error, "a whole image file") from None


def _read_transforms(file: pathlib.Path) -> list[_Frame]:
  try:
    content = json.loads(file.read_text(encoding="utf-8"))
  except OSError as error:
    raise InputError(file, "", error.strerror or error, "a transforms file") from None
  except ValueError as error:
    raise InputError(file, "", f"damaged JSON ({error})", "a whole transforms file") from None
  entries = content.get("frames") if isinstance(content, dict) else None
  if not isinstance(entries, list) or not entries:
    found = "no such key" if entries is None else f"{len(entries)} entries" if entries == [] else type(entries).__name__
    raise InputError(file, "frames", found, "a list of frames")
  return [_Frame(file, number, entry, content) for number, entry in enumerate(entries)]


def _read_array(path: pathlib.Path, file, key: str, size: int | None) -> np.ndarray:
  """A (size,) float32 vector stored as (size,) or (1, size)."""
  if key not in file:
    raise InputError(path, key, f"no such key (there are {', '.join(sorted(file))})", "a head parameter")
  value = np.asarray(file[key])
  if value.dtype.kind not in "fiu" or value.size == 0 or value.size != (size or value.size) or value.size != value.shape[-1]:
    expected = f"(1, {size})" if size else "one row of numbers"
    raise InputError(path, key, f"{value.dtype} of shape {value.shape}", expected)
  if not np.all(np.isfinite(value)):
    raise InputError(path, key, "NaN or infinity", "finite numbers")
  return value.reshape(-1).astype(np.float32)


def _read_flame_param(path: pathlib.Path, num_expression: int | None = None) -> dict[str, np.ndarray]:
  try:
    with _PARSING, np.load(path, allow_pickle=False) as file:
      return {name: _read_array(path, file, key, size or num_expression) for name, key, size in _FLAME_KEYS}
  except InputError:
    raise
  except (OSError, *_ARRAY_FILE_ERRORS) as error:
    raise InputError(path, "", error, "an .npz of head parameters") from None


def read_identity(
    path: pathlib.Path, num_vertices: int | None
) -> tuple[Float[np.ndarray, "S"], Float[np.ndarray, "V 3"] | None]:
  """Reads `shape` and, where there is one, `static_offset` (metres) from an .npz of head parameters.

  Args:
    path: the file.
    num_vertices: of the head model, to check the offset against; None takes any.

  Raises:
    InputError: the file is missing or damaged, or a value is missing, not finite or of another shape.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      shape = _read_array(path, file, "shape", None)
      static_offset = np.asarray(file["static_offset"], np.float32) if "static_offset" in file else None
  except InputError:
    raise
  except (OSError, *_ARRAY_FILE_ERRORS) as error:
    raise InputError(path, "", error, "an .npz of head parameters") from None
  if static_offset is not None:
    if static_offset.ndim < 2 or static_offset.shape[-1] != 3 or static_offset.size != static_offset.shape[-2] * 3:
      raise InputError(path, "static_offset", f"shape {static_offset.shape}", "(1, V, 3)")
    if not np.all(np.isfinite(static_offset)):
      raise InputError(path, "static_offset", "NaN or infinity", "finite numbers")
    static_offset = static_offset.reshape(-1, 3)
    if num_vertices not in (None, len(static_offset)):
      found = f"{len(static_offset)} vertices"
      raise InputError(path, "static_offset", found, f"{num_vertices}, as the head model has")
  return shape, static_offset
