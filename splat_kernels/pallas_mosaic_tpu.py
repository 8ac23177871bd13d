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
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float

from splat_kernels.binning import Bins
from splat_kernels.tile_lists import TileLists, make_tile_lists
from splat_kernels.tiled import Tiled, result_shape
from splat_kernels.tiles import monomials
from splat_kernels.types import Config

LANES, SUBLANES = 128, 8  # A register's.
CHUNK = LANES  # Slots of one tile processed together: what DMA is aligned to.
AHEAD = 8  # Chunks of parameters in vector memory: a copy takes longer than a chunk's computation.
BEHIND = 4  # Chunks of moments in vector memory, on their way out.
SHAPE_ROWS = 24  # Of the parameters: 3 parts of 6 coefficients, filled up to whole registers.
PARTS = 3  # A float32 as a sum of numbers that bfloat16 holds.


class PallasMosaicTpu(Tiled):
  """See the head of this file."""

  name = "pallas_mosaic_tpu"
  scale = float(np.log2(np.e))
  transposed = True

  def unsupported(self, device: jax.Device, config: Config) -> str | None:
    del config
    return None if device.platform == "tpu" else f"needs a TPU, not {device.platform}"

  def make_lists(self, bins: Bins, num: int, config: Config) -> TileLists:
    """Lists in chunks of CHUNK slots, in the order the kernels' running products want."""
    del config
    lists = make_tile_lists(bins, num, CHUNK)
    by_sublane = lists.gaussians.reshape(-1, SUBLANES, CHUNK // SUBLANES)
    gaussians = by_sublane.swapaxes(1, 2).reshape(-1, CHUNK)
    return TileLists(gaussians, lists.tiles, lists.starts, lists.counts)

  def forward(self, table, lists: TileLists, num_tiles: int, config: Config, *, save: bool, interpret: bool):
    """See `Tiled.forward`; the sums are saved."""
    channels, pixels = table.shape[0] - 6, config.tile_size**2
    parameters = _pack_parameters(table)
    shape_side = _shape_side(config.tile_size, parameters.shape[0])
    tiles = _call(
        functools.partial(_forward_kernel, config=config),
        lists,
        num_tiles,
        inputs=[parameters, shape_side],
        in_specs=[pl.BlockSpec(memory_space=pl.ANY), _whole(shape_side)],
        out_shape=result_shape((num_tiles + num_tiles % 2, channels, pixels), jnp.float32, table),
        out_specs=_one_tile(num_tiles, channels, pixels),
        scratch_shapes=_ring(AHEAD, parameters.shape[0], jnp.bfloat16),
        name="splat_forward",
        interpret=interpret,
    )
    sums = tiles[:num_tiles]
    return sums, sums if save else None

  def backward(self, table, lists: TileLists, gradient, saved, config: Config, *, absolute: bool, interpret: bool):
    """See `Tiled.backward`."""
    num_tiles, channels, pixels = gradient.shape
    total = jnp.sum(saved * gradient, axis=1)
    parameters = _pack_parameters(table)
    rows = parameters.shape[0]
    shape_side = _shape_side(config.tile_size, rows, absolute)
    moment_side = _moment_side(config.tile_size, absolute)
    padded = _round_up(channels, SUBLANES)
    moments = jnp.zeros((SUBLANES + padded, table.shape[1]), jnp.float32)
    return _call(
        functools.partial(_backward_kernel, config=config, absolute=absolute),
        lists,
        num_tiles,
        inputs=[parameters, shape_side, moment_side, gradient, total[:, None], moments],
        in_specs=[
            pl.BlockSpec(memory_space=pl.ANY),
            _whole(shape_side),
            _whole(moment_side),
            _one_tile(num_tiles, channels, pixels),
            _one_tile(num_tiles, 1, pixels),
            pl.BlockSpec(memory_space=pl.ANY),
        ],
        out_shape=result_shape(moments.shape, jnp.float32, table),
        out_specs=pl.BlockSpec(memory_space=pl.ANY),
        scratch_shapes=[
            *_ring(AHEAD, rows, jnp.bfloat16),
            *_ring(BEHIND, moments.shape[0], jnp.float32),
            pltpu.VMEM((PARTS, rows, pixels), jnp.bfloat16),
            pltpu.VMEM((PARTS * padded, pixels), jnp.bfloat16),
        ],
        name="splat_backward",
        input_output_aliases={6: 0},  # Slots that are never reached keep their zeros.
        interpret=interpret,
    )


# ---- How the kernels are called ----


def _call(
    kernel, lists: TileLists, num_tiles: int, *, inputs, out_shape, in_specs, out_specs, scratch_shapes, name, interpret, **kw
):
  """A kernel over all tiles: first and last chunk of every tile in scalar memory, one tile a grid step.

  The grid is (2, half): chips with two cores to a device (v4, v5p) draw the two halves at the same time.
  """
  half = (num_tiles + 1) // 2
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
      interpret=interpret,
      name=name,
      **kw,
  )(starts, *inputs)


