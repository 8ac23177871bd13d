"""Tiled compositing on NVIDIA GPUs: Pallas kernels in their Triton form, for Ampere and later.

Forward, one program draws one tile: its pixels lie in registers, a few per thread, and Gaussians are taken one after
the other, UNROLL between two looks at whether all pixels are finished. A pixel's transmittance stays where it is, and
turns negative, when the pixel is finished. For every chunk of CHUNK slots the program saves what the chunk's own slots
sum to and the transmittance behind it.

Backward, a small kernel walks each tile's chunks from the last to the first and sums what lies behind each. Then one
program takes one chunk, whichever tile it is of, so that work is spread evenly however long the lists are, and walks it
from its end. A slot's moments are written once, to its own place; no atomics. What lies behind a Gaussian is thus only
ever added up, from the back: nothing bright in front is in the sum.

What is not obvious about the compiled code (docs/rasterizer.md has counts of instructions, and times on an H200):
  - Pallas's Triton lowering emits multiplications and additions that ptxas may not contract to fused ones, and an exp2
    that handles denormals; see `Arithmetic`.
  - A tile is stored column by column, and `P = lanes * vectors` pixels as `vectors` arrays of one value per thread.
    Then y is the same in all of a thread's pixels, and half of the exponent and of the moments is done once a thread.
  - Slots of the table are padded to a power of two, so that the compiler sees addresses of the form base | constant.
  - Refs keep their dimensions: the lowering then counts in 64 bits where an array has more than 2^32 bytes.
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


class Saved(NamedTuple):
  """What the forward pass leaves for the backward pass.

  Attributes:
    rows: the table as the kernels read it.
    own: for each group of at most CHANNELS channels, and each chunk that was walked, what its own slots sum to. Nothing
      in other chunks.
    after: the transmittance behind each chunk that was walked.
    walked: slots of the tile's list that each pixel saw before it was finished.
  """

  rows: Float[Array, "S D"]
  own: tuple[Float[Array, "J C P"], ...]
  after: Float[Array, "J P"]
  walked: Int[Array, "BT P"]


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
    slots = bins.gaussians.size + bins.starts.size * CHUNK  # A tile's last chunk may be nearly empty.
    if slots >= 2**31:
      raise ValueError(
          f"capacity for {bins.gaussians.size} (Gaussian, tile) pairs in {len(bins.gaussians)} frames takes {slots} "
          f"slots, {self.name} counts to {2**31 - 1}: draw fewer frames at a time"
      )
    return make_tile_lists(bins, num, CHUNK)

  def forward(self, table, lists: TileLists, num_tiles: int, config: Config, *, save: bool, interpret: bool):
    """See `Tiled.forward`; what is saved is a `Saved`."""
    channels = table.shape[-1] - HEAD - 1
    groups = [table[..., HEAD + i : HEAD + min(i + CHANNELS, channels)] for i in range(0, max(channels, 1), CHANNELS)]
    draw = functools.partial(
        self._draw, lists=lists, num_tiles=num_tiles, config=config, save=save, interpret=interpret
    )
    drawn = [draw(_pad_rows(jnp.concatenate([table[..., :HEAD], group], axis=-1)), group.shape[-1]) for group in groups]
    sums = jnp.concatenate([tiles[:, :-1] for tiles, *_ in drawn] + [drawn[0][0][:, -1:]], axis=1)
    if not save:
      return _swap(sums, config), None
    _, own, after, walked = zip(*drawn)
    return _swap(sums, config), Saved(_pad_rows(table[..., :-1]), own, after[0], walked[0])

  def _draw(self, rows, channels: int, *, lists: TileLists, num_tiles: int, config: Config, save: bool, interpret: bool):
    """Sums of a group of channels and of weights; and of `Saved` what it has of a group, `after` and `walked`."""
    chunks, pixels = lists.tiles.size, config.tile_size**2
    shapes = [result_shape((num_tiles, channels + 1, pixels), jnp.float32, rows)]
    if save:
      shapes += [
          result_shape((chunks, channels, pixels), jnp.float32, rows),
          result_shape((chunks, pixels), jnp.float32, rows),
          result_shape((num_tiles, pixels), jnp.int32, rows),
      ]
    # Four pixels per thread: with one or two an H200 takes as long for one frame of 512 x 512, and issues more instructions.
    call = self.call(
        functools.partial(_forward_kernel, channels, config),
        shapes,
        grid=num_tiles,
        pixels=pixels,
        per_thread=4,
        name="splat_forward",
        evaluations=lists.gaussians.size * pixels,
        flops=12 + 2 * channels,
        interpret=interpret,
    )
    return call(rows, lists.starts, lists.counts)

  def backward(self, table, lists: TileLists, gradient, saved: Saved, config: Config, *, absolute: bool, interpret: bool):
    """See `Tiled.backward`."""
    channels, pixels, chunks = gradient.shape[1] - 1, config.tile_size**2, lists.tiles.size
    gradient = _swap(gradient, config)
    walked = jnp.max(saved.walked, axis=1)
    behind = 0.0
    for i, own in enumerate(saved.own):
      first, count = i * CHANNELS, own.shape[1]
      of_group = jnp.concatenate([gradient[:, first : first + count], gradient[:, -1:] * (i == 0)], axis=1)
      shape = result_shape((chunks, pixels), jnp.float32, own)
      call = self.call(
          functools.partial(_behind_kernel, count, config),
          [shape],
          grid=walked.size,
          pixels=pixels,
          per_thread=1,
          name="splat_behind",
          evaluations=chunks * pixels,
          flops=2 * count,
          interpret=interpret,
      )
      behind += call(lists.starts, walked, of_group, own, saved.after)[0]

    tiles, index = lists.tiles.astype(jnp.int32), jnp.arange(chunks, dtype=jnp.int32)
    before = (index - lists.starts[tiles]) * CHUNK
    counts = jnp.where(index < lists.ends[-1], jnp.clip(walked[tiles] - before, 0, CHUNK), -1)
    shape = result_shape((chunks * CHUNK, 8 + channels), jnp.float32, saved.rows)
    # Eight pixels per thread: a tile of 16 x 16 is one warp's, whose sums need neither shared memory nor a barrier. With
    # four an H200 takes twice as long, with two more than three times.
    call = self.call(
        functools.partial(_backward_kernel, channels, absolute, config),
        [shape],
        grid=chunks,
        pixels=pixels,
        per_thread=8,
        name="splat_backward",
        evaluations=lists.gaussians.size * pixels,
        flops=25 + 4 * channels,
        interpret=interpret,
    )
    (moments,) = call(saved.rows, tiles, counts, before, gradient, saved.walked, saved.after, behind)
    return moments.reshape(chunks, CHUNK, -1)

  def sum_slots(self, values: Float[Array, "S M"], gaussians: Int[Array, "S"], num: int, *, interpret: bool):
    """See `Tiled.sum_slots`. XLA's own segment sums add by atomics on GPUs, in an order that differs between runs."""
    slots, starts = sort_by_gaussian(gaussians, num)
    shape = result_shape((num, values.shape[1]), jnp.float32, values)
    call = self.call(
        _sum_kernel,
        [shape],
        grid=num,
        pixels=BLOCK,
        per_thread=1,
        name="splat_sum",
        evaluations=values.size,
        flops=1,
        interpret=interpret,
    )
    return call(jnp.pad(slots, (0, BLOCK)), starts, values)[0]

  def call(
      self,
      kernel: Callable,
      shapes: list,
      *,
      grid: int,
      pixels: int,
      per_thread: int,
      name: str,
      evaluations: int,
      flops: int,
      interpret: bool,
  ) -> Callable:
    """A `pallas_call` of `kernel(target, *refs)`.

    Args:
      kernel: the body.
      shapes: of the results.
      grid: number of programs.
      pixels: of a program.
      per_thread: how many of them a thread has, 32 threads to a warp.
      name: of the kernel.
      evaluations: of the innermost loop, over all programs, if lists are full: for the scheduler.
      flops: of each.
      interpret: see `Implementation.composite`.
    """
    warps = max(1, pixels // (32 * per_thread))
    target = Target(min(pixels, 32 * warps), UNROLL, _PTX)
    if interpret:
      target, how = self.interpreted(target, pixels), {"interpret": True}
    else:
      # Parameters name the backend: without them JAX 0.10 would take Mosaic GPU, which needs Hopper.
      how = {"compiler_params": pltriton.CompilerParams(num_warps=warps, num_stages=1)}

    def run(*arrays):
      size = sum(a.size * a.dtype.itemsize for a in (*arrays, *shapes))
      exponentials = evaluations if name in ("splat_forward", "splat_backward") else 0
      cost = pl.CostEstimate(flops=flops * evaluations, transcendentals=exponentials, bytes_accessed=size)
      call = functools.partial(pl.pallas_call, grid=(grid,), name=name, cost_estimate=cost, **how)
      return call(functools.partial(kernel, target), shapes)(*arrays)

    return run

  def interpreted(self, target: "Target", pixels: int) -> "Target":
    """How to write out a kernel for an interpreter: fewer and longer vectors, and less written out, which XLA compiles
    in a tenth of the time."""
    del target
    return Target(pixels // 2, 2, PLAIN)


def sort_by_gaussian(gaussians: Int[Array, "S"], num: int) -> tuple[Int[Array, "S"], Int[Array, "G1"]]:
  """Slots sorted by Gaussian, and where each Gaussian's slots start in that order, and the last one's end."""
  slots = jnp.arange(gaussians.shape[0], dtype=jnp.int32)
  _, slots = jax.lax.sort((gaussians, slots), num_keys=1, is_stable=True)
  return slots, jnp.cumsum(jnp.zeros(num + 1, jnp.int32).at[gaussians + 1].add(1, mode="drop"))


# ---- Layouts ----


def _pad_rows(table: Float[Array, "J K D"]) -> Float[Array, "S E"]:
  """Slots' rows padded to a power of two."""
  numbers = table.shape[-1]
  return jnp.pad(table, ((0, 0), (0, 0), (0, _stride(numbers) - numbers))).reshape(-1, _stride(numbers))


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

  def load(self, ref, *index) -> list[Float[Array, "lanes"] | Int[Array, "lanes"]]:
    return [ref[(*index, pl.ds(i * self.lanes, self.lanes))] for i in range(self.vectors)]

  def store(self, ref, *index, values) -> None:
    for i in range(self.vectors):
      ref[(*index, pl.ds(i * self.lanes, self.lanes))] = values[i]


def _pixels(target: Target, size: int) -> _Pixels:
  lanes, lane = target.lanes, target.iota(target.lanes)
  centred = lambda i: i.astype(jnp.float32) + (0.5 - size / 2)
  return _Pixels(lanes, size**2 // lanes, centred(lane // size), centred(lane % size), float(lanes // size))


def _exponents(ops: Arithmetic, table, slot, pixels: _Pixels) -> tuple[list, list, Float[Array, "lanes"]]:
  """log2 of a Gaussian's alpha before it is clamped, and what is squared and subtracted, along x and along y."""
  l_xx, l_xy, u, l_yy, v, log_opacity = (table[slot, i] for i in range(HEAD))
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
    table: (S, D), rows of slots.
    starts: (BT,), first chunk of each tile.
    counts: (BT,), slots of each tile.
    tiles: (BT, C + 1, P), written.
    saved: nothing, or one group of `Saved.own`, `Saved.after` and `Saved.walked`, written.
  """
  tile = target.program()
  ops = target.ops
  pixels = _pixels(target, config.tile_size)
  start, count = starts[tile], counts[tile]

  def draw_group(state):
    at, _, transmittance, walked, sums = state
    for k in range(target.unroll):
      slot = (start * (CHUNK // target.unroll) + at // target.unroll) * target.unroll + k
      alphas = [_alpha(ops, config, e) for e in _exponents(ops, table, slot, pixels)[0]]
      features = [table[slot, HEAD + c] for c in range(channels)]
      following = [ops.fnma(t, a, t) for t, a in zip(transmittance, alphas)]
      drawn = [t > config.transmittance_min for t in following]  # Never where transmittance is negative.
      weights = [jnp.where(d, t * a, 0.0) for d, t, a in zip(drawn, transmittance, alphas)]
      transmittance = tuple(jnp.where(d, f, -jnp.abs(t)) for d, f, t in zip(drawn, following, transmittance))
      walked = tuple(jnp.where(d, at + (k + 1), w) for d, w in zip(drawn, walked))
      sums = tuple(tuple(ops.fma(f, w, s) for w, s in zip(weights, sums[c])) for c, f in enumerate(features))
    unfinished = jnp.max(functools.reduce(jnp.maximum, transmittance)) > config.transmittance_min
    return at + target.unroll, unfinished, transmittance, walked, sums

  def draw_until(end, state):
    return jax.lax.while_loop(lambda state: (state[0] < end) & state[1], draw_group, state)

  constant = lambda value: (jnp.full(pixels.lanes, value, jnp.float32),) * pixels.vectors
  nothing = (constant(0.0),) * channels
  walked = (jnp.full(pixels.lanes, 0, jnp.int32),) * pixels.vectors if saved else ()
  state = jnp.int32(0), jnp.bool(True), constant(1.0), walked
  if saved:
    own_of_chunks, after_chunks, walked_of_tiles = saved
    for c in range(channels):
      pixels.store(tiles, tile, c, values=nothing[c])

    def draw_chunk(state):
      chunk = start + state[0] // CHUNK
      *state, sums = draw_until(jnp.minimum(state[0] + CHUNK, count), (*state, nothing))
      for c, own in enumerate(sums):
        pixels.store(own_of_chunks, chunk, c, values=own)
        before = pixels.load(tiles, tile, c)  # Not in registers, of which the loop needs every one.
        pixels.store(tiles, tile, c, values=[b + o for b, o in zip(before, own)])
      pixels.store(after_chunks, chunk, values=[jnp.abs(t) for t in state[2]])
      return tuple(state)

    draws = lambda state: (state[0] < count) & state[1]
    _, _, transmittance, walked = jax.lax.while_loop(draws, draw_chunk, state)
    pixels.store(walked_of_tiles, tile, values=walked)
  else:
    _, _, transmittance, _, sums = draw_until(count, (*state, nothing))
    for c in range(channels):
      pixels.store(tiles, tile, c, values=sums[c])
  pixels.store(tiles, tile, channels, values=[1 - jnp.abs(t) for t in transmittance])


def _behind_kernel(channels: int, config: Config, target: Target, starts, walked, gradient, own, after, behind):
  """What lies behind each chunk of a tile: the gradients times what the later chunks add to the sums.

  Of the sum of weights, which is 1 - transmittance, it takes the derivative by ln(1 - alpha), minus the transmittance
  at the end, which is exact where a sum of weights would cancel.

  Args:
    starts: (BT,), first chunk of each tile.
    walked: (BT,), slots of each tile that any pixel saw.
    gradient: (BT, C + 1, P), d loss / d sums.
    own: (J, C, P), see `Saved`.
    after: (J, P), see `Saved`.
    behind: (J, P), written.
  """
  tile = target.program()
  ops = target.ops
  pixels = _pixels(target, config.tile_size)
  chunks = (walked[tile] + CHUNK - 1) // CHUNK
  last = starts[tile] + chunks - 1

  @pl.when(chunks > 0)
  def _():
    gradients = [pixels.load(gradient, tile, c) for c in range(channels + 1)]
    left = tuple(-g * t for g, t in zip(gradients[channels], pixels.load(after, last)))

    def step(i, left):
      pixels.store(behind, last - i, values=left)
      for c in range(channels):
        sums = pixels.load(own, last - i, c)
        left = tuple(ops.fma(s, g, l) for s, g, l in zip(sums, gradients[c], left))
      return left

    jax.lax.fori_loop(0, chunks, step, left)


def _backward_kernel(
    channels: int,
    absolute: bool,
    config: Config,
    target: Target,
    table,
    tiles,
    counts,
    befores,
    gradient,
    walked,
    after,
    behind,
    moments,
):
  """Moments of the slots of one chunk.

  Args:
    table: (S, D), rows of slots.
    tiles: (J,), tile of each chunk.
    counts: (J,), slots of each chunk that any pixel saw; -1 in unused chunks.
    befores: (J,), slots of the tile before each chunk.
    gradient: (BT, C + 1, P), d loss / d sums.
    walked: (BT, P), see `Saved`.
    after: (J, P), see `Saved`.
    behind: (J, P), see `_behind_kernel`.
    moments: (S, 8 + C), written; columns 6 and 7 with the sums of absolute values or not at all.
  """
  chunk = target.program()
  tile, count = tiles[chunk], counts[chunk]
  ops = target.ops
  pixels = _pixels(target, config.tile_size)
  in_registers = channels <= CHANNELS  # Else gradients of channels are loaded again for every slot.
  written = [*range(8 if absolute else 6), *range(8, 8 + channels * in_registers)]
  highest = np.float32(np.log2(config.alpha_max))

  def pull_one(gradients, seen, k, state):
    slot = chunk * CHUNK + k
    transmittance, left = state
    zeros = (jnp.zeros(pixels.lanes, jnp.float32),) * pixels.vectors

    def add_channel(c, dots):
      values = gradients[c] if in_registers else pixels.load(gradient, tile, c)
      return tuple(ops.fma(table[slot, HEAD + c], g, d) for g, d in zip(values, dots))

    if in_registers:
      dots = functools.reduce(lambda dots, c: add_channel(c, dots), range(channels), zeros)
    else:
      dots = jax.lax.fori_loop(0, channels, add_channel, zeros)
    following, adding, weights = [], [], []
    constant, linear, quadratic = 0.0, 0.0, 0.0
    slopes = [0.0] * (2 * absolute)
    exponents, beside, below = _exponents(ops, table, slot, pixels)
    for i, exponent in enumerate(exponents):
      alpha = jnp.where(k < seen[i], _alpha(ops, config, exponent), 0.0)  # Nothing is drawn in finished pixels.
      through = ops.reciprocal(1 - alpha)
      before = transmittance[i] * through
      weight = before * alpha
      gain = weight * dots[i]
      # d loss / d ln(alpha): T gain alpha - (what comes behind) alpha / (1 - alpha).
      pull = ops.fnma(left[i], alpha * through, gain)
      clamped = exponent > highest
      if config.clamp_passes_gradient:  # As if nothing were clamped: d alpha / d ln(alpha) is the free alpha.
        pull = jnp.where(clamped, pull * (ops.exp2(exponent) / config.alpha_max), pull)
      else:
        pull = jnp.where(clamped, 0.0, pull)
      following.append(before)
      adding.append(left[i] + gain)
      weights.append(weight)
      shift = i * pixels.step
      constant = pull + constant
      linear = ops.fma(pull, shift, linear)
      quadratic = ops.fma(pull, shift * shift, quadratic)
      if absolute:  # d ln(alpha) / d centre, by its factors that are not the same in all pixels.
        towards = beside[i], ops.fma(table[slot, 1], beside[i], table[slot, 3] * below)
        slopes = [s + jnp.abs(pull * t) for s, t in zip(slopes, towards)]
    # x = x of vector 0 + shift, y the same in all vectors.
    x, y = pixels.x, pixels.y
    first = ops.fma(x, constant, linear)
    second = ops.fma(x, first + linear, quadratic)
    if absolute:
      slopes = [slopes[0] * jnp.abs(table[slot, 0] * (2 / LOG2_E)), slopes[1] * (2 / LOG2_E)]
    sums = [constant, first, y * constant, second, y * first, y * y * constant, *slopes]

    def sum_color(values):
      return functools.reduce(lambda total, pair: ops.fma(*pair, total), zip(weights, values), 0.0)

    if in_registers:
      sums += [sum_color(gradients[c]) for c in range(channels)]
    else:

      def write_color(c, _):
        moments[slot, 8 + c] = jnp.sum(sum_color(pixels.load(gradient, tile, c)))
        return 0

      jax.lax.fori_loop(0, channels, write_color, 0)
    return (tuple(following), tuple(adding)), [jnp.sum(s) for s in sums]

  @pl.when(count >= 0)
  def _():
    gradients = [pixels.load(gradient, tile, c) for c in range(channels * in_registers)]
    seen = [w - befores[chunk] for w in pixels.load(walked, tile)]
    state = pixels.load(after, chunk), pixels.load(behind, chunk)
    # Nothing was saved of chunks that no pixel saw.
    state = tuple(tuple(jnp.where(n > 0, v, 0.0) for n, v in zip(seen, values)) for values in state)

    def pull_block(i, state):
      first = (CHUNK // BLOCK - 1 - i) * BLOCK
      # Colours that are written one by one have to be 0 in slots that no pixel saw.
      used = jnp.clip(count - first, 0, BLOCK) if in_registers else BLOCK
      lanes = target.iota(BLOCK)

      def step(i, state):
        state, rows = state
        k = used - 1 - i
        state, sums = pull_one(gradients, seen, first + k, state)
        return state, tuple(jnp.where(lanes == k, s, r) for s, r in zip(sums, rows))

      state, rows = jax.lax.fori_loop(0, used, step, (state, (jnp.zeros(BLOCK, jnp.float32),) * len(written)))
      for m, values in zip(written, rows):
        moments[pl.ds(chunk * CHUNK + first, BLOCK), m] = values
      return state

    def pull_slot(i, state):
      k = CHUNK - 1 - i
      state, sums = pull_one(gradients, seen, k, state)
      for m, value in zip(written, sums):
        moments[chunk * CHUNK + k, m] = jnp.where(k < count, value, 0.0)
      return state

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
  # Blocks have a power of two of columns: the last one is there several times, and is written so, always the same.
  columns = jnp.minimum(jax.lax.iota(jnp.int32, _stride(values.shape[1])), values.shape[1] - 1)

  def add(i, total):
    at = begin + i * BLOCK + lanes
    rows = jnp.broadcast_to(slots[at][:, None], total.shape)
    return total + jnp.where((at < end)[:, None], values[rows, jnp.broadcast_to(columns, total.shape)], 0.0)

  total = jnp.zeros((BLOCK, columns.size), jnp.float32)
  total = jax.lax.fori_loop(0, (end - begin + BLOCK - 1) // BLOCK, add, total)
  sums[gaussian, columns] = jnp.sum(total, axis=0)


IMPLEMENTATION = PallasTriton()
