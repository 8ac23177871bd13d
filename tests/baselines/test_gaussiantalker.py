"""GaussianTalker: attention as numpy has it, two phases, what follows the head and what the body, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny_world
from configs.demo import get_config
from rsatalker_jax.baselines.image import Subject, gaussiantalker, make_drive, make_image_method
from rsatalker_jax.head import load_head
from splat_kernels import Config

SIZE = 24


@pytest.fixture(scope="module")
def head(tmp_path_factory):
  path = tmp_path_factory.mktemp("head") / "head.npz"
  tiny_world.write_head(path)
  head = load_head(path)
  # The upper half turns with the neck; the lower stays with the body.
  weights = jnp.zeros_like(head.weights)
  upper = head.v_template[:, 1] > 0
  return dataclasses.replace(head, weights=weights.at[:, 1].set(upper).at[:, 0].set(~upper))


def small_config(**sizes):
  config = get_config("gaussiantalker")
  config.gaussians.capacity = 150
  config.avatar.steps = 8
  config.baselines.gaussiantalker.loss.lpips = 0.0  # Its network needs 32 pixels.
  config.baselines.gaussiantalker.update(dict(coarse_steps=4, warmup=2, planes=(4, 8), channels=4, hidden=8, **sizes))
  return config


def make_method(head, **sizes):
  subject = Subject(head, np.zeros(2, np.float32), None, SIZE, SIZE, (1.0, 1.0, 1.0), 3, 2, Config(with_depth=False), None)
  return make_image_method(small_config(**sizes), subject)


def drive_of(head, neck=((0.0, 0.0, 0.0), (0.2, 0.4, 0.0)), seed=0):
  r, count = np.random.default_rng(seed), len(neck)
  view = np.diag([1.0, -1, -1, 1])
  view[2, 3] = 0.6
  intrinsics = np.array([[2.0 * SIZE, 0, SIZE / 2], [0, 2.0 * SIZE, SIZE / 2], [0, 0, 1]])
  flame = {name: np.zeros((count, 3), np.float32) for name in ("rotation", "jaw", "translation")}
  flame |= {"expression": np.zeros((count, 50), np.float32), "neck": np.array(neck, np.float32), "eyes": np.zeros((count, 6), np.float32)}
  subject = make_method(head).subject
  speech = r.normal(size=(count, 15, 3))
  return make_drive(subject, flame, speech, np.tile(view, (count, 1, 1)), np.tile(intrinsics, (count, 1, 1)))


def batch_of(head):
  rows, columns = np.mgrid[:SIZE, :SIZE]
  mask = (((rows - SIZE / 2) ** 2 + (columns - SIZE / 2) ** 2) < 64).astype(np.uint8) * 255
  image = np.where(mask[..., None] > 0, np.uint8([200, 120, 40]), np.uint8(255))
  box = np.array([8, 8, 16, 16], np.float32)
  batch = {"image": image, "mask": mask, "frame": np.int32(0), "boxes": dict.fromkeys(("face", "lower", "lips"), box)}
  return jax.tree.map(lambda x: np.stack([x] * 2), batch) | {"drive": drive_of(head)}


def test_the_code_of_the_eyes_is_the_formula():
  eyes = np.array([0.0, 0.3, 1.0])
  found = gaussiantalker.eye_code(jnp.asarray(eyes))
  for i in range(32):
    wave = np.sin if i % 2 == 0 else np.cos
    np.testing.assert_allclose(found[:, i], wave(eyes * 100 ** (2 * (i // 2) / 32)), atol=2e-5)


def test_planes_have_the_published_size_and_are_multiplied():
  module = gaussiantalker.CanonicalPlanes((64, 128), 32, (-1, -2, -3), (1, 2, 3))
  points = jnp.array([[0.3, -0.5, 1.0], [-1.0, 2.0, 3.0]])
  params = module.init(jax.random.key(0), points)
  assert sum(x.size for x in jax.tree.leaves(params)) == 1_966_080
  found = module.apply(params, points)
  p = params["params"]
  # The second point is the corner low x, high y, high z.
  np.testing.assert_allclose(found[1, :32], p["xy_64"][-1, 0] * p["xz_64"][-1, 0] * p["yz_64"][-1, -1], rtol=1e-4)
  np.testing.assert_allclose(found[1, 32:], p["xy_128"][-1, 0] * p["xz_128"][-1, 0] * p["yz_128"][-1, -1], rtol=1e-4)


def test_attention_is_what_numpy_makes_of_its_parameters():
  r = np.random.default_rng(0)
  x, tokens = r.normal(size=(5, 8)).astype(np.float32), r.normal(size=(2, 4, 8)).astype(np.float32)
  module = gaussiantalker.SpatialAudioAttention(heads=2, layers=2)
  params = module.init(jax.random.key(0), x, tokens)
  found = module.apply(params, x, tokens)
  p = jax.tree.map(np.asarray, params["params"])
  dense = lambda name, y: y @ p[name]["kernel"] + p[name]["bias"]
  norm = lambda name, y: (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-12) * p[name]["scale"] + p[name]["bias"]
  for frame in range(2):
    y = x
    for layer in range(2):
      query, key, value = (dense(f"{n}_{layer}", z) for n, z in (("query", y), ("key", tokens[frame]), ("value", tokens[frame])))
      heads = []
      for h in (slice(0, 4), slice(4, 8)):
        logits = query[:, h] @ key[:, h].T / 2
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ value[:, h])
      y = norm(f"norm_{layer}", y + dense(f"out_{layer}", np.concatenate(heads, -1)))
      y = norm(f"last_norm_{layer}", y + dense(f"narrow_{layer}", np.maximum(dense(f"wide_{layer}", y), 0)))
    np.testing.assert_allclose(found[frame], y, rtol=2e-4, atol=2e-5)


def moving(method, buffers, moves=True):
  return buffers | {method.name: {"moves": jnp.asarray(moves)}}


def test_frames_do_not_see_each_other(head):
  method, drive = make_method(head), drive_of(head)
  params, buffers = method.init(jax.random.key(0))
  draw = jax.jit(method.draw)
  both = draw(params, moving(method, buffers), drive)["image"]
  alone = draw(params, moving(method, buffers), jax.tree.map(lambda x: x[1:], drive))["image"]
  np.testing.assert_allclose(both[1:], alone, atol=1e-5)
  assert np.abs(np.asarray(both[0] - both[1])).max() > 0.05


def test_what_the_network_says_is_added(head):
  method, drive = make_method(head), drive_of(head)
  params, buffers = method.init(jax.random.key(0))
  network = jax.tree.map(lambda x: x + 0.01, params["gaussiantalker"])
  moved = method._find_gaussians(params | {"gaussiantalker": network}, moving(method, buffers), drive)
  deltas = method.network.apply({"params": network}, params["avatar"]["means"], drive, method="move")
  for name, own in params["avatar"].items():
    assert np.abs(np.asarray(deltas[name])).max() > 1e-5, name
    np.testing.assert_allclose(moved[name] - own, deltas[name], atol=1e-5, err_msg=name)


def test_what_moves_gaussians(head):
  """Voice, eyes and camera, each of its frame alone; brows do not."""
  method, drive = make_method(head), drive_of(head)
  params, _ = method.init(jax.random.key(0))
  network = jax.tree.map(lambda x: x + 0.05, params["gaussiantalker"])
  move = jax.jit(lambda drive: method.network.apply({"params": network}, params["avatar"]["means"], drive, method="move"))
  before, heeded = move(drive), ("speech", "eyes", "world_to_camera")
  for name in (*heeded, "controls"):
    other = np.array(drive[name], np.float32)
    other[1] = 0.7 * other[1] + 0.3
    after = move(drive | {name: other})
    changed = np.abs(np.asarray(after["sh"] - before["sh"])).max(axis=(1, 2, 3))
    assert changed[0] == 0 and (changed[1] > 1e-6) == (name in heeded), (name, changed)


@pytest.mark.parametrize(("torso", "still"), [("body", True), ("head", False)])
def test_shoulders_stand_still_while_the_head_turns(head, torso, still):
  """Before anything is moved by the network: the place of each Gaussian at two poses of the neck."""
  method, drive = make_method(head, torso=torso), drive_of(head)
  params, buffers = method.init(jax.random.key(0))
  gaussians, binding = params["avatar"], buffers["avatar"]["binding"]
  means, quats, _ = method._place(*(jnp.stack([gaussians[name]] * 2) for name in ("means", "quats")), binding, drive)
  live = np.asarray(binding) != gaussiantalker.FREE
  assert live.sum() == len(head.faces)
  below = np.asarray(head.weights)[np.asarray(head.faces), 0].mean(axis=1) > 0.5
  moved = np.linalg.norm(np.asarray(means[1] - means[0])[live], axis=-1)
  assert (moved[below].max() < 1e-6) == still and moved[~below].max() > 1e-3
  # Where the head's own transform says, turned as it says.
  upper = np.flatnonzero(live)[~below]
  turn = np.asarray(drive["head"][1])
  np.testing.assert_allclose(means[1][upper], np.asarray(gaussians["means"])[upper] @ turn[:3, :3].T + turn[:3, 3], atol=1e-6)
  angle = 2 * np.arccos(np.clip(np.abs(np.asarray(quats[1][upper, 0])), 0, 1))
  np.testing.assert_allclose(angle, np.linalg.norm([0.2, 0.4, 0.0]), atol=1e-3)


def test_the_second_phase_begins_with_the_pictures_of_the_first(head):
  """Gaussians keep the planes' colours, and as long as nothing is added to them they look as before."""
  method, drive = make_method(head), drive_of(head)
  params, buffers = method.init(jax.random.key(0))
  (between,) = method.between(8)
  assert [step for step in range(1, 9) if between.due(step)] == [4]
  params[method.name]["deltas_means"]["Dense_0"]["bias"] += 0.3  # So that a delta would be seen.
  before = jax.jit(method.draw)(params, buffers, drive)["image"]
  params, buffers = between.call(params, buffers, 4, None)
  for name in params[method.name]:
    if name.startswith("deltas"):
      params[method.name][name]["Dense_1"] = jax.tree.map(jnp.zeros_like, params[method.name][name]["Dense_1"])
  assert buffers[method.name]["moves"]
  np.testing.assert_allclose(jax.jit(method.draw)(params, buffers, drive)["image"], before, atol=1e-5)


