"""Voices on disk: WAV files in, 16 kHz mono float32 out.

Reading is strict about damage (missing, cut off, empty, too short, not finite, silent: `InputError`) and lenient about
taste (another rate is resampled, stereo is mixed down), and what it changed it says in the notes it returns.
"""

import os
import pathlib
import struct

import numpy as np
import scipy.signal
import soundfile
from jaxtyping import Float

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file
from rsatalker_jax.types import SAMPLE_RATE

MIN_SECONDS = 0.2  # Five frames; below it there is no speech to follow, and FFT windows hardly fit.
SILENCE_PEAK = 1e-4  # -80 dB of full scale: below any microphone's noise.
_UNKNOWN_SIZE = 0xFFFFFFFF  # What programs that write to a pipe put into the header.


def read_wav(
    path: str | os.PathLike, *, allow_silent: bool = False
) -> tuple[Float[np.ndarray, "S"], list[str]]:
  """Reads a voice.

  Args:
    path: a RIFF/WAVE file of any rate, sample format and channel count that libsndfile knows (DualTalk's are float32).
    allow_silent: whether a clip without any sound is accepted: a person who only listens.

  Returns:
    wav: (S,) float32, 16 kHz, mono, nominally in [-1, 1].
    notes: one sentence for each thing that was changed on the way.

  Raises:
    InputError: missing, not a WAV file, cut off (its header promises more bytes than are there), no samples, shorter
      than 0.2 s, values that are not finite, or silent.
  """
  path = pathlib.Path(path)
  notes = check_wav_complete(path)
  try:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
  except (soundfile.SoundFileError, RuntimeError) as error:
    raise InputError(path, "", f"an unreadable file ({error})", "a RIFF/WAVE file") from error
  if not len(samples):
    raise InputError(path, "data", "no samples", f"at least {MIN_SECONDS} s of sound")
  if not np.isfinite(samples).all():
    first = int(np.argmin(np.isfinite(samples).all(axis=1)))
    raise InputError(path, f"sample {first}", samples[first].tolist(), "finite values")
  if len(samples) < MIN_SECONDS * rate:
    raise InputError(path, "length", f"{len(samples) / rate:.3f} s", f"at least {MIN_SECONDS} s")

  if samples.shape[1] > 1:
    notes.append(f"{path}: mixed {samples.shape[1]} channels down to one")
  wav = samples.mean(axis=1)
  if rate != SAMPLE_RATE:
    notes.append(f"{path}: resampled from {rate} Hz to {SAMPLE_RATE} Hz")
    wav = resample(wav, rate, SAMPLE_RATE)
  if not allow_silent and np.abs(wav).max() < SILENCE_PEAK:
    raise InputError(path, "peak", f"{np.abs(wav).max():.1e} (silence)", f"sound above {SILENCE_PEAK:.0e}")
  return np.ascontiguousarray(wav, np.float32), notes


def write_wav(path: str | os.PathLike, wav: Float[np.ndarray, "S"]) -> None:
  """Writes (S,) float samples at 16 kHz as a float32 mono WAV (DualTalk's form), whole or not at all."""
  with whole_file(path) as file:
    soundfile.write(file, np.asarray(wav, np.float32), SAMPLE_RATE, subtype="FLOAT", format="WAV")


def resample(wav: Float[np.ndarray, "S"], rate: int, new_rate: int) -> Float[np.ndarray, "S2"]:
  """Polyphase resampling with an anti-aliasing filter (scipy's default Kaiser window)."""
  divisor = np.gcd(rate, new_rate)
  return scipy.signal.resample_poly(wav, new_rate // divisor, rate // divisor).astype(np.float32)


def wav_frames(path: str | os.PathLike, fps: float) -> float:
  """Length of a WAV file in video frames, from its header alone, after checking that the file is whole."""
  check_wav_complete(pathlib.Path(path))
  try:
    info = soundfile.info(path)
  except (soundfile.SoundFileError, RuntimeError) as error:
    raise InputError(path, "", f"an unreadable file ({error})", "a RIFF/WAVE file") from error
  return info.frames / info.samplerate * fps


def check_wav_complete(path: pathlib.Path) -> list[str]:
  """Compares the sizes a RIFF header promises with the bytes that are there: libsndfile reads cut-off files silently.

  Returns:
    Notes: one if the header leaves the size open, as programs that write to a pipe do.
  """
  if not path.is_file():
    raise InputError(path, "", "no such file", "a RIFF/WAVE file")
  size = path.stat().st_size
  with path.open("rb") as file:
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
      found = "an empty file" if not head else f"a file that begins with {head[:12]!r}"
      raise InputError(path, "header", found, "a RIFF/WAVE file")
    position = 12
    while position + 8 <= size:  # One chunk: 4 letters, 4 bytes of size, contents padded to an even length.
      file.seek(position)
      name, length = struct.unpack("<4sI", file.read(8))
      position += 8
      if name == b"data" and length == _UNKNOWN_SIZE:
        return [f"{path}: the header leaves the length open; read to the end of the file"]
      if position + length > size:
        raise InputError(
            path, f"chunk '{name.decode('latin1')}'", f"{size - position} bytes (the file is cut off)", f"{length}"
        )
      if name == b"data":
        return []
      position += length + length % 2
  raise InputError(path, "chunk 'data'", "none (the file is cut off)", "a chunk of samples")
