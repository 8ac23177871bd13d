"""ARKit's 52 face shapes, the language of face trackers and game engines, as files and as motion of the basis "arkit".

    csv    Live Link Face's: Timecode, BlendshapeCount, the 52 shapes, HeadYaw, HeadPitch, HeadRoll, LeftEyeYaw ... RightEyeRoll;
           Audio2Face-3D's: timeCode in seconds, blendShapes.EyeBlinkLeft ...
    json   LAM-Audio2Expression's:   {"names", "metadata": {"fps"}, "frames": [{"weights", "time", "rotation"}]}
           Audio2Face's:             {"exportFps", "facsNames", "weightMat"}
           MediaPipe FaceLandmarker: a list of its results, {"faceBlendshapes", "facialTransformationMatrixes", "timestamp" in ms},
                                     or as Python has them, {"face_blendshapes", "facial_transformation_matrixes", ...}
           plain:                    a list of {"time" in s, "blendshapes": {name: weight}}

How they become the 56 numbers of a motion, and back, is here and nowhere else:

    50 expressions   the shapes of the same names (`types.ARKIT_EXPRESSIONS`)
    jaw              jawOpen times JAW_OPEN_ANGLE about x; jawForward, jawLeft and jawRight are expressions
    head             HeadYaw (to the own left), HeadPitch (down), HeadRoll (the crown to the own right), radians: the rotation
                     about y, then x, then z of the head's axes, each about the axes that those before it have turned
    gaze             eyeLook...: expressions. Eye angles, of the same senses, are derived from them, and count only where all are 0
    tongueOut        nothing moves it

Signs of head angles are those of Unreal's ARKit plug-in for a face that is not mirrored, and of MediaPipe's matrix.
"""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.spatial.transform
from jaxtyping import Float

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_text, whole_file
from rsatalker_jax.types import ARKIT_EXPRESSIONS, FPS, MOTION_GROUPS, Motion

SUFFIXES = (".csv", ".json")
# In Live Link Face's order.
SHAPES = (
    "eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft", "eyeSquintLeft", "eyeWideLeft",
    "eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight", "eyeSquintRight", "eyeWideRight",
    "jawForward", "jawRight", "jawLeft", "jawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "mouthRight", "mouthLeft",
    "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft", "mouthFrownRight", "mouthDimpleLeft", "mouthDimpleRight",
    "mouthStretchLeft", "mouthStretchRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    "mouthPressLeft", "mouthPressRight", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft",
    "cheekSquintRight", "noseSneerLeft", "noseSneerRight", "tongueOut",
)
HEAD_ANGLES = ("headYaw", "headPitch", "headRoll")
EYE_ANGLES = ("leftEyeYaw", "leftEyePitch", "leftEyeRoll", "rightEyeYaw", "rightEyePitch", "rightEyeRoll")
# The jaw's angle at which the demo head has the shape jawOpen (its key jaw_open_angle), in radians.
JAW_OPEN_ANGLE = 0.4253976
# How far the demo head's eyeLook shapes turn an eye at 1: to either side, up and down.
_EYE_SIDE, _EYE_UP, _EYE_DOWN = np.radians([24.0, 18.0, 20.0])
_EULER = "YXZ"  # Intrinsic, as HEAD_ANGLES are ordered.

# Of time codes. Live Link Face counts 60 frames a second unless it is set otherwise.
_RATES, _USUAL_RATE = (24, 25, 30, 48, 50, 60, 100, 120), 60
_TIMECODE = re.compile(r"(\d{1,2})[:;](\d\d)[:;](\d\d)([:;])(\d{1,3})(?:\.(\d{1,9}))?")
_DAY = 24 * 3600
_SECONDS_KEYS = ("timecode", "time")
_MILLISECONDS_KEYS = ("timestamp", "timestampms", "timestamp_ms", "timestampinmilliseconds")
_MOST_SECONDS = 4 * 3600  # As of voices.
_WEIGHT_RANGE = (-0.5, 2.0)  # Wider than any program's; percentages and angles are outside.
_EXPECTED = "ARKit's shapes in a csv with a header (Live Link Face's) or a json"


@dataclasses.dataclass(frozen=True)
class Take:
  """What an ARKit file holds, as a motion.

  Attributes:
    motion: of the basis "arkit", 25 fps.
    notes: what was changed or is lost, in words.
  """

  motion: Motion
  notes: tuple[str, ...]


