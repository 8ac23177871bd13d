"""What films the people: plans, their extension, videos put behind one another, and hair that must not grow through a face."""

import argparse
import json
import pathlib
import sys

import av
import numpy as np
from PIL import Image
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

_ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT / "tools"))
import capture_hair  # noqa: E402
from capture_looks import LOOKS  # noqa: E402
import flame_numpy as flame  # noqa: E402
import make_capture  # noqa: E402
from make_head import scalp_height  # noqa: E402

_HEAD = _ROOT / "assets" / "head" / "demo_head.npz"


def write_motion(folder, name, frames, seed=0):
  """Both speakers' motion of a conversation; returns the path prefix."""
  rng = np.random.default_rng(seed)
  for speaker in (1, 2):
    np.savez(folder / f"{name}_speaker{speaker}.npz", exp=rng.random((frames, 50)), pose=rng.random((frames, 6)))
  return str(folder / name)


def plan(work, films, **options):
  parsed = [make_capture.Film.parse(film) for film in films]
  make_capture.plan(argparse.Namespace(**(dict(work=str(work), film=parsed, head=_HEAD, identity=None, extend=None) | options)))
  with np.load(work / "plan.npz", allow_pickle=False) as file:
    return {key: file[key] for key in file.files}


def test_a_film_is_read():
  film = make_capture.Film.parse("a/demo-d1:1:blood,equal:test:330")
  assert film == make_capture.Film("a/demo-d1", 1, "blood,equal", "test", 330) and film.name == "demo-d1"
  assert make_capture.Film.parse("d:2:non_blood,equal:train").frames == 0


@pytest.mark.parametrize("text", ["d", "d:2:blood,equal", "d:3:blood,equal:train", "d:2:blood,equal:val", "d:2:blood,equal:train:x",
                                  "d:2:blood,equal:train:-1", "d:2:blood,equal:train:1:1", "d:x:blood,equal:train"])
def test_a_film_that_is_none_ends_in_one_line(text):
  with pytest.raises(argparse.ArgumentTypeError, match="SPEAKER"):
    make_capture.Film.parse(text)


def test_plan_has_the_filmed_speakers_motion_one_after_the_other(tmp_path):
  a, b, c = (write_motion(tmp_path, name, frames, seed) for seed, (name, frames) in enumerate((("a", 150), ("b", 200), ("c", 90))))
  table = plan(tmp_path / "w", [f"{a}:1:blood,equal:test:60", f"{b}:2:non_blood,equal:train", f"{c}:1:blood,unequal:train:50"],
               identity="amara")
  assert table["first_timestep"].tolist() == [0, 60, 260] and table["num_frames"].tolist() == [60, 200, 50]
  assert table["conversation"].tolist() == ["a", "b", "c"] and table["speaker"].tolist() == [1, 2, 1]
  assert table["conversation_split"].tolist() == ["test", "train", "train"]
  assert table["relation"].tolist() == ["blood,equal", "non_blood,equal", "blood,unequal"]
  for prefix, speaker, first, count in ((a, 1, 0, 60), (b, 2, 60, 200), (c, 1, 260, 50)):
    with np.load(f"{prefix}_speaker{speaker}.npz") as motion:
      np.testing.assert_array_equal(table["expr"][first:first + count], motion["exp"][:count].astype(np.float32))
      np.testing.assert_array_equal(table["neck_pose"][first:first + count], motion["pose"][:count, :3].astype(np.float32))
      np.testing.assert_array_equal(table["jaw_pose"][first:first + count], motion["pose"][:count, 3:].astype(np.float32))
  np.testing.assert_array_equal(table["timesteps_0"], np.arange(310))
  for camera in (1, 2, 3):  # Of the first train conversation alone.
    assert table[f"timesteps_{camera}"].tolist() == list(range(table["timesteps_1"][0], table["timesteps_1"][0] + 130))
    assert 60 <= table["timesteps_1"][0] and table["timesteps_1"][-1] < 260
  with np.load(_HEAD) as head:
    np.testing.assert_array_equal(table["shape"], head["identities"][[str(n) for n in head["identity_names"]].index("amara")])
  assert table["identity"] == "amara"


