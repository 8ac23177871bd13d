"""Voices on disk: WAV files in, 16 kHz mono float32 out.

Reading is strict about damage (missing, cut off, empty, too short, not finite, silent, of a rate or scale that no voice
has: `InputError`) and lenient about taste (another rate is resampled, stereo is mixed down), and what it changed it says
in the notes it returns.
"""

import contextlib
import os
import pathlib
import struct
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int16

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import open_regular, whole_file
from rsatalker_jax.types import SAMPLE_RATE

MIN_SECONDS = 0.2  # Five frames; below it there is no speech to follow, and FFT windows hardly fit.
MAX_SECONDS = 4 * 3600
SILENCE_PEAK = 1e-4  # -80 dB of full scale: below any microphone's noise.
_MIN_RATE, _MAX_RATE = 2_000, 768_000  # From what is hardly speech to the fastest converters.
_MAX_SAMPLES = 1 << 29  # Of all channels: 2 GB, an hour and a half of 48 kHz stereo.
_LOUD_PEAK = 4.0  # 12 dB above full scale: said.
_MAX_PEAK = 16.0  # Floats may exceed full scale, but not by 24 dB: these are whole numbers that were called floats.
_IDLE_CHANNEL = 10 ** (-30 / 20)  # Below the loudest channel, what a channel that nobody speaks into picks up.
_CANCELLED = 10 ** (-20 / 20)  # Below the loudest channel, what is left of channels of opposite phases.
# Programs that write to a pipe put 2^31 or 2^32, or a little less, into the header: sox 0x7FFFF000 and less.
_UNKNOWN_SIZE = 0x7FFF0000
_MAX_CHUNKS = 10_000  # Before the samples. Zeros would be chunks without end.


def read_wav(
    path: str | os.PathLike, *, allow_silent: bool = False, only_rate: int | None = None
) -> tuple[Float[np.ndarray, "S"], list[str]]:
  """Reads a voice.

  Channels are mixed by their mean, without those in which hardly anything is (30 dB below the loudest: a headset on one
  channel of two keeps its level). Of channels that cancel each other, one is taken.

  Args:
    path: a RIFF/WAVE or RF64 file of any sample format that libsndfile knows (DualTalk's are float32) and any rate from
      2 to 768 kHz, up to 4 hours.
    allow_silent: whether a clip without any sound is accepted: a person who only listens.
    only_rate: the only rate that is accepted, where resampling would spoil what the file is for; None: any.

  Returns:
    wav: (S,) float32, 16 kHz, mono, nominally in [-1, 1].
    notes: one sentence for each thing that was changed on the way.

  Raises:
    InputError: missing, not a WAV file, cut off (its header promises more bytes than are there), no samples, shorter
      than 0.2 s or too long, of a rate that no voice has or another than `only_rate`, values that are not finite or far beyond full scale (float
      files that hold 16-bit integers), or silent.
  """
  path = pathlib.Path(path)
  notes = check_wav_complete(path)
  with _open(path) as file:
    rate = file.samplerate
    if only_rate not in (None, rate):
      raise InputError(path, "rate", f"{rate} Hz", f"{only_rate} Hz")
    samples = file.read(dtype="float32", always_2d=True)
  if not len(samples):
    raise InputError(path, "data", "no samples", f"at least {MIN_SECONDS} s of sound")
  if not np.isfinite(samples).all():
    first = int(np.argmin(np.isfinite(samples).all(axis=1)))
    raise InputError(path, f"sample {first}", samples[first].tolist(), "finite values")
  if len(samples) < MIN_SECONDS * rate:
    raise InputError(path, "length", f"{len(samples) / rate:.3f} s", f"at least {MIN_SECONDS} s")
  peak = float(np.abs(samples).max())
  if peak > _MAX_PEAK:
    raise InputError(path, "peak", f"{peak:.0f}", "floats in [-1, 1]: 16-bit integers, say, divided by 32768")
  if peak > _LOUD_PEAK:
    notes.append(f"{path}: the peak, {peak:.1f}, is far above full scale, 1")

  wav, mixing = mix_channels(samples)
  if samples.shape[1] > 1:
    notes.append(f"{path}: mixed {samples.shape[1]} channels down to one{mixing}")
  if rate != SAMPLE_RATE:
    notes.append(f"{path}: resampled from {rate} Hz to {SAMPLE_RATE} Hz")
    wav = resample(wav, rate, SAMPLE_RATE)
  if not allow_silent and np.abs(wav).max() < SILENCE_PEAK:
    raise InputError(path, "peak", f"{np.abs(wav).max():.1e} (silence)", f"sound above {SILENCE_PEAK:.0e}")
  return np.ascontiguousarray(wav, np.float32), notes


