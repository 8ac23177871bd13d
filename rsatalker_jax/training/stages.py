"""The three stages of the paper (Sec. 3.6), each as data for the loop: what it reads, its loss, what it trains.

    motion   L_mesh (Eq. 9)                                                    trains the generator
    avatar   L_image + lambda_2 L_pos (Eq. 10, 11)                             trains the Gaussians
    joint    L_mesh + lambda_1 L_image + lambda_2 L_pos + lambda_3 L_offset    trains all of them and the offsetnet
             (Eq. 13)
"""

import functools
from collections.abc import Callable

from rsatalker_jax.training.avatar_stage import avatar_stage
from rsatalker_jax.training.bank_stage import bank_stage
from rsatalker_jax.training.joint_stage import joint_stage
from rsatalker_jax.training.loop import Stage
from rsatalker_jax.training.motion_stage import motion_stage
from rsatalker_jax.training.stage_inputs import StageInputs


def make_stages(inputs: StageInputs) -> dict[str, Callable[[], Stage]]:
  """Makers of all stages, in order; a stage is made only when its turn comes.

  With captures of several people the avatar stage trains a bank of them, and there is no joint stage, which is for one.
  """
  makers = {"motion": motion_stage, "avatar": avatar_stage, "joint": joint_stage}
  if inputs.config.data.captures:
    makers = {"motion": motion_stage, "avatar": bank_stage}
  return {name: functools.partial(maker, inputs) for name, maker in makers.items()}
