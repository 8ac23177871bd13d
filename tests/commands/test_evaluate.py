"""Scoring runs of a tiny world: all that a run has and nothing else, on the split asked for, over all films."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import re
import shutil
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import splat_kernels
import tiny_world
from rsatalker_jax.commands import evaluate, film_scores, verbs
from rsatalker_jax.data.captures import load_capture
from rsatalker_jax.data.pipeline import load_clips
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import image_metrics, scoring, tables
from rsatalker_jax.head import pose_for
from rsatalker_jax.runs import load_run, workdir as workdirs

# What people do in the test conversations, for the scores by hand: (B's motion, A's), both directions of both.
SECOND_FILM = 40  # Frames of the first film; the second one shows the rest.
MOTIONS = [tiny_world.make_motion(5), tiny_world.make_motion(6), tiny_world.make_motion(9, 20), tiny_world.make_motion(6)[40:]]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """The tiny world, with a second, shorter test conversation that the test capture's last 20 frames show."""
  root = tmp_path_factory.mktemp("world") / "data"
  tiny_world.write_world(root)
  folder = root / "conversations"
  for speaker, motion in ((1, MOTIONS[2]), (2, MOTIONS[3])):
    tiny_world.write_voice(folder / "test" / f"tiny-3_sub_video_0_speaker{speaker}.wav", 8 + speaker, 20)
    tiny_world.write_npz(folder / "test" / f"tiny-3_sub_video_0_speaker{speaker}.npz", motion)
  with open(folder / "relations.csv", "a") as file:
    file.write("tiny-3_sub_video_0,false,true\n")
  first, second = map(json.loads, (root / "triplets.jsonl").read_text().splitlines())
  third = second | dict(conversation="tiny-3_sub_video_0", relation="non_blood,equal", frames=20)
  third["first_timestep"] += SECOND_FILM
  lines = [first, second | dict(frames=SECOND_FILM), third]
  (root / "triplets.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return root


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp("run"))
  tiny_world.train_quickly(tiny_world.tiny_config(world), workdir)
  return workdir


def copy_run(trained, folder, *stages, title="RSATalker"):
  """A run of some stages of the trained one."""
  for stage in stages:
    shutil.copytree(f"{trained}/{stage}", folder / stage)
  config = json.loads(pathlib.Path(trained, "config.json").read_text())
  config["evaluation"]["title"] = title
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  return str(folder)


@pytest.fixture
def part_of(trained, tmp_path):
  return functools.partial(copy_run, trained, tmp_path / "part")


def read_results(workdir, *split):
  folder = pathlib.Path(workdir, "evaluation", *split)
  return json.loads((folder / "results.json").read_text()), (folder / "results.md").read_text(), folder / "frames.png"


@pytest.fixture(scope="module")
def evaluation(trained):
  """What is written, and what is said on stderr, of the finished run and of two to compare with, of the motion stage alone."""
  for seed in (0, 1):
    copy_run(trained, pathlib.Path(trained, "compare", "full", f"seed_{seed}"), "motion", title="RSATalker, stage 1")
  # As a training that was stopped early leaves it.
  pathlib.Path(trained, "compare", "slow", "seed_0", "motion", "checkpoints").mkdir(parents=True)
  with contextlib.redirect_stderr(io.StringIO()) as said:
    _, violations = evaluate.score_run(trained)
  assert violations == []
  return read_results(trained), said.getvalue()


@pytest.fixture(scope="module")
def scored(evaluation):
  return evaluation[0]


