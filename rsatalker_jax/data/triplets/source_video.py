"""Long videos of two people: their sound on the clock of their pictures, and the pictures shown at given moments.

Sound is 16 kHz mono float32, and its sample 0 is heard when the first frame is shown. Unlike `data.video_frames`, this reads
AVI, which RealTalk is in: frames have no time stamps of their own there, so they are counted from the key frame before them,
whose number the container knows.
"""

import pathlib
from collections.abc import Iterator, Sequence

import av
import numpy as np
from jaxtyping import Float

from rsatalker_jax.data.audio import mix_channels
from rsatalker_jax.data.images import MAX_PIXELS
from rsatalker_jax.errors import InputError
from rsatalker_jax.types import SAMPLE_RATE

MAX_SECONDS = 4 * 3600
# Seconds by which time stamps of sound may differ from the count of samples: containers round them.
_JITTER = 0.02
SUFFIXES = (".avi", ".mp4", ".mov", ".mkv", ".webm")
# A seek asks for a moment this much earlier: containers find key frames by decoding time.
_EARLIER = 1.0
# FFmpeg takes a format from the bytes, and some of its formats are lists of other files or of addresses on the network.
_CONTAINER_OPTIONS = {"format_whitelist": "mov,matroska,webm,avi,mp4", "protocol_whitelist": "file"}


def read_video_sound(path: pathlib.Path) -> tuple[Float[np.ndarray, "S"], list[str]]:
  """Reads the whole sound of a video.

  Packets that cannot be decoded, and gaps between time stamps, are silence, so that what follows stays in time.

  Args:
    path: a video (.avi, .mp4, .mov, .mkv, .webm) with sound of any codec, rate and number of channels.

  Returns:
    wav: (S,) float32, 16 kHz, mono; sample 0 is heard when the first frame is seen.
    notes: one sentence for each thing that was changed on the way.

  Raises:
    InputError: the file is no video, has no sound or no pictures, or is longer than 4 hours.
  """
  notes: list[str] = []
  try:
    # "file:" because a colon in a name would otherwise end the name of a protocol.
    with av.open(f"file:{path}", options=dict(_CONTAINER_OPTIONS)) as container:
      pieces, damaged = _decode(path, container)
  except InputError:
    raise
  except (OSError, ValueError, av.error.FFmpegError) as error:
    raise InputError(path, "", getattr(error, "strerror", None) or error, "a whole video file") from None
  pieces = [(start, piece) for start, piece in pieces if start + len(piece) > 0]
  if not pieces:
    raise InputError(path, "sound", "nothing that can be decoded", "a video with sound")
  if damaged:
    notes.append(f"{path}: {damaged} packets of sound cannot be decoded, and are silence")
  channels = max(piece.shape[1] for _, piece in pieces)
  samples = np.zeros((max(start + len(piece) for start, piece in pieces), channels), np.float32)
  for start, piece in pieces:
    piece, start = piece[max(-start, 0) :], max(start, 0)
    samples[start : start + len(piece), : piece.shape[1]] = piece
  return np.nan_to_num(np.asarray(mix_channels(samples)[0], np.float32)), notes


def _decode(path: pathlib.Path, container: av.container.InputContainer) -> tuple[list[tuple[int, np.ndarray]], int]:
  """Pieces at 16 kHz (first sample, (n, channels)), and how many packets could not be decoded."""
  if not container.streams.audio:
    raise InputError(path, "sound", "no sound stream", "a video with sound")
  if not container.streams.video:
    raise InputError(path, "pictures", "no video stream", "a video with sound")
  stream, video = container.streams.audio[0], container.streams.video[0]
  if stream.codec_context is None:
    raise InputError(path, "sound", "a codec that is not known", "a video with sound")
  first = (video.start_time or 0) * _tick(path, video)
  pieces: list[tuple[int, np.ndarray]] = []
  damaged, heard = 0, None  # `heard`: seconds up to which there is sound.
  resampler: av.AudioResampler | None = None

  def add(made: list[av.AudioFrame]) -> None:
    nonlocal written
    for frame in made:
      pieces.append((written, frame.to_ndarray().T))
      written += frame.samples

  written = 0
  for packet in container.demux(stream):
    try:
      frames = packet.decode()
    except av.error.InvalidDataError:
      damaged += 1
      continue
    for frame in frames:
      stamp = None if frame.time is None else frame.time - first
      if resampler is None or heard is None or (stamp is not None and abs(stamp - heard) > _JITTER):
        if resampler is not None:
          add(resampler.resample(None))
        heard = (heard or 0.0) if stamp is None else stamp
        written, resampler = round(heard * SAMPLE_RATE), av.AudioResampler(format="fltp", rate=SAMPLE_RATE)
      if heard > MAX_SECONDS:
        raise InputError(path, "length", f"more than {MAX_SECONDS // 3600} hours", f"at most {MAX_SECONDS // 3600} hours")
      heard += frame.samples / frame.sample_rate
      frame.pts = None  # Stamps that containers have rounded would make the resampler stretch the sound.
      add(resampler.resample(frame))
  if resampler is not None:
    add(resampler.resample(None))
  return pieces, damaged