def to_motion(weights: Float[np.ndarray, "T 52"], head: Float[np.ndarray, "T 3"]) -> Float[np.ndarray, "T 56"]:
  """Weights of `SHAPES` and `HEAD_ANGLES` in radians as a motion."""
  column = dict(zip(SHAPES, np.asarray(weights, np.float64).T))
  expression = np.stack([column[name] for name in ARKIT_EXPRESSIONS], axis=1)
  jaw = column["jawOpen"][:, None] * np.array([JAW_OPEN_ANGLE, 0.0, 0.0])
  turn = scipy.spatial.transform.Rotation.from_euler(_EULER, np.asarray(head, np.float64)).as_rotvec()
  return np.concatenate([expression, jaw, turn], axis=1)


def from_motion(motion: Float[np.ndarray, "T 56"]) -> tuple[Float[np.ndarray, "T 52"], Float[np.ndarray, "T 3"]]:
  """The inverse of `to_motion`, but for turns of the jaw about y and z, which ARKit has no shape for."""
  motion = np.asarray(motion, np.float64)
  column = dict(zip(ARKIT_EXPRESSIONS, motion[:, MOTION_GROUPS["expression"]].T))
  column |= {"jawOpen": motion[:, MOTION_GROUPS["jaw"]][:, 0] / JAW_OPEN_ANGLE, "tongueOut": np.zeros(len(motion))}
  head = scipy.spatial.transform.Rotation.from_rotvec(motion[:, MOTION_GROUPS["pose"]]).as_euler(_EULER)
  return np.stack([column[name] for name in SHAPES], axis=1), head


def eye_angles(weights: Float[np.ndarray, "T 52"]) -> Float[np.ndarray, "T 6"]:
  """`EYE_ANGLES` in radians, as the demo head's eyes turn with the eyeLook shapes."""
  column = dict(zip(SHAPES, weights.T))
  side = {"Left": 1, "Right": -1}  # Out of the left eye is to the own left.
  angles = []
  for end, sign in side.items():
    angles.append(sign * _EYE_SIDE * (column[f"eyeLookOut{end}"] - column[f"eyeLookIn{end}"]))
    angles.append(_EYE_DOWN * column[f"eyeLookDown{end}"] - _EYE_UP * column[f"eyeLookUp{end}"])
    angles.append(np.zeros(len(weights)))
  return np.stack(angles, axis=1)


def look_weights(angles: Float[np.ndarray, "T 6"]) -> dict[str, Float[np.ndarray, "T"]]:
  """Weights of the eyeLook shapes that turn the eyes by `EYE_ANGLES`; eyes do not roll."""
  weights = {}
  for end, sign, (yaw, pitch) in (("Left", 1, angles[:, :2].T), ("Right", -1, angles[:, 3:5].T)):
    weights[f"eyeLookOut{end}"] = np.maximum(sign * yaw, 0) / _EYE_SIDE
    weights[f"eyeLookIn{end}"] = np.maximum(-sign * yaw, 0) / _EYE_SIDE
    weights[f"eyeLookDown{end}"] = np.maximum(pitch, 0) / _EYE_DOWN
    weights[f"eyeLookUp{end}"] = np.maximum(-pitch, 0) / _EYE_UP
  return weights


# --- Reading


def read_arkit(path: str | os.PathLike, *, fps: float | None = None) -> Take:
  """Reads a csv or json of ARKit's shapes, at any rate, as motion at 25 fps.

  Frames between those of the file are interpolated: weights on straight lines, the head's rotation along the shortest arc.

  Args:
    path: the file, .csv or .json.
    fps: frames that its time codes count in a second, or, where it has no times, its rate; None takes what the file says.

  Raises:
    InputError: a missing or doubled column, a value that is missing, no number or out of range, times that do not rise, or no
      way to tell them.
  """
  path = pathlib.Path(path)
  if fps is not None and not 0 < fps <= 1000:
    raise InputError("--fps", "", fps, "frames a second, above 0 and up to 1000")
  text = read_text(path, _EXPECTED)
  table = _parse_json(path, text) if path.suffix.lower() == ".json" else _parse_csv(path, text)
  seconds, notes = table.seconds(fps)
  return _resample(path, table, seconds, notes)