def test_all_of_a_finished_run(scored):
  results, markdown, sheet = scored
  rows = results["motion"]
  assert list(rows) == ["true motion", "RSATalker", "constant training mean", "RSATalker, stage 1"]
  truth = rows["true motion"][0]
  assert truth["mse/expression"] == truth["rpcc/jaw"] == 0 and f"| true motion | {truth['sid/expression']:.4g} |" in markdown
  # A ball has no lips, and one training conversation no two relations: nothing is said of either.
  assert not any(name.startswith(("lips/", "relation/")) for name in rows["RSATalker"][0])
  assert "compare/slow/seed_0 has kept no step yet, so it has no row.\n" in markdown
  first, second = rows["RSATalker, stage 1"]
  assert first == second and first != rows["RSATalker"][0] and "| RSATalker, stage 1 | " in markdown
  assert f"{first['mse/expression'] * 10:.3g} ± 0" in markdown
  # The constant row by hand: the mean of the training targets against the test targets.
  mean = np.concatenate([tiny_world.make_motion(seed) for seed in (1, 2)]).mean(0)
  expected = np.mean([np.mean((mean[:50] - motion[:, :50]) ** 2) for motion in MOTIONS])
  np.testing.assert_allclose(rows["constant training mean"][0]["mse/expression"], expected, rtol=1e-4)

  assert results["split"] == "test" and results["missing"] == []
  assert set(results["frames"]) == {"tracked motion", "generated motion", "generated motion, before the joint stage"}
  assert "4 frames of 2 films" in markdown and "| tiny-3_sub_video_0_speaker2 | " in markdown
  for title, scores in results["frames"].items():  # Two frames of each.
    films = [film[title] for film in results["films"].values()]
    assert scores == pytest.approx({name: (films[0][name] + films[1][name]) / 2 for name in scores})
  assert 0 < results["flicker"]["avatar"] and 0 < results["flicker"]["film"]
  assert Image.open(sheet).size == (4 * tiny_world.SIZE, 4 * tiny_world.SIZE)  # All four frames: truth, two rows, error.


def test_results_say_what_they_are_of(evaluation, trained):
  """What other commands read: of each frame and clip, by which definitions, and what was checked."""
  (results, markdown, _), said = evaluation
  assert (results["metrics_version"], results["seed"], results["title"]) == (tables.METRICS_VERSION, 0, "RSATalker")
  assert results["run"] == trained and results["summary"].startswith("4 clips")
  # Parameters that have shrunk to nothing move nothing: of three groups, in the run and two seeds. The constant row may.
  rows = ["RSATalker"] * 3 + ["RSATalker, stage 1, seed 1 of 2"] * 3 + ["RSATalker, stage 1, seed 2 of 2"] * 3
  assert [line.partition(" varies")[0] for line in results["checks"]] == [
      f"COLLAPSED: {row}: {group}" for row, group in zip(rows, ["expression", "jaw", "pose"] * 3)
  ]
  assert all(f"- {line}\n" in markdown and f"{trained}: {line}\n" in said for line in results["checks"])
  assert set(results["clips_each"]) == {"true motion", "RSATalker"}
  clips = results["clips_each"]["RSATalker"]
  assert list(clips) == [f"tiny-{n}_sub_video_0_speaker{speaker}" for n in (2, 3) for speaker in (1, 2)]
  for score, value in results["motion"]["RSATalker"][0].items():
    if score in clips["tiny-2_sub_video_0_speaker1"] and not score.startswith(("pdd", "jdd")):
      # Of speaking and listening only those clips in which somebody does.
      assert value == pytest.approx(np.mean([scores[score] for scores in clips.values() if score in scores]))
  assert set(results["frames_each"]) == set(results["films"])
  for film, rows in results["frames_each"].items():
    assert set(rows) == set(results["frames"])
    for title, scores in rows.items():
      # First and last frame of 40, and of the other film's 20, as the conversation counts them.
      assert scores.pop("frame") == ([0, 39] if film.startswith("tiny-2") else [0, 19])
      assert results["films"][film][title] == pytest.approx({name: np.mean(values) for name, values in scores.items()})
  assert results["usage"]["avatar"]["steps"] == 4 and results["usage"]["joint"]["parameters"]["offsets"] > 0
  assert "FD ≤ P-FD and FD ≤ D·MSE·T/(T−1) hold in all 4 clips" in markdown
  latex = pathlib.Path(trained, "evaluation", "results.tex").read_text()
  assert latex.count(r"\begin{tabular}") == 2 and r"RSATalker (paper)" in latex and latex.isascii()


def make_motion_results(**own):
  """Of a truth, a run of these scores, two seeds of another, and the constant row, which is always collapsed."""
  scores = lambda **changes: scoring.MotionScores(**(
      dict(means={"mse/expression": 1.0}, each={"clip": {"mse/expression": 1.0}}, violations=[], collapsed=[]) | changes
  ))
  rows = {"true motion": [scores()], "ours": [scores(**own)], "constant training mean": [scores(collapsed=["jaw varies"])]}
  rows["other"] = [scores(), scores(violations=["c: jaw: FD 2"])] if own else [scores(), scores()]
  return evaluate.MotionResults("4 clips", "ours", rows, None, ["Something is not measured"])


