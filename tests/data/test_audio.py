"""What the WAV reader accepts, changes and refuses."""

import struct

import numpy as np
import pytest
import scipy.io.wavfile
import soundfile

from rsatalker_jax.data import audio
from rsatalker_jax.errors import InputError


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
  return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def assert_one_line(error: pytest.ExceptionInfo, *parts: str):
  message = str(error.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


def test_write_then_read_is_exact(tmp_path):
  wav = np.random.default_rng(0).normal(size=8000).astype(np.float32)  # Beyond ±1: float WAVs do not clip.
  audio.write_wav(tmp_path / "a.wav", wav)
  read, notes = audio.read_wav(tmp_path / "a.wav")
  np.testing.assert_array_equal(read, wav)
  assert read.dtype == np.float32 and notes == []
  assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_written_file_is_understood_by_scipy(tmp_path):
  audio.write_wav(tmp_path / "a.wav", tone(0.5, 16000))
  rate, data = scipy.io.wavfile.read(tmp_path / "a.wav")
  assert rate == 16000 and data.dtype == np.float32
  np.testing.assert_array_equal(data, tone(0.5, 16000))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled_and_said(tmp_path, rate):
  scipy.io.wavfile.write(tmp_path / "a.wav", rate, tone(1.0, rate))
  wav, notes = audio.read_wav(tmp_path / "a.wav")
  assert len(wav) == 16000
  assert len(notes) == 1 and str(rate) in notes[0] and "16000" in notes[0]
  # The same tone, away from the ends, where the filter sees beyond the clip. 1 %: the filter's pass band is not flat.
  np.testing.assert_allclose(wav[2000:-2000], tone(1.0, 16000)[2000:-2000], atol=0.005)


def test_what_a_lower_rate_cannot_hold_is_filtered_out(tmp_path):
  scipy.io.wavfile.write(tmp_path / "a.wav", 48000, tone(1.0, 48000, hertz=11000))
  wav, _ = audio.read_wav(tmp_path / "a.wav", allow_silent=True)
  assert np.abs(wav[2000:-2000]).max() < 0.01  # Without the filter it would alias to 5 kHz at 0.5.


def test_stereo_is_mixed_down_and_said(tmp_path):
  left, right = tone(0.5, 16000, 300), tone(0.5, 16000, 500)
  scipy.io.wavfile.write(tmp_path / "a.wav", 16000, np.stack([left, right], 1))
  wav, notes = audio.read_wav(tmp_path / "a.wav")
  np.testing.assert_allclose(wav, (left + right) / 2, atol=1e-6)
  assert len(notes) == 1 and "2 channels" in notes[0]


def test_sixteen_bit_files_are_scaled_to_one(tmp_path):
  scipy.io.wavfile.write(tmp_path / "a.wav", 16000, np.full(8000, -16384, np.int16))
  np.testing.assert_allclose(audio.read_wav(tmp_path / "a.wav")[0], -0.5)


def test_open_ended_header_of_a_pipe_is_read_and_said(tmp_path):
  path = tmp_path / "a.wav"
  scipy.io.wavfile.write(path, 16000, (tone(0.5, 16000) * 32767).astype(np.int16))
  data = bytearray(path.read_bytes())
  data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
  path.write_bytes(data)
  wav, notes = audio.read_wav(path)
  assert len(wav) == 8000 and "length open" in notes[0]


def test_missing_file(tmp_path):
  with pytest.raises(InputError) as error:
    audio.read_wav(tmp_path / "none.wav")
  assert_one_line(error, "none.wav", "no such file")


@pytest.mark.parametrize("keep", [0, 8, 30, 44, 2000, -1])
def test_cut_off_file(tmp_path, keep):
  path = tmp_path / "cut.wav"
  audio.write_wav(path, tone(0.5, 16000))
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(InputError) as error:
    audio.read_wav(path)
  assert_one_line(error, "cut.wav", "expected")


def test_cut_off_file_names_both_sizes(tmp_path):
  path = tmp_path / "cut.wav"
  scipy.io.wavfile.write(path, 16000, (tone(0.5, 16000) * 32767).astype(np.int16))  # 44 bytes of header, then data.
  path.write_bytes(path.read_bytes()[: 44 + 1000])
  with pytest.raises(InputError) as error:
    audio.read_wav(path)
  assert_one_line(error, "data", "1000 bytes", "16000")
  # The reader underneath would have said nothing.
  assert len(soundfile.read(path)[0]) == 500


def test_another_format(tmp_path):
  (tmp_path / "a.wav").write_bytes(b"ID3\x04" + bytes(5000))
  with pytest.raises(InputError) as error:
    audio.read_wav(tmp_path / "a.wav")
  assert_one_line(error, "a.wav", "ID3", "RIFF")


def test_no_samples(tmp_path):
  scipy.io.wavfile.write(tmp_path / "a.wav", 16000, np.zeros(0, np.float32))
  with pytest.raises(InputError) as error:
    audio.read_wav(tmp_path / "a.wav")
  assert_one_line(error, "no samples")


def test_a_tenth_of_a_second_is_too_short(tmp_path):
  audio.write_wav(tmp_path / "a.wav", tone(0.1, 16000))
  with pytest.raises(InputError) as error:
    audio.read_wav(tmp_path / "a.wav")
  assert_one_line(error, "0.100 s", "at least 0.2 s")


def test_silence_is_refused_unless_allowed(tmp_path):
  audio.write_wav(tmp_path / "a.wav", np.full(16000, 1e-6, np.float32))
  with pytest.raises(InputError) as error:
    audio.read_wav(tmp_path / "a.wav")
  assert_one_line(error, "silence")
  wav, _ = audio.read_wav(tmp_path / "a.wav", allow_silent=True)
  assert len(wav) == 16000


def test_not_finite(tmp_path):
  wav = tone(0.5, 16000)
  wav[123] = np.nan
  audio.write_wav(tmp_path / "a.wav", wav)
  with pytest.raises(InputError) as error:
    audio.read_wav(tmp_path / "a.wav")
  assert_one_line(error, "sample 123", "finite")
