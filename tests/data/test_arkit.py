"""ARKit's shapes in and out: files written by hand, geometry of the demo head, times of every kind, and what is refused."""

import csv
import functools
import json
import pathlib

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from rsatalker_jax.data import arkit
from rsatalker_jax.data.dualtalk import write_motion_file
from rsatalker_jax.data.tracks import read_track
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import head_vertices, load_head, pose_for
from rsatalker_jax.types import ARKIT_EXPRESSIONS

JAW = 0.4253976  # The demo head's jaw_open_angle.
HEAD = pathlib.Path(__file__).parents[2] / "assets/head/demo_head.npz"
# Live Link Face's, as its files begin.
HEADER = (
    "Timecode,BlendshapeCount,EyeBlinkLeft,EyeLookDownLeft,EyeLookInLeft,EyeLookOutLeft,EyeLookUpLeft,EyeSquintLeft,EyeWideLeft,"
    "EyeBlinkRight,EyeLookDownRight,EyeLookInRight,EyeLookOutRight,EyeLookUpRight,EyeSquintRight,EyeWideRight,JawForward,JawRight,"
    "JawLeft,JawOpen,MouthClose,MouthFunnel,MouthPucker,MouthRight,MouthLeft,MouthSmileLeft,MouthSmileRight,MouthFrownLeft,"
    "MouthFrownRight,MouthDimpleLeft,MouthDimpleRight,MouthStretchLeft,MouthStretchRight,MouthRollLower,MouthRollUpper,"
    "MouthShrugLower,MouthShrugUpper,MouthPressLeft,MouthPressRight,MouthLowerDownLeft,MouthLowerDownRight,MouthUpperUpLeft,"
    "MouthUpperUpRight,BrowDownLeft,BrowDownRight,BrowInnerUp,BrowOuterUpLeft,BrowOuterUpRight,CheekPuff,CheekSquintLeft,"
    "CheekSquintRight,NoseSneerLeft,NoseSneerRight,TongueOut,HeadYaw,HeadPitch,HeadRoll,LeftEyeYaw,LeftEyePitch,LeftEyeRoll,"
    "RightEyeYaw,RightEyePitch,RightEyeRoll"
)
NAMES = HEADER.split(",")[2:]
ARKIT = [name[0].lower() + name[1:] for name in NAMES[:52]]


def timecode(frame: float, rate: int) -> str:
  """Of a frame counted from 0, without the package's help."""
  whole, part = divmod(round(frame * 1000), 1000)
  second, count = divmod(whole, rate)
  return f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}:{count:02d}.{part:03d}"


def write_csv(path, codes, header=HEADER, **values):
  """A line for each time code; values by name, a number or one for each line, all others 0."""
  lines = [header]
  for row, code in enumerate(codes):
    cell = lambda name: f"{np.broadcast_to(values.get(name, 0.0), len(codes))[row]:.9g}"
    lines.append(",".join([code, "61", *(cell(name) for name in NAMES)]))
  path.write_text("\n".join(lines) + "\n")
  return path


def column(motion, name):
  return motion[:, ARKIT_EXPRESSIONS.index(name)]


def make_motion(frames: int, seed: int = 0) -> np.ndarray:
  r = np.random.default_rng(seed)
  motion = np.concatenate([r.uniform(-0.1, 1.2, (frames, 50)), np.zeros((frames, 3)), r.uniform(-0.6, 0.6, (frames, 3))], axis=1)
  motion[:, 50] = r.uniform(0, 0.4, frames)
  return motion.astype(np.float32)


# --- Both ways.


