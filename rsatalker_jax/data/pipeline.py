"""From conversations to training batches: motions in memory, features where the encoder left them, windows through Grain.

Every window that is drawn is a fresh copy with its own start; starts and order follow from the seed and the position in the
stream alone, so an iterator restored from a checkpoint goes on with exactly the batches it would have produced.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.data.sound import Degradation
from rsatalker_jax.data.webcam import Webcam
from rsatalker_jax.errors import InputError, MissingFeatures
from rsatalker_jax.types import SAMPLES_PER_FRAME, Conversation, Motion

# An array, or one on disk whose slices are arrays (`speech.StoredFeatures`).
Features = Float[Any, "T D"]

STD_FLOOR = 1e-3  # Dimensions that never move would otherwise be divided by nothing.


@dataclasses.dataclass(frozen=True)
class MotionClip:
  """A `Conversation` with its voices as features: what the motion generator is trained and tested on.

  Attributes:
    name: conversation and the person to generate.
    speech_a, speech_b: features of both voices, (T, D) at 25 fps.
    motion_a, motion_b: motions, (T, 56); `motion_b` is None where there is no ground truth.
    relation: [blood, equal]; -1 for unknown.
    basis: of both motions' expressions, one of `types.BASES`.
    degraded_a, degraded_b: features of the same voices, degraded: variants that training may hear instead.
  """

  name: str
  speech_a: Features
  motion_a: Motion
  speech_b: Features
  motion_b: Motion | None
  relation: Int[np.ndarray, "2"]
  basis: str
  degraded_a: tuple[Features, ...] = ()
  degraded_b: tuple[Features, ...] = ()


def load_clips(
    source: Iterable[Conversation], encode: Callable[..., Features], degradations: Sequence[Degradation] = ()
) -> list[MotionClip]:
  """Encodes all voices of a source. The two directions of a conversation share their features and motions.

  Args:
    source: conversations, for example a `DualTalkSource`.
    encode: from a voice, a number of frames and, where voices are degraded, the degradation to features:
      `speech.SpeechFeatures` for features in memory, its `open` for features on disk (50 hours of 1024 features are 18 GB a
      voice; their motions are 1 GB).
    degradations: of which each voice gets a variant.

  Raises:
    MissingFeatures: names the clip whose voice has no features, if they must not be computed.
  """
  clips = []
  features: dict[bytes, tuple[Features, ...]] = {}  # The clean ones first.
  motions: dict[bytes, Motion] = {}
  for conversation in source:
    voices = conversation.speech_a, conversation.speech_b
    keys = [wav.tobytes() for wav in voices]
    for key, wav in zip(keys, voices):
      if key not in features:
        try:
          frames = len(wav) // SAMPLES_PER_FRAME
          features[key] = (encode(wav, frames), *(encode(wav, frames, degradation) for degradation in degradations))
        except MissingFeatures as error:
          raise MissingFeatures(error.file, conversation.name, error.found) from None
    share = lambda motion: None if motion is None else motions.setdefault(motion.tobytes(), motion)
    clips.append(
        MotionClip(
            name=conversation.name,
            speech_a=features[keys[0]][0],
            motion_a=share(conversation.motion_a),
            speech_b=features[keys[1]][0],
            motion_b=share(conversation.motion_b),
            relation=conversation.relation,
            basis=conversation.basis,
            degraded_a=features[keys[0]][1:],
            degraded_b=features[keys[1]][1:],
        )
    )
    # Directions follow each other; older voices and motions do not come back.
    features, motions = dict(list(features.items())[-2:]), dict(list(motions.items())[-2:])
  return clips


def motion_statistics(clips: Sequence[MotionClip]) -> tuple[Float[np.ndarray, "56"], Float[np.ndarray, "56"]]:
  """Mean and standard deviation of each motion dimension over all frames to be generated (use training clips)."""
  count = sum(len(clip.motion_b) for clip in clips)
  mean = sum(np.asarray(clip.motion_b).sum(axis=0, dtype=np.float64) for clip in clips) / count
  # About the mean, clip by clip: sums of squares about zero would lose the digits of a dimension that hardly moves.
  variance = sum(np.square(clip.motion_b - mean).sum(axis=0) for clip in clips) / count
  return mean, np.maximum(np.sqrt(variance), STD_FLOOR)


def motion_windows(
    clips: Sequence[MotionClip],
    *,
    window: int,
    batch_size: int,
    seed: int,
    shard_index: int | None = None,
    shard_count: int | None = None,
    epochs: int | None = None,
    webcam: Webcam = Webcam(),
    read_options: grain.ReadOptions = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4),
) -> grain.IterDataset:
  """Makes shuffled batches of random windows.

  In an epoch a clip of T frames gives round(T / window) windows, each from a new random start. Clips shorter than a
  window are left out.

  Args:
    clips: training clips, with ground truth.
    window: frames of a window.
    batch_size: windows per batch, over all processes.
    seed: of order and starts.
    shard_index, shard_count: this process and how many there are (JAX's own if None): see `batch_share`.
    epochs: passes through the data; None never ends.
    webcam: through which A's motion is seen in some windows.
    read_options: threads that read ahead; batches are the same whatever their number.

  Returns:
    A Grain dataset of dict(speech_a (B,T,D), motion_a (B,T,56), speech_b (B,T,D), motion_b (B,T,56), relation (B,2)).
    Its iterator has `get_state` and `set_state`, and Orbax can checkpoint it.

  Raises:
    InputError: the windows of all clips do not fill one batch.
  """
  slots = [i for i, clip in enumerate(clips) for _ in range(round(len(clip.motion_a) / window)) if
           len(clip.motion_a) >= window]
  if len(slots) < batch_size:
    found = f"{len(slots)} windows of {window} frames in {len(clips)} clips"
    raise InputError("training conversations", "", found, f"at least {batch_size}, as in a batch")

  def cut(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    clip = clips[index]
    start = int(rng.integers(0, len(clip.motion_a) - window + 1))
    return cut_window(clip, start, window, rng, webcam)

  # After repeat: an element's random numbers follow from its position in the stream, so epochs differ.
  dataset = shuffled(slots, seed).repeat(epochs).random_map(cut)
  return batch_share(dataset, batch_size, shard_index, shard_count).to_iter_dataset(read_options)


def cut_window(
    clip: MotionClip, start: int, window: int, rng: np.random.Generator, webcam: Webcam = Webcam()
) -> dict[str, np.ndarray]:
  """A window of a clip in fresh arrays, as `motion_windows` has it without the batch.

  Of each person one of the voice's variants is heard, the clean one as likely as each other, and A is seen through the webcam, where
  that is drawn. What cannot happen takes no random number.
  """
  span = slice(start, start + window)
  hear = lambda clean, degraded: np.array((clean, *degraded)[rng.integers(len(degraded) + 1) if degraded else 0][span])
  return {
      "speech_a": hear(clip.speech_a, clip.degraded_a),
      "motion_a": webcam.see(clip.motion_a, start, window, clip.basis, rng),
      "speech_b": hear(clip.speech_b, clip.degraded_b),
      "motion_b": np.asarray(clip.motion_b)[span].copy(),
      "relation": np.asarray(clip.relation, np.int32),
  }


def shuffled(source: Sequence[Any], seed: int) -> grain.MapDataset:
  """The members of a source in an order of their own in each epoch, once it is repeated."""
  # The slice takes all. Grain numbers the seeds of what follows by the transformations before it: without the slice, which
  # an earlier version had here, runs that were begun would go on with other batches.
  return grain.MapDataset.source(source).seed(seed).shuffle()[::1]


def batch_share(
    dataset: grain.MapDataset, batch_size: int, shard_index: int | None = None, shard_count: int | None = None
) -> grain.MapDataset:
  """One process's rows of every batch of a dataset.

  Batch and order do not depend on how many processes share them, and an iterator's state is the number of batches: a run
  goes on with any number of processes, on the batches that it would have had.

  Args:
    dataset: of examples; only this process's are read.
    batch_size: examples in a batch of all processes.
    shard_index, shard_count: this process and how many there are; JAX's own if None.

  Raises:
    InputError: the processes do not divide a batch.
  """
  shard_index = jax.process_index() if shard_index is None else shard_index
  shard_count = jax.process_count() if shard_count is None else shard_count
  if batch_size % shard_count:
    raise InputError("config", "batch", batch_size, f"a multiple of {shard_count}, the number of processes")
  if shard_count == 1:
    return dataset.batch(batch_size, drop_remainder=True)
  rows = _Rows(dataset, batch_size, shard_index, batch_size // shard_count)
  return grain.MapDataset.source(rows).batch(batch_size // shard_count, drop_remainder=True)


@dataclasses.dataclass(frozen=True)
class _Rows:
  """A random-access source: of every `batch` examples of a dataset the `count` ones of process `index`, in their order."""

  dataset: grain.MapDataset
  batch: int
  index: int
  count: int

  def __len__(self) -> int:
    return len(self.dataset) // self.batch * self.count

  def __getitem__(self, position: int) -> Any:
    batch, row = divmod(int(position), self.count)
    return self.dataset[batch * self.batch + self.index * self.count + row]
