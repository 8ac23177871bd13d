"""Computes speech features once; see `python encode_speech.py --help`."""

from rsatalker_jax.commands import command_line

if __name__ == "__main__":
  command_line.run("encode")
