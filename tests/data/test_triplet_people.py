"""Who of two people is which speaker, on drawn faces that move as the embedded conversations do."""

import mock_realtalk as mock
import numpy as np
import pytest
from PIL import Image

from rsatalker_jax.data.demo import voices
from rsatalker_jax.data.triplets import people

FRAMES = 300


@pytest.fixture(scope="module")
def scene():
  return mock.load_scene(voices.load_dialogues()[0])


def _pictures(left, right, frames=FRAMES, seed=0):
  background, noise = np.full((mock.HEIGHT, mock.WIDTH, 3), 120, np.uint8), np.random.default_rng(seed)
  small = lambda frame: np.asarray(Image.fromarray(frame).convert("L").resize((160, 90), Image.Resampling.BOX))
  return np.stack([small(mock.draw_pair(left[t], right[t], background, noise)) for t in range(frames)])


@pytest.fixture(scope="module")
def pictures(scene):
  return _pictures(*scene.motions)


def _voices(scene):
  return [track[: FRAMES * 640] for track in scene.tracks]


def test_motion_of_blocks_is_the_mean_change():
  pictures = np.zeros((3, 20, 34), np.uint8)
  pictures[1, 8:16, 16:24] = 100
  motion = people.block_motion(pictures)
  assert motion.shape == (3, 2, 4)
  expected = np.zeros((3, 2, 4))
  expected[1:, 1, 2] = 100
  np.testing.assert_array_equal(motion, expected)


def test_the_right_person_either_way_around(scene, pictures):
  motions = list(scene.motions)
  sides = people.find_sides(pictures, _voices(scene), motions)
  assert sides.left == 1 and not sides.reason and sides.side(1) == 0 and sides.side(2) == 1
  assert all(value > 0 for value in sides.evidence.values()), sides
  mirrored = people.find_sides(pictures[:, :, ::-1], _voices(scene), motions)
  assert mirrored.left == 2 and mirrored.side(1) == 1 and mirrored.side(2) == 0
  swapped = people.find_sides(pictures, _voices(scene)[::-1], motions[::-1])
  assert swapped.left == 2
  np.testing.assert_allclose(swapped.margin, sides.margin, rtol=1e-3)


def test_each_kind_of_evidence_counts(scene, pictures):
  # Voices alone; one motion alone (the other is not there, or says nothing).
  alone = people.find_sides(pictures, _voices(scene), margin=1.0)
  assert set(alone.evidence) == {"voice", "turns"} and alone.left == 1
  silent = [np.zeros(FRAMES * 640, np.float32)] * 2
  for motions in ((scene.motions[0], None), (None, scene.motions[1])):
    sides = people.find_sides(pictures, silent, motions, margin=1.0)
    assert sides.left == 1 and sides.evidence["head"] > 3, sides
    assert sides.evidence["voice"] == 0 == sides.evidence["turns"]


def test_tracks_of_the_video(scene):
  still = np.full((FRAMES, 90, 160), 100, np.uint8)
  r = np.random.default_rng(0)
  noisy = [motion[:FRAMES] + 0.01 * r.normal(size=(FRAMES, 56)).astype(np.float32) for motion in scene.motions]
  silent = [np.zeros(FRAMES * 640, np.float32)] * 2
  sides = people.find_sides(still, silent, scene.motions, tracks=noisy, margin=1.0)
  assert sides.left == 1 and sides.evidence["tracks"] > 5, sides
  assert people.find_sides(still, silent, scene.motions, tracks=noisy[::-1], margin=1.0).left == 2
  assert people.find_sides(still, silent, (None, scene.motions[1]), tracks=noisy, margin=1.0).left == 1


def test_where_it_cannot_be_told_it_is_refused(scene, pictures):
  others = mock.load_scene(voices.load_dialogues()[5])
  sides = people.find_sides(_pictures(*others.motions, seed=1), _voices(scene), scene.motions)
  assert sides.left == 0 and sides.reason.startswith("cannot tell"), sides
  same = np.concatenate([pictures[:, :, :80], pictures[:, :, :80]], axis=2)  # The same person twice.
  assert people.find_sides(same, _voices(scene), scene.motions).left == 0
  assert people.find_sides(np.full((FRAMES, 90, 160), 9, np.uint8), _voices(scene), scene.motions).left == 0
  assert people.find_sides(pictures[:20], _voices(scene), scene.motions).reason.startswith("too short")
  told = people.find_sides(pictures, _voices(scene), scene.motions)
  assert people.find_sides(pictures, _voices(scene), scene.motions, margin=told.margin + 0.1).left == 0


def test_boxes_say_where_to_look(scene, pictures):
  """Both people in the left half of a wider picture: halves mislead, boxes do not."""
  wide = np.concatenate([pictures, np.full((FRAMES, 90, 160), 100, np.uint8)], axis=2)
  boxes = ((0.02, 0.1, 0.24, 0.9), (0.26, 0.1, 0.48, 0.9))
  sides = people.find_sides(wide, _voices(scene), scene.motions, boxes=boxes)
  told = people.find_sides(pictures, _voices(scene), scene.motions)
  assert sides.left == 1 and sides.margin > 0.8 * told.margin
  assert people.find_sides(wide, _voices(scene), scene.motions).margin < sides.margin


def test_boxes_are_found_where_something_moves(scene, pictures):
  motion = people.block_motion(pictures)
  for side in (0, 1):
    left, top, right, bottom = people.find_box(motion, side)
    x0, y0, x1, y1 = (value / size for value, size in zip(mock.face_boxes(side), (mock.WIDTH, mock.HEIGHT) * 2))
    assert left < (x0 + x1) / 2 < right and top < (y0 + y1) / 2 < bottom
    assert 0.5 * side <= left and right <= 0.5 + 0.5 * side
    assert x1 - x0 < 1.5 * (right - left) and right - left < 3 * (x1 - x0)
  assert people.find_box(np.zeros((9, 5, 8), np.float32), 0) is None
