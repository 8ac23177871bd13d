"""What train.py does: data, model and stages of a config, one after another.

The three stages of the paper (Sec. 3.6), each as data for the loop: what it reads, its loss, what it trains.

    motion   L_mesh (Eq. 9)                                                    the generator (here the social module, too)
    avatar   L_image + lambda_2 L_pos (Eq. 10, 11)                             the Gaussians, corrections of the tracking
    joint    L_mesh + lambda_1 L_image + lambda_2 L_pos + lambda_3 L_offset    generator, social module, Gaussians, offsetnet
             (Eq. 13)                                                          (as far as joint.avatar_share lets them)
"""

import functools
import importlib.metadata
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import tqdm
from ml_collections import ConfigDict

import splat_kernels
from rsatalker_jax import cluster, sharding
from rsatalker_jax.baselines.image import METHODS
from rsatalker_jax.data.conversations import data_path, unpack_embedded
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import can
from rsatalker_jax.runs import workdir as workdirs
from rsatalker_jax.talker import Params, make_encoder, make_talker
from rsatalker_jax.training import loop
from rsatalker_jax.training.avatar_stage import avatar_stage
from rsatalker_jax.training.image_stage import image_stage
from rsatalker_jax.training.joint_stage import joint_stage
from rsatalker_jax.training.ledger import Ledger
from rsatalker_jax.training.motion_stage import codes_stage, motion_stage
from rsatalker_jax.training.stage_inputs import StageInputs
from rsatalker_jax.types import STAGES


def train(
    config: ConfigDict,
    workdir: str,
    *,
    stage: str | None = None,
    init_from: Sequence[str] = (),
    allow_unfinished: bool = False,
    age: float = 0.0,
) -> None:
  """Runs all stages of the config, or one, from where the workdir is.

  A stage starts from, in this order: its own newest checkpoint in `workdir`; the stages before it in `workdir`; the runs
  `init_from`, the last first; fresh parameters. Every requested stage is made, and with it its data and values checked, before the first
  step of the first.

  Args:
    config: see configs/common.py.
    workdir: where checkpoints and metrics go; made if absent.
    stage: one of `config.stages`; None runs all.
    init_from: other runs' workdirs, each with a colon and names of stages behind it where only those are wanted:
      "runs/demo:motion,avatar".
    allow_unfinished: whether a stage may start from an earlier one that has not reached its last step.
    age: of the process, in seconds, as far as it belongs to this run, for the ledger.

  Raises:
    InputError: if a value or the data of any requested stage is not as expected, or another config made `workdir`.
    MissingFeatures: names the clip, if features are missing that `speech.encode_missing` does not let be computed.
  """
  cluster.check_agreement(_describe_run(config, workdir, stage, init_from))
  with Ledger(workdir, age) as ledger:
    _train_stages(config, workdir, stage, init_from, allow_unfinished, ledger)


def _train_stages(
    config: ConfigDict, workdir: str, stage: str | None, init_from: Sequence[str], allow_unfinished: bool, ledger: Ledger
) -> None:
  workdirs.check_workdir(workdir, config)
  cluster.check_shared_folder(workdir, "--workdir")
  cluster.one_at_first(lambda: unpack_embedded(config.data), "unpacking")
  inputs = make_inputs(config)
  if stage and stage not in config.stages:
    raise InputError("--stage", "", stage, f"one of the config's stages, {', '.join(config.stages)}")
  names = [stage] if stage else list(config.stages)
  if not allow_unfinished:
    _refuse_unfinished(config, workdir, names[0])
  _refuse_missing_codes(inputs, names, workdir, init_from)
  stages = []
  for name in names:
    if (step := _reached(workdir, name)) >= config[name].steps:
      inputs.say(f"{name}: already at step {step} of {config[name].steps}")
    else:
      stages.append(make_stage(inputs, name))
  for made in stages:
    loop.check_start(made, _start_of(made.name, workdir, init_from)[0], _name_origin(workdir, init_from))
  _refuse_other_basis(init_from, inputs.talker.head.basis)
  # What the head's file says of its expressions is the run's, whatever becomes of the file.
  recorded = config.copy_and_resolve_references()
  recorded.head.basis = inputs.talker.head.basis
  for made in stages:
    start, sources = _start_of(made.name, workdir, init_from)
    inputs.say(f"{made.name}: starts from {_describe(made, sources)}")
    loop.run_stage(
        made,
        mesh=made.mesh,
        workdir=workdir,
        seed=config.seed,
        start=start,
        origin=_name_origin(workdir, init_from),
        watching=loop.Watching(**config.logging),
        most_skipped=config.most_skipped,
        ledger=ledger,
        before_checkpoint=functools.partial(workdirs.record_config, workdir, recorded),
        say=inputs.say,
    )


