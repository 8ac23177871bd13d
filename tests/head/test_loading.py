import os
import pathlib
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from hostile_pickle import Hostile
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import head_vertices, load_head
from rsatalker_jax.types import ARKIT_EXPRESSIONS

V, F = 30, 44
DEMO_HEAD = pathlib.Path(__file__).parents[2] / "assets/head/demo_head.npz"


def flame_values(num_directions: int = 400) -> dict:
  """Arrays under FLAME's keys, with FLAME's types: the unsigned tree with 2^32 - 1 for "none" among them."""
  r = np.random.default_rng(0)
  weights = r.random((V, 5))
  regressor = r.random((5, V)) * (r.random((5, V)) > 0.5)
  return {
      "v_template": r.normal(size=(V, 3)),
      "shapedirs": r.normal(size=(V, 3, num_directions)),
      "posedirs": r.normal(size=(V, 3, 36)),
      "J_regressor": regressor,
      "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
      "weights": weights / weights.sum(1, keepdims=True),
      "f": r.integers(0, V, (F, 3)).astype(np.uint32),
  }


def write_npz(path, values):
  np.savez(path, **values)
  return path


@pytest.fixture
def chumpy(monkeypatch):
  """A chumpy to write pickles with; the loader must not need it."""
  ch = types.ModuleType("chumpy.ch")

  class Ch:

    def __init__(self, x):
      self.x, self._dirty_vars, self._cache = x, set(), {}

  Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"
  ch.Ch = Ch
  monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
  monkeypatch.setitem(sys.modules, "chumpy.ch", ch)
  return Ch


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_flame_pickle_gives_the_same_head_as_plain_arrays(tmp_path, monkeypatch, chumpy, protocol):
  values = flame_values()
  with_objects = {
      **values,
      "shapedirs": chumpy(values["shapedirs"]),
      "J_regressor": scipy.sparse.csc_matrix(values["J_regressor"]),
      "bs_style": "lbs",
      "J": np.zeros((5, 3)),
  }
  pkl = tmp_path / "generic_model.pkl"
  pkl.write_bytes(pickle.dumps(with_objects, protocol=protocol))
  monkeypatch.delitem(sys.modules, "chumpy.ch")
  monkeypatch.delitem(sys.modules, "chumpy")
  from_pkl, from_npz = load_head(pkl), load_head(write_npz(tmp_path / "head.npz", values))
  for name in ("v_template", "shape_directions", "expression_directions", "pose_directions", "joint_regressor", "weights", "faces"):
    np.testing.assert_array_equal(getattr(from_pkl, name), getattr(from_npz, name))
  assert from_pkl.num_shape == 300 and from_pkl.num_expression == 100
  assert from_pkl.parents == (-1, 0, 1, 1, 1)
  assert "chumpy" not in sys.modules
  np.testing.assert_allclose(from_npz.joint_regressor, values["J_regressor"], rtol=1e-6)


def test_python_2_names_and_strings(tmp_path):
  # What Python 2 writes: str as bytes under latin1, copy_reg and __builtin__ for modules, arrays from numpy.core.
  text = pickle.dumps(flame_values(), protocol=2)
  text = text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
  path = tmp_path / "flame.pkl"
  path.write_bytes(text)
  assert load_head(path).v_template.shape == (V, 3)
  assert b"copy_reg" in pickle.dumps(scipy.sparse.csc_matrix(np.eye(5, V)), protocol=0)  # Python 2's name, kept.


def test_hostile_pickle_is_refused_and_nothing_runs(tmp_path):
  witness = tmp_path / "executed"
  path = tmp_path / "flame.pkl"
  path.write_bytes(pickle.dumps({**flame_values(), "v_template": Hostile(f"touch {witness}")}))
  with pytest.raises(InputError, match="system.*not on the allow-list"):
    load_head(path)
  assert not witness.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\neval\n(S'open(\"executed\", \"w\")'\ntR.",
        b"cbuiltins\ngetattr\n(S'a'\nS'upper'\ntR.",
        b"cnumpy\nload\n(S'x.npy'\ntR.",
        b"cnumpy.core.multiarray\n__builtins__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",  # A dotted name, which protocol 4 resolves.
        b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.",
        b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.",
    ],
)
def test_other_ways_to_run_code_are_refused(tmp_path, monkeypatch, program):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / "flame.pkl"
  path.write_bytes(program)
  with pytest.raises(InputError):
    load_head(path)
  assert os.listdir(tmp_path) == ["flame.pkl"]


