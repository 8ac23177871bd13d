"""Whether expression coefficients are those of a head; see `types.BASES`."""

import os
import pathlib

from rsatalker_jax.errors import InputError
from rsatalker_jax.head.flame import HeadModel

# What the models are called where one gets them.
_FILES = {"flame2020": "FLAME2020/generic_model.pkl", "flame2023": "flame2023.pkl", "arkit": "assets/head/demo_head.npz"}


def check_basis(
    head: HeadModel, basis: str, place: object, *, head_path: str | os.PathLike = "HEAD", remedy: str | None = None
) -> None:
  """Refuses coefficients that are not the head's.

  Args:
    head: what is to be moved.
    basis: of the coefficients.
    place: where they come from: a motion's file, or a folder of conversations.
    head_path: the head's file, for the line of the error.
    remedy: what to do, for the same; None names the command that converts motions.

  Raises:
    InputError: the coefficients are others, or nobody has said what the head's are.
  """
  if head.basis is None:
    expected = "a year in its name, or --config.head.basis=flame2020 or flame2023 (of a run that is trained: in its config.json)"
    raise InputError(head_path, "basis", "a FLAME model that does not tell its year", expected)
  if basis == head.basis:
    return
  if remedy is None:
    out = "converted.npz" if pathlib.PurePath(str(place)).suffix else "converted"  # A file, or a folder.
    remedy = f"python -m rsatalker_jax convert --motion={place} --from_head={_FILES[basis]} --to_head={head_path} --out={out}"
  raise InputError(place, "basis", basis, f"{head.basis}, as the head has; what to do: {remedy}")
