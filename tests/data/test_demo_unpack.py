"""Unpacking: layouts that plain numpy and the real loaders read, whole or not at all, done once."""

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import av
import numpy as np
import pytest
import scipy.io.wavfile
from PIL import Image

from rsatalker_jax.data.captures import load_capture
from rsatalker_jax.data.demo import dyads, voices
from rsatalker_jax.data.demo.unpack import unpack_demo
from rsatalker_jax.data.dualtalk import load_dualtalk, write_motion
from rsatalker_jax.data.triplets import load_triplets
from rsatalker_jax.errors import InputError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
VERTICES, SIZE = 5, 32
PARTS = ["capture", "captures.csv", "conversations", "triplets.jsonl", "unpacked.json"]


def _write_video(path, frames, pixels):
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=25)
    stream.width = stream.height = SIZE
    stream.pix_fmt, stream.options = ("yuv444p" if pixels == "rgb24" else "yuv420p"), {"crf": "1"}
    for frame in frames:
      for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format=pixels)):
        container.mux(packet)
    for packet in stream.encode():
      container.mux(packet)


def _write_capture(folder, table):
  """Two cameras film 6 frames of a train conversation, the first one 4 of a test conversation."""
  folder.mkdir()
  train, test = (next(d for d in table if d.split == split) for split in ("train", "test"))
  timesteps = [np.arange(10, dtype=np.int32), np.arange(3, dtype=np.int32)]
  for camera, shown in enumerate(timesteps):
    _write_video(folder / f"camera_{camera}.mp4", [np.full((SIZE, SIZE, 3), 20 * t + camera, np.uint8) for t in shown], "rgb24")
    _write_video(folder / f"mask_{camera}.mp4", [np.full((SIZE, SIZE), 200, np.uint8) for _ in shown], "gray")
  generator = np.random.default_rng(0)
  names = [f"demo-{d.id}_sub_video_9" for d in (train, test)]
  np.savez(
      folder / "capture.npz", image_size=np.array([SIZE, SIZE], np.int32), camera_angle_x=np.array([0.4, 0.5]),
      camera_to_world=np.stack([np.eye(4)] * 2), camera_split=np.array(["train", "val"]), conversation=np.array(names),
      conversation_split=np.array(["train", "test"]), relation=np.array([train.relation, test.relation]),
      speaker=np.array([2, 2], np.int32), first_timestep=np.array([0, 6], np.int32), num_frames=np.array([6, 4], np.int32),
      timesteps_0=timesteps[0], timesteps_1=timesteps[1], expr=generator.random((10, 50), np.float32),
      neck_pose=generator.random((10, 3), np.float32), jaw_pose=generator.random((10, 3), np.float32),
      eyes_pose=np.zeros(6, np.float32), rotation=np.zeros(3, np.float32), translation=np.zeros(3, np.float32),
      shape=np.arange(24, dtype=np.float32), identity=np.array("jonas"))
  for name, d in zip(names, (train, test), strict=True):
    for speaker, motion in enumerate(dyads.simulate_dyad(d, 9).motion, 1):
      write_motion(folder / f"{name}_speaker{speaker}.npz", motion, basis="arkit")


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
  """The assets in small: one real dialogue per split, a tiny capture of two of them, a head of five vertices."""
  folder = tmp_path_factory.mktemp("assets")
  (folder / "voices").mkdir()
  table = json.loads((voices.VOICES_FOLDER / "dialogues.json").read_text(encoding="utf-8"))
  kept = [next(d for d in table["dialogues"] if d["split"] == split) for split in ("train", "val", "test")]
  (folder / "voices" / "dialogues.json").write_text(json.dumps({"dialogues": kept}), encoding="utf-8")
  for d in kept:
    for speaker in (1, 2):
      shutil.copy(voices.VOICES_FOLDER / f"{d['id']}_speaker{speaker}.opus", folder / "voices")
  (folder / "head").mkdir()
  np.savez(folder / "head" / "demo_head.npz", v_template=np.zeros((VERTICES, 3), np.float32))
  _write_capture(folder / "capture", voices.load_dialogues(folder / "voices"))
  return folder


