"""Density control in the real loop: Gaussians are born in free slots, arrays keep their shapes, and it is said."""

import dataclasses
import types

import pytest

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tiny_world
from configs.ablations import VARIANTS
from configs.demo import get_config as demo_config
from configs.rsatalker import get_config as rsatalker_config
from rsatalker_jax.avatar import FREE
from rsatalker_jax.errors import InputError
from rsatalker_jax.talker import make_talker
from rsatalker_jax import sharding
from rsatalker_jax.training import checkpoints, loop, optimizers, rendering
from rsatalker_jax.training.avatar_stage import avatar_stage
from rsatalker_jax.training.density_control import check_interval, make_density_control
from rsatalker_jax.training.stage_inputs import StageInputs


FACES, CAPACITY = 140, 180


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("world") / "data"
  tiny_world.write_world(root)
  return root


def make_stage(world, said, **overrides):
  config = tiny_world.tiny_config(world)
  config.gaussians.capacity = CAPACITY
  config.update_from_flattened_dict({"avatar.steps": 7, **overrides})
  inputs = StageInputs(config, make_talker(config), None, sharding.make_mesh(), say=said.append)
  return dataclasses.replace(avatar_stage(inputs), pictures=None), inputs


def train(world, workdir, **overrides):
  said = []
  stage, inputs = make_stage(world, said, **overrides)
  watching = loop.Watching(log_every=3, checkpoint_every=3, pictures_every=100)
  state = loop.run_stage(
      stage, mesh=inputs.mesh, workdir=str(workdir), seed=0, watching=watching, say=said.append
  )
  return jax.device_get(state), [line for line in said if "Gaussians;" in line]


def test_adaptive_control_grows_the_avatar(world, tmp_path):
  overrides = {
      "density.way": "adaptive",
      "density.adaptive.start": 0,
      "density.adaptive.every": 2,
      "density.adaptive.stop": 5,
      "density.adaptive.gradient_threshold": 1e-7,
      "avatar.flame_learning_rates": {"expression": 1e-3, "translation": 1e-4},
  }
  state, said = train(world, tmp_path, **overrides)
  binding = state.buffers["avatar"]["binding"]
  live = binding != FREE
  assert FACES < live.sum() <= CAPACITY
  assert set(binding[live]) == set(range(FACES))
  assert [line.split(";")[0] for line in said][1:] == [f"avatar: step 4: {live.sum()} Gaussians"]  # Not after step 6.
  assert np.any(state.params["avatar"]["means"][live][FACES:])  # The new ones are trained …
  assert not np.any(state.params["avatar"]["means"][~live])  # … and free slots are not.
  # Seen in the last three steps, since it acted last; never a free slot.
  statistics = state.buffers["density"]["statistics"]
  assert 0 < statistics.seen.max() <= 6 and not np.any(statistics.seen[~live])
  # Corrections of the tracked motion: in rows of frames that were drawn, and there alone.
  corrected = np.any(state.params["flame"]["expression"], axis=1)
  assert 0 < corrected.sum() <= 14 < len(corrected)
  np.testing.assert_array_equal(corrected, np.any(state.params["flame"]["translation"], axis=1))


def test_mcmc_grows_by_its_rate(world, tmp_path):
  state, said = train(
      world,
      tmp_path,
      **{
          "density.way": "mcmc",
          "density.mcmc.start": 0,
          "density.mcmc.every": 2,
          "density.mcmc.stop": 5,
          "density.mcmc.growth": 1.1,
      },
  )
  assert [line.split(";")[0] for line in said] == [  # 14 of 140, then 16 of 154, rounded up.
      "avatar: step 2: 154 Gaussians",
      "avatar: step 4: 170 Gaussians",
  ]
  live = state.buffers["avatar"]["binding"] != FREE
  assert live.sum() == 170
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.params))


def test_unknown_way_is_named(world, tmp_path):
  with pytest.raises(InputError, match="density.way: found 'clever', expected 'none', 'adaptive' or 'mcmc'"):
    train(world, tmp_path, **{"density.way": "clever"})


