"""The demo world's rules, measured on simulated dyads: what-if experiments with the same chance and one thing changed."""

import dataclasses

import numpy as np
import pytest

from rsatalker_jax.data.demo import dyads, voices
from rsatalker_jax.data.demo.expressions import COLUMN, EXPRESSION_NAMES
from rsatalker_jax.data.demo.rules import CHANNELS, FACE_CHANNELS, RULES
from rsatalker_jax.errors import InputError
from rsatalker_jax.types import FPS

BY_GAIN = ("blood,equal", "blood,unequal", "non_blood,equal", "non_blood,unequal")  # Strongest answer to a smile first.
BY_LAG = ("blood,equal", "non_blood,equal", "blood,unequal", "non_blood,unequal")  # Quickest first.
SMILE, TILT = CHANNELS.index("smile"), CHANNELS.index("tilt")


def utterance(speaker, start, phones, *, kind="turn", mood="neutral", length=0.09):
  timed = [voices.Phone(name, start + k * length, start + (k + 1) * length) for k, name in enumerate(phones.split())]
  return voices.Utterance(speaker, start, timed[-1].end, "", kind, mood, tuple(timed))


def dialogue(*utterances, relation="blood,equal", duration=20.0, senior=None):
  return voices.Dialogue("x001", "made by hand", relation, "train", senior, duration, ("a", "b"), utterances, ("", ""))


SPEECH = "HH AH L OW M AY F R EH N D W AA T B IH G P AE T IY Z "
# Speaker 1 talks for 9 seconds, speaker 2 listens, then answers.
LISTENING = dialogue(utterance(1, 1.0, SPEECH * 4 + SPEECH), utterance(2, 12.0, SPEECH * 3, mood="smile"))


@pytest.fixture(scope="module")
def real_dialogues():
  """One of each relation from the table."""
  table = voices.load_dialogues()
  return [next(d for d in table if d.relation == relation) for relation in BY_GAIN]


@pytest.fixture(scope="module")
def performed(real_dialogues):
  return [dyads.simulate_dyad(d, performance) for d in real_dialogues for performance in (0, 1)]


def test_same_arguments_give_the_same_bits_and_other_performances_differ(real_dialogues):
  first, again = (dyads.simulate_dyad(real_dialogues[0], 3).motion for _ in range(2))
  assert first.dtype == np.float32 and np.array_equal(first, again)
  other = dyads.simulate_dyad(real_dialogues[0], 4).motion
  assert np.abs(first - other).mean() > 0.005


def test_ranges_are_those_of_faces(performed):
  for dyad in performed:
    motion = dyad.motion
    assert np.isfinite(motion).all() and motion.shape[0] == 2 and motion.shape[2] == 56
    assert motion[..., :50].min() >= 0.0 and motion[..., :50].max() <= 1.0
    assert motion[..., 50].min() >= 0.0 and motion[..., 50].max() <= 0.45
    assert not motion[..., 51:53].any()
    assert np.all(np.abs(motion[..., 53:]).max((0, 1)) <= (0.25, 0.35, 0.20))
    # Smooth: the head turns by less than 86 degrees a second, the jaw opens by less than 8 rad a second.
    speed = np.abs(np.diff(motion, axis=1)).max((0, 1)) * FPS
    assert np.all(speed[53:] < 1.5) and speed[50] < 8.0


def test_nobody_is_frozen_and_everyone_blinks(performed):
  for dyad in performed:
    minutes = dyad.motion.shape[1] / FPS / 60
    for person in dyad.motion:
      assert np.all(person[:, 53:].std(0) > 0.008)
      lids = person[:, COLUMN["eyeBlinkLeft"]]
      blinks = int(np.sum((lids[1:] > 0.9) & (lids[:-1] <= 0.9)))
      assert 4 <= blinks / minutes <= 45
      np.testing.assert_allclose(lids, person[:, COLUMN["eyeBlinkRight"]], atol=0.06)  # Standing noise: 0.008.


def test_eyes_are_conjugate(performed):
  for dyad in performed:
    for person in dyad.motion:
      left_eye = person[:, COLUMN["eyeLookOutLeft"]] - person[:, COLUMN["eyeLookInLeft"]]
      right_eye = person[:, COLUMN["eyeLookInRight"]] - person[:, COLUMN["eyeLookOutRight"]]
      assert np.corrcoef(left_eye, right_eye)[0, 1] > 0.97


