"""The bank through the real loop: two people trained together, alone, and split over two devices."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

import tiny_world
from rsatalker_jax.avatar import FREE, density
from rsatalker_jax.commands import export
from rsatalker_jax.errors import InputError
from rsatalker_jax.talker import make_encoder, make_talker
from rsatalker_jax import sharding
from rsatalker_jax.commands import train
from rsatalker_jax.runs import load_run, workdir as workdirs
from rsatalker_jax.training import loop, optimizers
from rsatalker_jax.training.avatar_stage import avatar_stage
from rsatalker_jax.training.joint_stage import joint_stage
from rsatalker_jax.training.stage_inputs import StageInputs

PEOPLE = ("capture", "other")
STEPS, RATE, FLAME_RATE = 3, 10.0, 1e-3
FACES, CAPACITY = 140, 170
# Clones what the loss pulls on after the first step. Without splits, whose halves lie by chance.
DENSITY = {"way": "adaptive", "adaptive": dict(start=0, stop=2, every=1, gradient_threshold=2e-4, dense_size=1e3)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("world") / "data"
  tiny_world.write_world(root)
  tiny_world.write_capture(root / "other", shape=(2.0, -3.0), color=(60, 90, 200))
  (root / "captures.csv").write_text("capture,person\nother,olga\n")
  # Olga, too, is filmed in a conversation: with the motion of the other film, which she makes as well.
  lines = (root / "triplets.jsonl").read_text().splitlines()
  lines.append(json.dumps(json.loads(lines[0]) | {"capture": "other", "conversation": "tiny-9_sub_video_0", "relation": "unknown,unknown"}))
  (root / "triplets.jsonl").write_text("".join(line + "\n" for line in lines))
  folder = root / "conversations" / "train"
  for suffix in ("1.wav", "2.wav", "1.npz", "2.npz"):
    (folder / f"tiny-9_sub_video_0_speaker{suffix}").write_bytes((folder / f"tiny-0_sub_video_0_speaker{suffix}").read_bytes())
  with (root / "conversations" / "relations.csv").open("a") as table:
    table.write("tiny-9_sub_video_0,unknown,unknown\n")
  return root


def make_config(root, people, batch, fsdp=1):
  config = tiny_world.tiny_config(root)
  config.data.captures = tuple(str(root / name) for name in people)
  config.data.people = str(root / "captures.csv")
  config.avatar.update(dict(steps=STEPS, batch=batch))
  config.mesh.update(dict(data=-1, fsdp=fsdp))
  config.render.implementation = "reference"  # Compiles faster.
  return config


def make_inputs(config):
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  return StageInputs(config, make_talker(config), make_encoder(config.speech, None), mesh, say=lambda _: None)


def grow_and_refine(config, share):
  """Density control and corrections of the tracking."""
  config.gaussians.update(dict(capacity=CAPACITY, color_frames=1))
  config.density.update(DENSITY)
  config.avatar.flame_learning_rates.update(dict(translation=share * FLAME_RATE, jaw=share * FLAME_RATE))


def descend(monkeypatch, rate):
  """Plain descent instead of Adam, which takes whole steps where a gradient is nothing but rounding."""
  make = lambda attributes, *_, **__: {f"avatar/{name}": optax.sgd(rate) for name in attributes}
  monkeypatch.setattr(optimizers, "gaussian_optimizer", make)
  monkeypatch.setattr(optax, "adam", lambda rate, **_: optax.sgd(rate))


@pytest.fixture(scope="module")
def together(root, tmp_path_factory):
  """The workdir of a run of two people, one on each device."""
  workdir = str(tmp_path_factory.mktemp("run"))
  config = make_config(root, PEOPLE, batch=4, fsdp=2)
  with pytest.MonkeyPatch.context() as monkeypatch:
    descend(monkeypatch, 2 * RATE)  # A loss over twice the frames has half the gradient for each.
    grow_and_refine(config, 2)
    train.train(config, workdir, stage="avatar")
  return workdir


def test_together_and_split_over_devices_gives_what_one_alone_gives(root, together, tmp_path, monkeypatch):
  """Two of the four frames of a batch are each person's: the same that they are trained on alone, as a run of one person."""
  number = 1
  descend(monkeypatch, RATE)
  config = make_config(root, (), batch=2)
  config.data.capture = str(root / PEOPLE[number])
  grow_and_refine(config, 1)
  inputs = make_inputs(config)
  stage = dataclasses.replace(avatar_stage(inputs), pictures=None)
  alone = loop.run_stage(stage, mesh=inputs.mesh, workdir=str(tmp_path), seed=inputs.config.seed, say=lambda _: None)
  found, buffers, _ = workdirs.load_parameters(together)
  fresh, _ = jax.jit(stage.init)(jax.random.key(0))
  for name, x in alone.params["avatar"].items():
    moved = np.abs(np.asarray(x - fresh["avatar"][name]))[:FACES].max()
    assert moved > 1e-3 or name == "quats"  # Round Gaussians look the same however they are turned.
    # Sums in another order, over three steps; and a Gaussian and its clone, at one depth, may be drawn either way round.
    np.testing.assert_allclose(found["bank"][name][number], x, rtol=0, atol=1e-6 + 3e-3 * moved, err_msg=name)
  colors = found["bank"]["sh"][:, :FACES]
  assert np.abs(colors[0] - colors[1]).max() > 0.05  # They did learn different colours.
  # What was cloned: of both, not the same, and of her what was cloned alone; what was seen since then in her frames alone.
  binding = buffers["bank"]["binding"]
  np.testing.assert_array_equal(binding[number], alone.buffers["avatar"]["binding"])
  assert (FACES < np.sum(binding != FREE, axis=1)).all() and np.any(binding[0] != binding[1])
  for key in ("gradient", "seen", "radius"):
    own = getattr(alone.buffers["density"]["statistics"], key)
    np.testing.assert_allclose(buffers["density"]["bank"][key][number], own, rtol=1e-2, atol=1e-7, err_msg=key)
  # Corrections of the moments that were drawn, six frames of each person.
  for name in ("translation", "jaw"):
    own = np.asarray(alone.params["flame"][name])
    assert np.any(own, axis=1).sum() == 2 * STEPS
    np.testing.assert_allclose(found["flame"][name][number], own, rtol=0, atol=1e-3 * np.abs(own).max(), err_msg=name)


