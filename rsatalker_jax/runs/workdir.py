"""A run's folder: its config, and the parameters that its stages have reached.

Layout of a workdir:
  config.json              the config that made it
  <stage>/checkpoints/<n>  Orbax checkpoints: "state" (params, buffers, opt_state, step) and "data" (iterator)
  <stage>/metrics.jsonl    scalars; <stage>/tensorboard/ the same for TensorBoard
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file

# The order in which stages run; a later one starts from the parameters of the ones before it.
STAGES = ("motion", "avatar", "joint")

# Sections and keys of the config that say how a run is watched or where it runs, not what it computes.
_WATCHING = ("logging", "evaluation", "workdir", "speech.encode_missing", "data.reader_threads")


def load_stage_state(workdir: str, stage: str) -> dict[str, Any] | None:
  """The newest checkpoint of a stage as {"step", "params", "buffers"} of numpy arrays; None where there is none."""
  directory = pathlib.Path(workdir).absolute() / stage / "checkpoints"
  if not directory.is_dir():
    return None
  with ocp.training.Checkpointer(directory) as checkpointer:
    latest = checkpointer.latest
  if latest is None:
    return None
  path = directory / str(latest.step)
  metadata = ocp.metadata(path, "state").metadata
  as_numpy = lambda tree: jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)
  wanted = {key: as_numpy(metadata[key]) for key in ("step", "params", "buffers")}
  wanted["opt_state"] = jax.tree.map(lambda _: ocp.PLACEHOLDER, metadata["opt_state"])
  state = ocp.load(path, wanted, checkpointable_name="state")
  return {key: state[key] for key in ("step", "params", "buffers")}


def load_parameters(
    workdir: str, stages: Sequence[str] = STAGES, *, required: bool = True
) -> tuple[dict[str, Any], dict[str, Any], str]:
  """Parameters and buffers of a run, each group from the last of `stages` that trained it.

  Returns:
    params, buffers (numpy, by group) and the stages used with their steps, e.g. "motion:600 avatar:900".

  Raises:
    InputError: if none of the stages has a checkpoint, unless not `required`.
  """
  params, buffers, used = {}, {}, []
  for name in stages:
    if (state := load_stage_state(workdir, name)) is not None:
      params |= state["params"]
      buffers |= state["buffers"]
      used.append(f"{name}:{int(state['step'])}")
  if required and not used:
    raise InputError(workdir, "", "no checkpoint", "a folder that train.py --workdir has written")
  return params, buffers, " ".join(used)


def _flatten(config: dict, prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in config.items():
    flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
  return flat


def check_workdir(workdir: str, config: dict, *, must_exist: bool = False) -> None:
  """Writes `config` into a new workdir; refuses a workdir that another config has made.

  Args:
    workdir: the run's folder; made if absent.
    config: the whole config as a plain dict. What only says how a run is watched may differ.
    must_exist: for readers (eval, generate): the run must be there already, and nothing is written.

  Raises:
    InputError: naming the first key that differs.
  """
  path = pathlib.Path(workdir) / "config.json"
  current = json.loads(json.dumps(config))  # Tuples become lists, as in the file.
  if not path.exists():
    if must_exist:
      raise InputError(path, "", "no such file", "a folder that train.py --workdir has written")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
      file.write((json.dumps(current, indent=2, sort_keys=True) + "\n").encode())
    return
  try:
    recorded = json.loads(path.read_text())
  except json.JSONDecodeError as e:
    raise InputError(path, f"line {e.lineno}", "broken JSON", "the config written by train.py") from e
  recorded, current = _flatten(recorded), _flatten(current)
  missing = object()
  for key in sorted(recorded.keys() | current.keys()):
    if key in _WATCHING or key.split(".")[0] in _WATCHING:
      continue
    found, expected = recorded.get(key, missing), current.get(key, missing)
    if found != expected:
      show = lambda value: "nothing" if value is missing else repr(value)
      raise InputError(path, key, show(found), f"{show(expected)} (this config); use another --workdir")


def load_config(workdir: str) -> dict:
  """The config that made a run, as a plain dict."""
  path = pathlib.Path(workdir) / "config.json"
  try:
    return json.loads(path.read_text())
  except FileNotFoundError as e:
    raise InputError(path, "", "no such file", "a folder that train.py --workdir has written") from e
  except json.JSONDecodeError as e:
    raise InputError(path, f"line {e.lineno}", "broken JSON", "the config written by train.py") from e
