"""From conversations to training batches: features in memory, windows and batches through Grain.

Every window that is drawn is a fresh copy with its own start; starts and order follow from the seed and the position in the
stream alone, so an iterator restored from a checkpoint goes on with exactly the batches it would have produced.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import grain
import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.errors import InputError, MissingFeatures
from rsatalker_jax.types import SAMPLES_PER_FRAME, Conversation, Motion

STD_FLOOR = 1e-3  # Dimensions that never move would otherwise be divided by nothing.


@dataclasses.dataclass(frozen=True)
class MotionClip:
  """A `Conversation` with its voices as features: what the motion generator is trained and tested on.

  Attributes:
    name: conversation and the person to generate.
    speech_a, speech_b: features of both voices, (T, D) at 25 fps.
    motion_a, motion_b: motions, (T, 56); `motion_b` is None where there is no ground truth.
    relation: [blood, equal]; -1 for unknown.
  """

  name: str
  speech_a: Float[np.ndarray, "T D"]
  motion_a: Motion
  speech_b: Float[np.ndarray, "T D"]
  motion_b: Motion | None
  relation: Int[np.ndarray, "2"]


def load_clips(
    source: Iterable[Conversation], encode: Callable[[Float[np.ndarray, "S"], int], Float[np.ndarray, "T D"]]
) -> list[MotionClip]:
  """Encodes all voices of a source and keeps everything in memory (50 hours of 128 features: 2.3 GB a voice).

  Args:
    source: conversations, for example a `DualTalkSource`.
    encode: from a voice and a number of frames to features: `speech.SpeechFeatures`.

  Raises:
    MissingFeatures: names the clip whose voice has no features, if they must not be computed.
  """
  clips = []
  features: dict[bytes, np.ndarray] = {}  # Both directions of a conversation share their voices.
  for conversation in source:
    encoded = []
    for wav in (conversation.speech_a, conversation.speech_b):
      key = wav.tobytes()
      if key not in features:
        try:
          features[key] = encode(wav, len(wav) // SAMPLES_PER_FRAME)
        except MissingFeatures as error:
          raise MissingFeatures(error.file, conversation.name) from None
      encoded.append(features[key])
    if len(features) > 4:  # Directions follow each other; older voices do not come back.
      features = dict(list(features.items())[-2:])
    clips.append(
        MotionClip(
            name=conversation.name,
            speech_a=encoded[0],
            motion_a=conversation.motion_a,
            speech_b=encoded[1],
            motion_b=conversation.motion_b,
            relation=conversation.relation,
        )
    )
  return clips


def motion_statistics(clips: Iterable[MotionClip]) -> tuple[Float[np.ndarray, "56"], Float[np.ndarray, "56"]]:
  """Mean and standard deviation of each motion dimension over all frames to be generated (use training clips)."""
  motions = np.concatenate([clip.motion_b for clip in clips]).astype(np.float64)
  return motions.mean(axis=0), np.maximum(motions.std(axis=0), STD_FLOOR)


def motion_windows(
    clips: Sequence[MotionClip],
    *,
    window: int,
    batch_size: int,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
    epochs: int | None = None,
) -> grain.IterDataset:
  """Makes shuffled batches of random windows.

  In an epoch a clip of T frames gives round(T / window) windows, each from a new random start. Clips shorter than a
  window are left out.

  Args:
    clips: training clips, with ground truth.
    window: frames of a window.
    batch_size: windows per batch, in this process.
    seed: of order and starts.
    shard_index, shard_count: this process and how many there are (`jax.process_index()`, `jax.process_count()`): each
      gets its own part of every epoch.
    epochs: passes through the data; None never ends.

  Returns:
    A Grain dataset of dict(speech_a (B,T,D), motion_a (B,T,56), speech_b (B,T,D), motion_b (B,T,56), relation (B,2)).
    Its iterator has `get_state` and `set_state`, and Orbax can checkpoint it.

  Raises:
    InputError: the windows of all clips do not fill one batch in each process.
  """
  slots = [i for i, clip in enumerate(clips) for _ in range(round(len(clip.motion_a) / window)) if
           len(clip.motion_a) >= window]
  if len(slots) // shard_count < batch_size:
    found = f"{len(slots)} windows of {window} frames in {len(clips)} clips"
    raise InputError("training conversations", "", found, f"at least {batch_size} for each of {shard_count} processes")

  def cut(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    clip = clips[index]
    start = int(rng.integers(0, len(clip.motion_a) - window + 1))
    return {
        "speech_a": clip.speech_a[start : start + window].copy(),
        "motion_a": clip.motion_a[start : start + window].copy(),
        "speech_b": clip.speech_b[start : start + window].copy(),
        "motion_b": clip.motion_b[start : start + window].copy(),
        "relation": np.asarray(clip.relation, np.int32),
    }

  dataset = grain.MapDataset.source(slots).seed(seed).shuffle()[shard_index::shard_count].repeat(epochs)
  # After repeat: an element's random numbers follow from its position in the stream, so epochs differ.
  dataset = dataset.random_map(cut).batch(batch_size, drop_remainder=True)
  return dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
