"""Exports a trained avatar for other programs; see `python export_avatar.py --help`."""

from rsatalker_jax.commands import command_line

if __name__ == "__main__":
  command_line.run("export")
