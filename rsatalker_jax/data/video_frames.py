"""Single frames of video files, in any order and from any thread: found by seeking, decoded when asked for."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import av
import av.sidedata.sidedata
import numpy as np
from jaxtyping import Int, UInt8

from rsatalker_jax.data.images import MAX_PIXELS
from rsatalker_jax.errors import InputError

# Not .avi: its frames have no time stamps of their own, and with B-frames their order is lost.
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")
# Opened videos that wait for their next frame; each costs a file handle and the decoder's reference frames.
_MAX_IDLE = 16
_FORMATS = {3: "rgb24", 1: "gray"}
# FFmpeg takes a format from the bytes, and some of its formats are lists of other files or of addresses on the network.
_CONTAINER_OPTIONS = {"format_whitelist": "mov,matroska,webm", "protocol_whitelist": "file"}
# Left to itself, FFmpeg paints over what it cannot decode and says nothing.
_DECODER_OPTIONS = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
_SEGMENT, _CLUSTER = bytes.fromhex("18538067"), bytes.fromhex("1f43b675")
_UPRIGHT = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30])


def read_video_frame(path: pathlib.Path, index: int, *, channels: int = 3) -> UInt8[np.ndarray, "H W *c"]:
  """Frame `index`, counted from 0 in the order in which a player shows them.

  It costs the decoding of the frames since the key frame before it; frames that are asked for in order cost one each.
  Threads decode side by side, each with a decoder of its own.

  Args:
    path: a video with time stamps, of constant or variable rate.
    index: of the frame.
    channels: 3 for sRGB (H, W, 3), 1 for brightness (H, W). A film with alpha gives sRGB and alpha (H, W, 4) either way.

  Raises:
    InputError: the file is no video; the frame does not exist, or damage to it or to one that it builds on can be told;
      players would turn or mirror it; its alpha cannot be decoded.
  """
  try:
    state = os.stat(path)
    with _DECODERS.borrow(_File(path, state.st_mtime_ns, state.st_size), index) as decoder:
      frame = decoder.read(index)
      return frame.to_ndarray(format="rgba" if _has_alpha(frame) else _FORMATS[channels])
  except InputError:
    raise
  except (OSError, ValueError, av.error.FFmpegError) as error:
    raise InputError(path, f"frame {index}", error, "a whole video file") from None


@dataclasses.dataclass(frozen=True)
class VideoFacts:
  """Attributes:
    codec, pixel_format: FFmpeg's names, such as h264 and yuv420p.
    seconds: from the first frame to the end of the last.
    has_sound: whether there is a sound stream beside it.
  """

  codec: str
  pixel_format: str
  seconds: float
  has_sound: bool


def probe_video(path: pathlib.Path) -> VideoFacts:
  """Reads a video through, and decodes its first and last frame.

  Raises:
    InputError: see `read_video_frame`; or the file is damaged or cut off.
  """
  try:
    state = os.stat(path)
    file = _File(path, state.st_mtime_ns, state.st_size)
    index = _read_index(file)
    if not index.is_whole or not len(index.times):
      raise InputError(path, "", f"{len(index.times)} frames and damage behind them", "a whole video file")
    for frame in (0, len(index.times) - 1):
      read_video_frame(path, frame)
    container, stream = _open(path)
    with container:
      first, last = (float(time * stream.time_base) for time in index.times[[0, -1]])
      rate, codec = stream.average_rate, stream.codec_context
      seconds = last - first + (1 / float(rate) if rate else 0.0)
      return VideoFacts(codec.name, codec.pix_fmt, seconds, bool(container.streams.audio))
  except (OSError, ValueError, av.error.FFmpegError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(path, "", error, "a whole video file") from None


@dataclasses.dataclass(frozen=True)
class _File:
  """A video in the state in which it was met: one that was written anew is another."""

  path: pathlib.Path
  modified: int
  size: int


def _open(path: pathlib.Path) -> tuple[av.container.InputContainer, av.VideoStream]:
  # "file:" because a colon in a name would otherwise end the name of a protocol.
  container = av.open(f"file:{path}", options=dict(_CONTAINER_OPTIONS))
  stream = container.streams.best("video")
  if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
    container.close()
    raise InputError(path, "", "no video stream" if stream is None else "a video codec that is not known", "a video file")
  return container, stream


def _has_alpha(frame: av.VideoFrame) -> bool:
  return any(component.is_alpha for component in frame.format.components)


@dataclasses.dataclass(frozen=True)
class _Index:
  """What a video holds.

  Attributes:
    times: time stamps of all frames that are shown, in order (T,).
    keys: of the key frame from which each can be decoded (T,).
    is_whole: False where the file is damaged or cut off behind these frames.
  """

  times: Int[np.ndarray, "T"]
  keys: Int[np.ndarray, "T"]
  is_whole: bool


@functools.lru_cache(maxsize=4096)
def _read_index(file: _File) -> _Index:
  """Reads the file without decoding it."""
  shown: dict[int, int] = {}
  keys: list[int] = []
  container, stream = _open(file.path)
  with container:
    damage = _find_damage(file.path) if "matroska" in container.format.name else None
    is_whole, last = damage is None, -math.inf
    for packet in container.demux(stream):
      if not packet.size:
        continue
      if packet.pts is None:
        raise InputError(file.path, "", "frames without time stamps", "a video in a container that has them, such as mp4")
      if packet.is_corrupt or (damage is not None and (packet.pos or 0) + packet.size > damage):
        is_whole = False
        break
      last = last if packet.dts is None else packet.dts
      if stream.codec_context.name == "vp8" and not bytes(packet)[0] & 0x10:
        continue  # A frame for others to build on, not to be shown.
      if packet.is_keyframe:
        keys.append(packet.pts)
      # What an edit list cuts off (is_discard) no player shows, but what is shown may build on it.
      if not packet.is_discard:
        # Frames that are shown before the key frame they follow in the file build on the one before it.
        key = next((key for key in reversed(keys) if key <= packet.pts), None)
        if key is None:
          raise InputError(file.path, "", "frames that no key frame precedes", "a video that begins with a key frame")
        if packet.pts in shown:
          raise InputError(file.path, "", f"two frames at time {packet.pts}", "a time stamp of its own for every frame")
        shown[packet.pts] = key
  # Frames are shown after they are decoded, so those up to `last` are counted right whatever is lost.
  times = np.array(sorted(time for time in shown if is_whole or time <= last), np.int64)
  return _Index(times, np.array([shown[time] for time in times.tolist()], np.int64), is_whole)


def _find_damage(path: pathlib.Path) -> int | None:
  """Where the chain of elements of a Matroska file breaks; the reader of FFmpeg goes on behind it without a word."""
  with open(path, "rb") as file:
    end = size = os.fstat(file.fileno()).st_size
    position = 0
    while position < min(end, size):
      file.seek(position)
      head = file.read(12)
      name = 9 - head[0].bit_length()  # Bytes; leading zeros tell how many follow.
      width = 9 - head[name].bit_length() if name < len(head) else 9
      if name > 4 or name + width > len(head):
        return position
      start, limit = position + name + width, (1 << 7 * width) - 1
      length = int.from_bytes(head[name : name + width], "big") & limit
      if head[:name] in (_SEGMENT, _CLUSTER):  # These hold the others, and may leave their length open.
        if head[:name] == _SEGMENT and length != limit:
          end = start + length
        position = start
      elif start + length > min(end, size):
        return position
      else:
        position = start + length
  return None if end <= size else size


def _has_hole(packet: av.Packet, codec: av.VideoCodecContext) -> bool:
  """Whether H.264 or H.265 holds what no encoder writes: three zeros in a row, as where a file was never filled.

  Without this, the decoder takes zeros for motion more often than not.
  """
  header = codec.extradata or b""  # avcC or hvcC, which say how many bytes the length of each unit has.
  place = {"h264": 4, "hevc": 21}.get(codec.name)
  if place is None or len(header) <= place or header[:1] != b"\1":
    return False
  width, data, start = (header[place] & 3) + 1, bytes(packet), 0
  while start < len(data):
    end = start + width + int.from_bytes(data[start : start + width], "big")
    unit = data[start + width : end]
    if end > len(data) or not unit or b"\0\0\0" in unit:
      return True
    start = end
  return False


class _Decoder:
  """An opened video; for one thread at a time."""

  def __init__(self, file: _File):
    self.file = file
    self._index = _read_index(file)
    self._times, self._keys, self._starts = self._index.times, self._index.keys, np.unique(self._index.keys)
    self._container, self._stream = self._open()
    self._frames: Iterator[av.VideoFrame] = iter(())
    self._position = len(self._times)  # Number of the frame that `_frames` gives next.

  def _open(self) -> tuple[av.container.InputContainer, av.VideoStream]:
    container, stream = _open(self.file.path)
    stream.codec_context.thread_count = 1  # The threads that ask are the parallelism.
    stream.codec_context.options = dict(_DECODER_OPTIONS)
    return container, stream

  def read(self, index: int) -> av.VideoFrame:
    if not 0 <= index < len(self._times):
      found = f"{len(self._times)} frames" + ("" if self._index.is_whole else " and damage behind them")
      raise InputError(self.file.path, f"frame {index}", found, "a frame that the video has")
    key, frame = self._keys[index], None
    if np.searchsorted(self._times, key) <= self._position <= index:
      frame = self._advance_to(index)
    # From the key frame before it; or from an earlier one, since a frame may put away a picture from before the key frame,
    # whose lack is an error like any other; or from the first, since key frames may be whole only some frames later.
    number = np.searchsorted(self._starts, key)
    for start in dict.fromkeys(self._starts[[number, max(number - 1, 0), 0]].tolist()):
      if frame is None:
        self._frames, self._position = self._decode_from(start), int(np.searchsorted(self._times, start))
        frame = self._advance_to(index)
    if frame is None:
      raise InputError(self.file.path, f"frame {index}", "nothing that can be decoded", "a whole video file")
    self._check(frame)
    return frame

  def _advance_to(self, index: int) -> av.VideoFrame | None:
    """The frame, or None where it or one on the way to it cannot be decoded."""
    for frame in self._frames:
      # Where one is missing, those after it may show something else.
      if frame.pts != self._times[self._position] or frame.is_corrupt:
        break
      self._position += 1
      if self._position == index + 1:
        return frame
    return None

  def _check(self, frame: av.VideoFrame) -> None:
    side_data: Any = frame.side_data  # A container of them, whatever its types say.
    for data in side_data:
      if data.type == av.sidedata.sidedata.Type.DISPLAYMATRIX and np.any(np.frombuffer(data, np.int32) != _UPRIGHT):
        turn = f"a turn by {frame.rotation} degrees" if frame.rotation else "a mirrored or scaled picture"
        raise InputError(self.file.path, "display matrix", turn, "upright frames")
    if self._stream.metadata.get("alpha_mode") == "1" and not _has_alpha(frame):
      raise InputError(self.file.path, "alpha_mode", "alpha that cannot be decoded", "a film without, or masks in another")

  def _decode_from(self, key: int) -> Iterator[av.VideoFrame]:
    """Frames from the key frame with this time stamp on, in the order in which they are shown, up to the first damage."""
    self._container.seek(key, stream=self._stream)
    for packet in self._container.demux(self._stream):
      if _has_hole(packet, self._stream.codec_context):
        return
      try:
        frames = packet.decode()
      except av.error.InvalidDataError:
        return
      # Some are shown before the key frame that they follow in the file, and build on what lies before it.
      yield from (frame for frame in frames if frame.pts is None or frame.pts >= key)

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
  def borrow(self, file: _File, index: int) -> Iterator[_Decoder]:
    """A decoder of the video, the one with the shortest way to the frame. After an error it is not used again."""
    with self._lock:
      decoder = min((d for d in self._idle if d.file == file), key=lambda d: d.distance(index), default=None)
      if decoder is not None:
        self._idle.remove(decoder)
    decoder = decoder or _Decoder(file)
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
