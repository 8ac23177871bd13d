"""Single frames of video files, in any order and from any thread: found by seeking, decoded when asked for."""

import contextlib
import functools
import pathlib
import threading
from collections.abc import Iterator

import av
import numpy as np
from jaxtyping import UInt8

from rsatalker_jax.errors import InputError

# Not .avi: its frames have no time stamps of their own, and with B-frames their order is lost.
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")
# Opened videos that wait for their next frame; each costs a file handle and the decoder's reference frames.
_MAX_IDLE = 16
_FORMATS = {3: "rgb24", 1: "gray"}


def read_video_frame(path: pathlib.Path, index: int, *, channels: int = 3) -> UInt8[np.ndarray, "H W *c"]:
  """Frame `index`, counted from 0 in the order in which a player shows them.

  It costs the decoding of the frames since the key frame before it; frames that are asked for in order cost one each.
  Threads decode side by side, each with a decoder of its own. A file must not change while a process reads it.

  Args:
    path: a video with time stamps, of constant or variable rate.
    index: of the frame.
    channels: 3 for sRGB (H, W, 3), 1 for brightness (H, W).

  Raises:
    InputError: the file is no video or damaged, the frame does not exist, or players would turn it.
  """
  try:
    with _DECODERS.borrow(path, index) as decoder:
      return decoder.read(index).to_ndarray(format=_FORMATS[channels])
  except InputError:
    raise
  except (OSError, ValueError, av.error.FFmpegError) as error:
    raise InputError(path, f"frame {index}", error, "a whole video file") from None


@functools.lru_cache(maxsize=4096)
def _times_and_keys(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Time stamps of all frames in order, and the numbers of the key frames; reads the file without decoding it."""
  with av.open(str(path)) as container:
    if not container.streams.video:
      raise InputError(path, "", "no video stream", "a video file")
    # What an edit list cuts off is in the file, but no player shows it.
    packets = [packet for packet in container.demux(video=0) if packet.size and not packet.is_discard]
  if any(packet.pts is None for packet in packets):
    raise InputError(path, "", "frames without time stamps", "a video in a container that has them, such as mp4")
  times = np.sort(np.array([packet.pts for packet in packets], np.int64))
  keys = np.searchsorted(times, sorted(packet.pts for packet in packets if packet.is_keyframe))
  return times, keys


class _Decoder:
  """An opened video; for one thread at a time."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._times, self._keys = _times_and_keys(path)
    self._container = av.open(str(path))
    self._stream = self._container.streams.video[0]
    self._stream.codec_context.thread_count = 1  # The threads that ask are the parallelism.
    self._frames: Iterator[av.VideoFrame] = iter(())
    self._position = len(self._times)  # Number of the frame that `_frames` gives next.

  def read(self, index: int) -> av.VideoFrame:
    if not 0 <= index < len(self._times):
      raise InputError(self.path, f"frame {index}", f"{len(self._times)} frames", "a frame that the video has")
    key = self._keys[np.searchsorted(self._keys, index, side="right") - 1]
    if not key <= self._position <= index:
      self._container.seek(int(self._times[key]), stream=self._stream)
      self._frames = self._container.decode(self._stream)
    frame = self._decode_up_to(index)
    if frame is None:
      raise InputError(self.path, f"frame {index}", "nothing that can be decoded", "a whole video file")
    if frame.rotation:
      raise InputError(self.path, "display matrix", f"a turn by {frame.rotation} degrees", "upright frames")
    self._position = index + 1
    return frame

  def _decode_up_to(self, index: int) -> av.VideoFrame | None:
    """The frame, or None where the decoder is already behind it or gives none."""
    self._position = len(self._times)
    for frame in self._frames:
      if frame.pts is not None and frame.pts >= self._times[index]:
        return frame if frame.pts == self._times[index] else None
    return None

  def close(self) -> None:
    self._frames = iter(())
    self._container.close()

  def distance(self, index: int) -> int:
    """How many frames are decoded on the way to `index` from here; huge where it lies behind."""
    return index - self._position if self._position <= index else len(self._times)


class _DecoderPool:
  """Opened videos of this process. A decoder is lent to one thread; idle ones are closed, the longest idle first."""

  def __init__(self, max_idle: int):
    self._max_idle = max_idle
    self._lock = threading.Lock()
    self._idle: list[_Decoder] = []  # The last used last.

  @contextlib.contextmanager
  def borrow(self, path: pathlib.Path, index: int) -> Iterator[_Decoder]:
    """A decoder of the video, the one with the shortest way to the frame. After an error it is not used again."""
    with self._lock:
      decoder = min((d for d in self._idle if d.path == path), key=lambda d: d.distance(index), default=None)
      if decoder is not None:
        self._idle.remove(decoder)
    decoder = decoder or _Decoder(path)
    try:
      yield decoder
    except BaseException:
      decoder.close()
      raise
    with self._lock:
      self._idle.append(decoder)
      surplus, self._idle = self._idle[: -self._max_idle], self._idle[-self._max_idle :]
    for old in surplus:
      old.close()


_DECODERS = _DecoderPool(_MAX_IDLE)
