"""What watches the steps of a stage: its metrics, scores of held-out data and pictures, the ledger, the watchdog, slow steps,
steps that were skipped, a profile and a progress bar."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import queue
import socket
import statistics
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import tqdm

from rsatalker_jax.training import writer as writer_lib
from rsatalker_jax.training.checkpoints import TrainState
from rsatalker_jax.training.ledger import Ledger
from rsatalker_jax.training.watchdog import Watchdog

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
    local_checkpoints, local_every: see `local_checkpoints.LocalCheckpoints`.
    hang_seconds, hang_ends: see `watchdog.Watchdog`.
    slow_factor: of the median's time after which a step is named as slow; 0 for never.
    profile: first and last step of which jax.profiler writes a trace to the stage's folder; empty for none.
  """

  log_every: int = 20
  pictures_every: int = 500
  checkpoint_every: int = 200
  evaluate_every: int = 0
  local_checkpoints: str = ""
  local_every: int = 50
  hang_seconds: float = 0
  hang_ends: bool = False
  slow_factor: float = 0.0
  profile: Sequence[int] = ()


class Due(typing.NamedTuple):
  """What is to be done after a step: a line of metrics, a checkpoint, scores of held-out data, pictures, the profile's end."""

  log: bool
  checkpoint: bool
  score: bool
  show: bool
  profiled: bool


