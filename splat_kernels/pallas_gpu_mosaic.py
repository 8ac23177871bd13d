"""The kernels of pallas_gpu.py by way of Mosaic GPU, for Hopper and later; interpreted elsewhere.

JAX calls its Triton form deprecated; this one is there for when it is gone, and is never chosen by itself. It is the
plainer form: the four warps of a warpgroup draw a tile, and go back through a chunk, so that each of a slot's moments
is summed across warps through shared memory, and is written by itself.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from splat_kernels.pallas_gpu import UNROLL, Target, composite_in_groups, make_walk, sort_by_gaussian
from splat_kernels.platforms import current_platform
from splat_kernels.types import Config

LANES = 128  # Threads of a warpgroup: Mosaic's vectors are multiples of it.


def _call(kernel: Callable, shapes: list, *, grid: int, pixels: int, per_thread: int, name: str) -> Callable:
  """As `pallas_gpu`'s, but a vector is a warpgroup's, whatever number of pixels a thread should have."""
  del pixels, per_thread
  interpret = None
  if current_platform() != "gpu":
    if not hasattr(plgpu, "InterpretGPUParams"):
      raise ValueError(f"jax {jax.__version__} cannot interpret pallas_gpu_mosaic where there is no GPU; 0.12 can")
    interpret = plgpu.InterpretGPUParams()
  program, iota = functools.partial(jax.lax.axis_index, "program"), _iota
  return plgpu.kernel(
      functools.partial(kernel, Target(LANES, UNROLL, program=program, iota=iota, collects=False)),
      out_type=shapes,
      grid=(grid,),
      grid_names=("program",),
      compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
      interpret=interpret,
      kernel_name=name,
  )


def _iota(size: int) -> Int[Array, "size"]:
  layout = plgpu.Layout.WG_STRIDED((size,), vec_size=1)
  return plgpu.layout_cast(jax.lax.broadcasted_iota(jnp.int32, (size,), 0), layout)


def _sum_slots(values: Float[Array, "S M"], gaussians: Int[Array, "S"], num: int) -> Float[Array, "G M"]:
  """See `Walk.sum_slots`; Mosaic has no loads by a vector of indices, so rows are brought into order before."""
  slots, starts = sort_by_gaussian(gaussians, num)
  shape = jax.ShapeDtypeStruct((num * values.shape[1],), jnp.float32)
  kernel = functools.partial(_sum_kernel, values.shape[1])
  call = _call(kernel, [shape], grid=num, pixels=0, per_thread=0, name="splat_sum")
  (sums,) = call(starts, values[slots].reshape(-1))
  return sums.reshape(num, -1)


def _sum_kernel(numbers: int, target: Target, starts, values, sums):
  """Sums the rows of one Gaussian's slots: `values` (S * M,), sorted by Gaussian, to `sums` (G * M,)."""
  gaussian = target.program()
  add = lambda at, totals: tuple(total + values[at * numbers + m] for m, total in enumerate(totals))
  totals = jax.lax.fori_loop(starts[gaussian], starts[gaussian + 1], add, (jnp.float32(0),) * numbers)
  for m, total in enumerate(totals):
    sums[gaussian * numbers + m] = total


walk = make_walk(_call, _sum_slots)


def composite(*arrays, config: Config, **arguments):
  """See `reference.composite`. Tiles of at least 16 pixels only."""
  if config.tile_size**2 < LANES:
    raise ValueError(f"{config.tile_size=} must be 16 or 32 for pallas_gpu_mosaic")
  return composite_in_groups(walk, *arrays, config=config, **arguments)