@pytest.mark.parametrize("name", ["b.csv", "b.json"])
@pytest.mark.parametrize("frames", [1, 7, 90])
def test_round_trip_is_exact(tmp_path, name, frames):
  motion = make_motion(frames)
  assert write_motion_file(tmp_path / name, motion, basis="arkit") == []
  take = arkit.read_arkit(tmp_path / name)
  np.testing.assert_allclose(take.motion, motion, atol=1e-6)
  assert take.motion.dtype == np.float32 and not any("resampled" in note or "lost" in note for note in take.notes)
  track = read_track(tmp_path / name, shape=False)
  np.testing.assert_array_equal(track.motion, take.motion)
  assert (track.basis, track.sign, track.notes) == ("arkit", "its names", take.notes)
  first = (tmp_path / name).read_bytes()
  write_motion_file(tmp_path / name, motion, basis="arkit")
  assert (tmp_path / name).read_bytes() == first


def test_csv_is_live_link_faces(tmp_path):
  motion = make_motion(80)
  arkit.write_arkit(tmp_path / "b.csv", motion)
  rows = list(csv.reader((tmp_path / "b.csv").open()))
  assert rows[0] == HEADER.split(",") and len(rows) == 81 and {row[1] for row in rows[1:]} == {"61"}
  assert [row[0] for row in rows[1:4]] == ["00:00:00:00.000", "00:00:00:02.400", "00:00:00:04.800"]
  assert rows[80][0] == "00:00:03:09.600"
  values = np.array([row[2:] for row in rows[1:]], float)
  for name in ARKIT_EXPRESSIONS:
    np.testing.assert_allclose(values[:, ARKIT.index(name)], column(motion, name), atol=1e-7)
  np.testing.assert_allclose(values[:, ARKIT.index("jawOpen")], motion[:, 50] / JAW, atol=1e-7)
  assert not values[:, 51].any()  # tongueOut
  turn = Rotation.from_rotvec(motion[:, 53:])
  yaw, pitch, roll = values[:, 52:55].T
  rebuilt = Rotation.from_rotvec(np.outer(yaw, [0, 1, 0])) * Rotation.from_rotvec(np.outer(pitch, [1, 0, 0]))
  rebuilt = rebuilt * Rotation.from_rotvec(np.outer(roll, [0, 0, 1]))
  assert (rebuilt.inv() * turn).magnitude().max() < 1e-6


def test_eyes_follow_their_shapes(tmp_path):
  still = np.zeros((1, 56), np.float32)
  look = still.copy()
  for name, weight in dict(eyeLookOutLeft=0.5, eyeLookInRight=0.25, eyeLookUpLeft=1.0, eyeLookDownRight=0.5).items():
    look[:, ARKIT_EXPRESSIONS.index(name)] = weight
  arkit.write_arkit(tmp_path / "b.csv", look)
  values = dict(zip(NAMES, map(float, (tmp_path / "b.csv").read_text().splitlines()[1].split(",")[2:])))
  degrees = {name: np.degrees(values[name]) for name in NAMES[55:]}
  expected = dict(LeftEyeYaw=12, LeftEyePitch=-18, LeftEyeRoll=0, RightEyeYaw=6, RightEyePitch=10, RightEyeRoll=0)
  assert degrees == pytest.approx(expected, abs=1e-5)
  # A file with angles alone, as some programs leave it, gives the shapes.
  angles = {name: values[name] for name in NAMES[55:]}
  take = arkit.read_arkit(write_csv(tmp_path / "eyes.csv", ["00:00:00:00.000"], **angles))
  np.testing.assert_allclose(take.motion, look, atol=1e-6)
  assert any("gaze is taken from the eyes' angles" in note for note in take.notes)
  take = arkit.read_arkit(write_csv(tmp_path / "both.csv", ["00:00:00:00.000"], EyeLookOutLeft=0.1, **angles))
  np.testing.assert_allclose(take.motion[0, [ARKIT_EXPRESSIONS.index("eyeLookOutLeft"), ARKIT_EXPRESSIONS.index("eyeLookUpLeft")]], [0.1, 0])


def test_what_arkit_has_no_shape_for_is_said(tmp_path):
  motion = make_motion(5)
  motion[3, 52] = -0.02
  (note,) = arkit.write_arkit(tmp_path / "b.csv", motion)
  assert note == f"{tmp_path / 'b.csv'}: turns of the jaw to the side, up to 0.02 rad, are lost: ARKit has no shape for them"
  take = arkit.read_arkit(write_csv(tmp_path / "t.csv", ["00:00:00:00.000", "00:00:00:02.400"], TongueOut=[0, 0.7]))
  assert any("tongueOut is lost (up to 0.70)" in note for note in take.notes)


