"""mp4 with sound: H.264 video and AAC audio, written whole or not at all."""

import fractions
import os
import pathlib
from collections.abc import Iterable

import av
import numpy as np
from jaxtyping import Float, UInt8

from rsatalker_jax.files import whole_file
from rsatalker_jax.types import FPS, SAMPLE_RATE

# AAC encoders take 48 kHz everywhere; players and phones expect it.
AUDIO_RATE = 48_000


def write_video(
    path: str | os.PathLike,
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    *,
    fps: int = FPS,
    audio: Float[np.ndarray, "S C"] | None = None,
    audio_rate: int = SAMPLE_RATE,
    quality: int = 18,
    key_every: int | None = None,
) -> int:
  """Writes frames and sound; the file appears under its name only when it is complete.

  Args:
    path: ends in .mp4; its folder is made if absent.
    frames: sRGB frames, all of one even-sized shape; consumed once, so a generator keeps memory small.
    fps: frames per second.
    audio: one or two channels in [-1, 1]; cut or padded with silence to the length of the video.
    audio_rate: samples per second of `audio`.
    quality: x264's constant rate factor; less is better and larger.
    key_every: frames from one key frame to the next, which random access costs; None: the encoder's choice.

  Returns:
    The number of frames written.

  Raises:
    ValueError: if there is no frame, or a frame of another shape or an odd size.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with whole_file(path) as file, av.open(file.name, "w", format="mp4") as container:
    return _write_streams(container, frames, fps, audio, audio_rate, quality, key_every)


def _write_streams(container, frames, fps, audio, audio_rate, quality, key_every) -> int:
  video_stream = container.add_stream("libx264", rate=fps)
  video_stream.pix_fmt = "yuv420p"  # What every player decodes.
  video_stream.options = {"crf": str(quality), "preset": "medium"} | ({"g": str(key_every)} if key_every else {})
  audio_stream = None
  if audio is not None:
    layout = {1: "mono", 2: "stereo"}[audio.shape[1]]
    audio_stream = container.add_stream("aac", rate=AUDIO_RATE, layout=layout)
    audio_stream.bit_rate = 128_000

  shape, count = None, 0
  for frame in frames:
    if shape is None:
      shape = frame.shape
      video_stream.height, video_stream.width = shape[:2]
    if frame.shape != shape or shape[0] % 2 or shape[1] % 2:
      raise ValueError(f"frame {count}: {frame.shape=} must be one even-sized shape for all frames (first: {shape})")
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    picture.pts, picture.time_base = count, fractions.Fraction(1, fps)
    container.mux(video_stream.encode(picture))
    count += 1
  if not count:
    raise ValueError("a video needs at least one frame")
  container.mux(video_stream.encode())

  if audio_stream is not None:
    wanted = round(count * audio_rate / fps)
    sound = np.zeros((wanted, audio.shape[1]), np.float32)
    sound[: len(audio)] = np.clip(audio[:wanted], -1, 1)
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=AUDIO_RATE)
    packed = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="flt", layout=layout)
    packed.sample_rate, packed.pts = audio_rate, 0
    for piece in [*resampler.resample(packed), *resampler.resample(None)]:
      container.mux(audio_stream.encode(piece))
    container.mux(audio_stream.encode())
  return count


def pan_two_voices(
    left: Float[np.ndarray, "L"], right: Float[np.ndarray, "R"], separation: float = 0.6
) -> Float[np.ndarray, "S 2"]:
  """Two mono voices as stereo, as long as the longer, each nearer to its face. `separation` 0: mono, 1: hard left and right."""
  length = max(len(left), len(right))
  left, right = (np.pad(x, (0, length - len(x))) for x in (left, right))
  near, far = (1 + separation) / 2, (1 - separation) / 2
  return np.clip(np.stack([near * left + far * right, far * left + near * right], axis=1), -1, 1).astype(np.float32)


def to_uint8(image: Float[np.ndarray, "*b H W 3"]) -> UInt8[np.ndarray, "*b H W 3"]:
  """[0, 1] to 0..255, rounded and clipped."""
  return np.rint(np.clip(np.asarray(image), 0, 1) * 255).astype(np.uint8)