def _one_tile(num_tiles: int, channels: int, pixels: int) -> pl.BlockSpec:
  half = (num_tiles + 1) // 2
  return pl.BlockSpec((1, channels, pixels), lambda core, step, starts: (core * half + step, 0, 0))


def _whole(array) -> pl.BlockSpec:
  return pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim)


def _ring(size: int, rows: int, dtype) -> list:
  """Buffers of chunks, a semaphore for each, and a counter."""
  return [pltpu.VMEM((size, rows, CHUNK), dtype), pltpu.SemaphoreType.DMA((size,)), pltpu.SMEM((1,), jnp.int32)]


# ---- Kernels ----


def _forward_kernel(starts, parameters, shape_side, tile, buffers, semaphores, fetched, *, config: Config):
  """Sums of weight times feature of one tile."""
  channels, pixels = tile.shape[1:]
  chunks = _Chunks(starts, parameters, buffers, semaphores, fetched)

  def draw_chunk(state):
    chunk, transmittance, summed = state
    rows = chunks.read(chunk)
    alphas, _ = _alphas(config, rows, shape_side[...])
    weights, transmittance = _weights(config, alphas, transmittance)
    # All rows take part, as the unused coefficients cost nothing; the parts of the features are added up at the end.
    for part in _split(weights):
      summed = summed + _dot(rows, part)
    return chunk + 1, transmittance, summed

  state = chunks.first, jnp.ones((1, pixels), jnp.float32), jnp.zeros((parameters.shape[0], pixels), jnp.float32)
  chunk, _, summed = jax.lax.while_loop(lambda s: chunks.more(s[0], s[1], config), draw_chunk, state)
  chunks.leave(chunk)
  padded = _round_up(channels, SUBLANES)
  parts = [summed[SHAPE_ROWS + k * padded :][:channels] for k in range(PARTS)]
  tile[0] = sum(parts)


def _backward_kernel(
    starts,
    parameters,
    shape_side,
    moment_side,
    gradient,
    total,
    zeros,
    moments,
    buffers,
    semaphores,
    fetched,
    out_buffers,
    out_semaphores,
    written,
    gain_side,
    color_side,
    *,
    config: Config,
    absolute: bool,
):
  """Moments of the slots of one tile; see `Tiled.backward`."""
  del zeros  # They are in `moments` already.
  channels, pixels = gradient.shape[1:]
  padded = _round_up(channels, SUBLANES)
  chunks = _Chunks(starts, parameters, buffers, semaphores, fetched)
  step, steps = pl.program_id(1), pl.num_programs(1)

  @pl.when(step == 0)
  def _():
    written[0] = 0

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

  def write(slot, chunk):
    return _copy_chunk(moments, chunk, out_buffers.at[slot], out_semaphores.at[slot], back=True)

  def walk_chunk(state):
    chunk, transmittance, remaining = state
    rows = chunks.read(chunk)
    alphas, free = _alphas(config, rows, shape_side[: shape_side.shape[0] - 2 * absolute])
    weights, transmittance = _weights(config, alphas, transmittance)
    gains = sum(_dot(rows, gain_side[k], contract=(0, 0)) for k in range(PARTS))
    pulls, remaining = _pulls(config, alphas, free, weights, gains, remaining)
    shape = sum(_dot(moment_side[0], part, contract=(1, 1)) for part in _split(pulls))
    for axis in range(2 * absolute):
      slopes = _dot(rows, shape_side[axis - 2], contract=(0, 0)) * float(np.log(2))  # d ln(alpha) / d pixel.
      shape += sum(_dot(moment_side[1 + axis], part, contract=(1, 1)) for part in _split(jnp.abs(pulls * slopes)))
    color = sum(_dot(color_side[...], part, contract=(1, 1)) for part in _split(weights))
    slot = written[0] % BEHIND

    @pl.when(written[0] >= BEHIND)
    def _():
      write(slot, chunk).wait()  # For the copy of BEHIND chunks ago: all are of the same size.

    out_buffers[slot, :SUBLANES] = sum(shape[i : i + SUBLANES] for i in range(0, shape.shape[0], SUBLANES))
    out_buffers[slot, SUBLANES:] = sum(color[i : i + padded] for i in range(0, color.shape[0], padded))
    write(slot, chunk).start()
    written[0] += 1
    return chunk + 1, transmittance, remaining

  state = chunks.first, jnp.ones((1, pixels), jnp.float32), total[0]
  chunk, _, _ = jax.lax.while_loop(lambda s: chunks.more(s[0], s[1], config), walk_chunk, state)
  chunks.leave(chunk)

  for age in range(1, BEHIND + 1):

    @pl.when((step == steps - 1) & (written[0] >= age))
    def _(age=age):
      write((written[0] - age) % BEHIND, chunks.first).wait()


