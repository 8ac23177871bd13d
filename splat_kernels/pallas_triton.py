"""Tiled compositing on NVIDIA GPUs: Pallas kernels in their Triton form, for Ampere and later.

Forward, one program draws one tile: its pixels lie in registers, a few per thread, and Gaussians are taken one after
the other, UNROLL between two looks at whether all pixels are finished. At the start of every chunk of CHUNK slots the
transmittance and the colours so far are saved, so that backward one program takes one chunk, whichever tile it is of:
the work is spread evenly, however long the lists are. A slot's moments are written once, to its own place; no atomics.

What is not obvious about the speed of the compiled code:
  - Pallas's Triton lowering emits multiplications and additions that ptxas may not contract to fused ones, and an exp2
    that handles denormals; see `Arithmetic`.
  - A tile is stored column by column, and `P = lanes * vectors` pixels as `vectors` arrays of one value per thread.
    Then y is the same in all of a thread's pixels, and half of the exponent and of the moments is done once a thread.
  - Slots of the table are padded to a power of two, so that the compiler sees addresses of the form base | constant.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int

from splat_kernels.binning import Bins
from splat_kernels.platforms import needs_nvidia
from splat_kernels.tile_lists import TileLists, make_tile_lists
from splat_kernels.tiled import Tiled, result_shape
from splat_kernels.types import Config

CHUNK = 64  # Slots of one program of the backward pass; the saved state takes (C + 1) * P * 4 bytes per chunk.
UNROLL = 8  # Slots between two looks at the transmittance in the forward pass, written out one after the other.
BLOCK = 32  # Slots whose moments a program collects before it writes them: one per thread of a warp.
CHANNELS = 8  # Drawn at a time.
LOG2_E = float(np.log2(np.e))
HEAD = 6  # Numbers in a slot's row before the features; see `Tiled`.


class PallasTriton(Tiled):
  """See the head of this file."""

  name = "pallas_triton"
  scale = LOG2_E

  def unsupported(self, device: jax.Device, config: Config) -> str | None:
    del config
    return needs_nvidia(device, 8)

  def most_channels(self, config: Config, *, absolute: bool = False) -> int | None:
    del config
    return None if absolute else CHANNELS  # A thread's registers hold no more.

  def make_lists(self, bins: Bins, num: int, config: Config) -> TileLists:
    del config
    return make_tile_lists(bins, num, CHUNK)

  def forward(self, table, lists: TileLists, num_tiles: int, config: Config, *, save: bool, interpret: bool):
    """See `Tiled.forward`; saved: sums, the state before each chunk (J, C + 1, P), the slots walked in each tile."""
    channels, pixels = table.shape[-1] - HEAD - 1, config.tile_size**2
    chunks = table.shape[0]
    shapes = [result_shape((num_tiles, channels + 1, pixels), jnp.float32, table)]
    if save:
      shapes += [
          result_shape((chunks, channels + 1, pixels), jnp.float32, table),
          result_shape((num_tiles,), jnp.int32, table),
      ]
    kernel = functools.partial(_forward_kernel, channels, config)
    # Four pixels per thread. With two, twice as many threads load the same parameters; with eight, a frame of 512 x 512
    # may have too few warps to hide how long loads take.
    call = self.call(
        kernel, shapes, grid=num_tiles, pixels=pixels, per_thread=4, name="splat_forward", interpret=interpret
    )
    tiles, *saved = call(_pad_rows(table), lists.starts, lists.counts)
    sums = _swap(tiles, config)
    return sums, (sums, *saved) if save else None

  def backward(self, table, lists: TileLists, gradient, saved, config: Config, *, absolute: bool, interpret: bool):
    """See `Tiled.backward`."""
    channels, pixels = table.shape[-1] - HEAD - 1, config.tile_size**2
    chunks = table.shape[0]
    sums, states, walked = saved
    total = sum(sums[:, c] * gradient[:, c] for c in range(channels + 1))
    shape = result_shape((8 + channels, chunks * CHUNK), jnp.float32, table)
    kernel = functools.partial(_backward_kernel, channels, absolute, config)
    # Eight pixels per thread: a tile of 16 x 16 is one warp's, whose sums need neither shared memory nor a barrier.
    call = self.call(
        kernel, [shape], grid=chunks, pixels=pixels, per_thread=8, name="splat_backward", interpret=interpret
    )
    tiles = lists.tiles.astype(jnp.int32)
    left = walked[tiles] - (jnp.arange(chunks, dtype=jnp.int32) - lists.starts[tiles]) * CHUNK
    in_use = jnp.arange(chunks, dtype=jnp.int32) < lists.ends[-1]
    counts = jnp.where(in_use, jnp.clip(left, 0, CHUNK), -1)
    (moments,) = call(_pad_rows(table), tiles, counts, _swap(gradient, config), _swap(total, config), states)
    return jnp.moveaxis(moments.reshape(-1, chunks, CHUNK), 0, -1)

  def sum_slots(self, values: Float[Array, "S M"], gaussians: Int[Array, "S"], num: int, *, interpret: bool):
    """See `Tiled.sum_slots`. XLA's own segment sums add by atomics on GPUs, in an order that differs between runs."""
    slots, starts = sort_by_gaussian(gaussians, num)
    columns = values.shape[1]
    values = jnp.pad(values, ((0, 0), (0, _stride(columns) - columns)))
    shape = result_shape((num, values.shape[1]), jnp.float32, values)
    call = self.call(_sum_kernel, [shape], grid=num, pixels=BLOCK, per_thread=1, name="splat_sum", interpret=interpret)
    (sums,) = call(jnp.pad(slots, (0, BLOCK)), starts, values)
    return sums[:, :columns]

  def call(
      self, kernel: Callable, shapes: list, *, grid: int, pixels: int, per_thread: int, name: str, interpret: bool
  ) -> Callable:
    """A `pallas_call` of `kernel(target, *refs)`."""
    if interpret:  # Fewer and longer vectors, and less written out: XLA compiles it in a tenth of the time.
      target = Target(pixels // 2, 2, PLAIN)
      how = {"interpret": True}
    else:
      warps = max(1, pixels // (32 * per_thread))
      target = Target(min(pixels, 32 * warps), UNROLL, _PTX)
      # Parameters name the backend: without them JAX 0.10 would take Mosaic GPU, which needs Hopper.
      how = {"compiler_params": pltriton.CompilerParams(num_warps=warps, num_stages=1)}
    return pl.pallas_call(functools.partial(kernel, target), shapes, grid=(grid,), name=name, **how)


def sort_by_gaussian(gaussians: Int[Array, "S"], num: int) -> tuple[Int[Array, "S"], Int[Array, "G1"]]:
  """Slots sorted by Gaussian, and where each Gaussian's slots start in that order, and the last one's end."""
  slots = jnp.arange(gaussians.shape[0], dtype=jnp.int32)
  _, slots = jax.lax.sort((gaussians, slots), num_keys=1, is_stable=True)
  return slots, jnp.cumsum(jnp.zeros(num + 1, jnp.int32).at[gaussians + 1].add(1, mode="drop"))


# ---- Layouts ----


def _pad_rows(table: Float[Array, "J K D"]) -> Float[Array, "S"]:
  """Rows padded to a power of two, without the last column, which is 1."""
  return jnp.pad(table[..., :-1], ((0, 0), (0, 0), (0, _stride(table.shape[-1] - 1) - table.shape[-1] + 1))).reshape(-1)


def _stride(numbers: int) -> int:
  return 1 << (numbers - 1).bit_length()


def _swap(tiles: Float[Array, "*b P"], config: Config) -> Float[Array, "*b P"]:
  """Pixels row by row to column by column, or back."""
  square = tiles.reshape(*tiles.shape[:-1], config.tile_size, config.tile_size)
  return square.swapaxes(-1, -2).reshape(tiles.shape)


class Arithmetic(NamedTuple):
  """Operations on float32 that Pallas's Triton lowering has no exact counterpart of. Arguments broadcast.

  With `a * b + c` the compiled loops have more instructions; docs/rasterizer.md has how many.
  """

  fma: Callable  # a * b + c
  fnma: Callable  # c - a * b
  exp2: Callable
  reciprocal: Callable


def _ptx(text: str) -> Callable:
  def operation(*args):
    shape = jnp.broadcast_shapes(*(jnp.shape(a) for a in args))
    (result,) = pltriton.elementwise_inline_asm(
        text,
        args=[jnp.broadcast_to(jnp.asarray(a, jnp.float32), shape) for a in args],
        constraints=",".join(["=f"] + ["f"] * len(args)),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, jnp.float32)],
    )
    return result

  return operation


