"""Emergency checkpoints: each host keeps whole copies of the state on a disk of its own, where one costs little.

They are taken often, between those that all hosts write together, and serve a run that goes on after hosts were lost or
stopped without a word: the newest that any of the hosts still has is sent to all. The state must be whole on each host (plain
data parallelism, or parameters split over the devices of a host). A folder belongs to one run, by an id in its workdir.

Orbax's own emergency checkpoints cannot be used here: as of 0.12.8 they hold no data iterator, and take a slice of TPUs for
what a host is here; and its other ones let process 0 alone write what is no global array.
"""

import dataclasses
import io
import json
import pathlib
import secrets
import shutil
import zipfile
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils

from rsatalker_jax import cluster
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file
from rsatalker_jax.training.checkpoints import TrainState

_HEADER = "header"  # The member of a file that is no array of the state.


@dataclasses.dataclass
class LocalCheckpoints:
  """The emergency checkpoints of one stage on this host.

  Attributes:
    folder: of this host's disk, for this run, stage and process.
    every: steps between them.
    keep: how many of the last are kept.
  """

  folder: pathlib.Path
  every: int
  keep: int = 2

  @classmethod
  def of_run(cls, root: str, every: int, workdir: str, stage: str) -> "LocalCheckpoints | None":
    """None where `root` is empty: then there are none.

    Args:
      root: folder of each host's own disk.
      workdir: of the run; process 0 gives it an id if it has none.
    """
    if not root:
      return None
    path = pathlib.Path(workdir) / "run_id"
    if cluster.is_first() and not path.exists():
      with whole_file(path) as file:
        file.write(secrets.token_hex(8).encode())
    cluster.wait_for_all(f"run id for {stage}")
    # Processes of one host share its disk.
    return cls(pathlib.Path(root) / path.read_text() / stage / f"process_{jax.process_index()}", every)

  def is_due(self, step: int) -> bool:
    """Whether one is to be saved after so many steps."""
    return step % self.every == 0

  def save(self, state: TrainState, batches: grain.DatasetIterator, step: int) -> None:
    """Writes a checkpoint; the oldest beyond `keep` goes."""
    header = json.dumps({"leaves": _describe(state), "iterator": batches.get_state()})
    # As bytes: numpy has no name for bfloat16.
    arrays = {str(number): np.frombuffer(_own_copy(x).tobytes(), np.uint8) for number, x in enumerate(jax.tree.leaves(state))}
    with whole_file(self.folder / f"{step}.npz") as file:
      np.savez(file, **arrays, **{_HEADER: np.frombuffer(header.encode(), np.uint8)})
    for path in self._find()[self.keep :]:
      path.unlink(missing_ok=True)

  def restore(
      self, abstract: TrainState, batches: grain.DatasetIterator, after: int, say: Callable[[str], None]
  ) -> TrainState | None:
    """The state of the newest checkpoint that any host has, if it is of a later step than `after`; None if there is none.

    Args:
      abstract: the state's shapes and shardings.
      batches: gets its state from the checkpoint, too.
      after: the step that all hosts have together.
      say: gets a line about what is used, and about damaged files.
    """
    step, arrays = self._read_newest(abstract, after, say)
    steps = np.atleast_1d(multihost_utils.process_allgather(np.int32(step)))
    newest = int(steps.max())
    if newest < 0:
      return None
    owner = int(np.argmax(steps == newest))
    everywhere = bool((steps == newest).all())
    say(f"emergency checkpoint of step {newest}, {'which every process has' if everywhere else f'from process {owner}'}, is used")
    if not everywhere:
      arrays = _send(arrays, owner)
    batches.set_state(json.loads(arrays[_HEADER].tobytes())["iterator"])
    leaves, structure = jax.tree.flatten(abstract)
    whole = (arrays[str(number)].view(x.dtype).reshape(x.shape) for number, x in enumerate(leaves))
    placed = [jax.make_array_from_callback(x.shape, x.sharding, array.__getitem__) for x, array in zip(leaves, whole)]
    return jax.tree.unflatten(structure, placed)

  def clear(self) -> None:
    """To be called when the stage is at its end."""
    shutil.rmtree(self.folder, ignore_errors=True)

  def _find(self) -> list[pathlib.Path]:
    found = [path for path in self.folder.glob("*.npz") if path.stem.isdecimal()]
    return sorted(found, key=lambda path: int(path.stem), reverse=True)

  def _read_newest(
      self, abstract: TrainState, after: int, say: Callable[[str], None]
  ) -> tuple[int, dict[str, np.ndarray]]:
    """Step and arrays of the newest whole file of a step later than `after`; -1 where there is none. Others are not opened."""
    for path in self._find():
      if int(path.stem) <= after:
        break
      try:
        with np.load(path) as file:  # Each member has a checksum, which is compared.
          arrays = {name: file[name] for name in file.files}
        leaves = json.loads(arrays[_HEADER].tobytes())["leaves"]
      except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        say(str(InputError(path, "", f"a damaged file ({type(error).__name__})", "an emergency checkpoint: not used")))
        continue
      if leaves == _describe(abstract):
        return int(path.stem), arrays
      say(str(InputError(path, "", "the state of another model", "that of this config: not used")))
    return -1, {}


def _describe(state: TrainState) -> list[list[Any]]:
  """Shape and type of each leaf."""
  return [[list(x.shape), str(x.dtype)] for x in jax.tree.leaves(state)]


def check_whole(abstract: TrainState) -> None:
  """Raises: InputError: the state is split over hosts, so that none of them has it whole."""
  for path, x in jax.tree_util.tree_leaves_with_path(abstract):
    held = {index for device, index in _plain_indices(x).items() if device.process_index == jax.process_index()}
    if held != set(_plain_indices(x).values()):
      found = f"parameters split over hosts ({jax.tree_util.keystr(path)}: {x.sharding.spec})"
      raise InputError("config", "logging.local_checkpoints", found, "a mesh that keeps a whole copy on each host, such as mesh.fsdp=1")


def _plain_indices(x: jax.ShapeDtypeStruct) -> dict[Any, tuple]:
  """Which part of an array each device has."""
  bounds = lambda index: tuple(part.indices(size)[:2] for part, size in zip(index, x.shape))
  return {device: bounds(index) for device, index in x.sharding.devices_indices_map(x.shape).items()}


def _own_copy(x: jax.Array) -> np.ndarray:
  """A whole array from the parts that this process's devices have."""
  whole = np.empty(x.shape, x.dtype)
  for shard in x.addressable_shards:
    whole[shard.index] = np.asarray(shard.data)
  return whole


def _send(arrays: dict[str, np.ndarray], owner: int) -> dict[str, np.ndarray]:
  """The arrays that process `owner` has, in all processes."""
  is_owner = jax.process_index() == owner
  packed = io.BytesIO()
  if is_owner:
    np.savez(packed, **arrays)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(packed.getvalue())), is_owner))
  # As bytes: sums with zeros, which it is sent by, keep no sign of zero.
  content = np.frombuffer(packed.getvalue(), np.uint8) if is_owner else np.zeros(size, np.uint8)
  content = np.asarray(multihost_utils.broadcast_one_to_all(content, is_owner), np.uint8)
  with np.load(io.BytesIO(content.tobytes())) as file:
    return {name: file[name] for name in file.files}
