"""Which of two people in a picture is which speaker of a clip: the one on the left (RealTalk's p0) or on the right (p1).

Voices and motions of the clip are compared with what moves in each half of the picture:

- **Voice.** Where a mouth is, pixels change with its speaker's loudness, syllable by syllable, and turn by turn.
- **Motion.** Where a head is, pixels change when its tracked rotation and its tracked jaw and expression change.
- **Tracks.** If the video's own tracks of both people are there, they are compared with the clip's, axis by axis.

Each asks the same of blocks of pixels: does the difference between the speakers' signals go with the left half, and its
opposite with the right one? How much that is by chance is told by the same signals, shifted in time against the picture
(in a circle). Evidence is in standard deviations of that; the answer is the sum's sign, if it is beyond a margin.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, UInt8

from rsatalker_jax.types import FPS, MOTION_GROUPS, SAMPLES_PER_FRAME

AnyMotion = Float[np.ndarray, "_ 56"]  # Of any length, beside the pictures'.
Box = tuple[float, float, float, float]  # Left, top, right, bottom, as parts of the picture's width and height.

MARGIN = 3.5  # Of the combined evidence; benchmarks/triplet_matching.py prints what right and wrong answers reach.
_BLOCK = 8  # Pixels of the small grey pictures.
_TOP = 4  # Blocks of a half that are asked: a mouth's.
_SHORTEST = 25  # Frames.
_SLOW = FPS  # Frames of the running mean that parts syllables from turns.


@dataclasses.dataclass(frozen=True)
class Sides:
  """Who is where.

  Attributes:
    left: the speaker on the left, 1 or 2; 0 if it cannot be told.
    margin: combined evidence for it, in standard deviations.
    evidence: by kind; above 0 for speaker 1 on the left.
    reason: why it cannot be told, "" if it can.
  """

  left: int
  margin: float
  evidence: dict[str, float]
  reason: str

  def side(self, speaker: int) -> int:
    """0, left, or 1, right: RealTalk's p0 and p1."""
    return 0 if speaker == self.left else 1


