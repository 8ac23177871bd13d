"""The part of a long video that shows one person, and the cameras of that part.

A crop is a rectangle of the video, the same for all frames of a clip, that becomes a film of a fixed size: the camera of a film
that moves with the face would move, too. Coordinates are pixels with the origin at the top left edge.

**Cameras of DualTalk's tracks.** DECA's family projects orthographically into a crop of its own: with the track's `cam`
(s, tx, ty), a point (X, Y, Z) of the head (metres, y up) is seen at x = s (X + tx), y = -s (Y + ty) in a square from -1 to 1. That
square is not stored. DECA takes it about the landmarks' box, 1.1 x 1.25 times as large as the mean of the box's sides
(`_TRACKER_SQUARE`); so a square of side S pixels around (u, v) puts the point at u + S / 2 s (X + tx), v - S / 2 s (Y + ty).
A pinhole of a long focal length f sees nearly the same: the head is moved by (tx, ty, -d) from a camera at the origin that looks
along -z, with f / d = S s / 2, and the principal point at (u, v). Perspective then enters by Z / d, 2 % for a face. What
(u, v) and S are not exactly, the camera is not: train avatars on tracks made from the films (VHAP's), which replace this.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
import scipy.ndimage
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8
from PIL import Image

from rsatalker_jax.data.captures import SPLITS, Capture, load_capture, transforms_file
from rsatalker_jax.data.csv_tables import read_table
from rsatalker_jax.data.tracks import SHAPE_DIM
from rsatalker_jax.data.triplets.people import Box
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_text
from rsatalker_jax.types import EXPRESSION_DIM, FPS, MOTION_GROUPS

# Film of a face: the crop's shorter side in mean sides of the landmarks' box (brows to chin), with room for hair and neck.
MARGIN = 2.2
# Of boxes that were found by motion, head and shoulders, the same picture is so much of that.
_FOUND_SHARE = 0.55
_TRACKER_SQUARE = 1.1 * 1.25
_FOCAL = 20.0  # In film heights: the face is then 4 to 5 m away.
_VHAP_EXPRESSION, _VHAP_SHAPE = 100, 300
_BOX_COLUMNS = ("video", "frame", "person", "left", "top", "right", "bottom")


@dataclasses.dataclass(frozen=True)
class Crop:
  """Attributes:
    left, top: of the crop in the video, pixels; may be outside.
    scale: film pixels for a video pixel.
    width, height: of the film.
  """

  left: float
  top: float
  scale: float
  width: int
  height: int

  @property
  def right(self) -> float:
    return self.left + self.width / self.scale

  @property
  def bottom(self) -> float:
    return self.top + self.height / self.scale

  def cut(self, picture: UInt8[np.ndarray, "H W *c"]) -> UInt8[np.ndarray, "h w *c"]:
    """The film's frame; beyond the video's edges its outermost pixels go on."""
    height, width = picture.shape[:2]
    pad = [max(math.ceil(x), 0) for x in (-self.top, self.bottom - height, -self.left, self.right - width)]
    if any(pad):
      picture = np.pad(picture, [(pad[0], pad[1]), (pad[2], pad[3])] + [(0, 0)] * (picture.ndim - 2), mode="edge")
    box = self.left + pad[2], self.top + pad[0], self.right + pad[2], self.bottom + pad[0]
    # Rounding may lay the last edge a hair beyond the picture, which PIL refuses.
    box = box[0], box[1], min(box[2], picture.shape[1]), min(box[3], picture.shape[0])
    return np.asarray(Image.fromarray(picture).resize((self.width, self.height), Image.Resampling.LANCZOS, box=box))

  def intrinsics(self, video: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """A camera of the whole video as one of the film."""
    to_film = np.array([[self.scale, 0, -self.scale * self.left], [0, self.scale, -self.scale * self.top], [0, 0, 1]])
    return to_film @ np.asarray(video, np.float64)


def make_crop(box: Box, video_size: tuple[int, int], film_size: tuple[int, int], margin: float) -> Crop:
  """The crop around a box, moved inside the video as far as it fits.

  Args:
    box: left, top, right, bottom, pixels.
    video_size, film_size: width, height.
    margin: the crop's shorter side in mean sides of the box.
  """
  side = margin * (box[2] - box[0] + box[3] - box[1]) / 2
  scale = min(film_size) / side
  place = []
  for low, high, pixels, film in zip(box[:2], box[2:], video_size, film_size):
    extent = film / scale
    start = (low + high) / 2 - extent / 2
    place.append(min(max(start, 0.0), pixels - extent) if extent <= pixels else (pixels - extent) / 2)
  return Crop(place[0], place[1], scale, *film_size)


class FaceBoxes:
  """Where faces are, by video, person and frame: a csv with the columns video, frame, person, left, top, right, bottom.

  Boxes are of facial landmarks (brows to chin), in pixels; person is p0, on the left, or p1; an empty frame stands for all frames.
  Frames between those that are given have boxes between theirs.
  """

  def __init__(self, rows: Mapping[tuple[str, int], list[tuple[float, Box]]]):
    self._rows = {key: sorted(value) for key, value in rows.items()}

  def find(self, video: str, person: int, frames: Float[np.ndarray, "T"]) -> Float[np.ndarray, "T 4"] | None:
    """Boxes at some frames of a video (fractions are fine); None where there are none within a second of any of them."""
    rows = self._rows.get((video, person))
    if not rows:
      return None
    numbers = np.array([number for number, _ in rows])
    boxes = np.array([box for _, box in rows])
    if np.isinf(numbers[0]):
      return np.repeat(boxes[:1], len(frames), axis=0)
    near = (numbers >= frames[0] - FPS) & (numbers <= frames[-1] + FPS)
    if not near.any():
      return None
    return np.stack([np.interp(frames, numbers, edge) for edge in boxes.T], axis=1)


def read_boxes(path: str | os.PathLike) -> FaceBoxes:
  """Reads a table of face boxes.

  Raises:
    InputError: names file and line of a missing column, a value that is no number, or a box without extent.
  """
  rows: dict[tuple[str, int], list[tuple[float, Box]]] = {}
  for row in read_table(pathlib.Path(path), _BOX_COLUMNS):
    if row["person"] not in ("p0", "p1"):
      raise InputError(row.place, "person", repr(row["person"]), "p0 (left) or p1 (right)")
    left, top, right, bottom = (_parse_number(row.place, name, row[name]) for name in _BOX_COLUMNS[3:])
    frame = -math.inf if not row["frame"] else _parse_number(row.place, "frame", row["frame"])
    if not (left < right and top < bottom):
      raise InputError(row.place, "left, top, right, bottom", [left, top, right, bottom], "left < right and top < bottom")
    rows.setdefault((row["video"], int(row["person"][1])), []).append((frame, (left, top, right, bottom)))
  return FaceBoxes(rows)


def _parse_number(place: str, key: str, text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not abs(value) < 1e6:
    raise InputError(place, key, repr(text), "a number, with a decimal point")
  return value


def fix_box(boxes: Float[np.ndarray, "T 4"]) -> Box:
  """One box for a clip: about the median middle, as large as nearly all."""
  middles = np.median((boxes[:, :2] + boxes[:, 2:]) / 2, axis=0)
  half = np.quantile(boxes[:, 2:] - boxes[:, :2], 0.9, axis=0) / 2
  return (*(middles - half).tolist(), *(middles + half).tolist())


def found_margin(margin: float) -> float:
  """The margin for a box of `people.find_box` that shows as much as `margin` does for one of landmarks."""
  return margin * _FOUND_SHARE


# --- What a film's frames are entered with


@dataclasses.dataclass(frozen=True)
class FilmTrack:
  """A film's cameras and head parameters, frame by frame.

  Attributes:
    frames: which of the film's frames have any, ascending.
    entries: for each, what a transforms file says of it besides files and time.
    flame: VHAP's arrays, (F, ...) each.
    shape: (300,) identity.
    static_offset: (1, V, 3), or None.
    shared: what the film's transforms files say at their top, as `background` and `basis` (`data.captures`).
    source: "dualtalk" or "vhap".
  """

  frames: list[int]
  entries: list[dict]
  flame: dict[str, Float[np.ndarray, "F _"]]
  shape: Float[np.ndarray, "300"]
  static_offset: Float[np.ndarray, "1 V 3"] | None
  shared: dict[str, Any]
  source: str


def make_entry(intrinsics: Float[np.ndarray, "3 3"], camera_to_world: Float[np.ndarray, "4 4"], crop: Crop) -> dict:
  """A camera as a transforms file has it; `camera_to_world` has OpenGL's axes."""
  fx, fy, cx, cy = (float(x) for x in (intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]))
  size = {"w": crop.width, "h": crop.height, "cx": cx, "cy": cy, "cy_from": "top"}
  return size | {"fl_x": fx, "fl_y": fy, "transform_matrix": np.asarray(camera_to_world, np.float64).tolist()}


