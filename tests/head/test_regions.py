"""Regions of heads: FLAME_masks.pkl's vertices become faces; unions; teeth behind them."""

import os
import pathlib
import pickle

import flame_mesh
import numpy as np
import pytest

from configs.demo import get_config
from hostile_pickle import Hostile
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import face_mask, full_head_mask, load_head, region_labels, region_mask
from rsatalker_jax.talker import make_talker

DEMO_HEAD = pathlib.Path(__file__).parents[2] / "assets/head/demo_head.npz"
V, F = flame_mesh.NUM_VERTICES, flame_mesh.NUM_FACES
# Runs of vertices: the synthetic mesh's triangles join vertices i, i + 1 and i + 2. They overlap as FLAME's do.
RUNS = dict(
    face=(0, 2000), forehead=(0, 300), nose=(300, 500), lips=(500, 900), eye_region=(900, 1500),
    left_eye_region=(900, 1200), right_eye_region=(1200, 1500), scalp=(2000, 3000), left_ear=(3000, 3300),
    right_ear=(3300, 3600), neck=(3600, 4400), boundary=(4200, 4400), left_eyeball=(4400, 4700),
    right_eyeball=(4700, V),
)


def mask_values() -> dict:
  return {name: np.random.default_rng(0).permutation(np.arange(*run)) for name, run in RUNS.items()}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  return flame_mesh.write_flame(tmp_path_factory.mktemp("head") / "flame.npz")


@pytest.fixture(scope="module")
def head(path):
  masks = path.with_name("FLAME_masks.pkl")
  masks.write_bytes(pickle.dumps(mask_values(), protocol=2))
  return load_head(path, teeth=True, masks=masks)


def expected_faces(name: str) -> set[int]:
  """One face after another: in the region if all its corners are."""
  first, end = RUNS[name]
  faces = flame_mesh.flame_values()["f"].astype(int).tolist()
  return {number for number, corners in enumerate(faces) if all(first <= corner < end for corner in corners)}


def test_a_face_is_where_all_its_corners_are(head):
  assert head.region_names == (*head.region_names[:14], "teeth_upper", "teeth_lower", "teeth")
  assert set(head.region_names[:14]) == set(RUNS)
  for name in RUNS:
    found = region_mask(head, name)
    assert found.shape == (10144,) and found.dtype == bool
    assert set(np.flatnonzero(found)) == expected_faces(name) != set()
  eyes = region_mask(head, ["left_eyeball", "right_eyeball"])
  assert set(np.flatnonzero(eyes)) == expected_faces("left_eyeball") | expected_faces("right_eyeball")
  assert not (region_mask(head, "nose") & ~region_mask(head, "face")).any()  # They overlap.


def test_labels_tell_apart_what_lies_in_other_regions(head, path):
  labels = region_labels(head)
  same = {}
  for label, face in zip(labels.tolist(), np.asarray(head.region_masks).T.tolist()):
    same.setdefault(label, set()).add(tuple(face))
  assert all(len(regions) == 1 for regions in same.values())
  assert len({next(iter(regions)) for regions in same.values()}) == len(same) > 14
  assert not region_labels(load_head(path)).any()


def test_face_and_full_head_of_flame(head):
  teeth = set(range(F, 10144))
  names = ("face", "lips", "left_eyeball", "right_eyeball")
  assert set(np.flatnonzero(face_mask(head))) == teeth.union(*map(expected_faces, names))
  below = expected_faces("neck") | expected_faces("boundary")
  assert set(np.flatnonzero(full_head_mask(head))) == set(range(10144)) - below


def test_the_config_gives_teeth_and_regions(head, path):
  config = get_config()
  config.head.update(dict(path=str(path), teeth=True, masks=str(path.with_name("FLAME_masks.pkl"))))
  talker = make_talker(config)
  assert talker.head.region_names == head.region_names and talker.offset_net.num_anchors == 10144
  np.testing.assert_array_equal(talker.head.region_masks, head.region_masks)


