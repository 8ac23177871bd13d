"""Hair, brows and lashes of the captured person as thin ribbons that ride on the head's triangles. Metres."""

import dataclasses

import numpy as np
from capture_looks import Look
from capture_skin import Landmarks, brow_curve
from scipy import ndimage
from scipy.spatial import cKDTree

_UP = np.array([0.0, 1.0, 0.0])


def triangle_frames(points: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rotation (F, 3, 3; columns edge, normal, across) and centroid (F, 3) of triangles."""
  a, b, c = (points[triangles[:, k]] for k in range(3))
  unit = lambda v: v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)
  edge = unit(b - a)
  normal = unit(np.cross(edge, c - a))
  return np.stack([edge, normal, np.cross(edge, normal)], axis=-1), (a + b + c) / 3


@dataclasses.dataclass(frozen=True)
class Strands:
  """Ribbons bound to triangles.

  Attributes:
    triangle: (n, 3) vertex indices that carry each strand.
    local: (n, k, 3) points of the strand in its triangle's frame. width: (n, k) full width in metres.
    colour: (n, 3) linear albedo.
  """

  triangle: np.ndarray
  local: np.ndarray
  width: np.ndarray
  colour: np.ndarray

  def place(self, points: np.ndarray) -> np.ndarray:
    """Strand points (n, k, 3) on a posed mesh."""
    rotation, centre = triangle_frames(points, self.triangle)
    return np.einsum("nij,nkj->nki", rotation, self.local) + centre[:, None]

  def middle(self, points: np.ndarray) -> np.ndarray:
    """(3,) about what all strands stand, on a posed mesh."""
    return points[self.triangle].mean((0, 1))


def bind(curves: np.ndarray, triangle: np.ndarray, points: np.ndarray, width, colour) -> Strands:
  """Strands from curves (n, k, 3) given on the rest mesh."""
  rotation, centre = triangle_frames(points, triangle)
  return Strands(triangle, np.einsum("nji,nkj->nki", rotation, curves - centre[:, None]), width, colour)


def ribbon_faces(count: int, steps: int) -> np.ndarray:
  """Triangles of `count` ribbons of `steps` points, vertex order (strand, point, side)."""
  start = (np.arange(count)[:, None] * steps + np.arange(steps - 1)[None]) * 2
  a, b, c, d = start, start + 1, start + 2, start + 3
  return np.stack([np.stack([a, b, d], -1), np.stack([a, d, c], -1)], axis=2).reshape(-1, 3)


def ribbon_mesh(curves: np.ndarray, width: np.ndarray, outward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Vertices and normals (n·k·2, 3) of flat ribbons across `outward`; normals fan out as on a round hair."""
  tangent = np.gradient(curves, axis=1)
  tangent /= np.maximum(np.linalg.norm(tangent, axis=-1, keepdims=True), 1e-9)
  side = np.cross(tangent, outward)
  side /= np.maximum(np.linalg.norm(side, axis=-1, keepdims=True), 1e-9)
  up = np.cross(side, tangent)
  half = 0.5 * width[..., None] * side
  vertices = np.stack([curves - half, curves + half], axis=2)
  normals = np.stack([0.62 * up - 0.78 * side, 0.62 * up + 0.78 * side], axis=2)
  return vertices.reshape(-1, 3), normals.reshape(-1, 3)


def _sample_roots(points, triangles, density, rng, count):
  """Random places on triangles by area times density: (root (n, 3), triangle index (n,))."""
  a, b, c = (points[triangles[:, k]] for k in range(3))
  area = np.linalg.norm(np.cross(b - a, c - a), axis=1) * density
  pick = rng.choice(len(triangles), size=count, p=area / area.sum())
  u, v = rng.random((2, count))
  u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
  return a[pick] + u[:, None] * (b - a)[pick] + v[:, None] * (c - a)[pick], pick


def _grow(roots, comb, length, height, surface, normals, steps, rng, jitter):
  """Curves (n, steps, 3) that leave the skin, rise to `height` above it and follow `comb` along it."""
  tree = cKDTree(surface)
  curve = np.empty((len(roots), steps, 3))
  curve[:, 0] = roots
  stride = length / (steps - 1)
  wander = jitter * rng.standard_normal((len(roots), 3))
  for k in range(1, steps):
    place = curve[:, k - 1]
    near = tree.query(place)[1]
    normal = normals[near]
    above = ((place - surface[near]) * normal).sum(1)
    wanted = height * np.sin(0.5 * np.pi * min(1.0, 1.5 * k / (steps - 1)))
    along = comb + wander * (0.4 + 0.8 * k / steps)
    along = along - (along * normal).sum(1, keepdims=True) * normal
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    rise = np.clip((wanted - above) / stride, -0.8, 2.0)
    step = along + rise[:, None] * normal
    curve[:, k] = place + step / np.linalg.norm(step, axis=1, keepdims=True) * stride[:, None]
  return curve


def _ramp(x, low, high):
  t = np.clip((x - low) / (high - low), 0, 1)
  return t * t * (3 - 2 * t)


def short_hair(points, normals, triangles, scalp_height, look: Look, seed: int, count: int = 7500) -> Strands:
  """A short man's cut: swept up and back on top, close at the sides and the nape.

  Args:
    points, normals: (V, 3) rest mesh. triangles: (F, 3) of the skin that may carry hair.
    scalp_height: function (n, 3) -> (n,) height above the hairline, metres.
  """
  rng = np.random.default_rng(seed)
  centre = points[triangles].mean(1)
  density = _ramp(scalp_height(centre) + 0.003 * rng.standard_normal(len(centre)), -0.002, 0.009)
  roots, pick = _sample_roots(points, triangles, density, rng, count)
  carrier = triangles[pick]
  normal = normals[carrier].mean(1)
  normal /= np.linalg.norm(normal, axis=1, keepdims=True)
  surface = np.unique(triangles)

  top = _ramp(normal[:, 1], 0.25, 0.75) * _ramp(roots[:, 1], 0.07, 0.10)
  front = _ramp(roots[:, 2], -0.02, 0.07) * top
  back = _ramp(-normal[:, 2], 0.2, 0.8) * (1 - top)
  comb_top = np.array([0.45, 0.25, -0.9]) + np.outer(front, [0.0, 0.5, 0.3])
  comb_side = np.stack([0 * top, -0.85 + 0 * top, -0.55 + 0 * top], -1)
  comb = top[:, None] * comb_top + (1 - top)[:, None] * ((1 - back)[:, None] * comb_side + back[:, None] * [0, -1, -0.1])
  # Neighbouring hairs lean alike: locks.
  locks = roots[rng.integers(count, size=260)]
  lean = 0.35 * rng.standard_normal((260, 3))
  lock = cKDTree(locks).query(roots)[1]
  comb = comb + lean[lock]
  edge = scalp_height(roots)
  length = (0.013 + 0.021 * top + 0.008 * front) * (0.45 + 0.55 * _ramp(edge, 0.0, 0.022 - 0.014 * front))
  length *= rng.uniform(0.75, 1.15, count)
  height = (0.0035 + 0.0075 * top + 0.0055 * front) * (0.35 + 0.65 * _ramp(edge, -0.002, 0.03)) * rng.uniform(0.5, 1.25, count)
  curves = _grow(roots, comb, length, height, points[surface], normals[surface], 6, rng, 0.13)
  width = 0.00070 * rng.uniform(0.7, 1.2, count)[:, None] * np.linspace(1.0, 0.35, 6)[None]
  tone = np.exp(0.30 * rng.standard_normal(count) + 0.22 * rng.standard_normal(260)[lock])
  colour = np.array(look.hair_colour) * tone[:, None] + 0.02 * rng.random((count, 1)) ** 8
  return bind(curves, carrier, points, width, np.clip(colour, 0.01, 0.5))


@dataclasses.dataclass(frozen=True)
class HangingStrands:
  """Ribbons that hang from the head: their upper part moves with the skull, their ends rest with the shoulders.

  Expressions move the skin of the forehead; a long strand must not swing with a triangle of it. So strands follow the rigid motion of
  the back of the skull, their roots the skin, and their ends, by a share, the rigid motion of the bust's rim.

  Attributes:
    triangle: (n, 3) vertex indices below each root. corner: (n, 3) weights of the root in its triangle.
    curves: (n, k, 3) points on the mesh at rest. width: (n, k) full width in metres. colour: (n, 3) linear albedo.
    root_share: (k,) how much a point follows its root. low_share: (n, k) how much it rests with the shoulders.
    skull, bust: vertices whose rigid motions these are. rest: (V, 3) mesh at rest.
  """

  triangle: np.ndarray
  corner: np.ndarray
  curves: np.ndarray
  width: np.ndarray
  colour: np.ndarray
  root_share: np.ndarray
  low_share: np.ndarray
  skull: np.ndarray
  bust: np.ndarray
  rest: np.ndarray

  def place(self, points: np.ndarray) -> np.ndarray:
    """Strand points (n, k, 3) on a posed mesh."""
    on_skull, on_bust = (_rigid_motion(self.rest[v], points[v]) for v in (self.skull, self.bust))
    curves = on_skull(self.curves)
    curves = curves + self.low_share[..., None] * (on_bust(self.curves) - curves)
    root = (points[self.triangle] * self.corner[..., None]).sum(1)
    return curves + self.root_share[None, :, None] * (root - curves[:, 0])[:, None]

  def middle(self, points: np.ndarray) -> np.ndarray:
    """(3,) of the skull, on a posed mesh."""
    return points[self.skull].mean(0)


def _rigid_motion(before: np.ndarray, after: np.ndarray):
  """The rotation and shift that takes points (m, 3) to others with the least squares (Kabsch), as a function of (…, 3)."""
  a, b = before.mean(0), after.mean(0)
  u, _, vt = np.linalg.svd((before - a).T @ (after - b))
  turn = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
  return lambda p: (p - a) @ turn + b


def long_hairline(height: np.ndarray, places: np.ndarray) -> np.ndarray:
  """The height above the hairline of hair without whiskers, whose strands would have to cross the temple.

  Args:
    height: (n,) of `make_head.scalp_height`. places: (n, 3) metres, on the rest mesh.
  """
  azimuth = np.degrees(np.arctan2(np.abs(places[:, 0]), places[:, 2] + 0.012))
  whiskers = _ramp(0.066 - places[:, 1], 0.0, 0.006) * _ramp(96 - azimuth, 0.0, 6.0)
  return height - (np.maximum(height, 0) + 0.02) * whiskers


def long_hair(points, triangles, scalp, scalp_height, look: Look, seed: int, count: int = 9000) -> HangingStrands:
  """Parted a little left of the middle, over the ears and straight down to the shoulders.

  Args:
    points: (V, 3) rest mesh. triangles: (F, 3) of the skin. scalp: (m,) vertices of the scalp.
    scalp_height: function (n, 3) -> (n,) height above the hairline, metres.
  """
  rng = np.random.default_rng(seed)
  centre = points[triangles].mean(1)
  height = scalp_height(centre)
  density = _ramp(height + 0.003 * rng.standard_normal(len(centre)), -0.002, 0.009)
  # What shows is the top; below the ears hair hangs over hair.
  density *= 0.35 + 0.65 * _ramp(centre[:, 1], -0.02, 0.05)
  roots, pick = _sample_roots(points, triangles, density, rng, count)
  part = 0.012  # It shows, in front.
  kept = (np.abs(roots[:, 0] - part) > 0.0016 * rng.uniform(0.3, 1.3, count)) | (roots[:, 2] < -0.03) | (roots[:, 1] < 0.07)
  roots, pick, count = roots[kept], pick[kept], int(kept.sum())
  carrier = triangles[pick]
  corner = _weights_in_triangle(roots, points[carrier])

  axis = np.array([0.0, 0.040, -0.012])  # of the skull
  skin = points[np.unique(triangles)] - axis
  surface = cKDTree(skin / np.linalg.norm(skin, axis=1, keepdims=True))
  radius = np.linalg.norm(skin, axis=1)
  over = lambda d: radius[surface.query(d, k=6)[1]].max(-1)  # distance of the skin in direction d
  # How far out the skin reaches at an azimuth and a height, and what lies above it.
  low = np.linspace(-0.20, 0.0, 41)
  azimuths = np.radians(np.arange(0, 181, 5))
  angle = np.abs(np.arctan2(skin[:, 0], skin[:, 2]))
  flat = np.hypot(skin[:, 0], skin[:, 2])
  reach = np.zeros((len(azimuths), len(low)))
  for i, a in enumerate(azimuths):
    for j, y in enumerate(low):
      near = (np.abs(angle - a) < np.radians(9)) & (np.abs(skin[:, 1] - y) < 0.009)
      reach[i, j] = flat[near].max() if near.any() else 0.0
  at_reach = lambda a, y: ndimage.map_coordinates(
      reach, [np.degrees(np.abs(a)) / 5, (y - low[0]) / (low[1] - low[0])], order=1, mode="nearest")

  start = roots - axis
  side = np.where(roots[:, 0] > part, 1.0, -1.0)
  azimuth = np.arctan2(start[:, 0] * side, start[:, 2])  # 0 in front, pi behind; negative across the part
  azimuth = np.where(azimuth < -np.pi / 2, azimuth + 2 * np.pi, azimuth)
  # Where a strand hangs: hair from the front falls beside the cheek, hair from the back behind it.
  locks = rng.integers(count, size=300)
  lock = cKDTree(roots[locks]).query(roots)[1]
  draw = rng.standard_normal((300, 4))[lock] + 0.35 * rng.standard_normal((count, 4))
  hang = np.radians(np.interp(np.degrees(azimuth), [-90, 0, 40, 75, 110, 150, 180, 220], [92, 88, 89, 94, 116, 146, 172, 184])
                    + 4.0 * draw[:, 0])
  hang = np.maximum(hang, np.radians(84))
  steps = 15
  dome = 7  # points on the skull, the others hang
  first = start / np.linalg.norm(start, axis=1, keepdims=True)
  last = np.stack([np.sin(hang) * side, 0 * hang, np.cos(hang)], -1)
  layer = 0.0035 + 0.0115 * rng.random(count) ** 0.8
  curve = np.empty((count, steps, 3))
  between = np.arccos(np.clip((first * last).sum(1), -1, 1))
  for k in range(dome):
    t = k / (dome - 1)
    weight = [np.sin((1 - t) * between) / np.sin(between), np.sin(t * between) / np.sin(between)]
    direction = weight[0][:, None] * first + weight[1][:, None] * last
    away = layer * np.sin(0.5 * np.pi * min(1.0, 2.2 * t)) + 0.004 * np.sin(np.pi * t)
    curve[:, k] = direction * (over(direction) + (away if k else 0.0))[:, None]
    if k == 0:
      curve[:, 0] = start
  # Hair that starts below the skull's widest part goes down at once.
  low_root = first[:, 1] < 0.12
  widest = np.linalg.norm(curve[:, dome - 1][:, [0, 2]], axis=1)
  bottom = -0.166 - 0.008 * draw[:, 1].clip(-2, 2) + 0.016 * np.cos(hang)  # longer behind
  # Ends rest above the shoulders.
  for y in low[(low > -0.175) & (low < -0.12)]:
    bottom = np.where((bottom < y) & (at_reach(hang, np.full(count, y)) > 0.95 * widest - 0.004), y - 0.003 * rng.random(count), bottom)
  y0 = np.where(low_root, start[:, 1] - 0.004, 0.0)
  wave = rng.uniform(0, 2 * np.pi, 300)[lock]
  for k in range(dome, steps):
    t = (k - dome + 1) / (steps - dome)
    y = y0 + t * (bottom - y0)
    inward = np.interp(t, [0, 0.35, 0.75, 1], [1.0, 1.01, 0.97, 0.90])
    turn = hang + np.radians(3.5) * t * np.sin(wave + 5.0 * t) + np.radians(1.5) * draw[:, 3] * t
    out = np.maximum(widest * inward + 0.003 * t * draw[:, 2], at_reach(turn, y) + layer * 0.8 + 0.001)
    out = np.minimum(out, np.maximum(1.02 * widest, 0.074) + 0.003 - 0.008 * max(t - 0.7, 0))
    curve[:, k] = np.stack([np.sin(turn) * side * out, y, np.cos(turn) * out], -1)
  for k in range(1, dome):  # from the root to where it hangs, along the straight line
    t = k / dome
    curve[low_root, k] = curve[low_root, 0] + t * (curve[low_root, dome] - curve[low_root, 0])
  curve[:, 1:-1] = 0.25 * curve[:, :-2] + 0.5 * curve[:, 1:-1] + 0.25 * curve[:, 2:]
  curve += axis
  width = 0.00085 * rng.uniform(0.7, 1.2, count)[:, None] * np.interp(np.arange(steps), [0, 2, 10, steps - 1], [0.7, 1, 1, 0.45])[None]
  tone = np.exp(0.30 * rng.standard_normal(count) + 0.25 * rng.standard_normal(300)[lock])
  colour = np.array(look.hair_colour) * tone[:, None]
  share = np.interp(np.arange(steps), [0, 1, 3, 5], [1.0, 0.7, 0.2, 0.0])
  weights = 0.8 * _ramp(-curve[..., 1], 0.030, 0.125)
  skull = scalp[(points[scalp, 1] > 0.03) & (points[scalp, 2] < 0.01)]
  bust = np.flatnonzero(points[:, 1] < points[:, 1].min() + 0.03)
  return HangingStrands(carrier, corner, curve, width, np.clip(colour, 0.004, 0.5), share, weights, skull, bust, points)


def _weights_in_triangle(places, corners) -> np.ndarray:
  """Barycentric weights (n, 3) of places (n, 3) in triangles with corners (n, 3, 3)."""
  a, b, c = (corners[:, k] for k in range(3))
  normal = np.cross(b - a, c - a)
  double = (normal**2).sum(1)
  wb = (np.cross(places - a, c - a) * normal).sum(1) / double
  wc = (np.cross(b - a, places - a) * normal).sum(1) / double
  return np.stack([1 - wb - wc, wb, wc], -1)


def brows(points, normals, triangles, marks: Landmarks, look: Look, seed: int, count: int = 420) -> Strands:
  """Both eyebrows, bound to the skin so that they rise and frown with it."""
  rng = np.random.default_rng(seed)
  curve = brow_curve(marks)
  along = rng.beta(1.1, 1.2, count)
  at = along * 4
  x, y = (np.interp(at, np.arange(5), curve[:, k]) for k in range(2))
  half = np.interp(along, [0, 0.15, 0.6, 1.0], [0.0026, 0.0042, 0.0034, 0.0008]) * look.brow_width
  y = y + half * rng.uniform(-1, 1, count)
  side = np.where(rng.random(count) < 0.5, 1.0, -1.0)
  centre = points[triangles].mean(1)
  front = normals[triangles].mean(1)[:, 2] > 0.1
  candidates = np.flatnonzero(front & (centre[:, 2] > marks.eye[2] - 0.02))
  pick = candidates[cKDTree(centre[candidates][:, :2]).query(np.stack([x * side, y], -1))[1]]
  carrier = triangles[pick]
  # The place on the carrying triangle's plane below (x, y).
  normal = np.cross(points[carrier[:, 1]] - points[carrier[:, 0]], points[carrier[:, 2]] - points[carrier[:, 0]])
  normal /= np.linalg.norm(normal, axis=1, keepdims=True)
  offset = np.stack([x * side, y], -1) - points[carrier].mean(1)[:, :2]
  z = points[carrier].mean(1)[:, 2] - (normal[:, :2] * offset).sum(1) / np.maximum(normal[:, 2], 0.2)
  roots = np.stack([x * side, y, z], -1)
  ahead = np.stack([np.interp(at + 0.2, np.arange(5), curve[:, k]) - np.interp(at - 0.2, np.arange(5), curve[:, k])
                    for k in range(2)], -1)
  ahead /= np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1e-9)
  rise = np.interp(along, [0, 0.25, 0.6, 1], [1.3, 0.5, 0.1, -0.1])
  comb = np.stack([ahead[:, 0] * side, ahead[:, 1] + rise, 0 * x], -1)
  surface = np.unique(triangles[candidates])
  curves = _grow(roots, comb, 0.0062 * rng.uniform(0.6, 1.2, count) * np.interp(along, [0, 0.3, 1], [0.75, 1, 0.8]),
                 np.full(count, 0.0011), points[surface], normals[surface], 5, rng, 0.18)
  width = 0.00034 * rng.uniform(0.7, 1.2, count)[:, None] * np.linspace(1, 0.3, 5)[None]
  colour = np.array(look.brow_colour) * np.exp(0.25 * rng.standard_normal(count))[:, None]
  return bind(curves, carrier, points, width, colour)


