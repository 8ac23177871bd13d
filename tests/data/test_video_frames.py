"""Frames of videos in any order, from threads, against the same video decoded from its beginning."""

import concurrent.futures
import fractions

import av
import numpy as np
import pytest

from rsatalker_jax.data import video_frames
from rsatalker_jax.data.video_frames import read_video_frame
from rsatalker_jax.errors import InputError

FRAMES, WIDTH, HEIGHT = 40, 48, 32


def write_video(path, codec="libx264", pixels="yuv420p", options=None, times=range(FRAMES), frames=None, turn=0):
  """Frames that move, so that every one depends on others."""
  noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH + FRAMES, 3), np.uint8)
  frames = [noise[:, t : t + WIDTH] for t in range(FRAMES)] if frames is None else frames
  with av.open(str(path), "w") as container:
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
  with av.open(str(path)) as container:
    return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


VIDEOS = {
    # Frames after a key frame that are shown before it: they need the frames before it.
    "open groups": ("a.mp4", dict(options={"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"})),
    "one group": ("a.mp4", dict(options={"bf": "2"})),
    "uneven rate": ("a.mkv", dict(options={"g": "6"}, times=np.cumsum(1 + np.arange(FRAMES) % 3))),
    "other codec": ("a.mov", dict(codec="mpeg4", options={"g": "7", "bf": "2"})),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_any_order_and_threads_give_what_a_player_shows(tmp_path, name):
  file, options = VIDEOS[name]
  path = write_video(tmp_path / file, **options)
  expected = decode_all(path)
  assert len(expected) == FRAMES
  order = np.random.default_rng(1).permutation(FRAMES)
  for index in (*order[:20], *range(5, 12), 0, FRAMES - 1):
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


MISTAKES = {
    "beyond the end": ("a.mp4", {}, lambda path: None, 40, "a.mp4: frame 40: found 40 frames, expected a frame that the video"),
    "cut off": ("a.mp4", {}, cut, 3, "a.mp4: frame 3: found .*, expected a whole video file"),
    "cut off in the middle": ("a.mkv", dict(options={"g": "5"}), cut, 39, "a.mkv: frame 39: found .* frames, expected"),
    "no video": ("a.mp4", {}, lambda path: path.write_bytes(b"text"), 0, "a.mp4: frame 0: found .* expected a whole video"),
    "sound alone": ("a.mp4", None, lambda path: None, 0, "a.mp4: found no video stream"),
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