def test_regions_of_the_demo_head():
  head = load_head(DEMO_HEAD)
  with np.load(DEMO_HEAD) as file:
    names, region = file["region_names"][file["face_region"]], file["face_region"]
  np.testing.assert_array_equal(np.argmax(head.region_masks, axis=0), region)
  np.testing.assert_array_equal(np.sum(head.region_masks, axis=0), 1)
  np.testing.assert_array_equal(region_mask(head, ["lips", "tongue"]), np.isin(names, ["lips", "tongue"]))
  np.testing.assert_array_equal(full_head_mask(head), names != "neck")
  np.testing.assert_array_equal(face_mask(head), ~np.isin(names, ["neck", "scalp"]))


def test_what_a_head_cannot_tell_is_refused(path):
  bare = load_head(path, teeth=True)  # Has regions, but of teeth alone.
  for ask, name in ((face_mask, "face"), (full_head_mask, "neck"), (lambda head: region_mask(head, "hair"), "hair")):
    with pytest.raises(InputError, match=f"region: found '{name}', expected one of teeth_upper, teeth_lower, teeth$"):
      ask(bare)
  with pytest.raises(InputError, match="FLAME_masks.pkl, config.head.masks"):
    region_mask(load_head(path), "lips")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(nose=None), "nose: found no such key"),
        (dict(beard=np.arange(3)), "beard: found an unknown region, expected FLAME's: face, neck"),
        (dict(lips=np.array([5, V])), "lips: found vertex indices 5 to 5023, expected 0 to 5022"),
        (dict(lips=np.array([-1, 5])), "lips: found vertex indices -1 to 5"),
        (dict(scalp=np.zeros(0, int)), r"scalp: found int64 of shape \(0,\), expected a list of vertex indices"),
        (dict(scalp=np.zeros((2, 2), int)), r"scalp: found int64 of shape \(2, 2\)"),
        (dict(scalp=np.zeros(3)), "scalp: found float64"),
        (dict(neck={"a": 1}), "neck: found a dict that is no array"),
    ],
)
def test_wrong_masks_are_named(path, tmp_path, changes, message):
  values = {name: value for name, value in (mask_values() | changes).items() if value is not None}
  masks = tmp_path / "masks.pkl"
  masks.write_bytes(pickle.dumps(values))
  with pytest.raises(InputError, match=message) as error:
    load_head(path, masks=masks)
  assert str(error.value).startswith(str(masks)) and "\n" not in str(error.value)


def test_masks_from_strangers(path, tmp_path):
  witness, masks = tmp_path / "executed", tmp_path / "masks.pkl"
  masks.write_bytes(pickle.dumps(mask_values() | dict(nose=Hostile(f"touch {witness}"))))
  with pytest.raises(InputError, match="system.*not on the allow-list"):
    load_head(path, masks=masks)
  assert os.listdir(tmp_path) == ["masks.pkl"]
  masks.write_bytes(pickle.dumps([1, 2]))
  with pytest.raises(InputError, match="masks.pkl: found a pickled list"):
    load_head(path, masks=masks)
  with pytest.raises(InputError, match="absent.pkl: found No such file"):
    load_head(path, masks=tmp_path / "absent.pkl")


def test_masks_are_of_flames_mesh_alone(path, tmp_path):
  masks = tmp_path / "masks.pkl"
  masks.write_bytes(pickle.dumps(mask_values()))
  with pytest.raises(InputError, match="demo_head.npz: v_template, f: found 6136 vertices and 11838 faces"):
    load_head(DEMO_HEAD, masks=masks)
  own = dict(face_region=np.zeros(F, np.int8), region_names=np.array(["skin"]))
  np.savez(tmp_path / "own.npz", **flame_mesh.flame_values(), **own)
  with pytest.raises(InputError, match="own.npz: face_region: found regions in the head's own file"):
    load_head(tmp_path / "own.npz", masks=masks)
