"""Damages small valid files in thousands of ways, and sees that every reader says so in one line or reads what is whole.

    python tests/fuzz_readers.py --inputs=10000 [--seed=0] [--reader=NAME]

Every input is read in a child process with bounded memory and time, so that a crash of the interpreter is counted, too.
Right is an InputError of one line that names the file, or values that are finite and fit together. Prints a table by
reader and the first inputs of each kind that are wrong; exit status 1 if any is. `--reader=NAME --seed=S --first=N
--inputs=1` gives one input again, and `--keep=FOLDER` keeps its files.
"""

import argparse
import collections
import dataclasses
import io
import json
import os
import pathlib
import pickle
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable

_TESTS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(_TESTS), str(_TESTS.parent)]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hostile_pickle  # noqa: E402
import jax  # noqa: E402
import mock_realtalk  # noqa: E402
import numpy as np  # noqa: E402
import scipy.sparse  # noqa: E402
import seamless_mock  # noqa: E402
import soundfile  # noqa: E402
import tiny_world  # noqa: E402

from rsatalker_jax.avatar import Gaussians  # noqa: E402
from rsatalker_jax.data.audio import read_wav, wav_frames  # noqa: E402
from rsatalker_jax.data.captures import load_capture  # noqa: E402
from rsatalker_jax.data import arkit  # noqa: E402
from rsatalker_jax.data.dualtalk import write_motion, write_motion_file  # noqa: E402
from rsatalker_jax.data.people import read_people  # noqa: E402
from rsatalker_jax.data.relations import read_relations  # noqa: E402
from rsatalker_jax.data.seamless import SeamlessSource, join_conversations  # noqa: E402
from rsatalker_jax.data.seamless.names import parse_file_id  # noqa: E402
from rsatalker_jax.data.seamless.recordings import Recordings  # noqa: E402
from rsatalker_jax.data.seamless.tables import read_tables  # noqa: E402
from rsatalker_jax.data.tracks import read_motion, read_track  # noqa: E402
from rsatalker_jax.data.triplets import load_triplets  # noqa: E402
from rsatalker_jax.data.triplets.cropping import read_boxes  # noqa: E402
from rsatalker_jax.data.triplets.source_video import read_frames_at, read_video_sound  # noqa: E402
from rsatalker_jax.data.video_frames import read_video_frame  # noqa: E402
from rsatalker_jax.errors import InputError  # noqa: E402
from rsatalker_jax.head import load_head  # noqa: E402
from rsatalker_jax.head.regions import FLAME_REGIONS, load_masks  # noqa: E402
from rsatalker_jax.lmdb import Database  # noqa: E402
from rsatalker_jax.media.splat_files import load_bound_ply, read_ply, write_ply  # noqa: E402
from rsatalker_jax.pickles import load_torch_tensors  # noqa: E402
from rsatalker_jax.speech.cache import cached  # noqa: E402

OUTCOMES = ("read", "refused", "wrong", "traceback", "memory", "crash", "time-out")
_RIGHT = ("read", "refused")
_SECONDS, _BYTES, _ADDRESS_SPACE = 20, 1 << 30, 16 << 30  # Of one input, but for the last: XLA maps some gigabytes.


@dataclasses.dataclass(frozen=True)
class Reader:
  """Attributes:
    write: fills a folder with valid files.
    targets: names, or patterns of names, of those that are damaged, one in each input.
    read: reads the folder; returns a tree of what is to be finite, and asserts what has to fit together.
    inside: whether archives are also damaged within, their checksums made to fit.
  """

  write: Callable[[pathlib.Path], object]
  targets: str
  read: Callable[[pathlib.Path], object]
  inside: bool = True


def _track_values(frames: int = 4) -> dict[str, np.ndarray]:
  r = np.random.default_rng(0)
  return {key: r.normal(size=(frames, width)).astype(np.float32) for key, width in dict(shape=100, exp=50, pose=6).items()}


def _write_track_pickle(folder):
  values = _track_values()
  values["exp"] = list(values["exp"])  # Some trackers leave a row for each frame.
  for protocol in (0, 2, 5):
    (folder / f"{protocol}.pkl").write_bytes(pickle.dumps(values, protocol))


