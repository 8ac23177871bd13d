"""What generate.py does: from the files of one conversation, or a recording of a live one, to a video with sound of both faces."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping

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
from rsatalker_jax.runs.shown import load_shown
from rsatalker_jax.types import FPS, SAMPLE_RATE, Conversation, Motion


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
  check_outputs(out, save_motion, size, seconds, {"--speech_a": speech_a, "--motion_a": motion_a, "--speech_b": speech_b})
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
  told = f"{format_relation(conversation.relation)}; run {workdir} ({run.stages})"
  relations = np.broadcast_to(clip.relation, (len(motion_b), 2))
  film = Film(run, partner, names[0], conversation, motion_b, relations)
  film.write(out, save_motion, size, seconds, camera, captions, told)


def film_recording(
    *,
    workdir: str,
    recording: str,
    out: str,
    avatar_from: str | None = None,
    save_motion: str | None = None,
    size: int = 320,
    seconds: float | None = None,
    person: str | None = None,
    person_a: str | None = None,
    camera: int | None = None,
    captions: bool = True,
) -> None:
  """Generates B's motion of a live conversation that was recorded as it was generated then, says whether it is the same, and writes
  the video.

  Args:
    workdir: the run that generated it.
    recording: a folder of `python -m rsatalker_jax live --recordings`.
    avatar_from: another run, on the same head, whose avatar is B's; None: the same run.
    out, save_motion, size, seconds, person, person_a, camera, captions: see `generate_video`.

  Raises:
    InputError: for every mistake in the inputs, before anything is written.
  """
  from rsatalker_jax.live.recording import read_recording, reproduce

  check_outputs(out, save_motion, size, seconds, {"--recording": recording})
  recorded = read_recording(recording)
  run, shown = load_shown(workdir, avatar_from)
  partner, shown = views.choose_people(shown, person_a, person)
  if save_motion is not None:
    check_motion_file("--save_motion", save_motion, run.basis)
  motion_b = reproduce(run, recorded, workdir)
  differ = np.flatnonzero((motion_b != recorded.motion_b).any(axis=1))
  if len(differ):
    most = np.abs(motion_b - recorded.motion_b).max()
    print(f"B's motion differs from the recorded one in {len(differ)} of {len(motion_b)} frames, from {differ[0] / FPS:.2f} s on, by at most "
          f"{most:.2g}: another machine, another version, or more conversations at once")
  else:
    print(f"B's motion is the recorded one in every bit: {len(motion_b)} frames")
  conversation = Conversation(
      name=recorded.name,
      speech_a=recorded.speech_a,
      motion_a=recorded.motion_a,
      speech_b=recorded.speech_b,
      motion_b=None,
      relation=recorded.relations[0],
      basis=recorded.about["basis"],
  )
  course = " → ".join(relation for _, relation in recorded.about["relations"])
  film = Film(shown, partner, "", conversation, motion_b, recorded.relations)
  film.write(out, save_motion, size, seconds, camera, captions, f"{course}; run {workdir} ({run.stages})")


def check_outputs(
    out: str, save_motion: str | None, size: int, seconds: float | None, inputs: Mapping[str, str | None]
) -> None:
  """Whether a film can be written as it was asked for; `inputs` as in `check_output`.

  Raises:
    InputError: it cannot.
  """
  if pathlib.Path(out).suffix != ".mp4":
    raise InputError("--out", "", out, "a name that ends in .mp4")
  if save_motion is not None:
    check_motion_file("--save_motion", save_motion, None)
  for name, path in (("--out", out), ("--save_motion", save_motion)):
    if path is not None:
      check_output(name, path, inputs)
  if size % 2:
    raise InputError("--size", "", size, "an even number")
  if seconds is not None and not 0 < seconds < math.inf:
    raise InputError("--seconds", "", seconds, "a number of seconds")


@dataclasses.dataclass(frozen=True)
class Film:
  """A conversation whose B is generated, to be drawn.

  Attributes:
    run: with B's avatar.
    partner: with A's; None: A is drawn on another identity of the head, on that of `name_a` if the head knows them.
    conversation: voices and A's motion.
    motion_b: B's.
    relations: [blood, equal] of each frame.
  """

  run: TrainedRun
  partner: TrainedRun | None
  name_a: str
  conversation: Conversation
  motion_b: Motion
  relations: Int[np.ndarray, "T 2"]

  def write(
      self, out: str, save_motion: str | None, size: int, seconds: float | None, camera: int | None, captions: bool, told: str
  ) -> None:
    """Arguments as of `generate_video`; told: what is said of it beside its length."""
    run, partner, conversation = self.run, self.partner, self.conversation
    count = len(self.motion_b) if seconds is None else min(len(self.motion_b), round(seconds * FPS))
    who = f"A: {partner.person}" if partner else f"A: {run.person}'s avatar on another identity"
    print(f"{count / FPS:.1f} s, {told}")
    print(f"{who}; B: {run.person}")
    motion_b, relations = self.motion_b[:count], self.relations[:count]
    if save_motion is not None:
      for note in write_motion_file(save_motion, motion_b, basis=conversation.basis):
        print(note)
    view, body = views.front_view(run, size, camera)
    if partner is None:
      frames_a = _faces(run, views.partner_avatar(run, self.name_a), conversation.motion_a[:count], body, view)
    else:
      view_a, body_a = views.front_view(partner, size, camera)
      frames_a = _faces(partner, partner.avatar, conversation.motion_a[:count], body_a, view_a)
    frames_b = _faces(run, run.avatar, motion_b, body, view, relations)
    levels = tuple(conversation_frames.voice_levels(x, count, FPS) for x in (conversation.speech_a, conversation.speech_b))
    frames = conversation_frames.side_by_side(frames_a, frames_b, self._labels() if captions else None, levels)
    sound = video.pan_two_voices(conversation.speech_a, conversation.speech_b)[: count * SAMPLE_RATE // FPS]
    video.write_video(out, tqdm.tqdm(frames, total=count, desc="video", unit="frame"), audio=sound)
    print(f"wrote {out}")

  def _labels(self) -> tuple[str, str]:
    constant = (self.relations == self.relations[0]).all()
    return "A (given)", f"B (generated; {format_relation(self.relations[0]) if constant else 'relation changes'})"


def _faces(
    run: TrainedRun,
    avatar: Avatar,
    motion: Motion,
    body: FlamePose,
    camera: splat_kernels.Camera,
    relations: Int[np.ndarray, "T 2"] | None = None,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
  """Frames of one face on a body that stands still; with relations, with their offset corrections."""
  repeat = lambda x: np.broadcast_to(x, (len(motion), *np.shape(x)))
  flame = jax.device_get(pose_for(motion, {name: repeat(x) for name, x in body.items()}, repeat(run.alignment)))
  offsets = None if relations is None else run.gaussian_offsets(relations, np.arange(len(motion)), motion)
  for chunk in render_sequence(run.talker, sharding.make_mesh(), avatar, flame, camera, offsets):
    yield from video.to_uint8(chunk)
