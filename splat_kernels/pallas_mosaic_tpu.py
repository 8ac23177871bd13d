"""Tiled compositing for TPUs: two Pallas (Mosaic) kernels, forward and backward. What surrounds them: tiled.py.

One grid step is one tile; it goes through the tile's list in chunks of 128 slots, front to back, and ends early when
all pixels are finished. Slots are rows and pixels are columns of (128, P) arrays, P = tile_size^2:

- The exponent is one matrix product, [x^2, xy, y^2, x, y, 1] of the pixels with six coefficients per slot. The
  monomials of tiles up to 16 are exact in bfloat16, and a float32 is the sum of three bfloat16, so stacking the parts
  along the contracted dimension, which is far from filling the matrix unit, gives float32 accuracy in one bfloat16
  pass. Sums over slots (colours) and over pixels (moments) are matrix products of such parts, too.
- Transmittance is a running product over slots. Within a chunk slot 16 s + g is row 8 g + s, so that the product runs
  over registers and not within them: 16 multiplications of (8, P) arrays, and one scan over 8 sublanes a chunk.
- Chunks come by DMA through a ring of buffers, up to AHEAD chunks early and across the borders of tiles.

Backward the same chunks are gone through from the last one that was reached to the first, and tiles from the last to the
first. The transmittance before each chunk is known from the forward pass; what lies behind is summed on the way.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float, Int

from splat_kernels.binning import Bins
from splat_kernels.tile_lists import TileLists, make_tile_lists
from splat_kernels.tiled import Tiled, result_shape
from splat_kernels.tiles import monomials
from splat_kernels.types import Config

LANES, SUBLANES = 128, 8  # A register's.
CHUNK = LANES  # Slots of one tile processed together: what DMA is aligned to.
AHEAD = 8  # Chunks of parameters in vector memory: a copy takes longer than a chunk's computation.
BEHIND = 4  # Chunks of results in vector memory, on their way out.
COUNTS = 1024  # Tiles whose numbers of chunks lie in scalar memory at a time.
SHAPE_ROWS = 24  # Of the parameters: 3 parts of 6 coefficients, filled up to whole registers.
PARTS = 3  # A float32 as a sum of numbers that bfloat16 holds.
VMEM_BYTES = 16 * 2**20  # Vector memory that a kernel gets unasked.
SMEM_BYTES = 2**20  # Scalar memory.


class PallasMosaicTpu(Tiled):
  """See the head of this file."""

  name = "pallas_mosaic_tpu"
  scale = float(np.log2(np.e))
  transposed = True

  def unsupported(self, device: jax.Device, config: Config) -> str | None:
    del config
    return None if device.platform == "tpu" else f"needs a TPU, not {device.platform}"

  def most_channels(self, config: Config, *, absolute: bool = False) -> int:
    """See `Tiled.most_channels`. What a channel takes of vector memory: chunks on their way in and out; for every pixel
    the tile's gradient, twice, its parts, 4 times, and what the compiler keeps for a while. A third is left free."""
    del absolute
    pixels = max(config.tile_size**2, LANES)
    per_channel = CHUNK * (AHEAD * PARTS * 2 + BEHIND * 4) + pixels * (2 * 4 + 4 * PARTS * 2 + 8)
    return VMEM_BYTES * 2 // 3 // per_channel // SUBLANES * SUBLANES - 1  # The one is the channel of ones.

  def most_tiles(self, config: Config) -> int:
    """See `Tiled.most_tiles`: every tile's first chunk lies in scalar memory."""
    del config
    return SMEM_BYTES // 4 - 8 * COUNTS

  def make_lists(self, bins: Bins, num: int, config: Config) -> TileLists:
    """Lists in chunks of CHUNK slots, in the order the kernels' running products want."""
    del config
    lists = make_tile_lists(bins, num, CHUNK)
    by_sublane = lists.gaussians.reshape(-1, SUBLANES, CHUNK // SUBLANES)
    gaussians = by_sublane.swapaxes(1, 2).reshape(-1, CHUNK)
    return TileLists(gaussians, lists.tiles, lists.starts, lists.counts)

  def forward(self, table, lists: TileLists, num_tiles: int, config: Config, *, save: bool, interpret: bool):
    """See `Tiled.forward`; saved are the transmittance before each chunk, and how many chunks each tile went through."""
    channels, pixels = table.shape[0] - 6, config.tile_size**2
    chunks = lists.tiles.shape[0]
    parameters = _pack_parameters(table)
    shape_side = _shape_side(config.tile_size, min(parameters.shape[0], LANES))
    shapes = [result_shape((num_tiles + num_tiles % 2, channels, pixels), jnp.float32, table)]
    out_specs = [_one_tile(num_tiles, channels, pixels)]
    scratch_shapes = _ring(AHEAD, (parameters.shape[0], CHUNK), jnp.bfloat16)
    if save:
      shapes += [
          result_shape((chunks, 1, pixels), jnp.float32, table),
          result_shape(_counts_shape(num_tiles), jnp.int32, table),
      ]
      out_specs += [pl.BlockSpec(memory_space=pl.ANY), _counts_block(num_tiles)]
      scratch_shapes += _ring(BEHIND, (1, pixels), jnp.float32)
    tiles, *saved = _call(
        functools.partial(_forward_kernel, config=config),
        lists,
        num_tiles,
        inputs=[parameters, shape_side],
        in_specs=[pl.BlockSpec(memory_space=pl.ANY), _whole(shape_side)],
        out_shape=shapes,
        out_specs=out_specs,
        scratch_shapes=scratch_shapes,
        products=shape_side.shape[0] + PARTS,
        name="splat_forward",
        interpret=interpret,
    )
    return tiles[:num_tiles], (saved[0], _by_tile(saved[1], num_tiles)) if save else None

  def backward(self, table, lists: TileLists, gradient, saved, config: Config, *, absolute: bool, interpret: bool):
    """See `Tiled.backward`."""
    num_tiles, channels, pixels = gradient.shape
    transmittances, walked = saved
    parameters = _pack_parameters(table)
    rows = parameters.shape[0]
    shape_side = _shape_side(config.tile_size, min(rows, LANES), absolute)
    moment_side = _moment_side(config.tile_size, absolute)
    padded = _round_up(channels, SUBLANES)
    moments = jnp.zeros((SUBLANES + padded, table.shape[1]), jnp.float32)
    (moments,) = _call(
        functools.partial(_backward_kernel, config=config, absolute=absolute),
        lists,
        num_tiles,
        inputs=[parameters, transmittances, _in_blocks(walked), shape_side, moment_side, gradient, moments],
        in_specs=[
            pl.BlockSpec(memory_space=pl.ANY),
            pl.BlockSpec(memory_space=pl.ANY),
            _counts_block(num_tiles, back=True),
            _whole(shape_side),
            _whole(moment_side),
            _one_tile(num_tiles, channels, pixels, back=True),
            pl.BlockSpec(memory_space=pl.ANY),
        ],
        out_shape=[result_shape(moments.shape, jnp.float32, table)],
        out_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        scratch_shapes=[
            *_ring(AHEAD, (rows, CHUNK), jnp.bfloat16),
            *_ring(AHEAD, (1, pixels), jnp.float32)[:2],
            *_ring(BEHIND, (moments.shape[0], CHUNK), jnp.float32),
            pltpu.VMEM((PARTS, rows, pixels), jnp.bfloat16),
            pltpu.VMEM((PARTS * padded, pixels), jnp.bfloat16),
        ],
        products=shape_side.shape[0] + 3 * PARTS + 2 * PARTS * absolute,
        name="splat_backward",
        input_output_aliases={7: 0},  # Slots that are never reached keep their zeros.
        interpret=interpret,
    )
    return moments


# ---- How the kernels are called ----


def _call(
    kernel,
    lists: TileLists,
    num_tiles: int,
    *,
    inputs: list,
    out_shape: list,
    in_specs: list,
    out_specs: list,
    scratch_shapes: list,
    products: int,
    **options,
):
  """A kernel over all tiles: first and last chunk of every tile in scalar memory, one tile a grid step.

  The grid is (2, half): chips with two cores to a device (v4, v5p) draw the two halves at the same time. `products` are
  how many matrix products of parameters, slots and pixels the kernel takes per chunk.
  """
  half = (num_tiles + 1) // 2
  rows, slots = inputs[0].shape
  pairs = slots * inputs[1].shape[-1]  # As if all lists were full and no tile was left early.
  size = lambda array: math.prod(array.shape) * array.dtype.itemsize
  cost = pl.CostEstimate(
      flops=2 * products * rows * pairs,
      transcendentals=pairs,
      bytes_accessed=sum(map(size, inputs)) + sum(map(size, out_shape)),
  )
  starts = jnp.concatenate([lists.starts, jnp.broadcast_to(lists.ends[-1:], 2 * half + 1 - num_tiles)])
  return pl.pallas_call(
      kernel,
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=1,
          grid=(2, half),
          in_specs=in_specs,
          out_specs=out_specs,
          scratch_shapes=scratch_shapes,
      ),
      out_shape=out_shape,
      compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
      cost_estimate=cost,
      **options,
  )(starts, *inputs)


