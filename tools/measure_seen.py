"""Measures what is left of a run's answers where the partner is seen by a webcam's tracker.

    python tools/measure_seen.py --workdir=runs/causal --work=W [--dialogues=5]

W is tools/fit_webcam.py's, after its `track`. What the camera makes of a motion is learnt there: a linear response with noise, of
motions found by maps that have not seen the face. With it, and with rsatalker_jax.data.webcam beside it, A's motion and A's nudged
motions (tools/measure_answers.py) are degraded; the answers' gains are by what A truly does. Prints Markdown.
"""

import dataclasses
import pathlib
import sys

import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import fit_webcam
from rsatalker_jax.commands import command_line
from rsatalker_jax.data import webcam
from rsatalker_jax.data.conversations import load_conversations
from rsatalker_jax.data.demo.rules import CHANNELS, FACE_CHANNELS
from rsatalker_jax.data.pipeline import load_clips
from rsatalker_jax.evaluation import demo_world
from rsatalker_jax.evaluation.tables import markdown_table
from rsatalker_jax.runs import load_run
from rsatalker_jax.social.relation import RELATIONS, parse_relation
from rsatalker_jax.types import Motion

_WORKDIR = flags.DEFINE_string("workdir", None, "A run on the embedded conversations.", required=True)
_WORK = flags.DEFINE_string("work", None, "Of tools/fit_webcam.py.", required=True)
_RIDGE = flags.DEFINE_float("ridge", 0.003, "Of the maps.")
_DIALOGUES = flags.DEFINE_integer("dialogues", 0, "So many of the unseen ones at most; 0: all.", lower_bound=0)


@dataclasses.dataclass(frozen=True)
class Response:
  """What the camera makes of a motion.

  Attributes:
    weights, bias: found = weights @ true + bias.
    noise: standard deviation of what else is found.
  """

  weights: np.ndarray
  bias: np.ndarray
  noise: np.ndarray

  @classmethod
  def learn(cls, settings: list[fit_webcam.Setting], ridge: float) -> "Response":
    rendered = [s for s in settings if "film" not in s.kind]
    found, true = [], []
    for group in sorted({s.group for s in settings}):
      weights, bias = fit_webcam.solve([s for s in rendered if s.group != group], ridge)
      for setting in settings:
        if setting.group == group:
          found.append(fit_webcam.apply(weights, bias, setting.features))
          true.append(setting.motion)
    found, true = np.concatenate(found), np.concatenate(true)
    x = true - true.mean(0)
    weights = np.linalg.solve(x.T @ x / len(x) + 1e-4 * np.eye(56), x.T @ (found - found.mean(0)) / len(x)).T
    bias = found.mean(0) - weights @ true.mean(0)
    return cls(weights, bias, (found - true @ weights.T - bias).std(0))

  def see(self, motion: Motion, rng: np.random.Generator) -> Motion:
    noise = self.noise * webcam.autoregression(rng, len(motion), 56)
    return np.clip(motion @ self.weights.T + self.bias + noise, fit_webcam.LEAST, fit_webcam.MOST).astype(np.float32)


def main() -> None:
  settings, _ = fit_webcam.load_settings(pathlib.Path(_WORK.value))
  response = Response.learn(settings, _RIDGE.value)
  run = load_run(_WORKDIR.value)
  clips = load_clips(load_conversations(run.config.data, "test"), run.encode)
  clips = [clip for clip in clips if "_sub_video_0_" in clip.name][: _DIALOGUES.value or None]
  eyes = {
      "true": lambda motion, rng: motion,
      "camera": response.see,
      "data.webcam": lambda motion, rng: webcam.track(motion, np.arange(len(motion)), "arkit", 1.0, rng),
      "unseen": lambda motion, rng: np.broadcast_to(run.buffers["generator"]["motion_mean"], motion.shape).astype(np.float32),
  }
  gains = {name: {relation: [] for relation in RELATIONS} for name in eyes}
  for number, clip in enumerate(clips):
    nudged = demo_world.nudge_partner(clip.name, clip.motion_a)
    for name, see in eyes.items():
      for relation in RELATIONS:
        told = dataclasses.replace(clip, relation=parse_relation(relation))
        rng = np.random.default_rng((number, 7))
        respond = lambda motion: run.generate(dataclasses.replace(told, motion_a=see(motion, rng)))
        gains[name][relation].append(demo_world.measure_answers(respond, clip.name, clip.motion_a, nudged))
  means = {name: {relation: np.nanmean(values, axis=0) for relation, values in of.items()} for name, of in gains.items()}
  stack = lambda name: np.stack([means[name][relation] for relation in RELATIONS])
  face = np.arange(len(CHANNELS)) < FACE_CHANNELS
  same = face[:, None] == face[None, :]
  print(f"Run {_WORKDIR.value}, {len(clips)} clips of unseen dialogues in all four relations; gains: true / {' / '.join(list(eyes)[1:])}.\n")
  print(demo_world.answers_table(means))
  size = lambda name, where: float((stack(name) * stack("true"))[where].sum() / (stack("true") ** 2)[where].sum())
  everywhere = np.broadcast_to(same, stack("true").shape)
  rows = {name: [f"{size(name, everywhere):.2f}"] for name in list(eyes)[1:]}
  for name in rows:
    for cause in range(len(CHANNELS)):
      where = everywhere & (np.arange(len(CHANNELS)) == cause)[None, :, None]
      rows[name].append(f"{size(name, where):.2f}")
    agreement = demo_world.compare_answers(means[name], means["true"])
    rows[name] += [f"{agreement['slope']:.2f}", f"{100 * agreement['direction']:.0f} %"]
  print(markdown_table(["all", *CHANNELS, "differences between relations", "of which with the right sign"], rows))


if __name__ == "__main__":
  command_line.run_program(main)
