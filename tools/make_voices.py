"""Make assets/voices: the spoken dialogues of the demo, from the scripts in tools/dialogues.

  python tools/make_voices.py [--only d001,d002] [--cache ~/.cache/rsatalker_voices]

Needs tools/requirements.txt (its own environment). About as long as the speech itself on one core; sentences are cached.

A script line is `F[smile]: Text with {mm-hm} fillers.` F is the person with the female voice, M the one with the male voice.
  = d017 Title | train | M | F     a dialogue: split, who is speaker 1, and in unequal relations who is senior
  [mood]                           neutral (default), smile, laugh, surprise, concern, question or agree
  {text} or {mood:text}            the listener says this here, while the other goes on
  ~F: ...                          starts before the other has finished
  F[mood](0.5): ...                starts after that pause in seconds (default: about 0.4, drawn)
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re

import av
import numpy as np
from phone_alignment import Phone, align_phones
from speech_synthesis import SAMPLE_RATE, Voices, load_voices, speak_sentence

RELATIONS = {
    "blood_equal": "blood,equal",
    "blood_unequal": "blood,unequal",
    "nonblood_equal": "non_blood,equal",
    "nonblood_unequal": "non_blood,unequal",
}
MOODS = ("neutral", "smile", "laugh", "surprise", "concern", "question", "agree")
FILLER_MOODS = {
    "mm-hm": "agree", "uh-huh": "agree", "yeah": "agree", "yes": "agree", "right": "agree", "okay": "agree", "sure": "agree",
    "good": "agree", "exactly": "agree", "true": "agree", "oh": "surprise", "wow": "surprise", "what": "surprise",
    "no way": "surprise", "really": "question", "haha": "laugh", "oh no": "concern", "hmm": "neutral", "huh": "surprise",
    "aha": "smile", "nice": "smile", "I see": "agree",
    "thanks": "smile", "thank you": "smile", "good morning": "smile", "good evening": "neutral", "hello": "smile",
}  # fmt: skip
# Sounds that are no dictionary words, in the models' phonemes.
SOUNDS = {
    "mm-hm": "mhˈm.", "uh-huh": "əhˈʌ.", "hmm": "hmm.", "haha": "hˈɑ hɑ!", "huh": "hˈʌ.", "aha": "ɑhˈɑ!",
}  # fmt: skip
# A smile shortens the vocal tract and raises the voice; worry does the opposite. Factor on size, on rate, gain in dB.
MOOD_SIZE = {"smile": 1.02, "laugh": 1.03, "surprise": 1.035, "concern": 0.98, "question": 1.01}
MOOD_SPEED = {"laugh": 1.04, "surprise": 1.03, "concern": 0.95}
MOOD_GAIN = {"laugh": 1.5, "surprise": 1.5, "concern": -1.5}
SPEECH_LEVEL = -23.0  # dBFS RMS over an utterance.
FILLER_GAIN = -4.0  # dB: a listener speaks under the other.
NOISE_LEVEL = -72.0  # dBFS RMS of the room.
BIT_RATE = 20_000  # 24 kbit/s would not fit beside the other assets, and is no better understood.

HEADER = re.compile(r"= (d\d{3}) ([^|]+)\| (train|val|test) \| ([FM])(?: \| ([FM]))?$")
LINE = re.compile(r"(~?)([FM])(?:\[(\w+)\])?(?:\((\d+\.?\d*)\))?: (.+)$")
FILLER = re.compile(r"\s*\{(?:(\w+):)?([^}]+)\}")


@dataclasses.dataclass
class Turn:
  sex: str
  overlap: bool
  pause: float | None
  mood: str
  text: str
  fillers: list[tuple[int, str, str]]  # After how many words, mood, text.


@dataclasses.dataclass
class Script:
  id: str
  title: str
  relation: str
  split: str
  speaker: dict[str, int]  # "F" or "M" -> 1 or 2.
  senior: int | None
  turns: list[Turn]


@dataclasses.dataclass
class Speech:
  """One utterance, level already set; times in seconds from its first sample."""

  wav: np.ndarray
  phones: list[Phone]
  word_ends: list[float]


def read_scripts(folder: pathlib.Path) -> list[Script]:
  scripts = []
  for stem, relation in RELATIONS.items():
    path = folder / f"{stem}.txt"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
      if not line.strip():
        continue
      if header := HEADER.match(line):
        name, title, split, first, senior = header.groups()
        speaker = {"F": 1, "M": 2} if first == "F" else {"F": 2, "M": 1}
        if (senior is None) != relation.endswith(",equal"):
          raise SystemExit(f"{path}:{number}: found senior {senior}, expected one exactly in unequal relations")
        scripts.append(Script(name, title.strip(), relation, split, speaker, senior and speaker[senior], []))
      elif match := LINE.match(line):
        scripts[-1].turns.append(parse_turn(match, f"{path}:{number}"))
      else:
        raise SystemExit(f"{path}:{number}: found {line!r}, expected '= id title | split | F' or 'F[mood]: text'")
  return scripts


def parse_turn(match: re.Match, where: str) -> Turn:
  overlap, sex, mood, pause, marked = match.groups()
  mood = mood or "neutral"
  fillers, text, end = [], "", 0
  for filler in FILLER.finditer(marked):
    text += marked[end : filler.start()]
    end = filler.end()
    filler_mood = filler[1] or FILLER_MOODS.get(filler[2])
    if filler_mood not in MOODS:
      raise SystemExit(f"{where}: found filler {filler[0]!r}, expected a known one or {{mood:text}}")
    fillers.append((len(text.split()), filler_mood, filler[2]))
  if mood not in MOODS:
    raise SystemExit(f"{where}: found mood {mood!r}, expected one of {MOODS}")
  return Turn(sex, bool(overlap), float(pause) if pause else None, mood, text + marked[end:], fillers)


class Speaker:
  """One person of one dialogue: a voice, its size and its rate."""

  def __init__(self, voices: Voices, sex: str, rng: random.Random, cache: pathlib.Path):
    self.voices, self.cache = voices, cache
    self.sex = {"F": "female", "M": "male"}[sex]
    # The female model's own median is 195 Hz, the male's 90 Hz: ranges that stay well apart.
    low, high = (0.95, 1.07) if sex == "F" else (1.0, 1.16)
    self.size = round(rng.uniform(low, high), 2)
    self.speed = round(rng.uniform(0.96, 1.08), 2)

  @property
  def name(self) -> str:
    base = {"female": "female hibari-heart", "male": "male kokoro-jm_kumo"}[self.sex]
    return f"{base} size {self.size:.2f} speed {self.speed:.2f}"

  def sentence(self, phonemes: str, mood: str) -> tuple[np.ndarray, list[Phone], list[float]]:
    size = self.size * MOOD_SIZE.get(mood, 1.0)
    speed = self.speed * MOOD_SPEED.get(mood, 1.0)
    key = hashlib.sha1(f"{self.sex} {phonemes} {size:.4f} {speed:.4f}".encode()).hexdigest()
    path = self.cache / f"{key}.npz"
    if not path.exists():
      wav = speak_sentence(self.voices, self.sex, phonemes, size=size, speed=speed)
      np.savez(path, wav=wav)
    with np.load(path) as stored:
      wav = stored["wav"]
    phones, ends = align_phones(wav, phonemes)
    return wav, phones, ends

  def say(self, text: str, mood: str, gain: float, rng: random.Random) -> Speech:
    wavs, phones, word_ends, length = [], [], [], 0
    for index, phonemes in enumerate([SOUNDS[text]] if text in SOUNDS else self.voices.phonemize(text)):
      if index:
        pause = np.zeros(int(rng.uniform(0.18, 0.42) * SAMPLE_RATE), np.float32)
        wavs.append(pause)
        length += len(pause)
      wav, sentence_phones, ends = self.sentence(phonemes, mood)
      offset = length / SAMPLE_RATE
      phones += [(name, start + offset, end + offset) for name, start, end in sentence_phones]
      word_ends += [end + offset for end in ends]
      wavs.append(wav)
      length += len(wav)
    wav = np.concatenate(wavs)
    spoken = np.concatenate([wav[int(s * SAMPLE_RATE) : int(e * SAMPLE_RATE)] for _, s, e in phones])
    level = SPEECH_LEVEL + gain + MOOD_GAIN.get(mood, 0.0)
    wav = wav * (10 ** (level / 20) / np.sqrt(np.mean(spoken**2)))
    wav *= min(1.0, 0.89 / np.abs(wav).max())
    return Speech(wav, phones, word_ends)


def perform(script: Script, voices: Voices, cache: pathlib.Path) -> tuple[dict, dict[int, np.ndarray]]:
  """The dialogue's entry in dialogues.json and the two tracks {1: (S,), 2: (S,)}."""
  rng = random.Random(script.id)
  speakers = {sex: Speaker(voices, sex, rng, cache) for sex in "FM"}
  pieces: list[tuple[float, Speech, dict]] = []
  last_end = {"F": 0.0, "M": 0.0}  # When each person's latest utterance ends.

  def place(start: float, speech: Speech, sex: str, text: str, kind: str, mood: str) -> None:
    phones = [[name, round(start + a, 3), round(start + b, 3)] for name, a, b in speech.phones]
    utterance = {
        "speaker": script.speaker[sex], "start": phones[0][1], "end": phones[-1][2], "text": text, "kind": kind,
        "mood": mood, "phones": phones,
    }  # fmt: skip
    pieces.append((start, speech, utterance))
    last_end[sex] = utterance["end"]

  end, previous = rng.uniform(0.4, 0.9), 0.0  # The latest turn's end and length.
  for index, turn in enumerate(script.turns):
    other = "M" if turn.sex == "F" else "F"
    speech = speakers[turn.sex].say(turn.text, turn.mood, 0.0, rng)
    if turn.overlap:
      start = end - min(rng.uniform(0.35, 0.75), 0.35 * previous)
    else:
      drawn = max(0.08, rng.gauss(0.38, 0.18))
      start = end + (turn.pause if turn.pause is not None else drawn if index else 0.0)
    start = max(start, last_end[turn.sex] + 0.1)
    overlaps = start + speech.phones[0][1] < end
    place(start, speech, turn.sex, turn.text.strip(), "overlap" if overlaps else "turn", turn.mood)
    end, previous = last_end[turn.sex], len(speech.wav) / SAMPLE_RATE
    words = len(turn.text.split())
    for after, mood, text in turn.fillers:
      # The front end may spell a number as several words: scale the word's place in the text to the spoken words.
      word = min(len(speech.word_ends), max(1, round(after / words * len(speech.word_ends))))
      begin = start + speech.word_ends[word - 1] + rng.uniform(0.05, 0.3)
      filler = speakers[other].say(text, mood, FILLER_GAIN, rng)
      begin = max(begin, last_end[other] + 0.15)
      place(begin, filler, other, text, "filler", mood)
  tail = max(last_end.values()) + rng.uniform(0.6, 1.0)
  duration = np.ceil(tail * 25) / 25  # Whole video frames.

  samples = round(duration * SAMPLE_RATE)
  noise = np.random.default_rng(int(script.id[1:]))
  tracks = {speaker: room_noise(samples, noise) for speaker in (1, 2)}
  for start, speech, utterance in pieces:
    begin = round(start * SAMPLE_RATE)
    tracks[utterance["speaker"]][begin : begin + len(speech.wav)] += speech.wav
  by_speaker = {number: speakers[sex].name for sex, number in script.speaker.items()}
  entry = {
      "id": script.id, "title": script.title, "relation": script.relation, "split": script.split,
      "senior": script.senior, "duration": round(float(duration), 2), "voices": [by_speaker[1], by_speaker[2]],
      "utterances": sorted((piece[2] for piece in pieces), key=lambda utterance: utterance["start"]),
  }  # fmt: skip
  return entry, tracks


