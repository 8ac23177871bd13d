"""Tracks of DECA's family: three kinds of files, the head they move, and one clear line for every kind of damage."""

import os
import pathlib
import pickle
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))
import flame_numpy
from hostile_pickle import Hostile

from rsatalker_jax.data.tracks import read_motion, read_track
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import head_vertices, load_head, pose_for

FRAMES = 5


def track_values(frames: int = FRAMES) -> dict[str, np.ndarray]:
  r = np.random.default_rng(0)
  widths = dict(shape=100, tex=50, exp=50, pose=6, cam=3)
  return {key: (0.3 * r.normal(size=(frames, width))).astype(np.float32) for key, width in widths.items()}


def write_folder(path, values, first: int = 7):
  """As EMOCA's --save_codes: a folder for each frame and face."""
  for t in range(FRAMES):
    folder = path / f"{first + t:06d}_000"
    folder.mkdir(parents=True)
    for key, array in values.items():
      np.save(folder / f"{key}.npy", array[t])
    (folder / "geometry_coarse.png").touch()
  (path / "inputs.mp4").touch()
  return path


def save(path, **changes):
  """An npz or a pkl, by its name; None leaves a key out."""
  values = {key: array for key, array in (track_values() | changes).items() if array is not None}
  if path.suffix == ".pkl":
    path.write_bytes(pickle.dumps(values))
  else:
    np.savez(path, **values)
  return path


def test_motion_is_expression_jaw_head_in_all_kinds_of_files(tmp_path):
  values = track_values()
  head, jaw = values["pose"][:, :3], values["pose"][:, 3:]
  expected = np.concatenate([values["exp"], jaw, head], axis=1)
  for path in (save(tmp_path / "a.npz"), save(tmp_path / "a.pkl"), write_folder(tmp_path / "emoca", values)):
    track = read_track(path)
    assert track.motion.dtype == track.shape.dtype == np.float32
    np.testing.assert_array_equal(track.motion, expected)
    np.testing.assert_array_equal(track.shape, values["shape"])
    np.testing.assert_allclose(track.identity, np.mean(values["shape"].astype(float), axis=0), atol=1e-7)
    np.testing.assert_array_equal(read_motion(path), expected)
  np.testing.assert_array_equal(read_motion(save(tmp_path / "no_shape.npz", shape=None)), expected)
  with pytest.raises(InputError, match=r"no_shape.npz: shape: found only the keys tex, exp, pose, cam, expected shape"):
    read_track(tmp_path / "no_shape.npz")


def test_track_moves_flame_through_its_neck_with_padded_expressions(tmp_path):
  """A model with FLAME's 300 + 100 coefficients against numpy's forward pass, coefficients padded by hand."""
  r = np.random.default_rng(1)
  vertices = 20
  blend = lambda shape: (shape / shape.sum(axis=1, keepdims=True)).astype(np.float32)
  np.savez(
      tmp_path / "head.npz",
      v_template=r.normal(size=(vertices, 3)),
      shapedirs=0.1 * r.normal(size=(vertices, 3, 400)),
      posedirs=0.1 * r.normal(size=(vertices, 3, 36)),
      J_regressor=blend(r.random((5, vertices))),
      kintree_table=np.array([[-1, 0, 1, 1, 1], range(5)]),
      weights=blend(r.random((vertices, 5))),
      f=r.integers(0, vertices, (30, 3)),
      n_shape=300,
  )
  track = read_track(save(tmp_path / "a.npz"))
  pose_head = jax.jit(jax.vmap(lambda head, motion: head_vertices(
      head, shape=track.identity, **pose_for(motion)), in_axes=(None, 0)))
  posed = pose_head(load_head(tmp_path / "head.npz"), track.motion)
  # In FLAME expressions move the joints as shapes do; the numpy head does so with one basis for both.
  values, numpy_head = track_values(), flame_numpy.load(tmp_path / "head.npz") | dict(n_shape=400)
  for t in range(FRAMES):
    coefficients = np.zeros(400)
    coefficients[:100], coefficients[300:350] = values["shape"].mean(axis=0), values["exp"][t]
    neck, jaw = values["pose"][t, :3], values["pose"][t, 3:]
    expected = flame_numpy.vertices(numpy_head, coefficients, neck=neck, jaw=jaw)
    np.testing.assert_allclose(posed[t], expected, atol=1e-5)  # float32 of vertices up to 3 away.


