"""`python -m rsatalker_jax VERB --flags`: every command of the project; `--help` after a verb lists its flags."""

import os
import sys


def main() -> None:
  """The console script `rsatalker`."""
  if sys.argv[1:2] == ["evaluate"]:
    # Before numpy is loaded. Scores need eigenvalues of small matrices: several threads of OpenBLAS cost more than they save.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
  from rsatalker_jax.commands import command_line, verbs

  if len(sys.argv) < 2 or sys.argv[1] not in verbs.VERBS:
    found = sys.argv[1] if len(sys.argv) > 1 else "nothing"
    wants_help = found in ("-h", "--help", "help")
    for name, verb in verbs.VERBS.items():
      print(f"{name:10} {verb.help.splitlines()[0]}", file=sys.stdout if wants_help else sys.stderr)
    if wants_help:
      sys.exit(0)
    print(f"error: command line: found {found}, expected {' | '.join(verbs.VERBS)}", file=sys.stderr)
    sys.exit(2)
  command_line.run(sys.argv.pop(1))


if __name__ == "__main__":
  main()
