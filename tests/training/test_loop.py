"""The loop on a toy stage: it learns, resumes to the same numbers, stops on what is not finite, logs each step once."""

import dataclasses
import json
import os
import signal

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rsatalker_jax import sharding
from rsatalker_jax.errors import InputError
from rsatalker_jax.runs import workdir as workdirs
from rsatalker_jax.training import checkpoints, loop

TRUE_WEIGHT = np.array([[1.0], [-2.0], [0.5]], np.float32)


def make_toy_stage(steps, broken_at=None, hooks=()):
  """Linear regression on a noisy stream, with a noise term drawn from the step's key."""
  inputs = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
  examples = [{"x": x, "y": x @ TRUE_WEIGHT} for x in inputs]
  batches = grain.MapDataset.source(examples).seed(3).shuffle().repeat().batch(8, drop_remainder=True).to_iter_dataset()

  def init(key):
    return {"generator": {"w": jax.random.normal(key, (3, 1))}}, {"generator": {"scale": jnp.ones(())}}

  def loss(params, buffers, batch, key, step):
    noise = 0.01 * jax.random.normal(key, batch["y"].shape)
    error = batch["x"] @ params["generator"]["w"] * buffers["generator"]["scale"] + noise - batch["y"]
    terms = {"error": jnp.mean(error**2), "decay": 1e-4 * jnp.sum(params["generator"]["w"] ** 2)}
    if broken_at is not None:
      terms["decay"] = jnp.where(step + 1 == broken_at, jnp.nan, terms["decay"])
    return sum(terms.values()), terms

  return loop.Stage("motion", steps, init, batches, loss, optax.adam(0.05), hooks=hooks)


def run(stage, workdir, **options):
  options.setdefault("watching", loop.Watching(log_every=10, checkpoint_every=20))
  return loop.run_stage(stage, mesh=sharding.make_mesh(), workdir=str(workdir), seed=1, say=lambda _: None, **options)


def read_metrics(workdir):
  return [json.loads(line) for line in (workdir / "motion" / "metrics.jsonl").read_text().splitlines()]


def test_learns_the_true_weight(tmp_path):
  state = run(make_toy_stage(200), tmp_path)
  np.testing.assert_allclose(state.params["generator"]["w"], TRUE_WEIGHT, atol=0.02)  # Adam's step is 0.05, noise 0.01.


