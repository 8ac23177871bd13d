"""A run's folder: whose it is, what is read of it whatever wrote it, and what is left of it after damage."""

import json
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import base_config
from rsatalker_jax.commands.config_values import check_values
from rsatalker_jax.errors import InputError
from rsatalker_jax.runs import workdir as workdirs
from rsatalker_jax.training import checkpoints
from rsatalker_jax.training.checkpoints import TrainState

STEPS = (2, 4)


def state(step):
  values = jnp.arange(1000.0) + step
  return TrainState(
      step=jnp.asarray(step, jnp.int32),
      params={"generator": {"kernel": values}},
      buffers={"generator": {"mean": -values}},
      opt_state=(values * 2,),
  )


def batches():
  return iter(grain.MapDataset.range(100).to_iter_dataset())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A workdir with two checkpoints, whose iterators have given as many items as their steps."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  checkpointer = checkpoints.make_checkpointer(str(workdir), "motion", 2)
  iterator = batches()
  for step in range(1, STEPS[-1] + 1):
    next(iterator)
    if step in STEPS:
      checkpointer.save(state(step), iterator, step, force=True)
  checkpointer.close()
  workdirs.record_config(str(workdir), base_config())
  return workdir


@pytest.fixture
def run(written, tmp_path):
  shutil.copytree(written, tmp_path / "run")
  return tmp_path / "run"


def newest(run):
  return run / "motion" / "checkpoints" / "4"


def restore(run):
  """What a resumed run gets: (state or None, next item of the data, lines)."""
  lines, iterator = [], batches()
  checkpointer = checkpoints.make_checkpointer(str(run), "motion", 2)
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
  try:
    return checkpointer.restore(abstract, iterator, lines.append), next(iterator), lines
  finally:
    checkpointer.close()


# --- Checkpoints


def test_the_newest_is_read_and_resumed(run):
  loaded = workdirs.load_stage_state(str(run), "motion")
  resumed, item, lines = restore(run)
  assert int(loaded["step"]) == int(resumed.step) == 4 and item == 4 and not lines
  np.testing.assert_array_equal(loaded["params"]["generator"]["kernel"], np.arange(1000) + 4)
  np.testing.assert_array_equal(resumed.opt_state[0], 2 * (np.arange(1000) + 4))
  assert workdirs.load_parameters(str(run))[2] == "motion:4"


def files_of(path):
  return [file for file in path.rglob("*") if file.is_file() and file.name != "sha256.json"]


def cut_off(run):
  for file in files_of(newest(run)):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_data(run):
  shutil.rmtree(newest(run) / "state")


def only_a_folder(run):
  shutil.rmtree(newest(run))
  newest(run).mkdir()


def flip_a_bit(run):
  largest = max(files_of(newest(run) / "state"), key=lambda file: file.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)


def damaged_checksums(run):
  (newest(run) / "sha256.json").write_text("{")


def cut_off_without_checksums(run):
  cut_off(run)
  (newest(run) / "sha256.json").unlink()


@pytest.mark.parametrize(
    "damage", [cut_off, without_data, only_a_folder, flip_a_bit, damaged_checksums, cut_off_without_checksums]
)
def test_of_a_damaged_newest_checkpoint_the_one_before_is_used_and_it_is_said(run, damage, capsys):
  damage(run)
  assert int(workdirs.load_stage_state(str(run), "motion")["step"]) == 2
  said = capsys.readouterr().out
  assert str(newest(run)) in said and said.endswith("the one before it, 2\n") and said.count("\n") == 1
  resumed, item, (line,) = restore(run)
  assert int(resumed.step) == 2 and item == 2 and str(newest(run)) in line and "\n" not in line
  # Its number is free for the step to come, and nothing is deleted.
  assert not newest(run).exists() and newest(run).with_name("4.damaged").exists()
  assert int(restore(run)[0].step) == 2


