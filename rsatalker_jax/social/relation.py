"""How two people are related, as the paper divides it (Sec. 3.5): blood or not, equal or not."""

import numpy as np
from jaxtyping import Int

from rsatalker_jax.errors import InputError

BLOOD = ("non_blood", "blood")  # Index = value of relation[0].
EQUAL = ("unequal", "equal")  # Index = value of relation[1].

# Sibling; mother and son; couple; superior and subordinate.
RELATIONS = ("blood,equal", "blood,unequal", "non_blood,equal", "non_blood,unequal")

# What nobody labelled, as value and word: a table answers with the mean of its two vectors (see RelationEmbedding).
UNKNOWN = -1
UNKNOWN_NAME = "unknown"


def parse_relation(text: str, *, source: object = "relation") -> Int[np.ndarray, "2"]:
  """Turns "non_blood,unequal" into [blood, equal] = [0, 0].

  Args:
    text: one of `RELATIONS`; "unknown" (-1) may stand for either word, or for both; spaces do not matter.
    source: the file and line, or the flag, that an error names.

  Raises:
    InputError: any other text.
  """
  parts = [part.strip() for part in text.split(",")]
  if parts == [UNKNOWN_NAME]:
    parts *= 2
  axes = (BLOOD, EQUAL)
  if len(parts) != 2 or any(part not in (*names, UNKNOWN_NAME) for part, names in zip(parts, axes)):
    expected = f"{' | '.join(RELATIONS)} | {UNKNOWN_NAME}, or {UNKNOWN_NAME} for one of the two words"
    raise InputError(source, "", f"{text!r}", expected)
  values = [UNKNOWN if part == UNKNOWN_NAME else names.index(part) for part, names in zip(parts, axes)]
  return np.array(values, np.int32)


def format_relation(relation: Int[np.ndarray, "2"]) -> str:
  """The inverse of `parse_relation`."""
  blood, equal = (UNKNOWN_NAME if i == UNKNOWN else names[i] for i, names in zip(map(int, relation), (BLOOD, EQUAL)))
  return UNKNOWN_NAME if blood == equal else f"{blood},{equal}"
