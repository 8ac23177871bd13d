"""The three commands on a tiny world: what `make demo` does, in seconds."""

import dataclasses
import json
import pathlib
import shutil

import av
import numpy as np
import pytest

import tiny_world
from rsatalker_jax.commands import evaluate, export, generate, train
from rsatalker_jax.data.dualtalk import load_dualtalk, read_conversation, write_motion, write_motion_file
from rsatalker_jax.data.pipeline import load_clips
from rsatalker_jax.data.tracks import read_motion
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import pose_for
from rsatalker_jax.media import splat_files
from rsatalker_jax.runs import load_run, workdir as workdirs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("world") / "data"
  tiny_world.write_world(root)
  return root


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
  """The workdir of a finished run of all stages."""
  workdir = str(tmp_path_factory.mktemp("run"))
  config = tiny_world.tiny_config(world)
  config.logging.evaluate_every = 4
  train.train(config, workdir)
  return workdir


def generate_options(world, **changes):
  folder = world / "conversations" / "test"
  return dict(
      speech_a=str(folder / "tiny-2_sub_video_0_speaker1.wav"),
      motion_a=str(folder / "tiny-2_sub_video_0_speaker1.npz"),
      speech_b=str(folder / "tiny-2_sub_video_0_speaker2.wav"),
      relation="blood,unequal",
      size=48,
  ) | changes


def test_every_stage_wrote_checkpoints_metrics_and_pictures(trained, tmp_path):
  params, buffers, used = workdirs.load_parameters(trained)
  assert used == "motion:4 avatar:4 joint:3"
  assert set(params) == {"social", "generator", "avatar", "offsets"} and set(buffers) == {"generator", "avatar", "film"}
  for stage, terms in (
      ("motion", {"expression", "jaw", "pose", "orthogonality", "val/score", "val/mse/jaw"}),
      ("avatar", {"l1", "dssim", "position", "scale", "overflow"}),
      ("joint", {"expression", "l1", "dssim", "position", "offset", "val/score", "val/drawn_l1"}),
  ):
    lines = open(f"{trained}/{stage}/metrics.jsonl").read().splitlines()
    assert terms <= json.loads(lines[-1]).keys()
    assert list(pathlib.Path(trained, stage, "tensorboard").iterdir())


def test_joint_stage_moves_every_group(trained):
  motion, avatar, joint = (workdirs.load_stage_state(trained, stage)["params"] for stage in ("motion", "avatar", "joint"))
  moved = lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max() > 0
  kernel = lambda params: params["generator"]["params"]["motion_decoder"]["motion"]["kernel"]
  assert moved(kernel(motion), kernel(joint))
  assert moved(avatar["avatar"]["means"], joint["avatar"]["means"])
  assert moved(joint["offsets"]["params"]["out"]["kernel"], 0)  # It starts at zero.


def test_second_run_does_nothing(trained, world, capsys):
  train.train(tiny_world.tiny_config(world), trained)
  assert "motion: already at step 4 of 4" in capsys.readouterr().out


def test_one_stage_from_another_run(trained, world, tmp_path):
  config = tiny_world.tiny_config(world)
  tiny_world.train_quickly(config, str(tmp_path / "joint_only"), stage="joint", init_from=[trained])
  state = workdirs.load_stage_state(str(tmp_path / "joint_only"), "joint")
  assert int(state["step"]) == 3


def test_workdir_of_another_config_is_refused(trained, world):
  config = tiny_world.tiny_config(world)
  config.motion.learning_rate = 0.5
  with pytest.raises(InputError, match=r"config.json: motion.learning_rate: found 0.002, expected 0.5 \(this config\)"):
    train.train(config, trained)
  config = tiny_world.tiny_config(world)
  config.logging.log_every = 1  # Watching a run differently does not change it.
  train.train(config, trained)


