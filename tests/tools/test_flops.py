"""Operations of programs that one can count by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tools.flops import count_flops


def flops_of(function, *shapes, devices=1):
  return count_flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)), devices)


def test_matrix_products_and_their_gradient():
  assert flops_of(lambda a, b: a @ b, (4, 5), (5, 6)) == 2 * 4 * 5 * 6
  assert flops_of(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (3, 4, 5), (3, 5, 6)) == 3 * 2 * 4 * 5 * 6
  # The product, and one for each of the two gradients, of a matrix that is summed: 4 x 6 numbers.
  pulled = flops_of(jax.grad(lambda a, b: jnp.sum(a @ b), argnums=(0, 1)), (4, 5), (5, 6))
  assert pulled == 3 * 2 * 4 * 5 * 6 + 24


def test_convolution():
  # 7 places, 3 channels out, each of a window of 3 with 2 channels.
  assert flops_of(lambda x, k: jax.lax.conv(x, k, (1,), "SAME"), (1, 2, 7), (3, 2, 3)) == 2 * 7 * 3 * 3 * 2


def test_each_number_computed_is_one_and_moving_is_none():
  assert flops_of(lambda x: jnp.tanh(x) + x, (10,)) == 20
  assert flops_of(lambda x: jnp.sum(x), (10,)) == 10
  assert flops_of(lambda x: jnp.concatenate([x.T, x.T])[2:], (5, 2)) == 0


def test_loops_and_branches():
  loop = lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=7)[0]
  assert flops_of(loop, (3, 3)) == 7 * 2 * 27
  branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: jnp.sin(x), x)
  assert flops_of(branch, (3, 3)) == 2 * 27 == flops_of(jax.jit(branch), (3, 3))
  remat = jax.checkpoint(lambda x: x @ x)
  assert flops_of(remat, (3, 3)) == 2 * 27


def test_within_shard_map_every_device_counts():
  mesh = jax.sharding.AbstractMesh((4,), ("data",))
  spread = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
  # A device has 2 of 8 rows of 5: 2 x 2 products of 5.
  assert flops_of(spread, (8, 5), devices=4) == 4 * 2 * 2 * 2 * 5


def test_kernels_count_what_they_say():
  pallas = pytest.importorskip("jax.experimental.pallas")

  def kernel(x, out):
    out[...] = x[...]

  cost = pallas.CostEstimate(flops=1234, bytes_accessed=0, transcendentals=0)
  call = pallas.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((8, 128), np.float32), cost_estimate=cost, interpret=True)
  assert flops_of(call, (8, 128)) == 1234