def room_noise(samples: int, rng: np.random.Generator) -> np.ndarray:
  """Noise that falls with frequency, at NOISE_LEVEL."""
  spectrum = np.fft.rfft(rng.standard_normal(samples))
  spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)) * SAMPLE_RATE / samples, 100.0))
  noise = np.fft.irfft(spectrum, samples)
  return (noise / np.sqrt(np.mean(noise**2)) * 10 ** (NOISE_LEVEL / 20)).astype(np.float32)


def write_opus(path: pathlib.Path, wav: np.ndarray) -> None:
  """Ogg Opus, mono, 16 kHz content, variable bit rate; written beside and renamed."""
  temporary = path.with_suffix(".part.opus")
  with av.open(str(temporary), "w", format="ogg") as container:
    options = {"application": "audio", "vbr": "on", "compression_level": "10", "frame_duration": "60"}
    stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options=options)
    stream.bit_rate = BIT_RATE
    frame = av.AudioFrame.from_ndarray((np.clip(wav, -1, 1) * 32767).round().astype("<i2")[None], "s16", "mono")
    frame.sample_rate = SAMPLE_RATE
    frame.pts = 0
    for packet in [*stream.encode(frame), *stream.encode(None)]:
      container.mux(packet)
  os.replace(temporary, path)