# --- Geometry.


@functools.cache
def demo_head():
  head = load_head(HEAD)
  return head, jax.jit(lambda motion: head_vertices(head, shape=np.zeros(24, np.float32), **pose_for(motion)))


def vertices_of(tmp_path, **values) -> np.ndarray:
  motion = arkit.read_arkit(write_csv(tmp_path / "pose.csv", ["00:00:00:00.000"], **values)).motion
  return np.asarray(demo_head()[1](motion[0]))


def landmark(name: str) -> int:
  """A vertex of the demo head: x to its left, y up, z forward, the eyes' middle at (0, 0.024, 0.066)."""
  head, _ = demo_head()
  v, (upper, lower) = np.asarray(head.v_template), np.asarray(head.lip_vertices)
  if name == "crown":
    return int(v[:, 1].argmax())
  if name == "nose":
    return int(np.where((v[:, 1] > v[upper, 1]) & (v[:, 1] < 0.02), v[:, 2], -1).argmax())
  if name == "chin":
    return int(np.where((v[:, 1] < v[lower, 1] - 0.02) & (np.abs(v[:, 0]) < 0.005), v[:, 2], -1).argmax())
  side = 1 if name == "left pupil" else -1
  faces = np.asarray(head.faces)[np.asarray(head.region_masks)[head.region_names.index("eye_left" if side > 0 else "eye_right")]]
  eye = np.unique(faces)
  return int(eye[v[eye, 2].argmax()])


@pytest.mark.parametrize(
    "values, name, axis, sign, least",
    [
        (dict(HeadYaw=0.4), "nose", 0, 1, 0.02),  # To the own left.
        (dict(HeadYaw=-0.4), "nose", 0, -1, 0.02),
        (dict(HeadPitch=0.3), "nose", 1, -1, 0.01),  # A nod.
        (dict(HeadRoll=0.3), "crown", 0, -1, 0.02),  # To the own right.
        (dict(JawOpen=1.0), "chin", 1, -1, 0.015),
        (dict(JawLeft=1.0), "chin", 0, 1, 0.003),
        (dict(JawRight=1.0), "chin", 0, -1, 0.003),
        (dict(JawForward=1.0), "chin", 2, 1, 0.003),
        (dict(EyeLookOutLeft=1.0), "left pupil", 0, 1, 0.003),
        (dict(EyeLookInLeft=1.0), "left pupil", 0, -1, 0.003),
        (dict(EyeLookOutRight=1.0), "right pupil", 0, -1, 0.003),
        (dict(EyeLookUpRight=1.0), "right pupil", 1, 1, 0.002),
        (dict(EyeLookDownLeft=1.0), "left pupil", 1, -1, 0.002),
        (dict(LeftEyeYaw=0.3, RightEyeYaw=0.3), "right pupil", 0, 1, 0.002),
        (dict(LeftEyePitch=0.3, RightEyePitch=0.3), "left pupil", 1, -1, 0.002),
    ],
)
def test_a_posed_landmark_lands_where_it_should(tmp_path, values, name, axis, sign, least):
  vertex = landmark(name)
  moved = vertices_of(tmp_path, **values)[vertex] - vertices_of(tmp_path)[vertex]
  assert sign * moved[axis] > least and np.abs(moved).argmax() in ((axis,) if name != "crown" else (axis, 1))


