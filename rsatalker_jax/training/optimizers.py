"""Which optimizer moves which parameters. Labels are paths: "generator", "offsets", "avatar/means", …"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

FROZEN = "frozen"


def by_path(transforms: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
  """Applies to each array the transform whose label is the longest prefix of its path; arrays without one stay frozen.

  Args:
    transforms: by label; "generator|social" is one transform for both, whose gradients are clipped together.

  Raises:
    ValueError: (at init) if a label meets no array: a misspelt name would silently train nothing.
  """
  prefixes = {prefix: label for label in transforms for prefix in label.split("|")}
  longest_first = sorted(prefixes, key=len, reverse=True)

  def label_tree(params: Any):
    used = set()

    def label_of(path, _):
      text = "/".join(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)
      for prefix in longest_first:
        if text == prefix or text.startswith(prefix + "/"):
          used.add(prefix)
          return prefixes[prefix]
      return FROZEN

    tree = jax.tree_util.tree_map_with_path(label_of, params)
    if unused := set(prefixes) - used:
      raise ValueError(f"no parameters under {sorted(unused)}; there are {sorted(params)}")
    return tree

  return optax.multi_transform({**transforms, FROZEN: optax.set_to_zero()}, label_tree)


def network_optimizer(
    learning_rate: float, steps: int, *, warmup: int = 0, weight_decay: float = 0.0, gradient_clip: float = 1.0
) -> optax.GradientTransformation:
  """AdamW with clipped gradients; the rate rises over `warmup` steps and falls along a cosine to zero."""
  schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(warmup, steps // 2), steps)
  return optax.chain(
      optax.clip_by_global_norm(gradient_clip), optax.adamw(schedule, weight_decay=weight_decay, mask=is_decayed)
  )


def is_decayed(params: Any) -> Any:
  """Of which arrays the weights decay: kernels alone, not biases, norms, embeddings or biases by distance."""
  return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) == "kernel", params)


def gaussian_schedule(
    learning_rates: Mapping[str, float],
    steps: int,
    attribute: str,
    *,
    scene_extent: float,
    final_shares: Mapping[str, float],
) -> optax.Schedule:
  """Learning rate of one attribute of the Gaussians by step.

  Args:
    learning_rates: by attribute; "means" is multiplied by `scene_extent`.
    steps: over which the rate decays exponentially to a share of itself.
    attribute: whose.
    scene_extent: in units of a triangle's size.
    final_shares: those shares, by attribute; 1 keeps the rate.
  """
  rate = learning_rates[attribute] * (scene_extent if attribute == "means" else 1)
  return optax.exponential_decay(rate, steps, final_shares[attribute])


def continued_schedule(
    schedule: optax.Schedule, ended: int, steps: int, *, share: float, final_share: float, warmup: int
) -> optax.Schedule:
  """Learning rate in a stage that goes on with Gaussians that another stage has trained, with new moments.

  Args:
    schedule: the rate in that stage (`gaussian_schedule`).
    ended: steps of that stage.
    steps: of this stage.
    share: of the rate with which that stage ended, from where this one goes on; 1 for the same.
    final_share: of that, to which the rate decays exponentially in this stage; 1 keeps it.
    warmup: steps over which the rate rises from zero first: the first steps of an Adam whose moments are new are as long
      as the rate whatever the gradient (eps is 1e-15), those of one that has seen noise a fifth of that.
  """
  peak = share * float(schedule(ended))
  return optax.warmup_exponential_decay_schedule(0.0, peak, warmup, steps - warmup, final_share)


def gaussian_optimizer(
    attributes: Iterable[str], rates: Callable[[str], optax.Schedule], *, sh_rest_share: float
) -> dict[str, optax.GradientTransformation]:
  """3DGS's Adam for each attribute of the Gaussians, as labelled transforms for `by_path`.

  Args:
    attributes: by name.
    rates: schedule of an attribute (`gaussian_schedule`).
    sh_rest_share: rate of the spherical harmonics above the constant one, as a share of the constant one's.
  """
  # Gradients of single Gaussians are tiny.
  transforms: dict[str, optax.GradientTransformation] = {}
  for name in attributes:
    transforms[f"avatar/{name}"] = optax.adam(rates(name), eps=1e-15)
  transforms["avatar/sh"] = optax.chain(transforms["avatar/sh"], _scale_sh_rest(sh_rest_share))
  return transforms


def _scale_sh_rest(share: float) -> optax.GradientTransformation:
  def scale(updates, params):
    del params
    return jax.tree.map(lambda x: x.at[..., 1:, :].multiply(share), updates)

  return optax.stateless(scale)


def per_person(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """`optimizer` for each person by themselves, in arrays with people in front.

  Whoever no frame of a batch shows has a gradient of zeros: they keep their parameters and their optimizer's state, where
  Adam over the whole bank would move them on and forget what it knew of them. So schedules count each person's own steps.
  """

  def update(gradients, state, params=None):
    moved, following = jax.vmap(optimizer.update)(gradients, state, params)
    shown = people_with_gradient(gradients)
    where_shown = lambda new, old: jnp.where(shown.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return jax.tree.map(lambda x: where_shown(x, jnp.zeros_like(x)), moved), jax.tree.map(where_shown, following, state)

  return optax.GradientTransformation(jax.vmap(optimizer.init), update)


def people_with_gradient(gradients: Any) -> Bool[Array, "P"]:
  """Whom a batch shows: those of whose gradients, in arrays with people in front, any is not zero."""
  nonzero = [jnp.any(x != 0, axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(gradients)]
  return functools.reduce(jnp.logical_or, nonzero)
