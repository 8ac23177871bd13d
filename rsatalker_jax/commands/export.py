"""What export_avatar.py does: a trained run's avatar as a file that other programs read."""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from rsatalker_jax.commands.outputs import check_output
from rsatalker_jax.data.tracks import read_track
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import pose_for
from rsatalker_jax.media import listener, splat_files, viewer
from rsatalker_jax.runs import TrainedRun, load_run
from rsatalker_jax.runs.shown import load_shown
from rsatalker_jax.social import format_relation, parse_relation
from rsatalker_jax.social.networks import TIME_PERIOD
from rsatalker_jax.social.relation import RELATIONS
from rsatalker_jax.types import FPS, MOTION_DIM, Motion

# Each format with the ending of its files' names; the first of an ending is what the name alone asks for.
FORMATS = {"ply": ".ply", "bound": ".ply", "spz": ".spz", "html": ".html"}
# How much a page plays where --frames does not say it: 4 s.
_MOST_FRAMES = 100


def export_avatar(
    *,
    workdir: str,
    out: str,
    format: str | None = None,
    motion: str | None = None,
    frame: int = 0,
    frames: int | None = None,
    relation: str | None = None,
    person: str | None = None,
    live: bool = False,
    avatar_from: str | None = None,
) -> None:
  """Writes the avatar of a run.

  Args:
    workdir: a trained run.
    out: the file.
    format: "ply" or "spz", the Gaussians of one moment in world space; "bound", a PLY with bindings that can be moved;
      "html", a page that plays the motion. None goes by the ending of `out`.
    motion: a file that `read_track` reads; `frame` of it is the pose, or a page's first one. None is the pose at rest.
    frame: counted from 0.
    frames: how many a page plays; None plays what there is, at most 100.
    relation: with the Gaussian offset corrections of this relation at time `frame`; None without.
    person: whose avatar, where the run has several people; None: the first.
    live: whether the page, instead of playing a motion, listens to a microphone and answers: the run's generator is in it.
    avatar_from: with `live`, another run on the same head, whose avatar is shown; None: that of the run.

  Raises:
    InputError: for every mistake in the inputs, before anything is written.
  """
  format = _checked_format(out, format)
  check_output("--out", out, {"--motion": motion})
  if live:
    given = {"--motion": motion, "--frame": frame or None, "--frames": frames, "--relation": relation}
    _export_listener(workdir, avatar_from, out, format, person, [name for name, value in given.items() if value is not None])
    return
  if avatar_from is not None:
    raise InputError("--avatar_from", "", avatar_from, "--live with it")
  if format == "bound" and (motion is not None or relation is not None):
    raise InputError("--format", "", "bound with --motion or --relation", "neither: it holds no pose, but every one")
  if frame and motion is None and relation is None:
    raise InputError("--frame", "", frame, "--motion or --relation with it")
  if frames is not None and (format != "html" or motion is None):
    raise InputError("--frames", "", frames, "a page, .html, and --motion with it")
  label = None if relation is None else parse_relation(relation, source="--relation")
  if format != "html":
    frames = 1
  motions = np.zeros((1, MOTION_DIM), np.float32)
  track = None
  if motion is not None:
    track = read_track(motion, shape=False)
    motions = _pick_frames(track.motion, motion, frame, frames)
  run = load_run(workdir, person=person)
  if track is not None:
    for note in (*track.notes, f"{motion}: expressions are {track.basis}'s, by {track.sign}"):
      print(note)
    run.check_basis(track.basis, motion)
  if "avatar" not in run.params:
    raise InputError(workdir, "avatar", f"only {run.stages}", "a finished avatar stage")

  count = len(run.avatar.binding)
  if format == "bound":
    beside = splat_files.write_bound_ply(out, run.avatar, run.talker.head)
    print(f"wrote {out}: {count} Gaussians on their triangles, and {beside}; run {workdir} ({run.stages})")
    return
  offsets = None
  if label is not None:
    if "offsets" not in run.params:
      raise InputError(workdir, "joint", f"only {run.stages}", "a finished joint stage, for --relation")
    numbers = np.arange(len(motions))
    offsets = run.gaussian_offsets(label, frame + numbers, motions)(numbers)
  if format == "html":
    flame = pose_for(motions)
    viewer.write_player(out, run.avatar, run.talker.head, flame, offsets, background=run.talker.background)
  else:
    flame = pose_for(motions[0])
    moment = splat_files.bake(run.avatar, run.talker.head, flame, None if offsets is None else offsets[0])
    gaussians = jax.device_get(moment)
    if format == "spz":
      for loss in splat_files.spz_losses(gaussians):
        print(loss)
      splat_files.write_spz(out, gaussians)
    else:
      splat_files.write_ply(out, gaussians)
  shown = f"frame {frame}" if len(motions) == 1 else f"frames {frame} to {frame + len(motions) - 1}"
  pose = "at rest" if motion is None else f"at {shown} of {motion}"
  pose += "" if label is None else f", {format_relation(label)}"
  print(f"wrote {out}: {count} Gaussians {pose}; run {workdir} ({run.stages})")


