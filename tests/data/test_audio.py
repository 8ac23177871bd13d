"""What the WAV reader accepts, changes and refuses."""

import os
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
  # The same tone, away from the ends, where the filter sees beyond the clip.
  np.testing.assert_allclose(wav[2000:-2000], tone(1.0, 16000)[2000:-2000], atol=1e-5)


@pytest.mark.parametrize("rate", [22050, 44100, 48000])
@pytest.mark.parametrize("hertz", [8100, 8500, 9000, 10000, 11000])
def test_what_a_lower_rate_cannot_hold_is_filtered_out(rate, hertz):
  wav = audio.resample(tone(1.0, rate, hertz), rate, 16000)
  assert np.abs(wav[2000:-2000]).max() < 0.5 * 1e-5  # -100 dB. Without the filter it would be below 8 kHz at 0.5.


@pytest.mark.parametrize("rate", [22050, 44100, 48000])
@pytest.mark.parametrize("hertz", [50, 440, 3000, 6000, 7000, 7300])
def test_what_a_lower_rate_can_hold_stays(rate, hertz):
  """Amplitude and phase, 0.01 dB."""
  wav = audio.resample(tone(1.0, rate, hertz), rate, 16000)
  assert len(wav) == 16000 and wav.dtype == np.float32
  np.testing.assert_allclose(wav[2000:-2000], tone(1.0, 16000, hertz)[2000:-2000], atol=0.5 * (10 ** (0.01 / 20) - 1))


@pytest.mark.parametrize("hertz", [440, 3000, 3500])
def test_a_higher_rate_has_no_images(hertz):
  """Nothing is left beside the tone: its mirror at 8 kHz - f is below -100 dB."""
  wav = audio.resample(tone(1.0, 8000, hertz), 8000, 16000)
  np.testing.assert_allclose(wav[2000:-2000], tone(1.0, 16000, hertz)[2000:-2000], atol=0.5 * 1e-5)


def test_stereo_is_mixed_down_and_said(tmp_path):
  left, right = tone(0.5, 16000, 300), tone(0.5, 16000, 500)
  scipy.io.wavfile.write(tmp_path / "a.wav", 16000, np.stack([left, right], 1))
  wav, notes = audio.read_wav(tmp_path / "a.wav")
  np.testing.assert_allclose(wav, (left + right) / 2, atol=1e-6)
  assert len(notes) == 1 and "2 channels" in notes[0]


def test_a_channel_that_nobody_speaks_into_does_not_lower_the_voice(tmp_path):
  voice, noise = tone(0.5, 16000), 0.01 * tone(0.5, 16000, 50)
  for channels, expected, said in (
      ([voice, 0 * voice], voice, "without 1 that is silent"),
      ([noise, voice, 0 * voice], voice, "without 2 that are silent"),
      ([voice, 0 * voice + 0.4], voice, "without 1 that is silent"),  # A constant.
      ([voice, 0.1 * voice], 0.55 * voice, "down to one"),  # -20 dB: a second microphone.
  ):
    soundfile.write(tmp_path / "a.wav", np.stack(channels, 1), 16000, subtype="FLOAT")
    wav, notes = audio.read_wav(tmp_path / "a.wav")
    np.testing.assert_allclose(wav, expected, atol=1e-6)
    assert len(notes) == 1 and said in notes[0] and ("silent" in notes[0]) == (said != "down to one")
  soundfile.write(tmp_path / "a.wav", np.zeros((8000, 2)), 16000, subtype="FLOAT")
  assert not audio.read_wav(tmp_path / "a.wav", allow_silent=True)[0].any()


def test_channels_of_opposite_phases_do_not_cancel(tmp_path):
  voice = tone(0.5, 16000)
  soundfile.write(tmp_path / "a.wav", np.stack([-0.95 * voice, voice], 1), 16000, subtype="FLOAT")
  wav, notes = audio.read_wav(tmp_path / "a.wav")
  np.testing.assert_allclose(wav, voice, atol=1e-6)
  assert len(notes) == 1 and "channel 2, since they cancel each other (opposite phases)" in notes[0]
  soundfile.write(tmp_path / "a.wav", np.stack([-0.5 * voice, voice], 1), 16000, subtype="FLOAT")
  np.testing.assert_allclose(audio.read_wav(tmp_path / "a.wav")[0], 0.25 * voice, atol=1e-6)


def test_integers_that_were_called_floats_are_refused(tmp_path):
  scipy.io.wavfile.write(tmp_path / "a.wav", 16000, 12000 * tone(0.5, 16000))
  with pytest.raises(InputError) as error:
    audio.read_wav(tmp_path / "a.wav")
  assert_one_line(error, "peak: found 6000, expected floats in [-1, 1]", "divided by 32768")
  scipy.io.wavfile.write(tmp_path / "a.wav", 16000, 20 * tone(0.5, 16000))  # 20 dB above full scale.
  wav, notes = audio.read_wav(tmp_path / "a.wav")
  assert wav.max() == pytest.approx(10, abs=0.1) and len(notes) == 1 and "the peak, 10.0, is far above" in notes[0]


