"""Measures how a trained run answers what the partner shows, in each relation, beside the demo world's rules.

    python tools/measure_answers.py --workdir=runs/demo [--out=docs/social_awareness.md]

Every unseen dialogue is generated in all four relations, whatever its own is, once as it is and once for each channel of
docs/demo_world.md with the partner showing more and less of it in turns. What changes in the answer, per change in the
cause, is the gain; the simulator is asked the same way. Prints Markdown; --out writes it.
"""

import dataclasses
import pathlib
import sys

import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from rsatalker_jax.commands import command_line
from rsatalker_jax.data.conversations import load_conversations
from rsatalker_jax.data.pipeline import MotionClip, load_clips
from rsatalker_jax.evaluation import demo_world
from rsatalker_jax.files import whole_file
from rsatalker_jax.social.relation import RELATIONS, parse_relation
from rsatalker_jax.runs import TrainedRun, load_run

_WORKDIR = flags.DEFINE_string("workdir", None, "A run on the embedded conversations.", required=True)
_OUT = flags.DEFINE_string("out", None, "Where to write the Markdown.")


def measure_run(run: TrainedRun, clips: list[MotionClip]) -> dict[str, list[np.ndarray]]:
  """Gains (9, 9) of each clip, by relation."""
  gains = {relation: [] for relation in RELATIONS}
  for clip in clips:
    nudged = demo_world.nudge_partner(clip.name, clip.motion_a)
    for relation in RELATIONS:
      told = dataclasses.replace(clip, relation=parse_relation(relation))
      respond = lambda motion_a: run.generate(dataclasses.replace(told, motion_a=motion_a))
      gains[relation].append(demo_world.measure_answers(respond, clip.name, clip.motion_a, nudged))
  return gains


def report(title: str, generated: dict[str, list[np.ndarray]], clips: list[MotionClip]) -> str:
  """Markdown: the table, and how far gains agree."""
  mean = lambda gains: {relation: np.nanmean(values, axis=0) for relation, values in gains.items()}
  simulated = mean({r: [demo_world.simulate_answers(clip.name, r) for clip in clips] for r in RELATIONS})
  rules, found = demo_world.rule_answers(), mean(generated)
  lines = [
      (f"{title}: {len(clips)} clips of unseen dialogues, each generated in all four relations. Gains: rule / simulator / "
       "generated.\n"),
      demo_world.answers_table({"rule": rules, "simulator": simulated, "generated": found}),
  ]
  for name, gains in (("simulator", simulated), ("generated", found)):
    agreement = demo_world.compare_answers(gains, rules)
    lines.append(
        f"- {name} against the rules: of {agreement['differences']} differences between two relations of at least 0.2, "
        f"{100 * agreement['direction']:.0f} % have the rules' sign, with {agreement['slope']:.2f} of their size; "
        f"correlation of all gains {agreement['correlation']:.2f}"
    )
  return "\n".join(lines) + "\n"


def main() -> None:
  run = load_run(_WORKDIR.value)
  # One performance of each dialogue, both directions.
  clips = load_clips(load_conversations(run.config.data, "test"), run.encode)
  clips = [clip for clip in clips if "_sub_video_0_" in clip.name]
  text = report(f"Run {_WORKDIR.value} ({run.stages})", measure_run(run, clips), clips)
  print(text)
  if _OUT.value:
    with whole_file(_OUT.value) as file:
      file.write(text.encode("utf-8"))


if __name__ == "__main__":
  command_line.run_program(main)
