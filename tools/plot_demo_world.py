"""Measures and draws the demo world: docs/images/demo_world_*.png and the table of shares in docs/demo_world.md.

    python tools/plot_demo_world.py --out docs/images

Needs matplotlib (tools/requirements.txt).
"""

import argparse
import dataclasses
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from rsatalker_jax.data.demo import dyads, voices
from rsatalker_jax.data.demo.expressions import COLUMN
from rsatalker_jax.data.demo.rules import CHANNELS, RULES
from rsatalker_jax.types import FPS, MOTION_GROUPS

COLOURS = dict(zip(RULES, ("tab:red", "tab:orange", "tab:green", "tab:blue"), strict=True))


def draw_answers(dialogue: voices.Dialogue, path: pathlib.Path) -> None:
  """What speaker 2 answers, by relation, when speaker 1 smiles, lifts the brows, or tilts the head for two seconds."""
  listening = dialogue.utterances[0]  # Speaker 1 begins in the dialogue chosen.
  first = int((listening.start + 0.8) * FPS)
  window = np.arange(first - 15, first + 90)
  num_frames = int(dialogue.duration * FPS + 1e-6)
  panels = (("smile", 0.4, ("smile", "brow_inner", "brow_raise", "press")), ("brow_raise", 0.4, ("brow_raise", "brow_lower")),
            ("tilt", 0.08, ("tilt",)), ("yaw", 0.10, ("yaw",)))
  fig, axes = plt.subplots(3, 3, figsize=(13, 8), sharex=True)
  cells = iter(axes.ravel())
  for cause, size, effects in panels:
    nudge = np.zeros((2, num_frames, len(CHANNELS)))
    nudge[0, first:first + 50, CHANNELS.index(cause)] = size
    for effect in effects:
      axis = next(cells)
      axis.plot((window - first) / FPS, nudge[0, window, CHANNELS.index(cause)], color="0.8", linewidth=4)
      for relation, rules in RULES.items():
        changes = []
        for performance in range(6):
          with_it, without = (dyads.simulate_dyad(dialogue, performance, rules=rules, nudge=extra).visible[1]
                              for extra in (nudge, None))
          changes.append((with_it - without)[window, CHANNELS.index(effect)])
        axis.plot((window - first) / FPS, np.mean(changes, axis=0), color=COLOURS[relation], label=relation)
      axis.set_title(f"{cause} of one (grey) → {effect} of the other", fontsize=10)
      axis.axhline(0, color="0.7", linewidth=0.5)
  last = next(cells)
  last.axis("off")
  last.legend(*axes[0, 0].get_legend_handles_labels(), loc="center", title="change in the answer,\nmean of 6 performances")
  for axis in axes[-1]:
    axis.set_xlabel("seconds")
  fig.tight_layout()
  fig.savefig(path, dpi=70)
  plt.close(fig)


def draw_course(dialogue: voices.Dialogue, path: pathlib.Path) -> None:
  """One dialogue by the same two people in two relations."""
  rows = (("mouthSmileLeft", "smile"), ("jawOpening", "jaw (rad)"), ("headPitch", "pitch (rad)"), ("headTilt", "tilt (rad)"))
  fig, axes = plt.subplots(len(rows), 2, figsize=(14, 9), sharex=True, sharey="row")
  for column, relation in enumerate(("blood,equal", "non_blood,unequal")):
    dyad = dyads.simulate_dyad(dialogue, 0, rules=RULES[relation])
    seconds = dyad.timelines[0].times
    for (name, label), axis in zip(rows, axes[:, column], strict=True):
      for person, colour in ((0, "tab:purple"), (1, "tab:olive")):
        curve = dyad.motion[person, :, COLUMN[name]]
        axis.plot(seconds, curve, color=colour, linewidth=1, label=f"speaker {person + 1}")
        axis.fill_between(seconds, 0, 1, where=dyad.timelines[person].speaking > 0.5, color=colour, alpha=0.10,
                          transform=axis.get_xaxis_transform(), linewidth=0)
      axis.set_ylabel(label)
    axes[0, column].set_title(f"{dialogue.id} played as {relation} (shaded: who speaks)")
    axes[-1, column].set_xlabel("seconds")
  axes[0, 0].legend()
  fig.tight_layout()
  fig.savefig(path, dpi=70)
  plt.close(fig)


def measure_shares(dialogues: list[voices.Dialogue], performances: int = 3) -> dict[str, dict[str, float]]:
  """Shares of the motion's variance, per group; they overlap and need not add up to 1.

  chance: spread over performances at the same frame, where nobody answers the other (habits, moments, noise).
  answers: what changes when the answers to the partner's face are switched off.
  relation: spread over the four relations at the same frame with the same chance.
  """
  spread = {"total": [], "chance": [], "answers": [], "relation": []}
  everything = []
  for dialogue in dialogues:
    rules = RULES[dialogue.relation]
    alone = [dyads.simulate_dyad(dialogue, p, rules=dataclasses.replace(rules, answers={})).motion for p in range(performances)]
    real = [dyads.simulate_dyad(dialogue, p).motion for p in range(performances)]
    in_each = [dyads.simulate_dyad(dialogue, 0, rules=other).motion for other in RULES.values()]
    everything.append(np.concatenate(real, axis=1).reshape(-1, 56))
    spread["chance"].append(np.var(alone, axis=0, ddof=1).reshape(-1, 56).mean(0))
    spread["answers"].append(np.var(np.subtract(real, alone).reshape(-1, 56), axis=0))
    spread["relation"].append(np.var(in_each, axis=0).reshape(-1, 56).mean(0))
  spread["total"] = [np.concatenate(everything).var(0)]
  shares = {}
  for group, columns in MOTION_GROUPS.items():
    sums = {name: np.mean(values, axis=0)[columns].sum() for name, values in spread.items()}
    shares[group] = {name: sums[name] / sums["total"] for name in ("chance", "answers", "relation")}
  return shares


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the pictures")
  parser.add_argument("--dialogues", type=int, default=16, help="how many dialogues to measure")
  arguments = parser.parse_args()
  table = voices.load_dialogues()
  by_name = {dialogue.id: dialogue for dialogue in table}
  arguments.out.mkdir(parents=True, exist_ok=True)
  draw_answers(by_name["d001"], arguments.out / "demo_world_answers.png")
  draw_course(by_name["d004"], arguments.out / "demo_world_course.png")
  step = max(len(table) // arguments.dialogues, 1)
  for group, shares in measure_shares(table[::step]).items():
    print(group, {name: f"{100 * share:.0f} %" for name, share in shares.items()})


if __name__ == "__main__":
  main()