def _one_tile(num_tiles: int, channels: int, pixels: int, *, back: bool = False) -> pl.BlockSpec:
  """A grid step's tile of a result or, where the tiles are gone through `back` from the last one, of an input.

  With an odd number of tiles the second core has a tile too few. Results have one more than that; inputs do not.
  """
  half = (num_tiles + 1) // 2

  def index(core, step, starts):
    del starts
    return (jnp.minimum(core * half + half - 1 - step, num_tiles - 1) if back else core * half + step), 0, 0

  return pl.BlockSpec((1, channels, pixels), index)


def _counts_shape(num_tiles: int) -> tuple[int, int, int]:
  """One number per tile, in whole blocks of COUNTS for each half of the tiles."""
  return 2 * pl.cdiv((num_tiles + 1) // 2, COUNTS), 1, COUNTS


def _in_blocks(counts: Int[Array, "BT"]) -> Int[Array, "b 1 k"]:
  halves = jnp.pad(counts, (0, counts.shape[0] % 2)).reshape(2, -1)
  return jnp.pad(halves, ((0, 0), (0, -halves.shape[1] % COUNTS))).reshape(_counts_shape(counts.shape[0]))


def _by_tile(blocks: Int[Array, "b 1 k"], num_tiles: int) -> Int[Array, "BT"]:
  return blocks.reshape(2, -1)[:, : (num_tiles + 1) // 2].reshape(-1)[:num_tiles]


def _counts_block(num_tiles: int, *, back: bool = False) -> pl.BlockSpec:
  """The block that holds a grid step's tile's number."""
  half = (num_tiles + 1) // 2

  def index(core, step, starts):
    del starts
    return core * pl.cdiv(half, COUNTS) + (half - 1 - step if back else step) // COUNTS, 0, 0

  return pl.BlockSpec((1, 1, COUNTS), index, memory_space=pltpu.SMEM)


def _whole(array) -> pl.BlockSpec:
  return pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim)


def _ring(size: int, shape: tuple[int, int], dtype) -> list:
  """Buffers of chunks, a semaphore for each, and a counter."""
  return [pltpu.VMEM((size, *shape), dtype), pltpu.SemaphoreType.DMA((size,)), pltpu.SMEM((1,), jnp.int32)]


# ---- Kernels ----


def _forward_kernel(starts, parameters, shape_side, tile, *refs, config: Config):
  """Sums of weight times feature of one tile. `refs`: what is saved, two arrays or none, and the rings, of three each."""
  saved, (buffers, semaphores, fetched, *out_ring) = refs[: len(refs) % 3], refs[len(refs) % 3 :]
  channels, pixels = tile.shape[1:]
  chunks = _Chunks(starts, fetched, [_Columns(parameters, buffers, semaphores)])
  if saved:
    transmittances, walked = saved
    out = _Outgoing(_Rows(transmittances, *out_ring[:2]), out_ring[2])

  def draw_chunk(state):
    chunk, transmittance, summed = state
    (rows,) = chunks.read(chunk)
    if saved:
      out.write(chunk, [transmittance])
    alphas, _ = _alphas(config, rows, shape_side[...])
    weights, transmittance = _weights(config, alphas, transmittance)
    # All rows take part, as the unused coefficients cost nothing; the parts of the features are added up at the end.
    for part in _split(weights):
      summed = summed + _dot(rows, part)
    return chunk + 1, transmittance, summed

  def more(state):
    chunk, transmittance, _ = state
    return (chunk < chunks.last) & (jnp.max(transmittance) > config.transmittance_min)

  state = chunks.first, jnp.ones((1, pixels), jnp.float32), jnp.zeros((parameters.shape[0], pixels), jnp.float32)
  chunk, _, summed = jax.lax.while_loop(more, draw_chunk, state)
  chunks.skip(chunk, chunks.last)
  padded = _round_up(channels, SUBLANES)
  parts = [summed[SHAPE_ROWS + k * padded :][:channels] for k in range(PARTS)]
  tile[0] = sum(parts)
  if saved:
    walked[0, 0, pl.program_id(1) % COUNTS] = chunk - chunks.first
    out.finish()


def _backward_kernel(
    starts,
    parameters,
    transmittances,
    walked,
    shape_side,
    moment_side,
    gradient,
    zeros,
    moments,
    buffers,
    semaphores,
    fetched,
    transmittance_buffers,
    transmittance_semaphores,
    out_buffers,
    out_semaphores,
    written,
    gain_side,
    color_side,
    *,
    config: Config,
    absolute: bool,
):
  """Moments of the slots of one tile, from the last chunk that was reached to the first; see `Tiled.backward`."""
  del zeros  # They are in `moments` already.
  channels, pixels = gradient.shape[1:]
  padded = _round_up(channels, SUBLANES)
  incoming = [
      _Columns(parameters, buffers, semaphores),
      _Rows(transmittances, transmittance_buffers, transmittance_semaphores),
  ]
  chunks = _Chunks(starts, fetched, incoming, back=True)
  out = _Outgoing(_Columns(moments, out_buffers, out_semaphores), written)

  # The tile's gradient: against the rows of the parameters (gains), and by itself (moments of colours).
  grown = gradient[0]
  if padded > channels:
    grown = jnp.concatenate([grown, jnp.zeros((padded - channels, pixels), jnp.float32)])
  parts = [part.astype(jnp.float32) for part in _split(grown)]
  color_side[...] = jnp.concatenate(parts).astype(jnp.bfloat16)
  above = jnp.zeros((SHAPE_ROWS, pixels), jnp.float32)
  below = jnp.zeros((parameters.shape[0] - SHAPE_ROWS - PARTS * padded, pixels), jnp.float32)
  for k in range(PARTS):
    gain_side[k] = jnp.concatenate([above] + PARTS * [parts[k]] + ([below] if below.size else [])).astype(jnp.bfloat16)

  def walk_chunk(at, behind):
    rows, transmittance = chunks.read(at)
    alphas, free = _alphas(config, rows, shape_side[: shape_side.shape[0] - 2 * absolute])
    weights, _ = _weights(config, alphas, transmittance)
    gains = sum(_dot(rows, gain_side[k], contract=(0, 0)) for k in range(PARTS))
    pulls, behind = _pulls(config, alphas, free, weights, gains, behind)
    shape = sum(_dot(moment_side[0], part, contract=(1, 1)) for part in _split(pulls))
    for axis in range(2 * absolute):
      slopes = _dot(rows[: shape_side.shape[1]], shape_side[axis - 2], contract=(0, 0))
      slopes *= float(np.log(2))  # d ln(alpha) / d pixel.
      shape += sum(_dot(moment_side[1 + axis], part, contract=(1, 1)) for part in _split(jnp.abs(pulls * slopes)))
    color = sum(_dot(color_side[...], part, contract=(1, 1)) for part in _split(weights))
    fold = lambda sums, size: sum(sums[i : i + size] for i in range(0, sums.shape[0], size))
    out.write(chunks.chunk(at), [fold(shape, SUBLANES), fold(color, padded)])
    return behind

  step, steps = pl.program_id(1), pl.num_programs(1)
  reached = chunks.last - walked[0, 0, (steps - 1 - step) % COUNTS]
  chunks.skip(chunks.first, reached)
  jax.lax.fori_loop(reached, chunks.last, walk_chunk, jnp.zeros((1, pixels), jnp.float32))
  out.finish()


class _Chunks:
  """The chunks of this grid step's tile, out of rings of buffers that are filled ahead, past the tile's end, too.

  Chunks are read in the order of their places: forward a chunk's place is its number; `back` they count from the last
  chunk of the core's last tile, which is the first that is gone through. The lists of a core's tiles follow one another
  in memory, so the rings know nothing of tiles: a place's chunk goes to buffer place % AHEAD. What is fetched is waited
  for exactly once, when it is read or skipped.
  """

  def __init__(self, starts, fetched, incoming: list, *, back: bool = False):
    step, steps = pl.program_id(1), pl.num_programs(1)
    core = pl.program_id(0) * steps
    tile = core + (steps - 1 - step if back else step)
    first, end = starts[tile], starts[tile + 1]
    core_first, core_end = starts[core], starts[core + steps]
    self.chunk = (lambda at: core_end - 1 - at) if back else (lambda at: at)
    self.first, self.last = (core_end - end, core_end - first) if back else (first, end)
    self._core_last = core_end - core_first if back else core_end
    self._incoming = incoming
    self._fetched = fetched  # One number: the next place to be fetched.

    @pl.when(step == 0)
    def _():
      fetched[0] = self.first

  def _copies(self, at):
    return [array.copy(self.chunk(at), at % AHEAD) for array in self._incoming]

  def read(self, at) -> list:
    """What is known of the chunk of a place; starts to fetch what now finds room in the rings."""

    def fetch(following):
      for copy in self._copies(following):
        copy.start()
      return following + 1

    until = jnp.minimum(at + AHEAD, self._core_last)
    self._fetched[0] = jax.lax.while_loop(lambda following: following < until, fetch, self._fetched[0])
    self._wait(at)
    return [array.buffers[at % AHEAD] for array in self._incoming]

  def skip(self, begin, end):
    """Passes over places that are not read."""
    waited = lambda at: (self._wait(at), at + 1)[1]
    jax.lax.while_loop(lambda at: at < jnp.minimum(end, self._fetched[0]), waited, begin)
    self._fetched[0] = jnp.maximum(self._fetched[0], end)

  def _wait(self, at) -> None:
    for copy in self._copies(at):
      copy.wait()


class _Outgoing:
  """Chunks on their way out through a ring of buffers."""

  def __init__(self, array, written):
    self._array, self._written = array, written  # The latter one number: how many chunks have been written.

    @pl.when(pl.program_id(1) == 0)
    def _():
      written[0] = 0

  def write(self, chunk, blocks: list) -> None:
    """Writes blocks of rows, one below the other, to a chunk."""
    slot = self._written[0] % BEHIND

    @pl.when(self._written[0] >= BEHIND)
    def _():
      self._array.copy(chunk, slot, back=True).wait()  # For the copy of BEHIND chunks ago: all are of the same size.

    row = 0
    for block in blocks:
      self._array.buffers[slot, row : row + block.shape[0]] = block
      row += block.shape[0]
    self._array.copy(chunk, slot, back=True).start()
    self._written[0] += 1

  def finish(self) -> None:
    """Waits for all that is on its way, in a core's last step."""
    last = pl.program_id(1) == pl.num_programs(1) - 1
    for age in range(1, BEHIND + 1):

      @pl.when(last & (self._written[0] >= age))
      def _(age=age):
        self._array.copy(0, (self._written[0] - age) % BEHIND, back=True).wait()


class _Columns(NamedTuple):
  """An array of a column per slot, and the buffers in vector memory that its chunks are copied to or from."""

  array: Any
  buffers: Any
  semaphores: Any

  def copy(self, chunk, slot, *, back: bool = False):
    return self._copy(self.array.at[:, pl.ds(pl.multiple_of(chunk * CHUNK, CHUNK), CHUNK)], slot, back)

  def _copy(self, window, slot, back: bool):
    buffer = self.buffers.at[slot]
    return pltpu.make_async_copy(*((buffer, window) if back else (window, buffer)), self.semaphores.at[slot])


class _Rows(_Columns):
  """An array of a row per chunk and pixel."""

  def copy(self, chunk, slot, *, back: bool = False):
    return self._copy(self.array.at[chunk], slot, back)


# ---- Stages of a chunk ----


def _alphas(
    config: Config, rows: BFloat16[Array, "R K"], shape_side
) -> tuple[Float[Array, "K P"], Float[Array, "K P"]]:
  """Alpha of a chunk's Gaussians, 0 where skipped, and the same before the clamp to alpha_max."""
  shape = rows[: shape_side.shape[1]]
  exponent = sum(_dot(shape, shape_side[k], contract=(0, 0)) for k in range(shape_side.shape[0]))  # log2(alpha).
  free = jnp.where(exponent >= float(np.log2(config.alpha_min)), jnp.exp2(exponent), 0)
  return jnp.minimum(free, config.alpha_max), free


def _weights(
    config: Config, alphas: Float[Array, "K P"], transmittance: Float[Array, "1 P"]
) -> tuple[Float[Array, "K P"], Float[Array, "1 P"]]:
  """Weight of each Gaussian, alpha times transmittance, 0 in finished pixels; and the transmittance behind them all.

  The transmittance goes on falling in finished pixels: having passed the minimum is what marks them as finished.
  """
  reached, behind = _accumulate(1 - alphas, transmittance, jnp.multiply)
  weights = reached * alphas
  return jnp.where(reached - weights > config.transmittance_min, weights, 0), behind


def _pulls(
    config: Config,
    alphas: Float[Array, "K P"],
    free: Float[Array, "K P"],
    weights: Float[Array, "K P"],
    gains: Float[Array, "K P"],
    behind: Float[Array, "1 P"],
) -> tuple[Float[Array, "K P"], Float[Array, "1 P"]]:
  """d loss / d ln(alpha) of each Gaussian, T gain alpha - (what lies behind) alpha / (1 - alpha).

  `behind` is the sum of T gain alpha of all that lies behind the chunk; the same with the chunk is returned, too. It is
  summed from the back, as "the total minus what lies before" would lose what is faint behind what is bright.
  """
  gained = weights * gains
  following, behind = _accumulate(gained, behind, jnp.add, back=True)
  pulls = gained - following * alphas * _reciprocal(1 - alphas)
  passes = weights > 0
  if config.clamp_passes_gradient:  # As if nothing had been clamped: d alpha / d ln(alpha) is the free alpha.
    pulls = pulls * free * _reciprocal(jnp.maximum(alphas, config.alpha_min))
  else:
    passes &= free < config.alpha_max
  return jnp.where(passes, pulls, 0), behind


def _accumulate(
    values: Float[Array, "K P"], start: Float[Array, "1 P"], combine, *, back: bool = False
) -> tuple[Float[Array, "K P"], Float[Array, "1 P"]]:
  """`start` combined with the values of all slots before each, `back` of all behind each, and with all values."""
  groups = [values[i : i + SUBLANES] for i in range(0, CHUNK, SUBLANES)]
  total, *others = reversed(groups) if back else groups
  before = []  # What comes before in the same sublane.
  for other in others:
    before.append(total)
    total = combine(total, other)
  sublane = jax.lax.broadcasted_iota(jnp.int32, total.shape, 0)
  place = SUBLANES - 1 - sublane if back else sublane
  shift = lambda a, distance: pltpu.roll(a, SUBLANES - distance if back else distance, 0)
  ahead = jnp.where(place == 0, start, shift(total, 1))
  for distance in (1, 2, 4):
    ahead = jnp.where(place < distance, ahead, combine(ahead, shift(ahead, distance)))
  all_before = [ahead] + [combine(ahead, product) for product in before]
  end = 0 if back else SUBLANES - 1
  return jnp.concatenate(all_before[::-1] if back else all_before), combine(ahead, total)[end : end + 1]


def _reciprocal(x):
  """The hardware's estimate and one Newton step: no case has to be distinguished as in a division."""
  estimate = (pltpu if hasattr(pltpu, "reciprocal") else pl).reciprocal(x, approx=True)  # It moved after jax 0.10.
  return estimate * (2 - x * estimate)


# ---- Products in bfloat16 with the accuracy of float32 ----


def _split(x: Float[Array, "*s"]) -> list[BFloat16[Array, "*s"]]:
  """A float32 as a sum of PARTS bfloat16, which hold 8 bits each: exact."""
  result = []
  for _ in range(PARTS - 1):
    # The upper half of the bits. XLA, where this is interpreted, might optimize a round trip through bfloat16 away.
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-65536)
    upper = jax.lax.bitcast_convert_type(bits, jnp.float32)
    result.append(upper.astype(jnp.bfloat16))
    x = x - upper
  return [*result, x.astype(jnp.bfloat16)]