def _write_emoca(folder):
  for t in range(3):
    (folder / f"{t:06d}_000").mkdir()
    for key, array in _track_values().items():
      np.save(folder / f"{t:06d}_000" / f"{key}.npy", array[t])


def _read_track(path):
  track = read_track(path)
  assert track.motion.shape == (len(track.shape), 56) and track.shape.shape[1:] == (100,)
  return track.motion, track.shape, track.identity


def _read_conversation_motion(path):
  motion = read_motion(path)
  assert motion.shape[1:] == (56,)
  return motion


def _write_motion(folder):
  write_motion(folder / "a.npz", tiny_world.make_motion(0, 6), basis="flame2020")


def _write_arkit(path, frames):
  write_motion_file(path, tiny_world.make_motion(0, frames), basis="arkit")


def _write_mediapipe(folder):
  frames = []
  for t in range(4):
    categories = [{"categoryName": name, "score": 0.1} for name in arkit.SHAPES]
    matrix = {"rows": 4, "columns": 4, "data": np.eye(4).ravel().tolist()}
    frames.append({"faceBlendshapes": [{"categories": categories}], "facialTransformationMatrixes": [matrix], "timestamp": 33 * t})
  (folder / "a.json").write_text(json.dumps(frames))


def _write_wavs(folder):
  voice = 0.3 * np.sin(np.arange(4800) / 10)
  soundfile.write(folder / "float.wav", voice, 16000, subtype="FLOAT")
  soundfile.write(folder / "stereo.wav", np.stack([voice, voice / 2], 1), 22050, subtype="PCM_16")
  soundfile.write(folder / "long.wav", voice, 8000, subtype="PCM_24", format="RF64")


def _read_wav(path):
  wav, notes = read_wav(path, allow_silent=True)
  assert wav.ndim == 1 and all(isinstance(note, str) for note in notes) and wav_frames(path, 25) > 0
  return wav


def _write_relations(folder):
  rows = ["conversation,blood,equal,annotator,confidence", "a,true,true,ann,0.5", "a,true,unknown,ben,", "Müller,FALSE,false,ann,1"]
  (folder / "relations.csv").write_text("\r\n".join(rows) + "\r\n", encoding="utf-8")


def _write_people(folder):
  rows = ["conversation,speaker1,speaker2,source", "a,ann,ben,V0", 'b,"Müller, M",,V1', "c,,,"]
  (folder / "people.csv").write_text("\r\n".join(rows) + "\r\n", encoding="utf-8")


def _write_triplets(folder):
  (folder / "capture").mkdir()
  entry = dict(conversation="a", split="train", speaker=2, capture="capture", camera=0, first_timestep=0, frames=60,
               relation="blood,equal")
  lines = [entry, entry | dict(split="test", first_timestep=60, conversation="b")]
  (folder / "triplets.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_capture(folder):
  tiny_world.write_capture(folder)
  path = folder / "transforms_train.json"
  content = json.loads(path.read_text())
  content["frames"] = content["frames"][:2]
  path.write_text(json.dumps(content))
  keep = {str(folder / entry[key]) for entry in content["frames"] for key in ("file_path", "fg_mask_path", "flame_param_path")}
  for file in (file for name in ("images", "fg_masks", "flame_param") for file in (folder / name).iterdir()):
    if str(file) not in keep:
      file.unlink()


def _read_capture(path):
  root = path
  while not (root / "canonical_flame_param.npz").exists():
    root = root.parent
  capture = load_capture(root, "train", num_vertices=72)
  item = capture[0]
  assert item["image"].shape == (capture.height, capture.width, 3) and item["mask"].shape == item["image"].shape[:2]
  assert 0 <= item["image"].min() and item["image"].max() <= 1 and 0 <= item["mask"].min() and item["mask"].max() <= 1
  assert len(capture.timesteps) == len(capture)
  return item, capture.shape, capture.static_offset


def _write_video(folder):
  import av

  with av.open(str(folder / "a.mp4"), "w") as container:
    stream = container.add_stream("libx264", rate=25, options={"g": "4"})
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    for t in range(10):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * t, np.uint8), format="rgb24")))
    container.mux(stream.encode())


