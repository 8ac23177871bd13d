"""Computes the speech features of a config's conversations, once; training, scoring and generating then read them.

    python encode_speech.py --config=configs/demo.py

Voices that are there already are checked and left alone, so the command can be stopped and run again at any time, and by
several processes at once. Started by a cluster's launcher, each process takes its share of the voices.
"""

from absl import flags
from ml_collections import config_flags

from rsatalker_jax import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config of the runs that will read them.", lock_config=True)
flags.mark_flags_as_required(["config"])


def main():
  config = command_line.read_config(_CONFIG)
  command_line.use_devices(config.mesh)
  # After the devices are chosen: this imports jax's backends.
  from rsatalker_jax import voice_features

  voice_features.encode_voices(config)


if __name__ == "__main__":
  command_line.run(main)