@pytest.mark.parametrize("damage", [cut_off, only_a_folder, flip_a_bit])
def test_damaged_checkpoints_alone_are_one_line_and_stay(run, damage):
  damage(run)
  shutil.rmtree(run / "motion" / "checkpoints" / "2")
  for read in (lambda: workdirs.load_stage_state(str(run), "motion"), lambda: restore(run)):
    with pytest.raises(InputError, match="motion/checkpoints/4") as error:
      read()
    assert "\n" not in str(error.value) and newest(run).exists()


def test_a_damaged_iterator_is_damage(run):
  (file,) = (newest(run) / "data").glob("process_*")
  file.write_text("{")
  (newest(run) / "sha256.json").unlink()
  assert int(restore(run)[0].step) == 2


def test_a_checkpoint_goes_on_after_one_was_set_aside(run):
  cut_off(run)
  checkpointer = checkpoints.make_checkpointer(str(run), "motion", 2)
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
  iterator = batches()
  checkpointer.restore(abstract, iterator, lambda line: None)
  checkpointer.save(state(4), iterator, 4, force=True)
  checkpointer.close()
  assert int(workdirs.load_stage_state(str(run), "motion")["step"]) == 4


def test_what_is_no_checkpoint_is_not_looked_at(run):
  folder = run / "motion" / "checkpoints"
  (folder / ".DS_Store").write_bytes(b"x")
  (folder / "9").write_text("a file")
  (folder / "8 (copy)").mkdir()
  shutil.copytree(newest(run), folder / "6.orbax-checkpoint-tmp-1")
  assert int(workdirs.load_stage_state(str(run), "motion")["step"]) == 4
  assert int(restore(run)[0].step) == 4


def test_a_checkpoint_of_another_model_is_not_called_damaged(run):
  checkpointer = checkpoints.make_checkpointer(str(run), "motion", 2)
  other = state(0).replace(params={"generator": {"kernel": jnp.zeros(3), "bias": jnp.zeros(3)}})
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), other)
  with pytest.raises(InputError, match="expected a checkpoint of this config"):
    checkpointer.restore(abstract, batches(), print)
  checkpointer.close()
  assert newest(run).exists()


def rewrite_iterators(run, states):
  """Leaves the data iterator's state as so many processes would have written it."""
  (newest(run) / "sha256.json").unlink()
  (file,) = (newest(run) / "data").glob("process_*")
  file.unlink()
  for number, state in enumerate(states):
    file.with_name(f"process_{number}-of-{len(states)}.json").write_text(json.dumps(state))


def test_a_run_goes_on_with_another_number_of_processes(run):
  rewrite_iterators(run, [{"next_index": 3}] * 4)
  state, item, _ = restore(run)
  assert int(state.step) == 4 and item == 3


@pytest.mark.parametrize(
    "states, found",
    [
        ([{"next_index": 3}, {"next_index": 4}], "process_1-of-2.json: found a state of the data iterator that is not the other"),
        ([], "data: found no state of a data iterator"),
    ],
)
def test_iterators_that_disagree_or_are_gone_are_damage(run, states, found):
  rewrite_iterators(run, states)
  state, _, lines = restore(run)
  assert int(state.step) == 2 and found in lines[0]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: No space left")])
def test_a_full_disk_is_one_line(run, monkeypatch, error):
  checkpointer = checkpoints.make_checkpointer(str(run), "motion", 2)

  def fail(*_, **__):
    raise error

  monkeypatch.setattr(checkpointer._checkpointer, "save_checkpointables_async", fail)
  with pytest.raises(InputError, match="motion/checkpoints: found .*No space left.* expected room for a checkpoint"):
    checkpointer.save(state(6), batches(), 6, force=True)
  checkpointer.close()
  assert int(workdirs.load_stage_state(str(run), "motion")["step"]) == 4


