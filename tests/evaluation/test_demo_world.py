"""Measured answers against answers made by hand, and against the demo world's own rules."""

import numpy as np
import pytest

from rsatalker_jax.data.demo import dyads
from rsatalker_jax.data.demo.expressions import COLUMN, columns
from rsatalker_jax.data.demo.rules import CHANNELS
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import demo_world

NAME = "demo-d009_sub_video_0_speaker2"


@pytest.fixture(scope="module")
def motion_a():
  dialogue, _ = demo_world.find_person(NAME)
  return dyads.simulate_dyad(dialogue, 0).motion[0]


def test_persons_and_bilabials_come_from_the_table():
  dialogue, speaker = demo_world.find_person(NAME)
  assert (dialogue.id, speaker) == ("d009", 2)
  phones = demo_world.find_bilabials(NAME)
  theirs = [u for u in dialogue.utterances if u.speaker == 2]
  assert {phone.name for phone in phones} == set("PBM")
  assert len(phones) == sum(phone.name in "PBM" for u in theirs for phone in u.phones)
  assert all(any(u.start <= phone.start < phone.end <= u.end for u in theirs) for phone in phones)
  for name in ("d009_speaker2", "demo-d999_sub_video_0_speaker1", "demo-d009_sub_video_0_speaker3"):
    with pytest.raises(InputError, match=f"{name}: found no person of an embedded conversation"):
      demo_world.find_person(name)


def test_known_answers_are_found(motion_a):
  """B shows .4 of A's smile with the inner brows and turns the other way; a part of B that does not depend on A, and A's
  own motion, do not enter."""
  own = np.random.default_rng(0).uniform(0, 0.2, motion_a.shape)

  def respond(motion):
    b = own.copy()
    smile = motion[:, list(columns("mouthSmile"))].mean(axis=1)
    b[:, COLUMN["browInnerUp"]] += 0.4 * smile
    b[:, COLUMN["headYaw"]] -= 0.6 * motion[:, COLUMN["headYaw"]]
    return b

  nudged = demo_world.nudge_partner(NAME, motion_a)
  gains = demo_world.measure_answers(respond, NAME, motion_a, nudged)
  expected = np.zeros((9, 9))
  expected[CHANNELS.index("smile"), CHANNELS.index("brow_inner")] = 0.4
  expected[CHANNELS.index("yaw"), CHANNELS.index("yaw")] = -0.6
  np.testing.assert_allclose(gains, expected, atol=1e-6)  # float32 of motions.
  # Each nudge shows in its own channel alone.
  swing = np.abs(demo_world.shown_channels(nudged.reshape(-1, 56)).reshape(9, -1, 9)
                 - demo_world.shown_channels(motion_a)).max(axis=1)
  assert np.all(np.diag(swing) > 0.05) and (swing - np.diag(np.diag(swing))).max() < 1e-5


def test_simulator_answers_by_its_rules():
  rules = demo_world.rule_answers()
  found = {relation: demo_world.simulate_answers(NAME, relation) for relation in rules}
  agreement = demo_world.compare_answers(found, rules)
  # Both answer each other, faces end at 0 and habits differ: gains are near the rules', not equal to them.
  assert agreement["correlation"] > 0.95 and agreement["direction"] == 1.0 and 0.8 < agreement["slope"] < 1.2
  assert agreement["differences"] > 50
  smile = CHANNELS.index("smile")
  assert found["blood,equal"][smile, smile] > 4 * found["non_blood,unequal"][smile, smile]


def test_comparison_of_answers_that_ignore_the_relation_or_oppose_it():
  rules = demo_world.rule_answers()
  mean = np.mean(list(rules.values()), axis=0)
  blind = demo_world.compare_answers(dict.fromkeys(rules, mean), rules)
  assert blind["direction"] == 0.0 and blind["slope"] == 0.0
  opposed = demo_world.compare_answers({r: -0.5 * gains for r, gains in rules.items()}, rules)
  assert opposed["direction"] == 0.0 and opposed["slope"] == pytest.approx(-0.5)
  assert opposed["correlation"] == pytest.approx(-1.0)


def test_table_starts_with_what_differs_most():
  rules = demo_world.rule_answers()
  lines = demo_world.answers_table({"rule": rules, "half": {r: gains / 2 for r, gains in rules.items()}}, rows=3).splitlines()
  assert lines[0] == "| | blood,equal | blood,unequal | non_blood,equal | non_blood,unequal |"
  assert lines[2] == "| tilt → tilt | +0.80 / +0.40 | -0.70 / -0.35 | +0.35 / +0.17 | -0.20 / -0.10 |"
  assert len(lines) == 5
