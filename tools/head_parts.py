"""Geometry of the demo head as linear functions of the MakeHuman base mesh.

Every vertex of the head is a fixed linear combination of base-mesh vertices plus a constant, so that each MakeHuman
target (a person's features, an expression) carries over by the same matrix:

    head = rows @ base + offset          head displacement = rows @ base displacement

Lengths are decimetres here, as in the base mesh.
"""

import dataclasses

import numpy as np
import scipy.sparse as sparse
from makehuman import BaseMesh
from scipy.interpolate import CubicSpline

# The bust ends on this ellipsoid: centre and radii, chosen so that it leaves a collar below the throat.
_CUT_CENTRE = np.array([0.0, 6.75, 0.35])
_CUT_RADII = np.array([1.65, 1.70, 2.6])

# Rings of the eyeball, degrees from the optical axis: pupil, iris and limbus have rings of their own.
EYE_RINGS = (7.0, 12.0, 18.0, 23.0, 31.0, 42.0, 55.0, 72.0, 95.0, 130.0)
_EYE_SECTORS = 24
# MakeHuman's eyeball touches the lids; this much smaller one leaves room for their thickness while they blink.
_EYE_SHRINK = 0.972

# Widths of a half arch's teeth, millimetres, from the middle: two incisors, canine, two premolars, two molars.
_TEETH_WIDTHS = (8.4, 6.8, 7.6, 7.0, 6.8, 9.6, 9.4)
# Profile of a tooth from the outer gum over the edge to the inner gum: (height 0 = gum .. 1 = edge, millimetres out).
_TOOTH_PROFILE = ((-0.35, -0.6), (0.05, 0.15), (0.5, 0.35), (0.92, -0.15), (1.0, -0.9), (0.45, -3.4), (-0.3, -4.2))


@dataclasses.dataclass
class Part:
  """A piece of the head: `rows @ base + offset` are its vertices.

  Attributes:
    rows: sparse (V, num_base).
    offset: (V, 3) decimetres.
    triangles: (F, 3) counter-clockwise seen from outside.
    uv: (U, 2) texture coordinates. triangles_uv: (F, 3) indices into uv.
  """

  name: str
  rows: sparse.csr_matrix
  offset: np.ndarray
  triangles: np.ndarray
  uv: np.ndarray
  triangles_uv: np.ndarray


def _selection(indices: np.ndarray, num_base: int) -> sparse.csr_matrix:
  ones = np.ones(len(indices))
  return sparse.csr_matrix((ones, (np.arange(len(indices)), indices)), shape=(len(indices), num_base))


def _split_quads(vertices: np.ndarray, quads: np.ndarray) -> np.ndarray:
  """Corners (F, 2, 3) of each quad's two triangles, along its shorter diagonal (mirrored quads split alike)."""
  p = vertices[quads]
  first = np.linalg.norm(p[:, 0] - p[:, 2], axis=1) <= np.linalg.norm(p[:, 1] - p[:, 3], axis=1) + 1e-6
  return np.where(first[:, None, None], [[0, 1, 2], [0, 2, 3]], [[0, 1, 3], [1, 2, 3]])


