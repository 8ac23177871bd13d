"""Trains RSATalker: motion, avatar, joint.

    python train.py --config=configs/demo.py --workdir=runs/demo [--stage=motion|avatar|joint] [--init_from=RUN]

The same command continues a run that was stopped. Any value of the config can be set: --config.motion.steps=100.
"""

from absl import flags
from ml_collections import config_flags

from rsatalker_jax import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to train.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go.")
_STAGE = flags.DEFINE_enum("stage", None, ["motion", "avatar", "joint"], "One stage alone; all of them by default.")
_INIT_FROM = flags.DEFINE_string("init_from", None, "A run whose parameters to start from.")
flags.mark_flags_as_required(["config", "workdir"])


def main():
  config = command_line.read_config(_CONFIG)
  command_line.use_devices(config.mesh)
  # After the devices are chosen: these import jax's backends.
  from rsatalker_jax.training import run

  run.train(config, _WORKDIR.value, stage=_STAGE.value, init_from=_INIT_FROM.value)


if __name__ == "__main__":
  command_line.run(main)
