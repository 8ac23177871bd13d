"""Scores a trained run on unseen conversations and frames: tables on the screen, JSON, Markdown and a sheet of frames.

    python eval.py --config=configs/demo.py --workdir=runs/demo

Writes <workdir>/evaluation/results.json, results.md and frames.png. Motion stages that `make compare` has trained under
<workdir>/compare stand in the same table.
"""

import os

# Before numpy is loaded. Scores need eigenvalues of small matrices: several threads of OpenBLAS cost more than they save.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from rsatalker_jax import command_line  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config that trained the run.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run to score.")
flags.mark_flags_as_required(["config", "workdir"])


def main():
  config = command_line.read_config(_CONFIG)
  command_line.use_devices(config.mesh)
  # After the devices are chosen: these import jax's backends.
  from rsatalker_jax import scorecard
  from rsatalker_jax.training import checkpoints

  checkpoints.check_workdir(_WORKDIR.value, config.to_dict(), must_exist=True)
  print(scorecard.score_run(_WORKDIR.value))


if __name__ == "__main__":
  command_line.run(main)
