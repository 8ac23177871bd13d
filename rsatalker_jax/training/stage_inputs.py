"""What the makers of stages share: the config, the modules, and the training conversations and films, read once."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rsatalker_jax import sharding
from rsatalker_jax.data.conversations import data_path, find_splits, load_conversations
from rsatalker_jax.data.pipeline import MotionClip, load_clips, motion_statistics
from rsatalker_jax.data.sound import Degradation, make_degradations
from rsatalker_jax.data.triplets import Films, label_clips, load_films, load_triplets
from rsatalker_jax.data.webcam import Webcam
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import LipOpening, check_basis, make_lip_opening
from rsatalker_jax.talker import Params, SpeechEncoder, Talker


@dataclasses.dataclass(frozen=True)
class StageInputs:
  """What the makers of stages share.

  Attributes:
    config: the whole config.
    talker: the modules.
    encode: gives the features of a voice, in memory or on disk (`SpeechFeatures`, or its `open`).
    mesh: the device mesh.
    say: prints a line about the data.
    first_avatars: of captures, by folder: made once (`rendering.init_avatar_group`).
  """

  config: ConfigDict
  talker: Talker
  encode: SpeechEncoder
  mesh: jax.sharding.Mesh
  say: Callable[[str], None] = print
  first_avatars: dict[pathlib.Path, tuple[Params, Params]] = dataclasses.field(default_factory=dict)

  def path(self, name: str) -> pathlib.Path:
    """A path of `config.data`."""
    return data_path(self.config.data, name)

  @functools.cached_property
  def training_clips(self) -> list[MotionClip]:
    """The training conversations with features, degraded ones among them, and with the relations of their triplets, read once for
    all stages."""
    degradations = make_degradations(**self.config.speech.augmentation)
    return self._read_clips("train", "training conversations", degradations)

  @functools.cached_property
  def validation_clips(self) -> list[MotionClip]:
    """The conversations of the split val; none where there is no such split."""
    return self._read_clips("val", "validation conversations") if "val" in find_splits(self.config.data) else []

  def _read_clips(self, split: str, title: str, degradations: Sequence[Degradation] = ()) -> list[MotionClip]:
    source = load_conversations(self.config.data, split)
    for line in source.report(title):
      self.say(line)
    check_basis(self.talker.head, source.basis, self.path("conversations"), head_path=self.config.head.path)
    manifest = self.path("triplets")
    triplets = load_triplets(manifest, split) if manifest.is_file() else []
    known = len(source.skipped)
    clips = load_clips(source, self.encode, degradations)
    for name, reason in source.skipped[known:]:  # Damage that is met only where all is read.
      self.say(f"  skipped {name}: {reason}")
    return label_clips(clips, triplets)

  @functools.cached_property
  def films(self) -> Films:
    """The filmed training conversations."""
    films = self._open_films("train", self.training_clips)
    if not films.conversations:
      raise InputError(self.path("triplets"), "split", "no training triplet", "films of training conversations")
    return films

  @functools.cached_property
  def validation_films(self) -> Films:
    """The filmed conversations of the split val; none where the manifest has none."""
    return self._open_films("val", self.validation_clips)

  def _open_films(self, split: str, clips: list[MotionClip]) -> Films:
    open_split = lambda folder: self.talker.open_capture(folder, split)
    return load_films(self.path("triplets"), split, clips, open_split, self.talker.head, say=self.say)

  @property
  def webcam(self) -> Webcam:
    """Through which training sees A."""
    return Webcam(**self.config.motion.tracker)

  def read_options(self, prefetch: int) -> grain.ReadOptions:
    """How batches are read: by the config's threads, so many examples ahead."""
    return grain.ReadOptions(num_threads=self.config.data.reader_threads, prefetch_buffer_size=prefetch)

  @functools.cached_property
  def lip_opening(self) -> Callable[[Float[Array, "*b 56"]], Float[Array, "*b"]] | None:
    """`head.make_lip_opening`; None where the loss has no term for it, or the head has no mouth."""
    weights = self.config.motion.loss
    return make_lip_opening(self.talker.head) if weights.lips and not weights.plain_norm else None

  @functools.cached_property
  def statistics(self) -> Params:
    """Of the training conversations, in which losses and generator measure motion. A run that begins takes them into its
    buffers (group "generator"), where they stay: what trains, generates and scores reads them there and nowhere else."""
    mean, std = motion_statistics(self.training_clips)
    statistics = {"motion_mean": jnp.asarray(mean, jnp.float32), "motion_std": jnp.asarray(std, jnp.float32)}
    if self.lip_opening is not None:
      opening = LipOpening(self.lip_opening)
      openings = np.concatenate([opening(clip.motion_b) for clip in self.training_clips])
      # 0.1 mm: lips that never move would be divided by nothing.
      statistics["lip_std"] = jnp.float32(max(float(np.std(openings)), 1e-4))
    return statistics

  def lay_out(self, batches: Mapping[str, int], accumulate: int = 1) -> dict[str, Any]:
    """The fields `mesh`, `rules` and `accumulate` of a stage whose batches have these sizes: as many devices as divide
    them all.

    Args:
      batches, accumulate: see `sharding.fit_mesh`.

    Raises:
      InputError: fsdp does not divide them, or processes would be left without a part.
    """
    mesh = sharding.fit_mesh(self.mesh, batches, accumulate)
    if mesh.size < self.mesh.size:
      sizes = " and ".join(str(batch // accumulate) for batch in batches.values())
      self.say(f"{', '.join(batches)}: {sizes} examples at a time on {mesh.size} of {self.mesh.size} devices")
    return {"mesh": mesh, "rules": self.config.mesh.rules, "accumulate": accumulate}