class Watch:
  """Watches the steps of one stage; a context manager around its loop.

  Args:
    stage: what is trained.
    workdir: the run's.
    watching: how often what is done.
    first: the step that this start continues from.
    ledger: the run's.
    say: gets lines for the user.
  """

  def __init__(
      self, stage: Stage, workdir: str, watching: Watching, first: int, ledger: Ledger, say: Callable[[str], None]
  ):
    self._stage, self._watching, self._first, self._ledger, self._say = stage, watching, first, ledger, say
    self._folder = f"{workdir}/{stage.name}"
    self._watchdog = Watchdog(
        workdir, stage.name, first, hang_seconds=watching.hang_seconds, ends=watching.hang_ends, ledger=ledger
    )
    self._finishes = _Finishes(self._note_time)
    self._times = StepTimes(watching.slow_factor)
    self._waits: dict[int, float] = {}  # Seconds by step.
    self._slow: collections.deque[dict[str, float]] = collections.deque()
    self._profiling = False

  def __enter__(self) -> Watch:
    with contextlib.ExitStack() as stack:
      self._metrics = stack.enter_context(contextlib.closing(writer_lib.MetricWriter(self._folder, self._first)))
      self._bar = stack.enter_context(_progress_bar(self._stage, self._first))
      stack.enter_context(self._watchdog)
      stack.enter_context(self._finishes)
      stack.callback(self._end_profile)
      self._stack = stack.pop_all()
    self._ledger.begin_span(self._first)
    self._begin_interval(self._first)
    self._spent_at_step = self._spent()[1]
    if self._watching.profile and self._first >= self._watching.profile[1]:
      self._say(f"{self._stage.name}: no profile: step {self._watching.profile[1]} has been taken already")
    return self

  def __exit__(self, *error) -> None:
    self._stack.__exit__(*error)

  # --- A step

  @contextlib.contextmanager
  def batch(self, step: int) -> Iterator[None]:
    """Around fetching the batch of a step: what the device waits for it is noted."""
    if self._watching.profile and self._watching.profile[0] <= step + 1 <= self._watching.profile[1]:
      self._begin_profile()
    with self._ledger.phase("data"):
      begin = time.perf_counter()
      yield
      end = time.perf_counter()
    idle = self._finishes.idle_since
    waited = 0.0 if idle is None else max(0.0, end - max(begin, idle))
    self._ledger.move(end - begin - waited, "step", source="data")
    self._waits[step] = waited

  def step(self, step: int) -> contextlib.AbstractContextManager:
    """Around taking a step: profiles show it."""
    return jax.profiler.StepTraceAnnotation("train", step_num=step + 1)

  def phase(self, name: str) -> contextlib.AbstractContextManager:
    """Around what is none of a step: see `ledger.Ledger.phase`."""
    return self._ledger.phase(name)

  def dispatched(self, step: int, terms: Mapping[str, jax.Array]) -> None:
    """The device will take a step, of which `terms` come."""
    self._finishes.add(step, terms)

  def skipped(self, step: int, terms: Mapping[str, float]) -> None:
    """A step was not taken, as these terms were not finite."""
    values = ", ".join(f"{name}={value}" for name, value in terms.items())
    self._say(f"{self._stage.name}: step {step + 1} skipped: not finite: {values}")
    self._metrics.event(step + 1, "skipped", terms={name: str(value) for name, value in terms.items()})

  def count_step(self, done: int) -> None:
    """`done` steps have been taken in all."""
    self._bar.update()
    self._ledger.count_step(done)
    self._watchdog.count_step(done)

  # --- After a step

  def find_due(self, done: int, *, last: bool) -> Due:
    """What is due after `done` steps, of which the `last` has everything that needs no held-out data."""
    w, stage = self._watching, self._stage
    at_end = done == stage.steps
    return Due(
        log=done % w.log_every == 0 or last,
        checkpoint=done % w.checkpoint_every == 0 or last,
        score=bool(stage.evaluate and w.evaluate_every) and (done % w.evaluate_every == 0 or at_end),
        show=bool(stage.pictures) and (done % w.pictures_every == 0 or last),
        profiled=self._profiling and (done == w.profile[1] or last),
    )

  def report(self, done: int, due: Due, means: Mapping[str, float], state: TrainState) -> None:
    """Writes what is due after `done` steps, none of which is on its way.

    Args:
      means: of the terms since the last line of metrics, where one is due.
      state: after the step.
    """
    if due.profiled:
      self._end_profile()
    values = {}
    if due.log:
      self._bar.set_postfix({k: f"{v:.4g}" for k, v in means.items()})
      waited, seconds = (now - then for now, then in zip(self._spent(), self._spent_at_log))
      values |= dict(means) | {"steps_per_second": (done - self._logged) / seconds, "data_wait": waited / seconds}
      self._say_slow()
      self._begin_interval(done)
    if due.score and self._stage.evaluate:
      with self._ledger.phase("evaluate"):
        scores = {f"val/{name}": float(x) for name, x in self._stage.evaluate(state.params, state.buffers).items()}
      self._say(f"{self._stage.name}: step {done}: " + ", ".join(f"{name} {x:.4g}" for name, x in scores.items()))
      values |= scores
    if values:
      self._metrics.scalars(done, values)
    if due.show and self._stage.pictures:
      with self._ledger.phase("pictures"):
        for name, picture in self._stage.pictures(state.params, state.buffers).items():
          self._metrics.image(done, name, picture)

  def say_end(self) -> None:
    """Names the step with the best score of held-out data, if there is one, and steps that were skipped."""
    if jax.process_index() != 0:
      return
    name, steps = self._stage.name, self._stage.steps
    if best := writer_lib.find_best(self._folder, "val/score"):
      self._say(f"{name}: best val/score {best[1]:.4g} at step {best[0]} of {steps}")
    if skipped := writer_lib.find_events(self._folder, "skipped"):
      shown = ", ".join(map(str, skipped[:20])) + ", …" * (len(skipped) > 20)
      self._say(f"{name}: {len(skipped)} of {steps} steps were skipped, as they were not finite: {shown}")

  # --- Times

  def _spent(self) -> tuple[float, float]:
    """Seconds that the stage has waited for data and that it has taken for steps, waiting included."""
    return self._ledger.total("data"), self._ledger.total("data", "step")

  def _begin_interval(self, done: int) -> None:
    self._logged, self._spent_at_log = done, self._spent()

  def _note_time(self, step: int) -> None:
    """A step has been finished. Called by another thread."""
    spent = self._spent()[1]
    seconds, self._spent_at_step = spent - self._spent_at_step, spent
    waited = self._waits.pop(step, 0.0)
    if (median := self._times.add(seconds)) is not None and not self._profiling:
      self._slow.append({"step": step + 1, "seconds": seconds, "median": median, "data_wait": waited})

  def _say_slow(self) -> None:
    """Names the slow steps of an interval: all in events.jsonl, the slowest on the screen."""
    slow = [self._slow.popleft() for _ in range(len(self._slow))]
    mine = {"process": jax.process_index(), "host": socket.gethostname()}
    for entry in slow:
      self._metrics.event(name="slow", **entry, **mine)
    if not slow:
      return
    worst = max(slow, key=lambda entry: entry["seconds"])
    is_own = worst["data_wait"] > (worst["seconds"] - worst["median"]) / 2
    line = (
        f"{self._stage.name}: step {worst['step']} took {worst['seconds']:.3g} s, the median is {worst['median']:.3g} s; process "
        f"{mine['process']} on {mine['host']} waited {worst['data_wait']:.3g} s of it for data"
    )
    if jax.process_index() == 0:
      self._say(line)
    elif is_own:  # Every process sees a slow step; what it waited for itself, no other does.
      print(line, file=sys.stderr, flush=True)

  # --- Profile

  def _begin_profile(self) -> None:
    if not self._profiling and jax.process_index() == 0:
      with self._ledger.phase("profile"):
        jax.profiler.start_trace(f"{self._folder}/profile")
      self._profiling = True

  def _end_profile(self) -> None:
    if self._profiling:
      self._profiling = False
      with self._ledger.phase("profile"):
        jax.profiler.stop_trace()
      self._say(f"{self._stage.name}: a profile is in {self._folder}/profile")