class _Chunks:
  """The chunks of this grid step's tile, out of a ring of buffers that is filled ahead, past the tile's end, too.

  The lists of a core's tiles follow one another in memory, so the ring knows nothing of tiles: chunk c goes to buffer
  c % AHEAD. What is fetched is waited for exactly once, when it is read or when its tile is left early.
  """

  def __init__(self, starts, parameters, buffers, semaphores, fetched):
    step, steps = pl.program_id(1), pl.num_programs(1)
    tile = pl.program_id(0) * steps + step
    self.first, self.last = starts[tile], starts[tile + 1]
    self._core_end = starts[(pl.program_id(0) + 1) * steps]
    self._parameters, self._buffers, self._semaphores = parameters, buffers, semaphores
    self._fetched = fetched  # One number: the next chunk to be fetched.

    @pl.when(step == 0)
    def _():
      fetched[0] = self.first

  def _copy(self, chunk):
    return _copy_chunk(self._parameters, chunk, self._buffers.at[chunk % AHEAD], self._semaphores.at[chunk % AHEAD])

  def read(self, chunk):
    """The parameters of a chunk; starts to fetch what now finds room in the ring."""

    def fetch(following):
      self._copy(following).start()
      return following + 1

    until = jnp.minimum(chunk + AHEAD, self._core_end)
    self._fetched[0] = jax.lax.while_loop(lambda following: following < until, fetch, self._fetched[0])
    self._copy(chunk).wait()
    return self._buffers[chunk % AHEAD]

  def more(self, chunk, transmittance, config: Config):
    """Whether there is a chunk to draw and a pixel that is not finished."""
    return (chunk < self.last) & (jnp.max(transmittance) > config.transmittance_min)

  def leave(self, chunk):
    """Skips the rest of the tile, beginning with a chunk."""
    waited = lambda skipped: (self._copy(skipped).wait(), skipped + 1)[1]
    jax.lax.while_loop(lambda skipped: skipped < jnp.minimum(self.last, self._fetched[0]), waited, chunk)
    self._fetched[0] = jnp.maximum(self._fetched[0], self.last)


def _copy_chunk(array, chunk, buffer, semaphore, *, back: bool = False):
  """The copy of a chunk's columns of an array to a buffer, or back."""
  window = array.at[:, pl.ds(pl.multiple_of(chunk * CHUNK, CHUNK), CHUNK)]
  return pltpu.make_async_copy(*((buffer, window) if back else (window, buffer)), semaphore)


# ---- Stages of a chunk ----


def _alphas(
    config: Config, rows: BFloat16[Array, "R K"], shape_side
) -> tuple[Float[Array, "K P"], Float[Array, "K P"]]:
  """Alpha of a chunk's Gaussians, 0 where skipped, and the same before the clamp to alpha_max."""
  exponent = sum(_dot(rows, shape_side[k], contract=(0, 0)) for k in range(shape_side.shape[0]))  # log2(alpha).
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
    remaining: Float[Array, "1 P"],
) -> tuple[Float[Array, "K P"], Float[Array, "1 P"]]:
  """d loss / d ln(alpha) of each Gaussian, T gain alpha - (what comes behind) alpha / (1 - alpha); what remains."""
  gained = weights * gains
  ahead, behind = _accumulate(-gained, remaining, jnp.add)
  pulls = gained - (ahead - gained) * alphas * _reciprocal(1 - alphas)
  passes = weights > 0
  if config.clamp_passes_gradient:  # As if nothing had been clamped: d alpha / d ln(alpha) is the free alpha.
    pulls = pulls * free * _reciprocal(jnp.maximum(alphas, config.alpha_min))
  else:
    passes &= free < config.alpha_max
  return jnp.where(passes, pulls, 0), behind


def _accumulate(
    values: Float[Array, "K P"], start: Float[Array, "1 P"], combine
) -> tuple[Float[Array, "K P"], Float[Array, "1 P"]]:
  """`start` combined with the values of all slots before each, and with all values."""
  total, *others = (values[i : i + SUBLANES] for i in range(0, CHUNK, SUBLANES))
  before = []  # What comes before in the same sublane.
  for other in others:
    before.append(total)
    total = combine(total, other)
  sublane = jax.lax.broadcasted_iota(jnp.int32, total.shape, 0)
  ahead = jnp.where(sublane == 0, start, pltpu.roll(total, 1, 0))
  for distance in (1, 2, 4):
    ahead = jnp.where(sublane < distance, ahead, combine(ahead, pltpu.roll(ahead, distance, 0)))
  all_before = jnp.concatenate([ahead] + [combine(ahead, product) for product in before])
  return all_before, combine(ahead, total)[SUBLANES - 1 :]


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