def _triangulate(base: BaseMesh, quads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  corners = _split_quads(base.vertices, base.faces[quads])
  pick = np.arange(len(quads))[:, None, None]
  return base.faces[quads][pick, corners].reshape(-1, 3), base.faces_uv[quads][pick, corners].reshape(-1, 3)


def group_part(base: BaseMesh, groups: list[str], name: str, uv_shift=(0.0, 0.0)) -> Part:
  """Takes whole groups of the base mesh as they are."""
  quads = np.concatenate([base.group_faces(g) for g in groups])
  faces, faces_uv = _triangulate(base, quads)
  used, triangles = np.unique(faces, return_inverse=True)
  used_uv, triangles_uv = np.unique(faces_uv, return_inverse=True)
  return Part(name, _selection(used, len(base.vertices)), np.zeros((len(used), 3)), triangles.reshape(-1, 3),
              base.uv[used_uv] + uv_shift, triangles_uv.reshape(-1, 3))


def skin_part(base: BaseMesh) -> Part:
  """Head, throat and collar, cut from the body along an ellipsoid: cut edges get new vertices, so the rim is smooth."""
  faces, faces_uv = _triangulate(base, base.group_faces("body"))
  inside = 1.0 - (((base.vertices - _CUT_CENTRE) / _CUT_RADII) ** 2).sum(1)
  # Above the centre nothing is cut: the ellipsoid only shapes the bust.
  inside[base.vertices[:, 1] > _CUT_CENTRE[1]] = 1.0
  inside[np.abs(base.vertices[:, 0]) > 2.0] = -1.0

  rows = {("v", v): [(v, 1.0)] for v in np.unique(faces[(inside[faces] > 0).any(1)]) if inside[v] > 0}
  uv_rows, triangles, triangles_uv = {}, [], []

  def crossing(a, b, ua, ub):
    """The point where edge a-b leaves the ellipsoid, and the same point of its texture edge."""
    t = inside[a] / (inside[a] - inside[b])
    key = ("e", min(a, b), max(a, b))
    rows.setdefault(key, [(a, 1 - t), (b, t)])
    uv_key = ("e", min(ua, ub), max(ua, ub))
    uv_rows.setdefault(uv_key, base.uv[ua] * (1 - t) + base.uv[ub] * t)
    return key, uv_key

  for face, face_uv in zip(faces[(inside[faces] > 0).any(1)], faces_uv[(inside[faces] > 0).any(1)]):
    polygon = []
    for k in range(3):
      a, b, ua, ub = face[k], face[(k + 1) % 3], face_uv[k], face_uv[(k + 1) % 3]
      if inside[a] > 0:
        uv_rows.setdefault(("v", ua), base.uv[ua])
        polygon.append((("v", a), ("v", ua)))
      if (inside[a] > 0) != (inside[b] > 0):
        polygon.append(crossing(a, b, ua, ub))
    for k in range(1, len(polygon) - 1):
      triangles.append([polygon[i][0] for i in (0, k, k + 1)])
      triangles_uv.append([polygon[i][1] for i in (0, k, k + 1)])

  order = {key: i for i, key in enumerate(rows)}
  uv_order = {key: i for i, key in enumerate(uv_rows)}
  entries = [(i, v, weight) for i, combination in enumerate(rows.values()) for v, weight in combination]
  i, v, weight = (np.array(x) for x in zip(*entries))
  matrix = sparse.csr_matrix((weight, (i, v)), shape=(len(rows), len(base.vertices)))
  part = Part("skin", matrix, np.zeros((len(rows), 3)), np.array([[order[k] for k in t] for t in triangles]),
              np.array(list(uv_rows.values())), np.array([[uv_order[k] for k in t] for t in triangles_uv]))
  return _largest_component(part)


def _largest_component(part: Part) -> Part:
  n = part.rows.shape[0]
  edges = np.concatenate([part.triangles[:, [0, 1]], part.triangles[:, [1, 2]]])
  graph = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(n, n))
  label = sparse.csgraph.connected_components(graph, directed=False)[1]
  keep = label == np.bincount(label).argmax()
  new = np.cumsum(keep) - 1
  faces = keep[part.triangles[:, 0]]
  return Part(part.name, part.rows[keep], part.offset[keep], new[part.triangles[faces]], part.uv,
              part.triangles_uv[faces])


def lash_part(base: BaseMesh, shrink: float = 0.65) -> Part:
  """MakeHuman's lash strips, their free edge drawn in to `shrink` of its length: seen as one piece they are too heavy."""
  groups = [f"helper-{side}-eyelashes-{row}" for side in "lr" for row in (1, 2)]
  part = group_part(base, groups, "lashes", uv_shift=(1.0, 0.0))
  used = part.rows.indices  # one base vertex per row, in order
  rows = sparse.lil_matrix(part.rows.shape)
  for group in groups:
    strip = base.group_vertices(group)
    eye = base.vertices[base.group_vertices(f"helper-{group[7]}-eye")]
    centre = (eye.min(0) + eye.max(0)) / 2
    reach = np.linalg.norm(base.vertices[strip] - centre, axis=1)
    roots = strip[reach < 0.16]
    for vertex in strip:
      own = np.searchsorted(used, vertex)
      root = roots[np.argmin(np.linalg.norm(base.vertices[roots] - base.vertices[vertex], axis=1))]
      if vertex in roots:
        rows[own, vertex] = 1.0
      else:
        rows[own, vertex], rows[own, root] = shrink, 1.0 - shrink
  part.rows = rows.tocsr()
  return part


