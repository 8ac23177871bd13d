"""Statistics of conversations made by hand: who sounds when, how loud, how long, how related, and what is missing."""

import json

import numpy as np
import pytest
import soundfile

import tiny_world
from rsatalker_jax.data.dualtalk import find_clips
from rsatalker_jax.data.people import Speakers
from rsatalker_jax.evaluation.dataset_statistics import measure_dataset, statistics_tables


def write_voice(path, frames, *spans, level=0.1):
  """A square wave, whose RMS is its level, within spans of frames."""
  wav = np.zeros(640 * frames, np.float32)
  for start, stop in spans:
    wav[640 * start : 640 * stop] = level * np.where(np.arange(640 * (stop - start)) % 80 < 40, 1, -1)
  soundfile.write(path, wav, 16000, subtype="FLOAT")


def write_clip(root, split, name, frames, first, second, *, motion=0.0, level=0.1):
  (root / split).mkdir(parents=True, exist_ok=True)
  for speaker, spans in ((1, first), (2, second)):
    write_voice(root / split / f"{name}_speaker{speaker}.wav", frames, *spans, level=level)
    values = np.full((frames, 56), motion + speaker, np.float32)
    tiny_world.write_npz(root / split / f"{name}_speaker{speaker}.npz", values)


@pytest.fixture
def root(tmp_path):
  write_clip(tmp_path, "train", "v_sub_video_0", 100, [(0, 50)], [(40, 80)])
  write_clip(tmp_path, "train", "v_sub_video_1", 50, [], [(0, 50)], motion=-3.0, level=1.0)
  write_clip(tmp_path, "test", "w_sub_video_0", 200, [(0, 20), (30, 60), (90, 100)], [], level=0.01)
  return tmp_path


def test_numbers_of_voices_and_motion(root):
  relations = {"v_sub_video_0": np.array([1, 0]), "w_sub_video_0": np.array([-1, 1])}
  people = {"v_sub_video_0": Speakers("ann", "ben"), "v_sub_video_1": Speakers("", "ben"), "w_sub_video_0": Speakers("cy", "")}
  found = measure_dataset(find_clips(root), relations, people)
  train, test, both = (found["splits"][split] for split in ("train", "test", "all"))
  assert list(found["splits"]) == ["train", "test", "all"]
  assert (train["conversations"], test["conversations"], both["conversations"]) == (2, 1, 3)
  np.testing.assert_allclose([part["minutes"] for part in (train, test, both)], [6 / 60, 8 / 60, 14 / 60])
  assert [part["people"] for part in (train, test, both)] == [2, 1, 3]
  assert [part["unknown_people"] for part in (train, test, both)] == [1, 1, 2]
  assert train["relations"] == {"blood,unequal": 1, "no label": 1} and test["relations"] == {"unknown,equal": 1}
  assert both["relations"] == {"blood,unequal": 1, "unknown,equal": 1, "no label": 1}
  assert train["seconds"] == {"min": 2.0, "median": 3.0, "max": 4.0}
  # `speaking_frames` reaches one frame beyond a voice: of the first clip 51 and 42 frames, both in 12, neither in 19.
  np.testing.assert_allclose(
      [train["speech"][key] for key in ("speaker1", "speaker2", "both", "neither")], np.array([51, 92, 12, 19]) / 150)  # fmt: skip
  np.testing.assert_allclose([test["speech"][key] for key in ("speaker1", "speaker2", "both")], [(61 - 8 + 12) / 200, 0, 0])
  # A pause of ten frames ends no turn, one of thirty does.
  np.testing.assert_allclose([train["turns_per_minute"], test["turns_per_minute"]], [3 * 60 / 6, 2 * 60 / 8])
  assert [train["turn_seconds"], test["turn_seconds"]] == [50 / 25, (61 + 12) / 2 / 25]
  # The second clip's voice sounds throughout, at full scale: 0 dB; the first's two at 50 of 51 and 40 of 42 frames of -20 dB.
  levels = np.array([-20 + 10 * np.log10(50 / 51), -20 + 10 * np.log10(40 / 42), 0.0])
  np.testing.assert_allclose([train["level_db"][key] for key in ("p5", "median", "p95")], np.percentile(levels, [5, 50, 95]), atol=1e-5)
  np.testing.assert_allclose(test["level_db"]["median"], -40 + 10 * np.log10(60 / 65), atol=1e-5)
  assert [part["clipped_voices"] for part in (train, test, both)] == [1, 0, 1]
  assert [part["silent_voices"] for part in (train, test, both)] == [1, 1, 2]
  values = np.repeat([1.0, 2.0, -2.0, -1.0], [100, 100, 50, 50])
  for group in ("expression", "jaw", "pose"):
    expected = {"min": -2.0, "mean": values.mean(), "std": values.std(), "max": 2.0}
    np.testing.assert_allclose([train["motion"][group][key] for key in expected], list(expected.values()))
  assert found["incomplete"] == found["damaged"] == found["leaks"] == []


