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
from rsatalker_jax.runs import ledger, workdir as workdirs
from rsatalker_jax.training import broken_steps, checkpoints, loop, replay

TRUE_WEIGHT = np.array([[1.0], [-2.0], [0.5]], np.float32)


def make_toy_stage(steps, broken_at=(), hooks=()):
  """Linear regression on a noisy stream, with a noise term drawn from the step's key; some steps, from 1, are not finite."""
  inputs = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
  examples = [{"x": x, "y": x @ TRUE_WEIGHT} for x in inputs]
  batches = grain.MapDataset.source(examples).seed(3).shuffle().repeat().batch(8, drop_remainder=True)
  batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))  # Not 500 ahead, as by default.

  def init(key):
    return {"generator": {"w": jax.random.normal(key, (3, 1))}}, {"generator": {"scale": jnp.ones(())}}

  def loss(params, buffers, batch, key, step):
    noise = 0.01 * jax.random.normal(key, batch["y"].shape)
    error = batch["x"] @ params["generator"]["w"] * buffers["generator"]["scale"] + noise - batch["y"]
    terms = {"error": jnp.mean(error**2), "decay": 1e-4 * jnp.sum(params["generator"]["w"] ** 2)}
    if broken_at:
      terms["decay"] = jnp.where(jnp.isin(step + 1, jnp.array(broken_at)), jnp.nan, terms["decay"])
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
  account = ledger.read_account(tmp_path / "cut")
  assert [start.how[:17] for start in account.starts] == ["KeyboardInterrupt", "finished"]
  assert [start.steps for start in account.starts] == [47, 20]
  assert account.starts[0].seconds["lost"] > 0 and account.accounted > 0.99
  usage = ledger.read_usage(tmp_path / "cut")["motion"]
  assert usage["starts"] == 2 and usage["seconds"] == pytest.approx(sum(account.stages["motion"].values()))


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
    run(make_toy_stage(40, broken_at=(13,)), tmp_path, before_checkpoint=lambda: seen.append(found()))
  assert seen == [[]]  # For what is kept of the step that broke.
  seen.clear()
  run(make_toy_stage(40), tmp_path, before_checkpoint=lambda: seen.append(20 in found()))
  assert seen[0] is False and len(seen) == 2


def test_finished_run_returns_at_once(tmp_path):
  first = run(make_toy_stage(20), tmp_path)
  again = run(make_toy_stage(20), tmp_path)
  np.testing.assert_array_equal(first.params["generator"]["w"], again.params["generator"]["w"])


def test_non_finite_term_is_named_with_its_step(tmp_path):
  with pytest.raises(loop.NonFiniteLoss, match="stage motion, step 33: not finite: decay=nan; kept in .*/motion/broken/33; python"):
    run(make_toy_stage(60, broken_at=(33,)), tmp_path)
  # The broken state did not become a checkpoint.
  assert int(workdirs.load_stage_state(str(tmp_path), "motion")["step"]) == 20
  assert max(line["step"] for line in read_metrics(tmp_path)) == 30


def test_what_the_broken_step_started_from_is_kept(tmp_path):
  stage = make_toy_stage(60, broken_at=(33,))
  with pytest.raises(loop.NonFiniteLoss):
    run(stage, tmp_path / "broken")
  before = run(make_toy_stage(32), tmp_path / "whole")
  kept = broken_steps.find(f"{tmp_path}/broken/motion")
  _, abstract = loop.init_state(stage, sharding.make_mesh(), jax.random.key(0))
  state, batch = kept.load(abstract)
  chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(before))
  batches = iter(stage.batches)
  for _ in range(32):
    next(batches)
  chex.assert_trees_all_equal(batch, next(batches))
  assert kept.step == 33 and np.isnan([kept.terms["decay"], kept.terms["loss"]]).all() and np.isfinite(kept.terms["error"])
  # The whole step follows from these and the key.
  with jax.set_mesh(sharding.make_mesh()):
    assert "gives the same terms, to the bit" in replay.describe(stage, kept, sharding.make_mesh())


def train_by_hand(stage, steps, left_out):
  """The same numbers from the stage's parts alone; of the steps `left_out`, from 1, only batch and key are used up."""
  init_key, step_key = jax.random.split(jax.random.fold_in(jax.random.key(1), 0))
  params, buffers = jax.tree.map(jnp.asarray, stage.init(init_key))
  optimizer, batches = stage.optimizer.init(params), iter(stage.batches)
  gradient = jax.jit(jax.grad(lambda *given: stage.loss(*given)[0]))
  for step in range(steps):
    found = gradient(params, buffers, next(batches), jax.random.fold_in(step_key, step), jnp.int32(step))
    if step + 1 not in left_out:
      updates, optimizer = stage.optimizer.update(found, optimizer, params)
      params = optax.apply_updates(params, updates)
  return params


