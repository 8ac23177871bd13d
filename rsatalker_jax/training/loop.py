"""The training loop. It knows no stage by name: a stage is data (`Stage`), and the loop runs it.

What it promises: a killed run continues to the same numbers it would have reached (state and data iterator are saved
together, keys are folded from the step), a step that is not finite changes nothing and stops the run with the step, the stage
and the term that broke, or is skipped, a step for which a buffer was too small is taken again with a larger one, and everything that a stage
logs is in TensorBoard and in <workdir>/<stage>/metrics.jsonl.
"""

import contextlib
import dataclasses
import functools
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rsatalker_jax import cluster, sharding
from rsatalker_jax.errors import InputError
from rsatalker_jax.training import broken_steps, checkpoints
from rsatalker_jax.training.checkpoints import TrainState
from rsatalker_jax.training.ledger import Ledger
from rsatalker_jax.training.local_checkpoints import LocalCheckpoints, check_whole
from rsatalker_jax.training.watch import Watch, Watching

Params = dict[str, Any]
# Among the terms of a step: whether it was not finite.
BROKEN = "broken"
# By stage what is folded into the seed; one that is added takes the next number, so that the others' runs stay what they are.
_SEEDS = {"motion": 0, "avatar": 1, "joint": 2, "codes": 3}
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
    rules: how the state lies on them (`sharding.Rules`); none: whole on each.
    accumulate: equal parts that a step splits its batch into and takes one after another, for memory. Terms of the loss are
      then their means over the parts, so each must be a mean over examples; there is no room and nothing is observed.
    hooks: what happens between steps, outside jit.
    probes: by group, arrays of zeros that the loss finds among its params but that are not trained; `observe` gets their
      gradients (of screen positions, for density control).
    observe: (buffers, gradients of the probes) -> buffers, within the step.
    follow: (params after the step, buffers) -> buffers, within the step: what goes after the params, as their average does.
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
  rules: sharding.Rules = ()
  accumulate: int = 1
  hooks: tuple[Hook, ...] = ()
  probes: Params = dataclasses.field(default_factory=dict)
  observe: Callable[[Params, Params], Params] | None = None
  follow: Callable[[Params, Params], Params] | None = None


class NonFiniteLoss(RuntimeError):
  """A term of the loss, or the gradient's norm, is NaN or infinite."""


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
    InputError: a group in `start` differs from the fresh one in structure, shape or dtype: names the first difference;
      or a rule splits what the mesh does not divide.
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
  shardings = sharding.state_shardings(mesh, stage.rules, abstract)
  state = jax.jit(make, out_shardings=shardings)(key, start)
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
  return state, abstract


def check_start(stage: Stage, start: tuple[Params, Params], origin: str) -> None:
  """Raises: InputError: a group in `start`, which comes from the run `origin`, is not as this stage's are, or the stage's own
  cannot lie on its mesh as the rules say."""
  params, buffers = jax.eval_shape(stage.init, jax.random.key(0))
  if stage.mesh is not None:
    sharding.state_shardings(stage.mesh, stage.rules, {"params": params, "buffers": buffers})
  for given, wanted in zip(start, (params, buffers)):
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


def make_train_step(stage: Stage, key: jax.Array, *, skips: bool = False):
  """One optimizer step, to be jitted: (state, batch, number of the step) -> (state, terms).

  The state stays as it is if something did not fit into a buffer, if a term or the gradient's norm is not finite, or if `number` is
  not the state's step: then an earlier step did not count. So steps can be dispatched before it is known whether the ones
  before them counted. Where one that is not finite `skips`, it counts as a step all the same.

  Terms are those of the loss, "loss", "gradient_norm", and `BROKEN`, 1 if the step was not finite.
  """

  def train_step(state: TrainState, batch, number):
    (loss, terms), (grads, probe_grads) = differentiate(stage, state, batch, jax.random.fold_in(key, state.step))
    updates, opt_state = stage.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    terms = {"loss": loss, **terms, "gradient_norm": optax.tree.norm(grads)}
    buffers = stage.observe(state.buffers, probe_grads) if stage.observe else state.buffers
    buffers = stage.follow(params, buffers) if stage.follow else buffers
    following = TrainState(step=state.step + 1, params=params, buffers=buffers, opt_state=opt_state)
    counts = state.step == number
    if stage.room is not None and stage.room.grow is not None:
      counts &= terms[stage.room.lost] == 0
    finite = jnp.all(jnp.stack([jnp.isfinite(term) for term in terms.values()]))
    # Else XLA computes it anew, from all terms, within every one of the updates: a tenth of what there is to compile.
    keeps = jax.lax.optimization_barrier(counts & finite)
    following = jax.tree.map(lambda new, old: jnp.where(keeps, new, old), following, state)
    if skips:
      following = following.replace(step=state.step + counts)
    return following, terms | {BROKEN: ~finite}

  return train_step