def test_lips_close_on_bilabials_in_whole_conversations(performed, real_dialogues):
  held = total = 0
  for k, dyad in enumerate(performed):
    for person in (1, 2):
      for u in real_dialogues[k // 2].utterances:
        if u.speaker != person:
          continue
        for phone in u.phones:
          if phone.name not in ("P", "B", "M"):
            continue
          frame = min(int(0.5 * (phone.start + phone.end) * FPS), dyad.motion.shape[1] - 1)
          row = dyad.motion[person - 1, frame]
          parted = max(row[COLUMN["mouthLowerDownLeft"]], row[COLUMN["mouthUpperUpLeft"]], row[COLUMN["mouthFunnel"]])
          # mouthClose at 1 closes a jaw that is 0.43 rad open.
          total, held = total + 1, held + (row[50] - 0.43 * row[COLUMN["mouthClose"]] < 0.012 and parted < 0.1)
  assert total > 100 and held / total >= 0.95


def test_jaw_follows_vowels(performed, real_dialogues):
  opening = {True: [], False: []}
  for k, dyad in enumerate(performed):
    for u in real_dialogues[k // 2].utterances:
      for phone in u.phones:
        if phone.name in ("AA", "AE", "AY", "AW") or phone.name in ("S", "Z", "F", "V", "UW"):
          frame = min(int(0.5 * (phone.start + phone.end) * FPS), dyad.motion.shape[1] - 1)
          opening[phone.name.startswith("A")].append(dyad.motion[u.speaker - 1, frame, 50])
  assert np.mean(opening[True]) > 1.7 * np.mean(opening[False])


def test_a_dialogue_of_silence_keeps_the_mouth_shut():
  motion = dyads.simulate_dyad(dialogue(duration=8.0), 0).motion
  assert motion[..., 50].max() < 0.02


def answer_to(channel, size, relation, performance=0):
  """Change in what speaker 2 shows when speaker 1 shows more of a channel from 4 to 6 s; (T, 9), and speaker 1's."""
  nudge = np.zeros((2, 500, len(CHANNELS)))
  nudge[0, 100:150, channel] = size
  plain = dyads.simulate_dyad(LISTENING, performance, rules=RULES[relation])
  nudged = dyads.simulate_dyad(LISTENING, performance, rules=RULES[relation], nudge=nudge)
  return nudged.visible[1] - plain.visible[1], nudged.visible[0] - plain.visible[0]


def test_partner_smile_is_answered_with_the_relations_gain():
  gains = {}
  for relation in BY_GAIN:
    measured = []
    for performance in range(4):
      answer, cause = answer_to(SMILE, 0.4, relation, performance)
      assert np.abs(answer[:100]).max() == 0.0  # Nothing happens before the cause.
      measured.append(answer[130:150, SMILE].mean() / cause[130:150, SMILE].mean())
    gains[relation] = np.mean(measured)
  ordered = [gains[relation] for relation in BY_GAIN]
  assert all(more > less + 0.05 for more, less in zip(ordered, ordered[1:])), gains
  for relation, gain in gains.items():
    # Habits, soft limits and rounded lips blur the rule's number, not its size.
    assert gain == pytest.approx(RULES[relation].answers["smile", "smile"], rel=0.35, abs=0.06)


def test_partner_smile_is_answered_with_the_relations_delay():
  peaks = []
  for relation in BY_LAG:
    answer, cause = answer_to(SMILE, 0.4, relation)
    rise, onset = np.diff(answer[95:150, SMILE]), np.diff(cause[95:150, SMILE])
    peaks.append(int(np.argmax([np.sum(onset[: len(onset) - lag] * rise[lag:]) for lag in range(30)])))
    first = min(int(np.flatnonzero(answer_to(SMILE, 0.4, relation, p)[0][:, SMILE])[0]) - 100 for p in range(4))
    # A face that was not smiling at all (clipped at 0) starts to move a little after the answer does.
    assert 0 <= first - round(FPS * RULES[relation].face_lag) <= 2
  assert all(quick < slow for quick, slow in zip(peaks, peaks[1:])), peaks  # By cross-correlation too.


def test_partner_tilt_is_mirrored_or_opposed():
  for relation in BY_GAIN:
    answer, cause = answer_to(TILT, 0.08, relation)
    gain = answer[135:150, TILT].mean() / cause[135:150, TILT].mean()
    assert np.sign(gain) == np.sign(RULES[relation].answers["tilt", "tilt"])
    assert abs(gain) == pytest.approx(abs(RULES[relation].answers["tilt", "tilt"]), rel=0.5)


def test_the_answer_is_visible_in_the_motion():
  nudge = np.zeros((2, 500, len(CHANNELS)))
  nudge[0, 100:150, SMILE] = 0.4
  plain = dyads.simulate_dyad(LISTENING, 0)
  change = dyads.simulate_dyad(LISTENING, 0, nudge=nudge).motion[1] - plain.motion[1]
  lips = change[130:150, COLUMN["mouthSmileLeft"]].mean()
  assert lips > 0.15 and change[130:150, COLUMN["cheekSquintLeft"]].mean() > 0.2 * lips


def test_listener_nods_at_the_partners_phrase_ends():
  talk = dialogue(utterance(1, 1.0, SPEECH), utterance(1, 4.0, SPEECH), utterance(1, 7.0, SPEECH), duration=12.0)
  ends = [u.end for u in talk.utterances]
  for relation, rules in RULES.items():
    pitch = np.mean([dyads.simulate_dyad(talk, p, rules=RULES[relation]).motion[1, :, 53] for p in range(12)], axis=0)
    for end in ends:
      bottom = int((end + rules.nod_lag + 0.5 * rules.nod_time) * FPS)
      assert pitch[bottom] - pitch[int(end * FPS) - 2] > 0.5 * rules.nod_gain


def test_relation_changes_the_motion_of_the_same_people(real_dialogues):
  for d in real_dialogues:
    motions = [dyads.simulate_dyad(d, 0, rules=RULES[relation]).motion for relation in BY_GAIN]
    for k, one in enumerate(motions):
      for other in motions[k + 1:]:
        # As much as, or more than, another performance of the same relation's chance (measured: 0.02 and above).
        assert np.abs(one - other)[..., :50].mean() > 0.008
        assert np.abs(one - other)[..., 53:].mean() > 0.01


def test_senior_answers_less_than_junior():
  nudge = np.zeros((2, 500, len(CHANNELS)))
  nudge[0, 100:150, SMILE] = 0.4
  change = {}
  for senior in (1, 2):
    d = dataclasses.replace(LISTENING, relation="blood,unequal", senior=senior)
    answer = dyads.simulate_dyad(d, 0, nudge=nudge).visible[1] - dyads.simulate_dyad(d, 0).visible[1]
    change[senior] = answer[130:150, SMILE].mean()
  assert 0.7 < change[2] / change[1] < 0.9


def test_loudness_opens_the_mouth():
  loud = np.full((2, 500), 0.4)
  loud[:, : 25 * 5] = 0.2
  motion = dyads.simulate_dyad(LISTENING, 0, loudness=loud).motion[0, :, 50]
  plain = dyads.simulate_dyad(LISTENING, 0).motion[0, :, 50]
  assert motion[30:120].mean() < 0.92 * plain[30:120].mean() and motion[130:250].mean() > plain[130:250].mean()


@pytest.mark.parametrize("change, named", [
    (dict(relation="cousins"), "relation: found 'cousins'"),
    (dict(utterances=(utterance(1, 1.0, "AA", mood="angry"),)), "mood: found 'angry'"),
    (dict(utterances=(utterance(1, 1.0, "AA", kind="song"),)), "kind: found 'song'"),
    (dict(utterances=(utterance(1, 1.0, "AA QQ"),)), "phones: found 'QQ'"),
])
def test_wrong_dialogues_are_named(change, named):
  with pytest.raises(InputError, match=f"dialogue x001: {named}"):
    dyads.simulate_dyad(dataclasses.replace(LISTENING, **change), 0)


def test_every_rule_names_known_channels():
  for rules in RULES.values():
    matrix = rules.answer_matrix()
    assert matrix.shape == (9, 9) and np.count_nonzero(matrix) == len(rules.answers)
    assert set(rules.base) <= set(CHANNELS[:FACE_CHANNELS])
    assert np.abs(np.linalg.eigvals(matrix)).max() < 1.0  # Two people's answers to each other die out.
  assert len(EXPRESSION_NAMES) == 50
