"""FLAME's teeth: their numbers and order as published, their shape and motion in closed form."""

import hashlib

import flame_mesh
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsatalker_jax.errors import InputError
from rsatalker_jax.head import add_teeth, find_lips, head_vertices, load_head

V, F = flame_mesh.NUM_VERTICES, flame_mesh.NUM_FACES
# Published order of the rows of 15: upper root, lower root, upper edge, lower edge, then the backs.
UPPER_ROWS, LOWER_ROWS = [0, 2, 4, 5], [1, 3, 6, 7]
# float32 of a head of 0.1 m.
ATOL = 2e-7
pose_head = jax.jit(head_vertices)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  return flame_mesh.write_flame(tmp_path_factory.mktemp("head") / "flame.npz")


@pytest.fixture(scope="module")
def head(path):
  return load_head(path, teeth=True)


def make_pose(seed: int = 0, **changes) -> dict[str, np.ndarray]:
  r = np.random.default_rng(seed)
  sizes = dict(shape=3, expression=2, rotation=3, neck=3, jaw=3, eyes=6, translation=3)
  pose = {name: (0.3 * r.normal(size=size)).astype(np.float32) for name, size in sizes.items()}
  return pose | {name: np.float32(value) for name, value in changes.items()}


def rows_of(vertices) -> np.ndarray:
  """(8 rows, 15 columns, 3)."""
  return np.asarray(vertices)[V:].reshape(8, 15, 3)


def test_numbers_and_order_are_the_published_ones(path, head):
  bare = load_head(path)
  assert head.v_template.shape == (5143, 3) and head.faces.shape == (10144, 3)
  assert head.shape_directions.shape == (5143, 3, 3) and head.expression_directions.shape == (5143, 3, 2)
  for name in ("v_template", "shape_directions", "expression_directions", "pose_directions", "weights"):
    np.testing.assert_array_equal(getattr(head, name)[:V], getattr(bare, name))
  np.testing.assert_array_equal(head.faces[:F], bare.faces)
  np.testing.assert_array_equal(head.joint_regressor[:, :V], bare.joint_regressor)
  assert not head.joint_regressor[:, V:].any()
  # SHA-256 of the table of triangles that GaussianAvatars' flame.py holds, as 16-bit integers.
  digest = hashlib.sha256((np.asarray(head.faces)[F:] - V).astype("<i2").tobytes()).hexdigest()
  assert digest == "5de82c87105b5d0257be46900e574fecb216e7bce610cd7b2f0aea2d80c591da"


def test_template_is_placed_behind_the_lips(head):
  """Every row by hand, in units of the lips' mean distance."""
  template = flame_mesh.flame_values()["v_template"]
  upper, lower = template[flame_mesh.UPPER_LIP], template[flame_mesh.LOWER_LIP]
  distance = np.mean([np.sqrt(np.sum((a - b) ** 2)) for a, b in zip(upper, lower)])
  assert 0.003 < distance < 0.006
  rows = rows_of(head.v_template)
  middle = (upper + lower) / 2
  height = middle[:, 1].mean()
  np.testing.assert_allclose(rows[..., 0], np.tile(middle[:, 0], (8, 1)), atol=ATOL)
  edges = {"upper": height + 0.1 * distance, "lower": height - 0.1 * distance}
  expected = [edges["upper"] + 2 * distance, edges["lower"] - 2 * distance, edges["upper"], edges["lower"]]
  expected += [edges["upper"] + 2 * distance, edges["upper"], edges["lower"] - 2 * distance, edges["lower"]]
  np.testing.assert_allclose(rows[..., 1], np.tile(np.array(expected)[:, None], 15), atol=ATOL)
  front = {"upper": middle[:, 2] - 1.5 * distance, "lower": middle[:, 2] - 1.9 * distance}
  order = ["upper", "lower", "upper", "lower", "upper", "upper", "lower", "lower"]
  behind = [0, 0, 0, 0, 1, 1, 1, 1]
  expected = [front[which] - back * distance for which, back in zip(order, behind)]
  np.testing.assert_allclose(rows[..., 2], expected, atol=ATOL)


def test_faces_are_wound_outwards_and_close_up(head):
  faces = np.asarray(head.faces)[F:] - V
  for number, rows, bite in ((0, UPPER_ROWS, -1), (1, LOWER_ROWS, 1)):
    own = faces[84 * number : 84 * (number + 1)]
    assert set(own.ravel() // 15) == set(rows)
    # An oriented surface: no directed edge twice, and every inner edge once each way.
    edges = [tuple(edge) for a, b, c in own.tolist() for edge in ((a, b), (b, c), (c, a))]
    assert len(set(edges)) == len(edges)
    rim = {edge for edge in edges if edge[::-1] not in set(edges)}
    # What has one side: both roots (14 each) and the two ends (3 each).
    assert len(rim) == 2 * 14 + 2 * 3
    corners = rows_of(head.v_template).reshape(120, 3)[own]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).reshape(3, 28, 3)
    assert (normals[0, :, 2] > 0).all() and (normals[1, :, 2] < 0).all()  # Front and back.
    assert (np.sign(normals[2, :, 1]) == bite).all()
    # As many triangles on each half, one the mirror image of the other: corners of columns c and 14 - c.
    columns, shelf = own % 15, own // 15 * 15
    mirrored = {frozenset(triangle) for triangle in (shelf + 14 - columns).tolist()}
    assert mirrored == {frozenset(triangle) for triangle in own.tolist()}


