"""Stage 1: which arrays its loss compares, what it tells the generator, what it trains, and that it learns."""

import dataclasses
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_world
from rsatalker_jax import sharding
from rsatalker_jax.data.pipeline import motion_statistics
from rsatalker_jax.errors import InputError
from rsatalker_jax.talker import make_talker
from rsatalker_jax.training import loop
from rsatalker_jax.training.checkpoints import TrainState
from rsatalker_jax.training.motion_stage import motion_stage
from rsatalker_jax.training.stage_inputs import StageInputs
from training.stand_ins import PlainTalker, make_clip, plain_params, terms_of

CLIPS = [make_clip("one_speaker1", seed=1, relation=(1, 0)), make_clip("two_speaker2", frames=30, seed=2, relation=(0, -1))]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
  root = tmp_path_factory.mktemp("head")
  tiny_world.write_head(root / "head.npz")
  return root


def make_inputs(head: pathlib.Path, clips=CLIPS, talker=PlainTalker.of, **overrides):
  config = tiny_world.tiny_config(head)
  config.update_from_flattened_dict(overrides)
  inputs = StageInputs(config, talker(make_talker(config)), None, sharding.make_mesh(), say=lambda line: None)
  inputs.__dict__["training_clips"] = clips
  inputs.__dict__["validation_clips"] = []
  return inputs


def batch_of(inputs, stage):
  return jax.tree.map(jnp.asarray, next(iter(stage.batches)))


def test_the_config_says_how_a_is_seen_and_what_is_heard_is_drawn(head):
  batches = lambda inputs: [jax.tree.map(np.asarray, batch) for batch, _ in zip(motion_stage(inputs).batches, range(8))]
  clips = [dataclasses.replace(clip, degraded_b=(np.asarray(clip.speech_b) + 100,)) for clip in CLIPS]
  webcam = {"motion.tracker.share": 1.0, "motion.tracker.severity": 0.5, "motion.tracker.lag": 0}
  inputs = make_inputs(head, clips, **webcam)
  assert (inputs.webcam.severity, inputs.webcam.lag) == (0.5, 0)
  heard = set()
  for batch, plain in zip(batches(inputs), batches(make_inputs(head))):
    heard |= set((batch["speech_b"] - plain["speech_b"]).mean(axis=(1, 2)).round())
    for name in ("speech_a", "motion_b"):
      np.testing.assert_array_equal(batch[name], plain[name])
    assert not np.allclose(batch["motion_a"], plain["motion_a"])
  assert heard == {0, 100}


def test_the_truth_is_bs_motion(head):
  """Where the generator answers with B's true motion the loss is zero, and elsewhere it pulls towards that and nothing else."""
  inputs = make_inputs(head)
  stage = motion_stage(inputs)
  batch = batch_of(inputs, stage)
  params, buffers = plain_params(3), {"generator": inputs.statistics}
  params["generator"]["shift"] = params["social"]["shift"] = jnp.zeros(56)
  total, terms = terms_of(stage, params, buffers, batch | {"motion_a": batch["motion_b"]})
  assert set(terms) >= {"expression", "jaw", "pose", "jaw_velocity", "orthogonality"}
  np.testing.assert_allclose(total, 0, atol=1e-9)
  # By hand: squares of B's true motion against A's, in units of the training motion's variance.
  total, terms = terms_of(stage, params, buffers, batch)
  error = np.asarray(batch["motion_a"] - batch["motion_b"])
  _, std = motion_statistics(CLIPS)
  for name, dims in (("expression", slice(0, 50)), ("jaw", slice(50, 53)), ("pose", slice(53, 56))):
    np.testing.assert_allclose(terms[name], np.mean(error[..., dims] ** 2) / np.mean(std[dims] ** 2), rtol=1e-4)
  gradient = jax.grad(lambda shift: terms_of(stage, params | {"generator": {"shift": shift}}, buffers, batch)[0])(jnp.zeros(56))
  # A constant shift meets no velocity term: downhill is from A's mean towards B's.
  np.testing.assert_array_equal(np.sign(-gradient), np.sign(-error.mean(axis=(0, 1))))


def test_statistics_are_the_buffers(head):
  """Other buffers, other units: what is saved is what is trained with."""
  inputs = make_inputs(head)
  stage = motion_stage(inputs)
  batch, params = batch_of(inputs, stage), plain_params(3)
  doubled = jax.tree.map(lambda x: 2 * x, inputs.statistics)
  _, once = terms_of(stage, params, {"generator": inputs.statistics}, batch)
  _, twice = terms_of(stage, params, {"generator": doubled}, batch)
  np.testing.assert_allclose(twice["jaw"], once["jaw"] / 4, rtol=1e-5)
  _, buffers = make_buffers(make_inputs(head, talker=lambda talker: talker))
  mean, std = motion_statistics(CLIPS)
  np.testing.assert_allclose(buffers["generator"]["motion_mean"], mean, atol=1e-7)
  np.testing.assert_allclose(buffers["generator"]["motion_std"], std, rtol=1e-6)


def make_buffers(inputs):
  return jax.jit(motion_stage(inputs).init)(jax.random.key(0))


