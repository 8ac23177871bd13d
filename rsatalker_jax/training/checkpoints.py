"""Checkpoints of training state and data iterator together; `runs.workdir` reads them back."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import grain
import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from rsatalker_jax.errors import InputError
from rsatalker_jax.runs import workdir as workdirs


@flax.struct.dataclass
class TrainState:
  """Everything a run needs to go on to the same numbers.

  Attributes:
    step: optimizer steps taken in this stage.
    params: trained arrays, by group: "generator", "offsets", "avatar".
    buffers: arrays that the model needs but no gradient reaches (bindings, identity, motion statistics), by group.
    opt_state: the optimizer's.
  """

  step: jax.Array
  params: dict[str, Any]
  buffers: dict[str, Any]
  opt_state: Any


class StageCheckpoints:
  """The checkpoints of one stage, each with checksums. Made by `make_checkpointer`; to be closed.

  Args:
    folder: where they lie.
    every_steps: steps between checkpoints.
    keep: how many of the last are kept.
  """

  def __init__(self, folder: pathlib.Path, every_steps: int, keep: int):
    self._folder = folder
    self._make = lambda: ocp.training.Checkpointer(
        folder,
        save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(every_steps),
        preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        cleanup_tmp_directories=True,
    )
    self._checkpointer = self._make()
    self._being_written: tuple[pathlib.Path, Any] | None = None

  def restore(self, abstract: TrainState, batches: grain.DatasetIterator, say: Callable[[str], None]) -> TrainState | None:
    """The state of the newest whole checkpoint; None where there is none. `runs.load_stage_state` makes the same choice.

    Damaged ones that are newer are said and set aside, as <n>.damaged: their numbers will come again.

    Args:
      abstract: the state's shapes and shardings.
      batches: gets its state from the checkpoint, too.
      say: gets the lines about damaged ones.

    Raises:
      InputError: all are damaged; or the newest is of another model.
    """
    damaged: dict[pathlib.Path, InputError] = {}
    for path in workdirs.find_checkpoints(self._folder):
      try:
        workdirs.check_checksums(path)
        restored = self._checkpointer.load_checkpointables(int(path.name), {"state": abstract})
        _restore_iterator(path, batches)
      except Exception as error:  # Orbax and TensorStore raise whatever they stumble over.
        damaged[path] = _find_damage(path, error)
        continue
      if damaged:
        self._set_aside(damaged, path, say)
      return restored["state"]
    if damaged:
      raise next(iter(damaged.values()))
    return None

  def _set_aside(self, damaged: dict[pathlib.Path, InputError], used: pathlib.Path, say: Callable[[str], None]) -> None:
    for path, error in damaged.items():
      say(f"{error}: set aside; the one before it, {used.name}, is used")
      if jax.process_index() == 0:
        free = (path.with_name(f"{path.name}.damaged{suffix}") for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
        path.rename(next(name for name in free if not name.exists()))
    multihost_utils.sync_global_devices("damaged checkpoints are set aside")
    self._checkpointer.close()
    self._checkpointer = self._make()

  def save(self, state: TrainState, batches: grain.DatasetIterator, step: int, *, force: bool) -> None:
    """Begins to write a checkpoint, if one is due or `force`; the one before it is complete when this returns.

    Raises:
      InputError: it cannot be written, for example because the disk is full.
    """
    self._finish()
    with self._explain():
      response = self._checkpointer.save_checkpointables_async(step, {"state": state, "data": batches}, force=force)
    if response is not None:
      self._being_written = self._folder / str(step), response

  def close(self) -> None:
    """Completes what is being written.

    Raises:
      InputError: see `save`.
    """
    try:
      self._finish()
    finally:
      with self._explain():
        self._checkpointer.close()

  def _finish(self) -> None:
    if self._being_written is None:
      return
    (path, response), self._being_written = self._being_written, None
    with self._explain():
      response.result()
      if jax.process_index() == 0:
        workdirs.write_checksums(path)

  @contextlib.contextmanager
  def _explain(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      reason = workdirs.first_line(error)
      if not isinstance(error, OSError) and not any(word in str(error) for word in _FULL):
        raise
      raise InputError(self._folder, "", reason, "room for a checkpoint; the last that was written is whole") from error


# How TensorStore, which has errors of its own, tells of a full disk.
_FULL = ("No space left", "RESOURCE_EXHAUSTED", "Disk quota")


def _find_damage(path: pathlib.Path, error: Exception) -> InputError:
  """What is damaged in a checkpoint that could not be restored because of `error`.

  Raises:
    InputError: nothing is: it is of another model.
  """
  if isinstance(error, InputError):
    return error
  try:
    workdirs.read_checkpoint(path)
  except InputError as damage:
    return damage
  raise InputError(path, "", workdirs.first_line(error), "a checkpoint of this config and this version") from error


def _restore_iterator(path: pathlib.Path, batches: grain.DatasetIterator) -> None:
  """Gives an iterator the state that is in a checkpoint, of whatever number of processes that is.

  Grain writes a file for each process. What they say is the same, the number of batches (`data.pipeline.batch_share`).

  Raises:
    InputError: names a file that is missing or damaged, or differs from another process's.
  """
  files = sorted((path / "data").glob("process_*-of-*.json"))
  if not files:
    raise InputError(path / "data", "", "no state of a data iterator", "a whole checkpoint")
  states = []
  for file in files:
    try:
      states.append(json.loads(file.read_text()))
    except (OSError, ValueError) as error:
      raise InputError(file, "", f"a damaged file ({workdirs.first_line(error)})", "a whole checkpoint") from error
    if states[-1] != states[0]:
      raise InputError(file, "", "a state of the data iterator that is not the other processes'", f"that of {files[0].name}")
  batches.set_state(states[0])


def make_checkpointer(workdir: str, stage: str, every_steps: int, keep: int = 2) -> StageCheckpoints:
  """The checkpoints of a stage, of which one is saved every `every_steps` steps and the last `keep` are kept."""
  return StageCheckpoints(workdirs.checkpoint_folder(workdir, stage), every_steps, keep)
