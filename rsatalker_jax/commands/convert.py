"""What the verb convert does: a motion, or a folder of conversations, in another basis or as another kind of file."""

import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import tqdm

from rsatalker_jax.commands.outputs import check_output
from rsatalker_jax.data import arkit
from rsatalker_jax.data.dualtalk import SPLITS, check_motion_file, write_motion_file
from rsatalker_jax.data.tracks import Track, read_track
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file
from rsatalker_jax.head import check_basis, load_head
from rsatalker_jax.head.retarget import Fit, Retargeting
from rsatalker_jax.types import Motion

_REPORT = "conversion.json"
# A track's motion in the wanted basis, the basis, and how well that went, where it was fitted.
_Converter = Callable[[str, Track], tuple[Motion, str, Fit | None]]


def convert_motion(
    *,
    motion: str,
    out: str,
    from_head: str | None = None,
    to_head: str | None = None,
    from_basis: str | None = None,
    to_basis: str | None = None,
    fps: float | None = None,
) -> None:
  """Converts a file, or all files of a folder in DualTalk's layout.

  Args:
    motion: a file that `read_track` reads, or a folder with train, val, test or ood.
    out: a file, .npz, .csv or .json; or the new folder. Voices are linked into it, or copied, tables copied; what is there
      from an earlier call is kept.
    from_head, to_head: the head models of both bases; neither where the basis stays.
    from_basis, to_basis: of head models whose files do not tell them.
    fps: see `arkit.read_arkit`.

  Raises:
    InputError: for every mistake in the inputs, before anything is written.
  """
  if (from_head is None) != (to_head is None):
    raise InputError("--from_head", "", from_head or "none", "--from_head and --to_head, or neither")
  source, folder = pathlib.Path(motion), _is_data_set(pathlib.Path(motion))
  if folder:
    if pathlib.Path(out).suffix in (".npz", *arkit.SUFFIXES) or pathlib.Path(out).resolve() == source.resolve():
      raise InputError("--out", "", out, "another folder")
  else:
    check_motion_file("--out", out, None)
    check_output("--out", out, {"--motion": motion, "--from_head": from_head, "--to_head": to_head})
  if from_head is None or to_head is None:
    if to_basis is not None or from_basis is not None:
      raise InputError("--to_basis", "", to_basis or from_basis, "--from_head and --to_head with it")
    convert: _Converter = lambda place, track: (track.motion, track.basis, None)
  else:
    convert = _make_converter(from_head, to_head, from_basis, to_basis)
  if folder:
    _convert_folder(source, pathlib.Path(out), convert)
    return
  track = _read(motion, fps)
  for note in (*track.notes, f"{motion}: expressions are {track.basis}'s, by {track.sign}"):
    print(note)
  converted, basis, fit = convert(motion, track)
  if fit is not None:
    print(f"the face moves by {fit.moved:.2f} mm (rms), and lands {fit.error:.2f} mm from there (rms; 95 % within {fit.worst:.2f} mm)")
  for note in write_motion_file(out, converted, basis=basis):
    print(note)
  print(f"wrote {out}: {len(converted)} frames, expressions of {basis}")


def _read(path: str, fps: float | None) -> Track:
  if pathlib.Path(path).suffix.lower() in arkit.SUFFIXES:
    take = arkit.read_arkit(path, fps=fps)
    return Track(take.motion, "arkit", "its names", notes=take.notes)
  if fps is not None:
    raise InputError("--fps", "", fps, "a .csv or .json with it: tracks are at 25")
  return read_track(path, shape=False)


def _make_converter(from_head: str, to_head: str, from_basis: str | None, to_basis: str | None) -> _Converter:
  source, target = load_head(from_head, basis=from_basis), load_head(to_head, basis=to_basis)
  for flag, path, head in (("--from_basis", from_head, source), ("--to_basis", to_head, target)):
    if head.basis is None:
      raise InputError(path, "basis", "a FLAME model that does not tell its year", f"{flag}=flame2020 or flame2023")

  @functools.cache
  def retargeting() -> Retargeting:
    made = Retargeting(source, target)
    print(f"{from_head} and {to_head}: {made.points} points of the face, {made.apart:.2f} mm apart (rms) at rest")
    return made

  def convert(place: str, track: Track) -> tuple[Motion, str, Fit | None]:
    remedy = f"--from_head with the model of {track.basis}"
    check_basis(source, track.basis, place, head_path=from_head, remedy=remedy)
    converted, fit = retargeting().convert(track.motion)
    return converted, str(target.basis), fit

  return convert


# --- Folders


def _is_data_set(path: pathlib.Path) -> bool:
  return path.is_dir() and any((path / split).is_dir() for split in SPLITS)


def _convert_folder(source: pathlib.Path, out: pathlib.Path, convert: _Converter) -> None:
  """Converts all motions of a folder in DualTalk's layout; voices and tables come along."""
  files = sorted(path for split in SPLITS for path in (source / split).glob("*") if path.is_file())
  motions = [path for path in files if path.suffix == ".npz" and not path.name.startswith(".")]
  if not motions:
    raise InputError(source, "", "no .npz in its splits", "clips <id>_speaker{1,2}.{wav,npz}")
  fits: dict[str, Fit] = {}
  kept, bases = 0, {}
  for path in tqdm.tqdm(motions, desc="convert", unit="file"):
    place = out / path.relative_to(source)
    if place.exists():
      kept += 1
      bases.setdefault(read_track(place, shape=False).basis, place)
      continue
    converted, basis, fit = convert(str(path), read_track(path, shape=False))
    place.parent.mkdir(parents=True, exist_ok=True)
    write_motion_file(place, converted, basis=basis)
    bases.setdefault(basis, place)
    if fit is not None:
      fits[str(path.relative_to(source))] = fit
  if len(bases) > 1:
    found = ", ".join(f"{basis} in {place}" for basis, place in bases.items())
    raise InputError(out, "basis", found, "one for all: remove what is left of an earlier conversion")
  beside = [path for path in (*files, *source.glob("*.csv")) if path.suffix in (".wav", ".csv")]
  for path in beside:
    _link(path, out / path.relative_to(source))
  report = {"converted": len(motions) - kept, "kept from before": kept, "voices and tables": len(beside)}
  if fits:
    for name in ("moved", "error", "worst"):
      report[f"{name} mm, mean over files"] = round(sum(getattr(fit, name) for fit in fits.values()) / len(fits), 4)
    worst = max(fits, key=lambda name: fits[name].error)
    report |= {"worst file": worst, "its error mm": round(fits[worst].error, 4)}
  with whole_file(out / _REPORT) as file:
    file.write((json.dumps(report, indent=2) + "\n").encode())
  print(f"wrote {out}: " + ", ".join(f"{key} {value}" for key, value in report.items()))


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
  """A hard link, or a copy where the file system has none; what is there stays."""
  if target.exists():
    return
  target.parent.mkdir(parents=True, exist_ok=True)
  try:
    os.link(source, target)
  except OSError:
    shutil.copyfile(source, target)