def track_by_projection(
    motion: Float[np.ndarray, "T 56"], cam: Float[np.ndarray, "T 3"], shape: Float[np.ndarray, "T 100"], boxes: Float[np.ndarray, "F 4"],
    crop: Crop, basis: str,
) -> FilmTrack:
  """Cameras and parameters from a track of DECA's family and the boxes that it looked at; see the module.

  Args:
    motion, cam, shape: the track.
    boxes: of landmarks, in pixels of the video, one for each frame.
    crop: the film's.
    basis: of the track's expressions.
  """  # fmt: skip
  frames = min(len(motion), len(cam), len(boxes))
  boxes = scipy.ndimage.median_filter(boxes[:frames], (5, 1), mode="nearest")
  middles = (boxes[:, :2] + boxes[:, 2:]) / 2
  half = _TRACKER_SQUARE * (boxes[:, 2:] - boxes[:, :2]).mean(axis=1) / 2
  focal = _FOCAL * crop.height
  # One camera for the film: how the square moves about its median is the head's translation.
  center = np.median(middles, axis=0)
  intrinsics = crop.intrinsics(np.array([[focal / crop.scale, 0, center[0]], [0, focal / crop.scale, center[1]], [0, 0, 1]]))
  pixels = half * cam[:frames, 0]  # Video pixels for a metre.
  distance = focal / (pixels * crop.scale)
  x = cam[:frames, 1] + (middles[:, 0] - center[0]) / pixels
  y = cam[:frames, 2] - (middles[:, 1] - center[1]) / pixels
  zeros = np.zeros((frames, 3), np.float32)
  flame = {
      "expr": np.pad(motion[:frames, MOTION_GROUPS["expression"]], ((0, 0), (0, _VHAP_EXPRESSION - EXPRESSION_DIM))),
      "rotation": zeros,
      "neck_pose": motion[:frames, MOTION_GROUPS["pose"]],
      "jaw_pose": motion[:frames, MOTION_GROUPS["jaw"]],
      "eyes_pose": np.zeros((frames, 6), np.float32),
      "translation": np.stack([x, y, -distance], axis=1).astype(np.float32),
  }
  entry = make_entry(intrinsics, np.eye(4), crop)
  mean_shape = np.pad(shape[:frames].mean(axis=0), (0, _VHAP_SHAPE - SHAPE_DIM)).astype(np.float32)
  return FilmTrack(list(range(frames)), [entry] * frames, flame, mean_shape, None, {"basis": basis}, "dualtalk")


