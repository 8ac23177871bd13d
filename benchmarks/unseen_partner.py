"""What a live listener loses that does not see its partner, and what may stand in for the partner's motion.

    python benchmarks/unseen_partner.py --workdir RUN [--split val] [--clips N] [--json FILE]

The run's causal generator answers unseen conversations frame by frame, as `python -m rsatalker_jax live` does, given of A

  true       A's own motion, which is what a camera would show at best
  neutral    the mean of the training motion
  invented   what a second stream of the same generator makes when A and B change places: it hears B as its partner and A as its own
             voice, and sees B's last frame. A's voice is not known ahead: with `own_lookahead` A's motion comes that many frames late
             (half: half as far from the neutral one; head: its head alone, on the neutral face)
  another's  the true motion of somebody in a conversation of the training data, which has nothing to do with what is said

Prints errors against B's true motion, of all frames and of those in which B listens; how much B moves while it listens, and how much
of the true motion there is found in it; nods and smiles at the ends of A's phrases. docs/evaluation.md defines them.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from rsatalker_jax.commands.evaluate import make_scorer
from rsatalker_jax.data.conversations import load_conversations
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.evaluation import result_tables
from rsatalker_jax.evaluation.cases import ConversationCases
from rsatalker_jax.evaluation.scoring import MotionScorer
from rsatalker_jax.evaluation.tables import Column, Table
from rsatalker_jax.files import whole_file
from rsatalker_jax.motion.streaming import init_state, prime, step
from rsatalker_jax.runs import TrainedRun, load_run
from rsatalker_jax.types import MOTION_DIM, MOTION_GROUPS, Motion

class Listener:
  """Answers clips frame by frame, all of them side by side."""

  def __init__(self, run: TrainedRun, clips: Sequence[MotionClip]):
    self._clips = clips
    self._generator = run.talker.generator
    self._variables = {**run.params["generator"], "statistics": run.buffers["generator"]}
    self._frames = np.array([len(clip.motion_a) for clip in clips])
    self._social = np.stack([run.social_feature(clip.relation) for clip in clips])
    # What is behind a clip's end is never heard by what comes before it.
    self._speech_a, self._speech_b = (self._padded([getattr(clip, name) for clip in clips]) for name in ("speech_a", "speech_b"))
    self.ahead = self._generator.config.frames_ahead
    self.neutral = np.asarray(run.buffers["generator"]["motion_mean"], np.float32)

  def _padded(self, values: Sequence[np.ndarray]) -> np.ndarray:
    padded = np.zeros((len(values), self._frames.max(), np.shape(values[0])[1]), np.float32)
    for row, x in zip(padded, values, strict=True):
      row[: len(x)] = x
    return padded

  def answer(self, motions_a: Sequence[Motion] | None, share: float | Float[np.ndarray, "56"] = 1.0) -> list[Motion]:
    """B's motion of each clip, given A's; or, of None, A's as it is invented, of each number so much of its way from the neutral one."""
    given = None if motions_a is None else self._padded(motions_a)
    inputs = self._speech_a, self._speech_b, self._social, self._frames
    made = jax.jit(jax.vmap(functools.partial(self._answer, share=share)))(*inputs, given)
    return [motion[:frames] for motion, frames in zip(np.asarray(made), self._frames)]

  def _answer(self, speech_a, speech_b, social, frames, motion_a, *, share):
    generator, variables, ahead, length = self._generator, self._variables, self.ahead, len(speech_a)
    begin = lambda voice: init_state(generator, variables) if not ahead else prime(
        generator, variables, init_state(generator, variables), voice[:ahead], np.int32(ahead)
    )  # fmt: skip
    early = jnp.concatenate([speech_b[ahead:], jnp.zeros_like(speech_b[:ahead])])

    def next_frame(carry, t):
      own, mirror, past = carry
      if motion_a is None:
        # The mirror is `ahead` frames late: of A's own voice it has to have heard as much more.
        late = jnp.maximum(t - ahead, 0)
        known = (t < frames).astype(jnp.int32) if ahead else None
        after, made = step(generator, variables, mirror, speech_b[late][None], past[min(ahead, 1)][None], speech_a[t][None], social, known)
        mirror = jax.tree.map(lambda x, before: jnp.where(t < ahead, before, x), after, mirror)
        seen = self.neutral + jnp.where(t < ahead, 0.0, share) * (made[0] - self.neutral)
      else:
        seen = motion_a[t]
      known = (t + ahead < frames).astype(jnp.int32) if ahead else None
      own, made = step(generator, variables, own, speech_a[t][None], seen[None], early[t][None], social, known)
      return (own, mirror, jnp.concatenate([past[1:], made])), made[0]

    past = jnp.tile(self.neutral, (ahead + 1, 1))  # B's newest frames.
    return jax.lax.scan(next_frame, (begin(speech_b), begin(speech_a), past), jnp.arange(length))[1]


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
  parser.add_argument("--ways", nargs="+", help="some of these alone")
  parser.add_argument("--json", help="file to write the scores to")
  options = parser.parse_args()
  run = load_run(options.workdir)
  source = load_conversations(run.config.data, options.split)
  whole = ConversationCases(source, run.encode)
  cases = [whole[i] for i in range(min(options.clips or len(whole), len(whole)))]
  clips = [case.clip for case in cases]
  listener = Listener(run, clips)
  training = load_conversations(run.config.data, "train")
  strangers = [motion for motion, _, _ in training.motions()]
  chosen = np.random.default_rng(0).permutation(len(strangers))[: len(clips)]
  ways = {
      "true": lambda: listener.answer([clip.motion_a for clip in clips]),
      "neutral": lambda: listener.answer([np.tile(listener.neutral, (len(clip.motion_a), 1)) for clip in clips]),
      "invented": lambda: listener.answer(None),
      "invented, half": lambda: listener.answer(None, 0.5),
      "invented, head": lambda: listener.answer(None, np.arange(MOTION_DIM) >= MOTION_GROUPS["pose"].start),
      "another's": lambda: listener.answer([
          np.resize(strangers[i], (len(clip.motion_a), MOTION_DIM)) for i, clip in zip(np.resize(chosen, len(clips)), clips)
      ]),
  }  # fmt: skip
  scorer, _ = make_scorer(run, source, options.split)
  scorer = MotionScorer(cases, scorer.clusters, lips=scorer.lips, expression_names=scorer.expression_names)
  rows, sizes = {}, {}
  for name, answer in ways.items():
    if name not in (options.ways or ways):
      continue
    made = {clip.name: motion for clip, motion in zip(clips, answer(), strict=True)}
    size = ListeningSize()
    for case in cases:
      size.add(made[case.clip.name], case.clip.motion_b, case.kinds["listening"])
    rows[name], sizes[name] = [scorer.score(lambda clip: made[clip.name]).means], size.scores()
    print(f"{name}: done", file=sys.stderr)
  print(f"{options.workdir} ({run.stages}), {len(clips)} clips of {options.split}, own_lookahead {listener.ahead}\n")
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
