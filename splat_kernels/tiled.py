"""Tiled compositing but for the walk through the tiles: what `xla` and the Pallas implementations have in common.

An implementation is a subclass of `Tiled` with two methods that go through every tile's list. Everything around them is
here: lists, parameters per slot, the custom gradient, gradients per Gaussian, `vmap`.

Backward the lists are walked again, so that nothing is stored per (pixel, Gaussian). All gradients of a slot are moments
over the tile's pixels, written once to the slot's own row; a segment sum adds the rows of a Gaussian. No atomics: reruns
are bit-equal.
"""

import abc
import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from splat_kernels.binning import make_bins
from splat_kernels.implementations import Implementation
from splat_kernels.stages import columns, stage
from splat_kernels.tiles import count_tiles, tile, tile_centres, untile
from splat_kernels.types import Config, Projected


class Tiled(Implementation):
  """How an implementation goes through the tiles' lists. One object per implementation: it is a static argument.

  Letters: J chunks of K slots, BT tiles of all frames, P pixels of a tile, C channels.

  The table holds per slot 7 + C numbers: l_xx, l_xy, u, l_yy, v, e, the C features, and 1. With x, y of a pixel
  relative to the tile's centre,
    scale * ln alpha = e - (l_xx x + l_xy y + u)^2 - (l_yy y + v)^2,
  the Cholesky form of the conic, which has neither the cancellation nor the positive exponents of the expanded
  polynomial. In empty slots ln alpha is below -800 everywhere, and they must come out as skipped.

  Attributes:
    scale: of the table's exponent, see above.
    transposed: whether table and moments have one row per number, (7 + C, J * K) and (8 + C, J * K), instead of one
      per slot, (J, K, 7 + C) and (J, K, 8 + C).
    has_absolute: whether `backward` knows `absolute`.
    has_second_order: whether JAX can differentiate `forward` and `backward` (forward mode, for Hessian-vector products).
  """

  scale: float
  transposed = False
  has_absolute = True
  has_second_order = False

  @abc.abstractmethod
  def unsupported(self, device: jax.Device, config: Config) -> str | None:
    """Why this cannot compile for a device, in a few words; None if it can."""

  def unsupported_dtype(self, dtype: jnp.dtype) -> str | None:
    """Why this cannot compute in a dtype of float32 or better; None if it can."""
    return None if dtype == jnp.float32 else f"computes in float32, not {dtype}"

  @abc.abstractmethod
  def make_lists(self, bins, num: int, config: Config) -> Any:
    """(Bins of all frames, N, config) to the lists: a pytree with `TileLists.gaussians` and `TileLists.tiles`, and
    whatever else the two walks want to know. Leading axes of its leaves are proportional to the number of frames."""

  @abc.abstractmethod
  def forward(
      self, table, lists, num_tiles: int, config: Config, *, save: bool, interpret: bool
  ) -> tuple[Float[Array, "BT C1 P"], Any]:
    """(table, lists, number of tiles BT, config) to sums, and a pytree of whatever `backward` wants to know of the walk,
    not looked at unless `save`.

    The sums are over the tile's Gaussians of weight times feature, and lastly of weights (the table's 1 as a feature);
    0 in tiles without Gaussians. Leading axes of what is saved are proportional to the number of frames.
    """

  @abc.abstractmethod
  def backward(
      self, table, lists, gradient, saved, config: Config, *, absolute: bool, interpret: bool
  ) -> Float[Array, "J K M"] | Float[Array, "M S"]:
    """(table, lists, d loss / d sums (BT, C + 1, P), what `forward` saved, config) to moments, 8 + C numbers per slot.

    The sums over the tile's pixels of d loss / d ln(alpha) times `monomials`, and of weight times the gradients of the
    C channels; 0 in slots that are never reached, anything in empty ones; more numbers than 8 + C are not looked at.
    With `absolute` the two moments that `monomials` leaves 0 hold the sums over pixels of the absolute values of
    d loss / d centre, x and y.

    What lies behind a Gaussian has to be summed from the back, or else with more digits: "the total minus what was
    accumulated" loses what is faint behind what is bright.
    """

  def sum_slots(self, values: Float[Array, "S M"], gaussians: Int[Array, "S"], num: int, *, interpret: bool):
    """Numbers per slot to sums per Gaussian (G, M), in an order that is the same in every run; `gaussians` is the
    Gaussian of each slot, G in slots that belong to none."""
    del interpret
    return jax.ops.segment_sum(values, gaussians, num + 1)[:-1]

  def around_stages(self, indices: Int[Array, "*s"]) -> contextlib.AbstractContextManager:
    """A context to trace the steps around the walks in; `indices` are not negative. See `stages.computed_once`."""
    del indices
    return contextlib.nullcontext()

  def frames_apart(self) -> bool:
    """Whether the frames of a batch are drawn one after another; else all at once."""
    return False

  def composite(
      self,
      projected: Projected,
      features: Float[Array, "B N C"],
      *,
      width: int,
      height: int,
      config: Config,
      capacity: int,
      interpret: bool = False,
      tile_mask: Bool[Array, "B rows columns"] | None = None,
      means2d_abs: Float[Array, "B N 2"] | None = None,
  ) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W"], Int[Array, "B"], Int[Array, "B"]]:
    """See `implementations.Implementation.composite`."""
    if means2d_abs is not None and not self.has_absolute:
      raise ValueError(f"{self.name} has no absolute gradients: means2d_abs_offset must be None")
    drawing = Drawing(self, width, height, config, capacity, interpret)
    shapes = Shapes(projected.means2d, means2d_abs, projected.conics, projected.opacities)
    differentiable = _differentiable[not isinstance(interpret, bool)]
    return differentiable(drawing, shapes, features, jax.lax.stop_gradient(projected), tile_mask)


