"""Triplets from a small mock of RealTalk and DualTalk: what is found, filmed and written, and what is not."""

import json
import shutil

import mock_realtalk as mock
import numpy as np
import pytest
import tiny_world

from rsatalker_jax.commands.triplets import make_triplets
from rsatalker_jax.data.captures import load_capture
from rsatalker_jax.data.demo import voices
from rsatalker_jax.data.dualtalk import load_dualtalk
from rsatalker_jax.data.pipeline import load_clips
from rsatalker_jax.data.relations import RelationLabel, write_relations
from rsatalker_jax.data.tracks import read_motion
from rsatalker_jax.data.triplets import building, cropping, load_films, load_triplets
from rsatalker_jax.data.triplets.sources import Sources, list_clips
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import load_head
from rsatalker_jax.media.video import write_video

SIZE = 64
CLIP = 100


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Two videos of two conversations each, in each the clips n and n + 1, a negative, and face boxes; never written to again."""
  root = tmp_path_factory.mktemp("world")
  dialogues, truths = voices.load_dialogues(), {}
  for v, form in enumerate(mock.FORMATS[1:3]):
    name = f"vid{v}"
    scenes = []
    for k in range(2):
      scene = mock.load_scene(dialogues[2 * v + k], left=1 + k)
      cut = lambda arrays, n: tuple(array[:n] for array in arrays)
      scenes.append(mock.Scene(scene.name, cut(scene.tracks, 170 * 640), cut(scene.motions, 170), scene.left))
    starts = mock.make_video(root / "videos" / "shard" / f"{name}.{form[0]}", scenes, form, seed=v)
    for k in range(2):
      truth = mock.cut_clip(root / "dualtalk" / ("train", "test")[k], f"{name}_sub_video_{k}", scenes[k], 60 + 3 * k, CLIP, video=name,
                            scene_frame=starts[k], case=("leaking", "drift+1%")[k])  # fmt: skip
      truths[truth.conversation] = truth
  other = mock.load_scene(dialogues[5])
  mock.cut_clip(root / "dualtalk" / "train", "vid1_sub_video_9_001", other, 50, CLIP, video="", scene_frame=0)
  lines = ["video,frame,person,left,top,right,bottom"]
  lines += [f"vid{v},,p{side},{','.join(map(str, mock.face_boxes(side)))}" for v in range(2) for side in range(2)]
  (root / "boxes.csv").write_text("\n".join(lines) + "\n")
  write_relations(root / "relations.csv", [RelationLabel("vid0_sub_video_0", np.array([1, 0])), RelationLabel("vid9_sub_video_7", np.array([1, 1]))])
  return root, truths


@pytest.fixture(scope="module")
def one_video(world, tmp_path_factory):
  """The conversations of the second video alone."""
  root = tmp_path_factory.mktemp("one")
  for path in (world[0] / "dualtalk").rglob("vid1*"):
    (root / path.parent.name).mkdir(exist_ok=True)
    shutil.copy(path, root / path.parent.name / path.name)
  return root


def _build(root, out, **options):
  sources = dict(conversations=str(root / "dualtalk"), videos=str(root / "videos"), relations=str(root / "relations.csv"))
  sources |= dict(boxes=str(root / "boxes.csv"), size=f"{SIZE}x{SIZE}", margin=2.2)
  return make_triplets(out=str(out), **(sources | options))


@pytest.fixture(scope="module")
def built(world, tmp_path_factory):
  out = tmp_path_factory.mktemp("built")
  return out, _build(world[0], out)


def test_what_is_found(world, built):
  _, truths = world
  out, report = built
  assert (report["matched"], report["refused"], report["skipped"], report["films"]) == (4, 1, 0, 8)
  rows = {row["conversation"]: row for row in report["conversations"]}
  for name, truth in truths.items():
    row = rows[name]
    assert abs(row["start"] * 25 - truth.frame) < 0.3 and row["left"] == truth.left and row["video"] == truth.video
    assert row["first_frame"] == truth.frame and row["frames"] == truth.frames
  negative = rows["vid1_sub_video_9_001"]
  assert negative["status"] == "refused" and "not found" in negative["reason"] and negative["coherence"] < 0.06
  assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
  text = (out / "report.txt").read_text()
  assert "4 conversations matched, 1 refused" in text and negative["reason"] in text and "| not found |" in text
  assert negative["reason"] in (out / "report.html").read_text()
  assert sum(n for *_, n in report["offset_ms"]) == 4 and sum(n for *_, n in report["speed_percent"]) == 4
  assert [n for low, high, n in report["speed_percent"] if low < 1 < high] == [2]


def test_what_is_written_is_what_the_stages_read(world, built, tmp_path):
  _, truths = world
  out, _ = built
  manifest = load_triplets(out / "triplets.jsonl")
  assert len(manifest) == 8 and {t.name for t in manifest} == {f"{name}_speaker{n}" for name in truths for n in (1, 2)}
  tiny_world.write_head(tmp_path / "head.npz")
  head = load_head(tmp_path / "head.npz")
  for split, count in {"train": 2, "val": 2, "test": 4}.items():
    source = load_dualtalk(out / "conversations", split, default_relation="unknown")
    assert len(source) == count and not source.skipped
    if split == "train":
      continue  # Comparing film and track compiles a program for each film.
    clips = load_clips(source, lambda wav, frames: np.zeros((frames, 1), np.float32))
    films = load_films(out / "triplets.jsonl", split, clips, lambda folder: load_capture(folder, split), head)
    for film in films.conversations:
      truth = truths[film.name.rpartition("_")[0]]
      assert len(film.frames) == len(film.clip.motion_b) == truth.frames and film.missing == 0
      flame = film.capture.read_flame(film.items)
      np.testing.assert_array_equal(flame["jaw"], film.clip.motion_b[:, 50:53])
      np.testing.assert_array_equal(flame["neck"], film.clip.motion_b[:, 53:])
  assert json.loads((manifest[0].capture / f"transforms_{manifest[0].split}.json").read_text())["basis"] == "arkit"
  labels = {t.conversation: t.relation.tolist() for t in manifest}
  assert labels["vid0_sub_video_0"] == [1, 0] and labels["vid1_sub_video_0"] == [-1, -1]
  assert (out / "conversations" / "relations.csv").read_text().splitlines()[1].startswith("vid0_sub_video_0,true,false")


def test_films_show_the_person_whose_motion_it_is(world, built):
  """The mouth of the film opens as the jaw does, and the head moves down as it nods, each in its own film."""
  out, _ = built
  for triplet in load_triplets(out / "triplets.jsonl"):
    capture = load_capture(triplet.capture, triplet.split)
    motion = read_motion(out / "conversations" / triplet.split / f"{triplet.name}.npz")
    rows = []
    for t in range(0, triplet.frames, 3):
      image = capture[capture.index(0, triplet.first_timestep + t)]["image"]
      dark = (image[..., 0] < 0.55) & (image[..., 0] - image[..., 1] > 0.12)  # The mouth.
      skin = image[..., 0] > 0.6
      y = np.arange(SIZE)[:, None] * np.ones(SIZE)
      rows.append((dark.sum(), y[skin].mean()))
    opening, height = np.array(rows).T
    shown = motion[: triplet.frames : 3]
    assert np.corrcoef(opening, shown[:, 50])[0, 1] > 0.6, triplet.name
    assert np.corrcoef(height, shown[:, 53])[0, 1] > 0.7, triplet.name


def test_a_second_call_does_nothing_and_what_changed_is_done_again(world, one_video, tmp_path):
  root, _ = world
  out = tmp_path / "out"
  first = _build(root, out, conversations=str(one_video), size="32x32")
  before = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
  assert len(before) == 4
  assert _build(root, out, conversations=str(one_video), size="32x32") == first
  assert {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")} == before
  # Of a film that is gone the clip is made again; nothing else is.
  gone = next(path for path in before if path.stem.startswith("vid1_sub_video_0"))
  gone.unlink()
  _build(root, out, conversations=str(one_video), size="32x32")
  changed = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
  assert changed == {path for path in before if path.stem.startswith("vid1_sub_video_0")}
  # A record that is not whole counts as none.
  record = out / "clips" / "vid1_sub_video_1.json"
  whole = json.loads(record.read_text())
  record.write_text(record.read_text()[:100])
  _build(root, out, conversations=str(one_video), size="32x32")
  assert json.loads(record.read_text()) == whole
  before = {path: path.stat().st_mtime_ns for path in before}
  _build(root, out, conversations=str(one_video), size="48x32")
  assert all(path.stat().st_mtime_ns != time for path, time in before.items())
  assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]


def test_what_is_stopped_leaves_nothing_half_written(world, one_video, tmp_path):
  root, _ = world
  films = []

  def stops_at_the_third(path, frames, **options):
    films.append(path)
    if len(films) == 3:
      def broken():
        yield next(frames)
        raise KeyboardInterrupt
      return write_video(path, broken(), **options)
    return write_video(path, frames, **options)

  sources = Sources(one_video, root / "videos", root / "boxes.csv")
  options = building.Options(size=(32, 32))
  out = tmp_path / "out"
  with pytest.raises(KeyboardInterrupt):
    building.build_triplets(sources, out, options, stops_at_the_third)
  assert not films[2].exists() and not (out / "triplets.jsonl").exists() and len(list((out / "clips").iterdir())) <= 2
  assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]
  records = building.build_triplets(sources, out, options, write_video)
  assert sum(record["status"] == "matched" for record in records) == 2 and len(load_triplets(out / "triplets.jsonl")) == 4


def test_search_of_all_videos_finds_the_same(world, built, tmp_path):
  """Under other names, by two processes."""
  root, truths = world
  shutil.copytree(root / "dualtalk", tmp_path / "dualtalk")
  for path in list(tmp_path.rglob("vid*")):
    path.rename(path.with_name("other" + path.name))
  out = tmp_path / "out"
  report = _build(root, out, conversations=str(tmp_path / "dualtalk"), search_all=True, jobs=2, only_tracked=True, relations=None)
  assert (report["matched"], report["films"]) == (4, 0)
  for row in report["conversations"]:
    if (truth := truths.get(row["conversation"].removeprefix("other"))) is not None:
      assert row["video"] == truth.video and abs(row["start"] * 25 - truth.frame) < 0.3
  assert len(list((out / "index").iterdir())) == 2 and not (out / "captures").exists()


def test_tracks_of_the_whole_video_become_the_films(world, tmp_path):
  """A camera of the whole video sees a point of space where the film's does, by the crop."""
  root, truths = world
  truth = truths["vid1_sub_video_0"]
  side, speaker = 0, truth.left
  folder = tmp_path / "tracks" / f"vid1_p{side}"
  folder.mkdir(parents=True)
  video = next((root / "videos").rglob("vid1.*"))
  shutil.copy(video, folder / "whole.mp4")
  r = np.random.default_rng(0)
  turn, _ = np.linalg.qr(r.normal(size=(3, 3)))
  pose = np.eye(4)
  pose[:3, :3], pose[:3, 3] = turn * np.sign(np.linalg.det(turn)), (0.1, 0.2, 2.0)
  entries, first = [], round(truth.frame)
  second = round(truths["vid1_sub_video_1"].frame)  # 1 % slower than the video.
  for number in [*range(first, first + 40), *range(first + 50, first + CLIP), *range(second, second + CLIP + 2)]:
    values = dict(rotation=r.normal(size=(1, 3)), neck_pose=np.zeros((1, 3)), jaw_pose=np.full((1, 3), number / 1000),
                  eyes_pose=np.zeros((1, 6)), expr=np.zeros((1, 50)), translation=np.ones((1, 3)))  # fmt: skip
    np.savez(folder / f"{number}.npz", **values)
    entries.append(dict(file_path="whole.mp4", frame_index=number, flame_param_path=f"{number}.npz", timestep_index=number,
                        camera_index=3, transform_matrix=pose.tolist(), w=mock.WIDTH, h=mock.HEIGHT, fl_x=500.0, fl_y=510.0, cx=170.0, cy=80.0,
                        cy_from="top"))  # fmt: skip
  top = {"background": [0.1, 0.2, 0.3], "basis": "flame2023"}
  (folder / "transforms_train.json").write_text(json.dumps(top | {"camera_model": "OPENCV", "frames": entries}))
  np.savez(folder / "canonical_flame_param.npz", shape=np.arange(2.0), static_offset=np.ones((1, 72, 3)))
  masks = tmp_path / "masks"
  white = np.zeros((mock.HEIGHT, mock.WIDTH, 3), np.uint8)
  white[60:] = 255
  mock.write_film(masks / "vid1.mp4", [white] * (second + CLIP + 20), None, mock.FORMATS[2])
  # The videos' own tracks, too: of the clip's frames what its people do, before and after that nothing.
  own = tmp_path / "own"
  own.mkdir()
  for person, n in enumerate((speaker, 3 - speaker)):
    with np.load(root / "dualtalk" / "train" / f"vid1_sub_video_0_speaker{n}.npz") as file:
      values = {key: np.pad(file[key], ((first, 300), (0, 0))) for key in ("exp", "pose")}
    np.savez(own / f"vid1_p{person}.npz", **values)
  out = tmp_path / "out"
  report = _build(root, out, tracks=str(tmp_path / "tracks"), masks=str(masks), own_tracks=str(own), only_tracked=True)
  assert report["matched"] == 4
  evidence = next(row["evidence"] for row in report["conversations"] if row["conversation"] == "vid1_sub_video_0")
  assert evidence["tracks"] * (1 if speaker == 1 else -1) > 5
  triplets = load_triplets(out / "triplets.jsonl")
  assert {t.name for t in triplets} >= {f"vid1_sub_video_0_speaker{speaker}"} and all(t.capture.name == "vid1_p0" for t in triplets)
  triplet = next(t for t in triplets if t.conversation == "vid1_sub_video_0")
  slower = next(t for t in triplets if t.conversation == "vid1_sub_video_1")
  capture = load_capture(slower.capture, slower.split)
  shown = np.arange(slower.frames)
  jaws = capture.read_flame([capture.index(0, slower.first_timestep + t) for t in shown])["jaw"][:, 0]
  assert np.abs(1000 * jaws - second - 1.01 * shown).max() < 0.6
  capture, whole = load_capture(triplet.capture, triplet.split), load_capture(folder, "train")
  assert len(capture) == 90 and capture.static_offset.shape == (72, 3) and capture.shape.tolist() == [0, 1]
  with pytest.raises(KeyError):
    capture.index(0, triplet.first_timestep + 45)
  crop = cropping.make_crop(mock.face_boxes(side), (mock.WIDTH, mock.HEIGHT), (SIZE, SIZE), 2.2)
  for t in (0, 39, 50, 99):
    ours, theirs = capture[capture.index(0, triplet.first_timestep + t)], whole[whole.index(3, first + t)]
    for key in ("rotation", "jaw"):
      np.testing.assert_array_equal(ours["flame"][key], theirs["flame"][key])
    point = np.array([0.05, -0.1, 0.3, 1])
    project = lambda item: (lambda p: p[:2] / p[2])(item["intrinsics"] @ (item["world_to_camera"] @ point)[:3])
    u, v = project(theirs)
    np.testing.assert_allclose(project(ours), [(u - crop.left) * crop.scale, (v - crop.top) * crop.scale], rtol=1e-4)
    # The film is the video's part; where the mask is 0, what the images blend in is known.
    x, y = SIZE // 2, SIZE - 6
    source = theirs["image"][round(crop.top + y / crop.scale), round(crop.left + x / crop.scale)]
    np.testing.assert_allclose(ours["image"][y, x], source, atol=0.1)
    edge = (60 - crop.top) * crop.scale
    assert ours["mask"][: int(edge) - 3].max() < 0.1 and ours["mask"][int(edge) + 4 :].min() > 0.9
  written = json.loads((triplet.capture / "transforms_train.json").read_text())
  assert {key: written[key] for key in written if key != "frames"} == top
  # Without masks nothing is left of those that there were.
  _build(root, out, tracks=str(tmp_path / "tracks"), own_tracks=str(own), only_tracked=True)
  assert load_capture(triplet.capture, triplet.split)[0]["mask"].min() == 1


