"""What the harness does for a generator that has a loss of its own, codes that a stage before it trains, samples and an average."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_world
from rsatalker_jax import sharding
from rsatalker_jax.baselines import motion as baselines
from rsatalker_jax.commands import train
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import MotionConfig
from rsatalker_jax.motion.generator import normalization
from rsatalker_jax.motion.streaming import init_state
from rsatalker_jax.runs import load_stage_state
from rsatalker_jax.talker import make_talker
from rsatalker_jax.training import loop
from rsatalker_jax.training.joint_stage import joint_stage
from rsatalker_jax.training.motion_stage import codes_stage, motion_stage
from rsatalker_jax.training.stage_inputs import StageInputs
from training.stand_ins import make_clip

CLIPS = [make_clip("one_speaker1", seed=1, relation=(1, 0)), make_clip("two_speaker2", frames=30, seed=2, relation=(0, 1))]
DECAY = 0.75


class _Codes(nn.Module):
  def setup(self):
    self.offset = self.param("offset", nn.initializers.zeros, (56,))


class Drawn(nn.Module):
  """B's motion is an offset of codes, one of its own, and noise; each loss says by its value what it was given."""

  config: MotionConfig
  causal_form = False
  samples = True
  average = DECAY

  def setup(self):
    self.codes = _Codes(name="codes")
    self.own = self.param("own", nn.initializers.zeros, (56,))
    normalization(self)

  def __call__(self, speech_a, motion_a, speech_b, social, *, num_frames=None, deterministic=True):
    noise = jax.random.normal(self.make_rng("sample"), motion_a.shape) if self.has_rng("sample") else 0.0
    return 0 * motion_a + self.codes.offset + self.own + noise

  def training_terms(self, speech_a, motion_a, speech_b, social, motion_b, *, progress):
    dropout, sample = (jax.random.key_data(self.make_rng(name)) for name in ("dropout", "sample"))
    given = jnp.mean(speech_a) + 10 * jnp.mean(motion_a) + 100 * jnp.mean(speech_b) + 1000 * jnp.mean(motion_b)
    drawn = {"noise": jax.random.normal(self.make_rng("sample")), "apart": 1.0 * jnp.any(dropout != sample)}
    return {"own": jnp.sum(self.own) + jnp.sum(self.codes.offset) + given, "progress": progress} | drawn

  def codes_terms(self, motion_b, *, progress):
    return {"codes": jnp.mean((motion_b - self.codes.offset - self.own) ** 2), "progress": 0 * progress}


@pytest.fixture
def drawn(monkeypatch):
  monkeypatch.setitem(baselines.BASELINES, "drawn", Drawn)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("harness") / "world"
  tiny_world.write_world(root)
  return root


def make_inputs(world, **overrides):
  config = tiny_world.tiny_config(world)
  config.update_from_flattened_dict({"generator.architecture": "drawn", "motion.steps": 4, "codes.steps": 4} | overrides)
  inputs = StageInputs(config, make_talker(config), None, sharding.make_mesh(), say=lambda line: None)
  inputs.__dict__["training_clips"] = CLIPS
  inputs.__dict__["validation_clips"] = []
  return inputs


def steps_of(stage, count):
  """States before and after each of the first steps, and their terms."""
  params, buffers = jax.jit(stage.init)(jax.random.key(0))
  state = loop.TrainState(step=jnp.zeros((), jnp.int32), params=params, buffers=buffers, opt_state=stage.optimizer.init(params))
  batch = jax.tree.map(jnp.asarray, next(iter(stage.batches)))
  step = jax.jit(loop.make_train_step(stage, jax.random.key(1)))
  states, terms = [state], []
  with jax.set_mesh(stage.mesh):
    for number in range(count):
      state, found = step(states[-1], batch, number)
      states.append(state)
      terms.append(found)
  return states, terms, batch


def test_its_own_loss_is_taken(world, drawn):
  """Of its terms, given the clip's arrays under their own names, the share of the steps, and a key that changes."""
  _, terms, batch = steps_of(motion_stage(make_inputs(world)), 3)
  mean = lambda name: float(jnp.mean(batch[name]))
  given = mean("speech_a") + 10 * mean("motion_a") + 100 * mean("speech_b") + 1000 * mean("motion_b")
  assert set(terms[0]) == {"own", "progress", "noise", "apart", "orthogonality", "loss", "gradient_norm", "broken"}
  np.testing.assert_allclose(terms[0]["own"], given, rtol=1e-5)
  assert [float(found["progress"]) for found in terms] == [0, 0.25, 0.5]
  assert len({float(found["noise"]) for found in terms}) == 3 and all(found["apart"] for found in terms)
  np.testing.assert_allclose(terms[1]["loss"], sum(terms[1][name] for name in ("own", "progress", "noise", "apart", "orthogonality")), rtol=1e-5)


