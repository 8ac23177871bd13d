"""Start-up and memory of training at the paper's size: 50 hours of conversations, FLAME with teeth, 16 cameras of 802 x 550.

    python benchmarks/paper_size.py [--hours 50] [--stages motion avatar joint] [--step] [--folder DIR]

Builds the stages of configs/rsatalker.py:ours up to the first step, on data that have the real ones' sizes and not their
contents: voices are files with holes, behind one sample that tells them apart; all voices have the same 1024-wide
features, and conversations take turns with a few motions of noise, by hard links. So a few hundred MB of disk stand for
hundreds of GB; what memory, names and readers do is as with real files, what the disk does is not. Prints for each part its time,
the CPU time of all threads, and the memory that the process holds after it, and for each stage what XLA says of
its compiled step. With --step a step is taken, too.
"""

import argparse
import contextlib
import json
import os
import pathlib
import struct
import sys
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np
import scipy.spatial
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from configs.rsatalker import get_config
from rsatalker_jax import sharding
from rsatalker_jax.commands import command_line
from rsatalker_jax.commands.train import make_stage
from rsatalker_jax.data.dualtalk import write_motion
from rsatalker_jax.data.pipeline import motion_statistics
from rsatalker_jax.speech.cache import cached
from rsatalker_jax.speech.checkpoints import checkpoint_id
from rsatalker_jax.speech.encoder_ids import EncoderId, EncoderIds
from rsatalker_jax.talker import make_encoder, make_talker
from rsatalker_jax.training import loop
from rsatalker_jax.training.stage_inputs import StageInputs
from rsatalker_jax.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from tests.flame_mesh import LOWER_LIP, UPPER_LIP, flame_values

SECONDS = 36  # Of a clip: 50 hours are 5,000.
WIDTH = 1024  # Of the large Wav2Vec 2.0's features.
MOTIONS = 64
CAMERAS, IMAGE_SIZE = 16, (550, 802)  # NeRSemble's, as GaussianAvatars takes them; one camera is held out.
TIMESTEPS = 2500  # Of 50 hours' capture.
WEIGHTS = 1_262_000_000  # Bytes of the large Wav2Vec 2.0.


def make_motion(number: int) -> np.ndarray:
  """A wandering motion (T, 56) of one clip."""
  steps = np.random.default_rng(number).normal(size=(SECONDS * FPS, 56)).cumsum(axis=0)
  return (0.005 * (steps - steps.mean(axis=0))).astype(np.float32)


