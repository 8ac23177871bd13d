"""A finished run read back: what generating, exporting, streaming and scoring stand on. No training code is imported."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from rsatalker_jax import sharding
from rsatalker_jax.avatar import Avatar, drop_free_slots
from rsatalker_jax.baselines.image import METHODS
from rsatalker_jax.data.captured_people import find_captured_people
from rsatalker_jax.data.conversations import data_path
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import check_basis
from rsatalker_jax.motion import MotionStream, StreamBatch
from rsatalker_jax.motion.folding import check_foldable, fold_generator
from rsatalker_jax.runs import workdir as workdirs
from rsatalker_jax.social.folding import fold_offsets
from rsatalker_jax.social.relation import RELATIONS, UNKNOWN, UNKNOWN_NAME, parse_relation
from rsatalker_jax.speech import SpeechFeatures
from rsatalker_jax.talker import Talker, make_encoder, make_log_mel, make_talker
from rsatalker_jax.types import STAGES, Motion


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """A run to score or to generate with.

  Attributes:
    config: that made it.
    talker: the modules.
    params, buffers: see `Talker`.
    stages: the stages trained and their steps, e.g. "motion:600 avatar:900".
    names: of the people whom it was trained on. Of several (`data.captures`), `params` and `buffers` hold the bank and, as
      "avatar", the one of them whom `data.capture` of `config` then names.
    number: which of `names` that is.
  """

  config: ConfigDict
  talker: Talker
  params: dict
  buffers: dict
  stages: str
  names: tuple[str, ...] = ()
  number: int = 0

  @property
  def person(self) -> str:
    """Whose the avatar is."""
    return self.names[self.number] if self.names else ""

  def of_person(self, number: int) -> "TrainedRun":
    """The same run with another of its people as "avatar"."""
    if sharding.BANK not in self.params:
      return self
    one = lambda group: {name: value[number] for name, value in group.items()}
    params, buffers = ({**groups, "avatar": one(groups[sharding.BANK])} for groups in (self.params, self.buffers))
    data = self.config.data.to_dict() | {"capture": self.config.data.captures[number]}
    config = ConfigDict(self.config.to_dict() | {"data": data})
    return dataclasses.replace(self, config=config, params=params, buffers=buffers, number=number)

  def generate(self, clip: MotionClip, *, sample: int = 0) -> Motion:
    """B's motion for one clip; `sample` as in `Talker.generate_clip`.

    Raises:
      InputError: the clip's motion is not in the run's basis.
    """
    self.check_basis(clip.basis, clip.name)
    told = dataclasses.replace(clip, relation=self._told(clip.relation))
    return self.talker.generate_clip(self.params, self.buffers, told, sample=sample)

  @property
  def basis(self) -> str | None:
    """Of the expressions that it takes and gives, one of `types.BASES`: its head's."""
    return self.talker.head.basis

  def check_basis(self, basis: str, place: object) -> None:
    """Refuses a motion in another basis; `place` is where it comes from.

    Raises:
      InputError: it is in another, or the run's FLAME file does not tell its year.
    """
    if basis != self.basis:
      check_basis(self.talker.head, basis, place, head_path=self.config.head.path)

  def _told(self, relation: Int[np.ndarray, "2"]) -> Int[np.ndarray, "2"]:
    """The relation, or unknown where no stage so far has trained the social module, which then is at its random start."""
    entered = self.config.motion.social_module or "offsets" in self.params
    return np.asarray(relation, np.int32) if entered else np.full(2, UNKNOWN, np.int32)

  @property
  def alignment(self) -> Float[np.ndarray, "3"]:
    """From the rotations of the conversations' tracker to those of the capture's (`head.pose_for`); none before stage 3."""
    found = np.asarray(self.buffers.get("film", {}).get("alignment", np.zeros(3, np.float32)))
    return found if found.ndim == 1 else found[self.number]

  def stream(
      self, relation: Int[np.ndarray, "2"], *, basis: str | None = None, lengths: Sequence[int] = (1, 5, 25)
  ) -> MotionStream:
    """B's motion while a conversation goes on. Its `push` takes samples, or features if the run's are Wav2Vec 2.0's.

    Args:
      relation, lengths: see `MotionStream`.
      basis: of A's motion that will be pushed; None promises that it is the run's.

    Raises:
      InputError: if there is no generator yet, or it or its speech features look ahead, there is no such relation, or the
        basis is another than the run's.
    """
    if basis is not None:
      self.check_basis(basis, "stream")
    return MotionStream(*self._streamed(relation), **self._heard(), lengths=lengths)

  def stream_batch(self, places: int) -> StreamBatch:
    """The same for so many conversations at once, whose relation is unknown until it is told. Errors as of `stream`."""
    return StreamBatch(*self._streamed(np.full(2, UNKNOWN, np.int32)), places, **self._heard())

  def _streamed(self, relation: Int[np.ndarray, "2"]):
    """Generator, variables and the motion social feature."""
    if "generator" not in self.params:
      raise InputError("run", "motion", f"only {self.stages}", "a finished motion stage")
    variables = {**self.params["generator"], "statistics": self.buffers["generator"]}
    return self.talker.generator, variables, self.social_feature(relation)

  def _heard(self) -> dict[str, Any]:
    """How a stream hears."""
    if self.config.speech.encoder != "logmel":
      return {"encoder": None}
    return {"encoder": make_log_mel(self.config.speech), "level": self.config.speech.level}

  def social_feature(self, relation: Int[np.ndarray, "2"]) -> Float[np.ndarray, "D"]:
    """What a stream is told of a relation, as `MotionStream.social`.

    Raises:
      InputError: there is no such relation.
    """
    if np.shape(relation) != (2,) or not np.isin(relation, (UNKNOWN, 0, 1)).all():
      raise InputError("stream", "relation", np.array(relation), f"[blood, equal], each 0, 1 or {UNKNOWN} for unknown")
    return np.asarray(self.talker.social_feature(self.params, jnp.asarray(self._told(relation))))

  @property
  def draws_images(self) -> bool:
    """Whether an image-based baseline makes its pictures, and not an avatar."""
    return self.config.avatar.method in METHODS

  def fold(self, place: object = "run") -> tuple[dict[str, Any], dict[str, Float[np.ndarray, "n c"]], tuple[str, ...]]:
    """The causal generator and what it hears by, for programs without JAX (`motion.folding`). Errors name `place`.

    Returns:
      Sizes and switches, with those of the speech features as "speech"; arrays; and the relations that it tells apart, with
      "unknown" last, in the order of the rows of the arrays that depend on them.

    Raises:
      InputError: a run without motion stage, with another speech encoder than log-mel, or whose generator cannot be folded
        (`check_foldable`).
    """
    speech = self.config.speech
    if "generator" not in self.params:
      raise InputError(place, "motion", f"only {self.stages}", "a finished motion stage")
    if speech.encoder != "logmel":
      raise InputError(place, "speech.encoder", repr(speech.encoder), "'logmel': the others hear the whole of a voice at once")
    check_foldable(self.talker.generator, make_log_mel(speech), place)
    names = (*RELATIONS, UNKNOWN_NAME)
    socials = [self.talker.social_feature(self.params, jnp.asarray(self._told(parse_relation(name)))) for name in names]
    if np.all(np.equal(socials[0], socials)):  # It was told of none.
      names, socials = names[-1:], socials[-1:]
    variables = {**self.params["generator"], "statistics": self.buffers["generator"]}
    settings, arrays = fold_generator(self.talker.generator, jax.device_get(variables), np.stack(socials))
    heard = {"mels": speech.num_mels, "hop": speech.hop, "context": speech.context, "level": speech.level}
    return settings | {"speech": heard}, arrays, names

  def fold_offsets(self, relations: Sequence[str]) -> dict[str, Float[np.ndarray, "_ _"]] | None:
    """The network of the offset corrections (Eq. 8) for these relations, likewise (`social.folding`); None before the joint stage."""
    if "offsets" not in self.params:
      return None
    talker, numbers = self.talker, np.stack([parse_relation(name) for name in relations])
    queries = np.asarray(talker.social.apply(self.params["social"], jnp.asarray(numbers), method="query"))
    return fold_offsets(talker.offset_net, jax.device_get(self.params["offsets"]), queries, self.buffers["generator"])

  def data_path(self, name: str) -> pathlib.Path:
    """A path of `config.data`."""
    return data_path(self.config.data, name)

  @functools.cached_property
  def encode(self) -> SpeechFeatures:
    """Its speech features; voices that are new are encoded, whatever training was asked to do."""
    return make_encoder(self.config.speech, self.data_path("features"))

  @functools.cached_property
  def avatar(self) -> Avatar:
    return drop_free_slots(self.talker.avatar(self.params, self.buffers))

  def gaussian_offsets(
      self, relation: Int[np.ndarray, "2"] | Int[np.ndarray, "T 2"], times: Int[np.ndarray, "T"], motion: Motion
  ):
    """Offsets (Eq. 8) as `render_sequence` wants them, frame i at time `times[i]` in B's motion `motion[i]`; None before the
    joint stage."""
    if "offsets" not in self.params:
      return None
    offsets = jax.jit(self.talker.gaussian_offsets)
    params = {name: self.params[name] for name in ("social", "offsets")}
    buffers = {"generator": self.buffers["generator"]}
    relations, motion = np.broadcast_to(relation, (len(times), 2)), np.asarray(motion, np.float32)
    return lambda numbers: offsets(params, buffers, relations[numbers], times[numbers].astype(np.float32), motion[numbers])


def load_run(
    workdir: str, stages: Sequence[str] = STAGES, *, person: str | None = None, image_methods: bool = False
) -> TrainedRun:
  """Loads what a workdir holds, by the config that made it.

  Args:
    workdir: a run's.
    stages: those whose parameters are wanted; leaving the last out gives the run as it was before it.
    person: whose the avatar is, and the capture that the config names; None: the first, of the people of a bank.
    image_methods: whether the caller knows what to do with a run whose pictures an image-based baseline makes, which has no
      avatar that one could pose, export or play.

  Raises:
    InputError: if there is no run, or a run without a checkpoint, or the person is none of its people, or such a baseline is
      not expected.
  """
  config = ConfigDict(workdirs.load_config(workdir))
  if config.avatar.method in METHODS and not image_methods:
    expected = "'gaussians': an image-based baseline has no avatar, and is scored by eval.py alone"
    raise InputError(workdir, "avatar.method", repr(config.avatar.method), expected)
  params, buffers, used = workdirs.load_parameters(workdir, stages)
  people = find_captured_people(config.data)
  number = 0 if person is None else people.number(person)
  run = TrainedRun(config, make_talker(config), params, buffers, used, people.names)
  return run.of_person(number)