def _describe_run(config: ConfigDict, workdir: str, stage: str | None, init_from: Sequence[str]) -> dict[str, Any]:
  """What must be the same in all processes, under the names that a user knows."""
  packages = {"rsatalker_jax": pathlib.Path(__file__).parents[1], "splat_kernels": pathlib.Path(splat_kernels.__file__).parent}
  code = {f"code of {name}": workdirs.hash_code(folder)[:12] for name, folder in packages.items()}
  versions = {f"version of {name}": importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "grain")}
  flags = {"--workdir": os.path.abspath(workdir), "--stage": stage, "--init_from": list(init_from)}
  return {**flags, **workdirs.flatten_config(config.to_dict()), **code, **versions}


def make_inputs(config: ConfigDict) -> StageInputs:
  """What the stages of a config share; process 0 says what it reads."""
  return StageInputs(
      config=config,
      talker=make_talker(config),
      encode=make_encoder(
          config.speech, data_path(config.data, "features"), encode_missing=config.speech.encode_missing
      ).open,
      mesh=sharding.make_mesh(config.mesh.data, config.mesh.fsdp),
      say=tqdm.tqdm.write if jax.process_index() == 0 else lambda _: None,  # Above the progress bar.
  )


def make_stage(inputs: StageInputs, name: str) -> loop.Stage:
  """A stage by its name. With another `avatar.method` than ours the avatar stage trains a baseline."""
  avatar = image_stage if inputs.config.avatar.method in METHODS else avatar_stage
  return {"codes": codes_stage, "motion": motion_stage, "avatar": avatar, "joint": joint_stage}[name](inputs)


def _refuse_unfinished(config: ConfigDict, workdir: str, first: str) -> None:
  """Raises: InputError: a stage before `first` was begun in `workdir` and is not at its end."""
  for name in STAGES[: STAGES.index(first)]:
    if 0 < (step := _reached(workdir, name)) < config[name].steps:
      expected = f"a finished stage; finish it with --stage={name}, or --allow_unfinished"
      raise InputError(workdir, name, f"step {step} of {config[name].steps}", expected)


def _refuse_missing_codes(inputs: StageInputs, names: Sequence[str], workdir: str, init_from: Sequence[str]) -> None:
  """Raises: InputError: the motion stage is to use codes that no stage has trained, nor will."""
  if can(inputs.talker.generator, "codes_terms") and "motion" in names and "codes" not in names:
    if "generator" not in _start_of("motion", workdir, init_from)[1]:
      name = inputs.config.generator.architecture
      raise InputError(workdir, "codes", "no checkpoint", f"the codes that {name} makes motion of; train them with --stage=codes")


def _reached(workdir: str, stage: str) -> int:
  """The step of a stage's newest whole checkpoint; 0 where there is none."""
  state = workdirs.load_stage_state(workdir, stage)
  return 0 if state is None else int(state["step"])


def _name_origin(workdir: str, init_from: Sequence[str]) -> str:
  return " or ".join(init_from) or workdir


def _start_of(stage: str, workdir: str, init_from: Sequence[str]) -> tuple[tuple[Params, Params], dict[str, str]]:
  """Params and buffers that a stage starts from, by group, and the run and stage that each group of params comes from."""
  params, buffers, sources = {}, {}, {}
  others = [_split_origin(name) for name in init_from]
  for run, stages in [*others, (workdir, STAGES[: STAGES.index(stage)])]:
    found, is_other = False, (run, stages) in others
    for name in stages:
      if (state := workdirs.load_stage_state(run, name)) is not None:
        found = True
        params |= state["params"]
        buffers |= state["buffers"]
        place = f"{name}:{int(state['step'])}" + f" of {run}" * is_other
        sources |= dict.fromkeys(state["params"], place)
    if is_other and not found:
      of = "" if stages == STAGES else f" of {' or '.join(stages)}"
      raise InputError(run, "", f"no checkpoint{of}", "a folder that train.py --workdir has written")
  return (params, buffers), sources


def _refuse_other_basis(init_from: Sequence[str], basis: str | None) -> None:
  """Raises: InputError: a generator to start from was trained on expressions of another basis, which its statistics measure."""
  for run, stages in map(_split_origin, init_from):
    other = workdirs.recorded_basis(run)
    if other not in (None, basis) and set(stages) & {"motion", "joint"}:
      expected = f"{basis}, as this config's head has; {run}:avatar takes the avatar alone"
      raise InputError(f"--init_from={run}", "basis", other, expected)


def _split_origin(name: str) -> tuple[str, tuple[str, ...]]:
  """The run and the stages that a member of `init_from` names."""
  run, colon, names = name.rpartition(":")
  chosen = tuple(names.split(","))
  return (run, chosen) if colon and set(chosen) <= set(STAGES) else (name, STAGES)


def _describe(stage: loop.Stage, sources: dict[str, str]) -> str:
  groups = jax.eval_shape(stage.init, jax.random.key(0))[0]
  return ", ".join(f"{group} ({sources.get(group, 'new')})" for group in sorted(groups))