@pytest.fixture(scope="module")
def unpacked(assets, tmp_path_factory):
  root = tmp_path_factory.mktemp("unpacked") / "demo"
  lines = []
  unpack_demo(root, performances=2, assets=assets, say=lines.append)
  assert "3 dialogues" in lines[-1]
  return root


def _snapshot(root):
  return {path.relative_to(root): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_conversations_are_plain_numpy_in_dualtalks_layout(unpacked, assets):
  folder = unpacked / "conversations"
  ids = {d.split: d.id for d in voices.load_dialogues(assets / "voices")}
  for split, performances in (("train", (0, 1, 9)), ("val", (0, 1)), ("test", (0, 1, 9))):
    expected = {f"demo-{ids[split]}_sub_video_{p}_speaker{s}.{kind}"
                for p in performances for s in (1, 2) for kind in ("wav", "npz")}
    assert {path.name for path in (folder / split).iterdir()} == expected
    for name in expected:
      if name.endswith("npz"):
        with np.load(folder / split / name, allow_pickle=False) as file:
          shapes = {key: file[key].shape[1:] for key in file}
          assert str(file["basis"]) == "arkit" and shapes.pop("basis") == ()
          assert all(file[key].dtype == np.float32 and np.isfinite(file[key]).all() for key in shapes)
          frames = len(file["exp"])
        assert shapes == dict(shape=(100,), tex=(50,), exp=(50,), pose=(6,), cam=(3,), light=(9, 3))
        rate, wav = scipy.io.wavfile.read(folder / split / name.replace(".npz", ".wav"))
        assert rate == 16000 and wav.dtype == np.float32 and wav.ndim == 1
        assert len(wav) == frames * 640 and 0.05 < np.abs(wav).max() <= 1.0
  with open(folder / "relations.csv", newline="", encoding="utf-8") as file:
    labels = {row["conversation"]: (row["blood"], row["equal"]) for row in csv.DictReader(file)}
  words = {"blood": "true", "non_blood": "false", "equal": "true", "unequal": "false"}
  assert len(labels) == 8
  for dialogue in voices.load_dialogues(assets / "voices"):
    assert labels[f"demo-{dialogue.id}_sub_video_0"] == tuple(words[word] for word in dialogue.relation.split(","))


def test_pose_holds_head_then_jaw(unpacked):
  path = next((unpacked / "conversations" / "train").glob("*_0_speaker1.npz"))
  with np.load(path) as file:
    assert file["pose"][:, 3].min() >= 0.0 and not file["pose"][:, 4:].any()  # The jaw opens about x alone.
    assert file["pose"][:, 0].min() < 0.0 < file["pose"][:, 1].std()


def test_performances_differ_and_captured_motion_is_the_assets(unpacked, assets):
  folder = unpacked / "conversations" / "train"
  exp = [np.load(path)["exp"] for path in sorted(folder.glob("*_speaker2.npz"))]
  assert np.abs(exp[0] - exp[1]).mean() > 0.005
  original = next((assets / "capture").glob("demo-*_speaker2.npz"))
  np.testing.assert_array_equal(exp[2], np.load(original)["exp"])


def test_real_loaders_read_everything(unpacked):
  for split, count in (("train", 6), ("val", 4), ("test", 6)):
    source = load_dualtalk(unpacked / "conversations", split)
    assert len(source) == count and not source.skipped and not source.trimmed
    assert source[0].motion_b.shape[1] == 56
  capture = load_capture(unpacked / "capture", "train", num_vertices=VERTICES)
  assert len(capture) == 6 and len(load_capture(unpacked / "capture", "val")) == 3
  assert len(load_capture(unpacked / "capture", "test")) == 4
  item = capture[4]
  np.testing.assert_allclose(item["image"], 80 / 255, atol=3 / 255)
  np.testing.assert_allclose(item["mask"], 200 / 255, atol=3 / 255)
  with np.load(unpacked / "capture" / "flame_param" / "00004.npz") as file:
    assert file["expr"].shape == (1, 100) and file["shape"].shape == (300,)
    assert file["static_offset"].shape == (1, VERTICES, 3)
  triplets = load_triplets(unpacked / "triplets.jsonl")
  assert [(t.split, t.camera, t.first_timestep, t.frames) for t in triplets] == [("train", 0, 0, 6), ("test", 0, 6, 4)]
  assert len({capture.index(triplets[0].camera, triplets[0].first_timestep + frame) for frame in range(6)}) == 6


def test_a_second_person_on_film_is_unpacked_beside_the_first(assets, tmp_path):
  """Amara is speaker 1 of the same conversations, whose motion lies with either's film, here half with hers."""
  shutil.copytree(assets, tmp_path / "assets")
  first, second = tmp_path / "assets" / "capture", tmp_path / "assets" / "capture_amara"
  shutil.copytree(assets / "capture", second)
  names = [path.name.removesuffix("_speaker1.npz") for path in sorted(first.glob("*_speaker1.npz"))]
  for folder, name in zip((first, second), names, strict=True):
    for speaker in (1, 2):
      (folder / f"{name}_speaker{speaker}.npz").unlink()
  with np.load(second / "capture.npz") as file:
    changed = {key: file[key] for key in file} | {"speaker": np.array([1, 1], np.int32), "identity": np.array("amara")}
  np.savez(second / "capture.npz", **changed)
  root = unpack_demo(tmp_path / "demo", performances=1, assets=tmp_path / "assets", say=None)
  assert sorted(os.listdir(root)) == ["capture", "capture_amara", *PARTS[1:]]
  assert (root / "captures.csv").read_text() == "capture,person\ncapture,jonas\ncapture_amara,amara\n"
  with open(root / "conversations" / "people.csv", newline="", encoding="utf-8") as file:
    people = {row["conversation"]: (row["speaker1"], row["speaker2"]) for row in csv.DictReader(file)}
  triplets = load_triplets(root / "triplets.jsonl")
  assert people == {triplet.conversation: ("amara", "jonas") for triplet in triplets} and len(people) == 2
  assert [(t.capture.name, t.speaker, t.split) for t in triplets] == [
      ("capture", 2, "train"), ("capture", 2, "test"), ("capture_amara", 1, "train"), ("capture_amara", 1, "test"),
  ]
  assert len(load_capture(root / "capture_amara", "train", num_vertices=VERTICES)) == 6
  for split, folder, name in zip(("train", "test"), (second, first), names):
    with np.load(root / "conversations" / split / f"{name}_speaker1.npz") as found, np.load(folder / f"{name}_speaker1.npz") as stored:
      np.testing.assert_array_equal(found["exp"], stored["exp"])
  # Unpacked again without her: nothing of her is left, and what only she had is missed.
  shutil.rmtree(second)
  with pytest.raises(InputError, match=f"capture: {names[0]}: found a film, but not the motion of both speakers"):
    unpack_demo(root, performances=1, assets=tmp_path / "assets", say=None)
  for speaker in (1, 2):
    shutil.copy(assets / "capture" / f"{names[0]}_speaker{speaker}.npz", first)
  unpack_demo(root, performances=1, assets=tmp_path / "assets", say=None)
  assert sorted(os.listdir(root)) == PARTS and "amara" not in (root / "conversations" / "people.csv").read_text()


def test_capture_frames_keep_their_colour(unpacked):
  with Image.open(unpacked / "capture" / "images" / "00009_00.png") as image:
    assert image.mode == "RGB" and abs(np.asarray(image).mean() - 180) < 3


def test_second_run_does_nothing(unpacked, assets):
  before, lines = _snapshot(unpacked), []
  unpack_demo(unpacked, performances=2, assets=assets, say=lines.append)
  assert _snapshot(unpacked) == before and not lines


def test_changed_arguments_or_assets_unpack_anew(assets, tmp_path):
  root, only = tmp_path / "demo", [voices.load_dialogues(assets / "voices")[0].id]
  unpack_demo(root, performances=1, assets=assets, dialogues=only, say=None)
  first = sorted(path.name for path in root.rglob("*.npz"))
  unpack_demo(root, performances=2, assets=assets, dialogues=only, say=None)
  second = sorted(path.name for path in root.rglob("*.npz"))
  assert len(second) == len(first) + 2
  assert os.listdir(tmp_path) == ["demo"]


def test_two_unpackings_are_equal(unpacked, assets, tmp_path):
  unpack_demo(tmp_path / "demo", performances=2, assets=assets, say=None)
  for path in unpacked.rglob("*"):
    if path.is_file():
      assert (tmp_path / "demo" / path.relative_to(unpacked)).read_bytes() == path.read_bytes(), path


def test_killed_midway_leaves_no_final_folder_and_the_next_run_cleans_up(assets, tmp_path):
  root = tmp_path / "demo"
  code = textwrap.dedent(f"""
      import os, signal
      from rsatalker_jax.data.demo import unpack
      def say(line):
        if "capture" in line:
          os.kill(os.getpid(), signal.SIGKILL)
      unpack.unpack_demo({str(root)!r}, performances=1, assets={str(assets)!r}, say=say)
  """)
  killed = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
  assert killed.returncode == -signal.SIGKILL
  (leftover,) = root.glob(".unpacking-*")
  assert not (root / "unpacked.json").exists() and not (root / "conversations").exists() and any(leftover.rglob("*.wav"))
  (root / "conversations").mkdir()  # As if it had been killed while parts were moved.
  (root / "conversations" / "half").write_text("x")
  unpack_demo(root, performances=1, assets=assets, say=None)
  assert sorted(os.listdir(root)) == PARTS and not (root / "conversations" / "half").exists()


def test_killed_before_the_stamp_and_after_all_else_is_done_again(assets, tmp_path):
  root = tmp_path / "demo"
  code = textwrap.dedent(f"""
      import os, signal
      from rsatalker_jax.data.demo import unpack
      replace = os.replace
      def killed(source, target):
        if str(target).endswith("unpacked.json"):
          os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
      unpack.os.replace = killed
      unpack.unpack_demo({str(root)!r}, performances=1, assets={str(assets)!r}, say=None)
  """)
  assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == -signal.SIGKILL
  assert (root / "triplets.jsonl").exists() and not (root / "unpacked.json").exists()
  unpack_demo(root, performances=1, assets=assets, say=None)
  assert sorted(os.listdir(root)) == PARTS


def test_features_and_what_else_lies_there_stay_when_it_is_made_anew(assets, tmp_path):
  root, only = tmp_path / "demo", [voices.load_dialogues(assets / "voices")[0].id]
  unpack_demo(root, performances=1, assets=assets, dialogues=only, say=None)
  (root / "features").mkdir()
  (root / "features" / "kept").write_text("x")
  unpack_demo(root, performances=2, assets=assets, dialogues=only, say=None)
  assert (root / "features" / "kept").read_text() == "x"


def test_a_link_to_another_disk_stays_a_link(assets, tmp_path):
  (tmp_path / "big disk").mkdir()
  (tmp_path / "demo").symlink_to(tmp_path / "big disk")
  unpack_demo(tmp_path / "demo", performances=1, assets=assets, say=None)
  assert (tmp_path / "demo").is_symlink() and sorted(os.listdir(tmp_path / "big disk")) == PARTS


def test_the_folder_itself_is_not_replaced(assets, tmp_path):
  """A volume of a container cannot be."""
  (tmp_path / "volume" / "lost+found").mkdir(parents=True)
  inode = (tmp_path / "volume").stat().st_ino
  unpack_demo(tmp_path / "volume", performances=1, assets=assets, say=None)
  assert (tmp_path / "volume").stat().st_ino == inode and (tmp_path / "volume" / "lost+found").is_dir()


def test_below_a_file_is_one_line(assets, tmp_path):
  (tmp_path / "file").write_text("x")
  for root in (tmp_path / "file", tmp_path / "file" / "data"):
    with pytest.raises(InputError, match="file"):
      unpack_demo(root, performances=1, assets=assets, say=None)
  assert (tmp_path / "file").read_text() == "x"


def test_a_second_process_waits_and_finds_it_done(assets, tmp_path):
  """With another process id, as one on another host has, and while the first is at work."""
  root, only = tmp_path / "demo", [voices.load_dialogues(assets / "voices")[0].id]
  lines, code = [], textwrap.dedent(f"""
      from rsatalker_jax.data.demo import unpack
      print("started", flush=True)
      unpack.unpack_demo({str(root)!r}, performances=1, assets={str(assets)!r}, dialogues={only!r}, say=lambda line: print(line, flush=True))
  """)
  other = []

  def say(line):
    lines.append(line)
    if not other:  # The first is in the midst of it, and holds the lock until the second says that it waits.
      other.append(subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True))
      assert other[0].stdout.readline() == "started\n"
      assert other[0].stdout.readline() == f"waiting for another process that unpacks {root}\n"

  unpack_demo(root, performances=1, assets=assets, dialogues=only, say=say)
  made = _snapshot(root)
  rest, _ = other[0].communicate(timeout=60)
  assert other[0].returncode == 0 and rest == "" and _snapshot(root) == made  # It did not unpack a second time.
  assert sorted(os.listdir(root)) == PARTS and "unpacked" in lines[-1]


