"""Which optimizer moves which parameters. Labels are paths: "generator", "offsets", "avatar/means", …"""

from collections.abc import Mapping
from typing import Any

import jax
import optax

FROZEN = "frozen"


def by_path(transforms: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
  """Applies to each array the transform whose label is the longest prefix of its path; arrays without one stay frozen.

  Raises:
    ValueError: (at init) if a label meets no array: a misspelt name would silently train nothing.
  """
  labels = sorted(transforms, key=len, reverse=True)

  def label_tree(params: Any):
    used = set()

    def label_of(path, _):
      text = "/".join(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)
      for label in labels:
        if text == label or text.startswith(label + "/"):
          used.add(label)
          return label
      return FROZEN

    tree = jax.tree_util.tree_map_with_path(label_of, params)
    if unused := set(labels) - used:
      raise ValueError(f"no parameters under {sorted(unused)}; there are {sorted(params)}")
    return tree

  return optax.multi_transform({**transforms, FROZEN: optax.set_to_zero()}, label_tree)


def network_optimizer(
    learning_rate: float, steps: int, *, warmup: int = 0, weight_decay: float = 0.0, gradient_clip: float = 1.0
) -> optax.GradientTransformation:
  """AdamW with clipped gradients; the rate rises over `warmup` steps and falls along a cosine to zero."""
  schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(warmup, steps // 2), steps)
  # Biases, norms and embeddings are not decayed.
  matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
  return optax.chain(
      optax.clip_by_global_norm(gradient_clip), optax.adamw(schedule, weight_decay=weight_decay, mask=matrices)
  )


def gaussian_optimizer(
    learning_rates: Mapping[str, float], steps: int, *, scene_extent: float, final_share: float, scale: float = 1.0
) -> dict[str, optax.GradientTransformation]:
  """3DGS's Adam for each attribute of the Gaussians, as labelled transforms for `by_path`.

  Args:
    learning_rates: by attribute; "means" is multiplied by `scene_extent`.
    steps: over which every rate decays exponentially to `final_share` of itself.
    scene_extent: in units of a triangle's size.
    final_share: see `steps`; 1 keeps the rates.
    scale: of all rates.
  """
  transforms = {}
  for attribute, rate in learning_rates.items():
    if attribute == "means":
      rate *= scene_extent
    schedule = optax.exponential_decay(scale * rate, steps, final_share)
    transforms[f"avatar/{attribute}"] = optax.adam(schedule, eps=1e-15)  # Gradients of single Gaussians are tiny.
  return transforms