@pytest.mark.parametrize("social_module", [True, False])
def test_the_generator_is_given_the_clips_own_arrays(head, social_module):
  """Voices, motion and relation of the window under their own names; before the social module enters, no relation."""
  given = {}

  @dataclasses.dataclass(frozen=True)
  class Listening(PlainTalker):
    def generate(self, params, buffers, inputs, *, dropout=None):
      given.update(inputs, dropout=dropout)
      return super().generate(params, buffers, inputs)

  inputs = make_inputs(head, talker=Listening.of, **{"motion.social_module": social_module})
  stage = motion_stage(inputs)
  batch = batch_of(inputs, stage)
  terms_of(stage, plain_params(3), {"generator": inputs.statistics}, batch)
  for row in range(len(batch["motion_b"])):
    (clip,) = [clip for clip in CLIPS if (clip.relation == batch["relation"][row]).all()]
    (start,) = [t for t in range(len(clip.motion_b) - 19) if np.array_equal(clip.motion_b[t : t + 20], batch["motion_b"][row])]
    for name in ("speech_a", "speech_b", "motion_a"):
      np.testing.assert_array_equal(given[name][row], getattr(clip, name)[start : start + 20])
    np.testing.assert_array_equal(given["relation"][row], clip.relation if social_module else [-1, -1])
  assert given["dropout"] is not None  # A key: training draws masks.


@pytest.mark.parametrize("social_module", [True, False])
def test_what_is_trained(head, social_module):
  stage = motion_stage(make_inputs(head, talker=lambda talker: talker, **{"motion.social_module": social_module}))
  params, _ = jax.jit(stage.init)(jax.random.key(0))
  state = jax.jit(stage.optimizer.init)(params)
  gradients, update = jax.tree.map(jnp.ones_like, params), jax.jit(stage.optimizer.update)
  for _ in range(3):  # The first step of a warm-up is none.
    updates, state = update(gradients, state, params)
  moved = lambda group: all(np.all(x != 0) for x in jax.tree.leaves(updates[group]))
  assert moved("generator") and moved("social") == social_module
  assert not social_module or set(params) == {"generator", "social"}


def test_a_run_learns_what_its_clips_have_in_common(head, tmp_path):
  """B mirrors A: after a minute's worth of steps, far better than the best motionless face."""
  r = np.random.default_rng(0)
  clips = []
  for number in range(4):
    clip = make_clip(f"c{number}_speaker1", frames=60, seed=number)
    slow = np.cumsum(r.normal(size=(60, 1)), axis=0) * np.linspace(-0.2, 0.2, 56)
    clips.append(dataclasses.replace(clip, motion_a=slow.astype(np.float32), motion_b=(-0.5 * slow).astype(np.float32)))
  inputs = make_inputs(head, clips, talker=lambda talker: talker, **{"motion.steps": 60, "motion.learning_rate": 1e-2})
  inputs.__dict__["validation_clips"] = clips
  stage = motion_stage(inputs)
  watching = loop.Watching(log_every=20, checkpoint_every=60, evaluate_every=60)
  state = loop.run_stage(
      stage, mesh=stage.mesh, workdir=str(tmp_path), origin="", seed=0, watching=watching, say=lambda line: None
  )
  scores = stage.evaluate(jax.device_get(state.params), jax.device_get(state.buffers))
  assert scores["score"] < 0.5  # 1 is the constant mean's.


def test_windows_that_no_clip_fills_are_one_line(head):
  with pytest.raises(InputError, match="config: motion.window: found 50, expected at most 40"):
    motion_stage(make_inputs(head, **{"motion.window": 50}))


def test_a_run_that_goes_on_with_other_data_keeps_its_statistics(head):
  """--init_from: the network knows the units of the data that it was trained on, and the buffers it brings say them."""
  lively = [dataclasses.replace(clip, motion_b=3 * clip.motion_b + 0.5) for clip in CLIPS]
  old, new = (make_inputs(head, clips, talker=lambda talker: talker) for clips in (CLIPS, lively))
  start = jax.jit(motion_stage(old).init)(jax.random.key(0))
  state, _ = loop.init_state(motion_stage(new), sharding.make_mesh(), jax.random.key(1), start, "old")
  for name, value in old.statistics.items():
    np.testing.assert_array_equal(state.buffers["generator"][name], value)
    assert np.any(value != new.statistics[name])


def test_a_batch_in_parts_has_the_losses_and_gradients_of_the_whole(head):
  found = {}
  for count in (1, 2, 4):
    inputs = make_inputs(head, **{"motion.batch": 8, "motion.window": 5, "motion.accumulate": count})
    stage = motion_stage(inputs)
    assert (stage.accumulate, stage.mesh.size) == (count, 2)
    state = TrainState(step=jnp.int32(0), params=plain_params(3), buffers={"generator": inputs.statistics}, opt_state=())
    with jax.set_mesh(stage.mesh):
      batch = sharding.put_batch(stage.mesh, next(iter(stage.batches)))
      found[count] = jax.jit(lambda *given: loop.differentiate(stage, *given, jax.random.key(0)))(state, batch)
  (loss, terms), (gradients, _) = found[1]
  assert loss > 0.1 and set(terms) >= {"expression", "jaw_velocity", "orthogonality"}
  assert all(np.abs(gradients[group]["shift"]).min() > 1e-4 for group in ("generator", "social"))
  for count in (2, 4):
    chex.assert_trees_all_close(found[count], found[1], rtol=1e-5, atol=1e-7)