def test_head_angles_turn_rigidly_about_the_neck(tmp_path):
  """What moves with the head alone is turned by roll, then pitch, then yaw about the neck's joint."""
  head, _ = demo_head()
  rigid = np.flatnonzero(np.asarray(head.weights)[:, 1] > 0.999)
  neck = (np.asarray(head.joint_regressor) @ np.asarray(head.v_template))[1]
  yaw, pitch, roll = 0.5, -0.2, 0.3
  c, s = np.cos, np.sin
  y = np.array([[c(yaw), 0, s(yaw)], [0, 1, 0], [-s(yaw), 0, c(yaw)]])
  x = np.array([[1, 0, 0], [0, c(pitch), -s(pitch)], [0, s(pitch), c(pitch)]])
  z = np.array([[c(roll), -s(roll), 0], [s(roll), c(roll), 0], [0, 0, 1]])
  expected = (np.asarray(head.v_template)[rigid] - neck) @ (y @ x @ z).T + neck
  np.testing.assert_allclose(vertices_of(tmp_path, HeadYaw=yaw, HeadPitch=pitch, HeadRoll=roll)[rigid], expected, atol=2e-6)


def test_the_jaw_opens_as_the_heads_own_shape_does():
  assert np.load(HEAD)["jaw_open_angle"] == pytest.approx(arkit.JAW_OPEN_ANGLE)


def test_names_are_arkits():
  assert list(arkit.SHAPES) == ARKIT and len(set(ARKIT)) == 52
  assert set(ARKIT) - set(ARKIT_EXPRESSIONS) == {"jawOpen", "tongueOut"}


# --- Times.


@pytest.mark.parametrize("rate", [60, 30, 24, 50])
def test_other_rates_are_resampled_on_straight_lines(tmp_path, rate):
  frames = 2 * rate + 1
  seconds = np.arange(frames) / rate
  path = write_csv(tmp_path / "t.csv", [timecode(k, rate) for k in range(frames)], JawOpen=0.2 * seconds, HeadYaw=0.3 * seconds)
  take = arkit.read_arkit(path)
  assert len(take.motion) == 51
  at = np.arange(51) / 25
  np.testing.assert_allclose(take.motion[:, 50], JAW * 0.2 * at, atol=1e-6)
  np.testing.assert_allclose(take.motion[:, 54], 0.3 * at, atol=1e-6)
  assert any(f"resampled from {rate} to 25 frames a second: {frames} to 51" in note for note in take.notes)
  assert any(f"time codes count {rate} frames a second" in note for note in take.notes)


def test_time_codes_of_25_need_no_resampling(tmp_path):
  take = arkit.read_arkit(write_csv(tmp_path / "t.csv", [timecode(k, 25) for k in range(30)], JawOpen=np.arange(30) / 30))
  np.testing.assert_allclose(take.motion[:, 50], JAW * np.arange(30) / 30, atol=1e-7)
  assert any("time codes count 25 frames a second" in note for note in take.notes)
  assert not any("resampled" in note for note in take.notes)


def test_heads_turn_along_the_shortest_arc(tmp_path):
  angles = np.array([[0.9, -0.4, 0.2], [-0.7, 0.5, -0.6]])
  values = dict(zip(("HeadYaw", "HeadPitch", "HeadRoll"), angles.T))
  take = arkit.read_arkit(write_csv(tmp_path / "t.csv", ["00:00:00:00.000", "00:00:01:00.000"], **values), fps=30)
  between = Slerp([0, 1], Rotation.from_euler("YXZ", angles))(np.arange(26) / 25)
  np.testing.assert_allclose(take.motion[:, 53:], between.as_rotvec(), atol=1e-6)


def test_gaps_and_lost_faces_are_bridged_and_said(tmp_path):
  rate, kept = 60, [k for k in range(181) if not 60 < k < 90]
  seconds = np.array(kept) / rate
  path = write_csv(tmp_path / "t.csv", [timecode(k, rate) for k in kept], MouthSmileLeft=0.3 * seconds)
  take = arkit.read_arkit(path)
  np.testing.assert_allclose(column(take.motion, "mouthSmileLeft"), 0.3 * np.arange(76) / 25, atol=1e-6)
  assert any("1 gaps, 0.48 s in all and 0.50 s at most, are interpolated" in note for note in take.notes)
  lines = path.read_text().splitlines()
  lines[11] = lines[11].split(",")[0] + ",0"  # So the app writes a frame without a face.
  lines[12] = ",".join([lines[12].split(",")[0], "0", *["0"] * 61])
  path.write_text("\n".join(lines))
  take = arkit.read_arkit(path)
  np.testing.assert_allclose(column(take.motion, "mouthSmileLeft"), 0.3 * np.arange(76) / 25, atol=1e-6)
  assert any("2 frames without a face are interpolated" in note for note in take.notes)


