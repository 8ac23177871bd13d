"""UniLS-Talk and Seamless Interaction in small: the exact layouts, with known joins and, where asked for, known faults.

Nothing here uses the package's readers: LMDB's library, numpy, tarfile, csv and json write what the real ones are written with.
"""

import dataclasses
import io
import json
import os
import pathlib
import tarfile
import zipfile

import lmdb
import numpy as np
import soundfile

FRAMES = 60
RELATIONSHIPS = {
    # Session: (relationship, relationship_detail, blood, equal), the last two what should be made of it.
    ("00", "0001"): ("familiar", "siblings", 1, 1),
    ("00", "0002"): ("familiar", "parent_child", 1, 0),
    ("01", "0003"): ("stranger", "stranger", -1, -1),
    ("00", "0004"): ("familiar", "coworkers", 0, -1),
    ("01", "0005"): ("familiar", "friends", 0, 1),
    ("00", "0006"): ("familiar", "dating / spouse / partner", 0, 1),
    ("01", "0007"): ("familiar", "family-generic", 1, -1),
}


def make_code(seed: int, frames: int = FRAMES, columns: int = 112) -> np.ndarray:
  """A motioncode whose every column is another wave: a column that is taken for another shows."""
  rng = np.random.default_rng(seed)
  time = np.arange(frames)[:, None] / 25
  code = 0.3 * np.sin(2 * np.pi * (rng.uniform(0.3, 2, columns) * time + rng.uniform(size=columns)))
  code[:, 100:103] -= code[:, 100:103].mean(axis=0)
  return code.astype(np.float32)


def make_voice(seed: int, samples: int = FRAMES * 640) -> np.ndarray:
  """A tone whose loudness changes."""
  time = np.arange(samples) / 16000
  return (0.3 * (0.5 + 0.5 * np.sin(12 * time + seed)) * np.sin(2 * np.pi * (150 + 30 * seed) * time)).astype(np.float32)


def npz_bytes(**arrays) -> bytes:
  file = io.BytesIO()
  np.savez_compressed(file, **arrays)
  return file.getvalue()


def pickled_bytes(**arrays) -> bytes:
  """An npz with an array that only a pickle can hold."""
  file = io.BytesIO()
  np.savez(file, **arrays, motioncode=np.array([{"a": 1}, None], object))
  return file.getvalue()


