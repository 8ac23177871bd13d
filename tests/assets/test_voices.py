"""The spoken dialogues: what the table promises, and that the sound keeps it."""

import collections
import itertools
import json
import re

import numpy as np
import pytest

from rsatalker_jax.data.demo import dyads, voices
from rsatalker_jax.data.demo.capture import CAPTURED_PERFORMANCE
from rsatalker_jax.data.demo.unpack import conversation_name
from rsatalker_jax.data.tracks import read_motion
from rsatalker_jax.errors import InputError
from rsatalker_jax.types import FPS, SAMPLE_RATE
from tools import voice_cast

RELATIONS = {"blood,equal", "blood,unequal", "non_blood,equal", "non_blood,unequal"}
ARPABET = frozenset(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split()
)
VOWELS = frozenset("AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split())
SOUNDING = slice(None, None, 11)  # Six dialogues, from all relations, are decoded.


@pytest.fixture(scope="module")
def dialogues() -> list[voices.Dialogue]:
  return voices.load_dialogues()


@pytest.fixture(scope="module")
def sounding(dialogues) -> list[tuple[voices.Dialogue, int, np.ndarray]]:
  """(dialogue, speaker, wav) of six dialogues."""
  return [
      (dialogue, speaker, voices.decode_track(path))
      for dialogue in dialogues[SOUNDING]
      for speaker, path in enumerate(dialogue.tracks, 1)
  ]


def test_there_is_enough_of_every_relation_and_split(dialogues):
  relations = collections.Counter(dialogue.relation for dialogue in dialogues)
  assert set(relations) == RELATIONS and min(relations.values()) >= 15
  assert len(dialogues) >= 60 and sum(dialogue.duration for dialogue in dialogues) >= 30 * 60
  splits = collections.Counter((dialogue.relation, dialogue.split) for dialogue in dialogues)
  for relation in RELATIONS:
    assert [splits[relation, split] for split in ("train", "val", "test")] == [11, 2, 3]


def test_ids_and_words_belong_to_one_dialogue(dialogues):
  assert len({dialogue.id for dialogue in dialogues}) == len(dialogues)
  turns = {
      dialogue.id: {u.text for u in dialogue.utterances if u.kind != "filler" and len(u.text.split()) > 4}
      for dialogue in dialogues
  }
  for (first, spoken), (second, also) in itertools.combinations(turns.items(), 2):
    assert not spoken & also, (first, second)


def test_voice_and_seniority_tell_nothing_about_the_relation(dialogues):
  for relation in RELATIONS:
    some = [dialogue for dialogue in dialogues if dialogue.relation == relation]
    for dialogue in some:
      assert sorted(voice.sex for voice in dialogue.voices) == ["female", "male"]
      assert dialogue.senior in ((None,) if relation.endswith(",equal") else (1, 2))
    assert sum(dialogue.voices[0].sex == "female" for dialogue in some) == len(some) // 2
    if relation.endswith(",unequal"):
      pairs = collections.Counter((dialogue.voices[0].sex, dialogue.senior) for dialogue in some)
      assert set(pairs.values()) == {len(some) // 4}
    lengths = [dialogue.duration for dialogue in some]
    assert 26 < np.mean(lengths) < 40 and min(lengths) > 20


def test_nothing_that_a_test_voice_is_made_of_is_heard_in_training(dialogues):
  assert voices.Voice("male", "kokoro-jm_a+jf_b", 1.0, None).parts == {"kokoro-jm_a", "kokoro-jf_b"}
  heard = collections.defaultdict(set)
  for dialogue in dialogues:
    for voice in dialogue.voices:
      heard[dialogue.split] |= voice.parts
  assert not heard["test"] & (heard["train"] | heard["val"]), heard
  assert not heard["test"] & {"kokoro-jm_kumo", "hibari-heart"} and len(heard["train"]) >= 4


def test_every_dialogue_has_the_voices_of_its_cast(dialogues):
  """Twelve, each in its split alone; a relation's training dialogues share all of them out as evenly as the others'."""
  known = {voice.name: voice for voice in voice_cast.VOICES}
  assert len(known) == len(voice_cast.VOICES) == 12
  places, counts = collections.Counter(), collections.Counter()
  for dialogue in dialogues:
    place = places[dialogue.relation, dialogue.split]
    places[dialogue.relation, dialogue.split] += 1
    wanted = voice_cast.cast(dialogue.split, place, dialogue.id)
    for voice in dialogue.voices:
      cast = known[voice.name]
      assert (cast, cast.sex, cast.split) == (wanted[voice.sex], voice.sex, dialogue.split), dialogue.id
      assert cast.sizes[0] <= voice.size <= cast.sizes[1] and (voice.speed is None or 0.96 <= voice.speed <= 1.08)
      counts[voice.name, dialogue.relation, dialogue.split] += 1
  for name, voice in known.items():
    assert sum(weight for _, weight in voice.parts) == 1
    shares = [counts[name, relation, voice.split] for relation in RELATIONS]
    assert min(shares) >= {"train": 2, "val": 2, "test": 3}[voice.split] and max(shares) - min(shares) <= 2, (name, shares)
  followed = {dialogue.id for dialogue in dialogues if None in {voice.speed for voice in dialogue.voices}}
  assert followed == {d.id for d in dialogues if d.id in voice_cast.FILMED and d.split == "test"}


def test_the_films_lips_follow_the_voices_that_are_heard(dialogues):
  """What would be filmed to these phones at this loudness is what was filmed, though two voices have changed since."""
  names = {conversation_name(dialogue.id, CAPTURED_PERFORMANCE): dialogue for dialogue in dialogues}
  folder = voices.VOICES_FOLDER.parent / "capture"
  filmed = {path.name.removesuffix("_speaker1.npz") for path in folder.glob("*_speaker1.npz")}
  assert len(filmed) >= 2 and {names[name].id for name in filmed} <= set(voice_cast.FILMED)
  for name in sorted(filmed):
    made = dyads.perform(names[name], CAPTURED_PERFORMANCE).motion
    for speaker, motion in enumerate(made, 1):
      stored = read_motion(folder / f"{name}_speaker{speaker}.npz")
      changed = None in {voice.speed for voice in names[name].voices}
      # A vowel's loudness opens the mouth: jaws of up to .3 rad, coefficients of up to 1. Phones 40 ms off give .2 and .6.
      np.testing.assert_allclose(motion[:, 50:], stored[:, 50:], atol=0.03 if changed else 1e-6)
      np.testing.assert_allclose(motion[:, :50], stored[:, :50], atol=0.05 if changed else 1e-6)


def test_timings_are_ordered_and_inside_the_dialogue(dialogues):
  for dialogue in dialogues:
    assert np.isclose(dialogue.duration * FPS, round(dialogue.duration * FPS))
    starts = [utterance.start for utterance in dialogue.utterances]
    assert starts == sorted(starts)
    for utterance in dialogue.utterances:
      assert utterance.kind in voices.KINDS and utterance.mood in voices.MOODS and utterance.text
      assert utterance.start == utterance.phones[0].start and utterance.end == utterance.phones[-1].end
      for phone in utterance.phones:
        assert phone.name in ARPABET and 0 <= phone.start < phone.end <= dialogue.duration, (dialogue.id, phone)
      for phone, following in itertools.pairwise(utterance.phones):
        assert phone.end <= following.start + 1e-3, (dialogue.id, phone, following)
    for speaker in (1, 2):
      mine = [utterance for utterance in dialogue.utterances if utterance.speaker == speaker]
      assert all(a.end < b.start for a, b in itertools.pairwise(mine)), dialogue.id


def test_people_talk_like_people(dialogues):
  """Turns change, listeners answer during the other's turn, some turns overlap, fillers are short."""
  kinds = collections.Counter(utterance.kind for dialogue in dialogues for utterance in dialogue.utterances)
  assert kinds["filler"] > 4 * len(dialogues) and kinds["overlap"] > len(dialogues) / 2
  inside = []
  for dialogue in dialogues:
    turns = [utterance for utterance in dialogue.utterances if utterance.kind != "filler"]
    for filler in (utterance for utterance in dialogue.utterances if utterance.kind == "filler"):
      assert len(re.findall(r"[\w-]+", filler.text)) <= 3 and filler.end - filler.start < 1.6, filler
      inside.append(any(t.speaker != filler.speaker and t.start < filler.start < t.end + 0.6 for t in turns))
    for turn, following in itertools.pairwise(turns):
      assert turn.speaker != following.speaker
      assert (following.start < turn.end) == (following.kind == "overlap"), (dialogue.id, following.text)
  assert np.mean(inside) > 0.95
  moods = collections.Counter(utterance.mood for dialogue in dialogues for utterance in dialogue.utterances)
  assert min(moods[mood] for mood in voices.MOODS) > 40


def test_tracks_are_as_long_as_the_dialogue_and_do_not_clip(sounding):
  for dialogue, speaker, wav in sounding:
    assert wav.dtype == np.float32
    assert abs(len(wav) - dialogue.duration * SAMPLE_RATE) <= 1, (dialogue.id, speaker)
    assert 0.2 < np.abs(wav).max() < 0.99


def test_sound_lies_where_the_timings_say(sounding):
  for dialogue, speaker, wav in sounding:
    times = np.arange(len(wav)) / SAMPLE_RATE
    speech, silence = np.zeros(len(wav), bool), np.ones(len(wav), bool)
    for utterance in dialogue.utterances:
      if utterance.speaker == speaker:
        silence &= (times < utterance.start - 0.15) | (times > utterance.end + 0.25)
        for phone in utterance.phones:
          speech |= (times >= phone.start) & (times < phone.end)
    # The room lies nearly 50 dB under the speech; a timing that is off by a word leaves speech in the silence.
    assert _decibels(wav[speech]) > _decibels(wav[silence]) + 30, (dialogue.id, speaker)
    assert -80 < _decibels(wav[silence]) < -55


@pytest.mark.parametrize("filmed", [False, True])
def test_vowels_sound_and_stops_are_closed_where_the_timings_say(sounding, dialogues, filmed):
  """Vowels' middles against the closures of P, T and K: far apart at the stated times, near when 50 ms off.

  Filmed test dialogues have voices that follow other voices' times.
  """
  some = sounding
  if filmed:
    followers = [dialogue for dialogue in dialogues if dialogue.id in voice_cast.FILMED and dialogue.split == "test"]
    some = [(d, speaker, voices.decode_track(path)) for d in followers for speaker, path in enumerate(d.tracks, 1)]

  def contrast(shift: float) -> float:
    vowels, closures = [], []
    for dialogue, speaker, wav in some:
      for utterance in dialogue.utterances:
        if utterance.speaker == speaker and utterance.kind != "filler":
          for phone in utterance.phones:
            at = phone.start + shift + (0.5 if phone.name in VOWELS else 0.4) * (phone.end - phone.start)
            level = _decibels(wav[round((at - 0.005) * SAMPLE_RATE) : round((at + 0.005) * SAMPLE_RATE)])
            if phone.name in VOWELS:
              vowels.append(level)
            elif phone.name in "PTK":
              closures.append(level)
    assert len(closures) > (40 if filmed else 100)
    return np.median(vowels) - np.median(closures)

  stated = contrast(0.0)
  assert stated > 25
  assert stated > max(contrast(-0.05), contrast(0.05)) + 12


def test_women_and_men_differ_in_pitch(sounding):
  pitch = collections.defaultdict(list)
  for dialogue, speaker, wav in sounding:
    for utterance in dialogue.utterances:
      if utterance.speaker == speaker and utterance.kind != "filler":
        for phone in utterance.phones:
          if phone.name in VOWELS and phone.end - phone.start > 0.08:
            middle = round((phone.start + phone.end) / 2 * SAMPLE_RATE)
            pitch[dialogue.id, dialogue.voices[speaker - 1].sex].append(_pitch(wav[middle - 400 : middle + 400]))
  for dialogue, _, _ in sounding:
    female, male = (np.nanmedian(pitch[dialogue.id, sex]) for sex in ("female", "male"))
    assert 160 < female < 310 and 75 < male < 140 and female / male > 1.3, (dialogue.id, female, male)


def test_broken_files_are_reported_in_one_line(tmp_path):
  with pytest.raises(InputError, match="dialogues.json"):
    voices.load_dialogues(tmp_path)
  (tmp_path / "dialogues.json").write_text('{"dialogues": [{"id": "d001"}]}')
  with pytest.raises(InputError, match="no such key"):
    voices.load_dialogues(tmp_path)
  entry = {"id": "d001", "title": "", "relation": "", "split": "train", "senior": None, "duration": 1.0, "utterances": []}
  spoken = {"sex": "female", "name": "hibari-heart", "size": 1.0}
  for wrong, message in ((["female hibari-heart"] * 2, "an object"), ([spoken] * 2, "'speed'"), ([{}], "two voices"), (3, "two voices")):
    (tmp_path / "dialogues.json").write_text(json.dumps({"dialogues": [entry | {"voices": wrong}]}))
    with pytest.raises(InputError, match=message):
      voices.load_dialogues(tmp_path)
  (tmp_path / "dialogues.json").write_text("{")
  with pytest.raises(InputError, match="JSON"):
    voices.load_dialogues(tmp_path)
  (tmp_path / "d001_speaker1.opus").write_bytes(b"no sound at all" * 20)
  with pytest.raises(InputError, match="Opus"):
    voices.decode_track(tmp_path / "d001_speaker1.opus")


def _decibels(wav: np.ndarray) -> float:
  return 10 * np.log10(np.mean(np.square(wav, dtype=np.float64)) + 1e-12)


def _pitch(frame: np.ndarray) -> float:
  """Fundamental frequency of 50 ms by autocorrelation; nan where nothing repeats."""
  frame = frame - frame.mean()
  correlation = np.correlate(frame, frame, "full")[len(frame) - 1 :]
  # Normalised per lag, so that long lags, with fewer samples, do not lose.
  correlation = correlation / correlation[0] / (1 - np.arange(len(frame)) / len(frame))
  low, high = SAMPLE_RATE // 350, SAMPLE_RATE // 65
  peaks = correlation[low:high]
  if peaks.max() < 0.5:
    return np.nan
  # The first lag that repeats almost as well as the best: not its double.
  return SAMPLE_RATE / (low + int(np.flatnonzero(peaks > 0.85 * peaks.max())[0]))
