"""The captured person as a mitsuba scene that is built once and posed per frame.

Geometry is exactly the head's skinned mesh, refined once by Loop's scheme (a linear map of the posed vertices), plus ribbons that ride on its
triangles; so whatever moves in the video moves by the tracked parameters.
"""

import capture_hair as hair
from capture_looks import Look
import capture_skin as skin
import flame_numpy as flame
import mitsuba as mi
import numpy as np
import scipy.sparse as sparse
from make_head import scalp_height
from scipy.spatial import cKDTree

_TEXTURE = 1024
EXPOSURE = 1.1


def refine(triangles: np.ndarray, count: int) -> tuple[sparse.csr_matrix, np.ndarray]:
  """One step of Loop subdivision: matrix (V + E, V) from old to new vertices, and triangles (4F, 3)."""
  corners = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
  opposite = np.concatenate([triangles[:, 2], triangles[:, 0], triangles[:, 1]])
  edges, which, uses = np.unique(np.sort(corners, 1), axis=0, return_inverse=True, return_counts=True)
  which = which.reshape(-1)
  rim = uses == 1
  rows, columns, values = [], [], []

  def add(r, c, v):
    rows.append(np.asarray(r)), columns.append(np.asarray(c)), values.append(np.broadcast_to(v, np.shape(r)))

  new = count + np.arange(len(edges))
  for k in range(2):
    add(new, edges[:, k], np.where(rim, 0.5, 0.375))
  inner = ~rim[which]
  add(new[which[inner]], opposite[inner], 0.125)
  # Old vertices: a rim vertex looks along the rim only.
  on_rim = np.zeros(count, bool)
  on_rim[edges[rim]] = True
  valence = np.bincount(edges.ravel(), minlength=count)
  beta = np.where(valence == 3, 3 / 16, 3 / (8 * np.maximum(valence, 1)))
  rim_valence = np.bincount(edges[rim].ravel(), minlength=count)
  own = np.where(on_rim, 1 - 0.125 * rim_valence, 1 - valence * beta)
  add(np.arange(count), np.arange(count), own)
  for a, b in ((0, 1), (1, 0)):
    smooth = ~on_rim[edges[:, a]]
    add(edges[smooth, a], edges[smooth, b], beta[edges[smooth, a]])
    add(edges[rim, a], edges[rim, b], 0.125)
  matrix = sparse.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
                             shape=(count + len(edges), count))
  ab, bc, ca = (count + x for x in np.split(which, 3))
  a, b, c = triangles.T
  fine = np.concatenate([np.stack(t, -1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
  return matrix, fine


def midpoints(triangles: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The same split for texture coordinates, without smoothing: values (V + E, D), triangles (4F, 3) in refine's order."""
  corners = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
  edges, which = np.unique(np.sort(corners, 1), axis=0, return_inverse=True)
  ab, bc, ca = (len(values) + x for x in np.split(which.reshape(-1), 3))
  a, b, c = triangles.T
  fine = np.concatenate([np.stack(t, -1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
  return np.concatenate([values, values[edges].mean(1)]), fine


class Piece:
  """A mesh of the scene: some regions of the head, refined or not, with texture seams resolved."""

  def __init__(self, head, regions, refined: bool):
    names = [str(n) for n in head["region_names"]]
    faces = np.isin(head["face_region"], [names.index(r) for r in regions])
    used, triangles = np.unique(head["f"][faces], return_inverse=True)
    uv_used, uv_triangles = np.unique(head["ft"][faces], return_inverse=True)
    triangles, uv_triangles, uv = triangles.reshape(-1, 3), uv_triangles.reshape(-1, 3), head["vt"][uv_used]
    self.used = used
    self.matrix = sparse.identity(len(used), format="csr")
    if refined:
      self.matrix, triangles_fine = refine(triangles, len(used))
      uv, uv_triangles = midpoints(uv_triangles, uv)
      triangles = triangles_fine
    self.triangles = triangles
    # One mesh vertex per (place, texture coordinate).
    pairs, faces = np.unique(np.stack([triangles.ravel(), uv_triangles.ravel()], -1), axis=0, return_inverse=True)
    self.vertex_of, self.uv, self.faces = pairs[:, 0], uv[pairs[:, 1]], faces.reshape(-1, 3)

  def place(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mesh vertices and normals (n, 3) for posed head vertices."""
    points = self.matrix @ vertices[self.used]
    return points[self.vertex_of], flame.normals(points, self.triangles)[self.vertex_of]


def _texture(array: np.ndarray) -> dict:
  array = array if array.ndim == 3 else array[..., None]
  return {"type": "bitmap", "bitmap": mi.Bitmap(np.ascontiguousarray(array, np.float32)), "raw": True,
          "wrap_mode": "clamp"}


def _mesh(name: str, faces: np.ndarray, count: int, bsdf: dict, uv=None, colour=None) -> "mi.Mesh":
  properties = mi.Properties()
  properties["bsdf"] = mi.load_dict(bsdf)
  mesh = mi.Mesh(name, count, len(faces), has_vertex_normals=True, has_vertex_texcoords=uv is not None, props=properties)
  if colour is not None:
    mesh.add_attribute("vertex_color", 3, colour.astype(np.float32).ravel())
  values = mi.traverse(mesh)
  values["faces"] = mi.UInt32(faces.astype(np.uint32).ravel())
  if uv is not None:
    values["vertex_texcoords"] = mi.Float(uv.astype(np.float32).ravel())
  values.update()
  return mesh


class Performer:
  """The person: textures, hair and meshes, ready to be posed.

  Args:
    head: from flame_numpy.load. shape: (S,) the person. lips, inside: (H, W) MakeHuman's UV masks (row 0 is v = 1).
    look: the person's colours and hair.
  """

  def __init__(self, head, shape: np.ndarray, lips: np.ndarray, inside: np.ndarray, look: Look, *, seed=3):
    self.head, self.shape = head, shape
    rest = flame.vertices(head, shape)
    normals = flame.normals(rest, head["f"])
    marks = skin.find_landmarks(head, rest)
    self.pieces = {
        "skin": Piece(head, ["skin", "lips", "mouth_interior", "scalp", "neck"], True),
        "teeth": Piece(head, ["teeth"], True),
        "tongue": Piece(head, ["tongue"], True),
        "eye_left": Piece(head, ["eye_left"], False),
        "eye_right": Piece(head, ["eye_right"], False),
    }
    # Hair rides on the unrefined mesh.
    names = [str(n) for n in head["region_names"]]
    region = lambda *r: head["f"][np.isin(head["face_region"], [names.index(x) for x in r])]
    tree = cKDTree(rest)
    on_template = lambda p: p + (head["v_template"] - rest)[tree.query(p)[1]]
    hairline = hair.long_hairline if look.hair == "long" else lambda height, places: height
    height = lambda p: hairline(scalp_height(on_template(p)), p)
    skin_triangles = region("skin", "scalp", "neck")
    above = skin_triangles[height(rest[skin_triangles].mean(1)) > -0.012]
    self.strands = {
        "hair": hair.short_hair(rest, normals, above, height, look, seed) if look.hair == "short" else
                hair.long_hair(rest, skin_triangles, np.unique(region("scalp")), height, look, seed),
        "brows": hair.brows(rest, normals, region("skin"), marks, look, seed + 1),
    }
    self.lashes = hair.lashes(head, rest, look, seed + 2)
    self._paint(rest, marks, lips, inside, look, hairline, seed)

  def _paint(self, rest, marks, lips, inside, look, hairline, seed):
    head = self.head
    names = [str(n) for n in head["region_names"]]
    own = np.isin(head["face_region"], [names.index(r) for r in ("skin", "lips", "mouth_interior", "scalp", "neck")])
    triangles = head["f"][own]
    triangle, weights = skin.texel_corners(head["vt"], head["ft"][own], _TEXTURE)
    at = lambda values: np.einsum("yxk,yxkd->yxd", weights, values[triangles[triangle]]).reshape(-1, 3)
    places = at(rest)
    to_texture = lambda mask: _resize(mask[::-1], _TEXTURE).ravel()
    albedo, rough = skin.paint_skin(places, marks, to_texture(lips), to_texture(inside),
                                    hairline(scalp_height(at(head["v_template"])), places), look)
    square = lambda a: a.reshape(_TEXTURE, _TEXTURE, -1)
    self.textures = {"albedo": square(albedo), "rough": square(rough),
                     "eye": skin.paint_eye(512, seed, look)}

  def meshes(self) -> dict:
    """Mitsuba objects by name; call `pose` before rendering."""
    t = self.textures
    rough_skin = {"type": "principled", "base_color": _texture(t["albedo"]), "roughness": _texture(t["rough"]), "specular": 0.42,
                  "sheen": 0.25, "sheen_tint": 0.6}
    two = lambda bsdf: {"type": "twosided", "bsdf": bsdf}
    plain = lambda rgb, rough, specular=0.5: {"type": "principled", "base_color": {"type": "rgb", "value": list(rgb)},
                                              "roughness": rough, "specular": specular}
    fibre = two({"type": "principled", "base_color": {"type": "mesh_attribute", "name": "vertex_color"}, "roughness": 0.5,
                 "specular": 0.22})
    eye = {"type": "principled", "base_color": _texture(t["eye"]), "roughness": 0.05, "specular": 0.7, "clearcoat": 0.3,
           "clearcoat_gloss": 0.98}
    bsdfs = {"skin": two(rough_skin), "teeth": None, "tongue": two(plain([0.42, 0.15, 0.14], 0.38)),
             "eye_left": eye, "eye_right": eye}
    objects = {}
    for name, piece in self.pieces.items():
      uv, colour, bsdf = piece.uv, None, bsdfs[name]
      if name.startswith("eye"):
        uv = (uv - [1.75 if name == "eye_left" else 1.25, 0.75]) / 0.48 + 0.5
      if name == "teeth":
        colour = _teeth_colour(piece.uv)
        bsdf = two({"type": "principled", "base_color": {"type": "mesh_attribute", "name": "vertex_color"}, "roughness": 0.22,
                    "specular": 0.5})
      objects[name] = _mesh(name, piece.faces, len(piece.uv), bsdf, uv, colour)
    for name, strands in {**self.strands, "lashes": self.lashes}.items():
      n, k = strands.width.shape
      colour = np.repeat(strands.colour, 2 * k, axis=0)
      objects[name] = _mesh(name, hair.ribbon_faces(n, k), n * k * 2, fibre, colour=colour)
    return objects

  def buffers(self, **pose) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Vertices and normals of every mesh for one frame; `pose` as for flame_numpy.vertices."""
    vertices = flame.vertices(self.head, self.shape, **pose)
    out = {name: piece.place(vertices) for name, piece in self.pieces.items()}
    middle = self.strands["hair"].middle(vertices)
    for name, strands in {**self.strands, "lashes": self.lashes}.items():
      curves = strands.place(vertices)
      outward = curves - (middle if name == "hair" else middle - [0, 0.03, 0.1])
      out[name] = hair.ribbon_mesh(curves, strands.width, outward)
    return out


def _teeth_colour(uv: np.ndarray) -> np.ndarray:
  """Gums at the profile's gum ends, ivory between, darker where two teeth meet and towards the back."""
  row = np.where(uv[:, 1] > 0.27, uv[:, 1] - 0.3, uv[:, 1] - 0.1) / 0.15 * 6  # profile row 0..6
  column = (uv[:, 0] - 1.05) / 0.9 * 2 - 1
  gum = np.clip(1 - row, 0, 1) + np.clip(row - 4.6, 0, 1)
  groove = np.abs(np.round(column * 7) - column * 7) * 14 / 3 > 0.9
  colour = np.array([0.74, 0.69, 0.58]) * (1 - 0.35 * np.abs(column) ** 2)[:, None]
  colour = colour * np.where(groove, 1.0, 0.93)[:, None]
  return colour + (np.array([0.45, 0.17, 0.16]) - colour) * np.clip(gum, 0, 1)[:, None]


def _resize(image: np.ndarray, size: int) -> np.ndarray:
  """Box-averages a square image down to `size`."""
  factor = image.shape[0] // size
  return image.reshape(size, factor, size, factor).mean((1, 3))


class Studio:
  """One large soft light from the front left and a sky that fills (more lights cost more noise); fixed cameras."""

  def __init__(self, performer: Performer, cameras: list[np.ndarray], angle_x: list[float], size: int):
    self.performer, self.size = performer, size
    T = mi.ScalarTransform4f
    area = lambda at, width, radiance: {
        "type": "rectangle", "to_world": T().look_at(at, [0, 0.0, 0.03], [0, 1, 0.01]) @ T().scale(width),
        "emitter": {"type": "area", "radiance": {"type": "rgb", "value": radiance}}}
    scene = {"type": "scene", "fill": {"type": "constant", "radiance": {"type": "rgb", "value": [0.42, 0.43, 0.46]}},
             "key": area([0.66, 0.34, 1.20], 0.45, [8.2, 7.7, 7.1])}
    scene.update(performer.meshes())
    self.scene = mi.load_dict(scene)
    self.parameters = mi.traverse(self.scene)
    self.sensors = [mi.load_dict({
        "type": "perspective", "fov": float(np.degrees(fov)), "fov_axis": "x", "near_clip": 0.01, "far_clip": 10.0,
        # mitsuba cameras look along +z with x to the left: turn the OpenGL camera about its own y.
        "to_world": mi.ScalarTransform4f(matrix @ np.diag([-1.0, 1, -1, 1])),
        "film": {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgba", "component_format": "float32",
                 # A box filter: the denoiser needs noise that is independent between pixels.
                 "rfilter": {"type": "box"}},
        "sampler": {"type": "multijitter", "sample_count": 16}}) for matrix, fov in zip(cameras, angle_x)]
    # The path tracer's image and, of the same rays, what guides the denoiser.
    self.integrator = mi.load_dict({
        "type": "aov", "aovs": "albedo:albedo,normal:sh_normal",
        "image": {"type": "path", "max_depth": 2, "rr_depth": 5, "hide_emitters": True}})

  def pose(self, **pose):
    """Moves the performer; arguments as for flame_numpy.vertices (expression, neck, jaw)."""
    for name, (vertices, normals) in self.performer.buffers(**pose).items():
      self.parameters[f"{name}.vertex_positions"] = mi.Float(vertices.astype(np.float32).ravel())
      self.parameters[f"{name}.vertex_normals"] = mi.Float(normals.astype(np.float32).ravel())
    self.parameters.update()

  def render(self, camera: int, samples: int, seed: int, denoise: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """One frame of the posed performer over white.

    Args:
      samples: per pixel, a square number.

    Returns:
      linear RGB (H, W, 3) in [0, 1] and coverage (H, W).
    """
    sensor = self.sensors[camera]
    frame = np.array(mi.render(self.scene, sensor=sensor, integrator=self.integrator, spp=samples, seed=seed))
    alpha = np.clip(frame[..., 3:4], 0, 1)
    # Over white before denoising: the edge is then one image to the denoiser, not a noisy colour by a noisy coverage.
    colour = EXPOSURE * frame[..., :3] + 1 - alpha
    if denoise:
      import pyoidn

      guides = np.nan_to_num(frame[..., -6:])
      albedo = np.clip(guides[..., :3], 0, 1) + 1 - alpha
      colour = pyoidn.denoise(np.ascontiguousarray(colour, np.float32), hdr=True,
                              albedo=np.ascontiguousarray(np.clip(albedo, 0, 1), np.float32),
                              normal=np.ascontiguousarray(np.clip(guides[..., 3:], -1, 1), np.float32))
    return np.clip(colour, 0, 1), alpha[..., 0]


def to_srgb(linear: np.ndarray) -> np.ndarray:
  """Linear [0, 1] to sRGB."""
  return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.power(np.maximum(linear, 1e-8), 1 / 2.4) - 0.055)
