"""The public middle: from projected Gaussians to pixels, under every policy of this library.

Dtypes, devices, full lists, more frames or channels than fit, meshes: all of it is decided here, so that an
implementation sees arrays of one batch dimension in a dtype it computes in.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from splat_kernels import arguments, implementations
from splat_kernels.implementations import Implementation
from splat_kernels.platforms import current_device
from splat_kernels.tiles import tile_grid
from splat_kernels.types import Composited, Config, InputArray, Projected

# What eager calls have learnt: capacities that were enough for as many Gaussians, pixels and constants.
_enough: dict[tuple, int] = {}


def composite(
    projected: Projected,
    features: Float[InputArray, "*#b N C"],
    background: Float[InputArray, "*#b C"] | Float[InputArray, "*#b H W C"] | None = None,
    *,
    width: int,
    height: int,
    config: Config = Config(),
    implementation: str | Implementation | Sequence[str | Implementation] | None = None,
    interpret: bool = False,
    tile_mask: Bool[InputArray, "*#b rows columns"] | None = None,
    means2d_abs_offset: Float[InputArray, "*#b N 2"] | None = None,
) -> Composited:
  """Composites features of projected Gaussians front to back over a background: the middle of `rasterize`.

  For projectors of your own (see `Projected`), and for features that are not colours: any number of channels, any range.
  Leading dimensions `*b` broadcast against each other. Differentiable by reverse mode in means2d, conics, opacities,
  features, background and, by absolute values, means2d_abs_offset; `implementation="xla"` under jvp of grad, too, and
  "reference" in every order and mode. `jax.vmap` is as fast as a leading dimension.

  Computes in float32, or in float64 where an argument is; images come in the dtype of the features, gradients in the
  dtypes of the arguments.

  Args:
    projected: what to draw.
    features: one value per Gaussian and channel.
    background: what lies behind everything: one value per channel, or per pixel and channel. None is 0.
    width: of the image, pixels.
    height: of the image, pixels.
    config: see `Config`.
    implementation: a name ("xla", "pallas_triton", "pallas_mosaic_gpu", "pallas_mosaic_tpu", "reference", or what was
      registered), an `Implementation`, or several in order of preference, of which the first is taken that can draw
      on the device that the arguments are on. None takes the platform's own.
    interpret: run a Pallas kernel where its device is not, slowly.
    tile_mask: which tiles of `config.tile_size` pixels to draw, row by row; the others show the background alone.
    means2d_abs_offset: zeros; see `rasterize`.

  Returns:
    See `Composited`.

  Raises:
    ValueError: if shapes do not fit, naming them with their values; if no implementation can draw here, and why not.
  """
  width, height = arguments.size("width", width), arguments.size("height", height)
  arrays = projected_arrays(projected)
  num = arrays["means2d"].shape[-2]
  arrays["features"] = arguments.floats("features", features, (num, None))
  channels = arrays["features"].shape[-1]
  if background is not None:
    per_pixel = jnp.ndim(background) >= 3 and jnp.shape(background)[-3:-1] == (height, width)
    tail = (height, width, channels) if per_pixel else (channels,)
    arrays["background"] = arguments.floats("background", background, tail)
  if tile_mask is not None:
    columns, rows = tile_grid(width, height, config.tile_size)
    arrays["tile_mask"] = arguments.array("tile_mask", tile_mask, (rows, columns)).astype(bool)
  if means2d_abs_offset is not None:
    arrays["means2d_abs"] = arguments.floats("means2d_abs_offset", means2d_abs_offset, (num, 2))
  ranks = RANKS | ({"background": 3} if background is not None and per_pixel else {})

  batch = arguments.leading_shape(arrays, ranks)
  floating = {name: a for name, a in arrays.items() if jnp.issubdtype(a.dtype, jnp.floating)}
  dtype = jnp.promote_types(jnp.result_type(*floating.values()), jnp.float32)
  device = _device_of(arrays.values())
  chosen = implementations.choose(implementation, device, dtype, config, interpret=interpret)
  most = _most_channels(chosen, channels, config, "means2d_abs" in arrays), _most_frames(chosen, width, height, config)
  static = dict(
      support=projected.support, width=width, height=height, config=config, chosen=chosen, interpret=interpret, most=most
  )
  draw = lambda capacity: _composite(arrays, ranks, batch, dtype, static | {"capacity": capacity})

  return growing(draw, num, width, height, config)


# Of the arrays of `composite`, the dimensions that are not leading.
RANKS = {
    "features": 2,
    "means2d": 2,
    "conics": 2,
    "depths": 1,
    "opacities": 1,
    "extents": 2,
    "radii": 1,
    "background": 1,
    "tile_mask": 2,
    "means2d_abs": 2,
}


def projected_arrays(projected: Projected) -> dict[str, Array]:
  """The fields of `projected` as arrays, checked."""
  means2d = arguments.floats("projected.means2d", projected.means2d, (None, 2))
  num = means2d.shape[-2]
  arrays = {"means2d": means2d}
  for name, tail in (("conics", (num, 3)), ("depths", (num,)), ("opacities", (num,)), ("extents", (num, 2))):
    arrays[name] = arguments.floats(f"projected.{name}", getattr(projected, name), tail)
  return arrays | {"radii": arguments.array("projected.radii", projected.radii, (num,))}


def growing(draw: Callable, num: int, width: int, height: int, config: Config):
  """`draw(capacity)`, outside jit with as much room as it turns out to need; its result says `overflow`."""
  key = (num, width, height, config)
  output = draw(config.max_intersections or _enough.get(key) or guess_capacity(num, width, height, config))
  while (needed := _overflowing(output)) is not None:
    if needed >= 2**30:
      raise ValueError(
          f"{needed} or more (Gaussian, tile) pairs in one frame of {width} x {height}: do scales diverge, or does the "
          "camera stand inside of large Gaussians?"
      )
    _enough[key] = round_capacity(needed)
    output = draw(_enough[key])
  return output


def round_capacity(needed: int) -> int:
  """Rounds up to one of few sizes (steps of 1024, or of 12 to 25 %), so that growing lists compile few programs."""
  step = max(1024, 1 << max(0, (needed - 1).bit_length() - 3))
  return -(-needed // step) * step


def guess_capacity(num: int, width: int, height: int, config: Config) -> int:
  """Room for a typical scene: every tile twice covered and each Gaussian in a dozen tiles."""
  columns, rows = tile_grid(width, height, config.tile_size)
  tiles = columns * rows
  return round_capacity(max(1, min(12 * num + 2 * tiles, num * tiles)))


def _overflowing(output) -> int | None:
  """Capacity that would have been enough, if a list was full and the values can be seen, that is, outside jit."""
  try:
    if output.overflow.size and int(output.overflow.max()) > 0:
      return int(output.intersections.max())
  except jax.errors.ConcretizationTypeError:
    pass
  return None


def _device_of(arrays) -> jax.Device:
  """A device that the arrays are on; under tracing JAX's current one."""
  for array in arrays:
    if isinstance(array, jax.Array) and not isinstance(array, Tracer) and array.committed:
      return next(iter(array.devices()))
  return current_device()


