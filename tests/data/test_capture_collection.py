import shutil

import grain
import numpy as np
import pytest
from PIL import Image

from data.test_captures import FRAMES, H, W, film, frame_image, write_capture, write_flame_param, write_transforms
from rsatalker_jax.data.capture_collection import load_captures
from rsatalker_jax.data.captures import load_capture
from rsatalker_jax.errors import InputError


@pytest.fixture
def roots(tmp_path):
  """Ann in images, with all the VHAP values; Bob in a video, of fewer frames, with less known of his shape."""
  roots = tmp_path / "ann", tmp_path / "bob"
  write_capture(roots[0])
  content = write_capture(roots[1])
  np.savez(roots[1] / "canonical_flame_param.npz", shape=np.full(3, 2.0))
  content["frames"] = content["frames"][:3]
  film(roots[1], content)
  return roots


def test_every_frame_knows_its_person(roots):
  people = load_captures(roots, "train", num_vertices=7)
  assert people.names == ("ann", "bob") and len(people) == FRAMES + 3 and (people.width, people.height) == (W, H)
  np.testing.assert_array_equal(people.identities, [0, 0, 0, 0, 1, 1, 1])
  np.testing.assert_array_equal(people.shapes, [[0, 1, 2, 3, 4], [2, 2, 2, 0, 0]])
  np.testing.assert_array_equal(people.static_offsets, np.stack([np.ones((7, 3)), np.zeros((7, 3))]))
  alone = [load_capture(root, "train") for root in roots]
  for i, (person, frame) in enumerate([*((0, t) for t in range(FRAMES)), *((1, t) for t in range(3))]):
    item, expected = people[i], alone[person][frame]
    assert item.pop("identity") == person
    np.testing.assert_array_equal(item["image"], frame_image(frame).astype(np.float32) / 255)
    assert item.keys() == expected.keys() and item["timestep"] == expected["timestep"]
  assert people[-1]["identity"] == 1
  with pytest.raises(IndexError):
    people[FRAMES + 3]


def test_a_batch_holds_frames_of_different_people(roots):
  people = load_captures(roots, "train")
  dataset = grain.MapDataset.source(people).seed(0).shuffle().batch(len(people))
  (batch,) = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
  np.testing.assert_array_equal(np.sort(batch["identity"]), people.identities)
  for image, timestep in zip(batch["image"], batch["timestep"]):
    np.testing.assert_array_equal(image, frame_image(timestep).astype(np.float32) / 255)


def test_names_tell_people_apart(tmp_path):
  roots = [tmp_path / "ann" / "capture", tmp_path / "bob" / "capture"]
  for root in roots:
    write_capture(root)
  assert load_captures(roots, "train").names == ("ann/capture", "bob/capture")


def other_size(root):
  content = write_capture(root)
  for entry in content["frames"]:
    entry |= {"w": 10, "h": 8}
  for path in (*(root / "images").iterdir(), *(root / "fg_masks").iterdir()):
    Image.open(path).resize((10, 8)).save(path)
  write_transforms(root, content)


def other_expressions(root):
  write_capture(root)
  for t in range(FRAMES):
    write_flame_param(root, t, expr=np.zeros((1, 50)))


def other_mesh(root):
  write_capture(root)
  np.savez(root / "canonical_flame_param.npz", shape=np.ones(5), static_offset=np.ones((1, 9, 3)))


MISTAKES = {
    "size": (other_size, r"bob: w, h: found \(10, 8\), expected \(20, 16\) as in .*ann"),
    "expressions": (other_expressions, "bob: expr: found 50, expected 9 as in .*ann"),
    "mesh": (other_mesh, "bob: static_offset: found 9 vertices, expected 7 as in .*ann"),
    "missing": (lambda root: None, "bob/transforms_train.json: found No such file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_line_for_captures_that_do_not_fit(roots, mistake):
  write, message = MISTAKES[mistake]
  shutil.rmtree(roots[1])
  write(roots[1])
  with pytest.raises(InputError, match=message) as error:
    load_captures(roots, "train")
  assert "\n" not in str(error.value)


def test_nobody_and_one_person_twice_are_mistakes(roots):
  with pytest.raises(InputError, match="captures: found none, expected a folder for each person"):
    load_captures([], "train")
  with pytest.raises(InputError, match="captures: found '.*ann', expected a list of folders"):
    load_captures(str(roots[0]), "train")
  with pytest.raises(InputError, match="ann: found the same folder twice"):
    load_captures([*roots, roots[0] / ".." / "ann"], "train")
  (roots[0].parent / "zoe").symlink_to(roots[0])
  with pytest.raises(InputError, match="zoe: found the same folder twice"):
    load_captures([*roots, roots[0].parent / "zoe"], "train")