def _dot(a: BFloat16[Array, "_ _"], b: BFloat16[Array, "_ _"], contract=(1, 0)) -> Float[Array, "m n"]:
  """Sums over one axis of each; products are exact, sums in float32."""
  return jax.lax.dot_general(a, b, ((contract[:1], contract[1:]), ((), ())), preferred_element_type=jnp.float32)


def _pack_parameters(table: Float[Array, "D S"]) -> BFloat16[Array, "R S"]:
  """The kernels' parameters: parts of the coefficients of x^2, xy, y^2, x, y, 1 in log2(alpha), then of features."""
  l_xx, l_xy, u, l_yy, v, constant = table[:6]
  polynomial = [-l_xx * l_xx, -2 * l_xx * l_xy, -(l_xy * l_xy + l_yy * l_yy), -2 * l_xx * u, -2 * (l_xy * u + l_yy * v)]
  polynomial = jnp.stack([*polynomial, constant - u * u - v * v])
  features = jnp.pad(table[6:], ((0, -(table.shape[0] - 6) % SUBLANES), (0, 0)))
  shape_parts = jnp.concatenate(_split(polynomial))
  shape_parts = jnp.pad(shape_parts, ((0, SHAPE_ROWS - shape_parts.shape[0]), (0, 0)))
  rows = jnp.concatenate([shape_parts, *_split(features)])
  return jnp.pad(rows, ((0, -rows.shape[0] % (2 * SUBLANES)), (0, 0)))  # Two rows of bfloat16 share a sublane.