def test_orthographic_tracks_become_cameras():
  """A point is seen where DECA's projection has it, to the perspective of a face."""
  r = np.random.default_rng(0)
  frames = 7
  middles = np.array([200.0, 100.0]) + r.normal(size=(frames, 2)).cumsum(axis=0)
  sides = 60 + r.normal(size=frames)
  boxes = np.concatenate([middles - sides[:, None] / 2, middles + sides[:, None] / 2], axis=1)
  boxes = np.median(boxes, axis=0)[None].repeat(frames, 0) + np.linspace(0, 8, frames)[:, None]  # What a median filter keeps.
  cam = np.stack([8 + r.uniform(size=frames), 0.02 * r.normal(size=frames), 0.02 * r.normal(size=frames)], axis=1).astype(np.float32)
  motion = r.normal(size=(frames, 56)).astype(np.float32)
  shape = r.normal(size=(frames, 100)).astype(np.float32)
  crop = cropping.make_crop(cropping.fix_box(boxes), (640, 360), (128, 96), 2.0)
  track = cropping.track_by_projection(motion, cam, shape, boxes, crop, "flame2020")
  assert track.shared == {"basis": "flame2020"}
  np.testing.assert_array_equal(track.flame["neck_pose"], motion[:, 53:])
  np.testing.assert_array_equal(track.flame["jaw_pose"], motion[:, 50:53])
  np.testing.assert_array_equal(track.flame["expr"], np.pad(motion[:, :50], ((0, 0), (0, 50))))
  np.testing.assert_allclose(track.shape, np.pad(shape.mean(0), (0, 200)), rtol=1e-6)
  for t in (1, 3, 5):
    entry = track.entries[t]
    half = 1.25 * 1.1 * (boxes[t, 2:] - boxes[t, :2]).mean() / 2
    middle = (boxes[t, :2] + boxes[t, 2:]) / 2
    for point in ([0, 0, 0], [0.08, 0.1, 0.0], [-0.05, -0.1, 0.05]):
      s, tx, ty = cam[t]
      deca = np.array([s * (point[0] + tx), -s * (point[1] + ty)])
      expected = (middle + half * deca - [crop.left, crop.top]) * crop.scale
      x, y, z = np.array(point) + track.flame["translation"][t]
      seen = np.array([entry["cx"] + entry["fl_x"] * x / -z, entry["cy"] - entry["fl_y"] * y / -z])
      np.testing.assert_allclose(seen, expected, atol=1e-3 if point[2] == 0 else 1.5)


