"""What watches the steps of a stage: its metrics, scores of held-out data, pictures and a progress bar."""

from __future__ import annotations

import dataclasses
import sys
import time
import typing
from collections.abc import Callable, Mapping

import jax
import tqdm

from rsatalker_jax.training import writer as writer_lib
from rsatalker_jax.training.checkpoints import TrainState

if typing.TYPE_CHECKING:
  from rsatalker_jax.training.loop import Stage  # Which imports this module.


@dataclasses.dataclass(frozen=True)
class Watching:
  """How a run is watched and kept; nothing here changes what it computes.

  Attributes:
    log_every: steps between lines of metrics (means over the interval).
    pictures_every: steps between images.
    checkpoint_every: steps between checkpoints; the last step is always saved.
    evaluate_every: steps between scores of held-out data; the last step is always scored. 0 for never.
  """

  log_every: int = 20
  pictures_every: int = 500
  checkpoint_every: int = 200
  evaluate_every: int = 0


class Due(typing.NamedTuple):
  """What is to be done after a step: a line of metrics, a checkpoint, scores of held-out data, pictures."""

  log: bool
  checkpoint: bool
  score: bool
  show: bool


class Watch:
  """Watches the steps of one stage; a context manager around its loop.

  Args:
    stage: what is trained.
    folder: the stage's, in the workdir.
    watching: how often what is done.
    first: the step that this start continues from.
    say: gets lines for the user.
  """

  def __init__(self, stage: Stage, folder: str, watching: Watching, first: int, say: Callable[[str], None]):
    self._stage, self._folder, self._watching, self._say = stage, folder, watching, say
    self._metrics = writer_lib.MetricWriter(folder, first)
    self._bar = _progress_bar(stage, first)
    self._counted, self._since = 0, time.perf_counter()

  def __enter__(self) -> Watch:
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()
    self._metrics.close()

  def count_step(self) -> None:
    """To be called after each step."""
    self._bar.update()
    self._counted += 1

  def find_due(self, done: int, *, last: bool) -> Due:
    """What is due after `done` steps, of which the `last` has everything that needs no held-out data."""
    w, stage = self._watching, self._stage
    at_end = done == stage.steps
    return Due(
        log=done % w.log_every == 0 or last,
        checkpoint=done % w.checkpoint_every == 0 or last,
        score=bool(stage.evaluate and w.evaluate_every) and (done % w.evaluate_every == 0 or at_end),
        show=bool(stage.pictures) and (done % w.pictures_every == 0 or last),
    )

  def report(self, done: int, due: Due, means: Mapping[str, float], state: TrainState) -> None:
    """Writes what is due after `done` steps.

    Args:
      means: of the terms since the last line of metrics, where one is due.
      state: after the step.
    """
    values = {}
    if due.log:
      self._bar.set_postfix({k: f"{v:.4g}" for k, v in means.items()})
      values |= means | {"steps_per_second": self._counted / (time.perf_counter() - self._since)}
      self._counted, self._since = 0, time.perf_counter()
    if due.score:
      scores = {f"val/{name}": float(x) for name, x in self._stage.evaluate(state.params, state.buffers).items()}
      self._say(f"{self._stage.name}: step {done}: " + ", ".join(f"{name} {x:.4g}" for name, x in scores.items()))
      values |= scores
      self._since = time.perf_counter()
    if values:
      self._metrics.scalars(done, values)
    if due.show:
      for name, picture in self._stage.pictures(state.params, state.buffers).items():
        self._metrics.image(done, name, picture)
      self._since = time.perf_counter()

  def say_best(self) -> None:
    """Names the step with the best score of held-out data, if there is one."""
    if best := writer_lib.find_best(self._folder, "val/score"):
      self._say(f"{self._stage.name}: best val/score {best[1]:.4g} at step {best[0]} of {self._stage.steps}")


def _progress_bar(stage: Stage, first: int) -> tqdm.tqdm:
  # On a terminal a live bar; in a log file a line now and then.
  live = sys.stderr.isatty()
  return tqdm.tqdm(
      total=stage.steps,
      initial=first,
      desc=stage.name,
      unit="step",
      dynamic_ncols=True,
      mininterval=0.5 if live else 15,
      disable=jax.process_index() != 0,
  )
