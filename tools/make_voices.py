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
from rsatalker_jax.data.demo.voices import decode_track
from speech_synthesis import SAMPLE_RATE, Engines, Sentence, load_engines, speak_sentence, word_ends
from voice_cast import FILMED, Voice, cast
from voice_timing import follow_level, follow_phones

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
# A smile shortens the vocal tract and raises the voice; worry does the opposite. Factor on size, on rate, gain in dB.
MOOD_SIZE = {"smile": 1.02, "laugh": 1.03, "surprise": 1.035, "concern": 0.98, "question": 1.01}
MOOD_SPEED = {"laugh": 1.04, "surprise": 1.03, "concern": 0.95}
MOOD_GAIN = {"laugh": 1.5, "surprise": 1.5, "concern": -1.5}
SPEECH_LEVEL = -23.0  # dBFS RMS over an utterance.
FILLER_GAIN = -4.0  # dB: a listener speaks under the other.
NOISE_LEVEL = -72.0  # dBFS RMS of the room.
BIT_RATE = 19_000  # 24 kbit/s would not fit beside the other assets, and is no better understood.

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
  index: int  # Among its relation's dialogues of the same split.
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
        index = sum(script.relation == relation and script.split == split for script in scripts)
        scripts.append(Script(name, title.strip(), relation, split, speaker, senior and speaker[senior], index, []))
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

  def __init__(self, engines: Engines, voice: Voice, rng: random.Random, cache: pathlib.Path):
    self.engines, self.voice, self.cache = engines, voice, cache
    self.size = round(rng.uniform(*voice.sizes), 2)
    self.speed = round(rng.uniform(0.96, 1.08), 2)

  def entry(self) -> dict:
    return {"sex": self.voice.sex, "name": self.voice.name, "size": self.size, "speed": self.speed}

  def sentence(self, sentence: Sentence, mood: str, *, hurry: float = 1.0) -> tuple[np.ndarray, list[list[str]]]:
    """Its sound and what is heard; `hurry` is a factor on the rate."""
    size = self.size * MOOD_SIZE.get(mood, 1.0)
    speed = self.speed * self.voice.pace * MOOD_SPEED.get(mood, 1.0) * hurry
    said = sentence.text if self.voice.engine == "flite" else sentence.phonemes
    key = hashlib.sha1(f"{self.voice.engine} {self.voice.parts} {said} {size:.4f} {speed:.4f}".encode()).hexdigest()
    path = self.cache / f"{key}.npz"
    if not path.exists():
      wav, words = speak_sentence(self.engines, self.voice, sentence, size=size, speed=speed)
      temporary = path.with_suffix(".part.npz")
      np.savez(temporary, wav=wav, words=json.dumps(words))
      os.replace(temporary, path)
    with np.load(path) as stored:
      return stored["wav"], json.loads(str(stored["words"]))

  def say(
    self, text: str, mood: str, gain: float, rng: random.Random, *, hurry: float = 1.0, own_phones: bool = True
  ) -> Speech:
    """An utterance; with the phones that its sentences are written with where the voice's own are not wanted."""
    wavs, phones, ends, length = [], [], [], 0
    for index, sentence in enumerate(self.engines.split(text)):
      if index:
        pause = np.zeros(int(rng.uniform(0.18, 0.42) * SAMPLE_RATE), np.float32)
        wavs.append(pause)
        length += len(pause)
      wav, words = self.sentence(sentence, mood, hurry=hurry)
      offset = length / SAMPLE_RATE
      spoken = align_phones(wav, words if own_phones else sentence.words)
      phones += [(name, start + offset, end + offset) for name, start, end in spoken]
      ends += [end + offset for end in word_ends(sentence, [end for _, _, end in spoken])]
      wavs.append(wav)
      length += len(wav)
    wav = np.concatenate(wavs)
    spoken = np.concatenate([wav[int(s * SAMPLE_RATE) : int(e * SAMPLE_RATE)] for _, s, e in phones])
    level = SPEECH_LEVEL + gain + MOOD_GAIN.get(mood, 0.0)
    wav = wav * (10 ** (level / 20) / np.sqrt(np.mean(spoken**2)))
    wav *= min(1.0, 0.89 / np.abs(wav).max())
    return Speech(wav, phones, ends)


def make_speakers(script: Script, engines: Engines, cache: pathlib.Path, rng: random.Random) -> dict[str, Speaker]:
  """"F" and "M"; the first that is drawn of a dialogue's chance."""
  voices = cast(script.split, script.index, script.id)
  return {sex: Speaker(engines, voices[name], rng, cache) for sex, name in (("F", "female"), ("M", "male"))}


