"""What a step that was not finite started from, kept so that it can be repeated (`training.replay`).

A step that is not finite leaves the state as it was (`loop.make_train_step`), so that when it is found, the state at hand is the
one that it started from: nothing is kept in memory for the case. Layout of <workdir>/<stage>/broken/<step>:

  broken.json    "step" (from 1), "key" (the stage's key data, from which each step's is folded), "terms" (of the step, as texts),
                 "room" (size that a buffer had grown to; 0: its first) and "processes"; written last
  arrays         Orbax: "state" before the step, "batch" as all processes together had it
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key
from orbax.checkpoint import v1 as ocp

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_text, whole_file
from rsatalker_jax.runs.workdir import first_line
from rsatalker_jax.training.checkpoints import TrainState


@dataclasses.dataclass(frozen=True)
class BrokenStep:
  """A step that was kept.

  Attributes:
    folder: where it lies.
    step: its number, from 1.
    key: the stage's, from which each step's is folded.
    terms: what came of it.
    room: size that a buffer had grown to, 0 for its first.
    processes: how many took the step.
  """

  folder: pathlib.Path
  step: int
  key: Key[Array, ""]
  terms: dict[str, float]
  room: int
  processes: int

  def load(self, abstract: TrainState) -> tuple[TrainState, Any]:
    """The state before it, as `abstract`, and its batch, numpy, of all processes.

    Raises:
      InputError: the files are damaged or not of this stage.
    """
    path = self.folder / "arrays"
    try:
      metadata = ocp.metadata(path, "state").metadata
      batch = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata["batch"])
      loaded = ocp.load(path, {"state": abstract, "batch": batch}, checkpointable_name="state")
    except Exception as error:  # Orbax and TensorStore raise whatever they stumble over.
      raise InputError(path, "", first_line(error), "what a step of this config started from") from error
    return loaded["state"], loaded["batch"]


def keep(
    folder: str,
    key: Key[Array, ""],
    before: Callable[[], None],
    state: TrainState,
    step: int,
    batch: Any,
    terms: Mapping[str, jax.Array],
    room: int,
) -> str:
  """Keeps a step that was not finite. To be called by all processes.

  Args:
    folder: the stage's, in the workdir.
    key: the stage's.
    before: called first: writes the config.
    state: before the step; its number may have been counted.
    step: from 0.
    batch, terms: of the step.
    room: see `BrokenStep`.

  Returns:
    Where it was kept, or why it could not be, for the line that tells of it.
  """
  path = pathlib.Path(folder).absolute() / "broken" / str(step + 1)
  state = dataclasses.replace(state, step=jax.device_put(np.int32(step), state.step.sharding))
  try:
    before()
    (path / "broken.json").unlink(missing_ok=True)
    ocp.save(path / "arrays", {"state": state, "batch": batch}, overwrite=True)
    if jax.process_index() == 0:
      content = {
          "step": step + 1,
          "key": np.asarray(jax.random.key_data(key)).tolist(),
          "terms": {name: str(value) for name, value in jax.device_get(dict(terms)).items()},
          "room": room,
          "processes": jax.process_count(),
      }
      with whole_file(path / "broken.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
  except Exception as error:  # Whatever it is, the step that broke is the news.
    return f"it could not be kept: {first_line(error)}"
  workdir, stage = path.parents[2], path.parents[1].name
  return f"kept in {path}; python -m rsatalker_jax replay --workdir={workdir} --stage={stage} repeats it with checks"


def find(folder: str, step: int | None = None) -> BrokenStep:
  """A step that was kept in a stage's folder: the last, or the one of this number.

  Raises:
    InputError: there is none, or its broken.json is damaged.
  """
  kept = {int(path.parent.name): path for path in pathlib.Path(folder).glob("broken/*/broken.json") if path.parent.name.isdecimal()}
  if step is None and kept:
    step = max(kept)
  if step not in kept:
    found = "no step that broke" if not kept else f"{step}; kept are {', '.join(map(str, sorted(kept)))}"
    raise InputError(f"{folder}/broken", "", found, "a step that was not finite, as training keeps it")
  path = kept[step]
  text = read_text(path, "what training keeps of a step that was not finite")
  try:
    content = json.loads(text)
    key = jax.random.wrap_key_data(np.array(content["key"], np.uint32))
    terms = {name: float(value) for name, value in content["terms"].items()}
    return BrokenStep(path.parent, int(content["step"]), key, terms, int(content["room"]), int(content["processes"]))
  except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
    expected = "what training keeps of a step that was not finite"
    raise InputError(path, "", f"a damaged file ({first_line(error)})", expected) from error