def test_upper_teeth_are_rigid_with_the_head_and_lower_with_the_jaw(head):
  """Whatever jaw, eyes and expression do: each row of teeth is its rest shape, turned about its own joint."""
  pose = make_pose(1)
  rest = rows_of(pose_head(head, **make_pose(shape=pose["shape"], **dict.fromkeys(
      ("rotation", "neck", "jaw", "translation"), np.zeros(3)), expression=np.zeros(2), eyes=np.zeros(6))))
  rows = rows_of(pose_head(head, **pose))
  turn = Rotation.from_rotvec(pose["rotation"]) * Rotation.from_rotvec(pose["neck"])
  jaw = turn * Rotation.from_rotvec(pose["jaw"])
  for which, rotation in ((UPPER_ROWS, turn), (LOWER_ROWS, jaw)):
    before, after = (x[which] - x[which].mean((0, 1)) for x in (rest, rows))
    np.testing.assert_allclose(after, rotation.apply(before.reshape(-1, 3)).reshape(4, 15, 3), atol=3 * ATOL)
  # The jaw leaves the upper row where it is, and opens the bite.
  other = rows_of(pose_head(head, **(pose | dict(jaw=np.float32([0.4, 0.1, 0])))))
  np.testing.assert_allclose(other[UPPER_ROWS], rows[UPPER_ROWS], atol=ATOL)
  assert np.linalg.norm(other[LOWER_ROWS] - rows[LOWER_ROWS], axis=-1).min() > 1e-3
  # Expressions move neither, though they move the lips (and joints, which the teeth keep to).
  assert not np.asarray(head.expression_directions)[V:].any() and not np.asarray(head.pose_directions)[V:].any()
  np.testing.assert_array_equal(np.asarray(head.weights)[V:].sum(1), 1)


def test_shape_moves_a_column_as_the_lips_in_front_of_it(head):
  directions = np.asarray(head.shape_directions)
  mean = (directions[flame_mesh.UPPER_LIP] + directions[flame_mesh.LOWER_LIP]) / 2
  np.testing.assert_array_equal(directions[V:].reshape(8, 15, 3, 3), np.broadcast_to(mean, (8, 15, 3, 3)))
  assert np.abs(mean).min() > 0


def test_static_offset_of_a_tracked_head_with_teeth(head):
  """(5143, 3), as VHAP exports: offsets of teeth move them, but no joint."""
  still = {name: np.zeros_like(value) for name, value in make_pose().items()}
  offset = np.zeros((5143, 3), np.float32)
  offset[V:] = np.random.default_rng(4).normal(size=(120, 3)) * 0.001
  moved = pose_head(head, **still, static_offset=offset) - pose_head(head, **still)
  np.testing.assert_allclose(moved, offset, atol=ATOL)
  with pytest.raises(ValueError, match="static_offset"):
    head_vertices(head, **still, static_offset=offset[:V])


def test_lips_stay_the_lips(path, head):
  """Teeth part, too, and lie as close at rest: `find_lips` must not take them."""
  np.testing.assert_array_equal(head.lip_vertices, flame_mesh.MIDDLE_LIPS)
  np.testing.assert_array_equal(find_lips(head), find_lips(load_head(path)))


def test_regions_of_teeth(head):
  assert head.region_names == ("teeth_upper", "teeth_lower", "teeth")
  masks = np.asarray(head.region_masks)
  np.testing.assert_array_equal(masks.sum(1), [84, 84, 168])
  np.testing.assert_array_equal(np.flatnonzero(masks[0]), F + np.arange(84))
  np.testing.assert_array_equal(masks[2], masks[0] | masks[1])


def test_only_flames_mesh_gets_teeth(tmp_path, head):
  with pytest.raises(ValueError, match="5143 vertices and 10144 faces, not FLAME's 5023 and 9976"):
    add_teeth(head)
  values = flame_mesh.flame_values()
  np.savez(tmp_path / "cut.npz", **values | dict(f=values["f"][:-1]))
  with pytest.raises(InputError, match="cut.npz: v_template, f: found 5023 vertices and 9975 faces, expected FLAME's"):
    load_head(tmp_path / "cut.npz", teeth=True)