def test_generated_video_has_both_faces_and_sound(trained, world, tmp_path):
  out, motion = tmp_path / "video.mp4", tmp_path / "b.npz"
  generate.generate_video(workdir=trained, out=str(out), save_motion=str(motion), **generate_options(world))
  with av.open(str(out)) as container:
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert container.streams.audio
  assert len(frames) == tiny_world.FRAMES and frames[0].shape[1] == 96
  assert all(np.ptp(face) > 50 for face in (frames[0][:48, :48], frames[0][:48, 48:]))  # Something stands on white.
  assert np.load(motion)["exp"].shape == (tiny_world.FRAMES, 50) and np.load(motion)["basis"] == "flame2020"


def test_a_run_that_hears_its_own_words_early_generates_and_streams(trained, world, tmp_path, capsys):
  """generate.py gives the clip what its stream gives, B's voice `frames_ahead` frames ahead; and not what no lookahead would."""
  config, workdir = tiny_world.tiny_config(world), str(tmp_path / "run")
  config.generator.causal = config.speech.causal = True
  config.generator.own_lookahead = 4
  config.data.features = str(tmp_path / "features")
  tiny_world.train_quickly(config, workdir, stage="motion")
  shutil.copytree(f"{trained}/avatar", f"{workdir}/avatar")
  options = generate_options(world)
  generate.generate_video(workdir=workdir, out=str(tmp_path / "b.mp4"), save_motion=str(tmp_path / "b.npz"), **options)
  conversation, _ = read_conversation(*(options[name] for name in ("speech_a", "motion_a", "speech_b", "relation")))
  stream = load_run(workdir).stream(conversation.relation, basis="flame2020", lengths=(20,))
  ahead = 640 * stream.frames_ahead
  stream.prime(conversation.speech_b[:ahead])
  streamed = stream.push(conversation.speech_a, conversation.motion_a, conversation.speech_b[ahead:], ended=True)
  assert stream.frames_ahead == 4
  np.testing.assert_allclose(streamed, read_motion(tmp_path / "b.npz"), atol=2e-5)