def write_conversations(config, hours: float) -> None:
  """DualTalk's layout: a training split of so many hours and a clip to validate on, with the features of all voices."""
  root, cache = pathlib.Path(config.data.conversations), pathlib.Path(config.data.features)
  frames, count = SECONDS * FPS, round(hours * 3600 / SECONDS)
  rng = np.random.default_rng(0)
  motions = [root / f"motion{i}" for i in range(min(MOTIONS, 2 * count))]
  (root / "train").mkdir(parents=True)
  (root / "val").mkdir()
  for number, path in enumerate(motions):
    write_motion(path, make_motion(number), basis="flame2023")
  cache.mkdir()
  # As on a machine that has the features and not the encoder.
  EncoderIds(cache).add(EncoderId(f"{config.speech.checkpoint} in float32", "0" * 64))
  features = make_encoder(config.speech, cache, encode_missing=False)
  cached(root / "features.npz", lambda: rng.normal(size=(frames, WIDTH)).astype(np.float32))
  wav = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
  for number in range(2 * (count + 1)):
    conversation, person = divmod(number, 2)
    folder = root / ("train" if conversation < count else "val")
    name = folder / f"conversation{conversation}_sub_video_0_speaker{person + 1}"
    wav[0] = 0.1 + number * 2e-7
    with open(f"{name}.wav", "wb") as file:
      sizes = 36 + wav.nbytes, 16, 3, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4, 32, wav.nbytes
      file.write(struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", sizes[0], b"WAVE", b"fmt ", *sizes[1:8], b"data", sizes[8]))
      file.write(wav[:1].tobytes())
      file.truncate(44 + wav.nbytes)
    os.link(motions[number % len(motions)], f"{name}.npz")
    os.link(root / "features.npz", features.path(wav, frames))


def write_flame(path: pathlib.Path) -> None:
  """A ball with FLAME's numbers of vertices, faces and directions, and a mouth where FLAME has it."""
  values = flame_values()
  rng = np.random.default_rng(0)
  count, faces = len(values["v_template"]), len(values["f"])
  height = 1 - (2 * np.arange(count) + 1) / count
  around = np.pi * (1 + 5**0.5) * np.arange(count)
  ball = np.stack([np.sqrt(1 - height**2) * np.sin(around), height, np.sqrt(1 - height**2) * np.cos(around)], axis=1)
  values["f"] = scipy.spatial.ConvexHull(ball).simplices[:faces].astype(np.uint32)
  vertices = 0.1 * ball
  vertices[:, 0] += 0.004 * np.sign(vertices[:, 0])  # Nothing but lips in the middle plane.
  vertices[UPPER_LIP], vertices[LOWER_LIP] = values["v_template"][UPPER_LIP], values["v_template"][LOWER_LIP]
  weights = np.eye(5)[np.where(vertices[:, 1] < -0.04, 2, 1)]
  weights[UPPER_LIP], weights[LOWER_LIP] = np.eye(5)[1], np.eye(5)[2]
  joints = values["J_regressor"] @ values["v_template"]
  homogeneous = np.concatenate([vertices, np.ones((count, 1))], axis=1)
  del values["n_shape"]  # 400 directions: FLAME's 300 shapes and 100 expressions.
  values |= dict(
      v_template=vertices,
      weights=weights,
      shapedirs=1e-4 * rng.normal(size=(count, 3, 400)),
      J_regressor=np.concatenate([joints, np.ones((5, 1))], axis=1) @ np.linalg.pinv(homogeneous),
  )
  np.savez(path, **values)


def write_capture(root: pathlib.Path, timesteps: int) -> None:
  """A VHAP export: 15 cameras to train on and one to validate on, around the person who moves as in the first clip."""
  width, height = IMAGE_SIZE
  rng = np.random.default_rng(0)
  for folder in ("images", "fg_masks", "flame_param"):
    (root / folder).mkdir(parents=True)
  coarse = Image.fromarray(rng.integers(0, 256, (32, 22, 3), np.uint8))
  coarse.resize(IMAGE_SIZE, Image.Resampling.BICUBIC).save(root / "image.png")
  Image.new("L", IMAGE_SIZE, 255).save(root / "mask.png")
  motion = make_motion(0)
  np.savez(root / "canonical_flame_param.npz", shape=np.zeros((1, 300), np.float32))
  frames = {"train": [], "val": []}
  for timestep in range(timesteps):
    row = motion[timestep % len(motion), None]
    pose = dict(expr=np.pad(row[:, :50], ((0, 0), (0, 50))), jaw_pose=row[:, 50:53], neck_pose=row[:, 53:])
    pose |= dict(rotation=np.zeros((1, 3)), translation=np.zeros((1, 3)), eyes_pose=np.zeros((1, 6)))
    np.savez(root / f"flame_param/{timestep:05d}.npz", **pose)
    for camera in range(CAMERAS):
      name = f"{timestep:05d}_{camera:02d}.png"
      os.link(root / "image.png", root / "images" / name)
      os.link(root / "mask.png", root / "fg_masks" / name)
      angle = np.pi * (camera / (CAMERAS - 1) - 0.5)
      turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
      to_world = np.eye(4)
      to_world[:3, :3], to_world[:3, 3] = turn, turn @ [0, 0, 1.0]
      frames["val" if camera == CAMERAS // 2 else "train"].append({
          "file_path": f"images/{name}",
          "fg_mask_path": f"fg_masks/{name}",
          "flame_param_path": f"flame_param/{timestep:05d}.npz",
          "timestep_index": timestep,
          "camera_index": camera,
          "transform_matrix": to_world.tolist(),
          **dict(w=width, h=height, fl_x=2.5 * height, fl_y=2.5 * height, cx=width / 2, cy=height / 2),
      })
  for split, entries in frames.items():
    (root / f"transforms_{split}.json").write_text(json.dumps({"frames": entries}))


