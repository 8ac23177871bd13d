"""The avatar stage with a rasterizer whose list is too small: it grows, and the result is as if it had been large."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import tiny_world
from rsatalker_jax.talker import make_encoder, make_talker, render_sequence
from rsatalker_jax import sharding
from rsatalker_jax.training import loop, rendering
from rsatalker_jax.training.avatar_stage import avatar_stage
from rsatalker_jax.training.stage_inputs import StageInputs

ROOM = 1024  # `round_capacity` gives no less: both runs then end with the same program.


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  root = tmp_path_factory.mktemp("world") / "data"
  tiny_world.write_world(root)

  def make(room):
    config = tiny_world.tiny_config(root)
    config.render.max_intersections = room
    encode = make_encoder(config.speech, None)
    return StageInputs(config, make_talker(config), encode, sharding.make_mesh(), say=lambda _: None)

  return make


def test_avatar_stage_grows_its_list_and_loses_nothing(inputs, tmp_path):
  said = []
  train = lambda room: loop.run_stage(
      dataclasses.replace(avatar_stage(inputs(room)), pictures=None),
      mesh=sharding.make_mesh(),
      workdir=str(tmp_path / str(room)),
      seed=0,
      watching=loop.Watching(log_every=4, checkpoint_every=4, pictures_every=100),
      say=said.append,
  )
  roomy = train(ROOM)
  assert said == []
  cramped = train(100)
  assert len(said) == 1 and said[0].startswith("avatar: step 1 needs ")
  chex.assert_trees_all_equal(jax.device_get(cramped), jax.device_get(roomy))


def test_rendering_a_sequence_grows_the_list_too(inputs):
  cramped, roomy = inputs(100), inputs(ROOM)
  capture = cramped.talker.open_capture(cramped.path("capture"), "test")
  params, buffers = rendering.init_avatar_group(cramped, capture)
  item = rendering.to_frame_example(capture[0])
  flame = {name: np.repeat(value[None], 3, axis=0) for name, value in item["flame"].items()}
  camera = rendering.camera_of(item, capture)

  def draw(inputs):
    talker = inputs.talker
    frames = render_sequence(talker, inputs.mesh, talker.avatar(params, buffers), flame, camera, chunk=2)
    return np.concatenate(list(frames))

  np.testing.assert_array_equal(draw(cramped), draw(roomy))