def _read_video(path):
  frames = [read_video_frame(path, index) for index in (7, 0)]
  assert all(frame.ndim == 3 and frame.shape[2] == 3 for frame in frames)
  return frames


def _write_long_video(folder):
  wav = 0.3 * np.sin(np.arange(8000) / 5).astype(np.float32)
  frames = [np.full((32, 32, 3), 20 * t, np.uint8) for t in range(12)]
  for form in mock_realtalk.FORMATS[:3]:
    mock_realtalk.write_film(folder / f"{form[1]}.{form[0]}", frames, wav, form)


def _read_long_video(path):
  wav, notes = read_video_sound(path)
  assert wav.ndim == 1 and all(isinstance(note, str) for note in notes)
  frames = [frame.to_ndarray(format="gray") for frame in read_frames_at(path, [0.0, 0.2])]
  assert len(frames) == 2
  return wav, frames


def _write_boxes(folder):
  (folder / "boxes.csv").write_text("video,frame,person,left,top,right,bottom\na,0,p0,1,2,30,40\na,9,p0,2,2,31,40\nb,,p1,1,2,30,40\n")


def _read_boxes(path):
  boxes = read_boxes(path).find("a", 0, np.arange(3.0))
  return boxes if boxes is None else (boxes, 1 / (boxes[:, 2:] - boxes[:, :2]))


