"""The demo head's file: FLAME's keys, and an anatomy that moves as its names say.

The forward pass used here is the tools' numpy one, so these tests check the asset and not the JAX model.
"""

import pathlib
import sys

import numpy as np
import pytest
from scipy.spatial import cKDTree

_ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT / "tools"))
import flame_numpy as flame  # noqa: E402

_PATH = _ROOT / "assets" / "head" / "demo_head.npz"


@pytest.fixture(scope="module")
def head():
  return flame.load(_PATH)


def _part(head, *regions):
  """Vertices of some regions."""
  names = [str(n) for n in head["region_names"]]
  faces = np.isin(head["face_region"], [names.index(r) for r in regions])
  return np.unique(head["f"][faces])


def _expression(head, **coefficients):
  return flame.expression_vector(head, **coefficients)


def test_has_flames_keys_and_widths(head):
  v, f, s = len(head["v_template"]), len(head["f"]), int(head["n_shape"])
  assert v >= 4500 and s >= 10
  assert head["v_template"].shape == (v, 3)
  assert head["shapedirs"].shape == (v, 3, s + 50)
  assert head["posedirs"].shape == (v, 3, 36)
  assert head["J_regressor"].shape == (5, v)
  assert head["weights"].shape == (v, 5)
  assert head["kintree_table"].tolist() == [[-1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]
  assert head["f"].min() == 0 and head["f"].max() == v - 1
  assert head["ft"].shape == (f, 3) and head["ft"].max() < len(head["vt"])
  assert head["face_region"].shape == (f,)
  assert set(np.unique(head["face_region"])) == set(range(len(head["region_names"])))
  assert len(head["identity_names"]) >= 8 and head["identities"].shape == (len(head["identity_names"]), s)
  assert len(set(map(str, head["expression_names"]))) == 50
  assert np.load(_PATH, allow_pickle=False)["v_template"].dtype == np.float32
  assert _PATH.stat().st_size < 2_000_000


def test_every_array_is_finite_and_weights_sum_to_one(head):
  for key, value in head.items():
    if value.dtype.kind == "f":
      assert np.isfinite(value).all(), key
  assert head["weights"].min() >= 0
  np.testing.assert_allclose(head["weights"].sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(head["J_regressor"].sum(1), 1, atol=1e-6)


def test_is_as_large_as_a_head_in_metres_and_faces_forward(head):
  size = np.ptp(head["v_template"], axis=0)
  assert 0.15 < size[0] < 0.35 and 0.25 < size[1] < 0.40 and 0.18 < size[2] < 0.30
  eyes = head["v_template"][_part(head, "eye_left", "eye_right")]
  assert eyes[:, 2].min() > 0.04  # in front of the origin
  lips = head["v_template"][_part(head, "lips")]
  assert lips[:, 1].max() < eyes[:, 1].min()


def test_joints_lie_where_they_should(head):
  joints = head["J_regressor"] @ head["v_template"]
  for joint, region in ((3, "eye_left"), (4, "eye_right")):
    ball = head["v_template"][_part(head, region)]
    np.testing.assert_allclose(joints[joint], (ball.min(0) + ball.max(0)) / 2, atol=2e-4)
    assert np.ptp(np.linalg.norm(ball - joints[joint], axis=1)) < 1e-3  # a sphere, but for the average's proportions
  assert joints[3][0] > 0 > joints[4][0]  # +x is the subject's left
  assert abs(joints[2][0]) < 1e-4 and -0.06 < joints[2][1] < 0.02 and joints[2][2] < 0.04
  assert joints[1][1] < -0.08


def test_left_and_right_expressions_are_mirror_images(head):
  """Left shapes move the left half, and the same distance as their right twins."""
  names = [str(n) for n in head["expression_names"]]
  dirs = head["shapedirs"][:, :, int(head["n_shape"]):]
  x = head["v_template"][:, 0]
  for left in [n for n in names if n.endswith("Left") and n not in ("jawLeft", "mouthLeft")]:
    a = np.linalg.norm(dirs[:, :, names.index(left)], axis=1)
    b = np.linalg.norm(dirs[:, :, names.index(left[:-4] + "Right")], axis=1)
    assert (a * x).sum() > 0 > (b * x).sum(), left
    assert a.sum() == pytest.approx(b.sum(), rel=0.12), left
    assert a.max() > 0.001, left


def test_opening_the_jaw_moves_the_lower_lip_and_leaves_the_upper_teeth(head):
  rest, opened = flame.vertices(head), flame.vertices(head, jaw=(0.35, 0, 0))
  upper, lower = head["lip_vertices"]
  assert np.linalg.norm(opened[upper] - rest[upper]) < 0.003
  assert opened[lower, 1] - rest[lower, 1] < -0.020
  teeth = _part(head, "teeth")
  moved = np.linalg.norm(opened[teeth] - rest[teeth], axis=1)
  still = moved < 1e-6
  assert 0.4 < still.mean() < 0.6 and moved[~still].min() > 0.005
  assert rest[teeth][still][:, 1].mean() > rest[teeth][~still][:, 1].mean()
  assert np.linalg.norm((opened - rest)[_part(head, "tongue")], axis=1).min() > 0.0005
  assert np.abs((opened - rest)[_part(head, "eye_left", "eye_right", "scalp")]).max() < 1e-3


def test_lips_touch_at_rest_and_close_over_an_open_jaw(head):
  upper, lower = head["lip_vertices"]
  gap = lambda v: np.linalg.norm(v[upper] - v[lower])
  assert gap(flame.vertices(head)) < 0.0008
  opened = dict(jaw=(float(head["jaw_open_angle"]), 0, 0))
  assert gap(flame.vertices(head, **opened)) > 0.025
  assert gap(flame.vertices(head, expression=_expression(head, mouthClose=1.0), **opened)) < 0.004


@pytest.mark.parametrize("identity", range(0, 10, 3))
def test_a_blink_covers_the_pupil_and_an_open_eye_shows_it(head, identity):
  """Rays from in front of the face to the pupils are blocked by skin when the lids are shut, and only then."""
  shape = head["identities"][identity]
  names = [str(n) for n in head["region_names"]]
  skin = head["f"][np.isin(head["face_region"], [names.index("skin")])]
  for blink, covered in ((0.0, False), (1.0, True)):
    v = flame.vertices(head, shape, _expression(head, eyeBlinkBoth=blink))
    joints = head["J_regressor"] @ flame.vertices(head, shape)
    for joint in joints[3:]:
      pupil = joint + [0, 0, 0.0141]
      offsets = np.array([[0, 0], [0.003, 0], [-0.003, 0], [0, 0.002], [0, -0.002]]) * (1.0 if covered else 0.3)
      hits = [_covers(v[skin], pupil + [dx, dy, -0.0005]) for dx, dy in offsets]
      assert all(hits) if covered else not any(hits), (identity, blink, hits)


def _covers(triangles, point) -> bool:
  """Whether any triangle lies in front of `point` along +z (within 2 cm)."""
  a, b, c = (triangles[:, k, :2] - point[:2] for k in range(3))
  cross = lambda p, q: p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]
  weights = np.stack([cross(b, c), cross(c, a), cross(a, b)], axis=1)
  inside = (weights > 0).all(1) | (weights < 0).all(1)
  share = weights[inside] / weights[inside].sum(1, keepdims=True)
  depth = (share * triangles[inside][:, :, 2]).sum(1) - point[2]
  return bool(((depth > 0) & (depth < 0.02)).any())


def test_gaze_shapes_turn_the_eyes_the_right_way(head):
  rest = flame.vertices(head)
  left, right = _part(head, "eye_left"), _part(head, "eye_right")
  front = lambda ball: ball[np.argmax(rest[ball, 2])]
  move = lambda vertex, **k: (flame.vertices(head, expression=_expression(head, **k)) - rest)[vertex]
  assert move(front(left), eyeLookOutLeft=1)[0] > 0.004  # outwards is +x for the left eye
  assert move(front(left), eyeLookInLeft=1)[0] < -0.004
  assert move(front(right), eyeLookOutRight=1)[0] < -0.004
  assert move(front(right), eyeLookUpRight=1)[1] > 0.003
  assert move(front(left), eyeLookDownLeft=1)[1] < -0.003
  assert np.abs(move(right, eyeLookOutLeft=1)).max() == 0


def test_turning_the_head_leaves_the_collar_and_tears_nothing(head):
  rest, turned = flame.vertices(head), flame.vertices(head, neck=(0, 0.6, 0))
  collar = rest[:, 1] < -0.185
  assert collar.any() and np.abs((turned - rest)[collar]).max() < 0.002
  lips = _part(head, "lips")
  assert (turned - rest)[lips, 0].min() > 0.02  # +y turns towards the subject's left
  edges = np.concatenate([head["f"][:, [0, 1]], head["f"][:, [1, 2]], head["f"][:, [2, 0]]])
  length = lambda v: np.linalg.norm(v[edges[:, 0]] - v[edges[:, 1]], axis=1)
  assert (length(turned) - length(rest)).max() < 0.02


def test_normals_point_outwards(head):
  v, f = head["v_template"], head["f"]
  names = [str(n) for n in head["region_names"]]
  face_normals = np.cross(v[f[:, 1]] - v[f[:, 0]], v[f[:, 2]] - v[f[:, 0]])
  for region, centre in (("eye_left", None), ("eye_right", None), ("scalp", np.zeros(3)), ("lips", [0, -0.04, 0.06])):
    own = head["face_region"] == names.index(region)
    middle = v[f[own]].mean(1)
    around = middle.mean(0) * [1, 1, 0] + [0, 0, 0.066] if centre is None else np.asarray(centre)
    assert ((face_normals[own] * (middle - around)).sum(1) > 0).mean() > 0.7, region


def test_people_differ_clearly(head):
  faces = [flame.vertices(head, shape)[_part(head, "skin", "lips")] for shape in head["identities"]]
  faces = [face - face.mean(0) for face in faces]
  for i in range(len(faces)):
    for j in range(i):
      assert np.linalg.norm(faces[i] - faces[j], axis=1).mean() > 0.002, (i, j)  # mm apart on average: 2


def test_parts_are_mirror_symmetric_in_the_template(head):
  v = head["v_template"]
  distance, _ = cKDTree(v).query(v * [-1, 1, 1])
  assert np.quantile(distance, 0.99) < 0.001
