"""What train does before the first step: what stages start from, what is refused, and on how many devices they run."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import tiny_world
from configs.ablations import COMPARED, VARIANTS, apply_variant
from rsatalker_jax import sharding
from rsatalker_jax.commands import train
from rsatalker_jax.errors import InputError
from rsatalker_jax.runs import workdir as workdirs
from rsatalker_jax.talker import make_encoder, make_talker
from rsatalker_jax.training import loop
from rsatalker_jax.training.stage_inputs import StageInputs

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("world") / "data"
  tiny_world.write_world(root)
  return root


@pytest.fixture
def runs(monkeypatch):
  """Checkpoints by (run, stage), as {group: number}; to be filled."""
  checkpoints = {}

  def load(workdir, stage):
    if (workdir, stage) not in checkpoints:
      return None
    step, groups = checkpoints[workdir, stage]
    return {"step": np.int32(step), "params": dict(groups), "buffers": dict(groups)}

  monkeypatch.setattr(workdirs, "load_stage_state", load)
  return checkpoints


def test_a_runs_own_stages_come_before_those_it_is_initialised_from(runs):
  runs["old", "motion"] = 9, {"generator": 1, "social": 2}
  runs["old", "avatar"] = 9, {"avatar": 3}
  runs["old", "joint"] = 9, {"generator": 4, "social": 5, "avatar": 6, "offsets": 7}
  runs["own", "motion"] = 5, {"generator": 8, "social": 9}
  runs["own", "joint"] = 3, {"generator": 100}  # Its own newest checkpoint is the loop's to find.
  (params, buffers), sources = train._start_of("joint", "own", ["old"])
  assert params == buffers == {"generator": 8, "social": 9, "avatar": 6, "offsets": 7}
  assert sources == {"generator": "motion:5", "social": "motion:5", "avatar": "joint:9 of old", "offsets": "joint:9 of old"}
  (params, _), sources = train._start_of("motion", "own", [])
  assert params == sources == {}
  with pytest.raises(InputError, match="nowhere: found no checkpoint"):
    train._start_of("motion", "own", ["nowhere"])


def test_of_another_run_some_stages_can_be_taken(runs):
  runs["old", "motion"] = 9, {"generator": 1, "social": 2}
  runs["old", "avatar"] = 9, {"avatar": 3}
  runs["old", "joint"] = 9, {"generator": 4, "social": 5, "avatar": 6, "offsets": 7}
  start = lambda *origins: train._start_of("joint", "own", origins)[0][0]
  assert start("old:avatar") == {"avatar": 3}
  assert start("old:motion,avatar") == {"generator": 1, "social": 2, "avatar": 3}
  runs["odd:name", "motion"] = 9, {"generator": 1}  # A colon alone is part of the name.
  assert start("odd:name") == {"generator": 1}
  # Of several the last wins.
  runs["new", "motion"] = 9, {"generator": 11}
  assert start("old:motion,avatar", "new:motion") == {"generator": 11, "social": 2, "avatar": 3}
  assert start("new:motion", "old:motion,avatar") == {"generator": 1, "social": 2, "avatar": 3}
  runs["bare", "motion"] = 9, {"generator": 1}
  with pytest.raises(InputError, match="bare: found no checkpoint of avatar or joint, expected"):
    start("bare:avatar,joint")


def test_the_configs_stages_are_run(world, tmp_path, monkeypatch):
  ran = []
  monkeypatch.setattr(loop, "run_stage", lambda stage, **options: ran.append(stage.name))
  config = tiny_world.tiny_config(world)
  config.stages = ("motion", "joint")
  train.train(config, str(tmp_path / "run"))
  assert ran == ["motion", "joint"]
  with pytest.raises(InputError, match="--stage: found avatar, expected one of the config's stages, motion, joint"):
    train.train(config, str(tmp_path / "run"), stage="avatar")


def test_unfinished_stages_are_refused_unless_asked(runs, world):
  config = tiny_world.tiny_config(world)
  runs["own", "motion"] = 3, {}
  with pytest.raises(InputError, match="own: motion: found step 3 of 4, expected a finished stage; .*--allow_unfinished"):
    train._refuse_unfinished(config, "own", "joint")
  train._refuse_unfinished(config, "own", "motion")
  runs["own", "motion"] = 4, {}
  train._refuse_unfinished(config, "own", "joint")


def test_every_stage_is_made_before_the_first_is_run(world, tmp_path, monkeypatch):
  """What is wrong with stage 3 ends the command before stage 1 has taken a step, and leaves no workdir."""
  monkeypatch.setattr(loop, "run_stage", lambda *args, **options: pytest.fail("a stage ran"))
  config = tiny_world.tiny_config(world)
  config.joint.window = 61
  with pytest.raises(InputError, match="config: joint.window: found 61, expected at most 60"):
    train.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variant", ["full", *(name for name in COMPARED if VARIANTS[name][1].get("stages"))])
def test_what_is_compared_has_all_its_stages(world, variant):
  """Their parameters, optimizers and losses fit together, as shapes."""
  config = apply_variant(tiny_world.tiny_config(world), variant)
  config.gaussians.color_frames = 1
  config.codes.window = config.motion.window = 32  # As many frames as L2L's codes need.
  config.motion.batch = 2
  inputs = StageInputs(config, make_talker(config), make_encoder(config.speech, None), sharding.make_mesh(), say=lambda _: None)
  for name in config.stages:
    stage = train.make_stage(inputs, name)
    key = jax.random.key(0)
    params, buffers = jax.eval_shape(stage.init, key)
    assert "social" in params or name == "avatar"
    jax.eval_shape(stage.optimizer.init, params)
    batch = next(iter(stage.batches))
    with jax.set_mesh(stage.mesh):
      jax.eval_shape(stage.loss, params | stage.probes, buffers, batch, key, np.int32(0))


PROGRAM = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from configs.demo import get_config as demo
from configs.rsatalker import get_config as paper
from rsatalker_jax import sharding
for config in (demo(), paper()):
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  for batches in (dict(motion=config.motion.batch), dict(avatar=config.avatar.batch),
                  dict(joint=config.joint.batch, others=config.joint.motion_batch)):
    part = sharding.fit_mesh(mesh, batches)
    assert all(batch % part.size == 0 for batch in batches.values()) and part.shape["fsdp"] == config.mesh.fsdp
    print(batches, part.size)
"""


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_both_configs_fit_any_number_of_devices(devices):
  done = subprocess.run([sys.executable, "-c", PROGRAM, str(devices)], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  used = [int(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines()]
  assert used == [min(devices, 4), min(devices, 2), min(devices, 2), devices, min(devices, 2), min(devices, 2)]


def test_relations_of_triplets_are_learnt_in_every_stage(world, tmp_path):
  """Where conversations come without labels, those of the manifest reach both directions, in stage 1 already."""
  shutil.copytree(world, tmp_path / "data")
  (tmp_path / "data" / "conversations" / "relations.csv").unlink()
  config = tiny_world.tiny_config(tmp_path / "data")
  config.data.default_relation = "unknown"
  inputs = StageInputs(config, make_talker(config), make_encoder(config.speech, None), sharding.make_mesh(), say=lambda _: None)
  np.testing.assert_array_equal([clip.relation for clip in inputs.training_clips], [[1, 1], [1, 1]])
  np.testing.assert_array_equal(inputs.films.conversations[0].clip.relation, [1, 1])
  np.testing.assert_array_equal([clip.relation for clip in inputs.validation_clips], [[-1, -1], [-1, -1]])
  manifest = json.loads((world / "triplets.jsonl").read_text().splitlines()[0])
  assert manifest["relation"] == "blood,equal"


@pytest.mark.parametrize("package", ["rsatalker_jax", "splat_kernels"])
def test_processes_compare_the_code_of_both_packages(world, monkeypatch, package):
  describe = lambda: train._describe_run(tiny_world.tiny_config(world), "run", None, [])
  before, read = describe(), pathlib.Path.read_bytes
  changed = ROOT / package / "__init__.py"
  monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: read(path) + b"#" * (path == changed))
  assert {name for name, value in describe().items() if value != before[name]} == {f"code of {package}"}