def _write_head(folder, pickled: bool = False):
  tiny_world.write_head(folder / "head.npz")
  if pickled:
    with np.load(folder / "head.npz") as file:
      values = {key: file[key] for key in ("v_template", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights", "f", "n_shape")}
    (folder / "head.npz").unlink()
    for protocol, kind in ((0, "coo"), (2, "csc"), (5, "lil")):
      sparse = getattr(scipy.sparse, f"{kind}_matrix")(values["J_regressor"])
      (folder / f"{protocol}.pkl").write_bytes(pickle.dumps(values | dict(J_regressor=sparse), protocol))


def _read_head(path):
  head = load_head(path)
  assert head.faces.max() < len(head.v_template) and head.joint_regressor.shape == (5, len(head.v_template))
  return head


def _write_masks(folder):
  values = {name: np.arange(k, k + 3) for k, name in enumerate(FLAME_REGIONS)}
  for protocol in (0, 2):
    (folder / f"{protocol}.pkl").write_bytes(pickle.dumps(values, protocol))


def _read_masks(path):
  masks = load_masks(path, 5023)
  assert all(mask.min() >= 0 and mask.max() < 5023 for mask in masks.values())
  return masks


def _gaussians(count: int) -> Gaussians:
  draw = lambda *shape: np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
  return Gaussians(means=draw(3), quats=draw(4), log_scales=draw(3) - 4, opacity_logits=draw(), sh=draw(4, 3))


def _write_bound_ply(folder):
  tiny_world.write_head(folder / "head.npz")
  write_ply(folder / "a.ply", _gaussians(150), np.arange(150) % 140)
  np.savez(folder / "flame_param.npz", shape=np.zeros(2), static_offset=np.zeros((1, 72, 3)), dynamic_offset=np.zeros((3, 72, 3)))


def _read_ply(path):
  gaussians, _ = read_ply(path)
  assert len({len(leaf) for leaf in jax.tree.leaves(gaussians)}) == 1
  return gaussians, np.exp(gaussians.log_scales), 1 / np.linalg.norm(gaussians.quats, axis=1)


def _read_bound_ply(path):
  avatar = load_bound_ply(path.parent / "a.ply", load_head(path.parent / "head.npz"))
  assert avatar.binding.max() < 140 and len(avatar.binding) == len(avatar.gaussians.means)
  return avatar


_FEATURES = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


def _read_features(path):
  features, _ = cached(path, lambda: _FEATURES)
  assert np.array_equal(features, _FEATURES), "other features, nothing said"
  return features


def _write_tensors(folder):
  """By hand, as PyTorch lays out a state dict of one tensor."""
  storage = hostile_pickle.row(
      hostile_pickle.text("storage"), hostile_pickle.name("torch", "FloatStorage"), hostile_pickle.text("0"),
      hostile_pickle.text("cpu"), hostile_pickle.number(6),
  ) + b"Q"
  tensor = hostile_pickle.call(
      hostile_pickle.name("torch._utils", "_rebuild_tensor_v2"), storage, hostile_pickle.number(0),
      *(hostile_pickle.row(*map(hostile_pickle.number, numbers)) for numbers in ((2, 3), (3, 1))),
      hostile_pickle.FALSE, hostile_pickle.name("collections", "OrderedDict") + b")R",
  )
  with zipfile.ZipFile(folder / "a.bin", "w") as archive:
    archive.writestr("archive/data.pkl", hostile_pickle.program(hostile_pickle.items(weight=tensor)))
    archive.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())


def _read_tensors(path):
  tensors = load_torch_tensors(path)
  return [np.array(tensor).shape for tensor in tensors.values()]  # Any bits are weights: they are only reached.


def _write_talk(folder):
  """The pairs' file and the LMDB in one folder."""
  mock = seamless_mock.Mock(folder / "mock")
  for session in range(3):
    mock.add("train", f"V00_S{session:04d}")
  mock.write()
  for path in (folder / "mock/unils/SeamlessInteractionTalk").iterdir():
    path.rename(folder / path.name)
  shutil.rmtree(folder / "mock")
  (folder / "data_lmdb/lock.mdb").unlink()


def _read_lmdb(path):
  database = Database(path)
  values = {key: database.read(span) for key, span in database.items()}
  assert all(key in values and len(value) < 1 << 20 for key, value in values.items())
  return len(values)


def _read_talk(path):
  folder = path.parent if path.suffix == ".json" else path.parent.parent
  return [(c.motion_a, c.motion_b, c.speech_a, c.speech_b) for c in SeamlessSource(join_conversations(folder))]


def _write_recordings(folder):
  mock = seamless_mock.Mock(folder)
  names = [f"V00_S0001_I00000001_P{i:04d}" for i in (1, 2)]
  mock.seeds |= {name: i for i, name in enumerate(names)}
  mock.write_shard(names[:1], "0000.tar")
  mock.write_files(names[1:], "0000")
  for path in (folder / "seamless").iterdir():
    path.rename(folder / path.name)


def _read_recordings(path):
  """Whatever is damaged, the folder is read; damage in a wav is said when it is asked for."""
  root = path.parent if path.suffix == ".tar" else path.parent.parent
  recordings = Recordings(root)
  found = []
  for name in recordings.places:
    file_id = parse_file_id(name)
    assert file_id is not None and recordings.read_speech(file_id) is not None
    found.append(recordings.read_arrays(file_id, ["movement:is_valid", "smplh:translation"])[0])
    found.append(recordings.read_voice(file_id))
  return [{key: value for key, value in x.items() if value.dtype.kind != "f"} if isinstance(x, dict) else x for x in found]


def _write_tables(folder):
  mock = seamless_mock.Mock(folder)
  mock.add("train", "V00_S0001")
  mock.write_tables()
  for path in mock.seamless.iterdir():
    path.rename(folder / path.name)


READERS = {
    "motion npz": Reader(_write_motion, "*.npz", _read_conversation_motion),
    "ARKit csv": Reader(lambda folder: _write_arkit(folder / "a.csv", 30), "*.csv", _read_conversation_motion),
    "ARKit json": Reader(lambda folder: _write_arkit(folder / "a.json", 6), "*.json", _read_conversation_motion),
    "MediaPipe json": Reader(_write_mediapipe, "*.json", _read_conversation_motion),
    "track npz": Reader(lambda folder: np.savez(folder / "a.npz", **_track_values()), "*.npz", _read_track),
    "track pickle": Reader(_write_track_pickle, "*.pkl", _read_track),
    "EMOCA folder": Reader(_write_emoca, "*/*.npy", lambda path: _read_track(path.parent.parent)),
    "wav": Reader(_write_wavs, "*.wav", _read_wav),
    "relations csv": Reader(_write_relations, "*.csv", read_relations),
    "people csv": Reader(_write_people, "*.csv", lambda path: len(read_people(path))),
    "triplets": Reader(_write_triplets, "*.jsonl", lambda path: [triplet.frames for triplet in load_triplets(path)]),
    "transforms": Reader(_write_capture, "transforms_train.json", _read_capture),
    "image": Reader(_write_capture, "*/00000_00.png", _read_capture),
    "flame_param": Reader(_write_capture, "**/[0c]*.npz", _read_capture),
    "long video": Reader(_write_long_video, "*.*", _read_long_video),
    "face boxes": Reader(_write_boxes, "*.csv", _read_boxes),
    "video": Reader(_write_video, "*.mp4", _read_video),
    "head npz": Reader(_write_head, "*.npz", _read_head),
    "head pickle": Reader(lambda folder: _write_head(folder, pickled=True), "*.pkl", _read_head),
    "masks": Reader(_write_masks, "*.pkl", _read_masks),
    "ply": Reader(lambda folder: write_ply(folder / "a.ply", _gaussians(5)), "*.ply", _read_ply),
    "bound ply": Reader(_write_bound_ply, "[af]*", _read_bound_ply),
    "feature cache": Reader(lambda folder: np.savez(folder / "a.npz", features=_FEATURES), "*.npz", _read_features, inside=False),
    "tensors": Reader(_write_tensors, "*.bin", _read_tensors),
    "LMDB": Reader(_write_talk, "data_lmdb/data.mdb", _read_lmdb),
    "UniLS-Talk pairs": Reader(_write_talk, "*.json", _read_talk),
    "UniLS-Talk": Reader(_write_talk, "data_lmdb/*.mdb", _read_talk),
    "Seamless files": Reader(_write_recordings, "0000*/*", _read_recordings),
    "Seamless shard": Reader(_write_recordings, "*.tar", _read_recordings),
    "Seamless tables": Reader(_write_tables, "*.csv", lambda path: len(read_tables(path.parent).related)),
}

# Numbers that programs stumble over, as bytes and as text.
_EXTREMES = [
    *(value.to_bytes(size, "little", signed=value < 0)
      for size, values in ((4, (0, 1, -1, 2**31 - 1, 2**32 - 1, 2**31, 60)), (8, (0, -1, 2**63 - 1, 2**64 - 1, 2**40)), (1, (0, 255)))
      for value in values),
    *(np.array(value, kind).tobytes() for kind in ("<f4", "<f8") for value in (np.nan, np.inf, -np.inf, 1e30, -0.0)),
    np.float64(1e300).tobytes(),
]
_WORDS = ["", "0", "-1", "1e300", "1e999", "NaN", "null", "true", "99999999999999999999", "9" * 5000, "0.5", '"', "[]", "{}", "ü",
          "\0", "'", ",", "(", "]", "\\", "../..", "a" * 300, "\n", "\r\n", "Infinity", "-0", "\x1b[2J"]


def damage(rng: np.random.Generator, content: bytes, inside: bool = True) -> bytes:
  """One to three mutations; of archives, if wanted, also inside a member, which then has the right checksum."""
  if inside and content.startswith(b"PK") and rng.random() < 0.5:
    try:
      return _damage_member(rng, content)
    except (zipfile.BadZipFile, ValueError):
      pass
  for _ in range(rng.integers(1, 4)):
    content = _MUTATIONS[rng.integers(len(_MUTATIONS))](rng, bytearray(content))
  return bytes(content)


def _damage_member(rng: np.random.Generator, content: bytes) -> bytes:
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    members = {info.filename: archive.read(info) for info in archive.infolist()}
  name = sorted(members)[rng.integers(len(members))]
  match rng.integers(4):
    case 0:
      members.pop(name)
    case 1 if name.endswith(".npy"):
      members[name] = _other_array(rng, members[name])
    case _:
      members[name] = damage(rng, members[name])
  out = io.BytesIO()
  compression = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2][rng.choice(3, p=[0.45, 0.45, 0.1])]
  with zipfile.ZipFile(out, "w", compression) as archive:
    for key, value in members.items():
      archive.writestr(key, value)
  return out.getvalue()


