"""Where arrays live: one mesh with axes ("data", "fsdp"), and a short table of rules.

Batches are split over both axes. Parameters, buffers and the optimizer's state lie as the config's table `mesh.rules` says: whole on
every device of "data"; over "fsdp" the large matrices are split along their longest axis that divides (ZeRO-3 in effect:
XLA gathers them where they are used). On one device all of this is the identity, so the laptop and the pod run the same
program.

A bank of identities (the group "bank") is split over "fsdp" by people: each device keeps some of them whole, with their
optimizer state, and gives the frames of a batch the people that they show.
"""

import math
import re
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from rsatalker_jax.errors import InputError

AXES = ("data", "fsdp")
# The group of parameters and buffers whose first dimension numbers people.
BANK = "bank"
# In a rule, instead of axes: over "fsdp" along the longest dimension that it divides, where the array is large.
LONGEST = "longest"
# Arrays smaller than this stay whole under LONGEST: gathering them would cost more than it saves.
MIN_SHARDED_SIZE = 2**16
# A regular expression that is searched for in the path of an array ("params/bank/means",
# "opt_state/…/mu/bank/means"), and how the array is split: a mesh axis or None for each of its first dimensions, or
# LONGEST. The first rule that is found counts; arrays without one, and with fewer dimensions than theirs, stay whole.
Rules = Sequence[tuple[str, Sequence[str | None] | str]]


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Makes the device mesh.

  Args:
    data: size of the axis that splits batches only; -1 takes what `fsdp` leaves.
    fsdp: size of the axis that also splits parameters; -1 takes what `data` leaves.
    devices: that are used; None: all of all processes.

  Raises:
    InputError: if the sizes do not multiply to the number of devices, or both are -1.
  """
  count = jax.device_count() if devices is None else len(devices)
  sizes = [data, fsdp]
  for i, other in enumerate(reversed(sizes)):
    if sizes[i] == -1 and other > 0:
      sizes[i] = count // other
  if min(sizes) < 1 or math.prod(sizes) != count:
    raise InputError("config", "mesh", f"data={data} x fsdp={fsdp}", f"a product of {count}, the number of devices")
  # Auto axes: Linen's Embed raises a ShardingTypeError under Explicit ones.
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def fit_mesh(mesh: Mesh, batches: Mapping[str, int], accumulate: int = 1) -> Mesh:
  """The mesh, or the part of it that batches of these sizes fill: small batches leave devices out.

  Args:
    mesh: of `make_mesh`.
    batches: examples in each of a stage's batches, over all devices, by the batch's key in the config.
    accumulate: parts that a step takes one after another, each of which is split over the devices.

  Raises:
    InputError: a batch that `mesh.fsdp` does not divide, or of which, with several processes, some device gets none.
  """
  data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
  several = jax.process_count() > 1
  parts, reason = (mesh.size, "the number of devices of all processes") if several else (fsdp, "as mesh.fsdp")
  for key, batch in batches.items():
    if batch % (parts * accumulate):
      in_turn = f" times {accumulate}, {key.partition('.')[0]}.accumulate" if accumulate > 1 else ""
      raise InputError("config", key, batch, f"a multiple of {parts}, {reason}{in_turn}")
  part = math.gcd(*(batch // (fsdp * accumulate) for batch in batches.values()), data)
  return mesh if part == data else Mesh(mesh.devices[:part], mesh.axis_names, axis_types=mesh.axis_types)


def array_spec(mesh: Mesh, rules: Rules, path: str, shape: tuple[int, ...]) -> P:
  """How one array of a training state lies on the mesh.

  Args:
    path: names from the state's root to the array, with / between them.

  Raises:
    InputError: a rule splits a dimension that the mesh's axis does not divide.
  """
  for pattern, axes in rules:
    if not re.search(pattern, path):
      continue
    if axes == LONGEST:
      return _longest_spec(shape, mesh.shape["fsdp"])
    if len(axes) > len(shape):
      return P()
    for size, axis in zip(shape, axes):
      if axis is not None and size % mesh.shape[axis]:
        expected = f"a divisor of {size}, which the rule {pattern!r} splits: {path} is {'x'.join(map(str, shape))}"
        raise InputError("config", f"mesh.{axis}", mesh.shape[axis], expected)
    # Over one device nothing is split; said so, it is the same as whole.
    spec = [axis if axis is not None and mesh.shape[axis] > 1 else None for axis in axes]
    return P(*spec) if any(spec) else P()
  return P()


def _longest_spec(shape: tuple[int, ...], fsdp: int) -> P:
  if fsdp > 1 and math.prod(shape) >= MIN_SHARDED_SIZE:
    for axis in sorted(range(len(shape)), key=lambda a: -shape[a]):
      if shape[axis] % fsdp == 0:
        return P(*([None] * axis), "fsdp")
  return P()


def state_shardings(mesh: Mesh, rules: Rules, abstract_state):
  """Shardings for a tree of `jax.ShapeDtypeStruct`, in the same structure.

  Raises:
    InputError: see `array_spec`.
  """

  def sharding(path, x):
    return NamedSharding(mesh, array_spec(mesh, rules, jax.tree_util.keystr(path, simple=True, separator="/"), x.shape))

  return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batches are split along their first axis over every device."""
  return NamedSharding(mesh, P(AXES))


def put_batch(mesh: Mesh, batch):
  """Moves this process's part of a batch (numpy, leading axis B / processes) into a globally sharded batch (leading B)."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def split_in_turn(mesh: Mesh, batch, count: int):
  """A batch (B leading) as `count` batches (count, B / count leading), each split over all devices as the whole is.

  Every device gives each part some of its own examples, so that nothing is moved: part i has the examples i, count + i, …
  """
  in_turn = NamedSharding(mesh, P(None, AXES))

  def split(x):
    parts = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(parts, in_turn)

  return jax.tree.map(split, batch)
