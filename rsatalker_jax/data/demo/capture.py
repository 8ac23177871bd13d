"""The captures in assets/capture and assets/capture_*, a person each: videos and a table, unpacked into the VHAP /
GaussianAvatars layout.

assets/capture/README.md describes what is read here; `rsatalker_jax.data.captures` reads what is written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

import av
from jaxtyping import UInt8
import numpy as np
from PIL import Image

from rsatalker_jax import npz
from rsatalker_jax.errors import InputError
from rsatalker_jax.types import FPS

CAPTURED_PERFORMANCE = 9  # The number under which a captured conversation is unpacked among the performances.

_KEYS = ("image_size", "camera_angle_x", "camera_to_world", "camera_split", "conversation", "conversation_split",
         "relation", "speaker", "first_timestep", "num_frames", "expr", "neck_pose", "jaw_pose", "eyes_pose", "rotation",
         "translation", "shape")
# Widths of VHAP's coefficient arrays; ours are padded with zeros.
_VHAP_EXPRESSION, _VHAP_SHAPE = 100, 300


@dataclasses.dataclass(frozen=True)
class CaptureAsset:
  """An opened capture: its folder and the arrays of capture.npz."""

  folder: pathlib.Path
  table: Mapping[str, np.ndarray]

  @classmethod
  def open(cls, folder: pathlib.Path) -> "CaptureAsset":
    """Reads capture.npz.

    Raises:
      InputError: it is damaged or lacks a key.
    """
    path = folder / "capture.npz"
    with npz.open_npz(path) as file:
      table = {key: file[key] for key in file}
    cameras = range(len(table.get("camera_angle_x", ())))
    for key in (*_KEYS, *(f"timesteps_{camera}" for camera in cameras)):
      if key not in table:
        raise InputError(path, key, "no such key", "the keys of assets/capture/README.md")
    return cls(folder, table)

  @classmethod
  def find(cls, assets: pathlib.Path) -> list["CaptureAsset"]:
    """All captures below a folder, capture before capture_*. Raises: InputError: see `open`."""
    return [cls.open(path.parent) for path in sorted(assets.glob("capture*/capture.npz"))]

  @property
  def name(self) -> str:
    """Of its folder, here and where it is unpacked."""
    return self.folder.name

  @property
  def person(self) -> str:
    """Whom it films: a name among the head's identities; else its own."""
    return str(self.table.get("identity", self.name))

  def speakers(self) -> dict[str, int]:
    """Which speaker of each conversation it films."""
    return dict(zip(map(str, self.table["conversation"]), map(int, self.table["speaker"])))

  def triplets(self) -> list[dict[str, Any]]:
    """One manifest entry per conversation, with the camera that films it longest without a gap from its first frame on.

    `frames` is as many as that camera shows; a conversation of which no camera shows
    its first second has no entry.
    """
    entries = []
    for k, name in enumerate(self.table["conversation"]):
      first, frames = int(self.table["first_timestep"][k]), int(self.table["num_frames"][k])
      shown = [int(np.cumprod(np.isin(np.arange(first, first + frames), self.table[f"timesteps_{camera}"])).sum())
               for camera in range(len(self.table["camera_angle_x"]))]
      camera = int(np.argmax(shown))
      if shown[camera] == frames or shown[camera] >= FPS:
        entries.append({
            "conversation": str(name), "split": str(self.table["conversation_split"][k]),
            "speaker": int(self.table["speaker"][k]), "capture": self.name, "camera": camera,
            "first_timestep": first, "frames": shown[camera], "relation": str(self.table["relation"][k]),
        })
    return entries

  def unpack(self, out: pathlib.Path, *, say: Callable[[str], None]) -> None:
    """Writes frames, masks, parameters and the transforms files.

    Raises:
      InputError: a video is missing, damaged or has another number of frames than the table says.
    """
    for name in ("images", "fg_masks", "flame_param"):
      (out / name).mkdir(parents=True)
    frames: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    timesteps: set[int] = set()
    for camera, angle in enumerate(self.table["camera_angle_x"]):
      shown = self.table[f"timesteps_{camera}"]
      self._write_images(camera, out)
      timesteps.update(int(t) for t in shown)
      for timestep in shown:
        split = self._split(int(timestep), camera)
        if split is not None:
          frames[split].append(self._entry(int(timestep), camera, float(angle)))
      say(f"unpacking {self.name}: camera {camera}, {len(shown)} frames")
    self._write_parameters(sorted(timesteps), out)
    width, height = (int(size) for size in self.table["image_size"])
    for split, entries in frames.items():
      if entries:
        entries.sort(key=lambda entry: (entry["timestep_index"], entry["camera_index"]))
        content: dict[str, Any] = {"w": width, "h": height, "cx": width / 2, "cy": height / 2}
        content |= {"basis": "arkit", "background": [1.0, 1.0, 1.0], "frames": entries}  # The renders blend in white.
        (out / f"transforms_{split}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

  def _split(self, timestep: int, camera: int) -> str | None:
    """test: test conversations; train and val: the others, by camera."""
    for k, (first, count) in enumerate(zip(self.table["first_timestep"], self.table["num_frames"], strict=True)):
      if first <= timestep < first + count:
        return "test" if self.table["conversation_split"][k] == "test" else str(self.table["camera_split"][camera])
    return None

  def _entry(self, timestep: int, camera: int, angle: float) -> dict[str, Any]:
    width, height = (int(size) for size in self.table["image_size"])
    name = f"{timestep:05d}_{camera:02d}.png"
    return {
        "file_path": f"images/{name}", "fg_mask_path": f"fg_masks/{name}",
        "flame_param_path": f"flame_param/{timestep:05d}.npz", "timestep_index": timestep, "camera_index": camera,
        "camera_angle_x": angle, "w": width, "h": height, "cx": width / 2, "cy": height / 2,
        "transform_matrix": self.table["camera_to_world"][camera].tolist(),
    }

  def _write_images(self, camera: int, out: pathlib.Path) -> None:
    timesteps = self.table[f"timesteps_{camera}"]
    for kind, folder, pixels in (("camera", "images", "rgb24"), ("mask", "fg_masks", "gray")):
      path, count = self.folder / f"{kind}_{camera}.mp4", 0
      for count, frame in enumerate(_read_video(path, pixels), 1):
        if count <= len(timesteps):
          # Level 1: a third larger than the best, five times as fast.
          Image.fromarray(frame).save(out / folder / f"{timesteps[count - 1]:05d}_{camera:02d}.png", compress_level=1)
      if count != len(timesteps):
        raise InputError(path, "frames", count, f"{len(timesteps)}, as timesteps_{camera} in capture.npz")

  def _write_parameters(self, timesteps: list[int], out: pathlib.Path) -> None:
    table = self.table
    num_vertices = self._num_vertices()
    rest = {
        "shape": _padded(table["shape"], _VHAP_SHAPE), "expr": np.zeros((1, _VHAP_EXPRESSION), np.float32),
        "neck_pose": np.zeros((1, 3), np.float32), "jaw_pose": np.zeros((1, 3), np.float32),
        "eyes_pose": table["eyes_pose"].reshape(1, 6).astype(np.float32),
        "rotation": table["rotation"].reshape(1, 3).astype(np.float32),
        "translation": table["translation"].reshape(1, 3).astype(np.float32),
        "static_offset": np.zeros((1, num_vertices, 3), np.float32),
    }
    np.savez_compressed(out / "canonical_flame_param.npz", **rest)
    for timestep in timesteps:
      shown = dict(expr=_padded(table["expr"][timestep], _VHAP_EXPRESSION)[None],
                   neck_pose=table["neck_pose"][timestep][None], jaw_pose=table["jaw_pose"][timestep][None])
      np.savez_compressed(out / "flame_param" / f"{timestep:05d}.npz", **(rest | shown))

  def _num_vertices(self) -> int:
    """Vertices of the head that was filmed."""
    path = self.folder.parent / "head" / "demo_head.npz"
    with npz.open_npz(path, "the demo head") as head:
      return len(head["v_template"])


def _padded(values: np.ndarray, width: int) -> np.ndarray:
  return np.pad(values.astype(np.float32), (0, width - len(values)))


def _read_video(path: pathlib.Path, pixels: str) -> Iterator[UInt8[np.ndarray, "H W *c"]]:
  """Frames of a video as rgb24 (H, W, 3) or gray (H, W)."""
  try:
    with av.open(str(path)) as container:
      for frame in container.decode(video=0):
        yield frame.to_ndarray(format=pixels)
  except (OSError, IndexError, av.error.FFmpegError) as error:
    raise InputError(path, "", f"an unreadable video ({error})", "an H.264 video") from error


def find_motions(captures: Sequence[CaptureAsset]) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
  """Files with both speakers' motion of each filmed conversation. Two people filmed in one have them once, in either's folder.

  Raises:
    InputError: one that no folder has.
  """
  found = {}
  for name in dict.fromkeys(str(name) for capture in captures for name in capture.table["conversation"]):
    pairs = [(capture.folder / f"{name}_speaker1.npz", capture.folder / f"{name}_speaker2.npz") for capture in captures]
    whole = [pair for pair in pairs if all(path.exists() for path in pair)]
    if whole:
      found[name] = whole[0]
    else:
      folders = ", ".join(str(capture.folder) for capture in captures)
      raise InputError(folders, name, "a film, but not the motion of both speakers", f"{name}_speaker1.npz and _speaker2.npz")
  return found
