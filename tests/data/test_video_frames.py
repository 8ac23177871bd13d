"""Frames of videos in any order, from threads, against the same video decoded from its beginning."""

import concurrent.futures
import fractions
import io
import pathlib

import av
import numpy as np
import pytest

from rsatalker_jax.data import video_frames
from rsatalker_jax.data.video_frames import probe_video, read_video_frame
from rsatalker_jax.errors import InputError

FRAMES, WIDTH, HEIGHT = 40, 48, 32


def write_video(path, codec="libx264", pixels="yuv420p", options=None, times=range(FRAMES), frames=None, turn=0, container=None):
  """Frames that move, so that every one depends on others."""
  noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH + FRAMES, 3), np.uint8)
  frames = [noise[:, t : t + WIDTH] for t in range(FRAMES)] if frames is None else frames
  with av.open(f"file:{path}", "w", options=container or {}) as container:
    stream = container.add_stream(codec, rate=25, options=options or {})
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = pixels
    if turn:
      stream.set_display_rotation(turn)
    for time, frame in zip(times, frames):
      picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24" if frame.ndim == 3 else "gray")
      picture.pts, picture.time_base = time, fractions.Fraction(1, 25)
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
  return path


def decode_all(path):
  with av.open(f"file:{path}") as container:
    return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def change_packets(path, change):
  """The same film, not encoded again, with `change(packet number, packet)` in place of each packet; None drops it."""
  source = path.with_name(f"source-{path.name}")
  path.rename(source)
  with av.open(str(source)) as old, av.open(str(path), "w") as new:
    stream = new.add_stream_from_template(old.streams.video[0])
    for number, packet in enumerate(old.demux(video=0)):
      if packet.size and (packet := change(number, packet)) is not None:
        packet.stream = stream
        new.mux(packet)


def trim(path):
  """As a telephone does: an edit list hides the first frames, the key frame of those after them among them."""

  def earlier(number, packet):
    step = packet.duration
    packet.pts, packet.dts = packet.pts - 5 * step, packet.dts - 5 * step
    return packet

  change_packets(path, earlier)
  assert len(decode_all(path)) == FRAMES - 5


def hide(path):
  """Clears the bit that says that a frame of VP8 is shown, of every fifth."""

  def hidden(number, packet):
    if number % 5 != 3:
      return packet
    data = bytearray(bytes(packet))
    data[0] &= ~0x10
    changed = av.Packet(bytes(data))
    changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
    return changed

  change_packets(path, hidden)
  assert len(decode_all(path)) == FRAMES - 8