@dataclasses.dataclass
class _Table:
  """Frames as they stand in a file.

  Attributes:
    path: the file.
    rows: how each frame is called in an error's line.
    columns: values by the names of SHAPES, HEAD_ANGLES and EYE_ANGLES, as many as `rows`.
    times: in seconds, or time codes; None where the file has none.
    fps: its rate, where it says one.
    notes: what is not read.
  """

  path: pathlib.Path
  rows: list[str]
  columns: dict[str, np.ndarray]
  times: list[float] | list[str] | None
  fps: float | None
  notes: list[str]

  def seconds(self, fps: float | None) -> tuple[Float[np.ndarray, "T"], list[str]]:
    """Rising times of all frames, the first 0, and how they were found."""
    rate = fps or self.fps
    if self.times is None:
      if rate is None:
        raise InputError(self.path, "time", "neither times nor a rate", "a column of times, or --fps with `convert`")
      return np.arange(len(self.rows)) / rate, [f"{rate:g} frames a second"]
    if all(isinstance(time, str) for time in self.times):
      seconds, notes = _read_timecodes(self.path, self.rows, self.times, fps)
    else:
      seconds, notes = np.array(self.times, np.float64), []
    wrong = np.flatnonzero(np.diff(seconds) <= 0)
    if len(wrong):
      row = int(wrong[0]) + 1
      raise InputError(f"{self.path}:{self.rows[row]}", "time", self.times[row], f"a time after {self.times[row - 1]}")
    if seconds[-1] - seconds[0] > _MOST_SECONDS:
      raise InputError(self.path, "time", f"{(seconds[-1] - seconds[0]) / 3600:.1f} hours", f"{_MOST_SECONDS // 3600} at most")
    return seconds - seconds[0], notes


