"""Motion of one head model as motion of another, by their geometry: FLAME's components as ARKit's shapes, and back.

Two heads are laid over each other once (`match_heads`): a similarity from eyes and lips, then the closest points of the two
faces in turns with a similarity and with the identity that brings them closest. Each point of the target's face so has a place
on the source's surface. A motion (`Retargeting.convert`) then is fitted frame by frame: expression and jaw of the target whose
points move as their places on the source do, in least squares, weights of ARKit's shapes within [0, 1]. The head's rotation is
carried over. Models of one mesh, as FLAME's years are, need no matching: their vertices correspond by number.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.spatial
from jaxtyping import Bool, Float, Int

from rsatalker_jax.errors import InputError
from rsatalker_jax.head.flame import JOINT_NAMES, HeadModel, head_vertices
from rsatalker_jax.head.lips import find_lips, select_vertices
from rsatalker_jax.head.pose import pose_for
from rsatalker_jax.types import EXPRESSION_DIM, JAW_DIM, MOTION_GROUPS, Motion

_EYES = (JOINT_NAMES.index("eye_left"), JOINT_NAMES.index("eye_right"))
# The face: in units of the eyes' distance from the middle between eyes and lips, and not further back than the eyes.
_FACE_RADIUS, _FACE_DEPTH = 1.4, 0.35
_MOST_POINTS = 1500  # Of the face: more say nothing new.
_FAR, _FACING = 0.012, 0.5  # Metres between corresponding points, at most, and the cosine between their normals, at least.
_ROUNDS = 12  # Of closest points; half of them without the identity.
_SURFACE_NOISE = 1e-3  # Metres that two faces may be apart, against identity coefficients of about 1.
# Metres of error that a coefficient of 1 may be worth: what geometry leaves open stays near 0, or near the source's jaw.
_EXPRESSION_PRIOR, _JAW_PRIOR = 2e-5, 2e-3
_STEPS = 3  # Since the jaw turns, though not far from the source's, at which the target is linearised.
_CHUNK = 32  # Frames at once: one compilation.


@dataclasses.dataclass(frozen=True)
class Fit:
  """How well a motion was carried over; lengths in millimetres, over all points of the face and all frames.

  Attributes:
    moved: root mean square of how far the source's points move from rest.
    error: root mean square of how far the target's points are from where they should be.
    worst: the 95th percentile of that, over points and frames.
  """

  moved: float
  error: float
  worst: float


class Retargeting:
  """From motions of one head to motions of another.

  Attributes:
    source, target: the heads.
    apart: root mean square in millimetres of the two faces at rest, laid over each other; 0 for one mesh.
    points: how many correspond.
  """

  def __init__(self, source: HeadModel, target: HeadModel):
    """Matches the heads.

    Raises:
      InputError: a head has no eyes or lips to begin from, or the faces do not come to lie on each other.
    """
    self.source, self.target = source, target
    places = _same_mesh(source, target) or _match(source, target)
    self.apart, self.points = 1e3 * places.apart, len(places.vertices)
    self._turn = places.rotation
    corners = source.faces[places.faces] if places.faces is not None else places.vertices[:, None]
    used, corners = np.unique(np.asarray(corners), return_inverse=True)
    self._fit = _make_fit(
        select_vertices(source, used), select_vertices(target, places.vertices), corners.reshape(len(places.vertices), -1),
        places.weights, places.scale * places.rotation,
    )
    weights = target.basis == "arkit"
    free = np.full(EXPRESSION_DIM + JAW_DIM, np.inf)
    self._low, self._high = -free, free.copy()
    if weights:
      self._low[:EXPRESSION_DIM], self._high[:EXPRESSION_DIM] = 0, 1
    # Expressions that the target lacks stay 0.
    count = min(EXPRESSION_DIM, target.num_expression)
    self._used = np.r_[:count, EXPRESSION_DIM : EXPRESSION_DIM + JAW_DIM]

  def convert(self, motion: Motion) -> tuple[Motion, Fit]:
    """A motion of the source's basis as one of the target's."""
    motion = np.asarray(motion, np.float32)
    outcome, distances, square, moved = [], [], 0.0, 0.0
    for start in range(0, len(motion), _CHUNK):
      chunk = motion[start : start + _CHUNK]
      padded = np.pad(chunk, ((0, _CHUNK - len(chunk)), (0, 0)), mode="edge")
      fitted, apart, far = self._convert_chunk(padded, len(chunk))
      outcome.append(fitted)
      distances.append(apart.ravel())
      square, moved = square + np.sum(apart**2), moved + np.sum(far**2)
    number = len(motion) * self.points
    worst = np.percentile(np.concatenate(distances), 95)
    fit = Fit(*(1e3 * float(x) for x in (np.sqrt(moved / number), np.sqrt(square / number), worst)))
    return np.concatenate(outcome).astype(np.float32), fit

  def _convert_chunk(self, motion, count: int):
    """The first `count` frames of a chunk; how far each point is from where it should be, and from rest."""
    goal = self._fit.goal(motion)
    prior = np.concatenate([np.zeros((len(motion), EXPRESSION_DIM)), motion[:, MOTION_GROUPS["jaw"]] @ self._turn.T], axis=1)
    ridge = np.repeat([_EXPRESSION_PRIOR, _JAW_PRIOR], [EXPRESSION_DIM, JAW_DIM])[self._used] * np.sqrt(self.points)
    low, high = self._low[self._used], self._high[self._used]
    estimate = np.clip(prior, self._low, self._high)
    jacobian, normal = self._fit.linearise(estimate)
    normal = np.asarray(normal, np.float64)[:, self._used][:, :, self._used] + np.diag(ridge**2)
    for _ in range(_STEPS):
      right = np.asarray(self._fit.slope(estimate, goal, jacobian), np.float64)[:, self._used]
      right += ridge**2 * (prior - estimate)[:, self._used]
      for frame in range(count):
        a, x = normal[frame], estimate[frame, self._used]
        estimate[frame, self._used] = _solve(a, right[frame] + a @ x, low, high, x)
    apart = np.asarray(self._fit.distances(estimate, goal))
    head = motion[:, MOTION_GROUPS["pose"]] @ self._turn.T
    return np.concatenate([estimate, head], axis=1)[:count], apart[:count], np.linalg.norm(goal, axis=-1)[:count]


def _solve(
    normal: Float[np.ndarray, "n n"],
    right: Float[np.ndarray, "n"],
    low: Float[np.ndarray, "n"],
    high: Float[np.ndarray, "n"],
    start: Float[np.ndarray, "n"],
) -> Float[np.ndarray, "n"]:
  """x within bounds that minimises x·Nx/2 - x·r, from a guess within them.

  Newton's steps in what is not held at a bound (Bertsekas 1982) find it in a few solutions, a twentieth of SciPy's time; where
  they do not end, SciPy does it.
  """
  x = start
  for _ in range(20):
    slope = normal @ x - right
    free = ~(((x <= low) & (slope > 0)) | ((x >= high) & (slope < 0)))
    step = np.zeros_like(x)
    step[free] = np.linalg.solve(normal[np.ix_(free, free)], -slope[free])
    x, before = np.clip(x + step, low, high), x
    if np.abs(x - before).max() < 1e-9:
      return x
  factor = np.linalg.cholesky(normal)
  bounded = scipy.optimize.lsq_linear(factor.T, np.linalg.solve(factor, right), (low, high), method="bvls").x
  return np.clip(bounded, low, high)  # It may be beyond by rounding.


@dataclasses.dataclass(frozen=True)
class _Functions:
  """The compiled parts of a fit, for `_CHUNK` frames.

  Attributes:
    goal: motion of the source -> how the target's points should move from rest, (B, P, 3).
    linearise: estimate (B, 53) -> how the points move with it, (B, 3 P, 53), and that times itself, (B, 53, 53).
    slope: estimate, goal and the former -> the right side of the normal equations of a step to the best estimate, (B, 53).
    distances: estimate and goal -> (B, P) metres.
  """

  goal: Callable
  linearise: Callable
  slope: Callable
  distances: Callable


def _make_fit(source: HeadModel, target: HeadModel, corners, weights, linear) -> _Functions:
  corners, weights, linear = jnp.asarray(corners), jnp.asarray(weights, jnp.float32), jnp.asarray(linear, jnp.float32)
  zero = jnp.zeros(MOTION_GROUPS["pose"].stop)

  def places(motion):
    straight = motion.at[MOTION_GROUPS["pose"]].set(0)  # The head's rotation is carried over, not fitted.
    vertices = head_vertices(source, shape=jnp.zeros(1), **pose_for(straight))
    return jnp.einsum("pc,pcx->px", weights, vertices[corners])

  def points(face):
    motion = zero.at[: EXPRESSION_DIM + JAW_DIM].set(face)
    return head_vertices(target, shape=jnp.zeros(1), **pose_for(motion))[: len(corners)]

  rest = points(zero[: EXPRESSION_DIM + JAW_DIM])

  product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

  def linearise(face):
    jacobian = jax.jacfwd(points)(face).reshape(-1, len(face))
    return jacobian, product(jacobian.T, jacobian)

  one = lambda function: jax.jit(jax.vmap(function))
  as_float = lambda function: lambda *x: function(*(jnp.asarray(a, jnp.float32) for a in x))
  return _Functions(
      goal=as_float(one(lambda motion: (places(motion) - places(zero)) @ linear.T)),
      linearise=as_float(one(linearise)),
      slope=as_float(one(lambda face, goal, jacobian: product(jacobian.T, (goal - points(face) + rest).reshape(-1)))),
      distances=as_float(one(lambda face, goal: jnp.linalg.norm(points(face) - rest - goal, axis=-1))),
  )


# --- Correspondences


@dataclasses.dataclass(frozen=True)
class _Places:
  """Where points of the target lie on the source.

  Attributes:
    vertices: of the target.
    faces: the source's triangle for each; None where it is the vertex of the same number.
    weights: barycentric, (P, 3), or (P, 1).
    rotation, scale: from the source's axes to the target's.
    apart: root mean square of the distances, in metres.
  """

  vertices: Int[np.ndarray, "P"]
  faces: Int[np.ndarray, "P"] | None
  weights: Float[np.ndarray, "P c"]
  rotation: Float[np.ndarray, "3 3"]
  scale: float
  apart: float


def _same_mesh(source: HeadModel, target: HeadModel) -> _Places | None:
  if source.faces.shape != target.faces.shape or np.any(np.asarray(source.faces) != np.asarray(target.faces)):
    return None
  chosen = _thin(_face_vertices(target, np.asarray(target.v_template), _landmarks(target)))
  return _Places(chosen, None, np.ones((len(chosen), 1)), np.eye(3), 1.0, 0.0)


def _match(source: HeadModel, target: HeadModel) -> _Places:
  """Lays the source's face over the target's."""
  here, there = _landmarks(target), _landmarks(source)
  goal, vertices = np.asarray(target.v_template, np.float64), np.asarray(source.v_template, np.float64)
  scale, rotation, shift = _similarity(there, here)
  chosen = _thin(_face_vertices(target, goal, here))
  normals = _normals(goal, np.asarray(target.faces))[chosen]
  eyeballs = _eyeballs(target)[chosen]
  faces = np.asarray(source.faces)
  on_eyes = _eyeballs(source)[faces].all(axis=1)
  shape_directions = np.asarray(source.shape_directions, np.float64)
  identity = np.zeros(shape_directions.shape[-1])
  for turn in range(_ROUNDS):
    posed = scale * (vertices + shape_directions @ identity) @ rotation.T + shift
    place, weights, distances = np.zeros(len(chosen), int), np.zeros((len(chosen), 3)), np.zeros(len(chosen))
    for kind in (False, True):  # Skin on skin, eyes on eyes.
      mine, theirs = eyeballs == kind, np.flatnonzero(on_eyes == kind)
      if mine.any() and len(theirs):
        found = closest_points(goal[chosen[mine]], posed, faces[theirs])
        place[mine], weights[mine], distances[mine] = theirs[found[0]], found[1], found[2]
      elif mine.any():
        distances[mine] = np.inf
    facing = np.sum(normals * _face_normals(posed, faces)[place], axis=1)
    good = (distances < _FAR) & (facing > _FACING)
    if good.sum() < 50:
      raise InputError("heads", "", f"{good.sum()} points of the one's face that lie on the other's", "two heads in metres with faces alike")
    corners = faces[place[good]]
    local = np.einsum("pc,pcx->px", weights[good], (vertices + shape_directions @ identity)[corners])
    if turn + 1 == _ROUNDS:
      break
    scale, rotation, shift = _similarity(local, goal[chosen[good]])
    if turn >= _ROUNDS // 2 and len(identity):
      basis = scale * np.einsum("pc,pcxs,yx->pys", weights[good], shape_directions[corners], rotation).reshape(-1, len(identity))
      base = np.einsum("pc,pcx->px", weights[good], vertices[corners])
      rest = (goal[chosen[good]] - (scale * base @ rotation.T + shift)).ravel()
      identity = np.linalg.solve(basis.T @ basis + _SURFACE_NOISE**2 * np.eye(len(identity)), basis.T @ rest)
  apart = float(np.sqrt(np.mean(distances[good] ** 2)))
  return _Places(chosen[good], place[good], weights[good], rotation, float(scale), apart)


def _landmarks(head: HeadModel) -> Float[np.ndarray, "3 3"]:
  """The eyes' joints and the middle of the lips."""
  lips = find_lips(head)
  vertices = np.asarray(head.v_template, np.float64)
  eyes = (np.asarray(head.joint_regressor, np.float64) @ vertices)[list(_EYES)]
  if lips is None or not np.linalg.norm(eyes[0] - eyes[1]) > 0.01:
    raise InputError("heads", "", "a head without lips or eyes", "heads with FLAME's joints and a mouth")
  return np.stack([*eyes, vertices[lips].mean(axis=0)])


