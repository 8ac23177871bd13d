"""A run's folder: its config, and the parameters that its stages have reached.

Layout of a workdir:
  config.json                          the config that made it, and the folder that its paths are relative to
  <stage>/checkpoints/<n>              Orbax checkpoints: "state" (params, buffers, opt_state, step) and "data" (iterator)
  <stage>/checkpoints/<n>/sha256.json  checksums of a checkpoint's files
  <stage>/metrics.jsonl                scalars; <stage>/tensorboard/ the same for TensorBoard
  <stage>/events.jsonl                 steps that were skipped or slow
  <stage>/broken/<n>                   what a step that was not finite started from
  <stage>/profile                      a trace by jax.profiler
  ledger.jsonl                         where the time went, over all starts (`runs.ledger`)
  heartbeat/<process>.json             when each process was last alive, and where
"""

import functools
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file
from rsatalker_jax.runs import ledger
from rsatalker_jax.types import STAGES

# Sections and keys of the config that say where a run runs, where its data lies or how it is watched, not what it computes.
_NOT_COMPARED = {
    "mesh",
    "most_skipped",  # It decides what follows a step that would have ended the run.
    "logging",
    "evaluation",
    "speech.encode_missing",
    "data.reader_threads",
    "render.implementation",
    "render.tile_size",
    "render.max_intersections",
    "render.frames_at_once",
    "generator.remat",
    "motion.accumulate",
    *(f"data.{name}" for name in ("embedded_root", "conversations", "layout", "seamless", "relations", "capture", "people", "triplets", "features")),
}
# Of these the last part alone is compared: files that were moved are the same, those of another name are not.
_COMPARED_BY_NAME = {"head.path", "head.masks", "speech.checkpoint", "data.captures"} | {
    f"speech.augmentation.{name}" for name in ("noises", "impulse_responses")
}
# Paths that are relative to the working directory; those in `data` are below `embedded_root` if that is set.
_PATHS = {"head.path", "head.masks", "speech.checkpoint", "data.embedded_root"}
_DATA_PATHS = {f"data.{name}" for name in ("conversations", "seamless", "relations", "capture", "captures", "people", "triplets", "features")}

_CHECKSUMS = "sha256.json"
_WORKING_DIRECTORY = "working_directory"  # The key of config.json that is none of the config.
_COMMON = pathlib.Path(__file__).resolve().parents[2] / "configs" / "common.py"
# Sections that every config has had: without them a config.json is another program's.
_ALWAYS = {"data", "head", "speech", "generator", "motion", "avatar"}
_WRITTEN_BY = "a folder that train.py --workdir has written"


# --- Checkpoints


def checkpoint_folder(workdir: str | os.PathLike, stage: str) -> pathlib.Path:
  """Where the checkpoints of a stage lie."""
  return _folder(workdir).absolute() / stage / "checkpoints"


def has_checkpoint(workdir: str | pathlib.Path, stages: Sequence[str] = STAGES) -> bool:
  """Whether a run has kept a step of any of these stages."""
  return any(find_checkpoints(checkpoint_folder(workdir, stage)) for stage in stages)


def find_checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
  """The checkpoints in a stage's folder of them, the newest first. What else lies there is not looked at."""
  try:
    found = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
  except (FileNotFoundError, NotADirectoryError):
    return []
  return sorted(found, key=lambda path: int(path.name), reverse=True)


def read_checkpoint(path: pathlib.Path) -> dict[str, Any]:
  """A checkpoint as {"step", "params", "buffers"} of numpy arrays.

  Raises:
    InputError: it is damaged: a file is missing, cut off or other than when it was written.
  """
  check_checksums(path)
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is raised here.
  try:
    metadata = ocp.metadata(path, "state").metadata
    if metadata is None:
      raise ValueError("its metadata cannot be read")
    as_numpy = lambda tree: jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)
    wanted = {key: as_numpy(metadata[key]) for key in ("step", "params", "buffers")}
    wanted["opt_state"] = jax.tree.map(lambda _: ocp.PLACEHOLDER, metadata["opt_state"])
    state = ocp.load(path, wanted, checkpointable_name="state")
  except Exception as error:  # Orbax and TensorStore raise whatever they stumble over.
    raise InputError(path, "", f"a damaged checkpoint ({first_line(error)})", "a whole one") from error
  finally:
    logging.set_verbosity(verbosity)
  return {key: state[key] for key in ("step", "params", "buffers")}


