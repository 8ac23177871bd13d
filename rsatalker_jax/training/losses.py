"""The losses of the paper, Eq. 9 to 13. Each returns named terms; the weighted sum is taken where stages are made."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rsatalker_jax.evaluation import image_metrics
from rsatalker_jax.types import MOTION_GROUPS


@dataclasses.dataclass(frozen=True)
class MotionLossWeights:
  """Weights of Eq. 9. The groups differ in units (coefficients, radians) and size, hence a weight for each.

  Attributes:
    expression, jaw, pose: weight of the group's mean squared error.
    velocity: weight of the same on frame-to-frame differences, times the group's weight. (DualTalk's code has one mean over
      all 56 there, in which jaw and pose count for 3/56 each.)
    relative: whether a group's error is divided by the group's variance in the training data, so that 1 is the loss of
      a motion held at its mean and the groups count alike.
    lips: weight of the lip opening's error (`lip_loss`), relative to the opening's variance. In coefficients alone a P
      that stays open costs next to nothing.
    closure: how much more an error counts where the true lips are closed.
    plain_norm: the paper's plain form instead: ||M - M_gt||_2 over the whole sequence. The rest is not used then.
  """

  expression: float
  jaw: float
  pose: float
  velocity: float
  relative: bool
  lips: float
  closure: float
  plain_norm: bool


def motion_loss(
    predicted: Float[Array, "*b T 56"],
    target: Float[Array, "*b T 56"],
    weights: MotionLossWeights,
    motion_std: Float[Array, "56"] | None = None,
) -> dict[str, Float[Array, ""]]:
  """Eq. 9: L_mesh between predicted and true motion, by group, each already weighted.

  Args:
    motion_std: 56 standard deviations of the training data, for relative weights.
  """
  if weights.plain_norm:
    squares = jnp.sum((predicted - target) ** 2, axis=(-2, -1))
    return {"mesh": jnp.mean(jnp.sqrt(squares + 1e-12))}  # The small term keeps the gradient finite at zero.
  velocity_error = jnp.diff(predicted, axis=-2) - jnp.diff(target, axis=-2)
  terms = {}
  for name, group in MOTION_GROUPS.items():
    weight = getattr(weights, name)
    if weights.relative:
      weight = weight / jnp.mean(jnp.square(jnp.asarray(motion_std)[group]))
    terms[name] = weight * jnp.mean((predicted[..., group] - target[..., group]) ** 2)
    terms[f"{name}_velocity"] = weight * weights.velocity * jnp.mean(velocity_error[..., group] ** 2)
  return terms


def mesh_terms(
    weights: MotionLossWeights,
    predicted: Mapping[str, Float[Array, "B T ..."]],
    target: Mapping[str, Float[Array, "B T ..."]],
    statistics: Mapping[str, Float[Array, "..."]],
) -> dict[str, Float[Array, ""]]:
  """L_mesh (Eq. 9) with what the weights add to it.

  Args:
    predicted, target: "motion" (T, 56), and "lips", their opening in metres, where the head has a mouth.
    statistics: of the training motion: "motion_std", and "lip_std" where there are lips.
  """
  terms = motion_loss(predicted["motion"], target["motion"], weights, statistics["motion_std"])
  if "lips" in predicted and weights.lips and not weights.plain_norm:
    lips = lip_loss(predicted["lips"], target["lips"], weights.closure, statistics["lip_std"])
    terms["lips"] = weights.lips * lips
  return terms


@dataclasses.dataclass(frozen=True)
class JointWeights:
  """Weights of Eq. 13 and of what is added to it.

  Attributes:
    motion: of L_mesh (Eq. 9).
    image, position, offset: lambda_1, lambda_2, lambda_3.
    position_threshold, offset_threshold: epsilon of Eq. 11 and 12.
    dssim: lambda of Eq. 10.
    lpips: of LPIPS in it (`image_loss`), where images are compared with the film's.
    tracked: of L_image of the same frames drawn with tracked motion.
    drawn: of L_image of unfilmed conversations, drawn with generated against true motion.
    scale, scale_threshold: GaussianAvatars' regulariser of scales.
    orthogonality: of the relation embeddings.
  """

  motion: MotionLossWeights
  image: float
  position: float
  offset: float
  position_threshold: float
  offset_threshold: float
  dssim: float
  lpips: float = 0.0
  tracked: float = 0.0
  drawn: float = 0.0
  scale: float = 0.0
  scale_threshold: float = 0.6
  orthogonality: float = 0.0


def joint_terms(
    weights: JointWeights,
    batch: Mapping[str, Any],
    predicted: Mapping[str, Float[Array, "B T ..."]],
    rendered: Mapping[str, Array],
) -> dict[str, Float[Array, ""]]:
  """Eq. 13: L_mesh + lambda_1 L_image + lambda_2 L_pos + lambda_3 L_offset, by terms, each already weighted; behind them
  four additions that the paper does not have, each absent where its weight is 0.

  Args:
    weights: see there.
    batch: "target" and "statistics" of L_mesh (`mesh_terms`), "image" (K, H, W, 3), the film's frames.
    predicted: "motion" (and "lips") for "target".
    rendered: "generated" (K, H, W, 3), the film's frames drawn with generated motion; "means" (P, N, 3), "log_scales"
      (P, N, 3) and "visible" (P, N) of the Gaussians of P people; "offsets" (K, F, 3) in units of their triangles, absent
      without them. For the additions: "tracked" (K, H, W, 3); "drawn" and "drawn_truth" (J, H, W, 3); "orthogonality", the
      embeddings' penalty.
  """
  terms = mesh_terms(weights.motion, predicted, batch["target"], batch["statistics"])  # Eq. 9
  images = {"": (weights.image, rendered["generated"], batch["image"], weights.lpips)}  # Eq. 10
  if weights.tracked:
    images["tracked_"] = weights.tracked, rendered["tracked"], batch["image"], weights.lpips
  if weights.drawn:
    images["drawn_"] = weights.drawn, rendered["drawn"], rendered["drawn_truth"], 0.0
  for prefix, (weight, image, truth, lpips) in images.items():
    terms |= {prefix + name: weight * x for name, x in image_loss(image, truth, weights.dssim, lpips).items()}
  terms |= gaussian_terms(
      rendered, weights.position, weights.position_threshold, weights.scale, weights.scale_threshold
  )  # Eq. 11
  if "offsets" in rendered:
    terms["offset"] = weights.offset * offset_loss(rendered["offsets"], weights.offset_threshold)  # Eq. 12
  if weights.orthogonality:
    terms["orthogonality"] = weights.orthogonality * rendered["orthogonality"]
  return terms


def lip_loss(
    predicted: Float[Array, "*b T"], target: Float[Array, "*b T"], closure: float, unit: float
) -> Float[Array, ""]:
  """Mean squared error of the lips' opening, (1 + closure) times as heavy where the true lips are closed.

  Args:
    predicted, target: openings in metres (`head.make_lip_opening`).
    closure: falls off to 1/e at 1 mm.
    unit: metres that count as 1, for example the standard deviation of true openings.
  """
  weight = 1 + closure * jnp.exp(-jnp.maximum(target, 0.0) / 1e-3)
  return jnp.mean(weight * ((predicted - target) / unit) ** 2)


def image_loss(
    rendered: Float[Array, "*b H W 3"],
    target: Float[Array, "*b H W 3"],
    dssim_weight: float = 0.2,
    lpips_weight: float = 0.0,
) -> dict[str, Float[Array, ""]]:
  """Eq. 10: (1 - lambda) L1 + lambda L_D-SSIM with lambda = 0.2, and D-SSIM = 1 - SSIM as in GaussianAvatars.

  (Its SSIM also counts windows that reach beyond the image; see `image_metrics.ssim`.)

  With `lpips_weight`, which the paper does not have, also LPIPS by AlexNet: what L1 and SSIM average to a blur where a
  detail's place is uncertain (strands of hair, lashes), it wants sharp.
  """
  terms = {
      "l1": (1 - dssim_weight) * jnp.mean(jnp.abs(rendered - target)),
      "dssim": dssim_weight * (1 - jnp.mean(image_metrics.ssim(rendered, target))),
  }
  if lpips_weight:
    terms["lpips"] = lpips_weight * jnp.mean(image_metrics.lpips(rendered, target))
  return terms


def position_loss(means: Float[Array, "N 3"], visible: Float[Array, "N"], threshold: float = 1.0) -> Float[Array, ""]:
  """Eq. 11 on canonical positions mu_c, in units of the triangle's size, over the visible Gaussians.

  `||max(mu_c, eps)||` is read as a hinge, relu(||mu_c|| - eps), as GaussianAvatars has it: no pull inside the threshold.
  """
  return _mean_where(jnp.maximum(_safe_norm(means) - threshold, 0.0), visible)


def gaussian_terms(
    seen: Mapping[str, Float[Array, "P N ..."]],
    position_weight: float,
    position_threshold: float,
    scale_weight: float,
    scale_threshold: float,
) -> dict[str, Float[Array, ""]]:
  """Eq. 11 and, where it has a weight, the scales' regulariser, over the Gaussians that are seen; a mean over people.

  Args:
    seen: "means", "log_scales" and "visible" of P people (`rendering.people_seen`).
  """
  mean = lambda loss, name, threshold: jnp.mean(
      jax.vmap(lambda x, visible: loss(x, visible, threshold))(seen[name], seen["visible"])
  )
  terms = {"position": position_weight * mean(position_loss, "means", position_threshold)}
  if scale_weight:
    terms["scale"] = scale_weight * mean(scale_loss, "log_scales", scale_threshold)
  return terms


def offset_loss(offsets: Float[Array, "*b F 3"], threshold: float = 1.0) -> Float[Array, ""]:
  """Eq. 12 on the offset corrections c, in units of their triangle's size; a hinge like Eq. 11."""
  return jnp.mean(jnp.maximum(_safe_norm(offsets) - threshold, 0.0))


def scale_loss(log_scales: Float[Array, "N 3"], visible: Float[Array, "N"], threshold: float = 0.6) -> Float[Array, ""]:
  """GaussianAvatars' regulariser of canonical scales, which the paper does not have: ||relu(s_c - 0.6)||."""
  return _mean_where(_safe_norm(jnp.maximum(jnp.exp(log_scales) - threshold, 0.0)), visible)


def _safe_norm(x: Float[Array, "*b 3"]) -> Float[Array, "*b"]:
  # sqrt has no gradient at zero: there the norm is set to zero with a zero gradient.
  squares = jnp.sum(x**2, axis=-1)
  return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def _mean_where(x: Float[Array, "N"], weight: Float[Array, "N"]) -> Float[Array, ""]:
  return jnp.sum(x * weight) / jnp.maximum(jnp.sum(weight), 1.0)
