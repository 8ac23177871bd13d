"""Videos are read back: frames, duration, sound and its timing."""

import av
import numpy as np
import pytest

from rsatalker_jax.media import video


def grey_frames(levels, height=48, width=64):
  for level in levels:
    yield np.full((height, width, 3), level, np.uint8)


def read_back(path):
  with av.open(str(path)) as container:
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    codecs = [stream.codec_context.name for stream in container.streams]
  with av.open(str(path)) as container:
    sound = []
    if container.streams.audio:
      sound = [frame.to_ndarray() for frame in container.decode(audio=0)]
  return frames, codecs, np.concatenate(sound, axis=1) if sound else None


def test_frames_and_sound_survive_in_sync(tmp_path):
  path = tmp_path / "new" / "clip.mp4"
  # At frame 25 the picture turns bright and a tone begins in the left channel.
  time = np.arange(2 * 16000) / 16000
  audio = np.zeros((2 * 16000, 2), np.float32)
  audio[16000:, 0] = 0.5 * np.sin(2 * np.pi * 440 * time[16000:])
  count = video.write_video(path, grey_frames([20] * 25 + [230] * 25), audio=audio)
  frames, codecs, sound = read_back(path)
  assert count == len(frames) == 50
  assert codecs == ["h264", "aac"]
  levels = np.array([frame.mean() for frame in frames])
  assert np.argmax(levels > 128) == 25
  onset = np.argmax(np.abs(sound[0]) > 0.2) / 48000
  assert abs(onset - 1.0) < 0.04  # One frame.
  assert np.abs(sound[1]).max() < 0.1
  assert abs(sound.shape[1] / 48000 - 2.0) < 0.05


def test_sound_is_padded_to_the_video(tmp_path):
  video.write_video(tmp_path / "a.mp4", grey_frames([0] * 50), audio=np.ones((1600, 1), np.float32) * 0.1)
  _, _, sound = read_back(tmp_path / "a.mp4")
  assert abs(sound.shape[1] / 48000 - 2.0) < 0.05


def test_nothing_under_the_final_name_when_a_frame_is_wrong(tmp_path):
  def frames():
    yield np.zeros((48, 64, 3), np.uint8)
    yield np.zeros((48, 62, 3), np.uint8)

  with pytest.raises(ValueError, match="frame 1"):
    video.write_video(tmp_path / "bad.mp4", frames())
  assert list(tmp_path.iterdir()) == []


def test_no_frames_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="at least one frame"):
    video.write_video(tmp_path / "empty.mp4", [])


def test_pan_keeps_both_voices_and_sides():
  left, right = np.full(10, 0.4, np.float32), np.zeros(12, np.float32)
  stereo = video.pan_two_voices(left, right)
  assert stereo.shape == (12, 2)
  assert stereo[0, 0] > stereo[0, 1] > 0
