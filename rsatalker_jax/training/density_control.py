"""Density control as parts of a stage: what is observed in a step, and what happens between steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from rsatalker_jax.avatar import FREE, Gaussians, density, mcmc
from rsatalker_jax.errors import InputError
from rsatalker_jax.training.checkpoints import TrainState
from rsatalker_jax.training.loop import Hook
from splat_kernels import densification

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DensityControl:
  """What a way of density control adds to the stage that trains an avatar; the defaults are none.

  Attributes:
    buffers: group "density" of the stage's buffers at step 0.
    probes: groups of `loop.Stage.probes`. "probes": by name, arguments of the renderer; "radii": of `probe_radii`.
    observe: see `loop.Stage`.
    penalties: (params, buffers) -> further terms of the loss.
    on_optimizer: the optimizer -> the optimizer to use.
    hooks: see `loop.Stage`.
  """

  buffers: Params = dataclasses.field(default_factory=dict)
  probes: Params = dataclasses.field(default_factory=dict)
  observe: Callable[[Params, Params], Params] | None = None
  penalties: Callable[[Params, Params], dict[str, Array]] = lambda params, buffers: {}
  on_optimizer: Callable[[optax.GradientTransformation], optax.GradientTransformation] = lambda optimizer: optimizer
  hooks: tuple[Hook, ...] = ()


def probe_radii(params: Params, radii: Int[Array, "B N"]) -> Float[Array, ""]:
  """A zero for the loss, whose gradient by the probe "radii" is the radii: so `observe` learns who was visible."""
  return jnp.sum(params["radii"] * radii) if "radii" in params else jnp.zeros(())


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
    sizes: Float[Array, "F"],
    batch: int,
    image_size: tuple[int, int],
    mean_rate: Callable[[Array], Array],
    seed: int,
    say: Callable[[str], None],
) -> DensityControl:
  """The way of density control that `config` (the config's section `density`) names.

  Args:
    config: see configs/common.py.
    steps: of the stage.
    capacity: length of the Gaussians' arrays.
    sizes: of the head's triangles at rest, metres.
    batch: frames in a step, over all devices.
    image_size: width and height, pixels.
    mean_rate: learning rate of the Gaussians' means after so many steps.
    seed: of what is random.
    say: prints a line about what was done.

  Raises:
    InputError: the way has no such name, or see `check_interval`.
  """
  check_interval(config, steps)
  key = jax.random.key(seed)
  if config.way == "none":
    return DensityControl()
  if config.way == "adaptive":
    return _adaptive(_read_config(config), capacity, sizes, batch, image_size, key, say)
  return _mcmc(_read_config(config), len(sizes), mean_rate, key, say)


def _adaptive(config, capacity, sizes, batch, image_size, key, say) -> DensityControl:
  probe = "means2d_abs_offset" if config.absolute else "means2d_offset"

  def observe(buffers, gradients):
    statistics = densification.add_frames(
        buffers["density"]["statistics"], gradients["probes"][probe], gradients["radii"], *image_size
    )
    return buffers | {"density": {"statistics": statistics}}

  @jax.jit
  def act(state, key, prune_large):
    statistics = state.buffers["density"]["statistics"]
    gaussians, binding = Gaussians(**state.params["avatar"]), state.buffers["avatar"]["binding"]
    change = density.densify_and_prune(gaussians, binding, statistics, sizes, key, prune_large, config)
    state, counts = _apply(state, change)
    empty = {"density": {"statistics": densification.no_statistics(capacity)}}
    return dataclasses.replace(state, buffers=state.buffers | empty), counts

  @jax.jit
  def reset(state):
    gaussians = density.reset_opacities(Gaussians(**state.params["avatar"]), config.reset_opacity)
    avatar = state.params["avatar"] | {"opacity_logits": gaussians.opacity_logits}
    # Their momentum would lift opacities again at once; what nobody has moved keeps its own.
    opt_state = density.forget_moments(state.opt_state, jnp.ones(capacity, bool), ["opacity_logits"])
    return state.replace(params=state.params | {"avatar": avatar}, opt_state=opt_state)

  return DensityControl(
      buffers={"density": {"statistics": densification.no_statistics(capacity)}},
      probes={"probes": {probe: jnp.zeros((batch, capacity, 2))}, "radii": jnp.zeros((batch, capacity))},
      observe=observe,
      hooks=(
          Hook(
              config.acts_after,
              lambda state, step: _act_and_say(act, state, step, key, say, config.prunes_large_after(step)),
          ),
          Hook(config.resets_after, lambda state, step: reset(state)),
      ),
  )


def _mcmc(config, num_faces, mean_rate, key, say) -> DensityControl:
  def penalties(params, buffers):
    live = buffers["avatar"]["binding"] != FREE
    mean = lambda x: jnp.sum(jnp.where(live, x, 0.0)) / jnp.sum(live)
    gaussians = params["avatar"]
    return {
        "opacity": config.opacity_weight * mean(jax.nn.sigmoid(gaussians["opacity_logits"])),
        "size": config.scale_weight * mean(jnp.mean(jnp.exp(gaussians["log_scales"]), axis=-1)),
    }

  @jax.jit
  def act(state, key):
    gaussians, binding = Gaussians(**state.params["avatar"]), state.buffers["avatar"]["binding"]
    return _apply(state, mcmc.relocate(gaussians, binding, num_faces, key, config))

  noise_key, act_key = jax.random.split(key)

  def on_optimizer(optimizer):
    def update(updates, state, params):
      count, inner = state
      updates, inner = optimizer.update(updates, inner, params)
      gaussians = Gaussians(**params["avatar"])
      means = densification.inject_noise(
          jax.random.fold_in(noise_key, count),
          updates["avatar"]["means"],
          gaussians.quats,
          jnp.exp(gaussians.log_scales),
          jax.nn.sigmoid(gaussians.opacity_logits),
          config.noise * mean_rate(count),
      )
      return updates | {"avatar": updates["avatar"] | {"means": means}}, (count + 1, inner)

    return optax.GradientTransformation(lambda params: (jnp.zeros((), jnp.int32), optimizer.init(params)), update)

  return DensityControl(
      penalties=penalties,
      on_optimizer=on_optimizer,
      hooks=(Hook(config.acts_after, lambda state, step: _act_and_say(act, state, step, act_key, say)),),
  )


def _act_and_say(act, state: TrainState, step: int, key: jax.Array, say: Callable[[str], None], *options) -> TrainState:
  state, counts = act(state, jax.random.fold_in(key, step), *options)
  counts = {name: int(count) for name, count in counts.items()}
  live = counts.pop("live")
  say(f"avatar: step {step}: {live} Gaussians; " + ", ".join(f"{count} {name}" for name, count in counts.items()))
  return state


def _apply(state: TrainState, change: density.Change) -> tuple[TrainState, dict[str, Array]]:
  params = {name: getattr(change.gaussians, name) for name in state.params["avatar"]}
  return (
      dataclasses.replace(
          state,
          params=state.params | {"avatar": params},
          buffers=state.buffers | {"avatar": state.buffers["avatar"] | {"binding": change.binding}},
          opt_state=density.forget_moments(state.opt_state, change.fresh),
      ),
      change.counts,
  )