def result_shape(shape: tuple[int, ...], dtype, like: Array) -> jax.ShapeDtypeStruct:
  """Shape of a kernel's result that varies over the devices of a `shard_map` as an argument does, as `check_vma` asks."""
  varying = lambda: jnp.broadcast_to((like.reshape(-1)[0] != like.reshape(-1)[0]).astype(dtype), shape)
  return jax.eval_shape(varying)


class Drawing(NamedTuple):
  """What is known while tracing."""

  tiled: Tiled
  width: int
  height: int
  config: Config
  capacity: int
  interpret: Any


class Shapes(NamedTuple):
  """What of `Projected` is differentiated, and the zeros whose gradients are absolute ones."""

  means2d: Float[Array, "B N 2"]
  means2d_abs: Float[Array, "B N 2"] | None
  conics: Float[Array, "B N 3"]
  opacities: Float[Array, "B N"]


class Residuals(NamedTuple):
  """What the backward pass reads again."""

  shapes: Shapes
  lists: Any
  table: Float[Array, "J K D"] | Float[Array, "D S"]
  saved: Any


def _composite(drawing: Drawing, shapes: Shapes, features, projected: Projected, tile_mask):
  """Sums of weight times feature, transmittance, (Gaussian, tile) pairs, and those that found no room."""
  return _batched(_forward, drawing, save=False)(shapes, features, projected, tile_mask)[0]


def _composite_forward(drawing: Drawing, shapes: Shapes, features, projected: Projected, tile_mask):
  return _batched(_forward, drawing, save=True)(shapes, features, projected, tile_mask)


def _composite_backward(drawing: Drawing, residuals: Residuals, gradients):
  return *_batched(_backward, drawing)(residuals, *gradients[:2]), None, None


# Under `jax.checkpoint` the forward pass that saves nothing is enough for the first round. An interpreter that looks for
# races has side effects, which JAX refuses there.
_differentiable = {has_effects: jax.custom_vjp(_composite, nondiff_argnums=(0,)) for has_effects in (False, True)}
for _has_effects, _function in _differentiable.items():
  _function.defvjp(_composite_forward, _composite_backward, optimize_remat=not _has_effects)


# ---- Batches ----


def _batched(function: Callable, drawing: Drawing, **options) -> Callable:
  """`function(drawing, *trees, **options)`, whose trees' leaves have frames first, where `vmap` makes the batch longer.

  Otherwise an axis of `vmap` would reach the loops, which would go through all frames in step and to the last one's end.
  """
  call = functools.partial(function, drawing, **options)
  apart = drawing.tiled.frames_apart()
  batched = jax.custom_batching.custom_vmap(_frame_by_frame(call) if apart else call)

  @batched.def_vmap
  def _(size: int, in_batched, *trees):
    if isinstance(trees[0], Residuals) and not apart and not all(jax.tree.leaves(in_batched[0])):
      # Several gradients of one image: lists count chunks through all frames, so that they cannot be repeated.
      pick = lambda i: jax.tree.map(lambda is_batched, a: a[i] if is_batched else a, tuple(in_batched), trees)
      results = jax.lax.map(lambda i: batched(*pick(i)), jnp.arange(size))
      return results, jax.tree.map(lambda _: True, results)
    frames = lambda is_batched, a: a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
    trees = jax.tree.map(frames, tuple(in_batched), trees)
    one = jax.eval_shape(batched, *jax.tree.map(lambda a: a[0], trees))
    along = functools.partial(_growing_axes, columns=drawing.tiled.transposed and not apart)
    merged = batched(*jax.tree.map(_merge, trees, along(trees)))
    split = jax.tree.map(functools.partial(_split, size), merged, one, along(one))
    return split, jax.tree.map(lambda _: True, split)

  return batched


