"""The table of rules, and that a sharded step equals the unsharded one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rsatalker_jax.errors import InputError
from rsatalker_jax import sharding


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((512, 1024), P(None, "fsdp")),  # The longest axis.
        ((1024, 511), P("fsdp")),
        ((1023, 512), P(None, "fsdp")),  # The longest one that divides.
        ((1023, 511), P()),
        ((8, 8), P()),  # Too small.
        ((), P()),
    ],
)
def test_parameter_rules(shape, expected):
  assert sharding.parameter_spec(shape, 2) == expected


def test_nothing_is_split_without_fsdp():
  assert sharding.parameter_spec((4096, 4096), 1) == P()


def test_mesh_sizes_must_fit_the_devices():
  assert dict(sharding.make_mesh().shape) == {"data": jax.device_count(), "fsdp": 1}
  with pytest.raises(InputError, match="data=3 x fsdp=1, expected a product of"):
    sharding.make_mesh(data=3)


@pytest.mark.parametrize("data, fsdp", [(2, 1), (1, 2)])
def test_sharded_gradient_equals_plain(data, fsdp):
  rng = np.random.default_rng(0)
  weights = {"w": rng.normal(size=(256, 512)).astype(np.float32)}
  batch = {"x": rng.normal(size=(4, 256)).astype(np.float32)}

  def loss(weights, batch):
    return jnp.mean(jnp.tanh(batch["x"] @ weights["w"]) ** 2)

  expected = jax.jit(jax.grad(loss))(weights, batch)["w"]
  mesh = sharding.make_mesh(data, fsdp)
  with jax.set_mesh(mesh):
    shardings = sharding.state_shardings(mesh, weights)
    assert shardings["w"].spec == (P(None, "fsdp") if fsdp == 2 else P())
    placed = jax.device_put(weights, shardings)
    found = jax.jit(jax.grad(loss), out_shardings=shardings)(placed, sharding.put_batch(mesh, batch))["w"]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)  # Sums in another order.
