"""Density control in the real loop: Gaussians are born in free slots, arrays keep their shapes, and it is said."""

import dataclasses

import pytest

import jax
import numpy as np

import tiny_world
from rsatalker_jax.avatar import FREE
from rsatalker_jax.errors import InputError
from rsatalker_jax.talker import make_talker
from rsatalker_jax import sharding
from rsatalker_jax.training import loop
from rsatalker_jax.training.avatar_stage import avatar_stage
from rsatalker_jax.training.stage_inputs import StageInputs


FACES, CAPACITY = 140, 180


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("world") / "data"
  tiny_world.write_world(root)
  return root


def train(world, workdir, **overrides):
  config = tiny_world.tiny_config(world)
  config.gaussians.capacity = CAPACITY
  config.update_from_flattened_dict({"avatar.steps": 6, **overrides})
  said = []
  inputs = StageInputs(config, make_talker(config), None, sharding.make_mesh(), say=said.append)
  stage = dataclasses.replace(avatar_stage(inputs), pictures=None)
  watching = loop.Watching(log_every=3, checkpoint_every=3, pictures_every=100)
  state = loop.run_stage(
      stage, mesh=inputs.mesh, workdir=str(workdir), seed=0, watching=watching, say=said.append
  )
  return jax.device_get(state), [line for line in said if "Gaussians;" in line]


def test_adaptive_control_grows_the_avatar(world, tmp_path):
  overrides = {
      "density.way": "adaptive",
      "density.adaptive.start": 2,
      "density.adaptive.every": 2,
      "density.adaptive.stop": 4,
      "density.adaptive.gradient_threshold": 1e-7,
      "avatar.flame_learning_rates": {"expression": 1e-3, "translation": 1e-4},
  }
  state, said = train(world, tmp_path, **overrides)
  binding = state.buffers["avatar"]["binding"]
  live = binding != FREE
  assert FACES < live.sum() <= CAPACITY
  assert set(binding[live]) == set(range(FACES))
  assert [line.split(";")[0] for line in said][-1] == f"avatar: step 4: {live.sum()} Gaussians"
  assert np.any(state.params["avatar"]["means"][live][FACES:])  # The new ones are trained …
  assert not np.any(state.params["avatar"]["means"][~live])  # … and free slots are not.
  # Seen in the last two steps, since it acted last; never a free slot.
  statistics = state.buffers["density"]["statistics"]
  assert 0 < statistics.seen.max() <= 4 and not np.any(statistics.seen[~live])
  # Corrections of the tracked motion: in rows of frames that were drawn, and there alone.
  corrected = np.any(state.params["flame"]["expression"], axis=1)
  assert 0 < corrected.sum() <= 12 < len(corrected)
  np.testing.assert_array_equal(corrected, np.any(state.params["flame"]["translation"], axis=1))


def test_mcmc_grows_by_its_rate(world, tmp_path):
  state, said = train(
      world,
      tmp_path,
      **{
          "density.way": "mcmc",
          "density.mcmc.start": 2,
          "density.mcmc.every": 2,
          "density.mcmc.stop": 4,
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