def test_people_lie_on_different_devices(root):
  inputs = make_inputs(make_config(root, PEOPLE, batch=4, fsdp=2))
  state, _ = loop.init_state(avatar_stage(inputs), inputs.mesh, jax.random.key(0))
  assert set(state.params["bank"]) == {"means", "quats", "log_scales", "opacity_logits", "sh"}
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim > 1]
  assert len(moments) == 2 * 5
  for x in (*jax.tree.leaves((state.params, state.buffers)), *moments):
    assert x.sharding.spec == P("fsdp") and [shard.data.shape[0] for shard in x.addressable_shards] == [1, 1]


def test_people_must_divide_among_devices(root):
  stage = avatar_stage(make_inputs(make_config(root, PEOPLE[:1], batch=2, fsdp=2)))
  with pytest.raises(InputError, match="mesh.fsdp: found 2, expected a divisor of 1, which the rule '/bank/' splits: (params|buffers)/bank/"):
    loop.check_start(stage, ({}, {}), "start")


def test_films_of_others_than_the_banks_people_are_refused(root, tmp_path):
  config = make_config(root, PEOPLE[1:], batch=4)
  with pytest.raises(InputError, match="triplets.jsonl: capture: found .*capture, expected one of data.captures"):
    train.train(config, str(tmp_path), stage="joint")


def test_a_person_whom_no_film_shows_and_captures_that_do_not_fit_are_one_line(root, tmp_path):
  config = make_config(root, PEOPLE, batch=4)
  lines = (root / "triplets.jsonl").read_text().splitlines()
  (tmp_path / "triplets.jsonl").write_text("\n".join(line.replace('"capture": "', f'"capture": "{root}/') for line in lines[:2]))
  config.data.triplets = str(tmp_path / "triplets.jsonl")
  with pytest.raises(InputError, match="triplets.jsonl: capture: found no training triplet of .*other, expected a film of olga"):
    joint_stage(make_inputs(config))
  tiny_world.write_capture(tmp_path / "third", shape=(0.0, 0.0))
  transforms = tmp_path / "third" / "transforms_train.json"
  content = json.loads(transforms.read_text())
  config.data.captures = (*config.data.captures, str(tmp_path / "third"))
  for change, message in (
      ({"w": 40}, r"third: w, h: found \(40, 48\), expected \(48, 48\) as in .*capture"),
      ({"basis": "flame2023"}, "third: basis: found flame2023, expected flame2020 as in .*capture"),
  ):
    transforms.write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=message):
      avatar_stage(make_inputs(config))
  transforms.write_text(json.dumps(content))
  np.savez(tmp_path / "third" / "canonical_flame_param.npz", shape=np.float32([[0, 0, 1]]))
  with pytest.raises(InputError, match="third: shape: found 1 values that are not 0 behind the first 2, expected 2 values, as the head"):
    avatar_stage(make_inputs(config))
  (tmp_path / "third" / "canonical_flame_param.npz").unlink()
  config.data.captures = (*config.data.captures[:2], str(tmp_path / "nowhere"))
  with pytest.raises(InputError, match="nowhere/transforms_train.json: found No such file"):
    avatar_stage(make_inputs(config))


