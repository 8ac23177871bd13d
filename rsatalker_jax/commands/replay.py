"""What `replay` does: a step that was not finite is repeated, with checks."""

import pathlib

from ml_collections import ConfigDict

from rsatalker_jax.commands import train
from rsatalker_jax.errors import InputError
from rsatalker_jax.runs import workdir as workdirs
from rsatalker_jax.training import broken_steps, replay
from rsatalker_jax.types import STAGES


def replay_step(workdir: str, stage: str | None = None, step: int | None = None) -> str:
  """What repeating a step that a run has kept says, as text; see `training.replay`.

  Args:
    workdir: the run.
    stage: whose step; None: the last stage's that has kept one.
    step: its number; None: the last that was kept.

  Raises:
    InputError: no such step was kept, its files are damaged, or the run's data is not there any more.
  """
  kept = [name for name in STAGES if any(pathlib.Path(workdir, name).glob("broken/*/broken.json"))]
  if stage is None and not kept:
    raise InputError(workdir, "", "no step that broke", "a step that was not finite, as training keeps it in <stage>/broken")
  stage = stage or kept[-1]
  broken = broken_steps.find(f"{workdir}/{stage}", step)
  inputs = train.make_inputs(ConfigDict(workdirs.load_config(workdir)))
  return replay.describe(train.make_stage(inputs, stage), broken, inputs.mesh)
