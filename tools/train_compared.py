"""Trains what a finished run is compared with in its tables: the variants of configs/ablations.py's COMPARED.

    python tools/train_compared.py --workdir=runs/demo [--config=configs/demo.py] [--variants=faceformer,timar] [--seeds=0,1,2]

Each becomes a run of its own, <workdir>/compare/<variant>/seed_<n>; eval.py on the run then scores all. The command continues
where it was stopped: what is trained is left alone. Words that begin with --config. go to every training.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs.ablations import COMPARED, VARIANTS  # noqa: E402
from rsatalker_jax.runs import load_config, workdir as workdirs  # noqa: E402
from tools import training_runs  # noqa: E402


def stages_of(variant: str) -> tuple[str, ...]:
  """The stages that a variant trains to be compared: its own, or of a variant of RSATalker the motion stage."""
  return VARIANTS[variant][1].get("stages", ("motion",))


def is_trained(folder: pathlib.Path, stages: tuple[str, ...]) -> bool:
  """Whether a run has reached its last step in all of these stages."""
  if not (folder / "config.json").is_file():
    return False
  config = load_config(str(folder))
  for stage in stages:
    newest = workdirs.find_checkpoints(workdirs.checkpoint_folder(folder, stage))
    if not newest or int(newest[0].name) < config[stage]["steps"]:
      return False
  return True


def main(stray: list[str], more: list[str]) -> None:
  variants = training_runs.VARIANTS.value or list(COMPARED)
  training_runs.refuse(stray + [name for name in variants if name not in VARIANTS], list(VARIANTS))
  for variant in variants:
    for seed in map(int, training_runs.SEEDS.value or COMPARED.get(variant, (0,))):
      folder, stages = pathlib.Path(training_runs.WORKDIR.value) / "compare" / variant / f"seed_{seed}", stages_of(variant)
      if is_trained(folder, stages):
        print(f"{folder}: trained", flush=True)
        continue
      start = [sys.executable, "train.py", f"--config={training_runs.CONFIG.value}:{variant}", f"--config.seed={seed}", f"--workdir={folder}"]
      for stage in stages:
        training_runs.run([*start, f"--stage={stage}", *more])


if __name__ == "__main__":
  training_runs.start(main)
