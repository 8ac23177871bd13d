"""Trains RSATalker; see `python train.py --help`."""

from rsatalker_jax.commands import command_line

if __name__ == "__main__":
  command_line.run("train")