def _export_listener(
    workdir: str, avatar_from: str | None, out: str, format: str, person: str | None, others: Sequence[str]
) -> None:
  if format != "html":
    raise InputError("--live", "", f"the format {format}", "a page, .html")
  if others:
    raise InputError("--live", "", f"{' and '.join(others)} with it", "none: it makes its motion itself, for the relation that is chosen there")
  run, shown = load_shown(workdir, avatar_from, person)
  settings, weights, relations = run.fold(workdir)
  talker = shown.talker
  options = dict(offsets=shown.fold_offsets(relations), background=talker.background)
  size = listener.write_listener(out, shown.avatar, talker.head, settings, weights, relations, **options)
  count = sum(x.size for x in weights.values())
  print(
      f"wrote {out}: {size / 1e6:.1f} MB, {len(shown.avatar.binding)} Gaussians and a generator of {count} numbers for"
      f" {len(relations)} relation{'s' * (len(relations) > 1)}; run {workdir} ({run.stages})"
  )
  if "offsets" in shown.params:
    print(f"with the offset corrections (Eq. 8), up to {1000 * _largest_offset(shown):.2g} mm at rest")


def _largest_offset(run: TrainedRun) -> float:
  """Metres, of a head at rest, over relations and the 32 s after which offsets repeat themselves."""
  times = np.arange(0, TIME_PERIOD, FPS)
  motions = np.zeros((len(times), MOTION_DIM), np.float32)
  offsets = [run.gaussian_offsets(parse_relation(name), times, motions)(np.arange(len(times))) for name in RELATIONS]
  return max(float(np.linalg.norm(x, axis=-1).max()) for x in offsets)


def _checked_format(out: str, format: str | None) -> str:
  suffix = pathlib.Path(out).suffix
  if format is None:
    format = next((name for name, ending in FORMATS.items() if ending == suffix), None)
    if format is None:
      raise InputError("--out", "", out, f"a name that ends in {' or '.join(sorted(set(FORMATS.values())))}")
  if FORMATS[format] != suffix:
    raise InputError("--out", "", out, f"a name that ends in {FORMATS[format]}, for the format {format}")
  return format


def _pick_frames(frames: Motion, motion: str, first: int, count: int | None) -> np.ndarray:
  if not 0 <= first < len(frames):
    raise InputError("--frame", "", first, f"0 to {len(frames) - 1}, as {motion} has")
  most = len(frames) - first
  count = min(most, _MOST_FRAMES) if count is None else count
  if not 1 <= count <= most:
    raise InputError("--frames", "", count, f"1 to {most}, as {motion} has from frame {first} on")
  return frames[first : first + count]