def test_each_checkpoint_has_checksums_of_its_files(written):
  import hashlib

  for step in STEPS:
    path = written / "motion" / "checkpoints" / str(step)
    sums = json.loads((path / "sha256.json").read_text())
    assert {str(file.relative_to(path)) for file in files_of(path)} == set(sums)
    assert all(hashlib.sha256((path / name).read_bytes()).hexdigest() == value for name, value in sums.items())


# --- Config


def changed(**overrides):
  config = base_config()
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
  return config


@pytest.mark.parametrize(
    "config",
    [
        changed(mesh__cpu_devices=1, mesh__fsdp=4),
        changed(data__conversations="/moved/conversations", data__features="/elsewhere", data__embedded_root=""),
        changed(data__capture="/moved/capture", data__triplets="/moved/triplets.jsonl", data__relations="/moved/r.csv"),
        changed(head__path="/moved/demo_head.npz"),
        changed(motion__steps=8000, avatar__steps=601, joint__steps=121),
        changed(logging__log_every=1, logging__checkpoint_every=1),
        changed(evaluation__title="another", evaluation__frames=4),
        changed(speech__encode_missing=False, data__reader_threads=7),
        changed(render__implementation="xla", render__tile_size=8, render__max_intersections=1000),
    ],
)
def test_what_changes_no_numbers_may_differ(run, config):
  workdirs.check_workdir(str(run), config)


@pytest.mark.parametrize(
    "config, message",
    [
        (changed(motion__learning_rate=0.5), r"motion.learning_rate: found 0.002, expected 0.5 \(this config\)"),
        (changed(motion__steps=3999), r"motion.steps: found 4000, expected 3999 \(this config\)"),
        (changed(joint__batch=4), "joint.batch: found 2, expected 4"),
        (changed(seed=1), "seed: found 0, expected 1"),
        (changed(head__path="assets/head/other.npz"), "head.path: found 'assets/head/demo_head.npz'"),
        (changed(head__masks="masks.pkl"), "head.masks: found None, expected 'masks.pkl'"),
        (changed(data__captures=("a",)), "data.captures"),
        (changed(data__performances=1), "data.performances: found 3, expected 1"),
        (changed(speech__encoder="wav2vec2"), "speech.encoder"),
        (changed(render__background=(0.0, 0.0, 0.0)), "render.background"),
        (changed(gaussians__region_density__scalp=2.0), "gaussians.region_density.scalp: found 1.0, expected 2.0"),
    ],
)
def test_what_changes_numbers_is_refused(run, config, message):
  with pytest.raises(InputError, match=rf"config.json: {message}.*use another --workdir"):
    workdirs.check_workdir(str(run), config)


def test_more_steps_are_recorded_with_the_next_checkpoint(run):
  workdirs.record_config(str(run), changed(motion__steps=8000))
  workdirs.check_workdir(str(run), changed(motion__steps=8000))
  with pytest.raises(InputError, match="motion.steps: found 8000, expected 4000"):
    workdirs.check_workdir(str(run), base_config())


def test_a_first_start_that_failed_leaves_the_workdir_free(tmp_path):
  workdirs.check_workdir(str(tmp_path / "run"), base_config())
  assert not list(tmp_path.iterdir())  # To look writes nothing.
  workdirs.record_config(str(tmp_path / "run"), base_config())  # Killed before its first checkpoint was whole.
  workdirs.check_workdir(str(tmp_path / "run"), changed(seed=1))
  with pytest.raises(InputError, match="seed"):  # Readers want what is there.
    workdirs.check_workdir(str(tmp_path / "run"), changed(seed=1), must_exist=True)


def test_checkpoints_without_a_config_are_refused(run):
  (run / "config.json").unlink()
  with pytest.raises(InputError, match="config.json: found no such file beside checkpoints"):
    workdirs.check_workdir(str(run), base_config())


def test_a_section_given_in_part_is_the_same_the_next_time(run):
  config = changed()
  config.gaussians.region_density = {"scalp": 2.0}
  workdirs.record_config(str(run), config)
  workdirs.check_workdir(str(run), config)


