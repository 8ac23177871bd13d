"""Renders docs/images/head_sheet.jpg: the demo head's people, expressions and poses, with plain materials.

    export DRJIT_LIBLLVM_PATH=/usr/lib/x86_64-linux-gnu/libLLVM-19.so    # LLVM 16 or newer
    python tools/head_sheet.py --out docs/images/head_sheet.jpg
"""

import argparse

import flame_numpy as flame
import mitsuba as mi
import numpy as np
from PIL import Image

mi.set_variant("llvm_ad_rgb")
import capture_scene  # noqa: E402  (needs the variant)
import capture_skin  # noqa: E402

_TONES = {"maya": (0.58, 0.38, 0.28), "jonas": (0.62, 0.42, 0.33), "ruth": (0.64, 0.46, 0.38), "arthur": (0.60, 0.42, 0.34),
          "amara": (0.24, 0.13, 0.085), "kofi": (0.17, 0.095, 0.065), "mei": (0.60, 0.42, 0.30), "hiro": (0.55, 0.37, 0.25),
          "lena": (0.66, 0.46, 0.37), "victor": (0.60, 0.39, 0.30)}
_GREY = {"ruth", "arthur", "victor"}


def columns(head) -> list[dict]:
  """The poses shown, left to right."""
  e = lambda **k: flame.expression_vector(head, **k)
  return [
      dict(),
      dict(expression=e(mouthSmileBoth=0.8, cheekSquintBoth=0.6, eyeSquintBoth=0.3, mouthUpperUpBoth=0.25), jaw=(0.06, 0, 0)),
      dict(expression=e(eyeBlinkBoth=1.0, mouthPucker=0.7)),
      dict(expression=e(browInnerUp=0.9, browOuterUpBoth=0.8, eyeWideBoth=0.9, mouthFunnel=0.2), jaw=(0.30, 0, 0)),
      dict(expression=e(eyeLookInLeft=0.5, eyeLookOutRight=0.5), neck=(0, 0.5, 0), jaw=(0.2, 0, 0)),
      dict(expression=e(browDownBoth=0.7, mouthFrownBoth=0.6, mouthPressBoth=0.4, eyeLookUpBoth=0.6), neck=(0.3, 0, 0.06)),
  ]


