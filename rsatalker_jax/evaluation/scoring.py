"""Scores of a trained run: generated motion against the truth, rendered frames against the video.

Both go through their set once, clip by clip and chunk by chunk: a set of hours takes no more memory than its longest clip.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import (
    backchannels,
    dynamics_metrics,
    image_metrics,
    lip_metrics,
    mesh_metrics,
    motion_metrics,
    relation_probe,
    relation_test,
)
from rsatalker_jax.evaluation.cases import Case
from rsatalker_jax.types import Motion

Images = Float[np.ndarray, "_ _ _ 3"]  # Frames, height, width; chunks differ in length.

_IMAGE_METRICS = {
    "l1": image_metrics.l1,
    "psnr": image_metrics.psnr,
    "psnr_per_channel": image_metrics.psnr_per_channel,
    "ssim": image_metrics.ssim,
}


@dataclasses.dataclass(frozen=True)
class MotionScores:
  """What a generator reaches.

  Attributes:
    means: over clips, of every metric, raw (`motion_metrics.TABLE_SCALES` has the tables' factors); and what is of all clips
      together: "lips/…", "relation/…", "variation/…", "jerk/…", "blinks/…", "backchannel/…".
    each: what is of one clip, by clip.
    violations: of inequalities that hold for every motion, a line each: something is broken.
    collapsed: the groups that hardly move, a line each.
    told: the relation test, where it was made (`relation_test.RelationTest`).
  """

  means: dict[str, float]
  each: dict[str, dict[str, float]]
  violations: list[str]
  collapsed: list[str]
  told: dict[str, dict] | None = None


@dataclasses.dataclass(frozen=True)
class MotionScorer:
  """Scores motion generators on the same clips: the motion metrics, and what the fields below allow.

  Attributes:
    cases: the clips, with ground truth; one at a time is asked for.
    clusters: k-means centres of their true motion, for SID (`motion_metrics` tells which SID is which).
    probe: names the relation from both people's motion; None leaves that out.
    lips: opening of the lips from motion; None leaves them out.
    mesh: distances of vertices; None leaves them out.
    expression_names: of the head's coefficients, where its file names them: blinks and smiles are known by them.
    seed: of the wrong relations that are told.
  """

  cases: Sequence[Case]
  clusters: Mapping[str, Float[np.ndarray, "K D"]]
  probe: relation_probe.RelationProbe | None = None
  lips: Callable[[Motion], Float[np.ndarray, "T"]] | None = None
  mesh: mesh_metrics.MeshMetrics | None = None
  expression_names: Sequence[str] = ()
  seed: int = 0
  # k-means of each clip's truth, the same for all generators: kilobytes a clip.
  _own_clusters: dict[str, dict] = dataclasses.field(default_factory=dict, init=False, repr=False)

  def score(self, generate: Callable[[MotionClip], Motion], *, test_relation: bool = False) -> MotionScores:
    """Scores a generator.

    Args:
      generate: B's motion of a clip.
      test_relation: whether each clip is also generated under no relation, for the relation test.

    Raises:
      InputError: it generates numbers that are not finite.
    """
    return self._score(generate, tell_others=self.probe is not None, test_relation=test_relation and self.probe is not None)

  def score_truth(self) -> MotionScores:
    """The same of the true motion itself: what a perfect generator would score."""
    return self._score(lambda clip: clip.motion_b, tell_others=False, test_relation=False)

  def _score(
      self, generate: Callable[[MotionClip], Motion], *, tell_others: bool, test_relation: bool
  ) -> MotionScores:
    rng = np.random.default_rng(self.seed)
    each, violations = {}, []
    ratios = dynamics_metrics.TimeRatios()
    lips = lip_metrics.LipScores()
    gestures = backchannels.find_gestures(self.expression_names)
    timings = [backchannels.BackchannelTiming(gesture) for gesture in gestures]
    lids = dynamics_metrics.find_lids(self.expression_names)
    blinks = dynamics_metrics.BlinkStatistics(lids or ())
    relations = relation_probe.RelationScores(self.probe)
    told_test = relation_test.RelationTest(self.probe) if test_relation else None

    for case in map(self.cases.__getitem__, range(len(self.cases))):
      clip, motion = case.clip, _finite(generate(case.clip), case.clip.name)
      each[clip.name] = self._score_clip(case, motion)
      broken = motion_metrics.find_violations(each[clip.name], motion, clip.motion_b, clip.motion_a)
      violations += [f"{clip.name}: {line}" for line in broken]
      ratios.add(motion, clip.motion_b)
      if self.lips is not None:
        lips.add(self.lips(motion), self.lips(clip.motion_b), case.speaking, case.closures)
      ends = backchannels.find_phrase_ends(case.partner_speaking, case.speaking)
      for timing in timings:
        timing.add(motion, clip.motion_b, ends)
      if lids:
        blinks.add(motion)
      if self.probe is not None:
        relations.add(clip, motion)
      if tell_others and relation_probe.is_seen(self.probe, clip):
        other = relation_probe.choose_other(self.probe, clip, rng)
        told = _finite(generate(relation_test.tell(clip, other)), clip.name)
        relations.add_told(clip, other, told)
        if told_test is not None:
          none = _finite(generate(relation_test.tell(clip, None)), clip.name)
          told_test.add(clip, {"true": motion, "none": none, "random": told})

    over_time = ratios.scores()
    means = motion_metrics.mean_metrics(list(each.values())) | over_time
    means |= lips.scores() | blinks.scores()
    for timing in timings:
      means |= timing.scores()
    if self.probe is not None:
      means |= relations.scores()
    collapsed = dynamics_metrics.find_collapse(over_time)
    return MotionScores(means, each, violations, collapsed, None if told_test is None else told_test.result())

  def _score_clip(self, case: Case, motion: Motion) -> dict[str, float]:
    """What is of one clip alone."""
    clip = case.clip
    if clip.name not in self._own_clusters:
      self._own_clusters[clip.name] = motion_metrics.fit_clip_clusters(clip.motion_b)
    scores = motion_metrics.evaluate_motion(motion, clip.motion_b, clip.motion_a)
    scores |= motion_metrics.motion_diversity(motion, self.clusters)
    scores |= motion_metrics.clip_diversity(motion, clip.motion_b, self._own_clusters[clip.name])
    scores |= motion_metrics.errors_by_kind(motion, clip.motion_b, case.kinds)
    scores |= dynamics_metrics.dynamics_deviation(motion, clip.motion_b, case.kinds)
    scores |= dynamics_metrics.head_statistics(motion)
    if self.mesh is not None:
      scores |= self.mesh.score(motion, clip.motion_b, case.kinds | {"all": np.ones(len(motion), bool)})
    return scores


def _finite(motion: Motion, name: str) -> Motion:
  if not np.isfinite(motion).all():
    found = f"{np.count_nonzero(~np.isfinite(motion))} numbers of {motion.size} that are not finite"
    raise InputError(name, "generated motion", found, "numbers: did the training diverge?")
  return motion


# --- Frames


def score_each_frame(
    pairs: Iterable[tuple[Images, Images]], lpips_nets: Sequence[str] = ("alex",)
) -> dict[str, Float[np.ndarray, "T"]]:
  """Every image metric of every frame, from chunks of (rendered, true) frames; LPIPS by these networks.

  Chunks of one length are compiled once; of each, numbers alone are kept.
  """
  score = _compiled_image_metrics(tuple(lpips_nets))
  chunks = [jax.device_get(score(rendered, truth)) for rendered, truth in pairs]
  return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def score_frames(pairs: Iterable[tuple[Images, Images]], lpips_nets: Sequence[str] = ("alex",)) -> dict[str, float]:
  """Means over frames of `score_each_frame`."""
  return {name: float(np.mean(values)) for name, values in score_each_frame(pairs, lpips_nets).items()}


@functools.cache
def _compiled_image_metrics(lpips_nets: tuple[str, ...]):
  """All image metrics at once; kept, so that scoring again compiles nothing."""
  metrics = _IMAGE_METRICS | {
      f"lpips_{net}": functools.partial(image_metrics.lpips, net=net) for net in lpips_nets
  }
  return jax.jit(lambda a, b: {name: metric(a, b) for name, metric in metrics.items()})
