"""Whether a generator drifts: its error minute by minute of a conversation of ten minutes, generated in one go.

Nobody in the embedded world talks for so long: clips of one relation are joined as if they were one conversation. What is
hard in a minute is hard however it is generated, so the same frames are generated clip by clip too.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.evaluation.motion_metrics import evaluate_distances
from rsatalker_jax.types import FPS, Motion

MINUTE = 60 * FPS
LONGEST = 10 * MINUTE
_SHORTEST = 2 * MINUTE  # Of less there is no later minute to compare the first one with.


@dataclasses.dataclass(frozen=True)
class LongConversation:
  """Clips that follow each other as if they were one.

  Attributes:
    clip: all of it.
    starts: the first frame of each clip that it is made of.
  """

  clip: MotionClip
  starts: tuple[int, ...]


def join_clips(clips: Iterable[MotionClip]) -> LongConversation | None:
  """Up to ten minutes of clips of one relation, read no further than that; None where they make less than two minutes."""
  parts, starts, frames = [], [], 0
  for clip in clips:
    parts.append(clip)
    starts.append(frames)
    frames += len(clip.motion_b)
    if frames >= LONGEST:
      break
  if frames < _SHORTEST:
    return None
  join = lambda field: np.concatenate([np.asarray(getattr(part, field)) for part in parts])[:LONGEST]
  fields = {field: join(field) for field in ("speech_a", "motion_a", "speech_b", "motion_b")}
  name = parts[0].name + f" and {len(parts) - 1} more" * (len(parts) > 1)
  return LongConversation(MotionClip(name=name, relation=parts[0].relation, basis=parts[0].basis, **fields), tuple(starts))


def error_by_minute(generate: Callable[[MotionClip], Motion], conversation: LongConversation) -> list[dict[str, float]]:
  """Scores of each whole minute of a conversation that is generated in one go: "fd/expression", "mse/jaw" …
  (`motion_metrics.evaluate_distances`), and of the same frames generated clip by clip, "pieces/mse/jaw" …."""
  clip, starts = conversation.clip, conversation.starts
  truth = np.asarray(clip.motion_b)
  whole = generate(clip)
  pieces = []
  for start, end in zip(starts, [*starts[1:], len(whole)]):
    part = {field: getattr(clip, field)[start:end] for field in ("speech_a", "motion_a", "speech_b", "motion_b")}
    pieces.append(generate(dataclasses.replace(clip, **part)))
  pieces = np.concatenate(pieces)
  minutes = []
  for start in range(0, len(whole) - MINUTE + 1, MINUTE):
    minute = slice(start, start + MINUTE)
    apart = evaluate_distances(pieces[minute], truth[minute])
    minutes.append(
        evaluate_distances(whole[minute], truth[minute]) | {f"pieces/{name}": value for name, value in apart.items()}
    )
  return minutes