def test_side_cameras_film_the_liveliest_stretch(tmp_path):
  exp = np.zeros((400, 50))
  exp[251:380:2] = 0.5
  np.savez(tmp_path / "a_speaker2.npz", exp=exp, pose=np.zeros((400, 6)))
  table = plan(tmp_path / "w", [f"{tmp_path}/a:2:blood,equal:train"])
  assert 249 <= table["timesteps_2"][0] <= 251 and len(table["timesteps_2"]) == 130


def test_every_frame_is_filmed_once_and_a_first_share_spans_all():
  frames = [list(range(5, 105)), list(range(10, 40)), list(range(10, 40))]
  order = make_capture.frame_order(frames)
  assert sorted(order) == sorted((camera, t) for camera, steps in enumerate(frames) for t in steps)
  first = order[: len(order) // 4]
  assert {camera for camera, _ in first} == {0, 1, 2}
  front = sorted(t for camera, t in first if camera == 0)
  assert max(np.diff([5, *front, 104])) <= 4


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
  """A capture of 5 frames in front and from the sides, made by `plan` and `encode` of frames of the demo's."""
  folder = tmp_path_factory.mktemp("capture")
  prefix = write_motion(folder, "one", 5)
  plan(folder / "w", [f"{prefix}:2:blood,equal:train"], identity="jonas")
  return folder, film(folder / "w", folder / "capture", range(5))


def film(work, out, timesteps, cameras=range(len(make_capture.CAMERAS)), skip=(), crf=make_capture.CRF, mask_crf=make_capture.MASK_CRF):
  """Writes the frames that `render` would, real ones, and encodes them; returns them per camera and timestep."""
  frames = {}
  for camera in cameras:
    colour = make_capture._read_video(av, _ROOT / "assets" / "capture" / f"camera_{camera}.mp4", "rgb24")
    mask = make_capture._read_video(av, _ROOT / "assets" / "capture" / f"mask_{camera}.mp4", "gray")
    for t, rgb, alpha in zip(timesteps, colour, mask):
      path = make_capture.frame_path(work, camera, t)
      path.parent.mkdir(parents=True, exist_ok=True)
      if t not in skip:
        frames[camera, t] = np.concatenate([rgb, alpha[..., None]], -1)
        Image.fromarray(frames[camera, t], "RGBA").save(path, compress_level=1)
  make_capture.encode(argparse.Namespace(work=str(work), out=str(out), crf=crf, mask_crf=mask_crf))
  return frames


def read(folder, camera):
  return [list(make_capture._read_video(av, folder / f"{kind}_{camera}.mp4", pixels))
          for kind, pixels in (("camera", "rgb24"), ("mask", "gray"))]


def psnr(a, b):
  return 10 * np.log10(255**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))


def test_encoding_loses_less_than_the_renders_noise(capture):
  """The noise of a frame is at about 39 dB (assets/capture/README.md)."""
  folder, frames = capture
  for camera in range(len(make_capture.CAMERAS)):
    colour, mask = read(folder / "capture", camera)
    assert len(colour) == len(mask) == 5
    for t in range(5):
      assert psnr(colour[t], frames[camera, t][..., :3]) > 39.5
      assert psnr(mask[t], frames[camera, t][..., 3]) > 39.5
      # No frame in another's place, and no channel.
      assert psnr(colour[t], frames[camera, t][..., 2::-1]) < 30
  # Half a level of mean colour: nothing is shifted by a range or a matrix.
  assert abs(np.mean(colour) - np.mean([frames[camera, t][..., :3] for t in range(5)])) < 0.5