def _other_array(rng: np.random.Generator, content: bytes) -> bytes:
  """Whole arrays with other numbers, shapes and types."""
  array = np.load(io.BytesIO(content))
  match rng.integers(6):
    case 0:
      array = np.array(array, np.float64)
      array.reshape(-1)[rng.integers(max(array.size, 1)) :][:1] = rng.choice([np.nan, np.inf, -np.inf, 1e300, -1e39, 2**31, -1, 0.5])
    case 1:
      array = array[..., :0] if array.ndim else array[None]
    case 2:
      array = array.reshape(-1)[:1].reshape(()) if array.size else array
    case 3:
      array = array.astype(rng.choice(["<U9", "c8", "?", ">f8", "i8", "f2", "u1"]))
    case 4:
      array = np.concatenate([array.reshape(-1)] * 2)
    case 5:
      array = np.asfortranarray(array[None])
  out = io.BytesIO()
  np.save(out, array)
  return out.getvalue()


def _place(rng, content) -> int:
  """Headers and the ends of files are where most can go wrong."""
  size = max(len(content), 1)
  near = int(rng.integers(min(size, 200)))
  return [int(rng.integers(size)), near, size - 1 - near][rng.choice(3, p=[0.5, 0.35, 0.15])]


def _flip(rng, content):
  if content:
    content[_place(rng, content)] ^= 1 << int(rng.integers(8))
  return content