@pytest.mark.parametrize("moves", [False, True])
def test_gradients_are_finite_and_reach_what_the_phase_trains(head, moves):
  method, batch = make_method(head), batch_of(head)
  params, buffers = method.init(jax.random.key(0))
  loss = lambda p: sum(method.loss(p, moving(method, buffers, moves), batch, jax.random.key(0), jnp.zeros(()), {})[0].values())
  gradients = jax.jit(jax.grad(loss))(params)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
  reached = {name for name, tree in gradients[method.name].items() if any(np.abs(x).max() > 0 for x in jax.tree.leaves(tree))}
  first = {"first_opacity_logits", "first_sh", "trunk_0", "trunk_1", "planes"}
  assert reached == (set(gradients[method.name]) - first | {"planes"} if moves else first)
  own = {name for name, x in gradients["avatar"].items() if np.abs(x).max() > 0}
  assert own == {"means", "quats", "log_scales"} | ({"opacity_logits", "sh"} if moves else set())


def test_nothing_is_drawn_larger_than_the_largest(head):
  method, drive = make_method(head), drive_of(head)
  params, buffers = method.init(jax.random.key(0))
  pictures = []
  for size in (0.015, 0.1):
    params["avatar"]["log_scales"] = jnp.full_like(params["avatar"]["log_scales"], np.log(size))
    pictures.append(jax.jit(method.draw)(params, buffers, drive)["image"])
  np.testing.assert_array_equal(*pictures)


