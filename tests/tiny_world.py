"""A world small enough to train on in a test: a ball for a head, tones for voices, a few frames of 48x48 pixels.

Every file is in the format of the real thing, so the real readers and the real loop run on it.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from PIL import Image

from configs.ablations import VARIANTS
from configs.demo import get_config
from rsatalker_jax.commands import train

FRAMES = 60
SIZE = 48


def write_head(path: pathlib.Path) -> None:
  """A ball of 0.1 m with FLAME's keys: 2 shape and 50 expression coefficients, the lower half follows the jaw."""
  rings, segments = 7, 10
  polar = np.linspace(0, np.pi, rings + 2)[1:-1]
  around = np.arange(segments) * 2 * np.pi / segments
  ring_points = [
      [np.sin(p) * np.sin(a), np.cos(p), np.sin(p) * np.cos(a)] for p in polar for a in around
  ]
  vertices = 0.1 * np.array([*ring_points, [0, 1, 0], [0, -1, 0]], np.float32)
  faces = []
  index = lambda ring, segment: ring * segments + segment % segments
  for segment in range(segments):
    faces.append([rings * segments, index(0, segment), index(0, segment + 1)])
    for ring in range(rings - 1):
      faces.append([index(ring, segment), index(ring + 1, segment), index(ring + 1, segment + 1)])
      faces.append([index(ring, segment), index(ring + 1, segment + 1), index(ring, segment + 1)])
    faces.append([rings * segments + 1, index(rings - 1, segment + 1), index(rings - 1, segment)])
  count = len(vertices)
  rng = np.random.default_rng(0)
  weights = np.zeros((count, 5), np.float32)
  weights[:, 1], weights[vertices[:, 1] < -0.02, 2] = 1, 1
  weights /= weights.sum(1, keepdims=True)
  np.savez(
      path,
      v_template=vertices,
      shapedirs=0.002 * rng.normal(size=(count, 3, 52)).astype(np.float32),
      posedirs=np.zeros((count, 3, 36), np.float32),
      J_regressor=np.full((5, count), 1 / count, np.float32),
      kintree_table=np.array([[-1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]),
      weights=weights,
      f=np.array(faces),
      n_shape=2,
      basis="flame2020",
      identities=np.array([[0.0, 0.0], [1.0, -1.0]], np.float32),
      identity_names=np.array(["plain", "other"]),
  )


def make_motion(seed: int, frames: int = FRAMES) -> np.ndarray:
  """Smooth random motion (T, 56)."""
  rng = np.random.default_rng(seed)
  time = np.arange(frames)[:, None] / 25
  waves = np.sin(2 * np.pi * (rng.uniform(0.3, 2, 56) * time + rng.uniform(size=56)))
  return (waves * np.repeat([0.3, 0.05, 0.1], [50, 3, 3])).astype(np.float32)


def write_npz(path: pathlib.Path, motion: np.ndarray) -> None:
  """DualTalk's npz, written independently of the package."""
  np.savez(path, exp=motion[:, :50], pose=np.concatenate([motion[:, 53:], motion[:, 50:53]], axis=1))


def write_voice(path: pathlib.Path, seed: int, frames: int = FRAMES) -> None:
  """A tone whose loudness changes."""
  time = np.arange(frames * 640) / 16000
  loudness = 0.5 + 0.5 * np.sin(2 * np.pi * 2 * time + seed)
  wav = 0.3 * loudness * np.sin(2 * np.pi * (150 + 40 * seed) * time)
  soundfile.write(path, wav.astype(np.float32), 16000, subtype="FLOAT")


def write_conversations(root: pathlib.Path) -> None:
  lines = ["conversation,blood,equal"]
  for number, (split, relation) in enumerate(
      [("train", "true,true"), ("val", "false,false"), ("test", "true,false")]
  ):
    name = f"tiny-{number}_sub_video_0"
    (root / split).mkdir(parents=True, exist_ok=True)
    lines.append(f"{name},{relation}")
    for speaker in (1, 2):
      seed = 2 * number + speaker
      write_voice(root / split / f"{name}_speaker{speaker}.wav", seed)
      write_npz(root / split / f"{name}_speaker{speaker}.npz", make_motion(seed))
  (root / "relations.csv").write_text("\n".join(lines) + "\n")


def write_capture(root: pathlib.Path, *, shape: tuple[float, float] = (0, 0), color=(200, 150, 120)) -> None:
  """Speaker 2 of conversation 0 (train) and of conversation 2 (test): a disc that moves with the head's pose."""
  for folder in ("images", "fg_masks", "flame_param"):
    (root / folder).mkdir(parents=True)
  np.savez(root / "canonical_flame_param.npz", shape=np.float32([shape]))
  camera = np.eye(4)
  camera[2, 3] = 0.6  # OpenGL: looks along -z at the head in the origin.
  rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
  for split, number, first in (("train", 0, 0), ("test", 2, FRAMES)):
    frames = []
    for t, motion in enumerate(make_motion(2 * number + 2)):
      name = f"{first + t:05d}_00"
      mask = (rows - 24 - 20 * motion[53]) ** 2 + (columns - 24) ** 2 < 15**2
      image = np.where(mask[..., None], color, 255).astype(np.uint8)
      Image.fromarray(image).save(root / "images" / f"{name}.png")
      Image.fromarray(mask.astype(np.uint8) * 255).save(root / "fg_masks" / f"{name}.png")
      flame = dict(expr=motion[None, :50], neck_pose=motion[None, 53:], jaw_pose=motion[None, 50:53])
      flame |= dict(rotation=np.zeros((1, 3)), eyes_pose=np.zeros((1, 6)), translation=np.zeros((1, 3)))
      np.savez(root / "flame_param" / f"{name[:5]}.npz", **{k: v.astype(np.float32) for k, v in flame.items()})
      frames.append({
          "file_path": f"images/{name}.png",
          "fg_mask_path": f"fg_masks/{name}.png",
          "flame_param_path": f"flame_param/{name[:5]}.npz",
          "timestep_index": first + t,
          "camera_index": 0,
          "transform_matrix": camera.tolist(),
      })
    top = {"basis": "flame2020", "camera_angle_x": 2 * np.arctan(0.25), "w": SIZE, "h": SIZE, "cx": SIZE / 2, "cy": SIZE / 2}
    (root / f"transforms_{split}.json").write_text(json.dumps(top | {"frames": frames}))


def write_world(root: pathlib.Path) -> None:
  root.mkdir(parents=True)
  write_head(root / "head.npz")
  write_conversations(root / "conversations")
  write_capture(root / "capture")
  lines = [
      {"conversation": "tiny-0_sub_video_0", "split": "train", "first_timestep": 0, "relation": "blood,equal"},
      {"conversation": "tiny-2_sub_video_0", "split": "test", "first_timestep": FRAMES, "relation": "blood,unequal"},
  ]
  common = {"speaker": 2, "capture": "capture", "camera": 0, "frames": FRAMES}
  (root / "triplets.jsonl").write_text("".join(json.dumps(line | common) + "\n" for line in lines))


def train_quickly(config, workdir: str, **options) -> None:
  """A run of all stages that has everything a trained one has, by a loss that compiles in a moment: numbers shrink."""

  def shrink(params, buffers, batch, key, step):
    size = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
    return size, {"size": size}

  make_stage = train.make_stage
  plain = dict(loss=shrink, room=None, pictures=None, evaluate=None)
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(train, "make_stage", lambda *given: dataclasses.replace(make_stage(*given), **plain))
    train.train(config, workdir, **options)


def tiny_config(root: pathlib.Path):
  """The demo's config, shrunk to the tiny world: a few steps of each stage."""
  config = get_config()
  config.update_from_flattened_dict(VARIANTS["clean_voices"][1])
  config.data.embedded_root, config.data.captures = "", ()
  for name in ("conversations", "relations", "capture", "triplets", "features"):
    config.data[name] = str(root / config.data[name])
  config.head.path = str(root / "head.npz")
  config.speech.update(encoder="logmel", checkpoint="")  # Which is soon compiled.
  config.generator.update(dict(features=16, heads=2, reach=5, encoder_layers=1, decoder_layers=1))
  config.codes.update(dict(steps=3, batch=2, window=20))
  config.motion.update(dict(steps=4, batch=2, window=20))
  config.avatar.update(dict(steps=4, batch=2))
  config.gaussians.capacity, config.density.way = None, "none"
  config.joint.update(dict(steps=3, batch=2, motion_batch=2, window=20, frames=1, lpips_weight=0.0))  # AlexNet takes long to compile.
  config.logging.update(dict(log_every=2, checkpoint_every=2, pictures_every=4, evaluate_every=0))
  config.evaluation.frames = 4
  return config