def _composite(arrays, ranks, batch, dtype, static: dict) -> Composited:
  out_dtype = arrays["features"].dtype

  def draw_flat(arrays: dict) -> Composited:
    local = arguments.leading_shape(arrays, ranks)
    cast = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
    flat = {name: arguments.flatten(local, cast(a), ranks[name]) for name, a in arrays.items()}
    output = _draw(flat, **static)
    output = Composited(
        output.image.astype(out_dtype), output.alpha.astype(out_dtype), output.intersections, output.overflow
    )
    return jax.tree.map(lambda a: a.reshape(local + a.shape[1:]), output)

  return arguments.over_explicit_mesh(draw_flat, batch, arrays, ranks)


@functools.partial(
    jax.jit, static_argnames=("support", "width", "height", "config", "chosen", "interpret", "most", "capacity")
)
def _draw(
    arrays: dict[str, Array],
    *,
    support: str,
    width: int,
    height: int,
    config: Config,
    chosen: Implementation,
    interpret: bool,
    most: tuple[int, int | None],
    capacity: int,
) -> Composited:
  """`composite` of one batch dimension; `most` channels and frames at a time."""
  names = ("means2d", "conics", "depths", "opacities", "extents", "radii")
  projected = Projected(*(arrays[name] for name in names), support=support)
  features, background = arrays["features"], arrays.get("background")
  frames, num, channels = features.shape
  if not frames or not num:
    image = jnp.zeros((frames, height, width, channels), features.dtype)
    transmittance = jnp.ones((frames, height, width), features.dtype)
    intersections = overflow = jnp.zeros(frames, jnp.int32)
  else:
    draw = functools.partial(
        chosen.composite, width=width, height=height, config=config, capacity=capacity, interpret=interpret
    )
    given = projected, features, arrays.get("tile_mask"), arrays.get("means2d_abs")
    image, transmittance, intersections, overflow = _in_groups(draw, *given, *most)
  if background is not None:
    behind = background if background.ndim == 4 else background[:, None, None]
    image = image + transmittance[..., None] * behind
  alpha = 1 - transmittance
  if config.on_overflow == "nan":
    lost = (overflow > 0)[:, None, None]
    image, alpha = jnp.where(lost[..., None], jnp.nan, image), jnp.where(lost, jnp.nan, alpha)
  elif config.on_overflow == "error":
    jax.debug.callback(_raise_overflow, intersections, overflow, capacity)
  return Composited(image, alpha, intersections, overflow)


