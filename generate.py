"""Generates the other person's motion and video; see `python generate.py --help`."""

from rsatalker_jax.commands import command_line

if __name__ == "__main__":
  command_line.run("generate")