def write_world(config, root: pathlib.Path, hours: float) -> None:
  """All data of a config, below `root`."""
  config.data.update(dict(
      conversations=str(root / "conversations"),
      relations=str(root / "conversations/relations.csv"),
      capture=str(root / "capture"),
      triplets=str(root / "triplets.jsonl"),
      features=str(root / "features"),
  ))
  config.head.path = str(root / "flame.npz")
  timesteps = max(250, round(TIMESTEPS * hours / 50))
  write_flame(root / "flame.npz")
  write_capture(root / "capture", timesteps)
  write_conversations(config, hours)
  triplet = {"conversation": "conversation0_sub_video_0", "split": "train", "speaker": 1, "capture": "capture"}
  triplet |= {"camera": 0, "first_timestep": 0, "frames": min(timesteps, SECONDS * FPS), "relation": "unknown"}
  (root / "triplets.jsonl").write_text(json.dumps(triplet) + "\n")


class Parts:
  """Measures the parts of a start, and prints a table's row for each."""

  def __init__(self):
    print("| part | s | CPU s | MB held after it | MB at most |\n|---|---|---|---|---|")

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    start = time.perf_counter(), time.process_time()
    yield
    took = time.perf_counter() - start[0], time.process_time() - start[1]
    lines = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    held, most = (int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    print(f"| {name} | {took[0]:.2f} | {took[1]:.2f} | {held:.0f} | {most:.0f} |", flush=True)


def name_encoder(parts: Parts, root: pathlib.Path) -> None:
  """The cache's name of an encoder whose weights are here."""
  folder = root / "checkpoint"
  folder.mkdir()
  (folder / "config.json").write_text("{}")
  with (folder / "model.safetensors").open("wb") as file:
    file.truncate(WEIGHTS)
  for path in folder.iterdir():
    os.utime(path, (0, 0))
  known = EncoderIds(folder)
  with parts(f"encoder's name from {WEIGHTS / 1e9:.2f} GB of weights, once"):
    known.add(checkpoint_id(folder, known))
  with parts("encoder's name, each later start"):
    checkpoint_id(folder, known)


def build_stage(parts: Parts, inputs: StageInputs, name: str, step: bool) -> tuple[str, ...]:
  """Makes a stage, its first batch and its compiled step; a row about the step's memory."""
  with parts(f"{name}: stage made"):
    stage = make_stage(inputs, name)
  with parts(f"{name}: first batch"):
    batch = sharding.put_batch(stage.mesh, next(iter(stage.batches)))
  key = jax.random.key(0)
  with jax.set_mesh(stage.mesh):
    with parts(f"{name}: state"):
      state, abstract = loop.init_state(stage, stage.mesh, key)
    with parts(f"{name}: step compiled"):
      compiled = loop.compile_step(stage, key, jax.tree.map(lambda x: x.sharding, abstract)).lower(state, batch, 0).compile()
    if step:
      with parts(f"{name}: a step"):
        state, terms = compiled(state, batch, 0)
        print(f"{name}: {', '.join(f'{k} {float(v):.4g}' for k, v in terms.items())}", file=sys.stderr)
  memory = compiled.memory_analysis()
  sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  parameters = sum(x.size for x in jax.tree.leaves(state.params))
  return name, f"{parameters / 1e6:.1f} M", *(f"{size / 2**20:.0f}" for size in sizes)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--hours", type=float, default=50, help="of conversation; the capture's timesteps scale with it")
  parser.add_argument("--stages", nargs="*", default=("motion", "avatar", "joint"))
  parser.add_argument("--step", action="store_true", help="take a step of each stage")
  parser.add_argument("--folder", help="where a folder for the data is made and removed again; it has to allow hard links")
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  config = get_config("ours")
  command_line.use_devices(config.mesh)
  print(f"{args.hours:g} hours, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}\n")
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    root = pathlib.Path(folder)
    write_world(config, root, args.hours)
    parts = Parts()
    name_encoder(parts, root)
    with parts("head and modules"):
      mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
      encode = make_encoder(config.speech, config.data.features, encode_missing=False).open
      inputs = StageInputs(config, make_talker(config), encode, mesh, say=lambda line: print(line, file=sys.stderr))
    if "motion" in args.stages or "joint" in args.stages:
      with parts("conversations and the names of their features"):
        clips = inputs.training_clips
      with parts("motion's statistics"):
        motion_statistics(clips)
    rows = [build_stage(parts, inputs, name, args.step) for name in args.stages]
    print("\n| stage | parameters | arguments of a step, MB | temporaries of a step, MB |\n|---|---|---|---|")
    for row in rows:
      print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
  main()
