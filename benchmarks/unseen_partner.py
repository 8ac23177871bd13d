"""What a live listener loses that does not see its partner, and what may stand in for the partner's motion.

    python benchmarks/unseen_partner.py --workdir RUN [--split val] [--clips N] [--json FILE]

The run's causal generator answers unseen conversations frame by frame, as `python -m rsatalker_jax live` does, given of A

  true       A's own motion, which is what a camera would show at best
  neutral    the mean of the training motion
  invented   what a second stream of the same generator makes when A and B change places: it hears B as its partner and A as its own
             voice, and sees B's last frame. A's voice is not known ahead: with `own_lookahead` A's motion comes that many frames late
  another    the true motion of A in another conversation, which has nothing to do with what is said

Prints errors against B's true motion, of all frames and of those in which B listens; how much B moves while it listens, and how much
of the true motion there is found in it; nods and smiles at the ends of A's phrases. docs/evaluation.md defines them.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from rsatalker_jax.commands.evaluate import make_scorer
from rsatalker_jax.data.conversations import load_conversations
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.evaluation import result_tables
from rsatalker_jax.evaluation.cases import ConversationCases
from rsatalker_jax.evaluation.scoring import MotionScorer
from rsatalker_jax.evaluation.tables import Column, Table
from rsatalker_jax.files import whole_file
from rsatalker_jax.motion import MotionStream
from rsatalker_jax.runs import TrainedRun, load_run
from rsatalker_jax.types import MOTION_DIM, MOTION_GROUPS, Motion

See = Callable[[MotionClip], Motion | None]


class Listener:
  """Answers clips frame by frame, from features."""

  def __init__(self, run: TrainedRun):
    variables = {**run.params["generator"], "statistics": run.buffers["generator"]}
    social = run.social_feature(np.array([1, 1]))
    self._run = run
    self.own, self.mirror = (MotionStream(run.talker.generator, variables, social, lengths=(1,)) for _ in range(2))
    self.neutral = np.asarray(run.buffers["generator"]["motion_mean"], np.float32)

  def answer(self, clip: MotionClip, motion_a: Motion | None) -> Motion:
    """B's motion; motion_a None: invented."""
    speech_a, speech_b = np.asarray(clip.speech_a), np.asarray(clip.speech_b)
    frames, ahead = len(speech_a), self.own.frames_ahead
    for stream in (self.own, self.mirror):
      stream.reset()
      stream.social = self._run.social_feature(clip.relation)
    self.own.prime(speech_b[:ahead], ended=frames <= ahead)
    self.mirror.prime(speech_a[:ahead], ended=frames <= ahead)
    made = [self.neutral]  # Before the first frame.
    for t in range(frames):
      if motion_a is not None:
        seen = motion_a[t]
      elif t < ahead:
        seen = self.neutral
      else:  # The mirror is `ahead` frames late, and has heard of A up to now.
        late = t - ahead
        seen = self.mirror.push(speech_b[late : late + 1], made[min(late + 1, t)][None], speech_a[t : t + 1])[0]
      heard = speech_b[t + ahead : t + ahead + 1]
      made.append(self.own.push(speech_a[t : t + 1], seen[None], heard, ended=t + ahead + 1 >= frames)[0])
    return np.stack(made[1:])


class ListeningSize:
  """How B moves in the frames in which it listens, against the truth there and its own rest."""

  def __init__(self):
    self._sums = {group: np.zeros(3) for group in MOTION_GROUPS}

  def add(self, motion: Motion, truth: Motion, listening: np.ndarray) -> None:
    if listening.sum() < 2:
      return
    for group, columns in MOTION_GROUPS.items():
      own, true = (np.asarray(x[listening][:, columns], np.float64) for x in (motion, truth))
      own, true = own - own.mean(axis=0), true - true.mean(axis=0)
      self._sums[group] += (own**2).sum(), (true**2).sum(), (own * true).sum()

  def scores(self) -> dict[str, float]:
    """"size/…": standard deviation in that of the truth; "gain/…": slope of the motion on the truth; "r/…": their correlation."""
    scores = {}
    for group, (own, true, both) in self._sums.items():
      scores |= {f"size/{group}": np.sqrt(own / true), f"gain/{group}": both / true, f"r/{group}": both / np.sqrt(own * true + 1e-30)}
    return {name: float(value) for name, value in scores.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, help="a run with a causal generator")
  parser.add_argument("--split", default="val", choices=("val", "test", "ood"))
  parser.add_argument("--clips", type=int, default=0, help="so many alone; 0: all")
  parser.add_argument("--json", help="file to write the scores to")
  options = parser.parse_args()
  run = load_run(options.workdir)
  source = load_conversations(run.config.data, options.split)
  cases = ConversationCases(source, run.encode)
  count = min(options.clips or len(cases), len(cases))
  listener = Listener(run)
  others = [cases[i].clip.motion_a for i in range(count)]
  names = {cases[i].clip.name: i for i in range(count)}

  def another(clip: MotionClip) -> Motion:
    other = others[(names[clip.name] + count // 2) % count]
    return np.resize(other, (len(clip.motion_a), MOTION_DIM))

  ways: dict[str, See] = {
      "true": lambda clip: clip.motion_a,
      "neutral": lambda clip: np.tile(listener.neutral, (len(clip.motion_a), 1)),
      "invented": lambda clip: None,
      "another": another,
  }
  scorer, _ = make_scorer(run, source, options.split)
  scorer = MotionScorer(list(map(cases.__getitem__, range(count))), scorer.clusters, lips=scorer.lips, expression_names=scorer.expression_names)
  rows, sizes = {}, {}
  for name, see in ways.items():
    made = {case.clip.name: listener.answer(case.clip, see(case.clip)) for case in scorer.cases}
    size = ListeningSize()
    for case in scorer.cases:
      size.add(made[case.clip.name], case.clip.motion_b, case.kinds["listening"])
    rows[name], sizes[name] = [scorer.score(lambda clip: made[clip.name]).means], size.scores()
    print(f"{name}: done", file=sys.stderr)
  print(f"{options.workdir} ({run.stages}), {count} clips of {options.split}, own_lookahead {listener.own.frames_ahead}\n")
  for table in (result_tables.motion_table(rows), result_tables.kind_error_table(rows), size_table(sizes)):
    print(table.markdown())
  print(result_tables.backchannel_table({"truth": [scorer.score_truth().means], **rows}).markdown())
  print(result_tables.liveliness_table(rows).markdown())
  if options.json:
    with whole_file(options.json) as file:
      file.write(json.dumps({name: rows[name][0] | sizes[name] for name in rows}, indent=2).encode())


def size_table(sizes: dict[str, dict[str, float]]) -> Table:
  titles = {"size": "moves, × truth", "gain": "of the true motion", "r": "r"}
  columns = [Column(group, title) for title in titles.values() for group in MOTION_GROUPS]
  rows = {name: [scores[f"{kind}/{group}"] for kind in titles for group in MOTION_GROUPS] for name, scores in sizes.items()}
  return Table(columns, rows)


if __name__ == "__main__":
  main()