def eye_part(base: BaseMesh, side: str) -> Part:
  """A sphere with rings at pupil, iris and limbus in place of MakeHuman's 70 quads.

  The helper sphere's affine image of unit directions is linear in its vertices, so the new sphere follows every target
  that moves, scales or turns the helper.

  Args:
    side: "l" or "r", the subject's side.
  """
  helper = base.group_vertices(f"helper-{side}-eye")
  points = base.vertices[helper]
  centre = (points.min(0) + points.max(0)) / 2
  radius = np.linalg.norm(points - centre, axis=1).mean()
  to_affine = np.linalg.pinv(np.concatenate([(points - centre) / radius, np.ones((len(points), 1))], axis=1))

  angle = np.radians(np.array(EYE_RINGS))[:, None]
  turn = 2 * np.pi * np.arange(_EYE_SECTORS)[None] / _EYE_SECTORS
  ring = np.stack([np.sin(angle) * np.cos(turn), np.sin(angle) * np.sin(turn), np.cos(angle) + 0 * turn], axis=-1)
  directions = np.concatenate([[[0, 0, 1.0]], ring.reshape(-1, 3), [[0, 0, -1.0]]]) * _EYE_SHRINK
  rows = np.concatenate([directions, np.ones((len(directions), 1))], axis=1) @ to_affine

  n, last = _EYE_SECTORS, len(directions) - 1
  triangles = [[0, 1 + j, 1 + (j + 1) % n] for j in range(n)]
  for r in range(len(EYE_RINGS) - 1):
    for j in range(n):
      a, b = 1 + r * n + j, 1 + r * n + (j + 1) % n
      triangles += [[a, a + n, b + n], [a, b + n, b]]
  triangles += [[last, last - n + (j + 1) % n, last - n + j] for j in range(n)]
  triangles = np.array(triangles)
  # Texture: the azimuthal equidistant map of the sphere, one disc per eye in the tile right of the skin's.
  polar = np.arccos(np.clip(directions[:, 2] / _EYE_SHRINK, -1, 1)) / np.pi
  flat = directions[:, :2] / np.maximum(np.linalg.norm(directions[:, :2], axis=1, keepdims=True), 1e-9)
  uv = np.array([1.75 if side == "l" else 1.25, 0.75]) + 0.24 * polar[:, None] * flat
  full = sparse.csr_matrix((rows.ravel(), (np.repeat(np.arange(len(rows)), len(helper)),
                                           np.tile(helper, len(rows)))), shape=(len(rows), len(base.vertices)))
  return Part(f"eye_{'left' if side == 'l' else 'right'}", full, np.zeros((len(rows), 3)), triangles, uv,
              triangles.copy())