def weights(low: float = 0.0) -> np.ndarray:
  """Coefficients in the range of ARKit's shapes, the smallest of them `low`."""
  exp = np.random.default_rng(2).uniform(0, 1, (FRAMES, 50)).astype(np.float32)
  exp[0, 0] = low
  return exp


def basis_of(path) -> tuple[str, str]:
  track = read_track(path, shape=False)
  return track.basis, track.sign


def test_basis_is_known_by_key_then_range_then_what_trackers_find(tmp_path):
  save_motion = lambda name, **values: save(tmp_path / name, **(dict(shape=None, tex=None, cam=None) | values))
  assert basis_of(save_motion("key.npz", exp=weights(), basis=np.array("flame2023"))) == ("flame2023", "its key basis")
  assert basis_of(save_motion("key2.npz", basis=np.array("arkit"))) == ("arkit", "its key basis")
  basis, sign = basis_of(save_motion("range.npz", exp=weights(-0.2)))  # Of an earlier version, which wrote no key.
  assert basis == "arkit" and sign == "the range of its coefficients, -0.20 to 0.99"
  empty = dict(shape=np.zeros((FRAMES, 100)), tex=np.zeros((FRAMES, 50)), cam=np.zeros((FRAMES, 3)), light=np.zeros((FRAMES, 9, 3)))
  assert basis_of(save_motion("earlier.npz", exp=weights(), **empty))[0] == "arkit"
  for key in empty:  # A tracker's, though its coefficients happen to lie there.
    found = {name: np.where(name == key, np.float32(0.1), array) for name, array in empty.items()}
    assert basis_of(save_motion(f"{key}.npz", exp=weights(), **found)) == (
        "flame2020", f"{key}, which trackers of DECA's family find")
  for name, exp in (("low", weights(-0.4)), ("high", weights(1.6)), ("both", 0.25 * np.sin(np.arange(250.0)).reshape(5, 50))):
    assert basis_of(save_motion(f"{name}.npz", exp=exp.astype(np.float32)))[0] == "flame2020"
  assert basis_of(save_motion("rest.npz", exp=np.zeros((FRAMES, 50)))) == ("flame2020", "its layout")
  assert basis_of(save(tmp_path / "a.pkl", exp=weights()))[0] == "flame2020"
  assert basis_of(save(tmp_path / "b.pkl", exp=weights(), basis="arkit"))[0] == "arkit"
  assert basis_of(write_folder(tmp_path / "emoca", track_values()))[0] == "flame2020"


@pytest.mark.parametrize("basis", [np.array("smplx"), np.array(["arkit"]), np.array(2020)])
def test_an_unknown_basis_is_refused(tmp_path, basis):
  with pytest.raises(InputError, match=r"a.npz: basis: found .*, expected flame2020 \| flame2023 \| arkit"):
    read_motion(save(tmp_path / "a.npz", basis=basis))