VIDEOS = {
    # Frames after a key frame that are shown before it: they need the frames before it.
    "open groups": ("a.mp4", dict(options={"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"})),
    "one group": ("a.mp4", dict(options={"bf": "2"})),
    "uneven rate": ("a.mkv", dict(options={"g": "6"}, times=np.cumsum(1 + np.arange(FRAMES) % 3))),
    "other codec": ("a.mov", dict(codec="mpeg4", options={"g": "7", "bf": "2"})),
    # No frame is a key frame by itself after the first.
    "intra refresh": ("a.mp4", dict(options={"g": "12", "x264-params": "intra-refresh=1:bframes=0"})),
    "trimmed": ("a.mp4", dict(options={"bf": "2"}, change=trim)),
    "trimmed in short groups": ("a.mp4", dict(options={"g": "8", "bf": "3"}, change=trim)),
    "hidden frames": ("a.webm", dict(codec="libvpx", options={"g": "12"}, change=hide)),
    "colon in the name": ("a:0.mkv", dict(options={"g": "12"})),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_any_order_and_threads_give_what_a_player_shows(tmp_path, monkeypatch, name):
  file, options = VIDEOS[name]
  monkeypatch.chdir(tmp_path)
  path = write_video(pathlib.Path(file), **{key: value for key, value in options.items() if key != "change"})
  options.get("change", lambda path: None)(path)
  expected = decode_all(path)
  order = np.random.default_rng(1).permutation(len(expected))
  for index in (*order[:20], *range(5, 12), 0, len(expected) - 1):
    np.testing.assert_array_equal(read_video_frame(path, int(index)), expected[index])
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for index, frame in zip(order, pool.map(lambda i: read_video_frame(path, int(i)), order)):
      np.testing.assert_array_equal(frame, expected[index])


def test_brightness_alone(tmp_path):
  levels = [np.full((HEIGHT, WIDTH), 60 * t, np.uint8) for t in range(5)]
  path = write_video(tmp_path / "mask.mp4", frames=levels)
  # Limited-range video holds 220 of the 256 levels.
  np.testing.assert_allclose(read_video_frame(path, 3, channels=1), levels[3], atol=1)


def test_frames_in_order_are_decoded_once(tmp_path, monkeypatch):
  path = write_video(tmp_path / "a.mp4", options={"g": "20"})
  seeks = []
  find = video_frames._Decoder.distance
  monkeypatch.setattr(video_frames._Decoder, "distance", lambda self, i: seeks.append(find(self, i)) or find(self, i))
  for index in range(0, 18, 2):
    read_video_frame(path, index)
  assert seeks == [1] * 8  # One decoder, each time one frame before the wanted one.


def test_idle_decoders_are_bounded(tmp_path, monkeypatch):
  pool = video_frames._DecoderPool(max_idle=2)
  monkeypatch.setattr(video_frames, "_DECODERS", pool)
  paths = [write_video(tmp_path / f"{k}.mp4", frames=[np.full((HEIGHT, WIDTH), 50 * k, np.uint8)] * 3) for k in range(4)]
  for path in (*paths, *paths):
    np.testing.assert_allclose(read_video_frame(path, 1), 50 * int(path.stem), atol=2)
    assert len(pool._idle) <= 2


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_at(content, place):
  return content[:place]


def cut_between(content, place):
  """Behind the frame that reaches there."""
  with av.open(io.BytesIO(content)) as container:
    ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
  return content[: min(end for end in ends if end > place)]


def leave_empty(content, place):
  """As a download or a copy that was not finished does."""
  return content[:place] + bytes(900) + content[place + 900 :]


DAMAGES = {
    # An index in front is whole, and names frames that are not there.
    "cut off": ("a.mp4", dict(options={"g": "8", "bf": "3"}, container={"movflags": "faststart"}), cut_at),
    "cut off, other codec": ("a.mp4", dict(codec="mpeg4", options={"bf": "2"}, container={"movflags": "faststart"}), cut_at),
    # FFmpeg goes on behind what it cannot read, with fewer frames.
    "cut off, elements": ("a.mkv", dict(options={"g": "8", "bf": "3"}), cut_at),
    "cut off between elements": ("a.mkv", dict(options={"g": "8", "bf": "3"}), cut_between),
    "empty, elements": ("a.mkv", dict(options={"g": "8", "bf": "3"}), leave_empty),
    "empty": ("a.mp4", dict(options={"g": "8", "bf": "3"}), leave_empty),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_film_never_shows_another_picture(tmp_path, name):
  file, options, damage = DAMAGES[name]
  path = write_video(tmp_path / file, **options)
  whole, expected = path.read_bytes(), decode_all(path)
  shown = []
  for place in np.linspace(0.3, 0.8, 11) * len(whole):
    path.write_bytes(damage(whole, int(place)))
    shown.append(0)
    for index in range(FRAMES):
      try:
        np.testing.assert_array_equal(read_video_frame(path, index), expected[index])
        shown[-1] += 1
      except InputError as error:
        assert str(error).startswith(f"{path}: frame {index}: found ")
  assert max(shown) < FRAMES and np.mean(shown) > 8


def test_where_the_chain_of_elements_breaks(tmp_path):
  path, segment, void = tmp_path / "a.mkv", bytes.fromhex("18538067"), b"\xec\x84" + bytes(4)
  for content, place in (
      (segment + b"\x8c" + 2 * void, None),
      (segment + b"\x8c" + void, 11),  # Cut off between two elements.
      (segment + b"\x8c" + void + void[:3], 11),
      (segment + b"\x86" + void + bytes(9), None),  # What follows the segment is none of it.
      (segment + b"\xff" + 2 * void, None),  # Of open length.
      (segment + b"\x98" + void + bytes(6) + 2 * void, 11),
  ):
    path.write_bytes(content)
    assert video_frames._find_damage(path) == place


def test_a_film_that_was_sent_as_it_was_made(tmp_path):
  path = write_video(tmp_path / "a.mkv", options={"g": "8"}, container={"live": "1"})  # Its elements' lengths are open.
  assert len(decode_all(path)) == FRAMES
  for index in (20, 3, FRAMES - 1):
    np.testing.assert_array_equal(read_video_frame(path, index), decode_all(path)[index])


def test_decoding_starts_at_the_key_frame_before(tmp_path, monkeypatch):
  path = write_video(tmp_path / "a.mp4", **VIDEOS["open groups"][1])
  times, keys = [], []
  with av.open(str(path)) as container:
    for packet in container.demux(video=0):
      times += [packet.pts] if packet.size else []
      keys += [packet.pts] if packet.is_keyframe else []
  starts = []
  decode = video_frames._Decoder._decode_from
  monkeypatch.setattr(video_frames._Decoder, "_decode_from", lambda self, key: starts.append(key) or decode(self, key))
  for index in (7, 8, 14, 15, 20):
    monkeypatch.setattr(video_frames, "_DECODERS", video_frames._DecoderPool(max_idle=2))
    read_video_frame(path, index)
    assert starts == [max(key for key in keys if key <= sorted(times)[index])]
    starts.clear()


def test_what_ffmpeg_would_paint_over_is_refused(tmp_path):
  path = write_video(tmp_path / "a.mov", codec="mjpeg", pixels="yuvj420p")
  whole, expected = path.read_bytes(), decode_all(path)
  refused, wrong = 0, 0
  for place in (np.linspace(0.3, 0.8, 11) * len(whole)).astype(int):
    path.write_bytes(whole[:place] + b"\xff" * 200 + whole[place + 200 :])
    for index in range(FRAMES):
      try:
        wrong += np.any(read_video_frame(path, index) != expected[index])
      except InputError:
        refused += 1
  # There are no checksums: what can be decoded to something is taken.
  assert refused >= 10 * wrong and refused > 8


def test_no_frame_is_decoded_beyond_the_limit(tmp_path, monkeypatch):
  path = write_video(tmp_path / "a.mp4")
  monkeypatch.setitem(video_frames._DECODER_OPTIONS, "max_pixels", str(64 * 48))
  read_video_frame(path, 1)
  monkeypatch.setattr(video_frames, "_DECODERS", video_frames._DecoderPool(max_idle=2))
  monkeypatch.setitem(video_frames._DECODER_OPTIONS, "max_pixels", str(WIDTH * HEIGHT // 2))
  with pytest.raises(InputError, match="a.mp4: frame 1: found"):
    read_video_frame(path, 1)


def test_what_a_film_is(tmp_path):
  facts = probe_video(write_video(tmp_path / "a.mp4"))
  assert facts == video_frames.VideoFacts("h264", "yuv420p", pytest.approx(FRAMES / 25), False)
  facts = probe_video(write_video(tmp_path / "b.webm", codec="libvpx-vp9", pixels="yuv444p", times=range(3, 3 + FRAMES)))
  assert (facts.codec, facts.pixel_format, facts.seconds) == ("vp9", "yuv444p", pytest.approx(FRAMES / 25, abs=0.002))
  with av.open(str(tmp_path / "c.mp4"), "w") as container:
    video, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=48000, layout="mono")
    video.width = video.height = 32
    container.mux([*video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))), *video.encode()])
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    silence.sample_rate = 48000
    container.mux([*sound.encode(silence), *sound.encode()])
  assert probe_video(tmp_path / "c.mp4").has_sound


