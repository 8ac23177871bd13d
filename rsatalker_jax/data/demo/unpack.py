"""Unpacks the embedded conversations into the layouts of the real data.

    <root>/conversations/{train,val,test}/demo-d001_sub_video_0_speaker{1,2}.{wav,npz}   DualTalk; the number is the performance
    <root>/conversations/relations.csv                                                   see `data.relations`
    <root>/conversations/people.csv                                                      who speaks in captured ones, see `data.people`
    <root>/capture/, capture_*/                                                          VHAP, a person each, see `capture`
    <root>/captures.csv                                                                  whose they are, see `data.captured_people`
    <root>/triplets.jsonl                                                                captured conversations
    <root>/unpacked.json                                                                 what it was made from: all is there

Voices are decoded from assets/voices, motion is simulated (`dyads`), the capture's video is cut into frames.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import time
from typing import Any

import numpy as np
import scipy.io.wavfile

from rsatalker_jax.data import captured_people
from rsatalker_jax.data.csv_tables import write_table
from rsatalker_jax.data.demo import dyads, voices
from rsatalker_jax.data.demo.capture import CAPTURED_PERFORMANCE, CaptureAsset, find_motions
from rsatalker_jax.data.dualtalk import read_motion, write_motion
from rsatalker_jax.data.people import Speakers, write_people
from rsatalker_jax.data.relations import RelationLabel, write_relations
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import link_or_copy
from rsatalker_jax.social.relation import parse_relation
from rsatalker_jax.types import FPS, SAMPLE_RATE

_ASSETS = pathlib.Path(__file__).resolve().parents[3] / "assets"
_STAMP = "unpacked.json"
_PARTS = ("conversations", "capture*", "triplets.jsonl")  # Patterns of what lies in a root.
_PARTIAL = ".unpacking-"  # What the folders are called that all is made in.
_LOCK = ".unpacking.lock"


def unpack_demo(root: str | os.PathLike, *, performances: int = 3, assets: str | os.PathLike = _ASSETS,
                dialogues: Sequence[str] | None = None, say: Callable[[str], None] | None = print) -> pathlib.Path:
  """Unpacks everything below `root`, or finishes at once where that was done before from the same assets and rules.

  All is made in a folder inside `root`, which may be a volume or a link to another disk, and moved to its names at the end,
  the stamp last: with it `root` is whole. Processes that unpack to the same root, also on several hosts, wait for each other.

  Args:
    root: folder to make. What an earlier version made there is replaced; the cache of speech features stays.
    performances: how many of each dialogue; other people with other habits play it each time.
    assets: folder with voices/ and, if there are some, capture/, capture_*/ and head/.
    dialogues: ids of the dialogues to unpack; all if None. Captured ones must be among them to be unpacked.
    say: gets lines about progress; None for silence.

  Returns:
    root as a path.

  Raises:
    InputError: assets are missing or damaged, or `root` holds something else or cannot be written.
  """
  root, assets = pathlib.Path(root), pathlib.Path(assets)
  say = say or (lambda line: None)
  if not 1 <= performances < CAPTURED_PERFORMANCE:
    raise InputError("performances", "", performances, f"1 to {CAPTURED_PERFORMANCE - 1}")
  table = voices.load_dialogues(assets / "voices")
  if dialogues is not None:
    unknown = sorted(set(dialogues) - {dialogue.id for dialogue in table})
    if unknown:
      raise InputError(assets / "voices" / "dialogues.json", "dialogues", f"no {', '.join(unknown)}", "ids in the table")
    table = [dialogue for dialogue in table if dialogue.id in set(dialogues)]
  stamp = _stamp(assets, performances, [dialogue.id for dialogue in table])
  if _read_stamp(root) == stamp:
    return root

  started = time.monotonic()
  made = not root.exists()
  try:
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root, say):
      if (found := _read_stamp(root)) == stamp:  # Somebody else has done it meanwhile.
        return root
      leftovers = list(root.glob(f"{_PARTIAL}*"))
      if found is None and not leftovers and not set(os.listdir(root)) <= {_LOCK, "lost+found"}:  # The latter on volumes.
        made = False
        raise InputError(root, "", "something that was not unpacked by the demo", "a folder that does not exist yet")
      for path in leftovers:  # Of runs that were killed: whoever unpacks holds the lock.
        shutil.rmtree(path, ignore_errors=True)
      partial = root / f"{_PARTIAL}{secrets.token_hex(8)}"
      partial.mkdir()
      try:
        _write_all(partial, assets, table, performances, say)
        (partial / _STAMP).write_text(json.dumps({"stamp": stamp}, indent=2) + "\n", encoding="utf-8")
        _move_into_place(partial, root)
      finally:
        shutil.rmtree(partial, ignore_errors=True)
  except OSError as error:  # A folder that may not be written, a full disk, a file where a folder should be.
    raise InputError(error.filename or root, "", error.strerror or error, f"a place to unpack {root} to") from error
  finally:
    if made:
      with contextlib.suppress(OSError):  # It holds something, as it should.
        root.rmdir()
  say(f"unpacked {root}: {len(table)} dialogues, {_megabytes(root):.0f} MB, {time.monotonic() - started:.0f} s")
  return root


@contextlib.contextmanager
def _locked(root: pathlib.Path, say: Callable[[str], None]) -> Iterator[None]:
  """Holds the lock of `root` against other processes, on this host or on another with the same file system."""
  path = root / _LOCK
  while True:
    file = path.open("w")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      say(f"waiting for another process that unpacks {root}")
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # A file system without locks: two who unpack at once write the same twice.
      pass
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file.fileno()), path.stat()):
        break
    file.close()  # The one who held it has removed it.
  try:
    yield
  finally:
    path.unlink(missing_ok=True)
    file.close()


def conversation_name(dialogue_id: str, performance: int) -> str:
  """DualTalk's name of one performance of a dialogue."""
  return f"demo-{dialogue_id}_sub_video_{performance}"


