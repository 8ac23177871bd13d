"""When each phone sounds: forced alignment of a synthesised sentence with its phoneme string.

The durations inside both speech models were tried first: they lead or lag the sound by 50 to 100 ms (the network keeps
stress marks and spaces as units of their own), which would show as lips that close beside the bilabial. So the audio itself
is aligned with its phones by pocketsphinx's acoustic model, which was trained on real speech.
"""

import numpy as np
import pocketsphinx
from jaxtyping import Float

SAMPLE_RATE = 16_000
MAX_STOP = 0.13  # Seconds: a stop after a pause begins this long before its release, not at the pause's beginning.

FRAME_OFFSET = 0.008  # Seconds: the aligner's frame k is centred at 10 k + 12.8 ms, half a frame later than 10 k + 5 ms.
NOISE_LEVELS = (3e-4, 1e-3, 1e-2, 3e-3, 1e-2, 2e-2, 1e-2, 3e-3)  # Tried one after another.
LEFT_OUT, MOST_LEFT_OUT = 0.01, 0.2  # Shares of the energy outside the phones: with which to be content, not to be borne.

# misaki's English alphabet to ARPAbet without stress digits. "T" is the tap in "water".
ARPABET = {
    "A": "EY", "I": "AY", "O": "OW", "W": "AW", "Y": "OY", "ʤ": "JH", "ʧ": "CH", "T": "D",
    "ᵊ": "AH", "ə": "AH", "ɐ": "AH", "ʌ": "AH", "ɪ": "IH", "ᵻ": "IH", "i": "IY", "u": "UW", "ʊ": "UH",
    "ɔ": "AO", "ɑ": "AA", "æ": "AE", "ɛ": "EH", "ɜ": "ER", "j": "Y", "w": "W", "ɹ": "R", "ŋ": "NG",
    "ʃ": "SH", "ʒ": "ZH", "θ": "TH", "ð": "DH", "ɡ": "G", "h": "HH", "ʔ": "T",
    "b": "B", "d": "D", "f": "F", "k": "K", "l": "L", "m": "M", "n": "N", "p": "P", "s": "S", "t": "T", "v": "V",
    "z": "Z",
}  # fmt: skip
STOPS = frozenset("P B T D K G CH JH".split())
IGNORED = frozenset("ˈˌː.,!?;:—…“”\"()")

Phone = tuple[str, float, float]  # ARPAbet name, start, end in seconds.


def to_arpabet(word: str) -> list[str]:
  """Phones of one word of a misaki phoneme string; punctuation gives none."""
  unknown = set(word) - set(ARPABET) - IGNORED
  if unknown:
    raise ValueError(f"no ARPAbet phone for {sorted(unknown)} in {word!r}")
  phones: list[str] = []
  previous = ""
  for symbol in word:
    if symbol in ARPABET:
      phone = ARPABET[symbol]
      # misaki writes the r-coloured vowel as two symbols: "ɜɹ", and "əɹ" where it is unstressed.
      if symbol == "ɹ" and phones and (phones[-1] == "ER" or previous == "ə"):
        phones[-1] = "ER"
      else:
        phones.append(phone)
    previous = symbol
  return phones


def align_phones(wav: Float[np.ndarray, "S"], words: list[list[str]]) -> list[Phone]:
  """Phones of one sentence with their times.

  Args:
    wav: the sentence, 16 kHz.
    words: ARPAbet names without stress digits of each word.

  Returns:
    phones in order, seconds from the beginning of `wav` (10 ms grid; pauses are left out).
    A lone "oh" takes the time in which there is sound, and so would the phones of a sentence that no attempt aligns.
  """
  found = _align_somehow(wav, words) or _share_out(wav, words)
  phones = []
  after_pause = True
  last_end = 0.0
  for word in found:
    for name, start, end in word:
      after_pause = after_pause or start - last_end > 0.02
      if name in STOPS:
        # A stop's silence cannot be told from a pause; the aligner gives it all to the stop.
        start = max(start, end - (MAX_STOP if not after_pause else 0.7 * MAX_STOP))
      start, end = max(0.0, start), min(len(wav) / SAMPLE_RATE, end)
      phones.append((name, start, max(end, start + 0.01)))
      after_pause, last_end = False, end
  return phones