def test_an_extended_capture_keeps_its_frames_bit_for_bit(capture, tmp_path):
  folder, _ = capture
  cameras = range(len(make_capture.CAMERAS))
  before = [read(folder / "capture", camera) for camera in cameras]
  prefix = write_motion(tmp_path, "two", 6, seed=1)
  table = plan(tmp_path / "w", [f"{prefix}:1:non_blood,equal:test:4"], extend=str(folder / "capture"))
  old = dict(np.load(folder / "capture" / "capture.npz"))
  assert make_capture.new_timesteps(tmp_path / "w", table) == [[5, 6, 7, 8], [], [], [], []]
  frames = film(tmp_path / "w", tmp_path / "capture", range(5, 9), cameras=[0], skip=[7], crf=12, mask_crf=14)  # One was not rendered.
  new = dict(np.load(tmp_path / "capture" / "capture.npz"))
  assert new["conversation"].tolist() == ["one", "two"] and new["speaker"].tolist() == [2, 1]
  assert new["first_timestep"].tolist() == [0, 5] and new["num_frames"].tolist() == [5, 4]
  assert new["timesteps_0"].tolist() == [0, 1, 2, 3, 4, 5, 6, 8] and new["timesteps_1"].tolist() == old["timesteps_1"].tolist()
  assert new["identity"] == "jonas" and len(new["expr"]) == 9
  np.testing.assert_array_equal(new["expr"][:5], old["expr"])
  with np.load(f"{prefix}_speaker1.npz") as motion:
    np.testing.assert_array_equal(new["expr"][5:], motion["exp"][:4].astype(np.float32))
  for camera in cameras:
    after = read(tmp_path / "capture", camera)
    for kind in (0, 1):
      np.testing.assert_array_equal(after[kind][:5], before[camera][kind])
      assert len(after[kind]) == (8 if camera == 0 else 5)
  colour, mask = read(tmp_path / "capture", 0)
  for at, t in ((5, 5), (6, 6), (7, 8)):
    assert psnr(colour[at], frames[0, t][..., :3]) > 39.5 and psnr(mask[at], frames[0, t][..., 3]) > 39.5
  assert (tmp_path / "capture" / "two_speaker2.npz").exists() and not (tmp_path / "capture.partial").exists()
  with av.open(str(tmp_path / "capture" / "camera_0.mp4")) as video:
    assert video.duration == pytest.approx(8 / 25 * av.time_base, rel=0.01)
  # The plan was made for the capture as it was.
  sources = json.loads((tmp_path / "w" / "sources.json").read_text())
  (tmp_path / "w" / "sources.json").write_text(json.dumps(sources | {"extends": str(tmp_path / "capture")}))
  with pytest.raises(SystemExit, match="one, two, expected"):
    make_capture.encode(argparse.Namespace(work=str(tmp_path / "w"), out=str(tmp_path / "capture"), crf=18, mask_crf=22))


def test_a_capture_gets_the_cameras_that_it_lacks(tmp_path, monkeypatch):
  prefix = write_motion(tmp_path, "one", 5)
  with monkeypatch.context() as earlier:
    earlier.setattr(make_capture, "CAMERAS", make_capture.CAMERAS[:4])
    old = plan(tmp_path / "w", [f"{prefix}:2:blood,equal:train"], identity="jonas")
    film(tmp_path / "w", tmp_path / "capture", range(5))
    before = [read(tmp_path / "capture", camera) for camera in range(4)]
  table = plan(tmp_path / "more", [], extend=str(tmp_path / "capture"))
  assert make_capture.new_timesteps(tmp_path / "more", table) == [[], [], [], [], [0, 2, 4]]
  frames = film(tmp_path / "more", tmp_path / "capture", (0, 2, 4), cameras=[4])
  new = dict(np.load(tmp_path / "capture" / "capture.npz"))
  np.testing.assert_array_equal(new["camera_to_world"][:4], old["camera_to_world"])
  assert new["camera_split"].tolist() == ["train", "train", "train", "val", "train"] and len(new["camera_angle_x"]) == 5
  # It looks down at the head from the other side than the camera that is held out.
  back = new["camera_to_world"][:, :3, 2]
  assert back[4][1] > 0.3 and back[4][0] > 0.3 > 0 > back[3][0]
  np.testing.assert_array_equal(new["expr"], old["expr"])
  for camera in range(4):
    for kept, now in zip(before[camera], read(tmp_path / "capture", camera), strict=True):
      np.testing.assert_array_equal(now, kept)
  colour, mask = read(tmp_path / "capture", 4)
  for at, t in enumerate((0, 2, 4)):
    assert psnr(colour[at], frames[4, t][..., :3]) > 39 and psnr(mask[at], frames[4, t][..., 3]) > 39
  with monkeypatch.context() as other:
    other.setattr(make_capture, "CAMERAS", ((0.0, 9.0, "train"), *make_capture.CAMERAS[1:]))
    with pytest.raises(SystemExit, match="--extend: a capture by other cameras"):
      plan(tmp_path / "w2", [], extend=str(tmp_path / "capture"))
  with monkeypatch.context() as fewer:
    fewer.setattr(make_capture, "CAMERAS", make_capture.CAMERAS[:2])
    with pytest.raises(SystemExit, match="--extend: a capture by other cameras"):
      plan(tmp_path / "w2", [], extend=str(tmp_path / "capture"))
  mask = tmp_path / "capture" / "mask_0.mp4"
  with pytest.raises(SystemExit, match="mask_0.mp4: av01, expected avc1"):
    make_capture.join_videos(av, _ROOT / "assets" / "capture" / "mask_0.mp4", mask, tmp_path / "joined.mp4")
  # A video that the capture should have is not passed over.
  (tmp_path / "capture" / "mask_1.mp4").unlink()
  (work := tmp_path / "again").mkdir()
  plan(work, [], extend=str(tmp_path / "capture"))
  with pytest.raises(FileNotFoundError, match="mask_1.mp4"):
    make_capture.encode(argparse.Namespace(work=str(work), out=str(tmp_path / "out"), crf=18, mask_crf=22))
  with pytest.raises(SystemExit, match="--film: none"):
    plan(tmp_path / "w3", [])