def _overwrite(rng, content):
  start, length = _place(rng, content), int(2 ** rng.uniform(0, 8))
  fill = [bytes(length), b"\xff" * length, rng.bytes(length)][rng.integers(3)]
  content[start : start + length] = fill[: len(content) - start]
  return content


def _write_extreme(rng, content):
  value = _EXTREMES[rng.integers(len(_EXTREMES))]
  start = _place(rng, content)
  content[start : start + len(value)] = value
  return content


def _delete(rng, content):
  start = _place(rng, content)
  del content[start : start + int(2 ** rng.uniform(0, 8))]
  return content


def _insert(rng, content):
  start = _place(rng, content)
  content[start:start] = rng.bytes(int(2 ** rng.uniform(0, 6)))
  return content


def _repeat(rng, content):
  start, length = _place(rng, content), int(2 ** rng.uniform(2, 9))
  content[start:start] = content[start : start + length] * int(rng.integers(1, 4))
  return content


def _cut(rng, content):
  return content[: _place(rng, content)]


def _change_word(rng, content):
  """Another number or word in what is text."""
  words = [match.span() for match in re.finditer(rb"[-+.\w]+", bytes(content[:4000]))]
  if words:
    start, end = words[rng.integers(len(words))]
    content[start:end] = _WORDS[rng.integers(len(_WORDS))].encode("utf-8")
  return content


def _change_encoding(rng, content):
  try:
    text = bytes(content).decode("utf-8")
    return bytearray(text.encode(["utf-16", "utf-8-sig", "latin1", "utf-32", "utf-16-le"][rng.integers(5)], errors="replace"))
  except UnicodeDecodeError:
    return content.replace(b"\n", b"\r\n")


_MUTATIONS = [_flip, _flip, _overwrite, _write_extreme, _write_extreme, _delete, _insert, _repeat, _cut, _change_word, _change_word,
              _change_encoding]


def try_input(name: str, template: pathlib.Path, seed: int, number: int, folder: pathlib.Path) -> tuple[str, str]:
  """Damages a copy of the valid files and reads it: the outcome and, if it is wrong, what happened."""
  reader = READERS[name]
  rng = np.random.default_rng([seed, number, *name.encode()])
  shutil.copytree(template, folder)
  targets = sorted(folder.glob(reader.targets))
  path = targets[rng.integers(len(targets))]
  path.write_bytes(damage(rng, path.read_bytes(), reader.inside))
  try:
    tree = reader.read(path)
  except InputError as error:
    if len(str(error).splitlines()) == 1 and str(folder) in str(error):
      return "refused", ""
    return "wrong", f"the line {str(error)!r}"
  except AssertionError as error:
    return "wrong", f"values that do not fit together {error}"
  except MemoryError as error:
    return "memory", str(error)
  except Exception as error:
    return "traceback", f"{type(error).__name__}: {str(error)[:200]}"
  for leaf in jax.tree.leaves(tree):
    if np.asarray(leaf).dtype.kind == "f" and not np.isfinite(np.asarray(leaf)).all():
      return "wrong", "numbers that are not finite"
  return "read", ""


