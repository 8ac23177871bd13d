"""How well generated lips follow the truth: opening while speaking, closure on bilabials.

The opening is the height in metres between the middles of upper and lower lip, with the head turned straight. Lips that
are pressed together overlap a little: it may be negative.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from rsatalker_jax.evaluation.motion_metrics import correlation
from rsatalker_jax.head import HeadModel, head_vertices, motion_to_flame
from rsatalker_jax.head.flame import JOINT_NAMES, NUM_JOINTS
from rsatalker_jax.types import FPS, MOTION_GROUPS, SAMPLE_RATE, Motion

# A sound made with closed lips: its name, start and end in seconds.
Closure = tuple[str, float, float]

CLOSED = 0.5e-3  # Metres. The demo head's lips are 0.2 mm apart at rest, and overlap in all true P, B and M.
OPEN = 2e-3  # Metres: lips visibly apart.
CLOSURE_TOLERANCE = 1  # Frames by which a closure may come early or late.
_SPEAKING_LEVEL = 1e-3  # -30 dB below loud speech (the 95th percentile of the voice's energy).
_CHUNK = 1024  # Frames that are posed at once: one shape, one compilation.

# How `find_lips` looks for lips where the file does not name them.
_REST_GAP = 5e-3  # Metres between the lips of a mouth at rest, at most.
_MIDDLE = 3e-3  # Metres from the middle plane, at most.
_JAW_ANGLE = 0.2


def find_lips(head: HeadModel) -> Int[np.ndarray, "2"] | None:
  """Vertices in the middle of upper and lower lip: those that the head's file names, else found by what the jaw does.

  Found: of all pairs in the middle plane that are less than 5 mm apart at rest, one held by the jaw and one not, the
  pair that an opening jaw parts most. (Pairs deeper in the mouth lie nearer to the hinge and part less.)

  Returns:
    [upper, lower], or None if the head has no such pair: a mesh without a mouth.
  """
  if head.lip_vertices is not None:
    return np.asarray(head.lip_vertices)
  rest, opened = (np.asarray(_pose(head, jaw)) for jaw in (0.0, _JAW_ANGLE))
  jaw_weight = np.asarray(head.weights)[:, JOINT_NAMES.index("jaw")]
  middle = np.abs(rest[:, 0]) < _MIDDLE
  upper, lower = np.flatnonzero(middle & (jaw_weight < 0.3)), np.flatnonzero(middle & (jaw_weight > 0.7))
  if not len(upper) or not len(lower):
    return None
  gap = np.linalg.norm(rest[upper, None] - rest[None, lower], axis=-1)
  parting = np.where(gap < _REST_GAP, opened[upper, None, 1] - opened[None, lower, 1], -np.inf)
  best = np.unravel_index(np.argmax(parting), parting.shape)
  return np.array([upper[best[0]], lower[best[1]]]) if parting[best] > _REST_GAP else None


def _pose(head: HeadModel, jaw: float) -> Float[jax.Array, "V 3"]:
  zero = jnp.zeros(3)
  return head_vertices(
      head, shape=zero[:0], expression=zero[:0], rotation=zero, neck=zero, jaw=zero.at[0].set(jaw),
      eyes=jnp.zeros(6), translation=zero,
  )


class LipOpening:
  """Opening of a head's lips from motion: `opening(motion)` is (T,) in metres.

  Args:
    head: the head model, in its mean shape.
    lips: vertices of upper and lower lip, from `find_lips`.
  """

  def __init__(self, head: HeadModel, lips: Int[np.ndarray, "2"]):
    small = _select_vertices(head, np.asarray(lips))

    @jax.jit
    def opening(motion):
      straight = motion.at[:, MOTION_GROUPS["pose"]].set(0.0)
      pose = lambda frame: head_vertices(small, shape=jnp.zeros(0), **motion_to_flame(frame))
      vertices = jax.vmap(pose)(straight)
      return vertices[:, 0, 1] - vertices[:, 1, 1]

    self._opening = opening

  def __call__(self, motion: Motion) -> Float[np.ndarray, "T"]:
    padded = np.pad(np.asarray(motion, np.float32), ((0, -len(motion) % _CHUNK), (0, 0)))
    chunks = [np.asarray(self._opening(chunk)) for chunk in padded.reshape(-1, _CHUNK, padded.shape[1])]
    return np.concatenate(chunks)[: len(motion)]


def _select_vertices(head: HeadModel, vertices: Int[np.ndarray, "n"]) -> HeadModel:
  """The same head with these vertices alone, which pose as before, in a thousandth of the time.

  Joints are linear in the vertices: each becomes a vertex of its own, behind those selected.
  """
  joints = head.joint_regressor
  gather = lambda x: jnp.concatenate([x[vertices], jnp.tensordot(joints, x, 1)])
  return HeadModel(
      v_template=gather(head.v_template),
      shape_directions=gather(head.shape_directions),
      expression_directions=gather(head.expression_directions),
      pose_directions=gather(head.pose_directions),
      joint_regressor=jnp.concatenate([jnp.zeros((NUM_JOINTS, len(vertices))), jnp.eye(NUM_JOINTS)], axis=1),
      weights=gather(head.weights),
      faces=head.faces[:0],
      parents=head.parents,
  )


def speaking_frames(wav: Float[np.ndarray, "S"], num_frames: int) -> Bool[np.ndarray, "T"]:
  """Frames in which a voice sounds: within 30 dB of its loud frames, in a window of three frames.

  Three frames bridge the silence inside a P or T. On the demo's voices it agrees with their phones in 95 % of frames.
  """
  hop = SAMPLE_RATE // FPS
  samples = np.zeros(num_frames * hop)
  samples[: min(len(wav), len(samples))] = wav[: len(samples)]
  energy = np.convolve(np.mean(samples.reshape(num_frames, hop) ** 2, axis=1), np.full(3, 1 / 3), "same")
  return energy > max(_SPEAKING_LEVEL * float(np.quantile(energy, 0.95)), 1e-10)


def score_lips(
    generated: Sequence[Float[np.ndarray, "T"]],
    true: Sequence[Float[np.ndarray, "T"]],
    speaking: Sequence[Bool[np.ndarray, "T"]],
    closures: Sequence[Sequence[Closure]] | None = None,
) -> dict[str, float]:
  """Compares openings, a curve per clip.

  Args:
    generated, true: openings in metres.
    speaking: when the person speaks; clips in which they never do are left out.
    closures: the bilabials of each clip, where they are known.

  Returns:
    "lips/correlation": Pearson's, over each clip's speaking frames, mean over clips;
    "lips/pooled_correlation": over all clips' speaking frames together;
    "lips/false_closures": share of speaking frames, truly more than 2 mm open, in which the generated lips are closed;
    and where closures are known "lips/bilabials" and "lips/bilabials_P" …: share of those during which, or one frame
    before or after, the generated lips come closer than 0.5 mm.
    What there is nothing to tell of (nobody speaks) is absent.
  """
  scores = {}
  spoken = [(g[s], t[s]) for g, t, s in zip(generated, true, speaking, strict=True) if np.count_nonzero(s) > 1]
  if spoken:
    g, t = (np.concatenate(parts) for parts in zip(*spoken))
    scores["lips/correlation"] = float(np.mean([correlation(*clip) for clip in spoken]))
    scores["lips/pooled_correlation"] = correlation(g, t)
    if np.any(t > OPEN):
      scores["lips/false_closures"] = float(np.mean(g[t > OPEN] < CLOSED))
  closed: dict[str, list[bool]] = {}
  for opening, clip in zip(generated, closures or (), strict=closures is not None):
    for name, start, end in clip:
      frames = closure_frames(start, end, len(opening))
      if frames.stop > frames.start:  # Not past the clip's end.
        closed.setdefault(name, []).append(bool(opening[frames].min() < CLOSED))
  if closed:
    scores["lips/bilabials"] = float(np.mean(sum(closed.values(), [])))
    scores |= {f"lips/bilabials_{name}": float(np.mean(closed[name])) for name in sorted(closed)}
  return scores


def closure_frames(start: float, end: float, num_frames: int) -> slice:
  """Frames (of `num_frames`) that a sound from `start` to `end` seconds touches, and those within the tolerance."""
  first = max(math.floor(start * FPS) - CLOSURE_TOLERANCE, 0)
  return slice(first, min(math.ceil(end * FPS) + CLOSURE_TOLERANCE, num_frames))