def write_checksums(path: pathlib.Path) -> None:
  """Keeps checksums of a checkpoint's files beside them."""
  content = json.dumps(_checksums(path), indent=0, sort_keys=True) + "\n"
  with whole_file(path / _CHECKSUMS) as file:
    file.write(content.encode())


def check_checksums(path: pathlib.Path) -> None:
  """Compares a checkpoint's files with their checksums; one that has none, as one of a killed run may, passes.

  Raises:
    InputError: names a file that is missing or other than when it was written.
  """
  try:
    expected = json.loads((path / _CHECKSUMS).read_text())
    found = _checksums(path)
    names = [name for name in expected if found.get(name) != expected[name]]
  except FileNotFoundError:
    return
  except (OSError, ValueError, AttributeError, TypeError) as error:
    raise InputError(path / _CHECKSUMS, "", f"a damaged file ({first_line(error)})", "checksums") from error
  if names:
    found = "a file that has changed since it was written" if names[0] in found else "no such file"
    raise InputError(path / names[0], "", found, "a whole checkpoint")


def _checksums(path: pathlib.Path) -> dict[str, str]:
  files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != _CHECKSUMS)
  return {str(file.relative_to(path)): _sha256(file) for file in files}


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def hash_code(folder: pathlib.Path) -> str:
  """Of all modules in a folder together."""
  return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))).hexdigest()


def first_line(error: Exception) -> str:
  """What an exception says, short."""
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0][:200]}"


def load_stage_state(workdir: str, stage: str) -> dict[str, Any] | None:
  """The newest whole checkpoint of a stage as {"step", "params", "buffers"} of numpy arrays; None where there is none.

  Raises:
    InputError: there are checkpoints, but all are damaged.
  """
  first = None
  for path in find_checkpoints(checkpoint_folder(workdir, stage)):
    try:
      state = read_checkpoint(path)
    except InputError as error:
      first = first or error
      continue
    if first:
      _say_once(f"{first}: not used, but the one before it, {path.name}")
    return state
  if first:
    raise first
  return None


@functools.cache
def _say_once(line: str) -> None:
  print(line)


def load_parameters(workdir: str, stages: Sequence[str] = STAGES) -> tuple[dict[str, Any], dict[str, Any], str]:
  """Parameters and buffers of a run, each group from the last of `stages` that trained it.

  Returns:
    params, buffers (numpy, by group) and the stages used with their steps, e.g. "motion:600 avatar:900".

  Raises:
    InputError: if none of the stages has a checkpoint, or a stage has only damaged ones.
  """
  params, buffers, used = {}, {}, []
  for name in stages:
    if (state := load_stage_state(workdir, name)) is not None:
      params |= state["params"]
      buffers |= state["buffers"]
      used.append(f"{name}:{int(state['step'])}")
  if not used:
    raise InputError(workdir, "", "no checkpoint", _WRITTEN_BY)
  return params, buffers, " ".join(used)


def read_usage(workdir: str) -> dict[str, dict[str, Any]]:
  """What each stage of a run took, by stage: "steps" and "parameters", their number by group, as its newest checkpoint says;
  and what the ledger has of it: "seconds", "peak_memory_bytes" ….

  Raises:
    InputError: the ledger is damaged.
  """
  usage, recorded = {}, ledger.read_usage(_folder(workdir))
  for stage in STAGES:
    if (state := load_stage_state(workdir, stage)) is not None:
      counts = {group: sum(int(np.size(x)) for x in jax.tree.leaves(tree)) for group, tree in state["params"].items()}
      usage[stage] = {**recorded.get(stage, {}), "steps": int(state["step"]), "parameters": counts}
  return usage