def test_groups_are_measured_apart(tmp_path):
  write_clip(tmp_path, "train", "v", 50, [(0, 50)], [(0, 50)])
  motion = np.concatenate([np.full((50, 50), 1.0), np.full((50, 3), 2.0), np.full((50, 3), 3.0)], axis=1)
  for speaker, basis in ((1, "flame2020"), (2, "arkit")):
    np.savez(tmp_path / "train" / f"v_speaker{speaker}.npz", exp=motion[:, :50], pose=motion[:, [53, 54, 55, 50, 51, 52]], basis=basis)
  found = measure_dataset(find_clips(tmp_path), {}, {})["splits"]
  assert list(found) == ["train"]  # Of one split "all" would say the same.
  assert found["train"]["bases"] == {"flame2020": 1, "arkit": 1}
  assert {group: about["max"] for group, about in found["train"]["motion"].items()} == {"expression": 1.0, "jaw": 2.0, "pose": 3.0}


def test_what_is_shorter_counts(tmp_path):
  """Of voices and motions that differ in length, what all of them cover."""
  write_clip(tmp_path, "", "v", 50, [(0, 50)], [(0, 50)])
  write_voice(tmp_path / "v_speaker1.wav", 45, (0, 45))
  tiny_world.write_npz(tmp_path / "v_speaker1.npz", np.repeat([[1.0], [9.0]], [40, 10], axis=0).repeat(56, axis=1).astype(np.float32))
  tiny_world.write_npz(tmp_path / "v_speaker2.npz", np.zeros((40, 56), np.float32))
  found = measure_dataset(find_clips(tmp_path), {}, {})["splits"][""]
  assert found["seconds"]["max"] == 40 / 25 and found["speech"]["both"] == 1.0 and found["motion"]["jaw"]["max"] == 1.0


def test_what_is_missing_or_damaged_is_listed_and_not_measured(root):
  (root / "train" / "v_sub_video_0_speaker2.npz").unlink()
  (root / "test" / "w_sub_video_0_speaker1.wav").write_bytes(b"RIFF")
  seen = []
  found = measure_dataset(find_clips(root), {}, {}, progress=lambda clips: (seen.append(clip.name) or clip for clip in clips))
  assert len(seen) == 3 and [part["conversations"] for part in found["splits"].values()] == [1, 0, 1]
  assert found["incomplete"] == [{"conversation": "v_sub_video_0", "split": "train", "reason": "no v_sub_video_0_speaker2.npz"}]
  (damaged,) = found["damaged"]
  assert (damaged["conversation"], damaged["split"]) == ("w_sub_video_0", "test") and "w_sub_video_0_speaker1.wav" in damaged["reason"]
  assert found["splits"]["test"]["seconds"] is None and found["splits"]["test"]["motion"]["jaw"] is None
  json.dumps(found, allow_nan=False)
  tables = statistics_tables(found)
  assert "1 conversations are incomplete, and not in the table:\n\n- train/v_sub_video_0: no v_sub" in tables
  assert "1 conversations are damaged" in tables and "| median turn in s | 2.00 | – | 2.00 |" in tables


def test_tables(root):
  relations = {"v_sub_video_0": np.array([0, 1]), "v_sub_video_1": np.array([1, 1]), "w_sub_video_0": np.array([0, 1])}
  tables = statistics_tables(measure_dataset(find_clips(root), relations, {})).splitlines()
  assert tables[:3] == ["|  | train | test | all |", "|---|--:|--:|--:|", "| conversations | 2 | 1 | 3 |"]
  assert "| length in s: min / median / max | 2.0 / 3.0 / 4.0 | 8.0 / 8.0 / 8.0 | 2.0 / 4.0 / 8.0 |" in tables
  assert "| sounding: speaker 1 / 2 / both / neither | 34 % / 61 % / 8 % / 13 % | 32 % / 0 % / 0 % / 68 % | 33 % / 26 % / 3 % / 44 % |" in tables
  # Speaker 1's ones of two clips could be weights of shapes; 2, -1 and -2 could not.
  assert "| motions by basis | flame2020 3, arkit 1 | flame2020 1, arkit 1 | flame2020 4, arkit 2 |" in tables
  assert [line for line in tables if line.startswith(("| blood", "| non_", "| no label", "| unknown"))] == [
      "| blood,equal | 1 | 0 | 1 |", "| non_blood,equal | 1 | 1 | 2 |"]  # fmt: skip
  assert tables[-1].startswith("Nothing leaks") and all(line.count("|") == 5 for line in tables if line.startswith("|"))


def test_leaks_are_listed(root):
  (root / "test" / "v_sub_video_7_speaker1.wav").touch()
  found = measure_dataset(find_clips(root), {}, {})
  assert found["leaks"] == [{"kind": "recording", "name": "v", "splits": ["train", "test"]}]
  assert "1 leaks between splits:\n\n- recording v in train and test" in statistics_tables(found)
  found["leaks"] *= 30
  assert statistics_tables(found).endswith("\n- … and 10 more")
