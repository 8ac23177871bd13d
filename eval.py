"""Scores a trained run; see `python eval.py --help`."""

import os

# Before numpy is loaded. Scores need eigenvalues of small matrices: several threads of OpenBLAS cost more than they save.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from rsatalker_jax.commands import command_line

if __name__ == "__main__":
  command_line.run("evaluate")
