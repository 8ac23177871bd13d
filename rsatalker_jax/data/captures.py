"""Tracked video of a head: the capture layout that VHAP exports and GaussianAvatars trains on.

    transforms_{train,val,test}.json   frames: file_path, flame_param_path, timestep_index, camera_index,
                                       transform_matrix (OpenGL camera-to-world), w, h, cx, cy, and fl_x, fl_y or
                                       camera_angle_x, camera_angle_y; a value that all frames share may stand at the
                                       top instead. cy counts from the bottom of the image, since VHAP turns it over
                                       with the camera's axes (convert_camera_convention, "opencv->opengl"); an entry
                                       of ours, "cy_from": "top", says otherwise.
                                       At the top, ours: "basis", one of types.BASES, what expr multiplies: without it
                                       FLAME 2023's, which VHAP tracks with, or ARKit's where the first frame has weights
                                       from 0 to 1; "background", a colour in [0, 1] that already shows where
                                       the masks are below 1 (rendered captures), not a real room
                                       An entry of ours may name a video as file_path, fg_mask_path or both; its
                                       "frame_index" then says which frame of it, counted from 0
    images/, fg_masks/                 frames and soft foreground masks
    flame_param/*.npz                  translation, rotation, neck_pose, jaw_pose (1,3), eyes_pose (1,6), expr (1,E)
    canonical_flame_param.npz          shape (S,) and, where tracked, static_offset (1,V,3)
"""

import codecs
import json
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.data.images import IMAGE_SUFFIXES, check_size, mask_from_pixels, read_header, read_image, read_mask
from rsatalker_jax.data.video_frames import VIDEO_SUFFIXES, read_video_frame
from rsatalker_jax.data.tracks import are_weights
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_whole
from rsatalker_jax.head import HeadModel, check_basis
from rsatalker_jax.npz import Archive, open_npz, to_float32
from rsatalker_jax.types import BASES

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
# Keys that bend the picture, as COLMAP, nerfstudio and instant-ngp write them, and the models that are straight without.
_DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "s1", "s2", "s3", "s4", "skew")
_DISTORTION_LISTS = ("distortion_params", "distortion_coefficients", "rolling_shutter")
_STRAIGHT_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "OPENCV", "FULL_OPENCV", "RADIAL", "SIMPLE_RADIAL")
# What nerfstudio and instant-ngp write and VHAP does not. Their cy counts from the top.
_FOREIGN_KEYS = ("camera_model", "aabb_scale", "applied_transform", "applied_scale", *_DISTORTION_KEYS)
# Of a focal length or a coordinate: its square is far below what float32 holds.
_MAX_NUMBER = 1e9


