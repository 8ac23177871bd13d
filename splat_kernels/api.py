"""The public functions from Gaussians to images."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from splat_kernels import arguments, cameras, sh
from splat_kernels.compositing import composite
from splat_kernels.implementations import Implementation
from splat_kernels.projection import project_gaussians
from splat_kernels.types import Camera, Config, InputArray, Projected, RenderOutput
from splat_kernels.visibility import contributors


def project(
    means: Float[InputArray, "*#b N 3"],
    quats: Float[InputArray, "*#b N 4"] | None,
    scales: Float[InputArray, "*#b N 3"] | None,
    opacities: Float[InputArray, "*#b N"],
    camera: Camera,
    *,
    covariances: Float[InputArray, "*#b N 3 3"] | None = None,
    config: Config = Config(),
) -> Projected:
  """Projects Gaussians to the image plane: what `rasterize` does first. Arguments and errors as there.

  Differentiable in everything but `extents` and `radii`. Computes in float32, or in float64 where an argument is.

  Args:
    covariances: in the world, world units squared, in place of `quats` and `scales`, which are None then. Their symmetric
      part counts; positive semidefinite.
  """
  if (quats is None) != (scales is None) or (quats is None) == (covariances is None):
    given = [name for name, a in (("quats", quats), ("scales", scales), ("covariances", covariances)) if a is not None]
    raise ValueError(f"either quats and scales or covariances must be given, but is {', '.join(given) or 'none of them'}")
  means, quats, scales, opacities, camera = _check_geometry(means, quats, scales, opacities, camera, covariances)
  if covariances is not None:
    covariances = arguments.floats("covariances", covariances, (means.shape[-2], 3, 3))
  cameras.check_shutter(camera, config)
  arrays = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "covariances": covariances}
  arrays = {name: a for name, a in arrays.items() if a is not None} | cameras.arrays_of(camera)
  batch = arguments.leading_shape(arrays, _RANKS)
  return arguments.over_explicit_mesh(functools.partial(_project, camera=camera, config=config), batch, arrays, _RANKS)


_RANKS = {"means": 2, "quats": 2, "scales": 2, "opacities": 1, "covariances": 3, **cameras.RANKS}


def _project(arrays: dict[str, Array], camera: Camera, config: Config) -> Projected:
  static = dataclasses.replace(camera, **dict.fromkeys(cameras.RANKS))
  return _project_static(arrays, static, config)


@functools.partial(jax.jit, static_argnames=("camera", "config"))
def _project_static(arrays: dict[str, Array], camera: Camera, config: Config) -> Projected:
  """`project` after all checks; `camera` without its arrays."""
  batch = arguments.leading_shape(arrays, _RANKS)
  dtype = jnp.promote_types(jnp.result_type(*arrays.values()), jnp.float32)
  flat = {name: arguments.flatten(batch, a.astype(dtype), _RANKS[name]) for name, a in arrays.items()}

  def one(arrays):
    posed = dataclasses.replace(camera, **{name: a for name, a in arrays.items() if name in cameras.RANKS})
    shapes = (arrays.get(name) for name in ("quats", "scales"))
    given = arrays["means"], *shapes, arrays["opacities"], posed, config, arrays.get("covariances")
    return project_gaussians(*given)

  return jax.tree.map(lambda a: a.reshape(batch + a.shape[1:]), jax.vmap(one)(flat))


def rasterize(
    means: Float[InputArray, "*#b N 3"],
    quats: Float[InputArray, "*#b N 4"],
    scales: Float[InputArray, "*#b N 3"],
    opacities: Float[InputArray, "*#b N"],
    colors: Float[InputArray, "*#b N C"] | Float[InputArray, "*#b N K 3"],
    camera: Camera,
    *,
    background: Float[InputArray, "*#b C"] | Float[InputArray, "*#b H W C"] | None = None,
    sh_degree: int | None = None,
    means2d_offset: Float[InputArray, "*#b N 2"] | None = None,
    means2d_abs_offset: Float[InputArray, "*#b N 2"] | None = None,
    tile_mask: Bool[InputArray, "*#b rows columns"] | None = None,
    config: Config = Config(),
    implementation: str | Implementation | Sequence[str | Implementation] | None = None,
    interpret: bool = False,
) -> RenderOutput:
  """Draws 3D Gaussians as seen by a camera (Kerbl et al., "3D Gaussian Splatting", 2023): `project`, colours, `composite`.

  Leading dimensions `*b` of all arrays, of the camera and of the background broadcast against each other: one set of
  Gaussians under many cameras, many sets under one, or frame by frame. Differentiable in all floating inputs, the
  camera's pose and intrinsics included. Two runs give the same bits.

  Args:
    means: centres, world units.
    quats: rotations from the Gaussian's axes to the world's, wxyz, of any length (zero: no rotation).
    scales: standard deviations along the Gaussian's axes, world units, not negative.
    opacities: in [0, 1].
    colors: (*b, N, C) with any number of channels and range; with `sh_degree`, SH coefficients (*b, N, K, 3),
      K >= (sh_degree + 1)^2, seen from the camera, plus 0.5, clamped below at 0.
    camera: see `Camera`.
    background: colour behind everything, one or one per pixel; None is black.
    sh_degree: 0 to 4 if `colors` holds SH coefficients.
    means2d_offset: pixels added to the projected centres. Pass zeros and take its gradient: the screen-space gradient
      of the centres, which density control needs.
    means2d_abs_offset: zeros, which are not added to anything; the gradient that they get is, for each Gaussian, the
      sum over pixels of the absolute value of what each pixel adds to the gradient of `means2d_offset` (AbsGS, Ye et
      al. 2024; gsplat's absgrad). None costs nothing.
    tile_mask: see `composite`.
    config: see `Config`.
    implementation: see `composite`.
    interpret: see `composite`.

  Returns:
    See `RenderOutput`. Floating arrays have the dtype that the arguments promote to.

  Raises:
    ValueError: if shapes do not fit, naming them with their values; if no implementation can draw here, and why not.
  """
  means, quats, scales, opacities, camera = _check_geometry(means, quats, scales, opacities, camera)
  num = means.shape[-2]
  colors = _check_colors(colors, sh_degree, num)
  color_rank = 2 if sh_degree is None else 3
  arrays = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "colors": colors}
  arguments.leading_shape(arrays | cameras.arrays_of(camera), _RANKS | {"colors": color_rank})
  dtype = jnp.result_type(means, quats, scales, opacities, colors)

  finite = _finite(means, quats, scales, opacities, colors, camera, color_rank=color_rank)
  projected = project(means, quats, scales, jnp.where(finite, opacities, 0), camera, config=config)  # 0 culls.
  if means2d_offset is not None:
    offset = arguments.floats("means2d_offset", means2d_offset, (num, 2))
    projected = dataclasses.replace(projected, means2d=projected.means2d + offset)
  composited_depth = config.with_depth and config.depth_mode != "median"
  features = _features(colors, means, camera, projected, sh_degree, composited_depth)
  if background is not None:
    background = arguments.floats("background", background, (3 if sh_degree is not None else colors.shape[-1],))
    if composited_depth:
      background = jnp.pad(background, [(0, 0)] * (background.ndim - 1) + [(0, 1)])
  drawn = composite(
      projected,
      features,
      background,
      width=camera.width,
      height=camera.height,
      config=config,
      implementation=implementation,
      interpret=interpret,
      tile_mask=tile_mask,
      means2d_abs_offset=means2d_abs_offset,
  )
  image, depth = drawn.image, None
  if composited_depth:
    image, depth = image[..., :-1], image[..., -1]
    if config.depth_mode == "expected":  # NaN where alpha is: a lost frame.
      depth = jnp.where(drawn.alpha == 0, 0, depth / jnp.where(drawn.alpha == 0, 1, drawn.alpha))
  elif config.with_depth:
    depth = _median_depth(projected, camera, config, tile_mask)

  batch = drawn.intersections.shape
  return RenderOutput(
      image=image.astype(dtype),
      alpha=drawn.alpha.astype(dtype),
      depth=None if depth is None else depth.astype(dtype),
      radii=jnp.broadcast_to(projected.radii, batch + (num,)),
      nonfinite=jnp.broadcast_to(jnp.sum(~finite, axis=-1, dtype=jnp.int32), batch),
      intersections=drawn.intersections,
      overflow=drawn.overflow,
  )


@functools.partial(jax.jit, static_argnames=("color_rank",))
def _finite(means, quats, scales, opacities, colors, camera: Camera, *, color_rank: int) -> Bool[Array, "*b N"]:
  """Which Gaussians have finite numbers only, under a camera that has."""
  whole = lambda a, rank: jnp.all(jnp.isfinite(a), axis=tuple(range(-rank, 0)))
  of_gaussians = whole(means, 1) & whole(quats, 1) & whole(scales, 1) & jnp.isfinite(opacities)
  of_gaussians &= whole(colors, color_rank - 1)
  return of_gaussians & cameras.is_finite(camera)[..., None]


def _features(colors, means, camera: Camera, projected: Projected, sh_degree: int | None, with_depth: bool):
  """What is composited: colours as the camera sees them, and depth; 0 where culled, as 0 * NaN would reach the image."""
  arrays = {"colors": colors, "radii": projected.radii, "depths": projected.depths}
  ranks = {"colors": 2 if sh_degree is None else 3, "radii": 1, "depths": 1, "means": 2, "world_to_camera": 2}
  if sh_degree is not None:
    arrays |= {"means": means, "world_to_camera": camera.world_to_camera}
  batch = arguments.leading_shape(arrays, ranks)
  shade = functools.partial(_shade, sh_degree=sh_degree, with_depth=with_depth)
  return arguments.over_explicit_mesh(shade, batch, arrays, ranks)


@functools.partial(jax.jit, static_argnames=("sh_degree", "with_depth"))
def _shade(arrays: dict[str, Array], sh_degree: int | None, with_depth: bool) -> Float[Array, "*b N C"]:
  colors = arrays["colors"]
  if sh_degree is not None:
    means, poses = arrays["means"], arrays["world_to_camera"]
    batch = arguments.batch_shape(colors.shape[:-3], means.shape[:-2], poses.shape[:-2])
    flat = (arguments.flatten(batch, a, rank) for a, rank in ((colors, 3), (means, 2), (poses, 2)))
    seen = jax.vmap(functools.partial(sh.sh_colors, sh_degree))(*flat)
    colors = seen.reshape(batch + seen.shape[1:])
  features = jnp.where(arrays["radii"][..., None] > 0, colors, 0)
  if not with_depth:
    return features
  depths = arrays["depths"][..., None]
  return jnp.concatenate([features, jnp.broadcast_to(depths, (*features.shape[:-1], 1))], axis=-1)


def _median_depth(projected: Projected, camera: Camera, config: Config, tile_mask) -> Float[Array, "*b H W"]:
  """Depths of the Gaussians at which pixels' transmittance falls to one half."""
  seen = contributors(projected, width=camera.width, height=camera.height, config=config, tile_mask=tile_mask)
  batch, num = seen.median.shape[:-2], projected.depths.shape[-1]
  depths = jnp.broadcast_to(projected.depths, (*batch, num))
  index = jnp.maximum(seen.median, 0).reshape(*batch, -1)
  depth = jnp.take_along_axis(depths, index, axis=-1).reshape(seen.median.shape)
  return jnp.where(seen.median < 0, 0, depth)


def _check_geometry(means, quats, scales, opacities, camera: Camera, covariances=None):
  """The arguments as arrays, the camera's, too; quats and scales are None if there are covariances."""
  means = arguments.floats("means", means, (None, 3))
  num = means.shape[-2]
  if covariances is None:
    quats, scales = arguments.floats("quats", quats, (num, 4)), arguments.floats("scales", scales, (num, 3))
  opacities = arguments.floats("opacities", opacities, (num,))
  return means, quats, scales, opacities, cameras.check_camera(camera)


def _check_colors(colors, sh_degree: int | None, num: int) -> Float[Array, "*b N C"] | Float[Array, "*b N K 3"]:
  if sh_degree is None:
    colors = arguments.floats("colors", colors, (None, None))
    if colors.shape[-2] != num:
      raise ValueError(f"{colors.shape=} must be (*b, {num}, C); pass sh_degree for SH coefficients")
    return colors
  if sh_degree not in range(sh.MAX_DEGREE + 1):
    raise ValueError(f"{sh_degree=} must be None or 0 to {sh.MAX_DEGREE}")
  colors = arguments.floats("colors", colors, (num, None, 3))
  least = sh.num_coefficients(sh_degree)
  if colors.shape[-2] < least:
    raise ValueError(f"{colors.shape=} must be (*b, {num}, K, 3) with K >= {least} for {sh_degree=}")
  return colors
