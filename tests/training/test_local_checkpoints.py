"""Emergency checkpoints on a host's own disk."""

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from rsatalker_jax.errors import InputError
from rsatalker_jax.training import local_checkpoints
from rsatalker_jax.training.checkpoints import TrainState
from rsatalker_jax.training.local_checkpoints import LocalCheckpoints, check_whole


def mesh():
  return Mesh(np.array(jax.devices()[:2]), ("fsdp",))


def state(step, width=6):
  """A state that is partly split over two devices, with signs of zero and numbers that are none."""
  split, whole = NamedSharding(mesh(), P("fsdp")), NamedSharding(mesh(), P())
  values = np.arange(4 * width, dtype=np.float32).reshape(4, width) + step
  values[0, :3] = -0.0, np.inf, np.nan
  return TrainState(
      step=jax.device_put(jnp.int32(step), whole),
      params={"generator": {"kernel": jax.device_put(values, split), "bias": jax.device_put(values[0].astype(jnp.bfloat16), whole)}},
      buffers={},
      opt_state=(jax.device_put(2 * values, split),),
  )


def abstract(like):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)


def batches(taken=0):
  iterator = iter(grain.MapDataset.range(100).to_iter_dataset())
  for _ in range(taken):
    next(iterator)
  return iterator


@pytest.fixture
def local(tmp_path):
  made = LocalCheckpoints.of_run(str(tmp_path / "disk"), 2, str(tmp_path / "run"), "motion")
  for step in (2, 4, 6):
    assert made.is_due(step) and not made.is_due(step + 1)
    made.save(state(step), batches(step), step)
  return made


def restore(local, after=0, like=None):
  lines, iterator = [], batches()
  found = local.restore(abstract(like or state(0)), iterator, after, lines.append)
  return found, next(iterator), lines


def same_bits(found, expected):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert a.sharding == b.sharding and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_newest_comes_back_to_the_bit(local):
  found, item, lines = restore(local)
  same_bits(found, state(6))
  assert item == 6 and lines == ["emergency checkpoint of step 6, which every process has, is used"]
  assert sorted(path.name for path in local.folder.iterdir()) == ["4.npz", "6.npz"]


def test_what_all_have_together_is_used_if_it_is_as_new(local):
  assert restore(local, after=6)[::2] == (None, [])
  assert restore(local, after=5)[0] is not None


def test_damage_and_other_models_are_said_and_not_used(local):
  path = local.folder / "6.npz"
  content = bytearray(path.read_bytes())
  content[len(content) // 3] ^= 1
  path.write_bytes(content)
  found, item, lines = restore(local)
  same_bits(found, state(4))
  assert item == 4 and "6.npz: found a damaged file" in lines[0]
  found, _, lines = restore(local, like=state(0, width=5))
  assert found is None and "4.npz: found the state of another model" in lines[1]


def test_a_folder_belongs_to_one_run(local, tmp_path):
  again = LocalCheckpoints.of_run(str(tmp_path / "disk"), 2, str(tmp_path / "run"), "motion")
  other = LocalCheckpoints.of_run(str(tmp_path / "disk"), 2, str(tmp_path / "other"), "motion")
  assert again.folder == local.folder and restore(other)[0] is None
  assert LocalCheckpoints.of_run("", 2, str(tmp_path / "run"), "motion") is None
  local.clear()
  assert restore(again)[0] is None


def test_one_host_sends_to_the_others(monkeypatch):
  """As the owner sends, and as another receives what the owner has sent."""
  arrays = {"0": np.array([-0.0, np.nan], np.float32), "header": np.frombuffer(b"{}", np.uint8)}
  sent = []

  def broadcast(value, is_source):
    if is_source:
      sent.append(value)
      return value
    assert np.shape(value) == np.shape(sent[0])  # Sums take nothing else.
    return sent.pop(0)

  monkeypatch.setattr(local_checkpoints.multihost_utils, "broadcast_one_to_all", broadcast)
  local_checkpoints._send(arrays, owner=0)
  received = local_checkpoints._send({}, owner=1)
  assert {name: x.tobytes() for name, x in received.items()} == {name: x.tobytes() for name, x in arrays.items()}


def test_a_state_that_no_host_has_whole_is_one_line(monkeypatch):
  check_whole(abstract(state(0)))
  monkeypatch.setattr(jax, "process_index", lambda: 1)  # Whose devices hold nothing here.
  with pytest.raises(InputError, match="logging.local_checkpoints: found parameters split over hosts .* expected a mesh that keeps"):
    check_whole(abstract(state(0)))