def test_it_learns_two_frames(head):
  method, batch = make_method(head), batch_of(head)
  params, buffers = method.init(jax.random.key(0))
  buffers, optimizer = moving(method, buffers), optax.adam(2e-2)

  @jax.jit
  def step(params, state):
    terms = lambda p: method.loss(p, buffers, batch, jax.random.key(0), jnp.zeros(()), {})[0]
    loss, gradients = jax.value_and_grad(lambda p: sum(terms(p).values()))(params)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, loss

  state, losses = optimizer.init(params), []
  for _ in range(25):
    params, state, loss = step(params, state)
    losses.append(float(loss))
  assert losses[-1] < 0.3 * losses[0]


def test_terms_are_what_they_are_named(head):
  """By hand, of the picture that is drawn; the lips' term looks at their box alone."""
  method, batch = make_method(head), batch_of(head)
  params, buffers = method.init(jax.random.key(0))
  params["avatar"]["log_scales"] = params["avatar"]["log_scales"].at[0, 1].set(np.log(0.015) + 3)
  draw = lambda p: method._rasterize(method._find_gaussians(p, buffers, batch["drive"]), buffers, batch["drive"], {})
  output = jax.jit(draw)(params)
  terms, frames = jax.jit(lambda p: method.loss(p, buffers, batch, None, None, {}))(params)
  error = np.abs(np.asarray(output.image) - batch["image"] / 255.0)
  np.testing.assert_allclose(terms["l1"], 0.8 * error.mean(), rtol=1e-5)
  np.testing.assert_allclose(terms["lips"], 0.4 * error[:, 8:16, 8:16].mean(), rtol=1e-5)
  np.testing.assert_allclose(terms["mask"], 0.4 * np.abs(np.asarray(output.alpha) - batch["mask"] / 255.0).mean(), rtol=1e-5)
  sizes = np.maximum(np.asarray(params["avatar"]["log_scales"]) - np.log(0.015), 0)
  free = np.asarray(buffers["avatar"]["binding"]) == gaussiantalker.FREE
  assert free.any() and sizes[free].min() > 1  # Slots without a Gaussian do not count.
  sizes[free] = 0
  np.testing.assert_allclose(terms["size"], sizes.mean(), rtol=1e-5)
  assert set(terms) == {"l1", "dssim", "lips", "mask", "size"} and frames["radii"].shape == (2, 150)


def test_rates_fall_in_each_phase_and_begin_the_second_anew(head):
  method = make_method(head)
  rate = method.rates(8)["network"]
  wanted = [1e-3, 1e-3 * 0.1**0.5, 0.0, 0.5e-3, 1e-3, 1e-3 * 0.1**0.5, 1e-4]
  np.testing.assert_allclose([rate(step) for step in (0, 2, 4, 5, 6, 7, 8)], wanted, rtol=1e-5)
  assert set(method.transforms(8)) == {
      "avatar/means", "avatar/quats", "avatar/log_scales", "avatar/opacity_logits", "avatar/sh", "gaussiantalker/planes", "gaussiantalker",
  }  # fmt: skip
