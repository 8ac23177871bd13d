"""Where arrays live: one mesh with axes ("data", "fsdp"), and a short table of rules.

Batches are split over both axes. Parameters are replicated over "data"; over "fsdp" the large matrices are split along
their longest axis that divides (ZeRO-3 in effect: XLA gathers them where they are used). On one device all of this is
the identity, so the laptop and the pod run the same program.

A bank of identities (the group "bank") is split over "fsdp" by people: each device keeps some of them whole, with their
optimizer state, and gives the frames of a batch the people that they show.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from rsatalker_jax.errors import InputError

# The group of parameters and buffers whose first dimension numbers people.
BANK = "bank"
# Arrays smaller than this stay whole: gathering them would cost more than it saves.
MIN_SHARDED_SIZE = 2**16


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
  """Makes the device mesh over all devices of all processes.

  Args:
    data: size of the axis that splits batches only; -1 takes what `fsdp` leaves.
    fsdp: size of the axis that also splits parameters.

  Raises:
    InputError: if the sizes do not multiply to the number of devices.
  """
  devices = jax.device_count()
  if data == -1 and fsdp > 0 and devices % fsdp == 0:
    data = devices // fsdp
  if data * fsdp != devices:
    raise InputError("config", "mesh", f"data={data} x fsdp={fsdp}", f"a product of {devices}, the number of devices")
  # Auto axes: Linen's Embed raises a ShardingTypeError under Explicit ones.
  return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def fit_mesh(mesh: Mesh, key: str, batches: Sequence[int]) -> Mesh:
  """The mesh, or the part of it that batches of these sizes fill: small batches leave devices out.

  Args:
    mesh: of `make_mesh`.
    key: of the batch in the config, for the message.
    batches: examples in each of a stage's batches, over all devices.

  Raises:
    InputError: a batch that `mesh.fsdp` does not divide, or of which, with several processes, some device gets none.
  """
  data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
  common = math.gcd(*batches)
  if common % mesh.size == 0:
    return mesh
  found = " and ".join(map(str, batches))
  if jax.process_count() > 1:
    raise InputError("config", key, found, f"a multiple of {mesh.size}, the number of devices of all processes")
  if common % fsdp:
    raise InputError("config", key, found, f"a multiple of {fsdp}, as mesh.fsdp")
  part = mesh.devices[: math.gcd(common // fsdp, data)]
  return Mesh(part, mesh.axis_names, axis_types=mesh.axis_types)


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> P:
  """The rule for one array of parameters or optimizer state."""
  if fsdp == 1 or np.prod(shape, dtype=np.int64) < MIN_SHARDED_SIZE:
    return P()
  for axis in sorted(range(len(shape)), key=lambda a: -shape[a]):
    if shape[axis] % fsdp == 0:
      return P(*([None] * axis), "fsdp")
  return P()


def bank_spec(shape: tuple[int, ...], fsdp: int) -> P:
  """The rule for one array of a bank: by people.

  Raises:
    InputError: if the axis does not divide them.
  """
  if fsdp == 1:
    return P()
  if shape[0] % fsdp:
    raise InputError("config", "mesh.fsdp", fsdp, f"a divisor of {shape[0]}, the number of people")
  return P("fsdp")


def state_shardings(mesh: Mesh, abstract_state):
  """Shardings for a tree of `jax.ShapeDtypeStruct`, in the same structure."""

  def sharding(path, x):
    in_bank = any(getattr(entry, "key", None) == BANK for entry in path)
    return NamedSharding(mesh, (bank_spec if in_bank else parameter_spec)(x.shape, mesh.shape["fsdp"]))

  return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batches are split along their first axis over every device."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def put_batch(mesh: Mesh, batch):
  """Moves this process's part of a batch (numpy, leading axis B / processes) into a globally sharded batch (leading B)."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
