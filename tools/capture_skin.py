"""Paints the captured person: skin, eyes, teeth and tongue as procedural textures. Linear RGB, row 0 at v = 0.

The skin is painted in three dimensions (every texel knows its place on the person's face at rest), so that noise, freckles and beard run
over the texture's seams without a mark.
"""

import dataclasses

from capture_looks import Look
import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree


@dataclasses.dataclass(frozen=True)
class Landmarks:
  """Places on a face at rest, metres: eye centres, nose tip, middle of the lips, corner of the mouth, chin."""

  eye: np.ndarray  # the left one
  nose: np.ndarray
  mouth: np.ndarray
  mouth_half_width: float
  chin: np.ndarray


def find_landmarks(head, rest: np.ndarray) -> Landmarks:
  """Landmarks of a rest shape (V, 3)."""
  names = [str(n) for n in head["region_names"]]
  vertices = lambda region: rest[np.unique(head["f"][head["face_region"] == names.index(region)])]
  skin, lips, eye = vertices("skin"), vertices("lips"), vertices("eye_left")
  middle = skin[np.abs(skin[:, 0]) < 0.004]
  mouth = rest[head["lip_vertices"]].mean(0)
  below = middle[(middle[:, 1] < mouth[1] - 0.02) & (middle[:, 2] > mouth[2] - 0.04)]
  chin = below[np.argmax(below[:, 2] - 0.5 * np.abs(below[:, 1] - mouth[1] + 0.038))]
  return Landmarks((eye.min(0) + eye.max(0)) / 2, middle[np.argmax(middle[:, 2])], mouth, lips[:, 0].max(), chin)


def noise(points: np.ndarray, scale: float, seed: int, octaves: int = 1) -> np.ndarray:
  """Smooth value noise in about [-1, 1] at points (n, 3); `scale` is the grain of the first octave in metres."""
  total, amplitude = np.zeros(len(points)), 1.0
  for octave in range(octaves):
    lattice = np.random.default_rng([seed, octave]).uniform(-1, 1, (64, 64, 64))
    total += amplitude * ndimage.map_coordinates(lattice, (points / scale * 2**octave).T % 64, order=1, mode="grid-wrap")
    amplitude *= 0.55
  return total