def test_steps_that_are_not_finite_can_be_skipped(tmp_path):
  said = []
  broken_at = (7, 8, 15, 30)
  skip = lambda name, stage, **options: loop.run_stage(
      stage, mesh=sharding.make_mesh(), workdir=str(tmp_path / name), seed=1, most_skipped=2, say=said.append,
      watching=loop.Watching(log_every=10, checkpoint_every=20), **options,
  )
  state = skip("whole", make_toy_stage(40, broken_at))
  by_hand = train_by_hand(make_toy_stage(40), 40, broken_at)
  np.testing.assert_allclose(state.params["generator"]["w"], by_hand["generator"]["w"], rtol=1e-6)  # float32, added up otherwise.
  assert int(state.step) == 40
  assert [line["skipped"] for line in read_metrics(tmp_path / "whole")] == [2, 1, 1, 0]
  assert all(np.isfinite(list(line.values())).all() for line in read_metrics(tmp_path / "whole"))
  assert said[0] == "motion: step 7 skipped: not finite: decay=nan"
  assert said[-1] == "motion: 4 of 40 steps were skipped, as they were not finite: 7, 8, 15, 30"

  # A restart skips the same, and forgets none.
  def interrupt(state, step):
    if step == 27:
      raise KeyboardInterrupt
    return state

  with pytest.raises(KeyboardInterrupt):
    skip("cut", make_toy_stage(40, broken_at, hooks=(loop.Hook(lambda step: True, interrupt),)))
  resumed = skip("cut", make_toy_stage(40, broken_at))
  chex.assert_trees_all_equal(jax.device_get(resumed), jax.device_get(state))
  assert said[-1] == "motion: 4 of 40 steps were skipped, as they were not finite: 7, 8, 15, 30"


def test_too_many_skipped_in_a_row_end_the_run(tmp_path):
  stage = make_toy_stage(40, broken_at=(5, 11, 12, 13))
  with pytest.raises(loop.NonFiniteLoss, match="step 13: not finite: decay=nan"):
    run(stage, tmp_path, most_skipped=2)
  kept = broken_steps.find(f"{tmp_path}/motion")
  state, batch = kept.load(loop.init_state(stage, sharding.make_mesh(), jax.random.key(0))[1])
  by_hand = train_by_hand(make_toy_stage(12), 12, (5, 11, 12))
  assert int(state.step) == 12
  np.testing.assert_allclose(state.params["generator"]["w"], by_hand["generator"]["w"], rtol=1e-6)
  batches = iter(stage.batches)
  for _ in range(12):
    next(batches)
  chex.assert_trees_all_equal(batch, next(batches))


def test_a_gradient_that_is_not_finite_is_found_where_all_terms_are(tmp_path):
  toy = make_toy_stage(10)

  def loss(params, buffers, batch, key, step):
    total, terms = toy.loss(params, buffers, batch, key, step)
    # Nothing, with the slope of a root at nothing.
    nothing = jnp.sqrt(jnp.where(step == 6, 0.0, 1.0) * jnp.sum(params["generator"]["w"] ** 2)) * jnp.where(step == 6, 1.0, 0.0)
    return total + nothing, terms

  with pytest.raises(loop.NonFiniteLoss, match="step 7: not finite: gradient_norm=nan"):
    run(dataclasses.replace(toy, loss=loss), tmp_path)


def test_a_step_without_room_is_taken_again_and_not_skipped(tmp_path):
  """What it lost may have left anything in its terms."""
  stage = make_cramped_stage(3)
  grow = stage.room.grow

  def break_without_room(loss):
    def broken(params, buffers, batch, key, step):
      total, terms = loss(params, buffers, batch, key, step)
      return total * jnp.where(terms["overflow"] > 0, jnp.nan, 1.0), terms

    return broken

  room = make_room(lambda needed: break_without_room(grow(needed)))
  broken = run(dataclasses.replace(stage, loss=break_without_room(stage.loss), room=room), tmp_path / "broken", most_skipped=1)
  whole = run(make_cramped_stage(8), tmp_path / "whole")
  chex.assert_trees_all_close(jax.device_get(broken.params), jax.device_get(whole.params), rtol=1e-6)
  assert not any(line["skipped"] for line in read_metrics(tmp_path / "broken"))


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