def test_codes_are_trained_first_and_alone(world, drawn):
  own, offset = (lambda state: np.asarray(state.params["generator"]["params"]["own"]),
                 lambda state: np.asarray(state.params["generator"]["params"]["codes"]["offset"]))
  states, terms, batch = steps_of(codes_stage(make_inputs(world)), 3)
  assert np.all(offset(states[-1]) != 0) and not own(states[-1]).any()
  np.testing.assert_allclose(terms[0]["codes"], jnp.mean(batch["motion_b"] ** 2), rtol=1e-5)
  states, *_ = steps_of(motion_stage(make_inputs(world)), 3)
  assert np.all(own(states[-1]) != 0) and not offset(states[-1]).any()


def test_the_average_follows_the_parameters(world, drawn):
  """By hand, step by step; and it, not the parameters, generates."""
  inputs = make_inputs(world)
  states, *_ = steps_of(motion_stage(inputs), 3)
  own = [np.asarray(state.params["generator"]["params"]["own"]) for state in states]
  expected = own[0]
  for value in own[1:]:
    expected = DECAY * expected + (1 - DECAY) * value
  found = states[-1].buffers["average"]["generator"]["params"]["own"]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert np.abs(found - own[-1]).max() > 1e-5
  generate = functools.partial(inputs.talker.generate, states[-1].params, states[-1].buffers, jax.tree.map(jnp.asarray, clip_inputs(CLIPS[0])))
  np.testing.assert_allclose(generate()[0], found, rtol=1e-5)


def clip_inputs(clip):
  return {name: getattr(clip, name) for name in ("speech_a", "motion_a", "speech_b", "relation")}


def test_a_sample_is_of_its_number_and_clip(world, drawn):
  """The same motion each time; another for another number or clip."""
  talker = make_inputs(world).talker
  params, buffers = jax.jit(motion_stage(make_inputs(world)).init)(jax.random.key(0))
  first = talker.generate_clip(params, buffers, CLIPS[0])
  np.testing.assert_array_equal(talker.generate_clip(params, buffers, CLIPS[0], sample=0), first)
  for other in (talker.generate_clip(params, buffers, CLIPS[0], sample=1),
                talker.generate_clip(params, buffers, dataclasses.replace(CLIPS[0], name="other"))):
    assert np.abs(other - first).min(axis=0).max() > 0 and abs(np.corrcoef(other.ravel(), first.ravel())[0, 1]) < 0.1


def test_a_run_trains_its_codes_and_goes_on_with_them(world, drawn, tmp_path):
  config = tiny_world.tiny_config(world)
  config.update_from_flattened_dict({"generator.architecture": "drawn", "stages": ("codes", "motion")})
  workdir = str(tmp_path / "run")
  with pytest.raises(InputError, match="run: codes: found no checkpoint, expected the codes that drawn makes motion of; train"):
    train.train(config, workdir, stage="motion")
  assert not (tmp_path / "run").exists()
  train.train(config, workdir)
  codes, motion = (load_stage_state(workdir, stage)["params"]["generator"]["params"] for stage in ("codes", "motion"))
  assert np.all(codes["codes"]["offset"] != 0)
  np.testing.assert_array_equal(codes["codes"]["offset"], motion["codes"]["offset"])
  assert np.all(codes["own"] == 0) and np.all(motion["own"] != 0)


def test_what_it_cannot_do_is_one_line(world, drawn):
  with pytest.raises(InputError, match="config: stages: found 'joint' with generator.architecture='drawn', expected 'motion' alone"):
    joint_stage(make_inputs(world))
  with pytest.raises(InputError, match="config: stages: found 'codes' with generator.architecture='rsatalker', expected stages that it has"):
    codes_stage(make_inputs(world, **{"generator.architecture": "rsatalker"}))
  with pytest.raises(InputError, match="generator: architecture: found 'drawn', expected 'rsatalker', which alone can be streamed"):
    init_state(make_inputs(world).talker.generator, {})
