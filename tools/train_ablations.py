"""Trains and scores the variants of a finished run that configs/ablations.py lists, and writes the tables of docs/ablations.md.

    python tools/train_ablations.py --workdir=runs/demo [--config=configs/demo.py] [--variants=full,no_relation] [--seeds=0,1,2]

Of `full` the first seed is the run itself. Every variant is a run of its own, <workdir>/ablations/<variant>/seed_<n>
(<workdir>/offsets/… what asks after offsets alone), that can be scored, watched and generated with as any other. The command
continues where it was stopped: what is trained and scored is left alone. Words that begin with --config. go to every training.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs.ablations import ABLATIONS, VARIANTS  # noqa: E402
from configs.common import base_config  # noqa: E402
from rsatalker_jax.evaluation import ablations  # noqa: E402
from rsatalker_jax.runs import load_config  # noqa: E402
from tools import training_runs  # noqa: E402
from tools.degrade_tracking import write_degraded  # noqa: E402

# Seeds by variant where --seeds is not given: where a run takes long, one.
SEEDS = {"full": (0, 1, 2), "no_relation": (0, 1, 2), "no_motion_stage": (0, 1, 2), "no_avatar_stage": (0, 1, 2)}


def folder_of(workdir: str, variant: str, seed: int) -> pathlib.Path:
  """Where a variant's run lies."""
  return pathlib.Path(workdir) if variant == "full" and seed == 0 else ablations.folder_of(workdir, variant, seed)


def commands_of(workdir: str, config: str, variant: str, seed: int, more: list[str]) -> list[list[str]]:
  """The commands that train one variant, one after another."""
  folder, taken = folder_of(workdir, variant, seed), ABLATIONS[variant]
  stages = VARIANTS[variant][1].get("stages", base_config().stages)
  origins = [f"--init_from={folder_of(workdir, other, seed)}:{stage}" for stage, other in taken.items()]
  start = [sys.executable, "train.py", f"--config={config}:{variant}", f"--config.seed={seed}", f"--workdir={folder}"]
  return [[*start, f"--stage={stage}", *origins, *more] for stage in stages if stage not in taken]


def main(stray: list[str], more: list[str]) -> None:
  variants = training_runs.VARIANTS.value or list(ABLATIONS)
  training_runs.refuse(stray + [name for name in variants if name not in ABLATIONS], list(ABLATIONS))
  workdir = training_runs.WORKDIR.value
  for variant in variants:
    for seed in map(int, training_runs.SEEDS.value or SEEDS.get(variant, (0,))):
      folder = folder_of(workdir, variant, seed)
      if folder != pathlib.Path(workdir):
        _prepare(workdir, variant)
        for command in commands_of(workdir, training_runs.CONFIG.value, variant, seed, more):
          training_runs.run(command)
      if not ablations.is_scored(folder):
        part = ["--part=frames"] * ablations.asks_after_offsets(variant)
        training_runs.run([sys.executable, "eval.py", f"--workdir={folder}", *part])
  print(ablations.write_tables(workdir, list(ABLATIONS)))


def _prepare(workdir: str, variant: str) -> None:
  """Makes the capture that a variant names, where it is made and not given."""
  name = VARIANTS[variant][1].get("data.capture")
  if name is None:
    return
  data = load_config(workdir)["data"]
  source = pathlib.Path(data["embedded_root"]) / data["capture"]
  target = source.with_name(name)
  if not target.exists():
    write_degraded(source, target)


if __name__ == "__main__":
  training_runs.start(main)
