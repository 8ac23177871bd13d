"""How far the faces that motions make lie apart, in millimetres: lips at every moment, and how much the upper face moves.

Vertices are the run's own head's, of nobody in particular (mean shape) and with the head straight, so that neither identity
nor the head's rotation enters. They are posed on the device, a chunk of frames at a time, those alone that are measured.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rsatalker_jax.evaluation.dynamics_metrics import LEAST_FRAMES
from rsatalker_jax.head import HeadModel, head_vertices, pose_for, region_mask, select_vertices
from rsatalker_jax.types import MOTION_GROUPS, Motion

_CHUNK = 256  # Frames that are posed at once: one shape, one compilation, tens of megabytes of temporaries.
_MM = 1e3

# FLAME's masks name the parts of the upper face; the demo head's skin is one region, and its part above the lower rims of
# the eyeballs is taken.
_LIPS = "lips"
_UPPER_FLAME = ("forehead", "eye_region")
_UPPER_DEMO, _EYES_DEMO = "skin", ("eye_left", "eye_right")


@dataclasses.dataclass(frozen=True)
class FaceParts:
  """Vertices of a head that are measured, and the small head that has them alone: the lips' first.

  Attributes:
    head: see `select_vertices`.
    lips, upper: how many vertices of the lips, and of the upper face behind them.
  """

  head: HeadModel
  lips: int
  upper: int


def find_face_parts(head: HeadModel) -> FaceParts | None:
  """The lips and the upper face of a head whose regions are known; None of others (FLAME without its masks)."""
  if _LIPS not in head.region_names:
    return None
  corners = lambda names: np.unique(np.asarray(head.faces)[region_mask(head, names)])
  if set(_UPPER_FLAME) <= set(head.region_names):
    upper = corners(_UPPER_FLAME)
  elif {_UPPER_DEMO, *_EYES_DEMO} <= set(head.region_names):
    skin, height = corners(_UPPER_DEMO), np.asarray(head.v_template)[:, 1]
    upper = skin[height[skin] > height[corners(_EYES_DEMO)].min()]
  else:
    return None
  lips = corners(_LIPS)
  return FaceParts(select_vertices(head, np.concatenate([lips, upper])), len(lips), len(upper))


class MeshMetrics:
  """Lip-vertex error and upper-face dynamics deviation of clips.

      LVE   root of the mean over frames of (max over lip vertices ‖v(pred) − v(target)‖)², mm: UniLS's definition. Others'
            LVE is the mean of the maxima, or of their squares, and compares with neither.
      FDD   mean over upper-face vertices of |σ_t(‖v(pred) − v_rest‖) − σ_t(‖v(target) − v_rest‖)|, mm: after CodeTalker's,
            which lets vertices that move too much make up for others that move too little

  Args:
    parts: of `find_face_parts`.
  """

  def __init__(self, parts: FaceParts):
    def measure(pred: Float[Array, "t 56"], target: Float[Array, "t 56"]):
      still = jnp.zeros((1, 56))
      p, t, still = (_pose(parts.head, motion)[:, : parts.lips + parts.upper] for motion in (pred, target, still))
      apart = jnp.linalg.norm(p[:, : parts.lips] - t[:, : parts.lips], axis=-1).max(axis=1)
      moved = [jnp.linalg.norm((x - still)[:, parts.lips :], axis=-1) for x in (p, t)]
      return _MM * apart, _MM * jnp.stack(moved)

    self._measure = jax.jit(measure)

  def score(self, pred: Motion, target: Motion, kinds: Mapping[str, Bool[np.ndarray, "T"]]) -> dict[str, float]:
    """"lve/speaking", "fdd/listening" … of one clip.

    Args:
      pred, target: generated and true motion.
      kinds: frames by name. Those with fewer than `dynamics_metrics.LEAST_FRAMES` are left out.
    """
    kinds = {kind: frames for kind, frames in kinds.items() if np.count_nonzero(frames) >= LEAST_FRAMES}
    squares = dict.fromkeys(kinds, 0.0)
    # Of displacements, per vertex of both sides: their sums, and those of squares, in float64.
    moments = dict.fromkeys(kinds, np.zeros(()))
    for start in range(0, len(pred), _CHUNK):
      chunks = [np.asarray(motion[start : start + _CHUNK], np.float32) for motion in (pred, target)]
      length = len(chunks[0])
      padded = [np.pad(chunk, ((0, _CHUNK - length), (0, 0))) for chunk in chunks]
      apart, moved = (np.asarray(x, np.float64) for x in self._measure(*padded))
      for kind, frames in kinds.items():
        inside = frames[start : start + _CHUNK]
        squares[kind] += float(np.sum(apart[:length][inside] ** 2))
        own = moved[:, :length][:, inside]
        moments[kind] = moments[kind] + np.stack([own.sum(axis=1), (own**2).sum(axis=1)])
    scores = {}
    for kind, frames in kinds.items():
      count = np.count_nonzero(frames)
      mean, square = moments[kind] / count
      spread = np.sqrt(np.maximum(square - mean**2, 0.0))
      scores[f"lve/{kind}"] = float(np.sqrt(squares[kind] / count))
      scores[f"fdd/{kind}"] = float(np.mean(np.abs(spread[0] - spread[1])))
    return scores


def _pose(head: HeadModel, motion: Float[Array, "t 56"]) -> Float[Array, "t V 3"]:
  """Vertices of straight heads."""
  straight = jnp.asarray(motion).at[:, MOTION_GROUPS["pose"]].set(0.0)
  return jax.vmap(lambda one: head_vertices(head, shape=jnp.zeros(0), **pose_for(one)))(straight)
