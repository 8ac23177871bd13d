"""Whom a video shows: those who are named, those who speak, or the first and another."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict

from rsatalker_jax.errors import InputError
from rsatalker_jax.runs import TrainedRun, views

PEOPLE = ("ann", "bob", "cleo")


def make_run(names=PEOPLE, root="."):
  data = dict(embedded_root=str(root), conversations="c", capture="f/ann", captures=[f"f/{name}" for name in names])
  group = {"bank": {"means": np.arange(len(names))}} if len(names) > 1 else {"avatar": {"means": np.zeros(())}}
  film = {"film": {"alignment": np.arange(len(names))[:, None] * np.ones(3)}} if len(names) > 1 else {}
  return TrainedRun(ConfigDict({"data": data}), None, group, group | film, "avatar:1", names)


def chosen(run, *given):
  a, b = views.choose_people(run, *given)
  return None if a is None else a.person, b.person


@pytest.mark.parametrize(("person_a", "person_b", "names", "expected"), [
    (None, None, ("", ""), ("bob", "ann")),  # Nobody known: the first, and another.
    (None, None, ("", "bob"), ("ann", "bob")),
    (None, None, ("cleo", "bob"), ("cleo", "bob")),
    (None, None, ("ann", ""), ("ann", "bob")),  # B is not A, who is known.
    (None, None, ("dora", "bob"), (None, "bob")),  # A is somebody without an avatar: another identity.
    (None, None, ("bob", "dora"), ("bob", "ann")),
    (None, "cleo", ("", "bob"), ("ann", "cleo")),  # What is asked for goes before who speaks.
    ("cleo", None, ("ann", "bob"), ("cleo", "bob")),
    (None, "ann", ("ann", "bob"), ("bob", "ann")),  # Nobody talks to themselves …
    ("ann", "ann", ("", ""), ("ann", "ann")),  # … unless asked to.
    ("ann", None, ("", ""), ("ann", "bob")),
])
def test_who_is_drawn(person_a, person_b, names, expected):
  assert chosen(make_run(), person_a, person_b, names) == expected


@pytest.mark.parametrize("names", [("", ""), ("ann", ""), ("", "ann"), ("dora", "ann")])
def test_a_run_of_one_person_draws_a_on_another_identity(names):
  assert chosen(make_run(("ann",)), None, None, names) == (None, "ann")


def test_somebody_unknown_who_is_asked_for_is_one_line():
  for flag, given in (("--person_a", ("eve", None)), ("--person", (None, "eve"))):
    with pytest.raises(InputError, match=f"^{flag}: found eve, expected one of ann, bob, cleo$"):
      views.choose_people(make_run(), *given)


def test_a_person_of_the_run_has_their_own_avatar_capture_and_alignment():
  run = make_run().of_person(2)
  assert run.params["avatar"]["means"] == 2 and run.data_path("capture").name == "cleo" and run.person == "cleo"
  np.testing.assert_array_equal(run.alignment, [2, 2, 2])
  again = run.of_person(1)
  assert again.params["avatar"]["means"] == 1 and again.data_path("capture").name == "bob"
  np.testing.assert_array_equal(dataclasses.replace(run, buffers={}).alignment, [0, 0, 0])


def test_speakers_are_known_by_the_names_of_files(tmp_path):
  (tmp_path / "c").mkdir()
  (tmp_path / "c" / "people.csv").write_text("conversation,speaker1,speaker2\ntalk_sub_video_3,ann,bob\n")
  run = make_run(root=tmp_path)
  files = {"talk_sub_video_3_speaker1.wav": "ann", "talk_sub_video_3_speaker2.npz": "bob", "talk_sub_video_4_speaker1.wav": "",
           "talk_sub_video_3.wav": "", "voice.wav": "", "talk_sub_video_3_speaker3.wav": ""}  # fmt: skip
  assert {file: views.name_speaker(run, f"/elsewhere/{file}") for file in files} == files
