"""How two people are related, as the paper divides it (Sec. 3.5): blood or not, equal or not."""

import numpy as np
from jaxtyping import Int

from rsatalker_jax.errors import InputError

BLOOD = ("non_blood", "blood")  # Index = value of relation[0].
EQUAL = ("unequal", "equal")  # Index = value of relation[1].

# Sibling; mother and son; couple; superior and subordinate.
RELATIONS = ("blood,equal", "blood,unequal", "non_blood,equal", "non_blood,unequal")

# A relation nobody labelled: each table answers with the mean of its two vectors (see RelationEmbedding).
UNKNOWN = -1


def parse_relation(text: str, *, source: object = "relation") -> Int[np.ndarray, "2"]:
  """Turns "non_blood,unequal" into [blood, equal] = [0, 0].

  Args:
    text: one of `RELATIONS`; spaces do not matter.
    source: the file and line, or the flag, that an error names.

  Raises:
    InputError: any other text.
  """
  parts = [part.strip() for part in text.split(",")]
  if len(parts) != 2 or parts[0] not in BLOOD or parts[1] not in EQUAL:
    raise InputError(source, "", f"{text!r}", "one of " + " | ".join(RELATIONS))
  return np.array([BLOOD.index(parts[0]), EQUAL.index(parts[1])], np.int32)


def format_relation(relation: Int[np.ndarray, "2"]) -> str:
  """The inverse of `parse_relation`."""
  return f"{BLOOD[int(relation[0])]},{EQUAL[int(relation[1])]}"