def test_midnight(tmp_path):
  codes = ["23:59:59:30.000", "23:59:59:59.000", "00:00:00:30.000"]
  take = arkit.read_arkit(write_csv(tmp_path / "t.csv", codes, JawOpen=[0, 29 / 60, 1]))
  np.testing.assert_allclose(take.motion[:, 50], JAW * np.arange(26) / 25, atol=1e-6)


def drop_frame(count: int, mark: str) -> list[str]:
  """Time codes of 29.97 by walking, label by label: each minute but the tenth lacks 00 and 01."""
  minute, second, frame, codes = 0, 0, 0, []
  for _ in range(count):
    codes.append(f"00:{minute:02d}:{second:02d}{mark}{frame:02d}")
    frame += 1
    if frame == 30:
      second, frame = second + 1, 0
      if second == 60:
        minute, second = minute + 1, 0
        frame = 0 if minute % 10 == 0 else 2
  return codes


@pytest.mark.parametrize("mark, first, last", [(";", 1780, 3700), (":", 1780, 3700), (";", 16100, 18100), (":", 16100, 18100)])
def test_drop_frame_codes_are_real_time(tmp_path, mark, first, last):
  codes = drop_frame(last, mark)
  assert codes[1798:1801] == [f"00:00:59{mark}28", f"00:00:59{mark}29", f"00:01:00{mark}02"]
  assert last < 18000 or codes[17981:17983] == [f"00:09:59{mark}29", f"00:10:00{mark}00"]
  codes = codes[first:]
  seconds = np.arange(len(codes)) * 1001 / 30000
  take = arkit.read_arkit(write_csv(tmp_path / "t.csv", codes, BrowInnerUp=seconds / 100))
  np.testing.assert_allclose(column(take.motion, "browInnerUp"), np.arange(len(take.motion)) / 2500, atol=1e-6)
  assert any("drop-frame time codes, 29.97 frames a second" in note for note in take.notes)
  assert not any("gaps" in note for note in take.notes)


def test_told_rates_count_time_codes_and_rows(tmp_path):
  codes = [timecode(k, 30) for k in range(301)]
  take = arkit.read_arkit(write_csv(tmp_path / "t.csv", codes, JawOpen=np.arange(301) / 301), fps=30 / 1.001)
  np.testing.assert_allclose(take.motion[:, 50], JAW / 301 * np.arange(len(take.motion)) / 25 * 30 / 1.001, atol=1e-6)
  short = arkit.read_arkit(write_csv(tmp_path / "t.csv", codes[:21], JawOpen=np.arange(21) / 20))
  assert any("time codes count 60 frames a second, as Live Link Face does: they last less than a second" in n for n in short.notes)
  text = (tmp_path / "t.csv").read_text()
  (tmp_path / "t.csv").write_text("\n".join(line.split(",", 1)[1] for line in text.splitlines()))
  with pytest.raises(InputError, match="t.csv: time: found neither times nor a rate, expected a column of times, or --fps"):
    arkit.read_arkit(tmp_path / "t.csv")
  take = arkit.read_arkit(tmp_path / "t.csv", fps=20)
  np.testing.assert_allclose(take.motion[:, 50], JAW * np.arange(26) / 25, atol=1e-6)


# --- Other programs' files.


def weights_of(frame: int) -> dict[str, float]:
  return {name: round((k + 1) / 100 + 0.01 * frame, 4) for k, name in enumerate(ARKIT)}


