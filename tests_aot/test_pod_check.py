"""The train steps of all stages compile for a slice of TPUs and for GPUs, at tiny sizes, as tools/pod_check.py compiles them."""

import pytest

from configs.rsatalker import get_config
from tools import pod_check, roofline
from tools.pod_tables import check_fits
from tools.stages_without_data import DataSizes

SIZES = DataSizes(features=8, image=(48, 32), timesteps=30, vertices=60, faces=100, shapes=2, expressions=50, windows=64)


def tiny_config():
  config = get_config("ours")
  config.generator.update(dict(features=32, heads=2, reach=5, encoder_layers=1, speech_hidden=32, motion_kernel=3))
  config.motion.update(dict(batch=8, window=20))
  config.avatar.update(dict(batch=8))
  config.joint.update(dict(batch=8, motion_batch=8, window=20, frames=1))
  config.gaussians.update(dict(sh_degree=1, capacity=200))
  config.render.max_intersections = 1024
  return config


@pytest.mark.parametrize("stage", pod_check.STAGES)
def test_steps_compile_for_tpus(stage):
  step = pod_check.compile_step(tiny_config(), stage, "v5e:2x2", sizes=SIZES)
  assert step.devices == 4 and step.endless == 0 and check_fits(step) is None
  # Gradients of all parameters are summed over all chips, and nothing else is sent: at least two bytes each.
  kinds = {one.kind for one in step.cost.collectives}
  assert kinds == {"all-reduce"} and all(one.group == 4 for one in step.cost.collectives)
  assert step.cost.flops > 0 and 0 < step.cost.least and 0 < step.cost.memory


def test_a_step_compiles_for_a_node_of_gpus():
  step = pod_check.compile_step(tiny_config(), "motion", "h200:8", sizes=SIZES)
  assert step.devices == 8 and {one.kind for one in step.cost.collectives} == {"all-reduce"}
  assert step.temporaries > 0 and step.cost.memory > step.cost.least


def test_what_cannot_be_compiled_is_one_line():
  for target, found in (("v5e:3x5", "v5e:3x5: "), ("v9:2x2", "--targets: found 'v9:2x2', expected one of")):
    with pytest.raises(pod_check.CannotCompile, match=found) as error:
      pod_check.find_devices(target)
    assert "\n" not in str(error.value)


def test_listed_slices_are_ones_that_the_compiler_knows():
  for kind, slices in roofline.SLICES.items():
    chips, shape = max(slices.items())
    assert len(pod_check.find_devices(f"{kind}:{'x'.join(map(str, shape))}")) == chips
