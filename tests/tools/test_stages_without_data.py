"""Stages without data have the shapes of the same stages with data, which are those of the tiny world."""

import jax
import pytest
import tiny_world

from rsatalker_jax import sharding
from rsatalker_jax.commands.train import make_stage
from rsatalker_jax.talker import make_encoder, make_talker
from rsatalker_jax.training.stage_inputs import StageInputs
from tools.stages_without_data import DataSizes, make_blank_inputs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("tiny") / "world"
  tiny_world.write_world(root)
  return root


def shapes(tree) -> dict[str, tuple]:
  return {jax.tree_util.keystr(path): (x.shape, str(x.dtype)) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", ["motion", "avatar", "joint"])
def test_state_and_batch_have_the_shapes_of_real_data(root, name):
  config = tiny_world.tiny_config(root)
  config.density.way = "adaptive"  # Its buffers are of the head's and the capture's sizes.
  config.density.adaptive.update(dict(start=0, stop=3, every=1))
  mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
  encode = make_encoder(config.speech, root / "features").open
  real = make_stage(StageInputs(config, make_talker(config), encode, mesh, say=lambda _: None), name)
  sizes = DataSizes(features=256, image=(48, 48), timesteps=60, vertices=72, faces=140, shapes=2, expressions=50, windows=8)
  blank = make_stage(make_blank_inputs(config, mesh, sizes), name)
  assert shapes(next(iter(blank.batches))) == shapes(next(iter(real.batches)))
  state = lambda stage: shapes(jax.eval_shape(stage.init, jax.random.key(0)))
  found, expected = state(blank), state(real)
  for more in ("['avatar']['static_offset']", "['generator']['lip_std']"):  # Which the tiny capture and head have not, and the paper's have.
    found.pop(f"[1]{more}", None)
  assert found == expected and blank.steps == real.steps
