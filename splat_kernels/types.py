"""What goes into the rasterizer and what comes out of it.

Dimension letters: `*b` leading batch dimensions (frames, cameras), `N` Gaussians, `C` channels, `K` spherical-harmonic
coefficients, `H W` pixels.
"""

import dataclasses
import functools

import jax
import numpy as np
from jaxtyping import Array, Float, Int

InputArray = Array | np.ndarray


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("world_to_camera", "intrinsics"),
    meta_fields=("width", "height", "near", "far"),
)
@dataclasses.dataclass(frozen=True)
class Camera:
  """A pinhole camera, or a batch of them. OpenCV axes: x right, y down, z forward (the camera looks along +z).

  Attributes:
    world_to_camera: rigid transform from world to camera coordinates, row major, bottom row (0, 0, 0, 1).
    intrinsics: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels. Pixel centres lie at +0.5: the centre of the top left
      pixel is (0.5, 0.5). Skew (entry 0, 1) is not supported and ignored.
    width: of the image, pixels.
    height: of the image, pixels.
    near: Gaussians whose centre has camera z < near are culled. World units. None takes `Config.near`.
    far: Gaussians whose centre has camera z > far are culled. World units.
  """

  world_to_camera: Float[InputArray, "*#b 4 4"]
  intrinsics: Float[InputArray, "*#b 3 3"]
  width: int
  height: int
  near: float | None = None
  far: float = 1e10


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("means2d", "conics", "depths", "opacities", "extents", "radii"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Projected:
  """Gaussians as the image plane sees them. Culled ones have radius 0 and finite, meaningless other fields.

  Attributes:
    means2d: centres, pixels.
    conics: inverse 2D covariance (xx, xy, yy), 1/px^2, of the covariance after the low-pass filter.
    depths: camera z of the centres, world units.
    opacities: in [0, 1]; with `Config.antialiased` already scaled by the compensation factor.
    extents: half width and half height, in pixels, of the box outside of which a Gaussian is not drawn; 0 if culled.
    radii: the larger extent rounded up, whole pixels; 0 if culled.
  """

  means2d: Float[Array, "*b N 2"]
  conics: Float[Array, "*b N 3"]
  depths: Float[Array, "*b N"]
  opacities: Float[Array, "*b N"]
  extents: Float[Array, "*b N 2"]
  radii: Int[Array, "*b N"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("image", "alpha", "depth", "radii", "nonfinite", "intersections", "overflow"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class RenderOutput:
  """What `rasterize` returns.

  Attributes:
    image: colour composited front to back over the background.
    alpha: 1 - transmittance behind the last Gaussian drawn.
    depth: expected camera z, sum(w z) / sum(w), world units; 0 where nothing was drawn. None with
      `Config(with_depth=False)`.
    radii: see `Projected.radii`; a Gaussian is visible where radii > 0.
    nonfinite: Gaussians that were culled because one of their numbers is NaN or infinite.
    intersections: pairs (Gaussian, tile) that this frame needs; where the list has no room even for the rows of tiles
      that Gaussians touch, an upper bound.
    overflow: pairs that did not fit into `Config.max_intersections` and were not drawn; anything but 0 means that the
      farthest Gaussians are missing from the image. Always 0 from `reference`.
  """

  image: Float[Array, "*b H W C"]
  alpha: Float[Array, "*b H W"]
  depth: Float[Array, "*b H W"] | None
  radii: Int[Array, "*b N"]
  nonfinite: Int[Array, "*b"]
  intersections: Int[Array, "*b"]
  overflow: Int[Array, "*b"]


@dataclasses.dataclass(frozen=True)
class Config:
  """Constants of the rasterizer. Defaults are gsplat 1.6's; other rasterizers' values stand beside each field.

  `INRIA`, `GSPLAT_1_5` and `GSPLAT_1_6` hold the constants of those; `dataclasses.replace` changes single fields.

  Hashable, so it can be a static argument of `jax.jit`.

  Attributes:
    tile_size: side of the square tiles, pixels. Changes speed and never the result (except under `support="square"`,
      where the visible support of a Gaussian ends at a tile border).
    alpha_min: a pixel skips a Gaussian whose alpha there is below this.
    alpha_max: alpha is clamped to this (INRIA, gsplat 1.6: 0.99; gsplat 1.5, splax: 0.999).
    clamp_passes_gradient: whether a clamped alpha passes its gradient on (INRIA) or has gradient zero (the others).
    transmittance_min: a pixel is finished before the Gaussian that would bring its transmittance to this or below.
    near: where a `Camera` does not say it: Gaussians with camera z below this are culled, world units (INRIA: at 0.2
      and below; gsplat: below 0.01).
    low_pass: px^2 added to the diagonal of the projected covariance, so that nothing is thinner than about a pixel.
    antialiased: scale opacities by sqrt(det before / det after low_pass), as Mip-Splatting does.
    antialias_floor: least value of that factor (gsplat 1.6, INRIA: 0.005; gsplat 1.5: 0).
    support: where a Gaussian is drawn at most. "ellipse": within its alpha_min contour, found exactly (gsplat's
      AccuTile); tiles it does not touch cost nothing. "square": tiles touched by the square of half side
      ceil(3 sigma_max) (INRIA), which cuts visible support of opacities above 0.35.
    jacobian_limit: the perspective Jacobian is taken at a point clamped to the field of view widened by a margin, as
      it explodes outside. "image": edge of the image + margin * tan(half field of view), which respects an off-centre
      principal point (gsplat 1.5 and 1.6). "centred": (1 + margin) * tan(half field of view) (INRIA, splax). "none": no
      clamp.
    jacobian_margin: the margin above.
    max_intersections: capacity of the list of (Gaussian, tile) pairs of one frame; None takes a guess from N and the
      number of tiles. Outside jit a full list is grown and the frame drawn again; under jit it cannot be, and
      `RenderOutput.overflow` tells. See docs/rasterizer.md for how to size it. Not used by `reference`.
    with_depth: whether to compute `RenderOutput.depth`, which costs as much as one more colour channel.
  """

  tile_size: int = 16
  alpha_min: float = 1 / 255
  alpha_max: float = 0.99
  clamp_passes_gradient: bool = False
  transmittance_min: float = 1e-4
  near: float = 0.01
  low_pass: float = 0.3
  antialiased: bool = False
  antialias_floor: float = 0.005
  support: str = "ellipse"
  jacobian_limit: str = "image"
  jacobian_margin: float = 0.3
  max_intersections: int | None = None
  with_depth: bool = True

  def __post_init__(self):
    if self.tile_size not in (4, 8, 16, 32):
      raise ValueError(f"{self.tile_size=} must be one of 4, 8, 16, 32")
    if not 0 < self.alpha_min < self.alpha_max < 1:
      raise ValueError(f"{self.alpha_min=} and {self.alpha_max=} must satisfy 0 < alpha_min < alpha_max < 1")
    if not 0 < self.transmittance_min < 1:
      raise ValueError(f"{self.transmittance_min=} must lie in (0, 1)")
    if not self.near > 0:
      raise ValueError(f"{self.near=} must be positive")
    if not self.low_pass >= 0:
      raise ValueError(f"{self.low_pass=} must not be negative")
    if not 0 <= self.antialias_floor <= 1:
      raise ValueError(f"{self.antialias_floor=} must lie in [0, 1]")
    if self.support not in ("ellipse", "square"):
      raise ValueError(f"{self.support=} must be 'ellipse' or 'square'")
    if self.jacobian_limit not in ("image", "centred", "none"):
      raise ValueError(f"{self.jacobian_limit=} must be 'image', 'centred' or 'none'")
    if self.max_intersections is not None and self.max_intersections < 1:
      raise ValueError(f"{self.max_intersections=} must be positive or None")


# Kerbl et al.'s diff-gaussian-rasterization. It culls at exactly 0.2, too: the next float32 is the first one drawn.
INRIA = Config(
    clamp_passes_gradient=True,
    near=float(np.nextafter(np.float32(0.2), np.float32(1))),
    support="square",
    jacobian_limit="centred",
)
# Its box of min(3.33, sqrt(2 ln(255 opacity))) sigmas holds the whole ellipse, so that the image is the same.
GSPLAT_1_5 = Config(alpha_max=0.999, antialias_floor=0.0)
GSPLAT_1_6 = Config()