def test_interrupted_run_reaches_the_same_numbers(tmp_path):
  whole = run(make_toy_stage(60), tmp_path / "whole")
  interrupt_at = 47  # Not a multiple of the checkpoint interval: the steps since the last checkpoint are repeated.

  def interrupt(state, step):
    if step == interrupt_at:
      raise KeyboardInterrupt
    return state

  with pytest.raises(KeyboardInterrupt):
    run(make_toy_stage(60, hooks=(loop.Hook(lambda step: True, interrupt),)), tmp_path / "cut")
  resumed = run(make_toy_stage(60), tmp_path / "cut")
  chex.assert_trees_all_equal(jax.device_get(resumed), jax.device_get(whole))
  steps = [line["step"] for line in read_metrics(tmp_path / "cut")]
  assert steps == [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("asked_at, saved", [(7, 8), (20, 20)])  # In the stage, honoured after the next step; in its last step.
def test_a_request_to_stop_is_honoured_in_any_step(tmp_path, asked_at, saved):
  def ask(state, step):
    if step == asked_at:
      os.kill(os.getpid(), signal.SIGTERM)
    return state

  with pytest.raises(SystemExit) as stopped:
    run(make_toy_stage(20, hooks=(loop.Hook(lambda step: True, ask),)), tmp_path)
  assert stopped.value.code == 128 + signal.SIGTERM
  assert int(workdirs.load_stage_state(str(tmp_path), "motion")["step"]) == saved


def test_the_config_is_recorded_before_a_checkpoint_and_not_earlier(tmp_path):
  """A run that breaks before its first checkpoint leaves the workdir free for another config."""
  found = lambda: [int(path.name) for path in workdirs.find_checkpoints(workdirs.checkpoint_folder(tmp_path, "motion"))]
  seen = []
  with pytest.raises(loop.NonFiniteLoss):
    run(make_toy_stage(40, broken_at=13), tmp_path, before_checkpoint=lambda: seen.append(found()))
  assert seen == [[]]  # For what is kept of the step that broke.
  seen.clear()
  run(make_toy_stage(40), tmp_path, before_checkpoint=lambda: seen.append(20 in found()))
  assert seen[0] is False and len(seen) == 2


def test_finished_run_returns_at_once(tmp_path):
  first = run(make_toy_stage(20), tmp_path)
  again = run(make_toy_stage(20), tmp_path)
  np.testing.assert_array_equal(first.params["generator"]["w"], again.params["generator"]["w"])


def test_non_finite_term_is_named_with_its_step(tmp_path):
  with pytest.raises(loop.NonFiniteLoss, match="stage motion, step 33: not finite: decay=nan"):
    run(make_toy_stage(60, broken_at=33), tmp_path)
  # The broken state did not become a checkpoint.
  assert int(workdirs.load_stage_state(str(tmp_path), "motion")["step"]) == 20


def test_the_step_compiles_once(tmp_path):
  toy = make_toy_stage(5)
  loss = chex.assert_max_traces(toy.loss, n=1)
  # jnp.full keeps a Python scalar's weak type, which the first update would change.
  init = lambda key: ({"generator": {"w": jnp.full((3, 1), 0.5)}}, toy.init(key)[1])
  run(dataclasses.replace(toy, init=init, loss=loss), tmp_path)


def make_room(grow):
  return loop.Room("Gaussian-tile pairs", "overflow", "intersections", grow)


def make_cramped_stage(room):
  """A toy stage that needs room for 3 examples, from step 8 for 5, from step 16 for 8, and loses what does not fit."""
  toy = make_toy_stage(25)

  def loss_with_room(room):
    def loss(params, buffers, batch, key, step):
      needed = 3 + 2 * (step >= 7) + 3 * (step >= 15)
      kept = (jnp.arange(8) < jnp.minimum(needed, room))[:, None]
      _, terms = toy.loss(params, buffers, jax.tree.map(lambda x: x * kept, batch), key, step)
      return terms["error"], terms | {"overflow": jnp.maximum(needed - room, 0), "intersections": needed}

    return loss

  return dataclasses.replace(toy, loss=loss_with_room(room), room=make_room(loss_with_room))


@pytest.mark.parametrize("log_every", [1, 10])  # Every step waited for; steps in flight behind the one that overflows.
def test_steps_that_did_not_fit_are_taken_again_with_room(tmp_path, log_every):
  said = []
  watching = loop.Watching(log_every=log_every, checkpoint_every=20)
  train = lambda stage, name: loop.run_stage(
      stage, mesh=sharding.make_mesh(), workdir=str(tmp_path / name), seed=1, watching=watching, say=said.append
  )
  roomy = train(make_cramped_stage(8), "roomy")
  assert said == []
  cramped = train(make_cramped_stage(3), "cramped")
  chex.assert_trees_all_equal(jax.device_get(cramped), jax.device_get(roomy))
  assert [line.split(",")[0] for line in said] == [
      "motion: step 8 needs 5 Gaussian-tile pairs a frame",
      "motion: step 16 needs 8 Gaussian-tile pairs a frame",
  ]
  lines = {}
  for name in ("roomy", "cramped"):
    lines[name] = read_metrics(tmp_path / name)
    for line in lines[name]:
      del line["steps_per_second"], line["data_wait"]
  assert lines["roomy"] == lines["cramped"] and all(line["overflow"] == 0 for line in lines["roomy"])


def test_overflow_that_room_does_not_help_stops_the_run(tmp_path):
  stage = make_cramped_stage(3)
  with pytest.raises(loop.BufferOverflow, match="stage motion, step 8: 2 Gaussian-tile pairs lost"):
    run(dataclasses.replace(stage, room=make_room(lambda needed: stage.loss)), tmp_path / "stuck")
  with pytest.raises(loop.BufferOverflow, match="stage motion, step 8: 2 Gaussian-tile pairs"):
    run(dataclasses.replace(stage, room=make_room(None)), tmp_path / "fixed")


def test_start_replaces_fresh_groups(tmp_path):
  given = {"generator": {"w": np.full((3, 1), 7, np.float32)}}, {}
  state, _ = loop.init_state(make_toy_stage(1), sharding.make_mesh(), jax.random.key(0), given)
  np.testing.assert_array_equal(state.params["generator"]["w"], 7)
  np.testing.assert_array_equal(state.buffers["generator"]["scale"], 1)


def test_start_of_another_shape_is_refused():
  given = {"generator": {"w": np.zeros((4, 1), np.float32)}}, {}
  with pytest.raises(InputError, match=r"runs/other: generator\['w'\]: found \(\(4, 1\), 'float32'\), expected \(\(3, 1\)"):
    loop.init_state(make_toy_stage(1), sharding.make_mesh(), jax.random.key(0), given, "runs/other")


def test_loaded_parameters_are_the_trained_ones(tmp_path):
  state = run(make_toy_stage(25), tmp_path)
  params, buffers, used = workdirs.load_parameters(str(tmp_path))
  assert used == "motion:25"
  np.testing.assert_array_equal(params["generator"]["w"], state.params["generator"]["w"])
  np.testing.assert_array_equal(buffers["generator"]["scale"], 1)


def test_parts_of_a_batch_draw_numbers_of_their_own():
  draw = lambda key: jax.random.normal(key, ())
  loss = lambda params, buffers, batch, key, step: (draw(key), {"draw": draw(key)})
  stage = dataclasses.replace(make_toy_stage(1), loss=loss, mesh=sharding.make_mesh(), accumulate=4)
  key, state = jax.random.key(5), checkpoints.TrainState(step=jnp.int32(0), params={}, buffers={}, opt_state=())
  with jax.set_mesh(stage.mesh):
    (value, terms), _ = jax.jit(lambda batch: loop.differentiate(stage, state, batch, key))({"x": jnp.zeros((8, 3))})
  expected = np.mean([draw(jax.random.fold_in(key, part)) for part in range(4)])
  np.testing.assert_allclose([value, terms["draw"]], expected, rtol=1e-5)


@pytest.mark.parametrize("field", [{"observe": lambda buffers, gradients: buffers}, {"room": loop.Room("pairs", "lost", "needed", None)}])
def test_what_is_observed_or_overflows_is_no_mean_over_parts(field):
  stage = dataclasses.replace(make_toy_stage(1), mesh=sharding.make_mesh(), accumulate=2, **field)
  state = checkpoints.TrainState(step=jnp.int32(0), params={}, buffers={}, opt_state=())
  with pytest.raises(ValueError, match="stage motion: what overflows or is observed"):
    loop.differentiate(stage, state, {"x": jnp.zeros((8, 3))}, jax.random.key(0))