def test_what_is_broken_is_a_line_each_that_names_row_and_seed():
  fine = make_motion_results()
  assert fine.results()["checks"] == fine.violations == [] and "hold in all 1 clips" in fine.report()
  assert "*constant training mean* stands still, as it is meant to: jaw." in fine.report()
  assert fine.report().endswith("\nSomething is not measured.\n")
  broken = make_motion_results(violations=["a: pose: FD 1"], collapsed=["pose varies"])
  lines = ["VIOLATED: ours: a: pose: FD 1", "VIOLATED: other, seed 2 of 2: c: jaw: FD 2"]
  assert broken.violations == lines and broken.results()["checks"] == [*lines, "COLLAPSED: ours: pose varies"]
  report = broken.report()
  assert all(f"- {line}\n" in report for line in broken.results()["checks"])
  assert "as they must" not in report and "No generator has collapsed" not in report


def test_a_broken_inequality_ends_the_command_with_status_1(monkeypatch, capsys):
  class Flags(dict):
    workdir, split, part = "w", "test", None

  monkeypatch.setattr(verbs, "FLAGS", Flags(config=types.SimpleNamespace(present=False)))
  monkeypatch.setattr(verbs, "_use_devices_of", lambda workdir: None)
  monkeypatch.setattr(evaluate, "score_run", lambda *_, **__: ("tables", []))
  verbs._evaluate()
  monkeypatch.setattr(evaluate, "score_run", lambda *_, **__: ("tables", ["VIOLATED"]))
  with pytest.raises(SystemExit) as end:
    verbs._evaluate()
  assert end.value.code == 1 and capsys.readouterr().out == "tables\ntables\n"


def test_each_film_is_scored_by_its_own_frames(scored, trained, world):
  """The second film's scores, drawn without the command."""
  results, *_ = scored
  run, capture = load_run(trained), load_capture(world / "capture", "test", background=(1, 1, 1))
  source = evaluate.load_conversations(run.config.data, "test")
  clip = {clip.name: clip for clip in load_clips(source, run.encode)}["tiny-3_sub_video_0_speaker2"]
  assert list(clip.relation) == [0, 1]
  frames = np.array([0, 19])
  shown = [capture[capture.index(0, tiny_world.FRAMES + SECOND_FILM + frame)] for frame in frames]
  flame = jax.tree.map(lambda *x: np.stack(x), *[item["flame"] for item in shown])
  stack = lambda name: np.stack([item[name] for item in shown])
  camera = splat_kernels.Camera(stack("world_to_camera"), stack("intrinsics"), capture.width, capture.height)
  draw = jax.jit(lambda flame, offsets: run.talker.render(run.avatar, flame, camera, offsets).image)
  generated = run.generate(clip)[frames]
  moving = {"tracked motion": (flame, clip.motion_b[frames]), "generated motion": (pose_for(generated, flame), generated)}
  for title, (pose, motion) in moving.items():
    offsets = run.gaussian_offsets(clip.relation, frames, motion)(np.arange(2))
    expected = float(np.mean(image_metrics.psnr(draw(pose, offsets), stack("image"))))
    assert results["films"][clip.name][title]["psnr"] == pytest.approx(expected, abs=1e-3)


def test_motion_alone(part_of):
  workdir = part_of("motion", title="speaker-only")
  markdown, _ = evaluate.score_run(workdir)
  results, written, sheet = read_results(workdir)
  assert list(results["motion"]) == ["true motion", "speaker-only", "constant training mean"]
  assert not {"frames", "films", "flicker"} & set(results) and not sheet.exists()
  assert results["missing"] == ["frames are not scored: the run has no avatar stage"]
  assert written == markdown and "Frames are not scored: the run has no avatar stage.\n" in markdown
  assert "PSNR" not in markdown