def bomb_bytes(**arrays) -> bytes:
  """An npz of a few hundred kB whose motion unpacks to 400 MB of zeros."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    for key, array in arrays.items():
      with archive.open(f"{key}.npy", "w") as member:
        np.lib.format.write_array(member, array)
    with archive.open("motioncode.npy", "w", force_zip64=True) as member:
      np.lib.format.write_array_header_1_0(member, dict(descr="<f4", fortran_order=False, shape=(10**6, 112)))
      for _ in range(448):
        member.write(bytes(10**6))
  return file.getvalue()


def write_wav(place: pathlib.Path | io.BytesIO, seed: int, frames: int = FRAMES, rate: int = 48000) -> None:
  time = np.arange(frames * rate // 25) / rate
  soundfile.write(place, 0.3 * np.sin(2 * np.pi * (150 + 30 * seed) * time), rate, subtype="PCM_16", format="WAV")


def speech_of(name: str) -> dict:
  return {"id": name, "metadata:transcript": [{"words": [{"word": "hällo", "start": 0.5, "end": 1.0}], "start": 0.5, "end": 1.0}],
          "metadata:vad": [{"start": 0.5, "end": 1.25}]}


@dataclasses.dataclass
class Mock:
  """Both data sets in a folder, as they are filled.

  Attributes:
    root: the folder.
    values: of the LMDB, by key.
    pairs: the pairs' file.
    seeds: by file id: of motion and voice.
  """

  root: pathlib.Path
  values: dict[str, bytes] = dataclasses.field(default_factory=dict)
  pairs: dict[str, dict] = dataclasses.field(default_factory=dict)
  seeds: dict[str, int] = dataclasses.field(default_factory=dict)

  @property
  def talk(self) -> pathlib.Path:
    return self.root / "unils"

  @property
  def seamless(self) -> pathlib.Path:
    return self.root / "seamless"

  def add(self, split: str, session: str, people=("0001", "0002"), *, interaction: str = "00000001", rest: str = "",
          frames: int = FRAMES, key: str | None = None, values=None) -> str:
    """A pair of a session, "V00_S0001", with values of its own where they are given; the conversation's name."""
    names = [f"{session}_I{interaction}_P{person}{rest}" for person in people]
    self.pairs.setdefault(split, {})[key or names[0]] = [f"/home/author/data/{name}.npz" for name in names] + [frames]
    for number, name in enumerate(names):
      seed = self.seeds.setdefault(name, len(self.seeds) + 1)
      if values is None or values[number] == "whole":
        self.values[f"{name}.npz"] = npz_bytes(audio=make_voice(seed), motioncode=make_code(seed), speech_mask=np.ones(FRAMES, bool))
      elif values[number] is not None:
        self.values[f"{name}.npz"] = values[number]
    return f"{names[0].removesuffix(rest)}_P{people[1]}{rest}"

  def write(self) -> None:
    """UniLS-Talk."""
    folder = self.talk / "SeamlessInteractionTalk"
    folder.mkdir(parents=True)
    with lmdb.open(str(folder / "data_lmdb"), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
      for key, value in self.values.items():
        transaction.put(key.encode(), value)
    (folder / "seamless_interaction_pairs.json").write_text(json.dumps(self.pairs))

  def write_tables(self, relationships=RELATIONSHIPS, extra: str = "") -> None:
    self.seamless.mkdir(parents=True, exist_ok=True)
    lines = [f"{vendor},{session},{row[0]},{row[1]}" for (vendor, session), row in relationships.items()]
    (self.seamless / "relationships.csv").write_text("\n".join(["vendor_id,session_id,relationship,relationship_detail", *lines]) + "\n" + extra)
    prompts = "prompt_hash,ipc_a,ipc_b,interaction_type,prompt_a\n00000001,ANCP,AMCM,ipc,\"Say hello, twice\"\n"
    (self.seamless / "interactions.csv").write_text(prompts)
    people = sorted({(name[1:3], name.rpartition("_P")[2][:4]) for name in self.seeds})
    (self.seamless / "participants.csv").write_text("vendor_id,participant_id,bfi2_o\n" + "".join(f"{v},{p},3.5\n" for v, p in people))
    rows = [f"{name},{'improvised' if i % 2 else 'naturalistic'},{split if split != 'val' else 'dev'},0,0"
            for split, pairs in self.pairs.items() for entry in pairs.values() if isinstance(entry, list) and len(entry) == 3
            for i, name in enumerate(os.path.basename(str(path)).removesuffix(".npz") for path in entry[:2])]  # fmt: skip
    (self.seamless / "filelist.csv").write_text("\n".join(["file_id,label,split,batch_idx,archive_idx", *rows]) + "\n")

  def write_files(self, names: list[str], where: str = "improvised/train/0000/0000") -> pathlib.Path:
    """Official files of ids in a folder, as the downloader lays them out."""
    folder = self.seamless / where
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
      for suffix, content in self.files_of(name).items():
        (folder / f"{name}.{suffix}").write_bytes(content)
    return folder

  def files_of(self, name: str) -> dict[str, bytes]:
    wav = io.BytesIO()
    write_wav(wav, self.seeds[name])
    arrays = npz_bytes(**{"movement:is_valid": np.ones((72, 1), np.float32), "smplh:translation": np.zeros((72, 3), np.float32)})
    return {"npz": arrays, "json": json.dumps(speech_of(name)).encode(), "wav": wav.getvalue(), "mp4": b"film of " + name.encode()}

  def write_shard(self, names: list[str], where: str = "naturalistic/dev/0000/0000.tar", extra=()) -> pathlib.Path:
    """A shard, as WebDataset writes them: a header with the time to a fraction of a second before each file."""
    path = self.seamless / where
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [(f"{name}.{suffix}", content) for name in names for suffix, content in self.files_of(name).items()]
    with tarfile.open(path, "w") as archive:
      for name, content in [*files, *extra]:
        member = tarfile.TarInfo(name)
        member.size, member.mtime = len(content), 1700000000.25
        archive.addfile(member, io.BytesIO(content))
    return path


def write_mock(root: pathlib.Path) -> tuple[Mock, dict[str, tuple[int, int]]]:
  """Eight whole conversations in three splits, tables, files of some and a shard of others; and each one's relation by name."""
  mock = Mock(root)
  truth = {}
  for split, session, people in [
      ("train", ("00", "0001"), ("0001", "0002")), ("train", ("00", "0002"), ("0003", "0004")), ("train", ("01", "0003"), ("0001", "0002")),
      ("train", ("00", "0004"), ("0005", "0006")), ("train", ("01", "0005"), ("0003", "0004")), ("val", ("00", "0006"), ("0007", "0008")),
      ("test", ("01", "0007"), ("0003", "0009")),
  ]:  # fmt: skip
    truth[mock.add(split, f"V{session[0]}_S{session[1]}", people)] = RELATIONSHIPS[session][2:]
  truth[mock.add("train", "V01_S0005", ("0003", "0004"), interaction="00000002")] = (0, 1)
  mock.write()
  mock.write_tables()
  mock.write_files(["V00_S0001_I00000001_P0001", "V00_S0001_I00000001_P0002", "V00_S0002_I00000001_P0003"])
  mock.write_shard(["V00_S0006_I00000001_P0007", "V00_S0006_I00000001_P0008"])
  return mock, truth


def ids_of(conversation: str) -> list[str]:
  """The two file ids in a conversation's name."""
  interaction, a, b = conversation.rsplit("_", 2)
  return [f"{interaction}_{a}", f"{interaction}_{b}"]