def _raise_overflow(intersections, overflow, capacity) -> None:
  if overflow.max() > 0:
    raise ValueError(
        f"a frame needs {intersections.max()} (Gaussian, tile) pairs, Config.max_intersections has room for {capacity}"
    )


def _most_channels(chosen: Implementation, channels: int, config: Config, absolute: bool) -> int:
  """How many channels to draw at a time. An absolute value of a sum over all channels is wanted whole."""
  most = chosen.most_channels(config, absolute=True) if absolute else chosen.most_channels(config)
  if absolute and most is not None and channels > most:
    raise ValueError(
        f"means2d_abs_offset with {channels} channels (depth is one) in tiles of {config.tile_size}: "
        f"{chosen.name} takes at most {most}"
    )
  return channels if most is None else most


def _most_frames(chosen: Implementation, width: int, height: int, config: Config) -> int | None:
  most = chosen.most_tiles(config)
  if most is None:
    return None
  tiles = math.prod(tile_grid(width, height, config.tile_size))
  if tiles > most:
    raise ValueError(
        f"{width} x {height} pixels are {tiles} tiles of {config.tile_size}, {chosen.name} draws at most {most}: "
        "take larger tiles"
    )
  return most // tiles


def _in_groups(
    draw: Callable, projected, features, tile_mask, means2d_abs, most_channels: int, most_frames: int | None
):
  """All frames and channels, as many at a time as the implementation draws."""
  frames, _, channels = features.shape
  most_frames = most_frames or frames

  def draw_frames(projected, features, tile_mask, means2d_abs):
    groups = [
        draw(projected, features[..., i : i + most_channels], tile_mask=tile_mask, means2d_abs=means2d_abs)
        for i in range(0, max(1, channels), max(1, most_channels))
    ]
    return jnp.concatenate([image for image, *_ in groups], axis=-1), *groups[0][1:]

  given = projected, features, tile_mask, means2d_abs
  groups = [
      draw_frames(*jax.tree.map(lambda a: a[i : i + most_frames], given)) for i in range(0, frames, most_frames)
  ]
  return groups[0] if len(groups) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *groups)
