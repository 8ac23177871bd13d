"""Checkpoints of training state and data iterator together; `runs.workdir` reads them back."""

import pathlib
from typing import Any

import flax.struct
import jax
from orbax.checkpoint import v1 as ocp


@flax.struct.dataclass
class TrainState:
  """Everything a run needs to go on to the same numbers.

  Attributes:
    step: optimizer steps taken in this stage.
    params: trained arrays, by group: "generator", "offsets", "avatar".
    buffers: arrays that the model needs but no gradient reaches (bindings, identity, motion statistics), by group.
    opt_state: the optimizer's.
  """

  step: jax.Array
  params: dict[str, Any]
  buffers: dict[str, Any]
  opt_state: Any


def make_checkpointer(workdir: str, stage: str, every_steps: int, keep: int = 2) -> ocp.training.Checkpointer:
  """A checkpointer that saves every `every_steps` steps and keeps the last `keep` checkpoints."""
  directory = pathlib.Path(workdir).absolute() / stage / "checkpoints"
  return ocp.training.Checkpointer(
      directory,
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(every_steps),
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
  )