def differentiate(stage: Stage, state: TrainState, batch, key: jax.Array):
  """((loss, terms), (gradients of the params, of the probes)) of a batch."""

  def loss_of(params, probes, batch, key):
    return stage.loss(params | probes, state.buffers, batch, key, state.step)

  grad_fn = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
  if stage.accumulate == 1:
    return grad_fn(state.params, stage.probes, batch, key)
  if stage.room is not None or stage.observe is not None:
    raise ValueError(f"stage {stage.name}: what overflows or is observed is a batch's, and no mean over its parts")

  def differentiate_part(number, part):
    return grad_fn(state.params, stage.probes, part, jax.random.fold_in(key, number))

  parts = sharding.split_in_turn(stage.mesh, batch, stage.accumulate)
  add = lambda total, part: (jax.tree.map(jnp.add, total, differentiate_part(*part)), None)
  none = jax.tree.map(jnp.zeros_like, jax.eval_shape(differentiate_part, 0, jax.tree.map(lambda x: x[0], parts)))
  total, _ = jax.lax.scan(add, none, (jnp.arange(stage.accumulate), parts))
  return jax.tree.map(lambda x: x / stage.accumulate, total)


def compile_step(stage: Stage, key: jax.Array, shardings: TrainState, *, skips: bool = False):
  """`make_train_step`, jitted: the state is donated and keeps its shardings."""
  # Left free, XLA may choose other shardings, and the second step would compile again.
  return jax.jit(make_train_step(stage, key, skips=skips), donate_argnums=0, out_shardings=(shardings, None))


