"""Scalars and images of a run: TensorBoard beside JSONL files that any program reads. Process 0 writes."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TextIO

import jax
import numpy as np

from rsatalker_jax.files import whole_file


class MetricWriter:
  """Writes <folder>/metrics.jsonl (one object a line: step and scalars), <folder>/events.jsonl (steps that were skipped or
  slow) and <folder>/tensorboard.

  Args:
    folder: made if absent.
    first_step: where this run starts or continues. Lines of later steps, left by a run that was killed after its last
      checkpoint, are dropped, so that each step stands in the file once.
  """

  def __init__(self, folder: str | os.PathLike, first_step: int = 0):
    self._active = jax.process_index() == 0
    if not self._active:
      return
    import tensorboardX  # Takes seconds where PyTorch is installed, which it imports; only who writes gives them.

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self._jsonl, self._events = (_continue(folder / name, first_step) for name in ("metrics.jsonl", "events.jsonl"))
    self._tensorboard = tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    if self._active:
      self._jsonl.write(json.dumps({"step": step, **{k: float(v) for k, v in values.items()}}) + "\n")
      self._jsonl.flush()
      for name, value in values.items():
        self._tensorboard.add_scalar(name, float(value), step)

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """`image`: (H, W, 3) in [0, 1]."""
    if self._active:
      self._tensorboard.add_image(name, np.clip(image, 0, 1), step, dataformats="HWC")

  def event(self, step: int, name: str, **values: Any) -> None:
    """Something that happened in a step."""
    if self._active:
      self._events.write(json.dumps({"step": step, "event": name, **values}) + "\n")
      self._events.flush()

  def close(self) -> None:
    if self._active:
      self._jsonl.close()
      self._events.close()
      self._tensorboard.close()


def find_best(folder: str | os.PathLike, name: str) -> tuple[int, float] | None:
  """Step and value of the least value that metrics.jsonl has under a name; None where there is none."""
  path = pathlib.Path(folder) / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  return min(((line["step"], line[name]) for line in lines if name in line), key=lambda pair: pair[1], default=None)


def find_events(folder: str | os.PathLike, name: str) -> list[int]:
  """Steps in which something of this name happened."""
  path = pathlib.Path(folder) / "events.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  return [line["step"] for line in lines if line["event"] == name]


def _continue(path: pathlib.Path, first_step: int) -> TextIO:
  """Opens a file of lines to go on with, without those of later steps."""
  if path.exists():
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= first_step]
    with whole_file(path) as file:
      file.write("".join(f"{line}\n" for line in kept).encode())
  return path.open("a")


def _step_of(line: str) -> float:
  try:
    return json.loads(line)["step"]
  except (json.JSONDecodeError, KeyError):
    return float("inf")  # A line cut off by a kill.