_PTX = Arithmetic(
    fma=_ptx("fma.rn.f32 $0, $1, $2, $3;"),
    fnma=_ptx("{ .reg .f32 t; neg.f32 t, $1; fma.rn.f32 $0, t, $2, $3; }"),
    exp2=_ptx("ex2.approx.ftz.f32 $0, $1;"),
    reciprocal=_ptx("rcp.approx.ftz.f32 $0, $1;"),
)
PLAIN = Arithmetic(
    fma=lambda a, b, c: a * b + c,
    fnma=lambda a, b, c: c - a * b,
    exp2=jnp.exp2,
    reciprocal=lambda a: 1 / a,
)


class Target(NamedTuple):
  """How a kernel is written out."""

  lanes: int  # Pixels of one vector.
  unroll: int
  ops: Arithmetic = PLAIN
  program: Callable = functools.partial(pl.program_id, 0)  # Index of the program in the grid.
  iota: Callable = functools.partial(jax.lax.iota, jnp.int32)
  collects: bool = True  # Whether BLOCK slots' moments are written together, or each slot's by itself.


# ---- Kernels ----


class _Pixels(NamedTuple):
  """A tile's pixels as `vectors` arrays of `lanes` values: pixel `vector * lanes + lane`, column by column."""

  lanes: int
  vectors: int
  x: Float[Array, "lanes"]  # Of vector 0, relative to the tile's centre; `step` more from vector to vector.
  y: Float[Array, "lanes"]  # The same in all vectors.
  step: float

  def load(self, ref, *index) -> list[Float[Array, "lanes"]]:
    return [ref[(*index, pl.ds(i * self.lanes, self.lanes))] for i in range(self.vectors)]

  def store(self, ref, *index, values) -> None:
    for i in range(self.vectors):
      ref[(*index, pl.ds(i * self.lanes, self.lanes))] = values[i]