@pytest.mark.parametrize("name", ["bad.npz", "bad.pkl"])
@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(exp=None), r"exp: found only the keys shape, tex, pose, cam, expected exp \(T, 50\)"),
        (dict(pose=None), r"pose: found only the keys .*, expected pose \(T, 6\)"),
        (dict(exp=np.zeros((5, 100), np.float32)), r"exp: found float32 \(5, 100\), expected float32 \(T, 50\)"),
        (dict(pose=np.zeros((5, 3), np.float32)), r"pose: found float32 \(5, 3\), expected float32 \(T, 6\)"),
        (dict(shape=np.zeros((5, 300), np.float32)), r"shape: found float32 \(5, 300\), expected float32 \(T, 100\)"),
        (dict(pose=np.zeros((4, 6), np.float32)), "pose: found 4 frames, expected 5, as in exp"),
        (dict(shape=np.zeros((1, 100), np.float32)), "shape: found 1 frames, expected 5, as in exp"),
        (dict(exp=np.zeros((0, 50), np.float32)), "exp: found no frames"),
        (dict(exp=np.where(np.arange(5)[:, None] == 3, np.nan, np.zeros((5, 50)))), "exp, frame 3: .* finite"),
        (dict(pose=np.where(np.arange(5)[:, None] == 1, np.inf, np.zeros((5, 6)))), "pose, frame 1: .* finite"),
        (dict(exp=np.array([["x"] * 50] * 5)), r"exp: found <U1 \(5, 50\), expected"),
    ],
)
def test_bad_arrays(tmp_path, name, changes, message):
  path = save(tmp_path / name, **changes)
  with pytest.raises(InputError, match=message) as error:
    read_track(path)
  assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_bad_files(tmp_path):
  whole = save(tmp_path / "whole.npz").read_bytes()
  (tmp_path / "cut.npz").write_bytes(whole[:300])
  (tmp_path / "text.npz").write_text("not an npz")
  np.save(tmp_path / "one.npy", np.zeros((5, 50)))
  # An array of Python objects would run code on loading.
  save(tmp_path / "objects.npz", exp=np.array([{}], dtype=object))
  (tmp_path / "cut.pkl").write_bytes(save(tmp_path / "whole.pkl").read_bytes()[:500])
  (tmp_path / "list.pkl").write_bytes(pickle.dumps([{"exp": 1}]))
  save(tmp_path / "dict.pkl", exp={"a": 1})
  for name, message in (
      ("none.npz", "found no such file, expected an npz with exp"),
      ("cut.npz", "unreadable"),
      ("text.npz", "unreadable"),
      ("one.npy", "a single array"),
      ("objects.npz", "unreadable"),
      ("cut.pkl", "cut.pkl: found"),
      ("list.pkl", "found a pickled list, expected a dict with exp"),
      ("dict.pkl", "exp: found a dict that is no array"),
  ):
    with pytest.raises(InputError, match=message) as error:
      read_motion(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))


def test_hostile_pickle_executes_nothing(tmp_path):
  path = save(tmp_path / "track.pkl", tex=Hostile(f"touch {tmp_path / 'executed'}"))  # In a key that nobody asks for.
  with pytest.raises(InputError, match="system.*not on the allow-list"):
    read_motion(path)
  assert os.listdir(tmp_path) == ["track.pkl"]


def test_folders_with_gaps_or_several_faces(tmp_path):
  folder = write_folder(tmp_path / "emoca", track_values())
  extra = folder / "000009_001"
  extra.mkdir()
  with pytest.raises(InputError, match=r"emoca: frame 9: found several faces \(000009_000, 000009_001\)"):
    read_track(folder)
  extra.rmdir()
  np.save(folder / "000009_000" / "pose.npy", np.zeros(5))
  with pytest.raises(InputError, match=r"000009_000/pose.npy: found float64 \(5,\), expected float32 \(6,\)"):
    read_track(folder)
  (folder / "000009_000" / "pose.npy").unlink()
  with pytest.raises(InputError, match="000009_000/pose.npy: found .*No such file"):
    read_track(folder)
  (folder / "000009_000").rename(folder / "elsewhere")
  with pytest.raises(InputError, match="emoca: frame 9: found no such folder, expected every frame from 7 to 11"):
    read_track(folder)
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="empty: found no folder of a frame"):
    read_track(tmp_path / "empty")