def changed(key, value):
  values = flame_values()
  if value is None:
    del values[key]
  else:
    values[key] = value
  return values


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("weights", None, "weights: found no such key"),
        ("v_template", np.zeros((V, 2)), r"v_template: found shape \(30, 2\), expected \(V, 3\)"),
        ("posedirs", np.zeros((V, 3, 9)), r"posedirs: found shape \(30, 3, 9\), expected \(30, 3, 36\)"),
        ("J_regressor", np.zeros((5, V + 1)), "J_regressor: found shape"),
        ("f", np.full((F, 3), V), "f: found vertex indices 30 to 30, expected 0 to 29"),
        ("f", np.full((F, 3), 0.5), "f: found float64, expected whole numbers"),
        ("weights", np.zeros((V, 5)), "weights: found a row whose sum is off by 1, expected rows that sum to 1"),
        ("v_template", np.full((V, 3), np.nan), "v_template: found nan, expected finite"),
        ("shapedirs", np.zeros((V, 3, 70)), "shapedirs: found 70 directions and no n_shape"),
        ("kintree_table", np.zeros((2, 4)), "kintree_table: found shape"),
        ("kintree_table", np.array([[-1, 3, 1, 1, 1], range(5)]), "kintree_table: found .* come before"),
        ("lip_vertices", np.array([1, V]), "lip_vertices: found"),
        ("f", np.full((F, 3), 2**32 + 3), "f: found 4294967299 to 4294967299, expected whole numbers of 32 bits"),
        ("posedirs", np.full((V, 3, 36), 1e300), r"posedirs: found 1e\+300, expected finite"),
        ("n_shape", np.array([3]), r"n_shape: found shape \(1,\)"),
        ("n_shape", np.array(0.5), "n_shape: found float64, expected whole numbers"),
        ("kintree_table", np.array([[-1, 0, np.nan, 1, 1], range(5)]), "kintree_table: found float64, expected whole"),
        ("expression_names", np.arange(100), "expression_names: found int64 .*expected a list of words"),
        ("expression_names", np.array("a"), r"expression_names: found <U1 of shape \(\)"),
        ("face_region", np.ones(F, np.int8), "face_region: found regions 1 to 1, expected 0 region_names"),
    ],
)
def test_one_line_for_each_mistake(tmp_path, key, value, message):
  path = write_npz(tmp_path / "head.npz", changed(key, value))
  with pytest.raises(InputError, match=message) as error:
    load_head(path)
  assert "head.npz" in str(error.value) and "\n" not in str(error.value)


def test_unreadable_files(tmp_path):
  with pytest.raises(InputError, match="No such file"):
    load_head(tmp_path / "absent.pkl")
  with pytest.raises(InputError, match="No such file"):
    load_head(tmp_path / "absent.npz")
  whole = write_npz(tmp_path / "head.npz", flame_values()).read_bytes()
  (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(InputError, match="cut.npz"):
    load_head(tmp_path / "cut.npz")
  (tmp_path / "cut.pkl").write_bytes(pickle.dumps(flame_values())[:5000])
  with pytest.raises(InputError, match="cut.pkl"):
    load_head(tmp_path / "cut.pkl")
  np.savez(tmp_path / "object.npz", **changed("v_template", np.array([{}], object)))
  with pytest.raises(InputError, match="object.npz"):
    load_head(tmp_path / "object.npz")
  (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
  with pytest.raises(InputError, match="a dict with FLAME's keys"):
    load_head(tmp_path / "list.pkl")


@pytest.mark.parametrize(
    "name, told, basis",
    [
        ("flame2023.npz", None, "flame2023"),
        ("FLAME2020/generic_model.npz", None, "flame2020"),
        ("flame2023_no_jaw.npz", None, None),  # Other expressions than flame2023.pkl's.
        ("generic_model.npz", None, None),  # FLAME 2017, 2019 and 2020 are all called so.
        ("FLAME2020/flame2023.npz", None, None),
        ("model2020.npz", None, None),
        ("generic_model.npz", "flame2020", "flame2020"),
        ("flame2023.npz", "flame2020", "flame2020"),  # Who says it knows better than a name.
    ],
)
def test_basis_of_flame_is_told_or_in_its_name(tmp_path, name, told, basis):
  (tmp_path / "FLAME2020").mkdir()
  write_npz(tmp_path / name, flame_values())
  assert load_head(tmp_path / name, basis=told).basis == basis


def test_basis_in_the_file_itself(tmp_path):
  assert load_head(DEMO_HEAD).basis == "arkit"
  own = write_npz(tmp_path / "flame2023.npz", flame_values() | {"basis": "flame2020"})
  assert load_head(own).basis == "flame2020"
  with pytest.raises(InputError, match="flame2023.npz: head.basis: found arkit, expected flame2020, as the file itself says"):
    load_head(own, basis="arkit")
  with pytest.raises(InputError, match="demo_head.npz: head.basis: found flame2023, expected arkit"):
    load_head(DEMO_HEAD, basis="flame2023")
  with pytest.raises(InputError, match="head: basis: found 'smplx', expected flame2020"):
    load_head(own, basis="smplx")
  with pytest.raises(InputError, match="basis: found 'smplx', expected flame2020"):
    load_head(write_npz(tmp_path / "a.npz", flame_values() | {"basis": "smplx"}))
  names = np.array([*ARKIT_EXPRESSIONS[::-1]])  # ARKit's names in another order are no basis.
  reversed_names = flame_values(350) | {"n_shape": 300, "expression_names": names}
  assert load_head(write_npz(tmp_path / "b.npz", reversed_names)).basis is None


def test_demo_head():
  head = load_head(DEMO_HEAD)
  assert head.v_template.shape[0] >= 4500 and head.num_expression == 50
  assert head.identities.shape[0] >= 8
  pose = dict(
      rotation=jnp.zeros(3), neck=jnp.zeros(3), eyes=jnp.zeros(6), translation=jnp.zeros(3), expression=jnp.zeros(50)
  )
  gap = []
  for angle in (0.0, 0.3):
    vertices = jax.jit(head_vertices)(head, shape=head.identities[0], jaw=jnp.array([angle, 0, 0]), **pose)
    gap.append(vertices[head.lip_vertices[0], 1] - vertices[head.lip_vertices[1], 1])
  assert gap[1] > gap[0] + 0.01  # Metres: +x opens the jaw.
