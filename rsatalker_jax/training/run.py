"""A whole training run: data, model and stages of a config, one after another; and a finished run read back."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
import tqdm
from jaxtyping import Int
from ml_collections import ConfigDict

from rsatalker_jax.avatar import Avatar, drop_free_slots
from rsatalker_jax.data.capture_collection import name_people
from rsatalker_jax.data.conversations import data_path, data_paths, unpack_embedded
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import DualTalkGenerator, MotionGenerator, MotionStream
from rsatalker_jax.talker import SpeechEncoder, Talker, make_encoder, make_log_mel, make_talker
from rsatalker_jax.training import checkpoints, loop, sharding
from rsatalker_jax.training.stage_inputs import StageInputs
from rsatalker_jax.training.stages import make_stages
from rsatalker_jax.types import Motion


def train(config: ConfigDict, workdir: str, *, stage: str | None = None, init_from: str | None = None) -> None:
  """Runs all stages, or one, from where the workdir is.

  A stage starts from, in this order: its own newest checkpoint in `workdir`; the stages before it in `workdir`; the run
  `init_from`; fresh parameters.

  Args:
    config: see configs/common.py.
    workdir: where checkpoints and metrics go; made if absent.
    stage: a name from `checkpoints.STAGES`; None runs all.
    init_from: another run's workdir.

  Raises:
    InputError: if the data is not as expected or another config made `workdir`.
    MissingFeatures: names the clip, if features are missing that `speech.encode_missing` does not let be computed.
  """
  checkpoints.check_workdir(workdir, config.to_dict())
  unpack_embedded(config.data)
  inputs = StageInputs(
      config=config,
      talker=make_talker(config),
      encode=make_encoder(
          config.speech, data_path(config.data, "features"), encode_missing=config.speech.encode_missing
      ),
      mesh=sharding.make_mesh(config.mesh.data, config.mesh.fsdp),
      say=tqdm.tqdm.write if jax.process_index() == 0 else lambda _: None,  # Above the progress bar.
  )
  given = {}, {}
  if init_from is not None:
    *given, used = checkpoints.load_parameters(init_from)
    inputs.say(f"starting from {init_from} ({used})")
  makers = make_stages(inputs)
  if stage and stage not in makers:
    found = f"{len(config.data.captures)} people"
    raise InputError("config", "data.captures", found, f"none for the {stage} stage, which trains one person of `capture`")
  for name in [stage] if stage else makers:
    before = checkpoints.STAGES[: checkpoints.STAGES.index(name)]
    *earlier, _ = checkpoints.load_parameters(workdir, before, required=False)
    loop.run_stage(
        makers[name](),
        mesh=inputs.mesh,
        workdir=workdir,
        seed=config.seed,
        start=tuple(first | second for first, second in zip(given, earlier)),
        watching=loop.Watching(**config.logging),
        say=inputs.say,
    )


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """A run to score or to generate with.

  Attributes:
    config: that made it.
    talker: the modules, with the statistics of its training conversations.
    params, buffers: see `Talker`.
    stages: the stages trained and their steps, e.g. "motion:600 avatar:900".
  """

  config: ConfigDict
  talker: Talker
  params: dict
  buffers: dict
  stages: str

  def generate(self, clip: MotionClip) -> Motion:
    """B's motion for one clip."""
    return np.asarray(
        _compiled_generator(self.talker.generator)(
            self.params["generator"], clip.speech_a, clip.motion_a, clip.speech_b, clip.relation
        )
    )

  def stream(self, relation: Int[np.ndarray, "2"], *, lengths: Sequence[int] = (1, 5, 25)) -> MotionStream:
    """B's motion while a conversation goes on. Its `push` takes samples, or features if the run's are Wav2Vec 2.0's.

    Args:
      relation, lengths: see `MotionStream`.

    Raises:
      InputError: if there is no generator yet, or it or its speech features look ahead.
    """
    if "generator" not in self.params:
      raise InputError("run", "motion", f"only {self.stages}", "a finished motion stage")
    encoder = make_log_mel(self.config.speech) if self.config.speech.encoder == "logmel" else None
    return MotionStream(self.talker.generator, self.params["generator"], relation, encoder=encoder, lengths=lengths)

  def data_path(self, name: str) -> pathlib.Path:
    """A path of `config.data`."""
    return data_path(self.config.data, name)

  @functools.cached_property
  def encode(self) -> SpeechEncoder:
    """Its speech features; voices that are new are encoded, whatever training was asked to do."""
    return make_encoder(self.config.speech, self.data_path("features"))

  @functools.cached_property
  def avatar(self) -> Avatar:
    return drop_free_slots(self.talker.avatar(self.params, self.buffers))

  def gaussian_offsets(self, relation: Int[np.ndarray, "2"], times: Int[np.ndarray, "T"]):
    """Offsets (Eq. 8) as `render_sequence` wants them, frame i at time `times[i]`; None before the joint stage."""
    if "offsets" not in self.params:
      return None
    offsets = jax.jit(self.talker.gaussian_offsets)
    params = {name: self.params[name] for name in ("generator", "offsets")}
    return lambda numbers: offsets(params, np.tile(relation, (len(numbers), 1)), times[numbers].astype(np.float32))


@functools.lru_cache(maxsize=8)
def _compiled_generator(generator: MotionGenerator | DualTalkGenerator):
  """`generator.apply` for all runs of equal generators: seeds that are compared share its programs."""
  return jax.jit(generator.apply)


def load_run(
    workdir: str, stages: Sequence[str] = checkpoints.STAGES, *, person: str | None = None
) -> TrainedRun:
  """Loads what a workdir holds, by the config that made it.

  Args:
    workdir: a run's.
    stages: those whose parameters are wanted; leaving the last out gives the run as it was before it.
    person: of a bank: the avatar, and the capture that the config names, are this person's then.

  Raises:
    InputError: if there is no run, or a run without a checkpoint, or the person is not one of its bank.
  """
  config = ConfigDict(checkpoints.load_config(workdir))
  params, buffers, used = checkpoints.load_parameters(workdir, stages)
  if sharding.BANK in params or person is not None:
    config, params, buffers = _read_out(config, params, buffers, person)
  talker = make_talker(config)
  if "generator" in buffers:
    statistics = buffers["generator"]
    talker = talker.with_statistics(statistics["motion_mean"], statistics["motion_std"])
  return TrainedRun(config, talker, params, buffers, used)


def _read_out(config: ConfigDict, params: dict, buffers: dict, person: str | None) -> tuple[ConfigDict, dict, dict]:
  """Config, parameters and buffers of a run of several people as if it were one person's."""
  if sharding.BANK not in params:
    raise InputError("--person", "", person, "none, as the run has no bank of people")
  names = name_people(data_paths(config.data, "captures"))
  if person not in names:
    raise InputError("--person", "", person or "none", f"one of {', '.join(names)}")
  number = names.index(person)
  config.data.capture = config.data.captures[number]
  one = lambda group: {name: value[number] for name, value in group.items()}
  params, buffers = ({**groups, "avatar": one(groups[sharding.BANK])} for groups in (params, buffers))
  return config, params, buffers