class _Stepper:
  """Takes steps, with at most two in flight; repeats those for which a buffer was too small with a larger one, and knows
  which were not finite.

  Args:
    stage: whose steps.
    key: from which each step's is folded.
    shardings: of the state.
    most_skipped: how many steps in a row that are not finite are skipped; one more ends the run.
    watch: is told what happens.
    keep_broken: (state before it, step, batch, terms, room that the buffer has grown to, or 0) of the step that ends the run ->
      where it was kept.
    say: gets lines for the user.
  """

  def __init__(
      self,
      stage: Stage,
      key: jax.Array,
      shardings: TrainState,
      *,
      most_skipped: int,
      watch: Watch,
      keep_broken: Callable[..., str],
      say: Callable[[str], None],
  ):
    self._stage, self._key, self._shardings, self._say = stage, key, shardings, say
    self._watch, self._keep_broken, self._most_skipped = watch, keep_broken, most_skipped
    self._counted: list[dict[str, jax.Array]] = []
    self._in_flight: list[tuple[int, Any, dict[str, jax.Array]]] = []
    self._size = 0  # Of the buffer, once it has grown.
    self._skipped = self._skipped_in_row = 0
    self._compile()

  def _compile(self) -> None:
    self._step, self._is_new = compile_step(self._stage, self._key, self._shardings, skips=self._most_skipped > 0), True

  def take(self, state: TrainState, step: int, batch) -> TrainState:
    """Dispatches a step; the one before it has counted when this returns."""
    return self.settle(self._dispatch(state, step, batch), in_flight=1)

  def _dispatch(self, state: TrainState, step: int, batch) -> TrainState:
    with self._watch.phase("compile") if self._is_new else contextlib.nullcontext():
      state, terms = self._step(state, batch, step)
    self._is_new = False
    self._watch.dispatched(step, terms)
    self._in_flight.append((step, batch, terms))
    return state

  def settle(self, state: TrainState, in_flight: int = 0) -> TrainState:
    """Waits until at most `in_flight` steps may still turn out not to count; returns the state after all of them.

    Raises:
      NonFiniteLoss: of a step that is not skipped.
      BufferOverflow: of a buffer that cannot grow.
    """
    # After a step that was skipped none is dispatched before the next is known, which may be one too many.
    while len(self._in_flight) > (0 if self._skipped_in_row else in_flight):
      step, batch, terms = self._in_flight[0]
      room, is_broken = self._stage.room, terms[BROKEN]
      if room is not None and (lost := int(terms[room.lost])):
        self._grow(room, step, lost, int(terms[room.needed]))
        again, self._in_flight = self._in_flight, []
        for step, batch, _ in again:
          state = self._dispatch(state, step, batch)
        continue
      del self._in_flight[0]
      terms = {name: value for name, value in terms.items() if name != BROKEN}
      if not is_broken:
        self._skipped_in_row = 0
        self._counted.append(terms)
      elif self._skipped_in_row == self._most_skipped:
        with self._watch.phase("checkpoint"):
          where = self._keep_broken(state, step, batch, terms, self._size)
        raise NonFiniteLoss(f"stage {self._stage.name}, step {step + 1}: not finite: {_describe(_broken_terms(terms))}; {where}")
      else:
        self._skipped_in_row, self._skipped = self._skipped_in_row + 1, self._skipped + 1
        self._watch.skipped(step, _broken_terms(terms))
    return state

  def pop_means(self) -> dict[str, float]:
    """Means of the terms over the steps that have counted since the last call, and, where such steps are, how many were skipped."""
    counted, self._counted = jax.device_get(self._counted), []
    means = {name: float(np.mean([terms[name] for terms in counted])) for name in (counted[0] if counted else ())}
    if self._most_skipped:
      means["skipped"], self._skipped = self._skipped, 0
    return means

  def _grow(self, room: Room, step: int, lost: int, needed: int) -> None:
    name = self._stage.name
    if room.grow is None:
      raise BufferOverflow(f"stage {name}, step {step + 1}: {lost} {room.unit} did not fit, and the stage cannot make room")
    if needed <= self._size:
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
    most_skipped: int = 0,
    ledger: Ledger | None = None,
    before_checkpoint: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = print,
) -> TrainState:
  """Trains a stage to its last step, from its newest checkpoint if there is one, else from `start`.

  Args:
    start, origin: see `init_state`.
    most_skipped: how many steps in a row that are not finite are skipped; one more ends the run.
    ledger: of this start; None makes one.
    before_checkpoint: called each time before a checkpoint, or a step that broke, is written.

  Raises:
    InputError: see `init_state` and `checkpoints`.
    NonFiniteLoss: names the step, the stage and the term.
    BufferOverflow: names the step, the stage and the count, where the buffer cannot grow.
  """
  key = jax.random.fold_in(jax.random.key(seed), _SEEDS[stage.name])
  init_key, step_key = jax.random.split(key)
  with contextlib.nullcontext(ledger) if ledger else Ledger(workdir) as ledger, ledger.stage(stage.name), jax.set_mesh(mesh):
    # --- State: from the newest checkpoint, or new.
    state, abstract = init_state(stage, mesh, init_key, start, origin)
    batches = iter(stage.batches)
    checkpointer = checkpoints.make_checkpointer(workdir, stage.name, watching.checkpoint_every)
    state = checkpointer.restore(abstract, batches, say) or state
    local = LocalCheckpoints.of_run(watching.local_checkpoints, watching.local_every, workdir, stage.name)
    if local:
      check_whole(abstract)
      state = local.restore(abstract, batches, int(state.step), say) or state
    first = int(state.step)
    if first >= stage.steps:
      say(f"{stage.name}: already at step {first} of {stage.steps}")
      checkpointer.close()
      return state
    if first:
      say(f"{stage.name}: continues at step {first}")

    # --- Steps.
    state_shardings = jax.tree.map(lambda x: x.sharding, abstract)
    watch = Watch(stage, workdir, watching, first, ledger, say)
    stepper = _Stepper(
        stage,
        step_key,
        state_shardings,
        most_skipped=most_skipped,
        watch=watch,
        keep_broken=functools.partial(broken_steps.keep, f"{workdir}/{stage.name}", step_key, before_checkpoint),
        say=say,
    )
    stop = cluster.StopTogether() if cluster.count_processes() > 1 else _StopRequest()
    # However the loop ends, a checkpoint that is being written is finished.
    with ledger.phase("checkpoint"), contextlib.closing(checkpointer), ledger.phase("step"), watch, stop:
      for step in range(first, stage.steps):
        with watch.batch(step):
          batch = sharding.put_batch(mesh, next(batches))
        with watch.step(step):
          state = stepper.take(state, step, batch)
        stop.after_step()
        done, stopping = step + 1, stop.requested
        watch.count_step(done)
        last = done == stage.steps or bool(stopping)
        due = watch.find_due(done, last=last)
        hooks = [hook for hook in stage.hooks if hook.due(done)]
        near = local is not None and local.is_due(done)
        if hooks or any(due) or near:
          state = stepper.settle(state)
        with ledger.phase("hooks"):
          for hook in hooks:
            state = jax.device_put(hook.call(state, done), state_shardings)
        watch.report(done, due, stepper.pop_means() if due.log else {}, state)
        # Before the next batch is drawn, so that the iterator's state and the step agree.
        if due.checkpoint:
          with ledger.phase("checkpoint"):
            before_checkpoint()
            checkpointer.save(state, batches, done, force=last)
          ledger.begin_span(done)
        elif near:
          with ledger.phase("checkpoint"):
            before_checkpoint()
            local.save(state, batches, done)
          ledger.begin_span(done)
        if stopping:
          break
    if stop.requested:  # Also in the last step, or while its checkpoint was written: no other stage begins.
      say(f"{stage.name}: stopped by a signal at step {done}; run the same command to continue")
      sys.exit(128 + stop.requested)
    if local:
      local.clear()
    watch.say_end()
    return state


def _broken_terms(terms: Mapping[str, jax.Array]) -> dict[str, float]:
  """Those that are not finite; the sum and the gradient are whenever a term is, and are named only where none is."""
  broken = {name: float(value) for name, value in jax.device_get(dict(terms)).items() if not np.isfinite(value)}
  return {name: value for name, value in broken.items() if name not in ("loss", "gradient_norm")} or broken


def _describe(terms: Mapping[str, float]) -> str:
  return ", ".join(f"{name}={value}" for name, value in terms.items())


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