def test_crops_cut_what_they_say():
  r = np.random.default_rng(0)
  picture = r.integers(0, 255, (50, 80, 3), np.uint8)
  crop = cropping.Crop(10.0, 4.0, 1.0, 32, 24)
  np.testing.assert_array_equal(crop.cut(picture), picture[4:28, 10:42])
  beyond = cropping.Crop(-8.0, 40.0, 1.0, 16, 16).cut(picture)
  np.testing.assert_array_equal(beyond[:10, 8:], picture[40:, :8])
  np.testing.assert_array_equal(beyond[:10, :8], picture[40:, :1].repeat(8, 1))
  flat = np.zeros((60, 60), np.uint8)
  flat[:, 30:] = 200
  half = cropping.Crop(20.0, 20.0, 0.5, 10, 10).cut(flat)  # 20 video pixels, the edge in the middle.
  assert half[5, 1] == 0 and half[5, 8] == 200 and abs(int(half[5, 4]) + int(half[5, 5]) - 200) <= 1
  # Moved inside where it fits, about the middle where it is larger than the video.
  crop = cropping.make_crop((0, 0, 20, 20), (100, 60), (40, 40), 2.0)
  assert (crop.left, crop.top, crop.scale) == (0, 0, 1)
  crop = cropping.make_crop((80, 40, 100, 60), (100, 60), (40, 40), 2.0)
  assert (crop.left, crop.top) == (60, 20)
  crop = cropping.make_crop((40, 20, 60, 40), (100, 60), (80, 80), 4.0)
  assert (crop.left, crop.top, crop.scale) == (10, -10, 1)
  assert (crop.right, crop.bottom) == (90, 70)