def test_who_cannot_be_filmed_ends_in_one_line(capture, tmp_path):
  folder, _ = capture
  prefix = write_motion(tmp_path, "one", 6)
  with pytest.raises(SystemExit, match="--film: one twice"):
    plan(tmp_path / "w", [f"{prefix}:1:blood,equal:test"], extend=str(folder / "capture"))
  other = write_motion(tmp_path, "two", 6)
  with pytest.raises(SystemExit, match="--identity: amara, expected jonas"):
    plan(tmp_path / "w", [f"{other}:1:blood,equal:test"], extend=str(folder / "capture"), identity="amara")
  with pytest.raises(SystemExit, match="--identity: nobody, expected maya"):
    plan(tmp_path / "w", [f"{other}:1:blood,equal:test"], identity="nobody")
  with pytest.raises(SystemExit, match="--identity: kofi, expected amara | jonas"):
    plan(tmp_path / "w", [f"{other}:1:blood,equal:test"], identity="kofi")
  assert not (tmp_path / "w").exists()


@pytest.fixture(scope="module")
def hair():
  """Head, shape, rest mesh and the long hair of amara, thinned."""
  head = flame.load(_HEAD)
  shape = head["identities"][[str(n) for n in head["identity_names"]].index("amara")]
  rest = flame.vertices(head, shape)
  names = [str(n) for n in head["region_names"]]
  region = lambda *r: head["f"][np.isin(head["face_region"], [names.index(x) for x in r])]
  tree = cKDTree(rest)
  height = lambda p: capture_hair.long_hairline(scalp_height(p + (head["v_template"] - rest)[tree.query(p)[1]]), p)
  strands = capture_hair.long_hair(rest, region("skin", "scalp", "neck"), np.unique(region("scalp")), height, LOOKS["amara"], 3, count=1500)
  return head, shape, rest, strands, region


def test_long_hair_lies_as_it_grew_and_turns_with_the_whole_person(hair):
  _, _, rest, strands, _ = hair
  np.testing.assert_allclose(strands.place(rest), strands.curves, atol=1e-9)
  turn = Rotation.from_rotvec([0.3, -0.7, 0.2]).as_matrix().T
  np.testing.assert_allclose(strands.place(rest @ turn + [1, 2, 3]), strands.curves @ turn + [1, 2, 3], atol=1e-9)
  assert strands.curves[..., 1].min() < -0.11  # Down to the shoulders.