def _run_child(name: str, seed: int, first: int, count: int, keep: str | None) -> None:
  """Tries inputs one after another; says each one's number before, its outcome after."""
  import resource

  resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  with tempfile.TemporaryDirectory() as temporary:
    template = pathlib.Path(temporary) / "template"
    template.mkdir()
    READERS[name].write(template)
    for number in range(first, first + count):
      print(json.dumps(["start", number]), flush=True)
      folder = pathlib.Path(keep or temporary) / str(number)
      before = _peak_bytes(reset=True)
      outcome, detail = try_input(name, template, seed, number, folder)
      grown = _peak_bytes() - before
      if outcome in _RIGHT and grown > _BYTES:
        outcome, detail = "memory", f"{grown >> 20} MB"
      print(json.dumps(["end", number, outcome, detail]), flush=True)
      if not keep:
        shutil.rmtree(folder)


def _peak_bytes(reset: bool = False) -> int:
  if reset:
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak.
  return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))


def run_reader(name: str, seed: int, first: int, count: int, keep: str | None = None) -> list[tuple[int, str, str]]:
  """(number, outcome, detail) of each input; a child that dies or hangs is followed by another."""
  results, end = [], first + count
  while first < end:
    words = [f"--child={name}", f"--seed={seed}", f"--first={first}", f"--inputs={end - first}", *([f"--keep={keep}"] if keep else [])]
    child = subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines: queue.Queue = queue.Queue()
    threading.Thread(target=lambda: [*map(lines.put, child.stdout), lines.put(None)], daemon=True).start()
    limit, running, outcome = 120, first, "crash"  # The first line has the imports to wait for.
    while first < end:
      try:
        line = lines.get(timeout=limit)
      except queue.Empty:
        outcome, line = "time-out", None
      if line is None:
        child.kill()
        status = child.wait()
        detail = f"after {limit} s" if outcome == "time-out" else f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        results.append((running, outcome, detail))
        first = running + 1
        break
      if not line.startswith("["):
        continue
      kind, number, *rest = json.loads(line)
      limit, running = _SECONDS, number
      if kind == "end":
        results.append((number, *rest))
        first = number + 1
    child.stdout.close()
    child.wait()
  return results


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--inputs", type=int, default=10_000, help="in all, in equal parts for each reader")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--first", type=int, default=0, help="number of the first input of each reader")
  parser.add_argument("--reader", choices=READERS)
  parser.add_argument("--keep", help="a folder in which the damaged files stay")
  parser.add_argument("--child", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    return _run_child(args.child, args.seed, args.first, args.inputs, args.keep)
  names = [args.reader] if args.reader else list(READERS)
  counts = {name: collections.Counter() for name in names}
  wrong, start = [], time.time()
  print(f"{'reader':15}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES))
  for k, name in enumerate(names):
    share = args.inputs // len(names) + (k < args.inputs % len(names))
    for number, outcome, detail in run_reader(name, args.seed, args.first, share, args.keep):
      counts[name][outcome] += 1
      if outcome not in _RIGHT:
        wrong.append((name, number, outcome, detail))
    print(f"{name:15}" + "".join(f"{counts[name][outcome]:11}" for outcome in OUTCOMES), flush=True)
  total = sum(counts.values(), collections.Counter())
  print(f"{'all':15}" + "".join(f"{total[outcome]:11}" for outcome in OUTCOMES) + f"   seed {args.seed}, {time.time() - start:.0f} s")
  shown = collections.Counter()
  for name, number, outcome, detail in wrong:
    shown[name, outcome, detail] += 1
    if shown[name, outcome, detail] == 1:
      print(f"{name}: input {number}: {outcome}: {detail}")
  sys.exit(bool(wrong))


if __name__ == "__main__":
  main()