def read_frames_at(path: pathlib.Path, times: Sequence[float]) -> Iterator[av.VideoFrame]:
  """The frames nearest to some moments, one for each; the decoding begins at the key frame before the first.

  Args:
    path: a video.
    times: ascending, in seconds of the video's clock (0: the first frame).

  Raises:
    InputError: the file is no video, is damaged between its key frame and the last moment, ends half a frame or more before
      it, or is one that players would turn.
  """
  try:
    yield from _nearest(path, _decode_from(path, times[0]), times)
  except InputError:
    raise
  except (OSError, ValueError, av.error.FFmpegError) as error:
    raise InputError(path, "", getattr(error, "strerror", None) or error, "a whole video file") from None


def _nearest(path: pathlib.Path, shown: Iterator[tuple[float, av.VideoFrame]], times: Sequence[float]) -> Iterator[av.VideoFrame]:
  before = after = next(shown, None)
  if before is None:
    raise InputError(path, f"{times[0]:.2f} s", "no frame", "a video as long as its sound")
  for wanted in times:
    while after is not None and after[0] < wanted:
      before, after = after, next(shown, None)
    if after is None and wanted - before[0] > 0.04:
      raise InputError(path, f"{wanted:.2f} s", f"a last frame at {before[0]:.2f} s", "a video as long as its sound")
    nearest = before if after is None or wanted - before[0] <= after[0] - wanted else after
    if nearest[1].rotation:
      raise InputError(path, "display matrix", f"a turn by {nearest[1].rotation} degrees", "upright frames")
    yield nearest[1]


def _tick(path: pathlib.Path, stream: av.VideoStream) -> float:
  """Seconds of a unit of a stream's time stamps."""
  if not stream.time_base:
    raise InputError(path, "pictures", "no unit of time", "a video")
  return float(stream.time_base)


def _decode_from(path: pathlib.Path, seconds: float) -> Iterator[tuple[float, av.VideoFrame]]:
  """Frames and when they are shown, from a key frame before a moment on."""
  for earlier in (_EARLIER, 10.0, None):  # Some containers' tables lead to a later key frame.
    with av.open(f"file:{path}", options=dict(_CONTAINER_OPTIONS)) as container:
      if not container.streams.video or container.streams.video[0].codec_context is None:
        raise InputError(path, "pictures", "no video stream that can be decoded", "a video")
      stream = container.streams.video[0]
      codec = stream.codec_context
      codec.thread_count = 1  # The processes are the parallelism.
      codec.options = {"max_pixels": str(MAX_PIXELS)}
      tick = _tick(path, stream)
      first = (stream.start_time or 0) * tick
      if earlier is not None and seconds > earlier:
        container.seek(int((seconds - earlier + first) / tick), stream=stream)
      frames = _stamped(container, stream, first, tick)
      frame = next(frames, None)
      if frame is None or (frame[0] > seconds + 0.02 and earlier is not None and seconds > earlier):
        continue
      yield frame
      yield from frames
      return


def _stamped(
    container: av.container.InputContainer, stream: av.VideoStream, first: float, tick: float
) -> Iterator[tuple[float, av.VideoFrame]]:
  number = None
  count = "avi" in container.format.name
  for packet in container.demux(stream):
    if number is None:
      if not packet.is_keyframe or (count and packet.dts is None):
        continue
      number = packet.dts or 0
    for frame in packet.decode():
      if count:  # Closed groups of pictures: the key frame is shown first.
        yield number * tick, frame
        number += 1
      elif frame.time is not None:
        yield frame.time - first, frame