@dataclasses.dataclass(frozen=True)
class Lashes:
  """Lashes along the head's lash strips: roots and tips are fixed combinations of its vertices.

  Attributes:
    root_index, tip_index: (n, 2) vertices; share: (n,) weight of the second. upper: (n,) bool.
    colour: (n, 3). width: (n, k).
  """

  root_index: np.ndarray
  tip_index: np.ndarray
  root_share: np.ndarray
  tip_share: np.ndarray
  reach: np.ndarray
  upper: np.ndarray
  width: np.ndarray
  colour: np.ndarray

  def place(self, points: np.ndarray) -> np.ndarray:
    """Curves (n, k, 3) on the posed head (V, 3)."""
    mix = lambda index, share: points[index[:, 0]] * (1 - share)[:, None] + points[index[:, 1]] * share[:, None]
    root, tip = mix(self.root_index, self.root_share), mix(self.tip_index, self.tip_share)
    reach = (tip - root) * self.reach[:, None]
    t = np.linspace(0, 1, self.width.shape[1])[None, :, None]
    curl = np.where(self.upper, 1.0, -0.35)[:, None, None] * 0.0018 * _UP
    return root[:, None] + t * reach[:, None] + t**2 * curl


def lashes(head, rest: np.ndarray, look: Look, seed: int, upper_count: int = 70, lower_count: int = 40) -> Lashes:
  """Lashes of both eyes."""
  rng = np.random.default_rng(seed)
  names = [str(n) for n in head["region_names"]]
  strip = np.unique(head["f"][head["face_region"] == names.index("lashes")])
  template = head["v_template"]
  centres = (head["J_regressor"] @ template)[3:]
  parts = []
  for sign, centre in ((1, centres[0]), (-1, centres[1])):
    own = strip[template[strip, 0] * sign > 0]
    reach = np.linalg.norm(template[own] - centre, axis=1)
    # The strips are separate pieces: the upper one lies above the line between the corners of the eye.
    piece = _pieces(head["f"], own)
    for label in np.unique(piece):
      part, far = own[piece == label], reach[piece == label]
      upper = template[part, 1].mean() > centre[1] - 0.0005
      roots, tips = part[far < np.quantile(far, 0.2)], part[far > np.quantile(far, 0.62)]
      count = upper_count if upper else lower_count
      at = np.sort(rng.uniform(0.04, 0.97, count))
      root_index, root_share = _along(template[roots, 0] * sign, roots, at)
      tip_index, tip_share = _along(template[tips, 0] * sign, tips, np.clip(at + 0.02 * rng.standard_normal(count), 0, 1))
      parts.append((root_index, tip_index, root_share, tip_share, rng.uniform(0.95, 1.45, count) * (1.15 * look.lash_length if upper else 0.9),
                    np.full(count, upper)))
  fields = [np.concatenate(x) for x in zip(*parts)]
  count = len(fields[0])
  width = 0.00026 * rng.uniform(0.7, 1.2, count)[:, None] * np.linspace(1, 0.25, 5)[None]
  return Lashes(*fields, width, np.tile([look.lash_colour], (count, 1)))


def _pieces(triangles, vertices) -> np.ndarray:
  """Label of the connected piece of each of `vertices`."""
  label = {v: v for v in vertices}

  def find(v):
    while label[v] != v:
      v = label[v]
    return v

  for a, b, c in triangles[np.isin(triangles, vertices).all(1)]:
    ra, rb, rc = find(a), find(b), find(c)
    low = min(ra, rb, rc)
    label[ra] = label[rb] = label[rc] = low
  return np.array([find(v) for v in vertices])


def _along(x, vertices, at):
  """Two vertices and the share of the second, at fractions `at` of a row of vertices ordered by x."""
  order = np.argsort(x)
  position = at * (len(order) - 1)
  first = np.minimum(position.astype(int), len(order) - 2)
  return np.stack([vertices[order[first]], vertices[order[first + 1]]], -1), position - first
