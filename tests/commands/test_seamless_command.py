"""Training on Seamless Interaction: read in place or from what the command wrote, a run sees the same batches."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_world
from seamless_mock import make_code, make_voice, npz_bytes, write_mock

from rsatalker_jax import sharding
from rsatalker_jax.commands import encode
from rsatalker_jax.commands.seamless import prepare_conversations
from rsatalker_jax.talker import make_encoder, make_talker
from rsatalker_jax.training.motion_stage import motion_stage
from rsatalker_jax.training.stage_inputs import StageInputs

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Both data sets, a recording of which is damaged where headers do not show it; what the command writes; a head."""
  root = tmp_path_factory.mktemp("seamless")
  mock, truth = write_mock(root / "mock")
  name = mock.add("train", "V00_S0002", ("0003", "0004"), interaction="00000009")
  nan = make_code(50)
  nan[11, 2] = np.nan
  mock.values["V00_S0002_I00000009_P0004.npz"] = npz_bytes(audio=make_voice(50), motioncode=nan)
  shutil.rmtree(mock.talk)
  mock.write()
  prepare_conversations(
      talk=str(mock.talk), seamless=str(mock.seamless), out=str(root / "out"), splits=[], subset=[], count=0, mapping=None, videos="none",
      arrays=[], say=lambda _: None,
  )  # fmt: skip
  assert name in {skip["name"] for skip in json.loads((root / "out/report.json").read_text())["skipped"]}
  tiny_world.write_head(root / "head.npz")
  return root, mock, truth


def config_for(root: pathlib.Path, way: str):
  config = tiny_world.tiny_config(root)
  config.data.features = str(root / f"features_{way}")
  if way == "in place":
    config.data.update(dict(layout="seamless", conversations=str(root / "mock/unils"), seamless=str(root / "mock/seamless")))
    config.data.relations = str(root / "absent.csv")
  else:
    config.data.update(dict(conversations=str(root / "out"), relations=str(root / "out/relations.csv")))
  return config


def make_inputs(config, say=lambda _: None):
  return StageInputs(config, make_talker(config), make_encoder(config.speech, None), sharding.make_mesh(), say=say)


def test_batches_in_place_are_those_of_the_written_layout(folders):
  root, _, truth = folders
  lines = []
  inputs = {way: make_inputs(config_for(root, way), lines.append) for way in ("in place", "written")}
  names = {way: [clip.name for clip in x.training_clips] for way, x in inputs.items()}
  train_names = [name for name in truth if "S0006" not in name and "S0007" not in name]
  assert names["in place"] == names["written"] == sorted(f"{name}_speaker{n}" for name in train_names for n in (1, 2))
  assert len(inputs["in place"].validation_clips) == len(inputs["written"].validation_clips) == 2
  batches = [iter(motion_stage(x).batches) for x in inputs.values()]
  seen = set()
  for _ in range(12):  # More than an epoch.
    first, second = (next(stream) for stream in batches)
    assert first.keys() == second.keys() == {"speech_a", "motion_a", "speech_b", "motion_b", "relation"}
    for key in first:
      np.testing.assert_array_equal(first[key], second[key])
    seen |= {tuple(relation) for relation in np.asarray(first["relation"])}
  assert seen >= {(0, 1), (-1, -1), (1, 0)}
  assert any("conversations by relation: " in line and "2 non_blood,equal" in line for line in lines)
  assert sum("skipped V00_S0002_I00000009" in line and "frame 11" in line for line in lines) == 1


def test_a_run_in_place(folders, tmp_path):
  """The whole way, by a loss that compiles in a moment."""
  tiny_world.train_quickly(config_for(folders[0], "in place"), str(tmp_path / "run"), stage="motion")
  assert (tmp_path / "run/motion/checkpoints/4").is_dir()


def test_encoding_goes_on_over_a_damaged_recording(folders):
  root, _, _ = folders
  lines = []
  encode.encode_voices(config_for(root, "in place"), say=lines.append)
  text = "\n".join(lines)
  assert text.count("not encoded: ") == 2 and "frame 11" in text and "12 voices" in text


def test_a_subset_in_the_config(folders):
  root, _, _ = folders
  config = config_for(root, "in place")
  config.data.subset, config.data.count = ("V01",), 2
  assert [clip.name for clip in make_inputs(config).training_clips] == [
      f"V01_{rest}_speaker{n}" for rest in ("S0003_I00000001_P0001_P0002", "S0005_I00000001_P0003_P0004") for n in (1, 2)
  ]
  assert make_inputs(config).validation_clips == []


def test_the_command_line(folders, tmp_path):
  _, mock, _ = folders
  words = [sys.executable, "-m", "rsatalker_jax", "seamless", f"--talk={mock.talk}", f"--out={tmp_path / 'out'}", "--splits=test,val"]
  done = subprocess.run([*words, f"--seamless={mock.seamless}", "--subset=V01"], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0 and "1 conversations" in done.stdout and "1 blood,unknown" in done.stdout, done.stderr
  wrong = subprocess.run([*words, "--subset=session"], cwd=ROOT, capture_output=True, text=True, check=False)
  assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1 and "subset" in wrong.stderr