def test_boxes_between_frames(tmp_path):
  path = tmp_path / "boxes.csv"
  path.write_text("video,frame,person,left,top,right,bottom\na,10,p1,0,0,10,10\na,20,p1,10,0,30,20\nb,,p0,1,2,3,4\n")
  table = cropping.read_boxes(path)
  np.testing.assert_allclose(table.find("a", 1, np.array([5.0, 15.0, 25.0])), [[0, 0, 10, 10], [5, 0, 20, 15], [10, 0, 30, 20]])
  assert table.find("a", 0, np.array([5.0])) is None and table.find("c", 0, np.array([5.0])) is None
  assert table.find("a", 1, np.array([100.0, 110.0])) is None
  np.testing.assert_allclose(table.find("b", 0, np.array([500.0, 501.0])), [[1, 2, 3, 4]] * 2)
  assert cropping.fix_box(np.array([[0, 0, 10, 20.0]] * 9 + [[100, 100, 400, 400]])) == pytest.approx((0, 0, 10, 20), abs=16)
  for line, key in (("a,1,left,0,0,1,1", "person"), ("a,1,p0,0,0,0,1", "left"), ("a,1,p0,0,0,x,1", "right"), ("a,x,p0,0,0,1,1", "frame"),
                    ("a,1,p0,0,0,1e9,1", "right")):  # fmt: skip
    path.write_text(f"video,frame,person,left,top,right,bottom\n{line}\n")
    with pytest.raises(InputError, match=f"boxes.csv:2: {key}"):
      cropping.read_boxes(path)


