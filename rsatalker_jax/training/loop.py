"""The training loop. It knows no stage by name: a stage is data (`Stage`), and the loop runs it.

What it promises: a killed run continues to the same numbers it would have reached (state and data iterator are saved
together, keys are folded from the step), a non-finite loss stops the run with the step, the stage and the term that
broke, a step for which a buffer was too small is taken again with a larger one, and everything that a stage
logs is in TensorBoard and in <workdir>/<stage>/metrics.jsonl.
"""

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from rsatalker_jax import cluster, sharding
from rsatalker_jax.errors import InputError
from rsatalker_jax.runs.workdir import STAGES
from rsatalker_jax.training import checkpoints, usage, writer as writer_lib
from rsatalker_jax.training.checkpoints import TrainState

Params = dict[str, Any]
# (params, buffers, batch, key, step) -> (scalar loss, named terms of it)
Loss = Callable[[Params, Params, Mapping[str, Any], jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Hook:
  """Something that changes the state between steps, as density control does.

  Attributes:
    due: whether it is called after so many steps; no step is in flight then.
    call: (state, number of steps taken) -> state of the same shapes.
  """

  due: Callable[[int], bool]
  call: Callable[[TrainState, int], TrainState]


@dataclasses.dataclass(frozen=True)
class Room:
  """A buffer of fixed size in a stage's loss. A step that overflows it does not count: it is taken again with a larger one.

  Attributes:
    unit: what it holds, for messages.
    lost, needed: names of the terms that count what did not fit, 0 if all did, and what a step needs at most.
    grow: needed -> the same loss with room for that many; None: an overflow stops the run.
  """

  unit: str
  lost: str
  needed: str
  grow: Callable[[int], Loss] | None


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of training, as data.

  Attributes:
    name: of the stage; also its folder in the workdir.
    steps: optimizer steps in all.
    init: key -> (params, buffers) that this stage needs, freshly initialised; must be traceable.
    batches: dataset of batches (dict of numpy arrays whose first axis is this process's share of the batch).
    loss: see `Loss`. Terms are logged; each must be finite.
    optimizer: over all of `params`; groups that the stage does not train get `optax.set_to_zero`.
    pictures: (params, buffers) -> named images (H, W, 3) in [0, 1] for TensorBoard; None for none.
    room: the loss's buffer of fixed size, if it has one.
    evaluate: (params, buffers) -> scores of held-out data by name; "score", less is better, names the best step. None:
      nothing is held out.
    mesh: the devices that its batches are split over; None: those of the run.
    hooks: what happens between steps, outside jit.
    probes: by group, arrays of zeros that the loss finds among its params but that are not trained; `observe` gets their
      gradients (of screen positions, for density control).
    observe: (buffers, gradients of the probes) -> buffers, within the step.
  """

  name: str
  steps: int
  init: Callable[[jax.Array], tuple[Params, Params]]
  batches: grain.IterDataset
  loss: Loss
  optimizer: optax.GradientTransformation
  pictures: Callable[[Params, Params], Mapping[str, np.ndarray]] | None = None
  room: Room | None = None
  evaluate: Callable[[Params, Params], Mapping[str, float]] | None = None
  mesh: jax.sharding.Mesh | None = None
  hooks: tuple[Hook, ...] = ()
  probes: Params = dataclasses.field(default_factory=dict)
  observe: Callable[[Params, Params], Params] | None = None


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


class NonFiniteLoss(RuntimeError):
  """A term of the loss is NaN or infinite."""


class BufferOverflow(RuntimeError):
  """Something did not fit into a buffer of fixed size, and the buffer cannot grow."""


def init_state(
    stage: Stage,
    mesh: jax.sharding.Mesh,
    key: jax.Array,
    start: tuple[Params, Params] = ({}, {}),
    origin: str = "start",
) -> tuple[TrainState, Any]:
  """The state at step 0: fresh parameters, overwritten by those that earlier stages or runs have trained.

  Args:
    stage: what will be trained.
    mesh: where the state will live.
    key: for the fresh parameters.
    start: params and buffers by group; a group that is present replaces the fresh one whole.
    origin: the run that `start` is from, for errors.

  Returns:
    The state, sharded, and its abstract form with shardings (what a checkpoint is restored into).

  Raises:
    InputError: a group in `start` differs from the fresh one in structure, shape or dtype: names the first difference.
  """

  def make(key, start):
    params, buffers = (
        fresh | {name: given[name] for name in fresh if name in given} for fresh, given in zip(stage.init(key), start)
    )
    # Weakly typed arrays would become strongly typed in the first step, and the second one would compile again.
    params, buffers = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), (params, buffers))
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, buffers=buffers, opt_state=stage.optimizer.init(params))

  check_start(stage, start, origin)
  abstract = jax.eval_shape(make, key, start)
  shardings = sharding.state_shardings(mesh, abstract)
  state = jax.jit(make, out_shardings=shardings)(key, start)
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
  return state, abstract


def check_start(stage: Stage, start: tuple[Params, Params], origin: str) -> None:
  """Raises: InputError: a group in `start`, which comes from the run `origin`, is not as this stage's are."""
  for given, wanted in zip(start, jax.eval_shape(stage.init, jax.random.key(0))):
    _check_groups(origin, given, wanted)


def _check_groups(origin: str, given: Params, wanted: Params) -> None:
  describe = lambda tree: {
      jax.tree_util.keystr(path): (tuple(x.shape), str(x.dtype)) for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
  for group in sorted(wanted.keys() & given.keys()):
    found, expected = describe(given[group]), describe(wanted[group])
    for path in sorted(found.keys() | expected.keys()):
      if found.get(path) != expected.get(path):
        wanted_here = f"{expected.get(path, 'nothing')}: another model has been trained there"
        raise InputError(origin, f"{group}{path}", found.get(path, "nothing"), wanted_here)


def make_train_step(stage: Stage, key: jax.Array):
  """One optimizer step, to be jitted: (state, batch, number of the step) -> (state, terms).

  The state stays as it is if something did not fit into a buffer, or if `number` is not the state's step: then an
  earlier step did not count. So steps can be dispatched before it is known whether the ones before them counted.
  """

  def train_step(state: TrainState, batch, number):
    step_key = jax.random.fold_in(key, state.step)

    def loss_of(params, probes):
      return stage.loss(params | probes, state.buffers, batch, step_key, state.step)

    grad_fn = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    (loss, terms), (grads, probe_grads) = grad_fn(state.params, stage.probes)
    updates, opt_state = stage.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    terms = {"loss": loss, **terms, "gradient_norm": optax.tree.norm(grads)}
    buffers = stage.observe(state.buffers, probe_grads) if stage.observe else state.buffers
    following = TrainState(step=state.step + 1, params=params, buffers=buffers, opt_state=opt_state)
    if stage.room is not None and stage.room.grow is not None:
      counts = (terms[stage.room.lost] == 0) & (state.step == number)
      following = jax.tree.map(lambda new, old: jnp.where(counts, new, old), following, state)
    return following, terms

  return train_step


def compile_step(stage: Stage, key: jax.Array, shardings: TrainState):
  """`make_train_step`, jitted: the state is donated and keeps its shardings."""
  # Left free, XLA may choose other shardings, and the second step would compile again.
  return jax.jit(make_train_step(stage, key), donate_argnums=0, out_shardings=(shardings, None))


class _Stepper:
  """Takes steps, with at most two in flight; repeats those for which a buffer was too small with a larger one.

  Attributes:
    counted: number of steps taken after each step that counts, with its terms, since the caller last emptied the list.
  """

  def __init__(self, stage: Stage, key: jax.Array, shardings: TrainState, say: Callable[[str], None]):
    self.counted: list[tuple[int, dict[str, jax.Array]]] = []
    self._stage, self._key, self._shardings, self._say = stage, key, shardings, say
    self._in_flight: list[tuple[int, Any, dict[str, jax.Array]]] = []
    self._size = 0  # Of the buffer, once it has grown.
    self._compile()

  def _compile(self) -> None:
    self._step = compile_step(self._stage, self._key, self._shardings)

  def take(self, state: TrainState, step: int, batch) -> TrainState:
    """Dispatches a step; the one before it has counted when this returns."""
    state, terms = self._step(state, batch, step)
    self._in_flight.append((step, batch, terms))
    return self.settle(state, in_flight=1)

  def settle(self, state: TrainState, in_flight: int = 0) -> TrainState:
    """Waits until at most `in_flight` steps may still turn out not to count; returns the state after all of them."""
    while len(self._in_flight) > in_flight:
      step, _, terms = self._in_flight[0]
      room = self._stage.room
      if room is None or room.grow is None or int(terms[room.lost]) == 0:
        self.counted.append((step + 1, terms))
        del self._in_flight[0]
        continue
      self._grow(room, step, int(terms[room.lost]), int(terms[room.needed]))
      again, self._in_flight = self._in_flight, []
      for step, batch, _ in again:
        state, terms = self._step(state, batch, step)
        self._in_flight.append((step, batch, terms))
    return state

  def _grow(self, room: Room, step: int, lost: int, needed: int) -> None:
    name = self._stage.name
    if room.grow is None or needed <= self._size:
      raise BufferOverflow(f"stage {name}, step {step + 1}: {lost} {room.unit} lost in room for {self._size}")
    self._size = needed
    self._say(f"{name}: step {step + 1} needs {needed} {room.unit} a frame, {lost} did not fit: makes room")
    self._stage = dataclasses.replace(self._stage, loss=room.grow(needed))
    self._compile()


def run_stage(
    stage: Stage,
    *,
    mesh: jax.sharding.Mesh,
    workdir: str,
    seed: int,
    start: tuple[Params, Params] = ({}, {}),
    origin: str = "start",
    watching: Watching = Watching(),
    before_checkpoint: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = print,
) -> TrainState:
  """Trains a stage to its last step, from its newest checkpoint if there is one, else from `start`.

  Args:
    start, origin: see `init_state`.
    before_checkpoint: called each time before a checkpoint is written.

  Raises:
    InputError: see `init_state` and `checkpoints`.
    NonFiniteLoss: names the step, the stage and the term.
    BufferOverflow: names the step, the stage and the count, where the buffer cannot grow.
  """
  began = time.perf_counter()
  key = jax.random.fold_in(jax.random.key(seed), STAGES.index(stage.name))
  init_key, step_key = jax.random.split(key)
  with jax.set_mesh(mesh):
    # --- State: from the newest checkpoint, or new.
    state, abstract = init_state(stage, mesh, init_key, start, origin)
    batches = iter(stage.batches)
    checkpointer = checkpoints.make_checkpointer(workdir, stage.name, watching.checkpoint_every)
    state = checkpointer.restore(abstract, batches, say) or state
    first = int(state.step)
    if first >= stage.steps:
      say(f"{stage.name}: already at step {first} of {stage.steps}")
      checkpointer.close()
      return state
    if first:
      say(f"{stage.name}: continues at step {first}")

    # --- Steps.
    state_shardings = jax.tree.map(lambda x: x.sharding, abstract)
    stepper = _Stepper(stage, step_key, state_shardings, say)
    metrics = writer_lib.MetricWriter(f"{workdir}/{stage.name}", first)
    stop = cluster.StopTogether() if cluster.count_processes() > 1 else _StopRequest()
    bar = _progress_bar(stage, first)
    since = time.perf_counter()
    # However the loop ends, a checkpoint that is being written is finished.
    with contextlib.closing(checkpointer), contextlib.closing(metrics), stop, bar:
      for step in range(first, stage.steps):
        state = stepper.take(state, step, sharding.put_batch(mesh, next(batches)))
        stop.after_step()
        done, stopping = step + 1, stop.requested
        bar.update()

        last = done == stage.steps or stopping
        log, checkpoint = (done % every == 0 or last for every in (watching.log_every, watching.checkpoint_every))
        every = watching.evaluate_every
        score = bool(stage.evaluate and every) and (done % every == 0 or done == stage.steps)
        show = stage.pictures and (done % watching.pictures_every == 0 or last)
        due = [hook for hook in stage.hooks if hook.due(done)]
        if due or log or checkpoint or show or score:
          state = stepper.settle(state)
        for hook in due:
          state = jax.device_put(hook.call(state, done), state_shardings)
        values = {}
        if log:
          means = _mean_terms(stage, stepper.counted)
          bar.set_postfix({k: f"{v:.4g}" for k, v in means.items()})
          values |= means | {"steps_per_second": len(stepper.counted) / (time.perf_counter() - since)}
          stepper.counted, since = [], time.perf_counter()
        if score:
          scores = {f"val/{name}": float(value) for name, value in stage.evaluate(state.params, state.buffers).items()}
          say(f"{stage.name}: step {done}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
          values |= scores
          since = time.perf_counter()
        if values:
          metrics.scalars(done, values)
        if show:
          for name, picture in stage.pictures(state.params, state.buffers).items():
            metrics.image(done, name, picture)
          since = time.perf_counter()
        # Before the next batch is drawn, so that the iterator's state and the step agree.
        if checkpoint:
          if stepper.counted:
            _mean_terms(stage, stepper.counted)  # A broken state must not become a checkpoint.
          before_checkpoint()
          checkpointer.save(state, batches, done, force=last)
        if stopping:
          break
    usage.record(f"{workdir}/{stage.name}", done, time.perf_counter() - began)
    if stop.requested:  # Also in the last step, or while its checkpoint was written: no other stage begins.
      say(f"{stage.name}: stopped by a signal at step {done}; run the same command to continue")
      sys.exit(128 + stop.requested)
    if best := writer_lib.find_best(f"{workdir}/{stage.name}", "val/score"):
      say(f"{stage.name}: best val/score {best[1]:.4g} at step {best[0]} of {stage.steps}")
    return state


def _mean_terms(stage: Stage, pending: Iterable[tuple[int, dict[str, jax.Array]]]) -> dict[str, float]:
  """Means over steps; raises at the first step with a term that is not finite, or with something lost."""
  fetched = [(step, jax.device_get(terms)) for step, terms in pending]
  for step, terms in fetched:
    broken = [name for name, value in terms.items() if not np.isfinite(value)]
    if broken:
      # The sum is broken whenever a term is: name the terms first.
      cause = [name for name in broken if name not in ("loss", "gradient_norm")] or broken
      values = ", ".join(f"{name}={float(terms[name])}" for name in cause)
      raise NonFiniteLoss(f"stage {stage.name}, step {step}: not finite: {values}")
    if stage.room is not None and (lost := int(terms[stage.room.lost])):
      raise BufferOverflow(f"stage {stage.name}, step {step}: {lost} {stage.room.unit} did not fit, and the stage cannot make room")
  return {name: float(np.mean([terms[name] for _, terms in fetched])) for name in fetched[0][1]}


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


class _StopRequest:
  """Turns SIGTERM and SIGINT into a request that the loop honours after the step: save, then exit."""

  def __init__(self):
    self.requested = 0

  def __enter__(self):
    self._previous = {}
    for number in (signal.SIGTERM, signal.SIGINT):
      try:
        self._previous[number] = signal.signal(number, self._handle)
      except ValueError:  # Not in the main thread: the caller's own handling stays.
        pass
    return self

  def _handle(self, number, frame):
    del frame
    self.requested = number

  def after_step(self) -> None:
    """As `cluster.StopTogether` has it; there is nobody to agree with."""

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)