def _frame_by_frame(call: Callable) -> Callable:
  """`call` for one frame after another. What it leaves for the backward pass stays apart by frame."""

  def one_frame(trees):
    alone = lambda tree: tree if isinstance(tree, Residuals) else jax.tree.map(lambda a: a[None], tree)
    results = call(*map(alone, trees))
    first = lambda tree: tree if isinstance(tree, Residuals) else jax.tree.map(lambda a: a[0], tree)
    return jax.tree.map(first, results, is_leaf=lambda tree: isinstance(tree, Residuals))

  def all_frames(*trees):
    if jax.tree.leaves(trees)[0].shape[0] > 1:
      return jax.lax.map(one_frame, trees)
    return jax.tree.map(lambda a: a[None], one_frame(jax.tree.map(lambda a: a[0], trees)))

  return all_frames


def _growing_axes(tree, *, columns: bool):
  """Which axis of each leaf grows with the number of frames: the first, but for a table of columns."""
  is_residuals = lambda node: isinstance(node, Residuals)
  return jax.tree.map(
      lambda node: node._replace(**jax.tree.map(lambda _: 0, node)._asdict() | {"table": int(columns)})
      if is_residuals(node)
      else 0,
      tree,
      is_leaf=is_residuals,
  )


def _merge(array: Shaped[Array, "A *s"], axis: int) -> Shaped[Array, "*t"]:
  """The batches of an axis of `vmap`, one behind the other."""
  array = jnp.moveaxis(array, 0, axis)
  return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])


def _split(size: int, array: Array, one, axis: int):
  """`_merge` undone."""
  return jnp.moveaxis(array.reshape(*array.shape[:axis], size, *one.shape[axis:]), axis, 0)


# ---- One batch ----


def _forward(drawing: Drawing, shapes: Shapes, features, projected: Projected, tile_mask, *, save: bool):
  tiled, width, height, config, capacity, interpret = drawing
  batch, num, channels = features.shape
  size = config.tile_size
  with tiled.around_stages(projected.radii):
    bin_frame = functools.partial(make_bins, width=width, height=height, config=config, capacity=capacity)
    bins = jax.vmap(lambda p, mask: bin_frame(p, tile_mask=mask))(_once(projected), tile_mask)
    lists = stage(tiled.make_lists)(bins, num, config)
    shapes, features = _once(shapes), _once(features)
    table = _slot_table(tiled, shapes, features, lists, width, height, size)
    walk = functools.partial(tiled.forward, num_tiles=count_tiles(batch, width, height, size), config=config)
    sums, saved = _once_differentiable(tiled, functools.partial(walk, save=save, interpret=interpret))(table, lists)
    image = untile(sums[:, :channels], batch, width, height, size)
    transmittance = untile(1 - sums[:, channels:], batch, width, height, size)[..., 0]
  outputs = image, transmittance, bins.intersections, bins.overflow
  return outputs, Residuals(shapes, lists, table, saved) if save else None


def _backward(drawing: Drawing, residuals: Residuals, grad_image, grad_transmittance) -> tuple[Shapes, Array]:
  tiled, width, height, config, _, interpret = drawing
  shapes, lists, table, saved = residuals
  batch, num, _ = shapes.means2d.shape
  channels, absolute = grad_image.shape[-1], shapes.means2d_abs is not None
  with tiled.around_stages(lists.gaussians):
    gradient = _tile_gradients(grad_image, grad_transmittance, config.tile_size)
    walk = functools.partial(tiled.backward, config=config, absolute=absolute, interpret=interpret)
    moments = _once_differentiable(tiled, walk)(table, lists, gradient, saved)
    if tiled.transposed:
      moments = moments.T.reshape(*lists.gaussians.shape, -1)
    per_slot = _slot_gradients(moments, shapes, channels, lists, width, height, config.tile_size)
    summed = tiled.sum_slots(per_slot, lists.gaussians.reshape(-1), batch * num, interpret=interpret)
    return _parts(summed.reshape(batch, num, -1), channels, absolute)


def _once_differentiable(tiled: Tiled, walk: Callable) -> Callable:
  """The walk, with one line in place of what JAX says of a Pallas kernel that is to be differentiated."""
  if tiled.has_second_order:
    return walk
  guarded = jax.custom_jvp(walk)

  @guarded.defjvp
  def _(*_):
    raise NotImplementedError(
        f"{tiled.name} has first derivatives only, by reverse mode: take implementation='xla' for jvp of grad, "
        "'reference' for any other order or mode"
    )

  return guarded


@stage
def _once(tree):
  return tree