def test_frames_in_which_a_gaussian_is_visible_count_and_its_radius_is_kept(world):
  stage, inputs = make_stage(
      world, [], **{"density.way": "adaptive", "density.adaptive.stop": 2, "density.adaptive.every": 1}
  )
  key = jax.random.key(0)
  params, buffers = stage.init(key)
  # Many too faint to be drawn: the others are visible.
  params["avatar"]["opacity_logits"] = params["avatar"]["opacity_logits"].at[:50].set(-20.0)
  batch = next(iter(stage.batches))
  avatar, capture = inputs.talker.avatar(params, buffers), inputs.talker.open_capture(inputs.path("capture"), "train")
  draw = lambda avatar, flame: inputs.talker.render(avatar, flame, rendering.camera_of(batch, capture)).radii
  radii = np.asarray(jax.jit(draw)(avatar, dict(batch["flame"])))

  def loss(radii_probe):
    return stage.loss(params | stage.probes | {"radii": radii_probe}, buffers, batch, key, 0)

  with jax.set_mesh(inputs.mesh):
    (value, terms), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(stage.probes["radii"])
  # Being watched changes nothing.
  np.testing.assert_allclose(value, sum(x for n, x in terms.items() if n not in ("overflow", "intersections")), rtol=1e-6)
  statistics = stage.observe(buffers, stage.probes | {"radii": gradient})["density"]["statistics"]
  np.testing.assert_array_equal(statistics.seen, (radii > 0).sum(0))
  np.testing.assert_array_equal(statistics.radius, radii.max(0))
  assert 0 < np.count_nonzero(radii.max(0)) < FACES and radii.max() > 1


def adaptive_control(capacity, faces=4, said=None, **overrides):
  config = demo_config().density
  config.adaptive.update(dict(start=0, stop=50, every=10, reset_every=20, **overrides))
  return make_density_control(
      config, steps=100, capacity=capacity, sizes=jnp.full(faces, 0.01), batch=2, image_size=(8, 8),
      mean_rate=None, seed=0, say=[].append if said is None else said.append,
  )


def trained_state(capacity, buffers):
  """A state whose moments are all different from zero, with corrections of as many frames as there are Gaussians."""
  shapes = {"means": (3,), "quats": (4,), "log_scales": (3,), "opacity_logits": (), "sh": (4, 3)}
  r = np.random.default_rng(0)
  draw = lambda shape: jnp.asarray(r.normal(size=(capacity, *shape)), jnp.float32)
  params = {"avatar": {name: draw(shape) for name, shape in shapes.items()}, "flame": {"expression": draw((50,))}}
  optimizer = optimizers.by_path(
      optimizers.gaussian_optimizer(shapes, lambda name: optax.constant_schedule(1e-3), sh_rest_share=0.05)
      | {"flame/expression": optax.adam(1e-3)}
  )
  opt_state = optimizer.init(params)
  for _ in range(3):
    grads = jax.tree.map(lambda x: jnp.asarray(r.normal(size=x.shape), jnp.float32), params)
    _, opt_state = optimizer.update(grads, opt_state, params)
  binding = jnp.where(jnp.arange(capacity) < capacity - 3, jnp.arange(capacity) % 4, FREE)
  return checkpoints.TrainState(
      step=jnp.int32(3), params=params, buffers={"avatar": {"binding": binding}, **buffers}, opt_state=opt_state
  )


def paths(tree):
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_a_reset_of_opacities_forgets_their_moments_alone():
  capacity = 12
  control = adaptive_control(capacity)
  state = trained_state(capacity, control.buffers)
  _, reset = control.hooks
  assert [step for step in range(1, 101) if reset.due(step)] == [20, 40]
  after = reset.call(state, 20)
  before, after_paths = paths(state), paths(after)
  changed = {path for path, x in before.items() if not np.array_equal(x, after_paths[path])}
  moments = {path for path in before if "opacity_logits']" in path and ("mu" in path or "nu" in path)}
  assert len(moments) == 2
  assert changed == moments | {".params['avatar']['opacity_logits']"}
  assert not any(np.any(after_paths[path]) for path in moments)
  np.testing.assert_allclose(
      jax.nn.sigmoid(after.params["avatar"]["opacity_logits"]),
      np.minimum(jax.nn.sigmoid(state.params["avatar"]["opacity_logits"]), 0.01),
      rtol=1e-5,
  )


def test_density_control_forgets_moments_of_new_gaussians_alone():
  capacity = 12
  said = []
  control = adaptive_control(capacity, said=said, gradient_threshold=1.0, min_opacity=0.0, dense_size=1e3)
  state = trained_state(capacity, control.buffers)
  pull = jnp.where(jnp.arange(capacity) == 2, 5.0, 0.0)
  statistics = dataclasses.replace(
      control.buffers["density"]["statistics"], gradient=pull, seen=jnp.ones(capacity)
  )
  state = state.replace(buffers=state.buffers | {"density": {"statistics": statistics}})
  after = control.hooks[0].call(state, 10)
  assert said == ["avatar: step 10: 10 Gaussians; 1 cloned, 0 pruned, 0 refused, 0 split"]
  before, changed = paths(state.opt_state), paths(after.opt_state)
  for path, x in before.items():
    moved = np.flatnonzero(np.any((x != changed[path]).reshape(len(x), -1), axis=1)) if x.ndim else []
    expected = [capacity - 3] if "'avatar'" in path and ("mu" in path or "nu" in path) else []
    np.testing.assert_array_equal(moved, expected, err_msg=path)


