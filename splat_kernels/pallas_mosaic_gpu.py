"""The kernels of pallas_triton.py by way of Mosaic GPU, for Hopper and later.

JAX calls its Triton form deprecated; this one is there for when it is gone, and is never chosen by itself. It is the
plainer form: the four warps of a warpgroup draw a tile, and go back through a chunk, so that each of a slot's moments
is summed across warps through shared memory, and is written by itself.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from splat_kernels.pallas_triton import UNROLL, PallasTriton, Target, sort_by_gaussian
from splat_kernels.platforms import needs_nvidia
from splat_kernels.tiled import result_shape
from splat_kernels.types import Config

LANES = 128  # Threads of a warpgroup: Mosaic's vectors are multiples of it.


class PallasMosaicGpu(PallasTriton):
  """See the head of this file."""

  name = "pallas_mosaic_gpu"

  def unsupported(self, device: jax.Device, config: Config) -> str | None:
    if config.tile_size**2 < LANES:
      return f"config.tile_size={config.tile_size} must be 16 or 32"
    return needs_nvidia(device, 9)

  def call(self, kernel: Callable, shapes: list, *, grid: int, name: str, interpret: bool, **hints) -> Callable:
    """As `PallasTriton`'s, but a vector is a warpgroup's, whatever number of pixels a thread should have, and JAX has no
    place for an estimate of the cost."""
    del hints
    if interpret and not hasattr(plgpu, "InterpretGPUParams"):
      raise ValueError(f"interpret={interpret}: jax {jax.__version__} cannot interpret {self.name}, 0.12 can")
    program, iota = functools.partial(jax.lax.axis_index, "program"), _iota
    return plgpu.kernel(
        functools.partial(kernel, Target(LANES, UNROLL, program=program, iota=iota, collects=False)),
        out_type=shapes,
        grid=(grid,),
        grid_names=("program",),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=_interpreter() if interpret else None,
        kernel_name=name,
    )

  def sum_slots(self, values: Float[Array, "S M"], gaussians: Int[Array, "S"], num: int, *, interpret: bool):
    """See `Tiled.sum_slots`; Mosaic has no loads by a vector of indices, so rows are brought into order before."""
    slots, starts = sort_by_gaussian(gaussians, num)
    shape = result_shape((num, values.shape[1]), jnp.float32, values)
    call = self.call(_sum_kernel, [shape], grid=num, name="splat_sum", interpret=interpret)
    return call(starts, values[slots])[0]


def _interpreter() -> object:
  mosaic: Any = plgpu  # jax 0.10 has none.
  return mosaic.InterpretGPUParams()


def _iota(size: int) -> Int[Array, "size"]:
  layout = plgpu.Layout.WG_STRIDED((size,), vec_size=1)
  return plgpu.layout_cast(jax.lax.broadcasted_iota(jnp.int32, (size,), 0), layout)


def _sum_kernel(target: Target, starts, values, sums):
  """Sums the rows of one Gaussian's slots: `values` (S, M), sorted by Gaussian, to `sums` (G, M)."""
  gaussian = target.program()
  numbers = values.shape[1]
  add = lambda at, totals: tuple(total + values[at, m] for m, total in enumerate(totals))
  totals = jax.lax.fori_loop(starts[gaussian], starts[gaussian + 1], add, (jnp.float32(0),) * numbers)
  for m, total in enumerate(totals):
    sums[gaussian, m] = total


IMPLEMENTATION = PallasMosaicGpu()