def _write_all(out: pathlib.Path, assets: pathlib.Path, table: Sequence[voices.Dialogue], performances: int,
               say: Callable[[str], None]) -> None:
  captures = CaptureAsset.find(assets)
  captured = find_motions(captures)
  for split in ("train", "val", "test"):
    (out / "conversations" / split).mkdir(parents=True)
  relations = []
  # Decoding and compression run outside Python's lock, so threads do use a second core.
  with concurrent.futures.ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
    names = pool.map(lambda dialogue: _write_dialogue(out / "conversations", dialogue, performances, captured), table)
    for done, (dialogue, written) in enumerate(zip(table, names, strict=True), 1):
      relations += [(name, dialogue.relation) for name in written]
      if done % 16 == 0 or done == len(table):
        say(f"unpacking conversations: {done} of {len(table)} dialogues")
  labels = [RelationLabel(name, parse_relation(relation)) for name, relation in relations]
  write_relations(out / "conversations" / "relations.csv", labels)
  known, entries = {name for name, _ in relations}, []
  speakers: dict[str, dict[int, str]] = {}
  for capture in captures:
    capture.unpack(out / capture.name, say=say)
    entries += [entry for entry in capture.triplets() if entry["conversation"] in known]
    for name, speaker in capture.speakers().items():
      if name in known:
        speakers.setdefault(name, {})[speaker] = capture.person
  (out / "triplets.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
  if captures:
    write_table(out / "captures.csv", captured_people.COLUMNS, [(capture.name, capture.person) for capture in captures])
    people = {name: Speakers(who.get(1, ""), who.get(2, "")) for name, who in sorted(speakers.items())}
    write_people(out / "conversations" / captured_people.SPEAKERS, people)


def _write_dialogue(out: pathlib.Path, dialogue: voices.Dialogue, performances: int,
                    captured: Mapping[str, Sequence[pathlib.Path]]) -> list[str]:
  """Writes all performances of a dialogue; returns their names."""
  folder = out / dialogue.split
  frames = int(dialogue.duration * FPS + 1e-6)
  wavs = [_fit(voices.decode_track(track), frames * SAMPLE_RATE // FPS) for track in dialogue.tracks]
  loudness = np.stack([dyads.loudness_track(wav, frames) for wav in wavs])
  motions: dict[str, Any] = {
      conversation_name(dialogue.id, performance): dyads.simulate_dyad(dialogue, performance, loudness=loudness).motion
      for performance in range(performances)
  }
  name = conversation_name(dialogue.id, CAPTURED_PERFORMANCE)
  if name in captured:
    motions[name] = [read_motion(path) for path in captured[name]]
  for name, both in motions.items():
    for speaker in (1, 2):
      first = folder / f"{conversation_name(dialogue.id, 0)}_speaker{speaker}.wav"
      wav_path = folder / f"{name}_speaker{speaker}.wav"
      if wav_path == first:
        scipy.io.wavfile.write(wav_path, SAMPLE_RATE, wavs[speaker - 1])
      else:
        link_or_copy(first, wav_path)  # The same voice in another performance.
      write_motion(folder / f"{name}_speaker{speaker}.npz", both[speaker - 1], basis="arkit")
  return list(motions)


def _fit(wav: np.ndarray, samples: int) -> np.ndarray:
  """Cuts or pads a voice to whole frames."""
  return np.pad(wav[:samples], (0, max(samples - len(wav), 0))).astype(np.float32)


def _stamp(assets: pathlib.Path, performances: int, ids: Sequence[str]) -> str:
  """Hash of all that the result depends on: assets, the code of the rules, and the arguments."""
  digest = hashlib.sha256(json.dumps([performances, list(ids)]).encode())
  sources = sorted(pathlib.Path(__file__).parent.glob("*.py"))
  files = [path for part in ("voices", "capture*") for path in sorted(assets.glob(f"{part}/*")) if path.is_file()]
  for path in sources + files:
    name = f"{path.parent.name}/{path.name}"
    digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
  return digest.hexdigest()


def _read_stamp(root: pathlib.Path) -> str | None:
  try:
    return json.loads((root / _STAMP).read_text(encoding="utf-8"))["stamp"]
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _move_into_place(partial: pathlib.Path, root: pathlib.Path) -> None:
  """Moves what was made to its names. What an earlier version made there goes first, its stamp before all else."""
  (root / _STAMP).unlink(missing_ok=True)
  for pattern in _PARTS:
    for target in root.glob(pattern):
      if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
      else:
        target.unlink()
    for path in sorted(partial.glob(pattern)):
      os.replace(path, root / path.name)
  os.replace(partial / _STAMP, root / _STAMP)


def _megabytes(root: pathlib.Path) -> float:
  """Size on disk; linked files count once."""
  sizes = {}
  for path in root.rglob("*"):
    if path.is_file():
      status = path.stat()
      sizes[status.st_dev, status.st_ino] = status.st_size
  return sum(sizes.values()) / 1e6