def test_the_config_is_read_back(run, capsys):
  loaded = workdirs.load_config(str(run))
  assert loaded == json.loads(json.dumps(base_config().to_dict())) and not capsys.readouterr().out
  check_values(loaded)


def edited(run, change):
  path = run / "config.json"
  config = json.loads(path.read_text())
  change(config)
  path.write_text(json.dumps(config))


def test_keys_of_other_versions_are_filled_or_dropped_and_said(run, capsys):
  def older(config):
    del config["render"]["tile_size"], config["speech"]["context"], config["social"]
    config["motion"]["momentum"] = 0.9
    config["gaussians"]["region_density"] = {}  # As older versions had it.

  edited(run, older)
  loaded = workdirs.load_config(str(run))
  assert loaded == json.loads(json.dumps(base_config().to_dict()))
  filled, dropped = capsys.readouterr().out.splitlines()
  assert "render.tile_size=16" in filled and "speech.context=4" in filled and "social" in filled
  assert "region_density" not in filled and "motion.momentum=0.9" in dropped
  with pytest.raises(InputError, match="found motion.momentum=0.9, which is no key of this version"):
    workdirs.check_workdir(str(run), base_config())


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"model_type": "wav2vec2"}', "found the keys model_type"),
        (b"{}", "found the keys none"),
        (b"[]", "found a list"),
        (b"3", "found a int"),
        (bytes(range(256)), "found no JSON"),
        (b'{"seed": 0,', "line 1: found broken JSON"),
        (b"", "line 1: found broken JSON"),
        (b"[" * 100_000, "found no JSON"),
    ],
)
@pytest.mark.parametrize("read", [workdirs.load_config, lambda run: workdirs.check_workdir(run, base_config())])
def test_what_is_no_runs_config_is_one_line(run, content, message, read):
  (run / "config.json").write_bytes(content)
  with pytest.raises(InputError, match=f"config.json: {message}"):
    read(str(run))


def test_a_section_that_is_none_is_one_line(run):
  edited(run, lambda config: config.update(mesh=3))
  with pytest.raises(InputError, match="config.json: mesh: found 3, expected a section with cpu_devices, data, fsdp"):
    workdirs.load_config(str(run))


@pytest.mark.parametrize("read", [workdirs.load_config, lambda run: workdirs.check_workdir(run, base_config())])
def test_a_workdir_that_is_none_is_one_line(tmp_path, read):
  (tmp_path / "file").write_text("x")
  (tmp_path / "odd" / "config.json").mkdir(parents=True)
  for place, message in (("file", "Not a directory"), ("odd", "Is a directory")):
    with pytest.raises(InputError, match=f"{place}/config.json: found {message}"):
      read(str(tmp_path / place))
  with pytest.raises(InputError, match="--workdir: found gs://bucket/run, expected a folder"):
    read("gs://bucket/run")


def test_paths_are_found_from_another_working_directory(run, tmp_path, monkeypatch):
  trained_in, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
  (trained_in / "heads").mkdir(parents=True)
  (trained_in / "heads" / "h.npz").write_text("x")
  (trained_in / "data").mkdir()
  elsewhere.mkdir()
  monkeypatch.chdir(trained_in)
  workdirs.record_config(str(run), changed(head__path="heads/h.npz", data__embedded_root="data"))
  assert workdirs.load_config(str(run))["head"]["path"] == "heads/h.npz"
  monkeypatch.chdir(elsewhere)
  loaded = workdirs.load_config(str(run))
  assert loaded["head"]["path"] == str(trained_in / "heads" / "h.npz")
  assert loaded["data"]["embedded_root"] == str(trained_in / "data") and loaded["data"]["capture"] == "capture"
  (trained_in / "heads" / "h.npz").unlink()
  with pytest.raises(InputError, match=f"head.path: found heads/h.npz.*working directory, {elsewhere}.*{trained_in}"):
    workdirs.load_config(str(run))