def teeth_part(base: BaseMesh, jaw: str) -> Part:
  """A row of 14 teeth along MakeHuman's helper strip, as one scalloped band.

  Args:
    jaw: "upper" or "lower".
  """
  group = base.group_vertices(f"helper-{jaw}-teeth")
  points = base.vertices[group]
  sign = -1.0 if jaw == "upper" else 1.0  # direction from gum to edge along y
  gum, edge = _teeth_rims(points, sign)
  # Arc length from the middle backwards, in the horizontal plane.
  t = np.linspace(0, 1, 400)
  path = gum(t)
  length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path[:, [0, 2]], axis=0), axis=1))])
  borders = np.concatenate([[0], np.cumsum(_TEETH_WIDTHS)])
  borders = borders / borders[-1] * length[-1] * 0.97
  stations, groove = [], []
  for a, b in zip(borders[:-1], borders[1:]):
    stations += [a, a + 0.28 * (b - a), b - 0.28 * (b - a)]
    groove += [1.0, 0.0, 0.0]
  stations, groove = np.array(stations + [borders[-1]]), np.array(groove + [1.0])
  where = np.interp(stations, length, t)
  top, bottom = gum(where), edge(where)
  tangent = gum(where, 1) * [1, 0, 1]
  tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
  outward = np.stack([-tangent[:, 2], 0 * where, tangent[:, 0]], axis=1)

  half = []
  for height, out in _TOOTH_PROFILE:
    inset = 0.022 * groove * (0.15 < height < 1.0) + 0.006 * groove
    row = top + (bottom - top) * (height - 0.05 * groove * (height > 0.8))[:, None]
    half.append(row + outward * (out * 0.01 - inset)[:, None])
  half = np.array(half)  # (profile, station, 3)
  mirrored = half[:, :0:-1] * [-1, 1, 1]
  grid = np.concatenate([mirrored, half], axis=1)

  rows_count, columns_count = grid.shape[:2]
  index = np.arange(rows_count * columns_count).reshape(rows_count, columns_count)
  a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
  triangles = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
  if sign < 0:
    triangles = triangles[:, ::-1]
  vertices = grid.reshape(-1, 3)
  rows = _moving_least_squares(vertices, points, width=0.12)
  full = sparse.csr_matrix((rows.ravel(), (np.repeat(np.arange(len(rows)), len(group)), np.tile(group, len(rows)))),
                           shape=(len(rows), len(base.vertices)))
  u, v = np.meshgrid(np.linspace(1.05, 1.95, columns_count), np.linspace(0.0, 0.15, rows_count))
  uv = np.stack([u, v + (0.3 if jaw == "upper" else 0.1)], -1).reshape(-1, 2)
  return Part(f"teeth_{jaw}", full, vertices - rows @ points, triangles.copy(), uv, triangles.copy())


def _teeth_rims(points: np.ndarray, sign: float) -> tuple[CubicSpline, CubicSpline]:
  """Gum line and biting edge of the helper strip's outer side, from the middle to the back, as curves over [0, 1]."""
  half = points[points[:, 0] > -1e-6]
  # The helper's columns: parametrise by angle around a centre behind the incisors.
  angle = np.arctan2(half[:, 0], half[:, 2] - 0.9)
  reach = np.hypot(half[:, 0], half[:, 2] - 0.9)
  order = np.argsort(angle)
  half, angle, reach = half[order], angle[order], reach[order]
  gum, edge = [], []
  for centre in np.linspace(0.0, angle.max(), 9):
    near = np.abs(angle - centre) < 0.16
    outer = near & (reach > reach[near].max() - 0.07)
    p = half[outer]
    gum.append(p[np.argmin(sign * p[:, 1])])
    edge.append(p[np.argmax(sign * p[:, 1])])
  gum, edge = np.array(gum), np.array(edge)
  along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(gum[:, [0, 2]], axis=0), axis=1))])
  along /= along[-1]
  # The helper is coarse: x odd, y and z even polynomials keep the arch smooth through the middle plane.
  odd, even = along[:, None] ** [1, 3, 5], along[:, None] ** [0, 2, 4]
  fine = np.linspace(0, 1, 15)

  def smooth(rim):
    x = fine[:, None] ** [1, 3, 5] @ np.linalg.lstsq(odd, rim[:, 0], rcond=None)[0]
    yz = fine[:, None] ** [0, 2, 4] @ np.linalg.lstsq(even, rim[:, 1:], rcond=None)[0]
    return np.concatenate([0.955 * x[:, None], yz - [0.0, 0.012]], axis=1)  # clear of the cheeks and lips

  gum, edge = smooth(gum), smooth(edge)
  edge[:, [0, 2]] = 0.4 * edge[:, [0, 2]] + 0.6 * gum[:, [0, 2]]
  return CubicSpline(fine, gum), CubicSpline(fine, edge)


def _moving_least_squares(new: np.ndarray, old: np.ndarray, width: float) -> np.ndarray:
  """Weights (n, m) that rebuild any affine function exactly at `new` from its values at `old`, near points first."""
  rows = np.empty((len(new), len(old)))
  for i, point in enumerate(new):
    basis = np.concatenate([old - point, np.ones((len(old), 1))], axis=1)
    weight = np.exp(-((old - point) ** 2).sum(1) / width**2) + 1e-4
    rows[i] = np.linalg.solve(basis.T @ (weight[:, None] * basis) + 1e-9 * np.eye(4),
                              np.array([0, 0, 0, 1.0])) @ (basis * weight[:, None]).T
  return rows