def _pixels(target: Target, size: int) -> _Pixels:
  lanes, lane = target.lanes, target.iota(target.lanes)
  centred = lambda i: i.astype(jnp.float32) + (0.5 - size / 2)
  return _Pixels(lanes, size**2 // lanes, centred(lane // size), centred(lane % size), float(lanes // size))


def _exponents(ops: Arithmetic, table, row, pixels: _Pixels) -> tuple[list, list, Float[Array, "lanes"]]:
  """log2 of a Gaussian's alpha before it is clamped, and what is squared and subtracted, along x and along y.

  See `Tiled`; the Gaussian's numbers stand in `table` from `row` on.
  """
  l_xx, l_xy, u, l_yy, v, log_opacity = (table[row + i] for i in range(HEAD))
  below = ops.fma(l_yy, pixels.y, v)
  highest = ops.fnma(below, below, log_opacity)
  first = ops.fma(l_xx, pixels.x, ops.fma(l_xy, pixels.y, u))
  beside = [ops.fma(l_xx, i * pixels.step, first) if i else first for i in range(pixels.vectors)]
  return [ops.fnma(b, b, highest) for b in beside], beside, below


def _alpha(ops: Arithmetic, config: Config, exponent):
  """Alpha, 0 where skipped."""
  lowest = np.float32(np.log2(config.alpha_min))
  return jnp.where(exponent >= lowest, jnp.minimum(ops.exp2(exponent), config.alpha_max), 0.0)


def _forward_kernel(channels: int, config: Config, target: Target, table, starts, counts, tiles, *saved):
  """Draws one tile: sums of weight times feature and of weights to `tiles`.

  Args:
    table: (S,), rows of slots.
    starts: (BT,), first chunk of each tile.
    counts: (BT,), slots of each tile.
    tiles: (BT, C + 1, P), written.
    saved: nothing, or what `_forward` calls so, written.
  """
  tile = target.program()
  ops = target.ops
  pixels = _pixels(target, config.tile_size)
  start, count = starts[tile], counts[tile]
  stride = _stride(HEAD + channels)

  def save(at, transmittance, sums):
    chunk = start + at // CHUNK
    for c in range(channels):
      pixels.store(saved[0], chunk, c, values=sums[c])
    pixels.store(saved[0], chunk, channels, values=transmittance)

  def draw(state):
    at, transmittance, sums = state
    if saved:
      pl.when(at % CHUNK == 0)(lambda: save(at, transmittance, sums))
    group = (start * (CHUNK // target.unroll) + at // target.unroll) * (target.unroll * stride)
    for k in range(target.unroll):
      row = group + k * stride
      alphas = [_alpha(ops, config, e) for e in _exponents(ops, table, row, pixels)[0]]
      features = [table[row + HEAD + c] for c in range(channels)]
      weights = [t * a for t, a in zip(transmittance, alphas)]
      # It goes on falling in finished pixels: having passed the minimum is what marks them as finished.
      transmittance = tuple(ops.fnma(t, a, t) for t, a in zip(transmittance, alphas))
      weights = [jnp.where(t > config.transmittance_min, w, 0.0) for t, w in zip(transmittance, weights)]
      colors = [tuple(ops.fma(f, w, s) for w, s in zip(weights, sums[c])) for c, f in enumerate(features)]
      sums = (*colors, tuple(s + w for s, w in zip(sums[channels], weights)))
    return at + target.unroll, transmittance, sums

  def unfinished(state):
    at, transmittance, _ = state
    return (at < count) & (jnp.max(functools.reduce(jnp.maximum, transmittance)) > config.transmittance_min)

  constant = lambda value: (jnp.full(pixels.lanes, value, jnp.float32),) * pixels.vectors
  state = jnp.int32(0), constant(1.0), (constant(0.0),) * (channels + 1)
  at, _, sums = jax.lax.while_loop(unfinished, draw, state)
  for c in range(channels + 1):
    pixels.store(tiles, tile, c, values=sums[c])
  if saved:
    saved[1][tile] = at


def _backward_kernel(
    channels: int,
    absolute: bool,
    config: Config,
    target: Target,
    table,
    tiles,
    counts,
    gradient,
    total,
    states,
    moments,
):
  """Moments of the slots of one chunk.

  Args:
    table: (S,), rows of slots.
    tiles: (J,), tile of each chunk.
    counts: (J,), slots of each chunk that were walked forward; -1 in unused chunks.
    gradient: (BT, C + 1, P), d loss / d sums.
    total: (BT, P), sums times gradients.
    states: (J, C + 1, P), colours so far and the transmittance, before each chunk.
    moments: (8 + C, S), written; rows 6 and 7 with the sums of absolute values or not at all.
  """
  chunk = target.program()
  tile, count = tiles[chunk], counts[chunk]
  ops = target.ops
  pixels = _pixels(target, config.tile_size)
  stride = _stride(HEAD + channels)
  written = [*range(8 if absolute else 6), *range(8, 8 + channels)]
  highest = np.float32(np.log2(config.alpha_max))

  def pull_one(gradients, row, state):
    transmittance, left = state
    features = [table[row + HEAD + c] for c in range(channels)]
    following, remaining = [], []
    constant, linear, quadratic, colors = 0.0, 0.0, 0.0, [0.0] * channels
    slopes = [0.0] * (2 * absolute)
    exponents, beside, below = _exponents(ops, table, row, pixels)
    for i, exponent in enumerate(exponents):
      alpha = _alpha(ops, config, exponent)
      after = ops.fnma(transmittance[i], alpha, transmittance[i])
      alpha = jnp.where(after > config.transmittance_min, alpha, 0.0)  # Nothing is drawn in finished pixels.
      weight = transmittance[i] * alpha
      gain = gradients[channels][i]
      for c in range(channels):
        gain = ops.fma(features[c], gradients[c][i], gain)
      gain = weight * gain
      behind = left[i] - gain
      # d loss / d ln(alpha): T gain alpha - (what comes behind) alpha / (1 - alpha).
      pull = ops.fnma(behind, alpha * ops.reciprocal(1 - alpha), gain)
      clamped = exponent > highest
      if config.clamp_passes_gradient:  # As if nothing were clamped: d alpha / d ln(alpha) is the free alpha.
        pull = jnp.where(clamped, pull * (ops.exp2(exponent) / config.alpha_max), pull)
      else:
        pull = jnp.where(clamped, 0.0, pull)
      following.append(after)
      remaining.append(behind)
      shift = i * pixels.step
      constant = pull + constant
      linear = ops.fma(pull, shift, linear)
      quadratic = ops.fma(pull, shift * shift, quadratic)
      colors = [ops.fma(weight, gradients[c][i], colors[c]) for c in range(channels)]
      if absolute:  # d ln(alpha) / d centre, by its factors that are not the same in all pixels.
        towards = beside[i], ops.fma(table[row + 1], beside[i], table[row + 3] * below)
        slopes = [s + jnp.abs(pull * t) for s, t in zip(slopes, towards)]
    # x = x of vector 0 + shift, y the same in all vectors.
    x, y = pixels.x, pixels.y
    first = ops.fma(x, constant, linear)
    second = ops.fma(x, first + linear, quadratic)
    if absolute:
      slopes = [slopes[0] * jnp.abs(table[row] * (2 / LOG2_E)), slopes[1] * (2 / LOG2_E)]
    sums = [constant, first, y * constant, second, y * first, y * y * constant, *slopes, *colors]
    return (tuple(following), tuple(remaining)), [jnp.sum(s) for s in sums]

  @pl.when(count >= 0)
  def _():
    gradients = [pixels.load(gradient, tile, c) for c in range(channels + 1)]
    transmittance = pixels.load(states, chunk, channels)
    left = pixels.load(total, tile)
    # What lies before the chunk is no longer to come. The sum of weights is 1 - T.
    left = [ops.fnma(1 - t, g, l) for t, g, l in zip(transmittance, gradients[channels], left)]
    for c in range(channels):
      before = pixels.load(states, chunk, c)
      left = [ops.fnma(b, g, l) for b, g, l in zip(before, gradients[c], left)]

    def pull_block(block, state):
      first = (chunk * (CHUNK // BLOCK) + block) * BLOCK
      used = jnp.clip(count - block * BLOCK, 0, BLOCK)
      lanes = target.iota(BLOCK)

      def step(k, state):
        state, rows = state
        state, sums = pull_one(gradients, (first + k) * stride, state)
        return state, tuple(jnp.where(lanes == k, s, r) for s, r in zip(sums, rows))

      state, rows = jax.lax.fori_loop(0, used, step, (state, (jnp.zeros(BLOCK, jnp.float32),) * len(written)))
      for m, values in zip(written, rows):
        moments[m, pl.ds(first, BLOCK)] = values
      return state

    def pull_slot(k, state):
      slot = chunk * CHUNK + k
      state, sums = pull_one(gradients, slot * stride, state)
      for m, value in zip(written, sums):
        moments[m, slot] = jnp.where(k < count, value, 0.0)
      return state

    state = tuple(transmittance), tuple(left)
    if target.collects:
      jax.lax.fori_loop(0, CHUNK // BLOCK, pull_block, state)
    else:
      jax.lax.fori_loop(0, CHUNK, pull_slot, state)


def _sum_kernel(target: Target, slots, starts, values, sums):
  """Sums the rows of one Gaussian's slots.

  Args:
    slots: (S + BLOCK,), slots sorted by Gaussian.
    starts: (G + 1,), where each Gaussian's slots start, and the last one's end.
    values: (S, M).
    sums: (G, M), written.
  """
  gaussian = target.program()
  begin, end = starts[gaussian], starts[gaussian + 1]
  lanes = jax.lax.iota(jnp.int32, BLOCK)

  def add(i, total):
    at = begin + i * BLOCK + lanes
    return total + jnp.where((at < end)[:, None], values[slots[at], :], 0.0)

  total = jnp.zeros((BLOCK, values.shape[1]), jnp.float32)
  total = jax.lax.fori_loop(0, (end - begin + BLOCK - 1) // BLOCK, add, total)
  sums[gaussian, :] = jnp.sum(total, axis=0)


IMPLEMENTATION = PallasTriton()