def test_frames_alone_need_no_conversations(part_of, monkeypatch):
  """Of a run that generates nothing: the test frames of its capture, in their tracked poses."""
  monkeypatch.setattr(evaluate, "load_conversations", lambda *_: pytest.fail("conversations were read"))
  workdir = part_of("avatar")
  markdown, _ = evaluate.score_run(workdir)
  results, _, sheet = read_results(workdir)
  assert "motion" not in results and set(results["frames"]) == {"tracked motion"} and list(results["films"]) == ["capture"]
  assert "Motion is not scored: the run has no motion stage.\n" in markdown and "4 frames of 1 film." in markdown
  assert Image.open(sheet).size == (4 * tiny_world.SIZE, 3 * tiny_world.SIZE)
  with pytest.raises(InputError, match=r"frames are not scored: no frames of the split ood in .*/capture, expected a run of which"):
    evaluate.score_run(workdir, "ood")


def test_cameras_held_out(part_of, world, tmp_path):
  """They are the split val of a capture, and scored with the test frames; VHAP writes one without frames."""
  workdir, config = part_of("avatar"), tiny_world.tiny_config(world)
  shutil.copytree(world / "capture", tmp_path / "capture")
  config.data.capture = str(tmp_path / "capture")
  train = json.loads((tmp_path / "capture" / "transforms_train.json").read_text())
  (tmp_path / "capture" / "transforms_val.json").write_text(json.dumps(train | {"frames": train["frames"][30:32]}))
  for split in ("test", "val"):
    evaluate.score_run(workdir, split, config=config)
  test, val = read_results(workdir)[0]["frames"], read_results(workdir, "val")[0]["frames"]
  assert list(test) == ["tracked motion", "tracked motion, held-out camera"] and list(val) == ["tracked motion"]
  assert test["tracked motion, held-out camera"] == pytest.approx(val["tracked motion"])
  assert test["tracked motion"]["psnr"] != val["tracked motion"]["psnr"]
  (tmp_path / "capture" / "transforms_val.json").write_text(json.dumps(train | {"frames": []}))
  evaluate.score_run(workdir, config=config)
  assert list(read_results(workdir)[0]["frames"]) == ["tracked motion"]
  with pytest.raises(InputError, match="no frames of the split val"):
    evaluate.score_run(workdir, "val", config=config)


@pytest.mark.parametrize("stages", [("joint",), ("avatar", "joint")])
def test_a_run_that_took_its_earlier_stages_from_elsewhere(part_of, stages):
  """It has all rows but that from before its joint stage."""
  workdir = part_of(*stages)
  evaluate.score_run(workdir, part="frames")
  results, *_ = read_results(workdir)
  assert {"tracked motion", "generated motion"} <= results["frames"].keys()
  assert "generated motion, before the joint stage" not in results["frames"]


def test_one_part_alone(part_of):
  workdir = part_of("motion", "avatar")
  for part, other in (("motion", "frames"), ("frames", "motion")):
    markdown, _ = evaluate.score_run(workdir, part=part)
    results, _, sheet = read_results(workdir)
    assert part in results and other not in results and sheet.exists() == (part == "frames")
    assert f"{part} alone" in results["missing"][0] and f"{part} alone" in markdown


def test_usage(part_of):
  """Of what was trained, with what the ledger has of it."""
  workdir = part_of("motion", "avatar")
  span = {"start": 1, "kind": "span", "stage": "avatar", "first": 0, "step": 4, "begin": 0, "end": 2, "peak_memory_bytes": 7}
  lines = [{"start": 1, "kind": "start", "begin": 0, "host": "here"}, span | {"seconds": {"step": 1.0, "compile": 0.5}}]
  path = pathlib.Path(workdir, "ledger.jsonl")
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  usage = workdirs.read_usage(workdir)
  params = load_run(workdir).params
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  took = {"seconds": 1.5, "starts": 1, "peak_memory_bytes": 7}
  assert usage == {
      "motion": {"steps": 4, "parameters": {group: size(params[group]) for group in ("generator", "social")}},
      "avatar": {**took, "steps": 4, "parameters": {"avatar": size(params["avatar"])}},
  }
  path.write_text("[1]\n")
  with pytest.raises(InputError, match="ledger.jsonl: line 1: found .1., expected a line of a ledger"):
    workdirs.read_usage(workdir)


