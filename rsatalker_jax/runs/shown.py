"""A causal generator and who shows its motion, of one run or of two: what live pages are made of."""

import numpy as np

from rsatalker_jax.errors import InputError
from rsatalker_jax.runs.trained import TrainedRun, load_run


def load_shown(workdir: str, avatar_from: str | None = None, person: str | None = None) -> tuple[TrainedRun, TrainedRun]:
  """Loads a run with a causal generator, and the run whose avatar shows it.

  Args:
    workdir: the run whose generator it is.
    avatar_from: another run, on the same head model; None: the same run.
    person: whose avatar, of several.

  Raises:
    InputError: a run is missing, a generator looks ahead, there is no avatar, or it is on another head.
  """
  place = workdir if avatar_from is None else avatar_from
  shown = load_run(place, person=person)
  run = shown if avatar_from is None else load_run(workdir)
  # Before the avatar is asked for: a generator that looks ahead is the mistake that is made most.
  if "generator" in run.params and not getattr(run.config.generator, "causal", False):
    expected = "one that is causal, as --config=configs/demo.py:causal --stage=motion trains"
    raise InputError(workdir, "generator.causal", "a generator that looks ahead", expected)
  if "avatar" not in shown.params:
    expected = "a finished avatar stage, or --avatar_from=RUN with the run whose avatar is to be shown"
    raise InputError(place, "avatar", f"only {shown.stages}", expected)
  if run is not shown:
    if run.basis is None or shown.basis is None:
      raise InputError(place, "head", "a head that does not tell its basis", "one that does, with --avatar_from")
    shown.check_basis(run.basis, workdir)
    faces, wanted = (np.asarray(x.talker.head.faces) for x in (shown, run))
    if not np.array_equal(faces, wanted):
      raise InputError(place, "head", f"{len(faces)} faces", f"those {len(wanted)} of {workdir}'s head")
  return run, shown