def mix_channels(samples: Float[np.ndarray, "S C"]) -> tuple[Float[np.ndarray, "S"], str]:
  """One channel from all (see `read_wav`), and what is to be said of it."""
  levels = samples.std(axis=0, dtype=np.float64)  # A constant, which some converters add, is no sound.
  loudest = int(np.argmax(levels))
  used = levels >= _IDLE_CHANNEL * levels[loudest]
  wav = samples[:, used].mean(axis=1)
  if wav.std(dtype=np.float64) < _CANCELLED * levels[loudest]:
    return samples[:, loudest], f": channel {loudest + 1}, since they cancel each other (opposite phases)"
  silent = int((~used).sum())
  return wav, f", without {silent} that {'is' if silent == 1 else 'are'} silent beside the others" if silent else ""


def write_wav(path: str | os.PathLike, wav: Float[np.ndarray, "S"] | Int16[np.ndarray, "S"]) -> None:
  """Writes (S,) samples at 16 kHz as a mono WAV, whole or not at all: floats as float32 (DualTalk's form), 16-bit integers as they
  are, which `read_wav` gives back as n / 32768."""
  wav = np.asarray(wav)
  whole_numbers = wav.dtype == np.int16
  with whole_file(path) as file:
    samples, subtype = (wav, "PCM_16") if whole_numbers else (wav.astype(np.float32), "FLOAT")
    soundfile.write(file, samples, SAMPLE_RATE, subtype=subtype, format="WAV")


def resample(wav: Float[np.ndarray, "S"], rate: int, new_rate: int) -> Float[np.ndarray, "S2"]:
  """Band-limited resampling by soxr, whose filter passes up to 0.91 of the lower Nyquist frequency unchanged and keeps
  out what lies above it (-130 dB); librosa and hence DualTalk use the same.
  """
  return soxr.resample(np.asarray(wav, np.float32), rate, new_rate, quality="HQ")


def wav_frames(path: str | os.PathLike, fps: float) -> float:
  """Length of a WAV file in video frames, from its header alone, after checking that the file is whole."""
  path = pathlib.Path(path)
  check_wav_complete(path)
  with _open(path) as file:
    return file.frames / file.samplerate * fps


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[soundfile.SoundFile]:
  """A WAV file whose header promises what a voice has."""
  try:
    with soundfile.SoundFile(path) as file:
      if not _MIN_RATE <= file.samplerate <= _MAX_RATE:
        raise InputError(path, "rate", f"{file.samplerate} Hz", f"{_MIN_RATE} to {_MAX_RATE} Hz")
      if file.frames > MAX_SECONDS * file.samplerate or file.frames * file.channels > _MAX_SAMPLES:
        found = f"{file.frames / file.samplerate:.0f} s of {file.channels} channels at {file.samplerate} Hz"
        expected = f"at most {MAX_SECONDS // 3600} hours and {_MAX_SAMPLES} samples: cut it into pieces"
        raise InputError(path, "length", found, expected)
      yield file
  except InputError:
    raise
  except Exception as error:  # libsndfile's errors are RuntimeErrors; a damaged header can also exhaust memory.
    raise InputError(path, "", f"an unreadable file ({error})", "a RIFF/WAVE file") from error


def check_wav_complete(path: pathlib.Path) -> list[str]:
  """Compares the sizes a RIFF header promises with the bytes that are there: libsndfile reads cut-off files silently.

  Returns:
    Notes: one if the header leaves the size open, as programs that write to a pipe do; one if there is more behind the
    samples than the header knows.
  """
  if not path.exists():
    raise InputError(path, "", "no such file", "a RIFF/WAVE file")
  with open_regular(path, "a RIFF/WAVE file") as file:
    size = os.fstat(file.fileno()).st_size
    head = file.read(12)
    if len(head) < 12 or head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
      found = "an empty file" if not head else f"a file that begins with {head!r}"
      raise InputError(path, "header", found, "a RIFF/WAVE file")
    position, long_size = 12, None
    for _ in range(_MAX_CHUNKS):  # One chunk: 4 letters, 4 bytes of size, contents padded to an even length.
      file.seek(position)
      if len(start := file.read(8)) < 8:
        break
      name, length = struct.unpack("<4sI", start)
      position += 8
      if name == b"ds64" and length >= 16:  # RF64's sizes of 64 bits: of the file, then of the samples.
        long_size = int.from_bytes(file.read(16)[8:], "little")
      if name == b"data" and head[:4] == b"RF64" and length == 0xFFFFFFFF and long_size is not None:
        length = long_size
      left = size - position
      if name == b"data" and length >= _UNKNOWN_SIZE and length > left:
        return [f"{path}: the header leaves the length open; read to the end of the file"]
      if length > left:
        raise InputError(path, f"chunk '{name.decode('latin1')}'", f"{left} bytes (the file is cut off)", f"{length}")
      position += length + length % 2
      if name == b"data":
        file.seek(position)
        rest = file.read(8)
        if len(rest) < 8 or (rest[:4].isascii() and int.from_bytes(rest[4:], "little") <= size - position):
          return []
        if not length:
          raise InputError(path, "chunk 'data'", f"a length of 0 before {size - position} bytes", "their number")
        return [f"{path}: {size - position} bytes behind the samples are not read; the header does not count them"]
  raise InputError(path, "chunk 'data'", "none (the file is cut off)", "a chunk of samples")