def test_arkits_shapes_go_in_and_out(trained, world, tmp_path):
  """On a head whose basis is ARKit's: A's motion from Live Link Face's csv, B's to one."""
  shutil.copytree(world, tmp_path / "data")
  head = dict(np.load(tmp_path / "data" / "head.npz")) | {"basis": "arkit"}
  np.savez(tmp_path / "data" / "head.npz", **head)
  config = tiny_world.tiny_config(tmp_path / "data")
  for path in (tmp_path / "data" / "conversations").glob("*/*.npz"):
    write_motion(path, read_motion(path), basis="arkit")
  for path in (tmp_path / "data" / "capture").glob("transforms_*.json"):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"basis": "arkit"}))
  with pytest.raises(InputError, match=f"--init_from={trained}: basis: found flame2020, expected arkit, as this config's head has"):
    tiny_world.train_quickly(config, str(tmp_path / "run"), stage="motion", init_from=[trained])
  for stage in ("motion", "avatar"):
    tiny_world.train_quickly(config, str(tmp_path / "run"), stage=stage)
  options = generate_options(tmp_path / "data", motion_a=str(tmp_path / "a.csv"))
  motion_a = read_motion(tmp_path / "data/conversations/test/tiny-2_sub_video_0_speaker1.npz")
  motion_a[:, 51:53] = 0  # Turns of the jaw that ARKit has no shape for.
  write_motion_file(tmp_path / "a.csv", motion_a, basis="arkit")
  write_motion(tmp_path / "a.npz", motion_a, basis="arkit")
  for name, saved in (("a.csv", "b.json"), ("a.npz", "b.npz")):
    options["motion_a"] = str(tmp_path / name)
    generate.generate_video(workdir=str(tmp_path / "run"), out=str(tmp_path / "b.mp4"), save_motion=str(tmp_path / saved), **options)
  again, given = read_motion(tmp_path / "b.json"), read_motion(tmp_path / "b.npz")
  given[:, 51:53] = 0
  np.testing.assert_allclose(again, given, atol=2e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(save_motion="b.txt"), "--save_motion: found b.txt, expected a name that ends in .npz, .csv or .json"),
        (dict(save_motion="b.csv"), "--save_motion: found b.csv for expressions of flame2020, expected a name that ends in .npz"),
        (dict(relation="cousins"), "--relation: found 'cousins', expected"),
        (dict(speech_a="nowhere.wav"), "nowhere.wav: found no such file"),
        (dict(out="video.avi"), "--out: found video.avi, expected a name that ends in .mp4"),
        (dict(workdir="no_run"), "no_run/config.json: found no such file"),
        (dict(size=33), "--size: found 33, expected an even number"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_video(trained, world, tmp_path, changes, message):
  options = dict(workdir=trained, out=str(tmp_path / "video.mp4"), **generate_options(world)) | changes
  with pytest.raises(InputError) as error:
    generate.generate_video(**options)
  assert message in str(error.value) and "\n" not in str(error.value)
  assert list(tmp_path.iterdir()) == []


def test_a_motion_of_another_basis_is_refused_everywhere(trained, world, tmp_path):
  write_motion(tmp_path / "a.npz", tiny_world.make_motion(5), basis="arkit")
  refused = pytest.raises(InputError, match=r"basis: found arkit, expected flame2020, as the head has; what to do: python -m")
  with refused as error:
    generate.generate_video(
        workdir=trained, out=str(tmp_path / "video.mp4"), **generate_options(world, motion_a=str(tmp_path / "a.npz")))
  assert str(error.value).startswith(f"{tmp_path / 'a.npz'}: basis:")
  with refused:
    export.export_avatar(workdir=trained, out=str(tmp_path / "head.ply"), motion=str(tmp_path / "a.npz"))
  assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]

  run = load_run(trained)
  assert run.basis == "flame2020" and json.loads(pathlib.Path(trained, "config.json").read_text())["head"]["basis"] == "flame2020"
  options = generate_options(world)
  conversation, _ = read_conversation(*(options[key] for key in ("speech_a", "motion_a", "speech_b", "relation")))
  (clip,) = load_clips([conversation], run.encode)
  run.generate(clip)
  with refused:
    run.generate(dataclasses.replace(clip, basis="arkit"))
  with refused:
    run.stream(clip.relation, basis="arkit")

  shutil.copytree(world, tmp_path / "world")
  for path in (tmp_path / "world" / "conversations").glob("*/*.npz"):
    write_motion(path, read_motion(path), basis="flame2023")
  config = tiny_world.tiny_config(tmp_path / "world")
  refused = pytest.raises(InputError, match=r"conversations: basis: found flame2023, expected flame2020")
  with refused:
    train.train(config, str(tmp_path / "run"), stage="motion")
  config.head.path = str(world / "head.npz")
  with refused:
    evaluate.score_run(trained, "test", config=config, part="motion")
  transforms = tmp_path / "world" / "capture" / "transforms_train.json"
  transforms.write_text(json.dumps({k: v for k, v in json.loads(transforms.read_text()).items() if k != "basis"}))
  with pytest.raises(InputError, match=r"capture: basis: found flame2023, expected flame2020, .* at the top of its transforms"):
    train.train(config, str(tmp_path / "run"), stage="avatar")


def test_one_split_has_one_basis(world, tmp_path):
  shutil.copytree(world / "conversations", tmp_path / "c")
  path = tmp_path / "c" / "test" / "tiny-2_sub_video_0_speaker2.npz"
  write_motion(path, read_motion(path), basis="flame2023")
  with pytest.raises(InputError, match=r"speaker2.npz: basis: found flame2023, by its key basis, expected flame2020, as .*speaker1.npz"):
    load_dualtalk(tmp_path / "c", "test")
  assert load_dualtalk(tmp_path / "c", "train").report("train")[1].startswith("  expressions are flame2020's, by the range of")


