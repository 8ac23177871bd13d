"""What goes into the rasterizer and what comes out of it.

Dimension letters: `*b` leading batch dimensions (frames, cameras), `N` Gaussians, `C` channels, `K` spherical-harmonic
coefficients, `H W` pixels.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

InputArray = Array | np.ndarray
MODELS = ("pinhole", "orthographic", "fisheye")
SHUTTERS = ("global", "top_to_bottom", "bottom_to_top", "left_to_right", "right_to_left")


def float_array(name: str, value) -> Float[Array, "..."]:
  """Numbers, lists of them, and arrays of any kind of number, as an array of floating numbers.

  Raises:
    ValueError: if they are anything else, with `name`.
  """
  try:
    array = jnp.asarray(value)
  except (TypeError, ValueError, OverflowError):
    raise ValueError(f"{name} must be an array of numbers, but is {str(value)[:80]!r}") from None
  if jnp.issubdtype(array.dtype, jnp.complexfloating):
    raise ValueError(f"{name} must be an array of real numbers, but its dtype is {array.dtype}")
  return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


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

  def __post_init__(self):
    for name, kind in (("width", operator.index), ("height", operator.index), ("near", float), ("far", float)):
      object.__setattr__(self, name, _python_number(getattr(self, name), kind))


def _python_number(value, kind: Callable):
  """Of whatever library a number is, Python's own, which hashes; all else unchanged, for the checks to name."""
  try:
    return kind(value)
  except (TypeError, ValueError):
    return value


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("means2d", "conics", "depths", "opacities", "extents", "radii"),
    meta_fields=("support",),
)
@dataclasses.dataclass(frozen=True)
class Projected:
  """Gaussians as the image plane sees them. Culled ones have radius 0 and finite, meaningless other fields.

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
  projection: str = "ewa"
  sigma_points: tuple[float, float, float] = (0.1, 2.0, 0.0)
  radius_clip: float = 0.0
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
    if self.support not in ("ellipse", "inria"):
      raise ValueError(f"support={self.support!r} must be 'ellipse' or 'inria'")
    if self.jacobian_limit not in ("image", "centred", "none"):
      raise ValueError(f"{self.jacobian_limit=} must be 'image', 'centred' or 'none'")
    if self.projection not in ("ewa", "unscented"):
      raise ValueError(f"projection={self.projection!r} must be 'ewa' or 'unscented'")
    object.__setattr__(self, "sigma_points", tuple(self.sigma_points))  # Hashable.
    alpha, beta, kappa = self.sigma_points if len(self.sigma_points) == 3 else (0, 0, 0)
    if not (alpha > 0 and kappa > -3 and beta >= alpha**2):  # Else variances can be negative.
      raise ValueError(
          f"sigma_points={self.sigma_points!r} must be (alpha, beta, kappa), alpha > 0, beta >= alpha^2, kappa > -3"
      )
    if not self.radius_clip >= 0:
      raise ValueError(f"radius_clip={self.radius_clip!r} must not be negative")
    if self.max_intersections is not None and self.max_intersections < 1:
      raise ValueError(f"{self.max_intersections=} must be positive or None")


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