# --- Config


def record_config(workdir: str, config: ConfigDict | Mapping[str, Any]) -> None:
  """Writes `config` as the one that made `workdir`. To be called before each checkpoint: only a folder that holds one
  belongs to a config."""
  if jax.process_index() != 0:
    return
  path = _folder(workdir) / "config.json"
  content = json.dumps(_plain(config) | {_WORKING_DIRECTORY: os.getcwd()}, indent=2, sort_keys=True) + "\n"
  path.parent.mkdir(parents=True, exist_ok=True)
  if not path.exists() or path.read_bytes() != content.encode():
    with whole_file(path) as file:
      file.write(content.encode())


def check_workdir(workdir: str, config: ConfigDict | Mapping[str, Any], *, must_exist: bool = False) -> None:
  """Refuses a workdir that another config has made; one without a checkpoint belongs to nobody yet. Writes nothing.

  Args:
    workdir: the run's folder.
    config: the whole config. What says where a run runs, where its data lies or how it is watched may differ, and a run
      may get more steps.
    must_exist: for readers: the run must be there already.

  Raises:
    InputError: naming the first key that differs, or what is no run's folder.
  """
  path = _folder(workdir) / "config.json"
  recorded, _ = _read_config(path)
  if recorded is None:
    if must_exist:
      raise InputError(path, "", "no such file", _WRITTEN_BY)
    if has_checkpoint(workdir):
      raise InputError(path, "", "no such file beside checkpoints", "the config that made them; use another --workdir")
    return
  if not must_exist and not has_checkpoint(workdir):
    return
  recorded, _, dropped = _complete(path, recorded)
  if dropped:
    raise InputError(path, "", f"{dropped[0]}, which is no key of this version", "those that there are; use another --workdir")
  recorded, current = flatten_config(recorded), flatten_config(_complete(path, _plain(config))[0])
  for key in sorted(recorded):
    if not _same(key, recorded[key], current[key]):
      raise InputError(path, key, repr(recorded[key]), f"{current[key]!r} (this config); use another --workdir")


def _same(key: str, recorded: Any, current: Any) -> bool:
  if key == "head.basis" and None in (recorded, current):  # Not said is not contradicted.
    return True
  if recorded == current or key in _NOT_COMPARED or key.split(".", maxsplit=1)[0] in _NOT_COMPARED:
    return True
  if key in _COMPARED_BY_NAME and type(recorded) is type(current):
    names = lambda value: [pathlib.PurePath(x).name for x in (value if isinstance(value, list) else [value])]
    return recorded is not None and names(recorded) == names(current)
  numbers = isinstance(recorded, int) and isinstance(current, int)
  return key in {f"{stage}.steps" for stage in STAGES} and numbers and current > recorded


def load_config(workdir: str) -> dict:
  """The config that made a run, as a plain dict with all keys of this version.

  Keys that the run's version did not have get the values of configs/common.py, those that this version does not have are
  dropped, and both are said. Relative paths that are not found from the working directory are taken from the one that the
  run was trained in.

  Raises:
    InputError: there is none, or it is no run's; or its head is found from neither directory.
  """
  path = _folder(workdir) / "config.json"
  recorded, directory = _read_config(path)
  if recorded is None:
    raise InputError(path, "", "no such file", _WRITTEN_BY)
  config, added, dropped = _complete(path, recorded)
  if added:
    _say_once(f"{path}: made by another version; values of configs/common.py stand for {', '.join(added)}")
  if dropped:
    _say_once(f"{path}: made by another version; no keys of this one, and not used: {', '.join(dropped)}")
  for key in _PATHS | (set() if config["data"]["embedded_root"] else _DATA_PATHS):
    section, name = key.split(".")
    config[section][name] = _resolve(config[section][name], directory)
  head = config["head"]["path"]
  if isinstance(head, str) and not os.path.exists(head):
    expected = f"a head model; relative paths are those of the working directory, {os.getcwd()}"
    expected += f", or of the one that the run was trained in, {directory}" if directory else ", as in training"
    raise InputError(path, "head.path", f"{head}, which does not exist", expected)
  return config


