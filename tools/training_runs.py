"""What the tools that train many runs share: starting one, and the words of the command line that go to each."""

import os
import subprocess
import sys
from collections.abc import Callable

from absl import app, flags

_FOR_TRAINING = "--config."

WORKDIR = flags.DEFINE_string("workdir", None, "The finished run.", required=True)
CONFIG = flags.DEFINE_string("config", "configs/demo.py", "The config that made it.")
VARIANTS = flags.DEFINE_list("variants", None, "Which; if not given, all that the tool knows.")
SEEDS = flags.DEFINE_list("seeds", None, "Of every variant; if not given, those that the tool knows.")


def start(main: Callable[[list[str], list[str]], None]) -> None:
  """Runs a tool's main with the words that are no flags of its own, and with those that go to every training."""
  flags = [word for word in sys.argv if not word.startswith(_FOR_TRAINING)]
  others = [word for word in sys.argv if word.startswith(_FOR_TRAINING)]
  app.run(lambda argv: main(argv[1:], others), argv=flags)


def refuse(stray: list[str], known: list[str]) -> None:
  """Ends the program with a line where words are not known."""
  if stray:
    sys.exit(f"error: found {', '.join(stray)}, expected variants among {', '.join(known)}")


def run(command: list[str]) -> None:
  """One command; a failure ends the program with its status."""
  print(" ".join(command[1:]), flush=True)
  if status := subprocess.run(command, cwd=os.getcwd(), check=False).returncode:
    sys.exit(status)
