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
MODELS = ("pinhole", "orthographic", "fisheye")
SHUTTERS = ("global", "top_to_bottom", "bottom_to_top", "left_to_right", "right_to_left")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("world_to_camera", "intrinsics", "distortion", "world_to_camera_end"),
    meta_fields=("width", "height", "near", "far", "model", "shutter"),
)
@dataclasses.dataclass(frozen=True)
class Camera:
  """A camera, or a batch of them. OpenCV axes: x right, y down, z forward (the camera looks along +z).

  The arrays are data: differentiable, and a batch where they have leading dimensions. All else is static: it has to be
  known outside jit, and each new value compiles anew.

  Attributes:
    world_to_camera: rigid transform from world to camera coordinates, row major, bottom row (0, 0, 0, 1).
    intrinsics: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels. Pixel centres lie at +0.5: the centre of the top left
      pixel is (0.5, 0.5). Skew (entry 0, 1) is not supported and ignored. An orthographic camera's fx and fy are
      pixels per world unit.
    width: of the image, pixels.
    height: of the image, pixels.
    near: Gaussians whose centre has camera z < near are culled. World units. None takes `Config.near`.
    far: Gaussians whose centre has camera z > far are culled. World units.
    model: "pinhole"; "orthographic", all of whose rays are parallel to z; "fisheye", whose image radius is fx times the
      angle with the axis (OpenCV's, equidistant without distortion). Of a fisheye, too, near and far are camera z, so
      that nothing at 90 degrees or behind is drawn.
    distortion: OpenCV's coefficients, of a pinhole (k1, k2, p1, p2), (k1, k2, p1, p2, k3) or (k1, k2, p1, p2, k3, k4, k5,
      k6), of a fisheye (k1, k2, k3, k4). Gaussians beyond the angle at which the image radius stops growing are culled.
    world_to_camera_end: pose at the end of the exposure; `world_to_camera` is then the one at its beginning. In between
      the translation is interpolated linearly and the rotation by slerp, of less than half a turn.
    shutter: "global", or from which to which side of the image a rolling shutter reads it: the middle of the first row
      (column) at the beginning of the exposure, the middle of the last at its end. Needs `world_to_camera_end` and
      `Config(projection="unscented")`.
  """

  world_to_camera: Float[InputArray, "*#b 4 4"]
  intrinsics: Float[InputArray, "*#b 3 3"]
  width: int
  height: int
  near: float | None = None
  far: float = 1e10
  model: str = "pinhole"
  distortion: Float[InputArray, "*#b D"] | None = None
  world_to_camera_end: Float[InputArray, "*#b 4 4"] | None = None
  shutter: str = "global"


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("means2d", "conics", "depths", "opacities", "extents", "radii"),
    meta_fields=("support",),
)
@dataclasses.dataclass(frozen=True)
class Projected:
  """Gaussians as the image plane sees them: what `project` returns and `composite` draws, whoever made it.

  A projector of your own has to give: centres and conics in pixels; depths, by which Gaussians are ordered, near ones
  first, ties by index (positive, as their bits are compared); `extents`, outside of which a Gaussian is not looked for:
  sqrt(2 ln(opacity / alpha_min) Sigma_ii) for Sigma, the inverse of the conic, holds all that is visible;
  `radii` > 0 where a Gaussian is drawn. `support` stays as it is. A culled one has radius 0, extents 0 and finite, meaningless other fields.

  Attributes:
    means2d: centres, pixels.
    conics: inverse 2D covariance (xx, xy, yy), 1/px^2, of the covariance after the low-pass filter.
    depths: camera z of the centres, world units, whatever the camera's model: what sorts, and what is composited as
      depth. Of a rolling shutter, half-way through the exposure. Positive.
    opacities: in [0, 1]; with `Config.antialiased` already scaled by the compensation factor.
    extents: half width and half height, in pixels, of the box outside of which a Gaussian is not drawn; 0 if culled.
    radii: the larger extent rounded up, whole pixels; 0 if culled.
    support: which tiles a Gaussian is drawn in; see `Config.support`.
  """

  means2d: Float[Array, "*b N 2"]
  conics: Float[Array, "*b N 3"]
  depths: Float[Array, "*b N"]
  opacities: Float[Array, "*b N"]
  extents: Float[Array, "*b N 2"]
  radii: Int[Array, "*b N"]
  support: str = "ellipse"


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("image", "alpha", "intersections", "overflow"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class Composited:
  """What `composite` returns.

  Attributes:
    image: sum over Gaussians of weight * feature, front to back, plus transmittance * background.
    alpha: 1 - transmittance behind the last Gaussian drawn: the sum of weights.
    intersections: see `RenderOutput`.
    overflow: see `RenderOutput`.
  """

  image: Float[Array, "*b H W C"]
  alpha: Float[Array, "*b H W"]
  intersections: Int[Array, "*b"]
  overflow: Int[Array, "*b"]


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
    depth: of `Config.depth_mode`, world units; 0 where nothing was drawn. None with `Config(with_depth=False)`.
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
    tile_size: side of the square tiles, pixels. Changes speed and never the result (except under `support="inria"`,
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
      AccuTile); tiles it does not touch cost nothing. "inria": the tiles that INRIA's code lists for a radius of
      ceil(3 sqrt(lambda)), lambda = m + sqrt(max(0.1, m^2 - det)), m the mean variance. That cuts visible support of
      opacities above 0.35, and to the right and below one pixel more.
    jacobian_limit: the perspective Jacobian is taken at a point clamped to the field of view widened by a margin, as
      it explodes outside. "image": edge of the image + margin * tan(half field of view), which respects an off-centre
      principal point (gsplat 1.5 and 1.6). "centred": (1 + margin) * tan(half field of view) (INRIA, splax). "none": no
      clamp.
      A lens distortion counts: limits are those of the distorted point. Of pinhole cameras alone.
    jacobian_margin: the margin above.
    projection: "ewa": by the mapping's Jacobian at the centre. "unscented": from seven points of the Gaussian mapped
      exactly (3DGUT), for strong distortion and wide Gaussians; rolling shutters need it. A Gaussian is culled if the
      camera cannot see one of the seven.
    sigma_points: alpha, beta and kappa of the unscented transform; gsplat's and 3DGUT's are the default. The points are
      the centre and those alpha sqrt(3 + kappa) standard deviations away along the axes.
    radius_clip: Gaussians whose radius in whole pixels is not above this are culled.
    max_intersections: capacity of the list of (Gaussian, tile) pairs of one frame; None takes what was enough the last
      time outside jit for as many Gaussians and pixels, else a guess. Outside jit a full list is grown and the frame
      drawn again; under jit (grad of jit, vmap, scan, shard_map) it cannot be. See docs/rasterizer.md for how to size it.
      Not used by `reference`.
    on_overflow: what a frame is whose list was full all the same. "nan": NaN in every pixel. "error": a callback raises
      while the program runs. "report": the nearest Gaussians alone, for callers who look at `RenderOutput.overflow`.
    with_depth: whether to compute `RenderOutput.depth`, which costs as much as one more colour channel.
    depth_mode: what it is, of z = `Projected.depths`. "expected": sum(w z) / sum(w). "accumulated": sum(w z). "median":
      z of the Gaussian at which transmittance falls to one half or less; differentiable in that z alone.
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
  projection: str = "ewa"
  sigma_points: tuple[float, float, float] = (0.1, 2.0, 0.0)
  radius_clip: float = 0.0
  max_intersections: int | None = None
  on_overflow: str = "nan"
  with_depth: bool = True
  depth_mode: str = "expected"

  def __post_init__(self):
    _check(self.tile_size in (4, 8, 16, 32), tile_size=self.tile_size, must="be one of 4, 8, 16, 32")
    bounds = {"alpha_min": self.alpha_min, "alpha_max": self.alpha_max}
    _check(0 < self.alpha_min < self.alpha_max < 1, **bounds, must="satisfy 0 < alpha_min < alpha_max < 1")
    _check(0 < self.transmittance_min < 1, transmittance_min=self.transmittance_min, must="lie in (0, 1)")
    _check(self.near > 0, near=self.near, must="be positive")
    _check(self.low_pass >= 0, low_pass=self.low_pass, must="not be negative")
    _check(0 <= self.antialias_floor <= 1, antialias_floor=self.antialias_floor, must="lie in [0, 1]")
    _check(self.support in ("ellipse", "inria"), support=self.support, must="be 'ellipse' or 'inria'")
    known = self.jacobian_limit in ("image", "centred", "none")
    _check(known, jacobian_limit=self.jacobian_limit, must="be 'image', 'centred' or 'none'")
    _check(self.projection in ("ewa", "unscented"), projection=self.projection, must="be 'ewa' or 'unscented'")
    object.__setattr__(self, "sigma_points", tuple(self.sigma_points))  # Hashable.
    alpha, beta, kappa = self.sigma_points if len(self.sigma_points) == 3 else (0, 0, 0)
    sound = alpha > 0 and kappa > -3 and beta >= alpha**2  # Else variances can be negative.
    must = "be alpha, beta and kappa with alpha > 0, beta >= alpha^2, kappa > -3"
    _check(sound, sigma_points=self.sigma_points, must=must)
    _check(self.radius_clip >= 0, radius_clip=self.radius_clip, must="not be negative")
    enough = self.max_intersections is None or self.max_intersections >= 1
    _check(enough, max_intersections=self.max_intersections, must="be positive or None")
    known = self.on_overflow in ("nan", "error", "report")
    _check(known, on_overflow=self.on_overflow, must="be 'nan', 'error' or 'report'")
    known = self.depth_mode in ("expected", "accumulated", "median")
    _check(known, depth_mode=self.depth_mode, must="be 'expected', 'accumulated' or 'median'")


def _check(holds: bool, *, must: str, **values) -> None:
  if not holds:
    raise ValueError(f"Config: {', '.join(f'{name}={value!r}' for name, value in values.items())} must {must}")


# Kerbl et al.'s diff-gaussian-rasterization. It culls at exactly 0.2, too: the next float32 is the first one drawn. And it
# draws what brings transmittance to exactly 0.0001: the float32 before is the first one that ends a pixel.
INRIA = Config(
    clamp_passes_gradient=True,
    transmittance_min=float(np.nextafter(np.float32(1e-4), np.float32(0))),
    near=float(np.nextafter(np.float32(0.2), np.float32(1))),
    support="inria",
    jacobian_limit="centred",
)
# Its box of min(3.33, sqrt(2 ln(255 opacity))) sigmas holds the whole ellipse, so that the image is the same.
GSPLAT_1_5 = Config(alpha_max=0.999, antialias_floor=0.0)
GSPLAT_1_6 = Config()
