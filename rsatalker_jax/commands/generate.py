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
from rsatalker_jax.data.dualtalk import check_motion_file, read_conversation, write_motion_file
from rsatalker_jax.data.pipeline import load_clips
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import FlamePose, pose_for
from rsatalker_jax.media import conversation as conversation_frames, video
from rsatalker_jax.social import format_relation
from rsatalker_jax.talker import render_sequence
from rsatalker_jax.runs import TrainedRun, load_run, views
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
    person_a: str | None = None,
    camera: int | None = None,
    captions: bool = True,
) -> None:
  """Generates B's motion and writes the video of A (left) and B (right) with both voices.

  Args:
    workdir: a trained run.
    speech_a, motion_a, speech_b: files of the conversation; see `read_conversation`.
    relation: for example "non_blood,unequal".
    out: the video's name.
    save_motion: where to write B's motion too: .npz, or .csv or .json of ARKit's shapes.
    size: height of each face in pixels.
    seconds: only so much from the beginning.
    person, person_a: of whose avatars of the run B and A are drawn; None: of who speaks, by the files' names, else B of the
      first and A of another (`views.choose_people`).
    camera: of the capture; None takes the one that the face looks at.
    captions: whether a strip below the faces says who is who and whose voice is heard.

  Raises:
    InputError: for every mistake in the inputs, before anything is written.
  """
  if pathlib.Path(out).suffix != ".mp4":
    raise InputError("--out", "", out, "a name that ends in .mp4")
  if save_motion is not None:
    check_motion_file("--save_motion", save_motion, None)
  for name, path in (("--out", out), ("--save_motion", save_motion)):
    if path is not None:
      check_output(name, path, {"--speech_a": speech_a, "--motion_a": motion_a, "--speech_b": speech_b})
  if size % 2:
    raise InputError("--size", "", size, "an even number")
  if seconds is not None and not 0 < seconds < math.inf:
    raise InputError("--seconds", "", seconds, "a number of seconds")
  conversation, notes = read_conversation(speech_a, motion_a, speech_b, relation)
  for note in notes:
    print(note)
  run = load_run(workdir)
  for group, stage in (("generator", "motion"), ("avatar", "avatar")):
    if group not in run.params:
      raise InputError(workdir, stage, f"only {run.stages}", f"a finished {stage} stage")
  names = views.name_speaker(run, speech_a), views.name_speaker(run, speech_b)
  partner, run = views.choose_people(run, person_a, person, names)
  run.check_basis(conversation.basis, motion_a)
  if save_motion is not None:
    check_motion_file("--save_motion", save_motion, run.basis)

  (clip,) = load_clips([conversation], run.encode)
  motion_b = run.generate(clip)
  count = len(motion_b) if seconds is None else min(len(motion_b), round(seconds * FPS))
  who = f"A: {partner.person}" if partner else f"A: {run.person}'s avatar on another identity"
  print(f"{count / FPS:.1f} s, {format_relation(conversation.relation)}; run {workdir} ({run.stages})")
  print(f"{who}; B: {run.person}")
  if save_motion is not None:
    for note in write_motion_file(save_motion, motion_b[:count], basis=conversation.basis):
      print(note)

  view, body = views.front_view(run, size, camera)
  if partner is None:
    frames_a = _faces(run, views.partner_avatar(run, names[0]), clip.motion_a[:count], body, view)
  else:
    view_a, body_a = views.front_view(partner, size, camera)
    frames_a = _faces(partner, partner.avatar, clip.motion_a[:count], body_a, view_a)
  frames_b = _faces(run, run.avatar, motion_b[:count], body, view, clip.relation)
  levels = tuple(conversation_frames.voice_levels(x, count, FPS) for x in (conversation.speech_a, conversation.speech_b))
  labels = ("A (given)", f"B (generated; {format_relation(conversation.relation)})") if captions else None
  frames = conversation_frames.side_by_side(frames_a, frames_b, labels, levels)
  sound = video.pan_two_voices(conversation.speech_a, conversation.speech_b)[: count * SAMPLE_RATE // FPS]
  video.write_video(out, tqdm.tqdm(frames, total=count, desc="video", unit="frame"), audio=sound)
  print(f"wrote {out}")


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