def spread_places(length: int, count: int) -> Int[np.ndarray, "n"]:
  """Up to `count` of `length` places, from the first to the last."""
  return np.unique(np.linspace(0, length - 1, count).round().astype(int))


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
    basis: of the expressions, one of `types.BASES`.
    timesteps, camera_indices: of every item, int32.
  """

  def __init__(self, root: pathlib.Path, frames: list["_Frame"], identity, background, max_expression: int | None):
    self.root = root
    self.width, self.height = frames[0].size
    self.shape, self.static_offset = identity
    expression = _read_flame_param(frames[0].flame_path)["expression"]
    self.num_expression = len(expression)
    self.timesteps = np.array([frame.timestep for frame in frames], np.int32)
    self.camera_indices = np.array([frame.camera_index for frame in frames], np.int32)
    self.basis = frames[0].basis or ("arkit" if are_weights(expression) else "flame2023")
    self._frames = frames
    self._background = background
    self._max_expression = max_expression
    self._flames: dict[pathlib.Path, dict] = {}  # A few hundred bytes a timestep, wanted by every camera and epoch.
    self._index = {(frame.camera_index, frame.timestep): i for i, frame in enumerate(frames)}

  @property
  def nonzero_offset(self) -> Float[np.ndarray, "V 3"] | None:
    """`static_offset`; None where it moves nothing, so that nothing is added."""
    return None if self.static_offset is None or not np.any(self.static_offset) else self.static_offset

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

  def read_cameras(self, items: Sequence[int]) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 3 3"]]:
    """The cameras of some items, without their images: world_to_camera and intrinsics."""
    frames = [self._frames[int(i)] for i in items]
    return np.stack([frame.world_to_camera for frame in frames]), np.stack([frame.intrinsics for frame in frames])

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
    split: "train", "val", "test", or "all" of those that exist. VHAP writes a val without frames where there is but one
      camera: as one of "all" it is passed over.
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
  if not frames:
    raise InputError(files[0], "frames", "0 entries", "a list of frames")
  places: dict[tuple[int, int], str] = {}
  for frame in frames:
    if frame.size != frames[0].size:
      raise InputError(frame.place, "w, h", frame.size, f"{frames[0].size} as in the first frame")
    if frame.basis != frames[0].basis:
      raise InputError(frame.place, "basis", frame.basis, f"{frames[0].basis} as in the first frame")
    moment = frame.camera_index, frame.timestep
    if places.setdefault(moment, frame.place) != frame.place:
      found = f"camera {moment[0]}, timestep {moment[1]} as in {places[moment]}"
      raise InputError(frame.place, "camera_index, timestep_index", found, "each moment of a camera once")
  canonical = root / "canonical_flame_param.npz"
  # Captures without a canonical file repeat the identity in every frame's.
  identity = read_identity(canonical if canonical.is_file() else frames[0].flame_path, num_vertices)
  color = None if background is None else np.asarray(background, np.float32)
  return Capture(root, frames, identity, color, num_expression)


def check_capture(capture: Capture, head: HeadModel) -> Capture:
  """The capture, if its expressions are the head's.

  Raises:
    InputError: they are others.
  """
  remedy = 'a head of the capture\'s basis; or, if it was tracked with this one, "basis" at the top of its transforms files'
  check_basis(head, capture.basis, capture.root, remedy=remedy)
  return capture


def has_frames(root: str | os.PathLike, split: str) -> bool:
  """Whether a capture has a split, and frames in it.

  Raises:
    InputError: the transforms file is damaged.
  """
  file = pathlib.Path(root) / f"transforms_{split}.json"
  return file.is_file() and bool(_read_json(file)["frames"])


class _Frame:
  """One entry of a transforms file, checked."""

  def __init__(self, file: pathlib.Path, number: int, entry: object, shared: dict):
    self.place = f"{file}: frames[{number}]"
    if not isinstance(entry, dict):
      raise InputError(self.place, "", type(entry).__name__, "an object")
    self._entry, self._shared = entry, shared
    self.timestep = self._whole_number("timestep_index")
    self.camera_index = self._whole_number("camera_index")
    self.image_path = self._path("file_path", file.parent, (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
    self.flame_path = self._path("flame_param_path", file.parent, (".npz",))
    self._masks: pathlib.Path | None = None  # A folder of masks, none of which is the image's.
    self.mask_path = self._find_mask(file.parent)
    self._video_frame = self._read_video_frame()
    self.size = self._read_size()
    self.background = self._read_background()
    self.basis = self._read_basis()
    self._check_lens()
    self.intrinsics = self._read_intrinsics()
    self.world_to_camera = self._read_camera()

  def _get(self, key: str) -> object:
    """A frame's own value before the file's; None where there is neither."""
    value = self._entry.get(key)
    return self._shared.get(key) if value is None else value

  def _number(self, key: str, level: dict | None = None, default: float | None = None) -> float:
    value = self._get(key) if level is None else level.get(key)
    value = default if value is None else value
    if value is None:
      raise InputError(self.place, key, "no such key", "a number")
    # A comparison, since whole numbers of JSON may be beyond any float.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
      raise InputError(self.place, key, repr(value), "a finite number")
    return value

  def _whole_number(self, key: str, least: int = -(2**31)) -> int:
    value = self._number(key)
    if value != int(value) or not least <= value < 2**31:
      raise InputError(self.place, key, value, f"a whole number from {least} to {2**31 - 1}")
    return int(value)

  def _path(self, key: str, folder: pathlib.Path, suffixes: tuple[str, ...]) -> pathlib.Path:
    """An existing file, if need be with the back-slashes of Windows turned over, or a suffix that was left away."""
    value = self._entry.get(key)
    if not isinstance(value, str):
      raise InputError(self.place, key, "no such key" if value is None else repr(value), "a path")
    for name in dict.fromkeys((value, value.replace("\\", "/"))):
      for suffix in ("", *suffixes):
        if os.path.isfile(folder / (name + suffix)):
          return folder / (name + suffix)
    raise InputError(self.place, key, f"{value}, which does not exist", "an existing file")

  def _find_mask(self, folder: pathlib.Path) -> pathlib.Path | None:
    if self._entry.get("fg_mask_path") is not None:
      return self._path("fg_mask_path", folder, (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
    # GaussianAvatars' convention: the same path, another folder. The last folder of that name is the likeliest.
    parts = self.image_path.parts
    suffixes = VIDEO_SUFFIXES if _is_video(self.image_path) else IMAGE_SUFFIXES
    folders = [folder / "fg_masks"]
    for number in reversed(range(len(parts) - 1)):
      if "images" in parts[number]:
        folders.append(pathlib.Path(*parts[:number], parts[number].replace("images", "fg_masks")))
        guess = folders[-1].joinpath(*parts[number + 1 :])
        stem = guess.with_suffix("") if guess.suffix.lower() in suffixes else guess
        for suffix in (*suffixes, guess.suffix):
          if os.path.isfile(f"{stem}{suffix}"):
            return pathlib.Path(f"{stem}{suffix}")
    self._masks = next(filter(os.path.isdir, folders), None)
    if self._masks is not None and (_is_video(self.image_path) or not read_header(self.image_path)[1]):
      self._refuse_lost_mask()
    return None

  def _refuse_lost_mask(self) -> None:
    found = f"no such key, and no mask of {self.image_path.name} in {self._masks}"
    raise InputError(self.place, "fg_mask_path", found, "a mask of the image's name there, a path, or no such folder")

  def _read_video_frame(self) -> int | None:
    """Which frame of its videos shows the moment; None where the entry names images."""
    if not any(path is not None and _is_video(path) for path in (self.image_path, self.mask_path)):
      return None
    return self._whole_number("frame_index", 0)

  def _read_size(self) -> tuple[int, int]:
    if self._get("w") is None and self._get("h") is None and not _is_video(self.image_path):
      return read_header(self.image_path)[0]
    return self._whole_number("w", 1), self._whole_number("h", 1)

  def _read_basis(self) -> str | None:
    value = self._shared.get("basis")
    if value is not None and value not in BASES:
      raise InputError(self.place, "basis", repr(value), " | ".join(BASES))
    return value

  def _read_background(self) -> np.ndarray | None:
    value = self._shared.get("background")
    if value is None:
      return None
    numbers = isinstance(value, list) and all(type(x) in (int, float) and 0 <= x <= 1 for x in value)
    if not numbers or len(value) != 3:
      raise InputError(self.place, "background", repr(value), "three numbers in [0, 1]")
    return np.array(value, np.float32)

  def _check_lens(self) -> None:
    """The camera must be a pinhole."""
    for key in _DISTORTION_KEYS:
      if self._number(key, default=0) != 0:
        raise InputError(self.place, key, self._get(key), "0: images without distortion, from a pinhole camera")
    for key in _DISTORTION_LISTS:
      value = self._get(key)
      if value is not None and (not isinstance(value, list) or any(value)):
        raise InputError(self.place, key, repr(value), "zeros: images without distortion, from a pinhole camera")
    model = self._get("camera_model")
    if model is not None and str(model).upper() not in _STRAIGHT_MODELS:
      raise InputError(self.place, "camera_model", repr(model), f"a pinhole camera ({', '.join(_STRAIGHT_MODELS)})")
    if self._get("is_fisheye"):
      raise InputError(self.place, "is_fisheye", repr(self._get("is_fisheye")), "false: a pinhole camera")

  def _read_intrinsics(self) -> np.ndarray:
    width, height = self.size
    # At the top VHAP leaves the values of its last camera, so that a frame's own are not mixed with those.
    keys = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")
    level = self._entry if any(self._entry.get(key) is not None for key in keys) else self._shared
    fx, fy = self._read_focal_length(level, "x", width), self._read_focal_length(level, "y", height)
    if fx is None and fy is None:
      raise InputError(self.place, "fl_x", "no such key, nor camera_angle_x", "a focal length or an angle of view")
    # Square pixels where but one is known.
    fx, fy = fy if fx is None else fx, fx if fy is None else fy
    cx, cy = self._read_coordinate("cx", width / 2), self._read_coordinate("cy", height / 2)
    return np.array([[fx, 0, cx], [0, fy, cy if self._is_cy_from_top(cy) else height - cy], [0, 0, 1]], np.float32)

  def _read_focal_length(self, level: dict, axis: str, pixels: int) -> float | None:
    if level.get(f"fl_{axis}") is not None:
      focal_length = self._number(f"fl_{axis}", level)
      if not 1 / _MAX_NUMBER < focal_length <= _MAX_NUMBER:
        raise InputError(self.place, f"fl_{axis}", focal_length, "a focal length above 0")
      return focal_length
    if level.get(f"camera_angle_{axis}") is None:
      return None
    angle = self._number(f"camera_angle_{axis}", level)
    if not 1 / _MAX_NUMBER < angle < math.pi:
      raise InputError(self.place, f"camera_angle_{axis}", angle, "0 to pi")
    return pixels / 2 / math.tan(angle / 2)

  def _read_coordinate(self, key: str, middle: float) -> float:
    value = self._number(key, default=middle)
    if abs(value) > _MAX_NUMBER:
      raise InputError(self.place, key, value, f"a number up to {_MAX_NUMBER:.0e}")
    return value

  def _is_cy_from_top(self, cy: float) -> bool:
    origin = self._get("cy_from")
    if origin not in (None, "top", "bottom"):
      raise InputError(self.place, "cy_from", repr(origin), '"top" or "bottom"')
    foreign = [key for key in _FOREIGN_KEYS if self._get(key) is not None]
    if origin is None and foreign and abs(cy - self.size[1] / 2) > 1e-3:
      found = f"{cy} beside {foreign[0]}, which VHAP does not write, so that it may count from the top or the bottom"
      raise InputError(self.place, "cy", found, '"cy_from": "top" or "bottom"')
    return origin == "top"

  def _read_camera(self) -> np.ndarray:
    value = self._entry.get("transform_matrix")
    try:
      matrix = np.array(value)
    except ValueError:  # Rows of different lengths.
      matrix = np.zeros(0)
    numbers = matrix.dtype.kind in "fiu" and np.all(np.abs(matrix) <= _MAX_NUMBER)
    if matrix.shape != (4, 4) or not numbers:
      found = "no such key" if value is None else f"shape {matrix.shape}" if numbers else "no numbers, or not finite ones"
      raise InputError(self.place, "transform_matrix", found, "4 x 4 finite numbers")
    rotation = matrix[:3, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if error > 1e-3 or np.linalg.det(rotation) < 0 or np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
      found = f"determinant {np.linalg.det(matrix):.3g}, rotation off by {error:.2g}"
      raise InputError(self.place, "transform_matrix", found, "a rotation and a translation, which can be inverted")
    # OpenGL's camera looks along -z with y up, OpenCV's along +z with y down.
    return np.linalg.inv(matrix @ np.diag([1.0, -1.0, -1.0, 1.0])).astype(np.float32)

  def read_image(self) -> tuple[np.ndarray, np.ndarray]:
    if _is_video(self.image_path):
      image, alpha = self._decode(self.image_path, channels=3)
    else:
      image, alpha = read_image(self.image_path, self.size, self.place)
    if self.mask_path is None:
      mask = np.ones(image.shape[:2], np.float32) if alpha is None else alpha
      if self._masks is not None and mask.min() == 1:  # Alpha that hides nothing is no mask.
        self._refuse_lost_mask()
    elif _is_video(self.mask_path):
      mask = mask_from_pixels(self.mask_path, *self._decode(self.mask_path, channels=1))
    else:
      mask = read_mask(self.mask_path, self.size, self.place)
    return image, mask

  def _decode(self, path: pathlib.Path, channels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours, or brightness where one channel will do, and alpha of the videos' frame, in [0, 1]."""
    pixels = read_video_frame(path, self._video_frame, channels=channels)
    check_size(path, pixels.shape[1::-1], self.size, self.place)
    pixels = pixels.astype(np.float32) / 255
    return (np.ascontiguousarray(pixels[..., :3]), pixels[..., 3]) if pixels.shape[2:] == (4,) else (pixels, None)