def expected_motion(frames: int) -> np.ndarray:
  motion = np.zeros((frames, 56))
  for t in range(frames):
    weights = weights_of(t)
    motion[t, :50] = [weights[name] for name in ARKIT_EXPRESSIONS]
    motion[t, 50] = JAW * weights["jawOpen"]
  return motion


def dump(path, content):
  path.write_text(json.dumps(content))
  return path


def test_audio2face_and_lam_json(tmp_path):
  names = sorted(ARKIT)
  rows = [[weights_of(t)[name] for name in names] for t in range(3)]
  a2f = dict(exportFps=25.0, trackPath="a.wav", numPoses=52, numFrames=3, facsNames=names, weightMat=rows)
  frames = [{"weights": row, "time": t / 25, "rotation": []} for t, row in enumerate(rows)]
  lam = {"names": names, "metadata": {"fps": 25.0, "frame_count": 3, "blendshape_names": names}, "frames": frames}
  without_times = lam | {"frames": [{"weights": row} for row in rows]}
  plain = [{"time": t / 25, "blendshapes": weights_of(t)} for t in range(3)]
  for content in (a2f, lam, without_times, plain, {"frames": plain}):
    take = arkit.read_arkit(dump(tmp_path / "a.json", content))
    np.testing.assert_allclose(take.motion, expected_motion(3), atol=1e-6)
  for frame in frames:
    frame["rotation"] = [0.1, 0.2, 0.3]
  take = arkit.read_arkit(dump(tmp_path / "a.json", lam))
  assert not take.motion[:, 53:].any() and any("rotation is not read: the file does not say" in note for note in take.notes)
  a2f["exportFps"] = 50
  assert len(arkit.read_arkit(dump(tmp_path / "a.json", a2f)).motion) == 2
  assert len(arkit.read_arkit(tmp_path / "a.json", fps=25).motion) == 3  # What is told goes before what the file says.
  del a2f["exportFps"]
  with pytest.raises(InputError, match="neither times nor a rate"):
    arkit.read_arkit(dump(tmp_path / "a.json", a2f))
  assert len(arkit.read_arkit(tmp_path / "a.json", fps=25).motion) == 3


def test_audio2face_csv(tmp_path):
  header = ["", "timeCode", *(f"blendShapes.{name[0].upper()}{name[1:]}" for name in ARKIT), "emotionValues.joy"]
  rows = [[f"{t}", f"{t / 25}", *map(str, weights_of(t).values()), "0.5"] for t in range(3)]
  (tmp_path / "a.csv").write_text("\r\n".join(",".join(row) for row in [header, *rows]))
  take = arkit.read_arkit(tmp_path / "a.csv")
  np.testing.assert_allclose(take.motion, expected_motion(3), atol=1e-6)
  assert any(note.endswith("not read: emotionValues.joy") for note in take.notes)
  assert any("no head angles: the head stands still" in note for note in take.notes)


@pytest.mark.parametrize("language", ["JavaScript", "Python"])
def test_mediapipe_results(tmp_path, language):
  turns = [Rotation.from_rotvec(v) for v in ([0.1, 0.4, -0.2], [0.0, -0.3, 0.1], [0.2, 0.0, 0.0])]
  frames = []
  for t, turn in enumerate(turns):
    weights = {"_neutral": 0.0} | {name: x for name, x in weights_of(t).items() if name != "tongueOut"}
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn.as_matrix(), [1, 2, -40]
    if language == "JavaScript":
      categories = [{"index": k, "score": x, "categoryName": n, "displayName": ""} for k, (n, x) in enumerate(weights.items())]
      frames.append({
          "faceLandmarks": [], "faceBlendshapes": [{"categories": categories, "headIndex": -1, "headName": ""}],
          "facialTransformationMatrixes": [{"rows": 4, "columns": 4, "data": matrix.T.ravel().tolist()}], "timestamp": 1000 + 40 * t,
      })
    else:
      categories = [{"index": k, "score": x, "category_name": n, "display_name": ""} for k, (n, x) in enumerate(weights.items())]
      frames.append({"face_blendshapes": [categories], "facial_transformation_matrixes": [matrix.tolist()], "timestamp_ms": 40 * t})
  expected = expected_motion(3)
  expected[:, 53:] = [turn.as_rotvec() for turn in turns]
  take = arkit.read_arkit(dump(tmp_path / "a.json", frames))
  np.testing.assert_allclose(take.motion, expected, atol=1e-6)
  frames[1][next(key for key in frames[1] if key.startswith("face_b") or key == "faceBlendshapes")] = []
  take = arkit.read_arkit(dump(tmp_path / "a.json", frames))
  np.testing.assert_allclose(take.motion[1, :51], expected[[0, 2], :51].mean(0), atol=1e-6)
  assert any("1 frames without a face are interpolated" in note for note in take.notes)


