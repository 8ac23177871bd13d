"""A finished run read back: what generating, exporting, streaming and scoring stand on. No training code is imported."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from rsatalker_jax import sharding
from rsatalker_jax.avatar import Avatar, drop_free_slots
from rsatalker_jax.data.capture_collection import name_people
from rsatalker_jax.data.conversations import data_path, data_paths
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import DualTalkGenerator, MotionGenerator, MotionStream
from rsatalker_jax.runs import workdir as workdirs
from rsatalker_jax.talker import SpeechEncoder, Talker, make_encoder, make_log_mel, make_talker
from rsatalker_jax.types import Motion


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
    workdir: str, stages: Sequence[str] = workdirs.STAGES, *, person: str | None = None
) -> TrainedRun:
  """Loads what a workdir holds, by the config that made it.

  Args:
    workdir: a run's.
    stages: those whose parameters are wanted; leaving the last out gives the run as it was before it.
    person: of a bank: the avatar, and the capture that the config names, are this person's then.

  Raises:
    InputError: if there is no run, or a run without a checkpoint, or the person is not one of its bank.
  """
  config = ConfigDict(workdirs.load_config(workdir))
  params, buffers, used = workdirs.load_parameters(workdir, stages)
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