def find_sides(
    pictures: UInt8[np.ndarray, "T h w"],
    voices: Sequence[Float[np.ndarray, "_"]],
    motions: Sequence[AnyMotion | None] = (None, None),
    *,
    boxes: Sequence[Box | None] = (None, None),
    tracks: Sequence[AnyMotion | None] = (None, None),
    margin: float = MARGIN,
) -> Sides:
  """Tells which speaker of a clip is on the left.

  Args:
    pictures: small grey pictures of the clip, 25 a second; about 160 pixels wide.
    voices: of speaker 1 and 2, 16 kHz, beginning with the first picture.
    motions: of speaker 1 and 2; None where there is none.
    boxes: where the faces of the left and the right person are; None takes the half of the picture.
    tracks: motions that the video's own tracker found for the left and the right person at these moments.
    margin: the evidence that an answer needs.
  """
  frames = len(pictures)
  if frames < _SHORTEST:
    return Sides(0, 0.0, {}, f"too short to tell who is who: {frames} frames")
  blocks = block_motion(pictures)
  left, right = (_inside(blocks.shape[1:], box, side) for side, box in enumerate(boxes))
  # What moves in pixels is large and rare; logarithms make small movements of a mouth count.
  logs = np.log(blocks + 0.5)
  fast = _normalise(_without_trend(logs).reshape(frames, -1))
  slow = _normalise(scipy.ndimage.uniform_filter1d(logs, _SLOW // 2, axis=0).reshape(frames, -1))
  halves = left.reshape(-1), right.reshape(-1)
  loudness = [_loudness(voice, frames) for voice in voices]
  lead = loudness[0] - loudness[1]
  evidence = {
      "voice": _compare(fast, halves, _without_trend(scipy.ndimage.uniform_filter1d(lead, 3))),
      "turns": _compare(slow, halves, scipy.ndimage.uniform_filter1d(lead, _SLOW // 2)),
  }
  for name, groups in (("head", ("pose",)), ("mouth", ("jaw", "expression"))):
    speeds = [None if motion is None else _speed(motion, groups, frames) for motion in motions]
    known = [sign * speed for sign, speed in zip((1, -1), speeds) if speed is not None]
    if known:
      evidence[name] = _compare(fast, halves, sum(known))
  if all(track is not None for track in tracks) and any(motion is not None for motion in motions):
    evidence["tracks"] = _compare_tracks(tracks, motions, frames)
  total = float(sum(evidence.values()) / np.sqrt(len(evidence)))
  if abs(total) < margin:
    return Sides(0, abs(total), evidence, f"cannot tell who is who: evidence {abs(total):.1f}, and {margin} is needed")
  return Sides(1 if total > 0 else 2, abs(total), evidence, "")


def block_motion(pictures: UInt8[np.ndarray, "T h w"]) -> Float[np.ndarray, "T by bx"]:
  """Mean absolute change from picture to picture (0 to 255) in blocks of 8 x 8 pixels; the first picture's is 0."""
  frames, height, width = pictures.shape
  rows, columns = max(height // _BLOCK, 1), max(width // _BLOCK, 1)
  cut = pictures[:, : rows * _BLOCK, : columns * _BLOCK].astype(np.int16)
  change = np.abs(np.diff(cut, axis=0)).astype(np.float32)
  means = change.reshape(frames - 1, rows, cut.shape[1] // rows, columns, cut.shape[2] // columns).mean(axis=(2, 4))
  return np.concatenate([np.zeros_like(means[:1]), means])


def find_box(motion: Float[np.ndarray, "T by bx"], side: int) -> Box | None:
  """Where something moves in a half of the picture, as a rough box of head and shoulders; None where nothing does.

  For users without a face detector: its boxes are better, and replace these.

  Args:
    motion: of `block_motion`.
    side: 0 for the left half, 1 for the right one.
  """
  rows, columns = motion.shape[1:]
  mean = motion.mean(axis=0) * _inside((rows, columns), None, side)
  if mean.max() < 0.2:
    return None
  weights = np.where(mean > 0.25 * np.quantile(mean[mean > 0], 0.98), mean, 0)
  if not weights.any():
    return None
  edges = []
  for axis, count in ((0, columns), (1, rows)):
    share = np.cumsum(weights.sum(axis=axis)) / weights.sum()
    edges.append((float(np.searchsorted(share, 0.02)) / count, float(np.searchsorted(share, 0.98) + 1) / count))
  return edges[0][0], edges[1][0], min(edges[0][1], 1.0), min(edges[1][1], 1.0)


def _inside(shape: tuple[int, int], box: Box | None, side: int) -> Bool[np.ndarray, "by bx"]:
  """The blocks of a half, or of a box, whose middles are inside."""
  rows, columns = shape
  y, x = (np.arange(rows) + 0.5)[:, None] / rows, (np.arange(columns) + 0.5)[None] / columns
  if box is None:
    return np.broadcast_to((x < 0.5) if side == 0 else (x >= 0.5), shape)
  inside = (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
  return inside if inside.any() else _inside(shape, None, side)


def _loudness(voice: Float[np.ndarray, "S"], frames: int) -> Float[np.ndarray, "T"]:
  """Decibels of every frame below the voice's loudest, down to -40."""
  padded = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
  padded[: len(voice)] = voice[: len(padded)]
  power = np.mean(np.square(padded.reshape(frames, SAMPLES_PER_FRAME)), axis=1)
  loud = max(float(np.quantile(power, 0.95)), 1e-10)
  return np.clip(10 * np.log10(power / loud + 1e-5), -40, 0)


def _speed(motion: AnyMotion, groups: Sequence[str], frames: int) -> Float[np.ndarray, "T"]:
  """How fast some groups of a motion change, as a logarithm without trend, of unit deviation; 0 behind its end."""
  values = np.concatenate([motion[:frames, MOTION_GROUPS[group]] for group in groups], axis=1)
  change = np.linalg.norm(np.diff(values, axis=0, prepend=values[:1]), axis=1)
  logs = np.log(change + 0.1 * max(float(change.mean()), 1e-9))
  speed = _without_trend(logs)
  speed = speed / max(float(speed.std()), 1e-9)
  return np.pad(speed, (0, frames - len(speed)))


def _without_trend(values: Float[np.ndarray, "T *n"]) -> Float[np.ndarray, "T *n"]:
  return values - scipy.ndimage.uniform_filter1d(values, _SLOW, axis=0, mode="nearest")


def _normalise(values: Float[np.ndarray, "T n"]) -> Float[np.ndarray, "T n"]:
  """Without mean and of unit length along time; what does not move is 0."""
  values = values - values.mean(axis=0)
  length = np.linalg.norm(values, axis=0)
  return np.where(length > 1e-6 * np.sqrt(len(values)), values / np.maximum(length, 1e-12), 0)


def _shifted_products(values: Float[np.ndarray, "T n"], signal: Float[np.ndarray, "T"]) -> Float[np.ndarray, "T n"]:
  """Correlations of a signal with each column, for every circular shift of the signal."""
  signal = _normalise(signal[:, None])
  return np.fft.irfft(np.fft.rfft(values, axis=0) * np.conj(np.fft.rfft(signal, axis=0)), len(values), axis=0)


def _standardise(evidence: Float[np.ndarray, "T"]) -> float:
  """The evidence without shift, in deviations of that with shifts of a second and more."""
  chance = evidence[FPS // 2 : len(evidence) - FPS // 2]
  return float((evidence[0] - chance.mean()) / max(float(chance.std()), 1e-6))


def _compare(
    blocks: Float[np.ndarray, "T n"],
    halves: tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]],
    lead: Float[np.ndarray, "T"],
) -> float:
  """Evidence that where `lead` (speaker 1's signal minus speaker 2's) is high, the left half moves, and where low, the right."""
  products = _shifted_products(blocks, lead)
  score = []
  for half in halves:
    ordered = np.sort(products[:, half], axis=1)
    top = min(_TOP, ordered.shape[1])
    score.append(ordered[:, -top:].mean(axis=1) + ordered[:, :top].mean(axis=1))
  return _standardise(score[0] - score[1])


def _compare_tracks(tracks: Sequence[AnyMotion], motions: Sequence[AnyMotion | None], frames: int) -> float:
  """Evidence that the left track is speaker 1's motion, or the right one speaker 2's: axes of head and jaw one by one."""
  axes = np.r_[MOTION_GROUPS["jaw"], MOTION_GROUPS["pose"]]
  frames = min([frames, *(len(x) for x in (*tracks, *motions) if x is not None)])
  total = np.zeros(frames)
  for side, track in enumerate(tracks):
    for speaker, motion in enumerate(motions):
      if motion is None:
        continue
      own = _normalise(_without_trend(track[:frames, axes]))
      for axis, column in enumerate(axes):
        product = _shifted_products(own[:, axis : axis + 1], _without_trend(motion[:frames, column]))[:, 0]
        total += product if side == speaker else -product
  return _standardise(total)