# --- What is refused, in one line.


CODES = ["00:00:00:00.000", "00:00:00:02.400", "00:00:00:04.800"]


def lines_of(tmp_path):
  return write_csv(tmp_path / "a.csv", CODES).read_text().splitlines()


def without(name):
  """The table without a column."""
  keep = [k for k, column in enumerate(HEADER.split(",")) if column != name]
  return lambda lines: [",".join(line.split(",")[k] for k in keep) for line in lines]


def replaced(row, text, by):
  return lambda lines: [line.replace(text, by, 1) if k == row else line for k, line in enumerate(lines)]


def cell(row, number, value):
  def change(lines):
    fields = lines[row].split(",")
    fields[number] = value
    return [",".join(fields) if k == row else line for k, line in enumerate(lines)]

  return change


@pytest.mark.parametrize(
    "change, message",
    [
        (without("MouthClose"), r"a.csv:1: names: found no mouthClose, expected ARKit's shapes"),
        (lambda lines: ["a,b", "1,2"], r"names: found no eyeBlinkLeft, eyeLookDownLeft, eyeLookInLeft, eyeLookOutLeft and 47 more"),
        (replaced(0, "JawOpen", "jawleft"), "a.csv:1: jawleft: found a second time, expected each shape once"),
        (lambda lines: [line.replace(",", ";") for line in lines], "header: found semicolons between the columns, expected commas"),
        (lambda lines: lines[:2] + [lines[2].replace(",0,", ",0,5,")], r"a.csv:3: found \d+ values, expected 63, .* decimal points"),
        (cell(2, 7, '"0'), "a.csv:"),
        (cell(2, 7, ""), "a.csv:3: eyeSquintLeft: found '', expected a number with a decimal point"),
        (cell(2, 7, "nan"), "a.csv:3: eyeSquintLeft: found nan, expected a weight from 0 to 1"),
        (cell(3, 7, "37.5"), "a.csv:4: eyeSquintLeft: found 37.5, expected a weight from 0 to 1"),
        (cell(3, 54, "-12.5"), "a.csv:4: headYaw: found -12.5, expected radians, up to pi"),
        (cell(3, 0, CODES[1]), "a.csv:4: time: found 00:00:00:02.400, expected a time after 00:00:00:02.400"),
        (cell(2, 0, "00:00:00:44"), "a.csv:4: time: found 00:00:00:04.800, expected a time after 00:00:00:44"),
        (cell(2, 0, "0:0:1"), "a.csv:3: timecode: found '0:0:1', expected HH:MM:SS:FF.sub, or seconds"),
        (cell(2, 0, "00:61:00:00"), "a.csv:3: timecode: found '00:61:00:00'"),
        (cell(2, 0, "00:00:00:61"), "a.csv:3: timecode: found 00:00:00:61, expected frames below 60"),
        (cell(2, 0, ""), "a.csv:3: Timecode: found '', expected HH:MM:SS:FF.sub, or a number"),
        (cell(2, 0, "0.1"), "a.csv: Timecode: found time codes and seconds, expected one of the two"),
        (cell(3, 0, "09:00:00:00"), "a.csv: time: found 9.0 hours, expected 4 at most"),
        (lambda lines: lines[:1], "a.csv: found no frame, expected at least one line"),
        (lambda lines: [], "a.csv:1: names: found no eyeBlinkLeft"),
    ],
)
def test_bad_csv(tmp_path, change, message):
  (tmp_path / "a.csv").write_text("\n".join(change(lines_of(tmp_path))))
  with pytest.raises(InputError, match=message) as error:
    read_track(tmp_path / "a.csv", shape=False)
  assert "\n" not in str(error.value)