def test_the_joint_stage_draws_each_film_with_its_person_of_the_bank(root):
  config = make_config(root, PEOPLE[::-1], batch=4)
  config.avatar.flame_learning_rates.jaw = 1e-4
  stage = joint_stage(make_inputs(config))
  params, buffers = jax.eval_shape(stage.init, jax.random.key(0))
  assert set(params) == {"social", "generator", "offsets", "bank", "flame"} and params["bank"]["means"].shape[0] == len(PEOPLE)
  assert params["flame"]["jaw"].shape == (2, tiny_world.FRAMES, 3) and buffers["film"]["alignment"].shape == (2, 3)
  batches, seen = iter(stage.batches), set()
  for _ in range(6):
    batch = next(batches)
    for number, image in zip(batch["filmed"]["identity"], batch["filmed"]["image"]):
      seen.add((int(number), bool(image[0, 24, 24, 2] > 180)))
  assert seen == {(0, True), (1, False)}  # Olga's is the blue one.
  with jax.set_mesh(stage.mesh):
    jax.eval_shape(lambda *given: stage.loss(*given, jax.random.key(0), np.int32(0)), params, buffers, batch)
  jax.eval_shape(stage.optimizer.init, params)


def test_one_person_is_read_out_and_exported(root, together, tmp_path):
  params, buffers, _ = workdirs.load_parameters(together)
  person = load_run(together, person="olga")
  np.testing.assert_array_equal(person.avatar.shape, [2, -3])
  live = buffers["bank"]["binding"][1] != FREE
  np.testing.assert_array_equal(person.avatar.gaussians.means, params["bank"]["means"][1][live])
  assert person.data_path("capture") == root / "other" and person.names == ("capture", "olga")
  export.export_avatar(workdir=together, out=str(tmp_path / "other.ply"), format="bound", person="olga")
  assert (tmp_path / "other.ply").stat().st_size
  # Nobody named: the first.
  np.testing.assert_array_equal(load_run(together).avatar.shape, [0, 0])
  with pytest.raises(InputError, match="--person: found nobody, expected one of capture, olga"):
    load_run(together, person="nobody")


def test_who_is_not_shown_rests():
  """Per person, as the same optimizer gives for each alone on the steps that show them; numpy has Adam's formula."""
  optimizer = optimizers.per_person(optax.adam(optax.exponential_decay(0.1, 2, 0.5), eps=1e-15))
  gradients = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32)
  shown = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]], bool)
  gradients *= shown[..., None, None]
  params = jnp.zeros((3, 2, 2))
  state = optimizer.init(params)
  for gradient in gradients:
    updates, state = optimizer.update(jnp.asarray(gradient), state, params)
    params = optax.apply_updates(params, updates)
  for person in range(3):
    m = v = expected = np.zeros((2, 2))
    for count, gradient in enumerate(gradients[shown[:, person], person], 1):
      m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
      rate = 0.1 * 0.5 ** ((count - 1) / 2)
      expected = expected - rate * (m / (1 - 0.9**count)) / np.sqrt(v / (1 - 0.999**count))
    np.testing.assert_allclose(params[person], expected, rtol=1e-4, atol=1e-7)


def test_moments_of_each_persons_new_gaussians_are_forgotten():
  fresh = jnp.array([[True, False, False], [False, False, True]])
  moments = {"mu": {"bank": {"means": jnp.ones((2, 3, 3)), "opacity_logits": jnp.ones((2, 3))}, "flame": {"jaw": jnp.ones((2, 3, 3))}}}
  after = density.forget_moments(moments, fresh)["mu"]
  np.testing.assert_array_equal(after["bank"]["means"], np.where(fresh[..., None], 0, np.ones((2, 3, 3))))
  np.testing.assert_array_equal(after["bank"]["opacity_logits"], ~fresh)
  np.testing.assert_array_equal(after["flame"]["jaw"], 1)


def test_devices_exchange_the_people_shown_and_not_the_bank():
  people, shown = 64, 4
  mesh = sharding.make_mesh(1, 2)
  frames, by_person = P(("data", "fsdp")), NamedSharding(mesh, P("fsdp"))

  def loss(means, identity):
    draw = jax.shard_map(lambda x: jnp.sum(jnp.sin(x)), mesh=mesh, in_specs=frames, out_specs=P(), check_vma=False)
    return draw(means[identity])  # As `select` has it.

  with jax.set_mesh(mesh):
    means = jax.ShapeDtypeStruct((people, 100, 3), jnp.float32, sharding=by_person)
    identity = jax.ShapeDtypeStruct((shown,), jnp.int32, sharding=NamedSharding(mesh, frames))
    program = jax.jit(jax.grad(loss), out_shardings=by_person).lower(means, identity).compile().as_text()
  exchanged = re.findall(r"= \w+\[(\d+)[^ ]* (?:all-gather|all-reduce|all-to-all)\(", program)
  assert exchanged and {int(size) for size in exchanged} == {shown}