def _is_video(path: pathlib.Path) -> bool:
  return path.suffix.lower() in VIDEO_SUFFIXES


def _read_json(file: pathlib.Path) -> dict:
  """An object with a list of frames, which may be empty."""
  data = read_whole(file, "a transforms file")
  if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    raise InputError(file, "", "text in UTF-16", "a transforms file in UTF-8")
  try:
    content = json.loads(data.decode("utf-8-sig"))
  except (ValueError, RecursionError) as error:
    raise InputError(file, "", f"damaged JSON ({error})", "a whole transforms file") from None
  entries = content.get("frames") if isinstance(content, dict) else None
  if not isinstance(entries, list):
    raise InputError(file, "frames", "no such key" if entries is None else type(entries).__name__, "a list of frames")
  return content


def _read_transforms(file: pathlib.Path) -> list[_Frame]:
  content = _read_json(file)
  return [_Frame(file, number, entry, content) for number, entry in enumerate(content["frames"])]


def _read_row(path: pathlib.Path, file: Archive, key: str, size: int | None) -> Float[np.ndarray, "*n"]:
  """A (size,) vector stored as (size,) or (1, size)."""
  value = file[key]
  if value.size == 0 or value.size != (size or value.size) or value.shape[-1:] != (value.size,):
    expected = f"(1, {size})" if size else "one row of numbers"
    raise InputError(path, key, f"{value.dtype} of shape {value.shape}", expected)
  return to_float32(path, key, value).reshape(-1)


def _read_flame_param(path: pathlib.Path, num_expression: int | None = None) -> dict[str, np.ndarray]:
  with open_npz(path, "an .npz of head parameters") as file:
    if "dynamic_offset" in file and np.any(to_float32(path, "dynamic_offset", file["dynamic_offset"])):
      raise InputError(path, "dynamic_offset", "offsets that change from frame to frame", "zeros")
    return {name: _read_row(path, file, key, size or num_expression) for name, key, size in _FLAME_KEYS}


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
  with open_npz(path, "an .npz of head parameters") as file:
    shape = _read_row(path, file, "shape", None)
    static_offset = to_float32(path, "static_offset", file["static_offset"]) if "static_offset" in file else None
  if static_offset is not None:
    if static_offset.ndim < 2 or static_offset.shape[-1] != 3 or static_offset.size != static_offset.shape[-2] * 3:
      raise InputError(path, "static_offset", f"shape {static_offset.shape}", "(1, V, 3)")
    static_offset = static_offset.reshape(-1, 3)
    if num_vertices not in (None, len(static_offset)):
      found = f"{len(static_offset)} vertices"
      raise InputError(path, "static_offset", found, f"{num_vertices}, as the head model has")
  return shape, static_offset