@stage
def _tile_gradients(grad_image, grad_transmittance, size: int) -> Float[Array, "BT C1 P"]:
  """d loss / d sums. Transmittance is 1 - sum of weights: one more channel, of colour 1."""
  return jnp.concatenate([tile(grad_image, size), -tile(grad_transmittance[..., None], size)], axis=1)


@stage
def _parts(summed: Float[Array, "B N M"], channels: int, absolute: bool) -> tuple[Shapes, Float[Array, "B N C"]]:
  """Gradients of shapes and of features."""
  grad_abs = summed[..., 6 + channels :] if absolute else None
  return Shapes(summed[..., :2], grad_abs, summed[..., 2:5], summed[..., 5]), summed[..., 6 : 6 + channels]


@stage
def _slot_table(tiled: Tiled, shapes: Shapes, features, lists, width: int, height: int, size: int):
  """Per slot what the pixel loops read; see `Tiled`."""
  rows = _rows(_table_of_gaussians(tiled.scale, shapes, features), lists)
  x, y = tile_centres(lists.tiles, width, height, size)
  dx, dy = x[:, None] - rows[..., 4], y[:, None] - rows[..., 5]
  u = rows[..., 0] * dx + rows[..., 1] * dy
  v = rows[..., 2] * dy
  index = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 2)
  pick = lambda i, value, rest: jnp.where(index == i, value[..., None], rest)
  swapped = pick(2, u, pick(3, rows[..., 2], pick(4, v, pick(5, rows[..., 3], rows))))
  table = jnp.pad(swapped, ((0, 0), (0, 0), (0, 1)), constant_values=1)
  return table.reshape(-1, table.shape[-1]).T if tiled.transposed else table


@stage
def _table_of_gaussians(scale: float, shapes: Shapes, features) -> Float[Array, "G1 D"]:
  """l_xx, l_xy, l_yy, e, x and y of the centre, features; lastly those of empty slots."""
  conics, means2d = shapes.conics, shapes.means2d
  a, b, c = conics[..., 0], conics[..., 1], conics[..., 2]
  l_xx = jnp.sqrt(a * (scale / 2))
  l_xy = b / a * l_xx
  l_yy = jnp.sqrt(jnp.maximum((c - b * b / a) * (scale / 2), 0))
  log_opacity = jnp.log(jnp.maximum(shapes.opacities, 1e-30)) * scale
  shape = columns(l_xx, l_xy, l_yy, log_opacity, means2d[..., 0], means2d[..., 1])
  per_gaussian = jnp.concatenate([shape, features], axis=-1).reshape(-1, 6 + features.shape[-1])
  empty = jnp.zeros_like(per_gaussian[:1]).at[0, 3].set(-800 * scale)  # Alpha of empty slots is 0.
  return jnp.concatenate([per_gaussian, empty])


@stage
def _rows(per_gaussian: Float[Array, "G1 D"], lists) -> Float[Array, "J K D"]:
  return per_gaussian[lists.gaussians]


@stage
def _slot_gradients(moments, shapes: Shapes, channels: int, lists, width: int, height: int, size: int):
  """Moments about the tile's centre to gradients of mean, conic, opacity, features and, if asked for, absolute mean.

  With q = d loss / d alpha * alpha and d = pixel - mean: ln alpha = ln opacity - d^T conic d / 2.
  """
  absolute = shapes.means2d_abs is not None
  x, y = tile_centres(lists.tiles, width, height, size)
  per_gaussian = jnp.concatenate([shapes.means2d, shapes.conics, shapes.opacities[..., None]], axis=-1).reshape(-1, 6)
  rows = _rows(_with_ones(per_gaussian), lists)
  mx, my = rows[..., 0] - x[:, None], rows[..., 1] - y[:, None]  # The mean, relative to the tile's centre.
  q, qx, qy, qxx, qxy, qyy = (moments[..., i] for i in range(6))
  dx, dy = qx - mx * q, qy - my * q
  dxx, dxy, dyy = qxx - mx * (qx + dx), qxy - mx * qy - my * dx, qyy - my * (qy + dy)
  a, b, c = rows[..., 2], rows[..., 3], rows[..., 4]
  opacity = jnp.maximum(rows[..., 5], 1e-30)
  shape = columns(a * dx + b * dy, b * dx + c * dy, -0.5 * dxx, -dxy, -0.5 * dyy, q / opacity)
  rest = [moments[..., 8 : 8 + channels]] + [moments[..., 6:8]] * absolute
  return jnp.concatenate([shape, *rest], axis=-1).reshape(-1, 6 + channels + 2 * absolute)


@stage
def _with_ones(per_gaussian: Float[Array, "G D"]) -> Float[Array, "G1 D"]:
  return jnp.concatenate([per_gaussian, jnp.ones_like(per_gaussian[:1])])