def _read_timecodes(
    path: pathlib.Path, rows: Sequence[str], codes: Sequence[str], fps: float | None
) -> tuple[Float[np.ndarray, "T"], list[str]]:
  """HH:MM:SS:FF.sub as seconds. A code whose hours begin anew is of the next day."""
  parts, drop = [], False
  for row, code in zip(rows, codes):
    match = _TIMECODE.fullmatch(code.strip())
    if match is None or int(match[2]) > 59 or int(match[3]) > 59:
      raise InputError(f"{path}:{row}", "timecode", repr(code), "HH:MM:SS:FF.sub, or seconds")
    drop |= match[4] == ";"
    parts.append((int(match[1]), int(match[2]), int(match[3]), int(match[5]), float(f"0.{match[6] or 0}")))
  hours, minutes, whole, frames, sub = np.array(parts, np.float64).T
  clock = hours * 3600 + minutes * 60 + whole
  turned = np.flatnonzero(np.diff(clock) > 0)  # The last frame of each second.
  if fps is not None:
    rate, how = fps, "as told"
  elif len(turned):
    rate, how = next((rate for rate in _RATES if rate > frames.max()), None), "by the highest that they count to"
  else:
    rate, how = _USUAL_RATE, "as Live Link Face does: they last less than a second"
  count = None if rate is None else round(rate)  # Labels in a second: 29.97 are counted as 30.
  if count is None or frames.max() >= count:
    row = int(frames.argmax())
    raise InputError(f"{path}:{rows[row]}", "timecode", codes[row], f"frames below {count or _RATES[-1]}")
  dropped = {30: 2, 60: 4}.get(count, 0)
  if not drop and dropped:
    # Without the semicolon: every new minute but the tenth begins with the frame behind those that are left out.
    new = np.flatnonzero((np.diff(minutes) != 0) & (minutes[1:] % 10 != 0))
    drop = len(new) > 0 and bool(np.all((frames[new + 1] == dropped) & (whole[new + 1] == 0) & (frames[new] == count - 1)))
  day = np.cumsum(np.concatenate([[0], np.diff(clock) < -_DAY / 2]))
  if not drop:
    return ((day * _DAY + clock) * count + frames + sub) / rate, [f"time codes count {rate:g} frames a second, {how}"]
  if not dropped:
    raise InputError(path, "timecode", f"drop-frame codes of {rate:g} frames a second", "29.97 or 59.94")
  minute = hours * 60 + minutes
  labels = clock * count + frames - dropped * (minute - minute // 10)
  full_day = _DAY * count - dropped * (1440 - 144)
  return (day * full_day + labels + sub) * 1001 / (1000 * count), [f"drop-frame time codes, {count / 1.001:.2f} frames a second"]


def _resample(path: pathlib.Path, table: _Table, seconds: Float[np.ndarray, "T"], notes: list[str]) -> Take:
  notes = [*notes, *table.notes]
  zeros = np.zeros(len(seconds))
  columns = dict(table.columns)
  eyes = np.stack([columns.pop(name, zeros) for name in EYE_ANGLES], axis=1)
  if eyes.any() and not any(columns[name].any() for name in SHAPES if name.startswith("eyeLook")):
    columns |= look_weights(eyes)
    notes.append("gaze is taken from the eyes' angles, since no eyeLook shape moves")
  if (tongue := columns.get("tongueOut", zeros)).any():
    notes.append(f"tongueOut is lost (up to {tongue.max():.2f}): nothing moves the tongue")
  if not any(name in columns for name in HEAD_ANGLES):
    notes.append("no head angles: the head stands still")
  weights = np.stack([columns.get(name, zeros) for name in SHAPES], axis=1)
  head = np.stack([columns.get(name, zeros) for name in HEAD_ANGLES], axis=1)
  steps = np.diff(seconds)
  times = np.arange(math.floor(seconds[-1] * FPS + 1e-3) + 1) / FPS
  if len(steps):
    usual = float(np.median(steps))
    gaps = steps[steps > 1.5 * usual + 1e-9]
    if abs(usual - 1 / FPS) > 1e-4 or np.abs(seconds - np.round(seconds * FPS) / FPS).max() > 1e-4:
      notes.append(f"resampled from {1 / usual:.4g} to {FPS} frames a second: {len(seconds)} to {len(times)}")
    if len(gaps):
      notes.append(f"{len(gaps)} gaps, {gaps.sum() - len(gaps) * usual:.2f} s in all and {gaps.max():.2f} s at most, are interpolated")
    inside = np.minimum(times, seconds[-1])
    weights = np.stack([np.interp(inside, seconds, column) for column in weights.T], axis=1)
    turns = scipy.spatial.transform.Rotation.from_euler(_EULER, head)
    head = scipy.spatial.transform.Slerp(seconds, turns)(inside).as_euler(_EULER)
  motion = to_motion(weights, head).astype(np.float32)
  return Take(motion, tuple(f"{path}: {note}" for note in notes))


def _known_names() -> dict[str, str]:
  """Our name by the form in which a file's are compared."""
  return {name.lower(): name for name in (*SHAPES, *HEAD_ANGLES, *EYE_ANGLES)}


def _name_columns(place: object, names: Sequence[str]) -> tuple[dict[str, int], list[str]]:
  """Where each of our names stands among a file's, and the file's other names."""
  known, found, others = _known_names(), {}, []
  for number, name in enumerate(names):
    plain = name.strip().lower().removeprefix("blendshapes.")
    if plain not in known:
      others.append(name.strip())
    elif known[plain] in found:
      raise InputError(place, name.strip(), "a second time", "each shape once")
    else:
      found[known[plain]] = number
  missing = [name for name in SHAPES if name not in found and name != "tongueOut"]  # MediaPipe has no tongue.
  if missing:
    more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
    raise InputError(place, "names", f"no {', '.join(missing[:4])}{more}", _EXPECTED)
  return found, others


def _to_number(place: object, key: str, value: Any) -> float:
  """A weight or an angle of a file; its range is looked at too."""
  try:
    if isinstance(value, bool):
      raise ValueError
    number = float(value)
  except (TypeError, ValueError, OverflowError):
    raise InputError(place, key, repr(value)[:60], "a number with a decimal point") from None
  low, high = _WEIGHT_RANGE if key in SHAPES else (-math.pi, math.pi)
  if not low <= number <= high:
    raise InputError(place, key, value, "a weight from 0 to 1" if key in SHAPES else "radians, up to pi")
  return number


def _parse_csv(path: pathlib.Path, text: str) -> _Table:
  reader = csv.reader(io.StringIO(text, newline=""))
  try:
    header = next(reader, [])
    if len(header) == 1 and len(header[0].split(";")) > 2:
      raise InputError(f"{path}:1", "header", "semicolons between the columns", "commas, and decimal points")
    columns, others = _name_columns(f"{path}:1", header)
    lower = [name.strip().lower() for name in header]
    rows, values, times, lost = [], [], [], 0
    unit, clock = next(((scale, lower.index(key)) for keys, scale in ((_SECONDS_KEYS, 1.0), (_MILLISECONDS_KEYS, 1e-3))
                        for key in keys if key in lower), (None, None))
    count = lower.index("blendshapecount") if "blendshapecount" in lower else None
    for fields in reader:
      place = f"{path}:{reader.line_num}"
      if not any(field.strip() for field in fields):
        continue
      if count is not None and len(fields) > count and fields[count].strip() == "0":
        lost += 1  # So Live Link Face writes a frame in which it saw no face.
        continue
      if len(fields) != len(header):
        raise InputError(place, "", f"{len(fields)} values", f"{len(header)}, one for each column; decimal points, not commas")
      rows.append(str(reader.line_num))
      values.append([_to_number(place, name, fields[number].strip()) for name, number in columns.items()])
      if clock is not None:
        times.append(_to_time(place, header[clock], fields[clock].strip(), unit))
  except csv.Error as error:
    raise InputError(f"{path}:{reader.line_num}", "", error, "a line of a csv") from None
  if not rows:
    raise InputError(path, "", "no frame", "at least one line below the header")
  if times and len({type(time) for time in times}) > 1:
    raise InputError(path, header[clock], "time codes and seconds", "one of the two")
  used = {"", "timecode", "blendshapecount", "_neutral", "frame", *(() if clock is None else (lower[clock],))}
  notes = [f"not read: {', '.join(unread)}"] if (unread := [name for name in others if name.lower() not in used]) else []
  notes += [f"{lost} frames without a face are interpolated"] if lost else []
  numbers = np.array(values).reshape(len(rows), len(columns))
  return _Table(path, rows, dict(zip(columns, numbers.T)), times or None, None, notes)


def _to_time(place: str, key: str, value: str, unit: float) -> float | str:
  if ":" in value or ";" in value:
    return value
  try:
    number = float(value) * unit
  except ValueError:
    number = math.nan
  if not math.isfinite(number):
    raise InputError(place, key, repr(value), "HH:MM:SS:FF.sub, or a number")
  return number


def _parse_json(path: pathlib.Path, text: str) -> _Table:
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    line = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
    raise InputError(path, line, "broken JSON", _EXPECTED) from None
  if isinstance(content, dict) and isinstance(content.get("frames"), list) and "names" not in content:
    content = content["frames"]
  if isinstance(content, list):
    return _parse_frames(path, content)
  if isinstance(content, dict) and "weightMat" in content:
    return _parse_matrix(path, "facsNames", content.get("facsNames"), "weightMat", content["weightMat"], None, content.get("exportFps"))
  if isinstance(content, dict) and "names" in content:
    metadata = content.get("metadata") if isinstance(content.get("metadata"), dict) else {}
    frames = content.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
      raise InputError(path, "frames", type(frames).__name__, "a list of objects with weights")
    weights = [frame.get("weights") for frame in frames]
    times = [frame.get("time") for frame in frames] if frames and all("time" in frame for frame in frames) else None
    table = _parse_matrix(path, "names", content["names"], "weights", weights, times, metadata.get("fps"))
    _add_rotations(table, [frame.get("rotation") for frame in frames], metadata.get("rotation"))
    return table
  found = f"the keys {', '.join(map(str, content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
  raise InputError(path, "", found, _EXPECTED)


_ROTATION = "headYaw, headPitch, headRoll in radians"  # What our own files say of their rotations.


def _add_rotations(table: _Table, rotations: list, meaning: Any) -> None:
  """Head angles of a file in LAM-Audio2Expression's layout, which leaves open what they are unless the file says."""
  if meaning != _ROTATION:
    table.notes += ["rotation is not read: the file does not say what it is"] if any(rotations) else []
    return
  for row, rotation in zip(table.rows, rotations):
    if not isinstance(rotation, list) or len(rotation) != 3:
      raise InputError(f"{table.path}:{row}", "rotation", repr(rotation)[:60], _ROTATION)
  angles = [[_to_number(f"{table.path}:{row}", key, x) for key, x in zip(HEAD_ANGLES, rotation)]
            for row, rotation in zip(table.rows, rotations)]
  table.columns.update(zip(HEAD_ANGLES, np.array(angles).T))


def _parse_matrix(
    path: pathlib.Path, names_key: str, names: Any, key: str, weights: Any, times: list | None, fps: Any
) -> _Table:
  """Names once, and a row of weights for each frame."""
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise InputError(path, names_key, type(names).__name__, "a list of names")
  columns, others = _name_columns(path, names)
  if not isinstance(weights, list) or not weights:
    raise InputError(path, key, "no frame", "a list of weights for each frame")
  rows = [f"frame {number}" for number in range(len(weights))]
  values = []
  for row, frame in zip(rows, weights):
    if not isinstance(frame, list) or len(frame) != len(names):
      found = f"{len(frame)} weights" if isinstance(frame, list) else type(frame).__name__
      raise InputError(f"{path}:{row}", key, found, f"{len(names)}, as there are {names_key}")
    values.append([_to_number(f"{path}:{row}", name, frame[number]) for name, number in columns.items()])
  notes = [f"not read: {', '.join(unread)}"] if (unread := [name for name in others if name != "_neutral"]) else []
  numbers = np.array(values).reshape(len(rows), len(columns))
  if times is not None:
    times = [_to_seconds(f"{path}:{row}", "time", time, 1.0) for row, time in zip(rows, times)]
  return _Table(path, rows, dict(zip(columns, numbers.T)), times, _to_rate(path, fps), notes)


def _to_rate(path: pathlib.Path, fps: Any) -> float | None:
  if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= 1000):
    raise InputError(path, "fps", repr(fps), "frames a second")
  return fps