def test_splits(part_of, trained):
  workdir = part_of("motion", "avatar")
  evaluate.score_run(workdir, "val")
  results, markdown, sheet = read_results(workdir, "val")
  truth = np.concatenate([tiny_world.make_motion(seed) for seed in (3, 4)])
  mean = np.concatenate([tiny_world.make_motion(seed) for seed in (1, 2)]).mean(0)
  expected = np.mean((mean[50:53] - truth[:, 50:53]) ** 2)
  assert results["motion"]["constant training mean"][0]["mse/jaw"] == pytest.approx(expected, rel=1e-4)
  assert "split val" in markdown and "names no film of the split val.\n" in markdown and not sheet.exists()
  assert not pathlib.Path(workdir, "evaluation", "results.md").exists()
  with pytest.raises(InputError, match=r"conversations/ood: found no such folder"):
    evaluate.score_run(workdir, "ood")


def test_a_run_with_nothing_is_one_line(part_of):
  with pytest.raises(InputError) as error:
    evaluate.score_run(part_of())
  assert "no checkpoint" in str(error.value) and "\n" not in str(error.value)


def test_a_config_that_is_given_is_compared_and_says_how_to_score(part_of, world):
  workdir = part_of("motion", title="of the workdir")
  config = tiny_world.tiny_config(world)
  config.generator.features = 32
  with pytest.raises(InputError, match="generator.features"):
    evaluate.score_run(workdir, config=config)
  config = tiny_world.tiny_config(world)
  config.evaluation.title = "of the flags"
  evaluate.score_run(workdir, config=config)
  assert "of the flags" in read_results(workdir)[0]["motion"]
  config.data.conversations = "elsewhere"  # Where data lies may differ; it is then looked for there.
  with pytest.raises(InputError, match="elsewhere/test: found no such folder"):
    evaluate.score_run(workdir, config=config)
  config.data.conversations = tiny_world.tiny_config(world).data.conversations
  # A run that is compared with under the same title does not take its place.
  copy_run(workdir, pathlib.Path(workdir, "compare", "again", "seed_0"), "motion", title="of the flags")
  evaluate.score_run(workdir, config=config)
  rows = read_results(workdir)[0]["motion"]
  assert rows["of the flags, this run"] == rows["of the flags"]


def test_a_bank_is_scored_person_by_person(monkeypatch, world):
  """Each by an avatar of their own, also where a config says that the captures were moved."""
  config = tiny_world.tiny_config(world)
  config.data.captures = ["moved/ann", "moved/bob"]
  recorded = config.to_dict() | {"data": config.data.to_dict() | {"captures": ["some/ann", "some/bob"]}}

  bank = {"bank": {"means": np.arange(2)}}, {"bank": {"binding": np.arange(2)}}
  run = evaluate.TrainedRun(evaluate.ConfigDict(recorded), None, *bank, "", ("ann", "bob"))
  monkeypatch.setattr(evaluate, "load_run", lambda workdir, stages, image_methods: run)
  for given, folder in ((None, "some"), (config, "moved")):
    runs = evaluate._load_runs("w", given)
    found = {path: (run.person, int(run.params["avatar"]["means"])) for path, run in runs.items()}
    assert found == {pathlib.Path(folder, name).resolve(): (name, number) for number, name in enumerate(("ann", "bob"))}


def test_offsets_are_of_each_films_relation_time_and_motion():
  film = lambda relation, first: types.SimpleNamespace(
      clip=types.SimpleNamespace(relation=np.array(relation), motion_b=first + np.arange(10.0)[:, None] * np.ones(56))
  )
  asked = []
  run = types.SimpleNamespace(gaussian_offsets=lambda *given: asked.append([x.tolist() for x in given]))
  films = [film([1, 0], 100.0), film([0, -1], 200.0)]
  footage = film_scores.Footage(run, None, ["a", "b"], [2, 1], np.arange(3), films, np.array([5, 9, 7]))
  footage.offsets(run)
  footage.offsets(run, np.ones((3, 56)))
  relations_and_times = [[[1, 0], [1, 0], [0, -1]], [5, 9, 7]]
  assert asked == [[*relations_and_times, [[105.0] * 56, [109.0] * 56, [207.0] * 56]], [*relations_and_times, [[1.0] * 56] * 3]]


def test_films_of_one_conversation_are_told_apart_by_their_cameras():
  capture = types.SimpleNamespace(camera_indices=np.array([7, 3, 3]))
  film = lambda name, item: types.SimpleNamespace(name=name, capture=capture, items=np.array([item]))
  names = film_scores.name_films([film("ann", 0), film("bob", 1), film("ann", 2)])
  assert names == ["ann, camera 7", "bob", "ann, camera 3"]