class PlainHead:
  """The head with one material per region, re-coloured and re-posed between renders."""

  def __init__(self, head, size: int):
    self.head = head
    two = lambda bsdf: {"type": "twosided", "bsdf": bsdf}
    plain = lambda rgb, rough: two({"type": "principled", "base_color": {"type": "rgb", "value": list(rgb)}, "roughness": rough,
                                    "specular": 0.4})
    bsdfs = {"skin": plain([0.6, 0.4, 0.3], 0.5), "teeth": plain([0.74, 0.69, 0.58], 0.25), "tongue": plain([0.42, 0.15, 0.14], 0.4),
             "lashes": plain([0.02, 0.015, 0.01], 0.6)}
    eye = {"type": "principled", "base_color": {
        "type": "bitmap", "bitmap": mi.Bitmap(capture_skin.paint_eye(256, 3).astype(np.float32)), "raw": True}, "roughness": 0.05,
           "specular": 0.7}
    regions = {"skin": ["skin", "lips", "mouth_interior", "scalp", "neck"], "teeth": ["teeth"], "tongue": ["tongue"],
               "lashes": ["lashes"], "eye_left": ["eye_left"], "eye_right": ["eye_right"]}
    self.pieces = {k: capture_scene.Piece(head, r, k not in ("eye_left", "eye_right", "lashes")) for k, r in regions.items()}
    area = mi.ScalarTransform4f().look_at([0.66, 0.5, 1.2], [0, 0, 0.03], [0, 1, 0.01]) @ mi.ScalarTransform4f().scale(0.45)
    scene = {"type": "scene", "fill": {"type": "constant", "radiance": {"type": "rgb", "value": [0.42, 0.43, 0.46]}},
             "key": {"type": "rectangle", "to_world": area,
                     "emitter": {"type": "area", "radiance": {"type": "rgb", "value": [7.6, 7.2, 6.8]}}}}
    for name, piece in self.pieces.items():
      uv = (piece.uv - [1.75 if name == "eye_left" else 1.25, 0.75]) / 0.48 + 0.5 if name.startswith("eye") else None
      if name == "skin":
        bsdf = two({"type": "principled", "base_color": {"type": "mesh_attribute", "name": "vertex_color"}, "roughness": 0.5,
                    "specular": 0.4})
        scene[name] = capture_scene._mesh(name, piece.faces, len(piece.uv), bsdf, colour=np.zeros((len(piece.uv), 3)))
      else:
        scene[name] = capture_scene._mesh(name, piece.faces, len(piece.uv), bsdfs.get(name, eye), uv)
    self.scene = mi.load_dict(scene)
    self.parameters = mi.traverse(self.scene)
    self.sensor = mi.load_dict({
        "type": "perspective", "fov": 16.4, "near_clip": 0.01,
        "to_world": mi.ScalarTransform4f().look_at([0.08, 0.02, 1.15], [0, -0.012, 0], [0, 1, 0]),
        "film": {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgba", "rfilter": {"type": "box"}},
        "sampler": {"type": "multijitter", "sample_count": 25}})
    self.integrator = mi.load_dict({
        "type": "aov", "aovs": "albedo:albedo,normal:sh_normal",
        "image": {"type": "path", "max_depth": 3, "rr_depth": 5, "hide_emitters": True}})

  def dress(self, tone, hair):
    """Colours skin, lips, mouth and scalp."""
    names = [str(n) for n in self.head["region_names"]]
    tone = np.array(tone)
    colours = {"lips": tone * [0.85, 0.55, 0.6], "mouth_interior": np.array([0.26, 0.085, 0.075]), "scalp": np.array(hair)}
    table = np.array([colours.get(n, tone) for n in names])
    total, count = np.zeros((len(self.head["v_template"]), 3)), np.zeros(len(self.head["v_template"]))
    for k in range(3):
      np.add.at(total, self.head["f"][:, k], table[self.head["face_region"]])
      np.add.at(count, self.head["f"][:, k], 1)
    piece = self.pieces["skin"]
    colour = (piece.matrix @ (total / count[:, None])[piece.used])[piece.vertex_of]
    self.parameters["skin.vertex_color"] = mi.Float(np.clip(colour, 0, 1).astype(np.float32).ravel())

  def render(self, shape, **pose) -> np.ndarray:
    """(size, size, 3) uint8 over light grey."""
    import pyoidn

    vertices = flame.vertices(self.head, shape, **pose)
    for name, piece in self.pieces.items():
      points, normals = piece.place(vertices)
      self.parameters[f"{name}.vertex_positions"] = mi.Float(points.astype(np.float32).ravel())
      self.parameters[f"{name}.vertex_normals"] = mi.Float(normals.astype(np.float32).ravel())
    self.parameters.update()
    frame = np.nan_to_num(np.array(mi.render(self.scene, sensor=self.sensor, integrator=self.integrator, spp=25)))
    alpha = np.clip(frame[..., 3:4], 0, 1)
    rgb = pyoidn.denoise(np.ascontiguousarray(frame[..., :3] + (1 - alpha) * 0.75, np.float32), hdr=True,
                         albedo=np.ascontiguousarray(np.clip(frame[..., -6:-3], 0, 1), np.float32),
                         normal=np.ascontiguousarray(np.clip(frame[..., -3:], -1, 1), np.float32))
    return np.round(capture_scene.to_srgb(np.clip(rgb, 0, 1)) * 255).astype(np.uint8)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--head", default="assets/head/demo_head.npz")
  parser.add_argument("--out", default="docs/images/head_sheet.jpg")
  parser.add_argument("--size", type=int, default=176)
  args = parser.parse_args()
  head = flame.load(args.head)
  figure = PlainHead(head, args.size)
  poses, cells = columns(head), []
  for name, shape in zip(head["identity_names"], head["identities"]):
    figure.dress(_TONES[str(name)], (0.30, 0.29, 0.28) if str(name) in _GREY else (0.05, 0.033, 0.024))
    cells.append([figure.render(shape, **pose) for pose in poses])
    print(name, flush=True)
  # Two people side by side in a row keep the sheet compact.
  rows = [np.concatenate(cells[i] + cells[i + 1], axis=1) for i in range(0, len(cells), 2)]
  Image.fromarray(np.concatenate(rows)).save(args.out, quality=85)


if __name__ == "__main__":
  main()