def _to_seconds(place: str, key: str, value: Any, unit: float) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
    raise InputError(place, key, repr(value), "a number")
  return value * unit


def _parse_frames(path: pathlib.Path, frames: list) -> _Table:
  """A list of results: MediaPipe's, or a plain object of weights each."""
  rows, weights, heads, times, lost = [], [], [], [], 0
  for number, frame in enumerate(frames):
    row = f"frame {number}"
    place = f"{path}:{row}"
    if not isinstance(frame, dict):
      raise InputError(place, "", type(frame).__name__, _EXPECTED)
    named = _frame_weights(place, frame)
    if named is None:
      lost += 1
      continue
    columns, _ = _name_columns(place, list(named))
    values = list(named.values())
    rows.append(row)
    weights.append({name: _to_number(place, name, values[k]) for name, k in columns.items()})
    heads.append(_matrix_angles(place, frame))
    times.append(_frame_time(place, frame))
  if not rows:
    raise InputError(path, "", "no frame", "at least one, with a face")
  if len({time is None for time in times}) > 1 or len({head is None for head in heads}) > 1:
    raise InputError(path, "", "times or matrices in some frames alone", "them in all frames, or in none")
  keys = sorted(set().union(*weights), key=(*SHAPES, *HEAD_ANGLES, *EYE_ANGLES).index)
  columns = {name: np.array([frame.get(name, 0.0) for frame in weights]) for name in keys}
  if heads[0] is not None:
    columns |= dict(zip(HEAD_ANGLES, np.array(heads).T))
  if lost and times[0] is None:
    raise InputError(path, "faceBlendshapes", f"{lost} frames without a face, and no times", "times, to know how long they last")
  notes = [f"{lost} frames without a face are interpolated"] if lost else []
  return _Table(path, rows, columns, None if times[0] is None else times, None, notes)


