"""What image-based baselines are told when they are scored, that their rows stand in the tables, and what no command can do with them."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

import tiny_world
from configs.ablations import apply_variant
from rsatalker_jax.baselines.image import ImageMethod, joint_transforms, speech_around
from rsatalker_jax.commands import evaluate, image_protocols, train
from rsatalker_jax.commands.config_values import check_values
from rsatalker_jax.errors import InputError
from rsatalker_jax.runs import load_run

TITLE = "GaussianTalker, re-implemented"
PROTOCOLS = ["true pose and eyes", "speech only", "our generator's pose and eyes"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("world") / "data"
  tiny_world.write_world(root)
  return root


def image_config(world):
  config = tiny_world.tiny_config(world)
  shrunk = config.avatar.to_dict()
  apply_variant(config, "gaussiantalker")
  config.avatar.update({name: shrunk[name] for name in ("steps", "batch")})
  config.gaussians.capacity = 300
  config.baselines.gaussiantalker.update(dict(coarse_steps=2, planes=(4,), channels=4, hidden=8))
  return config


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
  """A baseline, trained for four steps by its own loss, past the beginning of its second phase."""
  workdir = str(tmp_path_factory.mktemp("baseline"))
  config = image_config(world)
  config.density.way = "adaptive"
  config.density.adaptive.update(dict(start=0, stop=2, every=1, gradient_threshold=1e-6))
  train.train(config, workdir)
  return workdir


def test_the_stage_trains_a_baseline(trained):
  run = load_run(trained, image_methods=True)
  assert run.stages == "avatar:4" and run.buffers["gaussiantalker"]["moves"]
  fresh = 2 * 10 * 7  # A Gaussian on each of the ball's triangles.
  assert np.sum(run.buffers["avatar"]["binding"] >= 0) > fresh  # Density control has added some.
  metrics = pathlib.Path(trained, "avatar", "metrics.jsonl").read_text()
  assert '"lips"' in metrics and '"radii"' not in metrics


class Mirror(ImageMethod):
  """Instead of drawing keeps what it was told."""

  told: list = []

  def __init__(self, config, subject):
    self.subject = subject

  def render(self, params, buffers, drive, mesh, *, chunk=8):
    self.told.append(drive)
    return iter(())


def test_each_row_is_told_what_it_may_know(world, trained, monkeypatch):
  run = load_run(trained, image_methods=True)
  people, _ = evaluate._find_films({run.data_path("capture").resolve(): run}, "test")
  (film,) = people[0]
  monkeypatch.setattr(image_protocols, "make_image_method", Mirror)
  Mirror.told = []
  places = [np.array([3, 17, 59])]
  # Longer than the training film: it turns round.
  film = dataclasses.replace(film, frames=film.frames + 40)
  film = dataclasses.replace(film, clip=dataclasses.replace(film.clip, speech_b=np.random.default_rng(0).normal(size=(120, 5))))
  turned = film.capture.read_flame(film.items[places[0]])
  turned["neck"] = turned["neck"] + 0.1
  rows = image_protocols.MethodRun(TITLE, run, [film]).draw(places, lambda: turned, chunk=4)
  assert list(rows) == [f"{TITLE}: {protocol}" for protocol in PROTOCOLS]
  training = run.talker.open_capture(world / "capture", "train")
  # Frames 43, 57 and 99 of a film of 60: the last one is 60 − 1 − 39.
  flames = [film.capture.read_flame(film.items[places[0]]), training.read_flame([43, 57, 20]), turned]
  heard = speech_around(film.clip.speech_b, np.array([43, 57, 99]))
  for told, flame, row in zip(Mirror.told, flames, rows.values(), strict=True):
    for name, wanted in joint_transforms(run.talker.head, training.shape, None, flame).items():
      np.testing.assert_allclose(told[name], wanted, atol=1e-6)
    np.testing.assert_allclose(told["speech"], heard, rtol=1e-6)
    np.testing.assert_array_equal(told["world_to_camera"], film.capture.read_cameras(film.items[places[0]])[0])
    jax.tree.map(np.testing.assert_array_equal, row.flame, flame)


def test_a_sequence_is_played_to_and_fro():
  assert image_protocols.mirrored(np.arange(8), 3).tolist() == [0, 1, 2, 2, 1, 0, 0, 1]


def test_a_baseline_is_scored_alone(trained):
  markdown, _ = evaluate.score_run(trained)
  for protocol in PROTOCOLS[:2]:  # There is no generator.
    assert f"| {TITLE}: {protocol} | " in markdown
  assert f"{TITLE}: {PROTOCOLS[2]}" not in markdown and "told more" in markdown and "motion is not scored" in markdown.lower()


def test_baselines_stand_beside_a_run(world, trained, tmp_path):
  workdir = str(tmp_path / "run")
  tiny_world.train_quickly(tiny_world.tiny_config(world), workdir)
  for seed in (0, 1):
    shutil.copytree(trained, pathlib.Path(workdir, "compare", "gaussiantalker", f"seed_{seed}"))
  markdown, _ = evaluate.score_run(workdir, part="frames")
  for seed in (0, 1):
    assert all(f"| {TITLE}, seed_{seed}: {protocol} | " in markdown for protocol in PROTOCOLS)
  assert "| tracked motion | " in markdown


def test_no_other_command_takes_a_baseline_for_an_avatar(trained):
  with pytest.raises(InputError, match=r"avatar.method: found 'gaussiantalker', expected 'gaussians'"):
    load_run(trained)


def test_another_methods_checkpoint_is_refused(world, trained, tmp_path):
  """To start from it, and to go on in its folder."""
  config = tiny_world.tiny_config(world)
  config.stages = ("avatar",)
  with pytest.raises(InputError, match="another model has been trained there"):
    train.train(config, str(tmp_path / "new"), init_from=[trained])
  with pytest.raises(InputError, match="use another --workdir"):
    train.train(config, trained)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"stages": ("avatar", "joint")}, "stages"),
        ({"data.captures": ("a", "b")}, "data.captures"),
        ({"avatar.method": "nerf"}, "avatar.method"),
        ({"baselines.gaussiantalker.coarse_steps": 4}, "baselines.gaussiantalker.coarse_steps"),
        ({"baselines.gaussiantalker.heads": 3}, "baselines.gaussiantalker.heads"),
    ],
)
def test_what_a_baseline_cannot_do_is_one_line(world, changes, key):
  config = image_config(world)
  config.update_from_flattened_dict(changes)
  with pytest.raises(InputError, match=f"config: {key}: found "):
    check_values(config)


def test_a_person_without_a_film_is_refused(world, tmp_path):
  config = image_config(world)
  shutil.copytree(world / "capture", tmp_path / "other")
  config.data.capture = str(tmp_path / "other")
  with pytest.raises(InputError, match="no training triplet of it"):
    train.make_stage(train.make_inputs(config), "avatar")