def test_a_film_is_read_to_its_end(tmp_path):
  path = write_video(tmp_path / "a.mp4", container={"movflags": "faststart"})
  content = path.read_bytes()
  path.write_bytes(content[:-100])
  with pytest.raises(InputError, match="a.mp4: found .* damage behind them"):
    probe_video(path)
  path.write_bytes(content[:-4000] + bytes(4000))
  with pytest.raises(InputError, match="a.mp4"):
    probe_video(path)
  with pytest.raises(InputError, match="nothing.mp4"):
    probe_video(tmp_path / "nothing.mp4")


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
  path = write_video(tmp_path / "a.mkv", frames=[np.full((HEIGHT, WIDTH), 50, np.uint8)] * 3)
  read_video_frame(path, 0)
  write_video(path, frames=[np.full((HEIGHT, WIDTH), 200, np.uint8)] * 2)
  np.testing.assert_allclose(read_video_frame(path, 1), 200, atol=2)
  with pytest.raises(InputError, match="found 2 frames"):
    read_video_frame(path, 2)


def test_alpha_of_a_film(tmp_path):
  frames = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 4), np.uint8)
  with av.open(str(tmp_path / "a.mov"), "w") as container:
    stream = container.add_stream("qtrle", rate=25)
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "argb"
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba").reformat(format="argb")))
    container.mux(stream.encode())
  for channels in (1, 3):
    np.testing.assert_array_equal(read_video_frame(tmp_path / "a.mov", 1, channels=channels), frames[1])