@pytest.mark.parametrize("rate", [1, 1999, 768_001, 50_000_017, 2**31 - 1])
def test_rates_that_no_voice_has(tmp_path, rate):
  path = tmp_path / "a.wav"
  scipy.io.wavfile.write(path, 16000, (tone(0.5, 16000) * 32767).astype(np.int16))
  data = bytearray(path.read_bytes())
  data[24:28] = struct.pack("<I", rate)
  path.write_bytes(data)
  for read in (audio.read_wav, lambda path: audio.wav_frames(path, 25)):
    with pytest.raises(InputError) as error:
      read(path)
    assert_one_line(error, f"rate: found {rate} Hz, expected 2000 to 768000 Hz")


def test_recordings_beyond_hours_are_refused_before_they_are_read(tmp_path, monkeypatch):
  audio.write_wav(tmp_path / "a.wav", tone(3.0, 16000))
  monkeypatch.setattr(audio, "MAX_SECONDS", 3)
  assert len(audio.read_wav(tmp_path / "a.wav")[0]) == 48000
  monkeypatch.setattr(audio, "_MAX_SAMPLES", 47999)
  with pytest.raises(InputError, match="length: found 3 s of 1 channels at 16000 Hz, expected at most .* cut it"):
    audio.read_wav(tmp_path / "a.wav")
  monkeypatch.undo()
  monkeypatch.setattr(audio, "MAX_SECONDS", 2)
  with pytest.raises(InputError, match="length: found 3 s"):
    audio.wav_frames(tmp_path / "a.wav", 25)


def test_sixteen_bit_files_are_scaled_to_one(tmp_path):
  scipy.io.wavfile.write(tmp_path / "a.wav", 16000, np.full(8000, -16384, np.int16))
  np.testing.assert_allclose(audio.read_wav(tmp_path / "a.wav")[0], -0.5)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF, 0x7FFFEFFE, 0x80000000])
def test_open_ended_header_of_a_pipe_is_read_and_said(tmp_path, length):
  path = tmp_path / "a.wav"
  scipy.io.wavfile.write(path, 16000, (tone(0.5, 16000) * 32767).astype(np.int16))
  data = bytearray(path.read_bytes())
  data[4:8] = data[40:44] = struct.pack("<I", length)
  path.write_bytes(data)
  wav, notes = audio.read_wav(path)
  assert len(wav) == 8000 and "length open" in notes[0]


def test_lengths_of_64_bits(tmp_path):
  path = tmp_path / "a.wav"
  soundfile.write(path, tone(0.5, 16000), 16000, subtype="FLOAT", format="RF64")
  wav, notes = audio.read_wav(path)
  np.testing.assert_array_equal(wav, tone(0.5, 16000))
  assert path.read_bytes()[:4] == b"RF64" and notes == [] and audio.wav_frames(path, 25) == 12.5
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(InputError, match="chunk 'data': found 31995 bytes .the file is cut off., expected 32000"):
    audio.read_wav(path)


def test_samples_that_the_header_does_not_count_are_said(tmp_path):
  path = tmp_path / "a.wav"
  scipy.io.wavfile.write(path, 16000, (tone(1.0, 16000) * 32767).astype(np.int16))
  data = bytearray(path.read_bytes())
  data[40:44] = struct.pack("<I", 16000)
  path.write_bytes(data)
  wav, notes = audio.read_wav(path)
  assert len(wav) == 8000 and notes == [f"{path}: 16000 bytes behind the samples are not read; the header does not count them"]
  data[40:44] = struct.pack("<I", 0)
  path.write_bytes(data)
  with pytest.raises(InputError, match="chunk 'data': found a length of 0 before 32000 bytes"):
    audio.read_wav(path)
  audio.write_wav(path, tone(0.5, 16000))
  path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 4) + b"INFO")  # Words about the sound.
  assert audio.read_wav(path)[1] == []


def test_chunks_without_end_and_pipes(tmp_path):
  (tmp_path / "a.wav").write_bytes(b"RIFF\0\0\0\0WAVE" + bytes(100_000))
  with pytest.raises(InputError, match="chunk 'data': found none"):
    audio.read_wav(tmp_path / "a.wav")
  os.mkfifo(tmp_path / "b.wav")
  with pytest.raises(InputError, match="b.wav: found a pipe"):
    audio.read_wav(tmp_path / "b.wav")


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
