"""The config for pods: batches that fill them, rates and steps by the square-root rule, values that commands take."""

import math

import pytest

from configs.pod import get_config
from configs.rsatalker import get_config as paper_config
from rsatalker_jax.commands.config_values import check_values
from rsatalker_jax.training.density_control import check_interval


@pytest.mark.parametrize("variant", ["", "ours", "ours+mcmc", "ours+fixed"])
def test_every_value_is_one_that_commands_take(variant):
  config = get_config(variant)
  check_values(config)
  check_interval(config.density, config.avatar.steps)
  assert config.motion.warmup < config.motion.steps / 2 and config.joint.avatar_warmup < config.joint.steps / 5


@pytest.mark.parametrize("chips", [8, 256, 512])
def test_batches_fill_pods(chips):
  config = get_config("ours")
  batches = [config.motion.batch, config.avatar.batch, config.joint.batch, config.joint.motion_batch]
  assert all(batch % chips == 0 for batch in batches)
  assert get_config().joint.motion_batch == 0  # As the paper has it.
  # No chip of 256 draws more at once than in stage 2.
  assert config.render.frames_at_once == config.avatar.batch // 256


@pytest.mark.parametrize("variant", ["", "ours"])
def test_rates_rise_and_steps_fall_with_the_square_root_of_the_batch(variant):
  pod, paper = get_config(variant), paper_config(variant)
  longer = math.sqrt(pod.motion.batch / paper.motion.batch)
  assert pod.motion.learning_rate == pytest.approx(paper.motion.learning_rate * longer)
  assert pod.motion.steps == pytest.approx(paper.motion.steps / longer, abs=1)
  longer = math.sqrt(pod.avatar.batch / paper.avatar.batch)
  for name, rate in paper.avatar.learning_rates.items():
    assert pod.avatar.learning_rates[name] == pytest.approx(rate * longer), name
  for name in ("steps", "steps_per_sh_degree"):
    assert pod.avatar[name] == pytest.approx(paper.avatar[name] / longer, abs=1), name
  for way in ("adaptive", "mcmc"):
    for name in ("start", "stop", "every"):
      assert pod.density[way][name] == pytest.approx(paper.density[way][name] / longer, abs=1), (way, name)
  assert pod.density.adaptive.reset_every == pytest.approx(paper.density.adaptive.reset_every / longer, abs=1)
  spoken = [config.joint.motion_batch or config.joint.batch for config in (pod, paper)]
  longer = math.sqrt(spoken[0] / spoken[1])
  for name in ("generator_learning_rate", "offsets_learning_rate"):
    assert pod.joint[name] == pytest.approx(paper.joint[name] * longer), name
  assert pod.joint.steps == pytest.approx(paper.joint.steps / longer, abs=1)
  # What scales with nothing.
  assert pod.avatar.flame_learning_rates == paper.avatar.flame_learning_rates
  assert pod.joint.avatar_learning_rate == paper.joint.avatar_learning_rate