def test_long_hair_grows_above_the_hairline_and_hangs_outside_the_head(hair):
  head, _, rest, strands, _ = hair
  roots = strands.curves[:, 0]
  assert not ((np.degrees(np.arctan2(np.abs(roots[:, 0]), roots[:, 2] + 0.012)) < 88) & (roots[:, 1] < 0.055)).any()
  np.testing.assert_allclose((rest[strands.triangle] * strands.corner[..., None]).sum(1), roots, atol=1e-9)
  hanging = strands.curves[:, 8:].reshape(-1, 3)
  near = cKDTree(rest).query(hanging)[1]
  height = ((hanging - rest[near]) * flame.normals(rest, head["f"])[near]).sum(1)
  assert (height > -0.002).mean() > 0.99


POSES = [dict(), dict(neck=(0.25, 0, 0)), dict(neck=(-0.25, 0, 0)), dict(neck=(0, 0.35, 0)), dict(neck=(0.1, -0.35, 0.1)),
         dict(neck=(0, 0, 0.2)), dict(jaw=(0.3, 0, 0)), dict(neck=(0.2, 0.3, -0.15), jaw=(0.2, 0, 0))]


@pytest.mark.parametrize("pose", POSES)
def test_long_hair_stays_out_of_the_face(hair, pose):
  head, shape, _, strands, region = hair
  points = flame.vertices(head, shape, **pose)
  face = np.unique(region("skin", "lips"))
  outward = flame.normals(points, np.concatenate([region("skin"), region("lips")]))
  curves = strands.place(points)[:, 2:].reshape(-1, 3)  # Roots lie in the skin.
  distance, near = cKDTree(points[face]).query(curves)
  behind = ((curves - points[face[near]]) * outward[face[near]]).sum(1) < -0.001
  # In the face's own frame: what lies before the ears.
  rest = flame.vertices(head, shape)
  front = (rest[face[near], 2] > 0.035) & (distance < 0.015)
  assert (behind & front).sum() == 0
  # And none hangs before it: seen from ahead, no strand below the brows covers the middle of the face.
  skull = capture_hair._rigid_motion(points[strands.skull], rest[strands.skull])(curves)
  assert not ((np.abs(skull[:, 0]) < 0.05) & (skull[:, 1] < 0.05) & (skull[:, 2] > 0.03)).any()


def test_expressions_do_not_swing_long_hair(hair):
  head, shape, rest, strands, _ = hair
  points = flame.vertices(head, shape, flame.expression_vector(head, browInnerUp=1.0, browOuterUpBoth=1.0, mouthSmileBoth=1.0))
  moved = np.linalg.norm(strands.place(points) - strands.curves, axis=-1)
  assert moved[:, 5:].max() < 0.0003
  # Skin that moves below a root, on the forehead, takes the root along and the first points less and less.
  ahead = ~np.isin(strands.triangle, strands.skull).any(1)
  points = rest.copy()
  points[np.setdiff1d(np.arange(len(rest)), np.concatenate([strands.skull, strands.bust]))] += [0.0, 0.004, 0.003]
  moved = (strands.place(points) - strands.curves)[ahead]
  assert ahead.sum() > 50
  np.testing.assert_allclose(moved[:, 0], np.tile([0.0, 0.004, 0.003], (ahead.sum(), 1)), atol=1e-9)
  np.testing.assert_allclose(moved[:, 5:], 0.0, atol=1e-9)
  assert (np.diff(np.linalg.norm(moved[:, :6], axis=-1), axis=1) < 0).all()


def test_ends_of_long_hair_rest_while_its_top_goes_with_the_head(hair):
  head, shape, _, strands, _ = hair
  points = flame.vertices(head, shape, neck=(0, 0.3, 0))
  rigid = capture_hair._rigid_motion(strands.rest[strands.skull], points[strands.skull])(strands.curves)
  placed = strands.place(points)
  top, low = strands.curves[..., 1] > 0.0, strands.curves[..., 1] < -0.115
  np.testing.assert_allclose(placed[top], rigid[top], atol=0.001)
  share = np.linalg.norm((placed - strands.curves)[low], axis=-1) / np.linalg.norm((rigid - strands.curves)[low], axis=-1)
  assert 0.1 < share.mean() < 0.45