def test_a_failure_leaves_nothing(assets, tmp_path):
  broken = tmp_path / "assets"
  shutil.copytree(assets, broken)
  (broken / "capture" / "mask_0.mp4").write_bytes(b"no video")
  with pytest.raises(InputError, match="mask_0.mp4"):
    unpack_demo(tmp_path / "out" / "demo", performances=1, assets=broken, say=None)
  assert not list((tmp_path / "out").iterdir())


def test_a_folder_of_something_else_is_not_touched(assets, tmp_path):
  (tmp_path / "thesis.txt").write_text("years of work")
  with pytest.raises(InputError, match="not unpacked by the demo"):
    unpack_demo(tmp_path, assets=assets, say=None)
  assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("arguments, named", [
    (dict(performances=0), "performances: found 0"), (dict(dialogues=["d999"]), "found no d999"),
    (dict(assets="/nowhere"), "no such file")])
def test_wrong_arguments_are_named(assets, tmp_path, arguments, named):
  with pytest.raises(InputError, match=named):
    unpack_demo(tmp_path / "demo", say=None, **({"assets": assets} | arguments))


def test_missing_table_key_is_named(assets, tmp_path):
  broken = tmp_path / "assets"
  shutil.copytree(assets, broken)
  with np.load(broken / "capture" / "capture.npz") as file:
    np.savez(broken / "capture" / "capture.npz", **{key: file[key] for key in file if key != "speaker"})
  with pytest.raises(InputError, match="capture.npz: speaker: found no such key"):
    unpack_demo(tmp_path / "demo", performances=1, assets=broken, say=None)


def test_command_line_reports_one_line(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  done = subprocess.run([sys.executable, "-m", "rsatalker_jax.data.demo", "--root", str(tmp_path)], cwd=REPOSITORY,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "not unpacked by the demo" in done.stderr


def test_splits_share_no_dialogue():
  table = voices.load_dialogues()
  assert len({d.id for d in table}) == len(table) and len({d.title for d in table}) == len(table)
  texts = {split: {u.text for d in table if d.split == split for u in d.utterances if len(u.text.split()) > 5}
           for split in ("train", "val", "test")}
  assert texts["train"] and texts["test"] and texts["val"]
  for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
    assert not texts[one] & texts[other]