def _eyeballs(head: HeadModel) -> Bool[np.ndarray, "V"]:
  return np.asarray(head.weights)[:, list(_EYES)].sum(axis=1) > 0.5


def _face_vertices(
    head: HeadModel, vertices: Float[np.ndarray, "V 3"], landmarks: Float[np.ndarray, "3 3"]
) -> Int[np.ndarray, "n"]:
  """Skin and eyes of the front of the face, on the surface: what is inside the mouth would meet the other's lips."""
  eyes, lips = landmarks[:2].mean(axis=0), landmarks[2]
  unit = np.linalg.norm(landmarks[0] - landmarks[1])
  near = np.linalg.norm(vertices - (eyes + lips) / 2, axis=1) < _FACE_RADIUS * unit
  near &= vertices[:, 2] > eyes[2] - _FACE_DEPTH * unit
  inside = [name for name in ("mouth_interior", "teeth", "teeth_upper", "teeth_lower", "tongue", "lashes") if name in head.region_names]
  if inside:
    rows = [head.region_names.index(name) for name in inside]
    hidden = np.any(np.asarray(head.region_masks)[rows], axis=0)
    near[np.unique(np.asarray(head.faces)[hidden])] = False
  return np.flatnonzero(near)


def _thin(chosen: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
  return chosen[:: -(-len(chosen) // _MOST_POINTS)]


def _similarity(source: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "n 3"]):
  """Scale, rotation and shift that take points to points in least squares (Umeyama 1991)."""
  a, b = source - source.mean(axis=0), target - target.mean(axis=0)
  u, s, vt = np.linalg.svd(b.T @ a)
  flip = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
  rotation = u @ np.diag(flip) @ vt
  scale = float((s * flip).sum() / (a**2).sum())
  return scale, rotation, target.mean(axis=0) - scale * rotation @ source.mean(axis=0)


def _face_normals(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "F 3"]:
  a, b, c = np.moveaxis(vertices[faces], 1, 0)
  normals = np.cross(b - a, c - a)
  return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _normals(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "V 3"]:
  sums = np.zeros_like(vertices)
  np.add.at(sums, faces, _face_normals(vertices, faces)[:, None])
  return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def closest_points(
    points: Float[np.ndarray, "P 3"], vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], *, near: int = 12
) -> tuple[Int[np.ndarray, "P"], Float[np.ndarray, "P 3"], Float[np.ndarray, "P"]]:
  """The closest points of a mesh, of the triangles whose middles are nearest.

  Args:
    points: anywhere.
    vertices, faces: the mesh.
    near: how many triangles are looked at for each point.

  Returns:
    The triangle, barycentric weights in it, and the distance, of each point.
  """
  corners = vertices[faces]
  near = min(near, len(faces))
  _, candidates = scipy.spatial.KDTree(corners.mean(axis=1)).query(points, k=near)
  candidates = candidates.reshape(len(points), near)
  weights = _closest_in_triangle(points[:, None], corners[candidates])
  distances = np.linalg.norm(np.einsum("pkc,pkcx->pkx", weights, corners[candidates]) - points[:, None], axis=-1)
  best = distances.argmin(axis=1)
  rows = np.arange(len(points))
  return candidates[rows, best], weights[rows, best], distances[rows, best]


def _closest_in_triangle(
    point: Float[np.ndarray, "*p 3"], triangle: Float[np.ndarray, "*b 3 3"]
) -> Float[np.ndarray, "*b 3"]:
  """Barycentric weights of a triangle's closest point: the projection if it is inside, else the best of the three edges."""
  a, edges = triangle[..., 0, :], triangle[..., 1:, :] - triangle[..., :1, :]
  gram = edges @ np.swapaxes(edges, -1, -2) + 1e-18 * np.eye(2)
  inner = np.linalg.solve(gram, np.einsum("...ex,...x->...e", edges, point - a)[..., None])[..., 0]
  options = [np.concatenate([1 - inner.sum(axis=-1, keepdims=True), inner], axis=-1)]
  for first, second in ((0, 1), (1, 2), (2, 0)):
    along = triangle[..., second, :] - triangle[..., first, :]
    t = np.sum((point - triangle[..., first, :]) * along, axis=-1) / np.maximum(np.sum(along**2, axis=-1), 1e-18)
    t = np.clip(t, 0, 1)[..., None]
    options.append((1 - t) * np.eye(3)[first] + t * np.eye(3)[second])
  distance = [np.linalg.norm(np.einsum("...c,...cx->...x", option, triangle) - point, axis=-1) for option in options]
  distance[0] = np.where(options[0].min(axis=-1) < 0, np.inf, distance[0])
  best = np.argmin(distance, axis=0)
  return np.take_along_axis(np.stack(options), best[None, ..., None], axis=0)[0]
