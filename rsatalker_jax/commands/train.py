"""What train.py does: data, model and stages of a config, one after another.

The three stages of the paper (Sec. 3.6), each as data for the loop: what it reads, its loss, what it trains.

    motion   L_mesh (Eq. 9)                                                    trains the generator
    avatar   L_image + lambda_2 L_pos (Eq. 10, 11)                             trains the Gaussians
    joint    L_mesh + lambda_1 L_image + lambda_2 L_pos + lambda_3 L_offset    trains all of them and the offsetnet
             (Eq. 13)
"""

import functools
from collections.abc import Callable

import jax
import tqdm
from ml_collections import ConfigDict

from rsatalker_jax import sharding
from rsatalker_jax.data.conversations import data_path, unpack_embedded
from rsatalker_jax.errors import InputError
from rsatalker_jax.runs import workdir as workdirs
from rsatalker_jax.talker import make_encoder, make_talker
from rsatalker_jax.training import loop
from rsatalker_jax.training.avatar_stage import avatar_stage
from rsatalker_jax.training.bank_stage import bank_stage
from rsatalker_jax.training.joint_stage import joint_stage
from rsatalker_jax.training.motion_stage import motion_stage
from rsatalker_jax.training.stage_inputs import StageInputs


def train(config: ConfigDict, workdir: str, *, stage: str | None = None, init_from: str | None = None) -> None:
  """Runs all stages, or one, from where the workdir is.

  A stage starts from, in this order: its own newest checkpoint in `workdir`; the stages before it in `workdir`; the run
  `init_from`; fresh parameters.

  Args:
    config: see configs/common.py.
    workdir: where checkpoints and metrics go; made if absent.
    stage: a name from `workdirs.STAGES`; None runs all.
    init_from: another run's workdir.

  Raises:
    InputError: if the data is not as expected or another config made `workdir`.
    MissingFeatures: names the clip, if features are missing that `speech.encode_missing` does not let be computed.
  """
  workdirs.check_workdir(workdir, config.to_dict())
  unpack_embedded(config.data)
  inputs = StageInputs(
      config=config,
      talker=make_talker(config),
      encode=make_encoder(
          config.speech, data_path(config.data, "features"), encode_missing=config.speech.encode_missing
      ).open,
      mesh=sharding.make_mesh(config.mesh.data, config.mesh.fsdp),
      say=tqdm.tqdm.write if jax.process_index() == 0 else lambda _: None,  # Above the progress bar.
  )
  given = {}, {}
  if init_from is not None:
    *given, used = workdirs.load_parameters(init_from)
    inputs.say(f"starting from {init_from} ({used})")
  makers = make_stages(inputs)
  if stage and stage not in makers:
    found = f"{len(config.data.captures)} people"
    raise InputError("config", "data.captures", found, f"none for the {stage} stage, which trains one person of `capture`")
  for name in [stage] if stage else makers:
    before = workdirs.STAGES[: workdirs.STAGES.index(name)]
    *earlier, _ = workdirs.load_parameters(workdir, before, required=False)
    loop.run_stage(
        makers[name](),
        mesh=inputs.mesh,
        workdir=workdir,
        seed=config.seed,
        start=tuple(first | second for first, second in zip(given, earlier)),
        watching=loop.Watching(**config.logging),
        say=inputs.say,
    )


def make_stages(inputs: StageInputs) -> dict[str, Callable[[], loop.Stage]]:
  """Makers of all stages, in order; a stage is made only when its turn comes.

  With captures of several people the avatar stage trains a bank of them, and there is no joint stage, which is for one.
  """
  makers = {"motion": motion_stage, "avatar": avatar_stage, "joint": joint_stage}
  if inputs.config.data.captures:
    makers = {"motion": motion_stage, "avatar": bank_stage}
  return {name: functools.partial(maker, inputs) for name, maker in makers.items()}