def texel_corners(uv: np.ndarray, triangles_uv: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Triangle (size, size) and barycentric weights (size, size, 3) of every texel; unused texels copy the nearest."""
  triangle = np.full((size, size), -1)
  weights = np.zeros((size, size, 3))
  for index, (a, b, c) in enumerate(uv[triangles_uv] * size - 0.5):
    low = np.maximum(np.floor(np.minimum(np.minimum(a, b), c)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(np.maximum(np.maximum(a, b), c)).astype(int) + 2, size)
    x, y = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]))
    area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
    if abs(area) < 1e-9 or not x.size:
      continue
    wb = ((x - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (y - a[1])) / area
    wc = ((b[0] - a[0]) * (y - a[1]) - (x - a[0]) * (b[1] - a[1])) / area
    w = np.stack([1 - wb - wc, wb, wc], -1)
    # A little beyond the edge too, for filtering, where no triangle owns the texel.
    fresh = (w.min(-1) >= 0) | ((w.min(-1) > -0.3) & (triangle[y, x] < 0))
    triangle[y[fresh], x[fresh]] = index
    weights[y[fresh], x[fresh]] = np.clip(w[fresh], 0, 1)
  nearest = tuple(ndimage.distance_transform_edt(triangle < 0, return_distances=False, return_indices=True))
  return triangle[nearest], weights[nearest]


def _bump(points, centre, radius) -> np.ndarray:
  """Gaussian around a place, mirrored to both sides: (n, 3) -> (n,)."""
  mirrored = np.stack([np.abs(points[:, 0]), points[:, 1], points[:, 2]], -1)
  return np.exp(-(((mirrored - np.abs(centre) * [1, 0, 0] - np.asarray(centre) * [0, 1, 1]) / radius) ** 2).sum(1))


def _ramp(x, low, high):
  t = np.clip((x - low) / (high - low), 0, 1)
  return t * t * (3 - 2 * t)


def brow_curve(marks: Landmarks) -> np.ndarray:
  """(5, 2) x, y of the left eyebrow's middle line, from the nose outwards."""
  ex, ey, _ = marks.eye
  return np.array([[ex - 0.0185, ey + 0.0155], [ex - 0.010, ey + 0.0185], [ex + 0.002, ey + 0.0210],
                   [ex + 0.013, ey + 0.0205], [ex + 0.0225, ey + 0.0140]])


def paint_skin(places: np.ndarray, marks: Landmarks, lips: np.ndarray, inside: np.ndarray, scalp: np.ndarray,
               look: Look) -> tuple[np.ndarray, np.ndarray]:
  """Albedo (n, 3) and roughness (n,) of the skin.

  Args:
    places: (n, 3) on the face at rest. lips, inside: (n,) masks of lips and mouth interior, 0..1.
    scalp: (n,) height above the hairline, metres.
  """
  p, m = places, marks
  x, y = np.abs(p[:, 0]), p[:, 1]
  # Two pigments: melanin browns, blood reddens. Their densities vary over the face.
  melanin = 0.10 * noise(p, 0.030, 1, 3) + 0.03 * noise(p, 0.006, 2, 2)
  blood = 0.20 * noise(p, 0.020, 3, 3) + 0.06 * noise(p, 0.004, 4, 2)
  nose_side = m.nose + np.array([0.012, 0.0, -0.012])
  blood += 0.55 * _bump(p, m.eye + [0.012, -0.040, 0.0], [0.020, 0.016, 0.05])  # cheeks
  blood += 0.60 * _bump(p, m.nose, [0.014, 0.012, 0.014]) + 0.45 * _bump(p, nose_side, [0.008, 0.009, 0.012])
  blood += 0.30 * _bump(p, m.chin, [0.016, 0.010, 0.02]) + 0.5 * _ramp(x, 0.068, 0.080) * _ramp(y, -0.04, -0.01)  # chin, ears
  blood += 0.35 * _bump(p, m.mouth, [0.034, 0.014, 0.03])
  melanin += 0.25 * _bump(p, m.eye + [-0.004, -0.013, 0.015], [0.018, 0.007, 0.03])  # under the eyes
  melanin += 0.16 * _bump(p, m.eye + [0.0, 0.009, 0.012], [0.020, 0.006, 0.03])  # lids
  blood += 0.35 * _bump(p, m.eye + [0.0, 0.002, 0.013], [0.019, 0.009, 0.03])
  melanin -= 0.10 * _bump(p, np.array([0.0, m.eye[1] + 0.045, m.eye[2]]), [0.04, 0.025, 0.05])
  # Freckles over nose and cheeks, a few moles anywhere, pores that darken where the skin is thick.
  where = _bump(p, m.eye + [0.0, -0.028, 0.01], [0.040, 0.020, 0.05])
  melanin += 0.45 * look.freckles * where * _ramp(noise(p, 0.0022, 5, 2), 0.62, 0.95)
  melanin += 0.25 * look.freckles * where * _ramp(noise(p, 0.0014, 6), 0.55, 0.9)
  melanin += 1.1 * _spots(p, m, count=look.moles, radius=0.0009, seed=7)
  thick = _bump(p, m.nose + [0.0, 0.01, -0.01], [0.035, 0.03, 0.04])
  blood += 0.25 * thick * _ramp(noise(p, 0.0011, 8), 0.3, 0.9)
  albedo = np.array(look.skin) * np.exp(-np.outer(melanin, look.melanin)) * np.exp(-np.outer(blood, look.blood))

  # The beard's shadow: moustache, chin, jaw and throat, grey-brown, made of dots.
  jaw_line = m.mouth[1] + np.interp(x, [0.0, 0.024, 0.034, 0.058, 0.066, 0.075], [0.02, 0.016, -0.004, 0.012, 0.042, 0.06])
  beard = _ramp(jaw_line - y, 0.0, 0.010) * _ramp(y, m.chin[1] - 0.050, m.chin[1] - 0.015) * _ramp(p[:, 2], -0.005, 0.012)
  beard *= 1 - 0.85 * _ramp(lips, 0.02, 0.3)
  beard *= 1 - 0.6 * _bump(p, m.mouth + [0.016, -0.016, 0.0], [0.009, 0.006, 0.05])  # beside the soul patch
  dots = 0.55 + 0.45 * _ramp(noise(p, 0.0013, 9, 2), -0.3, 0.6)
  beard *= look.stubble * dots * (0.8 + 0.3 * noise(p, 0.01, 10))
  albedo *= np.exp(-np.outer(np.clip(beard, 0, 1), [0.85, 0.72, 0.58]))
  # Brows: the shadow under the hairs.
  curve = brow_curve(m)
  fine = np.stack([np.interp(np.linspace(0, 4, 60), np.arange(5), curve[:, k]) for k in range(2)], -1)
  distance, at = cKDTree(fine).query(np.stack([x, y], -1))
  half = np.interp(at / 59, [0, 0.15, 0.6, 1.0], [0.0030, 0.0042, 0.0036, 0.0012]) * look.brow_width
  brow = _ramp(half * 1.25 - distance, 0.0, 0.0022) * _ramp(p[:, 2], m.eye[2] - 0.02, m.eye[2])
  albedo *= np.exp(-np.outer(0.85 * brow * (0.8 + 0.3 * noise(p, 0.0015, 11)), [1.0, 1.15, 1.25]))
  # Lips: fine upright lines, darker where they meet.
  lines = noise(p * [1, 0.25, 0.4], 0.0011, 12, 2)
  seam = np.exp(-(((y - m.mouth[1]) / 0.0022) ** 2))
  lip_colour = np.array(look.lips) * (1 + 0.10 * lines[:, None]) * (1 - 0.35 * seam[:, None])
  albedo = _mix(albedo, lip_colour, 0.85 * _ramp(lips, 0.15, 0.75))
  albedo = _mix(albedo, np.array([0.26, 0.085, 0.075]) * (1 + 0.15 * noise(p, 0.006, 13, 3)[:, None]), _ramp(inside, 0.3, 0.7))
  # Under the hair; the hairline is ragged.
  under = _ramp(scalp + 0.004 * noise(p, 0.006, 14, 2), -0.003, 0.008)
  albedo = _mix(albedo, np.array(look.scalp) * (1 + 0.3 * noise(p, 0.002, 15)[:, None]), 0.92 * under)

  rough = 0.50 + 0.05 * noise(p, 0.006, 16, 3) - 0.10 * thick
  rough -= 0.08 * _bump(p, np.array([0.0, m.eye[1] + 0.045, m.eye[2]]), [0.03, 0.02, 0.05]) + 0.12 * _ramp(lips, 0.3, 0.7)
  rough += 0.25 * under - 0.2 * _ramp(inside, 0.3, 0.7)
  return np.clip(albedo, 0.01, 0.9), np.clip(rough, 0.22, 0.85)


def _mix(a, b, share):
  return a + (b - a) * share[:, None]


def _spots(points, marks, count, radius, seed) -> np.ndarray:
  """A few round moles at random places of the front of the face and the throat."""
  rng = np.random.default_rng(seed)
  front = points[(points[:, 2] > 0.03) & (points[:, 1] > marks.chin[1] - 0.06)]
  centres = front[rng.integers(len(front), size=count)]
  size = radius * rng.uniform(0.5, 1.3, count)
  distance, which = cKDTree(centres).query(points)
  return _ramp(1.5 - distance / size[which], 0.0, 1.0)


def paint_eye(size: int, seed: int, look: Look) -> np.ndarray:
  """(size, size, 3) albedo of an eyeball as the azimuthal equidistant map of the sphere around the optical axis."""
  rng = np.random.default_rng(seed)
  y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
  angle, turn = np.degrees(np.hypot(x, y) * np.pi), np.arctan2(y, x)  # 0..180 degrees from the axis
  ring = np.stack([np.cos(turn), np.sin(turn), 0 * turn], -1).reshape(-1, 3)
  fibres = noise(ring * 1.0 + (angle.ravel() / 90)[:, None] * [0, 0, 1], 0.055, seed + 1, 3).reshape(size, size)
  coarse = noise(ring, 0.4, seed + 2, 2).reshape(size, size)
  # Iris: one colour round the pupil, another outside, a dark limbal ring.
  t = np.clip((angle - 9.5) / (22.5 - 9.5), 0, 1)[..., None]
  iris = (1 - t) * np.array(look.iris[0]) + t * np.array(look.iris[1])
  iris = iris * (1 + 0.55 * fibres[..., None]) * (1 + 0.2 * coarse[..., None])
  iris *= 1 - 0.75 * _ramp(angle, 19.5, 22.8)[..., None]
  veins = _ramp(np.abs(noise(np.stack([x, y, 0 * x], -1).reshape(-1, 3), 0.05, seed + 3, 3)).reshape(size, size), 0.0, 0.05)
  pink = _ramp(angle, 30, 62)
  sclera = np.array(look.sclera) * (1 - np.multiply.outer(0.20 * (1 - veins) * pink + 0.16 * pink, [0.2, 0.9, 0.9]))
  eye = sclera + (iris - sclera) * (1 - _ramp(angle, 22.0, 24.5))[..., None]
  eye *= _ramp(angle, 9.0, 10.5)[..., None] * 0.985 + 0.015
  eye *= 1 + 0.01 * rng.standard_normal((size, size, 1))
  return np.clip(eye, 0.004, 0.9)
