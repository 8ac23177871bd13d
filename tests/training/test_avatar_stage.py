"""Stage 2: what is held out while it trains."""

import jax
import numpy as np

import splat_kernels
import tiny_world
from rsatalker_jax import sharding
from rsatalker_jax.data.captures import load_capture
from rsatalker_jax.talker import make_talker
from rsatalker_jax.training.avatar_stage import avatar_stage
from rsatalker_jax.training.stage_inputs import StageInputs


def test_frames_of_the_split_val_are_scored_with_their_own_poses(tmp_path):
  root = tmp_path / "data"
  tiny_world.write_world(root)
  said = []
  config = tiny_world.tiny_config(root)
  config.gaussians.color_frames = 1
  inputs = lambda: StageInputs(config, make_talker(config), None, sharding.make_mesh(), say=said.append)
  assert avatar_stage(inputs()).evaluate is None and "avatar: the capture has no split val: nothing is held out while training" in said
  # The test film stands in for held-out cameras.
  (root / "capture" / "transforms_test.json").rename(root / "capture" / "transforms_val.json")
  stage, talker = avatar_stage(inputs()), make_talker(config)
  params, buffers = stage.init(jax.random.key(0))
  scores = stage.evaluate(params, buffers)
  capture = load_capture(root / "capture", "val", background=(1.0, 1.0, 1.0))
  render = jax.jit(lambda flame, view: talker.render(talker.avatar(params, buffers), flame, view).image)
  errors = []
  for i in np.unique(np.linspace(0, len(capture) - 1, 16).round().astype(int)):
    item = jax.tree.map(lambda x: np.asarray(x)[None], capture[int(i)])
    view = splat_kernels.Camera(item["world_to_camera"], item["intrinsics"], 48, 48)
    errors.append(np.mean(np.abs(np.asarray(render(item["flame"], view)) - item["image"])))
  np.testing.assert_allclose(scores["l1"], np.mean(errors), rtol=1e-4)
  assert set(scores) == {"l1", "psnr", "ssim", "score"}