def test_means_weigh_films_by_their_frames():
  parts = [(3, {"a": {"psnr": 10.0, "l1": 0.1}}), (1, {"a": {"psnr": 30.0, "l1": 0.5}})]
  assert film_scores.mean_rows(parts) == {"a": {"psnr": pytest.approx(15.0), "l1": pytest.approx(0.2)}}


def test_each_person_is_scored_and_the_mean_is_of_all(monkeypatch, tmp_path):
  """Two films of ann, one of bob, two frames each; a method that has learnt ann alone stands beside her alone."""
  film = lambda person, name: types.SimpleNamespace(
      name=name, items=np.arange(10), frames=np.arange(10), capture=types.SimpleNamespace(root=tmp_path / person, camera_indices=np.zeros(10, int))
  )
  config = ConfigDict({"evaluation": dict(frames=6, lpips_nets=())})
  runs = {(tmp_path / name).resolve(): types.SimpleNamespace(person=name, config=config, draws_images=False) for name in ("ann", "bob")}
  psnr = {"c1": 30.0, "c2": 33.0, "c3": 24.0}

  def score(footage, drawn, nets):
    own = {name: {"tracked motion": {"frame": [0, 1], "psnr": [psnr[name]] * 2}} for name in footage.names}
    if footage.run.person == "ann":
      own = {name: rows | {"method": {"frame": [0, 1], "psnr": [20.0] * 2}} for name, rows in own.items()}
    return own, np.zeros((1, 1, 3))

  monkeypatch.setattr(film_scores, "_draw_rows", lambda *_: {})
  monkeypatch.setattr(film_scores, "_score_footage", score)
  held_out = {"ann": (3, {film_scores.HELD_OUT: {"psnr": 26.0}}), "bob": (3, {film_scores.HELD_OUT: {"psnr": 28.0}})}
  monkeypatch.setattr(film_scores, "_score_held_out", lambda *_: held_out)
  monkeypatch.setattr(film_scores, "measure_flicker", lambda *_: {})
  scores, _ = film_scores.score_films(runs, {}, "test", [[film("ann", "c1"), film("ann", "c2")], [film("bob", "c3")]])
  assert scores.rows == {"tracked motion": {"psnr": pytest.approx(29.0)}, film_scores.HELD_OUT: {"psnr": pytest.approx(27.0)}}
  assert scores.by_person == {
      "ann": {"tracked motion": {"psnr": 31.5}, "method": {"psnr": 20.0}, film_scores.HELD_OUT: {"psnr": 26.0}},
      "bob": {"tracked motion": {"psnr": 24.0}, film_scores.HELD_OUT: {"psnr": 28.0}},
  }
  report = evaluate._frame_report(scores, filmed=True)
  first, ann, bob = re.split("Of ann alone|Of bob alone", report)
  assert "of ann and bob, each drawn with their own avatar" in first and "29" in first and "method" not in first.split("further down")[1]
  assert "31.5" in ann and "method" in ann and "24" in bob
  alone = dataclasses.replace(scores, by_person={"ann": scores.by_person["ann"]})
  assert "alone" not in evaluate._frame_report(alone, filmed=True)
  assert "joint stage" not in report


def test_what_the_joint_stage_gains_is_said_with_its_interval():
  rows = lambda psnr, l1: {"frame": list(range(0, 400, 50)), "psnr": [psnr + i for i in range(8)], "l1": [l1] * 8}
  each = {
      "c1": {film_scores.GENERATED: rows(26.0, 0.1), film_scores.BEFORE_JOINT: rows(25.5, 0.3)},
      "c2": {film_scores.GENERATED: rows(22.0, 0.1), film_scores.BEFORE_JOINT: rows(23.0, 0.1), film_scores.TRACKED: rows(9.0, 0.9)},
  }
  scores = film_scores.FrameScores({}, {}, {}, each, {}, 16, np.zeros((1, 1, 3)))
  lines = [re.split(r"\s*\|\s*", line)[1:-1] for line in evaluate._joint_gain(scores).splitlines() if line.startswith("|")]
  assert [line[0] for line in lines[2:]] == ["all films", "c1", "c2"] and lines[0] == ["", "L1", "PSNR (dB)"]
  # Of 0.5 and -1 dB, and 0.2 and 0 less error.
  assert lines[3][1:] == ["+0.2 [+0.2, +0.2]", "+0.5 [+0.5, +0.5]"] and lines[4][1:] == ["+0 [+0, +0]", "-1 [-1, -1]"]
  assert lines[2][2].startswith("-0.25 [-0.") and lines[2][1].startswith("+0.1 [+0")


