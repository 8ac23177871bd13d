"""What generate.py does: from the files of one conversation to a video with sound of both faces."""

import math
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import tqdm
from jaxtyping import Int, UInt8

import splat_kernels
from rsatalker_jax import sharding
from rsatalker_jax.avatar import Avatar
from rsatalker_jax.commands.outputs import check_output
from rsatalker_jax.data.captures import load_capture
from rsatalker_jax.data.dualtalk import read_conversation, write_motion
from rsatalker_jax.data.pipeline import load_clips
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import FlamePose, pose_for, rotation_matrix
from rsatalker_jax.media import conversation as conversation_frames, video
from rsatalker_jax.social import format_relation
from rsatalker_jax.talker import render_sequence
from rsatalker_jax.runs import TrainedRun, load_run
from rsatalker_jax.types import FPS, SAMPLE_RATE, Motion


def generate_video(
    *,
    workdir: str,
    speech_a: str,
    motion_a: str,
    speech_b: str,
    relation: str,
    out: str,
    save_motion: str | None = None,
    size: int = 320,
    seconds: float | None = None,
    person: str | None = None,
    camera: int | None = None,
) -> None:
  """Generates B's motion and writes the video of A (left) and B (right) with both voices.

  Args:
    workdir: a trained run.
    speech_a, motion_a, speech_b: files of the conversation; see `read_conversation`.
    relation: for example "non_blood,unequal".
    out: the video's name.
    save_motion: where to write B's motion too.
    size: height of each face in pixels.
    seconds: only so much from the beginning.
    person: who B is, where the run has a bank.
    camera: of the capture; None takes the one that the face looks at.

  Raises:
    InputError: for every mistake in the inputs, before anything is written.
  """
  for name, path, suffix in (("--out", out, ".mp4"), ("--save_motion", save_motion, ".npz")):
    if path is not None and pathlib.Path(path).suffix != suffix:
      raise InputError(name, "", path, f"a name that ends in {suffix}")
    if path is not None:
      check_output(name, path, {"--speech_a": speech_a, "--motion_a": motion_a, "--speech_b": speech_b})
  if size % 2:
    raise InputError("--size", "", size, "an even number")
  if seconds is not None and not 0 < seconds < math.inf:
    raise InputError("--seconds", "", seconds, "a number of seconds")
  conversation, notes = read_conversation(speech_a, motion_a, speech_b, relation)
  for note in notes:
    print(note)
  run = load_run(workdir, person=person)
  for group, stage in (("generator", "motion"), ("avatar", "avatar")):
    if group not in run.params:
      raise InputError(workdir, stage, f"only {run.stages}", f"a finished {stage} stage")

  (clip,) = load_clips([conversation], run.encode)
  motion_b = run.generate(clip)
  count = len(motion_b) if seconds is None else min(len(motion_b), round(seconds * FPS))
  print(f"{count / FPS:.1f} s, {format_relation(conversation.relation)}; run {workdir} ({run.stages})")
  if save_motion is not None:
    write_motion(save_motion, motion_b[:count])

  view, body = _front_view(run, size, camera)
  partner = _another_person(run)
  frames_a = _faces(run, partner, clip.motion_a[:count], body, view)
  frames_b = _faces(run, run.avatar, motion_b[:count], body, view, clip.relation)
  levels = tuple(conversation_frames.voice_levels(x, count, FPS) for x in (conversation.speech_a, conversation.speech_b))
  labels = ("A (given)", f"B (generated; {format_relation(conversation.relation)})")
  frames = conversation_frames.side_by_side(frames_a, frames_b, labels, levels)
  sound = video.pan_two_voices(conversation.speech_a, conversation.speech_b)[: count * SAMPLE_RATE // FPS]
  video.write_video(out, tqdm.tqdm(frames, total=count, desc="video", unit="frame"), audio=sound)
  print(f"wrote {out}")


def _front_view(run: TrainedRun, size: int, camera: int | None) -> tuple[splat_kernels.Camera, FlamePose]:
  """A camera of the capture at the wanted height, and how the filmed body stood before it at the capture's first moment.

  Args:
    camera: its index in the capture; None takes the one that the face looks at.
  """
  capture = load_capture(run.data_path("capture"), "train")
  indices = np.unique(capture.camera_indices)
  if camera is not None and camera not in indices:
    raise InputError("--camera", "", camera, f"one of {', '.join(map(str, indices))}, the cameras of {capture.root}")
  firsts = [int(np.flatnonzero(capture.camera_indices == index)[0]) for index in (indices if camera is None else [camera])]
  item = max((capture[first] for first in firsts), key=_looked_at)
  zoom = size / capture.height
  intrinsics = item["intrinsics"] * np.array([[zoom], [zoom], [1]], np.float32)
  width = round(capture.width * zoom / 2) * 2
  return splat_kernels.Camera(item["world_to_camera"], intrinsics, width, size), item["flame"]


def _looked_at(item: dict) -> float:
  """How straight the face of a captured frame looks into its camera: 1 straight, -1 away."""
  flame, view = item["flame"], item["world_to_camera"]
  forward = rotation_matrix(flame["rotation"]) @ rotation_matrix(flame["neck"]) @ np.array([0.0, 0.0, 1.0])
  to_camera = -view[:3, :3].T @ view[:3, 3] - flame["translation"]
  return float(forward @ to_camera / np.linalg.norm(to_camera))


def _another_person(run: TrainedRun) -> Avatar:
  """The trained Gaussians on another identity of the head model, so that the two are not twins."""
  identities = run.talker.head.identities
  if identities is None:
    return run.avatar
  shape = np.asarray(run.avatar.shape)
  width = min(len(shape), identities.shape[1])
  distances = np.linalg.norm(np.asarray(identities)[:, :width] - shape[:width], axis=1)
  other = np.zeros_like(shape)
  other[:width] = np.asarray(identities)[np.argsort(distances)[1], :width]
  return run.avatar.replace(shape=other, static_offset=None)


def _faces(
    run: TrainedRun,
    avatar: Avatar,
    motion: Motion,
    body: FlamePose,
    camera: splat_kernels.Camera,
    relation: Int[np.ndarray, "2"] | None = None,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
  """Frames of one face on a body that stands still; with a relation, with its offset corrections."""
  repeat = lambda x: np.broadcast_to(x, (len(motion), *np.shape(x)))
  flame = jax.device_get(pose_for(motion, {name: repeat(x) for name, x in body.items()}, repeat(run.alignment)))
  offsets = None if relation is None else run.gaussian_offsets(relation, np.arange(len(motion)), motion)
  for chunk in render_sequence(run.talker, sharding.make_mesh(), avatar, flame, camera, offsets):
    yield from video.to_uint8(chunk)