def _frame_weights(place: str, frame: Mapping[str, Any]) -> dict[str, Any] | None:
  """Weights by name; None where no face was found."""
  key = next((key for key in ("faceBlendshapes", "face_blendshapes", "blendshapes", "blendShapes") if key in frame), None)
  if key is None:
    raise InputError(place, "faceBlendshapes", f"the keys {', '.join(map(str, frame)) or 'none'}", "weights of ARKit's shapes")
  faces = frame[key]
  if isinstance(faces, dict):
    return dict(faces)
  if not isinstance(faces, list):
    raise InputError(place, key, type(faces).__name__, "a list of faces, or weights by name")
  if not faces:
    return None
  if len(faces) > 1:
    raise InputError(place, key, f"{len(faces)} faces", "one person's")
  categories = faces[0].get("categories") if isinstance(faces[0], dict) else faces[0]
  weights: dict[str, Any] = {}
  for category in categories if isinstance(categories, list) else [{}]:
    found = category if isinstance(category, dict) else {}
    name = found.get("categoryName", found.get("category_name"))
    if not isinstance(name, str) or "score" not in found:
      raise InputError(place, key, repr(category)[:60], "categories with categoryName and score")
    if name in weights:
      raise InputError(place, name, "a second time", "each shape once")
    weights[name] = found["score"]
  return weights