def test_what_cannot_be_used_is_listed(world, tmp_path):
  root, _ = world
  shutil.copytree(root / "dualtalk", tmp_path / "dualtalk")
  shutil.copytree(root / "videos" / "shard", tmp_path / "videos" / "one")
  train, test = tmp_path / "dualtalk" / "train", tmp_path / "dualtalk" / "test"
  for n in (1, 2):
    for kind in ("wav", "npz"):
      shutil.copy(train / f"vid0_sub_video_0_speaker{n}.{kind}", train / f"vid7_sub_video_0_speaker{n}.{kind}")
      shutil.copy(train / f"vid0_sub_video_0_speaker{n}.{kind}", train / f"vid8_sub_video_0_speaker{n}.{kind}")
      shutil.copy(train / f"vid1_sub_video_0_speaker{n}.{kind}", train / f"vid1_sub_video_1_speaker{n}.{kind}")
      shutil.copy(train / f"vid1_sub_video_0_speaker{n}.{kind}", train / f"vid5_sub_video_1_speaker{n}.{kind}")
      shutil.copy(train / f"vid1_sub_video_0_speaker{n}.{kind}", train / f"vid1_sub_video_3_speaker{n}.{kind}")
  (test / "vid0_sub_video_1_speaker2.npz").unlink()
  (train / "vid1_sub_video_3_speaker1.wav").write_bytes(b"RIFF....")
  shutil.copy(tmp_path / "videos" / "one" / "vid0.avi", tmp_path / "videos" / "vid7.avi")
  shutil.copy(tmp_path / "videos" / "one" / "vid0.avi", tmp_path / "videos" / "one" / "vid7.avi")
  mock.write_film(tmp_path / "videos" / "vid5.mp4", [np.zeros((32, 32, 3), np.uint8)] * 30, None, mock.FORMATS[2])
  report = _build(root, tmp_path / "out", conversations=str(tmp_path / "dualtalk"), videos=str(tmp_path / "videos"), only_tracked=True)
  reasons = {row["conversation"]: (row["status"], row["reason"]) for row in report["conversations"]}
  for name, part in {
      "vid0_sub_video_1": "files are missing: vid0_sub_video_1_speaker2.npz",
      "vid1_sub_video_1": "in several splits: test, train", "vid7_sub_video_0": "two videos",
      "vid8_sub_video_0": "no video of its name: vid8", "vid5_sub_video_1": "no sound stream", "vid1_sub_video_3": "vid1_sub_video_3_speaker1.wav",
  }.items():  # fmt: skip
    assert reasons[name][0] == "skipped" and part in reasons[name][1], reasons[name]
  kinds = {"files are missing": 1, "in several splits": 1, "two videos of this name": 1, "no video of its name": 1, "not found": 1,
           "a file is not what it should be: a video with sound": 1, "a file is not what it should be: a RIFF/WAVE file": 1}  # fmt: skip
  assert report["reasons"] == kinds
  assert reasons["vid0_sub_video_0"] == ("matched", "") == reasons["vid1_sub_video_0"] and report["skipped"] == 6


