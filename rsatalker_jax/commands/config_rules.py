"""What a value of a config may be: rules, and what they are made of. `config_values.py` says which key has which."""

import math
import numbers
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from rsatalker_jax.errors import InputError

MOST = 2**31 - 1  # Steps and seeds are counted in 32 bits.


class Rule(NamedTuple):
  """Attributes:
    accepts: whether a value may be.
    expected: what a value should be, for the line of the error.
  """

  accepts: Callable[[Any], bool]
  expected: str


def whole(low: int, high: int = MOST) -> Rule:
  expected = f"a whole number of {low} to {high}" if high < MOST else f"a whole number of at least {low}"
  return Rule(lambda x: is_whole(x) and low <= x <= high, expected)


def odd() -> Rule:
  return Rule(lambda x: is_whole(x) and 1 <= x <= MOST and x % 2 == 1, "an odd number of at least 1")


def one_of(*values: int | str) -> Rule:
  # 1 == 1.0 == True: the type counts, too.
  return Rule(lambda x: any(type(x) is type(value) and x == value for value in values), " | ".join(map(repr, values)))


def number(low: float = 0.0, high: float = math.inf, *, above: bool = False, below: bool = False) -> Rule:
  """A finite number from `low` to `high`; with `above` and `below` without those themselves."""
  fits = lambda x: (low < x if above else low <= x) and (x < high if below else x <= high)
  expected = f"a number {'above' if above else 'of at least'} {low:g}"
  if high < math.inf:
    expected = f"{expected} and {'below' if below else 'at most'} {high:g}"
  return Rule(lambda x: is_number(x) and fits(x), expected)


def or_none(rule: Rule) -> Rule:
  return Rule(lambda x: x is None or rule.accepts(x), f"None or {rule.expected}")


def is_whole(x: Any) -> bool:
  return isinstance(x, numbers.Integral) and not isinstance(x, bool)


def is_number(x: Any) -> bool:
  return isinstance(x, numbers.Real) and not isinstance(x, bool) and -math.inf < x < math.inf


def is_path(x: Any) -> bool:
  return isinstance(x, str) and x.strip() != "" and "\0" not in x


def is_relation(x: Any) -> bool:
  from rsatalker_jax.social.relation import parse_relation

  try:
    parse_relation(x)
  except (InputError, AttributeError):  # No text has no `split`.
    return False
  return True


def is_group(x: Any) -> bool:
  from rsatalker_jax.data.seamless.names import parse_group

  return isinstance(x, str) and parse_group(x) is not None


def is_sharding_rule(x: Any) -> bool:
  if not (isinstance(x, (tuple, list)) and len(x) == 2 and isinstance(x[0], str)):
    return False
  try:
    re.compile(x[0])
  except re.error:
    return False
  named = [axis for axis in x[1] if axis is not None] if isinstance(x[1], (tuple, list)) else []
  return x[1] == "longest" or (several(x[1], lambda axis: axis in (None, "data", "fsdp"), different=False) and several(named, bool))


def several(x: Any, accepts: Callable[[Any], bool], *, different: bool = True) -> bool:
  """Whether x is a tuple, or a list as in config.json, whose members all are accepted and differ."""
  return isinstance(x, (tuple, list)) and all(map(accepts, x)) and not (different and len(set(x)) < len(x))


FLAG = Rule(lambda x: isinstance(x, bool), "True or False")
PATH = Rule(is_path, "a path")
PATHS = Rule(lambda x: several(x, is_path), "a tuple of different paths")
ANY_TEXT = Rule(lambda x: isinstance(x, str) and "\0" not in x, "a text")
TITLE = Rule(lambda x: is_path(x) and not set(x) & set("|\n\r"), "one line of text, without |, which divides a table")
COUNT, COUNT_OR_0 = whole(1), whole(0)
COUNT_OR_REST = Rule(lambda x: is_whole(x) and (x == -1 or 1 <= x <= MOST), "-1 or a whole number of at least 1")
WEIGHT, RATE = number(), number()
SHARE = number(0, 1)
