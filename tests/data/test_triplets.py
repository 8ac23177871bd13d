import json

import numpy as np
import pytest

from rsatalker_jax.data.triplets import load_triplets
from rsatalker_jax.errors import InputError

ENTRY = {
    "conversation": "demo-d001_sub_video_9",
    "split": "train",
    "speaker": 2,
    "capture": "capture",
    "camera": 3,
    "first_timestep": 1,
    "frames": 3,
    "relation": "blood,unequal",
}


@pytest.fixture
def manifest(tmp_path):
  (tmp_path / "capture").mkdir()

  def write(*entries):
    path = tmp_path / "triplets.jsonl"
    path.write_text("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries) + "\n")
    return path

  return write


def test_reads_and_joins(manifest, tmp_path):
  triplets = load_triplets(manifest(ENTRY, "", {**ENTRY, "split": "test", "speaker": 1, "first_timestep": 4, "relation": "unknown"}))
  assert [triplet.name for triplet in triplets] == ["demo-d001_sub_video_9_speaker2", "demo-d001_sub_video_9_speaker1"]
  first = triplets[0]
  assert first.capture == tmp_path / "capture"
  np.testing.assert_array_equal([triplet.relation for triplet in triplets], [[1, 0], [-1, -1]])
  assert first.end == 4 and first.place.endswith("triplets.jsonl:1")
  assert [triplet.split for triplet in load_triplets(tmp_path / "triplets.jsonl", "test")] == ["test"]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"conversation": "a", ', r"triplets.jsonl:2: found damaged JSON"),
        ("[1]", r"triplets.jsonl:2: found list, expected an object"),
        ({key: ENTRY[key] for key in ENTRY if key != "camera"}, "triplets.jsonl:2: camera: found no such key"),
        ({**ENTRY, "frames": "all"}, "triplets.jsonl:2: frames: found 'all', expected a whole number"),
        ({**ENTRY, "frames": True}, "triplets.jsonl:2: frames: found True"),
        ({**ENTRY, "frames": 0}, "triplets.jsonl:2: frames: found 0, expected at least 1"),
        ({**ENTRY, "frames": 10**20}, "triplets.jsonl:2: frames: found 100000000000000000000, expected 32 bits"),
        ({**ENTRY, "capture": "a" * 5000}, "triplets.jsonl:2: capture: found aaaa"),
        ("[" * 100_000, "triplets.jsonl:2: found damaged JSON"),
        ({**ENTRY, "split": "dev"}, "triplets.jsonl:2: split: found 'dev'"),
        ({**ENTRY, "speaker": 3}, "triplets.jsonl:2: speaker: found 3, expected 1 or 2"),
        ({**ENTRY, "capture": "elsewhere"}, "triplets.jsonl:2: capture: found elsewhere, which does not exist"),
        ({**ENTRY, "relation": "cousins"}, "triplets.jsonl:2.*cousins"),
    ],
)
def test_one_line_for_each_mistake(manifest, line, message):
  with pytest.raises(InputError, match=message):
    load_triplets(manifest(ENTRY, line))


def test_no_manifest(tmp_path):
  with pytest.raises(InputError, match="absent.jsonl"):
    load_triplets(tmp_path / "absent.jsonl")
