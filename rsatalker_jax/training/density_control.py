"""Density control as parts of a stage: what is observed in a step, and what happens between steps."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from rsatalker_jax.avatar import FREE, Avatar, Gaussians, density, mcmc
from rsatalker_jax.errors import InputError
from rsatalker_jax.sharding import BANK
from rsatalker_jax.training import optimizers
from rsatalker_jax.training.checkpoints import TrainState
from rsatalker_jax.training.loop import Hook
from splat_kernels import densification

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DensityControl:
  """What a way of density control adds to the stage that trains an avatar; the defaults are none.

  Attributes:
    buffers: group "density" of the stage's buffers at step 0.
    probes: groups of `loop.Stage.probes`. "probes": by name, arguments of the renderer; "radii" and, where there are several
      people, "identity": of `probe_frames`.
    observe: see `loop.Stage`.
    penalties: the avatar, or that of each of a batch's frames -> further terms of the loss.
    on_optimizer: the optimizer -> the optimizer to use.
    hooks: see `loop.Stage`.
  """

  buffers: Params = dataclasses.field(default_factory=dict)
  probes: Params = dataclasses.field(default_factory=dict)
  observe: Callable[[Params, Params], Params] | None = None
  penalties: Callable[[Avatar], dict[str, Array]] = lambda avatar: {}
  on_optimizer: Callable[[optax.GradientTransformation], optax.GradientTransformation] = lambda optimizer: optimizer
  hooks: tuple[Hook, ...] = ()


def probe_frames(params: Params, radii: Int[Array, "B N"], identity: Int[Array, "B"] | None = None) -> Float[Array, ""]:
  """A zero for the loss, whose gradients by the probes "radii" and "identity" are these: so `observe` learns who was visible
  in whose frame."""
  total = jnp.zeros(())
  for name, found in (("radii", radii), ("identity", identity)):
    if name in params:
      total += jnp.sum(params[name] * found)
  return total


def check_interval(config: ConfigDict, steps: int) -> None:
  """Refuses density control in the last steps of a stage, which would leave what it did to the Gaussians untrained.

  Args:
    config: the config's section `density`.
    steps: of the stage.

  Raises:
    InputError: `stop` leaves fewer than `every` steps before the end, `every` is no number of steps, or the interval
      from `start` to `stop` holds no step at which it acts.
  """
  if config.way == "none":
    return
  key, interval = f"density.{config.way}", _read_config(config)
  if interval.every < 1:
    raise InputError("config", f"{key}.every", interval.every, "at least 1 step")
  if interval.stop > steps - interval.every:
    expected = f"at most {steps - interval.every}: {key}.every={interval.every} steps before the stage's {steps}"
    raise InputError("config", f"{key}.stop", interval.stop, expected)
  first = max(interval.start // interval.every + 1, 1) * interval.every
  if not interval.acts_after(first):
    expected = f"above {first}, the first step that is later than {key}.start={interval.start} and a multiple of "
    raise InputError("config", f"{key}.stop", interval.stop, f"{expected}{key}.every={interval.every}")


def _read_config(config: ConfigDict) -> density.DensityConfig | mcmc.McmcConfig:
  if config.way == "adaptive":
    return density.DensityConfig(**config.adaptive)
  if config.way == "mcmc":
    return mcmc.McmcConfig(**config.mcmc)
  raise InputError("config", "density.way", repr(config.way), "'none', 'adaptive' or 'mcmc'")


def make_density_control(
    config: ConfigDict,
    *,
    steps: int,
    capacity: int,
    sizes: Float[Array, "*P F"],
    batch: int,
    image_size: tuple[int, int],
    mean_rate: Callable[[Array], Array],
    seed: int,
    say: Callable[[str], None],
    names: Sequence[str] | None = None,
) -> DensityControl:
  """The way of density control that `config` (the config's section `density`) names.

  Args:
    config: see configs/common.py.
    steps: of the stage.
    capacity: length of the Gaussians' arrays.
    sizes: of the person's triangles at rest, metres; with `names`, of each person's.
    batch: frames in a step, over all devices.
    image_size: width and height, pixels.
    mean_rate: learning rate of the Gaussians' means after so many steps.
    seed: of what is random.
    say: prints a line about what was done.
    names: of the people of a bank, each of whom is controlled as if alone; None: one person, in group "avatar".

  Raises:
    InputError: the way has no such name, or see `check_interval`.
  """
  check_interval(config, steps)
  key, bank = jax.random.key(seed), _Bank(None if names is None else tuple(names))
  if config.way == "none":
    return DensityControl()
  if config.way == "adaptive":
    return _adaptive(_read_config(config), capacity, sizes, batch, image_size, key, say, bank)
  return _mcmc(_read_config(config), sizes.shape[-1], mean_rate, key, say, bank)


def _adaptive(config, capacity, sizes, batch, image_size, key, say, bank: "_Bank") -> DensityControl:
  probe = "means2d_abs_offset" if config.absolute else "means2d_offset"
  nothing = bank.everybodys(densification.no_statistics(capacity))

  def observe(buffers, gradients):
    pulls, radii = gradients["probes"][probe], gradients["radii"]

    def add(statistics, own):
      # In frames of others nothing of a person's is visible.
      mine = jnp.where(own[:, None, None], pulls, 0), jnp.where(own[:, None], radii, 0)
      return densification.add_frames(statistics, *mine, *image_size)

    of_whom = jnp.ones(batch, bool)
    if bank.names is not None:
      of_whom = gradients["identity"] == jnp.arange(len(bank.names))[:, None]
    return buffers | {"density": bank.group(bank.each(add)(bank.of(buffers["density"]), of_whom))}

  @jax.jit
  def act(state, key, prune_large):
    statistics = bank.of(state.buffers["density"])
    densify = lambda *of_person: density.densify_and_prune(*of_person, prune_large, config)
    state, counts = bank.apply(state, densify, statistics, sizes, bank.keys(key))
    return dataclasses.replace(state, buffers=state.buffers | {"density": bank.group(nothing)}), counts

  @jax.jit
  def reset(state):
    gaussians = density.reset_opacities(Gaussians(**state.params[bank.name]), config.reset_opacity)
    avatar = state.params[bank.name] | {"opacity_logits": gaussians.opacity_logits}
    # Their momentum would lift opacities again at once; what nobody has moved keeps its own.
    everything = jnp.ones(gaussians.opacity_logits.shape, bool)
    opt_state = density.forget_moments(state.opt_state, everything, ["opacity_logits"])
    return state.replace(params=state.params | {bank.name: avatar}, opt_state=opt_state)

  probes = {"probes": {probe: jnp.zeros((batch, capacity, 2))}, "radii": jnp.zeros((batch, capacity))}
  return DensityControl(
      buffers={"density": bank.group(nothing)},
      probes=probes | ({} if bank.names is None else {"identity": jnp.zeros(batch)}),
      observe=observe,
      hooks=(
          Hook(
              config.acts_after,
              lambda state, step: bank.act_and_say(act, state, step, key, say, config.prunes_large_after(step)),
          ),
          Hook(config.resets_after, lambda state, step: reset(state)),
      ),
  )


def _mcmc(config, num_faces, mean_rate, key, say, bank: "_Bank") -> DensityControl:
  def penalties(avatar):
    live = avatar.binding != FREE
    # Of each person by themselves, as often as frames show them.
    mean = lambda x: jnp.mean(jnp.sum(jnp.where(live, x, 0.0), axis=-1) / jnp.sum(live, axis=-1))
    gaussians = avatar.gaussians
    return {
        "opacity": config.opacity_weight * mean(jax.nn.sigmoid(gaussians.opacity_logits)),
        "size": config.scale_weight * mean(jnp.mean(jnp.exp(gaussians.log_scales), axis=-1)),
    }

  @jax.jit
  def act(state, key):
    relocate = lambda gaussians, binding, key: mcmc.relocate(gaussians, binding, num_faces, key, config)
    return bank.apply(state, relocate, bank.keys(key))

  noise_key, act_key = jax.random.split(key)

  def inject(gaussians, means, count, key):
    return densification.inject_noise(
        jax.random.fold_in(key, count),
        means,
        gaussians.quats,
        jnp.exp(gaussians.log_scales),
        jax.nn.sigmoid(gaussians.opacity_logits),
        config.noise * mean_rate(count),
    )

  def on_optimizer(optimizer):
    def init(params):
      return jnp.zeros(() if bank.names is None else len(bank.names), jnp.int32), optimizer.init(params)

    def update(gradients, state, params):
      count, inner = state
      # Who rests does not look around either, and counts their own steps.
      shown = jnp.bool_(True) if bank.names is None else optimizers.people_with_gradient(gradients[bank.name])
      updates, inner = optimizer.update(gradients, inner, params)
      still = updates[bank.name]["means"]
      means = bank.each(inject)(Gaussians(**params[bank.name]), still, count, bank.keys(noise_key))
      means = jnp.where(shown[..., None, None], means, still)
      return updates | {bank.name: updates[bank.name] | {"means": means}}, (count + shown, inner)

    return optax.GradientTransformation(init, update)

  return DensityControl(
      penalties=penalties,
      on_optimizer=on_optimizer,
      hooks=(Hook(config.acts_after, lambda state, step: bank.act_and_say(act, state, step, act_key, say)),),
  )


@dataclasses.dataclass(frozen=True)
class _Bank:
  """Of whom density control is.

  Attributes:
    names: of the people of a bank; None for one person, in arrays without a dimension for people.
  """

  names: tuple[str, ...] | None

  @property
  def name(self) -> str:
    """Of their group of params and buffers."""
    return "avatar" if self.names is None else BANK

  def each(self, function: Callable) -> Callable:
    """`function` of one person, for all."""
    return function if self.names is None else jax.vmap(function)

  def everybodys(self, tree: Any) -> Any:
    """What begins the same for all."""
    return tree if self.names is None else jax.tree.map(lambda x: jnp.stack([x] * len(self.names or ())), tree)

  def keys(self, key: jax.Array) -> jax.Array:
    """For each person their own, the same whoever else there is."""
    return key if self.names is None else jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(self.names)))

  def group(self, statistics: densification.ScreenStatistics) -> Params:
    """The group "density" of buffers: of a bank with its name in the path, by which it is split as the bank is."""
    return {"statistics": statistics} if self.names is None else {BANK: statistics}

  def of(self, group: Params) -> densification.ScreenStatistics:
    """What `group` has made a group of."""
    return group["statistics" if self.names is None else BANK]

  def apply(self, state: TrainState, change: Callable[..., density.Change], *of_people: Any) -> tuple[TrainState, dict[str, Array]]:
    """The state after what `change` makes of each person's Gaussians and binding and of `of_people`; and the counts."""
    gaussians, binding = Gaussians(**state.params[self.name]), state.buffers[self.name]["binding"]
    changed = self.each(change)(gaussians, binding, *of_people)
    params = {name: getattr(changed.gaussians, name) for name in state.params[self.name]}
    return (
        dataclasses.replace(
            state,
            params=state.params | {self.name: params},
            buffers=state.buffers | {self.name: state.buffers[self.name] | {"binding": changed.binding}},
            opt_state=density.forget_moments(state.opt_state, changed.fresh),
        ),
        changed.counts,
    )

  def act_and_say(
      self, act: Callable, state: TrainState, step: int, key: jax.Array, say: Callable[[str], None], *options: Any
  ) -> TrainState:
    """What `act` makes of the state, with a line about each person."""
    state, counts = act(state, jax.random.fold_in(key, step), *options)
    # Of a bank they lie with the people, some of whom may be other processes'.
    counts = jax.tree.map(np.atleast_1d, multihost_utils.process_allgather(counts, tiled=True))
    for number, name in enumerate(self.names or ("",)):
      own = {kind: int(count[number]) for kind, count in counts.items()}
      live = own.pop("live")
      whose = f", {name}" if name else ""
      say(f"avatar: step {step}{whose}: {live} Gaussians; " + ", ".join(f"{count} {kind}" for kind, count in own.items()))
    return state
