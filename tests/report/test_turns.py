"""Turns from voices made for it, and the rule by which moments are chosen."""

import numpy as np

from rsatalker_jax.evaluation.turn_taking import find_turns, stretches
from rsatalker_jax.report.turns import Turns, choose_exchange, choose_moments

HOP = 640  # Samples of a frame.


def voice(length, *spans):
  """A tone in these frames, silence elsewhere."""
  wav = np.zeros(length * HOP, np.float32)
  for start, stop in spans:
    wav[start * HOP : stop * HOP] = 0.3 * np.sin(2 * np.pi * 200 / 16000 * np.arange((stop - start) * HOP))
  return wav


def mask(length, *spans):
  frames = np.zeros(length, bool)
  for start, stop in spans:
    frames[start:stop] = True
  return frames


def make_turns(name, relation, a, b, filmed=(), length=300):
  return Turns(name, relation, mask(length, *a), mask(length, *b), mask(length, *filmed))


def test_turns_of_a_voice():
  # A window of three frames widens what sounds by a frame on each side; 10 frames of silence are a pause, 25 are none.
  found = find_turns(voice(200, (20, 60), (70, 100), (125, 150)), 200)
  assert stretches(found) == [(19, 101), (124, 151)]
  assert stretches(find_turns(voice(100, (0, 30), (92, 100)), 100)) == [(0, 31), (91, 100)]
  # 0.6 s are 15 frames: 14 silent ones between the widened ends are a pause, 15 are not.
  assert stretches(find_turns(voice(100, (0, 30), (46, 60)), 100)) == [(0, 61)]
  assert stretches(find_turns(voice(100, (0, 30), (47, 60)), 100)) == [(0, 31), (46, 61)]


def test_silence_before_and_after_is_nobodys_turn():
  assert stretches(find_turns(voice(40, (5, 35)), 40)) == [(4, 36)]
  assert not find_turns(voice(40), 40).any()


def test_longest_stretch_of_each_role_in_each_relation():
  conversations = [
      make_turns("x", "non_blood,equal", a=[(0, 100)], b=[(100, 180)]),
      make_turns("y", "blood,equal", a=[(0, 50), (60, 90)], b=[(40, 70), (150, 210)]),
      make_turns("z", "non_blood,equal", a=[(150, 260)], b=[(0, 81)]),
      make_turns("w", "unknown", a=[(0, 30)], b=[]),
  ]
  moments = choose_moments(conversations, 50)
  chosen = [(m.turns.name, m.turns.relation, m.role, m.start, m.stop, m.length) for m in moments]
  assert chosen == [
      ("y", "blood,equal", "speaker", 150, 200, 60),
      ("y", "blood,equal", "listener", 0, 50, 40),  # B takes the turn at 40; the moment goes on.
      ("z", "non_blood,equal", "speaker", 0, 50, 81),
      ("z", "non_blood,equal", "listener", 150, 200, 110),
      ("w", "unknown", "listener", 0, 50, 30),
  ]


def test_a_short_word_of_the_listener_takes_no_turn():
  turns = make_turns("x", "blood,equal", a=[(0, 200)], b=[(50, 74), (100, 125)])
  assert stretches(turns.of_role("listener")) == [(0, 100), (125, 200)]
  assert stretches(turns.of_role("speaker")) == [(50, 74), (100, 125)]


def test_filmed_stretches_go_first_if_they_are_long_enough():
  far = make_turns("far", "blood,equal", a=[], b=[(0, 200)])
  filmed = lambda end: make_turns("film", "blood,equal", a=[], b=[(100, 220)], filmed=[(0, end)])
  choose = lambda *conversations: [(m.turns.name, m.start, m.stop, m.length) for m in choose_moments(conversations, 80)]
  assert choose(far, filmed(140)) == [("film", 60, 140, 40)]  # Moved forward, so that the film shows all of it.
  assert choose(far, filmed(139)) == [("far", 0, 80, 200)]
  assert choose(far, filmed(300)) == [("film", 100, 180, 120)]


def test_moments_stay_in_the_conversation():
  (moment,) = choose_moments([make_turns("x", "blood,equal", a=[], b=[(280, 300)])], 100)
  assert (moment.start, moment.stop, moment.length) == (200, 300, 20)
  (moment,) = choose_moments([make_turns("x", "blood,equal", a=[], b=[(5, 30)], length=40)], 100)
  assert (moment.start, moment.stop) == (0, 40)
  assert choose_moments([], 100) == []


def test_of_equal_stretches_the_first_is_taken():
  twins = [make_turns(name, "blood,equal", a=[], b=[(10, 50), (100, 140)]) for name in "xy"]
  (moment,) = choose_moments(twins, 30)
  assert (moment.turns.name, moment.start) == ("x", 10)


def test_exchange_is_where_the_quieter_speaks_most():
  turns = make_turns("x", "blood,equal", a=[(0, 100), (140, 160)], b=[(100, 140), (250, 300)])
  found = choose_exchange([turns], 60)
  # From 70 to 110, 30 frames of A and 30 of B fit into 60 frames: 70 … 130 is the first of them.
  assert (found.start, found.stop, found.length) == (70, 130, 30)
  film = make_turns("film", "blood,equal", a=[(0, 10)], b=[(10, 20)], filmed=[(5, 40)])
  found = choose_exchange([turns, film], 60)
  assert (found.turns.name, found.start, found.stop, found.length) == ("film", 5, 40, 5)
  assert choose_exchange([make_turns("x", "blood,equal", a=[(0, 100)], b=[])], 60) is None
  both = make_turns("far", "blood,equal", a=[(0, 300)], b=[(0, 300)])
  assert choose_exchange([make_turns("x", "blood,equal", a=[(0, 9)], b=[], filmed=[(0, 50)]), both], 60).turns.name == "far"
