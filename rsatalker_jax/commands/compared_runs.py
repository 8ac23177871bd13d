"""Scores of the runs that stand beside a run in its tables. There may be dozens, so what was scored once is kept in each."""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.evaluation import tables
from rsatalker_jax.evaluation.scoring import MotionScores
from rsatalker_jax.files import whole_file
from rsatalker_jax.runs import TrainedRun, workdir as workdirs
from rsatalker_jax.types import MOTION_GROUPS, STAGES, Motion

_KEPT = "compared.json"

Score = Callable[[Callable[[MotionClip], Motion]], MotionScores]


def find_compared(workdir: str, config: ConfigDict) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """Folders of the runs that stand beside a run with this config: those that have kept a step, and those that have not yet."""
  kept, unborn = [], []
  for folder in sorted((pathlib.Path(workdir) / config.evaluation.compare).glob("*/seed_*")):
    (kept if workdirs.has_checkpoint(folder) else unborn).append(folder)
  return kept, unborn


def score_compared(folder: pathlib.Path, run: TrainedRun, score: Score, samples: int, scored: Mapping[str, Any]) -> dict[str, MotionScores]:
  """Scores of a run by row of a table.

  Args:
    folder: the run's.
    run: what it holds.
    score: of a generator.
    samples: how many motions of each clip are scored of a generator that samples. It has three rows: the means of what the samples
      reach, what the best of them reach, chosen clip by clip by the truth, which nobody has who generates, and what their average
      motion reaches.
    scored: what the scores depend on besides the run and the code; where all is as it was, those of before are taken.

  Returns:
    Scores by the row's title.
  """
  title, path = run.config.evaluation.title + _describe_unfinished(run), folder / "evaluation" / _KEPT
  key = {"run": _describe(folder), "code": _code(), "title": title, "samples": samples, "metrics": tables.METRICS_VERSION, **scored}
  if (kept := _read(path)) is not None and kept["key"] == json.loads(json.dumps(key)):
    return {row: MotionScores(**scores) for row, scores in kept["scores"].items()}
  if run.talker.generator.samples:
    std = np.asarray(run.buffers["generator"]["motion_std"])
    mean, best, averaged = score_samples(score, run.generate, samples, std)
    rows = {
        f"{title}, mean of {samples} samples": mean,
        f"{title}, best of {samples} by the truth": best,
        f"{title}, average motion of {samples} samples": averaged,
    }
  else:
    rows = {title: score(run.generate)}
  with whole_file(path) as file:
    file.write(json.dumps({"key": key, "scores": {row: dataclasses.asdict(scores) for row, scores in rows.items()}}).encode())
  return rows


def _describe_unfinished(run: TrainedRun) -> str:
  """What a row's title says of stages that have not reached their last step."""
  reached = dict(stage.split(":") for stage in run.stages.split())
  short = [f"{name} at step {step} of {run.config[name].steps}" for name, step in reached.items() if int(step) < run.config[name].steps]
  return f" ({', '.join(short)})" if short else ""


def score_samples(
    score: Score, generate: Callable[..., Motion], count: int, std: np.ndarray
) -> tuple[MotionScores, MotionScores, MotionScores]:
  """Means of the scores of so many samples; the scores of the sample of each clip that is nearest to the truth, by squared
  error, in units of the training motion's variance, mean over the three groups; and the scores of the samples' average motion.

  What a sample has of its own by chance counts in its error, so that one of the very distribution of all that may come has twice
  the squared error of that distribution's mean. Of the average of n it is 1 + 1/n times as much.

  Args:
    generate: (clip, sample=number) -> B's motion, always the same.
    std: of the training motion.
  """
  drawn: dict[tuple, list[Motion]] = collections.defaultdict(list)  # By clip as it is told.
  name = lambda clip: (clip.name, *map(int, clip.relation))

  def remember(number: int) -> Callable[[MotionClip], Motion]:
    def generate_one(clip: MotionClip) -> Motion:
      samples = drawn[name(clip)]
      if len(samples) == number:  # A score may ask twice.
        samples.append(generate(clip, sample=number))
      return samples[number]

    return generate_one

  def error(motion: Motion, clip: MotionClip) -> float:
    squares = (motion - clip.motion_b) ** 2
    return float(np.mean([np.mean(squares[:, group]) / np.mean(std[group] ** 2) for group in MOTION_GROUPS.values()]))

  each = [score(remember(number)) for number in range(count)]
  best = score(lambda clip: min(drawn[name(clip)], key=lambda motion: error(motion, clip)))
  return average(each), best, score(lambda clip: np.mean(drawn[name(clip)], axis=0, dtype=np.float32))


def average(samples: Sequence[MotionScores]) -> MotionScores:
  """Means of the scores of several samples; a violation of one is a violation of all."""
  mean = lambda rows: {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if all(name in row for row in rows)}
  return MotionScores(
      means=mean([scores.means for scores in samples]),
      each={clip: mean([scores.each[clip] for scores in samples]) for clip in samples[0].each},
      violations=[line for scores in samples for line in scores.violations],
      collapsed=list(dict.fromkeys(line for scores in samples for line in scores.collapsed)),
  )


def _describe(folder: pathlib.Path) -> dict[str, str]:
  """By stage, the checksums of the checkpoint that is scored."""
  newest = {stage: workdirs.find_checkpoints(workdirs.checkpoint_folder(folder, stage)) for stage in STAGES}
  files = {stage: paths[0] / "sha256.json" for stage, paths in newest.items() if paths}
  return {stage: hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else str(file) for stage, file in files.items()}


@functools.cache
def _code() -> str:
  return workdirs.hash_code(pathlib.Path(__file__).parents[1])


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """What was kept; None where nothing was, or something else lies there."""
  try:
    kept = json.loads(path.read_text())
    return kept if {"key", "scores"} <= kept.keys() else None
  except (OSError, ValueError, AttributeError):
    return None
