"""Degradations of one voice, (S,) float32 at 16 kHz in, (S,) float32 out, in step with it."""

import io
from collections.abc import Callable, Mapping

import av
import numpy as np
import scipy.fft
import scipy.signal
from jaxtyping import Float

from rsatalker_jax.data.audio import resample
from rsatalker_jax.types import SAMPLE_RATE

Wav = Float[np.ndarray, "S"]

# Hertz between which a line passes sound.
TELEPHONE, WIDEBAND = (300.0, 3400.0), (50.0, 7000.0)
_BLOCK = SAMPLE_RATE // 50
_ACTIVE = 1e-3  # Of the loudest block's power: 30 dB below it.
_NOMINAL = 10 ** (-26 / 10)  # Of a voice that is silent: the power that telephone networks keep speech at (ITU-T P.56).
_MU = 255.0
_OPUS_RATE = 48_000


def active_power(wav: Wav) -> float:
  """Mean square of a voice where it sounds: of the blocks of 20 ms within 30 dB of its loudest; 0 of silence."""
  blocks = np.square(np.pad(wav, (0, -len(wav) % _BLOCK)).astype(np.float64)).reshape(-1, _BLOCK).mean(axis=1)
  loudest = blocks.max(initial=0.0)
  return float(blocks[blocks >= _ACTIVE * loudest].mean()) if loudest > 0 else 0.0


def amplify(wav: Wav, decibels: float) -> Wav:
  """So much louder; what exceeds full scale is kept."""
  return (wav * 10 ** (decibels / 20)).astype(np.float32)


def make_noise(kind: str, wav: Wav, rng: np.random.Generator) -> Wav:
  """Steady noise of unit power, as long as a voice.

  Args:
    kind: "white"; "pink", whose power falls by 3 dB an octave; or "speech", which has the voice's own spectrum, as many
      people who speak at once have (pink where the voice is silent).
    wav: the voice.
    rng: of the noise.
  """
  length = scipy.fft.next_fast_len(len(wav), real=True)
  spectrum = scipy.fft.rfft(rng.normal(size=length))
  if kind == "speech" and wav.any():
    spectrum *= np.abs(scipy.fft.rfft(wav, length))
  elif kind in ("pink", "speech"):
    spectrum /= np.sqrt(np.maximum(scipy.fft.rfftfreq(length, 1 / SAMPLE_RATE), 20.0))
  elif kind != "white":
    raise ValueError(f"found {kind=}, expected white, pink or speech")
  noise = scipy.fft.irfft(spectrum, length)[: len(wav)]
  return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def add_noise(wav: Wav, noise: Wav, decibels: float) -> Wav:
  """A voice with noise under it, so many decibels below the voice where that sounds (`active_power`)."""
  power = (active_power(wav) or _NOMINAL) / 10 ** (decibels / 10)
  return (wav + noise * np.sqrt(power / max(np.mean(np.square(noise, dtype=np.float64)), 1e-20))).astype(np.float32)


def reverberate(wav: Wav, response: Float[np.ndarray, "R"]) -> Wav:
  """A voice in a room, as loud as before. What comes straight stays in its place: the response's first sample of at least half
  its peak."""
  first = int(np.argmax(np.abs(response) >= 0.5 * np.abs(response).max()))
  heard = scipy.signal.fftconvolve(wav, response)[first : first + len(wav)]
  louder = active_power(heard)
  return (heard * np.sqrt(active_power(wav) / louder) if louder > 0 else wav).astype(np.float32)


def limit_band(wav: Wav, hertz: tuple[float, float]) -> Wav:
  """What passes between two frequencies: a Butterworth filter of fourth order, there and back, so that nothing is late; at the two
  frequencies themselves 6 dB are lost."""
  sections = scipy.signal.butter(4, hertz, "bandpass", fs=SAMPLE_RATE, output="sos")
  return scipy.signal.sosfiltfilt(sections, wav).astype(np.float32)