def _parts_of_monomials(tile_size: int) -> np.ndarray:
  """x^2 etc. at the pixels, (8 or 16, P): tiles of 32 need two parts, whose rows come one after the other."""
  values = monomials(tile_size).T
  upper = np.asarray(values.astype(jnp.bfloat16), np.float32)
  return upper if np.array_equal(upper, values) else np.concatenate([upper, values - upper])


def _shape_side(tile_size: int, rows: int, absolute: bool = False) -> BFloat16[Array, "k R P"]:
  """What the parameters are multiplied with to give the exponent: the monomials against every part's coefficients.

  With `absolute` followed by what gives the exponent's derivatives by x and by y.
  """
  one, x, y, xx, xy, yy, zero, _ = range(8)
  parts = _parts_of_monomials(tile_size).reshape(-1, SUBLANES, tile_size**2)
  sides = [part[[xx, xy, yy, x, y, one]] for part in parts]
  if absolute:
    exact = monomials(tile_size).T
    sides += [exact[[x, y, zero, one, zero, zero]], exact[[zero, x, y, zero, one, zero]]]
    sides[-2][0] *= 2
    sides[-1][2] *= 2
  stacked = np.tile(np.stack(sides), (1, PARTS, 1))
  return jnp.asarray(np.pad(stacked, ((0, 0), (0, rows - stacked.shape[1]), (0, 0))), jnp.bfloat16)


def _moment_side(tile_size: int, absolute: bool) -> BFloat16[Array, "k M P"]:
  """What is multiplied with the pulls: the monomials; with `absolute` two more that sum up into rows 6 and 7."""
  sides = [_parts_of_monomials(tile_size)]
  for row in (6, 7) if absolute else ():
    sides.append(np.zeros_like(sides[0]))
    sides[-1][row] = 1
  return jnp.asarray(np.stack(sides), jnp.bfloat16)


def _round_up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


IMPLEMENTATION = PallasMosaicTpu()