def test_exported_avatar_is_the_runs(trained, world, tmp_path):
  motion = str(world / "conversations" / "test" / "tiny-2_sub_video_0_speaker2.npz")
  export.export_avatar(workdir=trained, out=str(tmp_path / "bound.ply"), format="bound")
  loaded = load_run(trained)
  avatar = splat_files.load_bound_ply(tmp_path / "bound.ply", loaded.talker.head)
  np.testing.assert_array_equal(avatar.gaussians.means, loaded.avatar.gaussians.means)
  np.testing.assert_array_equal(avatar.shape, loaded.avatar.shape)

  write = lambda name, **options: export.export_avatar(workdir=trained, out=str(tmp_path / name), **options)
  read = lambda name: splat_files.read_ply(tmp_path / name)[0].means
  write("frame.ply", motion=motion, frame=7)
  write("blood.ply", motion=motion, frame=7, relation="blood,unequal")
  shown = tiny_world.make_motion(6)
  offsets = loaded.gaussian_offsets(np.array([1, 0]), np.array([7]), shown[7:8])(np.array([0]))[0]
  assert np.abs(offsets).max() > 0
  pose = pose_for(tiny_world.make_motion(6)[7])
  baked = splat_files.bake(loaded.avatar, loaded.talker.head, pose)
  np.testing.assert_array_equal(read("frame.ply"), baked.means)
  # World space moves by the correction of each Gaussian's face (Eq. 7); float32 of 0.1 m.
  moved = read("blood.ply") - read("frame.ply")
  np.testing.assert_allclose(moved, np.asarray(offsets)[loaded.avatar.binding], atol=3e-8)

  write("page.html", motion=motion, frame=7, frames=5, relation="blood,unequal")
  header = json.loads((tmp_path / "page.html").read_text().split('type="application/json">')[1].split("</script>")[0])
  tables = {table["name"]: table for table in header["tables"]}
  assert tables["vertices"]["shape"] == [5, *loaded.talker.head.v_template.shape]
  assert tables["offsets"]["shape"] == [5, *loaded.talker.head.faces.shape]
  later = loaded.gaussian_offsets(np.array([1, 0]), np.arange(7, 12), shown[7:12])(np.arange(5))
  np.testing.assert_allclose(tables["offsets"]["least"], np.min(later, axis=(0, 1)), rtol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(out="head.obj"), "head.obj, expected a name that ends in .html or .ply or .spz"),
        (dict(out="head.ply", format="spz"), "head.ply, expected a name that ends in .spz"),
        (dict(relation="cousins"), "--relation: found 'cousins', expected"),
        (dict(format="bound", relation="blood,equal"), "--format: found bound with --motion or --relation"),
        (dict(frame=5, motion=None), "--frame: found 5, expected --motion or --relation"),
        (dict(frame=60), "--frame: found 60, expected 0 to 59"),
        (dict(out="head.html", frame=50, frames=11), "--frames: found 11, expected 1 to 10"),
        (dict(frames=2), "--frames: found 2, expected a page, .html, and --motion"),
        (dict(out="head.html", motion=None, frames=2), "--frames: found 2, expected a page, .html, and --motion"),
        (dict(workdir="no_run"), "no_run/config.json: found no such file"),
    ],
)
def test_exports_mistakes_are_one_line_and_leave_no_file(trained, world, tmp_path, changes, message):
  motion = str(world / "conversations" / "test" / "tiny-2_sub_video_0_speaker2.npz")
  options = dict(workdir=trained, out="head.ply", motion=motion) | changes
  options["out"] = str(tmp_path / options["out"])
  with pytest.raises(InputError) as error:
    export.export_avatar(**options)
  assert message in str(error.value) and "\n" not in str(error.value)
  assert list(tmp_path.iterdir()) == []
