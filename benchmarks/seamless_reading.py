"""How fast Seamless Interaction is joined, and how much memory its reading takes, by the size of shards.

    python benchmarks/seamless_reading.py [--conversations 4000] [--seconds 20] [--shards 64 512 2048] [--folder DIR]

Writes an LMDB of UniLS-Talk's form (two recordings a conversation, of so many seconds) and, for the second part, one shard of each
size in MB, in which video fills what the others leave. Measures conversations joined a second, from the LMDB's keys and the headers
of its arrays, and conversations read whole in place; then, each in a process of its own, by how much memory grows while a shard's
files are found and all its speech, voices and arrays are read and its video is copied. Nothing is faster for being on a GPU.
"""

import argparse
import io
import json
import multiprocessing
import os
import pathlib
import sys
import tarfile
import tempfile
import time

import lmdb
import numpy as np
import soundfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from rsatalker_jax.data.seamless import SeamlessSource, join_conversations
from rsatalker_jax.data.seamless.names import parse_file_id
from rsatalker_jax.data.seamless.recordings import Recordings, copy
from rsatalker_jax.evaluation.tables import markdown_table


def write_talk(folder: pathlib.Path, conversations: int, seconds: float) -> None:
  """UniLS-Talk's LMDB and pairs, and relationships.csv; recordings share a few contents."""
  root = folder / "SeamlessInteractionTalk"
  root.mkdir(parents=True)
  frames, rng = round(seconds * 25), np.random.default_rng(0)
  values = []
  for _ in range(8):
    file = io.BytesIO()
    voice = rng.normal(0, 0.1, frames * 640).astype(np.float32)
    np.savez(file, audio=voice, motioncode=rng.normal(0, 0.3, (frames, 112)).astype(np.float32))
    values.append(file.getvalue())
  pairs = {}
  with lmdb.open(str(root / "data_lmdb"), map_size=1 << 40) as environment, environment.begin(write=True) as transaction:
    for i in range(conversations):
      names = [f"V00_S{i // 10:04d}_I{i:08d}_P{person:04d}.npz" for person in (i // 10 * 2, i // 10 * 2 + 1)]
      pairs[f"{i}"] = [f"/data/{name}" for name in names] + [frames]
      for person, name in enumerate(names):
        transaction.put(name.encode(), values[(i + person) % 8])
  (root / "seamless_interaction_pairs.json").write_text(json.dumps({"train": pairs, "val": {}}))
  rows = [f"0,{session},familiar,friends" for session in range(conversations // 10 + 1)]
  (folder / "relationships.csv").write_text("\n".join(["vendor_id,session_id,relationship,relationship_detail", *rows]))


def write_shard(path: pathlib.Path, megabytes: int, recordings: int = 8, seconds: float = 60) -> None:
  """So many recordings of a minute, and video of one size that fills the shard."""
  wav, npz, rng = io.BytesIO(), io.BytesIO(), np.random.default_rng(0)
  soundfile.write(wav, rng.normal(0, 0.1, round(seconds * 48000)), 48000, subtype="PCM_16", format="WAV")
  np.savez(npz, **{"movement:expression": rng.normal(size=(round(seconds * 30), 128)).astype(np.float32)})
  speech = json.dumps({"id": "a", "metadata:vad": [{"start": 0.0, "end": 1.0}] * 100, "metadata:transcript": []}).encode()
  film = max(0, megabytes * 10**6 // recordings - wav.tell() - npz.tell() - len(speech))
  with tarfile.open(path, "w") as archive:
    for i in range(recordings):
      contents = {"json": speech, "npz": npz.getvalue(), "wav": wav.getvalue()}
      for suffix, content in contents.items():
        member = tarfile.TarInfo(f"V00_S0001_I{i:08d}_P0001.{suffix}")
        member.size, member.mtime = len(content), 0.5
        archive.addfile(member, io.BytesIO(content))
      member = tarfile.TarInfo(f"V00_S0001_I{i:08d}_P0001.mp4")
      member.size = film
      with open("/dev/zero", "rb") as zeros:
        archive.addfile(member, zeros)


def peak_bytes(*, reset: bool = False) -> int:
  """Of this process; Linux forgets the peak where asked."""
  if reset:
    pathlib.Path("/proc/self/clear_refs").write_text("5")
  return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))


def read_shard(folder: pathlib.Path, out: pathlib.Path, result) -> None:
  """Everything that a shard has, once; sends by how much memory grew and how long it took."""
  before, start = peak_bytes(reset=True), time.perf_counter()
  recordings = Recordings(folder)
  found = time.perf_counter() - start
  for name, places in recordings.places.items():
    file_id = parse_file_id(name)
    assert file_id is not None
    recordings.read_speech(file_id)
    recordings.read_voice(file_id)
    recordings.read_arrays(file_id, ["movement:expression"])
    with open(out, "wb") as file:
      copy(places["mp4"], file)
  assert not recordings.skipped
  result.put((peak_bytes() - before, found, time.perf_counter() - start))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--conversations", type=int, default=4000)
  parser.add_argument("--seconds", type=float, default=20)
  parser.add_argument("--shards", type=int, nargs="+", default=[64, 512, 2048])
  parser.add_argument("--folder")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
    folder = pathlib.Path(temporary)
    write_talk(folder, options.conversations, options.seconds)
    size = sum(path.stat().st_size for path in folder.rglob("*.mdb"))
    rows = {}
    before, start = peak_bytes(reset=True), time.perf_counter()
    join = join_conversations(folder, folder)
    seconds = time.perf_counter() - start
    rows["joined, from metadata"] = [len(join.conversations) / seconds, (peak_bytes() - before) / 1e6]
    source = SeamlessSource(join)
    before, start, count = peak_bytes(reset=True), time.perf_counter(), min(400, len(source))
    for index in range(count):
      source[index]
    seconds = time.perf_counter() - start
    rows[f"read whole, {options.seconds:g} s each"] = [count / 2 / seconds, (peak_bytes() - before) / 1e6]
    print(f"{len(join.conversations)} conversations in an LMDB of {size / 1e9:.1f} GB:\n")
    print(markdown_table(["conversations a second", "memory grew by, MB"], rows))
    (folder / "SeamlessInteractionTalk/data_lmdb/data.mdb").unlink()
    rows = {}
    for megabytes in options.shards:
      shard = folder / f"shards{megabytes}"
      shard.mkdir()
      write_shard(shard / "0000.tar", megabytes)
      context = multiprocessing.get_context("spawn")
      result = context.Queue()
      child = context.Process(target=read_shard, args=(shard, folder / "film.mp4", result))
      child.start()
      grown, found, seconds = result.get()
      child.join()
      (shard / "0000.tar").unlink()
      rows[f"shard of {megabytes} MB"] = [grown / 1e6, found * 1000, seconds]
    print("\n" + markdown_table(["memory grew by, MB", "files found in, ms", "all read in, s"], rows))


if __name__ == "__main__":
  main()