class FakeCapture:
  """Frames of one colour each, of `size` pixels."""

  def __init__(self, values, size, timesteps, cameras):
    self.values, self.width, self.height = values, size, size
    self.timesteps, self.camera_indices = timesteps, cameras

  def __getitem__(self, i):
    return dict(image=np.full((self.height, self.width, 3), self.values[i], np.float32))

  def read_flame(self, items):
    return {"jaw": np.zeros((len(items), 3))}

  def read_cameras(self, items):
    return np.stack([np.eye(4)] * len(items)), np.stack([np.eye(3)] * len(items))


def test_frames_of_several_chunks_and_films_stand_where_they_belong(monkeypatch):
  """Chunks of two and three frames, films of three and two: each score beside its frame's number, the sheet in order."""
  values = np.float32([0.1, 0.3, 0.9, 0.2, 0.8])
  drawn = np.float32([0.2, 0.25, 0.9, 0.6, 0.5])
  images = np.tile(drawn[:, None, None, None], (1, 12, 12, 3))
  monkeypatch.setattr(film_scores, "render_sequence", lambda *_, chunk: iter(np.split(images, [2])))
  monkeypatch.setattr(film_scores.LipCrops, "of", lambda run, capture: None)
  capture = FakeCapture(values, 12, np.arange(5), np.zeros(5, int))
  run = types.SimpleNamespace(talker=None, avatar=None, params={}, draws_images=False)
  footage = film_scores.Footage(run, capture, ["a", "b"], [3, 2], np.arange(5), [], np.array([7, 8, 9, 0, 4]))
  each, sheet = film_scores._score_footage(footage, film_scores._draw_rows(footage, None, ()), ())
  assert {name: rows["tracked motion"]["frame"] for name, rows in each.items()} == {"a": [7, 8, 9], "b": [0, 4]}
  found = each["a"]["tracked motion"]["l1"] + each["b"]["tracked motion"]["l1"]
  np.testing.assert_allclose(found, np.abs(values - drawn), atol=1e-5)  # Float32 sums of 432 pixels.
  assert sheet.shape == (36, 60, 3)
  rows = sheet[::12, ::12, 0]
  np.testing.assert_allclose(rows, [values, drawn, np.minimum(4 * np.abs(values - drawn), 1)], atol=1e-6)


def test_flicker_compares_frames_that_follow_each_other(monkeypatch):
  """Neither across a gap, nor to another camera, nor from one film to the next."""
  values = np.float32([0.1, 0.3, 0.9, 0.2, 0.8, 0.7])
  timesteps, cameras = np.array([0, 1, 5, 6, 7, 8]), np.array([0, 0, 0, 0, 1, 1])
  capture = FakeCapture(values, 2, timesteps, cameras)
  frames = (np.sqrt(values)[:, None, None, None] * np.ones((1, 2, 2, 3))).astype(np.float32)
  drawn = lambda talker, mesh, avatar, flame, camera, offsets, chunk: iter(np.split(frames, [1, 3]))  # A frame, two, three.
  monkeypatch.setattr(film_scores, "render_sequence", drawn)
  run = types.SimpleNamespace(talker=None, avatar=None)
  footage = lambda lengths: film_scores.Footage(run, capture, ["f"] * len(lengths), lengths, np.arange(6), [], np.zeros(0, int))
  for lengths, pairs in (([6], [0, 2, 4]), ([3, 3], [0, 4])):
    pairs = np.array(pairs)
    true, ours = np.diff(values)[pairs], np.diff(np.sqrt(values))[pairs]
    expected = {"film": true, "avatar": ours, "difference": ours - true}
    found = film_scores.measure_flicker([footage(lengths)])
    assert found == pytest.approx({name: np.mean(np.abs(x)) for name, x in expected.items()}, rel=1e-5)
  capture.timesteps = 2 * timesteps
  assert film_scores.measure_flicker([footage([6])]) == {}