class StepTimes:
  """Finds steps that take far longer than those before them.

  Args:
    factor: of the median from which a step is slow; 0 finds none.
  """

  _KEPT, _LEAST, _EXCESS = 101, 20, 0.1

  def __init__(self, factor: float):
    self._factor = factor
    self._last: collections.deque[float] = collections.deque(maxlen=self._KEPT)

  def add(self, seconds: float) -> float | None:
    """The median of the last 101 steps, if this one, at least the 21st, took longer by the factor and by 0.1 s; else None."""
    median = statistics.median(self._last) if len(self._last) >= self._LEAST else None
    self._last.append(seconds)
    is_slow = self._factor and median is not None and seconds > self._factor * median and seconds > median + self._EXCESS
    return median if is_slow else None


class _Finishes:
  """Notes when the device has finished each step, by waiting for it in a thread.

  Args:
    on_finish: called in that thread with each step that was finished.
  """

  def __init__(self, on_finish: Callable[[int], None]):
    self._on_finish = on_finish
    self._steps: queue.SimpleQueue = queue.SimpleQueue()
    self._lock = threading.Lock()
    self._in_flight, self._finished_at = 0, time.perf_counter()
    self._thread = threading.Thread(target=self._wait, name="finished steps", daemon=True)

  def __enter__(self) -> _Finishes:
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._steps.put(None)  # A step that never comes does not hold up the end.

  def add(self, step: int, terms: Mapping[str, jax.Array]) -> None:
    with self._lock:
      self._in_flight += 1
    self._steps.put((step, terms))

  @property
  def idle_since(self) -> float | None:
    """When the last step was finished; None while the device has one to do."""
    with self._lock:
      return None if self._in_flight else self._finished_at

  def _wait(self) -> None:
    while (entry := self._steps.get()) is not None:
      with contextlib.suppress(Exception):  # Whoever reads the terms gets the error.
        jax.block_until_ready(entry[1])
      with self._lock:
        self._in_flight -= 1
        self._finished_at = time.perf_counter()
      self._on_finish(entry[0])


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
