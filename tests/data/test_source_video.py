"""Long videos of every container: sound where its picture is, and the frames that are shown at given moments."""

import av
import mock_realtalk as mock
import numpy as np
import pytest

from rsatalker_jax.data.triplets.source_video import read_frames_at, read_video_sound
from rsatalker_jax.errors import InputError

RATE = 16_000
# RealTalk's own form, others, and one with B-frames in AVI, whose frames have no times.
FORMATS = {
    "mpeg4.avi": ("avi", "mpeg4", "libmp3lame", 64_000, 44_100),
    "h264.avi": ("avi", "libx264", "libmp3lame", 64_000, 44_100),
    "h264.mp4": ("mp4", "libx264", "aac", 64_000, 44_100),
    "opus.mkv": ("mkv", "libx264", "libopus", 64_000, 48_000),
    "pcm.mkv": ("mkv", "libx264", "pcm_s16le", 64_000, 44_100),
}
FRAMES = 400


def _clicks() -> np.ndarray:
  """A burst at every whole second."""
  wav = np.zeros(FRAMES * 640, np.float32)
  for second in range(1, FRAMES // 25):
    wav[second * RATE : second * RATE + 400] = 0.5 * np.sin(np.arange(400) * 0.4)
  return wav


def _numbered():
  """Frames that say their number: two grey areas, of its ones and of its thirties."""
  for t in range(FRAMES):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :32], frame[:, 32:] = 8 * (t % 30) + 4, 16 * (t // 30) + 8
    yield frame


def _number(frame) -> int:
  grey = frame.to_ndarray(format="rgb24").astype(float)[:, :, 1]
  return round((grey[:, 4:28].mean() - 4) / 8) + 30 * round((grey[:, 36:60].mean() - 8) / 16)


@pytest.fixture(scope="module", params=FORMATS)
def film(request, tmp_path_factory):
  path = tmp_path_factory.mktemp("films") / request.param
  mock.write_film(path, _numbered(), _clicks(), FORMATS[request.param])
  return path


def test_sound_is_on_the_clock_of_the_pictures(film):
  wav, notes = read_video_sound(film)
  assert not notes and wav.dtype == np.float32 and abs(len(wav) - FRAMES * 640) < (4 if "pcm" in film.name else 3200)
  for second in (1, 8, 15):
    near = np.abs(wav[second * RATE - 800 : second * RATE + 1200])
    first = int(np.argmax(near > 0.5 * near.max())) - 800
    assert abs(first) <= 32  # 2 ms: codecs have some echo.


@pytest.mark.parametrize("first", [0, 1, 37, 249, 253, 300, 391])
def test_frames_of_moments(film, first):
  times = (first + np.arange(9)) / 25
  assert [_number(frame) for frame in read_frames_at(film, times.tolist())] == list(range(first, first + 9))


def test_the_nearest_frame_is_taken_also_of_moments_between(film):
  times = [10.0, 10.015, 10.03, 10.03, 10.055, 10.07, 12.0]
  assert [_number(frame) for frame in read_frames_at(film, times)] == [250, 250, 251, 251, 251, 252, 300]


@pytest.mark.parametrize("form", ["mpeg4.avi", "h264.mp4"])
@pytest.mark.parametrize("fps", [15, 30])
def test_other_rates_give_the_nearest_frame(tmp_path, form, fps):
  path = tmp_path / form
  mock.write_film(path, _numbered(), _clicks(), FORMATS[form], fps=fps)
  times = 5.003 + np.arange(50) / 25
  assert [_number(frame) for frame in read_frames_at(path, times.tolist())] == np.rint(times * fps).astype(int).tolist()


def test_moments_behind_the_end(film):
  times = [(FRAMES - 1) / 25, (FRAMES - 0.5) / 25, FRAMES / 25 + 0.1]
  shown = read_frames_at(film, times)
  assert [_number(next(shown)), _number(next(shown))] == [FRAMES - 1] * 2
  with pytest.raises(InputError, match="as long as its sound"):
    next(shown)


def test_channels_are_mixed_and_what_is_lost_is_silence(tmp_path):
  path = tmp_path / "a.mkv"
  mock.write_film(path, _numbered(), _clicks(), FORMATS["opus.mkv"])
  data = bytearray(path.read_bytes())
  data[len(data) // 2 : len(data) // 2 + 3000] = b"\xff" * 3000
  path.write_bytes(data)
  wav, _ = read_video_sound(path)
  near = np.abs(wav[15 * RATE - 800 : 15 * RATE + 1200])  # Behind the damage it is still in time.
  assert abs(int(np.argmax(near > 0.5 * near.max())) - 800) <= 32


def test_sound_is_there_up_to_a_gap_and_after_it(tmp_path):
  whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
  mock.write_film(whole, _numbered(), 0.5 * np.sin(np.arange(FRAMES * 640, dtype=np.float32) * 0.3), ("mkv", "mpeg4", "aac", 128_000, 44_100))
  stops = resumes = None
  with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
    streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
    for packet in source.demux():
      seconds = None if packet.pts is None else float(packet.pts * packet.time_base)
      if packet.stream.type == "audio" and seconds is not None and 3 <= seconds < 4:
        stops, resumes = stops or seconds, seconds + float(packet.duration * packet.time_base)
      elif packet.size:
        packet.stream = streams[packet.stream.index]
        target.mux(packet)
  (expected, _), (found, _) = read_video_sound(whole), read_video_sound(cut)
  first, last = round(stops * RATE), round(resumes * RATE)
  assert len(found) == len(expected) and last - first > 15_000
  assert np.abs(found[first + 32 : last - 32]).max() == 0
  np.testing.assert_allclose(found[: first - 40], expected[: first - 40], atol=1e-3)
  np.testing.assert_allclose(found[last + 1000 :], expected[last + 1000 :], atol=0.16)  # Frames of AAC overlap; to a sample.
  # A filter ends at either side of the gap, in half a dozen samples.
  assert np.abs(found[first - 12 : first - 2]).max() > 0.3


def test_videos_that_cannot_be_used_are_one_line(tmp_path):
  (tmp_path / "text.avi").write_text("no video\n" * 100)
  (tmp_path / "empty.mp4").write_bytes(b"")
  mock.write_film(tmp_path / "silent.mp4", list(_numbered())[:10], None, FORMATS["h264.mp4"])
  (tmp_path / "folder.avi").mkdir()
  for name in ("text.avi", "empty.mp4", "folder.avi", "none.avi"):
    for read in (read_video_sound, lambda path: list(read_frames_at(path, [0.0]))):
      with pytest.raises(InputError) as error:
        read(tmp_path / name)
      assert name in str(error.value) and "\n" not in str(error.value)
  with pytest.raises(InputError, match="no sound stream"):
    read_video_sound(tmp_path / "silent.mp4")
  # A list of other files is no video.
  mock.write_film(tmp_path / "sound.mp4", list(_numbered())[:50], _clicks()[: 50 * 640], FORMATS["h264.mp4"])
  read_video_sound(tmp_path / "sound.mp4")
  (tmp_path / "list.avi").write_text("ffconcat version 1.0\nfile sound.mp4\n")
  for read in (read_video_sound, lambda path: list(read_frames_at(path, [0.0]))):
    with pytest.raises(InputError):
      read(tmp_path / "list.avi")