def _matrix_angles(place: str, frame: Mapping[str, Any]) -> list[float] | None:
  """Head angles of MediaPipe's matrix, which takes the face to the camera's axes: x to the image's right, y up."""
  key = next((key for key in ("facialTransformationMatrixes", "facial_transformation_matrixes") if key in frame), None)
  if key is None or not frame[key]:
    return None
  try:
    matrix = frame[key][0]
    flat = isinstance(matrix, dict)
    values = np.asarray(matrix["data"] if flat else matrix, np.float64).reshape(4, 4)
  except (TypeError, KeyError, IndexError, ValueError):
    raise InputError(place, key, repr(frame[key])[:60], "a matrix of 4 x 4") from None
  # JavaScript has its numbers column by column, Python row by row: the last row is 0 0 0 1.
  rotation = values[:3, :3].T if flat and not values[:3, 3].any() else values[:3, :3]
  if not np.isfinite(rotation).all() or not np.linalg.det(rotation) > 1e-6:
    raise InputError(place, key, repr(frame[key])[:60], "a rotation")
  return scipy.spatial.transform.Rotation.from_matrix(rotation).as_euler(_EULER).tolist()


def _frame_time(place: str, frame: Mapping[str, Any]) -> float | None:
  for key, value in frame.items():
    for keys, unit in ((_SECONDS_KEYS, 1.0), (_MILLISECONDS_KEYS, 1e-3)):
      if str(key).lower() in keys:
        return _to_seconds(place, key, value, unit)
  return None


# --- Writing


def write_arkit(path: str | os.PathLike, motion: Motion) -> list[str]:
  """Writes a motion of the basis "arkit", whole or not at all: .csv as Live Link Face has it, .json as LAM-Audio2Expression.

  Numbers have the nine digits that a float32 needs: what is read back differs by rounding alone. Weights are written as they
  are, also those that lie a little outside of [0, 1].

  Returns:
    Notes of what a file of this kind cannot hold.
  """
  path = pathlib.Path(path)
  weights, head = from_motion(motion)
  if path.suffix.lower() == ".json":
    content = _to_json(weights, head)
  else:
    content = _to_csv(weights, head)
  with whole_file(path) as file:
    file.write(content.encode())
  side = float(np.abs(np.asarray(motion)[:, MOTION_GROUPS["jaw"]][:, 1:]).max(initial=0))
  return [f"{path}: turns of the jaw to the side, up to {side:.2g} rad, are lost: ARKit has no shape for them"] if side > 1e-6 else []


def _to_csv(weights: Float[np.ndarray, "T 52"], head: Float[np.ndarray, "T 3"]) -> str:
  pascal = [name[0].upper() + name[1:] for name in (*SHAPES, *HEAD_ANGLES, *EYE_ANGLES)]
  lines = [",".join(["Timecode", "BlendshapeCount", *pascal])]
  for number, values in enumerate(np.concatenate([weights, head, eye_angles(weights)], axis=1)):
    second, frame = divmod(number, FPS)
    clock = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
    code = f"{clock}:{frame * _USUAL_RATE / FPS:06.3f}"
    lines.append(",".join([code, str(len(pascal)), *(f"{value:.9g}" for value in values)]))
  return "\n".join(lines) + "\n"


def _to_json(weights: Float[np.ndarray, "T 52"], head: Float[np.ndarray, "T 3"]) -> str:
  rounded = lambda values: [float(f"{value:.9g}") for value in values]
  order = sorted(range(len(SHAPES)), key=lambda k: SHAPES[k])  # As LAM-Audio2Expression has them.
  names = [SHAPES[k] for k in order]
  frames = [
      {"weights": rounded(weights[t][order]), "time": t / FPS, "rotation": rounded(head[t])} for t in range(len(weights))
  ]
  metadata = {"fps": float(FPS), "frame_count": len(frames), "blendshape_names": names, "rotation": _ROTATION}
  return json.dumps({"names": names, "metadata": metadata, "frames": frames}) + "\n"