def perform(script: Script, engines: Engines, cache: pathlib.Path) -> tuple[dict, dict[int, np.ndarray]]:
  """The dialogue's entry in dialogues.json and the two tracks {1: (S,), 2: (S,)}."""
  rng = random.Random(script.id)
  speakers = make_speakers(script, engines, cache, rng)
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

  tracks = mix(script, float(duration), [(start, speech.wav, utterance["speaker"]) for start, speech, utterance in pieces])
  entry = {
      "id": script.id, "title": script.title, "relation": script.relation, "split": script.split,
      "senior": script.senior, "duration": round(float(duration), 2), "voices": name_voices(script, speakers),
      "utterances": sorted((piece[2] for piece in pieces), key=lambda utterance: utterance["start"]),
  }  # fmt: skip
  return entry, tracks


def dub(
  script: Script, engines: Engines, cache: pathlib.Path, filmed: dict, old: dict[int, np.ndarray]
) -> tuple[dict, dict[int, np.ndarray]]:
  """A filmed dialogue in its new voices: every phone where the film has it, as loud as it was.

  Args:
    filmed: its entry in dialogues.json, which keeps all but the voices.
    old: the tracks that the film was planned with.
  """
  rng = random.Random(script.id)
  speakers = make_speakers(script, engines, cache, rng)
  by_number = {number: speakers[sex] for sex, number in script.speaker.items()}
  pieces = []
  for utterance in filmed["utterances"]:
    speaker = by_number[utterance["speaker"]]
    times = [tuple(phone) for phone in utterance["phones"]]
    gain = FILLER_GAIN if utterance["kind"] == "filler" else 0.0
    said = speaker.say(utterance["text"], utterance["mood"], gain, rng, own_phones=False)
    # Said again as fast as the film wants it, so that little is left to be stretched.
    hurry = sum(end - start for _, start, end in said.phones) / sum(end - start for _, start, end in times)
    said = speaker.say(utterance["text"], utterance["mood"], gain, rng, hurry=round(hurry, 2), own_phones=False)
    pieces.append((times[0][1] - said.phones[0][1], follow_phones(said.wav, said.phones, times), utterance["speaker"]))
  silent = mix(script, filmed["duration"], [])
  tracks = mix(script, filmed["duration"], pieces)
  for number in tracks:
    tracks[number] = follow_level(tracks[number] - silent[number], old[number]) + silent[number]
  return filmed | {"voices": [voice | {"speed": None} for voice in name_voices(script, speakers)]}, tracks


def name_voices(script: Script, speakers: dict[str, Speaker]) -> list[dict]:
  by_number = {number: speakers[sex].entry() for sex, number in script.speaker.items()}
  return [by_number[1], by_number[2]]


def mix(script: Script, duration: float, pieces: list[tuple[float, np.ndarray, int]]) -> dict[int, np.ndarray]:
  """Both tracks {1: (S,), 2: (S,)}: the room and what each says, given as (start, sound, speaker)."""
  samples = round(duration * SAMPLE_RATE)
  noise = np.random.default_rng(int(script.id[1:]))
  tracks = {speaker: room_noise(samples, noise) for speaker in (1, 2)}
  for start, wav, speaker in pieces:
    begin = round(start * SAMPLE_RATE)
    tracks[speaker][begin : begin + len(wav)] += wav
  return tracks


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
  parser.add_argument("--only", help="comma-separated dialogue ids, made even if they are there; the others are kept as they are")
  parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path("~/.cache/rsatalker_voices"))
  parser.add_argument("--out", type=pathlib.Path, default=here.parent / "assets" / "voices")
  args = parser.parse_args()
  cache = args.cache.expanduser()
  cache.mkdir(parents=True, exist_ok=True)
  args.out.mkdir(parents=True, exist_ok=True)
  table = args.out / "dialogues.json"
  entries = {}
  if table.exists():
    entries = {entry["id"]: entry for entry in json.loads(table.read_text(encoding="utf-8"))["dialogues"]}

  engines = load_engines()
  for script in read_scripts(here / "dialogues"):
    if args.only and script.id not in args.only.split(","):
      continue
    old = entries.get(script.id)
    wanted = name_voices(script, make_speakers(script, engines, cache, random.Random(script.id)))
    if old and not args.only and all(a["name"] == b["name"] and a["size"] == b["size"] for a, b in zip(old["voices"], wanted)):
      continue
    if old and script.id in FILMED:
      sounds = {number: decode_track(args.out / f"{script.id}_speaker{number}.opus") for number in (1, 2)}
      entry, tracks = dub(script, engines, cache, old, sounds)
    else:
      entry, tracks = perform(script, engines, cache)
    for speaker, wav in tracks.items():
      write_opus(args.out / f"{script.id}_speaker{speaker}.opus", wav)
    entries[script.id] = entry
    write_dialogues(table, [entries[name] for name in sorted(entries)])
    print(f"{script.id} {script.relation:18s} {script.split:5s} {entry['duration']:6.2f} s  {script.title}", flush=True)


if __name__ == "__main__":
  main()
