"""python -m rsatalker_jax.data.demo --root DIR: unpacks the embedded conversations."""

import argparse
import sys

from rsatalker_jax.data.demo.unpack import unpack_demo
from rsatalker_jax.errors import InputError


def main() -> int:
  parser = argparse.ArgumentParser(prog="python -m rsatalker_jax.data.demo", description=__doc__)
  parser.add_argument("--root", required=True, help="folder to make")
  parser.add_argument("--performances", type=int, default=3, help="performances of each dialogue (default 3)")
  arguments = parser.parse_args()
  try:
    unpack_demo(arguments.root, performances=arguments.performances)
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