def resize(wav: Wav, factor: float) -> Wav:
  """The voice of a smaller (factor > 1) or larger person: pitch and formants times `factor`, every sound at its own time.

  A faster or slower copy of the voice, stretched to the voice's own length by a phase vocoder (Flanagan & Golden 1966) with windows
  of 32 ms every 10: each window stands in the middle of its place, so nothing is late; what begins suddenly begins some 3 ms early.
  """
  window, hop = 512, SAMPLE_RATE // 100
  taper = scipy.signal.get_window("hann", window).astype(np.float32)
  copy = np.pad(resample(wav, SAMPLE_RATE * factor, SAMPLE_RATE), (window // 2 + hop, window + 2 * hop))
  count = len(wav) // hop + 1
  begins = np.minimum(np.rint(np.arange(count) * hop / factor).astype(np.int64), len(copy) - window - hop)
  at = lambda offset: scipy.fft.rfft(np.lib.stride_tricks.sliding_window_view(copy, window)[begins + offset] * taper)
  spectrum, before = at(hop), at(0)
  # From window to window each frequency turns as far as it does in the copy in as much time; beginning with what the copy has.
  turn = np.angle(spectrum * np.conj(before))
  turn[0] = np.angle(spectrum[0])
  phase = np.cumsum(turn, axis=0, dtype=np.float64) % (2 * np.pi)
  pieces = scipy.fft.irfft(np.abs(spectrum) * np.exp(1j * phase).astype(np.complex64)) * taper
  sound, weight = np.zeros((2, (count + 1) * hop + window), np.float32)
  for first in range(0, window, hop):
    part = pieces[:, first : first + hop]
    width = part.shape[1]
    sound[first : first + count * hop].reshape(count, hop)[:, :width] += part
    weight[first : first + count * hop].reshape(count, hop)[:, :width] += np.square(taper[first : first + width])
  inner = slice(window // 2, window // 2 + len(wav))
  return sound[inner] / np.maximum(weight[inner], 0.1)


# Hertz at which `equalise` is told its gains, an octave apart.
OCTAVES = 62.5 * 2.0 ** np.arange(8)


def equalise(wav: Wav, decibels: Float[np.ndarray, "8"]) -> Wav:
  """A voice as another microphone or another throat colours it: so many dB at `OCTAVES`, linear in between over log frequency, and
  constant beyond; nothing is late. As loud as before."""
  length = scipy.fft.next_fast_len(len(wav) + _BLOCK, real=True)
  hertz = np.maximum(scipy.fft.rfftfreq(length, 1 / SAMPLE_RATE), 1.0)
  gains = 10 ** (np.interp(np.log2(hertz), np.log2(OCTAVES), decibels) / 20)
  heard = scipy.fft.irfft(scipy.fft.rfft(np.asarray(wav, np.float64), length) * gains, length)[: len(wav)]
  louder = active_power(heard)
  return (heard * np.sqrt(active_power(wav) / louder) if louder > 0 else wav).astype(np.float32)


def clip_peaks(wav: Wav, share: float) -> Wav:
  """All beyond so much of the voice's peak cut off."""
  most = share * float(np.abs(wav).max(initial=0.0))
  return np.clip(wav, -most, most)


def code_mu_law(wav: Wav) -> Wav:
  """Through 8 bits of the μ-law that G.711 approximates: sign(x) ln(1 + 255 |x|) / ln 256 in 255 steps. Beyond full scale it clips."""
  x = np.clip(wav, -1.0, 1.0).astype(np.float64)
  coded = np.rint(np.sign(x) * np.log1p(_MU * np.abs(x)) / np.log1p(_MU) * 127) / 127
  return (np.sign(coded) * np.expm1(np.abs(coded) * np.log1p(_MU)) / _MU).astype(np.float32)


def code_opus(wav: Wav, bits: int) -> Wav:
  """Through Opus, the codec of calls in browsers, at so many bits a second; libopus in PyAV."""
  file = io.BytesIO()
  with av.open(file, "w", format="ogg") as container:
    stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options={"application": "voip", "compression_level": "5"})
    stream.bit_rate = bits
    # Opus keeps time in units of 20 ms, and its last one may be cut short.
    sound = np.pad(np.clip(wav, -1.0, 1.0), (0, 2 * _BLOCK)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    for part in (frame, None):
      container.mux(stream.encode(part))
  file.seek(0)
  with av.open(file, "r") as container:
    heard = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
  return resample(heard, _OPUS_RATE, SAMPLE_RATE)[: len(wav)]


# What a line does, by name: a function of voice and random numbers.
LINES: Mapping[str, Callable[[Wav, np.random.Generator], Wav]] = {
    "wideband": lambda wav, rng: limit_band(wav, WIDEBAND),
    "telephone": lambda wav, rng: limit_band(code_mu_law(limit_band(wav, TELEPHONE)), TELEPHONE),
    "opus": lambda wav, rng: code_opus(wav, int(rng.integers(8, 25)) * 1000),
}