def write_dialogues(path: pathlib.Path, entries: list[dict]) -> None:
  """dialogues.json, one dialogue a line."""
  lines = ",\n".join(json.dumps(entry, separators=(",", ":"), ensure_ascii=False) for entry in entries)
  temporary = path.with_suffix(".part")
  temporary.write_text(f'{{"dialogues":[\n{lines}\n]}}\n', encoding="utf-8")
  os.replace(temporary, path)


def main() -> None:
  here = pathlib.Path(__file__).resolve().parent
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", help="comma-separated dialogue ids; the others are kept as they are")
  parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path("~/.cache/rsatalker_voices"))
  parser.add_argument("--out", type=pathlib.Path, default=here.parent / "assets" / "voices")
  args = parser.parse_args()
  cache = args.cache.expanduser()
  cache.mkdir(parents=True, exist_ok=True)
  args.out.mkdir(parents=True, exist_ok=True)
  table = args.out / "dialogues.json"
  entries = {}
  if args.only and table.exists():
    entries = {entry["id"]: entry for entry in json.loads(table.read_text(encoding="utf-8"))["dialogues"]}

  voices = load_voices()
  for script in read_scripts(here / "dialogues"):
    if args.only and script.id not in args.only.split(","):
      continue
    entry, tracks = perform(script, voices, cache)
    for speaker, wav in tracks.items():
      write_opus(args.out / f"{script.id}_speaker{speaker}.opus", wav)
    entries[script.id] = entry
    write_dialogues(table, [entries[name] for name in sorted(entries)])
    print(f"{script.id} {script.relation:18s} {script.split:5s} {entry['duration']:6.2f} s  {script.title}", flush=True)


if __name__ == "__main__":
  main()