def test_validation_is_held_out_by_video(tmp_path):
  for v in range(12):
    for n in range(2):
      for speaker in (1, 2):
        for kind in ("wav", "npz"):
          path = tmp_path / "train" / f"v{v}_sub_video_{n}_speaker{speaker}.{kind}"
          path.parent.mkdir(exist_ok=True)
          path.write_bytes(b"")
  clips, unusable = list_clips(tmp_path)
  assert not unusable and len(clips) == 24
  held_out = [clip.video for clip in clips if clip.split == "val"]
  assert len(held_out) == 2 and len(set(held_out)) == 1
  (tmp_path / "val").mkdir()
  assert {clip.split for clip in list_clips(tmp_path)[0]} == {"train"}


@pytest.mark.parametrize("flags, part", [
    (dict(size="64x63"), "--size"), (dict(size="64"), "--size"), (dict(videos="nowhere"), "--videos"),
    (dict(out="same"), "--out"), (dict(boxes="nowhere.csv"), "nowhere.csv"),
])  # fmt: skip
def test_wrong_flags_are_one_line(world, tmp_path, flags, part):
  root, _ = world
  out = flags.pop("out", None)
  with pytest.raises(InputError, match=part):
    _build(root, root / "videos" if out else tmp_path / "out", **flags)
  assert not (tmp_path / "out" / "triplets.jsonl").exists()
