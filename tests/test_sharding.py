"""The table of rules, and that a sharded step equals the unsharded one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs.common import base_config
from rsatalker_jax.errors import InputError
from rsatalker_jax import sharding


def spec_on(data, fsdp, rules, path, shape):
  mesh = jax.sharding.AbstractMesh((data, fsdp), ("data", "fsdp"))
  return sharding.array_spec(mesh, rules, path, shape)


RULES = base_config().mesh.rules


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
def test_large_arrays_are_split_along_their_longest_axis(shape, expected):
  assert spec_on(4, 2, RULES, "params/generator/params/join/kernel", shape) == expected


def test_nothing_is_split_without_fsdp():
  assert spec_on(8, 1, RULES, "params/generator/params/join/kernel", (4096, 4096)) == P()
  assert spec_on(8, 1, RULES, "params/bank/means", (3, 5)) == P()


@pytest.mark.parametrize(
    "path, shape, expected",
    [
        ("params/bank/means", (4, 100, 3), P("fsdp")),
        ("opt_state/inner_states/bank/means/inner_state/0/mu/bank/means", (4, 100, 3), P("fsdp")),
        ("params/banks/means", (4, 100, 3), P()),
        ("params/others/means", (3, 100_000, 3), P(None, "fsdp")),
    ],
)
def test_a_bank_is_split_by_people(path, shape, expected):
  assert spec_on(4, 2, RULES, path, shape) == expected


def test_the_first_rule_that_is_found_counts():
  rules = [["kernel$", [None, "fsdp"]], ["mlp", ["data", "fsdp"]], ["bias", ["fsdp"]]]
  spec = lambda path, *shape: spec_on(4, 2, rules, path, shape)
  assert spec("mlp/kernel", 6, 8) == P(None, "fsdp")
  assert spec("mlp/table", 12, 8) == P("data", "fsdp")
  assert spec("mlp/table", 12, 8, 5) == P("data", "fsdp")
  assert spec("count/bias") == P()  # No dimension to split.
  assert spec("something", 2**10, 2**10) == P()  # No rule.
  assert spec_on(1, 2, rules, "mlp/table", (3, 8)) == P(None, "fsdp")  # One device along "data".


@pytest.mark.parametrize("rule, axis, size", [(("w", ("fsdp",)), "fsdp", 2), (("w", ("data",)), "data", 4)])
def test_a_dimension_that_an_axis_does_not_divide_is_one_line(rule, axis, size):
  expected = f"config: mesh.{axis}: found {size}, expected a divisor of 7, which the rule 'w' splits: params/w is 7x2"
  with pytest.raises(InputError) as caught:
    spec_on(4, 2, [rule], "params/w", (7, 2))
  assert str(caught.value) == expected


def test_mesh_sizes_must_fit_the_devices():
  assert dict(sharding.make_mesh().shape) == {"data": jax.device_count(), "fsdp": 1}
  for sizes in ((3, 1), (-1, 3), (-1, -1), (-2, -1), (0, 1)):
    with pytest.raises(InputError, match=f"data={sizes[0]} x fsdp={sizes[1]}, expected a product of {jax.device_count()}, the"):
      sharding.make_mesh(*sizes)


def test_one_axis_takes_what_the_other_leaves():
  sizes = lambda *given, **options: tuple(sharding.make_mesh(*given, **options).shape.values())
  assert (sizes(-1, 2), sizes(1, -1), sizes(2, -1), sizes(-1, 1)) == ((1, 2), (1, 2), (2, 1), (2, 1))
  assert sizes(-1, 1, devices=jax.devices()[:1]) == (1, 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_that_does_not_divide_is_one_line(monkeypatch, processes):
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  mesh = sharding.make_mesh(1, 2)
  whose = "as mesh.fsdp" if processes == 1 else "the number of devices of all processes"
  fit = lambda batches, accumulate=1: sharding.fit_mesh(mesh, batches, accumulate)
  assert fit({"joint.batch": 2, "joint.motion_batch": 8}) is mesh and fit({"motion.batch": 12}, 3) is mesh
  with pytest.raises(InputError) as caught:
    fit({"joint.batch": 2, "joint.motion_batch": 7})
  assert str(caught.value) == f"config: joint.motion_batch: found 7, expected a multiple of 2, {whose}"
  with pytest.raises(InputError) as caught:
    fit({"motion.batch": 8}, 3)
  assert str(caught.value) == f"config: motion.batch: found 8, expected a multiple of 2, {whose} times 3, motion.accumulate"


def test_small_batches_and_parts_leave_devices_out():
  mesh = sharding.make_mesh(2, 1)
  size = lambda *given: sharding.fit_mesh(mesh, *given).size
  assert (size({"a": 6, "b": 4}), size({"a": 6, "b": 3}), size({"a": 4}, 2), size({"a": 4}, 4)) == (2, 1, 2, 1)


def test_parts_of_a_batch_take_examples_from_every_device():
  mesh = sharding.make_mesh(2, 1)
  batch = {"x": np.arange(12), "y": np.arange(24).reshape(12, 2)}
  with jax.set_mesh(mesh):
    compiled = jax.jit(lambda batch: sharding.split_in_turn(mesh, batch, 3)).lower(sharding.put_batch(mesh, batch)).compile()
    parts = compiled(sharding.put_batch(mesh, batch))
  np.testing.assert_array_equal(parts["x"], [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])
  np.testing.assert_array_equal(parts["y"][1], batch["y"][1::3])
  assert {tuple(np.asarray(shard.data)[0].tolist()) for shard in parts["x"].addressable_shards} == {(0, 3), (6, 9)}
  assert not re.search("all-|collective", compiled.as_text())  # Nothing is moved.


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
    shardings = sharding.state_shardings(mesh, RULES, weights)
    assert shardings["w"].spec == (P(None, "fsdp") if fsdp == 2 else P())
    placed = jax.device_put(weights, shardings)
    found = jax.jit(jax.grad(loss), out_shardings=shardings)(placed, sharding.put_batch(mesh, batch))["w"]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)  # Sums in another order.