def _align_somehow(wav: Float[np.ndarray, "S"], words: list[list[str]]) -> list[list[Phone]] | None:
  """Phones of each word. The aligner prunes its way into a dead end now and then: other conditions free it."""
  if sum(map(len, words)) == 1:
    return None
  # Another length of silence, another level of noise; then the whole sentence as one word, which allows no pauses.
  best, least = None, MOST_LEFT_OUT
  for split in (True, False):
    for index, noise in enumerate(NOISE_LEVELS):
      text = words if split else [[phone for word in words for phone in word]]
      found = _align(wav, text, pad=0.1 + 0.05 * index, noise=noise, seed=index)
      if found is None:
        continue
      left_out = _share_left_out(wav, found)
      if left_out < least:
        phones = iter([phone for word in found for phone in word])
        best, least = [[next(phones) for _ in word] for word in words], left_out
      if least < LEFT_OUT:
        return best
  return best


def _share_left_out(wav: Float[np.ndarray, "S"], found: list[list[Phone]]) -> float:
  """Share of the sound's energy that lies outside all phones, where the aligner has taken a murmur for silence."""
  outside = np.ones(len(wav), bool)
  for _, start, end in (phone for word in found for phone in word):
    outside[max(0, round((start - 0.06) * SAMPLE_RATE)) : max(0, round((end + 0.1) * SAMPLE_RATE))] = False
  return float(np.sum(wav[outside] ** 2) / np.sum(wav**2))


def _align(
    wav: Float[np.ndarray, "S"], words: list[list[str]], *, pad: float, noise: float, seed: int
) -> list[list[Phone]] | None:
  """Phones of each word, or None where the aligner finds no way through."""
  decoder = pocketsphinx.Decoder(lm=None, dict=None, samprate=SAMPLE_RATE, loglevel="FATAL")
  for index, phones in enumerate(words):
    decoder.add_word(f"word{index}", " ".join(phones), True)
  silence = np.zeros(round(pad * SAMPLE_RATE), np.float32)
  loud = np.concatenate([silence, wav / np.abs(wav).max() * 0.8, silence])
  # Digital silence has no spectrum to compare.
  loud = loud + np.random.default_rng(seed).normal(0, noise, len(loud))
  raw = (np.clip(loud, -1, 1) * 32767).astype("<i2").tobytes()
  decoder.set_align_text(" ".join(f"word{index}" for index in range(len(words))))
  try:
    _decode(decoder, raw)  # First pass: words.
    if decoder.hyp() is None:
      return None
    decoder.set_alignment()
    _decode(decoder, raw)  # Second pass: phones inside the words.
  except RuntimeError:
    return None
  alignment = decoder.get_alignment()  # Kept: its iterator does not hold it.
  shift = FRAME_OFFSET - pad
  found = [
      [(phone.name, phone.start / 100 + shift, (phone.start + phone.duration) / 100 + shift) for phone in word]
      for word in alignment
      if word.name.startswith("word")
  ]
  if [[phone[0] for phone in word] for word in found] != words:
    return None
  return found


def _decode(decoder: pocketsphinx.Decoder, raw: bytes) -> None:
  decoder.start_utt()
  decoder.process_raw(raw, full_utt=True)
  decoder.end_utt()


def _share_out(wav: Float[np.ndarray, "S"], words: list[list[str]]) -> list[list[Phone]]:
  """The time between the first and the last loud 10 ms in equal parts, vowels twice as long as consonants."""
  if sum(map(len, words)) > 1:
    print(f"  not aligned, its phones share the time: {words}")
  level = np.abs(wav[: len(wav) // 160 * 160]).reshape(-1, 160).max(axis=1)
  loud = np.flatnonzero(level > 0.05 * level.max())
  weights = [2.0 if phone[0] in "AEIOU" else 1.0 for word in words for phone in word]
  edges = loud[0] / 100 + np.cumsum([0.0, *weights]) / sum(weights) * (loud[-1] + 1 - loud[0]) / 100
  times = iter(zip(edges[:-1], edges[1:]))
  return [[(phone, *map(float, next(times))) for phone in word] for word in words]
