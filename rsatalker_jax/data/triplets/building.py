"""DualTalk's conversations found in RealTalk's videos, and written as triplets of speech, mesh and video (Sec. 4.1).

    <videos>/**/<video id>.{avi,mp4,mov,mkv,webm}     RealTalk; p0 is the person on the left, p1 on the right
    <conversations>/{train,val,test}/<video id>_sub_video_<n>..._speaker{1,2}.{wav,npz}     DualTalk

become

    <out>/conversations/{train,val,test}/   the conversations that were found, DualTalk's layout, with relations.csv
    <out>/captures/<video id>_p{0,1}/       films of each person, one a clip, in the capture layout (`data.captures`)
    <out>/triplets.jsonl                    which film shows which conversation (`manifest`)
    <out>/clips/<conversation>.json         what was decided of each clip, from which the rest is put together
    <out>/index/                            features of the videos' sound, with `search_all`

A clip's record is written last. So what was stopped goes on where it was, and what changed is done again.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rsatalker_jax import npz
from rsatalker_jax.data.audio import read_wav
from rsatalker_jax.data.captures import read_identity
from rsatalker_jax.data.relations import RelationLabel, read_relations, write_relations
from rsatalker_jax.data.tracks import read_motion, read_track
from rsatalker_jax.data.triplets import cropping, matching, people
from rsatalker_jax.data.triplets.matching import ClipSound, Match, Placement, SoundIndex
from rsatalker_jax.data.triplets.source_video import SUFFIXES, read_frames_at, read_video_sound
from rsatalker_jax.data.triplets.sources import Clip, Sources, list_clips, list_videos
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import link_or_copy, whole_file
from rsatalker_jax.social.relation import UNKNOWN, format_relation
from rsatalker_jax.types import FPS, SAMPLES_PER_FRAME

_VERSION = 1  # Of what is decided and written: another does everything again.
_PICTURE_WIDTH = 160
_MOST_VIDEOS = 3  # That are listened to, of all that are searched.
_IDENTITY = "identity.npz"  # Beside a film's parameters.
_CHUNK = 32  # Clips that are searched for together.

WriteFilm = Callable[..., int]  # `media.video.write_video`, which data may not import.


@dataclasses.dataclass(frozen=True)
class Options:
  """Attributes:
    size: of films, width and height, even.
    margin: see `cropping.MARGIN`.
    search_all: whether every video is searched, not the one that a clip's name says.
    only_tracked: whether only people with tracks of VHAP get films.
    quality: of films, x264's constant rate factor.
    rules: when a placement is accepted.
    evidence: see `people.MARGIN`.
  """

  size: tuple[int, int] = (512, 512)
  margin: float = cropping.MARGIN
  search_all: bool = False
  only_tracked: bool = False
  quality: int = 16
  rules: matching.Rules = dataclasses.field(default_factory=matching.Rules)
  evidence: float = people.MARGIN


# --- Building


def build_triplets(
    sources: Sources,
    out: pathlib.Path,
    options: Options,
    write_film: WriteFilm,
    *,
    jobs: int = 1,
    progress: Callable[[Iterable, int, str], Iterable] = lambda items, total, what: items,
) -> list[dict[str, Any]]:
  """Finds all conversations in the videos and writes the triplets.

  Args:
    sources: what is read.
    out: the folder to write; what is there from before is used, where nothing that it came from has changed.
    options: how.
    write_film: `media.video.write_video`.
    jobs: processes.
    progress: wraps what comes one after another, for a progress bar: the items, how many there will be, and of what.

  Returns:
    The records of all conversations, by name: "status" is "matched", "refused" or "skipped" (see `_Builder`).

  Raises:
    InputError: folders without conversations or videos, a wrong table, or an output that cannot be written.
  """
  clips, unusable = list_clips(sources.conversations)
  videos, several = list_videos(sources.videos)
  if sources.boxes is not None:
    cropping.read_boxes(sources.boxes)  # What is wrong is said before hours of work.
  relations = read_relations(sources.relations) if sources.relations is not None else {}
  records = [_record(name, "skipped", reason) for name, reason in unusable.items()]
  todo = []
  for clip in clips:
    if options.search_all or clip.video in videos:
      todo.append(clip)
    else:
      records.append(_record(clip.name, "skipped", several.get(clip.video, f"no video of its name: {clip.video} in {sources.videos}")))
  builder = _Builder(sources, out, options, write_film)
  keys = {clip.name: builder.key(clip, videos) for clip in todo}
  done = {clip.name: record for clip in todo if (record := builder.read_record(clip.name, keys[clip.name])) is not None}
  todo = [clip for clip in todo if clip.name not in done]
  records += done.values()
  with _processes(jobs) as run:
    tasks = _search_tasks(builder, todo, videos, run, progress) if options.search_all else _named_tasks(todo, videos)
    matches: dict[str, list[tuple[str, Match | str]]] = {}
    for name, found in progress(run(builder.place, tasks), len(tasks), "videos listened to"):
      for clip_name, match in found:
        matches.setdefault(clip_name, []).append((name, match))
    chosen = [(clip, *_choose(matches.get(clip.name, []), options.rules), keys[clip.name]) for clip in todo]
    tasks = [(clip, video and videos[video], match, reason, key) for clip, video, match, reason, key in chosen]
    records += progress(run(builder.build, tasks), len(tasks), "clips filmed")
  records.sort(key=lambda record: record["conversation"])
  builder.assemble(records, {clip.name: clip for clip in clips}, relations)
  return records


def _record(name: str, status: str, reason: str, **rest: Any) -> dict[str, Any]:
  return {"conversation": name, "status": status, "reason": reason} | rest


@dataclasses.dataclass(frozen=True)
class _Run:
  pool: concurrent.futures.ProcessPoolExecutor | None

  def __call__(self, function: Callable, tasks: Sequence) -> Iterator:
    """Results as they come."""
    if self.pool is None:
      yield from map(function, tasks)
      return
    futures = [self.pool.submit(function, task) for task in tasks]
    try:
      for future in concurrent.futures.as_completed(futures):
        yield future.result()
    finally:
      for future in futures:
        future.cancel()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    if self.pool is not None:
      self.pool.shutdown(cancel_futures=True)


def _processes(jobs: int) -> _Run:
  if jobs == 1:
    return _Run(None)
  # Not forked: JAX's threads, where somebody has started them, would not be there.
  return _Run(concurrent.futures.ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")))


def _named_tasks(clips: Sequence[Clip], videos: Mapping[str, pathlib.Path]) -> list[tuple[str, pathlib.Path, list[Clip]]]:
  by_video: dict[str, list[Clip]] = {}
  for clip in clips:
    by_video.setdefault(clip.video, []).append(clip)
  return [(name, videos[name], group) for name, group in by_video.items()]


def _search_tasks(builder: "_Builder", clips: list[Clip], videos, run: _Run, progress) -> list[tuple[str, pathlib.Path, list[Clip]]]:
  """The clips of each video that is among those that sound most like them."""
  if not clips:
    return []
  list(progress(run(builder.index_video, list(videos.items())), len(videos), "videos indexed"))
  chunks = [clips[i : i + _CHUNK] for i in range(0, len(clips), _CHUNK)]
  tasks = [(chunk, dict(videos)) for chunk in chunks]
  by_video: dict[str, list[Clip]] = {}
  for ranked in progress(run(builder.rank_videos, tasks), len(tasks), f"searches of {_CHUNK} clips"):
    for clip, names in ranked:
      for name in names:
        by_video.setdefault(name, []).append(clip)
  return [(name, videos[name], group) for name, group in sorted(by_video.items())]


def _choose(found: Sequence[tuple[str, Match | str]], rules: matching.Rules) -> tuple[str | None, Match | None, str]:
  """Of the videos a clip was looked for in the best: its name, what was found there, and why it is refused."""
  matches = sorted(((m.best.coherence, name, m) for name, m in found if isinstance(m, Match) and m.best), key=lambda x: -x[0])
  if not matches:
    reasons = [match if isinstance(match, str) else match.reason for _, match in found]
    return None, None, reasons[0] if reasons else "in no video: it sounds like none"
  coherence, name, match = matches[0]
  if match.accepted and len(matches) > 1 and matches[1][0] > rules.rival * coherence:
    return name, match, f"ambiguous: coherence {coherence:.3f} in {name} and {matches[1][0]:.3f} in {matches[1][1]}"
  return name, match, match.reason


class _Builder:
  """What processes share: the sources and how triplets are made of them."""

  def __init__(self, sources: Sources, out: pathlib.Path, options: Options, write_film: WriteFilm):
    self.sources, self.out, self.options, self.write_film = sources, out, options, write_film

  # --- Records

  def key(self, clip: Clip, videos: Mapping[str, pathlib.Path]) -> str:
    """Hash of all that a clip's record comes from."""
    paths = [*clip.wavs, *clip.npzs]
    paths += videos.values() if self.options.search_all else [videos[clip.video]]
    paths += [path for path in (self.sources.boxes, *self._extras(clip)) if path is not None]
    # By name, so that folders may move.
    stamps = [(path.name, (s := path.stat()).st_size, s.st_mtime_ns) for path in paths]
    values = [_VERSION, clip.split, dataclasses.asdict(self.options), sorted(stamps)]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()

  def _extras(self, clip: Clip) -> list[pathlib.Path]:
    """Tracks and masks of the clip or its video that are there."""
    names = [f"{clip.video}_p{side}" for side in (0, 1)] + [f"{clip.name}_speaker{n}" for n in (1, 2)]
    paths = [self.sources.tracks / name for name in names] if self.sources.tracks else []
    paths += [path / f"transforms_{split}.json" for path in list(paths) for split in ("train", "val", "test")]
    if self.sources.masks:
      paths += [self.sources.masks / f"{name}{suffix}" for name in (clip.video, *names[:2]) for suffix in SUFFIXES]
    paths += [self.sources.own_tracks / f"{name}.npz" for name in names[:2]] if self.sources.own_tracks else []
    return [path for path in paths if path.exists()]

  def _record_path(self, name: str) -> pathlib.Path:
    return self.out / "clips" / f"{name}.json"

  def read_record(self, name: str, key: str) -> dict[str, Any] | None:
    """What was decided before of a clip, if it was of the same files with the same options."""
    try:
      record = json.loads(self._record_path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
      return None
    if not isinstance(record, dict) or record.get("key") != key:
      return None
    there = all((self.out / film["capture"] / film["film"]).is_file() for film in record.get("films", ()))
    return record if there else None

  def _write_record(self, record: dict[str, Any]) -> dict[str, Any]:
    with whole_file(self._record_path(record["conversation"])) as file:
      file.write((json.dumps(record) + "\n").encode())
    return record

  # --- Placing

  def place(self, task: tuple[str, pathlib.Path, list[Clip]]) -> tuple[str, list[tuple[str, Match | str]]]:
    """Where clips lie in a video; instead of a match the reason why a file cannot be read."""
    name, path, clips = task
    try:
      sound, _ = read_video_sound(path)
    except InputError as error:
      return name, [(clip.name, str(error)) for clip in clips]
    index = SoundIndex(matching.sound_features(sound))
    found: list[tuple[str, Match | str]] = []
    for clip in clips:
      try:
        voices = [read_wav(wav, allow_silent=True)[0] for wav in clip.wavs]
        found.append((clip.name, matching.place_clip(ClipSound(voices), sound, index, self.options.rules)))
      except InputError as error:
        found.append((clip.name, str(error)))
    return name, found

  def _index_path(self, name: str, path: pathlib.Path) -> pathlib.Path:
    status = path.stat()
    stamp = hashlib.sha256(json.dumps([status.st_size, status.st_mtime_ns, _VERSION]).encode()).hexdigest()[:16]
    return self.out / "index" / f"{name}.{stamp}.npz"

  def index_video(self, item: tuple[str, pathlib.Path]) -> str:
    """Keeps the features of a video's sound; of one that cannot be read none."""
    name, path = item
    file = self._index_path(name, path)
    if not file.is_file():
      try:
        features = matching.sound_features(read_video_sound(path)[0])
      except InputError:
        features = np.zeros((0, 20), np.int8)
      with whole_file(file) as target:
        np.savez(target, features=features)
    return name

  def rank_videos(self, task: tuple[list[Clip], dict[str, pathlib.Path]]) -> list[tuple[Clip, list[str]]]:
    """The videos that sound most like each of some clips."""
    clips, videos = task
    sounds: list[tuple[Clip, ClipSound]] = []
    for clip in clips:
      try:
        sounds.append((clip, ClipSound([read_wav(wav, allow_silent=True)[0] for wav in clip.wavs])))
      except InputError:
        pass  # `place` says why, in whatever video: the one of its name, if that is there.
    scores: dict[str, list[tuple[float, str]]] = {clip.name: [] for clip, _ in sounds}
    for name, path in sorted(videos.items()):
      with npz.open_npz(self._index_path(name, path)) as file:
        features = file["features"]
      if not len(features):
        continue
      index = SoundIndex(features)
      for clip, sound in sounds:
        scores[clip.name].append((matching.rank(sound, index), name))
    ranked = [(clip, [name for _, name in sorted(scores[clip.name], reverse=True)[:_MOST_VIDEOS]]) for clip, _ in sounds]
    known = {clip.name for clip, _ in sounds}
    return ranked + [(clip, [next(iter(sorted(videos)))]) for clip in clips if clip.name not in known]

  # --- Filming

  def build(self, task: tuple[Clip, pathlib.Path | None, Match | None, str, str]) -> dict[str, Any]:
    """Decides who is who, writes the films, and then the record."""
    clip, video, match, reason, key = task
    rest: dict[str, Any] = {"key": key, "split": clip.split}
    if video is not None and match is not None and match.best is not None:
      rest |= {"video": video.stem, "rival": match.rival} | dataclasses.asdict(match.best)
    if reason or match is None or match.best is None:
      # A file that cannot be read is no placement that was doubted.
      status = "skipped" if match is None and not reason.startswith(("silence", "in no video")) else "refused"
      return self._write_record(_record(clip.name, status, reason, **rest))
    try:
      rest |= self._film(clip, video, match.best)
    except InputError as error:
      return self._write_record(_record(clip.name, "skipped", str(error), **rest))
    return self._write_record(_record(clip.name, "refused" if rest.get("unsure") else "matched", rest.pop("unsure", ""), **rest))

  def _film(self, clip: Clip, video: pathlib.Path, placement: Placement) -> dict[str, Any]:
    voices = [read_wav(wav, allow_silent=True)[0] for wav in clip.wavs]
    motions = [read_motion(path) for path in clip.npzs]
    covered = min(len(motions[0]), len(motions[1]), -(-max(map(len, voices)) // SAMPLES_PER_FRAME))
    times = [max(float(placement.video_time(i / FPS)), 0.0) for i in range(covered)]
    reader, pictures, size = cropping.Pictures(), [], (0, 0)
    try:
      for frame in read_frames_at(video, times):
        size = frame.width, frame.height
        pictures.append(reader.small_grey(frame, _PICTURE_WIDTH))
    except InputError:
      if len(pictures) < covered - FPS // 2:  # A video may end some frames before its sound does.
        raise
    pictures, times = np.stack(pictures), times[: len(pictures)]
    numbers = np.array(times) * FPS
    boxes = self._boxes(video.stem, numbers)
    shares = [None if b is None else tuple(np.array(cropping.fix_box(b)) / (*size, *size)) for b in boxes]
    sides = people.find_sides(pictures, voices, motions, boxes=shares, tracks=self._own_tracks(video.stem, numbers),
                              margin=self.options.evidence)  # fmt: skip
    facts: dict[str, Any] = {"frames": len(times), "first_frame": round(times[0] * FPS), "evidence": sides.evidence,
                             "margin": sides.margin, "left": sides.left}  # fmt: skip
    if sides.reason:
      return facts | {"unsure": sides.reason}
    moving = people.block_motion(pictures)
    films = []
    for speaker in (1, 2):
      film = self._film_person(clip, speaker, sides.side(speaker), video, times, size, boxes, moving)
      if film is not None:
        films.append(film)
    return facts | {"films": films}

  def _boxes(self, video: str, numbers: np.ndarray) -> list[np.ndarray | None]:
    if self.sources.boxes is None:
      return [None, None]
    table = _read_boxes_once(self.sources.boxes)
    return [table.find(video, side, numbers) for side in (0, 1)]

  def _own_tracks(self, video: str, numbers: np.ndarray) -> list[np.ndarray | None]:
    tracks: list[np.ndarray | None] = [None, None]
    for side in (0, 1):
      path = self.sources.own_tracks and self.sources.own_tracks / f"{video}_p{side}.npz"
      if path and path.is_file():
        motion = read_motion(path)
        shown = np.rint(numbers).astype(int)
        if shown[-1] < len(motion):
          tracks[side] = motion[shown]
    return tracks

  def _film_person(self, clip, speaker, side, video, times, size, boxes, moving) -> dict[str, Any] | None:
    """Writes one person's film, its masks and its parameters; None where nobody tracked them and that is asked for."""
    name = f"{clip.name}_speaker{speaker}"
    tracked = self._vhap(video.stem, side, name)
    if tracked is None and self.options.only_tracked:  # Nobody need be found, then.
      return None
    box, margin = boxes[side], self.options.margin
    if box is None:
      found = people.find_box(moving, side)
      if found is None:
        raise InputError(video, f"{times[0]:.2f} s", f"nothing that moves on the {('left', 'right')[side]}", "two people")
      box, margin = np.tile(np.array(found) * (*size, *size), (len(times), 1)), cropping.found_margin(margin)
    crop = cropping.make_crop(cropping.fix_box(box), size, self.options.size, margin)
    numbers = np.rint(np.array(times) * FPS).astype(int).tolist()
    track = None if tracked is None else cropping.track_by_capture(tracked, numbers, crop, size)
    if track is None and self.options.only_tracked:
      return None
    if track is None:
      own = read_track(clip.npzs[speaker - 1])
      cam, basis = _read_camera(clip.npzs[speaker - 1])
      track = cropping.track_by_projection(own.motion, cam, own.shape, box, crop, basis)
    root = self.out / "captures" / f"{video.stem}_p{side}"
    self._write_film(root / "images" / f"{name}.mp4", video, times, crop, "rgb24")
    self._write_mask(root / "fg_masks" / f"{name}.mp4", self._mask(video.stem, side), times, crop)
    self._write_flame(root / "flame_param" / name, track)
    facts = {"speaker": speaker, "capture": f"captures/{video.stem}_p{side}", "film": f"images/{name}.mp4", "name": name,
             "crop": dataclasses.asdict(crop), "source": track.source}  # fmt: skip
    return facts | {"entries": track.entries, "shown": track.frames, "shared": track.shared}

  def _vhap(self, video: str, side: int, name: str):
    if self.sources.tracks is None:
      return None
    for folder in (self.sources.tracks / name, self.sources.tracks / f"{video}_p{side}"):
      if folder.is_dir():
        return cropping.open_tracks(folder)
    return None

  def _mask(self, video: str, side: int) -> pathlib.Path | None:
    if self.sources.masks is None:
      return None
    paths = [self.sources.masks / f"{name}{suffix}" for name in (f"{video}_p{side}", video) for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), None)

  def _write_film(self, path: pathlib.Path, source: pathlib.Path, times: list[float], crop: cropping.Crop, pixels: str) -> None:
    reader = cropping.Pictures()

    def frames():
      for frame in read_frames_at(source, times):
        picture = crop.cut(reader.full(frame, pixels))
        yield picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)

    # Frames are drawn in random order: a key frame every half second.
    self.write_film(path, frames(), fps=FPS, quality=self.options.quality, key_every=12)

  def _write_mask(self, path: pathlib.Path, source: pathlib.Path | None, times: list[float], crop: cropping.Crop) -> None:
    """The mask of a film, which captures find by its name; what an earlier call has left goes where there is none now."""
    if source is not None:
      self._write_film(path, source, times, crop, "gray")
      return
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # It is not there, or holds others' masks.
      path.parent.rmdir()

  def _write_flame(self, folder: pathlib.Path, track: cropping.FilmTrack) -> None:
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
      partial.mkdir(parents=True)
      for row, frame in enumerate(track.frames):
        np.savez(partial / f"{frame:05d}.npz", **{key: values[row : row + 1] for key, values in track.flame.items()})
      identity = {"shape": track.shape} | ({} if track.static_offset is None else {"static_offset": track.static_offset})
      np.savez(partial / _IDENTITY, **identity)
      shutil.rmtree(folder, ignore_errors=True)
      os.replace(partial, folder)
    except OSError as error:
      raise InputError(folder, "", error.strerror or error, "a folder that can be written") from error
    finally:
      shutil.rmtree(partial, ignore_errors=True)

  # --- Putting together

  def assemble(self, records: list[dict[str, Any]], clips: Mapping[str, Clip], relations: Mapping[str, np.ndarray]) -> None:
    """Writes conversations, transforms files, canonical parameters and the manifest, of all that is matched."""
    matched = [record for record in records if record["status"] == "matched"]
    films: dict[str, list[tuple[dict, dict]]] = {}
    for record in matched:
      for film in record["films"]:
        films.setdefault(film["capture"], []).append((record, film))
    lines = []
    for capture, shown in sorted(films.items()):
      shown.sort(key=lambda pair: (pair[0]["start"], pair[1]["name"]))
      lines += self._assemble_capture(self.out / capture, capture, shown, relations)
    for record in matched:
      clip = clips[record["conversation"]]
      for path in (*clip.wavs, *clip.npzs):
        _copy(path, self.out / "conversations" / clip.split / path.name)
    names = [record["conversation"] for record in matched]
    known = [RelationLabel(name, relations[name]) for name in names if np.any(relations.get(name, UNKNOWN) != UNKNOWN)]
    if known:
      write_relations(self.out / "conversations" / "relations.csv", known)
    else:
      (self.out / "conversations" / "relations.csv").unlink(missing_ok=True)
    with whole_file(self.out / "triplets.jsonl") as file:
      file.write("".join(json.dumps(line) + "\n" for line in lines).encode())

  def _assemble_capture(self, root, capture, shown, relations) -> list[dict[str, Any]]:
    frames: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    lines, first = [], 0
    for record, film in shown:
      for entry, i in zip(film["entries"], film["shown"]):
        files = {"file_path": film["film"], "flame_param_path": f"flame_param/{film['name']}/{i:05d}.npz", "frame_index": i}
        frames[record["split"]].append(files | {"timestep_index": first + i, "camera_index": 0} | entry)
      relation = relations.get(record["conversation"], np.full(2, UNKNOWN))
      lines.append({"conversation": record["conversation"], "split": record["split"], "speaker": film["speaker"], "capture": capture,
                    "camera": 0, "first_timestep": first, "frames": record["frames"], "relation": format_relation(relation)})  # fmt: skip
      first += record["frames"]
    for split, entries in frames.items():
      path = root / f"transforms_{split}.json"
      if entries:
        content = shown[0][1]["shared"] | {"frames": entries}
        with whole_file(path) as file:
          file.write((json.dumps(content, indent=1) + "\n").encode())
      else:
        path.unlink(missing_ok=True)
    # Shapes that were found clip by clip differ a little; a tracked offset belongs to its own.
    people = [read_identity(root / "flame_param" / film["name"] / _IDENTITY, None) for _, film in shown]
    canonical = {"shape": np.mean([shape for shape, _ in people], axis=0)}
    if people[0][1] is not None:
      canonical = {"shape": people[0][0], "static_offset": people[0][1][None]}
    with whole_file(root / "canonical_flame_param.npz") as file:
      np.savez(file, **canonical)
    return lines


@functools.lru_cache(1)
def _read_boxes_once(path: pathlib.Path) -> cropping.FaceBoxes:
  return cropping.read_boxes(path)


def _read_camera(path: pathlib.Path) -> tuple[np.ndarray, str]:
  """A track's cameras (T, 3) and the basis of its expressions: what the file says, or FLAME 2020's, as DECA's family has."""
  with npz.open_npz(path, "an npz with cam (T, 3)") as file:
    if "cam" not in file or file["cam"].ndim != 2 or file["cam"].shape[1] != 3:
      raise InputError(path, "cam", "no such key, or another shape", "float32 (T, 3), or tracks of VHAP")
    cam = npz.to_float32(path, "cam", file["cam"])
    basis = str(file["basis"]) if "basis" in file else "flame2020"
  if not np.all(cam[:, 0] > 0):
    raise InputError(path, "cam", "scales that are not above 0", "cameras that a tracker found, or tracks of VHAP")
  return cam, basis


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
  """The same file in another folder, whole or not there."""
  if target.exists() and os.path.samefile(source, target):
    return
  temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    link_or_copy(source, temporary)
    os.replace(temporary, target)
  except OSError as error:
    raise InputError(target, "", error.strerror or error, "a file that can be written") from error