def recorded_basis(workdir: str) -> str | None:
  """Of a run's expressions, one of `types.BASES`; None where there is no run, or one of a version that did not record it."""
  recorded, _ = _read_config(_folder(workdir) / "config.json")
  head = (recorded or {}).get("head")
  return head.get("basis") if isinstance(head, dict) else None


def _resolve(value: Any, directory: Any) -> Any:
  """A path of the config as it is if it is found from here, else below `directory` if it is found there."""
  if isinstance(value, list):
    return [_resolve(x, directory) for x in value]
  if not isinstance(value, str) or not value or not isinstance(directory, str) or os.path.exists(value):
    return value
  there = os.path.join(directory, value)
  return there if os.path.exists(there) else value


def _folder(workdir: str | os.PathLike) -> pathlib.Path:
  if "://" in str(workdir):
    raise InputError("--workdir", "", workdir, "a folder of a file system that is mounted here")
  return pathlib.Path(workdir)


def _read_config(path: pathlib.Path) -> tuple[dict[str, Any] | None, Any]:
  """The config in config.json, None where there is none; and the working directory in it."""
  try:
    recorded = json.loads(path.read_text(encoding="utf-8-sig"))
  except FileNotFoundError:
    return None, None
  except json.JSONDecodeError as error:
    raise InputError(path, f"line {error.lineno}", "broken JSON", "the config written by train.py") from error
  except (ValueError, RecursionError) as error:  # Of another encoding, or nested without end.
    raise InputError(path, "", "no JSON", "the config written by train.py") from error
  except OSError as error:
    raise InputError(path, "", error.strerror, _WRITTEN_BY) from error
  if not isinstance(recorded, dict) or not _ALWAYS <= recorded.keys():
    found = f"a {type(recorded).__name__}" if not isinstance(recorded, dict) else f"the keys {', '.join(recorded) or 'none'}"
    raise InputError(path, "", found[:200], "the config written by train.py")
  directory = recorded.pop(_WORKING_DIRECTORY, None)
  return recorded, directory


def _complete(path: pathlib.Path, recorded: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
  """A config with all keys of this version and no others; which of its values are defaults, and which were dropped."""
  added, dropped = [], []

  def complete(given: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    merged = {}
    for key, default in defaults.items():
      name = f"{prefix}{key}"
      if key not in given:
        merged[key] = default
        if given:  # An empty section is none of its members given, which the defaults of such sections mean.
          added.append(name if isinstance(default, dict) else f"{name}={default!r}")
      elif isinstance(default, dict):
        if not isinstance(given[key], dict):
          raise InputError(path, name, repr(given[key])[:200], f"a section with {', '.join(default)}")
        merged[key] = complete(given[key], default, f"{name}.")
      else:
        merged[key] = given[key]
    dropped.extend(f"{prefix}{key}={given[key]!r}" for key in sorted(given.keys() - defaults.keys()))
    return merged

  defaults = _defaults()
  if defaults is None:  # Installed without the configs: what is missing is found missing where it is needed.
    return dict(recorded), [], []
  return complete(recorded, defaults, ""), added, dropped


@functools.cache
def _defaults() -> dict[str, Any] | None:
  """configs/common.py of this checkout; None where the package is installed without it."""
  if not _COMMON.is_file():
    return None
  spec = importlib.util.spec_from_file_location("rsatalker_jax_common_config", _COMMON)
  if spec is None or spec.loader is None:
    return None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return _plain(module.base_config())


def _plain(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
  """The config as it is read back from a file: without references, tuples as lists."""
  return json.loads(json.dumps(config.to_dict() if isinstance(config, ConfigDict) else config))


def flatten_config(config: dict, prefix: str = "") -> dict[str, Any]:
  """Values by "section.key"."""
  flat = {}
  for key, value in config.items():
    flat |= flatten_config(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
  return flat