def mirror(path):
  """Turns the y axis over in the film's header."""
  content = bytearray(path.read_bytes())
  scale = content.index(b"tkhd") + 4 + 40 + 16
  assert content[scale : scale + 4] == b"\0\1\0\0"
  content[scale : scale + 4] = b"\xff\xff\0\0"
  path.write_bytes(content)


def lose_headers(path):
  """Without the codec's header FFmpeg cannot tell key frames."""
  content = bytearray(path.read_bytes())
  start = content.index(b"avcC") + 4
  content[start : start + 20] = b"\xff" * 20
  path.write_bytes(content)


def repeat_time(number, packet):
  packet.pts += packet.duration if number == 4 else 0
  return packet


MISTAKES = {
    "beyond the end": (
        "a.mp4", {}, lambda path: None, 40,
        "a.mp4: frame 40: found 40 frames, expected a frame that the video",
    ),
    "cut off": ("a.mp4", {}, cut, 3, "a.mp4: frame 3: found .*, expected a whole video file"),
    "cut off in the middle": (
        "a.mkv", dict(options={"g": "5"}), cut, 39,
        "a.mkv: frame 39: found .* frames and damage behind them",
    ),
    "cut off behind its index": (
        "a.mp4",
        dict(options={"g": "5"}, container={"movflags": "faststart"}),
        cut,
        39,
        "a.mp4: frame 39: found .* frames and damage behind them",
    ),
    "no video": ("a.mp4", {}, lambda path: path.write_bytes(b"text"), 0, "a.mp4: frame 0: found .* expected a whole video"),
    "sound alone": ("a.mp4", None, lambda path: None, 0, "a.mp4: found no video stream"),
    "mirrored": (
        "a.mp4", {}, mirror, 0,
        "a.mp4: display matrix: found a mirrored or scaled picture, expected upright frames",
    ),
    "no key frames": ("a.mp4", {}, lose_headers, 2, "a.mp4: found frames that no key frame precedes"),
    "late key frame": (
        "a.mkv",
        dict(options={"g": "6", "bf": "0"}),
        lambda path: change_packets(path, lambda number, packet: packet if number else None),
        9,
        "a.mkv: found frames that no key frame precedes, expected a video that begins with a key frame",
    ),
    "one time twice": (
        "a.mkv", dict(options={"bf": "0"}), lambda path: change_packets(path, repeat_time), 9, "a.mkv: found two frames at time 200"
    ),
    # Programs that follow such a list read other files, or addresses.
    "list of files": (
        "a.mp4",
        {},
        lambda path: (path.rename(path.with_name("b.mp4")), path.write_text("ffconcat version 1.0\nfile b.mp4\n")),
        0,
        "a.mp4: frame 0: found .*, expected a whole video file",
    ),
    "lost alpha": (
        "a.webm",
        dict(codec="libvpx-vp9", pixels="yuva420p"),
        lambda path: None,
        0,
        "a.webm: alpha_mode: found alpha that cannot be decoded",
    ),
    "turned": ("a.mp4", dict(turn=90), lambda path: None, 0, "a.mp4: display matrix: found a turn by 90 degrees"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_line_for_each_mistake(tmp_path, mistake):
  file, options, change, index, message = MISTAKES[mistake]
  path = tmp_path / file
  if options is None:
    with av.open(str(path), "w") as container:
      stream = container.add_stream("aac", rate=48000, layout="mono")
      sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
      sound.sample_rate = 48000
      container.mux(stream.encode(sound))
      container.mux(stream.encode())
  else:
    write_video(path, **options)
  change(path)
  with pytest.raises(InputError, match=message) as error:
    read_video_frame(path, index)
  assert "\n" not in str(error.value)