def mediapipe(**changes):
  categories = [{"categoryName": name, "score": 0.1} for name in ARKIT]
  return {"faceBlendshapes": [{"categories": categories}], "timestamp": 0.0} | changes


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "line 1: found broken JSON"),
        (3, "found a int, expected ARKit's shapes"),
        ({"a": 1}, "found the keys a, expected ARKit's shapes"),
        ([], "found no frame, expected at least one, with a face"),
        ([3], "frame 0: found int"),
        ([{"a": 1}], "frame 0: faceBlendshapes: found the keys a"),
        ([mediapipe(faceBlendshapes=[{"categories": []}] * 2)], "found 2 faces, expected one person's"),
        ([mediapipe(faceBlendshapes=[{"categories": [{"score": 1}]}])], "expected categories with categoryName and score"),
        ([mediapipe(faceBlendshapes=[{"categories": [{"score": 1, "categoryName": "jawOpen"}] * 2}])], "jawOpen: found a second time"),
        ([mediapipe(timestamp="now")], "timestamp: found 'now', expected a number"),
        ([mediapipe(), mediapipe(timestamp=0)], "frame 1: time: found 0.0, expected a time after 0.0"),
        ([mediapipe(facialTransformationMatrixes=[[1, 2]])], "expected a matrix of 4 x 4"),
        ([mediapipe(facialTransformationMatrixes=[np.zeros((4, 4)).tolist()])], "expected a rotation"),
        ([mediapipe(), {k: v for k, v in mediapipe().items() if k != "timestamp"}], "found times or matrices in some frames alone"),
        ({"facsNames": ARKIT, "weightMat": [[0.1] * 51], "exportFps": 30}, "frame 0: weightMat: found 51 weights, expected 52"),
        ({"facsNames": ARKIT, "weightMat": [], "exportFps": 30}, "weightMat: found no frame"),
        ({"facsNames": ARKIT, "weightMat": [[0.1] * 52], "exportFps": 0}, "fps: found 0, expected frames a second"),
        ({"facsNames": ARKIT, "weightMat": [[True] * 52], "exportFps": 30}, "eyeBlinkLeft: found True, expected a number"),
        ({"facsNames": ARKIT, "weightMat": [[10**400] * 52], "exportFps": 30}, "eyeBlinkLeft: found '?10+"),
        ({"facsNames": ARKIT[:-5], "weightMat": [[0.1] * 47], "exportFps": 30}, "names: found no"),
        ({"facsNames": 3, "weightMat": [], "exportFps": 30}, "facsNames: found int, expected a list of names"),
        ({"names": ARKIT, "frames": 3}, "frames: found int, expected a list of objects"),
    ],
)
def test_bad_json(tmp_path, content, message):
  (tmp_path / "a.json").write_text(content if isinstance(content, str) else json.dumps(content))
  with pytest.raises(InputError, match=message) as error:
    arkit.read_arkit(tmp_path / "a.json")
  assert str(error.value).startswith(f"{tmp_path / 'a.json'}") and "\n" not in str(error.value)


def test_names_that_cannot_be_written(tmp_path):
  with pytest.raises(InputError, match="motion: found b.txt, expected a name that ends in .npz, .csv or .json"):
    write_motion_file("b.txt", make_motion(2), basis="arkit")
  with pytest.raises(InputError, match="found b.csv for expressions of flame2020, expected a name that ends in .npz, which .* convert"):
    write_motion_file("b.csv", make_motion(2), basis="flame2020")
  with pytest.raises(InputError, match="fps: found -1"):
    arkit.read_arkit(write_csv(tmp_path / "a.csv", CODES), fps=-1)
