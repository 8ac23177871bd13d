"""What image-based baselines are told when they are scored, that their rows stand in the tables, and what no command can do with them."""

import dataclasses
import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

import tiny_world
from configs.ablations import apply_variant
from rsatalker_jax.baselines.image import ImageMethod, joint_transforms, speech_around
from rsatalker_jax.commands import evaluate, film_scores, image_protocols, train
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


def image_config(world, method="gaussiantalker", **sizes):
  config = tiny_world.tiny_config(world)
  shrunk = config.avatar.to_dict()
  apply_variant(config, method)
  config.avatar.update({name: shrunk[name] for name in ("steps", "batch")})
  config.gaussians.capacity = 300
  config.baselines[method].update(sizes or dict(coarse_steps=2, planes=(4,), channels=4, hidden=8))
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


def test_what_rays_lose_is_told_beside_the_loss(world, tmp_path):
  """Of ER-NeRF the log has the share of rays that are cut off, and it is no term of the loss."""
  sizes = dict(crop=16, levels=2, coarsest=4, finest=8, hidden=8, attention_hidden=8, lattice_points=12, samples=2, occupancy=8)
  config = image_config(world, "ernerf", **sizes, head_share=0.5, lips_share=0.0, torso_coarsest=4, torso_finest=8)
  config.logging.log_every = 1
  train.train(config, str(tmp_path))
  lines = [json.loads(line) for line in (tmp_path / "avatar" / "metrics.jsonl").read_text().splitlines()]
  logged = [line for line in lines if "loss" in line]
  assert len(logged) == config.avatar.steps
  for line in logged:
    assert 0 < line["cut_rays"] <= 1
    terms = ("pixels", "uncertainty", "entropy", "audio_attention", "eye_attention", "shift", "lpips", "torso", "torso_points")
    np.testing.assert_allclose(line["loss"], sum(line[name] for name in terms), rtol=1e-5)


class Mirror(ImageMethod):
  """Instead of drawing keeps what it was told."""

  told: list = []

  def __init__(self, config, subject):
    self.subject = subject

  def render(self, params, buffers, drive, mesh, *, chunk=8, say=None):
    self.told.append(drive)
    return iter(())


def test_each_row_is_told_what_it_may_know(world, trained, monkeypatch):
  run = load_run(trained, image_methods=True)
  people, _ = evaluate.find_run_films({run.data_path("capture").resolve(): run}, "test")
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
        ({"gaussians.num_gaussians": 200}, "gaussians.num_gaussians"),
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


class FixedLips:
  """Lips that are where the pose's "eyes" say."""

  size = 32

  def centres(self, flame, cameras):
    return flame["eyes"]

  def cut(self, images, centres):
    return image_protocols.LipCrops.cut(self, images, centres)


def test_lips_are_compared_where_each_pose_puts_them(monkeypatch):
  """A picture that is the film's, moved, has the film's lips; one that is not moved with its pose has others."""
  truth = np.random.default_rng(0).uniform(size=(3, 64, 64, 3)).astype(np.float32)
  shifts = np.array([[5, -3], [-4, 2], [1, 6]])  # To the right and down, of each frame.
  middle, moved = np.full((3, 2), 32.0, np.float32), (32 + shifts).astype(np.float32)
  capture = types.SimpleNamespace(read_cameras=lambda items: None)
  film = types.SimpleNamespace(images=lambda start, count: truth[start : start + count], flame={"eyes": middle})
  footage = types.SimpleNamespace(
      film=film, capture=capture, items=np.arange(3), run=None, names=["a", "b"], lengths=[1, 2], frames=np.arange(3)
  )  # fmt: skip
  monkeypatch.setattr(film_scores.LipCrops, "of", lambda run, capture: FixedLips())
  chunks = lambda images: iter([images[:2], images[2:]])
  rolled = np.stack([np.roll(image, (y, x), axis=(0, 1)) for image, (x, y) in zip(truth, shifts)])
  drawn = {
      "the same": image_protocols.Drawn(chunks(truth), {"eyes": middle}),
      "moved": image_protocols.Drawn(chunks(rolled), {"eyes": moved}),
      "not moved": image_protocols.Drawn(chunks(truth), {"eyes": moved}),
  }
  each, sheet = film_scores._score_footage(footage, drawn, ())
  l1 = lambda row, name: np.array(each["a"][row][name] + each["b"][row][name])
  assert not l1("the same", "lips/l1").any() and not l1("moved", "lips/l1").any() and l1("not moved", "lips/l1").all()
  assert l1("moved", "l1").all() and not l1("not moved", "l1").any()
  wanted = [np.abs(image[16 + y : 48 + y, 16 + x : 48 + x] - image[16:48, 16:48]).mean() for image, (x, y) in zip(truth, shifts)]
  np.testing.assert_allclose(l1("not moved", "lips/l1"), wanted, rtol=1e-5)
  assert sheet.shape == (5 * 64, 3 * 64, 3)  # Truth, three rows, error.


def test_tables_have_the_lips_apart_and_rank_what_is_not_told_the_truth():
  score = lambda l1: {"l1": l1, "psnr": 30.0 - l1, "ssim": 0.9, "lips/l1": 2 * l1, "lips/psnr": 20.0, "lips/ssim": 0.5}
  rows = {"tracked motion": score(0.1), "generated motion": score(0.3)}
  rows |= {f"{TITLE}: {protocol}": score(0.2 + 0.1 * i) for i, protocol in enumerate(PROTOCOLS)}
  rows["tracked motion, held-out camera"] = {"l1": 0.01, "psnr": 40.0, "ssim": 1.0}
  scores = film_scores.FrameScores(rows, {"a": {}}, {"jonas": rows}, {}, {}, 3, np.zeros((1, 1, 3)))
  whole, lips = (table.markdown() for table in evaluate._frame_tables(scores))
  assert "| generated motion | **0.3** |" in whole and f"| {TITLE}: {PROTOCOLS[0]} | 0.2 |" in whole and "(paper)" in whole
  assert "| generated motion | **0.6** |" in lips and "held-out" not in lips and "(paper)" not in lips
  report = evaluate._frame_report(scores, filmed=True)
  assert "compare with none of these rows" in report and "The lips alone" in report