@pytest.mark.parametrize(("step", "pruned"), [(20, 0), (30, 9)])
def test_size_counts_only_after_the_first_reset(step, pruned):
  capacity, said = 16, []
  control = adaptive_control(capacity, said=said, min_opacity=0.0, max_size=0.001)
  state = trained_state(capacity, control.buffers)
  control.hooks[0].call(state, step)
  # All 13 of a hundredth of a metre; each of the 4 triangles keeps one.
  assert f" {pruned} pruned" in said[0]


@pytest.mark.parametrize("way", ["adaptive", "mcmc"])
def test_it_never_acts_in_the_last_steps(way):
  config = demo_config().density
  config.way = way
  for every in (1, 7, 50):
    for steps in (60, 100):
      config[way].update(dict(start=0, every=every))
      if steps - every <= every:
        continue
      config[way].stop = steps - every
      check_interval(config, steps)
      control = make_density_control(
          config, steps=steps, capacity=8, sizes=jnp.ones(4), batch=2, image_size=(8, 8),
          mean_rate=lambda step: 1.0, seed=0, say=print,
      )
      acting = [step for step in range(1, steps + 1) if any(hook.due(step) for hook in control.hooks)]
      assert acting and acting[0] == every and max(acting) < steps - every
      config[way].stop = steps - every + 1
      expected = (
          f"^config: density.{way}.stop: found {steps - every + 1}, expected at most {steps - every}: "
          f"density.{way}.every={every} steps before the stage's {steps}$"
      )
      for call in (check_interval, lambda config, steps: make_density_control(
          config, steps=steps, capacity=8, sizes=jnp.ones(4), batch=2, image_size=(8, 8),
          mean_rate=lambda step: 1.0, seed=0, say=print,
      )):
        with pytest.raises(InputError, match=expected):
          call(config, steps)


@pytest.mark.parametrize(("interval", "message"), [
    (dict(start=0, stop=50, every=0), "density.adaptive.every: found 0, expected at least 1 step"),
    (dict(start=60, stop=50, every=10), "density.adaptive.stop: found 50, expected above 70, "),
    (dict(start=40, stop=50, every=10), "density.adaptive.stop: found 50, expected above 50, "),
    (dict(start=-5, stop=10, every=10), "density.adaptive.stop: found 10, expected above 10, "),
])
def test_an_interval_in_which_it_never_acts_is_refused(interval, message):
  config = demo_config().density
  config.adaptive.update(interval)
  with pytest.raises(InputError, match=message):
    check_interval(config, 100)
  config.way = "none"
  check_interval(config, 1)
  config.way = "clever"
  with pytest.raises(InputError, match="density.way: found 'clever'"):
    check_interval(config, 100)


def test_intervals_of_all_configs_are_accepted_and_the_demos_acts_when_it_did():
  for get_config in (demo_config, rsatalker_config):
    for variant in VARIANTS:
      config = get_config(variant)
      check_interval(config.density, config.avatar.steps)
  config = demo_config()
  control = lambda: make_density_control(
      config.density, steps=config.avatar.steps, capacity=8, sizes=jnp.ones(4), batch=2, image_size=(8, 8),
      mean_rate=lambda step: 1.0, seed=0, say=print,
  )
  assert [step for step in range(601) if any(hook.due(step) for hook in control().hooks)] == list(range(50, 351, 50))
  config.density.way = "mcmc"
  assert [step for step in range(601) if any(hook.due(step) for hook in control().hooks)] == list(range(50, 501, 50))


def test_triangles_at_rest_are_the_persons_with_tracked_offsets(world):
  talker = make_talker(tiny_world.tiny_config(world))
  shape = np.float32([0.5, -0.3])
  head = np.load(world / "head.npz")
  shaped = head["v_template"] + head["shapedirs"][..., :2] @ shape
  sizes = [
      rendering.triangle_sizes(talker, types.SimpleNamespace(shape=shape, static_offset=offset)) for offset in (None, shaped)
  ]
  np.testing.assert_allclose(sizes[1], 2 * sizes[0], rtol=1e-4)  # Everything twice as far from the centre.
