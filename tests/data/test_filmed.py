"""Filmed conversations: a triplet's own capture, relation and frames, with gaps; film and track compared."""

import json
import pathlib
import types

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import tiny_world
from rsatalker_jax.data.captures import load_capture
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.data.triplets import label_clips, load_films, load_triplets
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import load_head

ENTRY = {
    "conversation": "tiny-0_sub_video_0", "split": "train", "speaker": 2, "capture": "capture", "camera": 0,
    "first_timestep": 0, "frames": tiny_world.FRAMES, "relation": "blood,equal",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("films") / "data"
  tiny_world.write_world(root)
  tiny_world.write_capture(root / "bob", color=(20, 40, 250))
  return root


@pytest.fixture(scope="module")
def head(world):
  return load_head(world / "head.npz")


def make_clip(name, motion, relation=(-1, -1)):
  speech = np.zeros((len(motion), 2), np.float32)
  return MotionClip(name, speech, motion, speech, motion, np.array(relation, np.int32), basis="flame2020")


CLIPS = [
    make_clip("tiny-0_sub_video_0_speaker1", tiny_world.make_motion(1)),
    make_clip("tiny-0_sub_video_0_speaker2", tiny_world.make_motion(2)),
]


def write_manifest(folder: pathlib.Path, *entries):
  path = folder / "triplets.jsonl"
  path.write_text("".join(json.dumps({**ENTRY, **entry}) + "\n" for entry in entries))
  return path


def open_films(world, head, clips, *entries, said=None, capture=None):
  manifest = write_manifest(world, *entries)
  opened = []

  def open_capture(folder):
    opened.append(folder)
    return capture or load_capture(folder, "train")

  films = load_films(manifest, "train", clips, open_capture, head, say=(said if said is not None else []).append)
  return films, opened


def test_each_film_is_its_triplets_own(world, head):
  """Two captures: colours and numbers of both; each is opened once."""
  clips = label_clips(CLIPS, load_triplets(write_manifest(world, {}, {"capture": "bob", "speaker": 1})))
  clips[0] = make_clip(clips[0].name, tiny_world.make_motion(2), clips[0].relation)  # Bob's film moves as speaker 2.
  films, opened = open_films(world, head, clips, {}, {"capture": "bob", "speaker": 1})
  assert films.names == ["capture", "bob"] and len(opened) == 2
  for film, color, name in zip(films.conversations, ([200, 150, 120], [20, 40, 250]), ("speaker2", "speaker1")):
    assert film.name.endswith(name) and film.person == films.conversations.index(film)
    image = film.read(np.array([7]))["image"][0]
    np.testing.assert_allclose(image[24, 24] * 255, color, atol=0.6)
    np.testing.assert_array_equal(film.clip.relation, [1, 1])
    assert not film.alignment.any() and film.missing == 0


def test_frames_and_items_belong_together_and_gaps_are_counted(world, head):
  """The capture lacks moments, the conversation begins late in it, the triplet covers more than the conversation."""
  capture, said = load_capture(world / "capture", "train"), []
  keep = [t for t in range(tiny_world.FRAMES) if t not in (12, 13, 30)]
  gappy = types.SimpleNamespace(
      root=capture.root, width=48, height=48, shape=capture.shape, read_flame=capture.read_flame,
      index=lambda camera, t: {(0, t): t for t in keep}[camera, t],
  )  # fmt: skip
  motion = tiny_world.make_motion(2)[10:50]
  films, _ = open_films(world, head, [make_clip(CLIPS[1].name, motion)], {"first_timestep": 10, "frames": 45}, said=said, capture=gappy)
  (film,) = films.conversations
  assert film.missing == 3 and "37 frames, 3 missing, 5 after the conversation's end" in said[0]
  np.testing.assert_array_equal(film.items, film.frames + 10)
  assert 2 not in film.frames and 3 not in film.frames and 20 not in film.frames and film.frames[-1] == 39


@pytest.mark.parametrize("changes, message", [
    ([{"conversation": "nobody"}], "triplets.jsonl:1: conversation: found nobody_speaker2, which is no train conversation"),
    ([{"camera": 5}], "capture: found none of the 60 frames of tiny-0_sub_video_0_speaker2 .camera 5"),
    ([{}, {}], "triplets.jsonl:2: conversation: found tiny-0_sub_video_0_speaker2 from camera 0 a second time, expected one line"),
    ([{}, {"speaker": 1, "capture": "bob", "relation": "non_blood,equal"}], "triplets.jsonl:2: relation: found non_blood,equal"),
    ([{}, {"conversation": "other", "first_timestep": 50}], "triplets.jsonl:2: first_timestep: found timesteps 50 to 59"),
])  # fmt: skip
def test_manifests_that_contradict_are_one_line(world, head, changes, message):
  with pytest.raises(InputError, match=message):
    open_films(world, head, CLIPS, *changes)


def test_film_and_track_that_disagree_are_told_apart_by_how_much(world, head):
  """The wrong speaker's motion: as far off as it moves. The right one's, seen by a turned camera: aligned, and said."""
  with pytest.raises(InputError, match=r"found film and track that differ by \d+\.\d mm .*expected less than the \d+\.\d mm"):
    open_films(world, head, [make_clip(CLIPS[1].name, tiny_world.make_motion(1))], {})

  said, turned = [], tiny_world.make_motion(2)
  turned[:, 53:] = (Rotation.from_rotvec([0, 0.5, 0]).inv() * Rotation.from_rotvec(turned[:, 53:])).as_rotvec()
  films, _ = open_films(world, head, [make_clip(CLIPS[1].name, turned)], {}, said=said)
  np.testing.assert_allclose(films.conversations[0].alignment, [0, 0.5, 0], atol=1e-4)
  assert "turned by 28.6 degrees" in said[0] and "0.0 mm" in said[0]


def test_labels_of_triplets_reach_both_directions_and_contradictions_are_refused(world):
  triplets = load_triplets(write_manifest(world, {"relation": "blood,unknown"}))
  clips = [make_clip(clip.name, clip.motion_b, (-1, 0)) for clip in CLIPS] + [make_clip("else_speaker1", CLIPS[0].motion_b)]
  np.testing.assert_array_equal([clip.relation for clip in label_clips(clips, triplets)], [[1, 0], [1, 0], [-1, -1]])
  with pytest.raises(InputError, match="triplets.jsonl:1: relation: found .*expected .*non_blood.* as is said elsewhere"):
    label_clips([make_clip(CLIPS[0].name, CLIPS[0].motion_b, (0, -1))], triplets)
