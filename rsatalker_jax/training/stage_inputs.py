"""What the makers of stages share: the config, the modules, and the training conversations, read once."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import grain
import jax
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rsatalker_jax.data.conversations import data_path, load_conversations
from rsatalker_jax.data.pipeline import MotionClip, load_clips, motion_statistics
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import LipOpening, make_lip_opening
from rsatalker_jax.talker import SpeechEncoder, Talker
from rsatalker_jax.training import losses


@dataclasses.dataclass(frozen=True)
class StageInputs:
  """What the makers of stages share.

  Attributes:
    config: the whole config.
    talker: the modules.
    encode: gives the features of a voice, in memory or on disk (`SpeechFeatures`, or its `open`).
    mesh: the device mesh.
    say: prints a line about the data.
  """

  config: ConfigDict
  talker: Talker
  encode: SpeechEncoder
  mesh: jax.sharding.Mesh
  say: Callable[[str], None] = print

  def path(self, name: str) -> pathlib.Path:
    """A path of `config.data`."""
    return data_path(self.config.data, name)

  @functools.cached_property
  def training_clips(self) -> list[MotionClip]:
    """The training conversations with features, read once for all stages."""
    source = load_conversations(self.config.data, "train")
    for line in source.report("training conversations"):
      self.say(line)
    return load_clips(source, self.encode)

  @functools.cached_property
  def fitted_talker(self) -> Talker:
    """The talker with the statistics of the training conversations."""
    return self.talker.with_statistics(*motion_statistics(self.training_clips))

  @functools.cached_property
  def mesh_loss(self) -> Callable[[Float[Array, "B T 56"], Float[Array, "B T 56"]], dict[str, Array]]:
    """L_mesh (Eq. 9) as (predicted, target) -> weighted terms, in units of the training conversations."""
    weights = losses.MotionLossWeights(**self.config.motion.loss)
    motion_std = self.fitted_talker.generator.config.motion_std
    opening = make_lip_opening(self.talker.head) if weights.lips and not weights.plain_norm else None
    if opening is not None:
      measure = LipOpening(opening)
      every = np.concatenate([measure(clip.motion_b) for clip in self.training_clips])
      opening_std = max(float(np.std(every)), 1e-4)  # 0.1 mm: lips that never move would be divided by nothing.

    def mesh_loss(predicted, target):
      terms = losses.motion_loss(predicted, target, weights, motion_std)
      if opening is not None:
        lips = losses.lip_loss(opening(predicted), opening(target), weights.closure, opening_std)
        terms["lips"] = weights.lips * lips
      return terms

    return mesh_loss

  def read_options(self, prefetch: int) -> grain.ReadOptions:
    """How batches are read: by the config's threads, so many examples ahead."""
    return grain.ReadOptions(num_threads=self.config.data.reader_threads, prefetch_buffer_size=prefetch)

  def local_batch(self, batch: int) -> int:
    """This process's share of a global batch."""
    if batch % self.mesh.size:
      raise InputError("config", "batch", batch, f"a multiple of {self.mesh.size}, the number of devices")
    return batch // jax.process_count()
