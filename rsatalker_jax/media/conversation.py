"""Two faces side by side, with a caption strip that says who is who and whose voice is heard."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from rsatalker_jax.types import SAMPLE_RATE

_STRIP = 36  # Height of the caption strip in pixels.
_BACK, _TEXT, _IDLE, _VOICE = (24, 26, 30), (235, 235, 235), (70, 74, 82), (120, 200, 140)


def voice_levels(wav: Float[np.ndarray, "S"], num_frames: int, fps: int) -> Float[np.ndarray, "T"]:
  """Loudness of each frame from 0 (-60 dB of full scale or less) to 1 (full scale)."""
  samples = SAMPLE_RATE // fps
  padded = np.zeros(num_frames * samples, np.float32)
  padded[: min(len(wav), len(padded))] = wav[: len(padded)]
  power = np.mean(padded.reshape(num_frames, samples) ** 2, axis=1)
  return np.clip(1 + 10 * np.log10(power + 1e-12) / 60, 0, 1)


def side_by_side(
    frames_a: Iterable[UInt8[np.ndarray, "H W 3"]],
    frames_b: Iterable[UInt8[np.ndarray, "H W 3"]],
    labels: tuple[str, str] | None,
    levels: tuple[Float[np.ndarray, "T"], Float[np.ndarray, "T"]],
) -> Iterator[UInt8[np.ndarray, "H2 W2 3"]]:
  """Frames of A left and of B right, each over its label and a bar as long as its voice is loud; without labels, faces alone.

  Sizes come out even, those of faces of odd height alone excepted.
  """
  font = ImageFont.load_default(size=15)
  for left, right, level_a, level_b in zip(frames_a, frames_b, *levels, strict=True):
    faces = np.concatenate([left, right], axis=1)
    if labels is None:
      yield faces
      continue
    height, width = left.shape[:2]
    strip = Image.new("RGB", (2 * width, _STRIP + height % 2), _BACK)
    draw = ImageDraw.Draw(strip)
    for x, label, level in ((0, labels[0], level_a), (width, labels[1], level_b)):
      draw.text((x + 8, 5), label, fill=_TEXT, font=font)
      draw.rectangle((x + 8, _STRIP - 9, x + width - 9, _STRIP - 6), fill=_IDLE)
      draw.rectangle((x + 8, _STRIP - 9, x + 8 + int(level * (width - 17)), _STRIP - 6), fill=_VOICE)
    yield np.concatenate([faces, np.asarray(strip)], axis=0)