Tracked = tuple[Capture, dict[str, Any]]


def open_tracks(root: pathlib.Path) -> Tracked:
  """A capture that somebody tracked, and what its transforms files say at their top of pictures and expressions.

  Raises:
    InputError: see `load_capture`.
  """
  capture = load_capture(root, "all")
  for split in SPLITS:
    if (file := transforms_file(root, split)).is_file():
      content = json.loads(read_text(file, "a transforms file"))
      return capture, {key: content[key] for key in ("background", "basis") if content.get(key) is not None}
  return capture, {}


def track_by_capture(
    tracked: Tracked, numbers: list[int], crop: Crop, video_size: tuple[int, int]
) -> FilmTrack | None:
  """Cameras and parameters from a capture of the whole video, or of the film; None where it shows none of the frames.

  Args:
    tracked: of `open_tracks`. Its images have the size of the video, and its timesteps are the video's frames, or of the film.
    numbers: the video's frame that each frame of the film shows.
    crop: the film's.
    video_size: width, height.

  Raises:
    InputError: its size is neither.
  """
  capture, shared = tracked
  size = capture.width, capture.height
  whole, film = size == video_size, size == (crop.width, crop.height)
  if not (whole or film):
    expected = f"{video_size} as the video or {(crop.width, crop.height)} as the film"
    raise InputError(capture.root, "w, h", size, expected)
  timesteps = numbers if whole else list(range(len(numbers)))
  camera = int(capture.camera_indices.min())
  known = {int(t): i for i, (t, c) in enumerate(zip(capture.timesteps, capture.camera_indices)) if c == camera}
  frames = [i for i, timestep in enumerate(timesteps) if timestep in known]
  if not frames:
    return None
  items = [known[timesteps[i]] for i in frames]
  world_to_camera, intrinsics = capture.read_cameras(items)
  to_opengl = np.diag([1.0, -1.0, -1.0, 1.0])
  entries = []
  for view, lens in zip(world_to_camera.astype(np.float64), intrinsics):
    entries.append(make_entry(crop.intrinsics(lens) if whole else lens, np.linalg.inv(view) @ to_opengl, crop))
  read = capture.read_flame(items)
  names = dict(expr="expression", rotation="rotation", neck_pose="neck", jaw_pose="jaw", eyes_pose="eyes", translation="translation")
  flame = {key: read[name] for key, name in names.items()}
  offset = None if capture.static_offset is None else capture.static_offset[None]
  return FilmTrack(frames, entries, flame, capture.shape, offset, shared, "vhap")


class Pictures:
  """Frames as arrays; FFmpeg's tables are made for the first and used for all."""

  def __init__(self):
    self._reformatter = VideoReformatter()

  def small_grey(self, frame: av.VideoFrame, width: int) -> UInt8[np.ndarray, "h w"]:
    """A grey picture of a frame, scaled to a width."""
    height = max(round(frame.height * width / frame.width), 1)
    return self._reformatter.reformat(frame, width, height, "gray", interpolation="AREA", threads=1).to_ndarray()

  def full(self, frame: av.VideoFrame, pixels: str) -> UInt8[np.ndarray, "H W *c"]:
    """All of a frame, as FFmpeg's "rgb24" or "gray"."""
    return self._reformatter.reformat(frame, format=pixels, threads=1).to_ndarray()
