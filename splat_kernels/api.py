"""The public functions: argument checks, batching, choice of implementation, growth of a full list."""

import dataclasses
import functools
import math
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from splat_kernels import pallas_gpu, pallas_gpu_mosaic, pallas_tpu, reference, sh, xla
from splat_kernels.cameras import camera_arrays, check_camera, with_arrays
from splat_kernels.platforms import current_platform
from splat_kernels.projection import finite_gaussians, project_gaussians
from splat_kernels.types import Camera, Config, InputArray, Projected, RenderOutput, float_array

# A name is strict. None takes the platform's, or else DEFAULT.
IMPLEMENTATIONS: dict[str, ModuleType] = {
    "reference": reference,
    "xla": xla,
    "pallas_gpu": pallas_gpu,
    "pallas_gpu_mosaic": pallas_gpu_mosaic,
    "pallas_tpu": pallas_tpu,
}
PLATFORM_DEFAULTS = {"gpu": "pallas_gpu", "tpu": "pallas_tpu"}
DEFAULT = "xla"


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

  Differentiable in everything but `extents` and `radii`.

  Args:
    covariances: in the world, world units squared, in place of `quats` and `scales`, which are None then. Symmetric, or
      else their symmetric part; positive semidefinite.
  """
  means, opacities = float_array("means", means), float_array("opacities", opacities)
  given = {"quats": quats, "scales": scales, "covariances": covariances}
  quats, scales, covariances = (None if a is None else float_array(name, a) for name, a in given.items())
  camera = with_arrays(camera)
  _check_geometry(means, quats, scales, opacities, camera, covariances)
  batch = _batch_shape(
      means.shape[:-2],
      *(a.shape[:-2] for a in (quats, scales) if a is not None),
      () if covariances is None else covariances.shape[:-3],
      opacities.shape[:-1],
      _camera_batch(camera),
  )
  return _project(means, quats, scales, opacities, camera, covariances, batch, config)


def rasterize(
    means: Float[InputArray, "*#b N 3"],
    quats: Float[InputArray, "*#b N 4"],
    scales: Float[InputArray, "*#b N 3"],
    opacities: Float[InputArray, "*#b N"],
    colors: Float[InputArray, "*#b N C"] | Float[InputArray, "*#b N K 3"],
    camera: Camera,
    *,
    background: Float[InputArray, "*#b C"] | None = None,
    sh_degree: int | None = None,
    means2d_offset: Float[InputArray, "*#b N 2"] | None = None,
    means2d_abs_offset: Float[InputArray, "*#b N 2"] | None = None,
    config: Config = Config(),
    implementation: str | None = None,
) -> RenderOutput:
  """Draws 3D Gaussians as seen by a camera (Kerbl et al., "3D Gaussian Splatting", 2023).

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
    background: colour behind everything; None is black.
    sh_degree: 0 to 4 if `colors` holds SH coefficients.
    means2d_offset: pixels added to the projected centres. Pass zeros and take its gradient: the screen-space gradient
      of the centres, which density control needs.
    means2d_abs_offset: zeros, which are not added to anything; the gradient that they get is, for each Gaussian, the
      sum over pixels of the absolute value of what each pixel adds to the gradient of `means2d_offset` (AbsGS, Ye et
      al. 2024; gsplat's absgrad). None costs nothing.
    config: see `Config`.
    implementation: "xla", "pallas_gpu", "pallas_gpu_mosaic" (Hopper) and "pallas_tpu" (interpreted, which is slow,
      where there is no NVIDIA GPU or no TPU) or "reference"; None picks for the platform.

  Returns:
    See `RenderOutput`.

  Raises:
    ValueError: if shapes do not fit, naming them with their values; if the implementation has no absolute gradients.
  """
  if implementation not in (None, *IMPLEMENTATIONS):
    raise ValueError(f"{implementation=} must be None or one of {', '.join(IMPLEMENTATIONS)}")
  camera = with_arrays(camera)
  _check_geometry(means, quats, scales, opacities, camera)
  channels = _check_colors(colors, sh_degree, means.shape[-2])
  if background is None:
    background = jnp.zeros((channels,), means.dtype)
  if background.ndim < 1 or background.shape[-1] != channels:
    raise ValueError(f"{background.shape=} must be (*b, {channels}), one value for each channel")
  num = means.shape[-2]
  if means2d_offset is None:
    means2d_offset = jnp.zeros((num, 2), means.dtype)
  if means2d_offset.shape[-2:] != (num, 2):
    raise ValueError(f"{means2d_offset.shape=} must be (*b, {num}, 2)")
  if means2d_abs_offset is not None and means2d_abs_offset.shape[-2:] != (num, 2):
    raise ValueError(f"{means2d_abs_offset.shape=} must be (*b, {num}, 2)")

  color_rank = 2 if sh_degree is None else 3
  batch = _batch_shape(
      means.shape[:-2],
      quats.shape[:-2],
      scales.shape[:-2],
      opacities.shape[:-1],
      colors.shape[:-color_rank],
      background.shape[:-1],
      means2d_offset.shape[:-2],
      () if means2d_abs_offset is None else means2d_abs_offset.shape[:-2],
      _camera_batch(camera),
  )
  draw = functools.partial(
      _rasterize,
      *(means, quats, scales, opacities, camera, colors, background, means2d_offset, means2d_abs_offset),
      batch=batch,
      sh_degree=sh_degree,
      config=config,
      name=implementation or default_implementation(),
  )
  output = draw(capacity=config.max_intersections or _guess_capacity(num, camera, config))
  while (needed := _overflowing(output)) is not None:
    output = draw(capacity=round_capacity(needed))
  return output


def default_implementation() -> str:
  """What `implementation=None` takes on this platform."""
  return PLATFORM_DEFAULTS.get(current_platform(), DEFAULT)


def round_capacity(needed: int) -> int:
  """Rounds up to one of few sizes (steps of 1024, or of 12 to 25 %), so that growing lists compile few programs."""
  step = max(1024, 1 << max(0, (needed - 1).bit_length() - 3))
  return -(-needed // step) * step


def _guess_capacity(num: int, camera: Camera, config: Config) -> int:
  """Room for a typical scene: every tile twice covered and each Gaussian in a dozen tiles."""
  tiles = (-(-camera.width // config.tile_size)) * (-(-camera.height // config.tile_size))
  return round_capacity(max(1, min(12 * num + 2 * tiles, num * tiles)))


def _overflowing(output: RenderOutput) -> int | None:
  """Capacity that would have been enough, if a list was full and the values can be seen, that is, outside jit."""
  try:
    if output.overflow.size and int(output.overflow.max()) > 0:
      return int(output.intersections.max())
  except jax.errors.ConcretizationTypeError:
    pass
  return None


@functools.partial(jax.jit, static_argnames=("batch", "config"))
def _project(
    means, quats, scales, opacities, camera: Camera, covariances, batch: tuple[int, ...], config: Config
) -> Projected:
  geometry = _flatten_geometry(batch, means, quats, scales, opacities, camera)
  covariances = None if covariances is None else _flatten(batch, covariances, 3)
  flat = jax.vmap(functools.partial(project_gaussians, config=config))(*geometry, covariances)
  return jax.tree.map(lambda a: a.reshape(batch + a.shape[1:]), flat)


@functools.partial(jax.jit, static_argnames=("batch", "sh_degree", "config", "name", "capacity"))
def _rasterize(
    *arrays: Array | Camera | None,
    batch: tuple[int, ...],
    sh_degree: int | None,
    config: Config,
    name: str,
    capacity: int,
) -> RenderOutput:
  """`rasterize` after all checks: one batch dimension on everything, project, composite, add the background."""
  means, quats, scales, opacities, camera, colors, background, means2d_offset, means2d_abs = arrays
  colors = _flatten(batch, colors, 2 if sh_degree is None else 3)
  background, means2d_offset = _flatten(batch, background, 1), _flatten(batch, means2d_offset, 2)
  means, quats, scales, opacities, camera = _flatten_geometry(batch, means, quats, scales, opacities, camera)
  finite = finite_gaussians(camera, means, quats, scales, opacities, colors)
  opacities = jnp.where(finite, opacities, 0)  # Culls.

  projected = jax.vmap(functools.partial(project_gaussians, config=config))(means, quats, scales, opacities, camera)
  projected = dataclasses.replace(projected, means2d=projected.means2d + means2d_offset)
  visible = projected.radii > 0
  features = colors
  if sh_degree is not None:
    features = jax.vmap(functools.partial(sh.sh_colors, sh_degree))(colors, means, camera.world_to_camera)
  # A culled Gaussian's colour may be NaN, and 0 * NaN would reach the image.
  features = jnp.where(visible[..., None], features, 0)
  if config.with_depth:
    features = jnp.concatenate([features, projected.depths[..., None]], axis=-1)
    background = jnp.pad(background, ((0, 0), (0, 1)))

  image, transmittance, intersections, overflow = IMPLEMENTATIONS[name].composite(
      projected,
      features,
      background,
      width=camera.width,
      height=camera.height,
      config=config,
      capacity=capacity,
      means2d_abs=None if means2d_abs is None else _flatten(batch, means2d_abs, 2),
  )
  alpha = 1 - transmittance
  depth = None
  if config.with_depth:
    image, depth = image[..., :-1], image[..., -1]
    depth = jnp.where(alpha > 0, depth / jnp.where(alpha > 0, alpha, 1), 0)
  flat = RenderOutput(
      image=image,
      alpha=alpha,
      depth=depth,
      radii=projected.radii,
      nonfinite=jnp.sum(~finite, axis=-1, dtype=jnp.int32),
      intersections=intersections,
      overflow=overflow,
  )
  return jax.tree.map(lambda a: a.reshape(batch + a.shape[1:]), flat)


def _check_geometry(means, quats, scales, opacities, camera: Camera, covariances=None) -> None:
  if means.ndim < 2 or means.shape[-1] != 3:
    raise ValueError(f"{means.shape=} must be (*b, N, 3)")
  num = means.shape[-2]
  if (quats is None) != (scales is None) or (quats is None) == (covariances is None):
    given = [name for name, a in (("quats", quats), ("scales", scales), ("covariances", covariances)) if a is not None]
    raise ValueError(f"either quats and scales or covariances must be given, but is {', '.join(given) or 'none of them'}")
  if quats is not None and quats.shape[-2:] != (num, 4):
    raise ValueError(f"{quats.shape=} must be (*b, {num}, 4) to match {means.shape=}")
  if scales is not None and scales.shape[-2:] != (num, 3):
    raise ValueError(f"{scales.shape=} must be (*b, {num}, 3) to match {means.shape=}")
  if covariances is not None and covariances.shape[-3:] != (num, 3, 3):
    raise ValueError(f"{covariances.shape=} must be (*b, {num}, 3, 3) to match {means.shape=}")
  if opacities.shape[-1:] != (num,):
    raise ValueError(f"{opacities.shape=} must be (*b, {num}) to match {means.shape=}")
  check_camera(camera)


def _check_colors(colors, sh_degree: int | None, num: int) -> int:
  """Number of channels of the image."""
  if sh_degree is None:
    if colors.ndim < 2 or colors.shape[-2] != num:
      raise ValueError(f"{colors.shape=} must be (*b, {num}, C); pass sh_degree for SH coefficients")
    return colors.shape[-1]
  if sh_degree not in range(sh.MAX_DEGREE + 1):
    raise ValueError(f"{sh_degree=} must be None or 0 to {sh.MAX_DEGREE}")
  least = sh.num_coefficients(sh_degree)
  if colors.ndim < 3 or colors.shape[-3] != num or colors.shape[-1] != 3 or colors.shape[-2] < least:
    raise ValueError(f"{colors.shape=} must be (*b, {num}, K, 3) with K >= {least} for {sh_degree=}")
  return 3


def _camera_batch(camera: Camera) -> tuple[int, ...]:
  return _batch_shape(*(a.shape[:-rank] for a, rank in camera_arrays(camera).values()))


def _batch_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
  try:
    return jnp.broadcast_shapes(*shapes)
  except ValueError as e:
    raise ValueError(f"leading dimensions must broadcast, but are {shapes}") from e


def _flatten(batch: tuple[int, ...], array, rank: int):
  """(*b, …) to (B, …), where the last `rank` dimensions stay."""
  kept = array.shape[array.ndim - rank :]
  return jnp.broadcast_to(array, batch + kept).reshape((math.prod(batch),) + kept)


def _flatten_geometry(batch, means, quats, scales, opacities, camera: Camera):
  camera = dataclasses.replace(
      camera, **{name: _flatten(batch, a, rank) for name, (a, rank) in camera_arrays(camera).items()}
  )
  ranked = ((means, 2), (quats, 2), (scales, 2), (opacities, 1))
  flat = (None if a is None else _flatten(batch, a, rank) for a, rank in ranked)
  return (*flat, camera)
